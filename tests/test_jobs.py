"""QEJob: how pw.x is started, stopped with all its ranks, and cleaned up behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from dftfactory import jobs, sessions
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError
from dftfactory.failures import Failure, diagnose
from dftfactory.history import read_history, start_history
from dftfactory.interrupts import stopped_by_signals
from dftfactory.jobs import PwProcess, QEJob, clean_up, keep_state
from dftfactory.runner import QERunner
from dftfactory.scratch import make_scratch
from dftfactory.sessions import kill_orphans, session_members

FakePw = Callable[..., WorkerConfig]
# A launcher whose rank has a process group of its own, as Open MPI's ranks have, and outlives it.
LAUNCHER = """
import os, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=lambda: os.setpgid(0, 0))
open("rank", "w").write(str(rank.pid))
{then}
"""


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something has happened; its own time is not tested."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def launcher(folder: Path, then: str) -> WorkerConfig:
    """A worker whose pw.x is a launcher that leaves its rank behind."""
    program = folder / "launcher.py"
    program.write_text(LAUNCHER.format(then=then))
    return WorkerConfig(pw_command=[sys.executable, str(program)])


def lives(pid: int) -> bool:
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


# Start and end


def test_the_exit_status_is_on_disk_as_soon_as_the_end_is_seen(tmp_path: Path) -> None:
    for n, see in enumerate((PwProcess.wait, lambda process: wait_for(lambda: process.poll() is not None))):
        process = PwProcess(["sh", "-c", "exit 3"], tmp_path / f"status{n}")
        see(process)
        assert (tmp_path / f"status{n}").read_text() == "3\n"


def test_a_signal_is_a_negative_exit_status(tmp_path: Path) -> None:
    process = PwProcess(["sh", "-c", "kill -KILL $$"], tmp_path / "exit_status")
    process.wait()
    assert (tmp_path / "exit_status").read_text() == "-9\n"


def test_the_status_of_a_process_is_not_written_twice(tmp_path: Path) -> None:
    """The file may have been moved to attempt_0/ meanwhile: a new one would speak for an attempt that was not run."""
    process = PwProcess(["true"], tmp_path / "exit_status")
    process.wait()
    (tmp_path / "exit_status").unlink()
    process.poll()
    process.stop()
    assert not (tmp_path / "exit_status").exists()


def test_ranks_and_pools_of_the_present_attempt_win_over_the_workers(tmp_path: Path) -> None:
    job = QEJob(WorkerConfig(mpi_command="mpirun -np {cores}", parallel_cores=4, npool=2))
    assert job.command(tmp_path) == ["mpirun", "-np", "4", "pw.x", "-nk", "2", "-in", "pw.in"]
    start_history(tmp_path, "si", {"parallel_cores": 2, "npool": 1}, {}, None)
    assert job.command(tmp_path) == ["mpirun", "-np", "2", "pw.x", "-in", "pw.in"]


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    job = QEJob(WorkerConfig(pw_command=["/bin/echo", "$HOME; touch here"]))
    process = job.run(str(tmp_path))
    assert process is not None
    process.wait()
    assert (tmp_path / "pw.out").read_text() == "$HOME; touch here -in pw.in\n"
    assert not (tmp_path / "here").exists()


def test_a_program_that_cannot_be_started_says_so_as_a_shell_would(tmp_path: Path) -> None:
    assert QEJob(WorkerConfig(pw_command="/nowhere/pw.x")).run(str(tmp_path)) is None
    assert (tmp_path / "pw.err").read_text() == "/nowhere/pw.x: No such file or directory\n"
    assert (tmp_path / "exit_status").read_text() == "127\n"


# Stopping


def test_terminate_stops_launcher_and_ranks(tmp_path: Path) -> None:
    job = QEJob(launcher(tmp_path, "time.sleep(600)"))
    process = job.run(str(tmp_path))
    assert process is not None
    wait_for(lambda: len(session_members(process.pid)) == 2)
    job.terminate()
    assert session_members(process.pid) == []
    assert process.returncode == -signal.SIGTERM


def test_terminate_kills_what_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SECONDS_TO_DIE", 0.1)
    job = QEJob(
        launcher(tmp_path, "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)")
    )
    process = job.run(str(tmp_path))
    assert process is not None
    wait_for(lambda: (tmp_path / "pw.out").stat().st_size > 0)
    job.terminate()
    assert process.returncode == -signal.SIGKILL
    assert session_members(process.pid) == []


def test_a_second_interrupt_while_it_stops_does_not_leave_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = QEJob(launcher(tmp_path, "time.sleep(600)"))
    process = job.run(str(tmp_path))
    assert process is not None
    wait_for(lambda: len(session_members(process.pid)) == 2)
    wait = process.wait

    def interrupted(timeout: float | None = None) -> int:
        if timeout is not None:
            raise KeyboardInterrupt
        return wait()

    monkeypatch.setattr(process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.terminate()
    assert session_members(process.pid) == []


@pytest.mark.parametrize(("then", "status"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_a_launcher_that_dies_leaves_no_rank_to_write_into_the_next_attempt(
    then: str, status: int, tmp_path: Path
) -> None:
    process = QEJob(launcher(tmp_path, then)).run(str(tmp_path))
    assert process is not None
    assert process.wait() == status
    assert not lives(int((tmp_path / "rank").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_between_the_fork_and_the_end_of_the_start_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(self: subprocess.Popen[bytes], *arguments: object) -> None:
        execute(self, *arguments)
        started.append(self.pid)
        os.kill(os.getpid(), number)

    execute = subprocess.Popen._execute_child  # type: ignore[attr-defined]  # private, and the only place to interrupt
    monkeypatch.setattr(subprocess.Popen, "_execute_child", start)
    job = QEJob(WorkerConfig(pw_command=["sleep", "600"]))
    with pytest.raises((KeyboardInterrupt, SystemExit)), stopped_by_signals():
        job.run(str(tmp_path))
    job.terminate(str(tmp_path))  # as QERunner does, whatever has ended the run
    assert not lives(started[0])


def test_members_of_a_session_are_its_living_processes_and_no_others(tmp_path: Path) -> None:
    process = PwProcess(["sh", "-c", "sleep 600 & (exit 0) & sleep 600"], tmp_path / "exit_status")
    other = PwProcess(["sleep", "600"], tmp_path / "other")
    try:
        wait_for(lambda: len(session_members(process.pid)) == 3)
        assert other.pid not in session_members(process.pid)
        assert os.getpid() not in session_members(process.pid)
    finally:
        process.stop()
        other.stop()
    assert session_members(process.pid) == []


def test_a_number_that_the_kernel_has_given_to_another_session_is_not_touched(tmp_path: Path) -> None:
    """As if our leader had ended, and its pid were that of a stranger's session by now."""
    stranger = PwProcess(["sleep", "600"], tmp_path / "exit_status")
    try:
        kill_orphans(stranger.pid)
        assert stranger.poll() is None
    finally:
        stranger.stop()


