"""What the LaunchPad knows of our Fireworks: their states, why they failed, and how they are run again."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import chain
from typing import TYPE_CHECKING, Any

from dftfactory.claims import COLLECTION as CLAIMS
from dftfactory.id_pages import id_pages
from dftfactory.labels import FORCE
from dftfactory.resources import ASKED
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad, Workflow

# Nothing more will happen to such a Firework by itself.
OVER = ("COMPLETED", "FIZZLED", "DEFUSED", "ARCHIVED")
LIVE = ("PAUSED", "WAITING", "READY", "RESERVED", "RUNNING")
# What an error's details say beside its message and its failure.
_FACTS = ("level", "evidence", "explanation")
# Keys of a specification that say how a label is computed, and not which.
_WAY = ("config", "pseudopotentials")
# Somebody is just setting a Firework READY: since when, and how long that may take.
_MARK, _MARK_COUNTS = "dft_set_to_run", timedelta(minutes=10)
# Query of the Fireworks that run RunDFT: those with a fingerprint. Not `$exists`, for which no index has bounds.
OURS = {"spec.fingerprint": {"$gt": ""}}


@dataclass(frozen=True)
class FireworkState:
    """One Firework of ours."""

    fw_id: int
    state: str
    campaigns: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it by itself; where there is no label, it has failed to give one."""
        return self.state in OVER


def find_fireworks(launchpad: LaunchPad, fingerprints: Iterable[str]) -> dict[str, FireworkState]:
    """Fingerprint → its Firework; of several, one that still runs or will run, else one that failed, else the newest.

    Of Fireworks with the same fingerprint only one computes, and the others end COMPLETED, linked to it: when it fails,
    it is the one that knows why.
    """
    keys = {"_id": 0, "fw_id": 1, "state": 1, "spec.fingerprint": 1, "spec.campaigns": 1}
    found = chain.from_iterable(
        launchpad.fireworks.find({"spec.fingerprint": {"$in": page}}, keys) for page in id_pages(fingerprints)
    )

    def rank(entry: dict[str, Any]) -> tuple[bool, bool, bool, int]:
        state = entry["state"]
        return state not in OVER, state == "FIZZLED", state != "COMPLETED", entry["fw_id"]

    best_last = sorted(found, key=rank)
    return {
        entry["spec"]["fingerprint"]: FireworkState(
            entry["fw_id"], entry["state"], tuple(entry["spec"].get("campaigns", ()))
        )
        for entry in best_last
    }


def add_workflows(launchpad: LaunchPad, workflows: list[Workflow]) -> None:
    """Add workflows in bulk: three to four times faster than one by one.

    FireWorks draws all ids in one findAndModify, so that processes may add at once. A process that is killed between
    its two inserts leaves workflows without a Firework: nothing runs them, and only `lpad get_wflows` shows them.
    """
    if not workflows:
        return
    # FireWorks draws a progress bar of its own, over ours.
    with contextlib.redirect_stderr(io.StringIO()):
        launchpad.bulk_add_wfs(workflows)


def run_again(launchpad: LaunchPad, firework: FireworkState, workflow: Workflow) -> None:
    """Set a Firework that is over to run once more, with the numerical parameters and resources of `workflow`.

    The fingerprint is the same, so it is the same label; the way to it may be what the user has changed.
    """
    spec = workflow.fws[0].spec
    changes = {key: spec[key] for key in (*_WAY, *ASKED, FORCE) if key in spec}
    # What it asked of another cluster does not hold.
    set_to_run(launchpad, firework, changes, forget=[key for key in ASKED if key not in spec])


def set_to_run(
    launchpad: LaunchPad, firework: FireworkState, changes: Mapping[str, Any], *, forget: Iterable[str] = ()
) -> bool:
    """Set a Firework that is over READY, with changes of its specification; the jobs that it has had do not count.

    One that is READY is given the changes, unless a rocket takes it just now.

    Returns
    -------
    bool
        False where it has left its state meanwhile: somebody else was faster, and nothing was done.
    """
    update: dict[str, dict[str, Any]] = {"$unset": {f"spec.{key}": "" for key in ("jobs", *forget)}}
    if changes:
        update["$set"] = {f"spec.{key}": value for key, value in changes.items()}
    query: dict[str, Any] = {"fw_id": firework.fw_id, "state": firework.state}
    if firework.state != "READY":
        # Of two at once one sets it READY: the other might find a rocket in it. FireWorks writes it anew without the
        # mark; that of a process which was killed in between counts no more after a while.
        now = datetime.now(timezone.utc)
        query[_MARK] = {"$not": {"$gt": (now - _MARK_COUNTS).isoformat()}}
        update.setdefault("$set", {})[_MARK] = now.isoformat()
    if not launchpad.fireworks.update_one(query, update).matched_count:
        return False
    if firework.state == "DEFUSED":
        launchpad.reignite_fw(firework.fw_id)  # to what it was before, which may be FIZZLED
    if firework.state != "READY":
        launchpad.rerun_fw(firework.fw_id)
    return True


def ask_for_new_label(launchpad: LaunchPad, firework: FireworkState, workflow: Workflow) -> None:
    """Keep a Firework that has not begun from taking the label that is put aside, and lies on the disk."""
    wish = workflow.fws[0].spec[FORCE]
    launchpad.fireworks.update_one({"fw_id": firework.fw_id, "state": "READY"}, {"$set": {f"spec.{FORCE}": wish}})


def ours(campaign: str | None) -> dict[str, Any]:
    """Return the query of our Fireworks, or of those of one campaign: only ours are in any."""
    return OURS if campaign is None else {"spec.campaigns": campaign}


