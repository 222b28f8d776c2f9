"""What is done while pw.x runs: about what the watch sees, and when a signal asks for a soft stop."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

from dftfactory.config import WorkerConfig
from dftfactory.errors import ParserError
from dftfactory.events import run_stopped, signal_came
from dftfactory.failures import Failure
from dftfactory.handlers import attempt_facts
from dftfactory.history import close_attempt, read_history, write_history
from dftfactory.interrupts import SoftStop, asked_to_stop
from dftfactory.limits import memory_limit, seconds_left
from dftfactory.queues import own_job
from dftfactory.sessions import EXIT, PwProcess, seconds_used
from dftfactory.watch import Output, Silence, Verdict, Watch

# Seconds from SIGTERM to the hard stop. Slurm kills after KillWait, 30 s where nobody has changed it, PBS after
# kill_delay and LSF after JOB_TERMINATE_INTERVAL, 10 s each; what is left is for giving the Firework back.
SOFT_SECONDS, SOFT_SECONDS_OF = 20.0, {"pbs": 6.0, "lsf": 6.0}
# What is kept of the job's time after SIGUSR1, to stop pw.x hard and to give the Firework back.
LAST_SECONDS = 15.0
# Seconds in which a signal is noticed.
NOTICE_SECONDS = 0.2
# Exit statuses of a pw.x, or of its shell or mpirun, that a signal to the whole job has ended.
_ENDED_BY_SIGNAL = {
    sign for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1) for sign in (-number, 128 + number)
}
# What pw.x says behind the last file that it writes.
_ALL_WRITTEN, _STOPPED = b"JOB DONE.", b"Program stopped by user request"


class Supervision:
    """Looks at one attempt and acts on what it sees: the failure is on record before anything is done about it."""

    def __init__(self, folder: Path, worker: WorkerConfig) -> None:
        self.folder = folder
        self.programs = worker.model_copy(update={"mpi_command": None}).command(1, 1)
        early_stop = read_history(folder)["prescribed"].get("early_stop", True)
        output = Output(memory_limit(worker.memory_mb), early_stop=early_stop)
        self.watch = Watch(folder / "pw.out", output, Silence(worker.hang_seconds))
        self.asked_to_stop = False
        self.signal: SoftStop | None = None
        self.was_killed = False
        self._state_before = _state(folder)
        self._next_look = 0.0

    def __call__(self, process: PwProcess) -> float:
        """Look once; return the seconds until the next time."""
        now, stop = time.monotonic(), asked_to_stop()
        is_due = now >= self._next_look
        if stop is not None:
            # Asking for the end of the job may take the queue some time.
            self._stop_softly(stop, process, is_over=(is_due or stop.is_urgent) and _is_over(stop))
        if is_due:
            self._look(process)
            self._next_look = now + self.watch.interval
        return min(self._next_look - now, NOTICE_SECONDS)

    def ended(self, status: int) -> None:
        """Close an attempt that a signal has broken off, so that no handler prepares another one."""
        if asked_to_stop() is None and (status in _ENDED_BY_SIGNAL or self._launcher_was_told()):
            time.sleep(NOTICE_SECONDS)  # a queue signals all processes of a job, one after the other
        stop = self.signal or asked_to_stop()
        if stop is None:
            return
        # What cannot be recorded is judged by what it looks like: killed.
        with contextlib.suppress(OSError, ParserError):
            self._close(stop)

    def _launcher_was_told(self) -> bool:
        """Whether mpirun has got a signal; where pw.x has not begun, its exit status is 1."""
        with contextlib.suppress(OSError):
            return b"Forwarding signal" in (self.folder / "pw.err").read_bytes()
        return False

    def _look(self, process: PwProcess) -> None:
        verdict = self.watch.look(lambda: seconds_used(process.pid, self.programs))
        if verdict is not None and not (verdict.softly and self.signal):
            self._act(verdict, process)
        elif self.asked_to_stop and self.watch.output.converged and not (self.signal and self.signal.is_urgent):
            self._take_back()

    def _act(self, verdict: Verdict, process: PwProcess) -> None:
        # A full disk takes the record. The run is stopped all the same, unless that needs a file, too.
        with contextlib.suppress(OSError, ParserError):
            note(self.folder, stopped={"failure": verdict.failure.value, "evidence": verdict.evidence})
            if verdict.softly:
                self._ask_to_stop()
        if not verdict.softly:
            self.was_killed = True
            process.stop()
        # Afterwards: a terminal that somebody has halted, or a pipe that nobody reads, keeps us waiting.
        run_stopped(verdict.failure.value, verdict.evidence, softly=verdict.softly)

    def _stop_softly(self, stop: SoftStop, process: PwProcess, *, is_over: bool) -> None:
        if self.signal is None:
            self.signal = stop
            if not self.watch.output.converged or stop.is_urgent:
                with contextlib.suppress(OSError):
                    self._ask_to_stop()
            signal_came(stop.name)
        elif is_over:
            process.stop()

    def _ask_to_stop(self) -> None:
        self.asked_to_stop = True
        # pw.x looks for it here and in outdir, which may be on another disk.
        (self.folder / EXIT).touch()

    def _take_back(self) -> None:
        """Let a run finish that has converged in the very iteration after which it was to stop."""
        self.asked_to_stop = False
        with contextlib.suppress(OSError, ParserError):
            (self.folder / EXIT).unlink(missing_ok=True)
            history = read_history(self.folder)
            history["attempts"][-1].pop("stopped", None)
            write_history(self.folder, history)

    def _close(self, stop: SoftStop) -> None:
        end = (self.folder / "pw.out").read_bytes()[-100_000:]
        saved, own_reason = _ALL_WRITTEN in end, "stopped" in read_history(self.folder)["attempts"][-1]
        # It was faster, and may be a label; or there was another reason to stop it.
        if self.was_killed or (saved and (_STOPPED not in end or own_reason)):
            return
        whole = saved or _state(self.folder) == self._state_before
        if saved:
            said, then = "pw.x saved its state and stopped", "the next launch goes on from there"
        else:
            said = f"pw.x ended before it had saved its state, {time.monotonic() - stop.came:.0f} s later"
            then = "the next launch begins this attempt again" if whole else "the next launch begins anew"
        close_attempt(
            self.folder,
            (Failure.WALLTIME if whole else Failure.KILLED).value,
            evidence=f"{stop.name} came; {said}",
            explanation=then,
            **attempt_facts(self.folder),
            signal=stop.name,
            saved=saved,
        )


def note(run_dir: Path, **facts: Any) -> None:
    """Record facts of the present attempt."""
    history = read_history(run_dir)
    history["attempts"][-1] |= facts
    write_history(run_dir, history)


def _is_over(stop: SoftStop) -> bool:
    """Whether pw.x has had its time to save."""
    if stop.is_urgent:
        seconds = SOFT_SECONDS_OF.get((own_job() or {}).get("queue", ""), SOFT_SECONDS)
        return time.monotonic() - stop.came > seconds
    left = seconds_left()
    return left is not None and left < LAST_SECONDS


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Tell a saved state from a later one: pw.x that is killed while it writes leaves half of it."""
    found = {}
    for path in (folder / "out/pwscf.save").glob("charge-density.*"):
        with contextlib.suppress(OSError):
            entry = path.stat()
            found[path.name] = (entry.st_mtime_ns, entry.st_size)
    return found
