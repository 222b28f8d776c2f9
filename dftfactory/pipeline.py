"""The pipeline's side of the queue: candidates into the LaunchPad, labels and failures back to the candidates."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dftfactory.campaigns import Joins
from dftfactory.candidates import Candidate, index_rows, mark_completed, mark_failed, mark_queued, select_candidates
from dftfactory.cluster import ClusterConfig
from dftfactory.config import DFTConfig
from dftfactory.database import transaction
from dftfactory.errors import ConfigError, ParserError, StructureError
from dftfactory.estimate import make_estimate
from dftfactory.failures import EXPLANATIONS, Failure
from dftfactory.history import write_atomically
from dftfactory.inputs import charge_cutoff, check_structure
from dftfactory.labels import FORCE, FORCES_EXPLANATION, forces_above, misfit
from dftfactory.launches import (
    FireworkState,
    add_workflows,
    ask_for_new_label,
    find_fireworks,
    find_reasons,
    index_fingerprints,
    run_again,
)
from dftfactory.moments import starts_of
from dftfactory.pseudos import Pseudopotential, load_pseudopotentials
from dftfactory.resources import request_resources, spec_entries
from dftfactory.results import DFTResult
from dftfactory.store import COLLECTION, LabelStore, launchpad_errors
from dftfactory.workflows import checked_campaign, join_campaigns, make_workflow

if TYPE_CHECKING:
    from ase import Atoms
    from ase.db.core import Database
    from fireworks import LaunchPad, Workflow

# Structures that are in memory at once, and documents in one request to the database.
PAGE = 200
# Refused structures that a summary names; each has its reason on its row.
MOST_PROBLEMS = 20
Progress = Callable[[int], None]
EntriesOf = Callable[["Atoms", DFTConfig, Mapping[str, Pseudopotential]], dict[str, Any]]
T = TypeVar("T")


@dataclass
class SubmitSummary:
    """What became of the SELECTED candidates: numbers of structures, and the first of the `refused` in words.

    `by_class` counts those that were added or set to run again by their class of jobs, where there is a cluster.yaml.
    """

    added: int = 0
    rerun: int = 0
    already_queued: int = 0
    already_labelled: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    by_class: Counter[str] = field(default_factory=Counter)


@dataclass
class SyncSummary:
    """What came back for the candidates: numbers of structures."""

    completed: int = 0
    failed: int = 0
    waiting: int = 0
    unknown: int = 0


@launchpad_errors()
def submit(
    db: Database,
    config: DFTConfig,
    launchpad: LaunchPad,
    progress: Progress = lambda n: None,
    *,
    force: bool = False,
    campaign: str | None = None,
    cluster: ClusterConfig | None = None,
    job_class: str | None = None,
) -> SubmitSummary:
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
    force
        Compute again what has a label: that one is put aside (collection `dft_results_put_aside`). What is queued or
        runs without a label yet is linked as ever.
    campaign
        Only the candidates of this campaign, and those of none, which belong to it from then on. Where it is absent,
        all, each with the campaign that its row has.
    cluster
        The classes of jobs, of which each structure gets the first that it fits into; none where absent.
    job_class
        The class that all structures get.

    Raises
    ------
    PseudopotentialError, ConfigError, CandidateError
        The configuration or the database does not serve; the candidates of earlier pages are queued, the rest is
        SELECTED.
    LaunchPadError
        The database went away; likewise.
    """
    store = LabelStore(launchpad)
    store.prepare()
    index_fingerprints(launchpad)
    summary, joins = SubmitSummary(), Joins(launchpad, store)
    entries_of = _entries(force=force, cluster=cluster, job_class=job_class)
    for n_candidates, page in _workflows(db, config, summary, entries_of, campaign):
        fingerprints = [_fingerprint(workflow) for _, workflow in page]
        # In this order: a label is stored before its Firework is COMPLETED, so none is missed in between.
        fireworks = find_fireworks(launchpad, fingerprints)
        labels = {label["fingerprint"]: label for label in store.find(fingerprints) if label["quality"] == "exact"}
        put_aside: set[str] = set()
        if force:
            store.set_aside(labels)
            put_aside, old_labels, labels = set(labels), labels, {}
            for _, workflow in page:
                join_campaigns(workflow, old_labels.get(_fingerprint(workflow), {}).get("campaigns", ()))
        new: dict[str, Workflow] = {}
        queued: list[tuple[int, str, str]] = []
        for candidate, workflow in page:
            fingerprint = _fingerprint(workflow)
            firework = fireworks.get(fingerprint)
            if fingerprint in new:
                # Twins on one page share one Firework.
                join_campaigns(new[fingerprint], _campaigns(workflow))
                queued.append((candidate.row_id, candidate.calculation_id, fingerprint))
                summary.already_queued += 1
                continue
            if fingerprint in labels:
                if (reason := forces_above(labels[fingerprint], config)) is not None:
                    _refuse(db, candidate, reason, "REJECTED", FORCES_EXPLANATION, summary, campaign)
                    continue
                summary.already_labelled += 1
                queued.append((candidate.row_id, candidate.calculation_id, fingerprint))
                joins.note(fingerprint, _campaigns(workflow), labels[fingerprint], firework)
                continue
            queued.append((candidate.row_id, candidate.calculation_id, fingerprint))
            joins.note(fingerprint, _campaigns(workflow), None, firework)
            if firework is None or firework.state == "ARCHIVED":
                new[fingerprint] = workflow
                summary.added += 1
                summary.by_class.update(_job_class(workflow))
            elif firework.is_over:
                run_again(launchpad, firework, workflow)
                summary.rerun += 1
                summary.by_class.update(_job_class(workflow))
            else:
                if fingerprint in put_aside:
                    ask_for_new_label(launchpad, firework, workflow)
                summary.already_queued += 1
            if firework is not None:
                # A twin on this page finds it READY, whatever it was.
                fireworks[fingerprint] = FireworkState(firework.fw_id, "READY", firework.campaigns)
        add_workflows(launchpad, list(new.values()))
        joins.write()
        mark_queued(db, queued, campaign)
        progress(n_candidates)
    return summary


