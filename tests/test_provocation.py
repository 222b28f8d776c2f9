"""The real pw.x, provoked: every mishap ends in the right outcome, in a bounded number of runs, and leaves nothing.

What comes out is either the label of an undisturbed run, or a CalculationError that a person understands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from paths import PSEUDO_DIR, PSEUDOPOTENTIALS

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, StructureError
from dftfactory.results import DFTResult
from dftfactory.runner import QERunner

pytestmark = pytest.mark.pw

PROC = Path("/proc")
SECOND_ITERATION = "iteration #  2"
Disturb = Callable[..., list[str]]
Tmpfs = Callable[[str], Path]


def aluminium() -> Atoms:
    """Return four atoms off their sites, which need ten iterations or so."""
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def configured(**changes: object) -> DFTConfig:
    return DFTConfig(
        **{
            "pseudopotential_dir": str(PSEUDO_DIR),
            "pseudopotentials": PSEUDOPOTENTIALS,
            "ecutwfc": 15,
            "kspacing": 1.2,
            "conv_thr_per_atom": 1e-10,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> DFTResult:
    """Return the label of the undisturbed run."""
    return QERunner(configured(), WorkerConfig()).run(aluminium(), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Tmpfs]:
    """Return a function that mounts a small file system of its own."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("only root may mount a tmpfs")
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"small{len(mounted)}"
        folder.mkdir()
        subprocess.run([str(which("mount")), "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run([str(which("umount")), str(folder)], check=True)


def processes_in(run_dir: Path) -> dict[int, str]:
    """Return pid and name of the living processes whose working directory is the run folder."""
    found = {}
    for process in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == run_dir and "\nState:\tZ" not in (process / "status").read_text():
                found[int(process.name)] = (process / "comm").read_text().strip()
    return found


@contextlib.contextmanager
def once_it_runs(run_dir: Path, act: Callable[[], None], *, times: int = 1) -> Iterator[None]:
    """Act in the second SCF iteration of each of the first runs, from a thread of its own."""
    over, acted = threading.Event(), []

    def wait_and_act() -> None:
        while not over.is_set() and len(acted) < times:
            # The folders of the attempts that have ended count them.
            number = len(list(run_dir.glob("attempt_*")))
            with contextlib.suppress(OSError):
                if number == len(acted) and SECOND_ITERATION in (run_dir / "pw.out").read_text(errors="replace"):
                    act()
                    acted.append(number)
            time.sleep(0.005)

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert len(acted) == times


def kill(run_dir: Path, name: str, number: signal.Signals) -> Callable[[], None]:
    """Return a function that signals one process of this name in the run folder."""

    def act() -> None:
        pids = [pid for pid, of in sorted(processes_in(run_dir).items()) if of == name]
        if not pids:  # the output is one of a run that has just ended
            raise ProcessLookupError
        os.kill(pids[0], number)

    return act


def two_ranks(pw_command: str = "pw.x") -> WorkerConfig:
    return WorkerConfig(
        pw_command=pw_command, mpi_command="mpirun --oversubscribe -np {cores}", parallel_cores=2, npool=2
    )


def assert_nothing_is_left(run_dir: Path, runs: int) -> None:
    """No process, no density or wavefunction, one folder for each attempt, and files as small as one run's."""
    assert processes_in(run_dir) == {}
    assert len(list(run_dir.glob("attempt_*"))) == runs - 1
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert [path.name for path in files if "wfc" in path.name or "charge-density" in path.name] == []
    assert max(path.stat().st_size for path in files) < 200_000
    assert len(files) < 10 * (runs + 1)


def assert_label(
    run_dir: Path, undisturbed: DFTResult, ends: list[str], worker: WorkerConfig, **changes: object
) -> DFTResult:
    """Run it: these are the ends of its runs, and the last one gives the undisturbed label."""
    result = QERunner(configured(**changes), worker).run(aluminium(), run_dir)
    assert [attempt["outcome"] for attempt in result.history] == [*ends, "CONVERGED"]
    assert abs(result.energy - undisturbed.energy) / 4 < 1e-5  # eV/atom
    assert np.abs(result.forces - undisturbed.forces).max() < 1e-3  # eV/Å
    assert_nothing_is_left(run_dir, len(result.history))
    return result


def assert_failure(
    run_dir: Path, ends: list[str], worker: WorkerConfig, atoms: Atoms | None = None, **changes: object
) -> CalculationError:
    """Run it: these are the ends of its runs, and there is no label."""
    with pytest.raises(CalculationError) as caught:
        QERunner(configured(**changes), worker).run(atoms or aluminium(), run_dir, "al")
    error = caught.value
    assert [attempt.get("outcome") for attempt in error.details["history"]] == ends
    assert error.message.startswith(f"al: {ends[-1]} at level ")
    assert error.details["evidence"]
    assert "\n" not in error.message
    assert_nothing_is_left(run_dir, len(ends))
    return error


# Killed from outside


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_pw_x_that_is_killed_is_run_again(number: signal.Signals, tmp_path: Path, undisturbed: DFTResult) -> None:
    run_dir = tmp_path / "run"
    with once_it_runs(run_dir, kill(run_dir, "pw.x", number)):
        result = assert_label(run_dir, undisturbed, ["KILLED"], WorkerConfig())
    assert number.name in result.history[0]["evidence"]


@pytest.mark.parametrize(
    ("name", "number"), [("pw.x", signal.SIGKILL), ("mpirun", signal.SIGKILL), ("mpirun", signal.SIGTERM)]
)
def test_one_of_the_processes_under_mpi_takes_the_others_with_it(
    name: str, number: signal.Signals, tmp_path: Path, undisturbed: DFTResult
) -> None:
    run_dir = tmp_path / "run"
    with once_it_runs(run_dir, kill(run_dir, name, number)):
        assert_label(run_dir, undisturbed, ["KILLED"], two_ranks())


def test_a_pw_x_that_is_killed_every_time_is_given_up(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with once_it_runs(run_dir, kill(run_dir, "pw.x", signal.SIGKILL), times=2):
        error = assert_failure(run_dir, ["KILLED", "KILLED"], WorkerConfig())
    assert "SIGKILL" in error.message


# Stopped on purpose


def test_a_user_who_leaves_an_exit_file_is_obeyed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with once_it_runs(run_dir, (run_dir / "pwscf.EXIT").touch):
        error = assert_failure(run_dir, ["SOFT_STOP"], WorkerConfig())
    assert "EXIT file" in error.message


def test_an_exit_file_of_an_earlier_day_stops_nothing(tmp_path: Path, undisturbed: DFTResult) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "pwscf.EXIT").touch()
    assert_label(run_dir, undisturbed, [], WorkerConfig())


def test_a_time_that_is_never_enough_is_given_up_after_three_resumes(tmp_path: Path) -> None:
    error = assert_failure(tmp_path / "run", ["WALLTIME"] * 4, WorkerConfig(max_seconds=0.001))
    assert "time" in error.message


# Memory and disk


# Above what the libraries take to load, and far below what the large grids of these two tests need. Not the size of the
# address space (--as): with that, MPI itself does not come up in some of the runs.
LITTLE_MEMORY = "--data=100000000"


def test_too_little_memory_is_told_from_a_crash(tmp_path: Path) -> None:
    box = Atoms("H2", positions=[(0, 0, 0), (0.8, 0, 0)], cell=[10, 10, 10], pbc=False)
    worker = WorkerConfig(pw_command=["prlimit", LITTLE_MEMORY, "pw.x"])
    error = assert_failure(tmp_path / "run", ["OUT_OF_MEMORY"] * 3, worker, box, ecutwfc=40)
    assert "give the job more memory" in error.message


def test_memory_that_is_there_the_next_time_gives_the_label(
    tmp_path: Path, undisturbed: DFTResult, disturbed: Disturb
) -> None:
    """The script makes the first run larger, and its memory small."""
    line = f"sed 's/ecutrho .*/ecutrho = 1200/' pw.in > big.in; exec prlimit {LITTLE_MEMORY} pw.x -in big.in"
    result = assert_label(tmp_path / "run", undisturbed, ["OUT_OF_MEMORY"], WorkerConfig(pw_command=disturbed(line)))
    assert result.history[-1]["parameters"]["mixing_ndim"] == 4


def test_a_scratch_disk_on_which_the_xml_was_cut_is_named(tmp_path: Path, tmpfs: Tmpfs) -> None:
    scratch = tmpfs("160k")
    error = assert_failure(tmp_path / "run", ["DISK_FULL"] * 2, WorkerConfig(scratch_dir=str(scratch)))
    assert "scratch_dir" in error.message
    assert list(scratch.iterdir()) == []


def test_a_scratch_disk_that_is_emptied_meanwhile_gives_the_label(
    tmp_path: Path, undisturbed: DFTResult, tmpfs: Tmpfs, disturbed: Disturb
) -> None:
    scratch = tmpfs("160k")
    worker = WorkerConfig(pw_command=disturbed(":", f"mount -o remount,size=20m {scratch}"), scratch_dir=str(scratch))
    assert_label(tmp_path / "run", undisturbed, ["DISK_FULL"], worker)
    assert list(scratch.iterdir()) == []


def test_a_scratch_disk_that_holds_nothing_at_all_leaves_the_text(
    tmp_path: Path, undisturbed: DFTResult, tmpfs: Tmpfs
) -> None:
    result = assert_label(tmp_path / "run", undisturbed, [], WorkerConfig(scratch_dir=str(tmpfs("4k"))))
    assert result.source == "text"


@pytest.mark.parametrize("size", ["16k", "64k"])
def test_a_run_folder_that_is_too_small_is_an_error_that_a_person_understands(size: str, tmpfs: Tmpfs) -> None:
    run_dir = tmpfs(size) / "run"
    with pytest.raises(CalculationError) as caught:
        QERunner(configured(), WorkerConfig()).run(aluminium(), run_dir)
    assert caught.value.details["failure"] == "DISK_FULL"
    assert len(caught.value.details["history"]) <= 2
    assert processes_in(run_dir) == {}


@pytest.mark.parametrize("where", ["/dev/full", "&-"])
def test_an_output_that_goes_nowhere_is_no_label(where: str, tmp_path: Path, disturbed: Disturb) -> None:
    line = f'exec pw.x "$@" > {where}'.replace("> &-", ">&-")
    error = assert_failure(tmp_path / "run", ["INCOMPLETE_OUTPUT"] * 2, WorkerConfig(pw_command=disturbed(line, line)))
    assert "pw.out" in error.message


def test_a_file_that_may_not_grow_is_no_label(tmp_path: Path) -> None:
    worker = WorkerConfig(pw_command=["prlimit", "--fsize=8192", "pw.x"])
    with pytest.raises(CalculationError) as caught:
        QERunner(configured(), worker).run(aluminium(), tmp_path / "run")
    assert caught.value.details["failure"] in ("DISK_FULL", "KILLED", "INCOMPLETE_OUTPUT")
    assert_nothing_is_left(tmp_path / "run", 2)


# Saved states

SHORT = "sed 's/^&CONTROL/&\\n max_seconds = 0.1/' pw.in > short.in; exec pw.x -in short.in"
NAN = "\\377" * 16  # one number of the density
TO_THE_END = [{"name": "patient", "electron_maxstep": 80}]


def test_a_saved_state_that_is_gone_costs_only_time(tmp_path: Path, undisturbed: DFTResult, disturbed: Disturb) -> None:
    """pw.x says nothing and begins from scratch."""
    worker = WorkerConfig(pw_command=disturbed(SHORT, "rm -r out/pwscf.*"))
    assert_label(tmp_path / "run", undisturbed, ["WALLTIME"], worker)


@pytest.mark.parametrize(
    ("damage", "ends"),
    [
        ("rm -r out/pwscf.save", ["SCF_NOT_CONVERGED"]),
        ("truncate -s 9000 out/pwscf.save/charge-density.dat", ["SCF_NOT_CONVERGED"]),
        ("truncate -s 0 out/pwscf.save/charge-density.dat", ["BAD_RESTART"]),
        (f"printf '{NAN}' | dd of=out/pwscf.save/charge-density.dat bs=16 seek=4000 conv=notrunc", ["BAD_RESTART"]),
    ],
    ids=["missing", "cut", "empty", "NaN"],
)
def test_a_damaged_density_does_not_reach_the_label(
    damage: str, ends: list[str], tmp_path: Path, undisturbed: DFTResult, disturbed: Disturb
) -> None:
    worker = WorkerConfig(pw_command=disturbed(":", damage))
    changes = {"electron_maxstep": 6, "ladder": TO_THE_END}
    result = QERunner(configured(**changes), worker).run(aluminium(), tmp_path / "run")
    assert [attempt["outcome"] for attempt in result.history][1 : 1 + len(ends)] == ends
    assert abs(result.energy - undisturbed.energy) / 4 < 1e-5  # eV/atom
    assert np.abs(result.forces - undisturbed.forces).max() < 1e-3  # eV/Å
    assert_nothing_is_left(tmp_path / "run", len(result.history))


# Layout


def test_more_pools_than_ranks_become_fewer(tmp_path: Path, undisturbed: DFTResult) -> None:
    """A launcher that starts one rank, whatever it is asked for."""
    worker = WorkerConfig(mpi_command=["env", "RANKS={cores}"], parallel_cores=4, npool=4)
    result = assert_label(tmp_path / "run", undisturbed, ["PARALLELIZATION"] * 2, worker)
    assert result.history[-1]["parameters"]["npool"] == 1


def test_more_ranks_than_planes_become_fewer(tmp_path: Path) -> None:
    """Eight ranks for a grid of 9 x 9 x 9: pw.x gives some of them no plane wave, and ends without a word."""
    atoms = Atoms("H", cell=[1.8, 1.8, 1.8], pbc=True)
    worker = WorkerConfig(mpi_command="mpirun --oversubscribe -np {cores}", parallel_cores=8, npool=1)
    result = QERunner(configured(kspacing=10), worker).run(atoms, tmp_path / "run")
    assert {attempt["outcome"] for attempt in result.history[:-1]} == {"PARALLELIZATION"}
    assert 1 <= result.n_ranks < 8
    assert_nothing_is_left(tmp_path / "run", len(result.history))


# Inputs that change, and structures that cannot be right


def test_a_pseudopotential_that_changes_between_check_and_run_is_no_label(tmp_path: Path, disturbed: Disturb) -> None:
    file = tmp_path / "Al.pz-vbc.UPF"
    file.write_bytes((PSEUDO_DIR / file.name).read_bytes())
    worker = WorkerConfig(pw_command=disturbed(f"echo '<!-- edited -->' >> {file}"))
    error = assert_failure(tmp_path / "run", ["PSEUDOPOTENTIAL"], worker, pseudopotential_dir=str(tmp_path))
    assert "another content than the prescribed one" in error.message


def too_close() -> Atoms:
    return Atoms("Si2", positions=[(0, 0, 0), (0.3, 0, 0)], cell=[5, 5, 5], pbc=True)


def test_atoms_on_top_of_each_other_are_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=r"atoms 1 \(Si\) and 2 \(Si\) are 0.300 Å apart"):
        QERunner(configured(), WorkerConfig()).run(too_close(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_atoms_on_top_of_each_other_are_no_label_for_those_who_let_them_pass(tmp_path: Path) -> None:
    with pytest.raises(CalculationError) as caught:
        QERunner(configured(min_distance_fraction=0, kspacing=2), WorkerConfig()).run(too_close(), tmp_path / "run")
    assert "atoms are too close" in caught.value.message
    assert_nothing_is_left(tmp_path / "run", len(caught.value.details["history"]))


# Programs


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_pw_x_that_is_not_there_or_no_program_is_named(mode: int | None, tmp_path: Path) -> None:
    program = tmp_path / "pw.x"
    if mode is not None:
        program.write_text("#!/bin/sh\n")
        program.chmod(mode)
    error = assert_failure(tmp_path / "run", ["ENVIRONMENT"], WorkerConfig(pw_command=[str(program)]))
    assert str(program) in error.message


def test_a_pw_x_that_is_not_there_is_named_under_mpirun_too(tmp_path: Path) -> None:
    error = assert_failure(tmp_path / "run", ["ENVIRONMENT"], two_ranks("/nowhere/pw.x"))
    assert "pw_command" in error.message
