"""What has to be checked only in a run of other origin; ours are checked before they begin, and carry a history."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from dftfactory.errors import InconsistentOutputError

if TYPE_CHECKING:
    from dftfactory.pw_in import PwInput
    from dftfactory.pw_text import PwText

# Whatever else they are in, without spin their energies and forces are those of another state (bcc Fe: 0.7 eV).
MAGNETIC_METALS = {"Cr", "Mn", "Fe", "Co", "Ni"}
# Lanthanides and actinides: an open f shell may be frozen into the core.
F_BLOCK = {*range(57, 72), *range(89, 104)}


def check_foreign(text: PwText, pw_input: PwInput) -> None:
    """Refuse a run whose spin or pseudopotentials cannot be what was meant.

    Raises
    ------
    InconsistentOutputError
        A magnetic metal without spin; a pseudopotential from another folder than pw.in says, or of another element.
    """
    without_spin = pw_input.get("nspin", 1) == 1 and not pw_input.get("noncolin", False)
    if without_spin and (metals := sorted(MAGNETIC_METALS.intersection(pw_input.symbols))):
        raise InconsistentOutputError(
            f"nspin = 1 with {', '.join(metals)}: without spin the SCF cannot find the magnetic state, which is lower; "
            "run it with `magnetism: auto`, or by dftfactory with `magnetism: none` where that is meant"
        )
    for problem in _pseudopotential_problems(text, pw_input):
        raise InconsistentOutputError(problem, pseudopotentials=", ".join(text.files))


def _pseudopotential_problems(text: PwText, pw_input: PwInput) -> list[str]:
    from ase.data import atomic_numbers

    element_of = dict(zip(pw_input.kinds, pw_input.symbols, strict=True))
    problems = []
    folder = pw_input.get("pseudo_dir")
    for (kind, file), path in zip(pw_input.pseudopotentials.items(), text.files, strict=False):
        if folder is not None and os.path.normpath(path) != os.path.normpath(f"{folder}/{file}"):
            problems.append(f"pw.x has read {path}, because there is no readable {file} in pseudo_dir = {folder}")
        element = element_of.get(kind, kind)
        # Si.pz-vbc.UPF and Si_r.upf, and not SG15 or PBE.
        named = re.match(r"[A-Z][a-z]?(?=[._-])", file)
        if named and named[0] in atomic_numbers and named[0] != element:
            problems.append(f"pw.x has used {file}, a pseudopotential of {named[0]}, for {element}")
    for kind, valence in text.valences.items():
        number = atomic_numbers.get(element_of.get(kind, ""), 0)
        # Closed shells are left in the core. A fraction is a virtual crystal's, whose core nobody knows.
        core = number - valence
        if number and number not in F_BLOCK and core == int(core) and (core < 0 or core % 2):
            problems.append(
                f"a pseudopotential with {valence:g} valence electrons cannot be one of {element_of[kind]}: "
                f"{core:g} electrons would be left for the core"
            )
    return problems
