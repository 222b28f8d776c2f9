"""Rockets that are killed, stopped, or in each other's way: nothing is computed twice, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from queue_helpers import make_database, rlaunch, rows, start_rlaunch, states, statuses
from recordings import StandIn, numbers_of, structure
from victims import launch, run_rocket, run_signalled_rocket, wait_until

from dftfactory.config import DFTConfig
from dftfactory.interrupts import ECHO_SECONDS
from dftfactory.lost_runs import Fate, reconcile
from dftfactory.pipeline import submit, sync, write_workflows
from dftfactory.sessions import pw_sessions
from dftfactory.store import LabelStore

pytestmark = pytest.mark.mongodb


@pytest.fixture
def queue(launchpad: Any, fake_config: DFTConfig, stand_in: StandIn, tmp_path: Path) -> Any:
    """One structure in the queue, with a recorded run."""
    db = make_database(tmp_path / "c.db", structure(1))
    stand_in.record(1, fake_config)
    submit(db, fake_config, launchpad)
    return db


def env(stand_in: StandIn, **settings: Any) -> dict[str, Any]:
    return {"pw_command": stand_in.command, "parallel_cores": 1, **settings}


def run_here(launchpad: Any, folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one Firework in this process."""
    folder.mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        launch(launchpad, settings)


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def only_label(launchpad: Any) -> dict[str, Any]:
    """The numbers of the only label there is."""
    [label] = LabelStore(launchpad).all()
    return numbers_of(label["result"])


