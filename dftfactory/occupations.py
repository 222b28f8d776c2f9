"""Whether the electrons of a run sit where they should: enough bands for them, and the Fermi level where it belongs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dftfactory.errors import InconsistentOutputError
from dftfactory.units import HARTREE, RYDBERG

if TYPE_CHECKING:
    from dftfactory.pw_in import PwInput
    from dftfactory.pw_text import PwText
    from dftfactory.pw_xml import PwXml
    from dftfactory.results import FloatArray

# Electrons in the highest band mean that there were too few bands for them and the smearing.
EMPTY = 0.01
# Widths above the Fermi level where a level is that empty: Fermi-Dirac, and all other kinds of smearing.
FERMI_DIRAC = {"fermi-dirac", "f-d", "fd"}
EMPTY_ABOVE_FERMI_DIRAC, EMPTY_ABOVE = 5.0, 2.0
# These fill a level with more than one electron below the Fermi level, so that more than one Fermi level can give the
# right number of electrons.
NOT_MONOTONIC = {"mv", "m-v", "cold", "marzari-vanderbilt", "mp", "m-p", "methfessel-paxton"}
# A gap: with gaussian smearing every level is full or empty to this. It is 6.7 widths wide or more.
INTEGRAL = 1e-6
# eV per atom. With a gap there is no smearing energy; 44 meV in O2 was the wrong Fermi level.
NO_SMEARING = 1e-5


def check_bands(xml: PwXml, pw_input: PwInput, *, ours: bool) -> None:
    """Refuse a result whose highest band holds electrons: with more bands the number would be another.

    A spin channel that is full to the top is capped. Without spin, all bands full is also what an insulator has whose
    bands were counted exactly; our own inputs never count so.

    Raises
    ------
    InconsistentOutputError
        Its details have `n_bands`, which were too few.
    """
    tops = xml.top_occupations
    full = not ours and pw_input.get("nspin", 1) == 1 and all(abs(top - 1) <= EMPTY for top in tops)
    if pw_input.get("degauss") is None or full or all(abs(top) <= EMPTY for top in tops):
        return
    raise InconsistentOutputError(
        f"the highest band is filled (occupation {max(tops, key=abs):.3f}): "
        f"{xml.n_bands} bands are too few for the electrons and this smearing",
        n_bands=xml.n_bands,
    )


def had_room(text: PwText, pw_input: PwInput) -> bool:
    """Whether the highest band was empty, as far as a text tells that has no occupations."""
    degauss = pw_input.get("degauss")
    if degauss is None:
        return True
    if text.top_levels and text.fermi_energy is not None:
        is_wide = str(pw_input.get("smearing", "")).lower() in FERMI_DIRAC
        widths = EMPTY_ABOVE_FERMI_DIRAC if is_wide else EMPTY_ABOVE
        return min(text.top_levels) - text.fermi_energy > widths * float(degauss) * RYDBERG
    # As many as pw.x takes by itself for a metal, and for the majority spin.
    majority = ((text.n_electrons or math.inf) + abs(text.total_magnetization or 0.0)) / 2
    return (text.n_bands or 0) >= max(1.1 * majority, majority + 4)


def check_fermi_level(xml: PwXml, pw_input: PwInput, prescribed: str) -> None:
    """Refuse a result with a gap whose Fermi level is not in it, although the number of electrons is right.

    Cold smearing (and Methfessel-Paxton) fills a level with exactly one electron 0.92 widths above it, too. pw.x 6.7
    takes that for the Fermi level of some molecules and insulators, silently, with a smearing energy of some 20 meV for
    each of their highest levels; 7.x looks near the level of gaussian smearing. With a gap every smearing gives the
    same number, so that recovery may take the gaussian one; without a gap such a result is no label.

    Parameters
    ----------
    prescribed
        The smearing that the label is to have.

    Raises
    ------
    InconsistentOutputError
        Its details have `lost_fermi_level` where gaussian smearing would find it.
    """
    degauss, smearing = pw_input.get("degauss"), str(pw_input.get("smearing", "")).lower()
    if degauss is None or not (smearing in NOT_MONOTONIC or smearing != prescribed):
        return
    energy = xml.smearing * HARTREE
    if has_gap(xml, float(degauss) / 2):
        if abs(energy) > NO_SMEARING * len(xml.kinds):
            raise InconsistentOutputError(
                f"there is a gap, and yet the smearing energy is {energy:.4f} eV: pw.x has put the Fermi level outside "
                f"of it ({smearing} smearing in pw.x before 7.0 does); take gaussian smearing for such structures",
                lost_fermi_level=True,
            )
    elif smearing != prescribed:
        raise InconsistentOutputError(
            f"smearing = '{smearing}' is not the prescribed '{prescribed}', and without a gap it gives another number"
        )


def has_gap(xml: PwXml, width: float) -> bool:
    """Whether every level is full or empty with gaussian smearing of `width` (Hartree).

    False where nobody knows: with a Fermi level for each spin, or without an empty level.
    """
    if xml.n_electrons is None or not len(xml.levels):
        return False
    low, high = float(xml.levels.min()) - 10 * width, float(xml.levels.max()) + 10 * width
    for _ in range(100):
        fermi_level = (low + high) / 2
        occupations = _gaussian((fermi_level - xml.levels) / width)
        low, high = (low, fermi_level) if occupations @ xml.capacities > xml.n_electrons else (fermi_level, high)
    integral = np.abs(occupations - np.rint(occupations)).max() < INTEGRAL
    return bool(integral and np.rint(occupations).min() == 0)


def _gaussian(distances: FloatArray) -> FloatArray:
    """Occupation, 0 to 1, of levels so many widths below the Fermi level."""
    occupations = (distances > 0).astype(float)
    # Farther away it is 0 or 1 to the last bit.
    near = np.abs(distances) < 7
    occupations[near] = [0.5 * math.erfc(-distance) for distance in distances[near]]
    return occupations
