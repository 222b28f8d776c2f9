"""The pipeline's database of candidates: which structures wait for a label, and what became of them.

A candidate is a row of an ase.db database with the key `status`: SELECTED, then QUEUED, then COMPLETED or FAILED.
Rows with another status, or with none, belong to the pipeline and are never touched.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from array import array
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.db.core import Database, check, str_represents
from ase.db.row import AtomsRow, atoms2dict

from dftfactory.database import connection, database_errors, database_name, structure_of
from dftfactory.database import index_rows as index_rows
from dftfactory.database import open_candidates as open_candidates
from dftfactory.database import transaction as transaction
from dftfactory.errors import CandidateError
from dftfactory.inputs import MAX_ATOMS, too_many_atoms
from dftfactory.labels import CALCULATION_ID
from dftfactory.results import DFTResult

STATUSES = ("SELECTED", "QUEUED", "COMPLETED", "FAILED")
# What an earlier attempt may have left on a row; gone as soon as the row gets a new status.
OUTCOME_KEYS = (
    *("reason", "failure", "evidence", "explanation", "level", "quality", "iterations"),
    *("total_magnetization", "state_warning", "config_hash"),
)

# Rows that are in memory at once: 200 of 1,000 atoms are 10 MB.
_PAGE = 200
# Rows whose keys, some 300 bytes each, are in memory at once.
_KEYS_PAGE = 2000
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
    campaign
        The set of structures that the row belongs to; None where it is in none.
    damage
        Why `atoms` are none: the row has no structure that can be read, or one that is too large. None if all is well.
    """

    row_id: int
    calculation_id: str
    atoms: Atoms
    fingerprint: str | None
    campaign: str | None = None
    damage: str | None = None


def select_candidates(
    db: Database, status: str = "SELECTED", campaigns: Container[str | None] | None = None
) -> Iterator[Candidate]:
    """Yield the candidates of one status in the order of their row ids.

    The status of rows may be changed while this runs. Rows that lose the status before they are reached are left out,
    and rows that get it meanwhile are not seen. A row whose structure cannot be read comes with its `damage`: it does
    not stop the others. A page of structures is in memory, and 16 bytes for each candidate.

    Parameters
    ----------
    db
        From `open_candidates`.
    status
        One of STATUSES.
    campaigns
        Only rows of these campaigns; None in it stands for the rows that are in none. All rows where it is absent.

    Raises
    ------
    CandidateError
        A calculation_id is not fit for a file name or belongs to two candidates, or the keys of a row cannot be read.
    """
    row_ids = _find_row_ids(db, status, campaigns)
    with database_errors(db), connection(db):
        large = {row.id for row in db.select([("natoms", ">", MAX_ATOMS)], columns=["id"], include_data=False)}
    for page in _pages_of_ids(row_ids, large):
        # Large ones are never in memory together, nor with the others.
        candidates = None if page[0] in large else _page_of_candidates(db, page, status)
        yield from _one_by_one(db, page, status) if candidates is None else candidates


def _pages_of_ids(row_ids: Iterable[int], large: Container[int]) -> Iterator[list[int]]:
    """Row ids in pages that span no more rows than a page has twice: those between are read, too."""
    page: list[int] = []
    for row_id in row_ids:
        if page and (len(page) == _PAGE or row_id - page[0] >= 2 * _PAGE or (row_id in large) != (page[0] in large)):
            yield page
            page = []
        page.append(row_id)
    if page:
        yield page


def mark_queued(db: Database, candidates: Iterable[tuple[int, str, str]], campaign: str | None = None) -> None:
    """Mark rows as QUEUED in one transaction: all of them or none.

    Parameters
    ----------
    db
        From `open_candidates`.
    candidates
        (row_id, calculation_id, fingerprint) of each row.
    campaign
        Written on all of them; where it is absent each row keeps what it has.

    Raises
    ------
    CandidateError
        A row is not a candidate, or ase.db cannot keep a value; it refuses text that looks like a number.
    """
    with transaction(db):
        for row_id, calculation_id, fingerprint in candidates:
            row = _candidate_row(db, row_id, ["id", "unique_id", "numbers", "key_value_pairs"])
            keys = {"status": "QUEUED", "fingerprint": fingerprint}
            if campaign is not None:
                keys["campaign"] = campaign
            # An id that the pipeline wrote stays as it wrote it: 17 is a fine id, and ase.db would refuse "17".
            if _calculation_id(db, row) != calculation_id or "calculation_id" not in row.key_value_pairs:
                keys["calculation_id"] = checked_calculation_id(calculation_id, f"row {row_id} of {database_name(db)}")
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
        The label; its level, quality, iterations, total magnetization and state_warning become keys of the row.
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
        "state_warning": _one_line(result.state_warning) if result.state_warning else None,
    }
    with transaction(db):
        row = _candidate_row(db, row_id)
        if tuple(row.symbols) != tuple(result.symbols):
            raise CandidateError(
                f"row {row_id} of {database_name(db)} is {row.formula} and its label is of {len(result.symbols)} atoms "
                f"({', '.join(sorted(set(result.symbols)))}), or in another order; the row was changed after it was "
                "queued, or it is another database"
            )
        with database_errors(db, f"row {row_id}"):
            atoms = _with_label(row.toatoms(), result)
        # ase.db would give the row a new unique_id, and other tables may refer to the old one.
        atoms["unique_id"] = row.unique_id
        _update(db, row, own_keys | keys, atoms)


