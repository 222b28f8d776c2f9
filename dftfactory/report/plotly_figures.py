"""A picture as the dict that plotly.js draws; without importing plotly, which takes a second."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dftfactory.errors import DFTFactoryError
from dftfactory.report.picture import FAINT, GREY, INK, Picture, Series, Value, in_few_digits, numbers_of, polygon

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Of a row's share of the axis; the rest separates it from the next one.
ROW_HEIGHT = 0.82


def figure_of(picture: Picture) -> dict[str, Any]:
    """Return {"data", "layout"} for `Plotly.newPlot`: plain JSON values, all words escaped (plotly.js reads markup)."""
    draw = {"bars": _bars, "lying": _lying, "lines": _line, "rows": _row}[picture.kind]
    # The first row is the upper one.
    data = [draw(series, len(picture.series) - 1 - n) for n, series in enumerate(picture.series) if series.x]
    layout: dict[str, Any] = {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 64, "r": 16, "t": 12, "b": 48},
        "height": _height(picture),
        "showlegend": sum(series.in_legend for series in picture.series) > 1,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "modebar": {"bgcolor": "rgba(255,255,255,0.8)", "color": GREY, "activecolor": INK},
        "hoverlabel": {"font": {"family": FONT}},
        "xaxis": _axis(picture.x_label, picture.log_x),
        "yaxis": _axis(picture.y_label, picture.log_y),
    }
    if picture.is_empty:
        return {"data": [], "layout": {**layout, **_words_instead(picture.instead), "showlegend": False}}
    if picture.kind == "bars":
        layout |= {"barmode": "stack", "bargap": 0.25, "annotations": _totals(picture)}
        layout["yaxis"]["rangemode"] = "tozero"
        if picture.totals:
            layout["xaxis"]["showgrid"] = False
    if picture.kind == "lying":
        layout |= {"barmode": "stack", "bargap": 0.35}
        longest = max(x for series in picture.series for x in numbers_of(series)[0])
        # Room for the numbers beside the bars.
        layout["xaxis"]["range"] = [0, 1.4 * longest]
        layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "type": "category", "showgrid": False}
    if any(isinstance(value, datetime) for series in picture.series for value in series.x):
        layout["xaxis"]["type"] = "date"
    elif picture.kind == "bars" and any(isinstance(value, str) for series in picture.series for value in series.x):
        layout["xaxis"]["type"] = "category"
    if picture.counts_x:
        layout["xaxis"]["dtick"] = 1 + max(len(series.x) for series in picture.series) // 12
    if picture.ticks:
        layout["yaxis"] |= {
            "tickmode": "array",
            "tickvals": list(range(len(picture.ticks))),
            "ticktext": [_escaped(tick) for tick in picture.ticks],
            "automargin": True,
        }
        if picture.kind == "rows":
            # With few decades 2 and 5 are marked, too; plotly.js itself would write them without their power of ten.
            edges, _ = numbers_of(picture.series[0])
            if picture.log_x and edges[-1] < 1e3 * edges[0]:
                decades = range(math.floor(math.log10(edges[0])), math.ceil(math.log10(edges[-1])) + 1)
                marks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
                layout["xaxis"] |= {"tickmode": "array", "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]}
            # The first row on top.
            rows = len(picture.ticks)
            layout["yaxis"] |= {"range": [-0.1, rows], "tickvals": [rows - 1 - row + 0.3 for row in range(rows)]}
            layout["yaxis"] |= {"showgrid": False, "ticks": ""}
        else:
            layout["yaxis"] |= {"range": [-0.4, len(picture.ticks) - 0.6]}
    return {"data": data, "layout": layout}


def _bars(series: Series, base: int) -> dict[str, Any]:
    trace = {
        "type": "bar",
        "name": _escaped(series.name),
        "x": _values(series.x),
        "y": _values(series.y),
        "marker": _marker(series),
        "showlegend": series.in_legend,
    }
    if series.widths:
        # plotly.js measures time in milliseconds.
        unit = 1000 if isinstance(series.x[0], datetime) else 1
        trace["width"] = [width * unit for width in series.widths]
    if series.texts:
        trace |= {"hovertext": [_escaped(text) for text in series.texts], "hoverinfo": "text"}
    return trace


def _lying(series: Series, base: int) -> dict[str, Any]:
    trace = _bars(series, base)
    return {
        **trace,
        "orientation": "h",
        **({"text": trace["hovertext"], "textposition": "outside", "cliponaxis": False} if series.texts else {}),
    }


def _line(series: Series, base: int) -> dict[str, Any]:
    mode = "+".join([*(["lines"] if series.line else []), *(["markers"] if series.marker else [])])
    return {
        "type": "scatter",
        "mode": mode,
        "name": _escaped(series.name),
        "x": _values(series.x),
        "y": _values(series.y),
        "line": {
            "color": series.color,
            "width": 1.5 if series.dashed else 2,
            "dash": "dash" if series.dashed else "solid",
            "shape": "hv" if series.steps else "linear",
        },
        "marker": {"symbol": series.marker or "circle", "size": 7, "color": series.color},
        "showlegend": series.in_legend,
        "connectgaps": False,
        **({"hovertext": [_escaped(text) for text in series.texts], "hoverinfo": "text"} if series.texts else {}),
    }


def _row(series: Series, base: int) -> dict[str, Any]:
    outline = polygon(*numbers_of(series), base, ROW_HEIGHT)
    # Each bin has two corners on top; between the two ends on the base line.
    said = [_escaped(text) for text in series.texts for _ in range(2)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _escaped(series.name),
        "x": [x for x, _ in outline],
        "y": [round(y, 4) for _, y in outline],
        "fill": "toself",
        "fillcolor": series.color,
        "line": {"color": series.color, "width": 1},
        "showlegend": False,
        **({"hovertext": ["", *said, ""], "hoverinfo": "text"} if said else {"hoverinfo": "skip"}),
    }


def _marker(series: Series) -> dict[str, Any]:
    stripes = {"shape": "/", "fgcolor": "#ffffff", "bgcolor": series.color, "size": 7, "solidity": 0.25}
    return {"color": series.color, "line": {"width": 0}, **({"pattern": stripes} if series.hatched else {})}


def _axis(label: str, log: bool) -> dict[str, Any]:
    return {
        "title": {"text": _escaped(label), "standoff": 8, "font": {"size": 13}},
        "type": "log" if log else "-",
        "gridcolor": FAINT,
        "linecolor": FAINT,
        "zeroline": False,
        "automargin": True,
        **({"exponentformat": "power", "dtick": 1} if log else {"exponentformat": "none", "separatethousands": True}),
    }


def _height(picture: Picture) -> int:
    if picture.is_empty:
        return 140
    if picture.kind == "lying":
        return 90 + 34 * picture.n_bars
    return 90 + 40 * len(picture.ticks) if picture.kind == "rows" else 340


def _totals(picture: Picture) -> list[dict[str, Any]]:
    return [
        {"x": _escaped(x), "y": y, "text": in_few_digits(y), "showarrow": False, "yanchor": "bottom"}
        for x, y in picture.totals.items()
    ]


def _words_instead(text: str) -> dict[str, Any]:
    words = {"text": _escaped(text), "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    return {"annotations": [words], "xaxis": {"visible": False}, "yaxis": {"visible": False}}


def _values(values: Iterable[Value]) -> list[Any]:
    """Return JSON values: times in UTC as plotly.js reads them, words escaped."""
    return [
        value.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        if isinstance(value, datetime)
        else _escaped(value)
        if isinstance(value, str)
        else value
        for value in values
    ]


def _escaped(text: str) -> str:
    """Return text in which plotly.js finds no tags; it gives the entities back as letters."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def plotly_js() -> Path:
    """Return plotly.js of the installed package.

    Raises
    ------
    DFTFactoryError
        plotly is not installed, or without it.
    """
    found = find_spec("plotly")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path
    raise DFTFactoryError("plotly, which comes with pymatgen, is missing: `pip install plotly`")
