"""The folder of a local LaunchPad: which process serves it, and that nobody else can read or write in it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from dftfactory.errors import LaunchPadError

# A clean stop takes well below 1 s, and up to 7 s when clients are busy.
STOP_SECONDS = 20.0

_OURS = ("database", "my_launchpad.yaml", "server.json", "server.log", "start.lock")


@dataclass(frozen=True)
class ServerProcess:
    """server.json: `process` is what the system says of that process, so that a reused pid is recognised."""

    pid: int
    port: int
    hostname: str
    started: float
    process: str


def remember_server(folder: Path, pid: int, port: int, started: float) -> ServerProcess:
    """Write down the server that was just started for a folder."""
    server = ServerProcess(pid, port, platform.node(), started, _describe_process(pid))
    write_private(_file(folder), json.dumps(asdict(server), indent=1) + "\n")
    return server


def read_server(folder: Path) -> ServerProcess | None:
    """Return the server that was started last for a folder, None where none was or the last one was stopped.

    Raises
    ------
    LaunchPadError
        The file is damaged, or the server runs on another machine, where alone its process can be seen.
    """
    file = _file(folder)
    try:
        server = ServerProcess(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise LaunchPadError(f"cannot read {file}; when no server runs in this folder, delete it") from error
    # A home folder is often shared between machines, and a process is seen only on its own.
    if server.hostname != platform.node():
        raise LaunchPadError(
            f"the local LaunchPad in {folder} was started on {server.hostname}: stop it there; "
            f"when that machine is gone or was renamed, delete {file}",
            hostname=server.hostname,
        )
    return server


def forget_server(folder: Path) -> None:
    """Remove what `remember_server` wrote."""
    _file(folder).unlink(missing_ok=True)


def is_running(server: ServerProcess) -> bool:
    """Whether that very process, and no other with its pid, is still there."""
    return _describe_process(server.pid) == server.process


def end_process(server: ServerProcess) -> None:
    """Stop the process cleanly, and kill it when that takes too long.

    Raises
    ------
    LaunchPadError
        It does not end even when killed.
    """
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, stop_signal)
        while time.monotonic() < deadline:
            if not is_running(server):
                return
            time.sleep(0.05)
    raise LaunchPadError(f"the local LaunchPad (pid {server.pid}) does not end, even when killed", pid=server.pid)


def keep_private(folder: Path) -> None:
    """Refuse a folder that somebody else could have prepared, and take from others what they can read in it.

    Whoever can put a file there, or a link in the place of one, gives us a database of their own, and what is in a
    LaunchPad gets executed. The folder itself stays as it is where it was there before: it may be a project's.

    Raises
    ------
    LaunchPadError
        The folder, or one of our files in it, belongs to somebody else, or others can write to the folder.
    """
    others_can_write = folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others_can_write:
        raise LaunchPadError(f"others can write to {folder}, and to the LaunchPad in it: run `chmod go-w {folder}`")
    for path in (folder, *(folder / name for name in _OURS)):
        # Not all of them are there, and a stop at the same time removes one.
        with contextlib.suppress(FileNotFoundError):
            # Of a link itself: it belongs to who made it.
            if path.lstat().st_uid != os.geteuid():
                raise LaunchPadError(f"{path} belongs to somebody else: name a folder of your own with --dir")
            if path != folder:
                path.chmod(path.stat().st_mode & 0o700)


def open_private(file: Path) -> BinaryIO:
    """Open a file to append to it; a new one is readable by its owner only, and a link is not followed."""
    try:
        return os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab")
    except OSError as error:
        raise LaunchPadError(f"cannot write {file}: {error.strerror}") from error


def write_private(file: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as new:
        new.write(text)
    Path(new.name).replace(file)


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


def _file(folder: Path) -> Path:
    return folder / "server.json"
