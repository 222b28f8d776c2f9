"""`dftfactory run`: a structure file to a label file, and no label twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError, ParserError, StructureError
from dftfactory.label_one import default_folder, label_structure_file

FakePw = Callable[..., WorkerConfig]


@pytest.fixture
def files(tmp_path: Path, fake_config: DFTConfig, si_atoms: Atoms) -> Path:
    """A folder with a structure file and dft.yaml."""
    write(tmp_path / "Si.xyz", si_atoms)
    (tmp_path / "dft.yaml").write_text(json.dumps(fake_config.to_dict()))  # JSON is YAML
    return tmp_path


@pytest.fixture
def run(files: Path) -> Callable[..., tuple[object, Path]]:
    """Label Si.xyz with the worker that is given."""

    def label(worker: WorkerConfig, **options: bool) -> tuple[object, Path]:
        (files / "worker.yaml").write_text(json.dumps(worker.to_dict()))
        return label_structure_file(
            files / "Si.xyz", files / "dft.yaml", files / "worker.yaml", files / "label", **options
        )

    return label


def test_the_label_file_stands_in_the_run_folder(run: Callable[..., tuple[object, Path]], fake_pw: FakePw) -> None:
    result, folder = run(fake_pw("converged"))
    label = json.loads((folder / "label.json").read_text())
    assert label["result"]["energy"] == result.energy  # type: ignore[attr-defined]  # a DFTResult
    assert (label["calculation_id"], label["level"], label["quality"]) == ("Si", 0, "exact")


def test_a_label_that_is_there_is_not_computed_again(
    run: Callable[..., tuple[object, Path]], fake_pw: FakePw, launches: Callable[[], list[str]]
) -> None:
    worker = fake_pw("converged")
    first, _ = run(worker)
    second, _ = run(worker)
    assert second.to_dict() == first.to_dict()  # type: ignore[attr-defined]  # DFTResults
    assert len(launches()) == 1


def test_the_label_of_another_structure_is_neither_taken_nor_overwritten(
    run: Callable[..., tuple[object, Path]], fake_pw: FakePw, files: Path, si_atoms: Atoms
) -> None:
    worker = fake_pw("converged")
    _, folder = run(worker)
    before = (folder / "label.json").read_text()
    si_atoms.positions[0, 0] += 0.01
    write(files / "Si.xyz", si_atoms)
    with pytest.raises(ConfigError, match="already holds a calculation; choose another folder or remove it"):
        run(worker)
    assert (folder / "label.json").read_text() == before


def test_a_softened_label_is_given_again_only_to_those_who_ask(
    run: Callable[..., tuple[object, Path]], fake_pw: FakePw
) -> None:
    worker = fake_pw(*["scf_still"] * 6, "anneal_hot", "anneal_warm", *["scf_still"] * 2, "softened")
    first, _ = run(worker, softened=True)
    again, _ = run(worker, softened=True)
    assert again.to_dict() == first.to_dict()  # type: ignore[attr-defined]  # DFTResults
    with pytest.raises(ConfigError, match="holds a softened label of this structure; ask for it with --softened"):
        run(worker)


def test_a_label_that_is_there_is_measured_by_the_bound_of_today(
    run: Callable[..., tuple[object, Path]], fake_pw: FakePw, files: Path, fake_config: DFTConfig
) -> None:
    """`max_force` is no label parameter, so the label has the same fingerprint under another one."""
    worker = fake_pw("converged")
    run(worker)
    strict = fake_config.model_copy(update={"max_force": 1e-3})
    (files / "dft.yaml").write_text(json.dumps(strict.to_dict()))
    with pytest.raises(ConfigError, match=r"is above max_force = 0.001 eV/Å"):
        run(worker)


def test_a_failed_calculation_leaves_no_label_file(run: Callable[..., tuple[object, Path]], fake_pw: FakePw) -> None:
    with pytest.raises(CalculationError) as caught:
        run(fake_pw("crash_silent"))
    assert not (Path(caught.value.details["run_dir"]) / "label.json").exists()


def test_a_damaged_label_file_is_an_error_and_not_computed_over(
    run: Callable[..., tuple[object, Path]], fake_pw: FakePw
) -> None:
    worker = fake_pw("converged")
    _, folder = run(worker)
    (folder / "label.json").write_text("{")
    with pytest.raises(ParserError, match="is damaged"):
        run(worker)


@pytest.mark.parametrize("text", ["", "3\n\nSi 0 0 0\n", "not a structure"])
def test_an_unreadable_structure_file_is_named(files: Path, text: str) -> None:
    (files / "Si.xyz").write_text(text)
    with pytest.raises(StructureError, match=r"Si\.xyz cannot be read as a structure"):
        label_structure_file(files / "Si.xyz", files / "dft.yaml", None, files / "label")
    assert not (files / "label").exists()


def test_a_missing_structure_file_is_named(files: Path) -> None:
    with pytest.raises(StructureError, match=r"no\.cif does not exist"):
        label_structure_file(files / "no.cif", files / "dft.yaml", None, None)


@pytest.mark.parametrize(
    ("file", "folder"),
    [("Si.cif", "Si"), ("a/b/Si.8.xyz", "Si.8"), ("POSCAR", "POSCAR_label"), ("../x/.xyz", ".xyz_label")],
)
def test_the_folder_is_named_after_the_file_and_never_is_the_file(file: str, folder: str) -> None:
    assert default_folder(Path(file)) == Path(folder)
