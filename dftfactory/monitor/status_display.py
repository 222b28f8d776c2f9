"""What `status`, `failures` and `retry` show: how far it is, what fails, and what to do about it."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from dftfactory.display import number_of
from dftfactory.monitor.sections import STATE_STYLES, Cell, Column, Section, Value

if TYPE_CHECKING:
    from dftfactory.monitor.failed import FailureGroup
    from dftfactory.monitor.progress import Progress
    from dftfactory.monitor.running import Running
    from dftfactory.retry import RetrySummary

# The order of life.
STATES = ("WAITING", "READY", "RESERVED", "RUNNING", "PAUSED", "COMPLETED", "FIZZLED", "DEFUSED", "ARCHIVED")
# What the bar is made of, from the left; each has a letter of its own, so that it is read without colours, too.
_BAR = {"COMPLETED": "█", "FIZZLED": "▓", "RUNNING": "▒"}
_REST = "░"
BAR_LETTERS = 60
# Without one of these nothing more will happen by itself.
LEFT_TO_DO = ("WAITING", "READY", "RESERVED", "RUNNING")
_GREYS = ("bright_white", "bright_cyan", "cyan", "blue")
# Running ones that are told; `--json` has all.
MOST_RUNNING = 20
# Retried ones, likewise.
MOST_RETRIED = 20


def status_sections(
    progress: Progress,
    *,
    candidates: Mapping[str, int] | None = None,
    explanations: Mapping[str, str] | None = None,
    most_running: int = MOST_RUNNING,
) -> list[Section]:
    """Return what `status` shows.

    Parameters
    ----------
    progress
        The numbers.
    candidates
        Status → number of candidates, where they were asked for.
    explanations
        Failure → what to do.
    most_running
        Running ones that are listed.
    """
    sections = [_summary(progress)]
    if candidates is not None:
        rows = [_state_row(status, number) for status, number in candidates.items()]
        sections.append(Section("Candidates", (Column(folds=True), Column(number=True)), rows))
    rows = [
        [Cell(_BAR.get(state, _REST), STATE_STYLES.get(state, ""), art=True), *_state_row(state, number)]
        for state, number in _ordered(progress.states)
    ]
    columns = (Column(), Column(folds=True), Column(number=True))
    sections.append(Section("Fireworks", columns, rows, [] if rows else ["none"]))
    sections.append(_labels(progress))
    if progress.failures:
        rows = [[name, str(number), (explanations or {}).get(name, "")] for name, number in progress.failures.items()]
        columns = (Column(folds=True), Column(number=True), Column(folds=True))
        sections.append(Section("Why Fireworks are FIZZLED", columns, rows))
    if progress.running:
        sections.append(_running(progress.running, most_running))
    return sections


def status_line(progress: Progress) -> str:
    """Return all of it in one line, for a log."""
    states = ", ".join(f"{number:,} {state}" for state, number in _ordered(progress.states)) or "no Fireworks"
    return "; ".join([states, *_pace(progress)])


def is_over(progress: Progress) -> bool:
    """Whether nothing is left that would happen by itself."""
    return not any(progress.states.get(state) for state in LEFT_TO_DO)


def failure_sections(groups: Sequence[FailureGroup]) -> list[Section]:
    """Return what `failures` shows: for each reason the number, some names, what to do, and the command for it."""
    sections = []
    for group in groups:
        more = group.number - len(group.calculation_ids)
        names = ", ".join(group.calculation_ids) + (f" and {more:,} more" if more > 0 else "")
        lines = [
            names,
            f"for example: {group.reason}",
            *([f"what to do: {group.explanation}"] if group.explanation else []),
        ]
        commands = [[shlex.quote(word) for word in group.retry]] if group.retry else []
        title = Cell(f"{group.failure}  {group.number:,}", "bold red")
        sections.append(Section(title, lines=lines, commands=commands))
    return sections


def retry_sections(summary: RetrySummary) -> list[Section]:
    """Return what `retry` has done."""
    again = [each for each in summary.retried if each.state != "READY"]
    were_ready = len(summary.retried) - len(again)
    would = "would be " if summary.dry_run else ""
    said = [f"{number_of(len(again), 'Firework')} {would}READY again"]
    said += [f"{were_ready} {'was' if were_ready == 1 else 'were'} READY already"] if were_ready else []
    rows: list[list[Value]] = [
        [
            each.fw_id,
            each.calculation_id,
            each.failure,
            Cell(", ".join(changes_of({**each.parameters, **each.resources}))),
        ]
        for each in summary.retried[:MOST_RETRIED]
    ]
    more = len(summary.retried) - len(rows)
    columns = (
        Column("Firework", number=True),
        Column("structure", folds=True),
        Column("failed for", folds=True),
        Column("now", folds=True),
    )
    sections = [Section("; ".join(said), columns, rows, [f"and {more:,} more"] if more else [])]
    if summary.refused:
        rows = [
            [each.fw_id, each.calculation_id, Cell(each.state, STATE_STYLES.get(each.state, "")), each.reason]
            for each in summary.refused
        ]
        columns = (
            Column("Firework", number=True),
            Column("structure", folds=True),
            Column("state", folds=True),
            Column("why", folds=True),
        )
        sections.append(
            Section(
                f"{number_of(len(rows), 'Firework')} left as {'it is' if len(rows) == 1 else 'they are'}", columns, rows
            )
        )
    return sections


def changes_of(changes: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return `name before → after` for each change; what was not set is the default of pw.x."""
    return [f"{name} {value_text(before)} → {value_text(after)}" for name, (before, after) in changes.items()]


