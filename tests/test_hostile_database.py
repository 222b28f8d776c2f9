"""A candidate database that is damaged, locked, or left behind by a killed process; nothing of it is half done."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.db.sqlite import SQLite3Database

from dftfactory import database
from dftfactory.candidates import count_by_status, mark_failed, mark_queued, select_candidates
from dftfactory.database import open_candidates, transaction
from dftfactory.errors import CandidateError
from dftfactory.inputs import MAX_ATOMS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Five SELECTED rows."""
    path = tmp_path / "pool.db"
    with ase.db.connect(path) as db:
        for number in range(5):
            db.write(bulk("Si"), status="SELECTED", number=number)
    return path


def change(path: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


# Damaged rows


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("positions", b"abc"),
        ("positions", b""),
        ("positions", None),
        ("positions", b"\0" * 24),
        ("numbers", b"\xff" * 8),
        ("numbers", None),
        ("numbers", np.array([500, 14], dtype=np.int32).tobytes()),
        ("cell", "text"),
        ("cell", b"\0" * 8),
        ("initial_magmoms", b"\0" * 8),
        ("constraints", '[{"name": "os.system", "kwargs": {"command": "true"}}]'),
        ("constraints", "[" * 100_000),
    ],
)
def test_a_damaged_structure_fails_alone(pool: Path, column: str, value: object) -> None:
    change(pool, f"UPDATE systems SET {column} = ? WHERE id = 2", value)  # noqa: S608  (a column of the table above)
    db = open_candidates(pool)
    candidates = list(select_candidates(db))
    assert [candidate.row_id for candidate in candidates] == [1, 2, 3, 4, 5]
    assert [candidate.damage is None for candidate in candidates] == [True, False, True, True, True]
    assert "is damaged" in str(candidates[1].damage)
    assert len(candidates[1].atoms) == 0

    mark_queued(db, [(c.row_id, c.calculation_id, f"dft{c.row_id}") for c in candidates if c.damage is None])
    mark_failed(db, 2, str(candidates[1].damage), failure="GEOMETRY")
    assert count_by_status(db) == {"SELECTED": 0, "QUEUED": 4, "COMPLETED": 0, "FAILED": 1}
    [row] = db.select(status="FAILED", columns=["id", "key_value_pairs"])
    assert (row.number, row.failure) == (1, "GEOMETRY")


def test_a_structure_of_too_many_atoms_fails_alone(pool: Path) -> None:
    ase.db.connect(pool).write(Atoms(f"H{MAX_ATOMS + 1}"), status="SELECTED")
    *good, large = select_candidates(open_candidates(pool))
    assert [candidate.damage for candidate in good] == [None] * 5
    assert f"has {MAX_ATOMS + 1} atoms" in str(large.damage)


@pytest.mark.parametrize("keys", ["{bad", "[1, 2]", b"\xff\xfe", '{"status": "SELECTED", "a": ' + "[" * 100_000])
def test_damaged_keys_are_named(pool: Path, keys: object) -> None:
    """Whether such a row is a candidate, nobody knows."""
    change(pool, "UPDATE systems SET key_value_pairs = ? WHERE id = 2", keys)
    with pytest.raises(CandidateError, match="the keys of row 2"):
        list(select_candidates(open_candidates(pool)))


@pytest.mark.parametrize("unique_id", ["../../../../etc/cron.d/x", "", None, 17, "a\nb", "x" * 500])
def test_a_derived_id_is_no_path(pool: Path, unique_id: object) -> None:
    """It becomes a file name before it is ever stored."""
    change(pool, "UPDATE systems SET unique_id = ? WHERE id = 2", unique_id)
    names = [candidate.calculation_id for candidate in select_candidates(open_candidates(pool))]
    assert len(set(names)) == 5
    assert all(name.startswith("Si2-") and name[4:].isalnum() and len(name) <= 16 for name in names)
    assert names == [candidate.calculation_id for candidate in select_candidates(open_candidates(pool))]


def test_ten_megabytes_of_data_in_a_row_are_not_read(pool: Path) -> None:
    ase.db.connect(pool).update(1, data={"notes": "x" * 10_000_000}, note="y" * 1_000_000)
    assert [candidate.row_id for candidate in select_candidates(open_candidates(pool))] == [1, 2, 3, 4, 5]


