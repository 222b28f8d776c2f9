"""What the accuracies of an SCF say of its way, on made-up numbers and on recorded ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dftfactory.scf import is_diverging, is_gaining, is_hopeless

FILES = Path(__file__).parent / "files"
# SCF accuracies of pw.x 6.7 on small hard cells at level 0, with plain and local-TF mixing, 80 iterations at most.
RECORDED: list[dict[str, Any]] = json.loads((FILES / "scf_accuracies.json").read_text())
CONVERGED = [run for run in RECORDED if run["converged"]]


def recorded(case: str, mixing_mode: str) -> dict[str, Any]:
    return next(run for run in RECORDED if (run["case"], run["mixing_mode"]) == (case, mixing_mode))


# Gaining


@pytest.mark.parametrize(
    ("accuracies", "gaining"),
    [
        ([], False),
        ([1.0], False),
        ([10.0 ** (-n / 10) for n in range(60)], True),  # a decade in ten iterations
        ([10.0 ** (-n / 100) for n in range(60)], False),  # 0.2 decades in the last 20 iterations
        ([10.0 ** (-n / 50) for n in range(60)], True),  # 0.4 decades
        ([1e-4] * 80, False),
        ([1e-6, *[1e-3, 1e-5] * 30], False),  # oscillates above its best
        ([1.0, 0.1, 0.01], True),  # short: half of it is the window
        ([1.0, 0.0, 0.0], False),
        ([float("nan")] * 40, False),
    ],
)
def test_an_scf_gains_as_long_as_its_best_accuracy_falls(accuracies: list[float], gaining: bool) -> None:
    assert is_gaining(accuracies) is gaining


# Hopeless


def test_an_scf_that_stands_still_is_hopeless_only_after_it_had_its_time() -> None:
    assert not is_hopeless([1e-2] * 49)
    assert is_hopeless([1e-2] * 50)


def test_an_scf_that_gains_or_has_come_near_is_not_hopeless() -> None:
    slow = [10 ** -(n / 50) for n in range(90)]  # 0.6 decades in 30 iterations
    assert not is_hopeless(slow)
    assert not is_hopeless([*[1e-2] * 30, 9e-6, *[1e-2] * 30])


def test_an_antiferromagnet_that_never_converges_is_stopped_with_iterations_to_spare() -> None:
    accuracies = recorded("fe4_fcc_afm", "local-TF")["accuracies"]
    assert any(is_hopeless(accuracies[:n]) for n in range(50, 60))


def test_no_recorded_run_that_converges_would_have_been_stopped_as_hopeless() -> None:
    """FeO with local-TF mixing stood at 5e-3 Ry for 20 iterations, and converged after 59."""
    assert ("feo_22", "local-TF") in {(run["case"], run["mixing_mode"]) for run in CONVERGED}
    for run in CONVERGED:
        assert not any(is_hopeless(run["accuracies"][:n]) for n in range(len(run["accuracies"]) + 1)), run["case"]


# Divergence


def test_no_recorded_run_that_converges_would_have_been_stopped_as_diverging() -> None:
    for run in CONVERGED:
        accuracies, electrons = run["accuracies"], run["n_electrons"]
        assert not any(is_diverging(accuracies[:n], electrons) for n in range(len(accuracies) + 1)), run["case"]


def test_a_slab_whose_charge_flies_apart_is_stopped_in_its_first_iterations() -> None:
    """Five Ni layers with plain mixing: 357 Ry in iteration 2, and never converged."""
    run = recorded("ni_slab5", "plain")
    assert not run["converged"]
    first = next(n for n in range(80) if is_diverging(run["accuracies"][:n], run["n_electrons"]))
    assert first <= 8


def test_one_jump_is_no_divergence() -> None:
    assert not is_diverging([0.1, 900.0, 20.0, 0.5, 0.1], 24)
    assert is_diverging([0.1, 900.0, 200.0, 500.0, 100.0], 24)
    assert not is_diverging([900.0] * 10, math.inf)  # nobody knows how many electrons there are
