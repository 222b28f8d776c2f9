"""Output of pw.x to DFTResult: the only place where a QE unit becomes eV and Å.

The XML is read first, because it has all digits, and is checked against the text and the input. Where it cannot be
used, a text that is whole serves alone, and the result says so. `pw_text` and `pw_xml` read the two files.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from dftfactory.errors import (
    IncompleteOutputError,
    InconsistentOutputError,
    InputError,
    NotConvergedError,
    ParserError,
)
from dftfactory.foreign import check_foreign
from dftfactory.history import HISTORY, current_parameters, has_history, read_history
from dftfactory.inputs import PwInput, read_pw_input
from dftfactory.occupations import check_bands, check_fermi_level, had_room
from dftfactory.pw_text import PwText as PwText
from dftfactory.pw_text import last_run as last_run
from dftfactory.pw_text import parse_text as parse_text
from dftfactory.pw_xml import PwXml, read_xml
from dftfactory.results import DFTResult, FloatArray
from dftfactory.settings import is_finite_number
from dftfactory.text_checks import Label, check_gap, check_parameters, check_repetitions, check_text
from dftfactory.units import BOHR, HARTREE, RYDBERG

# Two units of the last digit that pw.x prints: its own rounding and the one of the XML.
ENERGY_DIGITS = 2e-8  # Ry
FORCE_DIGITS = 2e-8  # Ry/bohr
STRESS_DIGITS = 2e-8  # Ry/bohr³
POSITION_DIGITS = 1e-5  # Å; seven digits of alat in the text
DEFAULT_MAX_FORCE = 40.0  # eV/Å
# No output of pw.x is longer (a thousand k-points of 500 bands make 9 MB), and no line of it, not even with a path:
# what is longer was not written by pw.x, and patterns must not be tried at each of its places.
MAX_OUTPUT, MAX_LINE = 100_000_000, 1000  # bytes, characters
# What pw.x says itself of the forces: reduce conv_thr when the correction is above a tenth of them. Below 10 meV/Å per
# atom it does not matter to a potential.
MAX_CORRECTION, NEGLIGIBLE_CORRECTION = 0.1, 0.01  # fraction, eV/Å


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
    Conversion factors are CODATA 2018.
    """
    run_dir = Path(run_dir)
    _check_exit_status(run_dir)
    text = parse_text(last_run(read_output(run_dir)))
    label = check_text(run_dir / "pw.out", text)
    try:
        pw_input = read_pw_input(run_dir / "pw.in")
    except InputError as error:
        raise InconsistentOutputError(f"the input of the run cannot be read: {error.message}") from error
    _check_numbers(pw_input)
    quality = _check_prescribed(run_dir, pw_input)
    _check_pseudopotentials(run_dir, text, pw_input)
    xml = read_xml(run_dir)
    smearing = _prescribed_smearing(run_dir, pw_input)
    if xml is None:
        if pw_input.get("smearing") != smearing:
            raise IncompleteOutputError("pwscf.xml cannot be read, and without it nobody knows whether there is a gap")
        result = _from_text(text, label, pw_input)
    else:
        check_bands(xml, pw_input, ours=has_history(run_dir))
        check_fermi_level(xml, pw_input, smearing)
        result = _from_xml(xml, text, label, pw_input)
    _check_result(run_dir, result, pw_input)
    check_parameters(text, pw_input)
    if not has_history(run_dir):
        check_foreign(text, pw_input)
    return result.with_record(quality=quality)


def read_exit_status(run_dir: Path) -> int | None:
    """Exit status that the job wrote (negative: killed by that signal); None where it wrote none."""
    try:
        return int((run_dir / "exit_status").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_output(run_dir: Path, name: str = "pw.out") -> str:
    """Return the text of an output file, with odd bytes replaced and absurd lines cut; empty where there is none.

    Of a file of absurd size it is the end, where it says what stopped the run.
    """
    try:
        with (run_dir / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_OUTPUT))
            text = file.read(MAX_OUTPUT).decode("utf-8", errors="replace")
    except OSError:
        return ""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    has_long_line = max(map(len, text.split("\n"))) > MAX_LINE
    return re.sub(rf"^(.{{{MAX_LINE}}}).+", r"\1", text, flags=re.M) if has_long_line else text


def _check_exit_status(run_dir: Path) -> None:
    """Refuse a run that ended with anything but 0; every build of pw.x ends a good run with it."""
    status = read_exit_status(run_dir)
    if status is None and has_history(run_dir):
        raise IncompleteOutputError(f"{run_dir / 'exit_status'} is missing or empty: how pw.x ended is not known")
    if status not in (0, None):
        raise IncompleteOutputError(f"pw.x ended with exit status {status}", exit_status=status)


