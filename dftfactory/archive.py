"""A finished campaign leaves the LaunchPad: into a compressed file of JSON lines; its labels stay.

The file, NAME.jsonl.gz, is text for any tool (`zcat NAME.jsonl.gz | head`) and is read again by `read_archive`. Its
first line says what it is, its last one how many there are, and each line between has all that the LaunchPad knows of
one structure: `firework`, `workflow`, `launches` and `offline_runs`, in MongoDB's Extended JSON. A file without its
last line is none.

It is complete and on the disk before anything is deleted, and what is deleted is what is in it and has not changed
since. Killed at any point and repeated, the command goes on: a file that is there already is not written again, what
it holds is deleted first.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.claims import Claims
from dftfactory.errors import ConfigError, LaunchPadError
from dftfactory.launches import LIVE, OVER, count_fireworks, index_fingerprints
from dftfactory.store import LabelStore, from_json, launchpad_errors, to_json

if TYPE_CHECKING:
    from fireworks import LaunchPad

Record = dict[str, Any]
# Structures that are in memory at once.
_PAGE = 200
_KIND = "campaign of dftfactory"
# Why a Firework stays.
FAILED = "have no label, and their reason is only here (sync brings it to the candidates, --failed archives them too)"
CLAIMED = "have a claim: see `dftfactory reconcile`"
NOT_ALONE = "are in a workflow with others"
IN_GRIDFS = "have a launch too large for a document"
CHANGED = "have changed since they were written, and stay"


@dataclass
class ArchiveSummary:
    """What became of the Fireworks of a campaign: numbers of structures.

    Attributes
    ----------
    archived
        They are in `file` and not in the LaunchPad any more.
    shared
        They are in `file`, and stay for another campaign, without the name of this one.
    finished
        Of an archive that was interrupted, or is repeated: taken out of the LaunchPad now, and in a file before.
    stay
        Why others stay → how many.
    file
        None where there was nothing to write.
    """

    archived: int = 0
    shared: int = 0
    finished: int = 0
    stay: Counter[str] = field(default_factory=Counter)
    file: Path | None = None


@launchpad_errors()
def archive(launchpad: LaunchPad, campaign: str, to: Path | None = None, *, failed: bool = False) -> ArchiveSummary:
    """Move the Fireworks of a campaign into a file; their labels stay in the store, and `sync` and `export` go on.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    campaign
        Its name.
    to
        The file, which ends in .jsonl.gz; NAME.jsonl.gz in the current folder where it is absent.
    failed
        Archive also those that have no label; candidates that were not synced before never learn why.

    Raises
    ------
    LaunchPadError
        There is no such campaign, something of it is not over, or the database went away.
    ConfigError
        The file cannot be written, or is something else.
    """
    index_fingerprints(launchpad)
    path = Path(f"{campaign}.jsonl.gz") if to is None else to
    if not path.name.endswith(".jsonl.gz"):
        raise ConfigError(f"a campaign is archived to a file that ends in .jsonl.gz, got {path}")
    summary = ArchiveSummary()
    counts = count_fireworks(launchpad, campaign)
    files = _earlier_files(path, campaign)
    if not counts and not files:
        raise LaunchPadError(f"no Firework of campaign {campaign!r} is in this LaunchPad", campaign=campaign)
    if live := {state: counts[state] for state in LIVE if state in counts}:
        said = ", ".join(f"{number} {state}" for state, number in live.items())
        raise LaunchPadError(
            f"campaign {campaign!r} is not over: {said}; wait for them, or give them up with `lpad defuse_fws`",
            states=live,
        )
    for file in files:
        done = _take_out(launchpad, file, campaign)
        summary.finished += done["deleted"] + done["shared"]
    new = _free_name(path)
    records = _records(launchpad, campaign, summary.stay, failed=failed)
    if _write(new, campaign, launchpad.name, records):
        summary.file = new
        done = _take_out(launchpad, new, campaign)
        summary.archived, summary.shared = done["deleted"], done["shared"]
        if done["changed"]:
            summary.stay[CHANGED] += done["changed"]
    return summary


def read_archive(path: Path, campaign: str | None = None) -> Iterator[Record]:
    """Yield what a file holds of each structure: `firework`, `workflow`, `launches`, `offline_runs`, `shared`.

    Raises
    ------
    ConfigError
        The file is no archive, is cut or damaged (before the end is reached), or is of another campaign.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            head = json.loads(file.readline())
            if not isinstance(head, dict) or head.get("kind") != _KIND:
                raise ValueError("it does not begin as one")
            if campaign not in (None, head["campaign"]):
                raise ValueError(f"it is of campaign {head['campaign']!r}")
            for number, line in enumerate(file):
                record = from_json(line)
                if "end" in record:
                    if record["end"] != number:
                        raise ValueError(f"it has {number} structures and should have {record['end']}")
                    return
                yield record
            raise ValueError("its end is missing")
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is no archive that can be read ({error})") from error


