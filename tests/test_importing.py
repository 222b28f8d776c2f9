"""A structure file becomes SELECTED candidates: every frame, once, or none of them."""

from __future__ import annotations

from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from dftfactory.candidates import open_candidates, select_candidates
from dftfactory.errors import CandidateError
from dftfactory.importing import candidate_database_for, import_structures


@pytest.fixture
def si() -> Atoms:
    return bulk("Si")


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
    db.update(1, silicon, status="COMPLETED")
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
