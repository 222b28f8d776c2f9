"""What a person writes is taken as meant, or refused in one error that names every key, value and expectation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dftfactory.config import DFTConfig, WorkerConfig, find_worker_file
from dftfactory.errors import ConfigError
from dftfactory.pw_entries import BY_ELEMENT, BY_KIND, MANDATORY, NUMERICAL, RESERVED

# One value for every field, none of them the default.
EVERY_FIELD: dict[str, Any] = {
    "pseudopotential_dir": "/pseudopotentials",
    "pseudopotentials": {"Fe": "Fe.upf", "O": "O.upf"},
    "ecutwfc": 50.0,
    "ecutrho": 400.0,
    "kspacing": 0.15,
    "smearing": "gaussian",
    "degauss": 0.01,
    "conv_thr_per_atom": 1e-9,
    "electron_maxstep": 120,
    "mixing_beta": 0.4,
    "mixing_mode": "plain",
    "diagonalization": "cg",
    "magnetism": ["auto", {"Fe": 2.5, "O": -0.5}, "antiferromagnetic"],
    "pw": {"system": {"vdw_corr": "dft-d3", "hubbard_u": {"Fe": 4.6}, "lda_plus_u": True, "tot_charge": 1}},
    "ladder": [
        {"name": "soft", "mixing_beta": 0.1, "mixing_ndim": 12, "electron_maxstep": 200},
        {"name": "hot", "anneal": [{"degauss_above": 0.03, "conv_thr": 1e-4}, {}], "diago_david_ndim": 4},
    ],
    "min_distance_fraction": 0.6,
    "max_force": 100.0,
    "early_stop": False,
}
EVERY_WORKER_FIELD: dict[str, Any] = {
    "pw_command": ["/opt/my qe/pw.x", "-ni", "1"],
    "mpi_command": "srun -n {cores}",
    "parallel_cores": 16,
    "npool": 4,
    "ndiag": 4,
    "scratch_dir": "/scratch",
    "pseudopotential_dir": "/pseudopotentials",
    "max_seconds": 3600.0,
    "margin_seconds": 120.0,
    "hang_seconds": 300.0,
    "database_seconds": 60.0,
    "log": "json",
    "memory_mb": 64000.0,
    "environment": {"OMP_NUM_THREADS": "2"},
}


START_EXPECTED = (
    "must be auto, antiferromagnetic, none, moments in μB per atom by element, such as {Fe: 2.5}, or a list of these"
)


def refusal(**values: Any) -> str:
    """The message for a configuration that is right but for `values`."""
    with pytest.raises(ConfigError) as refused:
        DFTConfig(**{"ecutwfc": 60, **values})
    assert "\n" not in refused.value.message
    json.dumps(refused.value.to_dict())
    return refused.value.message.removeprefix("DFTConfig: ")


def worker_refusal(**values: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        WorkerConfig(**values)
    json.dumps(refused.value.to_dict())
    return refused.value.message.removeprefix("WorkerConfig: ")


# Both configurations


@pytest.mark.parametrize(("kind", "values"), [(DFTConfig, EVERY_FIELD), (WorkerConfig, EVERY_WORKER_FIELD)])
def test_every_field_survives_json(kind: type, values: dict[str, Any]) -> None:
    """The configuration travels through the database as JSON."""
    assert set(values) == set(kind.model_fields)
    config = kind(**values)
    there = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert kind(**there) == config
    assert kind(**there).to_dict() == there
    assert {name: there[name] for name in values if name != "ladder"} == {
        k: v for k, v in values.items() if k != "ladder"
    }


def test_defaults_survive_json_and_unset_values_are_left_out() -> None:
    for config in (DFTConfig(ecutwfc=60), WorkerConfig()):
        there = json.loads(json.dumps(config.to_dict()))
        assert type(config)(**there) == config
        assert None not in there.values()


def test_nothing_can_be_changed_afterwards() -> None:
    config = DFTConfig(ecutwfc=60)
    with pytest.raises(ValidationError, match="frozen"):
        config.ecutwfc = 30


def test_configuration_does_not_share_the_callers_tables() -> None:
    given_by_the_caller = {"system": {"hubbard_u": {"Fe": 4.6}}}
    config = DFTConfig(ecutwfc=60, pw=given_by_the_caller)
    given_by_the_caller["system"]["hubbard_u"]["Fe"] = 0.0
    assert config.pw == {"system": {"hubbard_u": {"Fe": 4.6}, "lda_plus_u": True}}


def test_changed_copy_is_checked_like_a_new_configuration() -> None:
    """pydantic's own copy would take anything."""
    config = DFTConfig(**EVERY_FIELD)
    assert config.model_copy() == config
    assert config.model_copy(update={"ecutwfc": 60, "magnetism": "none"}).ecutwfc == 60.0
    with pytest.raises(ConfigError, match=r"ecutwfc = -60: must be greater than 0"):
        config.model_copy(update={"ecutwfc": -60})
    with pytest.raises(ConfigError, match="ecutwf = 60: is unknown; did you mean ecutwfc"):
        config.model_copy(update={"ecutwf": 60})


