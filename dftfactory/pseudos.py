"""Which pseudopotential file belongs to which element, and whether those of a structure fit together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dftfactory.errors import PseudopotentialError
from dftfactory.upf import Pseudopotential as Pseudopotential
from dftfactory.upf import read_pseudopotential


def find_pseudopotential(element: str, folder: Path, file: str | None = None) -> Pseudopotential:
    """Find the pseudopotential of an element.

    Parameters
    ----------
    element
        Chemical symbol.
    folder
        Where the UPF files are.
    file
        Bare name of the file to take. Without it, the folder must have exactly one file that is named like the
        element (`Si.upf`, `si_pbe_v1.uspp.F.UPF`) and whose header says the same.

    Raises
    ------
    PseudopotentialError
        There is none, more than one, or the named file is damaged, of another element, or outside of the folder.
    """
    if file is not None:
        if not re.fullmatch(r"[^/\\\0]+", file) or file in (".", ".."):
            message = f"pseudopotential of {element} must be a bare file name in {folder}, got {file!r}"
            raise PseudopotentialError(message, element=element, file=file)
        return _read_for(element, folder / file)

    # "C" must not find Co.pbe.UPF, and GBRV writes c_pbe_v1.2.uspp.F.UPF.
    name = re.compile(rf"{re.escape(element)}(?![a-z]).*\.upf", re.IGNORECASE | re.DOTALL)
    candidates: list[Pseudopotential] = []
    rejected: list[str] = []
    for path in (path for path in _list_folder(folder) if name.fullmatch(path.name)):
        try:
            candidates.append(_read_for(element, path))
        except PseudopotentialError as error:
            rejected.append(error.message)
    if len(candidates) == 1:
        return candidates[0]
    names = [candidate.path.name for candidate in candidates]
    if names:
        cure = f"choose one in dft.yaml, pseudopotentials: {{{element}: FILE}}"
        message = f"{len(names)} pseudopotentials for {element} in {folder} ({', '.join(names)}): {cure}"
    else:
        reasons = f" ({'; '.join(rejected)})" if rejected else ""
        cure = f"put {element}.upf, {element}.*.UPF or {element}_*.UPF there, or name a file in dft.yaml"
        message = f"no pseudopotential for {element} in {folder}{reasons}: {cure}"
    raise PseudopotentialError(message, element=element, candidates=names, rejected=rejected)


def load_pseudopotentials(
    elements: Iterable[str], folder: Path, files: Mapping[str, str] | None = None
) -> dict[str, Pseudopotential]:
    """Find the pseudopotentials of all elements and check that they fit together.

    Parameters
    ----------
    elements
        Chemical symbols, repeated or not.
    folder
        Where the UPF files are.
    files
        Bare file name for each element that has more than one file; other elements may be in it.

    Returns
    -------
    dict
        The pseudopotential of each element, sorted by symbol.

    Raises
    ------
    PseudopotentialError
        With all `problems` at once: those of `find_pseudopotential`, different functionals, spin-orbit terms.
    """
    _list_folder(folder)
    found: dict[str, Pseudopotential] = {}
    problems: list[str] = []
    for element in sorted(set(elements)):
        try:
            found[element] = find_pseudopotential(element, folder, (files or {}).get(element))
        except PseudopotentialError as error:
            problems.append(error.message)
    if len({pseudopotential.functional for pseudopotential in found.values()}) > 1:
        listed = ", ".join(f"{element} → {found[element].functional}" for element in found)
        problems.append(f"pseudopotentials of different functionals ({listed}): take all from one family")
    for pseudopotential in found.values():
        if pseudopotential.relativistic == "full":
            problems.append(
                f"pseudopotential {pseudopotential.path} is fully relativistic, and spin-orbit is not supported: "
                "take the scalar-relativistic one"
            )
    if problems:
        raise PseudopotentialError("; ".join(problems), problems=problems)
    return found


def verify_md5(pseudopotentials: Mapping[str, Pseudopotential], expected: Mapping[str, str]) -> None:
    """Check that the files on this node are the ones that the data set is made with.

    Raises
    ------
    PseudopotentialError
        With all `problems` at once: an element whose md5 differs from the expected one, or that has none.
    """
    problems = [
        f"pseudopotential {pseudopotential.path} of {element} has md5 {pseudopotential.md5}, "
        f"expected {expected.get(element, 'none')}: use the same file on every node, or start a new data set"
        for element, pseudopotential in pseudopotentials.items()
        if pseudopotential.md5 != expected.get(element)
    ]
    if problems:
        raise PseudopotentialError("; ".join(problems), problems=problems)


def needs_dense_charge_grid(pseudopotentials: Mapping[str, Pseudopotential]) -> bool:
    """Say whether any is ultrasoft or PAW: augmentation charges want ecutrho of 8 × ecutwfc or more, instead of 4."""
    return any(pseudopotential.type != "NC" for pseudopotential in pseudopotentials.values())


def _read_for(element: str, path: Path) -> Pseudopotential:
    # In pw.in the name stands between blanks, and a line break would begin a card of its own.
    if not re.fullmatch(r"[^\s'\"\x00-\x1f\x7f!,]+", path.name):
        message = f"pseudopotential {str(path)!r} has blanks, quotes, commas, ! or control characters: rename the file"
        raise PseudopotentialError(message, element=element, path=str(path))
    pseudopotential = read_pseudopotential(path)
    if pseudopotential.element != element:
        message = f"pseudopotential {path} is for {pseudopotential.element}, not for {element}: choose another file"
        raise PseudopotentialError(message, element=element, path=str(path))
    return pseudopotential


def _list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as error:  # a zero byte in the name is a ValueError
        reason = getattr(error, "strerror", None) or error
        message = f"folder of pseudopotentials {folder} cannot be read ({reason}): check its name"
        raise PseudopotentialError(message, folder=str(folder)) from error
