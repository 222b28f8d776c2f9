"""QEJob: start pw.x, record how it ended, stop it with all its ranks, clean up behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from custodian.custodian import Job, Validator

from dftfactory.config import WorkerConfig
from dftfactory.errors import ParserError
from dftfactory.history import current_parameters, has_history, remove_traces
from dftfactory.parsers import read_pw_output

# mpirun passes SIGTERM on to its ranks and waits for them; pw.x itself dies of it at once.
SECONDS_TO_DIE = 5.0
PROC = Path("/proc")
SCRATCH_PREFIX = "dftfactory-"


class PwProcess(subprocess.Popen[bytes]):
    """pw.x under its launcher, in a session of its own.

    As soon as the end of the launcher is seen, and before custodian's handlers look, the ranks that it may have left
    behind are killed (they would write into the next attempt) and `exit_status` is written.
    """

    def __init__(self, command: list[str], status_file: Path, **options: Any) -> None:
        self.status_file = status_file
        self.recorded = False
        try:
            super().__init__(command, **options, start_new_session=True)
        except (KeyboardInterrupt, SystemExit):
            # A signal between the fork and the end of this call: nobody else will ever know the process.
            if getattr(self, "pid", None):
                signal_session(self.pid, signal.SIGKILL)
                super().wait()
            raise

    def poll(self) -> int | None:
        """Return the exit status when the process has ended."""
        return self._record(super().poll())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status."""
        status = super().wait(timeout)
        self._record(status)
        return status

    def stop(self) -> None:
        """Stop the launcher and every rank: softly first, then for good."""
        if self.poll() is not None:
            return
        try:
            signal_session(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(SECONDS_TO_DIE)
        finally:  # also when a second Ctrl-C comes meanwhile
            if self.poll() is None:
                signal_session(self.pid, signal.SIGKILL)
                self.wait()

    def _record(self, status: int | None) -> int | None:
        if status is not None and not self.recorded:
            # Once: the file that is asked for later belongs to another attempt.
            self.recorded = True
            kill_orphans(self.pid)
            self.status_file.write_text(f"{status}\n", encoding="utf-8")
        return status


class QEJob(Job):  # type: ignore[misc]  # custodian is untyped
    """One run of pw.x in a folder that holds pw.in; custodian repeats it after each correction.

    Parameters
    ----------
    worker
        How this machine runs pw.x; what is installed where absent. The ranks and pools of a folder with a
        history.json come from there, since recovery may have lowered them.
    """

    def __init__(self, worker: WorkerConfig | None = None) -> None:
        self.worker = worker if worker is not None else WorkerConfig.find()
        self.process: PwProcess | None = None

    def setup(self, directory: str = "./") -> None:
        """Nothing to do: each attempt prepares itself in `run`."""

    def command(self, directory: str | Path = "./") -> list[str]:
        """Argument list of the present attempt."""
        layout = current_parameters(Path(directory)) if has_history(Path(directory)) else {}
        cores = layout.get("parallel_cores", self.worker.parallel_cores)
        return self.worker.command(cores, layout.get("npool", self.worker.npool))

    def run(self, directory: str = "./") -> PwProcess | None:
        """Start pw.x; None when it cannot be started, with the reason in pw.err and exit status 127."""
        folder = Path(directory).resolve()
        command = self.command(folder)
        remove_traces(folder)
        self.process = None
        with (folder / "pw.out").open("wb") as out, (folder / "pw.err").open("wb") as err:
            try:
                self._prepare_outdir(folder)
                self.process = PwProcess(
                    command,
                    folder / "exit_status",
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self.worker.process_environment(),
                )
            except OSError as error:
                # As a shell would say it, so that `diagnose` has one signature for it.
                err.write(f"{error.filename or command[0]}: {error.strerror or error}\n".encode())
                (folder / "exit_status").write_text("127\n", encoding="utf-8")
        return self.process

    def postprocess(self, directory: str = "./") -> None:
        """Delete scratch and wavefunctions after a success."""
        clean_up(Path(directory))

    def terminate(self, directory: str = "./") -> None:
        """Stop pw.x and all its ranks, wherever its launcher has put them on this machine."""
        if self.process is not None:
            self.process.stop()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for custodian.json."""
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "worker": self.worker.to_dict(),
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> QEJob:
        """Build the job from `as_dict`."""
        return cls(WorkerConfig(**d["worker"]))

    def _prepare_outdir(self, folder: Path) -> None:
        """Make out/, on the scratch disk where there is one, and empty it unless the attempt goes on from its state."""
        out = folder / "out"
        parameters = current_parameters(folder) if has_history(folder) else {}
        if parameters.get("startingpot") != "file" and parameters.get("restart_mode") != "restart":
            discard_outdir(folder)
        if out.is_symlink() and not out.exists():
            out.unlink()  # its scratch folder is gone
        if self.worker.scratch_dir and not out.exists():
            scratch = Path(self.worker.scratch_dir).expanduser().resolve()
            scratch.mkdir(parents=True, exist_ok=True)
            out.symlink_to(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=scratch), target_is_directory=True)
        out.mkdir(exist_ok=True)


class LabelValidator(Validator):  # type: ignore[misc]  # custodian is untyped
    """Lets custodian end well only with a label: pw.x says JOB DONE and exits with 0 in ways that are none."""

    def check(self, directory: str = "./") -> bool:
        """Whether something is wrong with the run, although no handler claimed it."""
        try:
            read_pw_output(directory)
        except ParserError:
            return True
        return False


def clean_up(run_dir: Path) -> None:
    """Delete scratch, densities and wavefunctions of a run that is over; its XML stays in out/.

    What the disk refuses to delete or to keep stays where it is: the result of the run is what it is.
    """
    out = run_dir / "out"
    with contextlib.suppress(OSError):
        if out.is_symlink():
            kept = run_dir / ".out"
            kept.mkdir(exist_ok=True)
            if (out / "pwscf.xml").is_file():
                shutil.copy2(out / "pwscf.xml", kept)
            discard_outdir(run_dir)
            kept.rename(out)
        else:
            discard_outdir(run_dir, keep="pwscf.xml")
    # A rank that died may leave its scratch files in the working directory.
    for stray in run_dir.glob("pwscf.wfc*"):
        _delete(stray)


def discard_outdir(run_dir: Path, keep: str | None = None) -> None:
    """Remove out/ with what pw.x has written there, and its scratch folder; files of other names stay."""
    out = run_dir / "out"
    folder = out.resolve()
    for entry in folder.glob("pwscf.*"):
        if entry.name != keep:
            _delete(entry)
    if out.is_symlink():
        out.unlink()
        if folder.name.startswith(SCRATCH_PREFIX):
            _delete(folder)
    else:
        with contextlib.suppress(OSError):
            out.rmdir()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def kill_orphans(session: int) -> None:
    """Kill what is left of a session whose leader has ended and was waited for, and see it gone."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    # While one process is left in a session, the kernel gives its number to nobody else: a process of this very
    # number belongs to a stranger. What hangs in a dead file system cannot even be killed, so the wait has an end.
    while not (PROC / str(session)).exists() and signal_session(session, signal.SIGKILL):
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def signal_session(session: int, number: signal.Signals) -> int:
    """Signal every living process of a session, and return how many there were.

    Open MPI gives each rank a process group of its own, but leaves it in the session of mpirun.
    """
    if not (PROC / "self").exists():  # not Linux: the group of the launcher is what can be reached
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, number)
        return 0
    members = session_members(session)
    for pid in members:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
    return len(members)


def session_members(session: int) -> list[int]:
    """Return the living processes of a session, which has the pid of its leader as its number."""
    members = []
    for stat in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has just ended
            # pid (name, which may hold blanks and brackets) state ppid pgrp session
            state, _, _, of, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(of) == session and state not in ("Z", "X"):
                members.append(int(stat.parent.name))
    return members