def test_a_process_that_somebody_has_stopped_dies_all_the_same(tmp_path: Path) -> None:
    process = PwProcess(["sleep", "600"], tmp_path / "exit_status")
    os.kill(process.pid, signal.SIGSTOP)
    process.stop()
    assert process.returncode == -signal.SIGTERM


# Watching


def iterations(number: int) -> str:
    """An SCF that stands still, as a line of a shell script."""
    return f"""
printf '     number of electrons       =         8.00\\n'
for n in $(seq {number}); do
    printf '     iteration #%3d\\n     total energy              =     -15.0 Ry\\n' $n
    printf '     estimated scf accuracy    <       0.001 Ry\\n'
done
"""


def script(folder: Path, text: str) -> WorkerConfig:
    program = folder / "pw.sh"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return WorkerConfig(pw_command=[str(program)])


def started(folder: Path, worker: WorkerConfig, **prescribed: object) -> PwProcess:
    start_history(folder, "si", {}, prescribed, None)
    process = QEJob(worker).run(str(folder))
    assert process is not None
    return process


def stopped(folder: Path) -> dict[str, str] | None:
    return read_history(folder)["attempts"][-1].get("stopped")


def test_an_scf_that_stands_still_is_asked_to_stop_once_it_is_on_record(tmp_path: Path) -> None:
    wait = "while ! [ -f pwscf.EXIT ]; do sleep 0.01; done; cp history.json then.json"
    process = started(tmp_path, script(tmp_path, iterations(60) + wait))
    assert process.wait() == 0
    assert stopped(tmp_path) == json.loads((tmp_path / "then.json").read_text())["attempts"][-1]["stopped"]
    assert stopped(tmp_path)["failure"] == "SCF_NOT_CONVERGED"
    assert not (tmp_path / "pwscf.EXIT").exists()  # although this pw.x did not remove it


