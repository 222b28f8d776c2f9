"""Labels that are on the disk and not in the LaunchPad: found, stored, and their Fireworks put right."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.config import DFTConfig
from dftfactory.errors import DFTFactoryError, LaunchPadError, ParserError
from dftfactory.firetasks import only_softened, summary_of
from dftfactory.labels import FORCE, LABEL_FILE, forces_above, misfit, read_label, structure_from_dict
from dftfactory.launch_folders import earlier_folders
from dftfactory.launches import OURS, index_fingerprints, ours
from dftfactory.next_job import give_wanted_jobs
from dftfactory.offline import bring_all_home, find_offline_launches
from dftfactory.store import LabelStore, launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# What a label puts right. A Firework that has not run yet finds its label by itself, and those that somebody has paused
# or archived stay so.
_TO_COMPLETE = ("RUNNING", "FIZZLED")
# What a Firework of another version can lead to; it keeps nobody from the others.
_ODD = (DFTFactoryError, LookupError, TypeError, RuntimeError)


@dataclass
class RecoverSummary:
    """What was found on the disk: numbers of label files, of Fireworks that are COMPLETED now, and READY again."""

    found: int = 0
    stored: int = 0
    completed: int = 0
    ready: int = 0
    problems: list[str] = field(default_factory=list)


@launchpad_errors()
def recover_labels(
    launchpad: LaunchPad, folders: Iterable[Path] | None = None, campaign: str | None = None
) -> RecoverSummary:
    """Store the labels that are on the disk, and set their Fireworks COMPLETED; safe to repeat.

    Parameters
    ----------
    launchpad
        Where the labels belong.
    folders
        Searched with all folders below them; where absent, the launch folders of the Fireworks that have no label.
    campaign
        Only the launch folders of this campaign's Fireworks; does not count where `folders` are given.

    Raises
    ------
    LaunchPadError
        The database went away; what was stored stays stored. Or a folder does not exist.
    """
    store = LabelStore(launchpad)
    store.prepare()
    index_fingerprints(launchpad)
    summary = RecoverSummary()
    for folder in _launch_folders(launchpad, store, campaign) if folders is None else _search(folders, summary):
        try:
            recover_label(launchpad, store, folder, summary)
        except _ODD as error:
            if isinstance(error, LaunchPadError):
                raise
            summary.problems.append(f"{folder / LABEL_FILE}: its Firework is odd ({error}); submit the structure again")
    completed, problems = bring_all_home(launchpad, lambda fw_id: complete_from_store(launchpad, store, fw_id))
    summary.completed += completed + complete_labelled(launchpad, store)
    summary.ready = give_wanted_jobs(launchpad)
    summary.problems += problems
    return summary


def complete_labelled(launchpad: LaunchPad, store: LabelStore) -> int:
    """Set the FIZZLED Fireworks COMPLETED that have a label by now; return how many there were."""
    keys = {"_id": 0, "fw_id": 1, "spec.fingerprint": 1}
    fizzled = {
        fw["fw_id"]: fw["spec"]["fingerprint"] for fw in launchpad.fireworks.find({**OURS, "state": "FIZZLED"}, keys)
    }
    labelled = {label["fingerprint"] for label in store.find(set(fizzled.values())) if label["quality"] == "exact"}
    return sum(complete_from_store(launchpad, store, fw_id) for fw_id, name in fizzled.items() if name in labelled)


@launchpad_errors()
def recover_offline(launchpad: LaunchPad) -> None:
    """Store the labels of offline rockets, and tell the LaunchPad what became of them."""
    if launches := find_offline_launches(launchpad):
        recover_labels(launchpad, [launch.launch_dir for launch in launches if launch.launch_dir.is_dir()])


def recover_label(launchpad: LaunchPad, store: LabelStore, folder: Path, summary: RecoverSummary) -> bool:
    """Store the label of one run folder and put its Fireworks right; False when there is none that serves."""
    try:
        label = read_label(folder)
        if label is None:
            return False
        summary.found += 1
        fireworks = _fireworks_of(launchpad, label["fingerprint"])
        _check(label, [firework["spec"] for firework in fireworks])
    except LaunchPadError:
        raise
    except DFTFactoryError as error:
        summary.problems.append(f"{folder / LABEL_FILE}: {error.message}")
        return False
    stored = store.get(label["fingerprint"])
    if stored is not None and label.get(FORCE) is not None and stored.get(FORCE) != label[FORCE]:
        store.set_aside([label["fingerprint"]])
        stored = None
    summary.stored += stored is None
    store.put(label)
    for firework in fireworks:
        wish = firework["spec"].get(FORCE)
        if firework["state"] in _TO_COMPLETE and firework["launches"] and wish in (None, label.get(FORCE)):
            summary.completed += _put_right(launchpad, firework, label, folder)
    return True


def complete_from_store(launchpad: LaunchPad, store: LabelStore, fw_id: int) -> bool:
    """Set a Firework COMPLETED whose label is stored already; False when there is none that serves."""
    firework = launchpad.fireworks.find_one(
        {"fw_id": fw_id}, {"_id": 0, "fw_id": 1, "state": 1, "launches": 1, "spec": 1}
    )
    label = None if firework is None else store.get(firework["spec"]["fingerprint"])
    if firework is None or label is None or not firework["launches"]:
        return False
    try:
        _check(label, [firework["spec"]])
        return _put_right(launchpad, firework, label, None)
    except LaunchPadError:
        raise
    except _ODD:
        return False


def _fireworks_of(launchpad: LaunchPad, fingerprint: str) -> list[dict[str, Any]]:
    keys = {"_id": 0, "fw_id": 1, "state": 1, "launches": 1, "spec": 1}
    return list(launchpad.fireworks.find({"spec.fingerprint": fingerprint}, keys))


def _check(label: dict[str, Any], specs: list[dict[str, Any]]) -> None:
    """Refuse a label that is not the one for which Fireworks ask."""
    for spec in specs:
        if (reason := misfit(label, structure_from_dict(spec["structure"]))) is not None:
            raise ParserError(f"not the label of {label['calculation_id']}: {reason}; remove it")
    # A Firework without a wish is as well served by any label; those with one are not.
    wishes = {spec.get(FORCE) for spec in specs} - {None}
    if wishes and label.get(FORCE) not in wishes:
        raise ParserError("an older label than the one that `submit --force` has asked for; it stays as it is")


def _put_right(launchpad: LaunchPad, firework: dict[str, Any], label: dict[str, Any], run_dir: Path | None) -> bool:
    """Give the last launch of a Firework the end that it should have had; whether it is COMPLETED now."""
    from fireworks import FWAction

    launch_id = firework["launches"][-1]
    if label["quality"] == "exact":
        spec = firework["spec"]
        if forces_above(label, DFTConfig(**spec["config"])) is not None:
            return False  # this Firework refuses the label, and says so when it runs
        where = {} if run_dir is None else {"run_dir": str(run_dir)}
        stored = {**summary_of(label), **where, "recovered": True}
        # Of an offline launch `lpad recover_offline` would bring back what it was.
        launchpad.forget_offline(launch_id)
        launchpad.complete_launch(launch_id, FWAction(stored_data=stored), "COMPLETED")
        return True
    if firework["state"] == "RUNNING" and run_dir is not None:
        details = only_softened(label, run_dir).to_dict()
        exception = {"_stacktrace": details["message"], "_details": details}
        launchpad.forget_offline(launch_id)
        launchpad.complete_launch(launch_id, FWAction(stored_data={"_exception": exception}, exit=True), "FIZZLED")
    return False


def _launch_folders(launchpad: LaunchPad, store: LabelStore, campaign: str | None) -> Iterator[Path]:
    """Run folders of all launches of Fireworks without a label, as far as this machine can see them."""
    keys = {"_id": 0, "fw_id": 1, "spec.fingerprint": 1, "spec.calculation_id": 1}
    found = launchpad.fireworks.find(ours(campaign), keys)
    specs = {firework["fw_id"]: firework["spec"] for firework in found}
    labelled = store.fingerprints()
    wanted = {fw_id: spec["calculation_id"] for fw_id, spec in specs.items() if spec["fingerprint"] not in labelled}
    launches = launchpad.launches.find({}, {"_id": 0, "fw_id": 1, "launch_dir": 1})
    for launch in list(launches):
        if launch["fw_id"] in wanted:
            yield from earlier_folders([Path(launch["launch_dir"])], wanted[launch["fw_id"]])


def _search(folders: Iterable[Path], summary: RecoverSummary) -> Iterator[Path]:
    """Folders with a label file, below these; links are not followed."""
    for top in folders:
        if not top.is_dir():
            raise LaunchPadError(f"{top} is no folder; give the one in which the rockets ran", folder=str(top))
        for folder, _, files in os.walk(top.resolve(), onerror=lambda error: summary.problems.append(str(error))):
            if LABEL_FILE in files:
                yield Path(folder)
