"""FireWorks' offline mode with FireWorks' own commands: the rocket never sees the database, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import monty.io
import pytest
from ase import Atoms
from fireworks import FWAction, FWorker, LaunchPad
from fireworks.core import rocket
from queue_helpers import label_for, specs, states
from ruamel.yaml import YAML

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.firetasks import RunDFT
from dftfactory.labels import read_label, write_label
from dftfactory.launchpad import load_launchpad
from dftfactory.local_launchpad import start_local_launchpad, stop_local_launchpad
from dftfactory.lost_labels import recover_labels
from dftfactory.offline import (
    OfflineLaunch,
    OfflineState,
    bring_home,
    close,
    find_offline_launches,
    give_zopen_its_mode,
    read_state,
)
from dftfactory.pseudos import load_pseudopotentials
from dftfactory.store import LabelStore
from dftfactory.workflows import make_workflow

FW_CONFIGS = Path(__file__).parents[1] / "fw_configs"
OFFLINE = "exec rlaunch -c /path/to/this/folder singleshot --offline"
FakePw = Callable[..., WorkerConfig]


@pytest.fixture
def stock_zopen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rocket as FireWorks has it, whatever ran before in this process."""
    monkeypatch.setattr(rocket, "zopen", monty.io.zopen)


@pytest.fixture
def queue_firework(launchpad: LaunchPad, si_atoms: Atoms, fake_config: DFTConfig, tmp_path: Path) -> Callable[[], Path]:
    """Make a function that queues a Firework, if none is READY, and reserves it for offline mode in a new folder."""

    def make() -> Path:
        if not launchpad.fireworks.count_documents({}):
            add_firework(launchpad, si_atoms, fake_config)
        folder = tmp_path / f"launch_{launchpad.launches.count_documents({})}"
        folder.mkdir()
        firework, launch_id = launchpad.reserve_fw(FWorker(), str(folder))
        # As `qlaunch` does it.
        firework.to_file(str(folder / "FW.json"))
        write_state(folder, launch_id)
        launchpad.add_offline_run(launch_id, firework.fw_id, firework.name)
        return folder

    return make


def add_firework(launchpad: LaunchPad, atoms: Atoms, config: DFTConfig) -> None:
    folder = Path(config.pseudopotential_dir or "")
    launchpad.add_wf(make_workflow(atoms, "a", config, load_pseudopotentials(["Si"], folder, config.pseudopotentials)))


def environment(**more: str) -> dict[str, str]:
    """They find the same packages as we do, and FireWorks' commands, from every folder."""
    packages = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    commands = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return os.environ | {"PYTHONPATH": packages, "PATH": commands} | more