def value_text(value: Any) -> str:
    """Return a parameter as a person writes it."""
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Return a time in the two largest units that it has: 3 d 4 h, 2 h 5 min, 40 s."""
    if not math.isfinite(seconds):
        return "for ever"
    left = max(0, round(seconds))
    for unit, below, n, m in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if left >= n:
            return f"{left // n} {unit} {left % n // m} {below}"
    return f"{left // 60} min" if left >= 60 else f"{left} s"


def _summary(progress: Progress) -> Section:
    total = sum(progress.states.values())
    if not total:
        return Section("nothing is queued")
    done = progress.states.get("COMPLETED", 0)
    title = f"{done:,} of {total:,} Fireworks COMPLETED ({_percent(done, total)})"
    return Section(title, lines=[_bar(progress.states), *_pace(progress)])


def _bar(states: Mapping[str, int]) -> Cell:
    """Return the shares of the states; one that is there at all has a letter."""
    numbers = {state: states.get(state, 0) for state in _BAR}
    total = sum(states.values())
    numbers[""] = total - sum(numbers.values())
    letters = {state: max(1, round(BAR_LETTERS * n / total)) if n else 0 for state, n in numbers.items()}
    # What rounding adds is taken from the largest share, where it is seen least.
    letters[max(letters, key=letters.__getitem__)] += BAR_LETTERS - sum(letters.values())
    parts = ((_BAR.get(state, _REST) * n, STATE_STYLES[state or "READY"]) for state, n in letters.items())
    return Cell(art=True, parts=tuple(parts))


def _pace(progress: Progress) -> list[str]:
    """Return the lines that say how fast it is and what it costs."""
    lines = []
    if progress.labels_per_hour is not None and not is_over(progress):
        to_go = "" if progress.seconds_to_go is None else f", about {duration(progress.seconds_to_go)} to go"
        lines.append(f"{_few_digits(progress.labels_per_hour)} labels per hour{to_go}")
    if progress.core_hours > 0:
        share = _percent(progress.wasted_core_hours, progress.core_hours)
        wasted = f"{_few_digits(progress.wasted_core_hours)} of them ({share}) wasted in failed attempts"
        lines.append(f"{_few_digits(progress.core_hours)} core-hours, {wasted}")
    return lines


def _labels(progress: Progress) -> Section:
    rows: list[list[Value]] = []
    for (level, quality), number in sorted(progress.levels.items()):
        style = STATE_STYLES["softened"] if quality == "softened" else _GREYS[max(0, min(level, len(_GREYS) - 1))]
        rows.append([Cell(f"level {level}, {quality}", style), Cell(f"{number:,}")])
    return Section("Labels", (Column(folds=True), Column(number=True)), rows, [] if rows else ["none"])


def _running(running: Sequence[Running], most: int) -> Section:
    now = datetime.now(timezone.utc)
    rows: list[list[Value]] = []
    for each in running[:most]:
        since = None if each.started is None else duration((now - each.started).total_seconds())
        names = [each.calculation_id, each.formula, each.host]
        numbers = [each.level, each.attempt, each.iteration, _exponent(each.accuracy), _exponent(each.conv_thr)]
        rows.append([*names, since, *numbers])
    columns = [Column(name, folds=True) for name in ("structure", "formula", "host")]
    columns += [
        Column(name, number=True) for name in ("for", "level", "run", "SCF\nstep", "accuracy\n(Ry)", "conv_thr\n(Ry)")
    ]
    lines = [f"and {len(running) - most:,} more"] if len(running) > most else []
    unseen = Counter(each.unseen for each in running if each.unseen)
    lines += [f"{number:,} without numbers: {why}" for why, number in unseen.most_common(3)]
    return Section(Cell("Running", f"bold {STATE_STYLES['RUNNING']}"), columns, rows, lines)


def _state_row(state: str, number: int) -> list[Value]:
    return [Cell(state, STATE_STYLES.get(state, "")), f"{number:,}"]


def _ordered(states: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(states.items(), key=lambda item: STATES.index(item[0]) if item[0] in STATES else len(STATES))


def _percent(part: float, whole: float) -> str:
    """Return a share that is 100 % only where nothing is left, and 0 % only where nothing is there."""
    share = 100 * part / whole
    if 99.9 < share < 100:
        return "99.9%"
    return f"{share:.1f}%" if 0 < share < 10 or 99 < share < 100 else f"{share:.0f}%"


def _few_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _exponent(number: float | None) -> str | None:
    return None if number is None else f"{number:.1e}"