def _check_numbers(pw_input: PwInput) -> None:
    """Refuse an input whose numbers are none, which pw.x would not have run."""
    for keyword in ("degauss", "conv_thr", "ecutwfc", "ecutrho", "nspin"):
        value = pw_input.get(keyword, 0.0)
        if not is_finite_number(value):
            raise InconsistentOutputError(f"{keyword} = {value!r} in pw.in is no number: not the input of this run")


def _check_prescribed(run_dir: Path, pw_input: PwInput) -> str:
    """Return the quality of a result with this input; refuse one that is not of the prescribed parameters."""
    prescribed = _prescribed(run_dir)
    if not prescribed:
        return "exact"
    quality = "softened" if current_parameters(run_dir).get("softened") else "exact"
    for keyword in ("degauss", "conv_thr"):
        value = float(pw_input.get(keyword, math.nan))
        # A smaller conv_thr (`TightenHandler`) is a better answer to the same question; another degauss is another one.
        good = value <= prescribed[keyword] if keyword == "conv_thr" else value == prescribed[keyword]
        if not good and not (quality == "softened" and keyword == "degauss"):
            raise InconsistentOutputError(
                f"{keyword} = {value:g} Ry of this run is not the prescribed {prescribed[keyword]:g} Ry: no label",
                intermediate=True,
            )
    return quality


def _prescribed_smearing(run_dir: Path, pw_input: PwInput) -> Any:
    """Return the smearing that a label has: that of its input, unless recovery has taken another one on the way."""
    return _prescribed(run_dir).get("smearing", pw_input.get("smearing"))


def _prescribed(run_dir: Path) -> dict[str, Any]:
    """Return what history.json prescribes for a label; empty for a run of other origin.

    Raises
    ------
    ParserError
        history.json is damaged.
    """
    if not has_history(run_dir):
        return {}
    history = read_history(run_dir)
    prescribed: dict[str, Any] = history["prescribed"]
    whole = isinstance(prescribed, dict) and isinstance(history["attempts"][-1]["parameters"], dict)
    if not (
        whole
        and isinstance(prescribed.get("md5"), dict | None)
        and all(is_finite_number(prescribed.get(name)) for name in ("degauss", "conv_thr", "max_force"))
    ):
        raise ParserError(f"{run_dir / HISTORY} is damaged, and does not say what is prescribed; start again elsewhere")
    return prescribed


def _check_pseudopotentials(run_dir: Path, text: PwText, pw_input: PwInput) -> None:
    """Refuse a run that has read other files than the prescribed ones.

    Where pw.x does not find a file in pseudo_dir (or the name of the folder is too long for it), it silently takes one
    of the same name from the folder that it was built with.
    """
    prescribed = _prescribed(run_dir).get("md5")
    if prescribed is None:
        return
    element_of = dict(zip(pw_input.kinds, pw_input.symbols, strict=True))
    # None where the input is of other atoms: no md5 is equal to it.
    expected = tuple(prescribed.get(element_of.get(kind)) for kind in pw_input.pseudopotentials)
    if text.md5 != expected:
        read = ", ".join(f"{kind} {md5}" for kind, md5 in zip(pw_input.pseudopotentials, text.md5, strict=False))
        raise InconsistentOutputError(
            f"pw.x has read pseudopotentials of another content than the prescribed one ({read or 'no md5 printed'}): "
            "make pseudopotential_dir a short path that every node sees",
            pseudopotentials=read,
        )


