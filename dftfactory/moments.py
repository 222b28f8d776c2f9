"""Where an SCF starts from: the moments of the atoms, by `DFTConfig.magnetism` or by the structure itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dftfactory.errors import StructureError

if TYPE_CHECKING:
    from ase import Atoms

    from dftfactory.results import FloatArray

# Spin moments (μB) of the free atoms by Hund's rule, as a start from which the SCF comes down: 3d metals and 4f.
STARTING_MOMENTS = {
    **{"Cr": 6.0, "Mn": 5.0, "Fe": 4.0, "Co": 3.0, "Ni": 2.0},
    **{"Ce": 1.0, "Pr": 3.0, "Nd": 4.0, "Pm": 5.0, "Sm": 6.0, "Eu": 7.0, "Gd": 7.0, "Tb": 5.0, "Dy": 4.0, "Ho": 3.0},
    **{"Er": 2.0, "Tm": 1.0},
}
# μB; starts that agree to this are one start.
MOMENT_TOLERANCE = 1e-3
# Times the distance of the nearest magnetic neighbour: the first shell of a distorted crystal, without the second one
# of bcc at 1.15.
SHELL = 1.1


@dataclass(frozen=True, eq=False)
class Start:
    """One start of the SCF.

    Attributes
    ----------
    name
        As it is asked for: `auto`, `none`, `Fe 0.5`, or `own moments` of the structure.
    moments
        Shape (n_atoms,), μB; None for a calculation without spin.
    """

    name: str
    moments: FloatArray | None

    def applied_to(self, atoms: Atoms) -> Atoms:
        """Return a copy of the structure that has these moments as its own."""
        copy = atoms.copy()
        copy.set_initial_magnetic_moments(self.moments)
        return copy


def starts_of(atoms: Atoms, magnetism: str | Mapping[str, float] | Sequence[Any]) -> tuple[Start, ...]:
    """Return the starts of a structure under `DFTConfig.magnetism`; more than one only where it is a list.

    Initial moments on the structure win over a single form. In a list they are one more start: in the place of `auto`,
    which is a guess where they are known, or the first one. Starts that are the same for a structure (`auto` and `none`
    for Si), up to the sign of all moments together, are one.

    Raises
    ------
    StructureError
        The initial moments on the structure are noncollinear or not finite.
    """
    moments: FloatArray = atoms.get_initial_magnetic_moments()
    if moments.ndim != 1:
        raise StructureError("the structure has noncollinear initial moments; only collinear spin is supported")
    if not np.isfinite(moments).all():
        raise StructureError("the structure has NaN or infinite initial magnetic moments")
    own = [Start("own moments", moments)] if moments.any() else []
    if isinstance(magnetism, str | Mapping):
        return tuple(own) or (_start(atoms, magnetism),)
    starts = own if own and "auto" not in magnetism else []
    for form in magnetism:
        starts += own if own and form == "auto" else [_start(atoms, form)]
    distinct: dict[tuple[int, ...] | None, Start] = {}
    for start in starts:
        distinct.setdefault(_name_of_moments(start.moments), start)
    return tuple(distinct.values())


def starting_moments(atoms: Atoms, magnetism: str | Mapping[str, float] | Sequence[Any]) -> FloatArray | None:
    """Return the starting moment of each atom in μB, or None for a calculation without spin.

    Initial moments on the structure win over `magnetism`; of several starts it is the first.
    """
    return starts_of(atoms, magnetism)[0].moments


def antiferromagnetic(atoms: Atoms, moments: FloatArray) -> FloatArray:
    """Return the moments with signs that alternate between nearest magnetic neighbours, as far as that is possible.

    Atom by atom, from neighbour to neighbour in the order of the structure, each takes the sign that is opposite to
    most of its neighbours that have one already; where there are as many of both, the one that compensates the cell.
    Exact where the neighbours form two sublattices, one of several orders where they do not (fcc), and nothing new for
    a single magnetic atom.
    """
    magnetic = np.flatnonzero(moments)
    distances = atoms[magnetic].get_all_distances(mic=True)
    np.fill_diagonal(distances, np.inf)
    nearest = SHELL * distances.min(axis=1, initial=np.inf)
    # Neighbours, and not distances, decide the order: noise in the last digit of a position changes nothing.
    bonded = (distances <= np.maximum.outer(nearest, nearest)) & np.isfinite(distances)
    signs = np.zeros(len(magnetic))
    waiting: list[int] = []
    while not signs.all():
        n = waiting.pop(0) if waiting else int(np.flatnonzero(signs == 0)[0])
        if not signs[n]:
            against = signs[bonded[n]].sum() or (signs * moments[magnetic]).sum()
            signs[n] = -1.0 if against > 0 else 1.0
            waiting += np.flatnonzero(bonded[n]).tolist()
    alternating: FloatArray = moments.copy()
    alternating[magnetic] *= signs
    return alternating


def _start(atoms: Atoms, form: str | Mapping[str, float]) -> Start:
    if isinstance(form, Mapping):
        return Start(", ".join(f"{element} {moment:g}" for element, moment in form.items()), _moments(atoms, form))
    moments = _moments(atoms, {} if form == "none" else STARTING_MOMENTS)
    if form == "antiferromagnetic" and moments is not None:
        moments = antiferromagnetic(atoms, moments)
    return Start(form, moments)


def _moments(atoms: Atoms, table: Mapping[str, float]) -> FloatArray | None:
    moments = np.array([table.get(symbol, 0.0) for symbol in atoms.symbols])
    return moments if moments.any() else None


def _name_of_moments(moments: FloatArray | None) -> tuple[int, ...] | None:
    """Equal for equal starts; all moments turned round are the same state, since nothing prefers a direction."""
    if moments is None:
        return None
    steps = np.rint(moments / MOMENT_TOLERANCE).astype(int)
    return max(tuple(steps.tolist()), tuple((-steps).tolist()))
