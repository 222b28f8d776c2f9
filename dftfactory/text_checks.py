"""Whether pw.out by itself is the whole output of a good run; numbers stay in QE's units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dftfactory.errors import IncompleteOutputError, InconsistentOutputError, NonFiniteError, NotConvergedError
from dftfactory.occupations import NO_SMEARING, NOT_MONOTONIC
from dftfactory.pw_text import PwText
from dftfactory.results import FloatArray
from dftfactory.units import RYDBERG

if TYPE_CHECKING:
    from dftfactory.pw_in import PwInput

# Electrons per atom: 0.1 meV per atom, at a Fermi level of some 10 eV. pw.x warns from 1e-7 of the electrons on and
# stops at 1e-3. In cells with a gap 7.2 misses the Fermi level of cold smearing: 2.7e-5 electrons per atom too many
# made 0.23 meV per atom in Si2, and 1.4e-6 made 0.006 in O2.
MAX_DRIFT = 1e-5
# Of numbers that the text repeats with fewer digits: eight terms, six decimals, two decimals.
TERMS_DIGITS = 1e-7  # Ry
TOTAL_DIGITS = 2e-6  # Ry/bohr
SYMMETRY_DIGITS = 2e-8  # Ry/bohr³; eight decimals, on both sides of the diagonal
NET_DIGITS = 2e-8  # Ry/bohr per atom; the rounding of each is 0.5e-8
PARAMETER_DIGITS = 0.51e-4  # Ry; four decimals
THRESHOLD_DIGITS = 0.06  # of conv_thr; two digits
KBAR_DIGITS = 0.01  # kbar; the rounding of both is 0.0065
PRINTED_KPOINTS = 50  # pw.x prints the levels of fewer than 100, both spins counted
GAP_WIDTHS = 6.7  # of the smearing; every level is then full or empty (`occupations.INTEGRAL`)
KBAR = 147105.08  # Ry/bohr³, as pw.x takes it


@dataclass(frozen=True)
class Label:
    """The blocks of a text that none may be missing from, in QE's units."""

    energy: float
    scf_error: float
    forces: FloatArray
    stress: FloatArray


def check_text(path: Path, text: PwText) -> Label:
    """Return the blocks of a label; refuse a text that is not the whole output of a converged run."""
    if text.started is None:
        raise IncompleteOutputError(f"{path} is missing, empty or without its beginning")
    if not text.job_done:
        raise IncompleteOutputError(f"{path} ends before JOB DONE")
    if text.n_ends > 1:
        raise InconsistentOutputError(
            f"{text.n_ends} pw.x have written {path} at the same time, each for itself: pw.x is a serial one, or was "
            "built with another MPI than this mpirun",
            copies=text.n_ends,
        )
    if not text.converged:
        raise NotConvergedError(f"{path} says nothing of a converged SCF, although it says JOB DONE")
    if text.energy is None or text.scf_error is None:
        raise IncompleteOutputError(f"{path} has no final total energy (the line that begins with !)")
    if text.forces is None:
        raise IncompleteOutputError(f"{path} has no complete block of forces for {text.n_atoms} atoms")
    if text.stress is None:
        raise IncompleteOutputError(f"{path} has no complete stress")
    numbers = [text.energy, text.scf_error, text.smearing or 0.0, *text.forces.flat, *text.stress.flat]
    if not np.isfinite(numbers).all():
        raise NonFiniteError(f"{path} has NaN, Inf or **** in energy, forces or stress")
    # Written so that NaN is refused too.
    if not abs(text.charge_drift) <= MAX_DRIFT * len(text.forces):
        raise InconsistentOutputError(
            f"the last density holds {text.charge_drift:+.2g} electrons too many (WARNING: integrated charge): the "
            "Fermi level was not found; another smearing, or fixed occupations for an insulator, may help",
            charge_drift=text.charge_drift,
        )
    # 6.7 does not know the card of 7.1, and would compute without +U.
    if any(card.startswith("HUBBARD") for card in text.ignored):
        raise InconsistentOutputError(f"this pw.x ({text.version}) has ignored the card HUBBARD: there is no +U in it")
    return Label(text.energy, text.scf_error, text.forces, text.stress)


