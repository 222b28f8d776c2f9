"""QEJob: start pw.x, watch it, record how it ended, stop it with all its ranks, clean up behind it."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from custodian.custodian import Job, NonRecoverableError, Validator

from dftfactory.config import WorkerConfig
from dftfactory.errors import ParserError
from dftfactory.events import attempt_begun
from dftfactory.failures import EXPLANATIONS, Failure
from dftfactory.history import (
    close_attempt,
    current_parameters,
    has_history,
    read_history,
    remove_traces,
)
from dftfactory.inputs import NAMELIST_OF, change_pw_input
from dftfactory.interrupts import asked_to_stop, postponed_signals
from dftfactory.limits import seconds_left
from dftfactory.parsers import read_pw_output
from dftfactory.scratch import is_scratch, make_scratch, release, take
from dftfactory.sessions import RUN_DIR
from dftfactory.sessions import PwProcess as PwProcess
from dftfactory.supervision import Supervision, note

# What pw.x leaves to itself at the end of the job's time, at the least `margin_seconds` of the worker: a long run is of
# a large cell.
MARGIN_SHARE = 0.05
# Exit status of an attempt whose time was over before it began; `timeout` has the same.
NO_TIME = 124


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
        npool = layout.get("npool", self.worker.npool)
        return self.worker.command(cores, 1 if npool == "auto" else npool, layout.get("ndiag"))

    def run(self, directory: str = "./") -> PwProcess | None:
        """Start pw.x; None when it cannot be started, with the reason in pw.err and exit status 127.

        Raises
        ------
        NonRecoverableError
            The job ends too soon; the attempt is recorded as one that ended with WALLTIME.
        """
        folder = Path(directory).resolve()
        command = self.command(folder)
        remove_traces(folder)
        self.process = None
        self._limit_time(folder)
        if has_history(folder):
            attempt_begun(read_history(folder), (*NAMELIST_OF, "parallel_cores", "npool", "ndiag"))
        with (folder / "pw.out").open("wb") as out, (folder / "pw.err").open("wb") as err:
            try:
                self._prepare_outdir(folder)
                supervision = Supervision(folder, self.worker) if has_history(folder) else None
                with postponed_signals():
                    self.process = PwProcess(
                        command,
                        folder / "exit_status",
                        supervision,
                        None if supervision is None else supervision.ended,
                        cwd=folder,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        env={**self.worker.process_environment(), RUN_DIR: str(folder)},
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
        if not _goes_on(parameters):
            discard_outdir(folder)
        if out.is_symlink() and not out.exists():
            out.unlink()  # its scratch folder is gone
        if self.worker.scratch_dir and not out.exists():
            scratch = Path(self.worker.scratch_dir).expanduser().resolve()
            out.symlink_to(make_scratch(scratch, folder), target_is_directory=True)
        elif out.is_symlink() and is_scratch(out.resolve()):
            take(out.resolve(), folder)  # it may be that of an earlier process
        out.mkdir(exist_ok=True)

    def _limit_time(self, folder: Path) -> None:
        """Write max_seconds: the user's own limit, or what the job has left where that is less."""
        if (stop := asked_to_stop()) is not None:
            _refuse_to_start(folder, f"{stop.name} came, and nothing more is started", signal=stop.name)
        left = seconds_left()
        usable = None if left is None else left - max(self.worker.margin_seconds, MARGIN_SHARE * left)
        if not has_time(left, self.worker):
            _refuse_to_start(folder, f"the job ends in {left:.0f} s, too soon to start pw.x")
        own = self.worker.max_seconds
        limit = min((float(seconds) for seconds in (own, usable) if seconds is not None), default=None)
        if usable is not None and limit == usable:
            limit = float(int(usable))
            if has_history(folder):
                note(folder, time_limit={"seconds": limit, "of": "queue"})
        path = folder / "pw.in"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        present = re.search(r"^ *max_seconds *= *([^\s,!]+)", text, re.M)
        if text and (present[1] if present else "None") != str(limit):
            change_pw_input(path, {"max_seconds": limit})


def has_time(seconds: float | None, worker: WorkerConfig) -> bool:
    """Whether pw.x can do something in so many seconds of a job; None stands for no limit."""
    # A run that is shorter than its end would hardly come to its first iteration.
    return seconds is None or seconds >= 2 * worker.margin_seconds


def _refuse_to_start(folder: Path, evidence: str, **facts: str) -> None:
    """Leave what an attempt leaves that had no time, and stop custodian: no handler can help, another job can."""
    (folder / "pw.out").touch()
    (folder / "exit_status").write_text(f"{NO_TIME}\n", encoding="utf-8")
    if has_history(folder):
        failure = Failure.WALLTIME
        note(folder, stopped={"failure": failure.value, "evidence": evidence})
        explanation = EXPLANATIONS[failure]
        close_attempt(folder, failure.value, evidence=evidence, explanation=explanation, exit_status=NO_TIME, **facts)
    raise NonRecoverableError(evidence, raises=True, handler=None)


class LabelValidator(Validator):  # type: ignore[misc]  # custodian is untyped
    """Lets custodian end well only with a label: pw.x says JOB DONE and exits with 0 in ways that are none."""

    def check(self, directory: str = "./") -> bool:
        """Whether something is wrong with the run, although no handler claimed it."""
        try:
            read_pw_output(directory)
        except ParserError:
            return True
        return False


def may_resume(run_dir: Path) -> bool:
    """Whether a calculation ended because its time was over, and has what it needs to go on."""
    try:
        attempt = read_history(run_dir)["attempts"][-1]
    except ParserError:
        return False
    # The folder of several starts has none: each start has a folder of its own.
    if attempt.get("outcome") != Failure.WALLTIME.value or not (run_dir / "pw.in").is_file():
        return False
    return not _goes_on(next_parameters(attempt)) or any((run_dir / "out/pwscf.save").glob("charge-density.*"))


def next_parameters(attempt: dict[str, Any]) -> dict[str, Any]:
    """Parameters with which a calculation goes on whose last attempt had no time (left)."""
    parameters: dict[str, Any] = attempt["parameters"]
    left_nothing = attempt.get("exit_status") == NO_TIME or attempt.get("saved") is False
    return parameters if left_nothing else {**parameters, "restart_mode": "restart"}


def _goes_on(parameters: dict[str, Any]) -> bool:
    """Whether an attempt uses what an earlier one has left in out/."""
    return parameters.get("startingpot") == "file" or parameters.get("restart_mode") == "restart"


def keep_state(run_dir: Path) -> None:
    """Bring the state of a run that is to be resumed from the scratch disk, which may be out of reach by then."""
    out = run_dir / "out"
    scratch = out.resolve()
    if not out.is_symlink() or not is_scratch(scratch):
        return
    kept = run_dir / ".out"
    try:
        release(scratch)
        shutil.copytree(scratch, kept)
        out.unlink()
        kept.rename(out)
    except OSError:
        # No room: it stays on scratch, where nobody deletes it.
        _delete(kept)
    else:
        _delete(scratch)


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
        if is_scratch(folder):
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
