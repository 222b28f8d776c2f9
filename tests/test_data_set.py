"""What is kept of a label has the right units, and many labels stay small and readable."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ase.units import GPa
from made_up_labels import made_up_label

from dftfactory.report import data_set as data_set_module
from dftfactory.report.data_pictures import data_pictures, energies, force_components, largest_forces, pressures
from dftfactory.report.data_set import GPA, MOST_GROUPS, OTHERS, read_data_set
from dftfactory.report.picture import Picture


def row_of(picture: Picture, name: str) -> dict[tuple[float, float], int]:
    """Edges of the bins of a row that hold something, and how much."""
    series = next(series for series in picture.series if series.name == name)
    return {(left, right): n for left, right, n in zip(series.x[:-1], series.x[1:], series.y, strict=True) if n}


def test_numbers_of_a_label_are_per_atom_and_in_the_units_of_the_axes() -> None:
    label = made_up_label("a", ["Si", "Si", "O", "O"], -850.0, largest_force=-3.5, pressure=12.0, level=1)
    [numbers] = read_data_set([label]).labels
    assert numbers.energy == -212.5
    assert numbers.max_force == 3.5
    assert numbers.pressure == pytest.approx(12.0)
    # 20 s of the failed attempt and 5 s of the last one, on 2 ranks each.
    assert numbers.core_seconds == 50.0
    assert numbers.wasted_core_seconds == 40.0
    assert numbers.iterations == 90


def test_gpa_is_that_of_ase() -> None:
    assert pytest.approx(GPa, rel=1e-9) == GPA


def test_a_supercell_has_the_composition_of_its_cell() -> None:
    small, large = made_up_label("a", ["Si", "O", "O"]), made_up_label("b", ["O", "Si", "O"] * 4)
    data_set = read_data_set([small, large])
    assert {label.formula for label in data_set.labels} == {data_set.labels[0].formula}
    assert data_set.groups.names == (data_set.labels[0].formula,)


def test_a_molecule_has_no_pressure_and_the_picture_says_how_many_are_left_out() -> None:
    data_set = read_data_set([made_up_label("a", pbc=[False] * 3), made_up_label("b", pressure=2.0)])
    picture = pressures(data_set)
    assert "Pressure of 1 label" in picture.title
    assert "1 label not periodic" in picture.note


@pytest.mark.parametrize(
    "damage",
    [
        {"energy": math.nan},
        {"forces": [[0.0, 0.0, math.inf], [0.0, 0.0, 0.0]]},
        {"stress": None},
        {"forces": []},
        {"symbols": None},
        {"symbols": ["Si"]},
    ],
    ids=str,
)
def test_a_damaged_label_is_left_out_and_named(damage: dict[str, Any]) -> None:
    bad = made_up_label("bad")
    bad["result"] |= damage
    data_set = read_data_set([bad, made_up_label("good")])
    assert [label.calculation_id for label in data_set.labels] == ["good"]
    assert [name for names in data_set.damaged.values() for name in names] == ["bad"]


def test_what_is_no_label_at_all_is_counted() -> None:
    data_set = read_data_set([{}, {"calculation_id": "x"}])
    assert data_set.labels == []
    assert sum(map(len, data_set.damaged.values())) == 2


def test_of_many_compositions_ten_have_a_row_and_the_rest_share_one() -> None:
    # Si20 has 20 times as many labels as SiO: Si_n O_1 with n labels each.
    labels = [made_up_label(f"{n}-{i}", ["Si"] * n + ["O"]) for n in range(1, 21) for i in range(n)]
    data_set = read_data_set(labels)
    assert data_set.groups.by == "reduced formula"
    assert len(data_set.groups.names) == MOST_GROUPS + 1
    assert data_set.groups.names[-1] == OTHERS
    picture = largest_forces(data_set)
    assert [series.name for series in picture.series] == ["all", *data_set.groups.names]
    assert picture.ticks[0] == "all (210)"
    assert picture.ticks[-1] == f"{OTHERS} (55)"  # 1 + 2 + ... + 10


def test_where_hardly_two_formulas_are_equal_rows_are_chemical_systems() -> None:
    labels = [made_up_label(f"{n}{metal}", [metal] * n + ["O"]) for n in range(1, 30) for metal in ("Si", "Al")]
    groups = read_data_set(labels).groups
    assert groups.by == "chemical system"
    assert groups.names == ("Al-O", "O-Si")


def test_a_row_counts_every_label_once() -> None:
    forces = [0.5, 1.0, 1.0, 4.0]
    data_set = read_data_set([made_up_label(str(n), largest_force=force) for n, force in enumerate(forces)])
    row = row_of(largest_forces(data_set), "Si")
    assert sum(row.values()) == 4
    assert [n for (left, right), n in row.items() if left <= 1.0 <= right] == [2]


def test_energies_of_one_composition_are_drawn_from_their_median() -> None:
    data_set = read_data_set([made_up_label(str(n), energy=-200.0 + n) for n in range(5)])
    row = row_of(energies(data_set), "Si")
    # Two atoms: 0.5 eV/atom apart, from -1 to 1.
    assert [round((left + right) / 2) for left, right in (min(row), max(row))] == [-1, 1]
    assert sum(row.values()) == 5


def test_structures_at_rest_are_counted_where_a_logarithm_has_no_place_for_them() -> None:
    data_set = read_data_set([made_up_label("a", largest_force=0.0), made_up_label("b")])
    assert "1 label without any force" in largest_forces(data_set).note


def test_one_label_gives_pictures_and_none_gives_words() -> None:
    for picture in data_pictures(read_data_set([made_up_label("a")])):
        [series] = picture.series
        assert sum(series.y) in (1, 6), picture.name  # 6 force components
        assert series.x[0] < series.x[-1]
    for picture in data_pictures(read_data_set([])):
        assert picture.is_empty
        assert "no labels" in picture.instead


def test_far_values_are_beyond_the_axis_and_counted() -> None:
    labels = [made_up_label(str(n), pressure=n / 100) for n in range(999)] + [made_up_label("far", pressure=900.0)]
    picture = pressures(read_data_set(labels))
    assert picture.series[0].x[-1] < 20
    drawn = sum(picture.series[0].y)
    assert f"{1000 - drawn} label beyond the ends of the axis" in picture.note


def test_too_many_forces_are_thinned_evenly_and_the_title_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_set_module, "MOST_COMPONENTS", 60)
    data_set = read_data_set([made_up_label(str(n)) for n in range(40)])
    assert data_set.forces.number <= 60
    assert data_set.forces.every == 4
    assert [place for place, _ in data_set.forces.parts] == list(range(0, 40, 4))
    assert "60 force components of 10 labels, those of every 4th label" in force_components(data_set).title


def test_labels_are_read_one_at_a_time() -> None:
    """Ten thousand labels of 54 atoms are some 100 MB as documents, and a few as numbers."""

    def labels() -> Iterator[dict[str, Any]]:
        random = np.random.default_rng(1)
        for n in range(400):
            yield made_up_label(str(n), ["Si"] * 54, forces=random.normal(size=(54, 3)).tolist())

    tracemalloc.start()
    try:
        data_set = read_data_set(labels())
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data_set.labels) == 400
    # 54 x 3 numbers of 4 bytes, the numbers of the label and what Python adds.
    assert kept / 400 < 2500
    assert peak < kept + 500_000


def test_rungs_are_counted_once_for_each_label() -> None:
    data_set = read_data_set([made_up_label("a", level=2), made_up_label("b", level=1), made_up_label("c")])
    assert data_set.rungs == {"SCF_NOT_CONVERGED: next level": 2}
