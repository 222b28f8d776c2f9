"""Calculations that need another job: the walltime, a signal of the queue, too little memory; and an end to that."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk
from queue_helpers import make_database, rlaunch, rows, specs, start_rlaunch, states

from dftfactory import firetasks
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError
from dftfactory.next_job import (
    IDLE,
    MAX_JOBS,
    NEXT_JOB,
    NextJob,
    give_wanted_jobs,
    lost_job,
    make_ready,
    next_job,
    wanted_job,
)
from dftfactory.pipeline import submit, sync
from dftfactory.runner import QERunner
from dftfactory.store import LabelStore

FakePw = Callable[..., WorkerConfig]
CLASSES = {
    "small": {"cores": 4, "nodes": 1, "memory_mb": 8000, "walltime_seconds": 3600, "partition": None, "packed": False},
    "large": {
        "cores": 8,
        "nodes": 2,
        "memory_mb": 64000,
        "walltime_seconds": 86400,
        "partition": None,
        "packed": False,
    },
}
RESOURCES = {
    "class": "small",
    "nodes": 1,
    "cores": 4,
    "memory_mb": 4000,
    "walltime_seconds": 1800,
    "queue": "slurm",
    "partition": None,
    "classes": CLASSES,
    "max_jobs": 5,
}
WALLTIME = {"reason": "WALLTIME", "is_idle": False, "counts": True}
IDLED = {**WALLTIME, "is_idle": True}
MEMORY = {"reason": "OUT_OF_MEMORY", "memory_mb": 5000}


# The decision


def test_each_job_counts_and_after_the_last_one_it_is_over() -> None:
    spec: dict[str, Any] = {}
    for n in range(1, MAX_JOBS):
        job = next_job(spec, WALLTIME)
        assert job.is_ready
        spec |= job.changes
        assert spec["jobs"] == {"WALLTIME": n, IDLE: 0}
    job = next_job(spec, WALLTIME)
    assert not job.is_ready
    assert job.said == "it has had 10 jobs of at most 10 (10 ended with WALLTIME)"
    # Whoever runs it again by hand gives it as many anew.
    assert job.changes == {"jobs": {}}


def test_jobs_for_both_reasons_are_counted_together() -> None:
    spec = {"resources": RESOURCES, "jobs": {"WALLTIME": 2, "OUT_OF_MEMORY": 1, IDLE: 1}}
    assert next_job(spec, MEMORY).changes["jobs"] == {"WALLTIME": 2, "OUT_OF_MEMORY": 2, IDLE: 0}
    job = next_job({**spec, "jobs": {"WALLTIME": 3, "OUT_OF_MEMORY": 1}}, MEMORY)
    assert (job.is_ready, job.said.partition(" (")[0]) == (False, "it has had 5 jobs of at most 5")


def test_two_jobs_without_an_iteration_end_it_instead_of_ten() -> None:
    job = next_job({}, IDLED)
    assert job.is_ready
    again = next_job(job.changes, IDLED)
    assert not again.is_ready
    assert "2 jobs in a row were too short for one SCF iteration: give it more time or more cores" in again.said
    # One that computes in between begins the count again.
    assert next_job({"jobs": {"WALLTIME": 2, IDLE: 0}}, IDLED).is_ready


def test_two_jobs_without_an_iteration_make_the_third_one_longer() -> None:
    job = next_job({"resources": RESOURCES, "jobs": {"WALLTIME": 1, IDLE: 1}}, IDLED)
    assert job.is_ready
    assert job.said == "goes on in a job of 1 h instead of 0.5 h"
    assert job.changes["jobs"] == {"WALLTIME": 2, IDLE: 0}
    assert (job.changes["resources"]["walltime_seconds"], job.changes["_category"]) == (3600, "small")
    assert job.changes["_queueadapter"]["walltime"] == "01:00:00"
    longest = {**RESOURCES, "class": "large", "walltime_seconds": 86400}
    job = next_job({"resources": longest, "jobs": {IDLE: 1}}, IDLED)
    assert not job.is_ready
    assert job.said.endswith("more cores; 24 h is the most that there is")


def test_more_memory_is_asked_for_until_there_is_no_more() -> None:
    spec: dict[str, Any] = {"resources": RESOURCES}
    seen = []
    while (job := next_job(spec, {"reason": "OUT_OF_MEMORY", "memory_mb": None})).is_ready:
        spec |= job.changes
        seen.append((spec["_category"], spec["resources"]["memory_mb"]))
        assert spec["_queueadapter"]["mem"] == f"{spec['resources']['memory_mb']}M"
    assert seen == [("small", 8000), ("large", 16000), ("large", 32000), ("large", 64000)]
    largest = {**RESOURCES, "class": "large", "memory_mb": 64000}
    job = next_job({"resources": largest}, {"reason": "OUT_OF_MEMORY", "memory_mb": 128000})
    said = "it had 64000 MB, 128000 MB may be enough, and the largest class of jobs has 64000 MB"
    assert (job.is_ready, job.said) == (False, said)


def test_a_job_with_no_time_left_for_it_does_not_count() -> None:
    """Others had used it: a hundred small calculations in one job, and the last one begun a minute before the end."""
    job = next_job({"jobs": {"WALLTIME": 9}}, {**WALLTIME, "counts": False})
    assert (job.is_ready, job.changes) == (True, {})


@pytest.mark.parametrize(
    ("word", "may_go_on", "reason"),
    [("TIMEOUT", False, "WALLTIME"), ("OUT_OF_MEMORY", False, "OUT_OF_MEMORY"), ("NODE_FAIL", False, None)],
)
def test_words_of_the_queue_are_reasons(word: str, may_go_on: bool, reason: str | None) -> None:
    wanted = lost_job(word, may_go_on=may_go_on)
    assert (wanted or {}).get("reason") == reason


def test_a_job_that_was_killed_at_its_end_without_a_state_gets_more_time() -> None:
    """Its last iteration took longer than what pw.x leaves to itself."""
    longer = next_job({"resources": RESOURCES}, lost_job("TIMEOUT", may_go_on=False) or {})
    assert longer.changes["resources"]["walltime_seconds"] == 3600
    assert "resources" not in next_job({"resources": RESOURCES}, lost_job("TIMEOUT", may_go_on=True) or {}).changes


# What a calculation wants


@pytest.fixture
def resumable(tmp_path: Path) -> Path:
    attempt = {"parameters": {"level": 0}, "outcome": "WALLTIME", "exit_status": 124}
    history: dict[str, Any] = {"attempts": [attempt], "prescribed": {}, "configured": {}, "ladder": None}
    (tmp_path / "history.json").write_text(json.dumps(history))
    (tmp_path / "pw.in").write_text("")
    return tmp_path


def ended(folder: Path, *attempts: dict[str, Any], failure: str = "WALLTIME") -> CalculationError:
    return CalculationError("ended", failure=failure, history=list(attempts), run_dir=str(folder))


OF_QUEUE = {"time_limit": {"seconds": 60.0, "of": "queue"}}
NO_TIME = {"exit_status": 124}


@pytest.mark.parametrize(
    ("attempts", "is_late", "expected"),
    [
        ([{**OF_QUEUE, "last_accuracy": 0.1}, NO_TIME], False, {"is_idle": False, "counts": True}),
        ([{**OF_QUEUE, "last_accuracy": None}, NO_TIME], False, {"is_idle": True, "counts": True}),
        ([NO_TIME], False, {"is_idle": True, "counts": True}),
        ([NO_TIME], True, {"is_idle": False, "counts": False}),
        ([{"signal": "SIGTERM", "last_accuracy": None}], False, {"is_idle": False, "counts": True}),
        ([{**NO_TIME, "signal": "SIGTERM"}], False, {"is_idle": False, "counts": False}),
    ],
)
def test_a_job_is_judged_by_what_was_computed_in_it(
    attempts: list[dict[str, Any]], is_late: bool, expected: dict[str, Any], resumable: Path
) -> None:
    earlier = {**OF_QUEUE, "last_accuracy": 0.5}
    wanted = wanted_job(ended(resumable, earlier, *attempts), 1, is_late=is_late)
    assert wanted == {"reason": "WALLTIME", **expected}


def test_no_job_is_asked_for_after_the_users_own_limit_and_other_failures(resumable: Path, tmp_path: Path) -> None:
    assert wanted_job(ended(resumable, {"last_accuracy": 0.1}), 0, is_late=False) is None
    assert wanted_job(ended(resumable, NO_TIME, failure="SCF_NOT_CONVERGED"), 0, is_late=False) is None
    assert wanted_job(ended(tmp_path / "elsewhere", NO_TIME), 0, is_late=False) is None


# The Firework


@pytest.fixture
def queued(launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> Any:
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config, launchpad)
    return db


@pytest.fixture
def run_here(launchpad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that runs Firework 1 in this process, as `rlaunch singleshot` does, and says how it ended."""
    from fireworks import FWorker
    from fireworks.core.rocket_launcher import launch_rocket

    def run(worker: WorkerConfig, *seconds_left: float) -> list[str]:
        times = iter(seconds_left)
        monkeypatch.setattr("dftfactory.jobs.seconds_left", lambda: next(times, 1.0 if seconds_left else None))
        folder = tmp_path / f"launch_{len(list(tmp_path.glob('launch_*')))}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        ends: list[str] = []

        def end_noted(status: int) -> None:
            ends.append(f"ended with {status}")

        monkeypatch.setattr(firetasks, "_exit", end_noted)
        launch_rocket(launchpad, FWorker(env=worker.to_dict()), strm_lvl="CRITICAL")
        return [*ends, states(launchpad)[1]]

    return run


