"""Output of pw.x to DFTResult: the only place where a QE unit becomes eV and Å.

The XML is read first, because it has all digits, and is checked against the text and the input. Where it cannot be
used, a text that is whole serves alone, and the result says so.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dftfactory.errors import (
    IncompleteOutputError,
    InconsistentOutputError,
    InputError,
    NonFiniteError,
    NotConvergedError,
)
from dftfactory.history import current_parameters, has_history, read_history
from dftfactory.inputs import PwInput, read_pw_input
from dftfactory.results import DFTResult, FloatArray

# CODATA 2018. The 2006 set would shift a 1000 Ry total energy by about 1 meV, so a data set never mixes them.
HARTREE = 27.211386245988  # eV
RYDBERG = HARTREE / 2  # eV
BOHR = 0.529177210903  # Å

# Half a unit of the last digit that pw.x prints, with room for its own rounding.
ENERGY_DIGITS = 2e-8  # Ry
FORCE_DIGITS = 2e-8  # Ry/bohr
STRESS_DIGITS = 2e-8  # Ry/bohr³
POSITION_DIGITS = 1e-5  # Å; seven digits of alat in the text
DEFAULT_MAX_FORCE = 40.0  # eV/Å
# A band that is partly filled at the top means that there were too few bands for the smearing.
SATURATED = (0.01, 0.99)
# A disk that is full cuts a file at the end of one of its pages.
DISK_PAGE = 4096

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][-+]?\d+)?"
_FIELD = rf"(?:{_NUMBER}|\*+|[-+]?NaN|[-+]?Inf(?:inity)?)"
_TIME = r"(\d{1,2}\w{3}\d{4}) at (\s*\d+:\s*\d+:\s*\d+)"


@dataclass
class PwText:
    """What pw.out says, in QE's units (Ry, bohr); None or empty where it says nothing."""

    version: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    job_done: bool = False
    converged: bool = False
    n_atoms: int | None = None
    n_ranks: int = 1
    n_kpoints: int = 0
    estimated_memory: float | None = None
    wall_time: float | None = None
    iterations: int = 0
    scf_accuracy: tuple[float, ...] = ()
    energy: float | None = None
    smearing: float | None = None
    scf_error: float | None = None
    fermi_energy: float | None = None
    total_magnetization: float | None = None
    absolute_magnetization: float | None = None
    forces: FloatArray | None = None
    scf_correction: float | None = None
    stress: FloatArray | None = None
    alat: float | None = None
    positions: FloatArray | None = None
    cell: FloatArray | None = None
    species: tuple[str, ...] = ()


@dataclass
class PwXml:
    """What pwscf.xml says, in Hartree atomic units."""

    created: datetime | None
    converged: bool
    scf_error: float
    symbols: tuple[str, ...]
    positions: FloatArray
    cell: FloatArray
    energy: float
    smearing: float
    forces: FloatArray
    stress: FloatArray
    fermi_energy: float | None = None
    total_magnetization: float | None = None
    absolute_magnetization: float | None = None
    n_bands: int = 0
    top_occupations: tuple[float, ...] = field(default=())


def read_pw_output(run_dir: str | Path) -> DFTResult:
    """Read one finished pw.x run, and accept it only as a label that all of its files agree on.

    Parameters
    ----------
    run_dir
        Folder with pw.in, pw.out, out/pwscf.xml and, where they are there, exit_status and history.json.

    Returns
    -------
    DFTResult
        `energy` in eV: the total energy with the smearing term, the one whose derivative the forces are.
        `forces`, shape (n_atoms, 3), in eV/Å, in the order of the input structure.
        `stress`, shape (3, 3), in eV/Å³, positive under tension (pw.x prints the opposite sign, in kbar).

    Raises
    ------
    IncompleteOutputError
        The run did not finish, or a file or block is missing, empty or cut.
    NotConvergedError
        The SCF did not reach conv_thr.
    NonFiniteError
        A number is NaN, infinite or printed as stars.
    InconsistentOutputError
        Exit status, text, XML, input and prescribed parameters do not belong to the same good run.

    Notes
    -----
    Conversion factors are CODATA 2018. Sources: the printing routines of pw.x 6.7 and 7.2 and the schema qes-1.0.
    """
    run_dir = Path(run_dir)
    check_exit_status(run_dir)
    text = parse_text(read_output(run_dir))
    check_text(run_dir, text)
    try:
        pw_input = read_pw_input(run_dir / "pw.in")
    except InputError as error:
        raise InconsistentOutputError(f"the input of the run cannot be read: {error.message}") from error
    quality = _check_prescribed(run_dir, pw_input)
    xml = read_xml(run_dir)
    result = _from_text(text, pw_input) if xml is None else _from_xml(xml, text, pw_input)
    _check_input(result, pw_input)
    _check_numbers(run_dir, result)
    return result.with_record(quality=quality)