def mark_failed(db: Database, row_id: int, reason: str, **keys: Any) -> None:
    """Mark a row as FAILED, with the reason in one line and more keys; None is left out.

    Parameters
    ----------
    db
        From `open_candidates`.
    row_id
        `id` of the row.
    reason
        The whole message.
    **keys
        `failure`, its `evidence` and `explanation` (one line each, as the reason), `level`, ...

    Raises
    ------
    CandidateError
        The row is not a candidate, or ase.db cannot keep a value.
    """
    with transaction(db):
        # Not the structure, which may be what is wrong.
        row = _candidate_row(db, row_id, ["id", "key_value_pairs"])
        lines = {name: _one_line(keys[name]) for name in ("evidence", "explanation") if keys.get(name)}
        _update(db, row, {"status": "FAILED", "reason": _one_line(reason), **keys, **lines})


def count_by_status(db: Database, campaign: str | None = None) -> dict[str, int]:
    """Count the candidates of each status, all or those of one campaign; every status is a key."""
    wanted = {} if campaign is None else {"campaign": campaign}
    with database_errors(db), connection(db):
        return {status: db.count(status=status, **wanted) for status in STATUSES}


def count_to_submit(db: Database, campaign: str | None = None) -> int:
    """Count the rows that `submit` takes: SELECTED, and in no other campaign."""
    with database_errors(db), connection(db):
        number: int = db.count(status="SELECTED")
        if campaign is not None:
            number -= db.count("campaign", status="SELECTED") - db.count(status="SELECTED", campaign=campaign)
    return number


def _find_row_ids(db: Database, status: str, campaigns: Container[str | None] | None) -> array[int]:
    if status not in STATUSES:
        raise CandidateError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    row_ids = array("q")
    names = array("q")  # hashes: a calculation_id itself takes ten times as much
    for row_id, keys in keys_of_rows(db):
        if keys.get("status") not in STATUSES:
            continue
        if keys["status"] == status and (campaigns is None or keys.get("campaign") in campaigns):
            row_ids.append(row_id)
        if "calculation_id" in keys:
            names.append(hash(str(keys["calculation_id"])))
    _refuse_doubles(db, names)
    return row_ids


