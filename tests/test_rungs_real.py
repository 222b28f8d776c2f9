"""Every rung keeps the label, proven with the real pw.x: 0.01 meV/atom and 1 meV/Å against level 0.

Each test makes the first runs of a calculation fail and compares the label that recovery then reaches with the one of
an undisturbed run. Where pw.x cannot be brought to fail on a small cell, a script in its place says what it would say.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from paths import PSEUDO_DIR, PSEUDOPOTENTIALS

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.results import DFTResult
from dftfactory.runner import QERunner

pytestmark = pytest.mark.pw

ENERGY = 1e-5  # eV/atom
FORCE = 1e-3  # eV/Å

# What pw.x prints when it fails so, and the signature that `diagnose` knows it by.
OUT_OF_MEMORY = "Error allocating 1048576 bytes: Cannot allocate memory"
NO_PLANES = " Error in routine mp_start_pools (1):\n invalid number of pools, out of range"
CHOLESKY = " Error in routine cdiaghg (53):\n problems computing cholesky"
SYMMETRY = " Error in routine checkallsym (1):\n some of the original symmetry operations not satisfied"
NAN = "     total energy              =             NaN Ry"

Disturb = Callable[..., list[str]]


@pytest.fixture
def failing(disturbed: Disturb) -> Disturb:
    """Return a function that makes a pw.x whose first runs only say what they are told to, and exit with 1."""
    return lambda *messages: disturbed(*[f"printf '%s\\n' {shlex.quote(text)}; exit 1" for text in messages])


def aluminium() -> Atoms:
    """Return a metal with one atom off its site, so that some symmetry is left."""
    atoms = bulk("Al", cubic=True)
    atoms.positions[0] += (0, 0, 0.15)
    return atoms


def iron() -> Atoms:
    """Return a ferromagnet with ultrasoft atoms; with fewer k-points it would have several states."""
    atoms = bulk("Fe", cubic=True)
    atoms.positions[1] += (0, 0, 0.15)
    return atoms


CELLS = {"Al": aluminium(), "Fe": iron()}
both_cells = pytest.mark.parametrize("cell", CELLS)
# Where iron shows nothing more, and takes three times as long.
aluminium_only = pytest.mark.parametrize("cell", ["Al"])


def configured(**changes: object) -> DFTConfig:
    return DFTConfig(
        **{
            "pseudopotential_dir": str(PSEUDO_DIR),
            "pseudopotentials": PSEUDOPOTENTIALS,
            "ecutwfc": 15,
            "kspacing": 1.2,
            # Tight, so that two ways to the same state differ by less than what is asked for.
            "conv_thr_per_atom": 1e-10,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DFTResult]:
    """Labels of level 0."""
    labels = {}
    for name, atoms in CELLS.items():
        labels[name] = QERunner(configured(), WorkerConfig()).run(atoms, tmp_path_factory.mktemp(name) / "run")
        assert [attempt["outcome"] for attempt in labels[name].history] == ["CONVERGED"]
        # Forces and moment are far above what is compared.
        assert labels[name].max_force > 100 * FORCE
    assert labels["Fe"].total_magnetization is not None
    assert labels["Fe"].total_magnetization > 1
    return labels


def recovered(
    cell: str,
    tmp_path: Path,
    undisturbed: dict[str, DFTResult],
    failures: list[str],
    worker: WorkerConfig | None = None,
    **changes: object,
) -> DFTResult:
    """Return the label after these failures; it is the undisturbed one."""
    result = QERunner(configured(**changes), worker or WorkerConfig()).run(CELLS[cell], tmp_path / "run")
    assert [attempt["outcome"] for attempt in result.history] == [*failures, "CONVERGED"]
    expected = undisturbed[cell]
    assert abs(result.energy - expected.energy) / len(CELLS[cell]) < ENERGY
    assert np.abs(result.forces - expected.forces).max() < FORCE
    assert (result.quality, result.degauss, result.conv_thr) == ("exact", expected.degauss, expected.conv_thr)
    return result


def last(result: DFTResult, *names: str) -> tuple[object, ...]:
    """Parameters of the run that gave the label."""
    return tuple(result.history[-1]["parameters"].get(name) for name in names)


# The levels of the ladder. One iteration at level 0 cannot converge, and one more from its density cannot either.


@both_cells
@pytest.mark.parametrize(
    "level",
    [
        {"mixing_beta": 0.3, "mixing_mode": "plain"},
        {"mixing_beta": 0.3, "mixing_mode": "plain", "diagonalization": "cg"},
    ],
    ids=["soft mixing", "robust solver"],
)
def test_a_level_keeps_the_label(
    level: dict[str, object], cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult]
) -> None:
    ladder = [{"name": "the level", "electron_maxstep": 80, **level}]
    ends = ["SCF_NOT_CONVERGED"] * 2
    result = recovered(cell, tmp_path, undisturbed, ends, electron_maxstep=1, ladder=ladder)
    assert result.level == 1
    assert last(result, *level) == tuple(level.values())


@both_cells
def test_the_anneal_keeps_the_label(cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult]) -> None:
    stages = [{"degauss_above": 0.04, "conv_thr": 1e-4}, {"degauss_above": 0.01, "conv_thr": 1e-5}, {}]
    ladder = [{"name": "anneal", "electron_maxstep": 80, "mixing_ndim": 20, "anneal": stages}]
    ends = [*["SCF_NOT_CONVERGED"] * 2, "STAGE_CONVERGED", "STAGE_CONVERGED"]
    result = recovered(cell, tmp_path, undisturbed, ends, electron_maxstep=1, ladder=ladder)
    assert last(result, "stage", "startingpot") == (2, "file")


@both_cells
def test_going_on_from_the_density_keeps_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult]
) -> None:
    steps = undisturbed[cell].iterations * 2 // 3
    result = recovered(cell, tmp_path, undisturbed, ["SCF_NOT_CONVERGED"], electron_maxstep=steps)
    assert last(result, "level", "startingpot") == (0, "file")


# The solvers


@aluminium_only
def test_cg_after_a_failed_diagonalization_keeps_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    worker = WorkerConfig(pw_command=failing(CHOLESKY))
    result = recovered(cell, tmp_path, undisturbed, ["DIAGONALIZATION"], worker)
    assert last(result, "diagonalization", "mixing_beta") == ("cg", 0.3)


@aluminium_only
def test_a_larger_subspace_keeps_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    worker = WorkerConfig(pw_command=failing(CHOLESKY, CHOLESKY))
    result = recovered(cell, tmp_path, undisturbed, ["DIAGONALIZATION"] * 2, worker)
    assert last(result, "diagonalization", "diago_david_ndim") == ("david", 4)


@pytest.mark.parametrize(("solver", "failures"), [("paro", 3), ("ppcg", 4)])
def test_a_rare_solver_keeps_the_label(
    solver: str, failures: int, tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    worker = WorkerConfig(pw_command=failing(*[CHOLESKY] * failures))
    result = recovered("Al", tmp_path, undisturbed, ["DIAGONALIZATION"] * failures, worker)
    assert last(result, "diagonalization") == (solver,)


def test_another_solver_after_nan_keeps_the_label(
    tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    result = recovered("Al", tmp_path, undisturbed, ["NAN"], WorkerConfig(pw_command=failing(NAN)))
    assert last(result, "diagonalization", "startingpot") == ("cg", None)


# Memory and layout


def two_ranks(pw_command: list[str], npool: int = 1) -> WorkerConfig:
    return WorkerConfig(
        pw_command=pw_command, mpi_command="mpirun --oversubscribe -np {cores}", parallel_cores=2, npool=npool
    )


@aluminium_only
def test_one_pool_keeps_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    worker = two_ranks(failing(OUT_OF_MEMORY), npool=2)
    result = recovered(cell, tmp_path, undisturbed, ["OUT_OF_MEMORY"], worker)
    assert last(result, "npool", "parallel_cores") == (1, 2)
    assert result.n_ranks == 2


@aluminium_only
def test_two_pools_have_the_label_of_one_rank(cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult]) -> None:
    result = recovered(cell, tmp_path, undisturbed, [], two_ranks(["pw.x"], npool=2))
    assert result.n_ranks == 2


@aluminium_only
def test_fewer_ranks_keep_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    worker = two_ranks(failing(NO_PLANES, NO_PLANES), npool=2)
    result = recovered(cell, tmp_path, undisturbed, ["PARALLELIZATION"] * 2, worker)
    assert last(result, "npool", "parallel_cores") == (1, 1)
    assert result.n_ranks == 1


@both_cells
def test_a_small_subspace_and_a_short_history_keep_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    result = recovered(cell, tmp_path, undisturbed, ["OUT_OF_MEMORY"], WorkerConfig(pw_command=failing(OUT_OF_MEMORY)))
    assert last(result, "diago_david_ndim", "mixing_ndim", "level") == (2, 4, 0)


@aluminium_only
def test_the_frugal_solver_keeps_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    worker = WorkerConfig(pw_command=failing(OUT_OF_MEMORY, OUT_OF_MEMORY))
    result = recovered(cell, tmp_path, undisturbed, ["OUT_OF_MEMORY"] * 2, worker)
    assert last(result, "diagonalization", "mixing_ndim", "mixing_beta", "level") == ("cg", 4, 0.7, 0)


# Symmetry, bands, saved states


@both_cells
def test_no_symmetry_keeps_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], failing: Disturb
) -> None:
    result = recovered(cell, tmp_path, undisturbed, ["SYMMETRY"], WorkerConfig(pw_command=failing(SYMMETRY)))
    assert last(result, "nosym", "level") == (True, 0)
    if cell == "Al":  # the cell had symmetry to lose
        assert result.n_kpoints > undisturbed[cell].n_kpoints


@aluminium_only
def test_more_bands_keep_the_label(cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult]) -> None:
    # The twelve electrons of four Al atoms fill six bands.
    result = recovered(cell, tmp_path, undisturbed, ["OCCUPATIONS"], pw={"system": {"nbnd": 7}})
    assert last(result, "level", "startingpot") == (0, "file")


# The first run gets less time than it needs, whatever the machine.
SHORT = "sed 's/^&CONTROL/&\\n max_seconds = 0.02/' pw.in > short.in; exec pw.x -in short.in"


@both_cells
def test_a_run_resumed_after_its_time_was_over_keeps_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], disturbed: Disturb
) -> None:
    worker = WorkerConfig(pw_command=disturbed(SHORT))
    result = recovered(cell, tmp_path, undisturbed, ["WALLTIME"], worker)
    assert last(result, "level", "restart_mode") == (0, "restart")


@aluminium_only
def test_from_scratch_after_a_damaged_state_keeps_the_label(
    cell: str, tmp_path: Path, undisturbed: dict[str, DFTResult], disturbed: Disturb
) -> None:
    """The XML of the saved state is cut before the second run, which would go on from it."""
    worker = WorkerConfig(pw_command=disturbed(SHORT, "truncate -s 5000 out/pwscf.save/data-file-schema.xml"))
    result = recovered(cell, tmp_path, undisturbed, ["WALLTIME", "BAD_RESTART"], worker)
    assert last(result, "level", "restart_mode", "startingpot") == (0, None, None)
