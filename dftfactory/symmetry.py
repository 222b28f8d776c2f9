"""The symmetry that pw.x finds in a structure, and the k-points that it leaves of a grid."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dftfactory.results import FloatArray

# pw.x takes two positions for equal that differ by less than 1e-5 of the cell.
SAME_POSITION = 1e-5
# Fractions of the cell by which pw.x lets an operation shift the atoms: its FFT grid must hold the shift.
SHIFTS = (1, 2, 3, 4, 6)


def crystal_rotations(
    cell: FloatArray, positions: FloatArray, kinds: Sequence[int]
) -> tuple[NDArray[np.int_], tuple[int, int, int]]:
    """Find the point group as pw.x finds it, which is not always the whole one.

    pw.x knows only the rotations of a cube along the axes and of a hexagon around z; takes no shifts in a supercell,
    and otherwise those by a half, third, quarter or sixth.

    Parameters
    ----------
    cell
        Shape (3, 3), Å, one vector a row.
    positions
        Shape (n_atoms, 3), in units of the cell.
    kinds
        A number for each atom; only atoms of one kind are exchanged.

    Returns
    -------
    rotations
        Shape (n, 3, 3), acting on fractional coordinates.
    multiples
        What the dimensions of the FFT grid must be multiples of.
    """
    rotations, shifts = _space_group(cell, positions, kinds)
    cartesian = np.linalg.inv(cell) @ rotations.transpose(0, 2, 1) @ cell
    known = np.array([_known_to_pw(matrix) for matrix in cartesian])
    rotations, shifts = rotations[known], shifts[known]
    shifts = shifts - np.rint(shifts)
    unshifted = (np.abs(shifts) < SAME_POSITION).all(axis=1)
    identities = (rotations == np.eye(3, dtype=int)).all(axis=(1, 2))
    if identities.sum() > 1:  # a supercell
        return rotations[unshifted], (1, 1, 1)
    divisors = np.ones(shifts.shape, dtype=int)
    shifted = np.abs(shifts) >= SAME_POSITION
    divisors[shifted] = np.rint(1 / np.abs(shifts[shifted]))
    held = np.isin(divisors, SHIFTS) & (~shifted | (np.abs(np.abs(shifts) - 1 / divisors) < SAME_POSITION))
    allowed = held.all(axis=1)
    first, second, third = (math.lcm(*map(int, column)) for column in divisors[allowed].T)
    return rotations[allowed], (first, second, third)


def count_kpoints(grid: tuple[int, int, int], rotations: NDArray[np.int_], time_reversal: bool = True) -> int:
    """Count the points of a Γ-centred grid of which no two are equal by symmetry."""
    sizes = np.array(grid)
    points = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 3)
    strides = np.array([grid[1] * grid[2], grid[2], 1])
    own = points @ strides
    least = own.copy()
    for rotation in rotations:
        turned = (points / sizes) @ rotation * sizes
        steps = np.rint(turned).astype(int)
        # Where a grid is coarser along a direction that is not periodic, some points are turned off it.
        on_grid = (np.abs(turned - steps) < SAME_POSITION).all(axis=1)
        for image in (steps, -steps) if time_reversal else (steps,):
            np.minimum(least, np.where(on_grid, image % sizes @ strides, own), out=least)
    return len(np.unique(least))


def _space_group(cell: FloatArray, positions: FloatArray, kinds: Sequence[int]) -> tuple[NDArray[np.int_], FloatArray]:
    """Rotations and shifts in fractional coordinates; only the identity where nothing is found."""
    import spglib

    smallest = float(np.linalg.norm(cell, axis=1).min())
    found: Any = None
    # Versions of spglib differ in how they say that they found nothing. The whole grid of k-points is then safe.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = spglib.get_symmetry((cell, positions, list(kinds)), symprec=SAME_POSITION * smallest)
    if found is None:
        return np.eye(3, dtype=int)[None], np.zeros((1, 3))
    return np.array(found["rotations"], dtype=int), np.array(found["translations"], dtype=float)


def _known_to_pw(matrix: FloatArray) -> bool:
    """Whether a Cartesian rotation is one of a cube along the axes, or of a hexagonal prism along z."""
    entries = np.abs(matrix)
    if (np.minimum(entries, np.abs(entries - 1)) < SAME_POSITION).all():
        return True
    block = entries[:2, :2]
    around_z = abs(entries[2, 2] - 1) < SAME_POSITION
    sixths = np.minimum(np.abs(block - 0.5), np.abs(block - math.sqrt(0.75))) < SAME_POSITION
    return bool(around_z and sixths.all())
