"""How far the factory is, how fast, what fails and what it has cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from dftfactory.monitor.records import Record, read_numbers
from dftfactory.monitor.running import Running, read_running
from dftfactory.plain_values import plain
from dftfactory.store import LabelStore

if TYPE_CHECKING:
    from fireworks import LaunchPad

# States of what will still be computed; what is PAUSED or DEFUSED waits for somebody.
TO_COME = ("WAITING", "READY", "RESERVED", "RUNNING")
# What the pace is measured over: an hour, or so many labels; after a day it says nothing of today.
RECENT, FEWEST, LONG_AGO = timedelta(hours=1), 10, timedelta(days=1)


@dataclass(frozen=True)
class Progress:
    """Numbers of our Fireworks, or of those of one campaign.

    Attributes
    ----------
    total
        Of all of them.
    states
        State of FireWorks → number; those that have none are left out.
    levels
        (level, quality) → number of labels.
    failures
        Failure → number of FIZZLED ones, the most frequent first.
    labels_per_hour
        Labels computed in the recent past; None where nothing was.
    seconds_to_go
        At this pace, for all that waits or runs; None where the pace is not known, 0 where nothing does.
    core_hours, wasted_core_hours
        Of all launches that have ended.
    running
        What runs now.
    """

    total: int = 0
    states: dict[str, int] = field(default_factory=dict)
    levels: dict[tuple[int, str], int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    labels_per_hour: float | None = None
    seconds_to_go: float | None = None
    core_hours: float = 0.0
    wasted_core_hours: float = 0.0
    running: list[Running] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a level is an entry of a list, because JSON has text as keys only."""
        levels = [
            {"level": level, "quality": quality, "number": number} for (level, quality), number in self.levels.items()
        ]
        return {**plain(self), "levels": levels, "running": [each.to_dict() for each in self.running]}


def read_progress(launchpad: LaunchPad, campaign: str | None = None) -> Progress:
    """Return the progress of all our Fireworks, or of those of one campaign.

    `levels` are those of all labels in the store, also of Fireworks that were archived.

    Raises
    ------
    LaunchPadError
        The database does not answer or refuses.
    """
    found = progress_of(read_numbers(launchpad, campaign), read_running(launchpad, campaign))
    return replace(found, levels=dict(sorted(LabelStore(launchpad).count(campaign).items())))


def progress_of(records: Iterable[Record], running: Sequence[Running] = (), now: datetime | None = None) -> Progress:
    """Return the progress of these records; `levels` are those of their labels, each label once.

    The pace is that of the labels of the last hour, or of the last ten where that is longer ago; with fewer than two
    there is none. `now` is the present time where absent.
    """
    now = now or datetime.now(timezone.utc)
    states: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    levels: dict[str, tuple[int, str]] = {}
    ended: list[datetime] = []
    spent = wasted = 0.0
    for record in records:
        states[record.state] += 1
        spent += record.core_seconds or 0.0
        wasted += record.wasted_core_seconds or 0.0
        if record.state == "FIZZLED":
            failures[record.failure or "UNKNOWN"] += 1
        if record.has_label and record.level is not None and record.quality is not None:
            levels.setdefault(record.fingerprint, (record.level, record.quality))
        if record.is_computed and record.ended is not None:
            ended.append(record.ended)
    pace = labels_per_hour(ended, now)
    left = sum(number for state, number in states.items() if state in TO_COME)
    to_go = 0.0 if left == 0 else None
    if pace and left:
        to_go = left / pace * 3600
    return Progress(
        total=states.total(),
        states=dict(sorted(states.items())),
        levels=dict(sorted(Counter(levels.values()).items())),
        failures=dict(failures.most_common()),
        labels_per_hour=pace,
        seconds_to_go=to_go,
        core_hours=spent / 3600,
        wasted_core_hours=wasted / 3600,
        running=list(running),
    )


def labels_per_hour(ended: Iterable[datetime], now: datetime) -> float | None:
    """Return the pace of the recent past, from the times when labels were there; None where there is none.

    The clocks of nodes differ: what ended in the future has ended now.
    """
    times = sorted(min(time, now) for time in ended)
    recent = [time for time in times if time > now - RECENT]
    if len(recent) < FEWEST:
        # Large structures may take an hour each.
        recent = [time for time in times if time > now - LONG_AGO][-FEWEST:]
    if len(recent) < 2:
        return None
    # Up to now: where nothing has come for long, the pace falls.
    hours = max((now - recent[0]).total_seconds(), 1.0) / 3600
    return (len(recent) - 1) / hours
