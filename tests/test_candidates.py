from __future__ import annotations

import sqlite3
from itertools import islice
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db.core import Database
from ase.db.sqlite import SQLite3Database

from dftfactory import candidates
from dftfactory.candidates import (
    candidate_database_for,
    count_by_status,
    import_structures,
    mark_completed,
    mark_failed,
    mark_queued,
    open_candidates,
    select_candidates,
    transaction,
)
from dftfactory.errors import CandidateError
from dftfactory.results import DFTResult


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
    monkeypatch.setattr(candidates, "_LOCK_TIMEOUT", 0.1)


def label_of(atoms: Atoms, **changes: object) -> DFTResult:
    values: dict = {
        "energy": -215.5,
        "smearing_energy": -0.01,
        "forces": np.arange(3.0 * len(atoms)).reshape(-1, 3) / 10,
        "stress": np.array([[0.1, 0.6, 0.5], [0.6, 0.2, 0.4], [0.5, 0.4, 0.3]]),
        "symbols": tuple(atoms.get_chemical_symbols()),
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "degauss": 0.02,
        "conv_thr": 1e-9,
        "scf_accuracy": (1e-3, 1e-10),
        "scf_error": 1e-10,
        "iterations": 11,
        "wall_time": 3.5,
        "n_kpoints": 10,
        "n_ranks": 2,
        "pw_version": "6.7",
        "source": "xml",
    }
    return DFTResult(**(values | changes))


def statuses(db: Database) -> list[str | None]:
    return [row.get("status") for row in db.select(sort="id")]


def queue_all(db: Database) -> None:
    mark_queued(db, [(c.row_id, c.calculation_id, f"dft{c.row_id}") for c in select_candidates(db)])


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


# Selecting


def test_only_rows_of_the_asked_status_are_selected(db: Database) -> None:
    assert [candidate.row_id for candidate in select_candidates(db)] == [1, 2, 3]
    assert list(select_candidates(db, "FAILED")) == []
    with pytest.raises(CandidateError, match="must be one of SELECTED, QUEUED, COMPLETED, FAILED, got 'TRAINING'"):
        list(select_candidates(db, "TRAINING"))


def test_derived_id_is_the_same_each_time_and_after_queueing(db: Database) -> None:
    """A submission that was killed half way is repeated and must find its own calculations again."""
    before = [candidate.calculation_id for candidate in select_candidates(db)]
    assert before == [candidate.calculation_id for candidate in select_candidates(db)]
    assert before == [f"Si2-{db.get(row_id).unique_id[:12]}" for row_id in (1, 2, 3)]
    queue_all(db)
    assert [candidate.calculation_id for candidate in select_candidates(db, "QUEUED")] == before


