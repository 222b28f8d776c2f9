"""A structure with its cell and the forces on its atoms, as a figure of plotly.js that turns: plain values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dftfactory.errors import StructureError
from dftfactory.labels import structure_from_dict

Array = NDArray[np.float64]
# Of the covalent radius: balls that leave room for bonds and arrows.
BALL = 0.5
# Two atoms are drawn with a bond when they are nearer than so many times the sum of their covalent radii: Si-Si (1.06)
# and C-H (1.0) are bonds, neighbours in fcc Al (1.18) are not.
BOND = 1.15
# Bonds in a larger structure cannot be told from each other, and the table of distances would be large.
MOST_WITH_BONDS = 1000
# Å; pixels of a marker where the page does not draw balls.
PIXELS_PER_ANGSTROM = 24
# eV/Å; smaller forces are noise of the SCF, and an arrow would make them large.
LEAST_FORCE = 1e-3
# Of the longest arrow: shorter ones are hidden in their atoms.
LEAST_ARROW = 0.02
# Å. Of numbers near the end of what a float holds the sizes would be infinite, which JSON does not have, and the script
# of the page would end there.
LARGEST = 1e9
# Longest side, in plotly's units of a scene: a cube seen from a corner just fits.
SIZE = 1.6
FORCE_COLOUR = "#d62728"
# Readable on the light and on the dark page.
CELL_COLOUR = "#7f8c99"


def structure_figure(
    structure: Mapping[str, Any], forces: Sequence[Sequence[float]] | Array | None = None
) -> dict[str, Any]:
    """Return atoms, bonds, cell and forces as a figure of plotly.js.

    Parameters
    ----------
    structure
        As `structure_to_dict` makes it.
    forces
        eV/Å, shape (n_atoms, 3), in the order of the structure; None draws no arrows.

    Returns
    -------
    dict
        `data` and `layout`. The atoms of one element are one trace of markers, whose `meta` has the `radius` of its
        balls in Å: the pages draw balls, which grow with the zoom as markers do not. The traces of the forces have the
        `legendgroup` "forces".

    Raises
    ------
    StructureError
        It is no structure, a number in it is not finite or absurd, or the forces do not fit to it.
    """
    from ase.data import covalent_radii

    atoms = structure_from_dict(structure)
    positions = np.asarray(atoms.positions, dtype=float)
    cell = np.asarray(atoms.cell.array, dtype=float)
    if not len(atoms) or not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise StructureError("the structure has no atoms, or numbers that are not finite")
    if max(np.abs(positions).max(), np.abs(cell).max()) > LARGEST:
        raise StructureError(f"the structure has lengths above {LARGEST:.0e} Å, which cannot be drawn")
    vectors = _forces_of(forces, len(atoms))
    radii = np.array([covalent_radii[number] for number in atoms.numbers])
    symbols = [str(symbol) for symbol in atoms.symbols]
    traces = [
        *_cell_traces(cell),
        *_bond_traces(positions, radii),
        *_atom_traces(symbols, positions, radii, vectors),
        *([] if vectors is None else _force_traces(positions, vectors, cell)),
    ]
    return {"data": traces, "layout": _layout(traces, radii.max() * BALL)}


def _forces_of(forces: Sequence[Sequence[float]] | Array | None, n_atoms: int) -> Array | None:
    if forces is None:
        return None
    try:
        vectors = np.array(forces, dtype=float)
    except (TypeError, ValueError) as error:
        raise StructureError(f"the forces are no numbers: {error}") from error
    if vectors.shape != (n_atoms, 3) or not np.isfinite(vectors).all():
        raise StructureError(f"expected {n_atoms} finite forces, got an array of shape {vectors.shape}")
    return vectors


def _cell_traces(cell: Array) -> list[dict[str, Any]]:
    """Return the edges of the cell and the names of its vectors; those that are zero are left out."""
    present = [index for index in range(3) if np.linalg.norm(cell[index]) > 0]
    if not present:
        return []
    edges = []
    for index in present:
        others = [other for other in present if other != index]
        for number in range(len(others) + 1):
            for chosen in combinations(others, number):
                start = cell[list(chosen)].sum(axis=0)
                edges.append((start, start + cell[index]))
    ends = cell[present]
    names = {
        "type": "scatter3d",
        "mode": "text",
        "text": ["abc"[index] for index in present],
        "textfont": {"color": CELL_COLOUR, "size": 15},
        "showlegend": False,
        "hoverinfo": "skip",
        # A little beyond the end, so that an atom there does not hide the letter.
        **_coordinates(ends + 0.35 * ends / np.linalg.norm(ends, axis=1)[:, None]),
    }
    return [_lines(edges, "cell", CELL_COLOUR, 2), names]


def _bond_traces(positions: Array, radii: Array) -> list[dict[str, Any]]:
    """Return lines between atoms that touch, without those to the neighbouring cells."""
    if len(positions) > MOST_WITH_BONDS:
        return []
    distances = np.linalg.norm(positions[:, None, :] - positions[None, :, :], axis=2)
    # Each pair once.
    near = np.argwhere(np.triu(distances < BOND * (radii[:, None] + radii[None, :]), k=1))
    bonds = [(positions[first], positions[second]) for first, second in near]
    return [_lines(bonds, "bonds", "#9aa5b1", 7, showlegend=False)] if bonds else []


def _atom_traces(symbols: list[str], positions: Array, radii: Array, forces: Array | None) -> list[dict[str, Any]]:
    """Return one trace for each element, in the order in which they appear."""
    traces = []
    for symbol in dict.fromkeys(symbols):
        own = [index for index, name in enumerate(symbols) if name == symbol]
        radius = BALL * float(radii[own[0]])
        size = round(2 * radius * PIXELS_PER_ANGSTROM, 1)
        marker = {"size": size, "color": element_colour(symbol), "line": {"color": "#55606b", "width": 1}}
        texts = [_text(symbol, index, positions[index], None if forces is None else forces[index]) for index in own]
        traces.append(
            {
                "type": "scatter3d",
                "mode": "markers",
                "name": f"{symbol} ({len(own)})",
                "text": texts,
                "hoverinfo": "text",
                "marker": marker,
                "meta": {"radius": round(radius, 4)},
                **_coordinates(positions[own]),
            }
        )
    return traces


def _text(symbol: str, index: int, position: Array, force: Array | None) -> str:
    """Return what an atom says of itself; atoms are counted from 1, as in pw.x."""
    x, y, z = position
    lines = [f"{symbol}, atom {index + 1}", f"{x:.4f}, {y:.4f}, {z:.4f} Å"]
    if force is not None:
        lines.append(f"force {np.linalg.norm(force):.4f} eV/Å")
    return "<br>".join(lines)


def _force_traces(positions: Array, forces: Array, cell: Array) -> list[dict[str, Any]]:
    """Return arrows from the atoms: the longest a quarter of the structure, the others in proportion."""
    lengths = np.linalg.norm(forces, axis=1)
    longest = float(lengths.max())
    if longest < LEAST_FORCE:
        return []
    extent = float(np.ptp(np.vstack([positions, cell, np.zeros(3)]), axis=0).max())
    # Å for the longest arrow: it should be longer than a ball and not leave the picture.
    arrow = min(3.0, max(1.2, extent / 4))
    seen = lengths > LEAST_ARROW * longest
    starts, vectors = positions[seen], forces[seen] * arrow / longest
    directions = forces[seen] / lengths[seen][:, None]
    tips = starts + vectors
    # Å; a head is never longer than its arrow.
    heads = np.minimum(0.4, 0.5 * np.linalg.norm(vectors, axis=1))
    lines = _lines(list(zip(starts, tips - 0.5 * heads[:, None] * directions, strict=True)), "", FORCE_COLOUR, 6)
    lines |= {"name": f"forces (longest {longest:.3f} eV/Å)", "legendgroup": "forces"}
    # A head is a pyramid with five sides: cones of plotly choose their size by how near their neighbours are.
    corners, faces = _pyramids(tips, directions, heads)
    mesh = {
        "type": "mesh3d",
        "color": FORCE_COLOUR,
        # plotly.js darkens meshes of small triangles, whatever the light.
        "lighting": {"ambient": 1, "diffuse": 0, "specular": 0, "fresnel": 0},
        "hoverinfo": "skip",
        "legendgroup": "forces",
        "showlegend": False,
        "i": faces[:, 0].tolist(),
        "j": faces[:, 1].tolist(),
        "k": faces[:, 2].tolist(),
        **_coordinates(corners),
    }
    return [lines, mesh]


def _pyramids(tips: Array, directions: Array, heights: Array, sides: int = 5) -> tuple[Array, NDArray[np.int64]]:
    """Return corners and triangles of pyramids that end at `tips`."""
    # Any vector that is not along the direction gives the plane of the base.
    helper = np.where(np.abs(directions[:, [0]]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(directions, helper)
    first /= np.linalg.norm(first, axis=1)[:, None]
    second = np.cross(directions, first)
    angles = np.arange(sides) * 2 * np.pi / sides
    ring = np.cos(angles)[None, :, None] * first[:, None, :] + np.sin(angles)[None, :, None] * second[:, None, :]
    base = (tips - heights[:, None] * directions)[:, None, :] + 0.35 * heights[:, None, None] * ring
    corners = np.concatenate([tips[:, None, :], base], axis=1)
    mantle = [(0, 1 + side, 1 + (side + 1) % sides) for side in range(sides)]
    floor = [(1, 1 + side, 2 + side) for side in range(1, sides - 1)]
    offsets = np.arange(len(tips)) * (sides + 1)
    faces = offsets[:, None, None] + np.array(mantle + floor)[None, :, :]
    return corners.reshape(-1, 3), faces.reshape(-1, 3)


def element_colour(symbol: str) -> str:
    """Return Jmol's colour of an element, as #rrggbb."""
    from ase.data import atomic_numbers
    from ase.data.colors import jmol_colors

    # Elements beyond its table have none.
    number = min(atomic_numbers[symbol], len(jmol_colors) - 1)
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in jmol_colors[number])


