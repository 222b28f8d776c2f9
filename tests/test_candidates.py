"""Candidates: only rows of ours are taken, each has a name of its own, and a label becomes the row's results."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import ase.db
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
    count_by_status,
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
    mark_failed(db, 1, "out of memory", failure="memory", evidence="Error allocating", explanation="memory ran out")
    mark_completed(db, 1, label_of(si))
    assert not {"reason", "failure", "evidence", "explanation"} & set(db.get(1).key_value_pairs)


def test_warning_of_the_label_is_a_key_until_there_is_another_label(db: Database, si: Atoms) -> None:
    mark_completed(db, 1, label_of(si, level=1, state_warning="there may be a lower electronic state"))
    assert db.get(1).state_warning == "there may be a lower electronic state"
    assert [row.id for row in db.select("state_warning")] == [1]
    mark_completed(db, 1, label_of(si))
    assert "state_warning" not in db.get(1)


def test_failed_row_has_the_reason(db: Database) -> None:
    facts = {"failure": "scf_stagnated", "level": 4, "evidence": "NOT achieved\n after 80", "explanation": "look at it"}
    mark_failed(db, 3, "SCF stood still", **facts)
    row = db.get(3)
    assert (row.status, row.reason, row.failure, row.level) == ("FAILED", "SCF stood still", "scf_stagnated", 4)
    assert (row.evidence, row.explanation) == ("NOT achieved after 80", "look at it")


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