def run(folder: Path, *words: str, **more: str) -> str:
    """Run one of FireWorks' commands as it is, in a folder, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"fireworks.scripts.{words[0]}_run", *words[1:]],
        cwd=folder,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.stdout


def offline_words(folder: Path, worker: WorkerConfig) -> list[str]:
    with (folder / "my_fworker.yaml").open("w") as file:
        YAML(typ="safe").dump({"name": "test", "category": "", "query": "{}", "env": worker.to_dict()}, file)
    return ["rlaunch", "-w", str(folder / "my_fworker.yaml"), "singleshot", "--offline"]


def lpad_recover_offline(launchpad: LaunchPad) -> None:
    """What the command does, in this process."""
    for launch in list(launchpad.offline_runs.find({"completed": False, "deprecated": False})):
        launchpad.recover_offline(launch["launch_id"])


def write_state(folder: Path, launch_id: int = 1, **values: str) -> None:
    """What a rocket leaves that was killed, or has not begun."""
    (folder / "FW_offline.json").write_text(json.dumps({"launch_id": launch_id, **values}))


def last_launch(launchpad: LaunchPad) -> dict[str, Any]:
    return dict(launchpad.launches.find_one(sort=[("launch_id", -1)]))


def recover(launchpad: LaunchPad) -> tuple[int, list[str]]:
    """`dftfactory recover`: how many Fireworks it has brought to their end, and what it says besides."""
    summary = recover_labels(launchpad)
    return summary.completed, summary.problems


def the_launch(launchpad: LaunchPad) -> OfflineLaunch:
    (launch,) = find_offline_launches(launchpad)
    return launch


# The road


@pytest.mark.pw
@pytest.mark.mongodb
def test_a_job_of_qlaunch_computes_a_label_while_the_database_is_away(
    server_folder: Path, si_atoms: Atoms, config: DFTConfig, tmp_path: Path
) -> None:
    """The shipped files, `qlaunch -r`, the job in a shell, and `lpad recover_offline`; the server is down meanwhile."""
    local = start_local_launchpad(server_folder)
    launchpad = load_launchpad(local.launchpad_file)
    add_firework(launchpad, si_atoms, config)
    (tmp_path / "work").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/sh\ntest -f "$1" && echo Submitted batch job 77\n')
    sbatch.chmod(0o755)
    files = shipped_files(tmp_path / "config", local.launchpad_file)
    settings = {"FW_CONFIG_FILE": str(files / "FW_config.yaml")}
    with_queue = settings | {"PATH": os.pathsep.join((str(sbatch.parent), os.environ["PATH"]))}

    run(tmp_path / "work", "qlaunch", "-c", str(files), "-r", "singleshot", **with_queue)
    assert states(launchpad) == {1: "RESERVED"}
    stop_local_launchpad(server_folder)
    script = tmp_path / "work" / "FW_submit.script"
    job = subprocess.run(["/bin/sh", str(script)], env=environment(), capture_output=True, text=True, timeout=120)
    assert "Traceback" not in job.stdout + job.stderr
    start_local_launchpad(server_folder)
    run(tmp_path, "lpad", "-l", str(local.launchpad_file), "recover_offline")

    assert states(launchpad) == {1: "COMPLETED"}
    launch = last_launch(launchpad)
    assert launch["state_history"][0]["reservation_id"] == "77"
    stored = launch["action"]["stored_data"]
    label = read_label(Path(stored["run_dir"]))
    assert label is not None
    # Two Si atoms in LDA: -15.8 Ry for the cell, times 13.6 eV.
    assert stored["energy"] == label["result"]["energy"] == pytest.approx(-215, abs=1)
    assert stored["fingerprint"] == label["fingerprint"]

    assert recover_labels(launchpad).stored == 1
    assert LabelStore(launchpad).get(label["fingerprint"]) == label
    launchpad.connection.close()


def shipped_files(folder: Path, launchpad_file: Path) -> Path:
    """fw_configs with the edits that its comments ask for, for a laptop with the stand-in of a queue."""
    folder.mkdir()
    for name in ("FW_config.yaml", "my_fworker.yaml", "my_qadapter.yaml"):
        text = (FW_CONFIGS / name).read_text()
        for before, after in (
            ("\nrocket_launch:", "\n# rocket_launch:"),
            (f"\n# rocket_launch: {OFFLINE}\n", f"\nrocket_launch: {OFFLINE}\n"),
            ("\n  mpi_command:", "\n  # mpi_command:"),
            ("/path/to/this/folder", str(folder)),
        ):
            text = text.replace(before, after)
        (folder / name).write_text(text)
    (folder / "my_launchpad.yaml").write_text(launchpad_file.read_text())
    return folder


@pytest.mark.mongodb
def test_a_failure_arrives_with_its_details(
    launchpad: LaunchPad, queue_firework: Callable[[], Path], fake_pw: FakePw
) -> None:
    folder = queue_firework()
    run(folder, *offline_words(folder, fake_pw("nml_unknown_key")))
    assert the_launch(launchpad).state is OfflineState.ENDED
    lpad_recover_offline(launchpad)
    assert states(launchpad) == {1: "FIZZLED"}
    details = last_launch(launchpad)["action"]["stored_data"]["_exception"]["_details"]
    assert details["failure"] == "INPUT_ERROR"
    assert details["history"]


# The call that monty refuses, in the versions for Python 3.11 and later


refuses = pytest.mark.skipif(sys.version_info < (3, 11), reason="the monty of Python 3.10 opens without a mode")


@refuses
def test_without_help_the_rocket_opens_nothing(stock_zopen: None, tmp_path: Path) -> None:
    """When this fails, FireWorks or monty has been repaired, and `give_zopen_its_mode` can go."""
    with pytest.raises(TypeError, match="mode"):
        rocket.zopen(str(tmp_path / "FW_offline.json"))


@refuses
def test_a_task_that_is_read_gives_the_rocket_a_mode(stock_zopen: None, tmp_path: Path) -> None:
    path = tmp_path / "FW_offline.json"
    RunDFT.from_dict({"_fw_name": "{{dftfactory.firetasks.RunDFT}}"})
    helped = rocket.zopen
    with rocket.zopen(str(path), "wt") as file:
        file.write("{}")
    with rocket.zopen(str(path)) as file:
        assert file.read() == "{}"
    give_zopen_its_mode()
    assert rocket.zopen is helped
    with pytest.raises(TypeError, match="mode"):
        monty.io.zopen(str(path))  # monty itself stays as it is


def test_a_zopen_that_needs_no_mode_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(filename: str, mode: str | None = None, **options: Any) -> None: ...

    def oldest(*args: Any, **options: Any) -> None: ...

    for zopen in (older, oldest):
        monkeypatch.setattr(rocket, "zopen", zopen)
        give_zopen_its_mode()
        assert rocket.zopen is zopen
    monkeypatch.delattr(rocket, "zopen")  # FireWorks may do without it one day
    give_zopen_its_mode()
    assert not hasattr(rocket, "zopen")


def test_importing_changes_nothing_in_fireworks() -> None:
    code = (
        "import dftfactory.firetasks, monty.io; from fireworks.core import rocket;print(rocket.zopen is monty.io.zopen)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


# What the folders show, and what is made of it


@pytest.mark.mongodb
def test_a_rocket_that_was_killed_is_running_until_somebody_finds_it_lost(
    launchpad: LaunchPad, queue_firework: Callable[[], Path], tmp_path: Path
) -> None:
    """`lpad recover_offline` keeps the time of its own first call as that of the last ping; the rocket's counts."""
    pw = tmp_path / "pw.x"
    pw.write_text("#!/bin/sh\nexec sleep 30\n")
    pw.chmod(0o755)
    folder = queue_firework()
    words = offline_words(folder, WorkerConfig(pw_command=[str(pw)]))
    process = subprocess.Popen(
        [sys.executable, "-m", "fireworks.scripts.rlaunch_run", *words[1:]], cwd=folder, env=environment()
    )
    while read_state(folder) is not OfflineState.RUNNING:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    long_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    (folder / "FW_ping.json").write_text(json.dumps({"ping_time": long_ago.isoformat()}))

    lpad_recover_offline(launchpad)
    lpad_recover_offline(launchpad)
    assert states(launchpad) == {1: "RUNNING"}
    assert launchpad.detect_lostruns(expiration_secs=1800)[1] == []

    assert bring_home(launchpad, the_launch(launchpad))
    assert states(launchpad) == {1: "RUNNING"}
    assert launchpad.get_launch_by_id(1).last_pinged == long_ago
    assert launchpad.detect_lostruns(expiration_secs=1800)[1] == [1]