def test_status_may_change_while_selecting(tmp_path: Path, si: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows, read two at a time; each is queued as it comes, and row 6 is taken away by someone else."""
    monkeypatch.setattr(candidates, "_PAGE", 2)
    pool = ase.db.connect(tmp_path / "pool.db")
    for _ in range(7):
        pool.write(si, status="SELECTED")
    db = open_candidates(tmp_path / "pool.db")
    seen = []
    for candidate in select_candidates(db):
        seen.append(candidate.row_id)
        mark_queued(db, [(candidate.row_id, candidate.calculation_id, "dftabc")])
        if candidate.row_id == 3:
            pool.update(6, status="REJECTED")
    assert seen == [1, 2, 3, 4, 5, 7]
    assert count_by_status(db) == {"SELECTED": 0, "QUEUED": 6, "COMPLETED": 0, "FAILED": 0}


def test_selecting_holds_no_lock(db: Database, impatient: None) -> None:
    """The consumer of the candidates may take hours; the pipeline writes meanwhile."""
    selection = select_candidates(db)
    next(selection)
    ase.db.connect(db.filename).update(5, generation=8)
    assert db.get(5).generation == 8


def test_results_of_the_pipeline_do_not_travel_with_a_candidate(db: Database, si: Atoms) -> None:
    """An energy on a SELECTED row is the potential's guess."""
    si.calc = SinglePointCalculator(si, energy=-1.0)
    db.update(2, atoms=si)
    assert [candidate.atoms.calc for candidate in select_candidates(db)] == [None, None, None]


@pytest.mark.parametrize("calculation_id", ["a", "Fe.slab+H_3-x", "9-lives", "x" * 100])
def test_id_of_the_pipeline_is_used(db: Database, calculation_id: str) -> None:
    db.update(1, calculation_id=calculation_id)
    assert next(select_candidates(db)).calculation_id == calculation_id


@pytest.mark.parametrize("calculation_id", ["", "a/b", "../a", ".a", "-rf", "a b", "Å", "a\n", "x" * 101, 1.5, True])
def test_id_that_is_not_fit_for_a_file_name_is_an_error(db: Database, calculation_id: object) -> None:
    db.update(2, calculation_id=calculation_id)
    with pytest.raises(CandidateError, match=r"calculation_id of row 2 of .*pool"):
        list(select_candidates(db))


def test_whole_number_is_an_id_and_stays_a_number_on_the_row(db: Database) -> None:
    """ase.db refuses the text "17", so a pipeline that counts can only write the number."""
    db.update(1, calculation_id=17)
    assert next(select_candidates(db)).calculation_id == "17"
    mark_queued(db, [(1, "17", "dftabc")])
    assert db.get(1).calculation_id == 17
    assert next(select_candidates(db, "QUEUED")).calculation_id == "17"


def test_id_that_belongs_to_two_candidates_is_an_error(db: Database) -> None:
    """Whatever their status: the folder of the second would be that of the first."""
    db.update(1, calculation_id="slab", status="COMPLETED")
    db.update(3, calculation_id="slab")
    with pytest.raises(CandidateError, match="'slab' belongs to rows 1 and 3") as caught:
        list(select_candidates(db))
    assert caught.value.to_dict()["row_ids"] == [1, 3]


def test_same_id_on_a_row_of_the_pipeline_is_no_duplicate(db: Database) -> None:
    db.update(1, calculation_id="slab")
    db.update(4, calculation_id="slab")
    assert next(select_candidates(db)).calculation_id == "slab"


def test_row_without_atoms_has_an_id_like_the_others(db: Database) -> None:
    """`db.reserve(status='SELECTED')` makes such a row; its failure needs a name, too."""
    row_id = db.write(Atoms(), status="SELECTED")
    *_, candidate = select_candidates(db)
    assert len(candidate.atoms) == 0
    assert candidate.calculation_id == f"empty-{db.get(row_id).unique_id[:12]}"


# Marking


def test_queued_row_keeps_what_the_pipeline_wrote(db: Database) -> None:
    mark_queued(db, [(2, "slab", "dft3e9")])
    keys = {"status": "QUEUED", "uncertainty": 0.3, "calculation_id": "slab", "fingerprint": "dft3e9"}
    assert db.get(2).key_value_pairs == keys
    assert statuses(db) == ["SELECTED", "QUEUED", "SELECTED", "TRAINING", None]


def test_queueing_again_removes_what_an_earlier_failure_left(db: Database) -> None:
    mark_failed(db, 1, "SCF did not converge", failure="scf", level=4, config_hash="cfg1")
    mark_queued(db, [(1, "slab", "dft1")])
    assert set(db.get(1).key_value_pairs) == {"status", "uncertainty", "calculation_id", "fingerprint"}


@pytest.mark.parametrize("row_id", [4, 5, 99])
def test_rows_of_the_pipeline_are_never_touched(db: Database, si: Atoms, row_id: int) -> None:
    before = [row.key_value_pairs for row in db.select(sort="id")]
    for mark in (
        lambda: mark_queued(db, [(row_id, "slab", "dft1")]),
        lambda: mark_completed(db, row_id, label_of(si)),
        lambda: mark_failed(db, row_id, "out of memory"),
    ):
        with pytest.raises(CandidateError, match=rf"no row 99|row {row_id} .* is no candidate"):
            mark()
    assert [row.key_value_pairs for row in db.select(sort="id")] == before


def test_queueing_is_all_or_nothing(tmp_path: Path, si: Atoms) -> None:
    """ASE commits after 5,000 changes even inside `with db:`, and each row makes several."""
    path = tmp_path / "pool.db"
    with ase.db.connect(path) as pool:
        for _ in range(1700):
            pool.write(si, status="SELECTED")
    db = open_candidates(path)
    with pytest.raises(CandidateError, match="no row 1701"):
        mark_queued(db, ((row_id, f"calc-{row_id}", "dft1") for row_id in range(1, 1702)))
    assert count_by_status(db)["SELECTED"] == 1700


@pytest.mark.parametrize("calculation_id", ["0001", "1e5", "nan", "True"])
def test_id_that_the_database_cannot_keep_is_an_error(db: Database, calculation_id: str) -> None:
    with pytest.raises(CandidateError, match=f"row 1 of .*{calculation_id} is put in as string"):
        mark_queued(db, [(1, calculation_id, "dft1")])
    assert db.get(1).status == "SELECTED"


def test_completed_row_has_the_label_as_its_results(db: Database, si: Atoms) -> None:
    queue_all(db)
    mark_completed(db, 2, label_of(si, level=1, total_magnetization=0.0), config_hash="cfg1", host=None)
    row = db.get(2)
    assert row.energy == row.free_energy == -215.5
    assert row.forces.tolist() == [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]
    assert row.stress.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]  # xx, yy, zz, yz, xz, xy
    assert (row.status, row.level, row.quality, row.iterations) == ("COMPLETED", 1, "exact", 11)
    assert (row.total_magnetization, row.config_hash, row.fingerprint) == (0.0, "cfg1", "dft2")
    assert "host" not in row
    assert db.count("energy") == 1


