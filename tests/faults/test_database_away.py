"""The database goes away when a label is to be stored: it waits for it, and after that on the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import PyMongoError
from queue_helpers import make_database, states
from recordings import StandIn, numbers_of, structure
from victims import launch, wait_until

from dftfactory import firetasks
from dftfactory.config import DFTConfig
from dftfactory.errors import LaunchPadAwayError
from dftfactory.firetasks import RunDFT
from dftfactory.labels import write_label
from dftfactory.launchpad import read_launchpad_file
from dftfactory.local_launchpad import start_local_launchpad
from dftfactory.lost_labels import recover_labels
from dftfactory.lost_runs import Fate, reconcile
from dftfactory.pipeline import submit, sync
from dftfactory.server_process import read_server
from dftfactory.store import LabelStore

pytestmark = [
    pytest.mark.mongodb,
    # The thread in which FireWorks tells that a rocket lives ends with the database.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

# The driver's own wait for a server, in ms; two minutes in the file of a local LaunchPad.
QUICK = {"serverSelectionTimeoutMS": 500}


@pytest.fixture
def server(server_folder: Path) -> Path:
    """The folder of a server that may be killed."""
    start_local_launchpad(server_folder)
    return server_folder


@pytest.fixture
def away(server: Path) -> Iterator[Any]:
    """A LaunchPad on it that soon gives up."""
    from fireworks import LaunchPad

    launchpad = LaunchPad.from_dict(
        {**read_launchpad_file(server / "my_launchpad.yaml"), "mongoclient_kwargs": QUICK, "strm_lvl": "CRITICAL"}
    )
    yield launchpad
    launchpad.connection.close()


@pytest.fixture
def queue(away: Any, fake_config: DFTConfig, stand_in: StandIn, tmp_path: Path) -> Any:
    db = make_database(tmp_path / "c.db", structure(1))
    stand_in.record(1, fake_config)
    submit(db, fake_config, away)
    return db


def kill_server(folder: Path) -> None:
    server = read_server(folder)
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)


def when_written(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Let something happen when the label is on the disk, and before it is stored."""

    def write_and_go(run_dir: Path, label: Any) -> Path:
        path = write_label(run_dir, label)
        happens()
        return path

    monkeypatch.setattr(firetasks, "write_label", write_and_go)


def run(away: Any, stand_in: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Run the only Firework as a rocket does."""
    folder.mkdir()
    env = {"pw_command": stand_in.command, "parallel_cores": 1, "database_seconds": seconds}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        launch(away, env)


def answers(launchpad: Any) -> bool:
    """Whether the driver has seen that the server is back: it looks each half second, and waits no longer than that."""
    with contextlib.suppress(PyMongoError):
        return bool(states(launchpad))
    return False


def test_a_server_that_is_killed_and_started_again_is_waited_for(
    away: Any, server: Path, queue: Any, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restart_later() -> None:
        kill_server(server)
        # Longer than the driver waits by itself.
        threading.Timer(1.5, start_local_launchpad, [server]).start()

    when_written(monkeypatch, restart_later)
    run(away, stand_in, tmp_path / "run", monkeypatch, 60)
    assert states(away) == {1: "COMPLETED"}
    [label] = LabelStore(away).all()
    assert numbers_of(label["result"]) == stand_in.label(stand_in.events()[0]["key"])
    assert sync(queue, away).completed == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("cure", ["recover", "recover FOLDER", "reconcile"])
def test_a_server_that_stays_away_leaves_the_label_on_the_disk(
    away: Any, server: Path, queue: Any, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cure: str
) -> None:
    when_written(monkeypatch, lambda: kill_server(server))
    said = []
    _run_task = RunDFT.run_task

    def run_task(self: RunDFT, fw_spec: dict[str, Any]) -> Any:
        try:
            return _run_task(self, fw_spec)
        except LaunchPadAwayError as error:
            said.append(error.message)
            raise

    monkeypatch.setattr(RunDFT, "run_task", run_task)
    with pytest.raises(Exception, match="refused"):  # FireWorks cannot say it to anybody
        run(away, stand_in, tmp_path / "run", monkeypatch, 1)
    [message] = said
    assert f"the label is in {tmp_path / 'run'}: `dftfactory recover` stores it" in message
    assert (tmp_path / "run" / "label.json").is_file()

    start_local_launchpad(server)
    wait_until(lambda: answers(away))
    assert states(away) == {1: "RUNNING"}
    assert list(LabelStore(away).all()) == []
    if cure == "reconcile":
        # This process is the rocket, and lives; it works on something else by now.
        [finding], _ = reconcile(away)
        assert finding.fate == Fate.COMPLETED
    else:
        summary = recover_labels(away, [tmp_path] if "FOLDER" in cure else None)
        assert (summary.found, summary.stored, summary.completed) == (1, 1, 1)
    assert states(away) == {1: "COMPLETED"}
    assert len(stand_in.events("start")) == 1
    [label] = LabelStore(away).all()
    assert numbers_of(label["result"]) == stand_in.label(stand_in.events()[0]["key"])
    assert sync(queue, away).completed == 1
