"""`dftfactory check`: is everything there that a calculation needs; each answer says what to do."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import DFTFactoryError

# pw.x says its name within a fraction of a second; a launcher that hangs must not hang the check.
START_SECONDS = 60


@dataclass(frozen=True)
class Check:
    """One line of the answer: `ok` None means that it could not be checked."""

    name: str
    ok: bool | None
    says: str


def check_all(config_file: Path, worker_file: Path | None, launchpad_file: Path | None) -> Iterator[Check]:
    """Check worker settings, pw.x, MPI, scratch, configuration, pseudopotentials and LaunchPad, one after the other."""
    try:
        worker = WorkerConfig.find() if worker_file is None else WorkerConfig.from_yaml(worker_file)
    except DFTFactoryError as error:
        yield Check("worker", False, error.message)
        worker = None
    if worker is not None:
        yield _check_pw(worker, cores=1)
        if worker.parallel_cores > 1:
            yield _check_pw(worker, cores=worker.parallel_cores)
        yield _check_scratch(worker)
    yield from _check_config(config_file, worker)
    yield _check_launchpad(launchpad_file)


def _check_pw(worker: WorkerConfig, cores: int) -> Check:
    name = "pw.x" if cores == 1 else f"pw.x on {cores} ranks"
    # An empty input: pw.x says version and ranks, and stops.
    command = (worker if cores > 1 else worker.model_copy(update={"mpi_command": None})).command(cores, 1)
    with tempfile.TemporaryDirectory(prefix="dftfactory-") as folder:
        (Path(folder) / "pw.in").touch()
        try:
            run = subprocess.run(
                command,
                cwd=folder,
                env=worker.process_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
            )
        except OSError as error:
            cure = "install Quantum ESPRESSO (apt-get install quantum-espresso) or set pw_command and mpi_command"
            return Check(name, False, f"{command[0]}: {error.strerror}; {cure} in my_fworker.yaml")
        except subprocess.TimeoutExpired:
            return Check(name, False, f"`{' '.join(command)}` did not answer within {START_SECONDS} s")
    version = re.search(r"Program PWSCF v\.(\S+)", run.stdout)
    ranks = re.search(r"running on\s+(\d+) processors", run.stdout)
    if version is None:
        said = (run.stderr.strip() or run.stdout.strip() or "nothing").splitlines()[0]
        return Check(name, False, f"`{' '.join(command)}` is no pw.x that starts (exit {run.returncode}): {said}")
    if cores > 1 and (ranks is None or int(ranks[1]) != cores):
        return Check(
            name, False, f"`{' '.join(command)}` starts {ranks[1] if ranks else 1} ranks: is pw.x built for it?"
        )
    return Check(name, True, f"version {version[1]}, {' '.join(command)}")


def _check_scratch(worker: WorkerConfig) -> Check:
    if worker.scratch_dir is None:
        return Check("scratch", True, "the run folder itself; set scratch_dir in my_fworker.yaml for a faster disk")
    folder = Path(worker.scratch_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("scratch", False, f"{folder} cannot be written: {error.strerror}; change scratch_dir")
    return Check("scratch", True, f"{folder} can be written")


def _check_config(config_file: Path, worker: WorkerConfig | None) -> Iterator[Check]:
    from dftfactory.pseudos import load_pseudopotentials

    if not config_file.is_file():
        yield Check("configuration", None, f"{config_file} does not exist; `dftfactory init` writes one with comments")
        return
    try:
        config = DFTConfig.from_yaml(config_file)
    except DFTFactoryError as error:
        yield Check("configuration", False, error.message)
        return
    yield Check("configuration", True, f"{config_file}")
    folder = (worker.pseudopotential_dir if worker else None) or config.pseudopotential_dir
    if folder is None:
        yield Check("pseudopotentials", False, f"give pseudopotential_dir in {config_file}")
        return
    try:
        elements = set(config.pseudopotentials) or _elements_in(Path(folder))
        found = load_pseudopotentials(elements, Path(folder), config.pseudopotentials)
    except DFTFactoryError as error:
        yield Check("pseudopotentials", False, error.message)
        return
    functional = next((pseudo.functional for pseudo in found.values()), "none")
    which = ", ".join(f"{element} ({pseudo.type})" for element, pseudo in found.items())
    yield Check("pseudopotentials", bool(found), f"{len(found)} in {folder}, {functional}: {which}"[:300])


def _elements_in(folder: Path) -> set[str]:
    """Elements that the names of the files in a folder begin with."""
    from ase.data import atomic_numbers

    names = [
        re.match(r"([A-Za-z]{1,2})[^A-Za-z]", path.name) for path in folder.glob("*") if path.suffix.lower() == ".upf"
    ]
    return {name[1].capitalize() for name in names if name and name[1].capitalize() in atomic_numbers}


def _check_launchpad(launchpad_file: Path | None) -> Check:
    from dftfactory.launchpad import load_launchpad

    try:
        launchpad = load_launchpad(launchpad_file)
    except DFTFactoryError as error:
        return Check("LaunchPad", False, error.message)
    return Check("LaunchPad", True, f"database {launchpad.name!r} answers")