def test_completed_row_keeps_what_the_pipeline_wrote(db: Database, si: Atoms) -> None:
    """The label brings positions and cell; moments, tags, constraints, keys, data and the unique id are not its."""
    si.set_initial_magnetic_moments([1.0, -1.0])
    si.set_tags([3, 4])
    si.set_constraint(FixAtoms([0]))
    row_id = db.write(si, {"status": "SELECTED", "uncertainty": 0.5}, {"parents": [1, 2], "descriptor": np.eye(2)})
    unique_id = db.get(row_id).unique_id
    moved = si.copy()
    moved.set_constraint()
    moved.positions += 0.25
    moved.set_cell(si.cell * 1.5)
    mark_completed(db, row_id, label_of(moved, pbc=(True, True, False)))

    row = db.get(row_id)
    atoms = row.toatoms()
    assert np.array_equal(atoms.positions, moved.positions)
    assert np.array_equal(atoms.cell, moved.cell)
    assert atoms.pbc.tolist() == [True, True, False]
    assert atoms.get_initial_magnetic_moments().tolist() == [1.0, -1.0]
    assert atoms.get_tags().tolist() == [3, 4]
    assert atoms.constraints[0].index.tolist() == [0]
    assert row.forces[0].tolist() == [0.0, 0.1, 0.2]  # a fixed atom's force is a label, too
    assert (row.unique_id, row.uncertainty, row.data.parents) == (unique_id, 0.5, [1, 2])
    assert row.data.descriptor.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_label_of_other_atoms_is_refused(db: Database) -> None:
    with pytest.raises(CandidateError, match=r"row 1 .* is Si2 and its label is of 2 atoms \(Ge\)"):
        mark_completed(db, 1, label_of(bulk("Ge")))
    assert db.get(1).status == "SELECTED"


def test_completed_row_forgets_an_earlier_failure(db: Database, si: Atoms) -> None:
    mark_failed(db, 1, "out of memory", failure="memory")
    mark_completed(db, 1, label_of(si))
    assert not {"reason", "failure"} & set(db.get(1).key_value_pairs)


def test_failed_row_has_the_reason(db: Database) -> None:
    mark_failed(db, 3, "SCF stood still", failure="scf_stagnated", level=4)
    row = db.get(3)
    assert (row.status, row.reason, row.failure, row.level) == ("FAILED", "SCF stood still", "scf_stagnated", 4)


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        (
            "Error in routine\n\t cdiaghg (159)\x1b[0m:\x00 eigenvectors",
            "Error in routine cdiaghg (159) [0m: eigenvectors",
        ),
        ("", "no reason was given"),
        ("137", "'137'"),
        ("NaN", "'NaN'"),
        ("True", "'True'"),
        ("broken text \udcff from a log", "broken text from a log"),
        ("x" * 5000, "x" * 297 + "..."),
    ],
)
def test_reason_becomes_one_printable_line(db: Database, reason: str, kept: str) -> None:
    mark_failed(db, 1, reason)
    assert db.get(1).reason == kept


