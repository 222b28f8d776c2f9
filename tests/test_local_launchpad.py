"""The local LaunchPad holds under several processes at once, kill -9 and mix-ups, and is nobody else's."""

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
from dftfactory.firetasks import RunDFT
from dftfactory.launchpad import LAUNCHPAD_FILE, load_launchpad, read_launchpad_file
from dftfactory.local_launchpad import local_launchpad_status, start_local_launchpad, stop_local_launchpad
from dftfactory.server_mends import SECANTUS_VERSION

# A process that adds 15 Fireworks, each of which leaves one line in a file of its own, and runs what it finds.
WORKER = """
import sys, time
from pathlib import Path
from fireworks import Firework, FWorker, LaunchPad, ScriptTask
from fireworks.core.rocket_launcher import rapidfire

worker, folder = sys.argv[1], Path(sys.argv[2])
launchpad = LaunchPad.from_file(str(folder / "launchpad.json"))
launchpad.connection.admin.command("ping")
launches = folder / f"worker-{worker}"
launches.mkdir()
(folder / f"ready-{worker}").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
for number in range(15):
    name = f"{worker}-{number}"
    launchpad.add_wf(Firework(ScriptTask.from_str(f"echo ran >> {folder}/runs/{name}"), name=name))
rapidfire(launchpad, FWorker(), m_dir=str(launches), strm_lvl="CRITICAL", sleep_time=1)
"""


@pytest.mark.mongodb
def test_four_processes_at_once_run_each_firework_exactly_once(launchpad, tmp_path):
    """FireWorks draws ids and checks out work with findAndModify; without the server's lock ids were given twice."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "launchpad.json").write_text(json.dumps(launchpad.to_dict() | {"strm_lvl": "CRITICAL"}))
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(number), str(tmp_path)]) for number in range(4)]
    try:
        _wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 4)
        (tmp_path / "go").touch()
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    runs = {file.name: file.read_text() for file in (tmp_path / "runs").iterdir()}
    assert runs == {f"{worker}-{number}": "ran\n" for worker in range(4) for number in range(15)}

    fireworks = list(launchpad.fireworks.find({}, {"fw_id": 1, "name": 1, "state": 1, "launches": 1}))
    assert sorted(firework["fw_id"] for firework in fireworks) == list(range(1, 61))
    assert {firework["name"] for firework in fireworks} == set(runs)
    assert Counter(firework["state"] for firework in fireworks) == {"COMPLETED": 60}

    launches = list(launchpad.launches.find({}, {"launch_id": 1, "fw_id": 1, "state": 1}))
    assert sorted(launch["launch_id"] for launch in launches) == list(range(1, 61))
    assert {launch["launch_id"]: launch["fw_id"] for launch in launches} == {
        firework["launches"][0]: firework["fw_id"] for firework in fireworks
    }
    assert launchpad.workflows.count_documents({"state": "COMPLETED"}) == 60


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
def test_clients_wait_until_a_killed_server_is_there_again(server_folder):
    """FireWorks drops the end of a calculation that it cannot store. The file's settings let it wait for 2 minutes."""
    first = start_local_launchpad(server_folder)
    launchpad = load_launchpad(first.launchpad_file)
    done = threading.Event()
    rounds: list[int] = []

    def read_and_write() -> None:
        while not done.is_set():
            launchpad.fireworks.update_one({"_id": 1}, {"$set": {"round": len(rounds)}}, upsert=True)
            launchpad.fireworks.find_one_and_update({"_id": 1}, {"$set": {"state": "RUNNING"}})
            rounds.append(len(rounds))

    with ThreadPoolExecutor(1) as threads:
        client = threads.submit(read_and_write)
        _wait_for(lambda: len(rounds) > 20)
        os.kill(first.pid, signal.SIGKILL)
        _wait_for(lambda: not local_launchpad_status(server_folder).running)
        # Rocket and server may meet in any order; here the client finds nobody at least once.
        time.sleep(1)
        before = len(rounds)
        second = start_local_launchpad(server_folder)
        _wait_for(lambda: len(rounds) > before + 20)
        done.set()
        client.result()
    assert first.launchpad_file.read_text() == second.launchpad_file.read_text()
    launchpad.connection.close()


