"""QERunner with the stand-in pw.x: the climb, the end of every path, and what a run folder looks like afterwards."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from monty.serialization import loadfn
from pymatgen.core import Lattice, Molecule, Structure

from dftfactory import runner
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError, InconsistentOutputError, StructureError
from dftfactory.failures import Failure
from dftfactory.giving_up import _request
from dftfactory.handlers import ConvergenceHandler
from dftfactory.jobs import LabelValidator, QEJob
from dftfactory.parsers import read_pw_output
from dftfactory.runner import QERunner

RUNS = Path(__file__).parent / "files" / "runs"
RYDBERG = 27.211386245988 / 2  # eV, CODATA 2018

FakePw = Callable[..., WorkerConfig]
Launches = Callable[[], list[str]]


def value(pw_input: str, keyword: str) -> str | None:
    """Value of a keyword as it stands in the text of a pw.in."""
    found = re.search(rf"^\s*{keyword}\s*=\s*(\S+)", pw_input, re.MULTILINE)
    return found[1].strip("',") if found else None


def asked(launches: Launches, *keywords: str) -> list[tuple[str | None, ...]]:
    """What each launch asked for."""
    return [tuple(value(text, keyword) for keyword in keywords) for text in launches()]


def history_of(run_dir: Path) -> list[dict[str, Any]]:
    attempts: list[dict[str, Any]] = json.loads((run_dir / "history.json").read_text())["attempts"]
    return attempts


def no_label(config: DFTConfig, worker: WorkerConfig, atoms: Atoms, run_dir: Path, **options: Any) -> CalculationError:
    with pytest.raises(CalculationError) as caught:
        QERunner(config, worker).run(atoms, run_dir, "si", **options)
    return caught.value


# The climb


def test_a_run_that_converges_is_a_label_of_level_0(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    result = QERunner(fake_config, fake_pw("converged")).run(si_atoms, tmp_path / "run", "si")
    assert (result.level, result.quality, result.calculation_id, result.source) == (0, "exact", "si", "xml")
    assert result.energy == pytest.approx(-15.78795310 * RYDBERG, abs=1e-7)  # the `!` line has eight digits
    assert [attempt["outcome"] for attempt in result.history] == ["CONVERGED"]
    assert len(launches()) == 1


@pytest.mark.parametrize("run", ["scf_still", "scf_gaining"])
def test_an_scf_that_has_not_converged_is_continued_once_and_then_mixed_softly_and_plainly(
    run: str, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    result = QERunner(fake_config, fake_pw(run, run, "converged")).run(si_atoms, tmp_path / "run")
    assert asked(launches, "mixing_beta", "mixing_mode", "startingpot") == [
        ("0.7", "local-TF", None),
        ("0.7", "local-TF", "file"),
        ("0.3", "plain", None),
    ]
    assert result.level == 1
    assert result.total_iterations == sum(attempt["iterations"] for attempt in result.history)
    found = [path.read_text() for path in sorted((tmp_path / "fake_pw" / "launches").glob("*.files"))]
    assert ["out/pwscf.save" in files for files in found] == [False, True, False]


def test_a_continuation_that_converges_is_a_label_of_its_level(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    result = QERunner(fake_config, fake_pw("scf_still", "converged")).run(si_atoms, tmp_path / "run")
    assert (result.level, result.quality, result.state_warning) == (0, "exact", None)
    assert result.total_iterations == 8 + 7


def test_an_scf_that_has_diverged_is_not_continued(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    launches: Launches,
    scf_diverged: Path,
) -> None:
    result = QERunner(fake_config, fake_pw(scf_diverged, "converged")).run(si_atoms, tmp_path / "run")
    assert asked(launches, "mixing_beta", "startingpot") == [("0.7", None), ("0.3", None)]
    assert result.level == 1
    # Where the watch was quick enough, it has stopped the run.
    assert re.search(r"last 2\.0e\+01 Ry|the SCF diverges", result.history[0]["evidence"])


def test_an_scf_that_was_stopped_early_is_continued_from_what_it_has_left(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    launches: Launches,
) -> None:
    """What the live watch has recorded counts; whether the density is any good is seen in the output."""
    worker = fake_pw("scf_still", "converged")
    run = QEJob.run

    def stopped(self: QEJob, directory: str = "./") -> Any:
        process = run(self, directory)
        history = json.loads((Path(directory) / "history.json").read_text())
        if len(history["attempts"]) == 1:
            evidence = "stopped early, the SCF stands still"
            history["attempts"][0]["stopped"] = {"failure": "SCF_NOT_CONVERGED", "evidence": evidence}
            (Path(directory) / "history.json").write_text(json.dumps(history))
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QEJob, "run", stopped)
        result = QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    assert asked(launches, "mixing_beta", "startingpot") == [("0.7", None), ("0.7", "file")]
    assert result.history[0]["evidence"] == "stopped early, the SCF stands still"
    assert result.level == 0


def test_the_anneal_cools_down_from_stage_to_stage_to_the_prescribed_parameters(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    worker = fake_pw(*["scf_still"] * 6, "anneal_hot", "anneal_warm", "anneal_last")
    result = QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    assert asked(launches, "degauss", "conv_thr", "startingpot", "mixing_mode", "mixing_ndim", "diagonalization") == [
        ("0.02", "2e-09", None, "local-TF", None, "david"),
        ("0.02", "2e-09", "file", "local-TF", None, "david"),
        ("0.02", "2e-09", None, "plain", None, "david"),
        ("0.02", "2e-09", "file", "plain", None, "david"),
        ("0.02", "2e-09", None, "plain", None, "cg"),
        ("0.02", "2e-09", "file", "plain", None, "cg"),
        ("0.06", "0.0001", None, "local-TF", "20", "david"),
        ("0.03", "1e-05", "file", "local-TF", "20", "david"),
        ("0.02", "2e-09", "file", "local-TF", "20", "david"),
    ]
    assert (result.level, result.quality, result.degauss) == (3, "exact", 0.02)
    assert [attempt["outcome"] for attempt in result.history] == [
        *["SCF_NOT_CONVERGED"] * 6,
        *["STAGE_CONVERGED"] * 2,
        "CONVERGED",
    ]
    assert result.energy == pytest.approx(-15.78795310 * RYDBERG, abs=1e-7)
    for stage in ("attempt_6", "attempt_7"):
        with pytest.raises(InconsistentOutputError, match="not the prescribed"):
            read_pw_output(tmp_path / "run" / stage)


# Three levels and the last stage of the anneal, each with its continuation.
ANNEAL_THAT_FAILS_LAST = (*["scf_still"] * 6, "anneal_hot", "anneal_warm", *["scf_still"] * 2, "softened")


def test_where_only_the_last_stage_fails_a_softened_label_is_left_to_those_who_ask(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    worker = fake_pw(*ANNEAL_THAT_FAILS_LAST)
    result = QERunner(fake_config, worker).run(si_atoms, tmp_path / "run", softened=True)
    assert asked(launches, "degauss", "conv_thr", "startingpot")[-1] == ("0.03", "2e-09", "file")
    assert (result.quality, result.degauss, result.level) == ("softened", 0.03, 3)


def test_a_softened_label_is_no_label_for_those_who_do_not_ask(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    error = no_label(fake_config, fake_pw(*ANNEAL_THAT_FAILS_LAST), si_atoms, tmp_path / "run")
    assert error.details["failure"] == "SCF_NOT_CONVERGED"
    assert error.details["softened"]["degauss"] == 0.03
    assert error.details["softened"]["quality"] == "softened"
    json.dumps(error.to_dict())  # FireWorks keeps it


def test_the_last_rung_is_run_before_giving_up(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    """custodian does not run its last allowed correction, so it is allowed more of them than there are rungs."""
    error = no_label(fake_config, fake_pw("scf_still"), si_atoms, tmp_path / "run")
    assert asked(launches, "mixing_beta", "diagonalization", "degauss") == [
        *[("0.7", "david", "0.02")] * 2,
        *[("0.3", "david", "0.02")] * 2,
        *[("0.3", "cg", "0.02")] * 2,
        *[("0.7", "david", "0.06")] * 2,
    ]
    assert (error.details["failure"], error.details["level"]) == ("SCF_NOT_CONVERGED", 3)
    assert len(error.details["history"]) == 8
    assert "convergence NOT achieved after 8 iterations" in error.message
    assert error.message.startswith("si: SCF_NOT_CONVERGED at level 3 after 8 runs: ")


# The climb with spin. The recorded runs have none: they play what a calculation with starting moments asks for.


@pytest.fixture
def spin_config(fake_config: DFTConfig) -> DFTConfig:
    return fake_config.model_copy(update={"magnetism": {"Si": 1.0}})


def test_with_spin_the_anneal_is_the_first_thing_after_the_continuation(
    fake_pw: FakePw, spin_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    worker = fake_pw("scf_still", "scf_still", "anneal_hot", "anneal_warm", "anneal_last")
    result = QERunner(spin_config, worker).run(si_atoms, tmp_path / "run")
    assert asked(launches, "degauss", "startingpot", "nspin") == [
        ("0.02", None, "2"),
        ("0.02", "file", "2"),
        ("0.06", None, "2"),
        ("0.03", "file", "2"),
        ("0.02", "file", "2"),
    ]
    assert (result.level, result.quality) == (3, "exact")


def test_with_spin_the_levels_below_follow_an_anneal_that_fails(
    fake_pw: FakePw, spin_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    """The hot stage fails: nothing of the anneal is left, and nothing of it is repeated."""
    error = no_label(spin_config, fake_pw("scf_still"), si_atoms, tmp_path / "run")
    assert asked(launches, "mixing_beta", "diagonalization", "degauss", "mixing_ndim") == [
        *[("0.7", "david", "0.02", None)] * 2,
        *[("0.7", "david", "0.06", "20")] * 2,
        *[("0.3", "david", "0.02", None)] * 2,
        *[("0.3", "cg", "0.02", None)] * 2,
    ]
    assert [attempt["parameters"]["level"] for attempt in error.details["history"]] == [0, 0, 3, 3, 1, 1, 2, 2]
    assert (error.details["level"], error.details["failure"]) == (2, "SCF_NOT_CONVERGED")


ANNEAL_WITH_SPIN = (
    *["scf_still"] * 2,
    *["anneal_hot", "anneal_warm", "scf_still", "scf_still"],
    *["scf_still"] * 4,
    *["anneal_hot", "anneal_warm"],
)


def test_with_spin_the_anneal_is_repeated_at_the_very_end_and_ends_softened(
    fake_pw: FakePw, spin_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    """Where only its last stage had failed. Until then nothing but an exact label is accepted."""
    worker = fake_pw(*ANNEAL_WITH_SPIN, "softened")
    result = QERunner(spin_config, worker).run(si_atoms, tmp_path / "run", softened=True)
    assert asked(launches, "degauss", "conv_thr", "startingpot", "mixing_beta") == [
        ("0.02", "2e-09", None, "0.7"),
        ("0.02", "2e-09", "file", "0.7"),
        ("0.06", "0.0001", None, "0.7"),
        ("0.03", "1e-05", "file", "0.7"),
        ("0.02", "2e-09", "file", "0.7"),
        ("0.02", "2e-09", "file", "0.7"),
        ("0.02", "2e-09", None, "0.3"),
        ("0.02", "2e-09", "file", "0.3"),
        ("0.02", "2e-09", None, "0.3"),
        ("0.02", "2e-09", "file", "0.3"),
        ("0.06", "0.0001", None, "0.7"),
        ("0.03", "1e-05", "file", "0.7"),
        ("0.03", "2e-09", "file", "0.7"),
    ]
    assert [attempt["parameters"]["level"] for attempt in result.history] == [0, 0, *[3] * 4, 1, 1, 2, 2, *[3] * 3]
    assert (result.quality, result.degauss, result.level) == ("softened", 0.03, 3)
    for stage in ("attempt_10", "attempt_11"):
        with pytest.raises(InconsistentOutputError, match="not the prescribed"):
            read_pw_output(tmp_path / "run" / stage)


def test_with_spin_a_level_after_the_anneal_still_gives_an_exact_label(
    fake_pw: FakePw, spin_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    result = QERunner(spin_config, fake_pw(*ANNEAL_WITH_SPIN[:6], "converged")).run(si_atoms, tmp_path / "run")
    assert (result.quality, result.degauss, result.level) == ("exact", 0.02, 1)
    assert "reached at level 1" in (result.state_warning or "")


def test_with_spin_too_a_softened_end_that_fails_is_the_end(
    fake_pw: FakePw, spin_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    error = no_label(spin_config, fake_pw(*ANNEAL_WITH_SPIN, "scf_still"), si_atoms, tmp_path / "run")
    assert len(launches()) == 14  # the softened stage is continued once, too
    assert (error.details["failure"], error.details["level"]) == ("SCF_NOT_CONVERGED", 3)
    assert "softened" not in error.details


def test_custodians_own_limit_ends_in_an_error_and_not_in_a_label(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    launches: Launches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "MAX_CORRECTIONS", 1)
    error = no_label(fake_config, fake_pw("scf_still", "converged"), si_atoms, tmp_path / "run")
    assert len(launches()) == 1
    assert error.details["failure"] is None
    assert "Max errors" in error.message


def test_an_empty_ladder_means_no_climb(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    config = fake_config.model_copy(update={"ladder": []})
    error = no_label(config, fake_pw("scf_still"), si_atoms, tmp_path / "run")
    assert error.details["level"] == 0
    assert asked(launches, "mixing_beta", "startingpot") == [("0.7", None), ("0.7", "file")]


def test_a_level_without_a_value_of_its_own_goes_back_to_the_users_entry(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    ladder = [{"name": "long memory", "mixing_ndim": 20}, {"name": "soft", "mixing_beta": 0.2}]
    settings = {**fake_config.to_dict(), "ladder": ladder, "pw": {"electrons": {"mixing_ndim": 12}}}
    config = DFTConfig(**settings)
    QERunner(config, fake_pw(*["scf_still"] * 4, "converged")).run(si_atoms, tmp_path / "run")
    assert asked(launches, "mixing_ndim", "mixing_beta") == [
        *[("12", "0.7")] * 2,
        *[("20", "0.7")] * 2,
        ("12", "0.2"),
    ]


# Failures that are not the SCF's


def test_a_program_that_dies_without_a_word_is_not_run_again(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    error = no_label(fake_config, fake_pw("crash_silent"), si_atoms, tmp_path / "run")
    assert len(launches()) == 1
    assert error.message.startswith("si: ENVIRONMENT at level 0 after 1 run: exit status 1 before pw.x said anything")
    assert "dftfactory check" in error.message


def test_bin_false_for_pw_x_is_told_apart_from_a_hard_structure(
    fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    error = no_label(fake_config, WorkerConfig(pw_command="/bin/false"), si_atoms, tmp_path / "run")
    assert (error.details["failure"], error.details["level"], len(error.details["history"])) == ("ENVIRONMENT", 0, 1)


@pytest.mark.parametrize("settings", [{"pw_command": "/nowhere/pw.x"}, {"mpi_command": "no-such-mpirun -np {cores}"}])
def test_a_missing_program_is_named_at_once(
    settings: dict[str, Any], fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    error = no_label(fake_config, WorkerConfig(**settings), si_atoms, tmp_path / "run")
    assert (error.details["failure"], len(error.details["history"])) == ("ENVIRONMENT", 1)
    assert re.search(r"exit status 127: (/nowhere/pw\.x|no-such-mpirun): No such file or directory", error.message)


def test_after_memory_ran_out_the_cheapest_remedies_come_first_and_the_level_stays(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    # `env` in the place of mpirun: the stand-in has no ranks.
    worker = fake_pw(
        *["out_of_memory"] * 3, "converged", mpi_command=["env", "RANKS={cores}"], parallel_cores=2, npool=2
    )
    result = QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    arguments = [path.read_text() for path in sorted((tmp_path / "fake_pw" / "launches").glob("*.args"))]
    assert arguments == ["-nk 2 -in pw.in", *["-in pw.in"] * 3]
    assert asked(launches, "diago_david_ndim", "mixing_ndim", "diagonalization") == [
        (None, None, "david"),
        (None, None, "david"),
        ("2", "4", "david"),
        ("2", "4", "cg"),
    ]
    assert result.level == 0


def test_a_killed_run_is_repeated_once_as_it_was(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    result = QERunner(fake_config, fake_pw("killed", "converged")).run(si_atoms, tmp_path / "run")
    first, second = launches()
    assert first == second
    assert (result.level, result.history[0]["outcome"], result.history[0]["exit_status"]) == (0, "KILLED", -9)


def test_a_run_that_is_killed_again_and_again_is_given_up(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    error = no_label(fake_config, fake_pw("killed"), si_atoms, tmp_path / "run")
    assert (error.details["failure"], error.details["level"], len(launches())) == ("KILLED", 0, 2)


def test_a_failed_diagonalization_gets_another_solver(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    result = QERunner(fake_config, fake_pw("diagonalization", "converged")).run(si_atoms, tmp_path / "run")
    assert asked(launches, "diagonalization", "mixing_beta") == [("david", "0.7"), ("cg", "0.3")]
    assert (result.level, result.history[0]["outcome"]) == (2, "DIAGONALIZATION")


def test_nan_is_tried_once_more_and_never_becomes_a_label(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    error = no_label(fake_config, fake_pw("nan"), si_atoms, tmp_path / "run")
    assert asked(launches, "diagonalization", "startingpot") == [("david", None), ("cg", None)]
    assert error.details["failure"] == "NAN"


def test_after_all_remedies_the_error_asks_for_more_memory(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """Twice what the job had; or the estimate, 1.3 x 2.76 MB, with 100 MB for pw.x itself, where that is more."""
    for memory, asked_for in ((3000.0, 6000), (30.0, 104)):
        worker = fake_pw("out_of_memory", memory_mb=memory)
        error = no_label(fake_config, worker, si_atoms, tmp_path / f"{memory}")
        assert error.details["request"] == {"memory_mb": asked_for}
        last = history_of(tmp_path / f"{memory}")[-1]
        assert (last["request"], last["outcome"]) == ({"memory_mb": asked_for}, "OUT_OF_MEMORY")
        assert error.details["history"][-1] == last
        shutil.rmtree(tmp_path / "fake_pw")


def test_a_request_is_for_the_layout_that_the_user_wants_and_not_for_the_last_attempt() -> None:
    """The first attempt had four ranks; the one pool of the last ones does not make the next job smaller."""
    attempts = [
        {"estimated_memory": 1000.0, "n_ranks": 4},
        {"estimated_memory": 900.0, "n_ranks": 4},
        {"estimated_memory": None, "n_ranks": 1},
    ]
    assert _request(attempts, 100.0) == {"request": {"memory_mb": 5600}}  # (1.3 x 1000 + 100) x 4
    assert _request([], None) == {}


def test_early_stop_and_starting_moments_are_in_the_record(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    for early_stop in (True, False):
        config = fake_config.model_copy(update={"early_stop": early_stop, "magnetism": {"Si": 1.0}})
        QERunner(config, fake_pw("converged")).run(si_atoms, tmp_path / f"{early_stop}")
        prescribed = json.loads((tmp_path / f"{early_stop}" / "history.json").read_text())["prescribed"]
        assert prescribed["early_stop"] is early_stop
        assert prescribed["starting_moments"] == [1.0, 1.0]
        shutil.rmtree(tmp_path / "fake_pw")


FAILING_ENDS: list[tuple[Any, ...]] = [
    ("scf_still",),
    ("nan",),
    ("killed",),
    ("out_of_memory",),
    ("crash_silent",),
    ("diagonalization",),
    ANNEAL_THAT_FAILS_LAST,
]


@pytest.mark.parametrize("runs", FAILING_ENDS)
def test_every_error_has_its_evidence_and_a_sentence_for_a_person(
    runs: tuple[str, ...], fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    error = no_label(fake_config, fake_pw(*runs), si_atoms, tmp_path / "run")
    details = error.to_dict()
    for name in ("failure", "evidence", "explanation", "calculation_id", "run_dir"):
        assert isinstance(details[name], str), name
        assert details[name], name
    assert isinstance(details["level"], int)
    for attempt in details["history"]:
        assert attempt["outcome"] in ("CONVERGED", "STAGE_CONVERGED") or (
            attempt["evidence"] and attempt["explanation"]
        )


# Whole, and yet no label


def test_a_run_that_is_whole_but_wrong_is_rejected_with_the_reason(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    config = fake_config.model_copy(update={"max_force": 0.1})
    error = no_label(config, fake_pw("converged"), si_atoms, tmp_path / "run")
    assert error.details["failure"] is None
    assert "above max_force = 0.1 eV/Å" in error.message
    assert history_of(tmp_path / "run")[0]["outcome"] == "REJECTED"
    assert len(launches()) == 1


def test_a_hot_stage_that_comes_too_early_is_no_label(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """The stand-in plays the hot stage at level 0: its accuracy is not the one that the input asked for."""
    error = no_label(fake_config, fake_pw("anneal_hot", "scf_still"), si_atoms, tmp_path / "run")
    assert error.details["history"][0]["outcome"] == "SCF_NOT_CONVERGED"


def test_a_record_that_is_destroyed_on_the_way_costs_the_label(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without it nobody knows what was prescribed: a hot stage would pass for a label."""

    def destroy(self: QEJob, directory: str = "./") -> None:
        (Path(directory) / "history.json").unlink()

    monkeypatch.setattr(QEJob, "postprocess", destroy)
    error = no_label(fake_config, fake_pw("converged"), si_atoms, tmp_path / "run")
    assert (error.details["failure"], error.details["history"]) == (None, [])
    assert error.message.startswith("si: REJECTED: ")