# What is refused, and in which words


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ecutwfc": -60}, "ecutwfc = -60: must be greater than 0 (Ry)"),
        ({"ecutwfc": "60"}, "ecutwfc = '60': must be a number (Ry)"),
        ({"ecutwfc": True}, "ecutwfc = True: must be a number (Ry)"),
        ({"ecutwfc": float("inf")}, "ecutwfc = inf: must be a finite number (Ry)"),
        ({"ecutrho": 100}, "ecutrho = 100: must be at least 4 x ecutwfc = 240 (Ry)"),
        ({"kspacing": 0}, "kspacing = 0: must be greater than 0 (1/Å, 2π included)"),
        ({"smearing": "cold"}, "smearing = 'cold': must be 'mv', 'mp', 'fd' or 'gaussian'"),
        ({"degauss": 0.3}, "degauss = 0.3: must be less than 0.2 (Ry)"),
        ({"conv_thr_per_atom": 1e-5}, "conv_thr_per_atom = 1e-05: must be at most 0.000001 (Ry)"),
        ({"electron_maxstep": 1.5}, "electron_maxstep = 1.5: must be a whole number"),
        ({"mixing_beta": 0}, "mixing_beta = 0: must be greater than 0"),
        ({"mixing_beta": 1.1}, "mixing_beta = 1.1: must be at most 1"),
        ({"mixing_beta": float("nan")}, "mixing_beta = nan: must be a finite number"),
        ({"diagonalization": "davidson"}, "diagonalization = 'davidson': must be 'david', 'cg', 'paro' or 'ppcg'"),
        ({"pseudopotentials": ["Si"]}, "pseudopotentials = ['Si']: must be `key: value` pairs"),
        ({"pseudopotentials": {"Si": 1}}, "pseudopotentials.Si = 1: must be text (a number in quotes is text)"),
        ({"pseudopotentials": {"si": "a"}}, "pseudopotentials.si = 'a': is no chemical element"),
        ({"max_force": 0}, "max_force = 0: must be greater than 0 (eV/Å; a label above it is refused)"),
        ({"ladder": 3}, "ladder = 3: must be a list (levels above 0; the built-in ladder where absent)"),
        ({"ladder": [3]}, "ladder.0 = 3: must be `key: value` pairs"),
        ({"ladder": [{"name": "a", "mixing_beta": 3}]}, "ladder.0.mixing_beta = 3: must be at most 1"),
        ({"ladder": [{"name": "a", "anneal": [{}, 1]}]}, "ladder.0.anneal.1 = 1: must be `key: value` pairs"),
    ],
)
def test_message_names_key_value_and_expectation(values: dict[str, Any], message: str) -> None:
    assert refusal(**values) == message


@pytest.mark.parametrize(
    ("magnetism", "message"),
    [
        *((bad, f"magnetism = {bad!r}: {START_EXPECTED}") for bad in ("atuo", None, True, 3, [])),
        (["auto", "atuo"], f"magnetism.1 = 'atuo': {START_EXPECTED}"),
        ([["auto"]], f"magnetism.0 = ['auto']: {START_EXPECTED}"),
        (["none", {"Fe": 11}], "magnetism.1.Fe = 11: must be a number between -10 and 10 (μB per atom)"),
        ({"Fe": "high"}, "magnetism.Fe = 'high': must be a number between -10 and 10 (μB per atom)"),
        ({"Fe": True}, "magnetism.Fe = True: must be a number between -10 and 10 (μB per atom)"),
        ({"Fe": float("nan")}, "magnetism.Fe = nan: must be a number between -10 and 10 (μB per atom)"),
        ({"Fe": 11}, "magnetism.Fe = 11: must be a number between -10 and 10 (μB per atom)"),
        ({"Fe1": 1.0}, "magnetism.Fe1 = 1.0: is no chemical element"),
        ({1: 2.0}, "magnetism.1 = 2.0: is no chemical element"),
    ],
)
def test_magnetism_is_refused_in_one_sentence(magnetism: Any, message: str) -> None:
    """Four ways to write it, and pydantic would report a failure of each."""
    assert refusal(magnetism=magnetism) == message


def test_one_start_in_a_list_is_that_start() -> None:
    """Else the same label would have two names."""
    assert DFTConfig(ecutwfc=60, magnetism=["auto"]) == DFTConfig(ecutwfc=60)
    assert DFTConfig(ecutwfc=60, magnetism=[{"Fe": 2}]).magnetism == {"Fe": 2.0}


