"""The pipeline's database is opened and never made, and locks end in a message instead of a wait without end."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import ase.db
import ase.io
import pytest
from ase import Atoms
from ase.build import bulk
from ase.db.core import Database
from ase.db.sqlite import SQLite3Database

from dftfactory import database
from dftfactory.candidates import count_by_status, mark_failed, select_candidates
from dftfactory.database import open_candidates, transaction
from dftfactory.errors import CandidateError


@pytest.fixture
def si() -> Atoms:
    return bulk("Si")


@pytest.fixture(params=["sqlite", "json"])
def db(request: pytest.FixtureRequest, tmp_path: Path, si: Atoms) -> Database:
    """Rows 1 to 3 are SELECTED, row 4 is a training structure, row 5 has no status: the last two are not ours."""
    path = tmp_path / {"sqlite": "pool.db", "json": "pool.json"}[request.param]
    pool = ase.db.connect(path)
    for _ in range(3):
        pool.write(si, status="SELECTED", uncertainty=0.3)
    pool.write(si, status="TRAINING")
    pool.write(si, generation=7)
    return open_candidates(path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASE waits 20 s for a lock; a test need not."""
    monkeypatch.setattr(SQLite3Database, "_connect", lambda self: sqlite3.connect(self.filename, timeout=0.1))
    monkeypatch.setattr(database, "_LOCK_TIMEOUT", 0.1)


# Opening


def test_missing_database_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="does not exist"):
        open_candidates(tmp_path / "pool.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pool.db", "pool.json"])
def test_empty_database_is_an_error_and_stays_empty(tmp_path: Path, name: str) -> None:
    """SQLite takes an empty file for a new database, and ASE would make its tables in it."""
    path = tmp_path / name
    path.touch()
    with pytest.raises(CandidateError, match="is empty"):
        open_candidates(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("name", "cause"), [("pool.db", "not an SQLite database"), ("pool.json", "cannot be read")])
def test_junk_is_an_error_and_stays_as_it_is(tmp_path: Path, name: str, cause: str) -> None:
    path = tmp_path / name
    path.write_text("energy = 1\n" * 1000)
    with pytest.raises(CandidateError, match=cause):
        open_candidates(path)
    assert path.read_text() == "energy = 1\n" * 1000


def test_cut_database_is_an_error(tmp_path: Path, si: Atoms) -> None:
    path = tmp_path / "pool.db"
    pool = ase.db.connect(path)
    with pool:
        for _ in range(100):
            pool.write(si, status="SELECTED")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CandidateError, match=r"damaged or cut.*restore"):
        open_candidates(path)


def test_database_of_another_program_is_an_error_and_gets_no_tables_of_ase(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(CandidateError, match="not of ASE: it has no table"):
        open_candidates(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["folder.db", "structures.extxyz"])
def test_what_is_not_a_database_file_is_an_error(tmp_path: Path, si: Atoms, name: str) -> None:
    (tmp_path / "folder.db").mkdir()
    ase.io.write(tmp_path / "structures.extxyz", si)
    with pytest.raises(CandidateError, match=f"{name} cannot be read"):
        open_candidates(tmp_path / name)


def test_password_of_a_database_server_is_not_shown() -> None:
    """No server back end is installed here, or no server runs: either way there is a message, without the password."""
    with pytest.raises(CandidateError) as caught:
        open_candidates("postgresql://anna:secret@127.0.0.1:1/pool")
    assert "//***@127.0.0.1" in caught.value.message
    assert "secret" not in caught.value.message


# Locks


def test_selecting_holds_no_lock(db: Database, impatient: None) -> None:
    """The consumer of the candidates may take hours; the pipeline writes meanwhile."""
    selection = select_candidates(db)
    next(selection)
    ase.db.connect(db.filename).update(5, generation=8)
    assert db.get(5).generation == 8


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_database_that_stays_locked_is_an_error(db: Database, impatient: None) -> None:
    other = sqlite3.connect(db.filename)
    other.execute("BEGIN EXCLUSIVE")
    for action in (
        lambda: open_candidates(db.filename),
        lambda: list(select_candidates(db)),
        lambda: mark_failed(db, 1, "out of memory"),
        lambda: count_by_status(db),
    ):
        with pytest.raises(CandidateError, match=r"locked by another process.*try again"):
            action()
    other.close()
    assert count_by_status(db)["SELECTED"] == 3


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_lock_file_of_a_killed_process_does_not_stop_us(db: Database) -> None:
    """ASE itself would wait for it without end."""
    Path(f"{db.filename}.lock").touch()
    mark_failed(db, 1, "out of memory")
    assert db.get(1).status == "FAILED"


@pytest.mark.parametrize("db", ["json"], indirect=True)
def test_lock_file_beside_a_json_database_is_named(db: Database, impatient: None) -> None:
    Path(f"{db.filename}.lock").touch()
    with pytest.raises(CandidateError, match=r"remove .*pool.json.lock"):
        mark_failed(open_candidates(db.filename), 1, "out of memory")


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_change_of_another_process_is_not_lost(db: Database, impatient: None) -> None:
    """Between our reading of a row and our writing of it nobody else can write."""
    pool = ase.db.connect(db.filename, use_lock_file=False)
    with transaction(db):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            pool.update(1, uncertainty=0.9)
        mark_failed(db, 1, "out of memory")
    pool.update(1, uncertainty=0.9)
    assert (db.get(1).status, db.get(1).uncertainty) == ("FAILED", 0.9)
