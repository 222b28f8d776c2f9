"""How far, how fast, and what it costs."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from every_state import FIRST, SECOND, plant_every_state

from dftfactory.monitor.progress import labels_per_hour, progress_of, read_progress
from dftfactory.monitor.records import Record, read_records
from dftfactory.monitor.running import read_running

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=timezone.utc)


def record(fw_id: int, state: str, **facts: Any) -> Record:
    return Record(fw_id, f"c{fw_id}", "Si2", f"dft{fw_id}", (), state, **facts)


def label(fw_id: int, minutes_ago: float, **facts: Any) -> Record:
    ended = NOW - timedelta(minutes=minutes_ago)
    known = {"level": 0, "quality": "exact", "core_seconds": 3600.0, "wasted_core_seconds": 0.0, "ended": ended}
    return record(fw_id, "COMPLETED", **(known | facts))


def test_nothing_is_no_progress_and_nothing_to_wait_for() -> None:
    progress = progress_of([])
    assert (progress.total, progress.labels_per_hour, progress.seconds_to_go) == (0, None, 0.0)
    assert (progress.core_hours, progress.states, progress.levels, progress.failures) == (0.0, {}, {}, {})


def test_pace_is_that_of_the_last_hour() -> None:
    """Eleven labels in 50 minutes are 12 an hour, whatever was before; 24 that wait take two hours."""
    recent = [label(n, 5 * n) for n in range(11)]
    old = [label(100 + n, 600 + n) for n in range(50)]
    waiting = [record(200 + n, state) for n, state in enumerate(("READY", "RUNNING", "RESERVED", "WAITING") * 6)]
    progress = progress_of([*recent, *old, *waiting, record(300, "PAUSED"), record(301, "FIZZLED")], now=NOW)
    assert progress.labels_per_hour == pytest.approx(12.0)
    assert progress.seconds_to_go == pytest.approx(2 * 3600)
    assert progress.core_hours == 61.0
    assert progress.failures == {"UNKNOWN": 1}


@pytest.mark.parametrize(
    ("hours_ago", "pace"),
    [
        ([], None),
        ([0.5], None),
        ([2, 4, 6], 2 / 6),  # large structures
        ([30, 40], None),  # says nothing of today
        ([-0.5, 0.5], 2.0),  # the clock of a node that is ahead
        ([0.0, 0.0], 3600.0),
    ],
)
def test_pace_of_few_labels(hours_ago: list[float], pace: float | None) -> None:
    ended = [NOW - timedelta(hours=hours) for hours in hours_ago]
    assert labels_per_hour(ended, NOW) == (None if pace is None else pytest.approx(pace))


def test_pace_falls_while_nothing_comes() -> None:
    ended = [NOW - timedelta(minutes=minutes) for minutes in range(30, 41)]
    assert labels_per_hour(ended, NOW) == pytest.approx(10 / (40 / 60))


def test_labels_of_others_are_neither_pace_nor_labels() -> None:
    mine = label(1, 10)
    same = {"fingerprint": mine.fingerprint, "core_seconds": 0.0}
    others = [Record(**{**vars(label(2, 9)), **same, "reused": True}), record(3, "COMPLETED", linked_to=1)]
    progress = progress_of([mine, *others], now=NOW)
    assert progress.levels == {(0, "exact"): 1}
    assert progress.labels_per_hour is None
    assert progress.states == {"COMPLETED": 3}


@pytest.mark.mongodb
def test_empty_launchpad(launchpad: Any) -> None:
    assert read_progress(launchpad).to_dict() == progress_of([]).to_dict()


@pytest.mark.mongodb
def test_terminal_and_pages_count_the_same(launchpad: Any, tmp_path: Path) -> None:
    """`status` asks for a few numbers of each Firework, the pages have whole records."""
    plant_every_state(launchpad, tmp_path)
    progress = {}
    for campaign in (None, FIRST, SECOND, "of nobody"):
        read = read_progress(launchpad, campaign).to_dict()
        made = progress_of(read_records(launchpad, campaign), read_running(launchpad, campaign)).to_dict()
        for own in (read, made):  # a moment lies between them
            own.pop("labels_per_hour")
            own.pop("seconds_to_go")
        assert read == made, campaign
        json.dumps(read, allow_nan=False)
        assert sum(read["states"].values()) == read["total"]
        progress[campaign] = read

    everything = progress[None]
    levels = {(each["level"], each["quality"]) for each in everything["levels"]}
    assert levels == {*((level, "exact") for level in range(4)), (3, "softened")}
    assert 0 < everything["wasted_core_hours"] < everything["core_hours"]
    assert [each["calculation_id"] for each in everything["running"]] == ["running-elsewhere", "running"]
    # One Firework belongs to both.
    assert [progress[campaign]["total"] for campaign in (None, FIRST, SECOND, "of nobody")] == [27, 15, 13, 0]