def _lines(
    pairs: Sequence[tuple[Array, Array]], name: str, colour: str, width: int, *, showlegend: bool = True
) -> dict[str, Any]:
    """Return separate lines as one trace: plotly lifts the pen at None."""
    coordinates: dict[str, list[float | None]] = {"x": [], "y": [], "z": []}
    for start, end in pairs:
        for axis, values in enumerate(coordinates.values()):
            values += [round(float(start[axis]), 4), round(float(end[axis]), 4), None]
    line = {"color": colour, "width": width}
    return {
        "type": "scatter3d",
        "mode": "lines",
        "name": name,
        "line": line,
        "hoverinfo": "skip",
        "showlegend": showlegend,
        **coordinates,
    }


def _coordinates(points: Array) -> dict[str, list[float]]:
    return {name: [round(float(value), 4) for value in points[:, axis]] for axis, name in enumerate("xyz")}


def _layout(traces: Sequence[Mapping[str, Any]], ball: float) -> dict[str, Any]:
    """Return a view of all that is drawn, which stays where it is when arrows are switched off.

    `aspectmode` "data" would make the same proportions, smaller: without a perspective plotly.js takes the size from
    `aspectratio`, and from nothing else.
    """
    ranges = []
    for name in "xyz":
        values = [value for trace in traces for value in trace[name] if value is not None]
        ranges.append((min(values) - ball, max(values) + ball))
    extents = [end - begin for begin, end in ranges]
    axes = {
        f"{name}axis": {"visible": False, "showspikes": False, "range": [round(begin, 3), round(end, 3)]}
        for name, (begin, end) in zip("xyz", ranges, strict=True)
    }
    return {
        "scene": {
            **axes,
            # One Å is as long in each direction.
            "aspectmode": "manual",
            "aspectratio": {
                name: round(SIZE * extent / max(extents), 5) for name, extent in zip("xyz", extents, strict=True)
            },
            "dragmode": "orbit",
            "camera": {"projection": {"type": "orthographic"}, "eye": {"x": 1.05, "y": -1.35, "z": 0.5}},
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yanchor": "top", "itemsizing": "constant"},
        # The same word keeps camera and switches when the page draws it again.
        "uirevision": "structure",
    }
