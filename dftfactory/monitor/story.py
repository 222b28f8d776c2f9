"""The whole story of one structure: what was asked for, every attempt, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.errors import ParserError, UnknownStructureError
from dftfactory.launches import OURS, reason_of
from dftfactory.monitor.attempts import Attempt, attempts_of
from dftfactory.monitor.launch_facts import details_of, exception_of
from dftfactory.monitor.records import Record, read_records
from dftfactory.monitor.running import find_run_folder, history_in, with_series
from dftfactory.plain_values import plain, read_count, read_mapping, read_text, read_time
from dftfactory.store import LabelStore, launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

    from dftfactory.results import DFTResult

_FILES = ("pw.in", "pw.out", "pw.err", "CRASH", "history.json", "label.json", "custodian.json", "rocket.json")


@dataclass(frozen=True)
class LaunchFacts:
    """One launch: a job, or a part of one. `outcome` says in one line how it ended."""

    launch_id: int
    state: str
    host: str | None = None
    worker: str | None = None
    folder: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    outcome: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = plain(self)
        return values


@dataclass(frozen=True)
class LabelFacts:
    """What the label store says beside the result."""

    quality: str
    level: int
    state_warning: str | None = None
    created_on: datetime | None = None
    calculation_id: str | None = None
    dftfactory: str | None = None
    pseudopotentials: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = plain(self)
        return values


@dataclass(frozen=True)
class Story:
    """One structure's whole story.

    Attributes
    ----------
    record
        The short form of it.
    structure
        As `structure_to_dict` makes it: symbols, positions and cell in Å, pbc.
    config
        As it was submitted.
    attempts
        Oldest first.
    launches
        Oldest first, those of earlier runs too.
    result, label
        Of the label store, by fingerprint: they may be another Firework's. None where there is none.
    resources, jobs
        What it asks the queue for, and how many jobs have ended for each reason.
    folder, files
        The run folder and what is in it of all attempts; None and empty where this machine does not see it.
    """

    record: Record
    structure: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    launches: list[LaunchFacts] = field(default_factory=list)
    result: DFTResult | None = None
    label: LabelFacts | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    folder: Path | None = None
    files: list[Path] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the result without its history, which the attempts are."""
        result = None if self.result is None else {**self.result.to_dict(), "history": []}
        own = {name: plain(value) for name, value in vars(self).items() if name != "result"}
        return {**own, "result": plain(result)}


def tell_story(launchpad: LaunchPad, fw_id: int) -> Story:
    """Return the story of one Firework; what is damaged or out of sight is left out.

    Raises
    ------
    UnknownStructureError
        There is no such Firework of ours.
    LaunchPadError
        The database does not answer or refuses.
    """
    with launchpad_errors():
        firework = launchpad.fireworks.find_one({"fw_id": fw_id, **OURS}, {"_id": 0, "spec": 1})
        record = next(read_records(launchpad, fw_ids=[fw_id]), None)
        if firework is None or record is None:
            raise UnknownStructureError(f"there is no Firework {fw_id} of dftfactory in this LaunchPad", fw_id=fw_id)
        launches = sorted(launchpad.launches.find({"fw_id": fw_id}, {"_id": 0}), key=lambda each: each["launch_id"])
        label = LabelStore(launchpad).get(record.fingerprint)
    spec = read_mapping(firework["spec"])
    result = _result(label)
    dirs = [read_text(launch.get("launch_dir")) for launch in reversed(launches)]
    folder = find_run_folder(fw_id, record.calculation_id, dirs)
    history = _history(record, launches, result, folder)
    return Story(
        record=record,
        structure=dict(read_mapping(spec.get("structure"))),
        config=dict(read_mapping(spec.get("config"))),
        attempts=attempts_of(history if folder is None else with_series(history, folder)),
        launches=[_launch(launch) for launch in launches],
        result=result,
        label=None if label is None else _label(label, result),
        resources=dict(read_mapping(spec.get("resources"))),
        jobs={str(name): n for name, n in read_mapping(spec.get("jobs")).items() if isinstance(n, int)},
        folder=folder,
        files=[] if folder is None else _files(folder),
    )


