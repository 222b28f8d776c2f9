"""A result travels as plain values and comes back bit by bit; ASE gets it in ASE's own conventions."""

from __future__ import annotations

import json
import struct
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from ase.stress import voigt_6_to_full_3x3_stress
from hypothesis import given
from hypothesis import strategies as st

from dftfactory.results import DFTResult

finite = st.floats(allow_nan=False, allow_infinity=False)
STRESS = np.array([[0.1, 0.6, 0.5], [0.6, 0.2, 0.4], [0.5, 0.4, 0.3]])
ATTEMPTS = (
    {
        "parameters": {"level": 0, "mixing_beta": 0.7},
        "outcome": "SCF_NOT_CONVERGED",
        "iterations": 80,
        "gaining": False,
    },
    {"parameters": {"level": 1, "mixing_beta": 0.3}, "outcome": "CONVERGED", "iterations": 21},
)


def result(**changes: Any) -> DFTResult:
    values: dict[str, Any] = {
        "energy": -215.123456789012345,
        "smearing_energy": -0.0,
        "forces": np.array([[0.3, 0.0, 0.4], [-0.3, 1e-300, -0.4]]),
        "stress": STRESS,
        "symbols": ("Si", "O"),
        "positions": np.array([[0.0, -0.0, 1 / 3], [1.3575, 1.4, 1.25]]),
        "cell": np.array([[0.0, 2.7, 2.7], [2.8, 0.0, 2.7], [2.7, 2.9, 1 / 3]]),
        "degauss": 0.02,
        "conv_thr": 4e-10,
        "scf_accuracy": (0.5, 1e-3, 1e-10),
        "scf_error": 1e-10,
        "iterations": 21,
        "wall_time": 3.5,
        "n_kpoints": 10,
        "n_ranks": 2,
        "pw_version": "6.7",
        "source": "xml",
        "total_magnetization": 2.0,
        "absolute_magnetization": 2.1,
        "fermi_energy": 6.5,
        "scf_force_correction": 1e-5,
        "estimated_memory": 12.5,
        "pbc": (True, False, True),
        "quality": "softened",
        "level": 3,
        "calculation_id": "slab-3",
        "history": ATTEMPTS,
        "states": ({"start": "auto", "energy": -215.1}, {"start": "none", "energy": None, "outcome": "NAN"}),
        "state_warning": "there may be a lower electronic state",
    }
    assert set(values) == {field.name for field in fields(DFTResult)}
    return DFTResult(**(values | changes))


def through_json(original: DFTResult) -> DFTResult:
    return DFTResult.from_dict(json.loads(json.dumps(original.to_dict())))


def bits(value: Any) -> Any:
    """The value with every number as its 8 bytes: -0.0 is not 0.0 here."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, float):
        return struct.pack("d", value)
    return tuple(map(bits, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"history": (), "scf_accuracy": (), "states": (), "state_warning": None},
        dict.fromkeys(("degauss", "wall_time", "total_magnetization", "absolute_magnetization"), None),
        dict.fromkeys(("fermi_energy", "scf_force_correction", "estimated_memory"), None),
    ],
)
def test_every_field_survives_json_bit_by_bit(changes: dict[str, Any]) -> None:
    original = result(**changes)
    there = through_json(original)
    for field in fields(DFTResult):
        before, after = getattr(original, field.name), getattr(there, field.name)
        assert type(after) is type(before), field.name
        assert bits(after) == bits(before), field.name


@given(finite, st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=3))
def test_any_number_survives_json_bit_by_bit(energy: float, forces: list[tuple[float, float, float]]) -> None:
    there = through_json(result(energy=energy, forces=np.array(forces)))
    assert bits(there.energy) == bits(energy)
    assert bits(there.forces) == bits(np.array(forces))


def test_numbers_of_numpy_become_plain_ones() -> None:
    """pymongo knows no numpy, and FireWorks would write them as text."""
    there = result(level=np.int64(2), pbc=(np.True_, np.False_, np.True_), scf_accuracy=(np.float64(0.1),)).to_dict()
    assert (type(there["level"]), type(there["pbc"][0]), type(there["scf_accuracy"][0])) == (int, bool, float)


def test_dictionary_shares_nothing_with_the_result() -> None:
    original = result(history=({"parameters": {"level": 0}},))
    original.to_dict()["history"][0]["parameters"]["level"] = 7
    assert original.history[0]["parameters"]["level"] == 0


def test_key_of_a_later_version_is_ignored_and_a_missing_optional_one_is_the_default() -> None:
    values = result().to_dict() | {"polarization": [0.0, 0.0, 0.1]}
    del values["history"], values["pbc"], values["states"], values["state_warning"]
    there = DFTResult.from_dict(values)
    assert (there.history, there.pbc, there.states, there.state_warning) == ((), (True, True, True), (), None)


@pytest.mark.parametrize(
    "name", [field.name for field in fields(DFTResult) if field.name in ("energy", "forces", "symbols", "scf_accuracy")]
)
def test_missing_value_is_an_error(name: str) -> None:
    values = result().to_dict()
    del values[name]
    with pytest.raises((KeyError, TypeError), match=name):
        DFTResult.from_dict(values)


def test_atoms_have_energy_forces_and_stress_in_the_order_of_ase() -> None:
    """Voigt order xx, yy, zz, yz, xz, xy."""
    atoms = result().to_ase_atoms()
    assert atoms.get_potential_energy() == -215.123456789012345
    assert atoms.get_potential_energy(force_consistent=True) == -215.123456789012345
    assert atoms.get_forces().tolist() == [[0.3, 0.0, 0.4], [-0.3, 1e-300, -0.4]]
    assert atoms.get_stress().tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert np.array_equal(voigt_6_to_full_3x3_stress(atoms.get_stress()), STRESS)
    assert np.array_equal(atoms.get_stress(voigt=False), STRESS)


def test_atoms_are_the_structure_that_was_computed() -> None:
    atoms = result().to_ase_atoms()
    assert atoms.get_chemical_symbols() == ["Si", "O"]
    assert atoms.positions[1].tolist() == [1.3575, 1.4, 1.25]
    assert atoms.cell[0].tolist() == [0.0, 2.7, 2.7]
    assert atoms.pbc.tolist() == [True, False, True]


def test_largest_force_is_the_length_of_a_vector() -> None:
    assert result().max_force == pytest.approx(0.5, abs=1e-15)  # 0.3, 0, 0.4


def test_energy_is_the_free_energy() -> None:
    assert result().free_energy == result().energy


def test_cost_is_that_of_all_attempts() -> None:
    assert result().total_iterations == 101  # 80 + 21
    assert result(history=()).total_iterations == 21
    assert result(history=({"outcome": "KILLED", "iterations": None}, {"iterations": 7})).total_iterations == 7


def test_record_is_added_to_a_copy() -> None:
    bare = result(level=0, calculation_id="")
    recorded = bare.with_record(level=2, calculation_id="slab-4")
    assert (recorded.level, recorded.calculation_id, recorded.energy) == (2, "slab-4", bare.energy)
    assert (bare.level, bare.calculation_id) == (0, "")
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        bare.with_record(labels=1)
