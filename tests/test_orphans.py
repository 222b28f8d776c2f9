"""pw.x that lives on without its rocket: ended, with what it has saved; nobody else's is touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ase.build import bulk

from dftfactory import orphans
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import ClaimedError
from dftfactory.history import read_history, start_history
from dftfactory.jobs import may_resume
from dftfactory.orphans import end_orphans, is_rocket_dead, living_in, rocket_of, take_folder, take_over_folder
from dftfactory.runner import QERunner
from dftfactory.sessions import RUN_DIR, pw_sessions

# Stand-ins: the first one saves and ends when it is asked to, as pw.x does; the second one does not listen.
OBEDIENT = "while not os.path.exists('pwscf.EXIT'): time.sleep(0.02)\nprint('   JOB DONE.')"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a stand-in for pw.x in a session of its own, as QEJob does."""
    started: list[subprocess.Popen[bytes]] = []

    def start_pw(run_dir: Path, what: str) -> subprocess.Popen[bytes]:
        with (run_dir / "pw.out").open("wb") as out:
            code = "import os, signal, time\n" + what
            environment = {**os.environ, RUN_DIR: str(run_dir)}
            process = subprocess.Popen(
                [sys.executable, "-c", code], cwd=run_dir, env=environment, stdout=out, start_new_session=True
            )
        started.append(process)
        while not pw_sessions(run_dir) or (what is DEAF and not (run_dir / "pw.out").read_bytes()):
            time.sleep(0.01)
        return process

    yield start_pw
    for process in started:
        process.kill()
        process.wait()


def begin(folder: Path, *, density: bool = True, note: str | None = "a") -> Path:
    """A run folder as it is while pw.x runs; its rocket is one that has ended."""
    (folder / "out/pwscf.save").mkdir(parents=True)
    (folder / "pw.in").write_text("&CONTROL\n/\n")
    start_history(folder, "a", {"level": 0}, {"md5": {}}, None)
    if density:
        (folder / "out/pwscf.save/charge-density.dat").write_text("density")
    if note is not None:
        take_folder(folder, note, 1)
        values = json.loads((folder / "rocket.json").read_text())
        values["owner"]["started"] -= 1
        (folder / "rocket.json").write_text(json.dumps(values))
    return folder


def test_it_saves_its_state_and_a_new_launch_goes_on(tmp_path: Path, start: Start) -> None:
    run_dir = begin(tmp_path / "run")
    process = start(run_dir, OBEDIENT)
    assert end_orphans(run_dir) == [f"stopped pw.x in {run_dir}", f"kept its state in {run_dir}"]
    assert process.wait() == 0
    assert read_history(run_dir)["attempts"][-1]["outcome"] == "WALLTIME"
    assert may_resume(run_dir)
    # Left behind, it would stop the next run at once.
    assert not (run_dir / "pwscf.EXIT").exists()


def test_one_that_does_not_listen_is_killed_and_begun_anew(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "SECONDS_TO_DIE", 0.3)
    run_dir = begin(tmp_path / "run")
    process = start(run_dir, DEAF)
    assert end_orphans(run_dir, soft_seconds=0.2) == [f"stopped pw.x in {run_dir} by force"]
    assert process.wait() == -signal.SIGKILL
    assert read_history(run_dir)["attempts"][-1]["outcome"] == "KILLED"
    assert not may_resume(run_dir)


