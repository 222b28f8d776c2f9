"""Atoms and DFTConfig to pw.in, and structures that cannot be right; `pw_in` reads and changes one that exists."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dftfactory.config import DFTConfig
from dftfactory.errors import StructureError
from dftfactory.history import write_atomically
from dftfactory.moments import starting_moments
from dftfactory.pseudos import Pseudopotential, load_pseudopotentials, needs_dense_charge_grid
from dftfactory.pw_in import NAMELIST_OF as NAMELIST_OF
from dftfactory.pw_in import PwInput as PwInput
from dftfactory.pw_in import change_pw_input as change_pw_input
from dftfactory.pw_in import check_word
from dftfactory.pw_in import read_pw_input as read_pw_input

if TYPE_CHECKING:
    from ase import Atoms

    from dftfactory.results import FloatArray, IntArray

# pw.x 6.7 and 7.x hold at most ten kinds of atom (ntypx), and labels of three characters.
MAX_KINDS = 10
# Å; anything further out is a broken structure and not a far one.
MAX_COORDINATE = 1.0e4
# A label of pw.x takes a minute of a node for ten atoms and grows with the third power: of this many, years.
MAX_ATOMS = 5000
# Atoms up to which all pairs are faster than a list of neighbours: 0.5 ms instead of 3.8 for 8 atoms, more from 64 on.
_PAIR_BY_PAIR = 40


def check_structure(atoms: Atoms, min_distance_fraction: float = 0.5) -> None:
    """Refuse a structure that cannot be right, before anything is run on it.

    Parameters
    ----------
    atoms
        The structure. pw.x repeats every cell in three directions, so distances to all images count.
    min_distance_fraction
        Two atoms closer than this fraction of the sum of their covalent radii (Cordero 2008, as in ASE) are refused.

    Raises
    ------
    StructureError
        No atoms or too many, unknown elements, NaN or huge coordinates, no cell or a flat one, atoms on top of each
        other.
    """
    from ase.data import chemical_symbols, covalent_radii
    from ase.geometry import minkowski_reduce

    if len(atoms) == 0:
        raise StructureError("the structure has no atoms")
    if (reason := too_many_atoms(len(atoms))) is not None:
        raise StructureError(f"the structure {reason}")
    unknown = np.flatnonzero((atoms.numbers < 1) | (atoms.numbers >= len(chemical_symbols)))
    if len(unknown):
        number = int(atoms.numbers[unknown[0]])
        name = "X" if number == 0 else f"number {number}"
        raise StructureError(f"atom {int(unknown[0]) + 1} is no chemical element ({name})")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise StructureError("the structure has NaN or infinite coordinates")
    if np.abs(atoms.positions).max() > MAX_COORDINATE or np.abs(atoms.cell.array).max() > MAX_COORDINATE:
        raise StructureError(f"the structure has coordinates beyond {MAX_COORDINATE:g} Å")
    lengths = atoms.cell.lengths()
    if lengths.min() == 0.0:
        raise StructureError(
            "the structure has no cell; put a molecule into a box, e.g. atoms.center(vacuum=6), "
            "and write it to a file that keeps the box, such as extended XYZ with its Lattice"
        )
    if abs(atoms.cell.volume) < 1e-3 * lengths.prod():
        raise StructureError(
            f"the cell is flat: volume {atoms.cell.volume:.3g} Å³ of lengths {lengths.round(3).tolist()} Å"
        )
    radii = covalent_radii[atoms.numbers]
    # The shortest vectors of the same lattice: in a small or skewed cell there would be images without end.
    cell, _ = minkowski_reduce(atoms.cell)
    shortest, needed = float(np.linalg.norm(cell, axis=1).min()), 2 * min_distance_fraction * float(radii.min())
    if shortest < needed:
        raise StructureError(
            f"atoms 1 ({atoms.symbols[0]}) and 1 ({atoms.symbols[0]}) are {shortest:.3f} Å apart (the cell repeats), "
            f"less than {needed:.3f} Å = min_distance_fraction {min_distance_fraction:g} x the sum of covalent radii",
            atoms=[1, 1],
            distance=shortest,
        )
    first, second, distances = _close_pairs(atoms, cell, min_distance_fraction * radii)
    if len(distances):
        n = int((distances / (radii[first] + radii[second])).argmin())
        i, j, distance = int(first[n]), int(second[n]), float(distances[n])
        limit = min_distance_fraction * float(radii[i] + radii[j])
        raise StructureError(
            f"atoms {i + 1} ({atoms.symbols[i]}) and {j + 1} ({atoms.symbols[j]}) are {distance:.3f} Å apart, "
            f"less than {limit:.3f} Å = min_distance_fraction {min_distance_fraction:g} x the sum of covalent radii",
            atoms=[i + 1, j + 1],
            distance=distance,
        )


def _close_pairs(atoms: Atoms, cell: FloatArray, radii: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Return pairs of atoms, images of one atom included, that are closer than the sum of their radii.

    Parameters
    ----------
    atoms
        The structure.
    cell
        The shortest vectors of its lattice in Å, 3 x 3.
    radii
        Å, one for each atom.

    Returns
    -------
    arrays of int, int and float, of one shape
        Numbers of the two atoms, from 0, and their distance in Å.
    """
    from ase import Atoms
    from ase.geometry import find_mic
    from ase.neighborlist import neighbor_list

    if len(atoms) > _PAIR_BY_PAIR:
        periodic = Atoms(atoms.symbols, positions=atoms.positions, cell=cell, pbc=True)
        periodic.wrap()
        first, second, distances = neighbor_list("ijd", periodic, radii)
        return first, second, distances
    each = np.arange(len(atoms))
    first, second = np.triu_indices(len(atoms), k=1)
    _, between = find_mic(atoms.positions[second] - atoms.positions[first], cell, pbc=True)
    # The nearest image of an atom itself is one shortest vector away.
    to_itself = np.full(len(atoms), np.linalg.norm(cell, axis=1).min())
    first, second = np.append(first, each), np.append(second, each)
    distances = np.append(between, to_itself)
    close = distances < radii[first] + radii[second]
    return first[close], second[close], distances[close]