def _history(
    record: Record, launches: Sequence[Mapping[str, Any]], result: DFTResult | None, folder: Path | None
) -> list[Mapping[str, Any]]:
    """Return the attempts, from where they are known best.

    Of what runs or goes on in another job only the run folder has them; of what has ended, its label or its failure,
    with all attempts of all jobs; of what has neither, the last launch that had.
    """
    if record.state in ("RUNNING", "READY", "RESERVED") and folder is not None:
        with suppress(ParserError):
            return _entries(history_in(folder))
    failed = [history for launch in launches if (history := _entries(details_of(launch).get("history")))]
    in_label = [] if result is None else _entries(result.history)
    if record.state == "COMPLETED" and in_label:
        return in_label
    if failed and not (record.is_softened and in_label):
        return failed[-1]
    if in_label:
        return in_label
    if folder is not None:
        with suppress(ParserError):
            return _entries(history_in(folder))
    return []


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, (list, tuple)) else []


def _launch(launch: Mapping[str, Any]) -> LaunchFacts:
    state = read_text(launch.get("state")) or ""
    return LaunchFacts(
        launch_id=int(launch["launch_id"]),
        state=state,
        host=read_text(launch.get("host")),
        worker=read_text(read_mapping(launch.get("fworker")).get("name")),
        folder=read_text(launch.get("launch_dir")),
        started=read_time(launch.get("time_start")),
        ended=read_time(launch.get("time_end")),
        outcome=_outcome(launch, state),
    )


def _outcome(launch: Mapping[str, Any], state: str) -> str | None:
    """Say in one line how a launch has ended; None while it has not, or where nobody has said."""
    said = details_of(launch)
    if state == "FIZZLED":
        reason = str(reason_of(int(launch.get("fw_id") or 0), state, exception_of(launch))["reason"])
        return " ".join(reason.split())
    if state != "COMPLETED":
        return None
    if "linked_to" in said:
        return f"left to Firework {said['linked_to']}, which computed the same label"
    if said.get("reused"):
        return "took the label that was there"
    level, runs = read_count(said.get("level")), read_count(said.get("runs"))
    parts = [] if level is None else [f"label at level {level}"]
    parts += [] if runs is None else [f"{runs} run{'' if runs == 1 else 's'}"]
    parts += ["brought home by `dftfactory recover`"] if said.get("recovered") else []
    return ", ".join(parts) or None


def _result(label: Mapping[str, Any] | None) -> DFTResult | None:
    from dftfactory.results import DFTResult

    try:
        return None if label is None else DFTResult.from_dict(label["result"])
    except (LookupError, TypeError, ValueError, AttributeError):
        return None  # damaged: `export` says so


def _label(label: Mapping[str, Any], result: DFTResult | None) -> LabelFacts:
    return LabelFacts(
        quality=read_text(label.get("quality")) or "",
        level=read_count(label.get("level")) or 0,
        state_warning=None if result is None else result.state_warning,
        created_on=read_time(label.get("created_on")),
        calculation_id=read_text(label.get("calculation_id")),
        dftfactory=read_text(label.get("dftfactory")),
        pseudopotentials=dict(read_mapping(label.get("pseudopotentials"))),
    )


def _files(folder: Path) -> list[Path]:
    """Return the files of a calculation that a person reads, of all attempts; not what is in out/."""
    found: list[Path] = []
    with suppress(OSError):
        patterns = ("", "attempt_*/", "start_*/", "start_*/attempt_*/")
        found = [path for pattern in patterns for name in _FILES for path in folder.glob(f"{pattern}{name}")]
    return sorted({path for path in found if path.is_file()}, key=lambda path: (path.parent != folder, str(path)))
