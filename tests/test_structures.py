"""Structures of pymatgen as Atoms: moments, order, and what has no atoms to give."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Species, Structure

from dftfactory.errors import StructureError
from dftfactory.structures import to_ase_atoms


def test_a_pymatgen_structure_keeps_its_moments_and_its_order() -> None:
    structure = Structure(
        Lattice.cubic(2.8), ["Fe", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]], site_properties={"magmom": [2.5, -0.5]}
    )
    atoms = to_ase_atoms(structure)
    assert list(atoms.symbols) == ["Fe", "O"]
    assert atoms.get_initial_magnetic_moments().tolist() == [2.5, -0.5]
    assert atoms.positions[1].tolist() == pytest.approx([1.4, 1.4, 1.4])
    assert atoms.pbc.all()


def test_spins_of_pymatgen_species_are_moments() -> None:
    structure = Structure(Lattice.cubic(2.8), [Species("Fe", 3, spin=5), "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert to_ase_atoms(structure).get_initial_magnetic_moments().tolist() == [5.0, 0.0]
    structure.add_site_property("magmom", [2.5, -0.5])
    assert to_ase_atoms(structure).get_initial_magnetic_moments().tolist() == [2.5, -0.5]
    assert not to_ase_atoms(Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]])).has("initial_magmoms")


def test_a_disordered_pymatgen_structure_is_refused() -> None:
    structure = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(StructureError, match="the pymatgen structure cannot be computed"):
        to_ase_atoms(structure)
