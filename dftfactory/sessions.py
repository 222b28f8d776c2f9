"""The processes of one calculation: the launcher and its ranks, which share a session of their own (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

# mpirun passes SIGTERM on to its ranks and waits for them; pw.x itself dies of it at once.
SECONDS_TO_DIE = 5.0
PROC = Path("/proc")
# Characters of a name that the kernel keeps.
_NAME_LENGTH = 15
# In the environment of pw.x and its launcher: the run folder, by which they are found when their Python has died.
RUN_DIR = "DFTFACTORY_RUN_DIR"
# A file of this name in its working directory asks pw.x to save and stop.
EXIT = "pwscf.EXIT"


class PwProcess(subprocess.Popen[bytes]):
    """pw.x under its launcher, in a session of its own.

    As soon as the end of the launcher is seen, and before custodian's handlers look, the ranks that it may have left
    behind are killed (they would write into the next attempt) and `exit_status` is written.

    Parameters
    ----------
    command, options
        As for `subprocess.Popen`.
    status_file
        `exit_status` of the run folder.
    look
        Called again and again while somebody waits for the end; returns the seconds until the next time.
    ended
        Called once with the exit status, after `exit_status` was written.
    """

    def __init__(
        self,
        command: list[str],
        status_file: Path,
        look: Callable[[PwProcess], float] | None = None,
        ended: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        self.status_file = status_file
        self.look = look
        self.ended = ended
        self.recorded = False
        super().__init__(command, **options, start_new_session=True)

    def poll(self) -> int | None:
        """Return the exit status when the process has ended."""
        return self._record(super().poll())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, looking at the run meanwhile, and return the exit status."""
        status = self._watch() if timeout is None and self.look is not None else super().wait(timeout)
        self._record(status)
        return status

    def stop(self) -> None:
        """Stop the launcher and every rank: softly first, then for good."""
        if self.poll() is not None:
            return
        self.look = None
        try:
            signal_session(self.pid, signal.SIGTERM)
            # A process that somebody has stopped takes no signal before it goes on.
            signal_session(self.pid, signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(SECONDS_TO_DIE)
        finally:  # also when a second Ctrl-C comes meanwhile
            if self.poll() is None:
                signal_session(self.pid, signal.SIGKILL)
                self.wait()

    def _watch(self) -> int:
        interval = 0.0
        while self.look is not None:
            try:
                return super().wait(interval)
            except subprocess.TimeoutExpired:
                interval = self.look(self)
        return super().wait()

    def _record(self, status: int | None) -> int | None:
        if status is not None and not self.recorded:
            # Once: the file that is asked for later belongs to another attempt.
            self.recorded = True
            kill_orphans(self.pid)
            self.status_file.write_text(f"{status}\n", encoding="utf-8")
            # What came too late for this run is not meant for the next one.
            with contextlib.suppress(OSError):
                self.status_file.with_name(EXIT).unlink(missing_ok=True)
            if self.ended is not None:
                self.ended(status)
        return status


def session_members(session: int) -> list[int]:
    """Return the living processes of a session, which has the pid of its leader as its number."""
    return [pid for pid, _, _ in _members(session)]


def seconds_used(session: int, programs: Collection[str]) -> float | None:
    """CPU seconds that the living processes of a session have used; None when none of `programs` is among them.

    Under `srun` the ranks are children of Slurm's daemon, and what is left in the session says nothing about them.
    """
    members = list(_members(session))
    names = {Path(program).name[:_NAME_LENGTH] for program in programs}
    if names.isdisjoint(name for _, name, _ in members):
        return None
    return sum(ticks for _, _, ticks in members) / os.sysconf("SC_CLK_TCK")


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


def kill_orphans(session: int) -> None:
    """Kill what is left of a session whose leader has ended and was waited for, and see it gone."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    # While one process is left in a session, the kernel gives its number to nobody else: a process of this very
    # number belongs to a stranger. What hangs in a dead file system cannot even be killed, so the wait has an end.
    while not (PROC / str(session)).exists() and signal_session(session, signal.SIGKILL):
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def pw_sessions(folder: Path) -> dict[int, Path]:
    """Session → run folder of each living pw.x of this machine and user that was started in `folder` or below it."""
    found: dict[int, Path] = {}
    folder = folder.resolve()  # pw.x has the path without links
    for environment in PROC.glob("[0-9]*/environ"):
        # It has just ended, or belongs to somebody else.
        with contextlib.suppress(OSError, IndexError, ValueError):
            for entry in environment.read_bytes().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == RUN_DIR.encode() and (run_dir := Path(os.fsdecode(value))).is_relative_to(folder):
                    found[_session_of(environment.parent)] = run_dir
    return found


def start_of(pid: int) -> int | None:
    """When a living process began, in ticks of the kernel: with the pid it names one process; None when it is dead."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def folder_of(pid: int) -> Path | None:
    """Working directory of a process; None when we may not look, or it has ended."""
    try:
        # The kernel marks a folder that is gone.
        return Path(str((PROC / str(pid) / "cwd").readlink()).removesuffix(" (deleted)"))
    except OSError:
        return None


def python_in(folder: Path) -> list[int]:
    """Return the Python processes that work in a folder or below it; a shell that looks at it does not count."""
    found, folder = [], folder.resolve()
    for process in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            now_in = folder_of(int(process.name))
            if now_in is not None and now_in.is_relative_to(folder) and int(process.name) != os.getpid():
                found += [int(process.name)] if (process / "exe").readlink().name.startswith("python") else []
    return found


def works_in(folder: Path) -> bool:
    """Whether a process that we may look at has `folder` as its working directory."""
    for process in PROC.glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if process.readlink() == folder:
                return True
    return False


def _session_of(process: Path) -> int:
    return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[3])


def _members(session: int) -> Iterator[tuple[int, str, int]]:
    """Give pid, name and CPU time (ticks) of each living process of a session."""
    for stat in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has just ended
            # pid (name, which may hold blanks and brackets) state ppid pgrp session ... utime stime ...
            before, _, after = stat.read_text(errors="replace").rpartition(")")
            fields = after.split()
            if int(fields[3]) == session and fields[0] not in ("Z", "X"):
                yield int(stat.parent.name), before.partition("(")[2], int(fields[11]) + int(fields[12])