def test_all_problems_are_in_one_error() -> None:
    with pytest.raises(ConfigError) as refused:
        DFTConfig(
            ecutwfc=20,
            ecutrho=40,
            degauss=-1,
            pseudopotentials={"Xx": "x", "si": "y"},
            magnetism={"Fe": 99, "Xx": 1.0},
            pw={"control": {"tprnfor": False}, "system": {"nat": 3, "tot_charge": "1d0"}},
            kspacng=0.2,
        )
    keys = [problem["key"] for problem in refused.value.to_dict()["problems"]]
    assert keys == [
        *("pseudopotentials.Xx", "pseudopotentials.si"),
        "ecutrho",
        "degauss",
        *("magnetism.Xx", "magnetism.Fe"),
        *("pw.control.tprnfor", "pw.system.nat", "pw.system.tot_charge"),
        "kspacng",
    ]
    assert all(key in refused.value.message for key in keys)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("ecut", "did you mean ecutwfc?"),
        ("ECUTWFC", "did you mean ecutwfc?"),
        ("kspacng", "did you mean kspacing?"),
        ("pseudo_dir", "did you mean pseudopotential_dir?"),
        ("mixing", "did you mean mixing_mode?"),
        ("strategy", "known are conv_thr_per_atom, degauss, "),
        ("vdw_corr", "other parameters of pw.x stand under `pw`"),
        ("integer", "known are "),
    ],
)
def test_unknown_key_gets_a_hint(key: str, hint: str) -> None:
    message = refusal(**{key: 1})
    assert message.startswith(f"{key} = 1: is unknown; ")
    assert hint in message


def test_hint_for_a_key_of_a_ladder_level_is_one_of_its_own() -> None:
    assert (
        refusal(ladder=[{"nme": "soft"}])
        == "ladder.0.name is missing; ladder.0.nme = 'soft': is unknown; did you mean name?"
    )
    hot = {"name": "hot", "anneal": [{"degaus": 0.1}, {}]}
    assert refusal(ladder=[hot]).endswith("degaus = 0.1: is unknown; did you mean degauss_above?")


def test_missing_cutoff_is_named_beside_the_key_that_was_meant() -> None:
    with pytest.raises(
        ConfigError, match=r"^DFTConfig: ecutwfc is missing; ecut = 60: is unknown; did you mean ecutwfc"
    ):
        DFTConfig(ecut=60)


def test_long_value_is_shortened() -> None:
    assert len(refusal(smearing="x" * 10000)) < 200


@pytest.mark.parametrize("anneal", [[], [{}], [{"degauss_above": 0.1}], [{}, {"degauss_above": 0.1}]])
def test_anneal_must_end_with_the_prescribed_parameters(anneal: list[dict[str, float]]) -> None:
    """A label of its last stage would not be one of this data set."""
    message = refusal(ladder=[{"name": "hot", "anneal": anneal}])
    assert message.endswith("must have a hot stage and end with the prescribed parameters, `{}`")


# The `pw` part


@pytest.mark.parametrize("spelling", [str, str.upper, lambda name: f" {name} ", lambda name: f"{name}(1)"])
@pytest.mark.parametrize("prefix", ["", "&"])
def test_no_spelling_gets_past_what_dftfactory_sets_itself(spelling: Any, prefix: str) -> None:
    """pw.x does not care about case, blanks or an index that is one."""
    for namelist, names in RESERVED.items():
        for name in names:
            message = refusal(pw={prefix + spelling(namelist).removesuffix("(1)"): {spelling(name): 1}})
            expected = "is always written" if name in MANDATORY else "is set"
            assert f"{spelling(name).strip()} = 1: {expected} by dftfactory" in message


@pytest.mark.parametrize("name", ["starting_magnetization(1)", "Starting_Magnetization ( 2 )", "celldm(1)"])
def test_reserved_name_with_an_index_is_refused(name: str) -> None:
    assert f"pw.system.{name} = 0.5: is set by dftfactory itself" in refusal(pw={"system": {name: 0.5}})


def test_mandatory_flags_are_the_three_without_which_there_is_no_label() -> None:
    assert sorted(MANDATORY) == ["disk_io", "tprnfor", "tstress"]
    assert RESERVED["control"] >= MANDATORY


@pytest.mark.parametrize("name", ["", "2d", "a-b", "a b(", "a.b", "$a", "a\n/\n&ions", "ecut'", "a=1,b", "x(i)", "x()"])
def test_what_is_no_name_of_a_parameter_is_refused(name: str) -> None:
    """It would end up in pw.in, and in keys of the database."""
    message = refusal(pw={"system": {name: 1}})
    assert "is not the name of a parameter of pw.x" in message or "by dftfactory" in message


@pytest.mark.parametrize("text", ["it's", 'say "x"', "two\nlines", "bell\a", "x\r", "\0"])
def test_text_that_would_break_the_input_is_refused(text: str) -> None:
    assert "must be text without quotes and line breaks" in refusal(pw={"system": {"vdw_corr": text}})


@pytest.mark.parametrize("text", [".true.", ".FALSE.", ".t.", "yes", "off", "1d-5", "-1.5D+02"])
def test_fortran_in_yaml_is_refused(text: str) -> None:
    """YAML takes it for text, and pw.x would stop at a quoted '.true.'."""
    assert refusal(pw={"system": {"nosym": text}}).endswith("must be written as in YAML: true, false, 1e-5")


