"""A LaunchPad on this machine, where there is no MongoDB: start, stop and look at its server.

The server runs in the background (`local_server`), in a folder that holds

    my_launchpad.yaml   what `lpad -l`, `rlaunch -l` and `load_launchpad` read, with the password
    server.json         which process serves the folder; gone after a stop
    server.log          what the server said
    database/           what is in the LaunchPad

All of it is its owner's alone (`keep_private`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from dftfactory.errors import LaunchPadError
from dftfactory.launchpad import FIRST_LINE, LAUNCHPAD_FILE, connect, read_launchpad_file
from dftfactory.local_server import USER
from dftfactory.server_mends import SECANTUS_VERSION
from dftfactory.server_process import (
    ServerProcess,
    end_process,
    forget_server,
    is_running,
    keep_private,
    open_private,
    read_server,
    remember_server,
    write_private,
)

# It answers within 2 s; after a crash it first replays its journal, which takes longer the more there is.
START_SECONDS = 60.0

# FIRST_LINE keeps a user's own file from being overwritten.
LAUNCHPAD_FILE_TEXT = (
    FIRST_LINE
    + """\
# dftfactory launchpad start --dir {folder}
# FireWorks' own commands read it too:   lpad -l my_launchpad.yaml get_fws   rlaunch -l my_launchpad.yaml rapidfire
# The server listens on this machine only, and the password keeps its other users out: this file is for you alone.
host: 127.0.0.1
port: {port}
name: fireworks
username: {user}
password: {password}
authsource: admin
uri_mode: false
# How long a rocket waits, in ms, for a server that was stopped or killed and is started again: after that FireWorks
# drops what it wanted to store.
mongoclient_kwargs: {{serverSelectionTimeoutMS: 120000}}
logdir: null
strm_lvl: WARNING
user_indices: []
wf_user_indices: []
"""
)


@dataclass(frozen=True)
class LocalLaunchPad:
    """A running local server; `launchpad_file` is what FireWorks' commands take after `-l`."""

    folder: Path
    port: int
    pid: int
    started: datetime
    launchpad_file: Path
    already_running: bool


@dataclass(frozen=True)
class LocalLaunchPadStatus:
    """What is known of a folder: `died` means that the server ended without being stopped.

    `pid`, `port` and `started` are those of the running server or of the one that died; `size` is in bytes.
    """

    running: bool
    died: bool
    pid: int | None
    port: int | None
    started: datetime | None
    size: int


def start_local_launchpad(folder: Path) -> LocalLaunchPad:
    """Start the server of a folder, or return the one that is running.

    The folder is made when there is none. The password is made at the first start and kept, as the port is while it is
    free. A server whose password is not known, because it had none yet or the file is gone, is stopped and started
    with a new one. A new database gets FireWorks' counters and indexes.

    Raises
    ------
    LaunchPadError
        SecantusDB is missing or of another version, others can write to the folder, its my_launchpad.yaml is the
        user's own, its server runs on another machine or did not start: then with the last lines of its log.
    """
    _check_secantus_version()
    folder = folder.resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchPadError(f"cannot make the folder {folder}: {error.strerror}", folder=str(folder)) from error
    launchpad_file = folder / LAUNCHPAD_FILE
    keep_private(folder)
    with _only_one_at_a_time(folder):
        earlier = _read_own_settings(launchpad_file)
        password = earlier.get("password") or secrets.token_hex(32)
        server = read_server(folder)
        if server is not None and is_running(server) and not earlier.get("password"):
            end_process(server)
        already_running = server is not None and is_running(server)
        earlier_port = earlier.get("port") if server is None else server.port
        port = server.port if server is not None and already_running else _choose_port(earlier_port)
        # Before the start: a server whose password is nowhere would be of no use.
        write_private(
            launchpad_file,
            LAUNCHPAD_FILE_TEXT.format(folder=folder, port=port, user=USER, password=json.dumps(password)),
        )
        if server is None or not already_running:
            server = _start_server(folder, port, password)
        _initialise_once(folder, server)
    return LocalLaunchPad(folder, server.port, server.pid, _utc(server.started), launchpad_file, already_running)