def test_without_early_stop_it_may_take_its_time(tmp_path: Path) -> None:
    process = started(tmp_path, script(tmp_path, iterations(60) + "sleep 0.3"), early_stop=False)
    assert process.wait() == 0
    assert stopped(tmp_path) is None


def test_a_run_that_converges_after_all_is_let_alone(tmp_path: Path) -> None:
    """With an EXIT file pw.x would leave out forces and stress of an SCF that has converged."""
    wait = "while ! [ -f pwscf.EXIT ]; do sleep 0.01; done"
    gone = "printf 'convergence has been achieved\\n'; while [ -f pwscf.EXIT ]; do sleep 0.01; done"
    process = started(tmp_path, script(tmp_path, f"{iterations(60)}\n{wait}\n{gone}"))
    assert process.wait() == 0
    assert stopped(tmp_path) is None


def test_a_run_that_was_asked_to_stop_and_became_a_label_is_one(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    pw = fake_pw("converged").command(1, 1)[0]
    wait = "while ! [ -f pwscf.EXIT ]; do sleep 0.01; done"
    worker = script(tmp_path, f"{iterations(60)}\n{wait}\nexec {pw}")
    result = QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    assert [attempt["outcome"] for attempt in result.history] == ["CONVERGED"]
    # It went on only because it saw the EXIT file.
    assert not (tmp_path / "run" / "pwscf.EXIT").exists()


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ("     total energy              =             NaN Ry", "NAN"),
        ("     Estimated max dynamical RAM per process >       9.00 GB", "OUT_OF_MEMORY"),
    ],
)
def test_what_cannot_end_well_is_stopped_at_once(said: str, failure: str, tmp_path: Path) -> None:
    worker = script(tmp_path, f"printf '{said}\\n'; sleep 600 & sleep 600")
    process = started(tmp_path, worker.model_copy(update={"memory_mb": 1000.0}))
    assert process.wait() == -signal.SIGTERM
    assert stopped(tmp_path)["failure"] == failure
    assert session_members(process.pid) == []


@pytest.mark.parametrize(
    "said", ["Estimated max dynamical RAM per process >  9.9.00 GB", " number of electrons  =  8.8.00"]
)
def test_a_number_that_two_ranks_have_written_at_once_stops_nothing(said: str, tmp_path: Path) -> None:
    worker = script(tmp_path, f"printf ' {said}\n'; sleep 0.3").model_copy(update={"memory_mb": 1000.0})
    assert started(tmp_path, worker).wait() == 0
    assert stopped(tmp_path) is None


def test_a_program_that_only_sleeps_hangs(tmp_path: Path) -> None:
    worker = script(tmp_path, iterations(1) + "sleep 600").model_copy(update={"hang_seconds": 0.2})
    process = started(tmp_path, worker)
    assert process.wait() == -signal.SIGTERM
    assert stopped(tmp_path)["failure"] == "HANG"