def too_many_atoms(number: int) -> str | None:
    """Why a structure of so many atoms is refused; None when it is not."""
    if number <= MAX_ATOMS:
        return None
    return f"has {number} atoms; more than {MAX_ATOMS} are no calculation for pw.x: is it the right structure?"


def kpoint_grid(atoms: Atoms, kspacing: float) -> tuple[int, int, int]:
    """Odd Monkhorst-Pack grid with a spacing of at most `kspacing` (1/Å, 2π included), 1 where not periodic.

    N_i = ceil(|b_i| / kspacing), then the next odd number: odd grids hold Γ and keep the symmetry of every cell.
    """
    lengths = 2 * math.pi * np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    # Without the small number a grid would depend on the last digit of the cell.
    counts = [
        math.ceil(length / kspacing - 1e-8) if periodic else 1
        for length, periodic in zip(lengths, atoms.pbc, strict=True)
    ]
    first, second, third = (max(1, n) + 1 - max(1, n) % 2 for n in counts)
    return first, second, third


def charge_cutoff(config: DFTConfig, pseudopotentials: Mapping[str, Pseudopotential]) -> float:
    """Return ecutrho in Ry: the configured one, else 4 x ecutwfc, and 8 x with any ultrasoft or PAW file."""
    return config.ecutrho or config.ecutwfc * (8 if needs_dense_charge_grid(pseudopotentials) else 4)


def prescribed_parameters(config: DFTConfig, n_atoms: int) -> dict[str, Any]:
    """QE keywords of level 0 that recovery may move, as `write_pw_input` writes them; `conv_thr` is for the cell."""
    return {
        "mixing_beta": config.mixing_beta,
        "mixing_mode": config.mixing_mode,
        "diagonalization": config.diagonalization,
        "electron_maxstep": config.electron_maxstep,
        "degauss": config.degauss,
        "conv_thr": float(f"{config.conv_thr_per_atom * n_atoms:.6g}"),
    }


