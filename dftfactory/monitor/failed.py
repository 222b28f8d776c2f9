"""The Fireworks that are FIZZLED: why, what is to be done about it, and the command that does it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from dftfactory.cluster import walltime_text
from dftfactory.failures import EXPLANATIONS, Failure
from dftfactory.launches import FireworkState, find_reasons, ours
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# Fireworks in one query of their reasons.
_PAGE = 5000
# calculation_ids of a group that are told.
EXAMPLES = 5
# Failures that are none of pw.x, by the name of their error: what happened and what to do.
_OTHERS = {
    "REJECTED": "pw.x ended well and its result is refused; `dftfactory show` has the reason",
    "UNKNOWN": "the rocket ended without a word; look at the queue's log, and `dftfactory check` on a node",
    "ConfigError": "the settings do not serve; correct what the reason names, with `dftfactory check`",
    "PseudopotentialError": "a pseudopotential is not the one of the data set on that machine; copy the right file",
    "StructureError": "the structure cannot be right; correct or remove it",
    "ParserError": "a file of an earlier run is damaged; remove the one that the reason names, then retry",
    "ClaimedError": "an earlier launch still computes it; wait for its end, or `dftfactory reconcile`",
    "LaunchPadError": "the database refused; `dftfactory recover` stores labels that are on the disk",
    "LaunchPadAwayError": "the database was away; `dftfactory recover` stores labels that are on the disk",
}
# What `retry` may change against a failure; those of the resources depend on what was asked for.
_CURES = {
    Failure.SCF_NOT_CONVERGED.value: ("--set", "electron_maxstep=200"),
    Failure.SYMMETRY.value: ("--set", "pw.system.nosym=true"),
}


@dataclass(frozen=True)
class Failed:
    """One Firework that is FIZZLED.

    Attributes
    ----------
    failure
        Its name, as `count_failures` has it.
    reason, explanation
        In one line each; what was seen, and what it means.
    resources
        What it asked the queue for; empty without a cluster.yaml.
    """

    fw_id: int
    calculation_id: str
    failure: str
    reason: str
    explanation: str
    resources: Mapping[str, Any]


@dataclass(frozen=True)
class FailureGroup:
    """The Fireworks that failed for one reason; `retry` has the words of the command that runs them again."""

    failure: str
    number: int
    calculation_ids: tuple[str, ...]
    reason: str
    explanation: str
    retry: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `calculation_ids` are the first of them."""
        return {
            "failure": self.failure,
            "number": self.number,
            "calculation_ids": list(self.calculation_ids),
            "example": self.reason,
            "explanation": self.explanation,
            "retry": shlex.join(self.retry),
        }


def explanation_of(failure: str) -> str:
    """Return one sentence for a person: what happened and what to do; empty for a failure without one."""
    return (
        _OTHERS[failure]
        if failure in _OTHERS
        else {each.value: EXPLANATIONS[each] for each in Failure}.get(failure, "")
    )


@launchpad_errors()
def read_failed(launchpad: LaunchPad, campaign: str | None = None) -> Iterator[Failed]:
    """Read why Fireworks are FIZZLED, of all campaigns or of one; three queries for up to 5,000."""
    keys = {"_id": 0, "fw_id": 1, "state": 1, "spec.calculation_id": 1}
    keys |= {f"spec.resources.{key}": 1 for key in ("memory_mb", "walltime_seconds")}
    found = iter(launchpad.fireworks.find({"state": "FIZZLED", **ours(campaign)}, keys))
    while page := list(islice(found, _PAGE)):
        reasons = find_reasons(launchpad, [FireworkState(entry["fw_id"], entry["state"]) for entry in page])
        for entry in page:
            told = reasons[entry["fw_id"]]
            yield Failed(
                fw_id=entry["fw_id"],
                calculation_id=str(entry["spec"].get("calculation_id", "")),
                failure=str(told["failure"]),
                # The reason has the explanation in it, too.
                reason=str(told.get("evidence") or told["reason"]),
                explanation=str(told.get("explanation") or explanation_of(str(told["failure"]))),
                resources=entry["spec"].get("resources") or {},
            )


def group_failures(failed: Iterable[Failed], options: Sequence[str] = ()) -> list[FailureGroup]:
    """Return the failures by their names, the most frequent first.

    Parameters
    ----------
    failed
        From `read_failed`.
    options
        More words for the commands, such as `--campaign NAME`.
    """
    groups: dict[str, list[Failed]] = {}
    for each in failed:
        groups.setdefault(each.failure, []).append(each)
    return [
        FailureGroup(
            failure=failure,
            number=len(members),
            calculation_ids=tuple(each.calculation_id for each in members[:EXAMPLES]),
            reason=members[0].reason,
            explanation=explanation_of(failure) or members[0].explanation,
            retry=("dftfactory", "retry", "--reason", failure, *_cure(failure, members), *options),
        )
        for failure, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _cure(failure: str, members: Sequence[Failed]) -> tuple[str, ...]:
    """Return options of `retry` that may help: twice of what was too little."""
    asked = [each.resources for each in members if each.resources]
    if asked and failure == Failure.OUT_OF_MEMORY.value:
        return ("--memory", f"{2 * max(each['memory_mb'] for each in asked)}M")
    if asked and failure == Failure.WALLTIME.value:
        return ("--walltime", walltime_text(2 * max(each["walltime_seconds"] for each in asked)))
    return _CURES.get(failure, ())
