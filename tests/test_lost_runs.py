"""`dftfactory reconcile`: lost runs are found and set right, living ones and those out of sight are left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from queue_helpers import label_for, make_database, rlaunch, shifted, specs, states

from dftfactory import lost_runs, repairs
from dftfactory.claims import COLLECTION, Claims, make_claim
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.labels import write_label
from dftfactory.lost_runs import Fate, Finding, reconcile
from dftfactory.orphans import take_folder
from dftfactory.pipeline import submit, sync
from dftfactory.queues import JobAnswer, JobState
from dftfactory.sessions import RUN_DIR, pw_sessions
from dftfactory.store import LabelStore

pytestmark = pytest.mark.mongodb


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_runs, "BEGIN_SECONDS", 0.0)
    monkeypatch.setattr(repairs, "STEP_SECONDS", 0.1)


@pytest.fixture
def queued(launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> Any:
    """Two structures in the LaunchPad, a and b."""
    db = make_database(tmp_path / "c.db", si_atoms, shifted(si_atoms, 0.1))
    submit(db, fake_config, launchpad)
    return db


@pytest.fixture
def launch(launchpad: Any, queued: Any, tmp_path: Path) -> Callable[..., Path]:
    """Check out Firework 1 as a rocket of this host does; gives the folder of the launch."""
    from fireworks import FWorker

    def check_out(host: str | None = None, state: str = "RUNNING") -> Path:
        folder = tmp_path / "launch"
        folder.mkdir()
        launchpad.checkout_fw(FWorker(), str(folder), fw_id=1, host=host, state=state)
        return folder

    return check_out


def claim(launchpad: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    """The claim of the rocket of Firework 1: one that has ended, where `changes` say nothing else."""
    made = make_claim(specs(launchpad)["a"]["fingerprint"], 1, folder)
    owner = {**made["owner"], "started": made["owner"]["started"] - 1, **changes.pop("owner", {})}
    made = {**made, "owner": owner, **changes}
    assert Claims(launchpad).take(made) is None
    return made


def the_finding(launchpad: Any, **options: Any) -> Finding:
    [finding], _ = reconcile(launchpad, **options)
    return finding


def test_a_lost_run_is_ready_again(launchpad: Any, launch: Callable[..., Path], tmp_path: Path) -> None:
    claim(launchpad, launch())
    finding = the_finding(launchpad)
    assert (finding.fw_id, finding.calculation_id, finding.fate) == (1, "a", Fate.READY)
    assert "has ended" in finding.evidence
    assert states(launchpad) == {1: "READY", 2: "READY"}
    assert launchpad.db[COLLECTION].count_documents({}) == 0
    rlaunch(launchpad, tmp_path / "rocket", WorkerConfig(pw_command="/nonexistent/pw.x"), "singleshot", "-f", "1")
    assert states(launchpad)[1] == "FIZZLED"


def test_a_living_run_is_left_alone(launchpad: Any, launch: Callable[..., Path]) -> None:
    folder = launch()
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=folder, stdin=subprocess.PIPE) as python:
        from dftfactory.sessions import start_of

        claim(launchpad, folder, owner={"pid": python.pid, "started": start_of(python.pid)})
        assert the_finding(launchpad).fate is Fate.LIVES
        python.kill()
    assert the_finding(launchpad).fate is Fate.READY


@pytest.mark.parametrize("stored", [True, False])
def test_a_lost_run_whose_label_is_there_is_completed(
    stored: bool, launchpad: Any, launch: Callable[..., Path], queued: Any
) -> None:
    """Its rocket was killed between the label and the end of the launch."""
    folder = launch()
    label = label_for(specs(launchpad)["a"], energy=-7.5)
    LabelStore(launchpad).put(label) if stored else write_label(folder, label)
    claim(launchpad, folder)
    assert the_finding(launchpad).fate is Fate.COMPLETED
    assert states(launchpad)[1] == "COMPLETED"
    assert sync(queued, launchpad).completed == 1
    assert queued.get(calculation_id="a").energy == -7.5


def test_a_rocket_that_was_killed_before_its_claim_is_found_by_its_folder(
    launchpad: Any, launch: Callable[..., Path]
) -> None:
    folder = launch()
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=folder, stdin=subprocess.PIPE) as python:
        finding = the_finding(launchpad)
        assert (finding.fate, finding.evidence) == (Fate.LIVES, f"process {python.pid} works in its folder")
        python.kill()
    # Somebody's shell there is no rocket.
    with subprocess.Popen(["/bin/sh", "-c", "read line"], cwd=folder, stdin=subprocess.PIPE) as shell:
        assert the_finding(launchpad).fate is Fate.READY
        shell.kill()


def test_a_rocket_that_has_just_begun_is_given_time(
    launchpad: Any, launch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_runs, "BEGIN_SECONDS", 3600.0)
    launch()
    finding = the_finding(launchpad)
    assert (finding.fate, finding.evidence) == (Fate.LIVES, "has just begun")


def test_what_ran_on_another_host_is_out_of_sight_until_that_is_gone(
    launchpad: Any, launch: Callable[..., Path]
) -> None:
    launch(host="node7")
    finding = the_finding(launchpad)
    assert (finding.fate, finding.host) == (Fate.UNKNOWN, "node7")
    assert "see there, or give --gone node7" in finding.evidence
    assert the_finding(launchpad, gone=["node8"]).fate is Fate.UNKNOWN
    assert the_finding(launchpad, gone=["node7"]).fate is Fate.READY


@pytest.mark.parametrize(
    ("state", "fate"),
    [
        (JobState.OVER, Fate.READY),
        (JobState.RUNNING, Fate.LIVES),
        (JobState.WAITING, Fate.LIVES),
        (JobState.UNKNOWN, Fate.UNKNOWN),
    ],
)
@pytest.mark.parametrize("reserved", [True, False])
def test_the_queue_is_asked_for_what_is_out_of_sight(
    reserved: bool,
    state: JobState,
    fate: Fate,
    launchpad: Any,
    launch: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reserved Firework waits for the job of its number; nothing but the queue knows of that."""
    folder = launch(host="node7", state="RESERVED" if reserved else "RUNNING")
    if reserved:
        launchpad.set_reservation_id(1, "12")
    else:
        claim(launchpad, folder, owner={"host": "node7"}, job={"queue": "slurm", "id": "12"})
    asked: dict[Any, Any] = {}

    def job_states(jobs: dict[Any, Any]) -> dict[Any, JobAnswer]:
        asked.update(jobs)
        return {key: JobAnswer(state, "slurm job 12 is what it is") for key in jobs}

    monkeypatch.setattr(lost_runs, "job_states", job_states)
    finding = the_finding(launchpad)
    assert (finding.fate, finding.evidence) == (fate, "slurm job 12 is what it is")
    assert asked[1]["id"] == "12"


