"""What the tests let run in processes of their own, which kill themselves at an exactly chosen moment.

A moment is the n-th write to the LaunchPad, to a candidate database or to a file; or the first one of a kind, such as
`insert fireworks`, or the n-th of a kind; or the return from a function, such as `dftfactory.firetasks.write_label`.
Nothing is sent or written of that write: what the killed process leaves is all that came before.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymongo import monitoring

from dftfactory.candidates import open_candidates
from dftfactory.config import DFTConfig
from dftfactory.export import export_labels
from dftfactory.pipeline import submit, sync
from dftfactory.store import LabelStore

if TYPE_CHECKING:
    from fireworks import LaunchPad

_COMMANDS = ("insert", "update", "delete", "findAndModify")
_STATEMENTS = re.compile(r"\s*(BEGIN|INSERT|UPDATE|DELETE|COMMIT)\b")
Moment = int | str | tuple[str, int] | None
# Its processes begin with everything imported (`conftest.py`).
FORKING = multiprocessing.get_context("forkserver")


class _Doom(monitoring.CommandListener):  # type: ignore[misc]  # pymongo is untyped
    """Counts the writes of this process, and kills it before the one that is its last."""

    def __init__(self, moment: Moment, folder: Path) -> None:
        self.moment, self.folder, self.count = moment, folder, 0
        self.kinds: list[str] = []
        self.n_changes = 0

    def write(self, kind: str) -> None:
        self.count += 1
        self.kinds.append(kind)
        if self.moment in (self.count, kind, (kind, self.kinds.count(kind))):
            die()

    def started(self, event: Any) -> None:
        if event.command_name in _COMMANDS:
            self.write(f"{event.command_name} {event.command[event.command_name]}")

    def succeeded(self, event: Any) -> None:
        """Nothing to do."""

    def failed(self, event: Any) -> None:
        """Nothing to do."""

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[1 if event == "os.rename" else 0]) if arguments else ""
        writes = event in ("os.rename", "os.remove") or (event == "open" and set(str(arguments[1])) & set("wax+"))
        if writes and path.startswith(str(self.folder)):
            self.write(event)

    def statement(self, text: str) -> None:
        found = _STATEMENTS.match(text)
        if found and found[1] in ("BEGIN", "COMMIT"):
            self.n_changes = 0
            self.write(found[1])
        elif found:
            # A transaction has hundreds of them, and SQLite makes them one: the first and some of the others will do.
            self.n_changes += 1
            if self.n_changes % 20 == 1:
                self.write(found[1])


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_until(happened: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something, and return what it was."""
    deadline = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return result


def run_rocket(
    settings: dict[str, Any], folder: Path, env: dict[str, Any], moment: Moment = None, start: Any = None
) -> None:
    """Run one Firework in a folder, as `rlaunch singleshot` does."""
    doom = _doomed(moment, Path("/nowhere"), folder)
    os.chdir(folder)
    launch(_open(settings), env, start)
    _tell(doom, folder)


def run_signalled_rocket(settings: dict[str, Any], folder: Path, env: dict[str, Any]) -> None:
    """Run one Firework, and get SIGUSR1 when its label is on the disk."""
    from dftfactory import firetasks

    _doomed(None, Path("/nowhere"), folder)
    os.chdir(folder)
    really_write = firetasks.write_label

    def write_signalled(run_dir: Path, label: dict[str, Any]) -> Path:
        path = really_write(run_dir, label)
        os.kill(os.getpid(), signal.SIGUSR1)
        return path

    firetasks.write_label = write_signalled
    launch(_open(settings), env)
    os.write(1, b"after the rocket")


def launch(launchpad: LaunchPad, env: dict[str, Any], start: Any = None) -> None:
    """Run one Firework in the present folder."""
    from fireworks.core.fworker import FWorker
    from fireworks.core.rocket_launcher import launch_rocket

    _wait_for(start)
    launch_rocket(launchpad, FWorker("test", env=env), strm_lvl="CRITICAL")


def run_submit(
    settings: dict[str, Any], folder: Path, db: Path, config: dict[str, Any], moment: Moment = None, start: Any = None
) -> None:
    """`dftfactory submit`."""
    doom = _doomed(moment, Path("/nowhere"), folder)
    launchpad = _open(settings)
    _wait_for(start)
    submit(open_candidates(db), DFTConfig(**config), launchpad)
    _tell(doom, folder)


def run_sync(settings: dict[str, Any], folder: Path, db: Path, moment: Moment = None) -> None:
    """`dftfactory sync`."""
    doom = _doomed(moment, Path("/nowhere"), folder)
    sync(open_candidates(db), _open(settings))
    _tell(doom, folder)


def run_export(settings: dict[str, Any], folder: Path, path: Path, moment: Moment = None) -> None:
    """`dftfactory export`."""
    doom = _doomed(moment, path.parent, folder)
    export_labels(LabelStore(_open(settings)).all(), path)
    _tell(doom, folder)


def run_add(settings: dict[str, Any], folder: Path, file: Path, moment: Moment = None) -> None:
    """`lpad add`."""
    from fireworks import Workflow

    doom = _doomed(moment, Path("/nowhere"), folder)
    _open(settings).add_wf(Workflow.from_file(str(file)))
    _tell(doom, folder)


def _doomed(moment: Moment, files: Path, folder: Path) -> _Doom:
    """Let this process count its writes, those below `files` among them, and kill itself at the moment."""
    log = os.open(folder / "printed", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    doom = _Doom(moment, files)
    monitoring.register(doom)
    sys.addaudithook(doom.audit)
    connect = sqlite3.connect

    def connect_counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(doom.statement)
        return connection

    sqlite3.connect = connect_counted  # type: ignore[assignment]
    if isinstance(moment, str) and "." in moment:
        _die_after(moment)
    return doom


def _die_after(function: str) -> None:
    place, _, name = function.rpartition(".")
    try:
        owner: Any = importlib.import_module(place)
    except ModuleNotFoundError:  # a method
        module, _, kind = place.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    original: Callable[..., Any] = getattr(owner, name)

    def deadly(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        die()

    setattr(owner, name, deadly)


def _open(settings: dict[str, Any]) -> LaunchPad:
    from fireworks import LaunchPad

    return LaunchPad.from_dict(settings)


def _wait_for(start: Any) -> None:
    if start is not None:
        start.wait(30)


def _tell(doom: _Doom, folder: Path) -> None:
    (folder / "writes").write_text("\n".join(doom.kinds))
