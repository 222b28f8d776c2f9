"""What a calculation has cost, and how much of it led nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dftfactory.failures import Failure
from dftfactory.plain_values import read_count, read_mapping, read_number

CONVERGED = "CONVERGED"
# Ends of an attempt from which nothing is lost: the next one goes on from what it has saved.
_GOES_ON = (Failure.WALLTIME.value, Failure.SOFT_STOP.value, "STAGE_CONVERGED", "TIGHTENED")


@dataclass(frozen=True)
class Cost:
    """Seconds of computing, times the cores that were taken for them.

    Attributes
    ----------
    core_seconds
        Of all attempts.
    wasted_core_seconds
        Of those that led nowhere; a part of `core_seconds`.
    """

    core_seconds: float = 0.0
    wasted_core_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.core_seconds + other.core_seconds, self.wasted_core_seconds + other.wasted_core_seconds)

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, with the digits that they are worth: pw.x prints hundredths of a second."""
        return {
            "core_seconds": round(self.core_seconds, 2),
            "wasted_core_seconds": round(self.wasted_core_seconds, 2),
        }


NO_COST = Cost()


def cost_of(attempts: Sequence[Mapping[str, Any]]) -> Cost:
    """Return what the attempts of one calculation have cost, as its history has them; see `wasted_attempts`."""
    costs = [cost_of_attempt(attempt) for attempt in attempts]
    wasted = [cost for cost, is_wasted in zip(costs, wasted_attempts(attempts), strict=True) if is_wasted]
    return Cost(sum(costs), sum(wasted))


def wasted_attempts(attempts: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Say of each attempt whether it led nowhere.

    That is one which failed, and from which the next one did not go on: a SCF that is continued, a stage of the anneal
    and a run whose time was over are a part of the way, and are wasted when that leads nowhere. Without a label at the
    end, everything is. Each of several starts is a calculation of its own; a state that is not the lowest is no waste,
    since nobody knew that before.
    """
    starts: dict[str, list[int]] = {}
    for number, attempt in enumerate(attempts):
        starts.setdefault(str(attempt.get("start")), []).append(number)
    if not any(attempts[own[-1]].get("outcome") in (None, CONVERGED) for own in starts.values()):
        return [True] * len(attempts)
    wasted = [False] * len(attempts)
    for own in starts.values():
        for number, is_wasted in zip(own, _are_wasted([attempts[number] for number in own]), strict=True):
            wasted[number] = is_wasted
    return wasted


def cost_of_attempt(attempt: Mapping[str, Any]) -> float:
    """Return the core seconds of one attempt: the wall time of pw.x times its ranks."""
    return seconds_of(attempt) * cores_of(attempt)


def seconds_of(attempt: Mapping[str, Any]) -> float:
    """Return how long one attempt has taken; 0 where nothing tells.

    pw.x that was killed has not printed its wall time; what it has computed up to its last iteration is the least that
    it can have been.
    """
    for name in ("wall_time", "cpu_so_far"):
        seconds = read_number(attempt.get(name))
        if seconds is not None and seconds >= 0:
            return seconds
    return 0.0


def cores_of(attempt: Mapping[str, Any]) -> int:
    """Return the MPI ranks of one attempt, as pw.x printed them, or else as it was started."""
    started = read_mapping(attempt.get("parameters")).get("parallel_cores")
    return max(1, read_count(attempt.get("n_ranks")) or read_count(started) or 1)


def spent_in_vain(attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the record of a failure keeps of its attempts: their number, SCF iterations and cost, all wasted."""
    iterations = sum(read_count(attempt.get("iterations")) or 0 for attempt in attempts)
    spent = cost_of(attempts).core_seconds
    return {"runs": len(attempts), "iterations": iterations, **Cost(spent, spent).to_dict()}


def _are_wasted(attempts: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Say of the attempts of one start whether they led nowhere."""
    wasted: list[bool] = []
    following: Mapping[str, Any] | None = None
    is_wasted = False
    # From the end: whether an attempt was in vain depends on those that went on from it.
    for attempt in reversed(attempts):
        outcome = attempt.get("outcome")
        if outcome is None or outcome == CONVERGED:  # it still runs, or gave the label
            is_wasted = False
        elif following is None or not (outcome in _GOES_ON or _goes_on(following)):
            is_wasted = True
        wasted.append(is_wasted)
        following = attempt
    return wasted[::-1]


def _goes_on(attempt: Mapping[str, Any]) -> bool:
    """Whether an attempt began from what the one before it has saved."""
    parameters = read_mapping(attempt.get("parameters"))
    return parameters.get("startingpot") == "file" or parameters.get("restart_mode") == "restart"