def test_a_reservation_without_a_job_is_taken_back(launchpad: Any, launch: Callable[..., Path]) -> None:
    """qlaunch was killed before it had the number, or a rocket in the middle of taking the Firework."""
    launch(state="RESERVED")
    finding = the_finding(launchpad)
    assert (finding.fate, finding.evidence) == (Fate.READY, "reserved, and no job was submitted for it")
    assert states(launchpad)[1] == "READY"


def test_a_firework_that_was_reserved_without_a_launch_is_ready_again(launchpad: Any, queued: Any) -> None:
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"state": "RESERVED"}})
    reconcile(launchpad)
    assert states(launchpad)[1] == "READY"


def test_pw_x_that_lives_on_is_stopped_before_the_firework_is_ready(
    launchpad: Any, launch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = launch()
    take_folder(folder, "a", 1)
    monkeypatch.setattr("dftfactory.orphans.is_alive", lambda owner: False)
    claim(launchpad, folder)
    environment = {RUN_DIR: str(folder)}
    with subprocess.Popen(["/bin/sleep", "600"], cwd=folder, env=environment, start_new_session=True) as pw:
        while not pw_sessions(folder):
            pass
        finding = the_finding(launchpad, dry_run=True)
        assert finding.fate is Fate.LOST
        assert pw.poll() is None
        finding = the_finding(launchpad)
        assert pw.wait() != 0
    assert f"stopped pw.x in {folder} by force" in finding.evidence
    assert states(launchpad)[1] == "READY"


def test_nothing_is_done_beside_a_pw_x_of_which_nobody_knows(launchpad: Any, launch: Callable[..., Path]) -> None:
    """The note of its rocket is lost: it may be anybody's."""
    folder = launch()
    claim(launchpad, folder)
    environment = {RUN_DIR: str(folder)}
    with subprocess.Popen(["/bin/sleep", "600"], cwd=folder, env=environment, start_new_session=True) as pw:
        while not pw_sessions(folder):
            pass
        finding = the_finding(launchpad)
        assert pw.poll() is None
        pw.kill()
    assert finding.fate is Fate.BLOCKED
    assert f"pw.x lives in {folder}, and it is not known for whom" in finding.evidence
    assert states(launchpad)[1] == "RUNNING"


def test_a_run_that_ends_while_it_is_looked_at_keeps_its_end(
    launchpad: Any, launch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fireworks import FWAction

    claim(launchpad, launch())

    def end_meanwhile(run: Any) -> list[str]:
        launchpad.complete_launch(1, FWAction(stored_data={"its": "own"}), "COMPLETED")
        return []

    monkeypatch.setattr(lost_runs, "_end_orphans", end_meanwhile)
    assert the_finding(launchpad).fate is Fate.LIVES
    assert states(launchpad)[1] == "COMPLETED"


def test_a_dry_run_changes_nothing(launchpad: Any, launch: Callable[..., Path]) -> None:
    claim(launchpad, launch())
    assert the_finding(launchpad, dry_run=True).fate is Fate.LOST
    assert states(launchpad)[1] == "RUNNING"
    assert launchpad.db[COLLECTION].count_documents({}) == 1


def test_a_damaged_label_is_named(launchpad: Any, launch: Callable[..., Path]) -> None:
    folder = launch()
    (folder / "label.json").write_text("{")
    claim(launchpad, folder)
    finding = the_finding(launchpad)
    assert finding.fate is Fate.READY
    assert "label.json is damaged" in finding.evidence


def test_fireworks_of_others_are_not_looked_at(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    from fireworks import Firework, FWorker, ScriptTask

    launchpad.add_wf(Firework(ScriptTask.from_str("true")))
    launchpad.checkout_fw(FWorker(), str(tmp_path), fw_id=3)
    assert reconcile(launchpad) == ([], [])
    assert states(launchpad)[3] == "RUNNING"


def test_claims_of_the_dead_are_given_back(launchpad: Any, launch: Callable[..., Path]) -> None:
    """Their rockets could not do it, since the database was away."""
    claim(launchpad, launch())
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"state": "FIZZLED"}})
    reconcile(launchpad, dry_run=True)
    assert len(Claims(launchpad).all()) == 1
    reconcile(launchpad)
    assert Claims(launchpad).all() == []


