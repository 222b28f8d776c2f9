"""Only one rocket at a time computes a fingerprint, and a dead one keeps nobody from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from queue_helpers import write_launchpad_file

from dftfactory import claims
from dftfactory.claims import Claims, look_at, make_claim
from dftfactory.owners import this_process
from dftfactory.queues import JobAnswer, JobState

pytestmark = pytest.mark.mongodb

# Takes the claim of Firework 7, says whether it has it, and lives on until its standard input is closed.
OTHER = """
import json, sys
from pathlib import Path
from dftfactory.claims import Claims, make_claim
from dftfactory.launchpad import load_launchpad
claims = Claims(load_launchpad(Path(sys.argv[1])))
sys.stdin.readline()
claim = make_claim("dft1", 7, Path.cwd())
print(json.dumps(claims.take(claim) is None), flush=True)
sys.stdin.read()
"""


def start_other(launchpad: Any, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(write_launchpad_file(launchpad, folder))],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(process: subprocess.Popen[str]) -> bool:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    has_it: bool = json.loads(process.stdout.readline())
    return has_it


@pytest.fixture
def other(launchpad: Any, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the claim of `dft1`."""
    with start_other(launchpad, tmp_path / "other") as process:
        assert go(process)
        yield process
        process.kill()


def claim_of(fw_id: int = 1, **changes: Any) -> dict[str, Any]:
    claim = make_claim("dft1", fw_id, Path.cwd())
    return {**claim, "owner": {**claim["owner"], **changes}}


def test_the_claim_of_a_living_process_stands(launchpad: Any, other: Any) -> None:
    standing = Claims(launchpad).take(claim_of())
    assert standing is not None
    assert (standing["fw_id"], standing["owner"]["pid"]) == (7, other.pid)


def test_the_claim_of_a_dead_process_is_taken_over(launchpad: Any, other: Any) -> None:
    other.kill()
    other.wait()
    mine = claim_of()
    assert Claims(launchpad).take(mine) is None
    assert Claims(launchpad).of_fireworks([1, 7])[1]["token"] == mine["token"]


def test_of_several_processes_at_once_one_has_it(launchpad: Any, tmp_path: Path) -> None:
    processes = [start_other(launchpad, tmp_path / str(n)) for n in range(4)]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        have = [json.loads(process.stdout.readline()) for process in processes if process.stdout is not None]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sorted(have) == [False, False, False, True]


def test_taking_it_twice_is_taking_it_once(launchpad: Any) -> None:
    """The answer to the first try may be lost on its way."""
    claim = claim_of()
    assert Claims(launchpad).take(claim) is None
    assert Claims(launchpad).take(claim) is None


def test_our_own_claim_from_before_is_replaced(launchpad: Any) -> None:
    """`rlaunch rapidfire` could not give it back, since the database was away."""
    assert Claims(launchpad).take(claim_of(fw_id=1)) is None
    assert Claims(launchpad).take(claim_of(fw_id=2)) is None


def test_given_back_it_is_free_and_another_one_stays(launchpad: Any, other: Any) -> None:
    here = Claims(launchpad)
    here.give_back(claim_of(fw_id=7))
    assert here.of_fireworks([7])
    here.give_back(here.of_fireworks([7])[7])
    assert here.take(claim_of()) is None


@pytest.mark.parametrize(
    ("state", "stands"), [(JobState.RUNNING, True), (JobState.WAITING, True), (JobState.OVER, False)]
)
def test_out_of_sight_the_job_decides(
    state: JobState, stands: bool, launchpad: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "job_state", lambda job: JobAnswer(state, f"job {job['id']} is {state.value}"))
    far = {**claim_of(fw_id=1, host="node7"), "job": {"queue": "slurm", "id": "12"}}
    Claims(launchpad).take(far)
    assert (Claims(launchpad).take(claim_of(fw_id=1)) is not None) is stands


@pytest.mark.parametrize(("state", "stands"), [("RUNNING", True), ("READY", False), ("FIZZLED", False)])
def test_out_of_sight_and_without_a_job_the_launchpad_decides(state: str, stands: bool, launchpad: Any) -> None:
    launchpad.fireworks.insert_one({"fw_id": 1, "state": state})
    Claims(launchpad).take({**claim_of(fw_id=1, host="node7"), "job": None})
    assert (Claims(launchpad).take(claim_of(fw_id=2)) is not None) is stands


def test_whoever_gets_the_very_firework_takes_over_what_is_out_of_sight(launchpad: Any) -> None:
    """FireWorks gives it out again only when somebody has found the first launch lost."""
    launchpad.fireworks.insert_one({"fw_id": 1, "state": "RUNNING"})
    Claims(launchpad).take({**claim_of(fw_id=1, host="node7"), "job": None})
    assert Claims(launchpad).take(claim_of(fw_id=1)) is None


def test_a_rocket_out_of_sight_that_pings_keeps_its_claim(launchpad: Any) -> None:
    """`lpad detect_lostruns --rerun` gives its Firework away when its pings were late once."""
    far = {**claim_of(fw_id=1, host="node7"), "job": None}
    Claims(launchpad).take(far)
    now = datetime.now(timezone.utc)
    launch = {"launch_id": 1, "fw_id": 1, "launch_dir": far["launch_dir"], "host": "node7", "state": "RUNNING"}
    launchpad.launches.insert_one({**launch, "state_history": [{"state": "RUNNING", "updated_on": now.isoformat()}]})
    assert Claims(launchpad).take(claim_of(fw_id=1)) is not None
    long_ago = (now - timedelta(hours=1)).isoformat()
    launchpad.launches.update_one({"launch_id": 1}, {"$set": {"state_history.0.updated_on": long_ago}})
    assert Claims(launchpad).take(claim_of(fw_id=1)) is None


def test_a_process_that_has_gone_on_to_another_folder_does_not_work_on_it(tmp_path: Path) -> None:
    claim = make_claim("dft1", 1, tmp_path)
    life = look_at(claim)
    assert life.alive is False
    assert "works on something else by now" in life.evidence
    assert look_at(make_claim("dft1", 1, Path.cwd().parent)).alive is True


def test_what_is_said_names_process_and_host(other: Any, launchpad: Any) -> None:
    claim = Claims(launchpad).of_fireworks([7])[7]
    assert look_at(claim).evidence == f"process {other.pid} on {this_process()['host']} lives"
    assert "out of sight" in look_at({**claim, "owner": {**claim["owner"], "host": "node7"}}).evidence