def _records(launchpad: LaunchPad, campaign: str, stay: Counter[str], *, failed: bool) -> Iterator[Record]:
    """Yield what is known of each Firework that can go; why the others stay is counted in `stay`."""
    query = {"spec.campaigns": campaign, "state": {"$in": OVER}}
    fireworks = launchpad.fireworks.find(query, batch_size=_PAGE)
    claims, store = Claims(launchpad), LabelStore(launchpad)
    while page := list(islice(fireworks, _PAGE)):
        fw_ids = [firework["fw_id"] for firework in page]
        claimed = claims.of_fireworks(fw_ids)
        labelled = {label["fingerprint"] for label in store.find(fw["spec"]["fingerprint"] for fw in page)}
        workflows = {
            node: flow for flow in launchpad.workflows.find({"nodes": {"$in": fw_ids}}) for node in flow["nodes"]
        }
        launches: dict[int, list[Record]] = {}
        for launch in launchpad.launches.find({"fw_id": {"$in": fw_ids}}):
            launches.setdefault(launch["fw_id"], []).append(launch)
        launch_ids = {launch["launch_id"]: fw_id for fw_id, own in launches.items() for launch in own}
        offline: dict[int, list[Record]] = {}
        for run in launchpad.offline_runs.find({"launch_id": {"$in": list(launch_ids)}}):
            offline.setdefault(launch_ids[run["launch_id"]], []).append(run)
        for firework in page:
            fw_id, spec = firework["fw_id"], firework["spec"]
            own, workflow = launches.get(fw_id, []), workflows.get(fw_id)
            why = None
            if fw_id in claimed:
                why = CLAIMED
            elif not failed and (firework["state"] != "COMPLETED" or spec["fingerprint"] not in labelled):
                why = FAILED
            elif workflow is not None and len(workflow["nodes"]) > 1:
                why = NOT_ALONE
            elif any("gridfs_id" in (launch.get("action") or {}) for launch in own):
                why = IN_GRIDFS
            if why is not None:
                stay[why] += 1
                continue
            yield {
                "shared": len(spec["campaigns"]) > 1,
                "firework": firework,
                "workflow": workflow,
                "launches": own,
                "offline_runs": offline.get(fw_id, []),
            }


