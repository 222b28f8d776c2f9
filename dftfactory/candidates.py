"""The pipeline's database of candidates: which structures wait for a label, and what became of them.

A candidate is a row of an ase.db database with the key `status`: SELECTED, then QUEUED, then COMPLETED or FAILED.
Rows with another status, or with none, belong to the pipeline and are never touched.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import sqlite3
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.core import Database, bytes_to_object, check, object_to_bytes, str_represents
from ase.db.row import AtomsRow, atoms2dict
from ase.io import iread

from dftfactory.errors import CandidateError
from dftfactory.labels import CALCULATION_ID
from dftfactory.results import DFTResult

STATUSES = ("SELECTED", "QUEUED", "COMPLETED", "FAILED")
# What an earlier attempt may have left on a row; gone as soon as the row gets a new status.
_OUTCOME_KEYS = ("reason", "failure", "level", "quality", "iterations", "total_magnetization", "config_hash")
# Keys that mean something to us: the same word in an imported file means something else.
_OUR_KEYS = {"status", "fingerprint", "source", "digest", *_OUTCOME_KEYS}

_SQLITE_HEADER = b"SQLite format 3\0"
_ASE_TABLES = {"systems", "species", "keys", "text_key_values", "number_key_values"}
# Rows that are in memory at once: 200 of 1,000 atoms are 10 MB.
_PAGE = 200
# Seconds to wait for ASE's lock file (it waits for ever); the same that ASE lets SQLite wait for its own lock.
_LOCK_TIMEOUT = 20.0
# Long enough for a sentence of pw.x, short enough for a column of `ase db`.
_REASON_LENGTH = 300


@dataclass(frozen=True, eq=False)
class Candidate:
    """One row that waits for a label, or has one.

    Attributes
    ----------
    row_id
        `id` of the row.
    calculation_id
        The row's own `calculation_id`, or one derived from the row that is the same each time.
    atoms
        The structure, without the calculator results that the row may have.
    fingerprint
        Names the label; None before the row was queued.
    """

    row_id: int
    calculation_id: str
    atoms: Atoms
    fingerprint: str | None


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
    with _database_errors(path):
        db = ase.db.connect(str(path), use_lock_file=is_file and Path(path).suffix != ".db")
        if db.lock is not None:
            db.lock.timeout = _LOCK_TIMEOUT
        db.count()  # reads the tables and their version
    return db


def candidate_database_for(structure_file: Path) -> Path:
    """Return where the candidates of a structure file are kept unless the user says otherwise: beside it, as `.db`."""
    return structure_file.with_name(f"{structure_file.stem}.db")


def import_structures(structure_file: Path, database_path: Path) -> tuple[int, int]:
    """Write all frames of a structure file as SELECTED candidates, all of them or none.

    Cell, pbc, initial magnetic moments and charges, tags and constraints are kept. Energies, forces and other results
    in the file are dropped: they are not labels of this data set, and so are per-atom columns that ase.db has no
    place for. Of `atoms.info`, what ase.db takes as a key becomes a key of the row, the rest goes to its `data`.

    Parameters
    ----------
    structure_file
        Any format that ASE reads.
    database_path
        SQLite file `*.db`; made if it does not exist.

    Returns
    -------
    tuple[int, int]
        Number of structures imported, and of those that were there already (the same atoms in the same place, whatever
        the file is called).

    Raises
    ------
    CandidateError
        A frame cannot be read or kept, or one of the two files is not what it should be; nothing was imported.
    """
    if not structure_file.is_file():
        raise CandidateError(f"{structure_file} does not exist or is not a file; give a structure file that ASE reads")
    if database_path.suffix != ".db" or database_path.resolve() == structure_file.resolve():
        raise CandidateError(
            f"structures are imported from a structure file into another file that ends in .db, "
            f"not from {structure_file} into {database_path}"
        )
    is_new = not database_path.exists()
    try:
        with _database_errors(database_path):
            db = ase.db.connect(database_path, use_lock_file=False) if is_new else open_candidates(database_path)
            db.count()  # makes the tables of a new database
        with transaction(db):
            return _import_frames(structure_file, db)
    except BaseException:
        if is_new:
            database_path.unlink(missing_ok=True)
        raise


def select_candidates(db: Database, status: str = "SELECTED") -> Iterator[Candidate]:
    """Yield the candidates of one status in the order of their row ids.

    The status of rows may be changed while this runs. Rows that lose the status before they are reached are left out,
    and rows that get it meanwhile are not seen.

    Raises
    ------
    CandidateError
        A calculation_id is not fit for a file name or belongs to two candidates, or a row cannot be read.
    """
    row_ids = _find_row_ids(db, status)
    for start in range(0, len(row_ids), _PAGE):
        page = row_ids[start : start + _PAGE]
        with _database_errors(db, f"rows {page[0]} to {page[-1]}"), _connection(db):
            between = [("id", ">=", page[0]), ("id", "<=", page[-1])]
            rows = list(db.select(between, status=status, sort="id", include_data=False))
        for row in rows:
            yield _candidate(db, row)


def mark_queued(db: Database, candidates: Iterable[tuple[int, str, str]]) -> None:
    """Mark rows as QUEUED in one transaction: all of them or none.

    Parameters
    ----------
    db
        From `open_candidates`.
    candidates
        (row_id, calculation_id, fingerprint) of each row.

    Raises
    ------
    CandidateError
        A row is not a candidate, or ase.db cannot keep a value; it refuses text that looks like a number.
    """
    with transaction(db):
        for row_id, calculation_id, fingerprint in candidates:
            row = _candidate_row(db, row_id)
            keys = {"status": "QUEUED", "fingerprint": fingerprint}
            # An id that the pipeline wrote stays as it wrote it: 17 is a fine id, and ase.db would refuse "17".
            if _calculation_id(db, row) != calculation_id or "calculation_id" not in row.key_value_pairs:
                keys["calculation_id"] = _checked_calculation_id(calculation_id, f"row {row_id} of {_name(db)}")
            _update(db, row, keys)


def mark_completed(db: Database, row_id: int, result: DFTResult, **keys: Any) -> None:
    """Give a row its label and mark it as COMPLETED.

    Positions, cell and pbc become those that were computed. Energy (eV), forces (eV/Å) and stress (eV/Å³, ASE's sign)
    become the row's results. The pipeline's keys, data, initial magnetic moments, tags and constraints stay.
    Many rows are fastest in one `with transaction(db):`.

    Parameters
    ----------
    db
        From `open_candidates`.
    row_id
        `id` of the row.
    result
        The label; its level, quality, iterations and total magnetization become keys of the row.
    **keys
        More keys for the row, such as `config_hash`; None is left out.

    Raises
    ------
    CandidateError
        The row is not a candidate, or has other atoms than the label, or ase.db cannot keep a value.
    """
    own_keys = {
        "status": "COMPLETED",
        "level": result.level,
        "quality": result.quality,
        "iterations": result.iterations,
        "total_magnetization": result.total_magnetization,
    }
    with transaction(db):
        row = _candidate_row(db, row_id)
        if tuple(row.symbols) != tuple(result.symbols):
            raise CandidateError(
                f"row {row_id} of {_name(db)} is {row.formula} and its label is of {len(result.symbols)} atoms "
                f"({', '.join(sorted(set(result.symbols)))}), or in another order; the row was changed after it was "
                "queued, or it is another database"
            )
        with _database_errors(db, f"row {row_id}"):
            atoms = atoms2dict(_with_label(row.toatoms(), result))
        # ase.db would give the row a new unique_id, and other tables may refer to the old one.
        atoms["unique_id"] = row.unique_id
        _update(db, row, own_keys | keys, atoms)


def mark_failed(db: Database, row_id: int, reason: str, **keys: Any) -> None:
    """Mark a row as FAILED, with the reason in one line and more keys (`failure`, `level`); None is left out.

    Raises
    ------
    CandidateError
        The row is not a candidate, or ase.db cannot keep a value.
    """
    with transaction(db):
        row = _candidate_row(db, row_id)
        _update(db, row, {"status": "FAILED", "reason": _one_line(reason), **keys})


def count_by_status(db: Database) -> dict[str, int]:
    """Count the candidates of each status; every status is a key."""
    with _database_errors(db), _connection(db):
        return {status: db.count(status=status) for status in STATUSES}


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


def _is_connected(db: Database) -> bool:
    return getattr(db, "connection", None) is not None


def _connection(db: Database) -> AbstractContextManager[Any]:
    """One connection for several reads: ASE connects for each row of a selection, which takes six times as long."""
    return nullcontext() if _is_connected(db) else db


def _find_row_ids(db: Database, status: str) -> list[int]:
    if status not in STATUSES:
        raise CandidateError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    row_ids = []
    owners: dict[str, int] = {}
    with _database_errors(db), _connection(db):
        rows = db.select("status", columns=["id", "key_value_pairs"], include_data=False, sort="id")
        for row in rows:
            keys = row.key_value_pairs
            if keys["status"] not in STATUSES:
                continue
            if keys["status"] == status:
                row_ids.append(row.id)
            if "calculation_id" in keys:
                _claim(owners, str(keys["calculation_id"]), row.id, _name(db))
    return row_ids


def _claim(owners: dict[str, int], calculation_id: str, row_id: int, where: str) -> None:
    owner = owners.setdefault(calculation_id, row_id)
    if owner != row_id:
        raise CandidateError(
            f"calculation_id {calculation_id!r} belongs to rows {owner} and {row_id} of {where}; "
            "give each candidate its own, or delete the key and one is made for it",
            calculation_id=calculation_id,
            row_ids=[owner, row_id],
        )


def _candidate(db: Database, row: AtomsRow) -> Candidate:
    calculation_id = _calculation_id(db, row)
    with _database_errors(db, f"row {row.id}"):
        atoms = row.toatoms()
    atoms.calc = None
    return Candidate(row.id, calculation_id, atoms, row.key_value_pairs.get("fingerprint"))


def _calculation_id(db: Database, row: AtomsRow) -> str:
    if "calculation_id" in row.key_value_pairs:
        return _checked_calculation_id(row.calculation_id, f"row {row.id} of {_name(db)}")
    # The formula is for the eye, the unique_id (random, made once by ase.db) makes it one of its kind.
    return f"{row.formula[:60] or 'empty'}-{row.unique_id[:12]}"


def _checked_calculation_id(value: Any, owner: str) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and CALCULATION_ID.fullmatch(text):
        return text
    raise CandidateError(
        f"calculation_id of {owner} must be 1 to 100 letters, digits, '.', '_', '+' or '-' and begin with a letter or "
        f"digit, since files are named after it, got {value!r}"
    )


def _candidate_row(db: Database, row_id: int) -> AtomsRow:
    with _database_errors(db, f"row {row_id}"):
        rows = list(db.select(int(row_id), include_data=False))
    if not rows:
        raise CandidateError(f"{_name(db)} has no row {row_id}; it was deleted, or it is another database")
    status = rows[0].key_value_pairs.get("status")
    if status not in STATUSES:
        raise CandidateError(
            f"row {row_id} of {_name(db)} is no candidate: its status is {status!r}, not one of {', '.join(STATUSES)}"
        )
    return rows[0]


def _update(db: Database, row: AtomsRow, keys: dict[str, Any], atoms: dict[str, Any] | None = None) -> None:
    with _database_errors(db, f"row {row.id}"):
        new_keys = {key: value for key, value in keys.items() if value is not None}
        db.update(row.id, atoms, delete_keys=_OUTCOME_KEYS, **new_keys)


def _with_label(atoms: Atoms, result: DFTResult) -> Atoms:
    # Not set_positions(): a constraint would hold fixed atoms where they were.
    atoms.positions = result.positions
    atoms.set_cell(result.cell, apply_constraint=False)
    atoms.pbc = result.pbc
    atoms.calc = SinglePointCalculator(atoms, **result.to_ase_atoms().calc.results)
    atoms.calc.name = "espresso"
    return atoms


def _one_line(reason: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in reason)
    line = " ".join(printable.split()) or "no reason was given"
    if len(line) > _REASON_LENGTH:
        line = f"{line[: _REASON_LENGTH - 3]}..."
    # ase.db refuses text that looks like a number, such as an exit status; in quotes it is text.
    return repr(line) if any(str_represents(line, kind) for kind in (bool, int, float)) else line


def _import_frames(structure_file: Path, db: Database) -> tuple[int, int]:
    digests = set()
    owners: dict[str, int] = {}
    with _database_errors(db):
        for row in db.select(columns=["id", "key_value_pairs"], include_data=False):
            digests.add(row.key_value_pairs.get("digest"))
            if "calculation_id" in row.key_value_pairs:
                owners[str(row.calculation_id)] = row.id

    n_imported = 0
    n_frames = 0
    for n_frames, atoms in enumerate(_read_frames(structure_file), start=1):
        source = f"{structure_file.name}#{n_frames - 1}"
        digest = _digest(atoms)
        if digest in digests:
            continue
        digests.add(digest)
        keys, data = _split_info(atoms.info)
        atoms.calc = None
        with _database_errors(db, source):
            row_id = db.write(atoms, {**keys, "status": "SELECTED", "source": source, "digest": digest}, data)
        if "calculation_id" in keys:
            _claim(owners, _checked_calculation_id(keys["calculation_id"], source), row_id, _name(db))
        n_imported += 1
    if not n_frames:
        raise CandidateError(f"{structure_file} contains no structure; is it cut, or of another format?")
    return n_imported, n_frames - n_imported


def _read_frames(path: Path) -> Iterator[Atoms]:
    if path.suffix in (".xyz", ".extxyz"):
        _check_blank_lines(path)
    frames = iread(str(path), index=slice(None), do_not_split_by_at_sign=True)
    for index in itertools.count():
        try:
            atoms = next(frames)
        except StopIteration:
            return
        except Exception as error:  # each of ASE's hundred readers raises what it likes
            raise CandidateError(
                f"frame {index} of {path} (the first is 0) cannot be read by ASE ({error}); nothing was imported"
            ) from error
        problem = _problem(atoms)
        if problem:
            raise CandidateError(f"frame {index} of {path} (the first is 0) {problem}; nothing was imported")
        yield atoms


def _check_blank_lines(path: Path) -> None:
    """ASE takes a blank line between two frames for the end of the file, and the rest would be lost without a word."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for index in itertools.count():
            header = next(lines, "").strip()
            if not header and any(line.strip() for line in lines):
                raise CandidateError(
                    f"{path} has a blank line before frame {index} (the first is 0), where ASE stops reading; "
                    "remove the blank line; nothing was imported"
                )
            if not header.isdecimal():  # the end, or something that ASE itself can explain
                return
            next(itertools.islice(lines, int(header), int(header)), None)
            next(lines, None)


def _problem(atoms: Atoms) -> str | None:
    if len(atoms) == 0:
        return "has no atoms"
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell).all()):
        return "has a position or cell vector that is not finite"
    if atoms.get_initial_magnetic_moments().ndim > 1:
        return "has magnetic moments with a direction, which ase.db cannot keep"
    return None


