"""Which electronic state a label is in: an end that is not what the start meant, and the lowest of several starts.

Two ways to one structure can end in two self-consistent states with two energies (bcc Fe at 2.6, 2.0 and 0.0 μB), and
nothing in an output says that there is a lower one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dftfactory.errors import CalculationError
from dftfactory.moments import Start

if TYPE_CHECKING:
    from dftfactory.results import DFTResult, FloatArray

# eV per atom. Above the noise of the loosest conv_thr that is allowed, below what a potential can tell apart.
SAME_ENERGY = 1e-4
# Of the starting moments. Hund's rule begins far above a metal: Ni comes down from 2.0 to 0.7 μB and is what it should
# be. A tenth of the start is another state.
COLLAPSED = 0.1
# Of |total| / (sum of absolute values): 1 is ferromagnetic, 0 compensated. Ferromagnets end at 0.8 (Ni, with its
# opposite interstitial) to 1; one atom of four turned round is 0.5.
REVERSED = 0.4
# Failures that belong to the state. All others are the machine's or the input's, and would make "the lowest of the
# states that were asked for" a matter of luck.
FAILURES_OF_A_STATE = ("SCF_NOT_CONVERGED", "DIAGONALIZATION", "NAN", "OCCUPATIONS", "REJECTED")


def state_warning(result: DFTResult, moments: FloatArray | None) -> str | None:
    """Say why a label may be in another electronic state than the one that was meant; None where nothing tells.

    - It was reached above level 0: another way to the same number, and perhaps to another state.
    - The absolute magnetization is below a tenth of the sum of the starting moments: it has collapsed.
    - It started with parallel moments and has ended compensated, or the other way round: the ratio of total to absolute
      magnetization is more than 0.4 away from where it started.
    - One of several starts has failed, so that its state is not known.

    Coming down from the starting moments or growing beyond them is what a SCF is for, and no reason.

    Parameters
    ----------
    result
        The label; its `states` count.
    moments
        What it started from, in μB; None without spin.
    """
    reasons = [f"reached at level {result.level}"] if result.level > 0 else []
    total, absolute = result.total_magnetization, result.absolute_magnetization
    magnetization = ""
    if moments is not None and total is not None and absolute is not None:
        started, started_absolute = float(moments.sum()), float(np.abs(moments).sum())
        magnetization = f"total magnetization {total:.2f} μB, absolute {absolute:.2f} μB, started from {started:.2f} μB"
        magnetization += f" ({started_absolute:.2f} μB absolute), "
        if absolute < COLLAPSED * started_absolute:
            reasons.append("the magnetization has collapsed")
        else:
            before, after = abs(started) / started_absolute, abs(total) / absolute
            if before - after > REVERSED:
                reasons.append("started with parallel moments and ended compensated")
            elif after - before > REVERSED:
                reasons.append("started compensated and ended with parallel moments")
    if failed := [f"{state['start']} ({state['outcome']})" for state in result.states if state["energy"] is None]:
        reasons.append(f"no state from {', '.join(failed)}")
    if not reasons:
        return None
    return f"there may be a lower electronic state: {'; '.join(reasons)} ({magnetization}energy {result.energy:.4f} eV)"


def lowest(results: Sequence[DFTResult]) -> DFTResult:
    """Return the result of the lowest energy; of equal ones the first.

    A softened result has another degauss, with which its energy cannot be compared: it never wins over an exact one.
    """
    comparable = [result for result in results if result.quality == "exact"] or results
    limit = min(result.energy for result in comparable) + SAME_ENERGY * len(comparable[0].symbols)
    return next(result for result in comparable if result.energy <= limit)


class StartsRecord:
    """What became of the starts of one calculation, in plain values.

    Attributes
    ----------
    states
        One dict for each start that has ended, as in `DFTResult.states`.
    attempts
        The attempts of all starts, oldest first, each with its `start` and its `folder` below the run folder; the last
        one is that of a start that has begun and not ended.
    """

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.attempts: list[dict[str, Any]] = []
        self._results: dict[int, tuple[DFTResult, Start]] = {}
        self._last_error: CalculationError | None = None

    def begin(self, start: Start, parameters: Mapping[str, Any]) -> str:
        """Note that a start begins, and return the name of its folder."""
        self._start, self._folder = start, f"start_{len(self.states)}"
        self.attempts.append({"parameters": {**parameters, "level": 0}, "start": start.name, "folder": self._folder})
        return self._folder

    def end_well(self, result: DFTResult) -> None:
        """Note the state in which the start has ended."""
        self._results[len(self.states)] = (result, self._start)
        self._end(
            result.history,
            outcome="CONVERGED" if result.quality == "exact" else result.quality.upper(),
            energy=result.energy,
            total_magnetization=result.total_magnetization,
            absolute_magnetization=result.absolute_magnetization,
            level=result.level,
        )

    def fail(self, error: CalculationError) -> None:
        """Note why the start has given no state."""
        self._last_error = error
        self._end(
            error.details["history"],
            outcome=error.details["failure"] or "REJECTED",
            evidence=error.details["evidence"],
            explanation=error.details["explanation"],
            energy=None,
            total_magnetization=None,
            absolute_magnetization=None,
            level=error.details["level"],
        )

    @property
    def may_go_on(self) -> bool:
        """Whether what has happened leaves it to the other starts to give the label."""
        return all(s["energy"] is not None or s["outcome"] in FAILURES_OF_A_STATE for s in self.states)

    def label(self, run_dir: Path) -> DFTResult:
        """Return the label: the lowest state, with the record of all of them.

        Raises
        ------
        CalculationError
            Every start has failed.
        """
        if not self._results:
            raise self.error(run_dir) from self._last_error
        best = lowest([result for result, _ in self._results.values()])
        moments = next(start.moments for result, start in self._results.values() if result is best)
        label = best.with_record(states=tuple(self.states), history=tuple(self.attempts))
        return label.with_record(state_warning=state_warning(label, moments))

    def error(self, run_dir: Path) -> CalculationError:
        """Return the error of a calculation without a label: that of the last start, with the evidence of all."""
        assert self._last_error is not None  # noqa: S101  (asked for only after a failure)
        details = self._last_error.details
        failed = [state for state in self.states if state["energy"] is None]
        evidence = "; ".join(f"from {state['start']}: {state['outcome']}, {state['evidence']}" for state in failed)
        return CalculationError(
            f"{details['calculation_id']}: {failed[-1]['outcome']} at level {details['level']} after "
            f"{len(self.attempts)} runs: {evidence}; {details['explanation']}",
            **{**details, "evidence": evidence, "history": self.attempts, "run_dir": str(run_dir)},
            states=self.states,
        )

    def _end(self, history: Sequence[Mapping[str, Any]], **state: Any) -> None:
        self.attempts[-1:] = [
            {
                **attempt,
                "start": self._start.name,
                "folder": f"{self._folder}/{attempt['folder']}" if "folder" in attempt else self._folder,
            }
            for attempt in history
        ]
        iterations = sum(int(attempt.get("iterations") or 0) for attempt in history)
        self.states.append({"start": self._start.name, "folder": self._folder, **state, "iterations": iterations})