def test_a_run_is_stopped_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody reads what rlaunch prints, or Ctrl-S has halted the terminal, telling it takes for ever."""
    ended: list[bool] = []
    process: PwProcess

    def told(failure: str, evidence: str, *, softly: bool) -> None:
        ended.append(process.poll() is not None)

    monkeypatch.setattr("dftfactory.supervision.run_stopped", told)
    process = started(tmp_path, script(tmp_path, "printf '     total energy              = NaN Ry\\n'; sleep 600"))
    assert process.wait() == -signal.SIGTERM
    assert ended == [True]


def test_a_run_is_stopped_although_the_disk_is_too_full_to_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run_dir: Path, history: object) -> None:
        raise OSError(28, "No space left on device")

    process = started(tmp_path, script(tmp_path, "printf '     total energy              = NaN Ry\\n'; sleep 600"))
    monkeypatch.setattr("dftfactory.supervision.write_history", full)
    assert process.wait() == -signal.SIGTERM


# Time


@pytest.fixture
def time_left(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    return lambda seconds: monkeypatch.setattr(jobs, "seconds_left", lambda: seconds)


@pytest.mark.parametrize(
    ("own", "left", "expected"),
    [
        (None, None, None),
        (600.0, None, 600.0),
        (None, 1000.0, 940.0),  # a minute
        (None, 86400.0, 82080.0),  # 5 %
        (600.0, 86400.0, 600.0),
        (900.0, 600.0, 540.0),
    ],
)
def test_each_attempt_gets_the_time_that_is_left_by_then(
    own: float | None,
    left: float | None,
    expected: float | None,
    time_left: Callable[[float | None], None],
    tmp_path: Path,
) -> None:
    (tmp_path / "pw.in").write_text("&control\n   max_seconds = 5.0\n   prefix = 'pwscf'\n/\n")
    time_left(left)
    started(tmp_path, WorkerConfig(pw_command="true", max_seconds=own)).wait()
    text = (tmp_path / "pw.in").read_text()
    assert ("max_seconds" in text) == (expected is not None)
    assert f"max_seconds = {expected}\n" in text or expected is None
    limited = expected is not None and expected != own
    limit = read_history(tmp_path)["attempts"][-1].get("time_limit")
    assert limit == ({"seconds": expected, "of": "queue"} if limited else None)


def test_without_time_pw_x_is_not_started_and_another_job_may_do_it(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    launches: Callable[[], list[str]],
    time_left: Callable[[float | None], None],
) -> None:
    runner = QERunner(fake_config, fake_pw("converged"))
    time_left(100.0)
    with pytest.raises(CalculationError, match=r"WALLTIME .*: the job ends in 100 s, too soon to start pw.x") as error:
        runner.run(si_atoms, tmp_path / "run", "si")
    assert error.value.details["failure"] == "WALLTIME"
    advice = f"another job can go on with QERunner.resume('{tmp_path / 'run'}')"
    assert all(text.endswith(advice) for text in (str(error.value), error.value.details["explanation"]))
    with pytest.raises(ConfigError, match=r"go on with it by QERunner\.resume, choose another folder or remove it"):
        runner.run(si_atoms, tmp_path / "run", "si")
    assert launches() == []
    assert (tmp_path / "run" / "pw.out").read_text() == ""
    assert diagnose(tmp_path / "run") is Failure.WALLTIME
    time_left(None)
    # What is not in pw.in under its own name counts, too.
    other = fake_config.model_copy(update={"kspacing": 0.4, "magnetism": "none"})
    with pytest.raises(ConfigError, match=r"it differs in kspacing, magnetism$"):
        QERunner(other, runner.worker).resume(tmp_path / "run")
    result = runner.resume(tmp_path / "run")
    assert (result.calculation_id, result.level) == ("si", 0)
    assert [attempt["outcome"] for attempt in result.history] == ["WALLTIME", "CONVERGED"]
    assert "restart_mode" not in launches()[0]  # there was nothing to restart from
    with pytest.raises(ConfigError, match="nothing to go on with"):
        runner.resume(tmp_path / "run")


def test_a_state_that_does_not_fit_on_the_disk_stays_on_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, scratch = tmp_path / "run", make_scratch(tmp_path / "scratch", tmp_path / "run")
    fill(scratch)
    run_dir.mkdir()
    (run_dir / "out").symlink_to(scratch)

    def full(source: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs.shutil, "copytree", full)
    keep_state(run_dir)
    assert (run_dir / "out" / "pwscf.save" / "charge-density.dat").is_file()
    assert [path.name for path in run_dir.iterdir()] == ["out"]
    assert not (scratch / "owner.json").exists()  # so that nobody deletes it


# Cleaning up


def fill(out: Path) -> None:
    (out / "pwscf.save").mkdir(parents=True)
    for name in ("pwscf.xml", "pwscf.wfc1", "pwscf.mix1", "pwscf.save/charge-density.dat"):
        (out / name).write_text(name)


def test_only_the_xml_stays_in_out(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "pwscf.wfc2").write_text("of a rank that died")
    clean_up(tmp_path)
    clean_up(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/pwscf.xml"]
    assert (tmp_path / "out" / "pwscf.xml").read_text() == "pwscf.xml"


def test_scratch_is_removed_and_the_xml_becomes_a_real_file(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch" / "dftfactory-x"
    fill(scratch)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "out").symlink_to(scratch)
    clean_up(run_dir)
    assert not scratch.exists()
    assert not (run_dir / "out").is_symlink()
    assert [path.name for path in (run_dir / "out").iterdir()] == ["pwscf.xml"]
    assert [path.name for path in run_dir.iterdir()] == ["out"]


def test_a_users_own_link_is_not_followed_to_delete_what_is_theirs(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    fill(theirs)
    (theirs / "thesis.tex").write_text("ten years of work")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "out").symlink_to(theirs)
    clean_up(run_dir)
    assert [path.name for path in theirs.iterdir()] == ["thesis.tex"]


def test_an_xml_that_cannot_be_saved_stays_on_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "dftfactory-x"
    fill(scratch)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "out").symlink_to(scratch)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs.shutil, "copy2", full)
    clean_up(run_dir)
    assert (run_dir / "out" / "pwscf.xml").read_text() == "pwscf.xml"


def test_two_runs_with_one_scratch_disk_do_not_meet(tmp_path: Path) -> None:
    worker = WorkerConfig(pw_command="true", scratch_dir=str(tmp_path / "scratch"))
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        process = QEJob(worker).run(str(folder))
        assert process is not None
        process.wait()
    targets = {(folder / "out").resolve() for folder in folders}
    assert len(targets) == 2
    clean_up(folders[0])
    assert {path.resolve() for path in (tmp_path / "scratch").iterdir()} == {(folders[1] / "out").resolve()}


def test_scratch_that_was_swept_meanwhile_is_made_anew(tmp_path: Path) -> None:
    job = QEJob(WorkerConfig(pw_command="true", scratch_dir=str(tmp_path / "scratch")))
    for _ in range(2):
        process = job.run(str(tmp_path))
        assert process is not None
        process.wait()
        shutil.rmtree(tmp_path / "scratch")
    assert (tmp_path / "exit_status").read_text() == "0\n"


# The real program

# `mpirun -np 2` of a cell that takes many seconds; the run is in a process of its own, to be signalled.
LONG_RUN = """
import signal
from ase.io import read
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.runner import QERunner
# Under nohup, or in the background of a script, they come ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
QERunner(DFTConfig.from_yaml("dft.yaml"), WorkerConfig.from_yaml("worker.yaml")).run(read("atoms.xyz"), "run", "long")
"""


@contextlib.contextmanager
def long_run(folder: Path, config: DFTConfig, atoms: Atoms) -> Iterator[subprocess.Popen[bytes]]:
    """A QERunner at work in another process, with an SCF iteration in its pw.out."""
    write(folder / "atoms.xyz", atoms)
    (folder / "dft.yaml").write_text(json.dumps(config.to_dict()))
    worker = {
        "mpi_command": "mpirun --oversubscribe -np {cores}",
        "parallel_cores": 2,
        "scratch_dir": str(folder / "s"),
    }
    (folder / "worker.yaml").write_text(json.dumps(worker))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    runner = subprocess.Popen([sys.executable, "-c", LONG_RUN], cwd=folder, env=environment, stderr=subprocess.PIPE)
    output = folder / "run" / "pw.out"
    try:
        wait_for(lambda: runner.poll() is not None or (output.is_file() and "iteration #  1" in output.read_text()))
        yield runner
    finally:
        runner.kill()
        runner.communicate()


def ranks_of(folder: Path) -> list[int]:
    """Processes that work in the run folder: mpirun and the ranks of its pw.x."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").resolve() == (folder / "run").resolve() and lives(int(process.name)):
                found.append(int(process.name))
    return found