@pytest.mark.parametrize("value", [None, [1.0], float("nan"), float("inf"), object])
def test_value_that_is_no_number_flag_or_text_is_refused(value: Any) -> None:
    assert "must be true, false, a finite number or text" in refusal(pw={"system": {"tot_charge": value}})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hubbard_u(1)": 4.6}, "must be given by element, such as `hubbard_u: {Fe: 4.6}`"),
        ({"Hubbard_U": 4.6}, "must be given by element"),
        ({"Hubbard_U": {}}, "must be given by element"),
        ({"Hubbard_U": {"Fe": "x"}}, "pw.system.Hubbard_U.Fe = 'x': must be a number"),
        ({"Hubbard_U": {"Fe": True}}, "pw.system.Hubbard_U.Fe = True: must be a number"),
        ({"Hubbard_U": {"Fe": float("nan")}}, "pw.system.Hubbard_U.Fe = nan: must be a number"),
        ({"Hubbard_U": {"Fe1": 4.6}}, "pw.system.Hubbard_U.Fe1 = 4.6: is no chemical element"),
        ({"nbnd": {"Fe": 20}}, "must be one value; only hubbard_alpha, "),
        ({"Hubbard_J(1,1)": 1.0}, "numbers the kinds of atom, which differ from structure to structure"),
        ({"starting_ns_eigenvalue(2,2,1)": 1.0}, "numbers the kinds of atom"),
    ],
)
def test_value_for_one_kind_of_atom_is_given_by_element(entry: dict[str, Any], message: str) -> None:
    """Kind 1 is Fe in one structure and O in the next: with an index the labels would not belong together."""
    assert message in refusal(pw={"system": entry})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"Hubbard_U": {"Fe": 4}, "lda_plus_u": False}, "pw.system.hubbard_u = {'Fe': 4}: does nothing without `lda_"),
        ({"lda_plus_u_kind": 1}, "does nothing without `lda_plus_u: true`"),
        ({"london_c6": {"Fe": 4}}, "does nothing without `vdw_corr: dft-d`"),
        ({"London_rvdw": {"Fe": 4}, "vdw_corr": "dft-d3"}, "does nothing without `vdw_corr: dft-d`"),
        ({"dftd3_version": 4}, "pw.system.dftd3_version = 4: does nothing without `vdw_corr: dft-d3`"),
        ({"esm_bc": "bc1"}, "does nothing without `assume_isolated: esm`"),
    ],
)
def test_parameter_without_its_switch_is_refused(entry: dict[str, Any], message: str) -> None:
    """pw.x would ignore it without a word, and the labels would not be what dft.yaml says."""
    assert message in refusal(pw={"system": entry})


@pytest.mark.parametrize(
    "pw",
    [
        {"control": {"tefield": True}},
        {"system": {"edir": 3}},
        {"system": {"assume_isolated": "MT"}},
        {"system": {"gate": True}},
    ],
)
def test_what_leaves_pw_x_without_a_stress_is_refused(pw: dict[str, Any]) -> None:
    """It would say so in the output of every run, one after the other ("not meaningful in isolated systems")."""
    assert "pw.x computes no stress with it" in refusal(pw=pw)


@pytest.mark.parametrize(
    "pw",
    [
        {"system": {"dftd3_version": 4, "vdw_corr": "DFT-D3"}},
        {"system": {"london_s6": 0.75, "london": True}},
        {"system": {"esm_bc": "pbc", "assume_isolated": "esm"}},
        {"system": {"lda_plus_u_kind": 1, "hubbard_u": {"Fe": 4.6}}},
    ],
)
def test_parameter_with_its_switch_is_taken(pw: dict[str, Any]) -> None:
    taken = DFTConfig(ecutwfc=60, pw=pw)
    assert DFTConfig(**taken.to_dict()) == taken
    assert all(taken.pw[namelist].items() >= keys.items() for namelist, keys in pw.items())


def test_hubbard_parameters_switch_themselves_on_and_the_label_says_so() -> None:
    pw = {"system": {"hubbard_u": {"Fe": 4.6}}}
    switched = {"system": {"hubbard_u": {"Fe": 4.6}, "lda_plus_u": True}}
    assert DFTConfig(ecutwfc=60, pw=pw) == DFTConfig(ecutwfc=60, pw=switched)
    assert DFTConfig(ecutwfc=60, pw=pw).label_parameters()["pw"] == switched


def test_parameter_that_is_given_twice_is_refused() -> None:
    assert "pw.system.NBND = 30: is given twice" in refusal(pw={"system": {"nbnd": 20, "NBND": 30}})
    assert "pw.SYSTEM.nbnd = 30: is given twice" in refusal(pw={"system": {"nbnd": 20}, "SYSTEM": {"nbnd": 30}})


@pytest.mark.parametrize("pw", [3, None, [], {"system": None}, {"system": 3}, {"ions": {"a": 1}}, {1: {"a": 1}}])
def test_pw_without_namelists_is_refused(pw: Any) -> None:
    assert refusal(pw=pw).startswith("pw")