@pytest.mark.mongodb
def test_walltime_leaves_the_firework_ready_and_ends_the_rocket(
    launchpad: Any, queued: Any, fake_pw: FakePw, run_here: Any, tmp_path: Path
) -> None:
    worker = fake_pw("max_seconds", "max_seconds", "converged")
    assert run_here(worker, 1000.0, 70.0) == ["ended with 0", "READY"]
    assert sync(queued, launchpad).waiting == 1
    assert run_here(worker, 1000.0, 70.0) == ["ended with 0", "READY"]
    assert specs(launchpad)["a"]["jobs"] == {"WALLTIME": 2, IDLE: 0}
    assert run_here(worker) == ["COMPLETED"]
    assert sync(queued, launchpad).completed == 1
    [label] = LabelStore(launchpad).all()
    history = label["result"]["history"]
    assert [attempt["outcome"] for attempt in history] == ["WALLTIME"] * 4 + ["CONVERGED"]
    # 2 and 2 iterations of the recorded run that was stopped, and those of the one that converged.
    stored = launchpad.launches.find_one({"launch_id": 3})["action"]["stored_data"]
    assert stored["iterations"] == sum(attempt.get("iterations") or 0 for attempt in history)
    assert stored["wall_time"] > 0
    assert Path(stored["run_dir"]) == tmp_path / "launch_0"


