"""What ase.io reads back is the label, to the digit; labels that do not belong together do not get into one file."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from dftfactory.errors import ConfigError, DFTFactoryError, NonFiniteError, ParserError, PseudopotentialError
from dftfactory.export import ExportSummary, export_labels, label_to_atoms

STRESS = [[0.1, -0.06, 0.05], [-0.06, 0.2, 1 / 3], [0.05, 1 / 3, 0.3]]


def label(number: int = 1, result: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A label document of a distorted Si cell, as the label store has it."""
    values = {
        "energy": -215.123456789012345,
        "smearing_energy": -0.01,
        "forces": [[0.1, -0.2, 0.3], [-0.1, 0.2, -0.3]],
        "stress": STRESS,
        "symbols": ["Si", "O"],
        "positions": [[0.0, 0.0, 0.0], [1.3575, 1.4, 1.25]],
        "cell": [[0.0, 2.715, 2.715], [2.8, 0.0, 2.715], [2.715, 2.9, 1 / 3]],
        "degauss": 0.02,
        "conv_thr": 1e-9,
        "scf_accuracy": [1e-3, 1e-10],
        "scf_error": 1e-10,
        "iterations": 11,
        "wall_time": 3.5,
        "n_kpoints": 10,
        "n_ranks": 2,
        "pw_version": "6.7",
        "source": "xml",
    }
    return {
        "fingerprint": f"dft{number}",
        "calculation_id": f"Si2-{number}",
        "config_hash": "cfg1",
        "formula": "SiO",
        "level": 0,
        "quality": "exact",
        "result": values | (result or {}),
        "pseudopotentials": {
            "Fe": {"file": "Fe.upf", "md5": "2" * 32},
            "O": {"file": "O.upf", "md5": "1" * 32},
            "Si": {"file": "Si.upf", "md5": "0" * 32},
        },
        "label_parameters": {"ecutwfc": 60.0},
        "created_on": "2026-01-01T00:00:00",
    } | changes


def read_back(tmp_path: Path, *labels: dict[str, Any], **options: bool) -> list[Any]:
    export_labels(labels, tmp_path / "train.extxyz", **options)
    return ase.io.read(tmp_path / "train.extxyz", ":")


# One label


def test_label_becomes_a_structure_with_reference_values() -> None:
    atoms = label_to_atoms(label(level=1, result={"total_magnetization": 2.0}))
    assert atoms.info == {
        "REF_energy": -215.123456789012345,
        "REF_stress": pytest.approx(np.array(STRESS), abs=0),
        "calculation_id": "Si2-1",
        "level": 1,
        "quality": "exact",
        "config_hash": "cfg1",
        "fingerprint": "dft1",
        "total_magnetization": 2.0,
    }
    assert atoms.arrays["REF_forces"].tolist() == [[0.1, -0.2, 0.3], [-0.1, 0.2, -0.3]]
    assert atoms.calc is None


def test_warning_of_a_label_is_in_the_training_set(tmp_path: Path) -> None:
    warning = "there may be a lower electronic state: reached at level 1 (energy -215.1235 eV)"
    [atoms] = read_back(tmp_path, label(level=1, result={"state_warning": warning}))
    assert atoms.info["state_warning"] == warning
    assert "state_warning" not in label_to_atoms(label(level=1)).info


def test_only_a_softened_label_says_its_degauss() -> None:
    assert "degauss" not in label_to_atoms(label()).info
    assert label_to_atoms(label(quality="softened", result={"degauss": 0.03})).info["degauss"] == 0.03


@pytest.mark.parametrize(
    "result",
    [{"energy": float("nan")}, {"forces": [[0.1, 0.2, float("inf")], [0.0, 0.0, 0.0]]}, {"stress": [[np.nan] * 3] * 3}],
)
def test_number_that_is_not_finite_is_no_label(result: dict[str, Any]) -> None:
    with pytest.raises(NonFiniteError, match="label Si2-1"):
        label_to_atoms(label(result=result))


@pytest.mark.parametrize(
    "damaged",
    [
        label(result={"forces": [[0.1, 0.2, 0.3]]}),
        label(result={"forces": [[0.1, 0.2], [0.1]]}),
        label(result={"stress": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}),
        label(result={"energy": None}),
        label(result={"symbols": ["Si", "Xy"]}),
        label(quality="good"),
        {key: value for key, value in label().items() if key != "config_hash"},
        {key: value for key, value in label().items() if key != "result"},
    ],
)
def test_damaged_label_is_named(damaged: dict[str, Any]) -> None:
    with pytest.raises(ParserError, match="label Si2-1"):
        label_to_atoms(damaged)


# The file, read back by ASE