def stop_local_launchpad(folder: Path) -> bool:
    """Stop the server of a folder; False when none was running.

    Raises
    ------
    LaunchPadError
        Its server runs on another machine, or does not end even when killed.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        return False
    with _only_one_at_a_time(folder):
        server = read_server(folder)
        was_running = server is not None and is_running(server)
        if server is not None and was_running:
            end_process(server)
        forget_server(folder)
    return was_running


def local_launchpad_status(folder: Path) -> LocalLaunchPadStatus:
    """Look at the server of a folder without touching it.

    Raises
    ------
    LaunchPadError
        Its server runs on another machine, where alone its process can be seen.
    """
    folder = folder.resolve()
    size = _size_on_disk(folder)
    server = read_server(folder)
    if server is None:
        return LocalLaunchPadStatus(False, False, None, None, None, size)
    running = is_running(server)
    return LocalLaunchPadStatus(running, not running, server.pid, server.port, _utc(server.started), size)


def _check_secantus_version() -> None:
    try:
        installed = metadata.version("SecantusDB")
    except metadata.PackageNotFoundError:
        raise LaunchPadError(
            'the local LaunchPad needs SecantusDB: pip install "dftfactory[local]", '
            f"or write the URI of a MongoDB into {LAUNCHPAD_FILE}"
        ) from None
    if installed != SECANTUS_VERSION:
        raise LaunchPadError(
            f"the local LaunchPad needs SecantusDB {SECANTUS_VERSION}, found {installed}: "
            'pip install "dftfactory[local]"'
        )


def _read_own_settings(launchpad_file: Path) -> dict[str, Any]:
    """Return what an earlier start wrote, with its port and, since there is one, its password."""
    if not launchpad_file.exists():
        return {}
    if not launchpad_file.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE):
        raise LaunchPadError(
            f"{launchpad_file} is your own and is not overwritten: it already names a LaunchPad; "
            "for a local one besides, give another folder with --dir"
        )
    return read_launchpad_file(launchpad_file)


def _choose_port(earlier_port: int | None) -> int:
    """Return the earlier port when nobody has it, else another one.

    The ports that the system would give are those of outgoing connections as well, and one of these could sit on it at
    the next start: Linux takes them from 32768 up, macOS from 49152.
    """
    candidates = [20000 + secrets.randbelow(12000) for _ in range(20)]
    for port in candidates if earlier_port is None else [earlier_port, *candidates]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            # As the server does: connections of the last run that linger in TIME_WAIT are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise LaunchPadError("no free port on 127.0.0.1")


def _start_server(folder: Path, port: int, password: str) -> ServerProcess:
    log = folder / "server.log"
    command = [sys.executable, "-m", "dftfactory.local_server", "--dir", str(folder)]
    # It runs in its own folder, where no file of the user's can stand in for a module, and finds the same packages.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}
    with open_private(log) as log_file:
        log_file.seek(0, os.SEEK_END)
        log_start = log_file.tell()
        started = time.time()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    server = remember_server(folder, process.pid, port, started)
    try:
        _wait_for_answer(process, port, password)
    except BaseException as error:
        process.kill()
        process.wait()
        forget_server(folder)
        if not isinstance(error, TimeoutError):
            raise
        last_lines = log.read_bytes()[log_start:].decode(errors="replace").splitlines()[-10:]
        raise LaunchPadError(
            " | ".join([f"the local LaunchPad did not start: {error}; the end of {log}", *last_lines]),
            log=last_lines,
        ) from None
    return server


def _wait_for_answer(process: subprocess.Popen[bytes], port: int, password: str) -> None:
    """Wait until our own process, and no other on that port, answers a command after a login."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    login = {"username": USER, "password": password, "authSource": "admin"}
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TimeoutError(f"it ended with exit status {process.returncode}")
        # pymongo tries again only every half second, so it is asked once somebody listens.
        with contextlib.suppress(OSError, PyMongoError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            with MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=1000, **login) as client:
                if client.admin.command("serverStatus")["pid"] == process.pid:
                    return
        time.sleep(0.05)
    raise TimeoutError(f"no answer within {START_SECONDS:.0f} s")


def _initialise_once(folder: Path, server: ServerProcess) -> None:
    """Give a new database FireWorks' counters and indexes; one that has counters is left alone."""
    import pymongo
    from pymongo.errors import PyMongoError

    launchpad_file = folder / LAUNCHPAD_FILE
    launchpad = connect(read_launchpad_file(launchpad_file), launchpad_file)
    try:
        with pymongo.timeout(START_SECONDS):
            if launchpad.fw_id_assigner.find_one() is None:
                # With a limit of 0 FireWorks itself refuses when there is a single workflow to lose.
                launchpad.reset("", require_password=False, max_reset_wo_password=0)
    except PyMongoError as error:
        raise LaunchPadError(
            f"the local LaunchPad (pid {server.pid}) runs and does not answer, or not to the password in "
            f"{launchpad_file}: see {folder / 'server.log'}, or `dftfactory launchpad stop --dir {folder}` and start it"
        ) from error
    finally:
        launchpad.connection.close()


@contextlib.contextmanager
def _only_one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one start or stop work in a folder; the lock ends with the process that holds it."""
    # Private, because whoever can read it can hold it.
    with open_private(folder / "start.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _size_on_disk(folder: Path) -> int:
    size = 0
    for file in folder.rglob("*"):
        # The server adds and removes files while we look.
        with contextlib.suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
