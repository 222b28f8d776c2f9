"""Structures of other packages as ASE Atoms, and structure files that ASE should not be given."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dftfactory.errors import StructureError
from dftfactory.inputs import too_many_atoms

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Molecule, Structure

# As ASE unpacks them, by their names.
_OPEN: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Bytes; a megabyte can be packed to be a thousand of them.
MAX_UNPACKED = 1_000_000_000


def file_problem(path: Path) -> str | None:
    """Why ASE should not be given a structure file; None when it may try.

    ASE loads what unpacks to any size, looks for as many lines as the first line of an XYZ frame says, and takes a
    blank line between two frames for the end of the file, so that the rest would be lost without a word.
    """
    packed = path.suffix in _OPEN
    try:
        if packed:
            with _OPEN[path.suffix](path, "rb") as file:
                if sum(map(len, itertools.islice(_chunks(file), MAX_UNPACKED // _CHUNK + 1))) > MAX_UNPACKED:
                    return f"unpacks to more than {MAX_UNPACKED / 1e9:g} GB; is it what it should be? Unpack it first"
        if (Path(path.stem) if packed else path).suffix not in (".xyz", ".extxyz"):
            return None
        with _OPEN.get(path.suffix, open)(path, "rt", encoding="utf-8", errors="replace") as lines:
            return _xyz_problem(lines)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        return f"cannot be read ({error}); is it cut?"


_CHUNK = 1 << 20


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_CHUNK), b"")


def _xyz_problem(lines: Iterator[str]) -> str | None:
    for index in itertools.count():
        header = next(lines, "").strip()
        if not header and any(line.strip() for line in lines):
            return (
                f"has a blank line before frame {index} (the first is 0), where ASE stops reading; "
                "remove the blank line"
            )
        if not header.isdecimal():  # the end, or something that ASE itself can explain
            return None
        number = int(header[:20])
        if (reason := too_many_atoms(number)) is not None:
            return f"says that its frame {index} (the first is 0) {reason}"
        next(itertools.islice(lines, number, number), None)
        next(lines, None)
    raise AssertionError("a file has an end")


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