def read_exit_status(run_dir: Path) -> int | None:
    """Exit status that the job wrote (negative: killed by that signal); None where it wrote none."""
    try:
        return int((run_dir / "exit_status").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_output(run_dir: Path, name: str = "pw.out") -> str:
    """Return the text of an output file, with odd bytes replaced; empty where there is none."""
    try:
        return (run_dir / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse_text(text: str) -> PwText:
    """Take what is there from pw.out, whole or cut; raises nothing of its own for a cut one."""
    found = PwText()
    if header := re.search(rf"Program PWSCF v\.(\S+)\s+starts on {_TIME}", text):
        found.version, found.started = header[1], _time(header[2], header[3])
    if ended := re.search(r"terminated on:\s*(\d+:\s*\d+:\s*\d+)\s+(\d{1,2}\w{3}\d{4})", text):
        found.ended = _time(ended[2], ended[1])
    found.job_done = "JOB DONE." in text
    found.converged = "convergence has been achieved" in text
    if ranks := re.search(r"running on\s+(\d+) processors", text):
        found.n_ranks = int(ranks[1])
    if atoms := re.search(r"number of atoms/cell\s*=\s*(\d+)", text):
        found.n_atoms = int(atoms[1])
    if kpoints := re.search(r"number of k points=\s*(\d+)", text):
        found.n_kpoints = int(kpoints[1])
    if memory := re.search(rf"Estimated max dynamical RAM per process >\s*({_NUMBER})\s*(kB|MB|GB)", text):
        found.estimated_memory = float(memory[1]) * {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[memory[2]]
    if wall := re.search(r"^\s*PWSCF\s*:.*CPU\s+((?:[\d. ]+[dhms])+)\s*WALL", text, re.M):
        found.wall_time = _seconds(wall[1])
    found.iterations = len(re.findall(r"^\s*iteration #", text, re.M))
    found.scf_accuracy = tuple(
        _number(value) for value in re.findall(rf"estimated scf accuracy\s+<\s*({_FIELD})", text)
    )
    _parse_energies(text, found)
    _parse_structure(text, found)
    _parse_forces_and_stress(text, found)
    return found


def check_exit_status(run_dir: Path) -> None:
    """Refuse a run that ended with anything but 0; every build of pw.x ends a good run with it."""
    status = read_exit_status(run_dir)
    if status not in (0, None):
        raise IncompleteOutputError(f"pw.x ended with exit status {status}", exit_status=status)


def check_text(run_dir: Path, text: PwText) -> None:
    """Refuse a text that is not the whole output of a converged run."""
    where = run_dir / "pw.out"
    if text.started is None:
        raise IncompleteOutputError(f"{where} is missing, empty or without its beginning")
    if not text.job_done:
        raise IncompleteOutputError(f"{where} ends before JOB DONE")
    if not text.converged:
        raise NotConvergedError(f"{where} says nothing of a converged SCF, although it says JOB DONE")
    if text.energy is None or text.scf_error is None:
        raise IncompleteOutputError(f"{where} has no final total energy (the line that begins with !)")
    if text.forces is None:
        raise IncompleteOutputError(f"{where} has no complete block of forces for {text.n_atoms} atoms")
    if text.stress is None:
        raise IncompleteOutputError(f"{where} has no complete stress")
    numbers = [text.energy, text.scf_error, text.smearing or 0.0, *text.forces.flat, *text.stress.flat]
    if not np.isfinite(numbers).all():
        raise NonFiniteError(f"{where} has NaN, Inf or **** in energy, forces or stress")


def read_xml(run_dir: Path) -> PwXml | None:
    """Read out/pwscf.xml; None where it is missing, empty or cut, so that the text has to serve alone.

    Raises
    ------
    IncompleteOutputError
        It was cut by a full disk: the text of such a run is not trusted either.
    NonFiniteError
        A number in it is NaN or infinite.
    """
    path = run_dir / "out" / "pwscf.xml"
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        output = ElementTree.fromstring(content).find("output")  # noqa: S314  (written by our own pw.x)
        assert output is not None
        return _take_xml(output, content)
    except (ElementTree.ParseError, AssertionError, AttributeError, LookupError, ValueError, TypeError):
        if content and len(content) % DISK_PAGE == 0:
            raise IncompleteOutputError(
                f"{path} ends in the middle, after exactly {len(content)} bytes: the disk was full", disk_full=True
            ) from None
        return None


def _take_xml(output: ElementTree.Element, content: bytes) -> PwXml:
    created = re.search(rb'<created DATE="\s*([^"]*?)\s*" TIME="([^"]*)"', content)
    total = output.find("total_energy")
    atoms = output.findall("atomic_structure/atomic_positions/atom")
    n_atoms = len(atoms)
    assert total is not None
    assert n_atoms
    smearing = total.find("demet")
    xml = PwXml(
        created=_time(created[1].decode(), created[2].decode()) if created else None,
        converged=_content(output, "convergence_info/scf_conv/convergence_achieved").strip() == "true",
        scf_error=_number(_content(output, "convergence_info/scf_conv/scf_error")),
        symbols=tuple(re.sub(r"[^A-Za-z].*$", "", atom.attrib["name"]) for atom in atoms),
        positions=_array(" ".join(atom.text or "" for atom in atoms), (n_atoms, 3)),
        cell=_array(" ".join(_content(output, f"atomic_structure/cell/a{i}") for i in (1, 2, 3)), (3, 3)),
        energy=_number(_content(total, "etot")),
        smearing=_number(smearing.text or "") if smearing is not None else 0.0,
        forces=_array(_content(output, "forces"), (n_atoms, 3)),
        stress=_array(_content(output, "stress"), (3, 3)),
        **_take_bands(output),
    )
    magnetization = output.find("magnetization")
    if magnetization is not None and (magnetization.findtext("lsda") or "").strip() == "true":
        xml.total_magnetization = _number(_content(magnetization, "total"))
        xml.absolute_magnetization = _number(_content(magnetization, "absolute"))
    numbers = (xml.energy, xml.scf_error, xml.smearing, *xml.forces.flat, *xml.stress.flat, *xml.positions.flat)
    if not np.isfinite(numbers).all():
        raise NonFiniteError("pwscf.xml has NaN or Inf in energy, forces or stress")
    return xml


def _take_bands(output: ElementTree.Element) -> dict[str, Any]:
    bands = output.find("band_structure")
    if bands is None:
        return {}
    levels = [_number(level) for name in ("fermi_energy", "highestOccupiedLevel") if (level := bands.findtext(name))]
    levels += [_number(level) for level in (bands.findtext("two_fermi_energies") or "").split()]
    spins = 2 if (bands.findtext("lsda") or "").strip() == "true" else 1
    tops: list[float] = []
    channel = 0
    for occupations in bands.iterfind("ks_energies/occupations"):
        values = (occupations.text or "").split()
        channel = len(values) // spins
        tops += [_number(values[(spin + 1) * channel - 1]) for spin in range(spins)]
    return {"fermi_energy": max(levels, default=None), "n_bands": channel, "top_occupations": tuple(tops)}


def _from_xml(xml: PwXml, text: PwText, pw_input: PwInput) -> DFTResult:
    """Join XML and text, which must describe the same run."""
    assert text.energy is not None
    assert text.forces is not None
    assert text.stress is not None
    if not xml.converged:
        raise NotConvergedError("pwscf.xml says that the SCF did not converge, although the text says it did")
    if None not in (xml.created, text.started, text.ended) and not text.started <= xml.created <= text.ended:  # type: ignore[operator]  # none of them is None
        raise InconsistentOutputError(
            f"pwscf.xml was written at {xml.created}, but the run went from {text.started} to {text.ended}: stale"
        )
    if xml.symbols != pw_input.symbols:
        raise InconsistentOutputError("pwscf.xml is of other atoms than the input")
    for name, from_xml, from_text, digits in (
        ("energy (Ry)", 2 * xml.energy, text.energy, ENERGY_DIGITS),
        ("forces (Ry/bohr)", 2 * xml.forces, text.forces, FORCE_DIGITS),
        ("stress (Ry/bohr³)", 2 * xml.stress, text.stress, STRESS_DIGITS),
    ):
        if np.shape(from_xml) != np.shape(from_text) or np.abs(np.subtract(from_xml, from_text)).max() > digits:
            raise InconsistentOutputError(f"{name} differs between pwscf.xml and pw.out: not of the same run")
    if any(SATURATED[0] < occupation < SATURATED[1] for occupation in xml.top_occupations):
        raise InconsistentOutputError(
            f"the highest band is partly filled (occupation {max(xml.top_occupations):.3f}): "
            f"{xml.n_bands} bands are too few for this smearing",
            n_bands=xml.n_bands,
        )
    return _result(
        text,
        pw_input,
        source="xml",
        energy=xml.energy * HARTREE,
        smearing_energy=xml.smearing * HARTREE,
        forces=xml.forces * (HARTREE / BOHR),
        stress=-xml.stress * (HARTREE / BOHR**3),
        positions=xml.positions * BOHR,
        cell=xml.cell * BOHR,
        scf_error=2 * xml.scf_error,
        fermi_energy=None if xml.fermi_energy is None else xml.fermi_energy * HARTREE,
        total_magnetization=xml.total_magnetization,
        absolute_magnetization=xml.absolute_magnetization,
    )


def _from_text(text: PwText, pw_input: PwInput) -> DFTResult:
    """Use the text alone, which must have the structure of the input."""
    assert text.energy is not None
    assert text.forces is not None
    assert text.stress is not None
    if text.positions is None or text.cell is None or len(text.positions) != len(pw_input.symbols):
        raise IncompleteOutputError("pw.out has no complete structure, and pwscf.xml cannot be read")
    if text.species != pw_input.kinds:
        raise InconsistentOutputError("pw.out is of other atoms than the input")
    return _result(
        text,
        pw_input,
        source="text",
        energy=text.energy * RYDBERG,
        smearing_energy=(text.smearing or 0.0) * RYDBERG,
        forces=text.forces * (RYDBERG / BOHR),
        stress=-text.stress * (RYDBERG / BOHR**3),
        positions=text.positions * BOHR,
        cell=text.cell * BOHR,
        scf_error=text.scf_error,
        fermi_energy=text.fermi_energy,
        total_magnetization=text.total_magnetization,
        absolute_magnetization=text.absolute_magnetization,
    )


def _result(text: PwText, pw_input: PwInput, **values: Any) -> DFTResult:
    degauss = pw_input.get("degauss")
    correction = text.scf_correction
    return DFTResult(
        symbols=pw_input.symbols,
        degauss=None if degauss is None else float(degauss),
        conv_thr=float(pw_input.get("conv_thr", 1e-6)),
        scf_accuracy=text.scf_accuracy,
        iterations=text.iterations,
        wall_time=text.wall_time,
        n_kpoints=text.n_kpoints,
        n_ranks=text.n_ranks,
        pw_version=text.version or "",
        estimated_memory=text.estimated_memory,
        scf_force_correction=None if correction is None else correction * (RYDBERG / BOHR),
        **values,
    )


def _check_input(result: DFTResult, pw_input: PwInput) -> None:
    """Refuse a result of another cell or of other positions than the input's."""
    digits = POSITION_DIGITS * max(1.0, float(np.abs(pw_input.cell).max()) / 10)
    if np.abs(result.cell - pw_input.cell).max() > digits:
        raise InconsistentOutputError("the cell of the output is not the cell of pw.in")
    if np.abs(result.positions - pw_input.positions).max() > digits:
        raise InconsistentOutputError("the positions of the output are not those of pw.in")
    ecutwfc, ecutrho = pw_input.get("ecutwfc", 0.0), pw_input.get("ecutrho", math.inf)
    if ecutrho < 4 * ecutwfc:
        raise InconsistentOutputError(f"ecutrho = {ecutrho:g} Ry is below 4 x ecutwfc: the density is cut off")


def _check_numbers(run_dir: Path, result: DFTResult) -> None:
    if not result.scf_error <= result.conv_thr * (1 + 1e-6):
        raise NotConvergedError(
            f"the SCF error of {result.scf_error:.2g} Ry is above conv_thr = {result.conv_thr:.2g} Ry, "
            "although pw.x says that it converged"
        )
    limit = read_history(run_dir)["prescribed"]["max_force"] if has_history(run_dir) else DEFAULT_MAX_FORCE
    if result.max_force > limit:
        raise InconsistentOutputError(
            f"the largest force, {result.max_force:.4g} eV/Å, is above max_force = {limit:g} eV/Å: "
            "atoms are too close, or raise max_force in dft.yaml"
        )


def _check_prescribed(run_dir: Path, pw_input: PwInput) -> str:
    """Return the quality of a result with this input; refuse one that is not of the prescribed parameters."""
    if not has_history(run_dir):
        return "exact"
    prescribed = read_history(run_dir)["prescribed"]
    quality = "softened" if current_parameters(run_dir).get("softened") else "exact"
    for keyword in ("degauss", "conv_thr"):
        value = float(pw_input.get(keyword, math.nan))
        if value != prescribed[keyword] and not (quality == "softened" and keyword == "degauss"):
            raise InconsistentOutputError(
                f"{keyword} = {value:g} Ry of this run is not the prescribed {prescribed[keyword]:g} Ry: no label",
                intermediate=True,
            )
    return quality


def _parse_energies(text: str, found: PwText) -> None:
    final = list(re.finditer(rf"^!\s+total energy\s+=\s*({_FIELD}) Ry", text, re.M))
    if final:
        found.energy = _number(final[-1][1])
        rest = text[final[-1].end() :]
        if error := re.search(rf"estimated scf accuracy\s+<\s*({_FIELD})", rest):
            found.scf_error = _number(error[1])
        if smearing := re.search(rf"smearing contrib\. \(-TS\)\s*=\s*({_FIELD}) Ry", rest):
            found.smearing = _number(smearing[1])
    levels = re.findall(rf"(?:the Fermi energy is|highest occupied level \(ev\):)\s*({_FIELD})", text)
    levels += re.findall(rf"highest occupied, lowest unoccupied level \(ev\):\s*({_FIELD})", text)
    if levels:
        found.fermi_energy = _number(levels[-1])
    for name in ("total", "absolute"):
        if values := re.findall(rf"{name} magnetization\s+=\s*({_FIELD}) Bohr", text):
            setattr(found, f"{name}_magnetization", _number(values[-1]))


def _parse_structure(text: str, found: PwText) -> None:
    if alat := re.search(rf"celldm\(1\)=\s*({_NUMBER})", text):
        found.alat = float(alat[1])
    axes = re.findall(rf"a\([123]\) = \(\s*({_FIELD})\s+({_FIELD})\s+({_FIELD})\s*\)", text)
    sites = re.findall(rf"^\s+\d+\s+(\w+)\s+tau\(\s*\d+\) = \(\s*({_FIELD})\s+({_FIELD})\s+({_FIELD})\s*\)", text, re.M)
    if found.alat and len(axes) >= 3 and found.n_atoms and len(sites) >= found.n_atoms:
        sites = sites[: found.n_atoms]
        found.cell = np.array([[_number(x) for x in axis] for axis in axes[:3]]) * found.alat
        found.positions = np.array([[_number(x) for x in site[1:]] for site in sites]) * found.alat
        found.species = tuple(site[0] for site in sites)


def _parse_forces_and_stress(text: str, found: PwText) -> None:
    block = text[start:] if (start := text.rfind("Forces acting on atoms")) >= 0 else ""
    rows = re.findall(rf"^\s+atom\s+\d+\s+type\s+\d+\s+force =\s*({_FIELD})\s*({_FIELD})\s*({_FIELD})\s*$", block, re.M)
    # With high verbosity the contributions follow in the same form; the total comes first.
    total = re.search(rf"Total force =\s*({_FIELD})\s+Total SCF correction =\s*({_FIELD})", block)
    if found.n_atoms and len(rows) >= found.n_atoms and total:
        found.forces = np.array([[_number(x) for x in row] for row in rows[: found.n_atoms]])
        found.scf_correction = _number(total[2])
    if stress := re.search(rf"total\s+stress\s+\(Ry/bohr\*\*3\).*\n((?:\s*(?:{_FIELD}\s+){{6}}){{3}})", block):
        lines = [line.split() for line in stress[1].strip().splitlines()]
        if [len(line) for line in lines[:3]] == [6, 6, 6]:
            found.stress = np.array([[_number(x) for x in line[:3]] for line in lines[:3]])


def _number(text: str) -> float:
    """One Fortran number; NaN for stars, which overflow prints."""
    text = text.strip()
    return math.nan if "*" in text else float(text.replace("D", "e").replace("d", "e"))


def _array(text: str, shape: tuple[int, int]) -> FloatArray:
    return np.array([_number(word) for word in text.split()]).reshape(shape)


def _content(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    assert found is not None
    return found


def _time(date: str, clock: str) -> datetime | None:
    """`22Nov2026` and `16: 1: 5` as pw.x prints them."""
    try:
        return datetime.strptime(f"{date.strip()} {clock.replace(' ', '')}", "%d%b%Y %H:%M:%S")
    except ValueError:
        return None


def _seconds(text: str) -> float:
    """`1d 2h 3m 4.05s` in seconds."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(value) * units[unit] for value, unit in re.findall(r"([\d.]+)\s*([dhms])", text))
