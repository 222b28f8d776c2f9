"""The local LaunchPad holds under several processes at once, kill -9 and mix-ups."""

from __future__ import annotations

import configparser
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from dftfactory.errors import LaunchPadError
from dftfactory.launchpad import LAUNCHPAD_FILE, load_launchpad
from dftfactory.local_launchpad import local_launchpad_status, start_local_launchpad, stop_local_launchpad
from dftfactory.local_server import SECANTUS_VERSION

# A process that adds 25 Fireworks, each of which leaves one line in a file of its own, and runs what it finds.
WORKER = """
import sys, time
from pathlib import Path
from fireworks import Firework, FWorker, LaunchPad, ScriptTask
from fireworks.core.rocket_launcher import rapidfire

port, database, worker, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
launchpad = LaunchPad("127.0.0.1", port, database, strm_lvl="CRITICAL")
launchpad.connection.admin.command("ping")
launches = folder / f"worker-{worker}"
launches.mkdir()
(folder / f"ready-{worker}").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
for number in range(25):
    name = f"{worker}-{number}"
    launchpad.add_wf(Firework(ScriptTask.from_str(f"echo ran >> {folder}/runs/{name}"), name=name))
rapidfire(launchpad, FWorker(), m_dir=str(launches), strm_lvl="CRITICAL", sleep_time=1)
"""


@pytest.mark.mongodb
def test_four_processes_at_once_run_each_firework_exactly_once(local_launchpad, launchpad, tmp_path):
    """FireWorks draws ids and checks out work with findAndModify; without the server's lock ids were given twice."""
    (tmp_path / "runs").mkdir()
    arguments = [str(local_launchpad.port), launchpad.name]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, *arguments, str(number), str(tmp_path)]) for number in range(4)
    ]
    try:
        _wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 4)
        (tmp_path / "go").touch()
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    runs = {file.name: file.read_text() for file in (tmp_path / "runs").iterdir()}
    assert runs == {f"{worker}-{number}": "ran\n" for worker in range(4) for number in range(25)}

    fireworks = list(launchpad.fireworks.find({}, {"fw_id": 1, "name": 1, "state": 1, "launches": 1}))
    assert sorted(firework["fw_id"] for firework in fireworks) == list(range(1, 101))
    assert {firework["name"] for firework in fireworks} == set(runs)
    assert Counter(firework["state"] for firework in fireworks) == {"COMPLETED": 100}

    launches = list(launchpad.launches.find({}, {"launch_id": 1, "fw_id": 1, "state": 1}))
    assert sorted(launch["launch_id"] for launch in launches) == list(range(1, 101))
    assert {launch["launch_id"]: launch["fw_id"] for launch in launches} == {
        firework["launches"][0]: firework["fw_id"] for firework in fireworks
    }
    assert launchpad.workflows.count_documents({"state": "COMPLETED"}) == 100


@pytest.mark.mongodb
def test_counter_never_gives_a_number_twice(launchpad):
    """The bare findAndModify, harder than FireWorks uses it: 8 threads, 400 draws."""
    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(lambda _: launchpad.get_new_fw_id(), range(400)))
    assert sorted(drawn) == list(range(1, 401))


@pytest.mark.mongodb
def test_acknowledged_writes_survive_kill_9(server_folder):
    """A write that the client was told about is on disk; the restarted server keeps its port, and the work goes on."""
    from pymongo.errors import PyMongoError

    first = start_local_launchpad(server_folder)
    launchpad = load_launchpad(first.launchpad_file)
    acknowledged: list[int] = []
    killed = threading.Event()

    def write_until_the_server_is_gone() -> None:
        while not killed.is_set():
            try:
                launchpad.db.numbers.insert_one({"_id": len(acknowledged)})
            except PyMongoError:
                return
            acknowledged.append(len(acknowledged))

    writer = threading.Thread(target=write_until_the_server_is_gone)
    writer.start()
    _wait_for(lambda: len(acknowledged) > 200)
    os.kill(first.pid, signal.SIGKILL)
    killed.set()
    _wait_for(lambda: not local_launchpad_status(server_folder).running)
    assert local_launchpad_status(server_folder).died

    second = start_local_launchpad(server_folder)
    writer.join()

    assert (second.port, second.already_running) == (first.port, False)
    found = {number["_id"] for number in launchpad.db.numbers.find()}
    assert found >= set(acknowledged)
    assert len(acknowledged) > 200
    launchpad.connection.close()


@pytest.mark.mongodb
def test_starting_twice_gives_the_running_server(local_launchpad):
    again = start_local_launchpad(local_launchpad.folder)
    assert again == replace(local_launchpad, already_running=True)


@pytest.mark.mongodb
def test_two_starts_at_the_same_time_give_one_server(server_folder):
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(start_local_launchpad, [server_folder, server_folder])
    assert (first.pid, first.port) == (second.pid, second.port)
    assert {first.already_running, second.already_running} == {False, True}


@pytest.mark.mongodb
def test_a_second_start_keeps_what_is_in_the_launchpad(server_folder):
    """The LaunchPad is initialised once: a reset at each start would empty it."""
    from fireworks import Firework, ScriptTask

    first = start_local_launchpad(server_folder)
    launchpad = load_launchpad(first.launchpad_file)
    launchpad.add_wf(Firework(ScriptTask.from_str("true"), name="kept"))
    assert "fw_id_1" in launchpad.fireworks.index_information()
    launchpad.connection.close()
    assert stop_local_launchpad(server_folder)
    assert not local_launchpad_status(server_folder).running

    launchpad = load_launchpad(start_local_launchpad(server_folder).launchpad_file)
    assert [firework["name"] for firework in launchpad.fireworks.find()] == ["kept"]
    assert launchpad.get_new_fw_id() == 2
    launchpad.connection.close()


