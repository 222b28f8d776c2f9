"""The pictures of a factory at work and of one structure, from records and attempts: what the web and reports show."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from dftfactory.report.picture import BLUE, COLORS, GREEN, GREY, INK, MARKERS, RED, in_few_digits, level_color
from dftfactory.report.picture import Picture as Picture
from dftfactory.report.picture import Series as Series
from dftfactory.report.plotly_figures import figure_of as figure_of

if TYPE_CHECKING:
    from dftfactory.monitor.attempts import Attempt
    from dftfactory.monitor.records import Record

# In the order of a structure's life.
STATES = ("WAITING", "READY", "RESERVED", "RUNNING", "PAUSED", "COMPLETED", "FIZZLED", "DEFUSED", "ARCHIVED")
# Widths of a bin of time that a person can name, in seconds: from a minute to four weeks.
_BINS = tuple(60 * m for m in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2 * 1440, 7 * 1440, 28 * 1440))
CORE_HOUR = 3600.0
# Outcomes of an attempt that recovery meant to have.
_MEANT = ("CONVERGED", "STAGE_CONVERGED", "TIGHTENED", "SOFTENED")


def states(records: Iterable[Record]) -> Picture:
    """How many Fireworks are in each state."""
    number = Counter(record.state for record in records)
    total = number.total()
    names = [*(state for state in STATES if number[state]), *sorted(set(number) - set(STATES))]
    series = (
        Series(
            name,
            x=(number[name],),
            y=(name,),
            color=COLORS.get(name, GREY),
            texts=(_share(number[name], total),),
            hatched=name == "FIZZLED",
            in_legend=False,
        )
        for name in names
    )
    return Picture(
        "states",
        f"Progress: {_counted(total, 'structure')} by state",
        "structures",
        "",
        tuple(series),
        kind="lying",
        instead="no structures yet: `dftfactory submit` queues those that are SELECTED",
    )


def levels(records: Iterable[Record]) -> Picture:
    """How many labels were reached at each level of the ladder; exact ones and softened ones."""
    number = Counter(
        (record.level, record.quality == "softened")
        for record in records
        if record.level is not None and record.quality is not None
    )
    total = number.total()
    top = max((level for level, _ in number), default=0)
    names = tuple(f"level {level}" for level in range(max(top, 3) + 1))
    exact = (
        Series(
            f"exact, level {level}",
            x=(name,),
            y=(number[level, False],),
            color=level_color(level),
            texts=(f"{name}: {_counted(number[level, False], 'exact label')} ({_share(number[level, False], total)})",),
            in_legend=False,
        )
        for level, name in enumerate(names)
    )
    softened = Series(
        "softened",
        x=names,
        y=tuple(number[level, True] for level in range(len(names))),
        color=COLORS["softened"],
        texts=tuple(f"{name}: {number[level, True]} softened" for level, name in enumerate(names)),
        hatched=True,
    )
    has_softened = any(is_softened for _, is_softened in number)
    return Picture(
        "levels",
        f"Level of the ladder that gave the label: {_counted(total, 'structure')}",
        "",
        "structures with a label",
        (*exact, *([softened] if has_softened else [])) if number else (),
        instead="no labels yet: a level is known when a structure is COMPLETED",
        note="Striped orange: softened, at a raised degauss, left out of exports unless asked for." * has_softened,
    )


def failures(records: Iterable[Record]) -> Picture:
    """Why structures failed, the most frequent reason first; what to do is said when pointed at."""
    failed = [record for record in records if record.state == "FIZZLED"]
    number = Counter(record.failure or "UNKNOWN" for record in failed)
    names = [name for name, _ in number.most_common()]
    series = Series(
        "FIZZLED",
        x=tuple(number[name] for name in names),
        y=tuple(names),
        color=RED,
        texts=tuple(_share(number[name], len(failed)) for name in names),
        hatched=True,
        in_legend=False,
    )
    return Picture(
        "failures",
        f"Why {_counted(len(failed), 'structure')} failed",
        "FIZZLED structures",
        "",
        (series,) if failed else (),
        kind="lying",
        instead="nothing has failed",
    )


def throughput(records: Iterable[Record], bins: int = 48) -> Picture:
    """How many structures ended over time: with an exact label, with a softened one, without."""
    kinds: dict[str, Callable[[Record], bool]] = {
        "COMPLETED": lambda record: record.state == "COMPLETED",
        "softened": lambda record: record.state == "FIZZLED" and record.quality == "softened",
        "FIZZLED": lambda record: record.state == "FIZZLED" and record.quality != "softened",
    }
    ended = [(record.ended, record) for record in records if record.ended is not None]
    spans, width, said = _time_bins([time for time, _ in ended], bins)
    series = []
    for name, belongs in kinds.items():
        counts = Counter(_bin_of(time, spans, width) for time, record in ended if belongs(record))
        if counts:
            numbers = [counts[n] for n in range(len(spans))]
            series.append(_over_time(name, spans, width, numbers, lambda n: f"{n:,.0f}"))
    total = sum(any(belongs(record) for belongs in kinds.values()) for _, record in ended)
    return Picture(
        "throughput",
        f"Throughput: {_counted(total, 'structure')} that ended, in bins of {said}",
        "time (UTC)",
        f"structures in {said}",
        tuple(series),
        instead="nothing has ended yet",
    )


def cost(records: Iterable[Record], bins: int = 48) -> Picture:
    """Core-hours over time, by the end of the calculation: for labels, and wasted in failed attempts."""
    known = [
        (record.ended, record.core_seconds / CORE_HOUR, (record.wasted_core_seconds or 0.0) / CORE_HOUR)
        for record in records
        if record.ended is not None and record.core_seconds is not None and not record.reused
    ]
    spans, width, said = _time_bins([time for time, _, _ in known], bins)
    spent, wasted = [0.0] * len(spans), [0.0] * len(spans)
    for time, all_of_it, lost in known:
        n = _bin_of(time, spans, width)
        spent[n] += all_of_it - lost
        wasted[n] += lost
    series = [_over_time("went into labels", spans, width, spent, in_few_digits, GREEN)] if any(spent) else []
    series += [_over_time("wasted in failed attempts", spans, width, wasted, in_few_digits, RED)] if any(wasted) else []
    in_all, in_vain = in_few_digits(sum(spent) + sum(wasted)), in_few_digits(sum(wasted))
    return Picture(
        "cost",
        f"Cost: {in_all} core-hours, {in_vain} of them wasted, in bins of {said}",
        "time (UTC)",
        f"core-hours in {said}",
        tuple(series),
        instead="no cost is known yet: it is counted when a calculation ends",
        note="A calculation counts when it ends. Core time is the wall time of pw.x times its MPI ranks.",
    )


def cost_by_level(records: Iterable[Record]) -> Picture:
    """Core-hours by the level at which the label was reached, and of what ended without one."""
    spent: defaultdict[str, float] = defaultdict(float)
    wasted: defaultdict[str, float] = defaultdict(float)
    number: Counter[str] = Counter()
    for record in records:
        if record.core_seconds is None or record.reused:
            continue
        name = f"level {record.level}" if record.quality is not None and record.level is not None else "no label"
        lost = min(record.wasted_core_seconds or 0.0, record.core_seconds)
        spent[name] += (record.core_seconds - lost) / CORE_HOUR
        wasted[name] += lost / CORE_HOUR
        number[name] += 1
    names = tuple(sorted(number, key=lambda name: (name == "no label", name)))

    def bars(name: str, hours: Mapping[str, float], color: str) -> Series:
        texts = tuple(f"{where}: {in_few_digits(hours[where])} core-hours {name}" for where in names)
        heights = tuple(round(hours[where], 6) for where in names)
        return Series(name, names, heights, color, texts, hatched=color == RED)

    return Picture(
        "cost_by_level",
        f"Cost of {_counted(number.total(), 'calculation')} by the level that gave the label",
        "",
        "core-hours",
        (bars("went into labels", spent, GREEN), bars("wasted in failed attempts", wasted, RED)) if names else (),
        instead="no cost is known yet: it is counted when a calculation ends",
    )


def scf_picture(attempts: Sequence[Attempt]) -> Picture:
    """Estimated SCF accuracy after each iteration, all attempts one after the other, with their thresholds."""
    series = []
    begun = 0
    for attempt in attempts:
        accuracies = list(attempt.scf_accuracy)
        if not accuracies:
            continue
        iterations = tuple(range(begun + 1, begun + len(accuracies) + 1))
        name = f"attempt {attempt.number}, level {attempt.level}"
        name += f", {attempt.start}" if attempt.start else ""
        name += f", stage {attempt.stage}" if attempt.stage is not None else ""
        # A logarithm has no place for what is printed as 0.
        heights = tuple(value if value > 0 else None for value in accuracies)
        texts = tuple(f"{name}, iteration {n + 1}: {value:.1e} Ry" for n, value in enumerate(accuracies))
        marker = MARKERS[(attempt.number - 1) % len(MARKERS)]
        series.append(Series(name, iterations, heights, level_color(attempt.level or 0), texts, marker=marker))
        if attempt.conv_thr:
            ends = (begun + 0.5, begun + len(accuracies) + 0.5)
            asked = f"conv_thr of attempt {attempt.number}: {attempt.conv_thr:.1e} Ry"
            thresholds = (attempt.conv_thr, attempt.conv_thr)
            first = not any(other.dashed for other in series)
            series.append(Series("conv_thr", ends, thresholds, INK, (asked, asked), dashed=True, in_legend=first))
        begun += len(accuracies)
    return Picture(
        "scf",
        f"SCF convergence: {_counted(begun, 'iteration')} in {_counted(len(attempts), 'attempt')}",
        "SCF iteration, attempts one after the other",
        "estimated SCF accuracy (Ry), log scale",
        tuple(series),
        kind="lines",
        log_y=True,
        instead="no SCF accuracy is known: the calculation has not begun, or its record was made without",
    )


def ladder_picture(attempts: Sequence[Attempt], names: Sequence[str] = ()) -> Picture:
    """Level of each attempt, and how it ended; `names` are those of the levels, from 0 on."""
    from dftfactory.recovery import LADDER

    names = names or ("default", *(str(level["name"]) for level in LADDER))
    top = max([len(names) - 1, *(attempt.level or 0 for attempt in attempts)])
    ticks = tuple(f"{n} {names[n]}" if n < len(names) else str(n) for n in range(top + 1))
    series = []
    numbers = tuple(range(1, len(attempts) + 1))
    if attempts:
        way = tuple(attempt.level or 0 for attempt in attempts)
        series.append(Series("way", numbers, way, GREY, in_legend=False))
    ends: dict[str, tuple[str, str, Callable[[str | None], bool]]] = {
        "went well": (GREEN, "circle", lambda outcome: outcome in _MEANT),
        "failed": (RED, "x", lambda outcome: outcome is not None and outcome not in _MEANT),
        "runs": (BLUE, "diamond", lambda outcome: outcome is None),
    }
    for name, (color, marker, belongs) in ends.items():
        those = [(n, attempt) for n, attempt in zip(numbers, attempts, strict=True) if belongs(attempt.outcome)]
        if those:
            x, y = tuple(n for n, _ in those), tuple(attempt.level or 0 for _, attempt in those)
            texts = tuple(f"attempt {a.number}: {a.outcome or 'runs, or its end is not known'}" for _, a in those)
            series.append(Series(name, x, y, color, texts, line=False, marker=marker))
    return Picture(
        "ladder",
        f"Way up the ladder: {_counted(len(attempts), 'attempt')}",
        "attempt",
        "level",
        tuple(series),
        kind="lines",
        counts_x=True,
        ticks=ticks,
        instead="no attempt is known: the calculation has not begun, or its history is out of sight",
    )


def overview(records: Sequence[Record]) -> tuple[Picture, ...]:
    """All pictures of a factory at work."""
    return (
        states(records),
        levels(records),
        failures(records),
        throughput(records),
        cost(records),
        cost_by_level(records),
    )


def _time_bins(times: Sequence[datetime], bins: int) -> tuple[list[datetime], float, str]:
    """Return starts of at most so many bins that hold all times, their width in seconds, and the width in words."""
    if not times:
        return [], 60.0, "1 minute"
    first, last = min(times).timestamp(), max(times).timestamp()
    width = next((width for width in _BINS if last // width - first // width < bins), None)
    if width is None:
        width = _BINS[-1] * (int((last - first) / _BINS[-1] / bins) + 1)
    begin, end = int(first // width), int(last // width)
    starts = [datetime.fromtimestamp(n * width, timezone.utc) for n in range(begin, end + 1)]
    unit, seconds = next((u, s) for u, s in (("day", 86400), ("hour", 3600), ("minute", 60)) if width >= s)
    return starts, float(width), _counted(width // seconds, unit)


def _bin_of(time: datetime, starts: Sequence[datetime], width: float) -> int:
    return int(time.timestamp() // width - starts[0].timestamp() // width)


def _over_time(
    name: str,
    starts: Sequence[datetime],
    width: float,
    numbers: Sequence[float],
    form: Callable[[float], str],
    color: str | None = None,
) -> Series:
    half = timedelta(seconds=width / 2)
    color = color or COLORS[name]
    texts = tuple(
        f"{start:%Y-%m-%d %H:%M} to {start + 2 * half:%Y-%m-%d %H:%M} UTC: {form(number)} {name}"
        for start, number in zip(starts, numbers, strict=True)
    )
    return Series(
        name,
        x=tuple(start + half for start in starts),
        y=tuple(round(number, 6) for number in numbers),
        color=color,
        texts=texts,
        widths=(width * 0.9,) * len(starts),
        hatched=color != GREEN,
    )


def _share(number: int, total: int) -> str:
    return f"{number:,} ({100 * number / total:.3g} %)" if total else f"{number:,}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