def test_many_marks_in_one_transaction_take_effect_together(tmp_path: Path, si: Atoms) -> None:
    path = tmp_path / "pool.db"
    pool = ase.db.connect(path)
    for _ in range(2):
        pool.write(si, status="QUEUED")
    db = open_candidates(path)

    def mark_one_too_many() -> None:
        with transaction(db):
            mark_completed(db, 1, label_of(si))
            mark_failed(db, 2, "out of memory")
            mark_failed(db, 3, "out of memory")

    with pytest.raises(CandidateError, match="no row 3"):
        mark_one_too_many()
    assert statuses(db) == ["QUEUED", "QUEUED"]
    with transaction(db):
        mark_completed(db, 1, label_of(si))
        mark_failed(db, 2, "out of memory")
        assert statuses(pool) == ["QUEUED", "QUEUED"]
    assert statuses(pool) == ["COMPLETED", "FAILED"]


def test_counting_counts_only_candidates(db: Database) -> None:
    mark_failed(db, 3, "out of memory")
    assert count_by_status(db) == {"SELECTED": 2, "QUEUED": 0, "COMPLETED": 0, "FAILED": 1}


# Locks


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


# Importing


@pytest.fixture
def structures(tmp_path: Path) -> Path:
    """Three frames as a pipeline writes them: with results, magnetic moments, mixed pbc and notes."""
    frames = [bulk("Si"), bulk("Fe"), Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], pbc=[True, False, False])]
    frames[1].set_initial_magnetic_moments([2.2])
    frames[2].cell = [8.0, 0.0, 0.0]
    for number, atoms in enumerate(frames):
        atoms.info = {"generation": number, "virial_weights": np.array([1.0, 2.0]), "energy_weight": 0.5}
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - number, forces=np.zeros((len(atoms), 3)))
    path = tmp_path / "round@3.extxyz"
    ase.io.write(path, frames)
    return path


def test_database_lies_beside_the_structure_file() -> None:
    assert candidate_database_for(Path("data/round3.extxyz")) == Path("data/round3.db")


def test_imported_frames_are_selected_candidates(structures: Path) -> None:
    path = candidate_database_for(structures)
    assert import_structures(structures, path) == (3, 0)
    db = open_candidates(path)
    silicon, iron, hydrogen = (candidate.atoms for candidate in select_candidates(db))
    assert np.allclose(silicon.positions, bulk("Si").positions, atol=5e-9)  # 8 decimals in the file
    assert np.array_equal(silicon.cell, bulk("Si").cell)
    assert iron.get_initial_magnetic_moments().tolist() == [2.2]
    assert hydrogen.pbc.tolist() == [True, False, False]
    assert hydrogen.cell.tolist() == [[8.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_imported_rows_say_where_they_come_from_and_have_no_results(structures: Path, tmp_path: Path) -> None:
    import_structures(structures, tmp_path / "pool.db")
    db = open_candidates(tmp_path / "pool.db")
    row = db.get(source="round@3.extxyz#2")
    assert (row.generation, row.energy_weight) == (2, 0.5)
    assert row.data.virial_weights.tolist() == [1.0, 2.0]
    assert db.count("energy") == db.count("forces") == 0


def test_importing_again_adds_nothing(structures: Path, tmp_path: Path) -> None:
    """Not under another name either, and not after the first candidate got its label."""
    path = tmp_path / "pool.db"
    import_structures(structures, path)
    db = open_candidates(path)
    silicon = next(select_candidates(db)).atoms
    silicon.positions += 1e-7  # pw.x prints other digits
    mark_completed(db, 1, label_of(silicon))
    copy = structures.with_name("copy.extxyz")
    copy.write_bytes(structures.read_bytes())
    assert import_structures(structures, path) == (0, 3)
    assert import_structures(copy, path) == (0, 3)
    assert len(db) == 3


def test_only_new_frames_are_added(structures: Path, tmp_path: Path) -> None:
    path = tmp_path / "pool.db"
    import_structures(structures, path)
    ase.io.write(structures, bulk("Cu"), append=True)
    assert import_structures(structures, path) == (1, 3)


def test_words_of_ours_in_a_file_do_not_make_a_label(tmp_path: Path, si: Atoms) -> None:
    """A training set that is imported to be computed anew."""
    si.info = {"status": "COMPLETED", "fingerprint": "dft1", "level": 2, "REF_energy": -1.0, "calculation_id": "slab"}
    ase.io.write(tmp_path / "train.extxyz", si)
    import_structures(tmp_path / "train.extxyz", tmp_path / "pool.db")
    db = open_candidates(tmp_path / "pool.db")
    [candidate] = select_candidates(db)
    assert (candidate.calculation_id, candidate.fingerprint) == ("slab", None)
    assert set(db.get(1).key_value_pairs) == {"status", "calculation_id", "source", "digest"}
    assert db.get(1).data == {"status": "COMPLETED", "fingerprint": "dft1", "level": 2, "REF_energy": -1.0}


@pytest.mark.parametrize("value", [{"nested": np.int64(3)}, np.array(["a", "b"]), "0001", np.float64(1.5), [True, 2]])
def test_any_note_in_a_file_can_be_kept(tmp_path: Path, si: Atoms, value: object) -> None:
    """CIF files and JSON in extxyz bring objects; a database that cannot be read any more is the worst outcome."""
    si.info = {"note": value, "CO": 1, 7: "seven"}
    ase.io.write(tmp_path / "one.traj", si)
    import_structures(tmp_path / "one.traj", tmp_path / "pool.db")
    row = open_candidates(tmp_path / "pool.db").get(1)
    kept = row.get("note", row.data.get("note"))
    assert str(kept) == str(value) or kept == value
    assert "CO" not in row.key_value_pairs


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda lines: lines[:-1], "frame 2 .* cannot be read"),
        (lambda lines: [*lines[:-1], "H 0.0\n"], "frame 2 .* cannot be read"),
        (lambda lines: lines[:5], "frame 1 .* cannot be read"),
        (lambda lines: [*lines[:-1], "H 0.0 nan 0.0 0 0 0\n"], "frame 2 .* not finite"),
        (lambda lines: [*lines, "0\n", "\n"], "frame 3 .* has no atoms"),
        (lambda lines: [*lines[:4], "\n", *lines[4:]], "blank line before frame 1"),
        (lambda lines: ["two\n", *lines[1:]], "frame 0 .* cannot be read"),
        (lambda lines: [], "frame 0 .* cannot be read by ASE \\(Empty file"),
    ],
)
def test_file_that_cannot_be_read_to_its_end_imports_nothing(structures: Path, damage, cause: str) -> None:
    existing = structures.with_name("existing.db")
    ase.db.connect(existing).write(bulk("Cu"), status="SELECTED")
    structures.write_text("".join(damage(structures.read_text().splitlines(keepends=True))))
    for path in (structures.with_name("new.db"), existing):
        with pytest.raises(CandidateError, match=cause):
            import_structures(structures, path)
    assert not structures.with_name("new.db").exists()
    assert len(ase.db.connect(existing)) == 1