def test_reference_values_come_back(tmp_path: Path) -> None:
    """Energy, stress and cell to the last bit; columns have 8 decimals."""
    forces = [[0.123456789012, -1e-9, 12345.678901234], [-0.1, 0.2, -0.3]]
    [atoms] = read_back(tmp_path, label(level=2, result={"forces": forces}))
    expected = label_to_atoms(label())
    assert atoms.get_chemical_symbols() == ["Si", "O"]
    assert np.array_equal(atoms.cell, expected.cell)
    assert np.abs(atoms.positions - expected.positions).max() <= 5e-9
    assert atoms.info["REF_energy"] == -215.123456789012345
    assert atoms.info["REF_stress"].shape == (3, 3)
    assert np.array_equal(atoms.info["REF_stress"], STRESS)
    assert atoms.arrays["REF_forces"].shape == (2, 3)
    assert np.abs(atoms.arrays["REF_forces"] - forces).max() <= 5.01e-9  # half of the last decimal, and double rounding
    assert (atoms.info["level"], atoms.info["quality"], atoms.info["config_hash"]) == (2, "exact", "cfg1")
    assert isinstance(atoms.info["level"], (int, np.integer))
    assert atoms.calc is None


def test_stress_comes_back_untransposed(tmp_path: Path) -> None:
    """A real stress is symmetric and would hide it."""
    crooked = np.arange(9.0).reshape(3, 3).tolist()
    [atoms] = read_back(tmp_path, label(result={"stress": crooked}))
    assert atoms.info["REF_stress"].tolist() == crooked


@pytest.mark.parametrize(
    "calculation_id",
    ["0001", "17", "1e5", "nan", "inf", "T", "F", "true", "1_000", "1.", "a.b+c-d_e", "9-lives", "e", "x" * 100],
)
def test_id_comes_back_as_the_same_text(tmp_path: Path, calculation_id: str) -> None:
    """ASE reads 0001 as the number 1 and T as True, unless they are written as JSON."""
    [atoms] = read_back(tmp_path, label(calculation_id=calculation_id, fingerprint=calculation_id))
    assert atoms.info["calculation_id"] == atoms.info["fingerprint"] == calculation_id


def test_one_atom_comes_back(tmp_path: Path) -> None:
    result = {
        "symbols": ["Fe"],
        "positions": [[0.1, 0.2, 0.3]],
        "forces": [[0.0, 0.0, 0.25]],
        "total_magnetization": 2.0,
    }
    [atoms] = read_back(tmp_path, label(result=result))
    assert atoms.get_chemical_symbols() == ["Fe"]
    assert atoms.positions.tolist() == [[0.1, 0.2, 0.3]]
    assert atoms.arrays["REF_forces"].tolist() == [[0.0, 0.0, 0.25]]
    assert atoms.info["total_magnetization"] == 2.0


@pytest.mark.parametrize("pbc", [[True, True, False], [False, True, False], [True] * 3, [False] * 3])
def test_pbc_comes_back(tmp_path: Path, pbc: list[bool]) -> None:
    [atoms] = read_back(tmp_path, label(result={"pbc": pbc}))
    assert atoms.pbc.tolist() == pbc


def test_structures_of_different_size_come_back_in_order(tmp_path: Path) -> None:
    one = {"symbols": ["Fe"], "positions": [[0.0] * 3], "forces": [[0.0] * 3]}
    frames = read_back(tmp_path, label(3), label(1, one), label(2))
    assert [len(atoms) for atoms in frames] == [2, 1, 2]
    assert [atoms.info["fingerprint"] for atoms in frames] == ["dft3", "dft1", "dft2"]


# What is exported


def test_softened_labels_leave_only_when_asked_for(tmp_path: Path) -> None:
    labels = [label(1), label(2, quality="softened", result={"degauss": 0.03}), label(3)]
    path = tmp_path / "train.extxyz"
    assert export_labels(labels, path) == ExportSummary(written=2, left_out_softened=1, config_hash="cfg1")
    assert [atoms.info["quality"] for atoms in ase.io.read(path, ":")] == ["exact", "exact"]
    assert export_labels(labels, path, softened=True) == ExportSummary(3, 0, "cfg1")
    assert ase.io.read(path, 1).info["degauss"] == 0.03


def test_same_fingerprint_is_written_once(tmp_path: Path) -> None:
    """From the store and from a label file that was left on disk, for example."""
    labels = [label(1), label(2), label(1, calculation_id="again")]
    assert export_labels(labels, tmp_path / "train.xyz").written == 2
    ids = [atoms.info["calculation_id"] for atoms in ase.io.read(tmp_path / "train.xyz", ":")]
    assert ids == ["Si2-1", "Si2-2"]


