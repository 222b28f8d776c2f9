"""The attempts of one calculation, each against the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dftfactory.cost import Cost, cores_of, cost_of_attempt, seconds_of, wasted_attempts
from dftfactory.plain_values import plain, read_count, read_mapping, read_number, read_text

# Parameters that recovery keeps for itself; see `rungs`.
_MEMORY_OF_THE_CLIMB = {
    "level",
    "climbed",
    "stage",
    "continued",
    "cooled",
    "softening",
    "softened",
    "tried",
    "kept",
    "used",
}


@dataclass(frozen=True)
class Attempt:
    """One run of pw.x.

    Attributes
    ----------
    number
        From 1, over all starts.
    start
        Name of the start, where there were several.
    level, stage
        Of the ladder, and of its anneal (0 is the hottest).
    folder
        Below the run folder, as text; "." is the run folder itself.
    parameters
        All of them, in QE's spelling and units, beside those of the machine.
    changes
        Parameter → [before, now], against the attempt before it; None stands for pw.x's own default.
    outcome
        CONVERGED, STAGE_CONVERGED, TIGHTENED, or the failure; None while it runs.
    evidence, explanation
        What was seen, and what it means.
    iterations, scf_accuracy
        SCF iterations, and the estimated accuracy after each of them (Ry); empty where nobody has kept it.
    conv_thr
        Ry, for the whole cell.
    seconds, cores, cost
        Wall time of pw.x, its MPI ranks, and their product, with the part of it that was wasted.
    """

    number: int
    start: str | None = None
    level: int | None = None
    stage: int | None = None
    folder: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, list[Any]] = field(default_factory=dict)
    outcome: str | None = None
    evidence: str | None = None
    explanation: str | None = None
    iterations: int | None = None
    scf_accuracy: list[float] = field(default_factory=list)
    conv_thr: float | None = None
    seconds: float | None = None
    cores: int | None = None
    cost: Cost = field(default_factory=Cost)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = plain(self)
        return values


def attempts_of(history: Sequence[Mapping[str, Any]]) -> list[Attempt]:
    """Return the attempts of a history, each against the one before it."""
    attempts: list[Attempt] = []
    wasted = wasted_attempts(history)
    before: dict[Any, Mapping[str, Any]] = {}
    for number, (entry, is_wasted) in enumerate(zip(history, wasted, strict=True), start=1):
        parameters = read_mapping(entry.get("parameters"))
        start = read_text(entry.get("start"))
        spent = cost_of_attempt(entry)
        series = entry.get("scf_accuracy")
        numbers = [read_number(value) for value in series] if isinstance(series, (list, tuple)) else []
        attempts.append(
            Attempt(
                number=number,
                start=start,
                level=read_count(parameters.get("level")),
                stage=read_count(parameters.get("stage")),
                folder=read_text(entry.get("folder")) or ".",
                parameters=dict(parameters),
                changes=_changes(before[start], parameters) if start in before else {},
                outcome=read_text(entry.get("outcome")),
                evidence=read_text(entry.get("evidence")),
                explanation=read_text(entry.get("explanation")),
                iterations=read_count(entry.get("iterations")),
                scf_accuracy=[value for value in numbers if value is not None],
                conv_thr=read_number(parameters.get("conv_thr")),
                seconds=seconds_of(entry) or None,
                cores=cores_of(entry),
                cost=Cost(spent, spent if is_wasted else 0.0),
            )
        )
        before[start] = parameters
    return attempts


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = sorted((before.keys() | now.keys()) - _MEMORY_OF_THE_CLIMB)
    return {name: [before.get(name), now.get(name)] for name in names if before.get(name) != now.get(name)}