def write_workflows(
    db: Database,
    config: DFTConfig,
    folder: Path,
    progress: Progress = lambda n: None,
    *,
    force: bool = False,
    campaign: str | None = None,
    cluster: ClusterConfig | None = None,
    job_class: str | None = None,
) -> SubmitSummary:
    """Write one workflow file for each SELECTED candidate, for `lpad add`, and move it to QUEUED.

    Parameters
    ----------
    folder
        Made where it does not exist; the files are named after the calculation_id.
    force
        As for `submit`; a label is put aside when its structure is computed again.
    campaign, cluster, job_class
        As for `submit`.

    Raises
    ------
    ConfigError
        The folder cannot be written, or has a file of that name for another structure.
    """
    summary = SubmitSummary()
    entries_of = _entries(force=force, cluster=cluster, job_class=job_class)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for n_candidates, page in _workflows(db, config, summary, entries_of, campaign):
            for candidate, workflow in page:
                _write_workflow(folder / f"{candidate.calculation_id}.json", workflow)
                summary.added += 1
                summary.by_class.update(_job_class(workflow))
            mark_queued(db, [(c.row_id, c.calculation_id, _fingerprint(w)) for c, w in page], campaign)
            progress(n_candidates)
    except OSError as error:
        raise ConfigError(f"workflow files cannot be written to {folder}: {error.strerror}") from error
    return summary


