"""Odd labels are found and explained, ordinary ones are left alone, and nothing is claimed from few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_up_labels import made_up_label

from dftfactory.report.data_set import LabelNumbers, read_data_set
from dftfactory.report.outliers import FEWEST, find_outliers, linear_fit

RANDOM = np.random.default_rng(6)
# eV per atom; what a fit has to find again.
ENERGIES = {"Si": -107.0, "O": -430.0, "Al": -57.0}


def numbers(*labels: dict[str, Any]) -> list[LabelNumbers]:
    return read_data_set(labels).labels


def silicon(count: int, scatter: float = 0.05) -> list[dict[str, Any]]:
    """Cells of two atoms whose energies per atom scatter by so many eV."""
    return [made_up_label(f"si-{n}", energy=2 * (-107 + RANDOM.normal(0, scatter))) for n in range(count)]


def mixed(count: int, scatter: float = 0.02) -> list[dict[str, Any]]:
    """Labels of as many compositions, on a plane but for the scatter of their energies per atom."""
    labels = []
    for n in range(count):
        symbols = ["Si"] * (n % 7 + 1) + ["O"] * (n // 7 + 1) + ["Al"]
        energy = sum(ENERGIES[symbol] for symbol in symbols) + len(symbols) * RANDOM.normal(0, scatter)
        labels.append(made_up_label(f"mix-{n}", symbols, energy))
    return labels


def test_an_energy_far_from_its_composition_is_found_and_said_in_words() -> None:
    odd = made_up_label("odd", energy=2 * (-107 + 2.0))
    [outlier] = find_outliers(numbers(*silicon(100), odd)).outliers
    assert (outlier.calculation_id, outlier.quantity, outlier.n_judged) == ("odd", "energy", 101)
    assert outlier.value == pytest.approx(-105.0)
    assert outlier.unit == "eV/atom"
    assert "above the median of 101 labels of Si" in outlier.reason
    assert "energy per atom 2" in outlier.reason or "energy per atom 1.9" in outlier.reason


def test_nothing_is_claimed_from_fewer_than_ten_labels() -> None:
    odd = made_up_label("odd", energy=-10.0, largest_force=30.0, pressure=500.0)
    verdict = find_outliers(numbers(*silicon(FEWEST - 2), odd))
    assert verdict.outliers == []
    assert verdict.not_judged == {"energy": 9, "max_force": 9, "pressure": 9}
    assert find_outliers(numbers(*silicon(FEWEST), odd)).outliers != []


def test_a_rare_composition_is_compared_with_the_fit() -> None:
    symbols = ["Si", "Si", "O", "Al", "Al"]
    expected = sum(ENERGIES[symbol] for symbol in symbols)
    odd = made_up_label("odd", symbols, expected + 5 * 1.5)
    verdict = find_outliers(numbers(*mixed(40), odd))
    [outlier] = verdict.outliers
    assert outlier.calculation_id == "odd"
    assert "linear fit" in outlier.reason
    assert "1.5" in outlier.reason or "1.49" in outlier.reason
    assert verdict.not_judged.get("energy", 0) == 0


def test_an_element_that_one_composition_alone_has_is_not_judged() -> None:
    """The fit passes through it, wherever it is."""
    alone = made_up_label("alone", ["Fe", "O"], -5.0)
    verdict = find_outliers(numbers(*mixed(40), alone))
    assert verdict.outliers == []
    assert verdict.not_judged["energy"] == 1


def test_formation_energies_of_compounds_are_no_outliers() -> None:
    """Two elements and few labels of a compound say nothing of what a compound should have."""
    elements = [
        made_up_label(f"{n}{x}", [x], ENERGIES[x] + RANDOM.normal(0, 0.01)) for n in range(50) for x in ("O", "Al")
    ]
    compound = [made_up_label(f"c{n}", ["Al", "O"], sum(ENERGIES[x] for x in ("Al", "O")) - 6.0) for n in range(3)]
    verdict = find_outliers(numbers(*elements, *compound))
    assert verdict.outliers == []
    assert verdict.not_judged["energy"] == 3


def test_collinear_compositions_can_be_fitted() -> None:
    """SiO2 at all sizes, and Al: the energies of Si and O by themselves are not determined, those of labels are."""
    labels = [made_up_label(f"q{n}", ["Si", "O", "O"] * (n + 1), -967.0 * (n + 1)) for n in range(5)]
    labels += [made_up_label(f"a{n}", ["Al"], -57.0) for n in range(5)]
    fit = linear_fit(numbers(*labels))
    assert fit.rank == 2
    assert sorted(fit.expected.values()) == pytest.approx([-967 / 3, -57.0])
    assert find_outliers(numbers(*labels)).outliers == []


def test_odd_labels_do_not_move_the_fit() -> None:
    labels = mixed(40, scatter=0.0)
    # A tenth of the compositions is 3 eV/atom too high.
    for label in labels[::10]:
        label["result"]["energy"] += 3.0 * len(label["result"]["symbols"])
    fit = linear_fit(numbers(*labels))
    for label in numbers(*labels[1::10]):
        assert fit.expected[label.composition] == pytest.approx(label.energy, abs=0.01)


def test_largest_forces_and_pressures_are_judged_and_small_forces_are_not_odd() -> None:
    usual = [
        made_up_label(f"u{n}", largest_force=2 + RANDOM.normal(0, 0.2), pressure=RANDOM.normal(0, 2)) for n in range(50)
    ]
    odd = [made_up_label("pulled", largest_force=25.0), made_up_label("squeezed", pressure=200.0)]
    rest = made_up_label("rest", largest_force=0.0)
    found = find_outliers(numbers(*usual, *odd, rest)).outliers
    assert {(outlier.calculation_id, outlier.quantity) for outlier in found} == {
        ("pulled", "max_force"),
        ("squeezed", "pressure"),
    }


def test_copies_of_one_structure_have_no_scatter_and_no_outliers_within_the_noise() -> None:
    copies = [made_up_label(f"c{n}", energy=-214.0) for n in range(20)]
    near, far = made_up_label("near", energy=-213.98), made_up_label("far", energy=-212.0)
    [outlier] = find_outliers(numbers(*copies, near, far)).outliers
    assert outlier.calculation_id == "far"
    assert "do not scatter at all" in outlier.reason
    assert np.isfinite(outlier.distance)  # JSON has no infinity


def test_configurations_and_pseudopotentials_are_not_compared_with_each_other() -> None:
    """All-electron-like energies of another pseudopotential are hundreds of eV away, and nothing is odd about them."""
    one, other = silicon(30), silicon(30)
    for label in other:
        label["result"]["energy"] += 300
    for label in other[:15]:
        label["config_hash"] = "cfg1"
    for label in other[15:]:
        label["pseudopotentials"]["Si"]["md5"] = "1" * 32
    assert find_outliers(numbers(*one, *other)).outliers == []


def test_softened_labels_are_not_judged() -> None:
    odd = made_up_label("odd", energy=-10.0, quality="softened", level=3)
    verdict = find_outliers(numbers(*silicon(30), odd))
    assert verdict.outliers == []
    assert verdict.n_exact == 30


@pytest.mark.parametrize("size", [10, 30, 300])
def test_ordinary_scatter_is_seldom_called_odd(size: int) -> None:
    """Energies above a minimum and forces have one long tail; that of a hot structure is chi-squared and no outlier."""
    called = 0
    for _ in range(3000 // size):
        energies = -107 + RANDOM.gamma(3, 0.05, size)
        forces = RANDOM.lognormal(0.5, 0.4, size)
        labels = [
            made_up_label(str(n), energy=2 * e, largest_force=f)
            for n, (e, f) in enumerate(zip(energies, forces, strict=True))
        ]
        called += len(find_outliers(numbers(*labels)).outliers)
    assert called <= 15  # of 6,000 judgements


def test_no_labels_have_no_outliers() -> None:
    verdict = find_outliers([])
    assert (verdict.outliers, verdict.not_judged, verdict.n_exact) == ([], {}, 0)
    assert linear_fit([]).expected == {}
