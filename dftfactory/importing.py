"""A structure file becomes a candidate database: every frame a SELECTED row, all of them or none."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase import Atoms
from ase.db.core import Database, bytes_to_object, check, object_to_bytes
from ase.io import iread

from dftfactory.candidates import OUTCOME_KEYS, checked_calculation_id, claim, keys_of_rows
from dftfactory.database import database_errors, database_name, open_candidates, transaction
from dftfactory.errors import CandidateError
from dftfactory.inputs import too_many_atoms
from dftfactory.structures import file_problem

# Keys that mean something to us: the same word in an imported file means something else.
_OUR_KEYS = {"status", "fingerprint", "source", "digest", *OUTCOME_KEYS}

# Characters of a text that is a key; longer ones are data.
_KEY_LENGTH = 1000


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
        with database_errors(database_path):
            db = ase.db.connect(database_path, use_lock_file=False) if is_new else open_candidates(database_path)
            db.count()  # makes the tables of a new database
        with transaction(db):
            return _import_frames(structure_file, db)
    except BaseException:
        if is_new:
            database_path.unlink(missing_ok=True)
        raise


def _import_frames(structure_file: Path, db: Database) -> tuple[int, int]:
    digests = set()
    owners: dict[str, int] = {}
    for row_id, row_keys in keys_of_rows(db):
        digests.add(row_keys.get("digest"))
        if "calculation_id" in row_keys:
            owners[str(row_keys["calculation_id"])] = row_id

    n_imported = 0
    n_frames = 0
    for n_frames, atoms in enumerate(_read_frames(structure_file), start=1):
        source = f"{_printable(structure_file.name)}#{n_frames - 1}"
        digest = _digest(atoms)
        if digest in digests:
            continue
        digests.add(digest)
        keys, data = _split_info(atoms.info)
        atoms.calc = None
        with database_errors(db, source):
            row_id = db.write(atoms, {**keys, "status": "SELECTED", "source": source, "digest": digest}, data)
        if "calculation_id" in keys:
            claim(owners, checked_calculation_id(keys["calculation_id"], source), row_id, database_name(db))
        n_imported += 1
    if not n_frames:
        raise CandidateError(f"{structure_file} contains no structure; is it cut, or of another format?")
    return n_imported, n_frames - n_imported


def _read_frames(path: Path) -> Iterator[Atoms]:
    if (problem := file_problem(path)) is not None:
        raise CandidateError(f"{path} {problem}; nothing was imported")
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


def _problem(atoms: Atoms) -> str | None:
    if len(atoms) == 0:
        return "has no atoms"
    if (reason := too_many_atoms(len(atoms))) is not None:
        return reason
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
    # Keys are read for every row and printed by `ase db`.
    if isinstance(value, str) and not (len(value) <= _KEY_LENGTH and value.isprintable()):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ASE warns of keys that it would take for a chemical formula
        try:
            check({key: value})
        except (ValueError, UserWarning):
            return False
    return True


def _printable(name: str) -> str:
    """Return a file name with a question mark for what a terminal or SQLite could not take as a letter."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _storable(value: Any) -> Any:
    try:
        bytes_to_object(object_to_bytes(value))
    except Exception:  # ASE asserts or fails in many ways on objects that it has no form for
        return str(value)
    return value
