"""Steps of FireWorks that were half done when a process was killed: `reconcile` brings each to its end."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from queue_helpers import make_database, states, statuses
from recordings import StandIn, numbers_of, structure
from victims import launch, run_add, run_rocket, run_submit

from dftfactory.config import DFTConfig
from dftfactory.lost_runs import Fate, reconcile
from dftfactory.pipeline import submit, sync, write_workflows
from dftfactory.store import LabelStore

pytestmark = [pytest.mark.mongodb, pytest.mark.usefixtures("impatient")]


@pytest.fixture
def env(stand_in: StandIn, fake_config: DFTConfig) -> dict[str, Any]:
    stand_in.record(1, fake_config)
    return {"pw_command": stand_in.command, "parallel_cores": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the victim works."""
    (path := tmp_path / "victim").mkdir()
    return path


def killed(process: Any) -> None:
    process.join()
    assert process.exitcode == -signal.SIGKILL


def run_one(launchpad: Any, env: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        launch(launchpad, env)


def is_whole(launchpad: Any) -> bool:
    """Whether every Firework has its workflow, which knows its state and is free."""
    fireworks = {entry["fw_id"]: entry["state"] for entry in launchpad.fireworks.find()}
    workflows = {flow["nodes"][0]: flow for flow in launchpad.workflows.find()}
    return fireworks.keys() == workflows.keys() and all(
        flow["fw_states"][str(fw_id)] == flow["state"].replace("RUNNING", fireworks[fw_id]) == fireworks[fw_id]
        and "locked" not in flow
        for fw_id, flow in workflows.items()
    )


def test_submit_between_workflows_and_fireworks(
    launchpad: Any, fake_config: DFTConfig, start: Any, env: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", structure(1))
    killed(start(run_submit, launchpad.to_dict(), folder, tmp_path / "c.db", fake_config.to_dict(), "insert fireworks"))
    assert (launchpad.workflows.count_documents({}), launchpad.fireworks.count_documents({})) == (1, 0)
    assert statuses(db) == {"a": "SELECTED"}
    submit(db, fake_config, launchpad)
    findings, repaired = reconcile(launchpad)
    assert (findings, repaired) == ([], ["removed the workflow of Firework 1, which does not exist"])
    assert states(launchpad) == {2: "READY"}
    assert is_whole(launchpad)


def test_lpad_add_between_firework_and_workflow(
    launchpad: Any, fake_config: DFTConfig, start: Any, stand_in: StandIn, env: dict[str, Any], folder: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A rocket that took it would end with an error of FireWorks."""
    db = make_database(tmp_path / "c.db", structure(1))
    write_workflows(db, fake_config, tmp_path / "wf")
    killed(start(run_add, launchpad.to_dict(), folder, tmp_path / "wf" / "a.json", "insert workflows"))
    assert (launchpad.workflows.count_documents({}), launchpad.fireworks.count_documents({})) == (0, 1)
    assert reconcile(launchpad) == ([], ["added the workflow that Firework 1 had not got"])
    assert is_whole(launchpad)
    run_one(launchpad, env, tmp_path / "run", monkeypatch)
    assert states(launchpad) == {1: "COMPLETED"}
    assert sync(db, launchpad).completed == 1


def test_a_rocket_that_has_locked_its_workflow(
    launchpad: Any, fake_config: DFTConfig, start: Any, env: dict[str, Any], folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Everybody else would wait for five minutes, and give up."""
    db = make_database(tmp_path / "c.db", structure(1))
    submit(db, fake_config, launchpad)
    # The lock is the first write to the workflow; the unlock is the last one.
    killed(start(run_rocket, launchpad.to_dict(), folder, env, "fireworks.core.launchpad.WFLock.__enter__"))
    assert launchpad.workflows.count_documents({"locked": True}) == 1
    [finding], repaired = reconcile(launchpad)
    assert "unlocked the workflow of Firework 1" in repaired
    assert finding.fate == Fate.READY
    assert is_whole(launchpad)
    run_one(launchpad, env, tmp_path / "run", monkeypatch)
    assert sync(db, launchpad).completed == 1


def test_a_rocket_that_has_reserved_and_not_begun(
    launchpad: Any, fake_config: DFTConfig, start: Any, env: dict[str, Any], folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of `checkout_fw` the first write alone: RESERVED, without a launch that says by whom."""
    db = make_database(tmp_path / "c.db", structure(1))
    submit(db, fake_config, launchpad)
    killed(start(run_rocket, launchpad.to_dict(), folder, env, "fireworks.core.launchpad.LaunchPad.get_new_launch_id"))
    assert states(launchpad) == {1: "RESERVED"}
    reconcile(launchpad)
    assert states(launchpad) == {1: "READY"}
    assert is_whole(launchpad)
    run_one(launchpad, env, tmp_path / "run", monkeypatch)
    assert sync(db, launchpad).completed == 1


@pytest.mark.parametrize("end", ["COMPLETED", "FIZZLED"])
def test_a_launch_that_has_ended_and_its_firework_has_not(
    launchpad: Any, fake_config: DFTConfig, start: Any, stand_in: StandIn, folder: Path, tmp_path: Path, end: str
) -> None:
    """Killed in `complete_launch`, between the launch and the Firework: the end that it had is kept."""
    db = make_database(tmp_path / "c.db", structure(1))
    stand_in.record(1, fake_config, fails=end == "FIZZLED")
    submit(db, fake_config, launchpad)
    env = {"pw_command": stand_in.command, "parallel_cores": 1}
    # Lock, update, unlock when it is taken; then comes the lock at the end.
    killed(start(run_rocket, launchpad.to_dict(), folder, env, ("findAndModify workflows", 4)))
    [launched] = launchpad.launches.find()
    assert (launched["state"], states(launchpad)) == (end, {1: "RUNNING"})
    reconcile(launchpad)
    assert states(launchpad) == {1: end}
    assert is_whole(launchpad)
    assert len(stand_in.events("start")) == 1
    summary = sync(db, launchpad)
    assert (summary.completed, summary.failed) == ((1, 0) if end == "COMPLETED" else (0, 1))
    for label in LabelStore(launchpad).all():
        assert numbers_of(label["result"]) == stand_in.label(stand_in.events()[0]["key"])
