"""What is said of a structure before pw.x runs, against what pw.x 6.7 said and took.

tests/files/estimates.json has real runs on one core (`tests/benchmarks/README.md` says how to make more of them).
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from paths import FILES

from dftfactory.config import DFTConfig
from dftfactory.estimate import Estimate, make_estimate
from dftfactory.upf import Pseudopotential

RUNS: list[dict[str, Any]] = json.loads((FILES / "estimates.json").read_text())
every_run = pytest.mark.parametrize("run", RUNS, ids=[run["name"] for run in RUNS])


def pseudopotential(element: str, kind: str = "NC", z_valence: float = 4.0) -> Pseudopotential:
    return Pseudopotential(element, Path(element), kind, "PBE", z_valence, "scalar", None, None, "")


def estimate_of(run: dict[str, Any]) -> Estimate:
    atoms = Atoms(run["symbols"], cell=run["cell"], pbc=run["pbc"], positions=run["positions"], magmoms=run["moments"])
    known = {element: pseudopotential(element, *header) for element, header in run["pseudopotentials"].items()}
    return make_estimate(atoms, DFTConfig(**run["config"]), known)


def silicon(atoms: Atoms, **changes: Any) -> Estimate:
    """An estimate for NC pseudopotentials with four electrons."""
    config = DFTConfig(**{"ecutwfc": 20, "kspacing": 0.45, **changes})
    return make_estimate(atoms, config, {symbol: pseudopotential(symbol) for symbol in set(atoms.symbols)})


@every_run
def test_bands_kpoints_and_grid_are_those_of_pw_x(run: dict[str, Any]) -> None:
    estimate, said = estimate_of(run), run["pw"]
    assert estimate.n_electrons == pytest.approx(said["n_electrons"], abs=0.005)
    assert estimate.n_bands == said["n_bands"]
    assert estimate.n_kpoints == said["kpoints_of_one_spin"] * estimate.n_spin
    assert list(estimate.fft_grid) == said["fft_grid"]
    # The sphere holds the volume's share of points, up to its surface.
    assert estimate.n_gvectors == pytest.approx(said["n_gvectors"], rel=0.02)


def test_memory_is_estimated_from_above_and_not_by_far() -> None:
    ratios = [estimate_of(run).memory_mb(1) / run["pw"]["largest_rss_mb"] for run in RUNS]
    assert min(ratios) > 1.0
    assert max(ratios) < 1.7
    assert 1.1 < statistics.median(ratios) < 1.4


def test_time_is_right_within_a_factor() -> None:
    """With the iterations that the calculation is going to take still unknown."""
    ratios = [estimate_of(run).wall_seconds(1) / run["pw"]["cpu_seconds"] for run in RUNS]
    assert min(ratios) > 0.4
    assert max(ratios) < 3.0
    assert 0.9 < statistics.median(ratios) < 1.6


def test_spin_doubles_the_kpoints_also_at_gamma() -> None:
    atoms = molecule("O2")
    atoms.center(vacuum=3)
    atoms.set_initial_magnetic_moments([1.0, 1.0])
    estimate = silicon(atoms)
    assert (estimate.is_gamma, estimate.n_spin, estimate.n_kpoints) == (True, 2, 2)


def test_symmetry_is_only_what_pw_x_knows() -> None:
    """Silicon has 48 rotations, which leave 10 of 5 x 5 x 5 points; shifted, turned or switched off it has fewer."""
    atoms = bulk("Si")
    assert silicon(atoms).n_kpoints == 10
    moved = atoms.copy()
    # pw.x takes operations about the origin, with shifts that are simple fractions of the cell.
    moved.positions += (0.3, 0.1, 0.0)
    assert silicon(moved).n_kpoints > 10
    turned = atoms.copy()
    turned.rotate(17, "z", rotate_cell=True)
    assert silicon(turned).n_kpoints > 10
    off = silicon(atoms, pw={"system": {"nosym": True}})
    assert off.n_kpoints == 63  # (125 + 1) / 2, by time reversal
    assert silicon(atoms, pw={"system": {"nosym": True, "noinv": True}}).n_kpoints == 125


def test_a_supercell_has_no_shifts() -> None:
    """Each doubling along x has the primitive cell's shift, with which pw.x takes no other."""
    one = bulk("Al", cubic=True)
    two = one.repeat((2, 1, 1))
    estimate = silicon(two, kspacing=0.6)
    assert estimate.n_kpoints >= 1
    assert estimate.fft_grid[1] == estimate.fft_grid[2]


def test_bands_of_the_user_and_the_charge_of_the_cell_count() -> None:
    assert silicon(bulk("Si"), pw={"system": {"nbnd": 40}}).n_bands == 40
    charged = silicon(bulk("Si", cubic=True), pw={"system": {"tot_charge": 2}})
    assert (charged.n_electrons, charged.n_bands) == (30, 19)


def test_memory_grows_with_ranks_and_pools() -> None:
    """Each rank has a program, and each pool a density; wavefunctions are spread over both."""
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    estimate = silicon(atoms)
    one, four = estimate.memory_mb(1), estimate.memory_mb(4)
    assert 3 * 30 < four - one < 3 * 60
    assert estimate.memory_mb(4, npool=4) > estimate.memory_mb(4, npool=2) > four


def test_more_cores_are_faster_until_messages_cost_more_than_they_save() -> None:
    estimate = silicon(bulk("Si"), kspacing=1.2)
    seconds = [estimate.wall_seconds(ranks) for ranks in range(1, 25)]
    assert seconds[0] > seconds[1] > seconds[3]
    assert seconds[-1] > min(seconds)


def test_numbers_are_plain() -> None:
    """They go into the database with the request for a job."""
    estimate = silicon(bulk("Si"))
    numbers = [*estimate.fft_grid, estimate.n_bands, estimate.n_kpoints, estimate.n_planewaves, estimate.n_gvectors]
    assert all(type(number) is int for number in numbers)
    assert type(estimate.memory_mb(4, 2)) is float
    assert type(estimate.wall_seconds(1)) is float
    assert not any(isinstance(value, np.generic) for value in vars(estimate).values())