def test_names_are_kept_in_lower_case_without_blanks_and_empty_namelists_are_left_out() -> None:
    pw = {
        "&SYSTEM": {"Hubbard_U": {"Fe": 4}, "efield_cart( 1 )": 0.1},
        "control": {},
        "Electrons ": {"mixing_ndim": 12},
    }
    assert DFTConfig(ecutwfc=60, pw=pw).pw == {
        "system": {"hubbard_u": {"Fe": 4}, "efield_cart(1)": 0.1, "lda_plus_u": True},
        "electrons": {"mixing_ndim": 12},
    }


def test_tables_of_names_are_in_the_form_in_which_they_are_compared() -> None:
    names = set().union(*RESERVED.values()) | NUMERICAL | BY_ELEMENT | BY_KIND
    assert all(name == name.lower() and name.isidentifier() for name in names)
    assert not NUMERICAL & set().union(*RESERVED.values())


# What defines a label


def test_label_parameters_hold_nothing_numerical() -> None:
    same = DFTConfig(
        pseudopotential_dir="/elsewhere",
        pseudopotentials={"Fe": "other.upf"},
        ecutwfc=60,
        electron_maxstep=1,
        mixing_beta=0.1,
        mixing_mode="TF",
        diagonalization="ppcg",
        min_distance_fraction=0.1,
        max_force=1,
        early_stop=False,
        ladder=[],
        pw={"electrons": dict.fromkeys(NUMERICAL, 1), "control": {"title": "x"}},
    )
    assert same.label_parameters() == DFTConfig(ecutwfc=60).label_parameters()


@pytest.mark.parametrize(
    "change",
    [
        {"ecutwfc": 61},
        {"ecutrho": 480},
        {"kspacing": 0.21},
        {"smearing": "mp"},
        {"degauss": 0.021},
        {"conv_thr_per_atom": 1e-10},
        {"magnetism": "none"},
        {"magnetism": {"Fe": 1.0}},
        {"magnetism": "antiferromagnetic"},
        {"magnetism": ["auto", "none"]},
        {"pw": {"system": {"vdw_corr": "dft-d3"}}},
        {"pw": {"system": {"hubbard_u": {"Fe": 4.6}}}},
        {"pw": {"system": {"nbnd": 20}}},
        {"pw": {"control": {"lorbm": True}}},
    ],
)
def test_label_parameters_hold_everything_that_moves_the_number(change: dict[str, Any]) -> None:
    changed = DFTConfig(**{"ecutwfc": 60, **change})
    assert changed.label_parameters() != DFTConfig(ecutwfc=60).label_parameters()


def test_case_order_and_form_of_numbers_do_not_make_another_label() -> None:
    first = DFTConfig(
        ecutwfc=60,
        magnetism={"Fe": 1, "O": 2},
        pw={"system": {"tot_charge": 1, "Hubbard_U": {"Fe": 4, "Ni": 5.5}}, "control": {"lorbm": True}},
    )
    second = DFTConfig(
        ecutwfc=60.0,
        magnetism={"O": 2.0, "Fe": 1.0},
        pw={"CONTROL": {"LORBM": True}, "SYSTEM": {"hubbard_u": {"Ni": 5.5, "Fe": 4.0}, "tot_charge ": 1.0}},
    )
    written = [json.dumps(config.label_parameters(), sort_keys=True) for config in (first, second)]
    assert written[0] == written[1]


def test_true_is_not_one_in_a_label() -> None:
    flag, number = (DFTConfig(ecutwfc=60, pw={"system": {"x": value}}).label_parameters() for value in (True, 1))
    assert json.dumps(flag) != json.dumps(number)


# dft.yaml


def write(folder: Path, text: str | bytes, name: str = "dft.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_is_taken_as_a_person_means_it(tmp_path: Path) -> None:
    """YAML 1.1 would read 1e-9 as text."""
    path = write(tmp_path, "ecutwfc: 60 # Ry\nconv_thr_per_atom: 1e-9\ndegauss: 1.e-2\nkspacing: 2E-1\n")
    config = DFTConfig.from_yaml(path)
    assert (config.ecutwfc, config.conv_thr_per_atom, config.degauss, config.kspacing) == (60.0, 1e-9, 0.01, 0.2)
    assert DFTConfig.from_yaml(str(path)) == config


def test_every_field_can_be_written_in_yaml(tmp_path: Path) -> None:
    """JSON is YAML, too."""
    assert DFTConfig.from_yaml(write(tmp_path, json.dumps(EVERY_FIELD))) == DFTConfig(**EVERY_FIELD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ecutwfc:\t60\n", r"is not valid YAML \(line 1\): found character '\\t' that cannot start any token"),
        ("kspacing: 0.2\n\tecutwfc: 60\n", r"is not valid YAML \(line 2\)"),
        ("ecutwfc: 60\nkspacing: 0.2\necutwfc: 30\n", r'\(line 3\): found duplicate key "ecutwfc"'),
        ("ecutwfc: [60\n", r"is not valid YAML \(line \d\)"),
        ("ecutwfc: !!python/object/apply:os.getcwd []\n", r"is not valid YAML \(line 1\): could not determine"),
        ("- ecutwfc\n", r"must hold `key: value` lines, got \['ecutwfc'\]"),
        ("60\n", "must hold `key: value` lines, got 60"),
        ("ecutwfc\n", "must hold `key: value` lines, got 'ecutwfc'"),
        ("60: ecutwfc\n", "keys must be words, got 60"),
        ("", "ecutwfc is missing"),
        ("# nothing\n", "ecutwfc is missing"),
        ("ecutwfc:\n", "ecutwfc = None: must be a number"),
        (bytes(range(256)), "is not a text file"),
        (b"\0\1\2", "is not valid YAML"),
        ("ecutwfc: 60\n".encode("utf-16"), "is not a text file"),
    ],
)
def test_unusable_yaml_is_named_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=message) as refused:
        DFTConfig.from_yaml(path)
    assert refused.value.message.startswith(str(path))
    assert "\n" not in refused.value.message


