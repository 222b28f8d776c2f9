"""Where an SCF starts from: tables, the structure's own moments, several starts, and antiferromagnets in one word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100
from hypothesis import given, settings
from hypothesis import strategies as st

from dftfactory.errors import StructureError
from dftfactory.moments import STARTING_MOMENTS, antiferromagnetic, starting_moments, starts_of


def bare(atoms: Atoms) -> Atoms:
    """ASE puts moments on the crystals that it builds."""
    atoms.set_initial_magnetic_moments(None)
    return atoms


def iron() -> Atoms:
    return bare(bulk("Fe"))


def names(atoms: Atoms, magnetism: Any) -> list[str]:
    return [start.name for start in starts_of(atoms, magnetism)]


# One start


def test_auto_is_the_moment_of_the_free_atom() -> None:
    assert starting_moments(iron(), "auto").tolist() == [STARTING_MOMENTS["Fe"]] == [4.0]
    assert starting_moments(bulk("Si"), "auto") is None
    assert starting_moments(iron(), "none") is None


def test_moments_by_element_reach_only_those_elements() -> None:
    atoms = Atoms("FeOAl", positions=[[0, 0, 0], [2, 0, 0], [5, 0, 0]], cell=[9, 9, 9])
    assert starting_moments(atoms, {"Fe": 3.0, "O": 0.5}).tolist() == [3.0, 0.5, 0.0]
    assert starting_moments(atoms, {"Ni": 3.0}) is None


@pytest.mark.parametrize("magnetism", ["none", "auto", "antiferromagnetic", {"Fe": 1.0}])
def test_initial_moments_on_the_structure_win(magnetism: Any) -> None:
    atoms = iron()
    atoms.set_initial_magnetic_moments([-1.5])
    assert starting_moments(atoms, magnetism).tolist() == [-1.5]
    assert names(atoms, magnetism) == ["own moments"]


def test_moments_of_zero_on_the_structure_are_none() -> None:
    """ASE gives zeros where nobody has set any."""
    atoms = iron()
    atoms.set_initial_magnetic_moments([0.0])
    assert starting_moments(atoms, "auto").tolist() == [4.0]


@pytest.mark.parametrize(
    ("moments", "what"), [([[0, 0, 1.0]], "noncollinear"), ([np.nan], "NaN"), ([np.inf], "infinite")]
)
def test_moments_that_cannot_be_used_are_refused(moments: Any, what: str) -> None:
    atoms = iron()
    atoms.set_initial_magnetic_moments(np.array(moments))
    for magnetism in ("auto", ["auto", "none"]):
        with pytest.raises(StructureError, match=what):
            starts_of(atoms, magnetism)


# Several starts


def test_starts_are_in_the_order_of_the_list() -> None:
    starts = starts_of(iron(), ["none", {"Fe": 0.5}, "auto"])
    assert [start.name for start in starts] == ["none", "Fe 0.5", "auto"]
    assert [None if start.moments is None else start.moments.tolist() for start in starts] == [None, [0.5], [4.0]]


@pytest.mark.parametrize(
    ("magnetism", "left"),
    [
        (["auto", "none"], ["auto"]),
        (["none", "auto", {"Fe": 3.0}], ["none"]),
        (["antiferromagnetic", {"Si": 0.1}], ["antiferromagnetic", "Si 0.1"]),
    ],
)
def test_starts_that_are_the_same_for_a_structure_are_one(magnetism: Any, left: list[str]) -> None:
    assert names(bulk("Si"), magnetism) == left


def test_all_moments_turned_round_are_the_same_start() -> None:
    """Without spin-orbit coupling nothing tells up from down."""
    assert names(iron(), ["auto", {"Fe": -4.0}, {"Fe": -3.0}]) == ["auto", "Fe -3"]


@pytest.mark.parametrize(
    ("magnetism", "expected"),
    [
        (["none", "auto", {"Fe": 0.5}], ["none", "own moments", "Fe 0.5"]),
        (["none", {"Fe": 0.5}], ["own moments", "none", "Fe 0.5"]),
        (["auto", {"Fe": 2.2}], ["own moments"]),
    ],
)
def test_own_moments_are_one_more_start_in_the_place_of_auto(magnetism: Any, expected: list[str]) -> None:
    atoms = iron()
    atoms.set_initial_magnetic_moments([2.2])
    assert names(atoms, magnetism) == expected


def test_a_start_is_applied_to_a_copy() -> None:
    atoms = iron()
    with_spin, without = (start.applied_to(atoms) for start in starts_of(atoms, ["auto", "none"]))
    assert with_spin.get_initial_magnetic_moments().tolist() == [4.0]
    assert not without.get_initial_magnetic_moments().any()
    assert not atoms.has("initial_magmoms")


# Antiferromagnets


def signs(atoms: Atoms) -> list[float]:
    start = starting_moments(bare(atoms), "antiferromagnetic")
    assert start is not None
    return np.sign(start).tolist()


def test_neighbours_in_a_bcc_crystal_are_opposite() -> None:
    """The two sublattices of CsCl, also where the atoms are off their sites."""
    crystal = bulk("Fe", cubic=True) * (2, 2, 2)
    corner = np.isclose(crystal.positions[:, 0] % 2.87, 0)
    crystal.rattle(0.05, seed=1)
    found = signs(crystal)
    assert {sign for sign, at_corner in zip(found, corner, strict=True) if at_corner} == {1.0}
    assert {sign for sign, at_corner in zip(found, corner, strict=True) if not at_corner} == {-1.0}


def test_moments_are_those_of_the_table_and_other_atoms_have_none() -> None:
    oxide = bare(bulk("FeO", "rocksalt", a=4.3, cubic=True))
    start = starting_moments(oxide, "antiferromagnetic")
    assert start is not None
    assert sorted(start[oxide.symbols == "Fe"].tolist()) == [-4.0, -4.0, 4.0, 4.0]
    assert not start[oxide.symbols == "O"].any()


def test_where_neighbours_cannot_all_be_opposite_the_cell_is_nearly_compensated() -> None:
    """fcc is made of triangles: one of each three bonds is between equal signs, whatever one does."""
    assert sum(signs(bulk("Ni", cubic=True))) == 0
    assert abs(sum(signs(fcc100("Co", (2, 2, 3), a=3.5, vacuum=5)))) <= 2  # of 12


def test_clusters_that_do_not_touch_are_each_antiferromagnetic() -> None:
    two_dimers = Atoms("Fe4", positions=[[0, 0, 0], [2, 0, 0], [0, 9, 0], [2, 9, 0]], cell=[20, 20, 20])
    assert signs(two_dimers)[::2] == [-sign for sign in signs(two_dimers)[1::2]]


@pytest.mark.parametrize("atoms", [bulk("Fe"), Atoms("FeOH", positions=np.eye(3) * 2, cell=[9] * 3)])
def test_a_single_magnetic_atom_starts_as_with_auto(atoms: Atoms) -> None:
    assert names(bare(atoms), ["auto", "antiferromagnetic"]) == ["auto"]


def test_without_magnetic_atoms_there_is_no_spin() -> None:
    assert starting_moments(bulk("Si"), "antiferromagnetic") is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_noise_of_the_last_digits_gives_the_same_signs(seed: int, n_atoms: int) -> None:
    """The signs are in the fingerprint."""
    random = np.random.default_rng(seed)
    atoms = Atoms("Fe" * n_atoms, random.uniform(0, 6, (n_atoms, 3)).round(1), cell=[6, 6, 6], pbc=True)
    moments = np.full(n_atoms, 4.0)
    noisy = atoms.copy()
    noisy.positions += random.uniform(-1e-9, 1e-9, (n_atoms, 3))
    before, after = antiferromagnetic(atoms, moments), antiferromagnetic(noisy, moments)
    assert before.tolist() == after.tolist()
    assert np.abs(before).tolist() == moments.tolist()
