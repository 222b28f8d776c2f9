"""The Fireworks that are FIZZLED: why, what is to be done about it, and the command that does it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from dftfactory.cluster import ClusterConfig, walltime_text
from dftfactory.errors import ConfigError
from dftfactory.failures import EXPLANATIONS, Failure
from dftfactory.launches import FireworkState, find_reasons, ours
from dftfactory.retry_resources import Wish, changed_resources
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# Fireworks that are in memory at once.
_PAGE = 1000
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
# What lies outside of the calculation: when that is put right, the same once more makes sense. For all others recovery
# has tried what it knows (an SCF that still gained was continued, one that stood still would do so for longer), or
# another label is wanted: what may help then, only a look at them can tell.
_ONCE_MORE = {
    *(Failure.ENVIRONMENT.value, Failure.PARALLELIZATION.value, Failure.DISK_FULL.value, Failure.SOFT_STOP.value),
    *(Failure.BAD_RESTART.value, Failure.HANG.value, Failure.KILLED.value, Failure.INCOMPLETE_OUTPUT.value),
    *("UNKNOWN", "ConfigError", "PseudopotentialError", "ParserError", "ClaimedError"),
    *("LaunchPadError", "LaunchPadAwayError"),
}
# What a job may have had too little of: its name in the resources, and how `retry` is asked for more.
_LACKS: dict[str, tuple[str, str, Callable[[int], str], Callable[[int], Wish]]] = {
    Failure.OUT_OF_MEMORY.value: ("memory_mb", "--memory", "{}M".format, lambda mb: Wish(memory_mb=mb)),
    Failure.WALLTIME.value: ("walltime_seconds", "--walltime", walltime_text, lambda s: Wish(walltime_seconds=s)),
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
    """The Fireworks that failed for one reason.

    `retry` has the words of the command that runs them again, and none where nobody can say that it would help.
    """

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
            "retry": shlex.join(self.retry) or None,
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
    """Read why Fireworks are FIZZLED, of all campaigns or of one."""
    keys = {"_id": 0, "fw_id": 1, "state": 1, "spec.calculation_id": 1, "spec.resources": 1}
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


def group_failures(
    failed: Iterable[Failed], options: Sequence[str] = (), cluster: ClusterConfig | None = None
) -> list[FailureGroup]:
    """Return the failures by their names, the most frequent first.

    Parameters
    ----------
    failed
        From `read_failed`.
    options
        More words for the commands, such as `--campaign NAME`.
    cluster
        The classes of jobs of today; those that a Firework has heard of where absent.
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
            retry=_retry(failure, members, options, cluster),
        )
        for failure, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _retry(
    failure: str, members: Sequence[Failed], options: Sequence[str], cluster: ClusterConfig | None
) -> tuple[str, ...]:
    """Return the words of a `retry` that makes sense when what the explanation says is done."""
    command = ("dftfactory", "retry", "--reason", failure)
    asked = [each.resources for each in members]
    if failure in _ONCE_MORE or (failure in _LACKS and not any(asked)):
        return (*command, *options)
    if failure not in _LACKS:
        return ()
    name, option, text, wish_for = _LACKS[failure]
    try:
        twice = 2 * max(each[name] for each in asked)
        for each in asked:
            changed_resources(each, wish_for(twice), cluster)
    except (ConfigError, LookupError, TypeError):
        return ()  # no class of jobs has as much
    return (*command, option, text(twice), *options)