def test_problems_of_a_file_come_with_its_name_and_as_data(tmp_path: Path) -> None:
    path = write(tmp_path, "ecutwfc: -60\n")
    with pytest.raises(ConfigError) as refused:
        DFTConfig.from_yaml(path)
    assert refused.value.message == f"{path}: DFTConfig: ecutwfc = -60: must be greater than 0 (Ry)"
    assert refused.value.to_dict()["problems"] == [
        {"key": "ecutwfc", "value": "-60", "problem": "must be greater than 0 (Ry)"}
    ]


def test_missing_file_and_folder_are_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dft.yaml does not exist; `dftfactory init` writes one"):
        DFTConfig.from_yaml(tmp_path / "dft.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        DFTConfig.from_yaml(tmp_path)


def test_relative_pseudopotential_dir_is_taken_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command may run elsewhere."""
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "project", "ecutwfc: 60\npseudopotential_dir: upf\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = DFTConfig.from_yaml(Path("../project/dft.yaml"))
    assert config.pseudopotential_dir is not None
    assert Path(config.pseudopotential_dir).is_absolute()
    assert Path(config.pseudopotential_dir).resolve() == tmp_path.resolve() / "project" / "upf"


def test_home_and_absolute_pseudopotential_dir_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for written, meant in (("~/upf", "/home/me/upf"), ("/data/upf", "/data/upf")):
        path = write(tmp_path, f"ecutwfc: 60\npseudopotential_dir: {written}\n")
        assert DFTConfig.from_yaml(path).pseudopotential_dir == meant


# WorkerConfig


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Slurm job around the tests, and mpirun installed or not as the test says."""
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    set_mpirun(monkeypatch, installed=True)


def set_mpirun(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr("dftfactory.config.shutil.which", lambda name: f"/usr/bin/{name}" if installed else None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parallel_cores": 0}, "parallel_cores = 0: must be greater than 0"),
        (
            {"parallel_cores": 4},
            "parallel_cores = 4: needs mpi_command when it is above 1, for example 'mpirun -np {cores}'",
        ),
        (
            {"parallel_cores": 4, "npool": 3, "mpi_command": "mpirun -np {cores}"},
            "npool = 3: must divide parallel_cores = 4",
        ),
        ({"npool": 0}, "npool = 0: must be a whole number above 0, or auto"),
        ({"npool": True}, "npool = True: must be a whole number above 0, or auto"),
        ({"ndiag": 2.0}, "ndiag = 2.0: must be a whole number above 0, or auto"),
        ({"ndiag": 8}, "ndiag = 8: must be a square number: 1, 4, 9, 16 ..."),
        (
            {"mpi_command": "mpirun -np 4"},
            "mpi_command = 'mpirun -np 4': must have the place of the number of ranks, {cores}: 'mpirun -np {cores}'",
        ),
        ({"mpi_command": ["mpirun", 4]}, "mpi_command = ['mpirun', 4]: must be a command, as text or as a list"),
        ({"pw_command": "'pw.x"}, 'pw_command = "\'pw.x": must be a command (no closing quotation)'),
        ({"pw_command": ""}, "pw_command = '': must be a command, not nothing"),
        ({"pw_command": []}, "pw_command = []: must be a command, not nothing"),
        ({"pw_command": None}, "pw_command = None: must be a command, as text or as a list of its words"),
        ({"pw_command": "pw.x\0"}, "must be a command, as text or as a list of its words"),
        ({"max_seconds": -1}, "max_seconds = -1: must be greater than 0"),
        ({"environment": {"A": 1}}, "environment.A = 1: must be text (a number in quotes is text)"),
        ({"environment": {"A=B": "1"}}, "environment.A=B = '1': must be a name without `=`"),
        ({"environment": {"": "1"}}, "must be a name without `=`"),
        ({"parallel_core": 4}, "parallel_core = 4: is unknown; did you mean parallel_cores?"),
        ({"ecutwfc": 4}, "ecutwfc = 4: is unknown; known are database_seconds, environment, hang_seconds, "),
    ],
)
def test_worker_message_names_key_value_and_expectation(values: dict[str, Any], message: str) -> None:
    assert message in worker_refusal(**values)


def test_wrong_mpi_command_is_one_problem_and_not_two() -> None:
    assert worker_refusal(mpi_command="mpirun", parallel_cores=4).count(";") == 0


def test_command_is_a_list_of_words_and_never_a_shell() -> None:
    worker = WorkerConfig(pw_command="pw.x; rm -rf x $(id) > y && z", mpi_command="mpirun -np {cores}")
    words = ["pw.x;", "rm", "-rf", "x", "$(id)", ">", "y", "&&", "z"]
    assert worker.command(4, 2) == ["mpirun", "-np", "4", *words, "-nk", "2", "-in", "pw.in"]


def test_command_as_text_or_as_words() -> None:
    text = WorkerConfig(pw_command="'/opt/my qe/pw.x' -ni 1", mpi_command="srun --ntasks={cores}", parallel_cores=8)
    words = WorkerConfig(
        pw_command=["/opt/my qe/pw.x", "-ni", "1"], mpi_command=["srun", "--ntasks={cores}"], parallel_cores=8
    )
    expected = ["srun", "--ntasks=8", "/opt/my qe/pw.x", "-ni", "1", "-in", "pw.in"]
    assert text.command(8, 1) == words.command(8, 1) == expected


def test_pools_and_shared_matrices_are_arguments_of_pw_x() -> None:
    worker = WorkerConfig(mpi_command="mpirun -np {cores}", parallel_cores=8)
    assert worker.command(8, 2, 4)[3:] == ["pw.x", "-nk", "2", "-nd", "4", "-in", "pw.in"]
    assert worker.command(8, 1, 1)[3:] == ["pw.x", "-nd", "1", "-in", "pw.in"]
    assert worker.command(1, 1, 1)[3:] == worker.command(1, 1)[3:] == ["pw.x", "-in", "pw.in"]


def test_serial_command_has_no_launcher() -> None:
    assert WorkerConfig().command(1, 1) == ["pw.x", "-in", "pw.in"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1))