@launchpad_errors()
def sync(
    db: Database,
    launchpad: LaunchPad,
    *,
    softened: bool = False,
    progress: Progress = lambda n: None,
    campaign: str | None = None,
) -> SyncSummary:
    """Bring labels and failures back to the QUEUED candidates: COMPLETED with the result, FAILED with the reason.

    A FAILED candidate that has a label by now is completed too: `lpad rerun_fws` gave it one, or `softened` asks for
    one that it had. A candidate whose atoms were changed after it was queued becomes FAILED and keeps its new atoms:
    the label belongs to the old ones, for which it stays in the LaunchPad.

    Parameters
    ----------
    softened
        Whether a softened label (at more than the prescribed degauss) completes a candidate; it fails it otherwise.
    campaign
        Only the candidates of this campaign.
    """
    index_fingerprints(launchpad)
    index_rows(db)
    store = LabelStore(launchpad)
    store.prepare()
    summary, joins = SyncSummary(), Joins(launchpad, store)
    campaigns = None if campaign is None else (campaign,)

    def labels_of(page: list[Candidate]) -> dict[str, dict[str, Any]]:
        labels = store.find(_fingerprints(page))
        return {label["fingerprint"]: label for label in labels if softened or label["quality"] == "exact"}

    for page in _pages(select_candidates(db, "QUEUED", campaigns), PAGE):
        # In this order: a label is stored before its Firework is COMPLETED, so none is missed in between.
        fireworks = find_fireworks(launchpad, _fingerprints(page))
        labels = labels_of(page)
        over = [f for name, f in fireworks.items() if f.is_over and name not in labels]
        reasons = find_reasons(launchpad, over)
        # A rocket that was just running when a campaign joined has not heard of it.
        for candidate in page:
            name = candidate.fingerprint or ""
            joins.note(name, _own(candidate), labels.get(name), fireworks.get(name))
        joins.write()
        with transaction(db):
            for candidate in page:
                label = labels.get(candidate.fingerprint or "")
                firework = fireworks.get(candidate.fingerprint or "")
                if label is not None:
                    _take_label(db, candidate, label, summary)
                elif firework is None:
                    summary.unknown += 1
                elif firework.is_over:
                    mark_failed(db, candidate.row_id, **reasons[firework.fw_id])
                    summary.failed += 1
                else:
                    summary.waiting += 1
        progress(len(page))
    for page in _pages(select_candidates(db, "FAILED", campaigns), PAGE):
        labels = labels_of(page)
        with transaction(db):
            for candidate in page:
                label = labels.get(candidate.fingerprint or "")
                if label is not None and _misfit(candidate.atoms, label) is None:
                    joins.note(label["fingerprint"], _own(candidate), label, None)
                    _take_label(db, candidate, label, summary)
        joins.write()
    return summary


def _entries(*, force: bool, cluster: ClusterConfig | None, job_class: str | None) -> EntriesOf:
    """Return the function that says what a specification has beside its structure: a wish, and what it asks for."""
    # Whoever runs it then takes neither a label of the store nor one on the disk that is not of this wish.
    wish = {FORCE: secrets.token_hex(8)} if force else {}

    def entries_of(atoms: Atoms, config: DFTConfig, pseudopotentials: Mapping[str, Pseudopotential]) -> dict[str, Any]:
        if cluster is None:
            return wish
        estimate = make_estimate(atoms, config, pseudopotentials)
        return {**wish, **spec_entries(request_resources(estimate, cluster, job_class))}

    return entries_of


def _workflows(
    db: Database, config: DFTConfig, summary: SubmitSummary, entries_of: EntriesOf, campaign: str | None
) -> Iterator[tuple[int, list[tuple[Candidate, Workflow]]]]:
    """Pages of SELECTED candidates: their number, and the workflows of those that can be right; others are FAILED."""
    campaigns = None if campaign is None else (None, checked_campaign(campaign, "this command"))
    config, pseudopotentials = _decide_for_data_set(db, config, campaigns)
    index_rows(db)
    for page in _pages(select_candidates(db, "SELECTED", campaigns), PAGE):
        good: list[tuple[Candidate, Workflow]] = []
        for candidate in page:
            try:
                if candidate.damage is not None:
                    raise StructureError(candidate.damage)
                check_structure(candidate.atoms, config.min_distance_fraction)
                starts_of(candidate.atoms, config.magnetism)
            except StructureError as error:
                explanation = EXPLANATIONS[Failure.GEOMETRY]
                _refuse(db, candidate, error.message, Failure.GEOMETRY.value, explanation, summary, campaign)
                continue
            own = campaign if candidate.campaign is None else candidate.campaign
            workflow = make_workflow(
                candidate.atoms,
                candidate.calculation_id,
                config,
                pseudopotentials,
                campaigns=() if own is None else (checked_campaign(own, candidate.calculation_id),),
                entries=entries_of(candidate.atoms, config, pseudopotentials),
            )
            good.append((candidate, workflow))
        yield len(page), good