@pytest.mark.mongodb
def test_a_living_rocket_pings_through_its_folder(launchpad: LaunchPad, queue_firework: Callable[[], Path]) -> None:
    """Half an hour after the first look, `lpad detect_lostruns` would find it lost without the later pings."""
    folder = queue_firework()
    now = datetime.now(timezone.utc)
    for ping in (now - timedelta(hours=1), now):
        write_state(folder, started_on=(now - timedelta(hours=2)).isoformat())
        (folder / "FW_ping.json").write_text(json.dumps({"ping_time": ping.isoformat()}))
        assert bring_home(launchpad, the_launch(launchpad))
    assert launchpad.get_launch_by_id(1).last_pinged == now
    assert launchpad.detect_lostruns(expiration_secs=1800)[1] == []


@pytest.mark.mongodb
def test_a_job_that_has_not_begun_stays_reserved(launchpad: LaunchPad, queue_firework: Callable[[], Path]) -> None:
    queue_firework()
    launch = the_launch(launchpad)
    assert launch.state is OfflineState.WAITING
    assert bring_home(launchpad, launch)
    assert states(launchpad) == {1: "RESERVED"}


@pytest.mark.mongodb
def test_a_file_that_cannot_be_read_now_does_not_fail_the_firework(
    launchpad: LaunchPad, queue_firework: Callable[[], Path], fake_pw: FakePw
) -> None:
    """The rocket was just writing it: `lpad recover_offline` would make it FIZZLED and never look again."""
    folder = queue_firework()
    run(folder, *offline_words(folder, fake_pw("converged")))
    whole = (folder / "FW_offline.json").read_text()
    (folder / "FW_offline.json").write_text(whole[: len(whole) // 2])
    launch = the_launch(launchpad)
    assert launch.state is OfflineState.DAMAGED
    assert not bring_home(launchpad, launch)
    assert states(launchpad) == {1: "RESERVED"}
    (folder / "FW_offline.json").write_text(whole)
    assert recover(launchpad) == (1, [])
    assert states(launchpad) == {1: "COMPLETED"}
    stored = last_launch(launchpad)["action"]["stored_data"]
    assert LabelStore(launchpad).get(stored["fingerprint"]) == read_label(folder)
    assert find_offline_launches(launchpad) == []


@pytest.mark.mongodb
def test_lpad_fails_a_firework_whose_file_is_cut(launchpad: LaunchPad, queue_firework: Callable[[], Path]) -> None:
    """When this fails, FireWorks has been repaired, and `bring_home` can do less."""
    folder = queue_firework()
    (folder / "FW_offline.json").write_text("")
    launchpad.recover_offline(1, ignore_errors=True)
    assert states(launchpad) == {1: "RESERVED"}
    lpad_recover_offline(launchpad)
    assert states(launchpad) == {1: "FIZZLED"}


@pytest.mark.mongodb
def test_a_folder_that_is_not_to_be_seen_from_here_is_left_alone(
    launchpad: LaunchPad, queue_firework: Callable[[], Path]
) -> None:
    folder = queue_firework()
    folder.rename(folder.parent / "elsewhere")
    launch = the_launch(launchpad)
    assert launch.state is OfflineState.UNSEEN
    assert not bring_home(launchpad, launch)
    assert states(launchpad) == {1: "RESERVED"}


@pytest.mark.mongodb
@pytest.mark.filterwarnings("error:Unable to find FW_ping")  # among the lines of `dftfactory recover`
@pytest.mark.parametrize("left", ['{"launch_id": 1, "started_on": "2026-01-01T00:00:00+00:00"}', ""])
def test_the_label_of_a_rocket_that_was_killed_comes_home(
    left: str, launchpad: LaunchPad, queue_firework: Callable[[], Path]
) -> None:
    """Between the label and the end, or while it wrote the end; the LaunchPad knows the launch as reserved."""
    folder = queue_firework()
    label = label_for(specs(launchpad)["a"])
    write_label(folder, label)
    (folder / "FW_offline.json").write_text(left)
    assert recover(launchpad) == (1, [])
    assert states(launchpad) == {1: "COMPLETED"}
    assert LabelStore(launchpad).get(label["fingerprint"]) == label
    assert find_offline_launches(launchpad) == []
    assert recover(launchpad) == (0, [])


@pytest.mark.mongodb
def test_what_cannot_be_read_is_said(launchpad: LaunchPad, queue_firework: Callable[[], Path]) -> None:
    folder = queue_firework()
    assert recover(launchpad) == (0, [])
    (folder / "FW_offline.json").unlink()
    assert recover(launchpad) == (0, [f"Firework 1 runs offline, and {folder}/FW_offline.json cannot be read now"])
    folder.rename(folder.parent / "elsewhere")
    (problem,) = recover(launchpad)[1]
    assert problem.endswith("is not to be seen from here")
    assert states(launchpad) == {1: "RESERVED"}


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ('{"launch_id":1}', OfflineState.WAITING),
        ('{"launch_id": 1, "started_on": "2026-01-01T00:00:00+00:00"}', OfflineState.RUNNING),
        ('{"launch_id": 1, "started_on": "2026-01-01T00:00:00+00:00", "fwaction": {}}', OfflineState.DAMAGED),
        ("[]", OfflineState.WAITING),
        ("3", OfflineState.DAMAGED),
        ("null", OfflineState.DAMAGED),
        ("", OfflineState.DAMAGED),
        ('{"launch_id"', OfflineState.DAMAGED),
    ],
)
def test_every_text_has_a_state(text: str, state: OfflineState, tmp_path: Path) -> None:
    (tmp_path / "FW_offline.json").write_text(text)
    assert read_state(tmp_path) is state