def index_fingerprints(launchpad: LaunchPad) -> None:
    """Create the indexes that our queries need beside those that FireWorks makes; safe to repeat.

    `lpad add` comes without it.
    """
    launchpad.fireworks.create_index("spec.fingerprint")
    launchpad.fireworks.create_index([("state", 1), ("spec.fingerprint", 1)])
    launchpad.fireworks.create_index([("spec.campaigns", 1), ("state", 1)])
    # `dftfactory show` gets the name of a structure.
    launchpad.fireworks.create_index("spec.calculation_id")
    launchpad.workflows.create_index("metadata.fingerprint")
    launchpad.workflows.create_index("locked", sparse=True)
    # Claims are found by their fingerprint without.
    launchpad.db[CLAIMS].create_index("fw_id")
    # FireWorks has none here.
    launchpad.offline_runs.create_index("launch_id")
    launchpad.offline_runs.create_index([("completed", 1), ("deprecated", 1)])


def join_campaign(launchpad: LaunchPad, campaign: str, fingerprints: Iterable[str]) -> None:
    """Let Fireworks and workflows belong to one more campaign."""
    for page in id_pages(fingerprints):
        for collection, where in ((launchpad.workflows, "metadata"), (launchpad.fireworks, "spec")):
            collection.update_many(
                {f"{where}.fingerprint": {"$in": page}}, {"$addToSet": {f"{where}.campaigns": campaign}}
            )


def find_reasons(launchpad: LaunchPad, fireworks: Iterable[FireworkState]) -> dict[int, dict[str, Any]]:
    """Firework id → why it is over: `reason` in words and `failure`; `level`, `evidence`, `explanation` if known."""
    states = {firework.fw_id: firework.state for firework in fireworks}
    last_launch = dict(
        chain.from_iterable(_last_launches(launchpad, {"fw_id": {"$in": page}}) for page in id_pages(states))
    )
    keys = (*(f"_details.{name}" for name in ("message", *_FACTS)), "_stacktrace")
    exceptions = dict(_exceptions(launchpad, last_launch.values(), *keys))
    return {
        fw_id: reason_of(fw_id, state, exceptions.get(last_launch.get(fw_id, -1), {}))
        for fw_id, state in states.items()
    }


@launchpad_errors()
def count_fireworks(launchpad: LaunchPad, campaign: str | None = None) -> dict[str, int]:
    """Return the number of our Fireworks, or of those of one campaign, by state; states that have none are left out."""
    # With the states, MongoDB counts in the index and reads no Firework.
    query = {"state": {"$in": [*OVER, *LIVE]}, **ours(campaign)}
    groups = launchpad.fireworks.aggregate(
        [{"$match": query}, {"$group": {"_id": "$state", "number": {"$sum": 1}}}, {"$sort": {"_id": 1}}]
    )
    return {str(group["_id"]): int(group["number"]) for group in groups}


@launchpad_errors()
def count_failures(launchpad: LaunchPad, campaign: str | None = None) -> dict[str, int]:
    """Return the number of FIZZLED Fireworks by failure, the most frequent first."""
    failures: Counter[str] = Counter()
    last_launches = _last_launches(launchpad, {"state": "FIZZLED", **ours(campaign)})
    for page in id_pages(launch_id for _, launch_id in last_launches):
        known = Counter(failure_of(exception) for _, exception in _exceptions(launchpad, page))
        failures += known
        failures["UNKNOWN"] += len(page) - known.total()
    return dict((+failures).most_common())


def _last_launches(launchpad: LaunchPad, query: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Firework id and the id of its last launch, -1 for one that was never launched."""
    for entry in launchpad.fireworks.find(query, {"_id": 0, "fw_id": 1, "launches": 1}):
        yield entry["fw_id"], max(entry.get("launches") or [-1])


def _exceptions(launchpad: LaunchPad, launch_ids: Iterable[int], *more: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Launch id and what FireWorks kept of its exception, without the long history of our own."""
    path = "action.stored_data._exception"
    names = ("_details.failure", "_details.error", *more)
    keys = {"_id": 0, "launch_id": 1, **{f"{path}.{name}": 1 for name in names}}
    for page in id_pages(launch_ids):
        for launch in launchpad.launches.find({"launch_id": {"$in": page}}, keys):
            stored = (launch.get("action") or {}).get("stored_data") or {}
            yield launch["launch_id"], stored.get("_exception") or {}


def failure_of(exception: Mapping[str, Any]) -> str:
    """Name the failure of a FIZZLED Firework, from what FireWorks kept of its exception."""
    details = exception.get("_details") or {}
    if not details and re.search(r"\[Errno (?:28|122)\]", str(exception.get("_stacktrace") or "")):
        return "DISK_FULL"  # FireWorks could not write its own file
    # A run that ended well and is no label has no failure of pw.x.
    error = str(details.get("error", "UNKNOWN")).replace("CalculationError", "REJECTED")
    return str(details.get("failure") or error)


def reason_of(fw_id: int, state: str, exception: Mapping[str, Any]) -> dict[str, Any]:
    """Say why a Firework is over, as `find_reasons` does."""
    if state == "COMPLETED":
        cure = "`dftfactory recover` looks on the disk"
        said = f"Firework {fw_id} is COMPLETED, and the LaunchPad has no label of it: {cure}"
        return {"reason": said, "failure": "LOST"}
    if state != "FIZZLED":
        return {"reason": f"Firework {fw_id} was {state} by hand", "failure": state}
    details = exception.get("_details") or {}
    trace = str(exception.get("_stacktrace") or "").strip().splitlines()
    if not trace:
        said = (
            f"Firework {fw_id} ended without a word: its worker was killed, or rlaunch runs where dftfactory is missing"
        )
    else:
        said = details.get("message") or trace[-1]
    facts = {name: details.get(name) for name in _FACTS}
    return {"reason": str(said), "failure": failure_of(exception), **facts}
