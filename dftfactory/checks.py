"""`dftfactory check`: is everything there that a calculation needs; each answer says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dftfactory.config import DFTConfig, WorkerConfig, find_worker_file
from dftfactory.errors import DFTFactoryError
from dftfactory.jobs import PwProcess
from dftfactory.settings import read_yaml

if TYPE_CHECKING:
    from dftfactory.pseudos import Pseudopotential

# pw.x says its name within a fraction of a second; a launcher that hangs must not hang the check.
START_SECONDS = 60
# A large cell writes some GB of wave functions.
LITTLE_SPACE = 2**30
# A folder with a whole library, and no choice made yet, would fill the screen.
MAX_PROBLEMS = 4


@dataclass(frozen=True)
class Check:
    """One line of the answer: `ok` None means that it could not be checked."""

    name: str
    ok: bool | None
    says: str


def check_all(config_file: Path, worker_file: Path | None, launchpad_file: Path | None) -> Iterator[Check]:
    """Check worker settings, pw.x, MPI, scratch, configuration, pseudopotentials and LaunchPad, one after the other."""
    try:
        used = find_worker_file() if worker_file is None else worker_file
        worker = WorkerConfig.from_fw_env(None) if used is None else WorkerConfig.from_yaml(used)
    except DFTFactoryError as error:
        yield Check("worker", False, error.message)
        worker = None
    if worker is not None:
        yield Check("worker", True, "no my_fworker.yaml: what is installed" if used is None else str(used))
        yield _check_query(used)
        yield _check_pw(worker, cores=1)
        if worker.parallel_cores > 1:
            yield _check_pw(worker, cores=worker.parallel_cores)
        yield _check_scratch(worker)
    yield from _check_config(config_file, worker)
    yield _check_launchpad(launchpad_file)


def _check_query(worker_file: Path | None) -> Check:
    """Whoever can write to a LaunchPad runs commands as the user whose rockets take everything from it."""
    values = {} if worker_file is None else read_yaml(worker_file)
    if "RunDFT" in str(values.get("query", "")):
        return Check("query", True, "rockets take Fireworks of dftfactory only")
    return Check(
        "query",
        None,
        "rockets take whatever stands in the LaunchPad, other commands too: take `query` from the my_fworker.yaml that "
        "`dftfactory init` writes, and give the file to rlaunch with -w",
    )


def _check_pw(worker: WorkerConfig, cores: int) -> Check:
    name = "pw.x" if cores == 1 else f"pw.x on {cores} ranks"
    command = (worker if cores > 1 else worker.model_copy(update={"mpi_command": None})).command(cores, 1)
    shown = " ".join(command)
    try:
        status, out, err = _run_on_nothing(command, worker.process_environment())
    except subprocess.TimeoutExpired:
        return Check(name, False, f"`{shown}` did not answer within {START_SECONDS} s; try it by hand")
    except OSError as error:
        if isinstance(error, PermissionError):
            cure = "make it executable (chmod +x)"
        else:
            cure = "install Quantum ESPRESSO (apt-get install quantum-espresso) or set pw_command and mpi_command"
        return Check(name, False, f"{command[0]}: {error.strerror}; {cure} in my_fworker.yaml")
    version = re.search(r"Program PWSCF v\.(\S+)", out)
    if version is None:
        # mpirun begins with a line of dashes.
        said = next((line.strip() for line in f"{err}\n{out}".splitlines() if re.search(r"\w", line)), "nothing")
        return Check(
            name, False, f"`{shown}` is no pw.x that starts (exit {status}): {said}; correct pw_command and mpi_command"
        )
    ranks = re.search(r"running on\s+(\d+) processors", out)
    if cores > 1 and (ranks is None or int(ranks[1]) != cores):
        started = len(re.findall(r"Program PWSCF", out))
        return Check(
            name,
            False,
            f"`{shown}` starts {started} pw.x of {ranks[1] if ranks else 1} rank(s): use the mpirun that this pw.x was "
            "built with, or parallel_cores: 1",
        )
    return Check(name, True, f"version {version[1]}, {shown}")


def _run_on_nothing(command: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """Run pw.x on an empty input: it says its version and its ranks, and stops."""
    with tempfile.TemporaryDirectory(prefix="dftfactory-") as name:
        folder = Path(name)
        (folder / "pw.in").touch()
        with (folder / "pw.out").open("wb") as out, (folder / "pw.err").open("wb") as err:
            process = PwProcess(
                command,
                folder / "exit_status",
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            try:
                status = process.wait(START_SECONDS)
            finally:
                process.stop()
        said = [(folder / name).read_text(encoding="utf-8", errors="replace") for name in ("pw.out", "pw.err")]
        return status, said[0], said[1]


def _check_scratch(worker: WorkerConfig) -> Check:
    """Where pw.x keeps its wave functions: can it be written, and how much space is free."""
    folder = Path() if worker.scratch_dir is None else Path(worker.scratch_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        cure = "run where you may write" if worker.scratch_dir is None else "change scratch_dir"
        return Check("scratch", False, f"{folder.absolute()} cannot be written: {error.strerror}; {cure}")
    space = f"{free / 2**30:.1f} GB free"
    if worker.scratch_dir is None:
        says = f"the run folder itself, {space} here; set scratch_dir in my_fworker.yaml for a faster disk"
    else:
        says = f"{folder} can be written, {space}"
    return Check("scratch", True if free > LITTLE_SPACE else None, says)


def _check_config(config_file: Path, worker: WorkerConfig | None) -> Iterator[Check]:
    if not config_file.is_file():
        yield Check("configuration", None, f"{config_file} does not exist; `dftfactory init` writes one with comments")
        return
    try:
        config = DFTConfig.from_yaml(config_file)
    except DFTFactoryError as error:
        yield Check("configuration", False, error.message)
        return
    yield Check("configuration", True, f"{config_file}")
    folder = pseudopotential_folder(config, worker)
    if folder is None:
        yield Check("pseudopotentials", False, f"give pseudopotential_dir in {config_file}")
        return
    try:
        found = pseudopotentials_in(folder, config)
    except DFTFactoryError as error:
        problems = error.details.get("problems", [error.message])
        for problem in problems[:MAX_PROBLEMS]:
            yield Check("pseudopotentials", False, problem)
        if len(problems) > MAX_PROBLEMS:
            more = len(problems) - MAX_PROBLEMS
            yield Check("pseudopotentials", False, f"{more} more; list the files that you use in {config_file}")
        return
    if not found:
        yield Check("pseudopotentials", False, f"no .UPF file in {folder}; put them there, or change the folder")
        return
    functional = next(iter(found.values())).functional
    which = ", ".join(f"{element} ({pseudo.type})" for element, pseudo in found.items())
    yield Check("pseudopotentials", True, f"{len(found)} in {folder}, {functional}: {which}"[:300])


def pseudopotential_folder(config: DFTConfig, worker: WorkerConfig | None) -> Path | None:
    """Return the folder that this machine takes: the worker's own, else that of the data set."""
    given = (worker.pseudopotential_dir if worker else None) or config.pseudopotential_dir
    return None if given is None else Path(given).expanduser()


