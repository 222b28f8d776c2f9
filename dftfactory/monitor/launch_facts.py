"""What the launches of a Firework know: read for what they are worth, and what they have cost together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dftfactory.cost import NO_COST, Cost
from dftfactory.id_pages import id_pages
from dftfactory.plain_values import read_mapping, read_number

if TYPE_CHECKING:
    from fireworks import LaunchPad

# What `firetasks.summary_of` and the details of a failure have.
_COST = ("core_seconds", "wasted_core_seconds", "run_dir", "level", "quality")
_LABEL = ("energy", "max_force", "total_magnetization", "state_warning", "iterations", "runs")
_FAILURE = ("failure", "error")
_WORDS = ("message", "evidence", "explanation")
STORED = "action.stored_data"
DETAILS = f"{STORED}._exception._details"


def _keys(*names: str) -> dict[str, int]:
    return {"_id": 0, "launch_id": 1, "fw_id": 1, **dict.fromkeys(names, 1)}


# What numbers need, and what a record needs; never the history of a failure, which may have megabytes.
NUMBERS = _keys(
    "time_end",
    *(f"{STORED}.{name}" for name in (*_COST, "reused", "linked_to")),
    *(f"{DETAILS}.{name}" for name in (*_COST, *_FAILURE)),
    f"{STORED}._exception._stacktrace",
)
FACTS = {
    **NUMBERS,
    **_keys("host", "launch_dir", "time_start"),
    **dict.fromkeys((f"{STORED}.{name}" for name in _LABEL), 1),
    **dict.fromkeys((f"{DETAILS}.{name}" for name in (*_LABEL, *_WORDS)), 1),
}


def launches_of(launchpad: LaunchPad, fw_ids: Iterable[int], keys: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield the launches of Fireworks, archived ones too, in no order."""
    for page in id_pages(sorted(set(fw_ids))):
        yield from launchpad.launches.find({"fw_id": {"$in": page}}, keys, batch_size=1000)


def stored_data(launch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what FireWorks kept of the end of a launch; empty where it has none, or has put it elsewhere."""
    return read_mapping(read_mapping(launch.get("action")).get("stored_data"))


def exception_of(launch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what FireWorks kept of an exception; empty where there was none, or nothing that we could have written."""
    exception = read_mapping(stored_data(launch).get("_exception"))
    return {**exception, "_details": dict(read_mapping(exception.get("_details")))} if exception else {}


def details_of(launch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is said of a label, or of a failure."""
    return {**stored_data(launch), **read_mapping(exception_of(launch).get("_details"))}


def cost_of_launches(launches: Sequence[Mapping[str, Any]]) -> Cost | None:
    """Return what all launches of one Firework have cost, as far as they know it; None where none does.

    A launch that went on in the run folder of an earlier one has all attempts of both in its history: the last one in a
    folder counts. What took the label of somebody else has cost nothing.
    """
    costs: dict[Any, Cost] = {}
    for launch in sorted(launches, key=lambda launch: read_number(launch.get("launch_id")) or 0):
        said = details_of(launch)
        if said.get("reused") or "linked_to" in said:
            costs[launch.get("launch_id")] = NO_COST
        elif (spent := read_number(said.get("core_seconds"))) is not None:
            folder = said.get("run_dir")
            key = folder if isinstance(folder, str) else launch.get("launch_id")
            costs[key] = Cost(spent, read_number(said.get("wasted_core_seconds")) or 0.0)
    return sum(costs.values(), NO_COST) if costs else None
