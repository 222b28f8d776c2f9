"""Atoms and DFTConfig to pw.in; reading and changing an existing pw.in; structures that cannot be right."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dftfactory.config import DFTConfig
from dftfactory.errors import InputError, StructureError
from dftfactory.history import write_atomically
from dftfactory.pseudos import Pseudopotential, load_pseudopotentials, needs_dense_charge_grid

if TYPE_CHECKING:
    from ase import Atoms

    from dftfactory.results import FloatArray

# Spin moments (μB) of the free atoms by Hund's rule, as a start from which the SCF comes down: 3d metals and 4f.
STARTING_MOMENTS = {
    **{"Cr": 6.0, "Mn": 5.0, "Fe": 4.0, "Co": 3.0, "Ni": 2.0},
    **{"Ce": 1.0, "Pr": 3.0, "Nd": 4.0, "Pm": 5.0, "Sm": 6.0, "Eu": 7.0, "Gd": 7.0, "Tb": 5.0, "Dy": 4.0, "Ho": 3.0},
    **{"Er": 2.0, "Tm": 1.0},
}
# pw.x 6.7 and 7.x hold at most ten kinds of atom (ntypx), and labels of three characters.
MAX_KINDS = 10
# Å; anything further out is a broken structure and not a far one.
MAX_COORDINATE = 1.0e4
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


def check_structure(atoms: Atoms, min_distance_fraction: float = 0.5) -> None:
    """Refuse a structure that cannot be right, before anything is run on it.

    Parameters
    ----------
    atoms
        The structure. pw.x repeats every cell in three directions, so distances to all images count.
    min_distance_fraction
        Two atoms closer than this fraction of the sum of their covalent radii (Cordero 2008, as in ASE) are refused.

    Raises
    ------
    StructureError
        No atoms, unknown elements, NaN or huge coordinates, no cell or a flat one, atoms on top of each other.
    """
    from ase.data import covalent_radii
    from ase.neighborlist import neighbor_list

    if len(atoms) == 0:
        raise StructureError("the structure has no atoms")
    if (numbers := atoms.numbers).min() < 1:
        raise StructureError(
            f"atom {int(numbers.argmin()) + 1} is no chemical element ({atoms.symbols[numbers.argmin()]})"
        )
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise StructureError("the structure has NaN or infinite coordinates")
    if np.abs(atoms.positions).max() > MAX_COORDINATE or np.abs(atoms.cell.array).max() > MAX_COORDINATE:
        raise StructureError(f"the structure has coordinates beyond {MAX_COORDINATE:g} Å")
    lengths = atoms.cell.lengths()
    if lengths.min() == 0.0:
        raise StructureError(
            "the structure has no cell; put a molecule into a box, e.g. atoms.center(vacuum=6), "
            "and write it to a file that keeps the box, such as extended XYZ with its Lattice"
        )
    if abs(atoms.cell.volume) < 1e-3 * lengths.prod():
        raise StructureError(
            f"the cell is flat: volume {atoms.cell.volume:.3g} Å³ of lengths {lengths.round(3).tolist()} Å"
        )
    periodic = atoms.copy()
    periodic.pbc = True
    periodic.wrap()
    radii = covalent_radii[atoms.numbers]
    first, second, distances = neighbor_list("ijd", periodic, min_distance_fraction * radii)
    if len(distances):
        n = int((distances / (radii[first] + radii[second])).argmin())
        i, j, distance = int(first[n]), int(second[n]), float(distances[n])
        limit = min_distance_fraction * float(radii[i] + radii[j])
        raise StructureError(
            f"atoms {i + 1} ({atoms.symbols[i]}) and {j + 1} ({atoms.symbols[j]}) are {distance:.3f} Å apart, "
            f"less than {limit:.3f} Å = min_distance_fraction {min_distance_fraction:g} x the sum of covalent radii",
            atoms=[i + 1, j + 1],
            distance=distance,
        )


def kpoint_grid(atoms: Atoms, kspacing: float) -> tuple[int, int, int]:
    """Odd Monkhorst-Pack grid with a spacing of at most `kspacing` (1/Å, 2π included), 1 where not periodic.

    N_i = ceil(|b_i| / kspacing), then the next odd number: odd grids hold Γ and keep the symmetry of every cell.
    """
    lengths = 2 * math.pi * np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    # Without the small number a grid would depend on the last digit of the cell.
    counts = [
        math.ceil(length / kspacing - 1e-8) if periodic else 1
        for length, periodic in zip(lengths, atoms.pbc, strict=True)
    ]
    first, second, third = (max(1, n) + 1 - max(1, n) % 2 for n in counts)
    return first, second, third


def starting_moments(atoms: Atoms, magnetism: str | Mapping[str, float]) -> FloatArray | None:
    """Return the starting moment of each atom in μB, or None for a calculation without spin.

    Initial moments on the structure win over `magnetism`, whatever it is.
    """
    own: FloatArray = atoms.get_initial_magnetic_moments()
    if own.ndim != 1:
        raise StructureError("the structure has noncollinear initial moments; only collinear spin is supported")
    if not np.isfinite(own).all():
        raise StructureError("the structure has NaN or infinite initial magnetic moments")
    if own.any():
        return own
    table = {"none": {}, "auto": STARTING_MOMENTS}[magnetism] if isinstance(magnetism, str) else magnetism
    moments = np.array([table.get(symbol, 0.0) for symbol in atoms.symbols])
    return moments if moments.any() else None


def charge_cutoff(config: DFTConfig, pseudopotentials: Mapping[str, Pseudopotential]) -> float:
    """Return ecutrho in Ry: the configured one, else 4 x ecutwfc, and 8 x with any ultrasoft or PAW file."""
    return config.ecutrho or config.ecutwfc * (8 if needs_dense_charge_grid(pseudopotentials) else 4)


def prescribed_parameters(config: DFTConfig, n_atoms: int) -> dict[str, Any]:
    """QE keywords of level 0 that recovery may move, as `write_pw_input` writes them; `conv_thr` is for the cell."""
    return {
        "mixing_beta": config.mixing_beta,
        "mixing_mode": config.mixing_mode,
        "diagonalization": config.diagonalization,
        "electron_maxstep": config.electron_maxstep,
        "degauss": config.degauss,
        "conv_thr": float(f"{config.conv_thr_per_atom * n_atoms:.6g}"),
    }


def write_pw_input(
    atoms: Atoms,
    config: DFTConfig,
    path: str | Path,
    *,
    pseudopotentials: Mapping[str, Pseudopotential] | None = None,
    max_seconds: float | None = None,
) -> None:
    """Write pw.in for a single-point label of `atoms`.

    Parameters
    ----------
    atoms
        The structure; initial magnetic moments (μB) on it win over `config.magnetism`.
    config
        How the label is computed.
    path
        File to write; an existing one is replaced in one step.
    pseudopotentials
        Element → pseudopotential; found in `config.pseudopotential_dir` where absent.
    max_seconds
        Soft limit of the wall time of pw.x; none where absent.

    Raises
    ------
    StructureError
        The structure cannot be right.
    PseudopotentialError
        Pseudopotentials are missing or do not fit together.
    """
    from ase.io.espresso import write_espresso_in

    path = Path(path)
    check_structure(atoms, config.min_distance_fraction)
    if pseudopotentials is None:
        pseudopotentials = load_pseudopotentials(
            set(atoms.symbols), Path(config.pseudopotential_dir or "."), config.pseudopotentials
        )
    folder = next(iter(pseudopotentials.values())).path.parent.resolve()
    grid = kpoint_grid(atoms, config.kspacing)
    moments = starting_moments(atoms, config.magnetism)
    structure, fractions = _with_kinds(atoms, moments, pseudopotentials)
    system = {
        "ibrav": 0,
        "nat": len(atoms),
        "ntyp": len(fractions),
        "ecutwfc": config.ecutwfc,
        "ecutrho": charge_cutoff(config, pseudopotentials),
        "occupations": "smearing",
        "smearing": config.smearing,
        "degauss": config.degauss,
        **({} if moments is None else {"nspin": 2, "nbnd": _bands_for_spin(atoms, moments, pseudopotentials)}),
        **_per_kind(config.pw.get("system", {}), [symbol for symbol, _ in fractions]),
    }
    control = {
        "calculation": "scf",
        "prefix": "pwscf",
        "outdir": "./out",
        "pseudo_dir": str(folder),
        "tprnfor": True,
        "tstress": True,
        # `none` would leave no XML and no density to continue from.
        "disk_io": "low",
        **({"max_seconds": float(max_seconds)} if max_seconds is not None else {}),
        **config.pw.get("control", {}),
    }
    first = prescribed_parameters(config, len(atoms))
    electrons = {
        **{name: value for name, value in first.items() if NAMELIST_OF[name] == "electrons"},
        **config.pw.get("electrons", {}),
    }
    namelists = {"control": control, "system": system, "electrons": electrons}
    for name, value in ((n, v) for entries in namelists.values() for n, v in entries.items()):
        if isinstance(value, str):
            _check_word(name, value)
    finite_field = any(name.lower() == "lelfield" and value for name, value in control.items())
    text = io.StringIO()
    write_espresso_in(
        text,
        structure,
        input_data=namelists,
        pseudopotentials={element: pseudo.path.name for element, pseudo in pseudopotentials.items()},
        # None is `K_POINTS gamma`: half the cost, the same number. pw.x has no such mode for a finite electric field.
        kpts=None if grid == (1, 1, 1) and not finite_field else grid,
    )
    # ASE adds a namelist for everything that pw.x knows, empty ones too.
    write_atomically(path, re.sub(r"^&\w+\n/\n", "", text.getvalue(), flags=re.M))


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
        rows = get_atomic_positions(cards, n_atoms, cell=cell)
        species = get_atomic_species(cards, n_kinds)
        kinds = tuple(str(row[0]) for row in rows)
        return PwInput(
            namelists=namelists,
            symbols=tuple(label_to_symbol(kind) for kind in kinds),
            positions=np.array([row[1] for row in rows], dtype=float),
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
        _check_word(keyword, value)
        return f"'{value}'"
    if isinstance(value, (bool, np.bool_)):
        return ".true." if value else ".false."
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real) and math.isfinite(value):
        return repr(float(value))
    raise InputError(f"{keyword} = {value!r} is nothing that pw.in can hold")


def _check_word(keyword: str, value: str) -> None:
    if not re.fullmatch(r"[^'\"\x00-\x1f\x7f]*", value):
        raise InputError(f"{keyword} = {value!r} has quotes or control characters, which pw.in cannot hold")


def _with_kinds(
    atoms: Atoms, moments: FloatArray | None, pseudopotentials: Mapping[str, Pseudopotential]
) -> tuple[Atoms, list[tuple[str, float]]]:
    """Return a bare copy whose moments are fractions of the valence (QE's unit), and its kinds in ASE's order."""
    from ase import Atoms

    structure = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if moments is None:
        return structure, [(symbol, 0.0) for symbol in dict.fromkeys(atoms.symbols)]
    valence = np.array([pseudopotentials[symbol].z_valence for symbol in atoms.symbols])
    finest = min(0.01, float(np.abs(moments).max()) / 10)  # μB; a small moment that only breaks the symmetry stays
    for step in (finest * factor for factor in (1, 10, 50, 100, 200)):
        # Starting moments are a start: nearly equal ones share a kind, since pw.x has room for ten.
        fractions = np.clip(np.round(moments / step) * step / valence, -1.0, 1.0).round(6)
        kinds = list(dict.fromkeys(zip(atoms.symbols, fractions.tolist(), strict=True)))
        if len(kinds) <= MAX_KINDS and fractions.any():
            structure.set_initial_magnetic_moments(fractions)
            return structure, kinds
    raise StructureError(f"the starting moments make {len(kinds)} kinds of atom; pw.x has room for {MAX_KINDS}")


def _bands_for_spin(atoms: Atoms, moments: FloatArray, pseudopotentials: Mapping[str, Pseudopotential]) -> int:
    """Return a number of bands that holds the majority spin.

    pw.x counts bands as if there was no spin, 1.2 x (electrons / 2). Seven Fe atoms of 8 electrons then have 34 bands
    for 42 electrons of one spin: the moment stays at what the bands can hold (12 μB), and the label is wrong.
    """
    electrons = sum(pseudopotentials[symbol].z_valence for symbol in atoms.symbols)
    majority = (electrons + min(abs(float(moments.sum())), electrons)) / 2
    return math.ceil(max(1.2 * electrons / 2, electrons / 2 + 4, 1.1 * majority, majority + 4))


def _per_kind(entries: Mapping[str, Any], symbols: Sequence[str]) -> dict[str, Any]:
    """Write `Hubbard_U: {Fe: 4.6}` as Hubbard_U(i) for every kind i of Fe."""
    expanded: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, Mapping):
            expanded |= {f"{name}({i})": value[s] for i, s in enumerate(symbols, start=1) if s in value}
        else:
            expanded[name] = value
    # pw.x refuses a +U calculation of elements that have none.
    if any(name.startswith("hubbard_") for name in entries) and not any(
        name.startswith("hubbard_") and value for name, value in expanded.items()
    ):
        expanded = {name: value for name, value in expanded.items() if name != "lda_plus_u"}
    return expanded


def _count_positions(cards: Sequence[str]) -> int:
    names = ("ATOMIC_SPECIES", "ATOMIC_POSITIONS", "K_POINTS", "CELL_PARAMETERS", "OCCUPATIONS", "CONSTRAINTS")
    starts = [n for n, line in enumerate(cards) if line.upper().startswith("ATOMIC_POSITIONS")]
    if len(starts) != 1:
        raise ValueError("ATOMIC_POSITIONS must be there once")
    rest = cards[starts[0] + 1 :]
    return next(
        (n for n, line in enumerate(rest) if line.upper().startswith((*names, "ATOMIC_", "HUBBARD"))), len(rest)
    )


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
