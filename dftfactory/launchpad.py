"""The LaunchPad: find it and open it; start, stop and look at a local one.

Everything speaks MongoDB's wire protocol. With a URI in my_launchpad.yaml that is a real MongoDB, and nothing here
but `load_launchpad` is used. Without one, `start_local_launchpad` runs a server on this machine, in a folder that holds

    my_launchpad.yaml   what `lpad -l`, `rlaunch -l` and `load_launchpad` read
    server.json         which process serves the folder; gone after a stop
    server.log          what the server said
    database/           what is in the LaunchPad
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.errors import LaunchPadError
from dftfactory.local_server import SECANTUS_VERSION

if TYPE_CHECKING:
    from fireworks import LaunchPad

LAUNCHPAD_FILE = "my_launchpad.yaml"
DEFAULT_FOLDER = Path("launchpad")

# It answers within 2 s; after a crash it first replays its journal, which takes longer the more there is.
START_SECONDS = 60.0
# A clean stop takes well below 1 s, and up to 7 s when clients are busy.
STOP_SECONDS = 20.0
# One round trip to a distant MongoDB takes well below a second; people give up on a silent command after a few.
CONNECT_SECONDS = 5.0

# The first line tells our file from a user's own, which is never overwritten; the second goes into error messages.
FIRST_LINE = "# The local LaunchPad of dftfactory. This file is written anew by\n"
LAUNCHPAD_FILE_TEXT = (
    FIRST_LINE
    + """\
# dftfactory launchpad start --dir {folder}
# FireWorks' own commands read it too:   lpad -l my_launchpad.yaml get_fws   rlaunch -l my_launchpad.yaml rapidfire
# The server listens on this machine only, and asks for no password: everybody who can log in here can use it, and
# what stands in a LaunchPad gets executed. On a machine that you share, use a MongoDB with a password.
host: 127.0.0.1
port: {port}
name: fireworks
username: null
password: null
authsource: null
uri_mode: false
mongoclient_kwargs: {{}}
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


@dataclass(frozen=True)
class _ServerState:
    """server.json: `process` is what the system says of that process, so that a reused pid is recognised."""

    pid: int
    port: int
    hostname: str
    started: float
    process: str


def start_local_launchpad(folder: Path) -> LocalLaunchPad:
    """Start the server of a folder, or return the one that is running.

    The folder is made when there is none, the port of an earlier start is kept while it is free, and a new database
    gets FireWorks' counters and indexes.

    Raises
    ------
    LaunchPadError
        SecantusDB is missing or of another version, the folder has a my_launchpad.yaml of the user's own, its server
        runs on another machine, or the server did not start: then with the last lines of its log.
    """
    _check_secantus_version()
    folder = folder.resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchPadError(f"cannot make the folder {folder}: {error.strerror}", folder=str(folder)) from error
    launchpad_file = folder / LAUNCHPAD_FILE
    with _only_one_at_a_time(folder):
        earlier_port = _read_own_port(launchpad_file)
        state = _read_state(folder)
        already_running = state is not None and _is_running(state)
        if state is None or not already_running:
            state = _start_server(folder, _choose_port(earlier_port))
        _initialise_once(folder, state)
        _write_private(launchpad_file, LAUNCHPAD_FILE_TEXT.format(folder=folder, port=state.port))
    return LocalLaunchPad(folder, state.port, state.pid, _utc(state.started), launchpad_file, already_running)


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
        state = _read_state(folder)
        was_running = state is not None and _is_running(state)
        if state is not None and was_running:
            _end_process(state)
        _state_file(folder).unlink(missing_ok=True)
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
    state = _read_state(folder)
    if state is None:
        return LocalLaunchPadStatus(False, False, None, None, None, size)
    running = _is_running(state)
    return LocalLaunchPadStatus(running, not running, state.pid, state.port, _utc(state.started), size)