def check_parameters(text: PwText, pw_input: PwInput) -> None:
    """Refuse an output of other cutoffs, of another smearing or accuracy than the input's."""
    if pw_input.get("occupations") == "smearing" and "degauss" not in text.parameters:
        raise InconsistentOutputError("pw.in asks for smearing, and pw.out has none: not of the same run")
    # What pw.x takes where the input says nothing.
    defaults = {"ecutrho": 4 * float(pw_input.get("ecutwfc", 0.0)), "conv_thr": 1e-6}
    for name, printed in text.parameters.items():
        value = float(pw_input.get(name, defaults.get(name, 0.0)))
        digits = THRESHOLD_DIGITS * abs(value) if name == "conv_thr" else PARAMETER_DIGITS
        # Written so that NaN is refused too.
        if not abs(value - printed) <= digits:
            raise InconsistentOutputError(
                f"{name} is {value:g} Ry in pw.in and {printed:g} Ry in pw.out: not of the same run"
            )


def check_repetitions(text: PwText, label: Label, pw_input: PwInput) -> None:
    """Refuse a text whose numbers contradict those that it repeats in another form."""
    if text.energy_terms is None and not text.is_corrected:
        raise IncompleteOutputError("the terms of the total energy are not in pw.out, and pwscf.xml cannot be read")
    # pw.x takes the mean force off every atom, but across an open boundary; a changed sign shows nowhere else.
    open_boundary = pw_input.get("assume_isolated", "none") != "none"
    net = np.zeros(3) if open_boundary else label.forces.sum(axis=0)
    for name, difference, digits in (
        ("energy and the sum of its terms (Ry)", (text.energy_terms or label.energy) - label.energy, TERMS_DIGITS),
        ("forces and total force (Ry/bohr)", np.linalg.norm(label.forces) - (text.total_force or 0.0), TOTAL_DIGITS),
        ("forces and their sum of zero (Ry/bohr)", net, NET_DIGITS * len(label.forces)),
        ("stress and its symmetry (Ry/bohr³)", label.stress - label.stress.T, SYMMETRY_DIGITS),
        (
            "stress in Ry/bohr³ and in kbar",
            0.0 if text.stress_kbar is None else text.stress_kbar - KBAR * label.stress,
            KBAR_DIGITS,
        ),
        (
            "stress and pressure (kbar)",
            KBAR * float(label.stress.trace()) / 3 - (text.pressure_kbar or 0.0),
            KBAR_DIGITS,
        ),
    ):
        if not np.abs(difference).max() <= digits:
            raise InconsistentOutputError(f"{name} contradict each other in pw.out: it is damaged")


def check_gap(text: PwText, pw_input: PwInput) -> None:
    """Refuse a text with a gap and a smearing energy: what `check_fermi_level` finds where there is an XML.

    Without printed levels nobody can tell.
    """
    smearing, degauss = str(pw_input.get("smearing", "")).lower(), float(pw_input.get("degauss", 0.0))
    energy = (text.smearing or 0.0) * RYDBERG
    if smearing not in NOT_MONOTONIC or abs(energy) <= NO_SMEARING * len(text.kinds):
        return
    if not text.levels and text.n_kpoints >= PRINTED_KPOINTS:
        return
    whole = text.levels and len(text.levels) == (text.n_bands or 0) * text.n_level_lists
    if text.n_electrons is None or not whole:
        raise IncompleteOutputError("pw.out has lost electrons or levels, and without them nobody knows of a gap")
    filled = text.n_electrons * text.n_level_lists / 2
    if filled != int(filled) or not 0 < filled < len(text.levels):
        return
    below, above = sorted(text.levels)[int(filled) - 1 : int(filled) + 1]
    if above - below > GAP_WIDTHS * degauss * RYDBERG:
        raise InconsistentOutputError(
            f"there is a gap of {above - below:.2f} eV, and yet the smearing energy is {energy:.4f} eV: pw.x has put "
            "the Fermi level outside of it; take gaussian smearing for such structures",
            lost_fermi_level=True,
        )
