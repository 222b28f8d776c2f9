"""The pictures of a data set: how energies, forces, pressures and costs of its labels are distributed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dftfactory.report.data_set import DataSet, LabelNumbers
from dftfactory.report.outliers import linear_fit
from dftfactory.report.picture import Picture, Series, level_color
from dftfactory.results import FloatArray

BINS = 60
# Part of the values that the axis leaves out on each side, so that few far ones do not press all others into one bin.
_BEYOND = 0.005
# One colour for all compositions: the rows have names, and a colour would mean nothing.
_ROW, _ALL = "#5b8db8", "#3d5a73"


def data_pictures(data_set: DataSet) -> tuple[Picture, ...]:
    """All pictures of a data set."""
    return (
        energies(data_set),
        largest_forces(data_set),
        force_components(data_set),
        pressures(data_set),
        cost_per_label(data_set),
        cost_per_atom(data_set),
    )


def energies(data_set: DataSet) -> Picture:
    """Energy per atom, less what a linear fit of the composition gives it: energies of elements cannot be compared."""
    by_configuration: defaultdict[str, list[LabelNumbers]] = defaultdict(list)
    for label in data_set.labels:
        by_configuration[label.config_hash].append(label)
    # Fitted to exact labels where there are any, and for each configuration by itself.
    fits = {
        name: linear_fit([label for label in labels if label.is_exact] or labels)
        for name, labels in by_configuration.items()
    }
    known = [
        (label, label.energy - fits[label.config_hash].expected[label.composition])
        for label in data_set.labels
        if label.composition in fits[label.config_hash].expected
    ]
    left_out = len(data_set.labels) - len(known)
    return _rows(
        "energy",
        f"Energy per atom of {_labels(len(known))}, less a linear fit of the composition",
        "energy per atom − linear fit (eV/atom)",
        _grouped(data_set, known),
        "eV/atom",
        note="The fit has one energy for each element; formation energies remain. "
        + f"{_labels(left_out)} softened, of compositions without an exact label, not shown." * (left_out > 0),
    )


def largest_forces(data_set: DataSet) -> Picture:
    """Largest force of each label, on a logarithmic axis."""
    known = [(label, label.max_force) for label in data_set.labels if label.max_force > 0]
    at_rest = len(data_set.labels) - len(known)
    return _rows(
        "max_force",
        f"Largest force of {_labels(len(known))}",
        "largest force on an atom (eV/Å), log scale",
        _grouped(data_set, known),
        "eV/Å",
        log=True,
        note=f"{_labels(at_rest)} without any force (by symmetry) not shown: a logarithm has no place for 0."
        * (at_rest > 0),
    )


def force_components(data_set: DataSet) -> Picture:
    """All components of the forces."""
    forces = data_set.forces
    values: defaultdict[str, list[FloatArray]] = defaultdict(list)
    for place, components in forces.parts:
        values[data_set.groups.name_of(data_set.labels[place])].append(components.astype(float))
    grouped = {name: np.concatenate(parts) for name, parts in values.items()}
    every = "" if forces.every == 1 else f", those of every {forces.every}th label"
    return _rows(
        "force_components",
        f"{forces.number:,} force components of {_labels(len(forces.parts))}{every}",
        "force component (eV/Å)",
        _ordered(data_set, grouped),
        "eV/Å",
        what="component",
    )


def pressures(data_set: DataSet) -> Picture:
    """Pressure of the labels that are periodic in three directions."""
    known = [(label, label.pressure) for label in data_set.labels if label.pressure is not None]
    others = len(data_set.labels) - len(known)
    return _rows(
        "pressure",
        f"Pressure of {_labels(len(known))}",
        "pressure (GPa), positive under compression",
        _grouped(data_set, known),
        "GPa",
        note=f"{_labels(others)} not periodic in three directions not shown: a pressure means nothing there."
        * (others > 0),
        instead="no labels of cells that are periodic in three directions",
    )


def cost_per_label(data_set: DataSet) -> Picture:
    """Core-seconds of each label, by the level that gave it."""
    return _costs(data_set, "label", [1] * len(data_set.labels))


def cost_per_atom(data_set: DataSet) -> Picture:
    """Core-seconds of each label by atom, by the level that gave it."""
    return _costs(data_set, "atom", [label.n_atoms for label in data_set.labels])


def _costs(data_set: DataSet, of: str, shares: Sequence[int]) -> Picture:
    values: defaultdict[int, list[float]] = defaultdict(list)
    for label, share in zip(data_set.labels, shares, strict=True):
        if label.core_seconds:
            values[label.level].append(label.core_seconds / share)
    number = sum(map(len, values.values()))
    unknown = len(data_set.labels) - number
    return _rows(
        f"cost_per_{of}",
        f"Core-seconds per {of}: {_labels(number)}, by the level that gave the label",
        f"core-seconds per {of}, log scale",
        {f"level {level}": np.array(values[level]) for level in sorted(values)},
        "core-seconds",
        log=True,
        colors={f"level {level}": level_color(level) for level in values},
        note="With all attempts of the calculation: wall time of pw.x times its MPI ranks. "
        + f"{_labels(unknown)} without a record of their time not shown." * (unknown > 0),
        instead="no labels with a record of their time yet",
        with_all=False,
    )


def _grouped(data_set: DataSet, known: Iterable[tuple[LabelNumbers, float]]) -> dict[str, FloatArray]:
    """Return values by the row that they belong to."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for label, value in known:
        values[data_set.groups.name_of(label)].append(value)
    return _ordered(data_set, {name: np.array(entries) for name, entries in values.items()})


