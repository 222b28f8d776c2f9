"""The pipeline's side of the queue: candidates into the LaunchPad, labels and failures back to the candidates."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dftfactory.candidates import (
    Candidate,
    mark_completed,
    mark_failed,
    mark_queued,
    select_candidates,
    transaction,
)
from dftfactory.config import DFTConfig
from dftfactory.errors import ConfigError, StructureError
from dftfactory.inputs import check_structure, starting_moments
from dftfactory.pseudos import Pseudopotential, load_pseudopotentials
from dftfactory.results import DFTResult
from dftfactory.store import LabelStore
from dftfactory.workflows import make_workflow

if TYPE_CHECKING:
    from ase.db.core import Database
    from fireworks import LaunchPad, Workflow

# Structures that are in memory at once, and documents in one request to the database.
PAGE = 200
# Nothing more will happen to such a Firework by itself.
DEAD_STATES = ("FIZZLED", "DEFUSED", "ARCHIVED")
Progress = Callable[[int], None]
T = TypeVar("T")


@dataclass
class SubmitSummary:
    """What became of the SELECTED candidates: numbers of structures."""

    added: int = 0
    rerun: int = 0
    already_queued: int = 0
    already_labelled: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class SyncSummary:
    """What came back for the QUEUED candidates: numbers of structures."""

    completed: int = 0
    failed: int = 0
    waiting: int = 0
    unknown: int = 0


def submit(db: Database, config: DFTConfig, launchpad: LaunchPad, progress: Progress = lambda n: None) -> SubmitSummary:
    """Queue every SELECTED candidate and move it to QUEUED; safe to repeat and to be killed at any point.

    A structure whose label exists or is queued already is linked to it by its fingerprint and not queued again; one
    whose Firework failed is set to run once more. A structure that cannot be right becomes FAILED at once.

    Parameters
    ----------
    db
        Candidate database, from `open_candidates`.
    config
        How the labels are computed.
    launchpad
        Where the Fireworks go.
    progress
        Called with the number of candidates done after each page.

    Raises
    ------
    PseudopotentialError, ConfigError
        The configuration does not serve these candidates; those of earlier pages are queued, the rest is SELECTED.
    """
    store = LabelStore(launchpad)
    store.prepare()
    launchpad.fireworks.create_index("spec.fingerprint")
    summary = SubmitSummary()
    for page in _workflows(db, config, summary):
        known = _known_fireworks(launchpad, [workflow for _, workflow in page])
        labels = store.find(_fingerprint(workflow) for _, workflow in page)
        labelled = {label["fingerprint"] for label in labels if label["quality"] == "exact"}
        new: list[Workflow] = []
        for _, workflow in page:
            fingerprint = _fingerprint(workflow)
            fw_id, state = known.get(fingerprint, (None, None))
            if fingerprint in labelled:
                summary.already_labelled += 1
            elif fw_id is None:
                # Twins on one page share one Firework.
                if fingerprint in known:
                    summary.already_queued += 1
                    continue
                new.append(workflow)
                known[fingerprint] = (None, "NEW")
                summary.added += 1
            elif state in DEAD_STATES:
                launchpad.rerun_fw(fw_id)
                summary.rerun += 1
            else:
                summary.already_queued += 1
        if new:
            # FireWorks draws a progress bar of its own, over ours.
            with contextlib.redirect_stderr(io.StringIO()):
                launchpad.bulk_add_wfs(new)
        mark_queued(db, [(c.row_id, c.calculation_id, _fingerprint(w)) for c, w in page])
        progress(len(page))
    return summary


def write_workflows(
    db: Database, config: DFTConfig, folder: Path, progress: Progress = lambda n: None
) -> SubmitSummary:
    """Write one workflow file for each SELECTED candidate, for `lpad add`, and move it to QUEUED.

    Parameters
    ----------
    folder
        Made where it does not exist; the files are named after the calculation_id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = SubmitSummary()
    for page in _workflows(db, config, summary):
        for candidate, workflow in page:
            workflow.to_file(str(folder / f"{candidate.calculation_id}.json"))
            summary.added += 1
        mark_queued(db, [(c.row_id, c.calculation_id, _fingerprint(w)) for c, w in page])
        progress(len(page))
    return summary


def sync(
    db: Database, launchpad: LaunchPad, *, softened: bool = False, progress: Progress = lambda n: None
) -> SyncSummary:
    """Bring labels and failures back to the QUEUED candidates: COMPLETED with the result, FAILED with the reason.

    Parameters
    ----------
    softened
        Whether a softened label (at more than the prescribed degauss) completes a candidate; it fails it otherwise.
    """
    store = LabelStore(launchpad)
    summary = SyncSummary()
    for page in _pages(select_candidates(db, "QUEUED"), PAGE):
        fingerprints = [c.fingerprint for c in page if c.fingerprint]
        labels = {label["fingerprint"]: label for label in store.find(fingerprints)}
        launches = _fireworks(launchpad, fingerprints)
        with transaction(db):
            for candidate in page:
                label = labels.get(candidate.fingerprint or "")
                fw_id, state = launches.get(candidate.fingerprint or "", (None, None))
                if label is not None and (label["quality"] == "exact" or softened):
                    result = DFTResult.from_dict(label["result"])
                    mark_completed(db, candidate.row_id, result, config_hash=label["config_hash"])
                    summary.completed += 1
                elif state in DEAD_STATES:
                    mark_failed(db, candidate.row_id, **_reason(launchpad, fw_id, state))
                    summary.failed += 1
                elif state is None:
                    summary.unknown += 1
                else:
                    summary.waiting += 1
        progress(len(page))
    return summary


