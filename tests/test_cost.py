"""What attempts have cost, and which of it was in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_runs import MadeUpRun, falling, still
from paths import FILES

from dftfactory.config import DFTConfig
from dftfactory.cost import Cost, cores_of, cost_of, seconds_of, spent_in_vain, wasted_attempts
from dftfactory.failures import Failure
from dftfactory.handlers import attempt_facts

SCF = Failure.SCF_NOT_CONVERGED


def attempt(outcome: str | None, seconds: float | None = 10.0, cores: int = 2, **parameters: Any) -> dict[str, Any]:
    ended = {} if outcome is None else {"outcome": outcome}
    return {"parameters": {"level": 0, **parameters}, "wall_time": seconds, "n_ranks": cores, **ended}


CONTINUED = {"startingpot": "file"}


@pytest.mark.parametrize(
    ("history", "wasted"),
    [
        ([], []),
        ([attempt("CONVERGED")], [False]),
        ([attempt(None)], [False]),
        ([attempt("SCF_NOT_CONVERGED"), attempt("CONVERGED")], [True, False]),
        ([attempt("SCF_NOT_CONVERGED"), attempt("CONVERGED", **CONTINUED)], [False, False]),
        # What went on from it led nowhere either.
        ([attempt("SCF_NOT_CONVERGED"), attempt("NAN", **CONTINUED), attempt("CONVERGED")], [True, True, False]),
        ([attempt("WALLTIME"), attempt("CONVERGED", restart_mode="restart")], [False, False]),
        ([attempt("STAGE_CONVERGED"), attempt("CONVERGED", **CONTINUED)], [False, False]),
        ([attempt("STAGE_CONVERGED"), attempt("KILLED", **CONTINUED), attempt("CONVERGED")], [True, True, False]),
        ([attempt("TIGHTENED"), attempt("CONVERGED", **CONTINUED)], [False, False]),
        ([attempt("KILLED"), attempt(None)], [True, False]),
        # Without a label everything is wasted, also what one would have gone on from.
        ([attempt("WALLTIME"), attempt("WALLTIME", restart_mode="restart")], [True, True]),
    ],
)
def test_waste_is_what_the_label_did_not_need(history: list[dict[str, Any]], wasted: list[bool]) -> None:
    assert wasted_attempts(history) == wasted
    assert cost_of(history) == Cost(20.0 * len(history), 20.0 * sum(wasted))


def test_start_that_fails_is_waste_and_a_higher_state_is_not() -> None:
    high, low, failed = attempt("CONVERGED"), attempt("CONVERGED"), attempt("SCF_NOT_CONVERGED")
    history = [high | {"start": "auto"}, low | {"start": "Fe 0.5"}, failed | {"start": "none"}]
    assert wasted_attempts(history) == [False, False, True]
    assert wasted_attempts([entry | {"outcome": "NAN"} for entry in history]) == [True] * 3


def test_failure_is_in_vain_although_a_start_has_converged() -> None:
    """The memory ran out in the second start: there is no label."""
    history = [attempt("CONVERGED") | {"start": "auto"}, attempt("OUT_OF_MEMORY", 5.0) | {"start": "Fe 0.5"}]
    history[0]["iterations"] = 12
    assert spent_in_vain(history) == {
        "runs": 2,
        "iterations": 12,
        "core_seconds": 30.0,
        "wasted_core_seconds": 30.0,
    }


def test_real_ladder_wastes_what_it_leaves_behind(config: DFTConfig) -> None:
    run = MadeUpRun(config, 2, cores=4, nspin=2)
    while run.level < 3:
        run.fail(SCF, still(0.05, 80), 100.0, "80 iterations")
    n_failed = len(run.attempts) - 1
    run.stage(falling(0.3, 6e-5, 14), 20.0).stage(falling(0.01, 7e-6, 9), 10.0).converge(falling(1e-3, 1e-9, 12), 15.0)
    assert cost_of(run.attempts) == Cost(4 * (100.0 * n_failed + 45.0), 4 * 100.0 * n_failed)


@pytest.mark.parametrize(
    ("entry", "seconds", "cores"),
    [
        ({}, 0.0, 1),
        ({"wall_time": float("nan"), "n_ranks": None}, 0.0, 1),
        ({"wall_time": "long", "n_ranks": -3, "parameters": None}, 0.0, 1),
        ({"wall_time": None, "cpu_so_far": 2.2, "n_ranks": 4}, 2.2, 4),
        ({"wall_time": 3.0, "cpu_so_far": 2.2}, 3.0, 1),
        ({"parameters": {"parallel_cores": 8}, "wall_time": 1}, 1.0, 8),
    ],
)
def test_damaged_numbers_cost_nothing(entry: dict[str, Any], seconds: float, cores: int) -> None:
    assert (seconds_of(entry), cores_of(entry)) == (seconds, cores)


def test_run_that_was_killed_says_what_it_had_computed() -> None:
    """Its pw.out has no clock at the end, and three times "total cpu time spent up to now": 0.5, 1.7, 2.2 s."""
    facts = attempt_facts(FILES / "pw" / "sigkill_mid_scf")
    assert (facts["wall_time"], facts["cpu_so_far"]) == (None, 2.2)
    assert cost_of([{**facts, "outcome": "KILLED"}]).core_seconds == pytest.approx(2.2 * facts["n_ranks"])


def test_attempt_keeps_the_accuracies_of_its_scf() -> None:
    """`grep accuracy` in pw.out of the hot stage, four iterations."""
    facts = attempt_facts(FILES / "runs" / "anneal_hot")
    assert facts["scf_accuracy"][:3] == [0.07348328, 0.01773503, 0.00016185]
    assert len(facts["scf_accuracy"]) == facts["iterations"] == 4
    assert "cpu_so_far" not in facts


def test_accuracies_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    """The record of a failure is JSON for the web GUI, too."""
    values = ("0.5", "********", "NaN", "0.25")
    (tmp_path / "pw.out").write_text("".join(f"     estimated scf accuracy    <  {value} Ry\n" for value in values))
    assert attempt_facts(tmp_path)["scf_accuracy"] == [0.5, 0.25]