def load_launchpad(file: Path | None = None) -> LaunchPad:
    """Open the LaunchPad and make sure that it answers.

    Parameters
    ----------
    file
        A my_launchpad.yaml. Without one: my_launchpad.yaml in the current folder, then the one of a local LaunchPad in
        ./launchpad, then the one that FireWorks' own configuration names (FW_config.yaml, ~/.fireworks).

    Raises
    ------
    LaunchPadError
        No file, a file that cannot be used, or a database that does not answer within a few seconds, refuses, or was
        never initialised. The message names host and port, and never a password.
    """
    import pymongo
    from pymongo.errors import OperationFailure, PyMongoError

    file = _find_launchpad_file() if file is None else file
    settings = _read_launchpad_file(file)
    address = _address(settings)
    launchpad = _connect(settings, file)
    try:
        with pymongo.timeout(CONNECT_SECONDS):
            # A ping is answered without a login; a read is not.
            launchpad.connection.admin.command("ping")
            counters = launchpad.fw_id_assigner.find_one()
    except OperationFailure as error:
        launchpad.connection.close()
        raise LaunchPadError(
            f"the LaunchPad at {address} refuses database {launchpad.name!r} (code {error.code}): "
            f"check user, password and authsource in {file}",
            address=address,
        ) from error
    except PyMongoError as error:
        launchpad.connection.close()
        raise LaunchPadError(
            f"no LaunchPad answers at {address} within {CONNECT_SECONDS:.0f} s: {_cure(file)}", address=address
        ) from error
    if counters is None:
        launchpad.connection.close()
        raise LaunchPadError(
            f"database {launchpad.name!r} at {address} is not a LaunchPad yet: run `lpad -l {file} reset` once",
            address=address,
        )
    return launchpad


def _find_launchpad_file() -> Path:
    for candidate in (Path(LAUNCHPAD_FILE), DEFAULT_FOLDER / LAUNCHPAD_FILE):
        if candidate.exists():
            return candidate
    # FireWorks prints when it finds several FW_config.yaml; standard output belongs to our own commands.
    with contextlib.redirect_stdout(sys.stderr):
        from fireworks import fw_config
    if fw_config.LAUNCHPAD_LOC:
        return Path(fw_config.LAUNCHPAD_LOC)
    raise LaunchPadError(
        f"no {LAUNCHPAD_FILE} in {Path.cwd()}: run `dftfactory launchpad start` for a local LaunchPad, "
        f"or write one with the URI of your MongoDB"
    )


def _read_launchpad_file(file: Path) -> dict[str, Any]:
    """Read the settings as FireWorks would; the errors quote no line, because it may hold the password."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        settings = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchPadError(f"cannot read {file}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" (line {mark.line + 1})"
        raise LaunchPadError(f"{file} is not valid YAML{line}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("host"), str):
        raise LaunchPadError(f"{file} is no LaunchPad file: expected `host: ...`, a host name or a MongoDB URI")
    if settings.get("uri_mode") and not settings.get("name"):
        raise LaunchPadError(f"{file} has a URI and no `name: ...`, the database that holds the LaunchPad")
    return settings


def _connect(settings: dict[str, Any], file: Path) -> LaunchPad:
    """Build the LaunchPad, its messages on standard error; nothing is sent to the server yet."""
    from pymongo.errors import PyMongoError

    # FireWorks' own default, INFO, prints a line for each workflow that is added.
    settings = settings | {"strm_lvl": settings.get("strm_lvl") or "WARNING"}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            from fireworks import LaunchPad

            return LaunchPad.from_dict(settings)
    except (PyMongoError, AttributeError, OSError, TypeError, ValueError) as error:
        # pymongo quotes the part of a URI that it could not read, which can be the password.
        reason = "" if "@" in settings["host"] else f": {error}"
        raise LaunchPadError(
            f"the settings in {file} cannot be used for {_address(settings)} ({type(error).__name__}){reason}; "
            "special characters in the user and password of a URI are written as %40 and the like"
        ) from None


def _address(settings: dict[str, Any]) -> str:
    """Host and port without user, password or options, also of a URI that is not well formed."""
    host: str = settings["host"].rpartition("@")[2].rpartition("://")[2]
    host = host.partition("/")[0].partition("?")[0]
    if settings.get("uri_mode"):
        return host
    return f"{host}:{settings.get('port') or 27017}"


def _cure(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if text.startswith(FIRST_LINE):
        return f"run `{text.splitlines()[1].removeprefix('# ')}`"
    return f"check host and port in {file}, the network, and that MongoDB runs"


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


def _read_own_port(launchpad_file: Path) -> int | None:
    """Return the port of an earlier start, from the file that it wrote."""
    if not launchpad_file.exists():
        return None
    if not launchpad_file.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE):
        raise LaunchPadError(
            f"{launchpad_file} is your own and is not overwritten: it already names a LaunchPad; "
            "for a local one besides, give another folder with --dir"
        )
    port = _read_launchpad_file(launchpad_file).get("port")
    return port if isinstance(port, int) else None


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


def _start_server(folder: Path, port: int) -> _ServerState:
    log = folder / "server.log"
    command = [sys.executable, "-m", "dftfactory.local_server", "--dir", str(folder), "--port", str(port)]
    # It runs in its own folder, where no file of the user's can stand in for a module, and finds the same packages.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}
    with log.open("ab") as log_file:
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
    state = _ServerState(process.pid, port, platform.node(), started, _describe_process(process.pid))
    _write_private(_state_file(folder), json.dumps(asdict(state), indent=1) + "\n")
    try:
        _wait_for_answer(process, port)
    except BaseException as error:
        process.kill()
        process.wait()
        _state_file(folder).unlink()
        if not isinstance(error, TimeoutError):
            raise
        last_lines = log.read_bytes()[log_start:].decode(errors="replace").splitlines()[-10:]
        raise LaunchPadError(
            "\n".join([f"the local LaunchPad did not start: {error}; the end of {log}:", *last_lines]),
            log=last_lines,
        ) from None
    return state


def _wait_for_answer(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until our own process, and no other on that port, answers a command."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TimeoutError(f"it ended with exit status {process.returncode}")
        # pymongo tries again only every half second, so it is asked once somebody listens.
        with contextlib.suppress(OSError, PyMongoError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            with MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=1000) as client:
                if client.admin.command("serverStatus")["pid"] == process.pid:
                    return
        time.sleep(0.05)
    raise TimeoutError(f"no answer within {START_SECONDS:.0f} s")


def _initialise_once(folder: Path, state: _ServerState) -> None:
    """Give a new database FireWorks' counters and indexes; one that has counters is left alone."""
    from pymongo.errors import PyMongoError

    settings = {"host": "127.0.0.1", "port": state.port, "name": "fireworks"}
    launchpad = _connect(settings, folder / LAUNCHPAD_FILE)
    try:
        if launchpad.fw_id_assigner.find_one() is None:
            # With a limit of 0 FireWorks itself refuses when there is a single workflow to lose.
            launchpad.reset("", require_password=False, max_reset_wo_password=0)
    except PyMongoError as error:
        raise LaunchPadError(
            f"the local LaunchPad (pid {state.pid}) runs and does not answer: see {folder / 'server.log'}, "
            f"or run `dftfactory launchpad stop --dir {folder}`"
        ) from error
    finally:
        launchpad.connection.close()


