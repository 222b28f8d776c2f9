"""What pwscf.xml says, in Hartree atomic units; whether it is believed is decided in `parsers`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from dftfactory.errors import IncompleteOutputError, NonFiniteError
from dftfactory.pw_text import to_number, to_time
from dftfactory.results import FloatArray

# A disk that is full cuts a file at the end of one of its pages.
DISK_PAGE = 4096
# Bytes; a thousand k-points of 500 bands make 25 MB, and a larger file is not worth the memory of the node.
MAX_XML = 500_000_000


@dataclass(frozen=True)
class PwXml:
    """One whole pwscf.xml.

    Attributes
    ----------
    created
        When pw.x wrote it, by the clock of the machine that ran it.
    kinds
        Labels of the atoms, such as `Fe` and `Fe1`.
    positions, cell
        bohr.
    energy, smearing, scf_error, fermi_energy
        Hartree: F, -TS, the SCF accuracy, and the Fermi or highest occupied level (the higher one of two).
    forces, stress
        Hartree/bohr and Hartree/bohr³, QE's sign.
    total_magnetization, absolute_magnetization
        μB per cell; None without spin.
    n_bands
        Bands of one spin channel.
    top_occupations
        Occupation, 0 to 1, of the highest band of each k-point and spin channel.
    n_electrons
        Valence electrons; None where each spin channel has a Fermi level of its own.
    kpoints
        The six integers of an automatic grid; None where it was a list.
    levels, capacities
        All eigenvalues in Hartree, and the electrons that each holds when it is full.
    """

    created: datetime | None
    converged: bool
    scf_error: float
    kinds: tuple[str, ...]
    positions: FloatArray
    cell: FloatArray
    energy: float
    smearing: float
    forces: FloatArray
    stress: FloatArray
    fermi_energy: float | None
    total_magnetization: float | None
    absolute_magnetization: float | None
    n_bands: int
    top_occupations: tuple[float, ...]
    n_electrons: float | None
    levels: FloatArray
    capacities: FloatArray
    kpoints: tuple[int, ...] | None


def read_xml(run_dir: Path) -> PwXml | None:
    """Read out/pwscf.xml; None where it is missing, empty or cut, so that the text has to serve alone.

    Raises
    ------
    IncompleteOutputError
        It was cut by a full disk: the text of such a run is not trusted either.
    NonFiniteError
        A number in it is NaN or infinite.

    Notes
    -----
    Source: the schema qes-1.0, as pw.x 6.7 and 7.2 write it.
    """
    path = run_dir / "out" / "pwscf.xml"
    try:
        if path.stat().st_size > MAX_XML:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    # pw.x declares nothing; entities are how a small file becomes a large one, or brings another file in.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        return None
    try:
        xml = _take_xml(ElementTree.fromstring(content))  # noqa: S314  (written by our own pw.x)
    except (ElementTree.ParseError, LookupError, ValueError):
        if content and len(content) % DISK_PAGE == 0:
            raise IncompleteOutputError(
                f"{path} ends in the middle, after exactly {len(content)} bytes: the disk was full", disk_full=True
            ) from None
        return None
    numbers = [xml.energy, xml.scf_error, xml.smearing]
    for array in (xml.forces, xml.stress, xml.positions, xml.cell):
        numbers += array.ravel().tolist()
    if not np.isfinite(numbers).all():
        raise NonFiniteError(f"{path} has NaN or Inf in energy, forces, stress or structure")
    return xml


def _take_xml(root: ElementTree.Element) -> PwXml:
    """Take all blocks; LookupError where one is not there, ValueError where it has not its numbers."""
    created = _find(root, "general_info/created").attrib
    output = _find(root, "output")
    atoms = output.findall("atomic_structure/atomic_positions/atom")
    if not atoms:
        raise LookupError("atomic_positions")
    smearing = output.find("total_energy/demet")
    spin = _flag(output, "magnetization/lsda")
    n_bands, top_occupations = _take_bands(output)
    levels, capacities = _take_levels(output)
    return PwXml(
        created=to_time(created["DATE"], created["TIME"]),
        converged=_flag(output, "convergence_info/scf_conv/convergence_achieved"),
        scf_error=_number(output, "convergence_info/scf_conv/scf_error"),
        kinds=tuple(atom.attrib["name"].strip() for atom in atoms),
        positions=_array(" ".join(atom.text or "" for atom in atoms), (len(atoms), 3)),
        cell=_array(" ".join(_text(output, f"atomic_structure/cell/a{i}") for i in (1, 2, 3)), (3, 3)),
        energy=_number(output, "total_energy/etot"),
        smearing=0.0 if smearing is None else to_number(smearing.text or ""),
        forces=_array(_text(output, "forces"), (len(atoms), 3)),
        stress=_array(_text(output, "stress"), (3, 3)),
        fermi_energy=_take_level(output),
        total_magnetization=_number(output, "magnetization/total") if spin else None,
        absolute_magnetization=_number(output, "magnetization/absolute") if spin else None,
        n_bands=n_bands,
        top_occupations=top_occupations,
        n_electrons=None
        if output.find("band_structure/two_fermi_energies") is not None
        else _number(output, "band_structure/nelec"),
        levels=levels,
        capacities=capacities,
        kpoints=_take_grid(output),
    )


def _take_grid(output: ElementTree.Element) -> tuple[int, ...] | None:
    grid = output.find("band_structure/starting_k_points/monkhorst_pack")
    return None if grid is None else tuple(int(grid.attrib[name]) for name in ("nk1", "nk2", "nk3", "k1", "k2", "k3"))


def _take_level(output: ElementTree.Element) -> float | None:
    names = ("fermi_energy", "highestOccupiedLevel", "two_fermi_energies")
    levels = [float(word) for name in names for word in (output.findtext(f"band_structure/{name}") or "").split()]
    return max(levels, default=None)


def _take_bands(output: ElementTree.Element) -> tuple[int, tuple[float, ...]]:
    """Bands of one spin channel, and the occupation of the highest one at each k-point and spin."""
    # With spin a list holds both channels, one after the other.
    channels = 2 if _flag(output, "band_structure/lsda") else 1
    n_bands, tops = 0, []
    for occupations in output.iterfind("band_structure/ks_energies/occupations"):
        values = (occupations.text or "").split()
        n_bands = len(values) // channels
        tops += [to_number(values[(channel + 1) * n_bands - 1]) for channel in range(channels)]
    return n_bands, tuple(tops)


def _take_levels(output: ElementTree.Element) -> tuple[FloatArray, FloatArray]:
    """All eigenvalues, and the electrons that each holds: the weights of the k-points, twice without spin."""
    weights = [float(point.attrib["weight"]) for point in output.iterfind("band_structure/ks_energies/k_point")]
    lists = output.findall("band_structure/ks_energies/eigenvalues")
    levels = [[to_number(word) for word in (values.text or "").split()] for values in lists]
    if any(len(values) != int(element.attrib["size"]) for element, values in zip(lists, levels, strict=True)):
        raise ValueError("a list of levels that has not the length that it says")
    one_spin = _flag(output, "band_structure/lsda") or _flag(output, "band_structure/noncolin")
    full = (1 if one_spin else 2) / (sum(weights) or 1)
    capacities = [full * weight for weight, values in zip(weights, levels, strict=True) for _ in values]
    return np.array([level for values in levels for level in values]), np.array(capacities)


def _find(element: ElementTree.Element, path: str) -> ElementTree.Element:
    found = element.find(path)
    if found is None:
        raise LookupError(path)
    return found


def _text(element: ElementTree.Element, path: str) -> str:
    return _find(element, path).text or ""


def _number(element: ElementTree.Element, path: str) -> float:
    return to_number(_text(element, path))


def _flag(element: ElementTree.Element, path: str) -> bool:
    return (element.findtext(path) or "").strip() == "true"


def _array(text: str, shape: tuple[int, int]) -> FloatArray:
    return np.array([to_number(word) for word in text.split()]).reshape(shape)