def keys_of_rows(db: Database) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row id and keys of all rows, in the order of the ids; a page of them is in memory."""
    columns = ["id", "key_value_pairs"]
    try:
        with database_errors(db), connection(db):
            last = max(
                (row.id for row in db.select(columns=["id"], include_data=False, sort="-id", limit=1)), default=0
            )
            for first in range(1, last + 1, _KEYS_PAGE):
                # Not by status: SQLite would collect all rows of that status for each page.
                between = [("id", ">=", first), ("id", "<", first + _KEYS_PAGE)]
                for row in db.select(between, columns=columns, include_data=False, sort="id"):
                    yield row.id, row.key_value_pairs
    except CandidateError:
        _find_damaged_keys(db)
        raise


def _refuse_doubles(db: Database, names: array[int]) -> None:
    """Refuse a calculation_id that two candidates have; given are the hashes of all."""
    ordered = np.sort(np.frombuffer(names, dtype=np.int64))
    doubles = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    owners: dict[str, int] = {}
    for row_id, keys in keys_of_rows(db) if doubles else ():
        if (
            keys.get("status") in STATUSES
            and "calculation_id" in keys
            and hash(name := str(keys["calculation_id"])) in doubles
        ):
            claim(owners, name, row_id, database_name(db))


def _find_damaged_keys(db: Database) -> None:
    """Raise for the first row whose keys cannot be read, by name: whether it is a candidate, nobody knows."""
    with database_errors(db), connection(db):
        for row_id in [row.id for row in db.select(columns=["id"], include_data=False, sort="id")]:
            with database_errors(db, f"the keys of row {row_id}"):
                for row in db.select(row_id, columns=["id", "key_value_pairs"], include_data=False):
                    row.key_value_pairs.get("status")


def claim(owners: dict[str, int], calculation_id: str, row_id: int, where: str) -> None:
    """Write down in `owners` which row has a calculation_id; refuse the second one."""
    owner = owners.setdefault(calculation_id, row_id)
    if owner != row_id:
        raise CandidateError(
            f"calculation_id {calculation_id!r} belongs to rows {owner} and {row_id} of {where}; "
            "give each candidate its own, or delete the key and one is made for it",
            calculation_id=calculation_id,
            row_ids=[owner, row_id],
        )


def _page_of_candidates(db: Database, page: list[int], status: str) -> list[Candidate] | None:
    """Return the candidates of a page that still have the status; None where one of its rows is damaged."""
    where = f"rows {page[0]} to {page[-1]}"
    with database_errors(db, where), connection(db):
        try:
            between = [("id", ">=", page[0]), ("id", "<=", page[-1])]
            # Not by status: SQLite would collect all rows of that status for each page.
            rows = list(db.select(between, sort="id", include_data=False))
            wanted = set(page)
            own = [row for row in rows if row.id in wanted and row.key_value_pairs.get("status") == status]
            return [_candidate(db, row) for row in own]
        except (CandidateError, sqlite3.Error):
            raise
        except Exception:  # ASE stumbles over damaged rows in many ways
            return None


def _one_by_one(db: Database, page: list[int], status: str) -> Iterator[Candidate]:
    for row_id in page:
        with database_errors(db, f"row {row_id}"):
            rows = list(db.select(row_id, columns=["id", "unique_id", "key_value_pairs"], include_data=False))
        keys = rows[0].key_value_pairs if rows else {}
        if keys.get("status") != status:
            continue
        try:
            [whole] = db.select(row_id, include_data=False)
            candidate = _candidate(db, whole)
            damage = too_many_atoms(len(candidate.atoms))
        except CandidateError:
            raise
        except Exception as error:  # as above
            damage = f"is damaged ({' '.join(str(error).split()) or type(error).__name__}); restore it from a copy"
        if damage is None:
            yield candidate
        else:
            name = _calculation_id(db, rows[0])
            said = f"the structure {damage}"
            yield Candidate(row_id, name, Atoms(), keys.get("fingerprint"), keys.get("campaign"), said)


def _candidate(db: Database, row: AtomsRow) -> Candidate:
    atoms, keys = structure_of(row), row.key_value_pairs
    return Candidate(row.id, _calculation_id(db, row), atoms, keys.get("fingerprint"), keys.get("campaign"))


def _calculation_id(db: Database, row: AtomsRow) -> str:
    if "calculation_id" in row.key_value_pairs:
        return checked_calculation_id(row.calculation_id, f"row {row.id} of {database_name(db)}")
    # The formula is for the eye, the unique_id (random, made once by ase.db) makes it one of its kind.
    unique_id = str(row.get("unique_id"))
    if not re.fullmatch("[0-9a-f]+", unique_id):  # not from ASE
        unique_id = hashlib.sha256(f"{row.id} {unique_id}".encode(errors="replace")).hexdigest()
    formula = "damaged" if row.get("numbers") is None else row.formula[:60] or "empty"
    return f"{formula}-{unique_id[:12]}"


def checked_calculation_id(value: Any, owner: str) -> str:
    """Return a calculation_id as text; refuse one that is not fit for a file name."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and CALCULATION_ID.fullmatch(text):
        return text
    raise CandidateError(
        f"calculation_id of {owner} must be 1 to 100 letters, digits, '.', '_', '+' or '-' and begin with a letter or "
        f"digit, since files are named after it, got {value!r}"
    )


def _candidate_row(db: Database, row_id: int, columns: Any = "all") -> AtomsRow:
    with database_errors(db, f"row {row_id}"):
        rows = list(db.select(int(row_id), columns=columns, include_data=False))
    if not rows:
        raise CandidateError(f"{database_name(db)} has no row {row_id}; it was deleted, or it is another database")
    status = rows[0].key_value_pairs.get("status")
    if status not in STATUSES:
        raise CandidateError(
            f"row {row_id} of {database_name(db)} is no candidate: its status is {status!r}, "
            f"not one of {', '.join(STATUSES)}"
        )
    return rows[0]


def _update(db: Database, row: AtomsRow, keys: dict[str, Any], atoms: dict[str, Any] | None = None) -> None:
    with database_errors(db, f"row {row.id}"):
        new_keys = {key: value for key, value in keys.items() if value is not None}
        try:
            db.update(row.id, atoms, delete_keys=OUTCOME_KEYS, **new_keys)
        except (ValueError, TypeError, LookupError):
            # ASE reads the whole row before it changes its keys, and stumbles over a damaged structure.
            if atoms is not None or getattr(db, "type", None) != "db":
                raise
            check(new_keys)
            kept = {key: value for key, value in row.key_value_pairs.items() if key not in OUTCOME_KEYS}
            db._update(row.id, {**kept, **new_keys})


def _with_label(atoms: Atoms, result: DFTResult) -> dict[str, Any]:
    # Not set_positions(): a constraint would hold fixed atoms where they were.
    atoms.positions = result.positions
    atoms.set_cell(result.cell, apply_constraint=False)
    atoms.pbc = result.pbc
    atoms.calc = None
    # As ASE writes a calculator and its results; from a calculator, it compares the atoms with themselves 20 times.
    calculator = {"calculator": "espresso", "calculator_parameters": {}}
    return {**atoms2dict(atoms), **calculator, **result.to_ase_atoms().calc.results}


def _one_line(reason: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in reason)
    line = " ".join(printable.split()) or "no reason was given"
    if len(line) > _REASON_LENGTH:
        line = f"{line[: _REASON_LENGTH - 3]}..."
    # ase.db refuses text that looks like a number, such as an exit status; in quotes it is text.
    return repr(line) if any(str_represents(line, kind) for kind in (bool, int, float)) else line