def test_words_of_a_list_reach_the_program_as_they_are(words: list[str]) -> None:
    assert WorkerConfig(pw_command=words).command(1, 1) == [*words, "-in", "pw.in"]


def test_environment_of_the_user_wins_over_that_of_the_process_and_this_over_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.delenv("GFORTRAN_UNBUFFERED_PRECONNECTED", raising=False)
    inherited = WorkerConfig().process_environment()
    assert (inherited["OMP_NUM_THREADS"], inherited["PATH"]) == ("3", "/bin")
    assert inherited["GFORTRAN_UNBUFFERED_PRECONNECTED"] == "y"
    assert WorkerConfig(environment={"OMP_NUM_THREADS": "2"}).process_environment()["OMP_NUM_THREADS"] == "2"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert WorkerConfig().process_environment()["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("uid", [0, 1000])
def test_open_mpi_is_allowed_to_start_as_root_only_as_root(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.delenv("OMPI_ALLOW_RUN_AS_ROOT", raising=False)
    assert ("OMPI_ALLOW_RUN_AS_ROOT" in WorkerConfig().process_environment()) is (uid == 0)


BINDING = "OMPI_MCA_hwloc_base_binding_policy"


@pytest.mark.parametrize(("cores", "binding"), [(1, "none"), (7, "none"), (8, None), (128, None)])
def test_only_a_calculation_that_has_all_cores_is_bound_to_them(
    monkeypatch: pytest.MonkeyPatch, cores: int, binding: str | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv(BINDING, raising=False)
    worker = WorkerConfig(parallel_cores=cores, mpi_command="mpirun -np {cores}")
    assert worker.process_environment().get(BINDING) == binding
    monkeypatch.setenv(BINDING, "socket")
    assert worker.process_environment()[BINDING] == "socket"


@pytest.mark.pw
def test_ranks_of_two_calculations_side_by_side_may_use_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI 4 binds the rank of each `mpirun -np 1` to the first core, and the second core idles."""
    monkeypatch.delenv(BINDING, raising=False)
    cpus = len(os.sched_getaffinity(0))
    if cpus < 2:
        pytest.skip("one core cannot be shared wrongly")
    count = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    worker = WorkerConfig(mpi_command="mpirun -np {cores}", pw_command=count)
    command, environment = worker.command(1, 1), worker.process_environment()
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(said.stdout) == cpus


# The worker's settings from the machine, FireWorks or a file


@pytest.mark.parametrize("fw_env", [None, {}])
def test_nothing_given_is_one_core(fw_env: dict[str, Any] | None) -> None:
    assert WorkerConfig.from_fw_env(fw_env) == WorkerConfig()


def test_slurm_job_gives_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "16")
    worker = WorkerConfig.from_fw_env({"npool": 4})
    assert (worker.parallel_cores, worker.npool, worker.mpi_command) == (16, 4, "mpirun -np {cores}")
    assert WorkerConfig.from_fw_env({"parallel_cores": 2}).parallel_cores == 2


def test_slurm_tasks_count_also_where_only_slurms_own_launcher_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters without mpirun on the PATH are common; 15 of 16 cores would stand idle."""
    monkeypatch.setenv("SLURM_NTASKS", "16")
    set_mpirun(monkeypatch, installed=False)
    assert WorkerConfig.from_fw_env({"mpi_command": "srun -n {cores}"}).command(16, 1)[:3] == ["srun", "-n", "16"]
    assert WorkerConfig.from_fw_env(None).parallel_cores == 1


@pytest.mark.parametrize("tasks", ["", "0", "many", "4(x2)", "-1"])
def test_slurm_tasks_that_are_no_number_are_one(monkeypatch: pytest.MonkeyPatch, tasks: str) -> None:
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    assert WorkerConfig.from_fw_env(None).parallel_cores == 1


def test_several_cores_without_mpirun_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    set_mpirun(monkeypatch, installed=False)
    with pytest.raises(ConfigError, match=r"parallel_cores = 4: needs mpi_command"):
        WorkerConfig.from_fw_env({"parallel_cores": 4})


@pytest.mark.parametrize("cores", ["4", 2.0, None, True])
def test_cores_of_another_type_are_an_error_of_that_key_alone(cores: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        WorkerConfig.from_fw_env({"parallel_cores": cores})
    assert [problem["key"] for problem in refused.value.details["problems"]] == ["parallel_cores"]


@pytest.mark.parametrize(
    "text",
    [
        "name: cluster\ncategory: ''\nquery: '{}'\nenv:\n  parallel_cores: 4\n  npool: 2\n",
        "env:\n  parallel_cores: 4\n  npool: 2\n",
        "parallel_cores: 4\nnpool: 2\n",
    ],
)
def test_settings_come_from_a_fworker_file_or_from_one_of_their_own(tmp_path: Path, text: str) -> None:
    worker = WorkerConfig.from_yaml(write(tmp_path, text, "my_fworker.yaml"))
    assert (worker.parallel_cores, worker.npool, worker.mpi_command) == (4, 2, "mpirun -np {cores}")


@pytest.mark.parametrize("text", ["", "name: cluster\nquery: '{}'\n", "name: cluster\nenv:\n", "env: {}\n"])
def test_file_without_settings_is_the_machine_as_it_is(tmp_path: Path, text: str) -> None:
    assert WorkerConfig.from_yaml(write(tmp_path, text, "my_fworker.yaml")) == WorkerConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: 3\n", "`env` must hold `key: value` lines, got 3"),
        ("env: {1: 2}\n", "`env` must hold `key: value` lines, got {1: 2}"),
        ("env:\n  npool: x\n", "WorkerConfig: npool = 'x': must be a whole number"),
        ("name: cluster\nparallel_cores: 4\nenv: [1]\n", "`env` must hold"),
    ],
)
def test_unusable_worker_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text, "my_fworker.yaml")
    with pytest.raises(ConfigError) as refused:
        WorkerConfig.from_yaml(path)
    assert refused.value.message.startswith(f"{path}: ")
    assert message in refused.value.message


def test_worker_file_is_found_as_fireworks_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that FW_CONFIG_FILE leads to, or under the name that it gives; here comes before both."""
    for folder in ("here", "home", "configs"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FW_CONFIG_FILE", str(tmp_path / "configs" / "FW_config.yaml"))
    assert find_worker_file() is None  # also where FW_CONFIG_FILE names nothing
    config = write(tmp_path / "configs", f"CONFIG_FILE_DIR: {tmp_path}/configs\n", "FW_config.yaml")
    assert find_worker_file() is None
    write(tmp_path / "configs", "env: {scratch_dir: /folder}\n", "my_fworker.yaml")
    assert WorkerConfig.find().scratch_dir == "/folder"
    write(tmp_path / "configs", "env: {scratch_dir: /named}\n", "other.yaml")
    config.write_text(f"CONFIG_FILE_DIR: {tmp_path}/configs\nFWORKER_LOC: {tmp_path}/configs/other.yaml\n")
    assert WorkerConfig.find().scratch_dir == "/named"
    write(tmp_path / "here", "env: {scratch_dir: /here}\n", "my_fworker.yaml")
    assert WorkerConfig.find().scratch_dir == "/here"


def test_worker_file_that_fireworks_settings_name_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "FWORKER_LOC: /no/such/worker.yaml\n", "FW_config.yaml")
    with pytest.raises(ConfigError, match=r"/no/such/worker\.yaml does not exist"):
        WorkerConfig.find()


def test_worker_file_of_the_present_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    assert WorkerConfig.find() == WorkerConfig()
    write(tmp_path, "env: {npool: 1, scratch_dir: /scratch}\n", "my_fworker.yaml")
    assert WorkerConfig.find().scratch_dir == "/scratch"