def _digest(atoms: Atoms) -> str:
    """Tell structures apart; begins with letters, because ase.db refuses text that looks like a number."""
    digest = hashlib.sha256()
    names = ("numbers", "positions", "tags", "initial_magmoms", "initial_charges")
    arrays = {name: atoms.arrays.get(name, ()) for name in names}
    for name, array in {**arrays, "cell": atoms.cell.array, "pbc": atoms.pbc}.items():
        digest.update(name.encode())
        digest.update((np.asarray(array, dtype=float) + 0.0).tobytes())  # + 0.0: -0 and 0 are the same place
    return f"sha256-{digest.hexdigest()}"


def _split_info(info: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    keys, data = {}, {}
    for key, value in info.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if _is_key_value_pair(key, plain):
            keys[key] = plain
        else:
            data[str(key)] = _storable(plain)
    return keys, data


def _is_key_value_pair(key: Any, value: Any) -> bool:
    if not isinstance(key, str) or key in _OUR_KEYS or key.startswith("REF_"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ASE warns of keys that it would take for a chemical formula
        try:
            check({key: value})
        except (ValueError, UserWarning):
            return False
    return True


def _storable(value: Any) -> Any:
    try:
        bytes_to_object(object_to_bytes(value))
    except Exception:  # ASE asserts or fails in many ways on objects that it has no form for
        return str(value)
    return value


def _check_file(path: Path) -> None:
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
    with _database_errors(path), closing(sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables >= _ASE_TABLES:
        raise CandidateError(
            f"{path} is an SQLite database, but not of ASE: it has no table {sorted(_ASE_TABLES - tables)[0]!r}; "
            "give the database that the pipeline writes with ase.db"
        )


@contextmanager
def _database_errors(db: Database | Path | str, where: str = "") -> Iterator[None]:
    """Wrap calls of ASE only: each back end raises the classes of its own driver, so nothing shorter than all fits."""
    try:
        yield
    except CandidateError:
        raise
    except Exception as error:
        raise CandidateError(_explain(db, error, where)) from error


def _explain(db: Database | Path | str, error: Exception, where: str = "") -> str:
    name = f"{where} of {_name(db)}" if where else f"candidate database {_name(db)}"
    text = str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        return f"{name} is locked; if no other process uses it, remove {_name(db)}.lock"
    if isinstance(error, sqlite3.Error) and "locked" in text:
        return f"{name} is locked by another process and stayed so for 20 s; try again when that one has finished"
    if isinstance(error, sqlite3.Error) and ("malformed" in text or "not a database" in text):
        return f"{name} is damaged or cut ({text}); restore a copy, or save what is left with `sqlite3 FILE .recover`"
    if isinstance(error, ModuleNotFoundError):
        return f"{name} needs a back end that is not installed ({text}); `pip install ase-db-backends`"
    return f"{name} cannot be read or written: {text}"


def _name(db: Database | Path | str) -> str:
    """File name or address, without the password of a database server."""
    return re.sub(r"//[^/@]*@", "//***@", str(getattr(db, "filename", db)))
