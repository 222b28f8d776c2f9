"""The name of a label: the same for the same number, another one as soon as the number could differ."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db.core import str_represents
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dftfactory.config import DFTConfig
from dftfactory.errors import ParserError, StructureError
from dftfactory.labels import (
    CALCULATION_ID,
    LABEL_FILE,
    config_hash,
    fingerprint,
    forces_above,
    make_label,
    read_label,
    structure_from_dict,
    structure_to_dict,
    write_label,
)
from dftfactory.pseudos import Pseudopotential
from dftfactory.results import DFTResult

CONFIG = DFTConfig(ecutwfc=60)
MD5 = {"Fe": "0" * 32, "O": "1" * 32}
PSEUDO = {
    element: Pseudopotential(element, Path(f"/upf/{element}.upf"), "NC", "PBE", 8.0, "scalar", None, None, md5)
    for element, md5 in MD5.items()
}

# Multiples of 0.1 Å: noise of 1e-9 Å cannot move them over the border between two steps of 1e-6 Å.
coordinates = st.integers(-500, 500).map(lambda tenths: tenths / 10)
points = st.tuples(coordinates, coordinates, coordinates)


@st.composite
def structures(draw: st.DrawFn) -> Atoms:
    symbols = draw(st.lists(st.sampled_from(["Fe", "O"]), min_size=1, max_size=5))
    positions = [draw(points) for _ in symbols]
    moments = [draw(st.integers(-3, 3)) for _ in symbols]
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    return Atoms(symbols, positions, cell=[draw(points) for _ in range(3)], pbc=pbc, magmoms=moments)


@pytest.fixture
def atoms() -> Atoms:
    cell = bulk("FeO", "rocksalt", a=4.3)
    cell.set_initial_magnetic_moments([4.0, 0.0])
    return cell


def name_of(atoms: Atoms, config: DFTConfig = CONFIG, md5: dict[str, str] = MD5) -> str:
    return fingerprint(atoms, config, md5)


# The fingerprint


def test_numerical_and_machine_parameters_do_not_name_another_label(atoms: Atoms) -> None:
    other = DFTConfig(
        ecutwfc=60,
        pseudopotential_dir="/another/node",
        pseudopotentials={"Fe": "same_content.upf"},
        mixing_beta=0.2,
        mixing_mode="plain",
        diagonalization="cg",
        electron_maxstep=300,
        ladder=[],
        max_force=10,
        early_stop=False,
        min_distance_fraction=0.1,
        pw={"electrons": {"mixing_ndim": 20, "diago_david_ndim": 4}},
    )
    assert name_of(atoms, other) == name_of(atoms)
    assert config_hash(other, PSEUDO) == config_hash(CONFIG, PSEUDO)


@pytest.mark.parametrize(
    "change",
    [
        {"ecutwfc": 61},
        {"kspacing": 0.19},
        {"degauss": 0.01},
        {"smearing": "mp"},
        {"conv_thr_per_atom": 1e-10},
        {"magnetism": "none"},
        {"magnetism": "antiferromagnetic"},
        {"magnetism": ["auto", "none"]},
        {"magnetism": ["none", "auto"]},
        {"pw": {"system": {"vdw_corr": "dft-d3"}}},
        {"pw": {"system": {"Hubbard_U": {"Fe": 4.6}}}},
    ],
)
def test_label_parameters_name_another_label(atoms: Atoms, change: dict[str, Any]) -> None:
    other = DFTConfig(**{"ecutwfc": 60, **change})
    assert name_of(atoms, other) != name_of(atoms)
    assert config_hash(other, PSEUDO) != config_hash(CONFIG, PSEUDO)


@given(structures(), st.data())
def test_noise_of_the_last_digits_is_the_same_structure(atoms: Atoms, data: st.DataObject) -> None:
    """A pipeline that writes a structure to a file and reads it again leaves such noise."""
    noisy = atoms.copy()
    tiny = st.floats(-1e-9, 1e-9)
    noisy.positions += [[data.draw(tiny) for _ in range(3)] for _ in atoms]
    noisy.cell[:] += [[data.draw(tiny) for _ in range(3)] for _ in range(3)]
    assert name_of(noisy) == name_of(atoms)


@given(structures(), st.integers(0, 2), st.sampled_from([-1e-4, 1e-4]), st.booleans())
def test_a_ten_thousandth_of_an_angstrom_is_another_structure(
    atoms: Atoms, axis: int, shift: float, in_cell: bool
) -> None:
    moved = atoms.copy()
    if in_cell:
        moved.cell[1, axis] += shift
    else:
        moved.positions[-1, axis] += shift
    assert name_of(moved) != name_of(atoms)


@given(structures())
def test_minus_zero_is_zero(atoms: Atoms) -> None:
    negative = atoms.copy()
    negative.positions[negative.positions == 0] = -0.0
    negative.cell[negative.cell.array == 0] = -0.0
    negative.set_initial_magnetic_moments([moment or -0.0 for moment in atoms.get_initial_magnetic_moments()])
    assert name_of(negative) == name_of(atoms)


def test_order_of_atoms_counts(atoms: Atoms) -> None:
    """Forces belong to atoms by their place."""
    assert name_of(atoms[[1, 0]]) != name_of(atoms)


def test_moments_and_pbc_count(atoms: Atoms) -> None:
    opposite, slab, bare = atoms.copy(), atoms.copy(), atoms.copy()
    opposite.set_initial_magnetic_moments([-4.0, 0.0])
    slab.pbc = [True, True, False]
    bare.set_initial_magnetic_moments(None)
    config = DFTConfig(ecutwfc=60, magnetism="none")
    assert len({name_of(variant, config) for variant in (atoms, opposite, slab, bare)}) == 4


def test_moments_that_the_configuration_gives_count_as_if_they_stood_on_the_structure(atoms: Atoms) -> None:
    """A start of 0.0004 μB ends without a moment, the start of `auto` with one."""
    bare, tiny = atoms.copy(), atoms.copy()
    bare.set_initial_magnetic_moments(None)
    tiny.set_initial_magnetic_moments([4e-4, 0.0])
    assert name_of(bare) == name_of(atoms)  # 4 μB on Fe, as `auto` gives it
    assert name_of(tiny) != name_of(bare)
    no_spin = DFTConfig(ecutwfc=60, magnetism="none")
    assert name_of(tiny, no_spin) != name_of(bare, no_spin)


def test_functional_names_another_data_set() -> None:
    """Si of LDA and C of PBE, submitted one after the other, must not meet in one training set."""
    other = {"C": replace(PSEUDO["Fe"], element="C", functional="PZ")}
    assert config_hash(CONFIG, other) != config_hash(CONFIG, PSEUDO)
    same = {"C": replace(PSEUDO["Fe"], element="C")}
    assert config_hash(CONFIG, same) == config_hash(CONFIG, PSEUDO)


def test_label_above_max_force_is_named(label: dict[str, Any]) -> None:
    """It may have been computed with another bound, which is no part of its name."""
    assert forces_above(label, DFTConfig(ecutwfc=60)) is None
    reason = forces_above(label, DFTConfig(ecutwfc=60, max_force=1e-6))
    assert reason is not None
    assert "max_force = 1e-06 eV/Å" in reason


def test_moments_of_zero_are_no_moments(atoms: Atoms) -> None:
    zero, bare = atoms.copy(), atoms.copy()
    zero.set_initial_magnetic_moments([0.0, 0.0])
    bare.set_initial_magnetic_moments(None)
    assert name_of(zero) == name_of(bare)


def test_content_of_the_pseudopotentials_of_its_own_elements_counts(atoms: Atoms) -> None:
    assert name_of(atoms, md5=MD5 | {"O": "2" * 32}) != name_of(atoms)
    assert name_of(atoms, md5=MD5 | {"Xe": "2" * 32}) == name_of(atoms)


def test_notes_results_constraints_and_tags_do_not_count(atoms: Atoms) -> None:
    laden = atoms.copy()
    laden.info = {"generation": 3}
    laden.calc = SinglePointCalculator(laden, energy=-1.0)
    laden.set_constraint(FixAtoms([0]))
    laden.set_tags([1, 2])
    laden.set_initial_charges([1.0, -1.0])
    assert name_of(laden) == name_of(atoms)


def test_name_is_the_same_tomorrow(atoms: Atoms) -> None:
    """Names are stored in databases: whoever changes this line makes every label of every user a stranger."""
    assert name_of(atoms) == "dft6dbffb26714c75fa40f768c4cee79de0"
    assert config_hash(CONFIG, PSEUDO) == "cfg4c87f83098d3"


@pytest.mark.parametrize(
    ("magnetism", "bare_name", "name", "hash_"),
    [
        (
            "none",
            "dftf63697cda693c617f27874cd2be275c4",
            "dft5567086b82c998d0032ccf073710abaa",
            "cfg744c914d56b7",
        ),
        (
            {"Fe": 2.5},
            "dftaf558f5c1c854ca7fb7ecdb25a2f935c",
            "dft48250d1aaa27b33852bb04a9abc1de45",
            "cfgc59f0d2ca3ab",
        ),
        (
            {"Si": 1.0},
            "dft94b8eace9613fe248386fa4ac7f2723b",
            "dft18747d5eec83cb82f99ee7c8541bd2d4",
            "cfg17f54fedb7e0",
        ),
    ],
)
def test_names_of_single_starts_are_those_of_the_first_version(
    atoms: Atoms, magnetism: Any, bare_name: str, name: str, hash_: str
) -> None:
    """Computed before several starts could be asked for, of the structure without and with moments of its own."""
    bare = atoms.copy()
    bare.set_initial_magnetic_moments(None)
    config = DFTConfig(ecutwfc=60, magnetism=magnetism)
    assert (name_of(bare, config), name_of(atoms, config)) == (bare_name, name)
    assert config_hash(config, PSEUDO) == hash_


def test_all_starts_of_a_list_are_in_the_name(atoms: Atoms) -> None:
    """Own moments are one start of several: without them another search is made, with another lowest state perhaps."""
    several = DFTConfig(ecutwfc=60, magnetism=["auto", {"Fe": 0.5}, "none"])
    bare, low = atoms.copy(), atoms.copy()
    bare.set_initial_magnetic_moments(None)
    low.set_initial_magnetic_moments([1.0, 0.0])
    assert name_of(bare, several) == name_of(atoms, several)  # its own 4 μB are those of `auto`
    assert len({name_of(variant, several) for variant in (atoms, low)}) == 2
    assert name_of(atoms, several) != name_of(atoms)


@given(structures())
def test_no_reader_takes_a_name_for_a_number(atoms: Atoms) -> None:
    """A digest such as 12e4567 is one for YAML, and ase.db refuses text that looks like one."""
    for name in (name_of(atoms), config_hash(CONFIG, PSEUDO)):
        assert re.fullmatch("(dft[0-9a-f]{32}|cfg[0-9a-f]{12})", name)
        assert YAML(typ="safe").load(name) == name
        assert not any(str_represents(name, kind) for kind in (bool, int, float))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_structure_without_numbers_has_no_name(atoms: Atoms, bad: float) -> None:
    atoms.positions[0, 0] = bad
    with pytest.raises(StructureError, match="NaN or infinite"):
        name_of(atoms)


@pytest.mark.parametrize("name", ["a", "9", "Fe.slab+H_3-x", "x" * 100])
def test_id_that_is_fit_for_a_file_name(name: str) -> None:
    assert CALCULATION_ID.fullmatch(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-rf", "a/b", "a b", "a\n", "ä", "x" * 101])
def test_id_that_is_not_fit_for_a_file_name(name: str) -> None:
    assert not CALCULATION_ID.fullmatch(name)


# A structure in a specification


@given(
    st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 4), min_size=1, max_size=4),
    st.lists(st.floats(-50, 50), min_size=9, max_size=9),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_structure_survives_json_to_the_last_bit(
    rows: list[tuple[float, ...]], cell: list[float], pbc: tuple[bool, bool, bool]
) -> None:
    positions, moments = [row[:3] for row in rows], [row[3] for row in rows]
    atoms = Atoms("Fe" * len(rows), positions, cell=np.reshape(cell, (3, 3)), pbc=pbc, magmoms=moments)
    there = structure_from_dict(json.loads(json.dumps(structure_to_dict(atoms))))
    assert there.positions.tobytes() == atoms.positions.tobytes()
    assert there.cell.array.tobytes() == atoms.cell.array.tobytes()
    assert there.pbc.tolist() == list(pbc)
    assert there.symbols.get_chemical_formula() == atoms.symbols.get_chemical_formula()
    assert np.array_equal(there.get_initial_magnetic_moments(), moments)
    assert name_of(there) == name_of(atoms)


def test_structure_without_moments_has_none_afterwards() -> None:
    values = structure_to_dict(bulk("Si"))
    assert set(values) == {"symbols", "positions", "cell", "pbc"}
    assert not structure_from_dict(values).has("initial_magmoms")


@pytest.mark.parametrize(
    "damage",
    [
        {"positions": [[0.0, 0.0]]},
        {"positions": [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]},
        {"positions": "somewhere"},
        {"symbols": ["Xy"]},
        {"symbols": 3},
        {"cell": [[1.0, 0.0], [0.0, 1.0]]},
        {"initial_magnetic_moments": [1.0, 2.0]},
    ],
)
def test_damaged_structure_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(StructureError, match="structure of the specification is damaged"):
        structure_from_dict(structure_to_dict(bulk("Fe")) | damage)


@pytest.mark.parametrize("key", ["symbols", "positions", "cell", "pbc"])
def test_structure_with_a_key_missing_is_refused(key: str) -> None:
    values = structure_to_dict(bulk("Fe"))
    del values[key]
    with pytest.raises(StructureError, match=key):
        structure_from_dict(values)


# The record of a label


@pytest.fixture
def label(atoms: Atoms) -> dict[str, Any]:
    result = DFTResult(
        energy=-3000.123456789012345,
        smearing_energy=-0.01,
        forces=np.array([[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0]]),
        stress=np.eye(3) / 3,
        symbols=("Fe", "O"),
        positions=atoms.positions,
        cell=atoms.cell.array,
        degauss=0.02,
        conv_thr=1e-9,
        scf_accuracy=(1.0, 1e-10),
        scf_error=1e-10,
        iterations=2,
        wall_time=1.5,
        n_kpoints=4,
        n_ranks=2,
        pw_version="6.7",
        source="xml",
        calculation_id="FeO.1",
        history=({"parameters": {"level": 0, "used": {"KILLED: again": 1}}, "outcome": "CONVERGED", "iterations": 2},),
    )
    config = DFTConfig(
        ecutwfc=60, magnetism={"Fe": 4.0}, pw={"system": {"Hubbard_U": {"Fe": 4.6}, "efield_cart(1)": 0.1}}
    )
    return make_label(result, name_of(atoms, config), config, PSEUDO)


def test_label_says_what_it_is_and_how_it_was_obtained(label: dict[str, Any]) -> None:
    assert (label["calculation_id"], label["formula"], label["level"], label["quality"]) == ("FeO.1", "FeO", 0, "exact")
    assert label["pseudopotentials"] == {e: {"file": f"{e}.upf", "md5": md5} for e, md5 in MD5.items()}
    assert label["label_parameters"]["pw"]["system"]["hubbard_u"] == {"Fe": 4.6}
    assert label["result"]["energy"] == -3000.123456789012345


def test_label_is_plain_json_that_mongodb_takes(label: dict[str, Any]) -> None:
    """MongoDB wants text for keys, without dots and not beginning with $."""

    def keys(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [*value, *(key for entry in value.values() for key in keys(entry))]
        return [key for entry in value for key in keys(entry)] if isinstance(value, list) else []

    assert json.loads(json.dumps(label, allow_nan=False)) == label
    assert [key for key in keys(label) if not isinstance(key, str) or "." in key or key.startswith("$")] == []


def test_label_file_comes_back_as_it_was(tmp_path: Path, label: dict[str, Any]) -> None:
    assert read_label(tmp_path) is None
    assert write_label(tmp_path, label) == tmp_path / LABEL_FILE
    assert read_label(tmp_path) == label


def test_kill_before_the_last_step_leaves_the_old_label_whole(
    tmp_path: Path, label: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_label(tmp_path, label)

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_label(tmp_path, label | {"level": 3})
    assert read_label(tmp_path) == label
    write_label(tmp_path, label | {"level": 3})
    assert read_label(tmp_path) == label | {"level": 3}


def test_full_disk_leaves_no_label_at_all(
    tmp_path: Path, label: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_label(tmp_path, label)
    assert read_label(tmp_path) is None


def test_damaged_label_file_is_an_error_and_never_no_label(tmp_path: Path, label: dict[str, Any]) -> None:
    """No label would mean that the work is done again and that the damage is never seen."""
    whole = write_label(tmp_path, label).read_text()
    unnamed = {key: value for key, value in label.items() if key != "fingerprint"}
    nameless = {key: value for key, value in label["result"].items() if key != "symbols"}
    damaged = [
        "",
        whole[: len(whole) // 2],
        "[]",
        "null",
        "{}",
        '{"result": null}',
        json.dumps(unnamed),
        json.dumps(label | {"result": nameless}),
        json.dumps(label | {"result": label["result"] | {"forces": "none"}}),
    ]
    for text in damaged:
        (tmp_path / LABEL_FILE).write_text(text)
        with pytest.raises(ParserError, match=r"label\.json is damaged .*; remove it to compute the label again"):
            read_label(tmp_path)
    (tmp_path / LABEL_FILE).write_bytes(b"\xff\xfe" + whole.encode())
    with pytest.raises(ParserError, match="is damaged"):
        read_label(tmp_path)


@pytest.mark.parametrize("value", [1e300, -2e9])
def test_coordinates_beyond_all_bounds_have_no_fingerprint(value: float, config: DFTConfig, si_atoms: Atoms) -> None:
    """As whole numbers of 64 bits two of them would be equal."""
    si_atoms.positions[0, 0] = value
    with pytest.raises(StructureError, match="beyond all bounds"):
        fingerprint(si_atoms, config, {"Si": "0" * 32})