def _from_xml(xml: PwXml, text: PwText, label: Label, pw_input: PwInput) -> DFTResult:
    """Join XML and text, which must describe the same run."""
    if not xml.converged:
        raise NotConvergedError("pwscf.xml says that the SCF did not converge, although the text says it did")
    if xml.created and text.started and text.ended and not text.started <= xml.created <= text.ended:
        raise InconsistentOutputError(
            f"pwscf.xml was written at {xml.created}, but the run went from {text.started} to {text.ended}: stale"
        )
    if xml.kinds != pw_input.kinds:
        raise InconsistentOutputError("pwscf.xml is of other atoms than the input")
    if isinstance(pw_input.kpoints, tuple) and xml.kpoints != pw_input.kpoints:
        raise InconsistentOutputError(f"pwscf.xml is of other k-points than the input: {xml.kpoints}")
    smearing = 2 * xml.smearing
    for name, from_xml, from_text, digits in (
        ("energy (Ry)", 2 * xml.energy, label.energy, ENERGY_DIGITS),
        ("smearing energy (Ry)", smearing, smearing if text.smearing is None else text.smearing, ENERGY_DIGITS),
        ("forces (Ry/bohr)", 2 * xml.forces, label.forces, FORCE_DIGITS),
        ("stress (Ry/bohr³)", 2 * xml.stress, label.stress, STRESS_DIGITS),
    ):
        if np.shape(from_xml) != np.shape(from_text) or np.abs(np.subtract(from_xml, from_text)).max() > digits:
            raise InconsistentOutputError(f"{name} differs between pwscf.xml and pw.out: not of the same run")
    _check_structure(xml.positions * BOHR, xml.cell * BOHR, pw_input)
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


def _from_text(text: PwText, label: Label, pw_input: PwInput) -> DFTResult:
    """Use the text alone, which must have the structure of the input."""
    if text.positions is None or text.cell is None:
        raise IncompleteOutputError("pw.out has no complete structure, and pwscf.xml cannot be read")
    if text.kinds != pw_input.kinds:
        raise InconsistentOutputError("pw.out is of other atoms than the input")
    _check_structure(text.positions * BOHR, text.cell * BOHR, pw_input)
    check_repetitions(text, label, pw_input)
    check_gap(text, pw_input)
    if not had_room(text, pw_input):
        raise IncompleteOutputError(
            "pwscf.xml cannot be read, and without it nobody knows whether the bands were enough"
        )
    return _result(
        text,
        pw_input,
        source="text",
        energy=label.energy * RYDBERG,
        smearing_energy=(text.smearing or 0.0) * RYDBERG,
        forces=label.forces * (RYDBERG / BOHR),
        stress=-label.stress * (RYDBERG / BOHR**3),
        # The same within the digits of the text, and the input has all of them.
        positions=pw_input.positions,
        cell=pw_input.cell,
        scf_error=label.scf_error,
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


def _check_structure(positions: FloatArray, cell: FloatArray, pw_input: PwInput) -> None:
    """Refuse an output of another cell or of other positions (Å) than the input's."""
    digits = POSITION_DIGITS * max(1.0, float(np.abs(pw_input.cell).max()) / 10)
    # Written so that NaN is refused too.
    if not np.abs(cell - pw_input.cell).max() <= digits:
        raise InconsistentOutputError("the cell of the output is not the cell of pw.in")
    if not np.abs(positions - pw_input.positions).max() <= digits:
        raise InconsistentOutputError("the positions of the output are not those of pw.in")


def _check_result(run_dir: Path, result: DFTResult, pw_input: PwInput) -> None:
    ecutwfc, ecutrho = pw_input.get("ecutwfc", 0.0), pw_input.get("ecutrho", math.inf)
    if ecutrho < 4 * ecutwfc:
        raise InconsistentOutputError(f"ecutrho = {ecutrho:g} Ry is below 4 x ecutwfc: the density is cut off")
    if not result.scf_error <= result.conv_thr + _accuracy_digits(result):
        raise NotConvergedError(
            f"the SCF error of {result.scf_error:.2g} Ry is above conv_thr = {result.conv_thr:.2g} Ry, "
            "although pw.x says that it converged"
        )
    limit = _prescribed(run_dir).get("max_force", DEFAULT_MAX_FORCE)
    n_atoms = len(result.symbols)
    correction, total = result.scf_force_correction or 0.0, float(np.linalg.norm(result.forces))
    if correction > max(MAX_CORRECTION * total, NEGLIGIBLE_CORRECTION * math.sqrt(n_atoms)):
        raise InconsistentOutputError(
            f"the SCF error may be {correction:.3g} of {total:.3g} eV/Å in the forces: lower conv_thr_per_atom",
            loose=True,
        )
    if result.max_force > limit:
        raise InconsistentOutputError(
            f"the largest force, {result.max_force:.4g} eV/Å, is above max_force = {limit:g} eV/Å: "
            "atoms are too close, or raise max_force in dft.yaml"
        )


def _accuracy_digits(result: DFTResult) -> float:
    """Ry by which the SCF error may be above what it was: the text rounds it to 8 decimals, or to two digits below."""
    if result.source == "xml":
        return 1e-6 * result.conv_thr
    return 5e-9 if result.scf_error >= 1e-8 else 0.05 * result.scf_error