def test_an_empty_folder_is_damaged(tmp_path: Path) -> None:
    assert read_state(tmp_path) is OfflineState.DAMAGED


# Once more


@pytest.mark.mongodb
def test_a_launch_that_was_given_up_is_no_longer_looked_at(
    launchpad: LaunchPad, queue_firework: Callable[[], Path]
) -> None:
    folder = queue_firework()
    write_state(folder, started_on=datetime.now(timezone.utc).isoformat())
    assert bring_home(launchpad, the_launch(launchpad))
    launchpad.rerun_fw(1)
    assert find_offline_launches(launchpad) == []
    lpad_recover_offline(launchpad)
    assert states(launchpad) == {1: "READY"}


@pytest.mark.mongodb
def test_a_firework_that_was_completed_otherwise_stays_so(
    launchpad: LaunchPad, queue_firework: Callable[[], Path]
) -> None:
    """Its label was found in a folder whose file is cut; `lpad recover_offline` would still fail it."""
    folder = queue_firework()
    (folder / "FW_offline.json").write_text("")
    launchpad.complete_launch(1, FWAction(), "COMPLETED")
    close(launchpad, 1)
    assert find_offline_launches(launchpad) == []
    lpad_recover_offline(launchpad)
    assert states(launchpad) == {1: "COMPLETED"}


