"""QEJob: start pw.x, record how it ended, stop it with all its ranks, clean up behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from custodian.custodian import Job, Validator

from dftfactory.config import WorkerConfig
from dftfactory.errors import ParserError
from dftfactory.history import current_parameters, has_history, remove_traces
from dftfactory.parsers import read_pw_output

# mpirun passes SIGTERM on to its ranks and waits for them; pw.x itself dies of it at once.
SECONDS_TO_DIE = 5.0


class PwProcess(subprocess.Popen[bytes]):
    """pw.x under its launcher; writes `exit_status` as soon as the end is seen, before custodian's handlers look."""

    def __init__(self, command: list[str], status_file: Path, **options: Any) -> None:
        self.status_file = status_file
        super().__init__(command, **options)

    def poll(self) -> int | None:
        """Return the exit status when the process has ended."""
        return self._record(super().poll())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status."""
        status = super().wait(timeout)
        self._record(status)
        return status

    def _record(self, status: int | None) -> int | None:
        if status is not None and not self.status_file.exists():
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
        """Start pw.x in a session of its own; None when it cannot be started, with the reason in pw.err."""
        folder = Path(directory).resolve()
        command = self.command(folder)
        remove_traces(folder)
        self._prepare_outdir(folder)
        with (folder / "pw.out").open("wb") as out, (folder / "pw.err").open("wb") as err:
            try:
                self.process = PwProcess(
                    command,
                    folder / "exit_status",
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self.worker.process_environment(),
                    start_new_session=True,
                )
            except OSError as error:
                # As a shell would say it, so that `diagnose` has one signature for it.
                err.write(f"{command[0]}: {error.strerror or error}\n".encode())
                (folder / "exit_status").write_text("127\n", encoding="utf-8")
                self.process = None
        return self.process

    def postprocess(self, directory: str = "./") -> None:
        """Delete scratch and wavefunctions after a success."""
        clean_up(Path(directory))

    def terminate(self, directory: str = "./") -> None:
        """Stop pw.x and all its ranks, wherever its launcher has put them."""
        if self.process is None or self.process.poll() is not None:
            return
        session = self.process.pid
        _signal_session(session, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SECONDS_TO_DIE)
        _signal_session(session, signal.SIGKILL)
        self.process.wait()

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
        keep = parameters.get("startingpot") == "file" or parameters.get("restart_mode") == "restart"
        if out.exists() and not keep:
            _empty(out)
        if out.is_symlink() and not out.exists():
            out.unlink()  # its scratch folder is gone
        if self.worker.scratch_dir and not out.exists():
            scratch = Path(self.worker.scratch_dir).expanduser()
            scratch.mkdir(parents=True, exist_ok=True)
            out.symlink_to(tempfile.mkdtemp(prefix="dftfactory-", dir=scratch), target_is_directory=True)
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
    """Delete scratch, densities and wavefunctions of a run that is over; its XML stays in out/."""
    out = run_dir / "out"
    xml = out / "pwscf.xml"
    content = xml.read_bytes() if xml.is_file() else None
    if out.is_symlink():
        scratch = out.resolve()
        out.unlink()
        shutil.rmtree(scratch, ignore_errors=True)
        out.mkdir()
    elif out.is_dir():
        _empty(out)
    if content is not None:
        xml.write_bytes(content)
    # A rank that died may leave its scratch files in the working directory.
    for stray in run_dir.glob("pwscf.wfc*"):
        stray.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _signal_session(session: int, number: signal.Signals) -> None:
    """Signal every process of a session: Open MPI gives each rank a process group of its own."""
    for pid in _session_members(session):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _session_members(session: int) -> list[int]:
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            # pid (name, which may hold blanks) state ppid pgrp session
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                members.append(int(stat.parent.name))
    return members or [session]