# Another schema


@pytest.mark.parametrize(
    ("statements", "cause"),
    [
        (["UPDATE information SET value = '99' WHERE name = 'version'"], "update to latest ASE"),
        (["UPDATE information SET value = 'x' WHERE name = 'version'"], "cannot be read"),
        (["DROP TABLE information"], "no table 'information'"),
        (["ALTER TABLE systems RENAME TO old", "CREATE VIEW systems AS SELECT * FROM old"], "no table 'systems'"),
        (["ALTER TABLE systems DROP COLUMN positions"], "no such column"),
        (
            ["CREATE TRIGGER t BEFORE UPDATE ON systems BEGIN SELECT RAISE(ABORT, 'not today'); END"],
            "not today",
        ),
    ],
)
def test_a_database_of_another_schema_is_refused_and_unchanged(pool: Path, statements: list[str], cause: str) -> None:
    for statement in statements:
        change(pool, statement)
    before = pool.read_bytes()

    def queue_all() -> None:
        db = open_candidates(pool)
        mark_queued(db, [(c.row_id, c.calculation_id, "dft1") for c in select_candidates(db)])

    with pytest.raises(CandidateError, match=cause):
        queue_all()
    assert pool.read_bytes() == before


def test_a_page_that_was_overwritten_is_noticed(pool: Path) -> None:
    """SQLite itself finds no candidate in it, and says nothing."""
    content = pool.read_bytes()
    pool.write_bytes(content[:5000] + b"\xaa" * 3000 + content[8000:])
    with pytest.raises(CandidateError, match="damaged or cut"):
        open_candidates(pool)


@pytest.mark.parametrize("junk", ["{}", "[]", "{" * 5000, "null", '{"1": 3, "ids": [1], "nextid": 2}', "\0" * 100])
def test_a_json_database_of_junk_is_an_error(tmp_path: Path, junk: str) -> None:
    path = tmp_path / "pool.json"
    path.write_text(junk)
    with pytest.raises(CandidateError):
        list(select_candidates(open_candidates(path)))
    assert path.read_text() == junk


# The disk below


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("attempt to write a readonly database", "writable"),
        ("unable to open database file", "writable"),
        ("locking protocol", "another disk"),
        ("disk I/O error", "another disk"),
        ("database or disk is full", "make room"),
    ],
)
def test_what_the_disk_does_has_a_cure(pool: Path, monkeypatch: pytest.MonkeyPatch, said: str, cure: str) -> None:
    db = open_candidates(pool)

    def fail(self: SQLite3Database) -> None:
        raise sqlite3.OperationalError(said)

    with monkeypatch.context() as patch:
        patch.setattr(SQLite3Database, "_connect", fail)
        with pytest.raises(CandidateError, match=rf"\({said}\): .*{cure}"):
            mark_failed(db, 1, "no")
    assert count_by_status(db)["SELECTED"] == 5


def test_a_file_that_may_not_be_written_is_left_as_it_is(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: SQLite3Database) -> sqlite3.Connection:
        connection = sqlite3.connect(self.filename)
        connection.execute("PRAGMA query_only = ON")  # for root, too, who may write anything
        return connection

    db = open_candidates(pool)
    monkeypatch.setattr(SQLite3Database, "_connect", connect)
    assert len(list(select_candidates(db))) == 5
    with pytest.raises(CandidateError, match="writable for you"):
        mark_failed(db, 1, "no")


def test_a_full_disk_leaves_all_rows_as_they_were(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: SQLite3Database) -> sqlite3.Connection:
        connection = sqlite3.connect(self.filename)
        connection.execute("PRAGMA max_page_count = 1")  # that is: not one page more
        return connection

    db = open_candidates(pool)
    rows = [(c.row_id, "x" * 90 + str(c.row_id), "dft" * 2000) for c in select_candidates(db)]
    with monkeypatch.context() as patch:
        patch.setattr(SQLite3Database, "_connect", connect)
        with pytest.raises(CandidateError, match="make room"):
            mark_queued(db, rows)
    assert count_by_status(db)["SELECTED"] == 5


