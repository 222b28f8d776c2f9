"""The main road on every pw.x that is installed: nothing depends on the exit status or the wording of one build."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ase import Atoms
from paths import PSEUDO_DIR

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.failures import Failure, examine
from dftfactory.inputs import change_pw_input, write_pw_input
from dftfactory.parsers import read_exit_status, read_pw_output
from dftfactory.runner import QERunner

pytestmark = pytest.mark.pw

RYDBERG = 27.211386245988 / 2  # eV, CODATA 2018
# The Python of an environment with qepy 7.2, which carries a serial pw.x 7.2.
QEPY = "DFTFACTORY_TEST_QEPY"
VERSIONS = ["6.7", "7.2"]


def worker_of(version: str) -> WorkerConfig:
    if version == "6.7":
        return WorkerConfig(parallel_cores=1)
    python = os.environ.get(QEPY, "")
    if shutil.which(python) is None:
        reason = f"{QEPY} does not name a Python with qepy (pip install 'qepy==7.2.0' 'numpy<2')"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return WorkerConfig(pw_command=[python, "-m", "qepy", "--pw.x"], parallel_cores=1)


@pytest.fixture(params=VERSIONS)
def worker(request: pytest.FixtureRequest) -> WorkerConfig:
    return worker_of(request.param)


def prepare(folder: Path, config: DFTConfig, atoms: Atoms, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    write_pw_input(atoms, config, folder / "pw.in")
    change_pw_input(folder / "pw.in", changes)
    return folder


def run(worker: WorkerConfig, folder: Path) -> Path:
    """Run pw.x by hand, so that nothing is recovered."""
    with (folder / "pw.out").open("wb") as out, (folder / "pw.err").open("wb") as err:
        done = subprocess.run(
            worker.command(1, 1), cwd=folder, env=worker.process_environment(), stdout=out, stderr=err, check=False
        )
    (folder / "exit_status").write_text(f"{done.returncode}\n")
    return folder


def test_both_versions_give_the_same_label(config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> None:
    results = [QERunner(config, worker_of(version)).run(si_atoms, tmp_path / version) for version in VERSIONS]

    assert [result.pw_version[:3] for result in results] == VERSIONS
    assert [result.source for result in results] == ["xml", "xml"]
    old, new = results
    # conv_thr is 2e-9 Ry; the rest is the way to it.
    assert new.energy == pytest.approx(old.energy, abs=1e-6 * RYDBERG)
    assert abs(new.forces - old.forces).max() < 1e-3  # eV/Å
    assert abs(new.stress - old.stress).max() < 1e-5  # eV/Å³


def test_an_scf_that_does_not_converge_is_recovered(
    config: DFTConfig, si_atoms: Atoms, tmp_path: Path, worker: WorkerConfig
) -> None:
    few = config.model_copy(
        update={"electron_maxstep": 3, "ladder": [{"name": "patience", "electron_maxstep": 40, "mixing_beta": 0.5}]}
    )
    result = QERunner(few, worker).run(si_atoms, tmp_path / "run")

    assert result.history[0]["outcome"] == "SCF_NOT_CONVERGED"
    assert "convergence NOT achieved after" in result.history[0]["evidence"]
    assert len(result.history) > 1
    assert result.scf_error <= result.conv_thr


def test_max_seconds(config: DFTConfig, si_atoms: Atoms, tmp_path: Path, worker: WorkerConfig) -> None:
    """6.7 exits with 2 after an iteration, 7.2 with 255, and both with 255 before the first one."""
    folder = run(worker, prepare(tmp_path / "run", config, si_atoms, max_seconds=0.001))

    assert read_exit_status(folder) != 0
    diagnosis = examine(folder)
    assert diagnosis is not None
    assert diagnosis.failure is Failure.WALLTIME
    assert diagnosis.evidence.startswith("Maximum CPU time exceeded")


def test_exit_file(config: DFTConfig, si_atoms: Atoms, tmp_path: Path, worker: WorkerConfig) -> None:
    folder = prepare(tmp_path / "run", config, si_atoms)
    (folder / "pwscf.EXIT").touch()

    diagnosis = examine(run(worker, folder))

    assert diagnosis is not None
    assert diagnosis.failure is Failure.SOFT_STOP


def test_input_error_names_its_routine(
    config: DFTConfig, si_atoms: Atoms, tmp_path: Path, worker: WorkerConfig
) -> None:
    folder = run(worker, prepare(tmp_path / "run", config, si_atoms, nbnd=1))

    diagnosis = examine(folder)
    assert diagnosis is not None
    assert (diagnosis.failure, diagnosis.evidence) == (
        Failure.INPUT_ERROR,
        "Error in routine setup (1): too few bands",
    )


def test_unconverged_is_told_by_the_output_whatever_the_exit_status(
    config: DFTConfig, si_atoms: Atoms, tmp_path: Path, worker: WorkerConfig
) -> None:
    """Builds without `__RETURN_EXIT_STATUS` exit with 0 after it."""
    folder = run(worker, prepare(tmp_path / "run", config, si_atoms, electron_maxstep=2))
    for status in ("2", "0"):
        (folder / "exit_status").write_text(status)
        diagnosis = examine(folder)
        assert diagnosis is not None
        assert diagnosis.failure is Failure.SCF_NOT_CONVERGED


@pytest.mark.parametrize("section", ["PP_LOCAL", "PP_RHOATOM"])
@pytest.mark.parametrize("kept", [True, False])
def test_nan_in_a_pseudopotential_is_found_after_the_run_too(
    config: DFTConfig, si_atoms: Atoms, tmp_path: Path, worker: WorkerConfig, section: str, kept: bool
) -> None:
    """Before the run it is refused; here the file changes afterwards, and may be gone when somebody looks."""
    name = config.pseudopotentials["Si"]
    folder = prepare(tmp_path / "run", config, si_atoms, pseudo_dir="./psd")
    (folder / "psd").mkdir()
    head, tag, numbers = (PSEUDO_DIR / name).read_text().partition(f"<{section}")
    first, end, rest = numbers.partition(">")
    words = rest.split(maxsplit=1)
    (folder / "psd" / name).write_text(f"{head}{tag}{first}{end}\n NaN {words[1]}")

    run(worker, folder)
    if not kept:
        shutil.rmtree(folder / "psd")

    diagnosis = examine(folder)
    assert diagnosis is not None
    assert diagnosis.failure is Failure.PSEUDOPOTENTIAL
    assert name in diagnosis.evidence


def test_missing_pseudopotential(config: DFTConfig, si_atoms: Atoms, tmp_path: Path, worker: WorkerConfig) -> None:
    """7.2 stops; 6.7 takes the file of the same name from its default folder, and it is no label."""
    folder = run(worker, prepare(tmp_path / "run", config, si_atoms, pseudo_dir=str(tmp_path)))

    diagnosis = examine(folder)
    assert diagnosis is not None
    assert diagnosis.failure is Failure.PSEUDOPOTENTIAL


def test_a_label_that_is_read_twice_is_the_same(
    config: DFTConfig, si_atoms: Atoms, tmp_path: Path, worker: WorkerConfig
) -> None:
    """The text of each version alone gives what its XML gives, to the digits that it prints."""
    folder = run(worker, prepare(tmp_path / "run", config, si_atoms))
    whole = read_pw_output(folder)
    (folder / "out" / "pwscf.xml").unlink()

    alone = read_pw_output(folder)

    assert (whole.source, alone.source) == ("xml", "text")
    assert alone.energy == pytest.approx(whole.energy, abs=1e-8 * RYDBERG)
    assert abs(alone.forces - whole.forces).max() < 1e-6  # eV/Å; eight decimals of Ry/bohr