@pytest.mark.mongodb
def test_a_label_that_an_earlier_launch_has_left_is_not_computed_again(
    launchpad: LaunchPad, queue_firework: Callable[[], Path], fake_pw: FakePw, launches: Callable[[], list[str]]
) -> None:
    """Its rocket was killed after the label: the next one, in another folder and without the database, finds it."""
    first = queue_firework()
    write_label(first, label_for(specs(launchpad)["a"]))
    write_state(first, started_on=datetime.now(timezone.utc).isoformat())
    assert bring_home(launchpad, the_launch(launchpad))
    launchpad.rerun_fw(1)
    close(launchpad, 1)

    second = queue_firework()
    run(second, *offline_words(second, fake_pw("converged")))

    assert bring_home(launchpad, the_launch(launchpad))
    assert states(launchpad) == {1: "COMPLETED"}
    assert last_launch(launchpad)["action"]["stored_data"]["run_dir"] == str(first)
    assert launches() == []


# Another job


@pytest.mark.mongodb
def test_a_calculation_that_ran_out_of_time_offline_goes_on_in_another_job(
    launchpad: LaunchPad, queue_firework: Callable[[], Path], fake_pw: FakePw, launches: Callable[[], list[str]]
) -> None:
    """The rocket could not tell the LaunchPad; `recover` reads what it has left, and a second time changes nothing."""
    worker = fake_pw("max_seconds", "converged")
    first = queue_firework()
    script = Path(worker.pw_command[0]).with_name("pw.sh")
    # The queue warns, and pw.x has stopped by then.
    script.write_text(f'#!/bin/sh\nkill -USR1 $PPID\nsleep 0.5\nexec {worker.pw_command[0]} "$@"\n')
    script.chmod(0o755)
    run(first, *offline_words(first, worker.model_copy(update={"pw_command": [str(script)]})))
    assert recover(launchpad) == (1, [])
    assert states(launchpad) == {1: "READY"}
    assert specs(launchpad)["a"]["jobs"]["WALLTIME"] == 1
    assert recover(launchpad) == (0, [])
    second = queue_firework()
    run(second, *offline_words(second, worker))
    assert recover(launchpad)[1] == []
    assert states(launchpad) == {1: "COMPLETED"}
    assert last_launch(launchpad)["action"]["stored_data"]["run_dir"] == str(first)