@pytest.mark.usefixtures("impatient")
def test_pw_that_lives_on_is_stopped_and_the_next_launch_goes_on_from_its_state(
    launchpad: Any, queue: Any, stand_in: StandIn, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.hold()
    rocket = start(run_rocket, launchpad.to_dict(), new_folder(tmp_path / "first"), env(stand_in))
    wait_until(lambda: stand_in.events("start"))
    rocket.kill()
    rocket.join()
    assert pw_sessions(tmp_path / "first")

    [finding], _ = reconcile(launchpad)

    assert finding.fate == Fate.READY
    assert "has ended; stopped pw.x" in finding.evidence
    assert not pw_sessions(tmp_path)
    stand_in.let_go()
    run_here(launchpad, tmp_path / "second", env(stand_in), monkeypatch)
    assert states(launchpad) == {1: "COMPLETED"}
    assert [event["event"] for event in stand_in.events()] == ["start", "stopped", "start", "end"]
    assert [event["restart"] for event in stand_in.events("start")] == [False, True]
    assert only_label(launchpad) == stand_in.label(stand_in.events()[0]["key"])


def test_a_rerun_without_reconcile_never_starts_a_second_pw_beside_the_first(
    launchpad: Any, queue: Any, stand_in: StandIn, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `lpad detect_lostruns --rerun` or a user's `lpad rerun_fws` would."""
    stand_in.hold()
    rocket = start(run_rocket, launchpad.to_dict(), new_folder(tmp_path / "first"), env(stand_in))
    wait_until(lambda: stand_in.events("start"))
    rocket.kill()
    rocket.join()
    launchpad.rerun_fw(1)
    stand_in.let_go()
    run_here(launchpad, tmp_path / "second", env(stand_in), monkeypatch)
    assert states(launchpad) == {1: "COMPLETED"}
    assert stand_in.events("violation") == []
    assert only_label(launchpad) == stand_in.label(stand_in.events()[0]["key"])


def test_a_rerun_beside_a_living_rocket_computes_nothing(
    launchpad: Any, queue: Any, stand_in: StandIn, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody took the Firework for lost, and it was not: its first rocket ends it."""
    stand_in.hold()
    rocket = start(run_rocket, launchpad.to_dict(), new_folder(tmp_path / "first"), env(stand_in))
    wait_until(lambda: stand_in.events("start"))
    launchpad.rerun_fw(1)
    run_here(launchpad, tmp_path / "second", env(stand_in), monkeypatch)
    stand_in.let_go()
    rocket.join()
    assert [event["event"] for event in stand_in.events()] == ["start", "end"]
    assert only_label(launchpad) == stand_in.label(stand_in.events()[0]["key"])
    assert sync(queue, launchpad).completed == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "moment",
    [
        "dftfactory.firetasks.write_label",  # on the disk, and not stored
        "dftfactory.store.LabelStore.put",  # stored, and FireWorks does not know
        "dftfactory.claims.Claims.give_back",
    ],
)
def test_a_label_survives_the_end_of_its_rocket(
    launchpad: Any, queue: Any, stand_in: StandIn, start: Any, tmp_path: Path, moment: str
) -> None:
    rocket = start(run_rocket, launchpad.to_dict(), new_folder(tmp_path / "run"), env(stand_in), moment)
    rocket.join()
    assert rocket.exitcode == -signal.SIGKILL
    assert states(launchpad) == {1: "RUNNING"}
    [finding], _ = reconcile(launchpad)
    assert finding.fate == Fate.COMPLETED
    assert states(launchpad) == {1: "COMPLETED"}
    assert len(stand_in.events("start")) == 1
    assert only_label(launchpad) == stand_in.label(stand_in.events()[0]["key"])
    assert sync(queue, launchpad).completed == 1


def test_two_fireworks_of_one_fingerprint_are_computed_once(
    launchpad: Any, fake_config: DFTConfig, stand_in: StandIn, start: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`lpad add` of the files of two databases looks at no label: the second rocket finds the claim of the first."""
    from fireworks import Workflow

    stand_in.record(1, fake_config)
    databases = [make_database(tmp_path / f"{name}.db", structure(1), calculation_id=name) for name in ("p", "q")]
    for name, db in zip(("p", "q"), databases, strict=True):
        write_workflows(db, fake_config, tmp_path / "wf")
        launchpad.add_wf(Workflow.from_file(str(tmp_path / "wf" / f"{name}.json")))
    stand_in.hold()
    rocket = start(run_rocket, launchpad.to_dict(), new_folder(tmp_path / "first"), env(stand_in))
    wait_until(lambda: stand_in.events("start"))

    run_here(launchpad, tmp_path / "second", env(stand_in), monkeypatch)

    assert states(launchpad) == {1: "RUNNING", 2: "COMPLETED"}
    assert [sync(db, launchpad).waiting for db in databases] == [1, 1]
    stand_in.let_go()
    rocket.join()
    assert [sync(db, launchpad).completed for db in databases] == [1, 1]
    assert [event["event"] for event in stand_in.events()] == ["start", "end"]
    assert rows(databases[0])["p"].energy == rows(databases[1])["q"].energy == only_label(launchpad)["energy"]


@pytest.mark.usefixtures("impatient")
def test_a_linked_firework_runs_when_the_rocket_that_it_waits_for_is_killed(
    launchpad: Any, fake_config: DFTConfig, stand_in: StandIn, start: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from fireworks import Workflow

    stand_in.record(1, fake_config)
    db = make_database(tmp_path / "c.db", structure(1))
    write_workflows(db, fake_config, tmp_path / "wf")
    for _ in range(2):
        launchpad.add_wf(Workflow.from_file(str(tmp_path / "wf" / "a.json")))
    stand_in.hold()
    rocket = start(run_rocket, launchpad.to_dict(), new_folder(tmp_path / "first"), env(stand_in))
    wait_until(lambda: stand_in.events("start"))
    run_here(launchpad, tmp_path / "second", env(stand_in), monkeypatch)
    rocket.kill()
    rocket.join()
    reconcile(launchpad)
    stand_in.let_go()
    run_here(launchpad, tmp_path / "third", env(stand_in), monkeypatch)
    assert states(launchpad) == {1: "COMPLETED", 2: "COMPLETED"}
    assert sync(db, launchpad).completed == 1
    assert stand_in.events("violation") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rocket_that_is_asked_to_end_leaves_its_firework_ready_and_begins_no_other(
    number: signal.Signals, launchpad: Any, fake_config: DFTConfig, stand_in: StandIn, tmp_path: Path
) -> None:
    """What a queue sends before the end of a job, and Ctrl-C, for which `rlaunch` has a handler of its own."""
    db = make_database(tmp_path / "c.db", structure(1), structure(2))
    for n in (1, 2):
        stand_in.record(n, fake_config)
    submit(db, fake_config, launchpad)
    stand_in.hold()
    rocket = start_rlaunch(launchpad, tmp_path / "run", env(stand_in), "rapidfire")
    try:
        wait_until(lambda: stand_in.events("start"))
        rocket.send_signal(number)
        printed, _ = rocket.communicate(timeout=60)
    finally:
        rocket.kill()
    assert rocket.returncode == -number, printed
    assert states(launchpad) == {1: "READY", 2: "READY"}
    assert len(stand_in.events("start")) == 1
    # Ctrl-C is for somebody who sits there and waits.
    assert len(stand_in.events("stopped")) == (1 if number == signal.SIGTERM else 0)
    assert not pw_sessions(tmp_path)
    stand_in.let_go()
    rlaunch(launchpad, tmp_path / "run", env(stand_in), "rapidfire")
    assert sync(db, launchpad).completed == 2
    assert stand_in.events("violation") == []


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_stops_a_pw_x_that_does_not_listen(
    second: signal.Signals, launchpad: Any, queue: Any, stand_in: StandIn, tmp_path: Path
) -> None:
    settings = json.loads((stand_in.folder / "settings.json").read_text())
    (stand_in.folder / "settings.json").write_text(json.dumps({**settings, "deaf": True}))
    stand_in.hold()
    rocket = start_rlaunch(launchpad, tmp_path / "run", env(stand_in), "rapidfire")
    try:
        wait_until(lambda: stand_in.events("start"))
        rocket.send_signal(signal.SIGUSR1)
        wait_until(lambda: list(tmp_path.glob("run/*/pwscf.EXIT")))
        assert rocket.poll() is None
        time.sleep(ECHO_SECONDS + 0.2)  # what comes sooner is an echo
        rocket.send_signal(second)
        printed, _ = rocket.communicate(timeout=60)
    finally:
        rocket.kill()
    assert rocket.returncode == -second, printed
    assert states(launchpad) == {1: "READY"}
    assert not pw_sessions(tmp_path)


@pytest.mark.parametrize("first", ["pw.x", "rlaunch"])
def test_a_signal_to_all_processes_of_a_job_begins_no_other_attempt(
    first: str, launchpad: Any, queue: Any, stand_in: StandIn, tmp_path: Path
) -> None:
    """As Slurm does at the end of a job; pw.x dies of it before it has saved, and the next launch takes its place."""
    stand_in.hold()
    rocket = start_rlaunch(launchpad, tmp_path / "run", env(stand_in), "rapidfire")
    try:
        [event] = wait_until(lambda: stand_in.events("start"))
        for pid in (event["pid"], rocket.pid) if first == "pw.x" else (rocket.pid, event["pid"]):
            os.kill(pid, signal.SIGTERM)
        printed, _ = rocket.communicate(timeout=60)
    finally:
        rocket.kill()
    assert rocket.returncode == -signal.SIGTERM, printed
    assert states(launchpad) == {1: "READY"}
    stand_in.let_go()
    rlaunch(launchpad, tmp_path / "run", env(stand_in))
    [label] = LabelStore(launchpad).all()
    history = label["result"]["history"]
    assert [(attempt["outcome"], attempt.get("saved")) for attempt in history] == [
        ("WALLTIME", False),
        ("CONVERGED", None),
    ]
    assert "SIGTERM came; pw.x ended before it had saved its state" in history[0]["evidence"]
    assert [event["restart"] for event in stand_in.events("start")] == [False, False]


def test_a_signal_while_the_label_is_stored_is_heard_afterwards(
    launchpad: Any, queue: Any, stand_in: StandIn, start: Any, tmp_path: Path
) -> None:
    """SIGUSR1 comes as soon as the label is on the disk: it is stored, and the Firework COMPLETED."""
    rocket = start(run_signalled_rocket, launchpad.to_dict(), new_folder(tmp_path / "run"), env(stand_in))
    rocket.join()
    assert rocket.exitcode == 0
    assert states(launchpad) == {1: "COMPLETED"}
    assert sync(queue, launchpad).completed == 1
    assert "after the rocket" not in (tmp_path / "run" / "printed").read_text()


@pytest.mark.usefixtures("impatient")
def test_a_rocket_killed_before_any_of_its_writes_to_the_database(
    launchpad: Any, fake_config: DFTConfig, stand_in: StandIn, start: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Wherever it dies, reconcile and one more rocket bring its structure to the one label that it has."""
    settings = env(stand_in, scratch_dir=str(tmp_path / "scratch"))
    config, n_writes, n = fake_config, 1, 0
    while n <= n_writes:
        folder, key = new_folder(tmp_path / f"run_{n}"), stand_in.record(n, config)
        db = make_database(tmp_path / f"{n}.db", structure(n), calculation_id=f"s{n}")
        submit(db, config, launchpad)
        rocket = start(run_rocket, launchpad.to_dict(), folder, settings, n or None)
        rocket.join()
        if n == 0:  # the one that is let live says how often it writes
            n_writes = len((folder / "writes").read_text().splitlines())
        assert rocket.exitcode == (-signal.SIGKILL if n else 0), (folder / "printed").read_text()
        reconcile(launchpad)
        if states(launchpad)[n + 1] != "COMPLETED":
            run_here(launchpad, folder / "again", settings, monkeypatch)
        sync(db, launchpad)
        assert statuses(db) == {f"s{n}": "COMPLETED"}, f"killed before write {n}"
        label = LabelStore(launchpad).get(rows(db)[f"s{n}"].fingerprint)
        assert label is not None
        assert numbers_of(label["result"]) == stand_in.label(key)
        launches = [event["time"] for event in stand_in.events("start") if event["key"] == key]
        written = min(path.stat().st_mtime for path in folder.rglob("label.json"))
        assert [time for time in launches if time > written] == [], f"computed again: killed before write {n}"
        n += 1
    assert n_writes > 15  # of FireWorks and of ours
    assert set(states(launchpad).values()) == {"COMPLETED"}
    assert reconcile(launchpad) == ([], [])
    assert launchpad.db["dft_claims"].count_documents({}) == 0
    assert launchpad.db["dft_results"].count_documents({}) == n
    assert list((tmp_path / "scratch").glob("*")) == []
    assert stand_in.events("violation") == []