@pytest.mark.mongodb
def test_nothing_but_the_handshake_is_answered_without_the_password(local_launchpad):
    """Other users of the machine reach the port; `endSessions` ends sessions whose random ids it is given."""
    from pymongo import MongoClient
    from pymongo.errors import OperationFailure
    from secantus.commands import _HANDLERS

    unauthorized, not_found = 13, 59
    answered = set()
    with MongoClient("127.0.0.1", local_launchpad.port) as stranger:
        for command in _HANDLERS:
            try:
                stranger.fireworks.command({command: "fireworks"})
                answered.add(command)
            except OperationFailure as error:
                if error.code not in (unauthorized, not_found):
                    answered.add(command)
        with pytest.raises(OperationFailure, match="requires authentication"):
            stranger.fireworks.fireworks.find_one()
    logins = {"saslStart", "saslContinue", "authenticate"}
    assert answered == logins | {
        *("hello", "isMaster", "ismaster", "ping", "buildInfo", "buildinfo", "whatsmyuri", "endSessions")
    }


@pytest.mark.mongodb
def test_user_of_the_launchpad_is_not_its_administrator(local_launchpad):
    from pymongo.errors import OperationFailure

    launchpad = load_launchpad(local_launchpad.launchpad_file)
    for command in ({"createUser": "me", "pwd": "me", "roles": ["root"]}, {"setParameter": 1, "logLevel": 1}):
        with pytest.raises(OperationFailure, match="not authorized"):
            launchpad.connection.admin.command(command)
    launchpad.connection.close()


@pytest.mark.mongodb
def test_server_listens_on_loopback_only(local_launchpad):
    """The fourth number of a line of /proc/net/tcp is the state, 0A for listening; addresses are hexadecimal."""
    process = Path(f"/proc/{local_launchpad.pid}")
    sockets = {str(descriptor.readlink()) for descriptor in (process / "fd").iterdir() if descriptor.is_symlink()}
    lines = [(process / "net" / name).read_text().splitlines() for name in ("tcp", "tcp6")]
    fields = [line.split() for line in lines[0] + lines[1]]
    listening = [field[1] for field in fields if field[3] == "0A" and f"socket:[{field[9]}]" in sockets]
    assert listening == [f"0100007F:{local_launchpad.port:04X}"]


@pytest.mark.mongodb
def test_folder_of_an_earlier_version_gets_a_password(server_folder):
    """Its server runs and asks for none, or the file with the password is gone: nobody could log in."""
    earlier = start_local_launchpad(server_folder)
    launchpad = load_launchpad(earlier.launchpad_file)
    launchpad.get_new_fw_id()
    launchpad.connection.close()
    kept = [
        line for line in earlier.launchpad_file.open() if not line.startswith(("username", "password", "authsource"))
    ]
    earlier.launchpad_file.write_text("".join(kept))
    with pytest.raises(LaunchPadError, match=r"refuses database .* \(code 13\): run `dftfactory launchpad start --dir"):
        load_launchpad(earlier.launchpad_file)

    mended = start_local_launchpad(server_folder)

    assert (mended.port, mended.already_running) == (earlier.port, False)
    assert len(read_launchpad_file(mended.launchpad_file)["password"]) == 64
    launchpad = load_launchpad(mended.launchpad_file)
    assert launchpad.get_new_fw_id() == 2
    launchpad.connection.close()


@pytest.mark.mongodb
def test_lost_launchpad_file_is_made_again(server_folder):
    """Its password is gone with it, so the server gets a new one; the LaunchPad stays."""
    earlier = start_local_launchpad(server_folder)
    password = read_launchpad_file(earlier.launchpad_file)["password"]
    earlier.launchpad_file.unlink()
    again = start_local_launchpad(server_folder)
    assert (again.port, again.already_running) == (earlier.port, False)
    assert read_launchpad_file(again.launchpad_file)["password"] != password
    load_launchpad(again.launchpad_file).connection.close()


@pytest.mark.mongodb
def test_wrong_password_says_how_to_mend_the_file(local_launchpad, tmp_path):
    """A copy of the file from before the folder was made anew."""
    copy = tmp_path / LAUNCHPAD_FILE
    password = read_launchpad_file(local_launchpad.launchpad_file)["password"]
    copy.write_text(local_launchpad.launchpad_file.read_text().replace(password, "s3cret"))
    with pytest.raises(LaunchPadError, match=r"\(code 18\): run `dftfactory launchpad start --dir .*`$"):
        load_launchpad(copy)


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
def test_files_are_private_in_a_folder_that_others_can_read(server_folder):
    """A project's folder, files of an earlier version, and a shell that makes every file writable by all."""
    server_folder.mkdir(mode=0o755)
    for name in ("server.log", "start.lock"):
        (server_folder / name).touch(mode=0o644)
    umask = os.umask(0)
    try:
        start_local_launchpad(server_folder)
    finally:
        os.umask(umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in server_folder.iterdir()}
    assert modes == {
        **{"database": 0o700, "server.json": 0o600, "server.log": 0o600, "start.lock": 0o600, LAUNCHPAD_FILE: 0o600}
    }
    assert stat.S_IMODE(server_folder.stat().st_mode) == 0o755


