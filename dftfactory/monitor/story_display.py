"""What `show` shows: one structure's whole story."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.display import number_of
from dftfactory.monitor.sections import STATE_STYLES, Cell, Column, Section, Value
from dftfactory.monitor.status_display import changes_of, duration

if TYPE_CHECKING:
    from dftfactory.monitor.attempts import Attempt
    from dftfactory.monitor.story import LaunchFacts, Story

_BLOCKS = "▁▂▃▄▅▆▇█"
# Letters of a sparkline: the table has 80 columns.
SPARK_LETTERS = 20
# Files that are named; the run folder has the others.
MOST_FILES = 30


def story_sections(story: Story) -> list[Section]:
    """Return the facts, the attempts, the launches and the files of one structure."""
    sections = [_facts(story)]
    if story.attempts:
        sections += _attempts(story.attempts)
    if story.launches:
        sections.append(_launches(story.launches))
    if story.files:
        names = [_below(path, story.folder) for path in story.files]
        more = [f"and {len(names) - MOST_FILES} more"] if len(names) > MOST_FILES else []
        sections.append(Section(f"Files in {story.folder}", lines=[", ".join(names[:MOST_FILES]), *more]))
    return sections


def sparkline(accuracies: Sequence[float], goal: float | None, letters: int = SPARK_LETTERS) -> str:
    """Return how the SCF came down, by its logarithm: a full block is the worst accuracy of the run, an empty the goal.

    Parameters
    ----------
    accuracies
        Ry, after each iteration.
    goal
        Ry; the best accuracy where that is lower.
    letters
        At most so many; each then stands for the end of several iterations.
    """
    values = [math.log10(value) for value in accuracies if value > 0 and math.isfinite(value)]
    if not values:
        return ""
    low = min(values) if goal is None or goal <= 0 else min(*values, math.log10(goal))
    span = max(values) - low or 1.0
    number = min(len(values), letters)
    chosen = [values[(n + 1) * len(values) // number - 1] for n in range(number)]
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1))] for value in chosen)


def _facts(story: Story) -> Section:
    record, result = story.record, story.result
    quality = record.quality or (None if story.label is None else story.label.quality)
    state = record.state + (f", linked to Firework {record.linked_to}" if record.linked_to is not None else "")
    state += ", with a label that was there already" if record.reused else ""
    softened = STATE_STYLES["softened"] if quality == "softened" else ""
    waste = record.wasted_core_seconds or 0.0
    resources = story.resources
    magnetization = record.total_magnetization if result is None else result.total_magnetization
    warning = record.state_warning or (None if story.label is None else story.label.state_warning)
    facts: dict[str, Value] = {
        "state": Cell(state, STATE_STYLES.get(record.state, "")),
        "Firework": record.fw_id,
        "fingerprint": record.fingerprint,
        "campaigns": ", ".join(record.campaigns),
        "level": None
        if record.level is None
        else Cell(f"{record.level}" + (f", {quality}" if quality else ""), softened),
        "failure": None if record.failure is None else Cell(record.failure, STATE_STYLES["FIZZLED"]),
        "reason": record.reason,
        "what to do": record.explanation,
        "energy": _unit(record.energy if result is None else result.energy, ".8f", "eV"),
        "largest force": _unit(record.max_force if result is None else result.max_force, ".6f", "eV/Å"),
        "magnetization": _unit(magnetization, ".3f", "μB"),
        "warning": None if warning is None else Cell(warning, "bold"),
        "SCF iterations": _count(record.iterations, record.runs),
        "cost": None
        if record.core_seconds is None
        else f"{duration(record.core_seconds)} of a core, {duration(waste)} of it wasted",
        "submitted": _time(record.created),
        "last launch": _span(record.started, record.ended),
        "label": None if story.label is None else _time(story.label.created_on),
        "asks for": _asked(resources),
        "jobs": ", ".join(f"{number} ended with {name}" for name, number in story.jobs.items() if number),
        "run folder": None if story.folder is None else str(story.folder),
    }
    rows = [[name, value] for name, value in facts.items() if value not in (None, "")]
    return Section(Cell(f"{record.calculation_id}  {record.formula}", "bold"), (Column(), Column(folds=True)), rows)


def _attempts(attempts: Sequence[Attempt]) -> list[Section]:
    rows: list[list[Value]] = []
    for each in attempts:
        level = None if each.level is None else f"{each.level}" + ("" if each.stage is None else f".{each.stage}")
        spark = Cell(sparkline(each.scf_accuracy, each.conv_thr), "blue", art=True)
        last = f"{each.scf_accuracy[-1]:.1e}" if each.scf_accuracy else None
        outcome = Cell(each.outcome or "running", _outcome_style(each.outcome))
        rows.append([each.number, level, each.iterations, last, _seconds(each.seconds), outcome, spark])
    columns = (
        *(Column(name, number=True) for name in ("run", "level", "SCF\nsteps", "accuracy\n(Ry)", "time\n(s)")),
        Column("outcome", folds=True),
        Column("SCF convergence"),
    )
    sections = [Section("Runs of pw.x", columns, rows)]
    told: list[list[Value]] = []
    for each in attempts:
        words = [f"from {each.start}"] if each.start is not None else []
        words += changes_of(each.changes)
        words += [each.evidence] if each.evidence else []
        told += [[f"run {each.number}", "; ".join(words)]] if words else []
    if told:
        sections.append(
            Section("What was changed for each run, and what was seen", (Column(), Column(folds=True)), told)
        )
    return sections


def _launches(launches: Sequence[LaunchFacts]) -> Section:
    rows: list[list[Value]] = [
        [
            each.launch_id,
            Cell(each.state, STATE_STYLES.get(each.state, "")),
            _span(each.started, each.ended),
            " on ".join(filter(None, (each.worker, each.host))),
            each.outcome,
        ]
        for each in launches
    ]
    columns = [Column("launch", number=True), Column("state"), Column("when (UTC)", folds=True)]
    columns += [Column("where", folds=True), Column("end", folds=True)]
    # Below the table, where a path has a whole line.
    folders = [f"launch {each.launch_id} in {each.folder}" for each in launches if each.folder is not None]
    return Section("Launches", columns, rows, folders)


def _outcome_style(outcome: str | None) -> str:
    if outcome is None:
        return STATE_STYLES["RUNNING"]
    return STATE_STYLES["COMPLETED" if outcome in ("CONVERGED", "STAGE_CONVERGED", "TIGHTENED") else "FIZZLED"]


def _unit(value: float | None, form: str, unit: str) -> str | None:
    return None if value is None else f"{value:{form}} {unit}"


def _count(iterations: int | None, runs: int | None) -> str | None:
    if iterations is None:
        return None
    return f"{iterations}" + ("" if runs is None else f" in {number_of(runs, 'run')}")


def _seconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.1f}"


def _time(time: datetime | None) -> str | None:
    return None if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _span(started: datetime | None, ended: datetime | None) -> str | None:
    if started is None:
        return None
    took = "" if ended is None else f", {duration((ended - started).total_seconds())}"
    return f"{started:%Y-%m-%d %H:%M:%S}{took}"


def _asked(resources: dict[str, Any]) -> str | None:
    """Return what it asks the queue for; the words come from a database and may be anything."""
    names = ("class", "nodes", "cores", "memory_mb", "walltime_seconds")
    told = [f"{name} {resources[name]}" for name in names if resources.get(name) is not None]
    return ", ".join(told) or None


def _below(path: Path, folder: Path | None) -> str:
    return str(path.relative_to(folder) if folder is not None and path.is_relative_to(folder) else path)
