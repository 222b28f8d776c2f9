"""Processes that were killed between two writes of FireWorks: the LaunchPad is whole again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from queue_helpers import make_database, rlaunch, shifted, states

from dftfactory import repairs
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.pipeline import submit
from dftfactory.repairs import repair

pytestmark = pytest.mark.mongodb


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairs, "STEP_SECONDS", 0.1)


@pytest.fixture
def queued(launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> Any:
    """Two structures in the LaunchPad."""
    db = make_database(tmp_path / "c.db", si_atoms, shifted(si_atoms, 0.1))
    submit(db, fake_config, launchpad)
    return launchpad


def run_one(launchpad: Any, folder: Path, fw_id: int) -> None:
    rlaunch(launchpad, folder, WorkerConfig(pw_command="/nonexistent/pw.x"), "singleshot", "-f", str(fw_id))


def test_a_whole_launchpad_is_left_alone(queued: Any) -> None:
    assert repair(queued) == []


def test_a_lock_of_the_dead_is_opened(queued: Any, tmp_path: Path) -> None:
    """A rocket would wait for it for five minutes and then forget its result."""
    queued.workflows.update_one({"nodes": 1}, {"$set": {"locked": True}})
    assert repair(queued) == ["unlocked the workflow of Firework 1"]
    assert queued.workflows.count_documents({"locked": {"$exists": True}}) == 0
    run_one(queued, tmp_path / "rocket", 1)
    assert states(queued)[1] == "FIZZLED"


def test_a_lock_of_the_living_is_not(queued: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queued.workflows.update_one({"nodes": 1}, {"$set": {"locked": True}})

    class Time:
        monotonic = time.monotonic

        @staticmethod
        def sleep(seconds: float) -> None:
            queued.workflows.update_one({"nodes": 1}, {"$unset": {"locked": True}})
            queued.workflows.update_one({"nodes": 2}, {"$set": {"locked": True}})

    monkeypatch.setattr(repairs, "time", Time)
    assert repair(queued) == []
    assert queued.workflows.find_one({"nodes": 2})["locked"]


def test_a_firework_without_its_workflow_gets_one(queued: Any, tmp_path: Path) -> None:
    """`lpad add` writes the Firework first; without a workflow every rocket that takes it fails."""
    whole = queued.workflows.find_one({"nodes": 2})
    queued.workflows.delete_one({"nodes": 2})
    assert repair(queued) == ["added the workflow that Firework 2 had not got"]
    made = queued.workflows.find_one({"nodes": 2})
    for key in ("nodes", "links", "state", "fw_states", "name", "metadata"):
        assert made[key] == whole[key], key
    run_one(queued, tmp_path / "rocket", 2)
    assert states(queued)[2] == "FIZZLED"


def test_a_workflow_without_its_firework_goes(queued: Any) -> None:
    """`submit` writes the workflows of a page first, and repeated it writes all of them anew."""
    queued.fireworks.delete_one({"fw_id": 1})
    assert repair(queued) == ["removed the workflow of Firework 1, which does not exist"]
    assert [workflow["nodes"] for workflow in queued.workflows.find({})] == [[2]]


@pytest.mark.parametrize("state", ["COMPLETED", "FIZZLED"])
def test_a_launch_that_has_ended_takes_its_firework_along(state: str, queued: Any, tmp_path: Path) -> None:
    from fireworks import FWAction, FWorker

    queued.checkout_fw(FWorker(), str(tmp_path), fw_id=1)
    queued.launches.update_one({"fw_id": 1}, {"$set": {"state": state, "action": FWAction().to_dict()}})
    assert states(queued)[1] == "RUNNING"
    assert repair(queued) == ["brought Firework 1 and its workflow to the state of its last launch"]
    assert states(queued)[1] == state
    assert queued.workflows.find_one({"nodes": 1})["state"] == state


def test_a_workflow_that_lags_behind_its_firework_catches_up(queued: Any) -> None:
    queued.workflows.update_one({"nodes": 1}, {"$set": {"fw_states.1": "RUNNING", "state": "RUNNING"}})
    assert repair(queued) == ["brought Firework 1 and its workflow to the state of its last launch"]
    assert queued.workflows.find_one({"nodes": 1})["state"] == "READY"


def test_a_dry_run_changes_nothing(queued: Any) -> None:
    queued.workflows.update_one({"nodes": 1}, {"$set": {"locked": True}})
    queued.fireworks.delete_one({"fw_id": 2})
    assert len(repair(queued, dry_run=True)) == 2
    assert queued.workflows.find_one({"nodes": 1})["locked"]
    assert queued.workflows.find_one({"nodes": 2}) is not None


def test_workflows_of_others_are_not_touched(queued: Any) -> None:
    from fireworks import Firework, ScriptTask

    queued.add_wf(Firework(ScriptTask.from_str("true")))
    queued.workflows.update_one({"nodes": 3}, {"$set": {"locked": True}})
    assert repair(queued) == []


def test_a_rocket_that_takes_its_time_between_two_writes_keeps_its_firework(queued: Any) -> None:
    """FireWorks looks for the name of the host between RESERVED and RUNNING; `reconcile` waits longer for that."""
    queued.fireworks.update_one({"fw_id": 1}, {"$set": {"state": "RESERVED"}})
    assert repair(queued) == []
    assert states(queued)[1] == "RESERVED"


def test_a_server_that_stood_still_is_asked_once_more(queued: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the living wanted to write has waited as long as our own question."""
    monkeypatch.setattr(repairs, "SLOW_SECONDS", 0.2)
    queued.workflows.update_one({"nodes": 1}, {"$set": {"locked": True}})
    look, looks = repairs._look, []

    def slow_look(launchpad: Any) -> set[tuple[str, int]]:
        looks.append(look(launchpad))
        if len(looks) == 2:
            time.sleep(0.3)
            queued.workflows.update_one({"nodes": 1}, {"$unset": {"locked": True}})
        return looks[-1]

    monkeypatch.setattr(repairs, "_look", slow_look)
    assert repair(queued) == []
    assert len(looks) == 3