def test_a_database_with_a_write_ahead_log_is_used(pool: Path) -> None:
    change(pool, "PRAGMA journal_mode = WAL")
    db = open_candidates(pool)
    mark_queued(db, [(c.row_id, c.calculation_id, "dft1") for c in select_candidates(db)])
    assert count_by_status(open_candidates(pool))["QUEUED"] == 5


def test_the_wait_for_a_pipe_is_not_begun(tmp_path: Path) -> None:
    subprocess.run(["mkfifo", str(tmp_path / "pool.db")], check=True)  # noqa: S607
    with pytest.raises(CandidateError, match="not a file"):
        open_candidates(tmp_path / "pool.db")


# Other processes

HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def start(pool: Path) -> Any:
    """Return a function that starts a process on the database and waits for its first line."""
    processes = []

    def run(code: str, *arguments: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", code, str(pool), *arguments]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_a_lock_of_another_process_is_waited_for(pool: Path, start: Callable[..., Any]) -> None:
    process = start(HOLD, "2")
    db = open_candidates(pool)
    mark_failed(db, 1, "no")
    assert process.wait() == 0
    assert count_by_status(db)["FAILED"] == 1


def test_a_lock_that_stays_is_an_error_and_its_end_is_the_cure(
    pool: Path, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SQLite3Database, "_connect", lambda self: sqlite3.connect(self.filename, timeout=0.2))
    monkeypatch.setattr(database, "_LOCK_TIMEOUT", 0.2)
    db = open_candidates(pool)
    process = start(HOLD, "60")
    with pytest.raises(CandidateError, match=r"locked by another process.*try again"):
        mark_failed(db, 1, "no")
    process.kill()
    process.wait()
    mark_failed(db, 1, "no")


def change_all_rows_for_ever(path: Path) -> None:
    db = open_candidates(path)
    for turn in count():
        status = next(status for status, number in count_by_status(db).items() if number)
        rows = list(select_candidates(db, status))
        with transaction(db):
            if turn % 2:
                mark_queued(db, [(row.row_id, row.calculation_id, f"dft{turn}") for row in rows])
            else:
                for row in rows:
                    mark_failed(db, row.row_id, "not this time", fingerprint=f"dft{turn}")


def test_a_process_that_is_killed_leaves_every_row_in_one_state(pool: Path) -> None:
    """All rows change together, again and again: at any moment they have one state, with all that belongs to it."""
    with ase.db.connect(pool) as db:
        for number in range(5, 60):
            db.write(bulk("Si"), status="SELECTED", number=number)
    rng = random.Random(4)  # noqa: S311  (the same moments every time)
    seen, journals = set(), 0
    for _ in range(40):
        process = get_context("fork").Process(target=change_all_rows_for_ever, args=(pool,))
        process.start()
        time.sleep(rng.uniform(0.05, 0.3))
        process.kill()
        process.join()
        journals += pool.with_name("pool.db-journal").exists()
        rows = list(open_candidates(pool).select())
        states = {(row.status, row.get("fingerprint"), "reason" in row) for row in rows}
        assert len(states) == 1, states
        assert {row.number for row in rows} == set(range(60))
        # The tables that ASE searches say the same as the rows themselves.
        [(status, _, _)] = states
        assert open_candidates(pool).count(status=status) == 60
        seen.add(status)
    assert len(seen) > 1
    assert journals, "no process was killed in the middle of a transaction: it proved nothing"


def test_a_journal_beside_a_copy_is_used_as_sqlite_means_it(pool: Path, start: Callable[..., Any]) -> None:
    """A half-done transaction whose process is gone is taken back when the file is opened."""
    code = (
        "import sqlite3, sys, os, signal\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\n"
        "c.execute('BEGIN IMMEDIATE')\n"
        "c.execute(\"UPDATE text_key_values SET value = 'QUEUED'\")\n"
        "c.execute('UPDATE systems SET key_value_pairs = zeroblob(100000)')\n"
        "print('half', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    start(code).wait()
    journal = pool.with_name("pool.db-journal")
    assert journal.stat().st_size > 0
    copy = pool.with_name("copy.db")
    shutil.copy(pool, copy)
    shutil.copy(journal, copy.with_name("copy.db-journal"))
    for path in (pool, copy):
        assert count_by_status(open_candidates(path))["SELECTED"] == 5
        assert json.loads(sqlite3.connect(path).execute("SELECT key_value_pairs FROM systems").fetchone()[0])
