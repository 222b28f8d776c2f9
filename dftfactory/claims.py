"""Who computes what: a claim in the LaunchPad's database, so that only one rocket at a time computes a fingerprint."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.id_pages import id_pages
from dftfactory.owners import is_alive, this_process
from dftfactory.queues import JobAnswer, JobState, job_state, own_job
from dftfactory.sessions import folder_of, pw_sessions
from dftfactory.store import insert_new, launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

COLLECTION = "dft_claims"
# Three pings of FW_config.yaml.
PING_SECONDS = 180.0


@dataclass(frozen=True)
class Life:
    """Whether a rocket lives, None where that cannot be told from here, and what says so."""

    alive: bool | None
    evidence: str


def make_claim(fingerprint: str, fw_id: int, launch_dir: Path) -> dict[str, Any]:
    """Return the claim of this process, in plain values."""
    return {
        "_id": fingerprint,
        "fw_id": fw_id,
        "launch_dir": str(launch_dir),
        "owner": this_process(),
        "job": own_job(),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "token": secrets.token_hex(8),
    }


def look_at(claim: Mapping[str, Any], answer: JobAnswer | None = None) -> Life:
    """Find out whether the rocket of a claim still works on it: from its process, or else from its job.

    `answer` is what the queue says of the job; it is asked where that is None.
    """
    owner, folder = claim["owner"], Path(claim["launch_dir"])
    name = f"process {owner.get('pid')} on {owner.get('host')}"
    alive = is_alive(owner)
    if alive is False:
        return Life(False, f"{name} has ended")
    if alive:
        now_in = folder_of(int(owner["pid"]))
        # `rlaunch rapidfire` has gone on where the claim could not be taken back: the database was away.
        if now_in is not None and not now_in.is_relative_to(folder) and not pw_sessions(folder):
            return Life(False, f"{name} works on something else by now")
        return Life(True, f"{name} lives")
    if claim.get("job") is None:
        where = f"look there, or give --gone {owner.get('host')}"
        return Life(None, f"{name} is out of sight, and in no job of a queue: {where}")
    return life_of_job(job_state(claim["job"]) if answer is None else answer)


def life_of_job(answer: JobAnswer) -> Life:
    """Say of what runs in a job what the queue says of the job."""
    return Life({JobState.OVER: False, JobState.UNKNOWN: None}.get(answer.state, True), answer.said)


class Claims:
    """The claims in the database of a LaunchPad.

    Raises
    ------
    LaunchPadError
        From every method: the database does not answer or refuses.
    """

    def __init__(self, launchpad: LaunchPad) -> None:
        self.launchpad = launchpad
        self.collection = launchpad.db[COLLECTION]

    @launchpad_errors()
    def take(self, claim: dict[str, Any]) -> dict[str, Any] | None:
        """Take a claim, in one step that only one process can do; safe to repeat.

        Returns
        -------
        dict or None
            The claim of somebody else that stands; None when ours was taken.
        """
        while not insert_new(self.collection, claim):
            other = self.collection.find_one({"_id": claim["_id"]})
            if other is None:
                continue  # just given back
            if other["token"] == claim["token"]:
                return None
            if self._stands(other, claim):
                return dict(other)
            self.collection.delete_one({"_id": other["_id"], "token": other["token"]})
        return None

    @launchpad_errors()
    def give_back(self, claim: Mapping[str, Any]) -> bool:
        """Let others take it; whether it was still ours, one that is not stays."""
        return bool(self.collection.delete_one({"_id": claim["_id"], "token": claim["token"]}).deleted_count)

    @launchpad_errors()
    def of_fireworks(self, fw_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Firework id → its claim."""
        found = (self.collection.find({"fw_id": {"$in": page}}) for page in id_pages(fw_ids))
        return {claim["fw_id"]: claim for claim in chain.from_iterable(found)}

    @launchpad_errors()
    def all(self) -> list[dict[str, Any]]:
        """Return all claims; each rocket that works has one."""
        return list(self.collection.find({}))

    def _stands(self, other: Mapping[str, Any], claim: Mapping[str, Any]) -> bool:
        if all(other["owner"].get(key) == value for key, value in claim["owner"].items()):
            return False  # our own, from before: it could not be given back
        alive = look_at(other).alive
        if alive is not None:
            return alive
        if other["fw_id"] != claim["fw_id"]:
            return self._is_running(other["fw_id"])
        # Whoever gave us a Firework that somebody out of sight has begun has found that one lost, unless it was
        # `lpad detect_lostruns`, which a rocket that has stopped its pings looks dead to.
        return self._has_pinged(other)

    def _has_pinged(self, claim: Mapping[str, Any]) -> bool:
        """Whether the launch of a claim has said lately that it lives; FireWorks lets it do so also when rerun."""
        query = {"fw_id": claim["fw_id"], "launch_dir": claim["launch_dir"], "state": "RUNNING"}
        launches = self.launchpad.launches.find({**query, "host": claim["owner"].get("host")}, {"state_history": 1})
        times = [str(entry.get("updated_on")) for launch in launches for entry in launch["state_history"]]
        limit = datetime.now(timezone.utc) - timedelta(seconds=PING_SECONDS)
        return max(times, default="") > limit.isoformat()

    def _is_running(self, fw_id: int) -> bool:
        return self.launchpad.fireworks.find_one({"fw_id": fw_id, "state": "RUNNING"}, {"fw_id": 1}) is not None