def test_folder_that_others_can_write_to_is_refused(tmp_path, secantus_version):
    """They could put another database there, or a link to a file of ours in the place of the log."""
    secantus_version(SECANTUS_VERSION)
    tmp_path.chmod(0o775)
    with pytest.raises(LaunchPadError, match=r"others can write to .*, and to the LaunchPad in it: run `chmod go-w "):
        start_local_launchpad(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_or_files_of_somebody_else_are_refused(tmp_path, secantus_version, monkeypatch):
    """`/tmp/launchpad`, that another user made before us."""
    secantus_version(SECANTUS_VERSION)
    with monkeypatch.context() as somebody_else:
        somebody_else.setattr("dftfactory.server_process.os.geteuid", lambda: os.getuid() + 1)
        with pytest.raises(LaunchPadError, match="belongs to somebody else: name a folder of your own"):
            start_local_launchpad(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_link_in_the_place_of_a_file_is_not_followed(tmp_path, secantus_version):
    secantus_version(SECANTUS_VERSION)
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "launchpad").mkdir()
    (tmp_path / "launchpad" / "start.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(LaunchPadError, match=r"cannot write .*start\.lock: "):
        start_local_launchpad(tmp_path / "launchpad")
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.mongodb
def test_password_is_nowhere_but_in_its_file(server_folder, tmp_path):
    """After a start, commands, a calculation that fails and one that runs: logs, records, output, `ps`, environment."""
    from fireworks import Firework, ScriptTask

    local = start_local_launchpad(server_folder)
    password = read_launchpad_file(local.launchpad_file)["password"]
    (tmp_path / "logs").mkdir()
    own = tmp_path / LAUNCHPAD_FILE
    text = local.launchpad_file.read_text().replace("logdir: null", f"logdir: {tmp_path / 'logs'}")
    own.write_text(text.replace("strm_lvl: WARNING", "strm_lvl: DEBUG"))
    launchpad = load_launchpad(own)
    for name, task in (("fails", RunDFT()), ("runs", ScriptTask.from_str("touch began; sleep 2; env; ps axeww"))):
        launchpad.add_wf(Firework(task, name=name, spec={"_add_launchpad_and_fw_id": True}))

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    programs = {"rlaunch": "rlaunch_run", "lpad": "lpad_run"}
    commands = [["rlaunch", "-l", str(own), "rapidfire"], ["lpad", "-l", str(own), "get_fws", "-d", "all"]]
    for number, (program, *words) in enumerate(commands):
        command = [sys.executable, "-m", f"fireworks.scripts.{programs[program]}", *words]
        with (tmp_path / f"output-{number}").open("wb") as output:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT)
            if program == "rlaunch":
                _wait_for(lambda: list(tmp_path.glob("launcher_*/began")))
                for pid in (local.pid, process.pid):
                    for file in ("cmdline", "environ"):
                        (tmp_path / f"{pid}.{file}").write_bytes(Path(f"/proc/{pid}/{file}").read_bytes())
            assert process.wait(timeout=60) == 0
    own.write_text(text.replace(f"port: {local.port}", "port: 1").replace("MS: 120000", "MS: 100"))
    refused = subprocess.run(
        [*command[:4], str(own), "get_fws"], capture_output=True, text=True, timeout=150, check=False
    )

    states = {firework["name"]: firework["state"] for firework in launchpad.fireworks.find()}
    assert states == {"fails": "FIZZLED", "runs": "COMPLETED"}
    stored = [document for name in launchpad.db.list_collection_names() for document in launchpad.db[name].find()]
    launchpad.connection.close()
    stop_local_launchpad(server_folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != LAUNCHPAD_FILE]
    assert len(files) > 20
    assert [path for path in files if password.encode() in path.read_bytes()] == []
    assert "specification of the Firework is damaged" in str(stored)
    assert password not in str(stored) + refused.stdout + refused.stderr
    assert "not able to connect" in refused.stderr


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
    with pytest.raises(
        LaunchPadError, match=r"did not start: it ended with exit status 1; the end of .*\.log \| .* \| "
    ):
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