def test_one_that_cannot_be_ended_is_an_error(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs in a dead file system: nothing may be started beside it."""
    monkeypatch.setattr(orphans, "SECONDS_TO_DIE", 0.1)
    monkeypatch.setattr(orphans, "signal_session", lambda *_: 0)
    run_dir = begin(tmp_path / "run")
    start(run_dir, DEAF)
    with pytest.raises(ClaimedError, match="does not end even when killed, so nothing is started beside it"):
        end_orphans(run_dir, soft_seconds=0.1)


def test_one_that_has_come_to_its_end_alone_has_its_state(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run")
    (run_dir / "pw.out").write_text("convergence has been achieved\n   JOB DONE.\n")
    assert end_orphans(run_dir) == [f"kept its state in {run_dir}"]
    assert may_resume(run_dir)


@pytest.mark.parametrize("text", ["     iteration #  3\n", "", None])
def test_one_that_was_killed_while_it_ran_has_none(text: str | None, tmp_path: Path) -> None:
    """What it has saved may be cut, and pw.x takes a cut density without a word."""
    run_dir = begin(tmp_path / "run")
    if text is not None:
        (run_dir / "pw.out").write_text(text)
    assert end_orphans(run_dir) == []
    assert not may_resume(run_dir)


def test_an_attempt_that_is_closed_stays_as_it_is(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run")
    history = read_history(run_dir)
    history["attempts"][-1]["outcome"] = "SCF_NOT_CONVERGED"
    (run_dir / "history.json").write_text(json.dumps(history))
    assert end_orphans(run_dir) == []
    assert read_history(run_dir) == history


def test_each_of_several_starts_belongs_to_the_folder_above(tmp_path: Path, start: Start) -> None:
    folder = begin(tmp_path / "run")
    (folder / "pw.in").unlink()
    starts = [begin(folder / name, note=None) for name in ("start_0", "start_1")]
    start(starts[1], OBEDIENT)
    done = end_orphans(folder)
    assert done[0] == f"stopped pw.x in {starts[1]}"
    assert done[-1] == f"kept its state in {starts[1]}"
    # The first one was killed while it ran: it begins anew.
    assert [may_resume(start) for start in starts] == [False, True]
    assert not (starts[0] / "out" / "pwscf.save").exists()


def test_the_folder_of_another_rocket_below_is_not_touched(tmp_path: Path, start: Start) -> None:
    """`rlaunch singleshot` puts one calculation beside the other in one launch folder, also under this name."""
    folder = begin(tmp_path / "run")
    other = begin(folder / "start_0", note="start_0")
    process = start(other, OBEDIENT)
    assert living_in(folder) == {}
    assert list(living_in(other).values()) == [other]
    end_orphans(folder)
    assert process.poll() is None
    assert "outcome" not in read_history(other)["attempts"][-1]


def test_of_a_folder_that_was_removed_pw_x_is_ended_all_the_same(tmp_path: Path, start: Start) -> None:
    run_dir = begin(tmp_path / "run")
    process = start(run_dir, DEAF.replace("signal.SIG_IGN", "signal.SIG_DFL"))
    run_dir.rename(tmp_path / "moved")
    assert end_orphans(run_dir) == [f"stopped pw.x in {run_dir} by force"]
    assert process.wait() == -signal.SIGTERM


# The note


def test_a_folder_is_taken_once(tmp_path: Path) -> None:
    assert take_folder(tmp_path, "a", 3)
    assert not take_folder(tmp_path, "b", 4)
    assert (rocket_of(tmp_path)["calculation_id"], rocket_of(tmp_path)["fw_id"]) == ("a", 3)
    assert not is_rocket_dead(tmp_path)


def test_who_goes_on_takes_the_folder_over(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    assert is_rocket_dead(tmp_path / "run")
    take_over_folder(tmp_path / "run", "a", 3)
    assert not is_rocket_dead(tmp_path / "run")


@pytest.mark.parametrize("junk", [None, "", "{", "[]", '{"calculation_id": "a"}'])
def test_nobody_is_dead_in_a_folder_without_a_readable_note(junk: str | None, tmp_path: Path) -> None:
    if junk is not None:
        (tmp_path / "rocket.json").write_text(junk)
    assert rocket_of(tmp_path) == {}
    assert not is_rocket_dead(tmp_path)


# The real program

RUN = """
import json, sys
from ase.io import read
from dftfactory.config import DFTConfig
from dftfactory.orphans import take_folder
from dftfactory.runner import QERunner
from pathlib import Path
run_dir = Path(sys.argv[1])
run_dir.mkdir()
take_folder(run_dir, "calculation", 1)
QERunner(DFTConfig(**json.loads(sys.argv[3]))).run(read(sys.argv[2]), run_dir)
"""


@pytest.mark.pw
@pytest.mark.parametrize("stopped", [True, False])
def test_the_label_after_a_killed_rocket_is_that_of_an_undisturbed_run(
    stopped: bool, tmp_path: Path, config: DFTConfig
) -> None:
    """kill -9 of Python: pw.x is stopped in the middle, or comes to its end before anybody looks."""
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.write(tmp_path / "al.extxyz")
    config = config.model_copy(update={"ecutwfc": 20.0, "kspacing": 0.35})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run_dir = tmp_path / "run"
    arguments = [str(run_dir), str(tmp_path / "al.extxyz"), json.dumps(config.to_dict())]
    with subprocess.Popen([sys.executable, "-c", RUN, *arguments], env=environment, cwd=tmp_path) as python:
        while b"iteration #  2" not in _text(run_dir / "pw.out"):
            assert python.poll() is None
            time.sleep(0.02)
        python.kill()
    assert living_in(run_dir)
    while not stopped and living_in(run_dir):
        time.sleep(0.05)
    done = end_orphans(run_dir)
    assert done[-1] == f"kept its state in {run_dir}"
    assert not pw_sessions(run_dir)
    runner = QERunner(config, WorkerConfig())
    resumed, direct = runner.resume(run_dir), runner.run(atoms, tmp_path / "direct")
    # 1e-9 Ry/atom is asked for.
    assert resumed.energy == pytest.approx(direct.energy, abs=1e-6)
    assert resumed.forces == pytest.approx(direct.forces, abs=2e-3)
    assert stopped or resumed.iterations < direct.iterations


def _text(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
