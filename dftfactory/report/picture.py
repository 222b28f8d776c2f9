"""What a picture is: plain data that plotly.js (`plotly_figures`) and matplotlib (`png`) draw alike; its colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

Value: TypeAlias = "float | int | str | datetime | None"

# One meaning for each colour, in the terminal, on the web and in reports. Green and red also differ in lightness, for
# those who cannot tell them apart, and failed parts of bars are hatched.
GREEN, RED, BLUE, GREY, ORANGE, PURPLE = "#2a9d63", "#b3242b", "#2f6fb5", "#9a9fa5", "#eda13b", "#7d53a3"
COLORS = {
    "COMPLETED": GREEN,
    "FIZZLED": RED,
    "FAILED": RED,
    "RUNNING": BLUE,
    "READY": GREY,
    "WAITING": GREY,
    "RESERVED": GREY,
    "ARCHIVED": GREY,
    "softened": ORANGE,
    "DEFUSED": PURPLE,
    "PAUSED": PURPLE,
}
# Levels 0, 1, ... of the ladder from light to dark; ladders of users that go on stay at the darkest.
LEVEL_COLORS = ("#a9dcb4", "#5cb87a", "#23844a", "#0c4123")
INK, FAINT = "#24292f", "#d9dde1"


@dataclass(frozen=True)
class Series:
    """One set of bars, points or one line of a picture.

    Attributes
    ----------
    name
        What the legend says; text by strangers, which whoever draws it must escape.
    x, y
        Values in the units of the axes. In a picture of rows `x` has the edges of the bins, one more than the counts
        in `y`.
    texts
        What is said of each value: beside bars that lie, elsewhere when pointed at.
    widths
        Of bars: in the unit of x, seconds where x are times; none for bars over words.
    hatched
        Whether bars have stripes.
    line, dashed, steps, marker
        How a line looks, where there is one; `marker` is one of MARKERS or "".
    """

    name: str
    x: tuple[Value, ...]
    y: tuple[Value, ...]
    color: str
    texts: tuple[str, ...] = ()
    widths: tuple[float, ...] = ()
    hatched: bool = False
    line: bool = True
    dashed: bool = False
    marker: str = ""
    steps: bool = False
    in_legend: bool = True


MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes
    ----------
    name
        Short, for files and addresses.
    title
        With the number of what is shown.
    kind
        "bars" (standing, one upon the other), "lying" (bars to the right of words), "lines", or "rows" (one histogram
        above the other, each as high as its own largest bin).
    log_x, log_y
        Whether the axis is logarithmic; its label says so, too.
    counts_x
        Whether x counts something that has no halves.
    ticks
        Words at whole numbers of the y axis, from 0 on: names of rows and levels.
    instead
        What is said where there is nothing to draw.
    note
        What is left out and why, or how to read it; below the picture.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: str = "bars"
    log_x: bool = False
    log_y: bool = False
    counts_x: bool = False
    ticks: tuple[str, ...] = ()
    instead: str = "nothing to show yet"
    note: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(series.x for series in self.series)

    @property
    def n_bars(self) -> int:
        """Number of bars of a lying picture: several series can share one."""
        return len({y for series in self.series for y in series.y})

    @property
    def totals(self) -> dict[str, float]:
        """Heights of the bars that stand on words, all series together; empty for other pictures."""
        heights: dict[str, float] = {}
        for series in self.series if self.kind == "bars" else ():
            for x, y in zip(series.x, series.y, strict=True):
                if isinstance(x, str) and isinstance(y, (int, float)):
                    heights[x] = heights.get(x, 0.0) + y
        return heights


def level_color(level: int) -> str:
    """Return the colour of a level of the ladder."""
    return LEVEL_COLORS[min(max(level, 0), len(LEVEL_COLORS) - 1)]


def numbers_of(series: Series) -> tuple[list[float], list[float]]:
    """Return edges and counts of a row."""
    return [float(x) for x in series.x if isinstance(x, (int, float))], [
        float(y) for y in series.y if isinstance(y, (int, float))
    ]


def in_few_digits(number: float) -> str:
    """Return a number for the top of a bar: counts are whole, and of others three digits are enough."""
    return f"{number:,.0f}" if number == int(number) or number >= 100 else f"{number:.3g}"


def polygon(edges: Sequence[float], counts: Sequence[float], base: float, height: float) -> list[tuple[float, float]]:
    """Return the outline of one row: a histogram that stands on `base`, its largest bin `height` high."""
    largest = max(counts, default=0) or 1
    outline = [(edges[0], base)]
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        top = base + height * count / largest
        outline += [(left, top), (right, top)]
    return [*outline, (edges[-1], base)]