def write_pw_input(
    atoms: Atoms,
    config: DFTConfig,
    path: str | Path,
    *,
    pseudopotentials: Mapping[str, Pseudopotential] | None = None,
    max_seconds: float | None = None,
) -> None:
    """Write pw.in for a single-point label of `atoms`.

    Parameters
    ----------
    atoms
        The structure; initial magnetic moments (μB) on it win over `config.magnetism`, of which the first start counts.
    config
        How the label is computed.
    path
        File to write; an existing one is replaced in one step.
    pseudopotentials
        Element → pseudopotential; found in `config.pseudopotential_dir` where absent.
    max_seconds
        Soft limit of the wall time of pw.x; none where absent.

    Raises
    ------
    StructureError
        The structure cannot be right.
    PseudopotentialError
        Pseudopotentials are missing or do not fit together.
    """
    from ase.io.espresso import write_espresso_in

    path = Path(path)
    check_structure(atoms, config.min_distance_fraction)
    if pseudopotentials is None:
        pseudopotentials = load_pseudopotentials(
            set(atoms.symbols), Path(config.pseudopotential_dir or "."), config.pseudopotentials
        )
    folder = next(iter(pseudopotentials.values())).path.parent.resolve()
    grid = kpoint_grid(atoms, config.kspacing)
    moments = starting_moments(atoms, config.magnetism)
    structure, fractions = _with_kinds(atoms, moments, pseudopotentials)
    system = {
        "ibrav": 0,
        "nat": len(atoms),
        "ntyp": len(fractions),
        "ecutwfc": config.ecutwfc,
        "ecutrho": charge_cutoff(config, pseudopotentials),
        "occupations": "smearing",
        "smearing": config.smearing,
        "degauss": config.degauss,
        **({} if moments is None else {"nspin": 2, "nbnd": bands_for_spin(atoms, moments, pseudopotentials)}),
        **_per_kind(config.pw.get("system", {}), [symbol for symbol, _ in fractions]),
    }
    control = {
        "calculation": "scf",
        "prefix": "pwscf",
        "outdir": "./out",
        "pseudo_dir": str(folder),
        "tprnfor": True,
        "tstress": True,
        # `none` would leave no XML and no density to continue from.
        "disk_io": "low",
        **({"max_seconds": float(max_seconds)} if max_seconds is not None else {}),
        **config.pw.get("control", {}),
    }
    first = prescribed_parameters(config, len(atoms))
    electrons = {
        **{name: value for name, value in first.items() if NAMELIST_OF[name] == "electrons"},
        **config.pw.get("electrons", {}),
    }
    namelists = {"control": control, "system": system, "electrons": electrons}
    for name, value in ((n, v) for entries in namelists.values() for n, v in entries.items()):
        if isinstance(value, str):
            check_word(name, value)
    finite_field = any(name.lower() == "lelfield" and value for name, value in control.items())
    text = io.StringIO()
    write_espresso_in(
        text,
        structure,
        input_data=namelists,
        pseudopotentials={element: pseudo.path.name for element, pseudo in pseudopotentials.items()},
        # None is `K_POINTS gamma`: half the cost, the same number. pw.x has no such mode for a finite electric field.
        kpts=None if grid == (1, 1, 1) and not finite_field else grid,
    )
    # ASE adds a namelist for everything that pw.x knows, empty ones too.
    write_atomically(path, re.sub(r"^&\w+\n/\n", "", text.getvalue(), flags=re.M))


def _with_kinds(
    atoms: Atoms, moments: FloatArray | None, pseudopotentials: Mapping[str, Pseudopotential]
) -> tuple[Atoms, list[tuple[str, float]]]:
    """Return a bare copy whose moments are fractions of the valence (QE's unit), and its kinds in ASE's order."""
    from ase import Atoms

    structure = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if moments is None:
        return structure, [(symbol, 0.0) for symbol in dict.fromkeys(atoms.symbols)]
    valence = np.array([pseudopotentials[symbol].z_valence for symbol in atoms.symbols])
    finest = min(0.01, float(np.abs(moments).max()) / 10)  # μB; a small moment that only breaks the symmetry stays
    for step in (finest * factor for factor in (1, 10, 50, 100, 200)):
        # Starting moments are a start: nearly equal ones share a kind, since pw.x has room for ten.
        fractions = np.clip(np.round(moments / step) * step / valence, -1.0, 1.0).round(6)
        kinds = list(dict.fromkeys(zip(atoms.symbols, fractions.tolist(), strict=True)))
        if len(kinds) <= MAX_KINDS and fractions.any():
            structure.set_initial_magnetic_moments(fractions)
            return structure, kinds
    raise StructureError(f"the starting moments make {len(kinds)} kinds of atom; pw.x has room for {MAX_KINDS}")


def bands_for_spin(atoms: Atoms, moments: FloatArray, pseudopotentials: Mapping[str, Pseudopotential]) -> int:
    """Return a number of bands that holds the majority spin.

    pw.x counts bands as if there was no spin, 1.2 x (electrons / 2). Seven Fe atoms of 8 electrons then have 34 bands
    for 42 electrons of one spin: the moment stays at what the bands can hold (12 μB), and the label is wrong.
    """
    electrons = sum(pseudopotentials[symbol].z_valence for symbol in atoms.symbols)
    majority = (electrons + min(abs(float(moments.sum())), electrons)) / 2
    return math.ceil(max(1.2 * electrons / 2, electrons / 2 + 4, 1.1 * majority, majority + 4))


def _per_kind(entries: Mapping[str, Any], symbols: Sequence[str]) -> dict[str, Any]:
    """Write `Hubbard_U: {Fe: 4.6}` as Hubbard_U(i) for every kind i of Fe."""
    expanded: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, Mapping):
            expanded |= {f"{name}({i})": value[s] for i, s in enumerate(symbols, start=1) if s in value}
        else:
            expanded[name] = value
    # pw.x refuses a +U calculation of elements that have none.
    if any(name.startswith("hubbard_") for name in entries) and not any(
        name.startswith("hubbard_") and value for name, value in expanded.items()
    ):
        expanded = {name: value for name, value in expanded.items() if name != "lda_plus_u"}
    return expanded
