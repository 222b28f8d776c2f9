"""One line for each Firework of ours: what became of it, what it gave, what it has cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from dftfactory.id_pages import id_pages
from dftfactory.launches import OURS, ours, reason_of
from dftfactory.monitor.launch_facts import FACTS, NUMBERS, cost_of_launches, details_of, exception_of, launches_of
from dftfactory.plain_values import plain, read_count, read_mapping, read_number, read_text, read_time
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# Fireworks in one page.
_PAGE = 1000
_NUMBERS_OF_FIREWORK = dict.fromkeys(("fw_id", "state", "launches", "archived_launches", "spec.fingerprint"), 1)
_FIREWORK = {
    **_NUMBERS_OF_FIREWORK,
    **dict.fromkeys(("created_on", "updated_on"), 1),
    **{f"spec.{name}": 1 for name in ("calculation_id", "formula", "campaigns", "resources.class")},
}


@dataclass(frozen=True)
class Record:
    """One Firework of ours, with what its last launch knows; None where that is nothing.

    Attributes
    ----------
    fw_id, calculation_id, formula, fingerprint, campaigns
        As they were submitted.
    state
        Of FireWorks: READY, WAITING, RESERVED, RUNNING, COMPLETED, FIZZLED, PAUSED, DEFUSED, ARCHIVED.
    level, quality
        Of the label, or the level at which recovery gave up; `quality` is "exact" or "softened".
    failure, reason, explanation
        Of a FIZZLED one: its name as `launches.count_failures` has it, what happened in one line, and what it means.
    iterations, runs
        SCF iterations, and runs of pw.x, of the calculation.
    energy, max_force, total_magnetization
        eV, eV/Å, μB per cell.
    core_seconds, wasted_core_seconds
        What all launches of this Firework have cost; 0 where it took the label of another one.
    created, started, ended, updated
        When it was submitted, when its last launch began and ended, when its state last changed.
    host, launch_dir
        Where its last launch ran.
    linked_to
        The Firework that computed the same label at the same time.
    reused
        Whether the label was there already.
    job_class
        Class of cluster.yaml, of the next job or of the last one.
    jobs
        Launches that it has had.
    state_warning
        Why the label may be in another electronic state than the lowest one.
    """

    fw_id: int
    calculation_id: str
    formula: str
    fingerprint: str
    campaigns: tuple[str, ...]
    state: str
    level: int | None = None
    quality: str | None = None
    failure: str | None = None
    reason: str | None = None
    explanation: str | None = None
    iterations: int | None = None
    runs: int | None = None
    energy: float | None = None
    max_force: float | None = None
    total_magnetization: float | None = None
    core_seconds: float | None = None
    wasted_core_seconds: float | None = None
    created: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    updated: datetime | None = None
    host: str | None = None
    launch_dir: str | None = None
    linked_to: int | None = None
    reused: bool = False
    job_class: str | None = None
    jobs: int = 0
    state_warning: str | None = None

    @property
    def is_softened(self) -> bool:
        """Whether all that there is is a label at more than the prescribed degauss."""
        return self.quality == "softened"

    @property
    def has_label(self) -> bool:
        """Whether there is a label, exact or softened."""
        return self.state == "COMPLETED" or (self.state == "FIZZLED" and self.is_softened)

    @property
    def is_computed(self) -> bool:
        """Whether its own last launch has computed an exact label."""
        return self.state == "COMPLETED" and not self.reused and self.linked_to is None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = plain(self)
        return values


def read_records(
    launchpad: LaunchPad, campaign: str | None = None, *, fw_ids: Iterable[int] | None = None
) -> Iterator[Record]:
    """Yield the records of our Fireworks, of one campaign, or of these ids, in no order; a page of them is in memory.

    Raises
    ------
    LaunchPadError
        The database does not answer or refuses.
    """
    yield from _read(launchpad, _queries(campaign, fw_ids), _FIREWORK, FACTS)


def read_numbers(launchpad: LaunchPad, campaign: str | None = None) -> Iterator[Record]:
    """Yield the records with what is counted only: state, level, quality, failure, cost and when it ended."""
    yield from _read(launchpad, _queries(campaign, None), _NUMBERS_OF_FIREWORK, NUMBERS)


def read_changed(launchpad: LaunchPad, since: datetime) -> Iterator[Record]:
    """Yield the records of the Fireworks that FireWorks has changed since then."""
    text, moment = since.isoformat(), since
    # FireWorks stores text, or a date after pause_fw, defuse_fw, archive_wf and others: each is compared with its kind.
    queries = [{"updated_on": {"$gte": value}, **OURS} for value in (text, moment)]
    yield from _read(launchpad, queries, _FIREWORK, FACTS)


def _queries(campaign: str | None, fw_ids: Iterable[int] | None) -> list[dict[str, Any]]:
    if fw_ids is None:
        return [ours(campaign)]
    ids = sorted(set(fw_ids))
    limits = OURS if campaign is None else {**OURS, **ours(campaign)}
    return [{"fw_id": {"$in": page}, **limits} for page in id_pages(ids)]


def _read(
    launchpad: LaunchPad,
    queries: Iterable[dict[str, Any]],
    keys: Mapping[str, int],
    launch_keys: Mapping[str, int],
) -> Iterator[Record]:
    with launchpad_errors():
        for query in queries:
            found = launchpad.fireworks.find(query, keys, batch_size=1000)
            mine = (entry for entry in found if read_mapping(entry.get("spec")).get("fingerprint"))
            while page := list(islice(mine, _PAGE)):
                yield from _join(launchpad, page, launch_keys)


def _join(launchpad: LaunchPad, page: list[dict[str, Any]], keys: Mapping[str, int]) -> Iterator[Record]:
    launches: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    launched = [entry["fw_id"] for entry in page if entry.get("launches") or entry.get("archived_launches")]
    for launch in launches_of(launchpad, launched, keys):
        launches[launch["fw_id"]].append(launch)
    for entry in page:
        yield _record(entry, launches.get(entry["fw_id"], []))


def _record(firework: Mapping[str, Any], launches: list[dict[str, Any]]) -> Record:
    """Put a Firework and its launches together; whatever is damaged counts as not known."""
    fw_id, state = int(firework["fw_id"]), read_text(firework.get("state")) or ""
    spec = read_mapping(firework.get("spec"))
    own, archived = _ids(firework.get("launches")), _ids(firework.get("archived_launches"))
    last_id = max(own, default=None)
    last: Mapping[str, Any] = next((launch for launch in launches if launch["launch_id"] == last_id), {})
    said, cost = details_of(last), cost_of_launches(launches)
    why = reason_of(fw_id, state, exception_of(last)) if state == "FIZZLED" else {}
    campaigns = spec.get("campaigns")
    return Record(
        fw_id=fw_id,
        calculation_id=read_text(spec.get("calculation_id")) or "",
        formula=read_text(spec.get("formula")) or "",
        fingerprint=read_text(spec.get("fingerprint")) or "",
        campaigns=tuple(str(name) for name in campaigns) if isinstance(campaigns, list) else (),
        state=state,
        level=read_count(said.get("level")),
        quality=read_text(said.get("quality")),
        failure=why.get("failure"),
        reason=why.get("reason"),
        explanation=read_text(why.get("explanation")),
        iterations=read_count(said.get("iterations")),
        runs=read_count(said.get("runs")),
        energy=read_number(said.get("energy")),
        max_force=read_number(said.get("max_force")),
        total_magnetization=read_number(said.get("total_magnetization")),
        core_seconds=None if cost is None else cost.core_seconds,
        wasted_core_seconds=None if cost is None else cost.wasted_core_seconds,
        created=read_time(firework.get("created_on")),
        started=read_time(last.get("time_start")),
        ended=read_time(last.get("time_end")),
        updated=read_time(firework.get("updated_on")),
        host=read_text(last.get("host")),
        launch_dir=read_text(last.get("launch_dir")),
        linked_to=read_count(said.get("linked_to")),
        reused=bool(said.get("reused")),
        job_class=read_text(read_mapping(spec.get("resources")).get("class")),
        jobs=len(own | archived),
        state_warning=read_text(said.get("state_warning")),
    )


def _ids(value: Any) -> set[int]:
    entries = value if isinstance(value, list) else []
    return {entry for entry in entries if isinstance(entry, int)}
