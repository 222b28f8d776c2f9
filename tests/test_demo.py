"""The first command of the README, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ase.db
import ase.io
import pytest

from dftfactory.demo import demo_structures, run_demo
from dftfactory.errors import ConfigError


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
        capture_output=True,
        text=True,
        check=False,
    ).stdout  # fmt: skip
