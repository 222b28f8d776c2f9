"""What pw.out says, in QE's own units (Ry, bohr); whole or cut, nothing here judges it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from dftfactory.results import FloatArray

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][-+]?\d+)?"
_NOT_FINITE = r"[-+]?(?:NaN|Inf(?:inity)?)"
_FIELD = rf"(?:{_NUMBER}|\*+|{_NOT_FINITE})"
# Energy, forces and stress are printed with eight decimals, and forces may touch each other. Anything looser would take
# the last digit of a damaged line for a number of its own.
_FIXED = rf"(?:-?\d*\.\d{{8}}|\*+|{_NOT_FINITE})"
_DATE = r"(\d{1,2}\w{3}\d{4})"
_CLOCK = r"(\d+:\s*\d+:\s*\d+)"
# By hand, because strptime follows the locale and pw.x does not.
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass
class PwText:
    """What pw.out says; None or empty where it says nothing.

    Attributes
    ----------
    started, ended
        The clock of the machine that ran pw.x, to the second.
    n_kpoints, n_ranks
        Irreducible k-points (spin not counted twice) and MPI ranks.
    estimated_memory
        MB per rank.
    wall_time
        Seconds.
    energy, smearing, scf_error, scf_accuracy
        Ry: the `!` line, -TS, the accuracy printed below it, and the accuracies of all iterations.
    fermi_energy
        eV, as printed.
    forces, scf_correction
        Ry/bohr.
    stress
        Ry/bohr³, QE's sign.
    positions, cell
        bohr.
    kinds
        Labels of the atoms, such as `Fe` and `Fe1`.
    n_electrons, n_bands
        Valence electrons, and Kohn-Sham states of one spin channel.
    md5
        Of the pseudopotential files that pw.x has really read, in the order of ATOMIC_SPECIES.
    """

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
    positions: FloatArray | None = None
    cell: FloatArray | None = None
    kinds: tuple[str, ...] = ()
    n_electrons: float | None = None
    n_bands: int | None = None
    md5: tuple[str, ...] = ()


def parse_text(text: str) -> PwText:
    """Take what is there from pw.out, whole or cut; raises nothing of its own for a cut one.

    Notes
    -----
    Sources: the printing routines of pw.x 6.7 and 7.2.
    """
    found = PwText(
        job_done="JOB DONE." in text,
        converged="convergence has been achieved" in text,
        iterations=len(re.findall(r"^ *iteration #", text, re.M)),
        scf_accuracy=tuple(to_number(value) for value in re.findall(rf"estimated scf accuracy\s+<\s*({_FIELD})", text)),
    )
    # The number tells kinds apart; the file of an element is printed once for each of its kinds.
    files = re.findall(r"PseudoPot\. # *(\d+) for .*\n.*\n +MD5 check sum: ([0-9a-f]{32})", text)
    found.md5 = tuple(md5 for _, md5 in sorted(files, key=lambda file: int(file[0])))
    # The day has two columns: one blank more from the first to the ninth of a month.
    if header := re.search(rf"Program PWSCF v\.(\S+)\s+starts on\s+{_DATE} at\s+{_CLOCK}", text):
        found.version, found.started = header[1], to_time(header[2], header[3])
    if ended := re.search(rf"terminated on:\s*{_CLOCK}\s+{_DATE}", text):
        found.ended = to_time(ended[2], ended[1])
    # The second form is that of a build with MPI and threads, which counts cores where the other counts ranks.
    if ranks := re.search(r"running on\s+(\d+) processors|Number of MPI processes:\s+(\d+)", text):
        found.n_ranks = int(ranks[1] or ranks[2])
    if atoms := re.search(r"number of atoms/cell\s*=\s*(\d+)", text):
        found.n_atoms = int(atoms[1])
    if electrons := re.search(rf"number of electrons +=\s*({_NUMBER})", text):
        found.n_electrons = float(electrons[1])
    if bands := re.search(r"number of Kohn-Sham states=\s*(\d+)", text):
        found.n_bands = int(bands[1])
    if kpoints := re.search(r"number of k points=\s*(\d+)", text):
        found.n_kpoints = int(kpoints[1])
    if memory := re.search(rf"Estimated max dynamical RAM per process >\s*({_NUMBER})\s*(kB|MB|GB)", text):
        found.estimated_memory = float(memory[1]) * {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[memory[2]]
    if wall := re.search(r"^ *PWSCF *:.*CPU +([\d. dhms]+?) *WALL", text, re.M):
        found.wall_time = _seconds(wall[1])
    _take_energies(text, found)
    _take_structure(text, found)
    _take_forces_and_stress(text, found)
    return found


def to_number(text: str) -> float:
    """One Fortran number; NaN for stars, which overflow prints."""
    text = text.strip()
    return math.nan if "*" in text else float(text.replace("D", "e").replace("d", "e"))


def to_time(date: str, clock: str) -> datetime | None:
    """`22Nov2026` and `16: 1: 5` as pw.x prints them; None where they are no time."""
    parts = re.fullmatch(r"(\d{1,2})([A-Za-z]{3})(\d{4})", date.strip())
    if parts is None or parts[2].lower() not in _MONTHS:
        return None
    try:
        hour, minute, second = (int(part) for part in clock.split(":"))
        return datetime(int(parts[3]), _MONTHS.index(parts[2].lower()) + 1, int(parts[1]), hour, minute, second)
    except ValueError:
        return None


def _take_energies(text: str, found: PwText) -> None:
    final = list(re.finditer(rf"^! +total energy += *({_FIXED}) Ry", text, re.M))
    if final:
        found.energy = to_number(final[-1][1])
        rest = text[final[-1].end() :]
        if error := re.search(rf"estimated scf accuracy\s+<\s*({_FIELD})", rest):
            found.scf_error = to_number(error[1])
        if smearing := re.search(rf"smearing contrib\. \(-TS\)\s*=\s*({_FIELD}) Ry", rest):
            found.smearing = to_number(smearing[1])
    levels = re.findall(rf"(?:the Fermi energy is|highest occupied level \(ev\):)\s*({_FIELD})", text)
    levels += re.findall(rf"highest occupied, lowest unoccupied level \(ev\):\s*({_FIELD})", text)
    if levels:
        found.fermi_energy = to_number(levels[-1])
    for name in ("total", "absolute"):
        if values := re.findall(rf"{name} magnetization\s+=\s*({_FIELD}) Bohr", text):
            setattr(found, f"{name}_magnetization", to_number(values[-1]))


def _take_structure(text: str, found: PwText) -> None:
    alat = re.search(rf"celldm\(1\)=\s*({_NUMBER})", text)
    axes = re.findall(rf"a\([123]\) = \(\s*({_FIELD})\s+({_FIELD})\s+({_FIELD})\s*\)", text)
    sites = re.findall(rf"^ +\d+ +(\S+) +tau\( *\d+\) = \(\s*({_FIELD})\s+({_FIELD})\s+({_FIELD})\s*\)", text, re.M)
    if alat and len(axes) >= 3 and found.n_atoms and len(sites) >= found.n_atoms:
        sites = sites[: found.n_atoms]
        found.cell = np.array([[to_number(x) for x in axis] for axis in axes[:3]]) * float(alat[1])
        found.positions = np.array([[to_number(x) for x in site[1:]] for site in sites]) * float(alat[1])
        found.kinds = tuple(site[0] for site in sites)


def _take_forces_and_stress(text: str, found: PwText) -> None:
    start = text.rfind("Forces acting on atoms")
    if start < 0:
        return
    block = text[start:]
    # pw.x 7 lists the contributions in the same form; the total comes first.
    row = rf"^ +atom +(\d+) +type +\d+ +force = *({_FIXED}) *({_FIXED}) *({_FIXED}) *$"
    rows = re.findall(row, block, re.M)[: found.n_atoms]
    total = re.search(rf"Total force =\s*({_FIELD})\s+Total SCF correction =\s*({_FIELD})", block)
    if total and rows and [int(row[0]) for row in rows] == list(range(1, (found.n_atoms or 0) + 1)):
        found.forces = np.array([[to_number(x) for x in row[1:]] for row in rows])
        found.scf_correction = to_number(total[2])
    line = rf"\n *({_FIXED}) *({_FIXED}) *({_FIXED})(?: +{_FIELD}){{3}} *"
    if stress := re.search(rf"total +stress +\(Ry/bohr\*\*3\).*{line}{line}{line}$", block, re.M):
        found.stress = np.array([to_number(x) for x in stress.groups()]).reshape(3, 3)


def _seconds(text: str) -> float:
    """`1d 2h 3m 4.05s` in seconds."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(value) * units[unit] for value, unit in re.findall(r"([\d.]+) *([dhms])", text))
