"""What FireWorks leaves half done when a process is killed between two of its writes, brought to its end."""

from __future__ import annotations

import contextlib
import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from dftfactory.id_pages import id_pages
from dftfactory.launches import LIVE, OURS
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# FireWorks takes some milliseconds from the first to the last write of a step, and a few seconds where `submit` adds a
# page: what looks the same after this time was left by the dead.
STEP_SECONDS = 10.0
# A look takes half a second with 4,000 Fireworks on the local server.
SLOW_SECONDS, MOST_LOOKS = 3.0, 5
_OUR_WORKFLOWS = {"metadata.fingerprint": {"$gt": ""}}

LOCKED = "unlocked the workflow of Firework {}"
NO_WORKFLOW = "added the workflow that Firework {} had not got"
NO_FIREWORK = "removed the workflow of Firework {}, which does not exist"
STALE = "brought Firework {} and its workflow to the state of its last launch"


@launchpad_errors()
def repair(launchpad: LaunchPad, *, dry_run: bool = False) -> list[str]:
    """Bring to an end what killed processes have begun in the LaunchPad; return what was done, a line for each.

    Only for workflows of ours, which have a single Firework. Takes STEP_SECONDS where there is something to repair.
    """
    found = _look(launchpad)
    # A server that stood still meanwhile has held up the living, too; one that is always slow is taken as it is.
    for _ in range(MOST_LOOKS if found else 0):
        time.sleep(STEP_SECONDS)
        began = time.monotonic()
        found &= _look(launchpad)
        if time.monotonic() - began < SLOW_SECONDS:
            break
    # Locks first: what comes after them needs the workflows.
    for kind, fw_id in sorted(found, key=lambda one: (one[0] != LOCKED, one)):
        if not dry_run:
            _REPAIRS[kind](launchpad, fw_id)
    return [kind.format(fw_id) for kind, fw_id in sorted(found)]


def _look(launchpad: LaunchPad) -> set[tuple[str, int]]:
    """Find what looks half done: kind and Firework id."""
    keys = {"_id": 0, "fw_id": 1, "state": 1, "launches": 1}
    fireworks = {fw["fw_id"]: fw for fw in launchpad.fireworks.find({**OURS, "state": {"$in": LIVE}}, keys)}
    keys = {"_id": 0, "nodes": 1, "fw_states": 1, "locked": 1}
    # Those that are over by their own account and have a Firework that is not, too. One by one, each has its index.
    theirs = [{"nodes": {"$in": page}} for page in id_pages(fireworks)]
    queries: list[dict[str, Any]] = [{"state": {"$in": LIVE}}, {"locked": {"$exists": True}}, *theirs]
    found = (launchpad.workflows.find({**query, **_OUR_WORKFLOWS}, keys) for query in queries)
    workflows = {flow["nodes"][0]: flow for flow in chain.from_iterable(found)}
    keys = {"_id": 0, "fw_id": 1, "state": 1}
    pages = id_pages(fw_id for fw_id in workflows if fw_id not in fireworks)
    others = chain.from_iterable(launchpad.fireworks.find({"fw_id": {"$in": page}}, keys) for page in pages)
    states = {fw["fw_id"]: fw["state"] for fw in (*fireworks.values(), *others)}
    # `lpad add` was killed between the two: no rocket can run a Firework without its workflow.
    half_done = {(NO_WORKFLOW, fw_id) for fw_id in fireworks if fw_id not in workflows}
    for fw_id, workflow in workflows.items():
        if "locked" in workflow:
            # Everybody else waits for minutes, and gives up.
            half_done.add((LOCKED, fw_id))
        if fw_id not in states:
            # `submit` was killed between the two; repeated, it has added both under new ids.
            half_done.add((NO_FIREWORK, fw_id))
        elif states[fw_id] != "RESERVED" and workflow["fw_states"].get(str(fw_id), states[fw_id]) != states[fw_id]:
            # Between RESERVED and RUNNING a rocket asks for the name of its host, which may take a minute.
            half_done.add((STALE, fw_id))
    return half_done | {(STALE, fw_id) for fw_id in _behind_their_launch(launchpad, fireworks)}


def _behind_their_launch(launchpad: LaunchPad, fireworks: dict[int, dict[str, Any]]) -> list[int]:
    """Fireworks whose rocket was killed after it had written the end of the launch, and before theirs."""
    last = {
        fw_id: max(firework["launches"])
        for fw_id, firework in fireworks.items()
        if firework["state"] in ("RUNNING", "RESERVED") and firework["launches"]
    }
    over = {"state": {"$in": ["COMPLETED", "FIZZLED"]}}
    pages = id_pages(last.values())
    ended = (launchpad.launches.find({"launch_id": {"$in": page}, **over}, {"launch_id": 1}) for page in pages)
    launch_ids = {launch["launch_id"] for launch in chain.from_iterable(ended)}
    return [fw_id for fw_id, launch_id in last.items() if launch_id in launch_ids]


def _unlock(launchpad: LaunchPad, fw_id: int) -> None:
    launchpad.workflows.update_one({"nodes": fw_id}, {"$unset": {"locked": True}})


def _add_workflow(launchpad: LaunchPad, fw_id: int) -> None:
    from fireworks import Firework, Workflow

    from dftfactory.workflows import metadata_of

    document = launchpad.fireworks.find_one({"fw_id": fw_id})
    if document is not None:
        # The ids of launches stay in the Firework; the workflow has none.
        firework = Firework.from_dict({**document, "launches": [], "archived_launches": []})
        firework.state = document["state"]
        workflow = Workflow([firework], name=document["name"], metadata=metadata_of(document["spec"]))
        # In one step: two repairs at once add one.
        new = {"$setOnInsert": {key: value for key, value in workflow.to_db_dict().items() if key != "nodes"}}
        launchpad.workflows.update_one({"nodes": [fw_id]}, new, upsert=True)


def _remove_workflow(launchpad: LaunchPad, fw_id: int) -> None:
    launchpad.workflows.delete_one({"nodes": fw_id})


def _refresh(launchpad: LaunchPad, fw_id: int) -> None:
    # As `lpad admin refresh` does. What FireWorks cannot make sense of it sets FIZZLED before it raises.
    with contextlib.suppress(RuntimeError):
        launchpad._refresh_wf(fw_id)


_REPAIRS = {LOCKED: _unlock, NO_WORKFLOW: _add_workflow, NO_FIREWORK: _remove_workflow, STALE: _refresh}