@pytest.mark.mongodb
def test_a_job_that_is_always_too_short_fails_with_a_clear_sentence(
    launchpad: Any, queued: Any, fake_pw: FakePw, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firetasks, "job_seconds", lambda: 100.0)
    worker = fake_pw("converged")
    assert run_here(worker, 100.0)[-1] == "READY"
    assert run_here(worker, 100.0) == ["FIZZLED"]
    sync(queued, launchpad)
    row = rows(queued)["a"]
    assert (row.status, row.failure) == ("FAILED", "WALLTIME")
    assert "2 jobs in a row were too short for one SCF iteration: give it more time or more cores" in row.reason
    # Run again by hand it goes on, with a count of its own.
    launchpad.rerun_fw(1)
    assert run_here(worker) == ["COMPLETED"]


@pytest.mark.mongodb
def test_a_job_of_hardly_what_pw_x_needs_is_not_begun_without_end(
    launchpad: Any, queued: Any, fake_pw: FakePw, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes of walltime: what Python takes to begin leaves less than a run needs, in every job."""
    monkeypatch.setattr(firetasks, "job_seconds", lambda: 120.0)
    worker = fake_pw("converged")
    assert [run_here(worker, 118.0)[-1] for _ in range(2)] == ["READY", "FIZZLED"]


@pytest.mark.mongodb
def test_too_little_memory_moves_the_firework_to_a_larger_class(
    launchpad: Any, queued: Any, fake_pw: FakePw, run_here: Any
) -> None:
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.resources": RESOURCES}})
    worker = fake_pw("out_of_memory", memory_mb=3000.0)
    assert run_here(worker) == ["READY"]
    spec = specs(launchpad)["a"]
    assert spec["jobs"] == {"OUT_OF_MEMORY": 1, IDLE: 0}
    # The rocket had half of what it takes now, and the class has it.
    assert (spec["_category"], spec["resources"]["memory_mb"]) == ("small", 8000)
    # The launch keeps what happened.
    details = launchpad.launches.find_one({"launch_id": 1})["action"]["stored_data"]["_exception"]["_details"]
    assert (details["failure"], details["request"]["memory_mb"]) == ("OUT_OF_MEMORY", 6000)
    at_the_top = {**RESOURCES, "class": "large", "memory_mb": 64000}
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.resources": at_the_top}})
    assert run_here(worker) == ["FIZZLED"]
    sync(queued, launchpad)
    assert "it had 64000 MB, and the largest class of jobs has 64000 MB" in rows(queued)["a"].reason


@pytest.mark.mongodb
def test_of_several_starts_those_that_have_ended_are_kept(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, run_here: Any, tmp_path: Path,
    launches: Callable[[], list[str]],
) -> None:  # fmt: skip
    """The walltime comes in the second of three starts: the first one is not paid again, the second one goes on."""
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config.model_copy(update={"magnetism": ["none", {"Si": 1.0}, {"Si": 0.5}]}), launchpad)
    worker = fake_pw("converged", "max_seconds", "converged")
    assert run_here(worker, 1000.0, 1000.0, 70.0) == ["ended with 0", "READY"]
    assert len(launches()) == 2
    assert run_here(worker) == ["COMPLETED"]
    assert len(launches()) == 4
    assert ["restart_mode" in given for given in launches()] == [False, False, True, False]
    [label] = LabelStore(launchpad).all()
    history = label["result"]["history"]
    assert [attempt["start"] for attempt in history] == ["none", "Si 1", "Si 1", "Si 1", "Si 0.5"]
    outcomes = ["CONVERGED", "WALLTIME", "WALLTIME", "CONVERGED", "CONVERGED"]
    assert [attempt["outcome"] for attempt in history] == outcomes
    assert [state["outcome"] for state in label["result"]["states"]] == ["CONVERGED"] * 3
    assert sync(db, launchpad).completed == 1


@pytest.mark.mongodb
def test_killed_between_the_two_writes_it_has_the_larger_job_and_is_still_running(
    launchpad: Any, queued: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`dftfactory reconcile` then sets it READY."""
    from fireworks import FWorker, LaunchPad

    launchpad.checkout_fw(FWorker(), str(tmp_path), fw_id=1)

    def killed(self: Any, fw_id: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LaunchPad, "rerun_fw", killed)
    with pytest.raises(KeyboardInterrupt):
        make_ready(launchpad, 1, NextJob(True, "goes on", {"_category": "large"}))
    assert (states(launchpad), specs(launchpad)["a"]["_category"]) == ({1: "RUNNING"}, "large")


def ended_offline(launchpad: Any, folder: Path) -> None:
    """Leave what an offline rocket leaves whose calculation wants another job."""
    from fireworks import FWorker

    facts = {"calculation_id": "a", "failure": "WALLTIME", "evidence": "too long", "explanation": "another job can"}
    error = CalculationError("a: WALLTIME: too long", **facts, **{NEXT_JOB: WALLTIME})
    _, launch_id = launchpad.checkout_fw(FWorker(), str(folder), fw_id=1)
    launchpad.complete_launch(launch_id, firetasks.fizzled(error), "FIZZLED")


@pytest.mark.mongodb
def test_after_the_last_job_of_an_offline_rocket_it_is_over(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.jobs": {"WALLTIME": MAX_JOBS - 1}}})
    ended_offline(launchpad, tmp_path)
    assert give_wanted_jobs(launchpad) == 0
    assert give_wanted_jobs(launchpad) == 0
    assert states(launchpad) == {1: "FIZZLED"}
    sync(queued, launchpad)
    assert rows(queued)["a"].reason.startswith("a: WALLTIME: it has had 10 jobs of at most 10")


@pytest.mark.mongodb
def test_who_was_faster_has_set_it_ready_and_it_runs(
    launchpad: Any, queued: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two look at once: the second one must not set a Firework READY that the next rocket has already."""
    from fireworks import FWorker

    ended_offline(launchpad, tmp_path)

    def decided(*arguments: Any) -> NextJob:
        launchpad.rerun_fw(1)
        launchpad.checkout_fw(FWorker(), str(tmp_path), fw_id=1)
        return next_job(*arguments)

    monkeypatch.setattr("dftfactory.next_job.next_job", decided)
    assert give_wanted_jobs(launchpad) == 0
    assert states(launchpad) == {1: "RUNNING"}


@pytest.mark.mongodb
def test_a_kept_state_that_has_been_lost_is_computed_again(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, run_here: Any, tmp_path: Path,
    launches: Callable[[], list[str]],
) -> None:  # fmt: skip
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config.model_copy(update={"magnetism": ["none", {"Si": 1.0}]}), launchpad)
    worker = fake_pw("converged", "max_seconds", "converged")
    assert run_here(worker, 1000.0, 1000.0, 70.0) == ["ended with 0", "READY"]
    (tmp_path / "launch_0" / "start_0" / "pw.out").unlink()
    assert run_here(worker) == ["COMPLETED"]
    assert len(launches()) == 4
    assert (tmp_path / "launch_0" / "start_0_ended_0").is_dir()


def test_starts_of_another_calculation_are_not_taken_for_kept_ones(
    fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, tmp_path: Path
) -> None:
    """Somebody has run a single calculation of his own in a folder of that name."""
    worker = fake_pw("converged")
    QERunner(fake_config, worker).run(si_atoms, tmp_path / "run" / "start_0")
    several = QERunner(fake_config.model_copy(update={"magnetism": ["none", {"Si": 1.0}]}), worker)
    other = si_atoms.copy()
    other.rattle(0.05, seed=1)
    with pytest.raises(ConfigError, match="start_0 is there already"):
        several.run(other, tmp_path / "run")


def test_kept_starts_of_another_configuration_are_computed_again(
    fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, tmp_path: Path, launches: Callable[[], list[str]]
) -> None:
    """Whoever asks to go on in the wrong folder gets the label that was asked for."""
    worker = fake_pw("converged")
    first, other = (fake_config.model_copy(update={"magnetism": ["none", {"Si": moment}]}) for moment in (1.0, 2.0))
    QERunner(first, worker).run(si_atoms, tmp_path / "run")
    QERunner(first, worker).run(si_atoms, tmp_path / "run", goes_on=True)
    assert len(launches()) == 2
    QERunner(other, worker).run(si_atoms, tmp_path / "run", goes_on=True)
    assert len(launches()) == 4
    assert (tmp_path / "run" / "start_0_ended_0").is_dir()


def test_going_on_with_a_single_start_is_no_way_into_a_used_folder(
    fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, tmp_path: Path
) -> None:
    runner = QERunner(fake_config, fake_pw("converged"))
    runner.run(si_atoms, tmp_path / "run", goes_on=True)
    with pytest.raises(ConfigError, match="already holds a calculation"):
        runner.run(si_atoms, tmp_path / "run", goes_on=True)


# The real program


@pytest.fixture
def aluminium() -> Atoms:
    """Four atoms off their sites: two seconds of a dozen iterations."""
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.fixture
def slow_config(config: DFTConfig) -> DFTConfig:
    return config.model_copy(update={"ecutwfc": 20.0, "kspacing": 0.35})


def compare(launchpad: Any, atoms: Atoms, config: DFTConfig, folder: Path) -> dict[str, Any]:
    """Compare the only label with that of an undisturbed run, and return it."""
    [label] = LabelStore(launchpad).all()
    direct = QERunner(config, WorkerConfig()).run(atoms, folder)
    # 1e-9 Ry/atom is asked for.
    assert label["result"]["energy"] == pytest.approx(direct.energy, abs=1e-6)
    assert label["result"]["forces"] == pytest.approx(direct.forces, abs=2e-3)
    return label


@pytest.mark.pw
@pytest.mark.mongodb
def test_after_the_walltime_the_label_is_that_of_an_undisturbed_run(
    launchpad: Any, slow_config: DFTConfig, aluminium: Atoms, run_here: Any, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", aluminium)
    submit(db, slow_config, launchpad)
    worker = WorkerConfig(margin_seconds=1.0)
    assert run_here(worker, 2.2, 1.0) == ["ended with 0", "READY"]
    assert list((tmp_path / "launch_0" / "out" / "pwscf.save").glob("charge-density.*"))
    assert run_here(worker) == ["COMPLETED"]
    label = compare(launchpad, aluminium, slow_config, tmp_path / "direct")
    outcomes = [attempt["outcome"] for attempt in label["result"]["history"]]
    assert outcomes == ["WALLTIME", "WALLTIME", "CONVERGED"]
    assert sync(db, launchpad).completed == 1


@pytest.mark.pw
@pytest.mark.mongodb
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_a_rocket_lets_pw_x_save_and_the_next_one_goes_on(
    number: signal.Signals, launchpad: Any, slow_config: DFTConfig, aluminium: Atoms, si_atoms: Atoms, tmp_path: Path
) -> None:
    """`--signal=B:USR1@SECONDS` of a job, and scancel. There is more to do, and the rocket begins nothing of it."""
    db = make_database(tmp_path / "c.db", aluminium, si_atoms)
    submit(db, slow_config, launchpad)
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec._priority": 1}})
    run = tmp_path / "run"
    rocket = start_rlaunch(launchpad, run, WorkerConfig(), "rapidfire")
    try:
        while not any("iteration #  2" in path.read_text() for path in run.glob("*/pw.out")):
            assert rocket.poll() is None
            time.sleep(0.02)
        rocket.send_signal(number)
        printed, _ = rocket.communicate(timeout=60)
    finally:
        rocket.kill()
    assert rocket.returncode == (0 if number == signal.SIGUSR1 else -number), printed
    assert states(launchpad) == {1: "READY", 2: "READY"}
    assert specs(launchpad)["a"]["jobs"] == {"WALLTIME": 1, IDLE: 0}
    assert f"{number.name} came; pw.x saved its state and stopped" in printed
    rlaunch(launchpad, run, WorkerConfig(), "singleshot", "-f", "1")
    assert states(launchpad) == {1: "COMPLETED", 2: "READY"}
    label = compare(launchpad, aluminium, slow_config, tmp_path / "direct")
    history = label["result"]["history"]
    assert [attempt["outcome"] for attempt in history] == ["WALLTIME", "CONVERGED"]
    assert [history[0][name] for name in ("signal", "saved")] == [number.name, True]
    assert history[1]["parameters"]["restart_mode"] == "restart"
