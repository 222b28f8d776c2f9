"""A calculation that needs another job: one more, a longer one, or one with more memory; and when it has had enough.

It stays the same Firework, READY again. `spec.jobs` counts the jobs that it has had for each reason, and under IDLE how
many of them in a row have not ended one SCF iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.errors import CalculationError, ParserError
from dftfactory.failures import Failure
from dftfactory.history import read_history
from dftfactory.id_pages import id_pages
from dftfactory.jobs import NO_TIME, may_resume
from dftfactory.launches import OURS
from dftfactory.resources import grow_memory, grow_walltime, spec_entries
from dftfactory.start_folders import may_resume_starts
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

WALLTIME, OUT_OF_MEMORY = Failure.WALLTIME.value, Failure.OUT_OF_MEMORY.value
# Jobs that one calculation may have for these reasons where its specification has no `resources`.
MAX_JOBS = 10
# Jobs in a row without an SCF iteration after which the same once more will not do.
MAX_IDLE = 2
IDLE = "IDLE"
# Key of an error's details: what the next job should have. Offline, `dftfactory recover` finds it there.
NEXT_JOB = "next_job"


@dataclass(frozen=True)
class NextJob:
    """What becomes of a Firework: READY again with changes of its specification, or FIZZLED.

    Attributes
    ----------
    is_ready
        Whether there is a next job.
    said
        Why, in one clause.
    reason
        WALLTIME or OUT_OF_MEMORY, where it is one of them.
    changes
        Key of the specification → its new value.
    """

    is_ready: bool
    said: str
    changes: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def wanted_job(error: CalculationError, n_before: int, *, is_late: bool) -> dict[str, Any] | None:
    """Say what another job should have for a calculation to go on; None where no job helps.

    Parameters
    ----------
    error
        How it ended.
    n_before
        Number of attempts that it had before this job.
    is_late
        Whether this job had spent its time on something else.

    Returns
    -------
    dict
        Plain values: `reason`; for WALLTIME `is_idle`, whether no SCF iteration came to its end for lack of time, and
        `counts`, whether the job is one of those that it has had; for OUT_OF_MEMORY `memory_mb`, None where not known.
    """
    history, failure = error.details.get("history", []), error.details.get("failure")
    # A start that begins anew drops the attempts that it had.
    attempts = history[n_before:] or history[-1:]
    if failure == OUT_OF_MEMORY:
        return {"reason": OUT_OF_MEMORY, "memory_mb": (error.details.get("request") or {}).get("memory_mb")}
    by_signal = any("signal" in attempt for attempt in attempts)
    by_job = by_signal or any(_had_no_time(attempt) for attempt in attempts)
    # After a signal it begins anew where it must; else the user's own max_seconds was too short, again and again.
    run_dir = Path(str(error.details.get("run_dir")))
    goes_on = failure == WALLTIME and by_job and (may_resume(run_dir) or may_resume_starts(run_dir))
    if not goes_on and not (by_signal and failure in (WALLTIME, Failure.KILLED.value)):
        return None
    began = [attempt for attempt in attempts if attempt.get("exit_status") != NO_TIME]
    # At the end of a job that others have used, or after a signal, nothing could be done.
    counts = bool(began) or not (is_late or by_signal)
    is_idle = counts and not by_signal and not any(attempt.get("last_accuracy") is not None for attempt in began)
    return {"reason": WALLTIME, "is_idle": is_idle, "counts": counts}


def next_job(spec: Mapping[str, Any], wanted: Mapping[str, Any]) -> NextJob:
    """Decide what becomes of a Firework that needs another job.

    Parameters
    ----------
    spec
        Its specification; `jobs` and `resources` count.
    wanted
        As `wanted_job` has returned it, or `lost_job`.
    """
    jobs: dict[str, int] = {str(name): int(n) for name, n in dict(spec.get("jobs") or {}).items()}
    resources: Mapping[str, Any] | None = spec.get("resources") or None
    if wanted["reason"] == WALLTIME and not wanted.get("counts", True):
        return NextJob(True, "this job had no time left for it")
    jobs = {**jobs, wanted["reason"]: jobs.get(wanted["reason"], 0) + 1}
    jobs[IDLE] = jobs.get(IDLE, 0) + 1 if wanted.get("is_idle") else 0
    n_jobs = sum(n for name, n in jobs.items() if name != IDLE)
    limit = int((resources or {}).get("max_jobs", MAX_JOBS))
    if n_jobs >= limit:
        had = ", ".join(f"{n} ended with {name}" for name, n in jobs.items() if n and name != IDLE)
        said = f"it has had {n_jobs} jobs of at most {limit} ({had})"
        return NextJob(False, said, {"jobs": {}}, wanted["reason"])
    decide = _longer if wanted["reason"] == WALLTIME else _larger
    return replace(decide(jobs, resources, wanted), reason=wanted["reason"])


@launchpad_errors()
def make_ready(launchpad: LaunchPad, fw_id: int, job: NextJob) -> None:
    """Set a Firework READY with what its next job is to have; killed in between, it has that and is still RUNNING."""
    change_spec(launchpad, fw_id, job)
    launchpad.rerun_fw(fw_id)


@launchpad_errors()
def change_spec(launchpad: LaunchPad, fw_id: int, job: NextJob) -> None:
    """Write the changes into the specification."""
    if job.changes:
        changes = {f"spec.{key}": value for key, value in job.changes.items()}
        launchpad.fireworks.update_one({"fw_id": fw_id}, {"$set": changes})


def lost_job(word: str, *, may_go_on: bool) -> dict[str, Any] | None:
    """Say what the queue's word for the end of a job means for the calculation in it, as `wanted_job` does.

    None where the end was no fault of the calculation.
    """
    if word == "TIMEOUT":
        return {"reason": WALLTIME, "grows": not may_go_on}
    return {"reason": OUT_OF_MEMORY, "memory_mb": None} if word == "OUT_OF_MEMORY" else None


@launchpad_errors()
def give_wanted_jobs(launchpad: LaunchPad) -> int:
    """Set Fireworks READY whose last launch says what the next job should have; return how many there were.

    Their rockets could not do it: they ran offline, or the database was away.
    """
    keys = {"_id": 0, "fw_id": 1, "launches": 1, "spec.jobs": 1, "spec.resources": 1}
    fizzled = list(launchpad.fireworks.find({**OURS, "state": "FIZZLED", "launches": {"$ne": []}}, keys))
    last = {firework["launches"][-1]: firework for firework in fizzled}
    details = "action.stored_data._exception._details"
    queries = ({"launch_id": {"$in": page}, f"{details}.{NEXT_JOB}": {"$exists": True}} for page in id_pages(last))
    found = (launchpad.launches.find(query, {"_id": 0, "launch_id": 1, details: 1}) for query in queries)
    n_ready = 0
    for launch in list(chain.from_iterable(found)):
        said = launch["action"]["stored_data"]["_exception"]["_details"]
        fw_id, job = last[launch["launch_id"]]["fw_id"], next_job(last[launch["launch_id"]]["spec"], said[NEXT_JOB])
        still = {"fw_id": fw_id, "state": "FIZZLED", "launches": launch["launch_id"]}
        if launchpad.fireworks.find_one(still, {"_id": 1}) is None:
            continue  # somebody else was faster, and it may run again by now
        if job.is_ready:
            make_ready(launchpad, fw_id, job)
            n_ready += 1
        else:
            error = CalculationError(said["message"], **{name: said[name] for name in said if name != "message"})
            record = {f"{details}.{name}": value for name, value in given_up(error, job).to_dict().items()}
            unset = {f"{details}.{NEXT_JOB}": ""}
            launchpad.launches.update_one({"launch_id": launch["launch_id"]}, {"$set": record, "$unset": unset})
            # After it: with a count of its own it would go on.
            change_spec(launchpad, fw_id, job)
    return n_ready


def given_up(error: CalculationError, job: NextJob) -> CalculationError:
    """Return the error of a Firework that gets no other job."""
    details = {name: value for name, value in error.details.items() if name not in (NEXT_JOB, "error", "message")}
    # First what is to be done about it: a table may show the beginning only.
    said = f"{details['calculation_id']}: {details['failure']}: {job.said}; the last one: {details['evidence']}"
    return CalculationError(said, **{**details, "explanation": job.said})


def count_attempts(run_dir: Path) -> int:
    """Return how many attempts a calculation has had."""
    try:
        return len(read_history(run_dir)["attempts"])
    except ParserError:
        return 0


def _had_no_time(attempt: Mapping[str, Any]) -> bool:
    """Whether the time of the job has ended an attempt."""
    return (attempt.get("time_limit") or {}).get("of") == "queue" or attempt.get("exit_status") == NO_TIME


def _longer(jobs: dict[str, int], resources: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> NextJob:
    """One more job; a longer one where the time was too short for a single SCF iteration, or for pw.x to save."""
    idle = jobs[IDLE] >= MAX_IDLE
    if not idle and not wanted.get("grows"):
        return NextJob(True, "goes on in another job", {"jobs": jobs})
    grown = None if resources is None else grow_walltime(resources)
    if grown is not None and resources is not None:
        before, after = (_hours(each["walltime_seconds"]) for each in (resources, grown))
        said = f"goes on in a job of {after} instead of {before}"
        return NextJob(True, said, {"jobs": {**jobs, IDLE: 0}, **spec_entries(grown)})
    if not idle:
        return NextJob(True, "goes on in another job", {"jobs": jobs})
    least = "" if resources is None else f"; {_hours(resources['walltime_seconds'])} is the most that there is"
    said = f"{jobs[IDLE]} jobs in a row were too short for one SCF iteration: give it more time or more cores{least}"
    return NextJob(False, said, {"jobs": {}})


def _larger(jobs: dict[str, int], resources: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> NextJob:
    """Return a job with more memory."""
    needed = wanted.get("memory_mb")
    if resources is None:
        return NextJob(True, "tries again in another job", {"jobs": jobs})
    grown = grow_memory(resources, needed)
    if grown is None:
        most = max(limits["memory_mb"] for limits in resources["classes"].values())
        asked = "" if needed is None or needed <= most else f", {needed:g} MB may be enough"
        said = f"it had {resources['memory_mb']:g} MB{asked}, and the largest class of jobs has {most:g} MB"
        return NextJob(False, said, {"jobs": {}})
    said = f"goes on in a job of {grown['memory_mb']:g} MB instead of {resources['memory_mb']:g} MB"
    return NextJob(True, said, {"jobs": jobs, **spec_entries(grown)})


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h"
