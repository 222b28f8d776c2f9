"""The same pictures as PNG files for papers and chats, with matplotlib: no browser is needed on a cluster.

`Figure` and Agg are used directly: pyplot would choose a backend, and keep the figures of the whole process.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.errors import DFTFactoryError, printable
from dftfactory.report.picture import FAINT, INK, Picture, Series, in_few_digits, numbers_of, polygon
from dftfactory.report.plotly_figures import ROW_HEIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches and dots per inch: the width of two columns of a journal, with its 300 dpi.
WIDTH = 7.0
DPI = 300
# How our own files are known: the `Software` of a PNG.
MARK = "dftfactory report"
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "cross": "P", "star": "*"}
_SIZES = {"font": 8, "title": 9, "note": 6.5}


def write_pngs(pictures: Iterable[Picture], folder: Path) -> list[Path]:
    """Write one PNG for each picture that shows something, NAME.png.

    Raises
    ------
    DFTFactoryError
        The folder cannot be made or written, or has a file of that name that is none of ours; nothing was written.
    """
    pictures = list(pictures)
    paths = {picture.name: folder / f"{picture.name}.png" for picture in pictures}
    for path in paths.values():
        if path.exists() and not _is_ours(path):
            raise DFTFactoryError(f"{path} is there already and not written by `dftfactory report`; move it away")
    try:
        if not all(picture.is_empty for picture in pictures):
            folder.mkdir(exist_ok=True)
        written = []
        for picture in pictures:
            path = paths[picture.name]
            if picture.is_empty:
                # Of an earlier report.
                path.unlink(missing_ok=True)
                continue
            write_png(picture, path)
            written.append(path)
    except OSError as error:
        raise DFTFactoryError(f"cannot write pictures into {folder}: {error.strerror}") from error
    return written


def write_png(picture: Picture, path: Path) -> None:
    """Draw one picture into a file, in one step."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # What is set in a matplotlibrc, or by the program around us, is put aside while we draw.
    settings: Any = {"font.size": _SIZES["font"], "hatch.linewidth": 0.6}
    with style.context(["default", settings]), warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(
            figsize=(WIDTH, _height(picture)), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
        )
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw(picture, axes)
        if picture.note:
            figure.supxlabel(_wrapped(picture.note), fontsize=_SIZES["note"], color="#57606a", x=0.01, ha="left")
        partial = path.with_name(f".{path.name}.part")
        try:
            figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": MARK, "Title": picture.title})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _draw(picture: Picture, axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_title(_plain(picture.title), fontsize=_SIZES["title"], loc="left", color=INK)
    axes.set_xlabel(_plain(picture.x_label))
    axes.set_ylabel(_plain(picture.y_label))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    {"bars": _bars, "lying": _lying, "lines": _lines, "rows": _rows}[picture.kind](picture, axes)
    if picture.log_x:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high < 1e3 * low:
            # With few decades 2 and 5 are marked, too.
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
    if picture.log_y:
        axes.set_yscale("log")
    if any(isinstance(x, datetime) for series in picture.series for x in series.x):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    named = [series for series in picture.series if series.in_legend and series.x]
    if len(named) > 1:
        axes.legend(fontsize=_SIZES["note"], frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _bars(picture: Picture, axes: Axes) -> None:
    tops: dict[Any, float] = {}
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    for series in picture.series:
        heights = [float(y or 0) for y in series.y if not isinstance(y, (str, datetime))]
        below = [tops.get(x, 0.0) for x in series.x]
        widths: Any = [timedelta(seconds=w) if isinstance(series.x[0], datetime) else w for w in series.widths]
        x: Any = [_plain(x) if isinstance(x, str) else x for x in series.x]
        bars = axes.bar(x, heights, widths or 0.7, bottom=below, color=series.color, label=_plain(series.name))
        _hatch(bars, series)
        tops |= {where: low + height for where, low, height in zip(series.x, below, heights, strict=True)}
    for name, total in picture.totals.items():
        axes.annotate(in_few_digits(total), (_plain(name), total), ha="center", va="bottom", fontsize=_SIZES["note"])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)


def _lying(picture: Picture, axes: Axes) -> None:
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    for series in picture.series:
        y: Any = [_plain(str(y)) for y in series.y]
        lengths = [float(x) for x in series.x if isinstance(x, (int, float))]
        bars = axes.barh(y, lengths, 0.65, color=series.color)
        _hatch(bars, series)
        for where, length, text in zip(y, lengths, series.texts, strict=False):
            axes.annotate(
                f" {_plain(text)}", (length, where), va="center", fontsize=_SIZES["note"], annotation_clip=False
            )
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)


def _lines(picture: Picture, axes: Axes) -> None:
    axes.grid(color=FAINT, linewidth=0.5)
    for series in picture.series:
        x: Any = list(series.x)
        y: Any = [float("nan") if value is None else value for value in series.y]
        axes.plot(
            x,
            y,
            color=series.color,
            linestyle=("--" if series.dashed else "-") if series.line else "none",
            linewidth=0.8 if series.dashed else 1.2,
            marker=_MARKERS.get(series.marker, ""),
            markersize=3.5,
            drawstyle="steps-post" if series.steps else "default",
            label=_plain(series.name) if series.in_legend else "_",
        )
    if picture.ticks:
        axes.set_yticks(range(len(picture.ticks)), [_plain(tick) for tick in picture.ticks])
        axes.set_ylim(-0.4, len(picture.ticks) - 0.6)


def _rows(picture: Picture, axes: Axes) -> None:
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    rows = len(picture.series)
    for row, series in enumerate(picture.series):
        base = rows - 1 - row
        outline = polygon(*numbers_of(series), base, ROW_HEIGHT)
        axes.fill(*zip(*outline, strict=True), facecolor=series.color, edgecolor=series.color, linewidth=0.4)
        axes.axhline(base, color=FAINT, linewidth=0.5)
    axes.set_yticks([rows - 1 - row + 0.3 for row in range(rows)], [_plain(tick) for tick in picture.ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.1, rows)


def _hatch(bars: Any, series: Series) -> None:
    if series.hatched:
        for bar in bars:
            bar.set_hatch("////")
            bar.set_edgecolor("white")
            bar.set_linewidth(0)


def _height(picture: Picture) -> float:
    if picture.kind == "lying":
        return 0.9 + 0.24 * picture.n_bars
    return 1.1 + 0.32 * len(picture.series) if picture.kind == "rows" else 3.2


def _plain(text: str) -> str:
    """Return text in which matplotlib finds no formula, and no glyph that is none."""
    return printable(text).replace("$", r"\$")


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(_plain(text), 130))


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(2000)
