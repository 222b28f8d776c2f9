"""One record for each Firework of ours, whatever state it is in and whatever is missing in it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from every_state import FIRST, MARKUP, SECOND, Garden, plant_every_state, silicon
from made_up_runs import MadeUpRun, falling

from dftfactory.failures import Failure
from dftfactory.firetasks import fizzled
from dftfactory.launches import count_failures, count_fireworks
from dftfactory.monitor.records import Record, read_numbers, read_records
from dftfactory.plain_values import plain, read_count, read_number, read_time

pytestmark = pytest.mark.mongodb


@pytest.fixture
def garden(launchpad: Any, tmp_path: Path) -> Garden:
    return Garden(launchpad, tmp_path)


def records_of(launchpad: Any, **options: Any) -> dict[int, Record]:
    return {record.fw_id: record for record in read_records(launchpad, **options)}


def only(launchpad: Any) -> Record:
    (record,) = read_records(launchpad)
    return record


def test_empty_launchpad_has_no_records(launchpad: Any) -> None:
    assert list(read_records(launchpad)) == list(read_records(launchpad, "none", fw_ids=[1, 2])) == []


def test_every_state_has_its_facts(launchpad: Any, tmp_path: Path) -> None:
    ids = plant_every_state(launchpad, tmp_path)
    found = records_of(launchpad)
    by_name = {name: found[fw_id] for name, fw_id in ids.items()}
    assert sorted(found) == sorted(ids.values())

    states = {name: record.state for name, record in by_name.items()}
    waits = ("ready", "waiting", "reserved", "paused", "defused", "archived")
    assert [states[name] for name in waits] == [name.upper() for name in waits]
    levels = [(by_name[f"level {n}"].level, by_name[f"level {n}"].quality) for n in range(4)]
    assert levels == [(n, "exact") for n in range(4)]
    # 42.5 s on 4 cores.
    easy = by_name["level 0"]
    assert (easy.core_seconds, easy.wasted_core_seconds, easy.iterations, easy.runs) == (170.0, 0.0, 11, 1)
    assert (easy.failure, easy.reason, easy.jobs, easy.host) == (None, None, 1, "node1")
    # 310 s at level 0 were in vain, 95 s at level 1 were not.
    assert (by_name["level 1"].core_seconds, by_name["level 1"].wasted_core_seconds) == (1620.0, 1240.0)
    assert by_name["level 3"].total_magnetization == 4.41
    assert "collapsed" in str(by_name["state warning"].state_warning)
    softened = by_name["softened"]
    assert (softened.state, softened.quality, softened.failure) == ("FIZZLED", "softened", "SCF_NOT_CONVERGED")
    # What others have computed costs nothing twice.
    assert by_name["reused"].reused
    assert (by_name["reused"].energy, by_name["reused"].core_seconds) == (easy.energy, 0.0)
    assert (by_name["linked"].linked_to, by_name["linked"].core_seconds) == (ids["level 1"], 0.0)
    failures = {name: by_name[name].failure for name in ("OUT_OF_MEMORY", "REJECTED", "SCF_NOT_CONVERGED")}
    assert all(name == failure for name, failure in failures.items())
    assert by_name["PSEUDOPOTENTIAL"].failure == "PseudopotentialError"
    assert "H.upf" in str(by_name["PSEUDOPOTENTIAL"].reason)
    assert by_name["without a word"].failure == "UNKNOWN"
    assert (by_name["running"].state, by_name["running"].ended) == ("RUNNING", None)
    assert by_name["running"].started is not None
    assert by_name["both campaigns"].campaigns == (SECOND, FIRST)
    assert MARKUP in by_name["markup"].formula
    for record in found.values():
        json.dumps(record.to_dict(), allow_nan=False)
        assert all(time is None or time.tzinfo is not None for time in (record.created, record.started, record.updated))

    counted = {state: sum(record.state == state for record in found.values()) for state in count_fireworks(launchpad)}
    assert counted == count_fireworks(launchpad)
    named = [str(record.failure) for record in found.values() if record.state == "FIZZLED"]
    assert {name: named.count(name) for name in named} == count_failures(launchpad)


def test_numbers_are_those_of_the_whole_records(launchpad: Any, tmp_path: Path) -> None:
    plant_every_state(launchpad, tmp_path)
    keys = ("state", "level", "quality", "failure", "core_seconds", "wasted_core_seconds", "ended", "reused")
    keys += ("linked_to", "fingerprint")
    numbers = {each.fw_id: [getattr(each, key) for key in keys] for each in read_numbers(launchpad)}
    assert numbers == {fw_id: [getattr(r, key) for key in keys] for fw_id, r in records_of(launchpad).items()}


def test_campaign_and_ids_select(launchpad: Any, tmp_path: Path) -> None:
    ids = plant_every_state(launchpad, tmp_path)
    second = records_of(launchpad, campaign=SECOND)
    assert ids["both campaigns"] in second
    assert ids["level 0"] not in second
    wanted = [ids["level 0"], ids["both campaigns"], 9999]
    assert sorted(records_of(launchpad, fw_ids=wanted)) == sorted(wanted[:2])
    assert list(records_of(launchpad, campaign=SECOND, fw_ids=wanted)) == [ids["both campaigns"]]


def test_retry_adds_what_the_failed_launch_has_cost(launchpad: Any, tmp_path: Path) -> None:
    """25 s of pw.x on 4 cores before it was killed, then 44 s for the label."""
    ids = plant_every_state(launchpad, tmp_path)
    record = records_of(launchpad)[ids["retried"]]
    assert (record.core_seconds, record.wasted_core_seconds) == (4 * (25 + 44), 4 * 25)
    assert (record.jobs, record.failure, record.runs) == (2, None, 1)


def test_job_that_goes_on_is_counted_once(launchpad: Any, tmp_path: Path) -> None:
    """The history of the label has the attempts of both jobs; the first launch was handed back without an action."""
    ids = plant_every_state(launchpad, tmp_path)
    record = records_of(launchpad)[ids["resumed"]]
    assert (record.core_seconds, record.wasted_core_seconds, record.jobs) == (4 * (600 + 420), 0.0, 2)


def test_failure_that_a_later_launch_resumes_is_counted_once(garden: Garden) -> None:
    """It had its last job, somebody set it to run again, and it went on in the same run folder."""
    from fireworks import FWAction

    fw_id = garden.add("resumed after all", silicon(1))
    run = MadeUpRun(garden.config, 8).fail(Failure.WALLTIME, falling(0.3, 1e-3, 6), 100.0, "no time")
    first = run.attempts.pop()
    launch_id = garden.give_up(fw_id, run, minutes_ago=20)
    details = garden.launchpad.launches.find_one({"launch_id": launch_id})["action"]["stored_data"]["_exception"]
    garden.launchpad.rerun_fw(fw_id)
    launch_id = garden.launch(fw_id)
    run.attempts.append(first)
    whole = {"level": 0, "quality": "exact", "core_seconds": 560.0, "wasted_core_seconds": 0.0}
    stored = {**whole, "run_dir": details["_details"]["run_dir"]}
    garden.end(launch_id, FWAction(stored_data=stored), "COMPLETED", minutes_ago=1, seconds=40)
    record = only(garden.launchpad)
    assert (record.core_seconds, record.wasted_core_seconds) == (560.0, 0.0)


def test_job_without_memory_waits_with_its_cost(launchpad: Any, tmp_path: Path) -> None:
    """Its launch has the failure, and its Firework, READY again, has not."""
    ids = plant_every_state(launchpad, tmp_path)
    record = records_of(launchpad)[ids["second job"]]
    assert (record.state, record.failure, record.level, record.job_class) == ("READY", None, None, "large")
    assert (record.core_seconds, record.wasted_core_seconds, record.jobs) == (140.0, 140.0, 1)


def test_fireworks_of_others_are_left_out(launchpad: Any, garden: Garden) -> None:
    from fireworks import Firework, ScriptTask

    launchpad.add_wf(Firework(ScriptTask.from_str("true"), spec={"formula": "Si2", "campaigns": 3}))
    garden.add("ours", silicon(1))
    launchpad.add_wf(Firework(ScriptTask.from_str("true"), spec={"fingerprint": ""}))
    assert only(launchpad).calculation_id == "ours"


@pytest.mark.parametrize("damage", [None, 3, "text", ["a"], {"b": {}}, float("nan")])
def test_damaged_entries_count_as_not_known(launchpad: Any, garden: Garden, damage: Any) -> None:
    """`lpad add` and `update_fws` write whatever somebody likes."""
    fw_id = garden.add("odd", silicon(1))
    launch_id = garden.launch(fw_id)
    launchpad.mark_fizzled(launch_id)
    names = ("calculation_id", "formula", "campaigns", "resources")
    launchpad.fireworks.update_one(
        {"fw_id": fw_id},
        {"$set": {**{f"spec.{name}": damage for name in names}, "created_on": damage, "archived_launches": damage}},
    )
    names = ("host", "launch_dir", "time_start", "time_end", "fworker", "action")
    launchpad.launches.update_one({"launch_id": launch_id}, {"$set": dict.fromkeys(names, damage)})
    record = only(launchpad)
    assert (record.state, record.failure, record.core_seconds, record.started) == ("FIZZLED", "UNKNOWN", None, None)
    json.dumps(record.to_dict(), allow_nan=False)


@pytest.mark.parametrize("damage", [None, "text", [1], float("inf"), True])
def test_damaged_numbers_of_a_label_count_as_not_known(launchpad: Any, garden: Garden, damage: Any) -> None:
    from fireworks import FWAction

    launch_id = garden.launch(garden.add("odd", silicon(1)))
    names = ("level", "energy", "max_force", "core_seconds", "wasted_core_seconds", "iterations", "linked_to")
    garden.launchpad.complete_launch(launch_id, FWAction(stored_data=dict.fromkeys(names, damage)), "COMPLETED")
    record = only(launchpad)
    assert (record.level, record.energy, record.max_force, record.iterations) == (None, None, None, None)
    json.dumps(record.to_dict(), allow_nan=False)


def test_record_of_before_costs_were_kept(launchpad: Any, garden: Garden) -> None:
    from fireworks import FWAction

    launch_id = garden.launch(garden.add("old", silicon(1)))
    stored = {"level": 1, "quality": "exact", "energy": -860.0, "iterations": 20, "runs": 2, "wall_time": 12.0}
    garden.launchpad.complete_launch(launch_id, FWAction(stored_data=stored), "COMPLETED")
    record = only(launchpad)
    assert (record.level, record.energy, record.core_seconds, record.wasted_core_seconds) == (1, -860.0, None, None)


def test_history_of_a_failure_is_not_fetched(launchpad: Any, garden: Garden, si_atoms: Atoms) -> None:
    """It may have megabytes, for each of 10,000."""
    run = MadeUpRun(garden.config, 8).fail(Failure.HANG, falling(0.1, 0.01, 4), 60.0, "no output")
    run.attempts.pop()
    garden.give_up(garden.add("a", silicon(1)), run, minutes_ago=1)
    from dftfactory.monitor.launch_facts import FACTS

    launch = launchpad.launches.find_one({}, FACTS)
    assert "history" not in launch["action"]["stored_data"]["_exception"]["_details"]
    assert launch["action"]["stored_data"]["_exception"]["_details"]["failure"] == "HANG"


def test_error_without_a_calculation_has_no_cost(garden: Garden) -> None:
    from dftfactory.errors import ConfigError

    launch_id = garden.launch(garden.add("a", silicon(1)))
    garden.end(launch_id, fizzled(ConfigError("ecutwfc must be positive")), "FIZZLED", minutes_ago=1, seconds=1)
    record = only(garden.launchpad)
    assert (record.failure, record.reason, record.core_seconds) == ("ConfigError", "ecutwfc must be positive", None)


# Values


def test_time_is_utc_in_whatever_way_it_is_stored() -> None:
    expected = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    other_zone = expected.astimezone(timezone(timedelta(hours=2)))
    for value in (
        *("2026-01-02T03:04:05", "2026-01-02T03:04:05+00:00", "2026-01-02T05:04:05+02:00"),
        *(expected, expected.replace(tzinfo=None), other_zone),
    ):
        assert read_time(value) == expected
    assert [read_time(value) for value in (None, "soon", 3, {}, float("nan"))] == [None] * 5


def test_numbers_are_finite_or_none() -> None:
    values = [1, 2.5, True, "3", float("nan"), float("inf"), None, 10**400]
    assert [read_number(value) for value in values] == [1.0, 2.5, None, None, None, None, None, None]
    assert [read_count(value) for value in (3, 3.0, 3.5, "3")] == [3, 3, None, None]


def test_plain_values_are_json() -> None:
    time = datetime(2026, 1, 2, tzinfo=timezone.utc)
    values = plain({1: (float("nan"), Path("/a"), time), "set": {2}, "odd": object})
    assert values["1"] == [None, "/a", "2026-01-02T00:00:00+00:00"]
    json.dumps(values, allow_nan=False)
