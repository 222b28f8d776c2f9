"""Labels that look odd beside the others: in energy per atom, largest force or pressure.

An outlier is a reason to look, not an error: a hot or a compressed structure is meant to be one. Each says what it was
compared with, and nothing is claimed from few labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dftfactory.report.data_set import Composition, LabelNumbers
from dftfactory.results import FloatArray

# From fewer labels the scatter is not known, and an outlier not from a tail.
FEWEST = 10
# Robust standard deviations (1.4826 MAD, that of the side on which the value lies, since energies and forces have one
# long tail). Of 10,000 labels with Gaussian scatter none is that far away by chance.
TOO_FAR = 6.0
# What labels of one data set differ by in any case; many copies of one structure have no scatter at all.
LEAST = {"energy": 0.02, "max_force": 0.5, "pressure": 1.0}
UNITS = {"energy": "eV/atom", "max_force": "eV/Å", "pressure": "GPa"}
NAMES = {"energy": "energy per atom", "max_force": "largest force", "pressure": "pressure"}
# A composition that decides more than this part of its own place in the fit is not judged by it.
_OWN_SHARE = 0.5


@dataclass(frozen=True)
class Outlier:
    """One label that looks odd.

    Attributes
    ----------
    quantity
        "energy", "max_force" or "pressure".
    value
        In `unit`.
    distance
        From the middle of those that it was compared with, in robust standard deviations of theirs.
    n_judged
        Number of labels that it was compared with.
    reason
        All of it in words.
    """

    calculation_id: str
    formula: str
    level: int
    quantity: str
    value: float
    unit: str
    distance: float
    n_judged: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The outliers, the farthest first, and quantity → number of labels that could not be judged by it."""

    outliers: list[Outlier] = field(default_factory=list)
    not_judged: dict[str, int] = field(default_factory=dict)
    n_exact: int = 0


@dataclass(frozen=True)
class LinearFit:
    """Energies per atom as a sum over the elements.

    Attributes
    ----------
    expected
        Composition → energy per atom (eV) that the fit gives it.
    own_share
        Composition → how much of this it has decided by itself, from 0 to 1.
    rank
        Number of energies that the fit could choose; below the number of elements where compositions are collinear.
    """

    expected: Mapping[Composition, float]
    own_share: Mapping[Composition, float]
    rank: int


def find_outliers(labels: Iterable[LabelNumbers]) -> Verdict:
    """Return labels that are far from the others of the same configuration; softened ones are left out.

    Each is compared with labels of the same composition where there are ten of them. Of rarer compositions the energy
    is compared with a linear fit over all compositions, and how far these are from it; forces and pressures with those
    of all labels.
    """
    by_configuration: defaultdict[str, list[LabelNumbers]] = defaultdict(list)
    for label in labels:
        if label.is_exact:
            by_configuration[label.config_hash].append(label)
    found: list[Outlier] = []
    not_judged: defaultdict[str, int] = defaultdict(int)
    for comparable in by_configuration.values():
        frequent, rare = _split(comparable)
        for own in frequent:
            for quantity in UNITS:
                found += _judge(quantity, own, f"of {own[0].formula}", not_judged)
        found += _judge_by_fit(rare, comparable, not_judged)
        for quantity in ("max_force", "pressure"):
            found += _judge(quantity, comparable, "of this configuration", not_judged, only=rare)
    found.sort(key=lambda outlier: -outlier.distance)
    return Verdict(found, dict(not_judged), sum(map(len, by_configuration.values())))


def linear_fit(labels: Iterable[LabelNumbers]) -> LinearFit:
    """Fit energies per atom by one energy for each element, so that few odd labels or compositions do not move it.

    A composition counts by its median, and the sum of the absolute deviations is made small, not that of their squares.
    Equal elements with different pseudopotentials are different elements.
    """
    energies: defaultdict[Composition, list[float]] = defaultdict(list)
    for label in labels:
        energies[label.composition].append(label.energy)
    compositions = list(energies)
    if not compositions:
        return LinearFit({}, {}, 0)
    place: dict[Hashable, int] = {}
    for composition in compositions:
        for element, md5, _ in composition:
            place.setdefault((element, md5), len(place))
    fractions = np.zeros((len(compositions), len(place)))
    for row, composition in enumerate(compositions):
        for element, md5, number in composition:
            fractions[row, place[element, md5]] = number
    fractions /= fractions.sum(axis=1, keepdims=True)
    medians = np.array([np.median(energies[composition]) for composition in compositions])
    frequencies = np.sqrt([len(energies[composition]) for composition in compositions])
    weights = frequencies
    fitted = medians
    for _ in range(30):
        roots = np.sqrt(weights)
        solution, *_ = np.linalg.lstsq(fractions * roots[:, None], medians * roots, rcond=1e-10)
        before, fitted = fitted, fractions @ solution
        if np.abs(fitted - before).max() < 1e-6:
            break
        # Least squares with these weights make the absolute deviations small; 1 meV keeps them finite.
        weights = frequencies / np.maximum(np.abs(medians - fitted), 1e-3)
    # Without the deviations, which make a composition that lies on the fit look as if it had decided it.
    design = fractions * np.sqrt(frequencies)[:, None]
    left, singular, _ = np.linalg.svd(design, full_matrices=False)
    rank = int((singular > singular[0] * 1e-10).sum())
    shares = (left[:, :rank] ** 2).sum(axis=1)
    return LinearFit(
        dict(zip(compositions, fitted.tolist(), strict=True)),
        dict(zip(compositions, shares.tolist(), strict=True)),
        rank,
    )


