"""QERunner with the real pw.x: the same numbers as pw.x alone; `test_rungs_real` has those of recovery."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, fcc100
from paths import PSEUDO_DIR

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError
from dftfactory.results import DFTResult
from dftfactory.runner import QERunner

pytestmark = pytest.mark.pw

RYDBERG = 27.211386245988 / 2  # eV, CODATA 2018


def serial() -> WorkerConfig:
    return WorkerConfig(parallel_cores=1)


def label(config: DFTConfig, atoms: Atoms, run_dir: Path, worker: WorkerConfig | None = None) -> DFTResult:
    return QERunner(config, worker or serial()).run(atoms, run_dir)


def test_the_energy_is_that_of_pw_x_alone_on_the_same_input(config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> None:
    result = label(config, si_atoms, tmp_path / "run")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "pw.in").write_text((tmp_path / "run" / "pw.in").read_text())
    environment = {**os.environ, **serial().process_environment()}
    subprocess.run(serial().command(1, 1), cwd=alone, env=environment, capture_output=True, check=True)
    energy = re.findall(r"<etot>(\S+)</etot>", (alone / "out" / "pwscf.xml").read_text())[-1]
    assert result.energy == pytest.approx(float(energy) * 2 * RYDBERG, abs=1e-8)
    assert (result.level, result.source, result.n_ranks) == (0, "xml", 1)
    assert [path.name for path in (tmp_path / "run" / "out").iterdir()] == ["pwscf.xml"]


def test_a_slab_whose_charge_sloshes_at_level_0_converges_at_level_1(config: DFTConfig, tmp_path: Path) -> None:
    """Eight layers with plain mixing: at beta 0.7 the charge swings between the surfaces, at 0.3 it settles."""
    slab = fcc100("Al", (1, 1, 8), vacuum=8)
    slab.pbc = True
    slab.rattle(0.05, seed=1)
    changes = {"mixing_mode": "plain", "ecutwfc": 10.0, "kspacing": 0.8, "electron_maxstep": 12}
    result = label(config.model_copy(update=changes), slab, tmp_path / "run")
    assert result.history[0]["outcome"] == "SCF_NOT_CONVERGED"
    assert (result.level, result.quality) == (1, "exact")
    assert result.scf_error <= 8 * 1e-9


def test_two_ranks_in_two_pools_give_the_serial_energy(config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> None:
    one = label(config, si_atoms, tmp_path / "one")
    worker = WorkerConfig(mpi_command="mpirun --oversubscribe -np {cores}", parallel_cores=2, npool=2)
    two = label(config, si_atoms, tmp_path / "two", worker)
    assert two.n_ranks == 2
    assert two.energy == pytest.approx(one.energy, abs=1e-6)


def test_too_few_bands_are_made_more_and_the_label_is_the_right_one(config: DFTConfig, tmp_path: Path) -> None:
    iron = bulk("Fe")
    iron.rattle(0.02, seed=1)
    coarse = config.model_copy(update={"kspacing": 1.2})
    right = label(coarse, iron, tmp_path / "right")
    few = coarse.model_copy(update={"pw": {"system": {"nbnd": 6}}})
    result = label(few, iron, tmp_path / "few")
    assert result.history[0]["outcome"] == "OCCUPATIONS"
    assert result.history[1]["parameters"]["nbnd"] == 8  # 1.3 x 6
    assert result.level == 0
    assert result.energy == pytest.approx(right.energy, abs=1e-5)  # eV; two ways to the same state
    assert result.total_magnetization == pytest.approx(right.total_magnetization, abs=0.01)  # μB


def test_wavefunctions_are_on_scratch_while_it_runs_and_nowhere_afterwards(
    config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    worker = WorkerConfig(scratch_dir=str(tmp_path / "scratch"))
    result = label(config, si_atoms, tmp_path / "run", worker)
    assert result.source == "xml"
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list(tmp_path.rglob("*wfc*")) == []


@pytest.mark.pw
def test_a_pseudopotential_that_pw_x_took_from_its_own_folder_is_noticed(
    config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """The folder goes away between our look at it and pw.x, which then reads a file of the same name from Debian's."""
    folder = tmp_path / "pseudo"
    folder.mkdir()
    original = (PSEUDO_DIR / "Si.pz-vbc.UPF").read_text()
    (folder / "Si.pz-vbc.UPF").write_text(original.replace("Author:", "Author: somebody else"))
    launcher = tmp_path / "pw.sh"
    launcher.write_text(f'#!/bin/sh\nmv {folder} {folder}.gone\nexec pw.x "$@"\n')
    launcher.chmod(0o755)
    own = config.model_copy(update={"pseudopotential_dir": str(folder)})
    with pytest.raises(CalculationError, match="another content than the prescribed one") as error:
        QERunner(own, WorkerConfig(pw_command=[str(launcher)])).run(si_atoms, tmp_path / "run")
    assert error.value.details["failure"] == "PSEUDOPOTENTIAL"
    assert len(error.value.details["history"]) == 1
