"""Structures of other packages as ASE Atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dftfactory.errors import StructureError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Molecule, Structure


def to_ase_atoms(structure: Atoms | Structure | Molecule) -> Atoms:
    """Turn a pymatgen structure into Atoms, with its `magmom` site property as initial moments.

    Without that property the spins of the species, as `Structure.add_spin_by_element` sets them, are the moments (μB).
    Atoms stay as they are.
    """
    from ase import Atoms

    if isinstance(structure, Atoms):
        return structure
    from pymatgen.core import Structure
    from pymatgen.io.ase import AseAtomsAdaptor

    if not isinstance(structure, Structure):
        raise StructureError(
            f"expected ASE Atoms or a pymatgen Structure, got {type(structure).__name__}; "
            "a molecule needs a box: Molecule.get_boxed_structure"
        )
    try:
        atoms = AseAtomsAdaptor.get_atoms(structure)
    except ValueError as error:
        raise StructureError(f"the pymatgen structure cannot be computed: {error}") from error
    moments = atoms.get_initial_magnetic_moments() if atoms.has("initial_magmoms") else None
    # The adaptor takes the site property only.
    spins = [getattr(site.specie, "spin", None) for site in structure]
    if moments is None and any(spin is not None for spin in spins):
        moments = [spin or 0.0 for spin in spins]
    return Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, magmoms=moments)