def test_an_output_that_changes_after_custodian_has_accepted_it_is_looked_at_again(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut(self: QEJob, directory: str = "./") -> None:
        shutil.copy(RUNS / "killed" / "pw.out", Path(directory) / "pw.out")

    monkeypatch.setattr(QEJob, "postprocess", cut)
    error = no_label(fake_config, fake_pw("converged"), si_atoms, tmp_path / "run")
    assert "ends before JOB DONE" in error.message


def test_a_nonzero_exit_status_that_nobody_claims_is_an_error(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """custodian's ReturnCodeError: everything on disk looks right, and the program still said that it is not."""
    recorded = tmp_path / "recorded"
    shutil.copytree(RUNS / "converged", recorded)
    (recorded / "exit_status").write_text("3")
    monkeypatch.setattr("dftfactory.handlers.examine", lambda directory: None)
    monkeypatch.setattr(LabelValidator, "check", lambda self, directory="./": False)
    error = no_label(fake_config, fake_pw(recorded), si_atoms, tmp_path / "run")
    assert (error.details["failure"], error.details["evidence"]) == (None, "pw.x ended with exit status 3")


def test_a_disk_that_fills_up_between_the_runs_is_a_calculation_error(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: ConvergenceHandler, directory: str = "./") -> dict[str, Any]:
        raise OSError(28, "No space left on device", directory)

    monkeypatch.setattr(ConvergenceHandler, "correct", full)
    error = no_label(fake_config, fake_pw("scf_still"), si_atoms, tmp_path / "run")
    assert error.details["failure"] == Failure.DISK_FULL.value
    assert str(tmp_path / "run") in error.message


# The run folder


def test_the_run_folder_keeps_every_attempt_and_no_wavefunctions(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    QERunner(fake_config, fake_pw("diagonalization", "scf_loose", "converged")).run(si_atoms, run_dir)
    found = sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())
    assert found == [
        *[f"attempt_0/{name}" for name in ("CRASH", "exit_status", "history.json", "pw.err", "pw.in", "pw.out")],
        *[
            f"attempt_1/{name}"
            for name in ("exit_status", "history.json", "out/pwscf.xml", "pw.err", "pw.in", "pw.out")
        ],
        *["custodian.json", "exit_status", "history.json", "out/pwscf.xml", "pw.err", "pw.in", "pw.out"],
    ]
    assert value((run_dir / "attempt_0" / "pw.in").read_text(), "diagonalization") == "david"
    assert value((run_dir / "pw.in").read_text(), "diagonalization") == "cg"
    last_lines = (RUNS / "scf_loose" / "pw.out").read_text()[-5000:]
    assert (run_dir / "attempt_1" / "pw.out").read_text().endswith(last_lines)


def test_the_history_tells_what_was_tried_and_how_it_ended(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    QERunner(fake_config, fake_pw("scf_still", "scf_still", "converged")).run(si_atoms, tmp_path / "run", "si-7")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    first, continued, last = history["attempts"]
    assert history["calculation_id"] == "si-7"
    assert first["parameters"]["mixing_beta"] == 0.7
    assert first["outcome"] == "SCF_NOT_CONVERGED"
    assert "best accuracy 1.2e-02 Ry" in first["evidence"]
    assert (first["folder"], first["exit_status"], first["iterations"]) == ("attempt_0", 2, 8)
    assert continued["parameters"] | {"level": 0, "startingpot": "file", "continued": True} == continued["parameters"]
    assert last["parameters"] | {"level": 1, "mixing_beta": 0.3, "climbed": [1]} == last["parameters"]
    assert (last["outcome"], last["last_accuracy"]) == ("CONVERGED", 6.4e-10)


def test_custodian_json_can_be_read_back(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """A handler that cannot be written fails only there, after the first correction."""
    worker = fake_pw("scf_still", "scf_still", "converged")
    QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    (log,) = loadfn(tmp_path / "run" / "custodian.json")
    assert isinstance(log["job"], QEJob)
    assert log["job"].worker == worker
    assert all(isinstance(correction["handler"], ConvergenceHandler) for correction in log["corrections"])
    assert [correction["actions"][0]["changed"] for correction in log["corrections"]] == [
        {"startingpot": "file"},
        {"startingpot": None, "mixing_beta": 0.3, "mixing_mode": "plain"},
    ]


def test_nothing_is_printed(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would keep Python's last resort silent
    QERunner(fake_config, fake_pw("scf_still", "converged")).run(si_atoms, tmp_path / "run")
    no_label(fake_config, WorkerConfig(pw_command="/bin/false"), si_atoms, tmp_path / "other")
    assert capfd.readouterr() == ("", "")


def test_what_an_earlier_run_left_in_the_folder_is_not_taken_for_an_answer(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("pwscf.EXIT", "CRASH", "exit_status", "pw.err"):
        (run_dir / name).write_text("0")
    error = no_label(fake_config, fake_pw("killed"), si_atoms, run_dir)
    assert error.details["failure"] == "KILLED"
    seen = (tmp_path / "fake_pw" / "launches" / "000.files").read_text().splitlines()
    assert seen == ["history.json", "out", "pw.err", "pw.in", "pw.out"]
    assert not (run_dir / "out" / "pwscf.xml").exists()


@pytest.mark.parametrize("name", ["pw.in", "pw.out", "out/pwscf.save/charge-density.dat"])
def test_a_calculation_of_the_users_own_is_neither_deleted_nor_overwritten(
    name: str, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("three weeks of work")
    with pytest.raises(ConfigError, match=rf"run/{name.split('/')[0]} is there already.*choose another folder"):
        QERunner(fake_config, fake_pw("converged")).run(si_atoms, tmp_path / "run")
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "three weeks of work"
    assert launches() == []


def test_after_a_failure_the_next_try_says_how_the_last_one_ended(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    worker = fake_pw("killed")
    no_label(fake_config, worker, si_atoms, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"choose another folder or remove it \(it ended: KILLED, ."):
        QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    (tmp_path / "run" / "history.json").write_text("{")
    with pytest.raises(ConfigError, match="with a damaged history"):
        QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")


def test_a_folder_with_a_calculation_is_not_used_again(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    worker = fake_pw("converged")
    QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    with pytest.raises(ConfigError, match="run already holds a calculation; choose another folder or remove it"):
        QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    assert len(launches()) == 1


def test_a_file_in_the_place_of_the_run_folder_is_named(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"run folder .*/run cannot be made or written: File exists"):
        QERunner(fake_config, fake_pw("converged")).run(si_atoms, tmp_path / "run")


def test_a_refused_structure_leaves_no_folder_behind(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    si_atoms.positions[1] = si_atoms.positions[0] + 0.1
    with pytest.raises(StructureError, match="less than"):
        QERunner(fake_config, fake_pw("converged")).run(si_atoms, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert launches() == []


# Scratch


def test_wavefunctions_go_to_scratch_and_the_xml_comes_back(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    linked = []
    prepare = QEJob._prepare_outdir

    def watch(self: QEJob, folder: Path) -> None:
        prepare(self, folder)
        linked.append((folder / "out").is_symlink() and (folder / "out").resolve().parent == scratch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QEJob, "_prepare_outdir", watch)
        worker = fake_pw("scf_gaining", "converged", scratch_dir=str(scratch))
        QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    assert linked == [True, True]
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "run" / "out").is_symlink()
    assert [path.name for path in (tmp_path / "run" / "out").iterdir()] == ["pwscf.xml"]


def test_a_continued_run_finds_its_density_on_scratch(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    worker = fake_pw("scf_gaining", "scf_still", "converged", scratch_dir=str(tmp_path / "scratch"))
    QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    seen = [path.read_text() for path in sorted((tmp_path / "fake_pw" / "launches").glob("*.files"))]
    assert ["out/pwscf.save" in files for files in seen] == [False, True, False]


def test_scratch_is_empty_after_a_failure_too(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    no_label(fake_config, fake_pw("killed", scratch_dir=str(tmp_path / "scratch")), si_atoms, tmp_path / "run")
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "run" / "out").is_symlink()


def test_scratch_that_cannot_be_made_is_named(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Launches
) -> None:
    (tmp_path / "file").write_text("")
    worker = fake_pw("converged", scratch_dir=str(tmp_path / "file" / "scratch"))
    error = no_label(fake_config, worker, si_atoms, tmp_path / "run")
    assert error.details["failure"] == "ENVIRONMENT"
    assert f"{tmp_path}/file/scratch: Not a directory" in error.message
    assert launches() == []


def test_a_disk_that_will_not_be_cleaned_does_not_cost_the_label(
    fake_pw: FakePw,
    fake_config: DFTConfig,
    si_atoms: Atoms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("dftfactory.jobs.discard_outdir", refuse)
    monkeypatch.setattr(QEJob, "_prepare_outdir", lambda self, folder: None)
    result = QERunner(fake_config, fake_pw("converged")).run(si_atoms, tmp_path / "run")
    assert result.source == "xml"


# Structures of pymatgen


def test_a_pymatgen_structure_gives_the_label_of_the_same_atoms(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    structure = Structure(Lattice(si_atoms.cell.array), ["Si", "Si"], si_atoms.positions, coords_are_cartesian=True)
    result = QERunner(fake_config, fake_pw("converged")).run(structure, tmp_path / "run")
    assert np.abs(result.positions - si_atoms.positions).max() < 1e-6  # the digits of pw.in and of the XML


@pytest.mark.parametrize("structure", [Molecule(["H", "H"], [[0, 0, 0], [0, 0, 0.75]]), "Si.cif", None])
def test_what_has_no_cell_is_refused(
    structure: Any, fake_pw: FakePw, fake_config: DFTConfig, tmp_path: Path, launches: Launches
) -> None:
    with pytest.raises(
        StructureError, match=r"expected ASE Atoms or a pymatgen Structure, got (Molecule|str|NoneType)"
    ):
        QERunner(fake_config, fake_pw("converged")).run(structure, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The layout


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({}, (1, 1, None)),
        ({"parallel_cores": 4}, (4, 4, 1)),
        ({"parallel_cores": 4, "npool": 1}, (4, 1, 1)),
        ({"parallel_cores": 4, "ndiag": None}, (4, 4, None)),
        ({"parallel_cores": 4, "npool": 4, "ndiag": 4}, (4, 4, 1)),
    ],
)
def test_the_first_attempt_has_the_layout_of_the_structure_unless_the_worker_prescribes_one(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, settings: dict[str, Any], layout: Any
) -> None:
    worker = fake_pw("converged", mpi_command=["env", "RANKS={cores}"], **settings)
    QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    parameters = history_of(tmp_path / "run")[0]["parameters"]
    assert tuple(parameters.get(name) for name in ("parallel_cores", "npool", "ndiag")) == layout


def test_a_memory_of_the_worker_that_is_too_small_for_pools_leaves_one(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """The density of each pool is small here, so that only a limit below everything tells."""
    worker = fake_pw("converged", mpi_command=["env", "RANKS={cores}"], parallel_cores=4, memory_mb=60)
    QERunner(fake_config, worker).run(si_atoms, tmp_path / "run")
    assert history_of(tmp_path / "run")[0]["parameters"]["parallel_cores"] == 1
