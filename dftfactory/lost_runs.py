"""Fireworks that are RUNNING or RESERVED and whose rocket or job is no more: found, ended, and set right."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.claims import Claims, Life, life_of_job, look_at
from dftfactory.errors import CalculationError, ClaimedError, DFTFactoryError, LaunchPadAwayError
from dftfactory.firetasks import end_launch, fizzled
from dftfactory.id_pages import id_pages
from dftfactory.job_ends import end_of_job
from dftfactory.jobs import may_resume
from dftfactory.launch_folders import earlier_folders
from dftfactory.launches import index_fingerprints, ours
from dftfactory.lost_labels import (
    RecoverSummary,
    complete_from_store,
    complete_labelled,
    recover_label,
    recover_offline,
)
from dftfactory.next_job import (
    NextJob,
    change_spec,
    give_wanted_jobs,
    given_up,
    lost_job,
    make_ready,
    next_job,
)
from dftfactory.offline import close, find_offline_launches
from dftfactory.orphans import end_orphans, is_rocket_dead, living_in, rocket_of
from dftfactory.owners import this_host
from dftfactory.queues import JobAnswer, job_states, reserved_job
from dftfactory.repairs import repair
from dftfactory.sessions import python_in
from dftfactory.store import LabelStore, launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# A rocket that has just begun has written nothing of itself yet; `qlaunch` takes some seconds to get its number.
BEGIN_SECONDS = 60.0


class Fate(Enum):
    """What became of a Firework that was RUNNING or RESERVED."""

    LIVES = "lives"
    LOST = "lost"  # in a dry run
    UNKNOWN = "unknown"
    COMPLETED = "COMPLETED"
    READY = "READY"
    FIZZLED = "FIZZLED"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Finding:
    """One Firework: what was found, and why."""

    fw_id: int
    calculation_id: str
    host: str
    fate: Fate
    evidence: str


@dataclass(frozen=True)
class _Run:
    """A Firework that is RUNNING or RESERVED, its last launch, and its claim, each as the LaunchPad has it."""

    firework: dict[str, Any]
    launch: dict[str, Any]
    claim: dict[str, Any] | None
    is_offline: bool

    @property
    def fw_id(self) -> int:
        return int(self.firework["fw_id"])

    @property
    def calculation_id(self) -> str:
        return str(self.firework["spec"].get("calculation_id"))

    @property
    def host(self) -> str:
        owner = self.claim["owner"] if self.claim else {}
        return str(owner.get("host") or self.launch.get("host") or "")

    @property
    def launch_dir(self) -> Path:
        return Path(str(self.launch.get("launch_dir") or "/nonexistent"))

    @property
    def is_reserved(self) -> bool:
        return bool(self.launch.get("state", "RESERVED") == "RESERVED")

    @property
    def reservation_id(self) -> str | None:
        ids = [
            str(entry["reservation_id"]) for entry in self.launch.get("state_history", []) if "reservation_id" in entry
        ]
        return ids[-1] if ids else None

    @property
    def job(self) -> dict[str, Any] | None:
        """The job to ask for: whether it lives where the process is out of sight, and else how it has ended."""
        if self.is_offline and (noted := self._noted_job()) is not None:
            return noted
        if self.is_reserved or self.is_offline:
            return None if self.reservation_id is None else reserved_job(self.reservation_id, self.launch_dir)
        return None if self.claim is None else self.claim.get("job")

    def _noted_job(self) -> dict[str, Any] | None:
        """Return the job that an offline rocket has noted: it says its cluster, which a reservation does not."""
        notes = [rocket_of(folder) for folder in earlier_folders([self.launch_dir], self.calculation_id)]
        return next((note["job"] for note in notes if note and note["job"] is not None), None)


@launchpad_errors()
def reconcile(
    launchpad: LaunchPad, *, gone: Collection[str] = (), dry_run: bool = False, campaign: str | None = None
) -> tuple[list[Finding], list[str]]:
    """Compare RUNNING and RESERVED Fireworks with the process table and the queue, and set right those that are lost.

    A pw.x that lives on without its rocket is stopped, and saves its state where it can; a label that is on the disk
    is stored; else the Firework is READY again. What cannot be seen from here is left alone.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    gone
        Names of machines that are known to be gone for good, so that nothing can run there.
    dry_run
        Look only.
    campaign
        Look at the runs of this campaign only; what is repaired besides belongs to all.

    Returns
    -------
    list of Finding, list of str
        One for each Firework, and what was repaired in the LaunchPad besides.

    Raises
    ------
    LaunchPadError
        The database went away; what was done stays done.
    """
    index_fingerprints(launchpad)
    repaired = repair(launchpad, dry_run=dry_run)
    if not dry_run:
        # Offline rockets that have ended since are no lost runs.
        recover_offline(launchpad)
    runs = _runs(launchpad, campaign)
    answers = job_states({run.fw_id: job for run in runs if (job := run.job) is not None})
    findings = []
    for run in runs:
        life = _look_at(run, answers.get(run.fw_id), gone)
        if not dry_run and life.alive is None and _has_its_label(launchpad, run):
            finding = Finding(run.fw_id, run.calculation_id, run.host, Fate.COMPLETED, "its label is stored")
        elif life.alive is False and not dry_run:
            finding = _try_to_set_right(launchpad, run, life, answers.get(run.fw_id))
        else:
            fate = {True: Fate.LIVES, False: Fate.LOST, None: Fate.UNKNOWN}[life.alive]
            finding = Finding(run.fw_id, run.calculation_id, run.host, fate, life.evidence)
        findings.append(finding)
    if not dry_run:
        if labelled := complete_labelled(launchpad, LabelStore(launchpad)):
            repaired.append(
                f"set {labelled} FIZZLED Firework{'' if labelled == 1 else 's'} COMPLETED whose label is stored"
            )
        if wanted := give_wanted_jobs(launchpad):
            repaired.append(
                f"set {wanted} FIZZLED Firework{'' if wanted == 1 else 's'} READY that had asked for another job"
            )
        _give_back_claims_of_the_dead(launchpad)
    return findings, repaired


def _give_back_claims_of_the_dead(launchpad: LaunchPad) -> None:
    """Of Fireworks that do not run any more: their rockets could not do it, since the database was away."""
    claims = Claims(launchpad)
    for claim in claims.all():
        state = launchpad.fireworks.find_one({"fw_id": claim["fw_id"]}, {"_id": 0, "state": 1}) or {}
        if state.get("state") not in ("RUNNING", "RESERVED") and look_at(claim).alive is False:
            claims.give_back(claim)


def _runs(launchpad: LaunchPad, campaign: str | None) -> list[_Run]:
    of_spec = {f"spec.{key}": 1 for key in ("calculation_id", "resources", "jobs")}
    keys = {"_id": 0, "fw_id": 1, "state": 1, "launches": 1, "updated_on": 1, **of_spec}
    fireworks = list(launchpad.fireworks.find({**ours(campaign), "state": {"$in": ["RUNNING", "RESERVED"]}}, keys))
    claims = Claims(launchpad).of_fireworks(firework["fw_id"] for firework in fireworks)
    # Also one that the Firework does not have yet: its rocket was killed while it took it.
    pages = id_pages(firework["fw_id"] for firework in fireworks)
    found = (launchpad.launches.find({"fw_id": {"$in": page}}, {"_id": 0}) for page in pages)
    launches: dict[int, dict[str, Any]] = {}
    for launch in sorted(chain.from_iterable(found), key=lambda launch: launch["launch_id"]):
        launches[launch["fw_id"]] = launch
    offline = {launch.launch_id for launch in find_offline_launches(launchpad)}
    runs = []
    for firework in fireworks:
        fw_id, launch = firework["fw_id"], launches.get(firework["fw_id"], {})
        claim = claims.get(fw_id)
        if claim is not None and claim["launch_dir"] != launch.get("launch_dir"):
            claim = None  # one of an earlier launch: the rocket of this one has not come to its own yet
        runs.append(_Run(firework, launch, claim, launch.get("launch_id") in offline))
    return runs


def _look_at(run: _Run, answer: JobAnswer | None, gone: Collection[str]) -> Life:
    life = _see(run, answer)
    # Only what nobody can see: on a node that is given up for one run others may live.
    return Life(False, f"{run.host} is gone, as you say") if life.alive is None and run.host in gone else life


def _see(run: _Run, answer: JobAnswer | None) -> Life:
    if run.is_reserved or run.is_offline:
        if answer is not None:
            return life_of_job(answer)
        if run.is_offline:
            return Life(None, f"runs offline, in no job that is known: see {run.launch_dir}")
        return _unless_new(run, "reserved, and no job was submitted for it")
    if run.claim is not None:
        return look_at(run.claim, answer)
    if run.host != this_host().get("host"):
        return Life(None, f"its rocket ran on {run.host}: see there, or give --gone {run.host}")
    if not run.launch_dir.is_dir():
        return _unless_new(run, f"its folder {run.launch_dir} is gone")
    if os.getuid() not in (0, run.launch_dir.stat().st_uid):
        return Life(None, f"its rocket is of another user, whose processes cannot be seen: see {run.launch_dir}")
    if pids := python_in(run.launch_dir):
        return Life(True, f"process {pids[0]} works in its folder")
    return _unless_new(run, "no process works in its folder")


def _unless_new(run: _Run, evidence: str) -> Life:
    age = datetime.now(timezone.utc) - _utc(run.firework["updated_on"])
    return Life(False, evidence) if age > timedelta(seconds=BEGIN_SECONDS) else Life(True, "has just begun")


def _has_its_label(launchpad: LaunchPad, run: _Run) -> bool:
    """Complete a run out of sight whose rocket stored the label, gave its claim back, and could not say so."""
    lone = run.claim is None and not run.is_offline and not run.is_reserved
    return lone and complete_from_store(launchpad, LabelStore(launchpad), run.fw_id)


def _try_to_set_right(launchpad: LaunchPad, run: _Run, life: Life, answer: JobAnswer | None) -> Finding:
    """Set one run right; an odd Firework keeps nobody from the others."""
    from fireworks.core.launchpad import LockedWorkflowError

    odd = (DFTFactoryError, LockedWorkflowError, RuntimeError, LookupError, ValueError, TypeError)
    try:
        return _set_right(launchpad, run, life, answer)
    except LaunchPadAwayError:
        raise
    except odd as error:
        said = getattr(error, "message", f"{type(error).__name__}: {error}")
        return Finding(run.fw_id, run.calculation_id, run.host, Fate.BLOCKED, said)


def _set_right(launchpad: LaunchPad, run: _Run, life: Life, answer: JobAnswer | None) -> Finding:
    """Bring a lost run to its end: COMPLETED when its label is on the disk, else READY, or FIZZLED for good."""
    done = _end_orphans(run)
    if not run.launch_dir.is_dir():
        done.append(f"its folder {run.launch_dir} is not to be seen from here")
    went_on = Finding(run.fw_id, run.calculation_id, run.host, Fate.LIVES, "went on while it was looked at")
    if _has_gone_on(launchpad, run):
        return went_on
    summary, store = RecoverSummary(), LabelStore(launchpad)
    for folder in earlier_folders([run.launch_dir], run.calculation_id):
        if recover_label(launchpad, store, folder, summary):
            break
    if summary.completed or complete_from_store(launchpad, store, run.fw_id):
        fate = Fate.COMPLETED
    elif summary.found and _state(launchpad, run) == "FIZZLED":
        fate = Fate.FIZZLED  # its label is a softened one
    elif _has_gone_on(launchpad, run):  # another `reconcile` was faster
        return went_on
    else:
        job = _next_job(run, answer)
        done.append(job.said)
        fate = Fate.READY if job.is_ready else Fate.FIZZLED
        if job.is_ready:
            make_ready(launchpad, run.fw_id, job)
        else:
            _give_up(launchpad, run, job, life.evidence if answer is None else answer.said)
    if run.is_offline:
        close(launchpad, run.launch["launch_id"])
    if run.claim is not None:
        Claims(launchpad).give_back(run.claim)
    return Finding(
        run.fw_id,
        run.calculation_id,
        run.host,
        fate,
        "; ".join([life.evidence, *filter(None, done), *summary.problems]),
    )


def _next_job(run: _Run, answer: JobAnswer | None) -> NextJob:
    """Return what the next job is to have where the last one ended for lack of time or memory."""
    may_go_on = any(may_resume(folder) for folder in earlier_folders([run.launch_dir], run.calculation_id))
    # A job that was cancelled while it waited has done nothing.
    end = "" if run.is_reserved and not run.is_offline else end_of_job(answer, run.job, run.launch_dir)
    wanted = lost_job(end, may_go_on=may_go_on)
    return NextJob(True, "") if wanted is None else next_job(run.firework["spec"], wanted)


def _give_up(launchpad: LaunchPad, run: _Run, job: NextJob, evidence: str) -> None:
    """Set a Firework FIZZLED, with a record of why."""
    change_spec(launchpad, run.fw_id, job)
    facts = {"calculation_id": run.calculation_id, "failure": job.reason, "evidence": evidence}
    error = given_up(CalculationError("", **facts, run_dir=str(run.launch_dir)), job)
    # Of an offline rocket whose folder is out of sight the Firework is still RESERVED.
    end_launch(launchpad, run.fw_id, fizzled(error), "FIZZLED", of=run.firework["state"])


def _has_gone_on(launchpad: LaunchPad, run: _Run) -> bool:
    """Whether the Firework is not any more what was looked at."""
    now = launchpad.fireworks.find_one({"fw_id": run.fw_id}, {"_id": 0, "state": 1, "launches": 1})
    claim = Claims(launchpad).of_fireworks([run.fw_id]).get(run.fw_id)
    is_new = claim is not None and (run.claim is None or claim["token"] != run.claim["token"])
    # A claim of an earlier launch was there before.
    is_new = is_new and claim is not None and claim["launch_dir"] == run.launch.get("launch_dir")
    return now is None or any(now[key] != run.firework[key] for key in now) or is_new


def _state(launchpad: LaunchPad, run: _Run) -> str:
    return str((launchpad.fireworks.find_one({"fw_id": run.fw_id}, {"_id": 0, "state": 1}) or {}).get("state"))


def _end_orphans(run: _Run) -> list[str]:
    """End the pw.x of a lost run on this machine; one on another machine went with its job."""
    done: list[str] = []
    for folder in earlier_folders([run.launch_dir], run.calculation_id):
        if is_rocket_dead(folder):
            done += end_orphans(folder)
        elif living_in(folder):
            raise ClaimedError(f"pw.x lives in {folder}, and it is not known for whom: stop it first")
    return done


def _utc(value: Any) -> datetime:
    """FireWorks stores text or a datetime, both in UTC, with or without saying so."""
    time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
