"""What one structure needs, before pw.x is started: bands, k-points, plane waves, memory and time.

Counts follow pw.x 6.7, and are equal to what it prints in 28 runs on one core: 1 to 64 atoms of 11 elements, bulk,
slabs and molecules, norm-conserving, ultrasoft and PAW, 1 to 70 s of CPU time (`tests/files/estimates.json`). They are
also those of five cells of 36 to 256 atoms.

- `memory_mb` is 1.03 to 1.60 times the largest resident memory of the 28 runs (up to 314 MB), 1.30 in the median, and
  1.23 to 1.54 times that of 8 runs on 2 and 4 ranks. pw.x itself prints what it is going to allocate, without the
  program: some 25 MB less for small cells. Of what it prints for the five large cells (1.8 to 5.4 GB) it is 1.01 to
  1.41 times.
- `wall_seconds` of one core is 0.5 to 2.4 times the CPU time, 1.3 in the median; with the number of SCF iterations
  known 0.7 to 1.8, 1.2 in the median. The machine: one core of an AMD EPYC of 2023 at 2.6 GHz, Debian's
  pw.x with its own FFT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dftfactory.config import DFTConfig
from dftfactory.inputs import bands_for_spin, charge_cutoff, kpoint_grid
from dftfactory.moments import starting_moments
from dftfactory.pseudos import Pseudopotential
from dftfactory.symmetry import count_kpoints, crystal_rotations
from dftfactory.units import BOHR

if TYPE_CHECKING:
    from ase import Atoms

    from dftfactory.results import FloatArray

MIB = 2**20
COMPLEX, REAL = 16, 8  # bytes
MIXING_NDIM = 8
# 30 MB are resident where there is next to nothing to compute.
PROGRAM_MB = 40.0
START_SECONDS = 0.2
# Seconds of one operation, from the clocks that pw.x prints at the end of those runs: `vloc_psi`; `c_bands` without
# h_psi; `calbec` and `add_vuspsi`; `cdiaghg`; `v_of_rho` and `mix_rho`; `newd` and `addusdens`.
TRANSFORM, PRODUCT, PROJECTION, MATRIX, POINT, AUGMENTATION = 2.3e-9, 22e-9, 4e-9, 1e-7, 3.5e-7, 5e-9
# With ultrasoft pseudopotentials the solver has a third set of vectors.
ULTRASOFT = 1.5
# By n_spin; the median of these runs is 11 for both, and what an active-learning loop selects is harder.
ITERATIONS = {1: 12, 2: 20}
# One message between two ranks of a node, waiting included (2 to 8 µs on two ranks, by `tests/benchmarks/layouts.py`),
# and how often the solver transposes one band in an iteration: 4.5 products with H of two FFTs of two transpositions.
MESSAGE_SECONDS, TRANSPOSES = 3e-6, 18


@dataclass(frozen=True)
class Estimate:
    """What one calculation needs.

    Attributes
    ----------
    n_atoms, n_kinds
        Kinds are elements, split by their starting moments.
    n_electrons, n_bands
        Valence electrons, and bands of one spin.
    n_kpoints
        What pw.x spreads over its pools: irreducible points of the grid, each of them twice with spin.
    n_planewaves, n_gvectors
        Of a wavefunction at one k-point, and of the density; with `is_gamma` half of the sphere.
    fft_grid, smooth_points
        Dimensions of the grid of the density, and number of points of that of the wavefunctions.
    n_spin
        1 or 2.
    is_gamma
        Whether the only k-point is Γ, with real wavefunctions.
    n_projectors
        Of the nonlocal pseudopotentials of all atoms.
    n_augmentations
        Pairs of projectors of the atom that has most of them; 0 where no pseudopotential is ultrasoft or PAW.
    """

    n_atoms: int
    n_kinds: int
    n_electrons: float
    n_bands: int
    n_kpoints: int
    n_planewaves: int
    n_gvectors: int
    fft_grid: tuple[int, int, int]
    smooth_points: int
    n_spin: int
    is_gamma: bool
    n_projectors: int
    n_augmentations: int

    def memory_mb(self, ranks: int, npool: int = 1) -> float:
        """MB (2**20 bytes) of all ranks together, program included."""
        per_pool = ranks / npool
        planewaves, gvectors = self.n_planewaves / per_pool, self.n_gvectors / per_pool
        points = math.prod(self.fft_grid) / per_pool
        n_kept = math.ceil(self.n_kpoints / npool)
        wavefunctions = COMPLEX * self.n_bands * planewaves * (n_kept + 1 if n_kept > 1 else 1)
        projectors = COMPLEX * self.n_projectors * planewaves
        densities = 4 * self.n_spin * (COMPLEX * gvectors + REAL * points)
        mixing = 2 * MIXING_NDIM * self.n_spin * COMPLEX * gvectors
        potentials = REAL * points * (4 + self.n_spin) + gvectors * (COMPLEX * (1 + 2 * self.n_kinds) + 72)
        kept = wavefunctions + projectors + densities + mixing + potentials
        subspace = 2 * self.n_bands
        blocks = COMPLEX * subspace * planewaves * (3 if self.n_augmentations else 2)
        solver = blocks + COMPLEX / self._half * 3 * subspace**2
        screening = 27 * COMPLEX * gvectors + REAL * self.smooth_points / per_pool
        augmentation = 0.0
        if self.n_augmentations:
            # Pools share the G vectors of it.
            augmentation = gvectors * (COMPLEX * (self.n_augmentations + 3 * self.n_atoms) / npool + 300)
        return ranks * (PROGRAM_MB + (kept + max(solver, screening, augmentation)) / MIB)

    def wall_seconds(self, ranks: int, npool: int = 1, ndiag: int = 1) -> float:
        """Rough time of level 0 on `ranks` cores of an ordinary machine, of which `ndiag` share a subspace matrix."""
        per_pool = ranks // npool
        # Every rank has whole planes of the FFT grid.
        share = math.ceil(self.fft_grid[2] / per_pool) / self.fft_grid[2]
        transforms = self.n_bands * self.smooth_points * math.log2(self.smooth_points) / self._half
        products = self.n_planewaves * self.n_bands**2 * (ULTRASOFT if self.n_augmentations else 1.0)
        projections = self.n_planewaves * self.n_bands * self.n_projectors
        matrix = self.n_bands**3 / self._half / math.sqrt(ndiag)
        of_kpoint = TRANSFORM * transforms * share + (PRODUCT * products + PROJECTION * projections) / per_pool
        of_kpoint += MATRIX * matrix
        if per_pool > 1:
            of_kpoint += MESSAGE_SECONDS * per_pool * TRANSPOSES * self.n_bands / self._half
        density = POINT * math.prod(self.fft_grid) * self.n_spin * share
        augmentation = AUGMENTATION * self.n_gvectors * self.n_augmentations * (5 + 2 * self.n_atoms) / ranks
        iterations = ITERATIONS[self.n_spin]
        # Start, forces and stress take as long as some more iterations.
        of_kpoints = (iterations + 3) * math.ceil(self.n_kpoints / npool) * of_kpoint
        return START_SECONDS + of_kpoints + (iterations + 8) * (density + augmentation)

    @property
    def most_ranks_of_a_pool(self) -> int:
        """Above it some ranks have no plane of the FFT grid."""
        return self.fft_grid[2]

    @property
    def _half(self) -> int:
        return 2 if self.is_gamma else 1


def make_estimate(atoms: Atoms, config: DFTConfig, pseudopotentials: Mapping[str, Pseudopotential]) -> Estimate:
    """Estimate what a structure needs under a configuration.

    Takes 1 to 30 ms, of which most is the search for symmetry. Of several starts it is the first.

    Parameters
    ----------
    atoms
        The structure; its initial magnetic moments count as for `write_pw_input`.
    config
        How it is computed.
    pseudopotentials
        Element → pseudopotential, of which the type and the number of electrons matter.
    """
    system = config.pw.get("system", {})
    moments = starting_moments(atoms, config.magnetism)
    grid = kpoint_grid(atoms, config.kspacing)
    is_gamma = grid == (1, 1, 1) and not config.pw.get("control", {}).get("lelfield")
    cell = np.array(atoms.cell)
    kinds = _kinds(atoms, moments)
    rotations, multiples = crystal_rotations(cell, atoms.get_scaled_positions(wrap=False), kinds)
    if system.get("nosym"):
        rotations = rotations[(rotations == np.eye(3, dtype=int)).all(axis=(1, 2))]
    n_kpoints = 1 if is_gamma else count_kpoints(grid, rotations, not system.get("noinv"))
    n_electrons = sum(pseudopotentials[symbol].z_valence for symbol in atoms.symbols)
    n_electrons -= float(str(system.get("tot_charge", 0.0)))
    if "nbnd" in system:
        n_bands = int(str(system["nbnd"]))
    elif moments is not None:
        n_bands = bands_for_spin(atoms, moments, pseudopotentials)
    else:
        # pw.x rounds a half away from zero.
        n_bands = max(math.floor(1.2 * n_electrons / 2 + 0.5), math.floor(n_electrons / 2 + 0.5) + 4)
    ecutrho = charge_cutoff(config, pseudopotentials)
    volume = abs(float(np.linalg.det(cell))) / BOHR**3
    half = 2 if is_gamma else 1

    def in_sphere(cutoff: float) -> int:
        return max(1, round(volume * math.pow(cutoff, 1.5) / (6 * math.pi**2) / half))

    first, second, third = (
        _good_fft_dimension(2 * int(math.sqrt(ecutrho) * length / BOHR / (2 * math.pi)) + 1, multiple)
        for length, multiple in zip(np.linalg.norm(cell, axis=1), multiples, strict=True)
    )
    n_spin = 1 if moments is None else 2
    own = {symbol: _n_projectors(pseudo) for symbol, pseudo in pseudopotentials.items()}
    return Estimate(
        n_atoms=len(atoms),
        n_kinds=len(set(kinds)),
        n_electrons=n_electrons,
        n_bands=n_bands,
        n_kpoints=n_kpoints * n_spin,
        n_planewaves=in_sphere(config.ecutwfc),
        n_gvectors=in_sphere(ecutrho),
        fft_grid=(first, second, third),
        smooth_points=round(math.prod((first, second, third)) * min(1.0, 4 * config.ecutwfc / ecutrho) ** 1.5),
        n_spin=n_spin,
        is_gamma=is_gamma,
        n_projectors=sum(own[symbol] for symbol in atoms.symbols),
        n_augmentations=max(
            own[symbol] * (own[symbol] + 1) // 2 if pseudo.type != "NC" else 0
            for symbol, pseudo in pseudopotentials.items()
        ),
    )


def _kinds(atoms: Atoms, moments: FloatArray | None) -> list[int]:
    """Return a number for the kind of each atom, as `write_pw_input` makes kinds: of element and moment."""
    of_spin = [0.0] * len(atoms) if moments is None else moments.round(2).tolist()
    numbers: dict[tuple[str, float], int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in zip(atoms.symbols, of_spin, strict=True)]


def _n_projectors(pseudopotential: Pseudopotential) -> int:
    """Two projectors for each angular momentum up to that of the valence, as most pseudopotentials have."""
    from ase.data import atomic_numbers

    number = atomic_numbers[pseudopotential.element]
    if number <= 2:
        highest = 0
    elif 57 <= number <= 71 or 89 <= number <= 103:
        highest = 3
    else:
        # From gallium on the d shell may be frozen, and then there are at most eight electrons.
        is_transition_metal = 21 <= number <= 30 or 39 <= number <= 48 or 72 <= number <= 80
        highest = 2 if is_transition_metal or (number > 30 and pseudopotential.z_valence > 10) else 1
    return 2 * (highest + 1) ** 2


def _good_fft_dimension(least: int, multiple: int) -> int:
    """Return the next number with no other factors than 2, 3 and 5 that is a multiple of `multiple`."""
    size = math.ceil(least / multiple) * multiple
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += multiple
