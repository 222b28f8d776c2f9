"""The labels as a data set: a few numbers of each, and how they are distributed by composition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dftfactory.cost import cost_of
from dftfactory.errors import ParserError
from dftfactory.plain_values import read_mapping, read_number
from dftfactory.results import FloatArray

# Element, md5 of its pseudopotential, number of atoms in the reduced formula. Energies of two pseudopotentials cannot
# be compared, those of a cell and its supercell can.
Composition: TypeAlias = tuple[tuple[str, str, int], ...]

# eV/Å³ in one GPa, as ase.units has it; its import takes a second.
GPA = 0.006241509125883258
# Compositions that a picture has rows for; the others share one.
MOST_GROUPS = 10
OTHERS = "others"
# Force components that are kept, 4 bytes each; beyond that those of every second label, of every fourth, ...
MOST_COMPONENTS = 3_000_000


@dataclass(frozen=True, slots=True)
class LabelNumbers:
    """What is kept of one label, some hundred bytes.

    Attributes
    ----------
    energy
        eV per atom: F = E - TS.
    max_force
        eV/Å, the length of the largest force.
    pressure
        GPa, positive under compression; None where the cell is not periodic in three directions, and means little.
    core_seconds, wasted_core_seconds
        Of all attempts of its calculation; None where its history does not say.
    """

    calculation_id: str
    composition: Composition
    config_hash: str
    level: int
    quality: str
    n_atoms: int
    energy: float
    max_force: float
    pressure: float | None
    core_seconds: float | None
    wasted_core_seconds: float | None
    iterations: int
    state_warning: str | None

    @property
    def is_exact(self) -> bool:
        """Whether it was computed at the prescribed parameters."""
        return self.quality == "exact"

    @property
    def formula(self) -> str:
        """Reduced formula."""
        return reduced_formula(self.composition)

    @property
    def system(self) -> str:
        """Elements, such as Al-Cu."""
        return chemical_system(self.composition)


@dataclass
class Forces:
    """Force components (eV/Å) of all labels, or of every n-th where they are too many."""

    every: int = 1
    parts: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)
    number: int = 0

    def add(self, label: int, forces: FloatArray) -> None:
        """Keep the components of one label, given by its place in the data set."""
        if label % self.every:
            return
        self.parts.append((label, np.asarray(forces, dtype=np.float32).ravel()))
        self.number += forces.size
        while self.number > MOST_COMPONENTS and len(self.parts) > 1:
            self.every *= 2
            self.parts = [(n, components) for n, components in self.parts if n % self.every == 0]
            self.number = sum(components.size for _, components in self.parts)


@dataclass
class DataSet:
    """Numbers of all labels.

    Attributes
    ----------
    damaged
        Why a label could not be read → the ids of such labels.
    configurations
        config_hash → what belongs to it: its `label_parameters`, and how many labels have which `pseudopotentials`
        (element and file, with the md5), `pw_versions`, `sources`, and versions of dftfactory (`made_by`).
    rungs
        "failure: rung" → number of labels on whose way that rung was used.
    """

    labels: list[LabelNumbers] = field(default_factory=list)
    forces: Forces = field(default_factory=Forces)
    damaged: dict[str, list[str]] = field(default_factory=dict)
    configurations: dict[str, Configuration] = field(default_factory=dict)
    rungs: Counter[str] = field(default_factory=Counter)

    @cached_property
    def groups(self) -> Groups:
        """Rows of the pictures."""
        return Groups.of(self.labels)


@dataclass
class Configuration:
    """One set of label parameters, and what the labels with it were made with."""

    label_parameters: dict[str, Any]
    number: int = 0
    pseudopotentials: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    pw_versions: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    made_by: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Groups:
    """The compositions that have a row: the most frequent ones, and `others`.

    Attributes
    ----------
    by
        "reduced formula" or "chemical system".
    names
        Of the rows, the largest first.
    n_others
        Number of compositions in `others`.
    """

    by: str
    names: tuple[str, ...]
    n_others: int
    name_of: Callable[[LabelNumbers], str]

    @classmethod
    def of(cls, labels: Sequence[LabelNumbers]) -> Groups:
        """By reduced formula; by chemical system where the ten largest formulas have less than half of the labels."""
        formulas = Counter(label.formula for label in labels)
        shown = sum(number for _, number in formulas.most_common(MOST_GROUPS))
        if 2 * shown >= len(labels):
            return cls._of(labels, "reduced formula", lambda label: label.formula)
        return cls._of(labels, "chemical system", lambda label: label.system)

    @classmethod
    def _of(cls, labels: Sequence[LabelNumbers], by: str, name_of: Callable[[LabelNumbers], str]) -> Groups:
        number = Counter(map(name_of, labels))
        names = [name for name, _ in sorted(number.items(), key=lambda entry: (-entry[1], entry[0]))]
        # A single one that is left over can have its own name.
        n_named = MOST_GROUPS if len(names) > MOST_GROUPS + 1 else len(names)
        named = set(names[:n_named])
        n_others = len(names) - n_named
        rows = (*names[:n_named], *([OTHERS] if n_others else []))
        return cls(by, rows, n_others, lambda label: found if (found := name_of(label)) in named else OTHERS)


def read_data_set(labels: Iterable[Mapping[str, Any]]) -> DataSet:
    """Take the numbers out of label documents, which may come from a generator: one of them is in memory at a time."""
    data_set = DataSet()
    for label in labels:
        try:
            numbers, forces = _numbers_of(label)
        except (ParserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            why = error.message if isinstance(error, ParserError) else f"cannot be read ({type(error).__name__})"
            name = label.get("calculation_id") if isinstance(label, Mapping) else None
            data_set.damaged.setdefault(why, []).append(str(name or "without calculation_id"))
            continue
        data_set.forces.add(len(data_set.labels), forces)
        data_set.labels.append(numbers)
        _count(label, numbers, data_set)
    return data_set


def _numbers_of(label: Mapping[str, Any]) -> tuple[LabelNumbers, FloatArray]:
    result = label["result"]
    symbols = result["symbols"]
    forces = np.array(result["forces"], dtype=float)
    stress = np.array(result["stress"], dtype=float)
    energy = float(result["energy"])
    if not symbols or forces.shape != (len(symbols), 3) or stress.shape != (3, 3):
        raise ParserError("forces or stress do not fit the atoms")
    if not (math.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(stress).all()):
        raise ParserError("a number is not finite")
    history = [read_mapping(attempt) for attempt in result.get("history") or ()]
    knows_cost = any(read_number(attempt.get("wall_time")) for attempt in history)
    cost = cost_of(history) if knows_cost else None
    iterations = sum(int(read_number(attempt.get("iterations")) or 0) for attempt in history)
    warning = result.get("state_warning")
    numbers = LabelNumbers(
        calculation_id=str(label["calculation_id"]),
        composition=_shared(_composition(symbols, read_mapping(label.get("pseudopotentials")))),
        config_hash=_shared(str(label["config_hash"])),
        level=int(label["level"]),
        quality=_shared(str(label["quality"])),
        n_atoms=len(symbols),
        energy=energy / len(symbols),
        max_force=float(np.sqrt((forces**2).sum(axis=1).max())),
        pressure=float(-stress.trace() / 3 / GPA) if all(result.get("pbc", (True,))) else None,
        core_seconds=cost.core_seconds if cost else None,
        wasted_core_seconds=cost.wasted_core_seconds if cost else None,
        iterations=iterations or int(result["iterations"]),
        state_warning=None if warning is None else str(warning),
    )
    return numbers, forces


def _composition(symbols: Sequence[str], pseudopotentials: Mapping[str, Any]) -> Composition:
    md5 = {str(element): str(read_mapping(entry).get("md5", "")) for element, entry in pseudopotentials.items()}
    counts = Counter(map(str, symbols))
    divisor = math.gcd(*counts.values())
    return tuple((element, md5.get(element, ""), counts[element] // divisor) for element in sorted(counts))


@lru_cache(maxsize=100_000)
def _shared(value: Any) -> Any:
    """Return the same object for equal values: most labels have the composition of many others."""
    return value


@lru_cache(maxsize=100_000)
def reduced_formula(composition: Composition) -> str:
    """Return the reduced formula, metals first."""
    from ase.formula import Formula

    try:
        return str(Formula.from_dict({element: number for element, _, number in composition}).format("metal"))
    except (ValueError, LookupError):  # no elements at all
        return chemical_system(composition)


@lru_cache(maxsize=100_000)
def chemical_system(composition: Composition) -> str:
    """Return the elements, in the order of the alphabet."""
    return "-".join(element for element, _, _ in composition)


def _count(label: Mapping[str, Any], numbers: LabelNumbers, data_set: DataSet) -> None:
    """Count how a label was made."""
    result = label["result"]
    found = data_set.configurations.get(numbers.config_hash)
    if found is None:
        found = Configuration(dict(read_mapping(label.get("label_parameters"))))
        data_set.configurations[numbers.config_hash] = found
    found.number += 1
    for element, entry in read_mapping(label.get("pseudopotentials")).items():
        entry = read_mapping(entry)
        found.pseudopotentials[str(element), str(entry.get("file")), str(entry.get("md5"))] += 1
    found.pw_versions[str(result.get("pw_version"))] += 1
    found.sources[str(result.get("source"))] += 1
    found.made_by[str(label.get("dftfactory"))] += 1
    data_set.rungs.update(set(_rungs_used(result.get("history") or ())))


def _rungs_used(history: Sequence[Any]) -> Iterator[str]:
    """Return "failure: rung" of every rung on the way: the last attempt of each start remembers them."""
    for attempt in history:
        used = read_mapping(read_mapping(read_mapping(attempt).get("parameters")).get("used"))
        yield from (str(name) for name, times in used.items() if read_number(times))