def test_gone_is_said_of_what_nobody_can_see_only(
    launchpad: Any, launch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given for one lost run of a node, it must not cost the living ones there."""
    folder = launch(host="node7")
    claim(launchpad, folder, owner={"host": "node7"}, job={"queue": "slurm", "id": "12"})
    monkeypatch.setattr(lost_runs, "job_states", lambda jobs: dict.fromkeys(jobs, JobAnswer(JobState.RUNNING, "runs")))
    assert the_finding(launchpad, gone=["node7"]).fate is Fate.LIVES


def test_out_of_sight_a_stored_label_is_enough(launchpad: Any, launch: Callable[..., Path]) -> None:
    """The database went away between the label and the end of the launch, on another node."""
    launch(host="node7")
    LabelStore(launchpad).put(label_for(specs(launchpad)["a"]))
    assert the_finding(launchpad).fate is Fate.COMPLETED
    assert states(launchpad)[1] == "COMPLETED"


def test_a_softened_label_fails_its_firework_and_is_not_paid_again(launchpad: Any, launch: Callable[..., Path]) -> None:
    folder = launch()
    write_label(folder, label_for(specs(launchpad)["a"], quality="softened"))
    claim(launchpad, folder)
    assert the_finding(launchpad).fate is Fate.FIZZLED
    assert states(launchpad)[1] == "FIZZLED"


def test_an_odd_firework_keeps_nobody_from_the_others(
    launchpad: Any, launch: Callable[..., Path], tmp_path: Path
) -> None:
    """Its specification is one of another version."""
    from fireworks import FWorker

    write_label(launch(), label_for(specs(launchpad)["a"]))
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.config.of_the_future": 1}})
    (tmp_path / "second").mkdir()
    launchpad.checkout_fw(FWorker(), str(tmp_path / "second"), fw_id=2)
    findings, _ = reconcile(launchpad)
    assert [finding.fate for finding in findings] == [Fate.BLOCKED, Fate.READY]
    assert "of_the_future" in findings[0].evidence


def test_the_claim_of_an_earlier_launch_says_nothing_of_this_one(
    launchpad: Any, launch: Callable[..., Path], tmp_path: Path
) -> None:
    """kill -9, `lpad rerun_fws`, and a new rocket that has not come to its own claim yet."""
    folder = launch()
    claim(launchpad, tmp_path / "earlier")
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=folder, stdin=subprocess.PIPE) as python:
        assert the_finding(launchpad).fate is Fate.LIVES
        python.kill()


def test_another_reconcile_that_was_faster_is_let_go_first(
    launchpad: Any, launch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has set the Firework READY, and a rocket runs it again by now."""
    claim(launchpad, launch())

    def begin_again(*_: Any) -> bool:
        launchpad.rerun_fw(1)
        return False

    monkeypatch.setattr(lost_runs, "complete_from_store", begin_again)
    assert the_finding(launchpad).fate is Fate.LIVES


def test_through_a_link_pw_x_is_seen_too(tmp_path: Path) -> None:
    """/home is a link to /data, and a launch folder was given by its name there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "data")
    with subprocess.Popen(["/bin/sleep", "600"], env={RUN_DIR: str(tmp_path / "data" / "run")}) as pw:
        while not pw_sessions(tmp_path / "data"):
            pass
        seen = list(pw_sessions(tmp_path / "home").values())
        pw.kill()
    assert seen == [tmp_path / "data" / "run"]


# Jobs that the queue has ended


@pytest.fixture
def job_ended(launchpad: Any, launch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Finding]:
    """Return a function that lets the queue say how the job of the lost run of Firework 1 has ended, and reconciles."""
    from fireworks import FWorker

    def end(word: str) -> Finding:
        folder = launch() if not launchpad.launches.count_documents({}) else Path("/nonexistent")
        if folder == Path("/nonexistent"):
            launchpad.checkout_fw(FWorker(), str(folder), fw_id=1)
        claim(launchpad, folder, job={"queue": "slurm", "id": "12"})
        said = JobAnswer(JobState.OVER, f"slurm job 12: {word}", word)
        monkeypatch.setattr(lost_runs, "job_states", lambda jobs: dict.fromkeys(jobs, said))
        [finding] = [found for found in reconcile(launchpad)[0] if found.fw_id == 1]
        return finding

    return end


@pytest.mark.parametrize(
    ("word", "key", "value"), [("TIMEOUT", "walltime_seconds", 3600), ("OUT_OF_MEMORY", "memory_mb", 8000)]
)
def test_a_run_whose_job_was_killed_gets_more_of_what_it_lacked(
    word: str, key: str, value: int, launchpad: Any, job_ended: Callable[[str], Finding]
) -> None:
    from test_next_job import RESOURCES

    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.resources": RESOURCES}})
    finding = job_ended(word)
    assert finding.fate is Fate.READY
    assert "goes on in a job of" in finding.evidence
    spec = specs(launchpad)["a"]
    assert (spec["resources"][key], spec["_category"]) == (value, "small")
    assert sum(spec["jobs"].values()) == 1


def test_a_cancelled_job_counts_for_nothing(launchpad: Any, job_ended: Callable[[str], Finding]) -> None:
    assert job_ended("CANCELLED").fate is Fate.READY
    assert "jobs" not in specs(launchpad)["a"]


def test_a_structure_that_kills_each_of_its_jobs_fails_in_the_end(
    launchpad: Any, queued: Any, job_ended: Callable[[str], Finding]
) -> None:
    fates = [job_ended("OUT_OF_MEMORY").fate for _ in range(10)]
    assert fates == [Fate.READY] * 9 + [Fate.FIZZLED]
    sync(queued, launchpad)
    row = queued.get(calculation_id="a")
    assert (row.status, row.failure) == ("FAILED", "OUT_OF_MEMORY")
    assert row.reason.startswith("a: OUT_OF_MEMORY: it has had 10 jobs of at most 10 (10 ended with OUT_OF_MEMORY)")


def test_an_offline_run_out_of_sight_that_has_had_all_its_jobs_fails(
    launchpad: Any, launch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is on another machine, so that for the LaunchPad it has never begun."""
    folder = launch(state="RESERVED")
    launch_id = launchpad.launches.find_one({"fw_id": 1})["launch_id"]
    launchpad.set_reservation_id(launch_id, "77")
    launchpad.add_offline_run(launch_id, 1, "")
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.jobs": {"WALLTIME": 9}}})
    folder.rmdir()
    answer = JobAnswer(JobState.OVER, "job 77 is over: TIMEOUT", "TIMEOUT")
    monkeypatch.setattr(lost_runs, "job_states", lambda jobs: dict.fromkeys(jobs, answer))
    assert the_finding(launchpad).fate is Fate.FIZZLED
    assert states(launchpad)[1] == "FIZZLED"


def test_a_reservation_whose_job_was_cancelled_keeps_what_it_asks_for(
    launchpad: Any, launch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"spec._queueadapter": {"mem": "8000M"}, "spec.jobs": {"WALLTIME": 3}, "spec._category": "large"}
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": asked})
    launch(state="RESERVED")
    launchpad.set_reservation_id(1, "12")
    said = JobAnswer(JobState.OVER, "slurm job 12: CANCELLED", "CANCELLED")
    monkeypatch.setattr(lost_runs, "job_states", lambda jobs: dict.fromkeys(jobs, said))
    assert the_finding(launchpad).fate is Fate.READY
    assert states(launchpad)[1] == "READY"
    assert {f"spec.{name}": specs(launchpad)["a"][name] for name in ("_queueadapter", "jobs", "_category")} == asked