def test_labels_of_two_configurations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.extxyz"
    path.write_text("old")
    labels = [label(1), label(2, config_hash="cfg2"), label(3)]
    with pytest.raises(ConfigError, match=r"2 configurations \(cfg1: 2, cfg2: 1\).*--config-hash"):
        export_labels(labels, path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_softened_label_of_another_configuration_is_not_in_the_way(tmp_path: Path) -> None:
    labels = [label(1), label(2, config_hash="cfg2", quality="softened")]
    assert export_labels(labels, tmp_path / "train.extxyz") == ExportSummary(1, 1, "cfg1")


def with_silicon_of(md5: str, file: str = "Si.upf", number: int = 1, **changes: Any) -> dict[str, Any]:
    other = label(number, **changes)
    return other | {"pseudopotentials": other["pseudopotentials"] | {"Si": {"file": file, "md5": md5}}}


def test_labels_with_two_pseudopotentials_of_one_element_are_refused(tmp_path: Path) -> None:
    """Energies from two files of one element differ by eV, and the configuration only has the file's name, if that."""
    path = tmp_path / "train.extxyz"
    path.write_text("old")
    with pytest.raises(PseudopotentialError) as refused:
        export_labels([label(1), with_silicon_of("f" * 32, "Si.pbe.upf", 2), label(3)], path)
    message = refused.value.message
    assert f"of Si (Si: Si.upf (md5 {'0' * 32}) in 2, Si.pbe.upf (md5 {'f' * 32}) in 1 labels)" in message
    assert "compute the structures of the other again" in message
    assert "\n" not in message
    assert refused.value.to_dict()["pseudopotentials"] == {
        "Si": [
            {"file": "Si.upf", "md5": "0" * 32, "labels": 2},
            {"file": "Si.pbe.upf", "md5": "f" * 32, "labels": 1},
        ]
    }
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_same_pseudopotential_under_two_names_is_one(tmp_path: Path) -> None:
    labels = [label(1), with_silicon_of("0" * 32, "Si_copy.upf", 2)]
    assert export_labels(labels, tmp_path / "train.extxyz").written == 2


def test_pseudopotential_of_an_element_that_is_not_in_the_structure_does_not_count(tmp_path: Path) -> None:
    iron = {"symbols": ["Fe"], "positions": [[0.0] * 3], "forces": [[0.0] * 3]}
    labels = [label(1), with_silicon_of("f" * 32, number=2, result=None) | {"result": label(2, iron)["result"]}]
    assert export_labels(labels, tmp_path / "train.extxyz").written == 2


def test_pseudopotential_of_a_label_that_is_left_out_does_not_count(tmp_path: Path) -> None:
    labels = [label(1), with_silicon_of("f" * 32, number=2, quality="softened"), with_silicon_of("f" * 32, number=1)]
    assert export_labels(labels, tmp_path / "train.extxyz") == ExportSummary(1, 1, "cfg1")


@pytest.mark.parametrize("pseudopotentials", [None, {}, {"Si": {"file": "Si.upf"}}, {"Si": "Si.upf"}])
def test_label_that_does_not_name_its_pseudopotentials_is_damaged(tmp_path: Path, pseudopotentials: Any) -> None:
    with pytest.raises(ParserError, match=r"label Si2-1 does not say which pseudopotential of (O|Si)"):
        export_labels([label() | {"pseudopotentials": pseudopotentials}], tmp_path / "train.extxyz")


@pytest.mark.parametrize(
    ("labels", "cause"), [([], "there are no labels"), ([label(quality="softened")], "all 1 labels are softened")]
)
def test_nothing_to_export_is_an_error(tmp_path: Path, labels: list[dict[str, Any]], cause: str) -> None:
    path = tmp_path / "train.extxyz"
    path.write_text("old")
    with pytest.raises(DFTFactoryError, match=cause):
        export_labels(labels, path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["train.json", "train", "none/train.extxyz", "folder.extxyz"])
def test_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.extxyz").mkdir()

    def unread() -> Iterator[dict[str, Any]]:
        raise AssertionError("the labels were read before the file name was checked")
        yield

    with pytest.raises(ConfigError, match=name):
        export_labels(unread(), tmp_path / name)


def test_label_that_is_damaged_stops_the_export(tmp_path: Path) -> None:
    path = tmp_path / "train.extxyz"
    path.write_text("old")
    with pytest.raises(NonFiniteError):
        export_labels([label(1), label(2, {"energy": float("nan")})], path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_killed_export_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """SIGKILL after many frames: no clean-up runs."""
    path = tmp_path / "train.extxyz"
    export_labels([label(1)], path)
    old = path.read_bytes()
    script = (
        "import os, sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from test_export import export_labels, label\n"
        "def labels():\n"
        "    yield from map(label, range(200))\n"
        "    os.kill(os.getpid(), 9)\n"
        f"export_labels(labels(), {str(path)!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1]).returncode == -9
    assert path.read_bytes() == old
    assert export_labels([label(1), label(2)], path).written == 2


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "train.extxyz").symlink_to("round3.extxyz")
    export_labels([label()], tmp_path / "train.extxyz")
    assert (tmp_path / "train.extxyz").is_symlink()
    assert len(ase.io.read(tmp_path / "round3.extxyz", ":")) == 1


def test_memory_does_not_grow_with_the_labels(tmp_path: Path) -> None:
    """A list of these 500 labels takes 1.2 MB, the export of one after the other 0.13 MB."""
    export_labels([label()], tmp_path / "warm_up.extxyz")
    tracemalloc.start()
    export_labels((label(number) for number in range(500)), tmp_path / "train.extxyz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5e6