def _refuse(
    db: Database,
    candidate: Candidate,
    evidence: str,
    failure: str,
    explanation: str,
    summary: SubmitSummary,
    campaign: str | None,
) -> None:
    """Fail a candidate that gets no Firework, and forget the label that it may have had with another configuration."""
    reason = evidence if failure == "REJECTED" else f"{failure}: {evidence}"
    facts = {"failure": failure, "evidence": evidence, "explanation": explanation, "fingerprint": ""}
    mark_failed(db, candidate.row_id, reason, **facts, campaign=campaign)
    summary.refused += 1
    if len(summary.problems) < MOST_PROBLEMS:
        summary.problems.append(f"{candidate.calculation_id}: {evidence}")


def _decide_for_data_set(
    db: Database, config: DFTConfig, campaigns: tuple[str | None, ...] | None
) -> tuple[DFTConfig, dict[str, Pseudopotential]]:
    """Read the pseudopotentials of all elements together, and fix the ecutrho that all structures share.

    Decided structure by structure, a data set with norm-conserving and ultrasoft files would have two density cutoffs.
    Files that dft.yaml lists count from the beginning, those that are found in the folder from their first structure
    on: `export` refuses to mix the labels before and after.
    """
    if config.pseudopotential_dir is None:
        raise ConfigError("pseudopotential_dir is not given in dft.yaml")
    folder = Path(config.pseudopotential_dir).expanduser()
    elements = {element for element, file in config.pseudopotentials.items() if (folder / file).is_file()}
    for candidate in select_candidates(db, "SELECTED", campaigns):
        elements |= {symbol for symbol in candidate.atoms.symbols if symbol != "X"}
    pseudopotentials = load_pseudopotentials(elements, folder, config.pseudopotentials)
    return config.model_copy(update={"ecutrho": charge_cutoff(config, pseudopotentials)}), pseudopotentials


def _write_workflow(path: Path, workflow: Workflow) -> None:
    # Two databases may both have a calculation_id 17, and the structure that was there first would be lost.
    if path.exists() and _fingerprint(workflow) not in path.read_text(encoding="utf-8"):
        raise ConfigError(f"{path} is there already, for another structure or configuration; give another folder")
    write_atomically(path, workflow.to_format("json", indent=1))


def _take_label(db: Database, candidate: Candidate, label: dict[str, Any], summary: SyncSummary) -> None:
    if (misfit := _misfit(candidate.atoms, label)) is not None:
        mark_failed(db, candidate.row_id, misfit, failure="MISFIT")
        summary.failed += 1
        return
    result = DFTResult.from_dict(label["result"])
    mark_completed(db, candidate.row_id, result, config_hash=label["config_hash"])
    summary.completed += 1


def _misfit(atoms: Atoms, label: dict[str, Any]) -> str | None:
    """Why a label is not one for these atoms; None when it is."""
    try:
        reason = misfit(label, atoms)
    except ParserError as error:
        said = error.message.removeprefix("the label is damaged")
        return f"the label in the LaunchPad is damaged{said}; remove it from {COLLECTION} and select this again"
    if reason is None:
        return None
    return f"the structure was changed after it was queued; select it again for a label of the new one ({reason})"


def _fingerprint(workflow: Workflow) -> str:
    return str(workflow.metadata["fingerprint"])


def _own(candidate: Candidate) -> tuple[str, ...]:
    return () if candidate.campaign is None else (candidate.campaign,)


def _campaigns(workflow: Workflow) -> list[str]:
    return list(workflow.metadata.get("campaigns", ()))


def _job_class(workflow: Workflow) -> list[str]:
    """Return the class of jobs of a workflow; nothing where there are none."""
    resources = workflow.fws[0].spec.get("resources")
    return [] if resources is None else [resources["class"]]


def _fingerprints(page: list[Candidate]) -> list[str]:
    return [candidate.fingerprint for candidate in page if candidate.fingerprint]


def _pages(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while page := list(islice(items, size)):
        yield page
