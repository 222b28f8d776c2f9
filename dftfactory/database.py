"""An ASE database that is somebody else's: opened without making one, changed in one step, its errors in words."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ase.db
from ase import Atoms
from ase.data import chemical_symbols
from ase.db.core import Database
from ase.db.row import AtomsRow

from dftfactory.errors import CandidateError

_SQLITE_HEADER = b"SQLite format 3\0"
_ASE_TABLES = {"systems", "species", "keys", "text_key_values", "number_key_values", "information"}
# Bytes of a file that is read through when it is opened (a second): SQLite may take a damaged page for an empty one.
_CHECKED_SIZE = 200_000_000
# What SQLite says of the disk below it → what helps.
_CURES = {
    "readonly database": "make the file and its folder writable for you",
    "unable to open": "make the file and its folder writable for you; SQLite keeps a journal beside the file",
    "locking protocol": "this disk has no locks that work (NFS, FUSE); put the file on another disk",
    "disk I/O error": "the disk fails, or has no locks that work (NFS, FUSE); put the file on another disk",
    "disk is full": "make room on the disk or in your quota, and repeat the command",
}
# Seconds to wait for ASE's lock file (it waits for ever); the same that ASE lets SQLite wait for its own lock.
_LOCK_TIMEOUT = 20.0


def open_candidates(path: Path | str) -> Database:
    """Open an existing candidate database; never create one.

    Parameters
    ----------
    path
        An SQLite file `*.db`, or whatever else `ase.db.connect` takes (`*.json`, `postgresql://...`).
        ASE writes a JSON file anew for each change of each row: it is for tens of candidates, not for thousands.

    Raises
    ------
    CandidateError
        The file is missing, empty, cut, locked, unreadable, or not a database of ASE.

    Notes
    -----
    SQLite is opened without ASE's own lock file. SQLite locks by itself, and the second lock can only harm: ASE waits
    for it without end when a killed process left it behind, and two ASE processes that each hold one of the two locks
    stop each other.
    """
    is_file = "://" not in str(path)
    if is_file:
        _check_file(Path(path))
    with database_errors(path):
        db = ase.db.connect(str(path), use_lock_file=is_file and Path(path).suffix != ".db")
        if db.lock is not None:
            db.lock.timeout = _LOCK_TIMEOUT
        db.count()  # reads the tables and their version
    return db


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """Make all changes inside take effect together, or none of them (a JSON file has no transactions).

    On SQLite, other writers wait from the beginning: between our reading of a row and our writing of it, nobody's
    change is lost.

    Raises
    ------
    CandidateError
        The database stayed locked by another process for 20 s, or cannot be written.
    """
    if _is_connected(db):  # part of the caller's transaction
        yield
        return
    try:
        with db:
            # ASE commits every 5000 changes, even here; NaN is never a multiple of 5000.
            db.change_count = math.nan
            if getattr(db, "type", None) == "db":
                db.connection.execute("BEGIN IMMEDIATE")
            yield
    except sqlite3.Error as error:
        raise CandidateError(_explain(db, error)) from error


def index_rows(db: Database) -> None:
    """Let SQLite find the keys and the species of a row: ASE deletes and writes them anew for each change of the row.

    It has indexes by key only, so that each change reads these tables from end to end: 10,000 rows take minutes, and
    ten times as many a hundred times as long. Safe to repeat; ASE and `ase db` work as before, and faster.
    """
    if getattr(db, "type", None) != "db":
        return
    with transaction(db), database_errors(db):
        db.connection.execute("CREATE INDEX IF NOT EXISTS keys_of_row ON keys(id)")
        db.connection.execute("CREATE INDEX IF NOT EXISTS text_key_values_of_row ON text_key_values(id)")
        db.connection.execute("CREATE INDEX IF NOT EXISTS number_key_values_of_row ON number_key_values(id)")
        db.connection.execute("CREATE INDEX IF NOT EXISTS species_of_row ON species(id)")


def connection(db: Database) -> AbstractContextManager[Any]:
    """One connection for several reads: ASE connects for each row of a selection, which takes six times as long."""
    return nullcontext() if _is_connected(db) else db


@contextmanager
def database_errors(db: Database | Path | str, where: str = "") -> Iterator[None]:
    """Wrap calls of ASE only: each back end raises the classes of its own driver, so nothing shorter than all fits."""
    try:
        yield
    except CandidateError:
        raise
    except Exception as error:
        raise CandidateError(_explain(db, error, where)) from error


def database_name(db: Database | Path | str) -> str:
    """File name or address, without the password of a database server."""
    return re.sub(r"//[^/@]*@", "//***@", str(getattr(db, "filename", db)))


def structure_of(row: AtomsRow) -> Atoms:
    """Return the structure of a row without results.

    Raises
    ------
    Exception
        Of any kind, where the row is damaged.
    """
    for name in ("numbers", "positions", "cell"):
        if row.get(name) is None:  # ASE would put all atoms into one place
            raise ValueError(f"it has no {name}")
    if len(row.numbers) and not 0 <= row.numbers.min() <= row.numbers.max() < len(chemical_symbols):
        raise ValueError("it has an atom of no chemical element")
    atoms = row.toatoms()
    atoms.calc = None
    return atoms


def _is_connected(db: Database) -> bool:
    return getattr(db, "connection", None) is not None


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CandidateError(f"candidate database {path} cannot be read (it is not a file)")
    try:
        with path.open("rb") as file:
            header = file.read(len(_SQLITE_HEADER))
    except FileNotFoundError as error:
        raise CandidateError(
            f"candidate database {path} does not exist; check the path, or import a structure file first"
        ) from error
    except OSError as error:
        raise CandidateError(f"candidate database {path} cannot be read ({error.strerror})") from error
    if not header:
        raise CandidateError(f"candidate database {path} is empty; delete it, and restore a copy or import again")
    if path.suffix != ".db":
        return
    if header != _SQLITE_HEADER:
        raise CandidateError(
            f"{path} is not an SQLite database (it begins with {header!r}); give the ase.db file of the pipeline, or "
            "import a structure file"
        )
    # mode=rw: what is missing is not created.
    uri = f"{path.resolve().as_uri()}?mode=rw"
    with database_errors(path), closing(sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT)) as sqlite:
        tables = {name for (name,) in sqlite.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if path.stat().st_size <= _CHECKED_SIZE:
            [(verdict,)] = sqlite.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(f"malformed: {verdict}")
    if not tables >= _ASE_TABLES:
        raise CandidateError(
            f"{path} is an SQLite database, but not of ASE: it has no table {sorted(_ASE_TABLES - tables)[0]!r}; "
            "give the database that the pipeline writes with ase.db"
        )


def _explain(db: Database | Path | str, error: Exception, where: str = "") -> str:
    name = f"{where} of {database_name(db)}" if where else f"candidate database {database_name(db)}"
    text = str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        return f"{name} is locked; if no other process uses it, remove {database_name(db)}.lock"
    if isinstance(error, sqlite3.Error) and "locked" in text:
        return f"{name} is locked by another process and stayed so for 20 s; try again when that one has finished"
    if isinstance(error, sqlite3.Error):
        for said, cure in _CURES.items():
            if said in text:
                return f"{name} cannot be used ({text}): {cure}; nothing is half done"
    if isinstance(error, sqlite3.Error) and ("malformed" in text or "not a database" in text):
        return f"{name} is damaged or cut ({text}); restore a copy, or save what is left with `sqlite3 FILE .recover`"
    if isinstance(error, ModuleNotFoundError):
        return f"{name} needs a back end that is not installed ({text}); `pip install ase-db-backends`"
    return f"{name} cannot be read or written: {text}"