def count_fireworks(launchpad: LaunchPad) -> dict[str, int]:
    """Return the number of our Fireworks by state; states that have none are left out."""
    states = ("READY", "RESERVED", "RUNNING", "WAITING", "PAUSED", "COMPLETED", *DEAD_STATES)
    counts = {
        s: launchpad.fireworks.count_documents({"state": s, "spec.fingerprint": {"$exists": True}}) for s in states
    }
    return {state: count for state, count in counts.items() if count}


def count_failures(launchpad: LaunchPad) -> dict[str, int]:
    """Return the number of FIZZLED Fireworks by failure."""
    fw_ids = [
        fw["fw_id"]
        for fw in launchpad.fireworks.find(
            {"state": "FIZZLED", "spec.fingerprint": {"$exists": True}}, {"fw_id": 1, "_id": 0}
        )
    ]
    return dict(Counter(str(_reason(launchpad, fw_id, "FIZZLED").get("failure")) for fw_id in fw_ids))


def _workflows(db: Database, config: DFTConfig, summary: SubmitSummary) -> Iterator[list[tuple[Candidate, Workflow]]]:
    """Pages of SELECTED candidates with their workflows; those that cannot be right become FAILED on the way."""
    if config.pseudopotential_dir is None:
        raise ConfigError("pseudopotential_dir is not given in dft.yaml")
    pseudopotentials: dict[str, Pseudopotential] = {}
    for page in _pages(select_candidates(db, "SELECTED"), PAGE):
        good: list[tuple[Candidate, Workflow]] = []
        for candidate in page:
            try:
                check_structure(candidate.atoms, config.min_distance_fraction)
                starting_moments(candidate.atoms, config.magnetism)
            except StructureError as error:
                mark_failed(db, candidate.row_id, f"GEOMETRY: {error.message}", failure="GEOMETRY")
                summary.refused += 1
                summary.problems.append(f"{candidate.calculation_id}: {error.message}")
                continue
            elements = set(candidate.atoms.symbols) | set(pseudopotentials)
            if elements != set(pseudopotentials):
                # All elements of the data set together: their functionals must be the same.
                pseudopotentials = load_pseudopotentials(
                    elements, Path(config.pseudopotential_dir), config.pseudopotentials
                )
            workflow = make_workflow(candidate.atoms, candidate.calculation_id, config, pseudopotentials)
            good.append((candidate, workflow))
        yield good


def _known_fireworks(launchpad: LaunchPad, workflows: Iterable[Workflow]) -> dict[str, tuple[int | None, str]]:
    return dict(_fireworks(launchpad, [_fingerprint(workflow) for workflow in workflows]))


def _fireworks(launchpad: LaunchPad, fingerprints: list[str]) -> dict[str, tuple[int | None, str]]:
    """Fingerprint → newest Firework (id, state)."""
    found = launchpad.fireworks.find(
        {"spec.fingerprint": {"$in": fingerprints}}, {"_id": 0, "fw_id": 1, "state": 1, "spec.fingerprint": 1}
    )
    newest: dict[str, tuple[int | None, str]] = {}
    for firework in sorted(found, key=lambda entry: int(entry["fw_id"])):
        newest[firework["spec"]["fingerprint"]] = (firework["fw_id"], firework["state"])
    return newest


def _reason(launchpad: LaunchPad, fw_id: int | None, state: str | None) -> dict[str, Any]:
    """Why a Firework is dead: `reason` in words, and `failure` and `level` where they are known."""
    firework = launchpad.fireworks.find_one({"fw_id": fw_id}, {"launches": 1}) or {}
    launch = launchpad.launches.find_one({"launch_id": max(firework.get("launches") or [-1])}, {"action": 1}) or {}
    exception = ((launch.get("action") or {}).get("stored_data") or {}).get("_exception") or {}
    details = exception.get("_details") or {}
    if not details:
        last = str(exception.get("_stacktrace") or "").strip().splitlines()
        return {"reason": last[-1] if last else f"Firework {fw_id} is {state}", "failure": "UNKNOWN"}
    failure = details.get("failure") or details.get("error") or "UNKNOWN"
    known = {key: details[key] for key in ("level",) if details.get(key) is not None}
    return {"reason": str(details.get("message", failure)), "failure": str(failure), **known}


def _fingerprint(workflow: Workflow) -> str:
    return str(workflow.metadata["fingerprint"])


def _pages(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while page := list(islice(items, size)):
        yield page
