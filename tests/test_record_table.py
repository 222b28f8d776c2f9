"""Records that a server keeps, and brings up to date by asking for what has changed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from every_state import Garden, plant_every_state, silicon

from dftfactory.monitor import record_table
from dftfactory.monitor.record_table import RecordTable
from dftfactory.monitor.records import read_records

pytestmark = pytest.mark.mongodb


@pytest.fixture
def garden(launchpad: Any, tmp_path: Path) -> Garden:
    return Garden(launchpad, tmp_path)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the table has asked for: all records, or those that have changed."""
    asked: list[str] = []
    for name in ("read_records", "read_changed"):
        real = getattr(record_table, name)
        monkeypatch.setattr(record_table, name, lambda *args, real=real, name=name: asked.append(name) or real(*args))
    return asked


def states(table: RecordTable) -> dict[int, str]:
    return {record.fw_id: record.state for record in table.records()}


def after_reading_all(table: RecordTable) -> None:
    """Look, and wait for the thread that this has started."""
    table.records()
    table._reader.join(60)


def test_table_is_what_the_records_are(launchpad: Any, tmp_path: Path) -> None:
    ids = plant_every_state(launchpad, tmp_path)
    table = RecordTable(launchpad, seconds=0)
    assert table.records() == sorted(read_records(launchpad), key=lambda record: record.fw_id)
    assert [record.fw_id for record in table.records("oxides")] == sorted(
        record.fw_id for record in read_records(launchpad, "oxides")
    )
    record = table.get(ids["level 0"])
    assert record is not None
    assert record.calculation_id == "level-0"
    assert table.get(999) is None


def test_empty_launchpad_gets_its_first_firework(launchpad: Any, garden: Garden) -> None:
    table = RecordTable(launchpad, seconds=0)
    assert table.records() == []
    garden.add("a", silicon(1))
    assert states(table) == {1: "READY"}


def test_every_change_of_fireworks_is_noticed(launchpad: Any, garden: Garden, loads: list[str]) -> None:
    """`updated_on` is text after a launch, and a date after `pause_fw` and `defuse_fw`."""
    from fireworks import FWAction

    for n in range(3):
        garden.add(f"structure {n}", silicon(n))
    table = RecordTable(launchpad, seconds=0)
    assert states(table) == {1: "READY", 2: "READY", 3: "READY"}
    launch_id = garden.launch(1)
    launchpad.pause_fw(2)
    launchpad.defuse_fw(3)
    assert states(table) == {1: "RUNNING", 2: "PAUSED", 3: "DEFUSED"}
    launchpad.complete_launch(launch_id, FWAction(stored_data={"level": 2, "quality": "exact"}), "COMPLETED")
    launchpad.resume_fw(2)
    garden.add("one more", silicon(9))
    assert states(table) == {1: "COMPLETED", 2: "READY", 3: "DEFUSED", 4: "READY"}
    record = table.get(1)
    assert record is not None
    assert record.level == 2
    assert loads[0] == "read_records"
    assert set(loads[1:]) == {"read_changed"}


def test_clock_that_is_ahead_hides_nobody(launchpad: Any, garden: Garden) -> None:
    ahead = datetime.now(timezone.utc).replace(year=2099)
    for n in range(2):
        garden.add(f"structure {n}", silicon(n))
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"updated_on": ahead.isoformat()}})
    table = RecordTable(launchpad, seconds=0)
    table.records()
    garden.launch(2)
    assert states(table) == {1: "READY", 2: "RUNNING"}


def test_deleted_fireworks_go(launchpad: Any, garden: Garden) -> None:
    """As `archive` deletes them."""
    for n in range(3):
        garden.add(f"structure {n}", silicon(n))
    table = RecordTable(launchpad, seconds=0)
    assert len(table.records()) == 3
    launchpad.delete_wf(2)
    after_reading_all(table)
    assert states(table) == {1: "READY", 3: "READY"}


def test_fireworks_with_times_of_long_ago_come_too(launchpad: Any, garden: Garden) -> None:
    garden.add("a", silicon(1))
    table = RecordTable(launchpad, seconds=0)
    assert len(table.records()) == 1
    garden.add("b", silicon(2))
    launchpad.fireworks.update_one({"fw_id": 2}, {"$set": {"updated_on": "2020-01-01T00:00:00+00:00"}})
    after_reading_all(table)
    assert len(table.records()) == 2


def test_young_table_asks_nobody(launchpad: Any, garden: Garden, loads: list[str]) -> None:
    garden.add("a", silicon(1))
    table = RecordTable(launchpad, seconds=1000)
    assert table.records() == table.records()
    table.get(1)
    assert loads == ["read_records"]


def test_old_table_is_read_anew(
    launchpad: Any, garden: Garden, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FireWorks notes no time where a Firework joins a campaign."""
    garden.add("a", silicon(1))
    table = RecordTable(launchpad, seconds=0)
    assert table.records("later") == []
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.campaigns": ["later"], "updated_on": "2020-01-01"}})
    assert table.records("later") == []
    monkeypatch.setattr(record_table, "ANEW", 0.0)
    after_reading_all(table)
    assert len(table.records("later")) == 1


def test_pages_do_not_wait_while_all_is_read_anew(
    launchpad: Any, garden: Garden, monkeypatch: pytest.MonkeyPatch
) -> None:
    garden.add("a", silicon(1))
    table = RecordTable(launchpad, seconds=0)
    table.records()
    may_end, real = threading.Event(), record_table.read_records
    monkeypatch.setattr(record_table, "read_records", lambda *args: may_end.wait(60) and real(*args))
    monkeypatch.setattr(record_table, "ANEW", 0.0)
    assert states(table) == {1: "READY"}
    garden.launch(1)
    assert states(table) == {1: "RUNNING"}
    may_end.set()
    after_reading_all(table)
    assert states(table) == {1: "RUNNING"}


def test_threads_share_one_reading(launchpad: Any, garden: Garden, loads: list[str]) -> None:
    for n in range(5):
        garden.add(f"structure {n}", silicon(n))
    table, together = RecordTable(launchpad, seconds=1000), threading.Barrier(8)

    def look(_: int) -> int:
        together.wait()
        return len(table.records())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look, range(8))) == [5] * 8
    assert loads == ["read_records"]