def pseudopotentials_in(folder: Path, config: DFTConfig) -> dict[str, Pseudopotential]:
    """Read the pseudopotentials that a configuration lists, or all of the folder where it lists none.

    Raises
    ------
    PseudopotentialError
        One of them is missing or unfit; `details` has all problems.
    """
    from dftfactory.pseudos import load_pseudopotentials

    return load_pseudopotentials(set(config.pseudopotentials) or _elements_in(folder), folder, config.pseudopotentials)


def _elements_in(folder: Path) -> set[str]:
    """Elements that the names of the files in a folder begin with."""
    from ase.data import atomic_numbers

    names = [
        re.match(r"([A-Za-z]{1,2})[^A-Za-z]", path.name) for path in folder.glob("*") if path.suffix.lower() == ".upf"
    ]
    return {name[1].capitalize() for name in names if name and name[1].capitalize() in atomic_numbers}


def _check_launchpad(launchpad_file: Path | None) -> Check:
    from dftfactory.launchpad import describe_launchpad, load_launchpad

    try:
        launchpad = load_launchpad(launchpad_file)
        where = describe_launchpad(launchpad_file)
    except DFTFactoryError as error:
        return Check("LaunchPad", False, error.message)
    return Check("LaunchPad", True, f"database {launchpad.name!r} answers at {where}")
