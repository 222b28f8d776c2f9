"""`dftfactory run`: one structure file to one label, with its label file."""

from __future__ import annotations

from pathlib import Path

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import ConfigError, StructureError
from dftfactory.labels import fingerprint, forces_above, make_label, read_label, write_label
from dftfactory.results import DFTResult
from dftfactory.runner import QERunner
from dftfactory.structures import file_problem


def label_structure_file(
    structure_file: Path, config_file: Path, worker_file: Path | None, folder: Path | None, *, softened: bool = False
) -> tuple[DFTResult, Path]:
    """Label the last frame of a structure file and write label.json into the run folder.

    A label that is there already, of the same structure and configuration, is returned and not computed again.
    `folder` is the run folder, `default_folder` where absent.

    Returns
    -------
    tuple[DFTResult, Path]
        The label and the run folder.

    Raises
    ------
    DFTFactoryError
        As `QERunner.run` raises it; StructureError also where the file cannot be read.
    """
    import ase.io
    from ase import Atoms

    if not structure_file.is_file():
        raise StructureError(f"{structure_file} does not exist; give a structure file that ASE reads")
    config = DFTConfig.from_yaml(config_file)
    worker = WorkerConfig.find() if worker_file is None else WorkerConfig.from_yaml(worker_file)
    if (problem := file_problem(structure_file)) is not None:
        raise StructureError(f"{structure_file} {problem}")
    try:
        # An @ in a file name is a letter of it.
        atoms = ase.io.read(structure_file, do_not_split_by_at_sign=True)
    except Exception as error:  # ASE's readers raise whatever they stumble over
        raise StructureError(f"{structure_file} cannot be read as a structure: {error!r}") from error
    assert isinstance(atoms, Atoms)  # noqa: S101  (one frame was asked for)
    run_dir = folder if folder is not None else default_folder(structure_file)
    runner = QERunner(config, worker)
    pseudopotentials = runner.pseudopotentials(atoms)
    name = fingerprint(atoms, config, {element: pseudo.md5 for element, pseudo in pseudopotentials.items()})
    label = read_label(run_dir)
    if label is not None and label["fingerprint"] == name:
        if label["quality"] != "exact" and not softened:
            raise ConfigError(f"{run_dir} holds a softened label of this structure; ask for it with --softened")
        # It may be of a configuration with another bound, which is no label parameter.
        if (reason := forces_above(label, config)) is not None:
            raise ConfigError(f"{run_dir}: {reason}")
        return DFTResult.from_dict(label["result"]), run_dir
    result = runner.run(atoms, run_dir, structure_file.stem, softened=softened)
    write_label(run_dir, make_label(result, name, config, pseudopotentials))
    return result, run_dir


def default_folder(structure_file: Path) -> Path:
    """Run folder for a structure file: here, and named after it (`Si.cif` → `Si`, `POSCAR` → `POSCAR_label`)."""
    folder = Path(structure_file.stem)
    return folder if structure_file.suffix else folder.with_name(f"{folder.name}_label")