@pytest.mark.pw
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_running_pw_x_is_stopped_with_its_ranks_when_python_is(
    number: signal.Signals, config: DFTConfig, tmp_path: Path
) -> None:
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=1)
    with long_run(tmp_path, config.model_copy(update={"kspacing": 0.2}), atoms) as runner:
        assert len(ranks_of(tmp_path)) == 3
        runner.send_signal(number)
        runner.wait()
        assert ranks_of(tmp_path) == []
    assert runner.returncode == (128 + number if number != signal.SIGINT else -signal.SIGINT)
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == ["custodian.json", "exit_status", "history.json", "out", "pw.err", "pw.in", "pw.out"]
    assert list((tmp_path / "run" / "out").iterdir()) == []
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.pw
def test_after_the_launcher_was_killed_the_run_is_repeated_without_its_old_ranks(
    config: DFTConfig, tmp_path: Path
) -> None:
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=1)
    settings = {"mpi_command": "mpirun --oversubscribe -np {cores}", "parallel_cores": 2}
    old: list[int] = []

    def kill_mpirun() -> None:
        output = tmp_path / "run" / "pw.out"
        wait_for(lambda: output.is_file() and "iteration #  1" in output.read_text())
        old.extend(ranks_of(tmp_path))
        os.kill(min(old), signal.SIGKILL)  # mpirun was there first

    killer = threading.Thread(target=kill_mpirun)
    killer.start()
    result = QERunner(config, WorkerConfig(**settings)).run(atoms, tmp_path / "run")
    killer.join()
    assert [attempt["outcome"] for attempt in result.history] == ["KILLED", "CONVERGED"]
    assert len(old) == 3
    assert not any(lives(pid) for pid in old)
