"""Wrong states that look right are said, several starts give the lowest one, and no start that fails is forgotten."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError, StructureError
from dftfactory.labels import fingerprint, make_label, read_label, write_label
from dftfactory.results import DFTResult
from dftfactory.runner import QERunner
from dftfactory.states import SAME_ENERGY, lowest, state_warning

RUNS = Path(__file__).parent / "files" / "runs"
RYDBERG = 27.211386245988 / 2  # eV, CODATA 2018
STARTS = ["none", {"Si": 1.0}, {"Si": 0.5}]

FakePw = Callable[..., WorkerConfig]
Launches = Callable[[], list[str]]


def result(energy: float = -755.8, **changes: Any) -> DFTResult:
    values: dict[str, Any] = {
        "energy": energy,
        "smearing_energy": 0.0,
        "forces": np.zeros((1, 3)),
        "stress": np.zeros((3, 3)),
        "symbols": ("Fe",),
        "positions": np.zeros((1, 3)),
        "cell": np.eye(3),
        "degauss": 0.02,
        "conv_thr": 1e-9,
        "scf_accuracy": (1e-10,),
        "scf_error": 1e-10,
        "iterations": 9,
        "wall_time": 1.0,
        "n_kpoints": 4,
        "n_ranks": 1,
        "pw_version": "6.7",
        "source": "xml",
    }
    return DFTResult(**(values | changes))


def ended(total: float, absolute: float, **changes: Any) -> DFTResult:
    return result(total_magnetization=total, absolute_magnetization=absolute, **changes)


# The warning


@pytest.mark.parametrize(
    ("label", "started"),
    [
        (ended(2.29, 2.36), [4.0]),  # bcc Fe from Hund's rule
        (ended(0.55, 0.62), [2.0]),  # fcc Ni: comes far down, and is right
        (ended(2.00, 2.04), [1.0, 1.0]),  # O2
        (ended(2.29, 2.36), [0.5]),  # grows from a small start
        (ended(0.0, 3.65), [4.0, -4.0]),  # an antiferromagnet
        (ended(-2.29, 2.36), [4.0]),  # turned round as a whole: the same state
        (ended(4.0, 14.0), [5.0, 5.0, -4.0]),  # a ferrimagnet
        (result(), None),
    ],
)
def test_ordinary_ends_are_no_reason_for_a_warning(label: DFTResult, started: list[float] | None) -> None:
    assert state_warning(label, None if started is None else np.array(started)) is None


@pytest.mark.parametrize(
    ("label", "started", "words"),
    [
        (ended(0.0, 0.0), [4.0], "the magnetization has collapsed"),
        (ended(0.01, 0.01), [0.001] * 200, "the magnetization has collapsed"),
        (ended(0.1, 4.0), [4.0, 4.0], "started with parallel moments and ended compensated"),
        (ended(4.5, 9.0), [4.0] * 4, "started with parallel moments and ended compensated"),  # one of four turned
        (ended(4.5, 4.6), [4.0, -4.0], "started compensated and ended with parallel moments"),
        (result(level=2), None, "reached at level 2"),
    ],
)
def test_an_end_that_was_not_meant_is_said(label: DFTResult, started: list[float] | None, words: str) -> None:
    warning = state_warning(label, None if started is None else np.array(started))
    assert warning is not None
    assert words in warning


def test_the_warning_has_level_magnetization_and_energy_in_one_line() -> None:
    assert state_warning(ended(0.0012, 0.02, level=1), np.array([4.0, -1.0])) == (
        "there may be a lower electronic state: reached at level 1; the magnetization has collapsed "
        "(total magnetization 0.00 μB, absolute 0.02 μB, started from 3.00 μB (5.00 μB absolute), energy -755.8000 eV)"
    )


def test_a_start_without_a_state_is_said() -> None:
    states = ({"start": "auto", "energy": -755.8}, {"start": "none", "energy": None, "outcome": "SCF_NOT_CONVERGED"})
    warning = state_warning(ended(2.29, 2.36, states=states), np.array([4.0]))
    assert warning is not None
    assert "no state from none (SCF_NOT_CONVERGED)" in warning


# Which state wins


def test_the_lowest_energy_wins_and_of_equal_ones_the_first() -> None:
    first, second, third = result(-10.0), result(-10.0 - SAME_ENERGY / 2), result(-10.0 - 2 * SAME_ENERGY)
    assert lowest([first, second, third]) is third
    assert lowest([first, second]) is first
    assert lowest([second, first]) is second


def test_a_softened_result_never_wins_over_an_exact_one() -> None:
    """Its degauss is another one, and so is the zero of its energy."""
    exact, soft, softer = result(-10.0), result(-11.0, quality="softened"), result(-12.0, quality="softened")
    assert lowest([soft, exact, softer]) is exact
    assert lowest([soft, softer]) is softer


# Several starts with the stand-in


@pytest.fixture
def several(fake_config: DFTConfig) -> DFTConfig:
    """Return a configuration with three starts, whose ladder is the same with and without spin."""
    soft = {"name": "soft mixing", "mixing_beta": 0.3, "mixing_mode": "plain"}
    return DFTConfig(**{**fake_config.to_dict(), "magnetism": STARTS, "ladder": [soft]})


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """`converged` with an energy that is 0.01 Ry lower, in the text and in the XML."""
    run = tmp_path / "lower"
    shutil.copytree(RUNS / "converged", run)
    for name, old, new in (
        ("pw.out", "-15.78795310 Ry", "-15.79795310 Ry"),
        ("out/pwscf.xml", "<etot>-7.893976551710235e0", "<etot>-7.898976551710235e0"),
    ):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))
    return run


def no_label(config: DFTConfig, worker: WorkerConfig, atoms: Atoms, run_dir: Path) -> CalculationError:
    with pytest.raises(CalculationError) as caught:
        QERunner(config, worker).run(atoms, run_dir, "si")
    json.dumps(caught.value.to_dict())  # FireWorks keeps it
    return caught.value


def test_each_start_is_run_from_scratch_and_the_lowest_is_the_label(
    fake_pw: FakePw,
    several: DFTConfig,
    lower: Path,
    scf_diverged: Path,
    si_atoms: Atoms,
    tmp_path: Path,
    launches: Launches,
) -> None:
    label = QERunner(several, fake_pw("converged", scf_diverged, lower, "converged")).run(si_atoms, tmp_path / "run")
    magnetization = [re.findall(r"nspin|starting_magnetization\(1\) *= *(\S+)", text) for text in launches()]
    # 1.0 and 0.5 μB of the 4 valence electrons of Si; the second start needs two runs.
    assert magnetization == [[], ["", "0.25"], ["", "0.25"], ["", "0.125"]]
    assert not any("startingpot" in text for text in launches())
    assert label.energy == pytest.approx(-15.79795310 * RYDBERG, abs=1e-7)
    assert label.level == 1
    assert [(state["start"], state["folder"], state["level"], state["outcome"]) for state in label.states] == [
        ("none", "start_0", 0, "CONVERGED"),
        ("Si 1", "start_1", 1, "CONVERGED"),
        ("Si 0.5", "start_2", 0, "CONVERGED"),
    ]
    assert [round(state["energy"] / RYDBERG, 5) for state in label.states] == [-15.78795, -15.79795, -15.78795]
    assert label.state_warning is not None


def test_the_attempts_of_all_starts_are_in_the_record(
    fake_pw: FakePw, several: DFTConfig, lower: Path, si_atoms: Atoms, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    label = QERunner(several, fake_pw(lower, "scf_still", "converged")).run(si_atoms, run_dir, "si-7")
    assert [(attempt["start"], attempt["folder"], attempt["outcome"]) for attempt in label.history] == [
        ("none", "start_0", "CONVERGED"),
        ("Si 1", "start_1/attempt_0", "SCF_NOT_CONVERGED"),
        ("Si 1", "start_1", "CONVERGED"),
        ("Si 0.5", "start_2", "CONVERGED"),
    ]
    assert all((run_dir / attempt["folder"] / "pw.out").is_file() for attempt in label.history)
    assert label.total_iterations == 7 + 8 + 7 + 7 == sum(state["iterations"] for state in label.states)
    assert label.calculation_id == "si-7"
    written = json.loads((run_dir / "history.json").read_text())
    assert written["attempts"] == list(label.history)
    assert written["states"] == list(label.states)
    assert not (run_dir / "pw.in").exists()


def test_one_start_runs_in_the_run_folder_as_ever(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    """Si has no moments by any table: three names for one start."""
    config = fake_config.model_copy(update={"magnetism": ["auto", "antiferromagnetic", "none"]})
    label = QERunner(config, fake_pw("converged")).run(si_atoms, tmp_path / "run")
    assert (len(launches()), label.states) == (1, ())
    assert "start" not in label.history[0]
    assert (tmp_path / "run" / "pw.out").is_file()
    assert not list((tmp_path / "run").glob("start_*"))


def test_a_start_whose_scf_fails_leaves_the_label_to_the_others(
    fake_pw: FakePw, several: DFTConfig, lower: Path, si_atoms: Atoms, tmp_path: Path
) -> None:
    config = several.model_copy(update={"ladder": []})
    worker = fake_pw("scf_still", "scf_still", "converged", lower)
    label = QERunner(config, worker).run(si_atoms, tmp_path / "run")
    failed = label.states[0]
    assert (failed["outcome"], failed["energy"], failed["level"], failed["iterations"]) == (
        "SCF_NOT_CONVERGED",
        None,
        0,
        16,
    )
    assert "convergence NOT achieved" in failed["evidence"]
    assert "SCF did not converge" in failed["explanation"]
    assert label.energy == pytest.approx(-15.79795310 * RYDBERG, abs=1e-7)
    assert "no state from none (SCF_NOT_CONVERGED)" in (label.state_warning or "")


def test_when_every_start_fails_the_error_has_all_of_them(
    fake_pw: FakePw, several: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    config = several.model_copy(update={"ladder": []})
    error = no_label(config, fake_pw(*["scf_still"] * 2, "nan", "nan", "scf_still"), si_atoms, tmp_path / "run")
    assert [state["outcome"] for state in error.details["states"]] == ["SCF_NOT_CONVERGED", "NAN", "SCF_NOT_CONVERGED"]
    assert (error.details["failure"], len(error.details["history"])) == ("SCF_NOT_CONVERGED", 6)
    assert error.details["run_dir"] == str(tmp_path / "run")
    for words in ("from none: SCF_NOT_CONVERGED", "from Si 1: NAN", "from Si 0.5: SCF_NOT_CONVERGED"):
        assert words in error.details["evidence"]
        assert words in error.message
    assert error.message.startswith("si: SCF_NOT_CONVERGED at level 0 after 6 runs: from none: ")
    assert error.details["explanation"] in error.message


@pytest.mark.parametrize("run", ["killed", "out_of_memory"])
def test_a_failure_of_the_machine_ends_the_calculation_and_not_only_the_start(
    run: str, fake_pw: FakePw, several: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """Else it would depend on the node which state is the lowest of those that were asked for."""
    error = no_label(several, fake_pw("converged", run), si_atoms, tmp_path / "run")
    assert error.details["failure"] == run.upper()
    converged, failed = error.details["states"]
    assert converged["energy"] == pytest.approx(-15.78795310 * RYDBERG, abs=1e-7)
    assert (failed["start"], failed["energy"]) == ("Si 1", None)
    assert {attempt["start"] for attempt in error.details["history"]} == {"none", "Si 1"}
    assert all(error.details[name] for name in ("evidence", "explanation"))


def test_softened_starts_lose_and_alone_are_left_to_those_who_ask(
    fake_pw: FakePw, fake_config: DFTConfig, lower: Path, si_atoms: Atoms, tmp_path: Path
) -> None:
    config = fake_config.model_copy(update={"magnetism": ["none", {"Si": 1.0}]})
    fails_last = ("anneal_hot", "anneal_warm", "scf_still", "scf_still")
    soft = (*["scf_still"] * 6, *fails_last, "softened")
    # With spin the anneal comes first, and once more at the end.
    soft_with_spin = (*["scf_still"] * 2, *fails_last, *["scf_still"] * 4, "anneal_hot", "anneal_warm", "softened")
    label = QERunner(config, fake_pw(*soft, "converged")).run(si_atoms, tmp_path / "one")
    assert (label.quality, [state["outcome"] for state in label.states]) == ("exact", ["SOFTENED", "CONVERGED"])
    shutil.rmtree(tmp_path / "fake_pw")
    error = no_label(config, fake_pw(*soft, *soft_with_spin), si_atoms, tmp_path / "both")
    assert [state["outcome"] for state in error.details["states"]] == ["SOFTENED", "SOFTENED"]
    assert error.details["softened"]["quality"] == "softened"
    assert all(error.details[name] for name in ("failure", "evidence", "explanation", "history"))


def test_a_folder_with_several_starts_is_not_used_again(
    fake_pw: FakePw, several: DFTConfig, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    worker = fake_pw("converged")
    QERunner(several, worker).run(si_atoms, tmp_path / "run")
    for config in (several, fake_config):
        with pytest.raises(ConfigError, match=r"already holds a calculation.*it ended: CONVERGED"):
            QERunner(config, worker).run(si_atoms, tmp_path / "run")


def test_an_interrupted_start_is_seen_as_one_that_has_not_ended(
    fake_pw: FakePw, several: DFTConfig, si_atoms: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = fake_pw("converged")
    supervise = QERunner._supervise

    def interrupted(self: QERunner, run_dir: Path, calculation_id: str) -> DFTResult:
        if run_dir.name == "start_1":
            raise KeyboardInterrupt
        return supervise(self, run_dir, calculation_id)

    monkeypatch.setattr(QERunner, "_supervise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        QERunner(several, worker).run(si_atoms, tmp_path / "run")
    with pytest.raises(ConfigError, match="it has not ended, or was killed"):
        QERunner(several, worker).run(si_atoms, tmp_path / "run")


def test_a_refused_structure_leaves_nothing_behind(
    fake_pw: FakePw, several: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    si_atoms.positions[1] = si_atoms.positions[0] + 0.1
    with pytest.raises(StructureError, match="less than"):
        QERunner(several, fake_pw("converged")).run(si_atoms, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert launches() == []


def test_the_label_file_keeps_states_and_warning(
    fake_pw: FakePw, several: DFTConfig, scf_diverged: Path, si_atoms: Atoms, tmp_path: Path
) -> None:
    runner = QERunner(several, fake_pw(scf_diverged, "converged"))
    label = runner.run(si_atoms, tmp_path / "run", "si")
    pseudopotentials = runner.pseudopotentials(si_atoms)
    name = fingerprint(si_atoms, several, {"Si": pseudopotentials["Si"].md5})
    write_label(tmp_path / "run", make_label(label, name, several, pseudopotentials))
    there = read_label(tmp_path / "run")
    assert there is not None
    back = DFTResult.from_dict(there["result"])
    assert (back.states, back.state_warning) == (label.states, label.state_warning)
    assert back.state_warning is not None


# The real pw.x


@pytest.mark.pw
@pytest.mark.parametrize("name", ["Fe", "Ni", "Si", "O2"])
def test_ordinary_cells_have_no_warning(name: str, config: DFTConfig, tmp_path: Path) -> None:
    if name == "O2":
        atoms = molecule("O2")  # with moments of its own
        atoms.center(vacuum=2.0)
    else:
        atoms = bulk(name)
        atoms.set_initial_magnetic_moments(None)
    label = QERunner(config.model_copy(update={"ecutwfc": 20.0}), WorkerConfig()).run(atoms, tmp_path / "run")
    assert label.state_warning is None
    assert (label.total_magnetization is None) == (name == "Si")


@pytest.mark.pw
def test_a_small_start_alone_ends_high_and_beside_others_does_not_matter(config: DFTConfig, tmp_path: Path) -> None:
    """bcc Fe from 0.05 μB loses its moment, half an eV above the ferromagnet; nothing but the end shows it."""
    iron = bulk("Fe")
    iron.set_initial_magnetic_moments(None)
    small = config.model_copy(update={"magnetism": {"Fe": 0.05}})
    alone = QERunner(small, WorkerConfig()).run(iron, tmp_path / "alone")
    assert "the magnetization has collapsed" in (alone.state_warning or "")
    three = config.model_copy(update={"magnetism": [{"Fe": 0.05}, "none", "auto"]})
    label = QERunner(three, WorkerConfig()).run(iron, tmp_path / "three")
    assert label.state_warning is None
    assert (label.total_magnetization or 0) > 2  # μB
    collapsed, without_spin, ferromagnet = label.states
    # Two ways to the same state without moments: with spin and without it, energies can be compared.
    assert collapsed["energy"] == pytest.approx(without_spin["energy"], abs=1e-4)
    assert label.energy == ferromagnet["energy"] < without_spin["energy"] - 0.3


@pytest.mark.pw
def test_an_antiferromagnetic_start_gives_an_antiferromagnet(config: DFTConfig, tmp_path: Path) -> None:
    iron = bulk("Fe", cubic=True)
    iron.set_initial_magnetic_moments(None)
    both = config.model_copy(update={"magnetism": ["antiferromagnetic", "auto"], "kspacing": 1.0})
    label = QERunner(both, WorkerConfig()).run(iron, tmp_path / "run")
    antiferromagnet, ferromagnet = label.states
    assert abs(antiferromagnet["total_magnetization"]) < 0.05 < 2 < antiferromagnet["absolute_magnetization"]
    assert ferromagnet["total_magnetization"] > 4
    assert label.energy == min(antiferromagnet["energy"], ferromagnet["energy"])
