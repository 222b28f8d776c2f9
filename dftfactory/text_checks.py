"""Whether pw.out by itself is the whole output of a good run; numbers stay in QE's units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dftfactory.errors import IncompleteOutputError, InconsistentOutputError, NonFiniteError, NotConvergedError
from dftfactory.pw_text import PwText
from dftfactory.results import FloatArray

if TYPE_CHECKING:
    from dftfactory.pw_in import PwInput

# Electrons per atom: 0.1 meV per atom, at a Fermi level of some 10 eV. pw.x warns from 1e-7 of the electrons on and
# stops at 1e-3. In cells with a gap 7.2 misses the Fermi level of cold smearing: 2.7e-5 electrons per atom too many
# made 0.23 meV per atom in Si2, and 1.4e-6 made 0.006 in O2.
MAX_DRIFT = 1e-5
# Of numbers that the text repeats with fewer digits: eight terms, six decimals, two decimals.
TERMS_DIGITS = 1e-7  # Ry
TOTAL_DIGITS = 2e-6  # Ry/bohr
PARAMETER_DIGITS = 0.51e-4  # Ry; four decimals
KBAR_DIGITS = 0.01  # kbar; the rounding of both is 0.0065
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
    """Refuse an output of other cutoffs or of another smearing than the input's."""
    for name, printed in text.parameters.items():
        value = pw_input.get(name)
        if value is not None and abs(float(value) - printed) > PARAMETER_DIGITS:
            raise InconsistentOutputError(
                f"{name} is {value:g} Ry in pw.in and {printed:g} Ry in pw.out: not of the same run"
            )


def check_repetitions(text: PwText, label: Label) -> None:
    """Refuse a text whose numbers contradict those that it repeats in another form."""
    for name, difference, digits in (
        ("energy and the sum of its terms (Ry)", (text.energy_terms or label.energy) - label.energy, TERMS_DIGITS),
        ("forces and total force (Ry/bohr)", np.linalg.norm(label.forces) - (text.total_force or 0.0), TOTAL_DIGITS),
        (
            "stress in Ry/bohr³ and in kbar",
            0.0 if text.stress_kbar is None else text.stress_kbar - KBAR * label.stress,
            KBAR_DIGITS,
        ),
    ):
        if not np.abs(difference).max() <= digits:
            raise InconsistentOutputError(f"{name} contradict each other in pw.out: it is damaged")