def _describe_process(pid: int) -> str:
    """Return what makes a process this one and no other, as the system tells it; empty when it is no more.

    A pid alone proves nothing: it is given to somebody else after a while, or after a reboot.
    """
    if not Path("/proc/self/stat").exists():  # macOS: the command line, which names our folder
        ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        return subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip()
    try:
        # The fields after the name in parentheses, proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    state, threads, start_time = fields[0], int(fields[17]), fields[19]
    # A zombie only waits for its parent to ask. While a thread is left, though, the files and the port are still held.
    if state == "Z" and threads <= 1:
        return ""
    return f"started {start_time} ticks after boot {boot}"


def _is_running(state: _ServerState) -> bool:
    return _describe_process(state.pid) == state.process


def _end_process(state: _ServerState) -> None:
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, stop_signal)
        while time.monotonic() < deadline:
            if not _is_running(state):
                return
            time.sleep(0.05)
    raise LaunchPadError(f"the local LaunchPad (pid {state.pid}) does not end, even when killed", pid=state.pid)


def _state_file(folder: Path) -> Path:
    return folder / "server.json"


def _read_state(folder: Path) -> _ServerState | None:
    file = _state_file(folder)
    try:
        state = _ServerState(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise LaunchPadError(f"cannot read {file}; when no server runs in this folder, delete it") from error
    # A home folder is often shared between machines, and a process is seen only on its own.
    if state.hostname != platform.node():
        raise LaunchPadError(
            f"the local LaunchPad in {folder} was started on {state.hostname}: stop it there; "
            f"when that machine is gone or was renamed, delete {file}",
            hostname=state.hostname,
        )
    return state


@contextlib.contextmanager
def _only_one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one start or stop work in a folder; the lock ends with the process that holds it."""
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_private(file: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as new:
        new.write(text)
    Path(new.name).replace(file)


def _size_on_disk(folder: Path) -> int:
    size = 0
    for file in folder.rglob("*"):
        # The server adds and removes files while we look.
        with contextlib.suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