def test_missing_structure_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="does not exist"):
        import_structures(tmp_path / "none.extxyz", tmp_path / "pool.db")
    assert list(tmp_path.iterdir()) == []


def test_blank_lines_at_the_end_are_harmless(structures: Path, tmp_path: Path) -> None:
    structures.write_text(structures.read_text() + "\n  \n")
    assert import_structures(structures, tmp_path / "pool.db") == (3, 0)


@pytest.mark.parametrize("name", ["pool.json", "round@3.extxyz"])
def test_import_writes_sqlite_and_never_the_structure_file(structures: Path, name: str) -> None:
    before = structures.read_bytes()
    with pytest.raises(CandidateError, match=r"another file that ends in \.db"):
        import_structures(structures, structures.with_name(name))
    assert structures.read_bytes() == before


def test_import_refuses_an_id_that_is_taken(tmp_path: Path) -> None:
    frames = [bulk("Si"), bulk("Cu")]
    for atoms in frames:
        atoms.info["calculation_id"] = "slab"
    ase.io.write(tmp_path / "pair.extxyz", frames)
    with pytest.raises(CandidateError, match="'slab' belongs to rows 1 and 2"):
        import_structures(tmp_path / "pair.extxyz", tmp_path / "pool.db")
    assert not (tmp_path / "pool.db").exists()


def test_selection_streams(tmp_path: Path, si: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one page of structures is read to get the first few candidates."""
    monkeypatch.setattr(candidates, "_PAGE", 10)
    path = tmp_path / "pool.db"
    with ase.db.connect(path) as pool:
        for _ in range(100):
            pool.write(si, status="SELECTED")
    read = []
    convert = SQLite3Database._convert_tuple_to_row

    def count(self: SQLite3Database, values: tuple) -> object:
        read.append(values[self.columnnames.index("positions")] is not None)
        return convert(self, values)

    monkeypatch.setattr(SQLite3Database, "_convert_tuple_to_row", count)
    assert len(list(islice(select_candidates(open_candidates(path)), 3))) == 3
    assert sum(read) == 10
