"""Ranks and pools: never a layout that pw.x refuses, never ranks that only wait for each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError
from dftfactory.estimate import Estimate
from dftfactory.layout import Layout, choose_layout, fitted_parameters, worker_layout
from dftfactory.runner import QERunner

SMALL = Estimate(
    n_atoms=2,
    n_kinds=1,
    n_electrons=8.0,
    n_bands=8,
    n_kpoints=14,
    n_planewaves=190,
    n_gvectors=1517,
    fft_grid=(18, 18, 18),
    smooth_points=5832,
    n_spin=1,
    is_gamma=False,
    n_projectors=16,
    n_augmentations=0,
)
# 128 atoms, so that there is something to share.
LARGE = replace(
    SMALL,
    n_atoms=128,
    n_electrons=512.0,
    n_bands=500,
    n_kpoints=4,
    n_planewaves=24000,
    n_gvectors=192000,
    fft_grid=(72, 72, 72),
    smooth_points=72**3,
    n_projectors=1024,
)
MPI = {"mpi_command": "mpirun -np {cores}"}

estimates = st.builds(
    lambda kpoints, bands, planes, gamma: replace(
        LARGE,
        n_kpoints=1 if gamma else kpoints,
        n_bands=bands,
        fft_grid=(planes, planes, planes),
        smooth_points=planes**3,
        is_gamma=gamma,
    ),
    st.integers(1, 300),
    st.integers(1, 2000),
    st.integers(5, 200),
    st.booleans(),
)


@given(estimates, st.integers(1, 130), st.none() | st.floats(1, 1e6))
def test_no_layout_is_one_that_pw_x_refuses(estimate: Estimate, cores: int, memory_mb: float | None) -> None:
    layout = choose_layout(estimate, cores, memory_mb)
    assert 1 <= layout.cores <= cores
    assert layout.npool <= estimate.n_kpoints
    assert layout.cores % layout.npool == 0
    per_pool = layout.cores // layout.npool
    assert per_pool <= estimate.fft_grid[2]
    assert layout.ndiag is None or layout.ndiag <= per_pool
    assert layout.ndiag is None or int(layout.ndiag**0.5) ** 2 == layout.ndiag


def test_kpoints_come_first() -> None:
    """Pools have nothing to say to each other: 14 k-points are two for each of seven."""
    assert choose_layout(SMALL, 2) == Layout(2, 2)
    assert choose_layout(SMALL, 7) == Layout(7, 7, 1)


def test_one_kpoint_is_one_pool() -> None:
    assert choose_layout(replace(LARGE, n_kpoints=1), 8).npool == 1


def test_a_small_cell_leaves_cores_alone_that_would_only_wait() -> None:
    """Two atoms at Γ have less to do than 64 ranks have to tell each other."""
    layout = choose_layout(replace(SMALL, n_kpoints=1, is_gamma=True), 64)
    assert layout.cores < 16


def test_pools_are_fewer_where_memory_is_short() -> None:
    free = choose_layout(LARGE, 8)
    assert free.npool == 4
    tight = choose_layout(LARGE, 8, memory_mb=1.05 * LARGE.memory_mb(8, 1))
    assert tight.npool == 1
    assert LARGE.memory_mb(tight.cores, tight.npool) <= 1.05 * LARGE.memory_mb(8, 1)


def test_where_nothing_fits_the_calculation_is_tried_nevertheless() -> None:
    layout = choose_layout(LARGE, 8, memory_mb=10)
    assert layout.npool == 1
    assert LARGE.memory_mb(layout.cores, layout.npool) <= 1.2 * LARGE.memory_mb(1)


def test_the_subspace_matrix_is_shared_only_where_it_is_large() -> None:
    assert choose_layout(replace(SMALL, n_kpoints=1), 8).ndiag in (None, 1)
    assert choose_layout(replace(LARGE, n_kpoints=1), 16).ndiag in (4, 9, 16)
    assert choose_layout(LARGE, 2).ndiag is None  # pw.x shares nothing there


def test_numbers_of_the_user_are_obeyed() -> None:
    worker = WorkerConfig(parallel_cores=8, npool=2, **MPI)
    assert worker_layout(worker, SMALL) == Layout(8, 2, 1)
    assert worker_layout(worker.model_copy(update={"ndiag": 4}), SMALL) == Layout(8, 2, 4)
    assert worker_layout(worker.model_copy(update={"ndiag": None}), SMALL) == Layout(8, 2, None)


def test_a_job_with_fewer_cores_takes_what_it_has() -> None:
    before: dict[str, Any] = {"parallel_cores": 16, "npool": 4, "ndiag": 4, "kept": {"npool": 4}, "level": 1}
    assert fitted_parameters(before, 16) == before
    assert fitted_parameters(before, 64) == before
    after = fitted_parameters(before, 6)
    # Two ranks in each of three pools, or one: no square above 1 is left.
    assert after == {"parallel_cores": 6, "npool": 3, "ndiag": 1, "kept": {"npool": 3}, "level": 1}
    assert fitted_parameters(before, 1) == {**before, "parallel_cores": 1, "npool": 1, "ndiag": 1, "kept": {"npool": 1}}
    assert before["kept"] == {"npool": 4}


def test_pools_that_memory_has_forbidden_do_not_come_back() -> None:
    after = fitted_parameters({"parallel_cores": 16, "npool": 1}, 8)
    assert after == {"parallel_cores": 8, "npool": 1}


# With the real pw.x


@pytest.fixture
def aluminium() -> Atoms:
    """Return a cell that takes some SCF iterations."""
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.mark.pw
def test_the_chosen_layout_is_the_one_that_runs_and_stands_in_the_history(
    config: DFTConfig, aluminium: Atoms, tmp_path: Path
) -> None:
    worker = WorkerConfig(mpi_command="mpirun --oversubscribe -np {cores}", parallel_cores=2)
    result = QERunner(config.model_copy(update={"kspacing": 0.9}), worker).run(aluminium, tmp_path / "run")
    parameters = result.history[0]["parameters"]
    assert (parameters["parallel_cores"], parameters["npool"]) == (2, 2)
    assert result.n_ranks == 2
    assert "K-points division:     npool     =       2" in (tmp_path / "run" / "pw.out").read_text()


@pytest.mark.pw
@pytest.mark.parametrize(("npool", "cores"), [(2, 1), (1, 1), (2, 2)])
def test_a_job_with_fewer_cores_goes_on_to_the_same_label(
    config: DFTConfig, aluminium: Atoms, tmp_path: Path, npool: int, cores: int
) -> None:
    """pw.x 6.7 itself cannot: with other ranks or pools than before its `restart` ends with an error, or hangs."""
    config = config.model_copy(update={"conv_thr_per_atom": 1e-10, "kspacing": 0.9, "ecutwfc": 8})
    mpi = {"mpi_command": "mpirun --oversubscribe -np {cores}"}
    reference = QERunner(config, WorkerConfig()).run(aluminium, tmp_path / "reference")
    short = WorkerConfig(parallel_cores=2, npool=npool, max_seconds=0.02, **mpi)
    with pytest.raises(CalculationError, match="WALLTIME"):
        QERunner(config, short).run(aluminium, tmp_path / "run")
    result = QERunner(config, WorkerConfig(parallel_cores=cores, **mpi)).resume(tmp_path / "run")
    assert result.n_ranks == cores
    assert result.energy == pytest.approx(reference.energy, abs=1e-6)  # eV, of four atoms
    goes_on = result.history[-1]["parameters"]
    assert (goes_on.get("restart_mode"), goes_on.get("startingpot")) == (
        ("restart", None) if cores == 2 else (None, "file")
    )