@pytest.mark.mongodb
def test_files_are_private_and_fireworks_commands_read_them(local_launchpad):
    """The file is FireWorks' own format: `lpad -l` opens it."""
    assert stat.S_IMODE(local_launchpad.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(local_launchpad.launchpad_file.stat().st_mode) == 0o600
    lpad = [sys.executable, "-c", "from fireworks.scripts.lpad_run import lpad; lpad()"]
    arguments = ["-l", str(local_launchpad.launchpad_file), "get_fws", "-d", "count"]
    count = subprocess.run([*lpad, *arguments], capture_output=True, text=True, check=True)
    assert count.stdout.split() == ["0"]


@pytest.mark.mongodb
def test_status_tells_pid_port_and_size(local_launchpad):
    status = local_launchpad_status(local_launchpad.folder)
    assert (status.running, status.died) == (True, False)
    assert (status.pid, status.port) == (local_launchpad.pid, local_launchpad.port)
    assert status.started == local_launchpad.started
    # WiredTiger's journal alone is a file of 10 MB.
    assert 1e7 < status.size < 1e9


@pytest.mark.mongodb
def test_port_taken_by_somebody_else_is_left_to_them(server_folder):
    """The file of an earlier start names a port that another program has taken since."""
    earlier = start_local_launchpad(server_folder)
    stop_local_launchpad(server_folder)
    with socket.socket() as somebody_else:
        somebody_else.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody_else.bind(("127.0.0.1", earlier.port))
        somebody_else.listen()
        moved = start_local_launchpad(server_folder)
    assert moved.port != earlier.port
    assert f"port: {moved.port}\n" in moved.launchpad_file.read_text()


@pytest.mark.mongodb
def test_server_that_dies_at_start_shows_the_end_of_its_log(server_folder):
    """The database was made by something else, here a file where its folder should be."""
    server_folder.mkdir()
    (server_folder / "database").write_text("not a database")
    with pytest.raises(LaunchPadError, match=r"did not start: it ended with exit status 1; the end of .*\.log:\n.*\n"):
        start_local_launchpad(server_folder)
    assert local_launchpad_status(server_folder).pid is None


@pytest.mark.mongodb
def test_recorded_pid_of_a_foreign_process_is_never_killed(server_folder, sleeping_process):
    """After a reboot the pid in server.json belongs to somebody else."""
    _write_state(server_folder, pid=sleeping_process.pid, process="started 12345 ticks after boot 1f6c")
    status = local_launchpad_status(server_folder)
    assert (status.running, status.died) == (False, True)

    assert stop_local_launchpad(server_folder) is False

    assert sleeping_process.poll() is None
    assert local_launchpad_status(server_folder).died is False

    _write_state(server_folder, pid=sleeping_process.pid, process="started 12345 ticks after boot 1f6c")
    assert start_local_launchpad(server_folder).pid != sleeping_process.pid
    assert sleeping_process.poll() is None


def test_stopping_what_does_not_run_is_no_error(tmp_path):
    assert stop_local_launchpad(tmp_path / "never started") is False
    assert not (tmp_path / "never started").exists()
    assert local_launchpad_status(tmp_path / "never started").size == 0


def test_server_of_another_machine_is_not_started_a_second_time(tmp_path, secantus_version):
    """A home folder that two login nodes share: two servers on one database would destroy it."""
    secantus_version(SECANTUS_VERSION)
    _write_state(tmp_path, hostname="login2")
    for act in (start_local_launchpad, stop_local_launchpad, local_launchpad_status):
        with pytest.raises(LaunchPadError, match="was started on login2: stop it there"):
            act(tmp_path)


def test_users_own_launchpad_file_is_not_overwritten(tmp_path, secantus_version):
    secantus_version(SECANTUS_VERSION)
    own = tmp_path / LAUNCHPAD_FILE
    own.write_text("host: mongodb://mongo.example.org/fireworks\nuri_mode: true\nname: fireworks\n")
    before = own.read_bytes()
    with pytest.raises(LaunchPadError, match="is your own and is not overwritten"):
        start_local_launchpad(tmp_path)
    assert own.read_bytes() == before
    assert local_launchpad_status(tmp_path).pid is None


def test_start_without_secantus_names_the_extra(tmp_path, secantus_version):
    secantus_version(None)
    with pytest.raises(LaunchPadError, match=r'pip install "dftfactory\[local\]", or write the URI of a MongoDB'):
        start_local_launchpad(tmp_path)


def test_start_with_another_secantus_names_both_versions(tmp_path, secantus_version):
    """The lock reaches into one version of the server; in another it might be around nothing."""
    secantus_version("0.8.0")
    with pytest.raises(LaunchPadError, match=rf"needs SecantusDB {SECANTUS_VERSION}, found 0\.8\.0"):
        start_local_launchpad(tmp_path)


def test_pinned_server_version_is_the_one_that_setup_cfg_installs():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    assert f"SecantusDB=={SECANTUS_VERSION}" in setup["options.extras_require"]["local"]


@pytest.fixture
def sleeping_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["/bin/sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def secantus_version(monkeypatch):
    """Pretend that this version of SecantusDB is installed; None for none."""

    def pretend(installed: str | None) -> None:
        def version(name: str) -> str:
            if installed is None:
                raise metadata.PackageNotFoundError(name)
            return installed

        monkeypatch.setattr("dftfactory.local_launchpad.metadata.version", version)

    return pretend


def _write_state(folder: Path, **changes: object) -> None:
    folder.mkdir(exist_ok=True)
    state = {"pid": 1, "port": 20000, "hostname": os.uname().nodename, "started": 0.0, "process": ""} | changes
    (folder / "server.json").write_text(json.dumps(state))


def _wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
