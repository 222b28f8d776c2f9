"""The local LaunchPad holds under several processes, kill -9 and mix-ups; load_launchpad fails fast and in one line."""

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
from dftfactory.launchpad import (
    LAUNCHPAD_FILE,
    load_launchpad,
    local_launchpad_status,
    start_local_launchpad,
    stop_local_launchpad,
)
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

PATIENT = "mongoclient_kwargs: {serverSelectionTimeoutMS: 60000}\n"


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
    own = _launchpad_file(tmp_path, "host: mongodb://mongo.example.org/fireworks\nuri_mode: true\nname: fireworks\n")
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


def test_unreachable_launchpad_gives_one_line_within_seconds_and_no_password(tmp_path, monkeypatch):
    """pymongo itself would wait for 30 s, and the file asks for 60."""
    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 1.0)
    host = f"mongodb://alice:s3cret@127.0.0.1:{_closed_port()}/fireworks?authSource=admin"
    file = _launchpad_file(tmp_path, f"host: {host}\nuri_mode: true\nname: fireworks\n" + PATIENT)
    started = time.monotonic()
    message = r"no LaunchPad answers at 127\.0\.0\.1:\d+ within 1 s: check host"
    with pytest.raises(LaunchPadError, match=message) as caught:
        load_launchpad(file)
    assert time.monotonic() - started < 5
    _assert_one_line_without("s3cret", caught.value)


def test_stopped_local_launchpad_says_how_to_start_it(tmp_path, monkeypatch):
    """The file says which folder it belongs to, also where it was copied to."""
    from dftfactory.launchpad import LAUNCHPAD_FILE_TEXT

    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 0.5)
    file = _launchpad_file(tmp_path, LAUNCHPAD_FILE_TEXT.format(folder="/home/me/launchpad", port=_closed_port()))
    with pytest.raises(LaunchPadError, match="run `dftfactory launchpad start --dir /home/me/launchpad`"):
        load_launchpad(file)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("host: [s3cret\n", r"is not valid YAML \(line \d\)"),
        ("password: s3cret: s3cret\n", r"is not valid YAML \(line 1\)"),
        ("", "is no LaunchPad file: expected `host"),
        ("- s3cret\n", "is no LaunchPad file: expected `host"),
        ("port: 27017\npassword: s3cret\n", "is no LaunchPad file: expected `host"),
        ("host: localhost\nport: many\npassword: s3cret\n", "port must be an instance of int"),
        ("host: localhost\nlogdir: /no/such/folder\n", "No such file or directory"),
        ("host: localhost\nstrm_lvl: LOUD\n", "LOUD"),
        ("host: mongodb://alice:s3cret@h/db\nuri_mode: true\n", "has a URI and no `name"),
        ("host: mongodb://alice:x/s3cret@h.example/db\nuri_mode: true\nname: db\n", "cannot be used for h.example "),
        ("host: mongodb://alice:s3cret:@@h.example/db\nuri_mode: true\nname: db\n", "cannot be used for h.example "),
    ],
)
def test_unusable_launchpad_file_is_one_clear_line_without_the_password(text, complaint, tmp_path):
    with pytest.raises(LaunchPadError, match=complaint) as caught:
        load_launchpad(_launchpad_file(tmp_path, text))
    _assert_one_line_without("s3cret", caught.value)


def test_binary_and_missing_launchpad_files_are_named(tmp_path):
    with pytest.raises(LaunchPadError, match=r"cannot read .*no\.yaml: No such file"):
        load_launchpad(tmp_path / "no.yaml")
    (tmp_path / LAUNCHPAD_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LaunchPadError, match="is not valid YAML"):
        load_launchpad(tmp_path / LAUNCHPAD_FILE)


@pytest.mark.mongodb
def test_database_that_is_no_launchpad_yet_says_so(local_launchpad, tmp_path):
    """FireWorks itself fails later, when the first Firework asks for an id."""
    file = _launchpad_file(tmp_path, f"host: 127.0.0.1\nport: {local_launchpad.port}\nname: empty\n")
    with pytest.raises(LaunchPadError, match=r"database 'empty' at .* is not a LaunchPad yet: run `lpad -l .* reset`"):
        load_launchpad(file)


@pytest.mark.mongodb
def test_current_folder_comes_before_the_local_default_and_fireworks_configuration(
    local_launchpad, monkeypatch, tmp_path
):
    """Each place is looked into when the one before has no file."""
    monkeypatch.chdir(tmp_path)
    ours = local_launchpad.launchpad_file.read_text()
    elsewhere = _launchpad_file(tmp_path / "configured", ours.replace("authsource: null", "authsource: configured"))
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", str(elsewhere))
    assert load_launchpad().authsource == "configured"
    _launchpad_file(tmp_path / "launchpad", ours.replace("authsource: null", "authsource: default"))
    assert load_launchpad().authsource == "default"
    _launchpad_file(tmp_path, ours.replace("authsource: null", "authsource: current"))
    assert load_launchpad().authsource == "current"


def test_no_launchpad_anywhere_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", None)
    with pytest.raises(LaunchPadError, match="run `dftfactory launchpad start` for a local LaunchPad, or write one"):
        load_launchpad()


@pytest.mark.mongodb
def test_opening_a_launchpad_leaves_standard_output_alone(local_launchpad):
    """`dftfactory export > train.extxyz` must not begin with a log line."""
    code = (
        "from dftfactory.launchpad import load_launchpad; from pathlib import Path; from fireworks import *;"
        f"lp = load_launchpad(Path({str(local_launchpad.launchpad_file)!r}));"
        "lp.m_logger.warning('a warning')"
    )
    quiet = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert quiet.stdout == ""
    assert "a warning" in quiet.stderr


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

        monkeypatch.setattr("dftfactory.launchpad.metadata.version", version)

    return pretend


def _write_state(folder: Path, **changes: object) -> None:
    folder.mkdir(exist_ok=True)
    state = {"pid": 1, "port": _closed_port(), "hostname": os.uname().nodename, "started": 0.0, "process": ""} | changes
    (folder / "server.json").write_text(json.dumps(state))


def _launchpad_file(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / LAUNCHPAD_FILE
    file.write_text(text)
    return file


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _assert_one_line_without(secret: str, error: LaunchPadError) -> None:
    assert secret not in json.dumps(error.to_dict())
    assert secret not in str(error)
    assert "\n" not in str(error)


def _wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
