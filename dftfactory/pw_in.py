"""An existing pw.in: read it, and change named parameters of it without touching the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dftfactory.errors import InputError
from dftfactory.history import write_atomically

if TYPE_CHECKING:
    from ase import Atoms

    from dftfactory.results import FloatArray

# QE keywords that recovery and runs change, and the namelist that each belongs to.
NAMELIST_OF = {
    **dict.fromkeys(("restart_mode", "max_seconds", "disk_io", "pseudo_dir", "verbosity"), "control"),
    **dict.fromkeys(("degauss", "smearing", "occupations", "nosym", "nbnd", "ecutwfc", "ecutrho", "nspin"), "system"),
    **dict.fromkeys(("conv_thr", "electron_maxstep", "startingpot", "startingwfc", "diagonalization"), "electrons"),
    **dict.fromkeys(("mixing_beta", "mixing_mode", "mixing_ndim", "scf_must_converge"), "electrons"),
    **dict.fromkeys(("diago_david_ndim", "diago_cg_maxiter", "diago_thr_init"), "electrons"),
}


@dataclass(frozen=True)
class PwInput:
    """An existing pw.in.

    Attributes
    ----------
    namelists
        Lower-case namelist → lower-case keyword → value (int, float, bool or text).
    symbols, positions, cell
        n_atoms chemical symbols, (n_atoms, 3) Å, (3, 3) Å with one lattice vector per row.
    kinds
        n_atoms labels as they stand in ATOMIC_POSITIONS, such as `Fe` and `Fe1`.
    pseudopotentials
        Label of a kind → file name.
    kpoints
        "gamma", or the six integers of an automatic grid.
    """

    namelists: dict[str, dict[str, Any]]
    symbols: tuple[str, ...]
    positions: FloatArray
    cell: FloatArray
    kinds: tuple[str, ...]
    pseudopotentials: dict[str, str]
    kpoints: str | tuple[int, ...]

    def get(self, keyword: str, default: Any = None) -> Any:
        """Value of a keyword of any namelist."""
        for namelist in self.namelists.values():
            if keyword in namelist:
                return namelist[keyword]
        return default

    def to_ase_atoms(self) -> Atoms:
        """Return the structure, periodic in three directions as pw.x takes it."""
        from ase import Atoms

        return Atoms(self.symbols, positions=self.positions, cell=self.cell, pbc=True)


def read_pw_input(path: str | Path) -> PwInput:
    """Read a pw.in that has `ibrav = 0` and all its cards.

    Raises
    ------
    InputError
        The file is missing or damaged, a card is missing, or its cards contradict its namelists.
    """
    from ase.io.espresso import (
        get_atomic_positions,
        get_atomic_species,
        get_cell_parameters,
        label_to_symbol,
        read_fortran_namelist,
    )

    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        data, cards = read_fortran_namelist(lines)
        namelists = {name: {k.lower(): v for k, v in entries.items()} for name, entries in data.items()}
        system = namelists["system"]
        if int(system.get("ibrav", 0)) != 0:
            raise InputError(f"{path}: only ibrav = 0 is read, got {system['ibrav']}")
        n_atoms, n_kinds = int(system["nat"]), int(system["ntyp"])
        cell, _ = get_cell_parameters(cards)
        if cell is None:
            raise InputError(f"{path} has no CELL_PARAMETERS card")
        cell = np.array(cell, dtype=float)
        listed = _count_positions(cards)
        if listed != n_atoms:
            raise InputError(f"{path}: nat = {n_atoms}, but ATOMIC_POSITIONS lists {listed} atoms")
        if not all(_is_balanced(line) for line in cards):
            raise InputError(f"{path} has a bracket without its other half")
        rows = get_atomic_positions(cards, n_atoms, cell=cell)
        species = get_atomic_species(cards, n_kinds)
        kinds = tuple(str(row[0]) for row in rows)
        positions = np.array([row[1] for row in rows], dtype=float)
        if not (np.isfinite(cell).all() and np.isfinite(positions).all()):
            raise InputError(f"{path} has a position or a cell vector that is not finite")
        return PwInput(
            namelists=namelists,
            symbols=tuple(label_to_symbol(kind) for kind in kinds),
            positions=positions,
            cell=cell,
            kinds=kinds,
            pseudopotentials={str(label): str(file) for label, _, file in species},
            kpoints=_read_kpoints(path, cards),
        )
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except Exception as error:  # ASE raises many kinds for a damaged file; all of them mean the same
        raise InputError(
            f"{path} is no complete input of pw.x: {' '.join(str(error).split()) or repr(error)}"
        ) from error


def change_pw_input(path: str | Path, changes: Mapping[str, Any]) -> None:
    """Change named parameters of an existing pw.in and leave every other character as it is.

    Parameters
    ----------
    path
        The file; it is replaced in one step.
    changes
        Keyword → new value; None removes the keyword. A keyword that is not there is added to its namelist.

    Raises
    ------
    InputError
        The file cannot be read, the namelist is missing, a keyword is not one that is ever changed, or pw.in cannot
        hold a value.
    """
    path = Path(path)
    try:
        # Bytes, because text mode would turn the line ends of another system into ours.
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for keyword, value in changes.items():
        if keyword not in NAMELIST_OF:
            raise InputError(f"{keyword!r} is not a keyword that is changed in a finished input")
        entries, head = _find_entries(text, NAMELIST_OF[keyword], keyword)
        if value is None:
            for entry in reversed(entries):
                text = _without_entry(text, entry)
        elif entries:
            # Of several pw.x takes the last one.
            start, end = entries[-1].span("value")
            text = text[:start] + _fortran(keyword, value) + text[end:]
        elif head is None:
            raise InputError(f"{path} has no namelist &{NAMELIST_OF[keyword].upper()}")
        elif alone := re.compile(r"[ \t]*(?:![^\n]*?)?(\r?\n)").match(text, head):
            line = f"   {keyword:16} = {_fortran(keyword, value)}{alone[1]}"
            text = text[: alone.end()] + line + text[alone.end() :]
        else:
            text = f"{text[:head]} {keyword} = {_fortran(keyword, value)},{text[head:]}"
    write_atomically(path, text)


# What a namelist is made of; anything else in it is skipped. In a comment or in quotes nothing has a meaning.
_QUOTED = r"'(?:[^'\n]|'')*'|\"(?:[^\"\n]|\"\")*\""
_TOKEN = re.compile(
    rf"(?P<comment>![^\n]*)|(?P<name>^[ \t]*&(?P<namelist>\w+))|(?P<end>/)"
    rf"|(?P<key>[A-Za-z_]\w*(?:\([^)\n]*\))?)[ \t]*=[ \t]*(?P<value>{_QUOTED}|[^\s,!/'\"]+)|{_QUOTED}",
    re.M,
)


def _find_entries(text: str, namelist: str, keyword: str) -> tuple[list[re.Match[str]], int | None]:
    """Return the assignments to a keyword in its namelist, and where the namelist begins, after its name."""
    entries: list[re.Match[str]] = []
    head, present = None, ""
    for token in _TOKEN.finditer(text):
        if token["name"]:
            present = token["namelist"].lower()
            if present == namelist and head is None:
                head = token.end()
        elif token["end"]:
            present = ""
        elif token["key"] and present == namelist and token["key"].lower() == keyword:
            entries.append(token)
    return entries, head


def _without_entry(text: str, entry: re.Match[str]) -> str:
    """Take the whole line, with its comment, where the entry stands alone on it; else only the entry."""
    start, end = text.rfind("\n", 0, entry.start()) + 1, entry.end()
    rest = re.compile(r"[ \t]*,?[ \t]*(?:![^\n]*)?(?:\r?\n|\Z)").match(text, end)
    if rest and not text[start : entry.start()].strip():
        return text[:start] + text[rest.end() :]
    before = text[: entry.start()].rstrip(" \t")
    comma = re.compile(r"[ \t]*,").match(text, end)
    return before + text[comma.end() if comma else end :]


def _fortran(keyword: str, value: Any) -> str:
    if isinstance(value, str):
        check_word(keyword, value)
        return f"'{value}'"
    if isinstance(value, (bool, np.bool_)):
        return ".true." if value else ".false."
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real) and math.isfinite(value):
        return repr(float(value))
    raise InputError(f"{keyword} = {value!r} is nothing that pw.in can hold")


def check_word(keyword: str, value: str) -> None:
    """Refuse text that pw.in cannot hold between its quotes."""
    if not re.fullmatch(r"[^'\"\x00-\x1f\x7f]*", value):
        raise InputError(f"{keyword} = {value!r} has quotes or control characters, which pw.in cannot hold")


def _count_positions(cards: Sequence[str]) -> int:
    names = ("ATOMIC_SPECIES", "ATOMIC_POSITIONS", "K_POINTS", "CELL_PARAMETERS", "OCCUPATIONS", "CONSTRAINTS")
    starts = [n for n, line in enumerate(cards) if line.upper().startswith("ATOMIC_POSITIONS")]
    if len(starts) != 1:
        raise ValueError("ATOMIC_POSITIONS must be there once")
    rest = cards[starts[0] + 1 :]
    return next(
        (n for n, line in enumerate(rest) if line.upper().startswith((*names, "ATOMIC_", "HUBBARD"))), len(rest)
    )


def _is_balanced(line: str) -> bool:
    """Whether every bracket has its other half; without it ASE would look for ever (`infix_float`)."""
    depth = 0
    for bracket in re.findall(r"[()]", line):
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            return False
    return depth == 0


def _read_kpoints(path: Path, cards: Sequence[str]) -> str | tuple[int, ...]:
    for n, line in enumerate(cards):
        words = line.lower().replace("{", " ").replace("}", " ").replace("(", " ").replace(")", " ").split()
        if words[0] != "k_points":
            continue
        kind = words[1] if len(words) > 1 else "tpiba"
        if kind == "automatic":
            grid = tuple(int(word) for word in cards[n + 1].split()[:6])
            if len(grid) != 6:
                raise InputError(f"{path}: K_POINTS automatic needs six integers")
            return grid
        return kind
    raise InputError(f"{path} has no K_POINTS card; pw.x would silently take one k-point")
