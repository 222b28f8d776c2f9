"""The live watch on the real pw.x: each run is stopped for the right reason, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError
from dftfactory.history import read_history
from dftfactory.runner import QERunner
from dftfactory.sessions import works_in

pytestmark = pytest.mark.pw


@pytest.fixture
def al_atoms() -> Atoms:
    """Four Al atoms off their sites: seconds in pw.x with the k-points of `slow`."""
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.fixture
def slow(config: DFTConfig) -> DFTConfig:
    return config.model_copy(update={"kspacing": 0.5})


def nothing_is_left(run_dir: Path) -> bool:
    """No pw.x that works in the folder, and no EXIT file."""
    return not works_in(run_dir) and list(run_dir.rglob("*.EXIT")) == []


def when(what: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act once, as soon as something has happened."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if what():
                    return act()
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("cores", [1, 2])
def test_a_pw_x_that_is_stopped_hangs_and_is_repeated(
    cores: int, config: DFTConfig, al_atoms: Atoms, tmp_path: Path
) -> None:
    """SIGSTOP to all of its processes: no output and no CPU time any more."""
    run_dir = tmp_path / "run"

    def stop() -> None:
        for process in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if process.readlink() == run_dir:
                    os.kill(int(process.parent.name), signal.SIGSTOP)

    thread = when(lambda: "iteration #  2" in (run_dir / "pw.out").read_text(), stop)
    worker = WorkerConfig(hang_seconds=1, parallel_cores=cores, mpi_command="mpirun --oversubscribe -np {cores}")
    result = QERunner(config, worker).run(al_atoms, run_dir)
    thread.join()
    assert [attempt["outcome"] for attempt in result.history] == ["HANG", "CONVERGED"]
    assert result.history[0]["stopped"]["failure"] == "HANG"
    assert result.history[0]["stopped"]["evidence"].startswith("no output for ")
    assert nothing_is_left(run_dir)


def test_an_scf_that_stands_still_is_stopped_early_and_continued_and_the_next_level_solves_it(
    config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """At a mixing_beta of 1e-6 the density stays what it was. The EXIT file leaves one that can be gone on from."""
    changes = {"mixing_beta": 1e-6, "mixing_mode": "plain", "electron_maxstep": 300}
    dead = DFTConfig(**{**config.to_dict(), **changes, "pw": {"electrons": {"mixing_ndim": 1}}})
    worker = WorkerConfig(scratch_dir=str(tmp_path / "scratch"))
    result = QERunner(dead, worker).run(si_atoms, tmp_path / "run")
    first, continued, last = result.history
    assert (last["outcome"], result.level) == ("CONVERGED", 1)
    for attempt in (first, continued):
        assert attempt["outcome"] == "SCF_NOT_CONVERGED"
        assert attempt["stopped"]["evidence"].startswith("stopped early, the SCF stands still: best accuracy ")
        assert 25 <= attempt["iterations"] < 300
        said = (tmp_path / "run" / attempt["folder"] / "pw.out").read_text()
        assert "Program stopped by user request" in said
        assert "JOB DONE" in said  # softly
        assert ("The initial density is read from file" in said) == (attempt is continued)
    assert nothing_is_left(tmp_path / "run")


def test_a_pw_x_that_would_take_more_memory_than_there_is_does_not_get_to_it(
    config: DFTConfig, al_atoms: Atoms, tmp_path: Path
) -> None:
    dense = config.model_copy(update={"kspacing": 0.15})
    with pytest.raises(CalculationError, match="OUT_OF_MEMORY") as error:
        QERunner(dense, WorkerConfig(memory_mb=1)).run(al_atoms, tmp_path / "run")
    assert error.value.details["evidence"].startswith("pw.x expects to need ")
    assert error.value.details["evidence"].endswith(" MB for each of 1 ranks on this node, which has 1 MB for them")
    for attempt in error.value.details["history"]:
        assert attempt["outcome"] == "OUT_OF_MEMORY"
        assert attempt["best_accuracy"] is None  # no iteration has ended
    assert nothing_is_left(tmp_path / "run")


def test_a_calculation_whose_time_is_over_goes_on_in_another_job(
    slow: DFTConfig, al_atoms: Atoms, tmp_path: Path
) -> None:
    whole = QERunner(slow, WorkerConfig()).run(al_atoms, tmp_path / "whole")
    scratch, run_dir = tmp_path / "scratch", tmp_path / "run"
    with pytest.raises(ConfigError, match="nothing to go on with"):
        QERunner(slow, WorkerConfig()).resume(tmp_path / "whole")
    short = WorkerConfig(max_seconds=0.1, scratch_dir=str(scratch))
    with pytest.raises(CalculationError, match="WALLTIME"):
        QERunner(slow, short).run(al_atoms, run_dir, "al")
    assert (run_dir / "out" / "pwscf.save" / "charge-density.dat").is_file()
    assert not (run_dir / "out").is_symlink()  # the scratch disk of this node may be out of reach
    assert list(scratch.iterdir()) == []
    before = len(read_history(run_dir)["attempts"])
    other = slow.model_copy(update={"ecutwfc": 16.0, "degauss": 0.03})
    with pytest.raises(ConfigError, match="begun with another configuration: it differs in degauss, ecutwfc"):
        QERunner(other, WorkerConfig()).resume(run_dir)
    result = QERunner(slow, WorkerConfig(scratch_dir=str(scratch))).resume(run_dir)
    assert result.calculation_id == "al"
    assert [attempt["outcome"] for attempt in result.history] == ["WALLTIME"] * before + ["CONVERGED"]
    assert result.history[-1]["parameters"]["restart_mode"] == "restart"
    assert result.energy == pytest.approx(whole.energy, abs=1e-6)
    assert result.forces == pytest.approx(whole.forces, abs=1e-3)  # eV/Å
    assert nothing_is_left(run_dir)
    assert [path.name for path in (run_dir / "out").iterdir()] == ["pwscf.xml"]