def _ordered(data_set: DataSet, values: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    return {name: values[name] for name in data_set.groups.names if name in values}


def _rows(
    name: str,
    title: str,
    x_label: str,
    values: Mapping[str, FloatArray],
    unit: str,
    *,
    log: bool = False,
    what: str = "label",
    colors: Mapping[str, str] | None = None,
    note: str = "",
    instead: str = "no labels yet",
    with_all: bool = True,
) -> Picture:
    """Return one histogram for each entry, and one of all together where there are several."""
    if not values:
        return Picture(name, title, x_label, "", (), kind="rows", log_x=log, instead=instead)
    together = np.concatenate(list(values.values()))
    edges = _edges(together, log=log)
    beyond = int(((together < edges[0]) | (together > edges[-1])).sum())
    rows = {"all": together, **values} if with_all and len(values) > 1 else values
    series = tuple(
        Series(
            row,
            x=tuple(float(f"{edge:.6g}") for edge in edges),
            y=tuple((counts := np.histogram(numbers, edges)[0]).tolist()),
            color=(colors or {}).get(row, _ALL if row == "all" else _ROW),
            texts=tuple(
                f"{row}: {_counted(count, what)} from {left:.4g} to {right:.4g} {unit}"
                for left, right, count in zip(edges, edges[1:], counts.tolist(), strict=False)
            ),
            in_legend=False,
        )
        for row, numbers in rows.items()
    )
    notes = ["Each row is as high as its fullest bin."] if len(rows) > 1 else []
    notes += [f"{_counted(beyond, what)} beyond the ends of the axis."] if beyond else []
    return Picture(
        name,
        title,
        x_label,
        "",
        series,
        kind="rows",
        log_x=log,
        ticks=tuple(f"{row} ({len(numbers):,})" for row, numbers in rows.items()),
        note=" ".join(filter(None, [note.strip(), *notes])),
    )


def _edges(values: FloatArray, *, log: bool) -> FloatArray:
    """Return edges of equal bins, or of equal ratios, that hold all values but the farthest 0.5 % on each side."""
    numbers = np.log10(values) if log else values
    low, high = np.quantile(numbers, [_BEYOND, 1 - _BEYOND], method="closest_observation")
    if len(numbers) < 1 / _BEYOND:
        low, high = numbers.min(), numbers.max()
    # A single value, or the same one everywhere, gets some room around it.
    room = max(0.02 * (high - low), 1e-3 * abs(high), 1e-3)
    n_bins = int(min(BINS, max(8, 2 * np.sqrt(len(numbers)))))
    edges: FloatArray = np.linspace(low - room, high + room, n_bins + 1)
    return 10**edges if log else edges


def _labels(number: int) -> str:
    return _counted(number, "label")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
