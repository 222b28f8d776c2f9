"""The first command of the README, as a user types it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.db
import ase.io
import pytest

from dftfactory.demo import demo_structures, run_demo
from dftfactory.errors import ConfigError
from dftfactory.local_launchpad import stop_local_launchpad

# The same packages, also from another folder.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}


def test_demo_refuses_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already exists"):
        run_demo(tmp_path)


def test_demo_names_the_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install -y quantum-espresso"):
        run_demo(tmp_path / "demo")


def test_demo_has_every_kind_of_structure() -> None:
    structures = demo_structures()
    assert len(structures) == 8
    assert {len(atoms) for atoms in structures.values()} == {2, 3, 4}
    assert any(atoms.get_initial_magnetic_moments().any() for atoms in structures.values())


@pytest.mark.pw
@pytest.mark.mongodb
def test_demo_runs_the_whole_road(tmp_path: Path) -> None:
    """Seven labels in the training set, one of them through the ladder, one structure refused with a reason."""
    run = subprocess.run(
        [sys.executable, "-m", "dftfactory.cli", "demo", "demo"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {row.calculation_id: row for row in ase.db.connect(tmp_path / "demo" / "candidates.db").select()}
    assert {name for name, row in rows.items() if row.status == "FAILED"} == {"O2-squeezed"}
    assert "largest force" in rows["O2-squeezed"].reason
    assert rows["O2-stretched"].level > 0
    frames = ase.io.read(tmp_path / "demo" / "train.extxyz", ":")
    assert {frame.info["calculation_id"] for frame in frames} == set(rows) - {"O2-squeezed"}
    assert rows["Fe-magnetic"].total_magnetization > 3.0
    assert not list((tmp_path / "demo" / "runs").glob("**/*wfc*"))
    assert "does not run" in subprocess.run(
        [sys.executable, "-m", "dftfactory.cli", "launchpad", "status", "--dir", "demo/launchpad"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout  # fmt: skip


@pytest.mark.pw
@pytest.mark.mongodb
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_demo_leaves_no_process_behind(number: signal.Signals, tmp_path: Path) -> None:
    """Neither server nor rockets nor pw.x: a batch system stops a job in this way, and so does a closed terminal."""
    command = [sys.executable, "-m", "dftfactory.cli", "demo", "demo"]
    # In a session of its own, or the shell that runs the tests may have taught it to ignore SIGHUP.
    demo = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while "pw.x" not in processes_in(tmp_path):
            assert demo.poll() is None
            time.sleep(0.02)
        demo.send_signal(number)
        assert demo.wait(timeout=60) == 128 + number
        assert processes_in(tmp_path) == []
    finally:
        demo.kill()
        demo.wait()
        stop_local_launchpad(tmp_path / "demo" / "launchpad")


def processes_in(folder: Path) -> list[str]:
    """Names of the processes that run in a folder or below it, or have it in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if str(folder) in " ".join(words) or (process / "cwd").resolve().is_relative_to(folder):
                found.append(Path(words[0]).name)
    return found
