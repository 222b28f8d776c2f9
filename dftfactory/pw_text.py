"""What pw.out says, in QE's own units (Ry, bohr); whole or cut, nothing here judges it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from dftfactory.results import FloatArray

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][-+]?\d+)?"
_NOT_FINITE = r"[-+]?(?:NaN|Inf(?:inity)?)"
_FIELD = rf"(?:{_NUMBER}|\*+|{_NOT_FINITE})"
# Energy, forces and stress are printed with eight decimals, and forces may touch each other. Anything looser would take
# the last digit of a damaged line for a number of its own.
_FIXED = rf"(?:-?\d*\.\d{{8}}|\*+|{_NOT_FINITE})"
_PARAMETERS = {
    "ecutwfc": "kinetic-energy cutoff +=",
    "ecutrho": "charge density cutoff +=",
    "degauss": r"smearing, width \(Ry\)=",
    "conv_thr": "scf convergence threshold +=",
}
_BEGIN = re.compile(r"^ *Program PWSCF v\.\S+ +starts on", re.M)
_DATE = r"(\d{1,2}\w{3}\d{4})"
_CLOCK = r"(\d+:\s*\d+:\s*\d+)"
# What pw.x calls a MB has 2**20 bytes.
MB = {"kB": 1 / 1024, "MB": 1.0, "GB": 1024.0}
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
    cpu_time, wall_time
        Seconds.
    cpu_so_far
        Seconds, up to the last SCF iteration that has begun: all that a run says of its time which was killed.
    energy, smearing, scf_error, scf_accuracy
        Ry: the `!` line, -TS, the accuracy printed below it, and the accuracies of all iterations.
    energy_terms
        Ry; the sum of the terms that are listed below the `!` line, None where they are not all of it.
    is_corrected
        Whether they are not: a hybrid functional, or a charged molecule.
    fermi_energy, top_levels, levels
        eV: the Fermi or highest occupied level, the highest band of each k-point and spin where they are printed, and
        all bands of all of them.
    n_level_lists
        How many k-points and spins these are of.
    forces, total_force, scf_correction
        Ry/bohr; the total force is the root of the sum of all squares.
    stress, stress_kbar, pressure_kbar
        Ry/bohr³ and, with fewer digits, kbar; QE's sign. The pressure is a third of the trace.
    positions, cell
        bohr.
    kinds
        Labels of the atoms, such as `Fe` and `Fe1`.
    n_electrons, n_bands
        Valence electrons, and Kohn-Sham states of one spin channel.
    parameters
        `ecutwfc`, `ecutrho`, `degauss` and `conv_thr` (Ry), as far as they are printed.
    charge_drift
        Electrons beyond those of the system in the last density, where pw.x warns of them.
    files, md5
        Of the pseudopotentials that pw.x has really read, in the order of ATOMIC_SPECIES.
    valences
        Kind → valence electrons of its pseudopotential.
    ignored
        Cards of the input that pw.x did not know and went on without, in its upper case.
    n_ends
        How often JOB DONE stands there; more than once where several pw.x wrote at the same time.
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
    cpu_time: float | None = None
    wall_time: float | None = None
    cpu_so_far: float | None = None
    iterations: int = 0
    scf_accuracy: tuple[float, ...] = ()
    energy: float | None = None
    energy_terms: float | None = None
    is_corrected: bool = False
    smearing: float | None = None
    scf_error: float | None = None
    fermi_energy: float | None = None
    top_levels: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()
    n_level_lists: int = 0
    total_magnetization: float | None = None
    absolute_magnetization: float | None = None
    forces: FloatArray | None = None
    total_force: float | None = None
    scf_correction: float | None = None
    stress: FloatArray | None = None
    stress_kbar: FloatArray | None = None
    pressure_kbar: float | None = None
    positions: FloatArray | None = None
    cell: FloatArray | None = None
    kinds: tuple[str, ...] = ()
    n_electrons: float | None = None
    n_bands: int | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    charge_drift: float = 0.0
    files: tuple[str, ...] = ()
    md5: tuple[str, ...] = ()
    valences: dict[str, float] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    n_ends: int = 0


def last_run(text: str) -> str:
    """Return what the last run has written, where several were appended to one file."""
    begins = [match.start() for match in _BEGIN.finditer(text)]
    return text[begins[-1] :] if begins else text


def parse_text(text: str) -> PwText:
    """Take what is there from pw.out, whole or cut; raises nothing of its own for a cut one.

    Notes
    -----
    Sources: the printing routines of pw.x 6.7 and 7.2.
    """
    found = PwText(
        n_ends=text.count("JOB DONE."),
        job_done="JOB DONE." in text,
        converged="convergence has been achieved" in text,
        iterations=len(re.findall(r"^ *iteration #", text, re.M)),
        scf_accuracy=tuple(to_number(value) for value in re.findall(rf"estimated scf accuracy\s+<\s*({_FIELD})", text)),
    )
    # The number tells kinds apart; the file of an element is printed once for each of its kinds.
    files = re.findall(r"PseudoPot\. # *(\d+) for .*\n(.*)\n +MD5 check sum: ([0-9a-f]{32})", text)
    files.sort(key=lambda file: int(file[0]))
    found.files, found.md5 = tuple(file[1].strip() for file in files), tuple(file[2] for file in files)
    table = text.partition("atomic species   valence    mass     pseudopotential")[2][:20_000]
    for row in re.findall(rf"^ +(\S+) +({_NUMBER}) +{_NUMBER} +\S+\( *1\.00\) *$", table, re.M):
        found.valences.setdefault(row[0], to_number(row[1]))
    for name, printed in _PARAMETERS.items():
        if value := re.search(rf"{printed} *({_NUMBER})", text):
            found.parameters[name] = to_number(value[1])
    found.ignored = tuple(re.findall(r"^Warning: card +(\S.*?) +ignored *$", text, re.M))
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
        found.n_electrons = to_number(electrons[1])
    if bands := re.search(r"number of Kohn-Sham states=\s*(\d+)", text):
        found.n_bands = int(bands[1])
    if kpoints := re.search(r"number of k points=\s*(\d+)", text):
        found.n_kpoints = int(kpoints[1])
    if memory := re.search(rf"Estimated max dynamical RAM per process >\s*({_NUMBER})\s*(kB|MB|GB)", text):
        found.estimated_memory = to_number(memory[1]) * MB[memory[2]]
    if clock := re.search(r"^ *PWSCF *:([\d. dhms]+?) *CPU +([\d. dhms]+?) *WALL", text, re.M):
        found.cpu_time, found.wall_time = _seconds(clock[1]), _seconds(clock[2])
    if so_far := re.findall(r"total cpu time spent up to now is +(\d+\.?\d*) secs", text):
        found.cpu_so_far = float(so_far[-1])
    _take_energies(text, found)
    _take_levels(text, found)
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
        last = text[text.rfind("iteration #", 0, final[-1].start()) + 1 : final[-1].start()]
        if drift := re.search(rf"WARNING: integrated charge= *({_FIELD}), expected= *({_FIELD})", last):
            found.charge_drift = to_number(drift[1]) - to_number(drift[2])
        found.energy = to_number(final[-1][1])
        rest = text[final[-1].end() :]
        if error := re.search(rf"estimated scf accuracy\s+<\s*({_FIELD})", rest):
            found.scf_error = to_number(error[1])
        if smearing := re.search(rf"smearing contrib\. \(-TS\)\s*=\s*({_FIELD}) Ry", rest):
            found.smearing = to_number(smearing[1])
        # A hybrid functional has another total after its last `!` line, a charged molecule a correction.
        before, listed, after = rest.partition("sum of the following terms:")
        terms = re.findall(rf"= *({_FIXED}) Ry *$", after.partition("convergence has been achieved")[0], re.M)
        found.is_corrected = re.search(r"^!!|Makov", rest, re.M) is not None
        if listed and terms and not found.is_corrected:
            # 6.7 lists -TS among the terms, 7.x before them.
            apart = (found.smearing or 0.0) if "(-TS)" in before else 0.0
            found.energy_terms = sum(to_number(term) for term in terms) + apart
    levels = re.findall(rf"(?:the Fermi energy is|highest occupied level \(ev\):)\s*({_FIELD})", text)
    levels += re.findall(rf"highest occupied, lowest unoccupied level \(ev\):\s*({_FIELD})", text)
    if levels:
        found.fermi_energy = to_number(levels[-1])
    end = final[-1].end() if final else len(text)
    for name in ("total", "absolute"):
        moment = rf"{name} magnetization\s+=\s*({_FIELD}) Bohr"
        # Each iteration has one, and the end of the SCF another.
        if values := re.findall(moment, text[end:])[:1] or re.findall(moment, text[:end])[-1:]:
            setattr(found, f"{name}_magnetization", to_number(values[0]))


def _take_levels(text: str, found: PwText) -> None:
    block = text[text.rfind("End of self-consistent calculation") :]
    levels = re.findall(r"bands \(ev\):\n((?:[ \t]*\n|(?: *-?\d+\.\d{4})+ *\n)+)", block)
    numbers = [re.findall(r"-?\d+\.\d{4}", bands) for bands in levels]
    found.top_levels = tuple(float(bands[-1]) for bands in numbers if bands)
    found.levels = tuple(float(level) for bands in numbers for level in bands)
    found.n_level_lists = len(numbers)


def _take_structure(text: str, found: PwText) -> None:
    alat = re.search(rf"celldm\(1\)=\s*({_NUMBER})", text)
    axes = re.findall(rf"a\([123]\) = \(\s*({_FIELD})\s+({_FIELD})\s+({_FIELD})\s*\)", text)
    sites = re.findall(rf"^ +\d+ +(\S+) +tau\( *\d+\) = \(\s*({_FIELD})\s+({_FIELD})\s+({_FIELD})\s*\)", text, re.M)
    if alat and len(axes) >= 3 and found.n_atoms and len(sites) >= found.n_atoms:
        sites = sites[: found.n_atoms]
        found.cell = np.array([[to_number(x) for x in axis] for axis in axes[:3]]) * to_number(alat[1])
        found.positions = np.array([[to_number(x) for x in site[1:]] for site in sites]) * to_number(alat[1])
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
    if total and rows and len(rows) == found.n_atoms and all(int(row[0]) == n for n, row in enumerate(rows, start=1)):
        found.forces = np.array([[to_number(x) for x in row[1:]] for row in rows])
        found.total_force, found.scf_correction = to_number(total[1]), to_number(total[2])
    line = rf"\n *({_FIXED}) *({_FIXED}) *({_FIXED}) +({_FIELD}) +({_FIELD}) +({_FIELD}) *"
    if stress := re.search(rf"total +stress +\(Ry/bohr\*\*3\).*?P= *({_FIELD}) *{line}{line}{line}$", block, re.M):
        found.pressure_kbar = to_number(stress[1])
        both = np.array([to_number(x) for x in stress.groups()[1:]]).reshape(3, 6)
        found.stress, found.stress_kbar = both[:, :3], both[:, 3:]


def _seconds(text: str) -> float:
    """`1d 2h 3m 4.05s` in seconds."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(value) * units[unit] for value, unit in re.findall(r"(\d+\.?\d*) *([dhms])", text))
