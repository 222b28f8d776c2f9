"""Calculations whose rocket was killed: pw.x is stopped where it lives on, and what it has saved is kept."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

from dftfactory.errors import ClaimedError, ParserError
from dftfactory.events import tell
from dftfactory.failures import Failure
from dftfactory.history import HISTORY, close_attempt, read_history, write_atomically
from dftfactory.jobs import clean_up, keep_state, may_resume
from dftfactory.owners import is_alive, this_process
from dftfactory.queues import JobState, job_state, own_job
from dftfactory.sessions import EXIT, SECONDS_TO_DIE, pw_sessions, session_members, signal_session
from dftfactory.supervision import note

# What pw.x gets to end its iteration and to save: hours of work may be in it.
SOFT_SECONDS = 120.0
EVIDENCE = "its rocket was killed"
# In each run folder that a rocket has taken: its process, and for whom it works.
NOTE = "rocket.json"


def take_folder(folder: Path, calculation_id: str, fw_id: int | None) -> bool:
    """Take a run folder for this rocket, in one step that only one process can do; False when it is taken."""
    try:
        with (folder / NOTE).open("x", encoding="utf-8") as note_file:
            note_file.write(_note(calculation_id, fw_id))
    except FileExistsError:
        return False
    return True


def take_over_folder(folder: Path, calculation_id: str, fw_id: int | None) -> None:
    """Write down that this rocket goes on in the folder of a dead one."""
    write_atomically(folder / NOTE, _note(calculation_id, fw_id))


def rocket_of(folder: Path) -> dict[str, Any]:
    """Return who has taken a run folder: `calculation_id`, `fw_id`, `owner`, `job`; empty where it is not known."""
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return {name: note[name] for name in ("calculation_id", "fw_id", "owner", "job")}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def is_rocket_dead(folder: Path) -> bool:
    """Whether the rocket that has taken a run folder is certainly dead."""
    rocket = rocket_of(folder)
    if not rocket:
        return False
    alive = is_alive(rocket["owner"])
    if alive is None and rocket["job"] is not None:
        return job_state(rocket["job"]).state is JobState.OVER
    return alive is False


def end_orphans(folder: Path, soft_seconds: float = SOFT_SECONDS) -> list[str]:
    """End every pw.x that runs for a run folder, and close the attempts that nobody has closed.

    Only for folders whose rocket is dead. An attempt that has come to its end by itself, or at our request, has saved
    its state: a new launch goes on from there.

    Parameters
    ----------
    folder
        Run folder that a rocket has taken.
    soft_seconds
        How long pw.x may take to save its state before it is killed.

    Returns
    -------
    list of str
        What was done, a line for each.

    Raises
    ------
    ClaimedError
        A pw.x does not end even when killed.
    """
    done = []
    for session, run_dir in living_in(folder).items():
        softly = _end(session, run_dir, soft_seconds)
        done.append(f"stopped pw.x in {run_dir}{'' if softly else ' by force'}")
    for run_dir in _unfinished(folder):
        _close(run_dir)
        if may_resume(run_dir):
            done.append(f"kept its state in {run_dir}")
    for said in done:
        tell("earlier_run_ended", said)
    return done


def living_in(folder: Path) -> dict[int, Path]:
    """Session → folder of each living pw.x of a run folder; not of another rocket's below it."""
    return {session: run_dir for session, run_dir in pw_sessions(folder).items() if _is_for(run_dir, folder)}


def _is_for(run_dir: Path, folder: Path) -> bool:
    """Whether a calculation runs for `folder`: each of several starts has a folder of its own below it."""
    between = [path for path in (run_dir, *run_dir.parents) if path != folder and path.is_relative_to(folder)]
    return not any((path / NOTE).exists() for path in between)


def _note(calculation_id: str, fw_id: int | None) -> str:
    record = {"calculation_id": calculation_id, "fw_id": fw_id, "owner": this_process(), "job": own_job()}
    return json.dumps(record)


def _end(session: int, run_dir: Path, soft_seconds: float) -> bool:
    """Stop one pw.x; whether it ended by itself."""
    # A folder that is gone or a full disk: then it is stopped without a chance to save.
    with contextlib.suppress(OSError, ParserError):
        note(run_dir, stopped={"failure": Failure.WALLTIME.value, "evidence": EVIDENCE})
        (run_dir / EXIT).touch()
        if _wait(session, soft_seconds):
            return True
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal_session(session, number)
        signal_session(session, signal.SIGCONT)
        if _wait(session, SECONDS_TO_DIE):
            return False
    raise ClaimedError(
        f"pw.x of an earlier launch (session {session}) in {run_dir} does not end even when killed, so nothing is "
        "started beside it; it hangs in a file system that is away, most likely: repair that, or restart the machine",
        run_dir=str(run_dir),
    )


def _wait(session: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while session_members(session):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _unfinished(folder: Path) -> list[Path]:
    """Folders of calculations with an attempt that has no end on record: the run folder, or one of several starts."""
    found = []
    for run_dir in (folder, *(path.parent for path in folder.glob(f"start_*/{HISTORY}"))):
        with contextlib.suppress(ParserError):
            # The folder of several starts has a history and no pw.in.
            is_run = _is_for(run_dir, folder) and (run_dir / "pw.in").is_file()
            if is_run and "outcome" not in read_history(run_dir)["attempts"][-1]:
                found.append(run_dir)
    return found


def _close(run_dir: Path) -> None:
    with contextlib.suppress(OSError, ParserError):
        # JOB DONE stands behind the last file that pw.x writes: before it, what is saved may be cut.
        has_saved = b"JOB DONE." in (run_dir / "pw.out").read_bytes()[-2000:]
        failure = Failure.WALLTIME if has_saved else Failure.KILLED
        then = "goes on from what pw.x has saved" if has_saved else "begins anew"
        close_attempt(run_dir, failure.value, evidence=EVIDENCE, explanation=f"the next launch {then}")
        (run_dir / EXIT).unlink(missing_ok=True)
    (keep_state if may_resume(run_dir) else clean_up)(run_dir)