def robust_distance(values: FloatArray, others: FloatArray) -> tuple[FloatArray, float, float]:
    """Return how far values are from the median of others, in robust standard deviations; the median; the upper scale.

    The scale is that of the side on which a value lies, and not below that of both sides.
    """
    median = float(np.median(others))
    deviations = others - median
    both = float(np.median(np.abs(deviations)))
    upper, lower = deviations[deviations >= 0], -deviations[deviations <= 0]
    up, down = (1.4826 * max(both, float(np.median(side))) for side in (upper, lower))
    scale = np.where(values >= median, up, down)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(values == median, 0.0, (values - median) / scale)
    return distance, median, up


def _split(labels: Sequence[LabelNumbers]) -> tuple[list[list[LabelNumbers]], list[LabelNumbers]]:
    """Return labels by composition where there are enough of it, and all others."""
    by_composition: defaultdict[Composition, list[LabelNumbers]] = defaultdict(list)
    for label in labels:
        by_composition[label.composition].append(label)
    frequent = [own for own in by_composition.values() if len(own) >= FEWEST]
    return frequent, [label for own in by_composition.values() if len(own) < FEWEST for label in own]


def _judge(
    quantity: str,
    comparable: Sequence[LabelNumbers],
    whose: str,
    not_judged: dict[str, int],
    only: Sequence[LabelNumbers] | None = None,
) -> Iterator[Outlier]:
    """Compare labels, or only some of them, with the median of all."""
    judged = [label for label in (comparable if only is None else only) if _value(label, quantity) is not None]
    others = np.array([value for label in comparable if (value := _value(label, quantity)) is not None])
    if len(others) < FEWEST:
        not_judged[quantity] += len(judged)
        return
    values = np.array([_value(label, quantity) for label in judged], dtype=float)
    compared_with = f"the median of {len(others):,} labels {whose}"
    distances, median, _ = robust_distance(values, others)
    for label, value, distance in zip(judged, values.tolist(), distances.tolist(), strict=True):
        if quantity == "max_force" and distance < 0:
            continue  # a structure at rest is nothing odd
        if _is_far(quantity, value - median, distance, len(others)):
            yield _outlier(label, quantity, value, value - median, distance, len(others), f"{compared_with}, ")


def _judge_by_fit(
    rare: Sequence[LabelNumbers], comparable: Sequence[LabelNumbers], not_judged: dict[str, int]
) -> Iterator[Outlier]:
    """Compare energies of rare compositions with a linear fit, and with how far other compositions are from it."""
    if not rare:
        return
    fit = linear_fit(comparable)
    # What a composition decides by itself says nothing of it.
    fair = [label for label in comparable if fit.own_share[label.composition] < _OWN_SHARE]
    deviations: defaultdict[Composition, list[float]] = defaultdict(list)
    for label in fair:
        deviations[label.composition].append(label.energy - fit.expected[label.composition])
    others = np.array([np.median(own) for own in deviations.values()])
    judged = [label for label in rare if label.composition in deviations]
    if len(others) < FEWEST + fit.rank:
        not_judged["energy"] += len(rare)
        return
    not_judged["energy"] += len(rare) - len(judged)
    values = np.array([label.energy - fit.expected[label.composition] for label in judged])
    distances, median, _ = robust_distance(values, others)
    compared_with = f"what a linear fit to {len(fair):,} labels of {len(others):,} compositions gives {{}}, "
    for label, value, distance in zip(judged, values.tolist(), distances.tolist(), strict=True):
        if _is_far("energy", value - median, distance, len(others)):
            said = compared_with.format(label.formula)
            yield _outlier(label, "energy", label.energy, value, distance, len(fair), said)


def _is_far(quantity: str, difference: float, distance: float, n: int) -> bool:
    # The scatter of ten values is known to a third only.
    return abs(difference) > LEAST[quantity] and abs(distance) > TOO_FAR * (1 + 5 / n)


def _outlier(
    label: LabelNumbers, quantity: str, value: float, difference: float, distance: float, n: int, compared_with: str
) -> Outlier:
    unit, side = UNITS[quantity], "above" if difference > 0 else "below"
    scatter = (
        f"{abs(distance):.3g} times their scatter" if np.isfinite(distance) else "where these do not scatter at all"
    )
    return Outlier(
        calculation_id=label.calculation_id,
        formula=label.formula,
        level=label.level,
        quantity=quantity,
        value=value,
        unit=unit,
        # JSON has no infinity.
        distance=float(min(abs(distance), 1e6)),
        n_judged=n,
        reason=f"{NAMES[quantity]} {abs(difference):.3g} {unit} {side} {compared_with}{scatter}",
    )


def _value(label: LabelNumbers, quantity: str) -> float | None:
    value: float | None = getattr(label, quantity)
    return value