def _write(path: Path, campaign: str, database: str, records: Iterator[Record]) -> int:
    """Write a file that is complete, and on the disk, before it has its name; return how many structures it has."""
    from dftfactory import __version__

    head = {
        "kind": _KIND,
        "campaign": campaign,
        "database": database,
        "written_on": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "dftfactory": __version__,
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    number = 0
    try:
        with partial.open("xb") as raw:
            with gzip.open(raw, "wt", encoding="utf-8") as file:
                file.write(json.dumps(head) + "\n")
                for record in records:
                    file.write(to_json(record) + "\n")
                    number += 1
                file.write(json.dumps({"end": number}) + "\n")
            raw.flush()
            os.fsync(raw.fileno())
        if number:
            # Not replace(): of two that archive at once, one is told.
            os.link(partial, path)
            _sync_folder(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); nothing was deleted") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return number


def _sync_folder(path: Path) -> None:
    """Bring the name of a file to the disk, too."""
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _take_out(launchpad: LaunchPad, path: Path, campaign: str) -> Counter[str]:
    """Delete what is in a file from the LaunchPad; what has changed since it was written stays. Safe to repeat."""
    for _ in read_archive(path, campaign):  # to its end, before anything is deleted
        pass
    done: Counter[str] = Counter()
    records = read_archive(path, campaign)
    while page := list(islice(records, _PAGE)):
        by_id = {record["firework"]["_id"]: record for record in page}
        keys = {"fw_id": 1, "state": 1, "updated_on": 1, "launches": 1, "spec.campaigns": 1}
        found = launchpad.fireworks.find({"_id": {"$in": list(by_id)}}, keys)
        # Through JSON as those of the file: it knows times to the millisecond, in UTC.
        now = {firework["_id"]: from_json(to_json(firework)) for firework in found}
        same = [_id for _id, firework in now.items() if _is_same(by_id[_id]["firework"], firework)]
        done["changed"] += len(now) - len(same)
        # As it is now: another campaign may have joined since, or have left.
        ours = [_id for _id in same if campaign in now[_id]["spec"].get("campaigns", ())]
        shared = [_id for _id in ours if now[_id]["spec"]["campaigns"] != [campaign]]
        if shared:
            _leave(launchpad, [now[_id]["fw_id"] for _id in shared], campaign)
            done["shared"] += len(shared)
        alone = [_id for _id in ours if now[_id]["spec"]["campaigns"] == [campaign]]
        # First the Firework, and only while it is over: who sets it READY or joins it in this moment keeps it.
        query = {"_id": {"$in": alone}, "state": {"$in": OVER}, "spec.campaigns": [campaign]}
        done["deleted"] += launchpad.fireworks.delete_many(query).deleted_count if alone else 0
        left = {firework["_id"] for firework in launchpad.fireworks.find({"_id": {"$in": list(by_id)}}, {"_id": 1})}
        gone = [record for _id, record in by_id.items() if _id not in left]
        _delete(launchpad.workflows, [record["workflow"] for record in gone if record["workflow"]])
        _delete(launchpad.launches, [launch for record in gone for launch in record["launches"]])
        _delete(launchpad.offline_runs, [run for record in gone for run in record["offline_runs"]])
    return done


def _is_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return all(then.get(key) == now.get(key) for key in ("state", "updated_on", "launches"))


def _leave(launchpad: LaunchPad, fw_ids: list[int], campaign: str) -> None:
    """Take the name of a campaign from Fireworks and workflows that belong to another one, too."""
    launchpad.workflows.update_many({"nodes": {"$in": fw_ids}}, {"$pull": {"metadata.campaigns": campaign}})
    query = {"fw_id": {"$in": fw_ids}}
    launchpad.fireworks.update_many(query, {"$pull": {"spec.campaigns": campaign}})


def _delete(collection: Any, documents: list[Record]) -> None:
    if documents:
        collection.delete_many({"_id": {"$in": [document["_id"] for document in documents]}})


def _earlier_files(path: Path, campaign: str) -> list[Path]:
    """Files of this campaign that are there under this name, in their order.

    Raises
    ------
    ConfigError
        One of them is something else.
    """
    files: list[Path] = []
    for candidate in _names(path):
        if not candidate.exists():
            return files
        next(read_archive(candidate, campaign), None)
        files.append(candidate)
    return files


def _free_name(path: Path) -> Path:
    return next(candidate for candidate in _names(path) if not candidate.exists())


def _names(path: Path) -> Iterator[Path]:
    """NAME.jsonl.gz, NAME-2.jsonl.gz, ...: what a campaign got after it was archived goes into another file."""
    yield path
    stem = path.name.removesuffix(".jsonl.gz")
    for number in range(2, 1_000_000):
        yield path.with_name(f"{stem}-{number}.jsonl.gz")
