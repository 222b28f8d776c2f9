"""`qlaunch` with a real Slurm and the real pw.x: one job, several, several ranks, side by side, and offline."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ase import Atoms
from cluster_user import ClusterUser
from queue_helpers import shifted, specs

from dftfactory.config import DFTConfig
from dftfactory.runner import QERunner
from dftfactory.sessions import pw_sessions

pytestmark = [pytest.mark.slurm, pytest.mark.pw, pytest.mark.mongodb]


def test_one_job_gives_the_label_of_a_laptop(
    user: ClusterUser, si_atoms: Atoms, cluster_config: DFTConfig, tmp_path: Path
) -> None:
    user.submit(si_atoms, shifted(si_atoms, 0.1))
    user.qlaunch("singleshot")
    here = QERunner(cluster_config).run(si_atoms, tmp_path / "here", "a")
    user.wait_for_states("COMPLETED", "READY")
    assert user.wait_for_jobs() == ["COMPLETED"]
    row = user.candidates()["a"]
    assert row.status == "COMPLETED"
    assert row.energy == pytest.approx(here.energy, abs=1e-6)
    # What Slurm says is left of ten minutes, less the minute that pw.x has for its end.
    limit = re.search(r"max_seconds *= *(\S+)", next(user.folder.rglob("pw.in")).read_text())
    assert limit is not None
    assert 0 < float(limit[1]) <= 540


def test_rapidfire_labels_all_structures_with_two_jobs_at_a_time(user: ClusterUser, si_atoms: Atoms) -> None:
    user.set_queue(rocket_launch=user.rlaunch("rapidfire"))
    user.submit(*(shifted(si_atoms, 0.02 * n) for n in range(4)))
    user.qlaunch("rapidfire", "-m", "2", "--sleep", "1")
    user.wait_for_states(*["COMPLETED"] * 4)
    assert set(user.wait_for_jobs()) == {"COMPLETED"}
    assert {row.status for row in user.candidates().values()} == {"COMPLETED"}
    assert len(user.labels()) == 4


def test_two_tasks_of_a_job_are_two_ranks_of_one_calculation(user: ClusterUser, si_atoms: Atoms) -> None:
    """Nothing but the size of the job says so: `parallel_cores` is not given."""
    user.set_queue(ntasks_per_node=2)
    user.submit(si_atoms)
    user.qlaunch("singleshot")
    user.wait_for_states("COMPLETED")
    assert user.labels()["a"]["result"]["n_ranks"] == 2


def test_packed_job_computes_two_at_a_time_and_tells_all_of_them_of_its_end(
    user_with_classes: ClusterUser, si_atoms: Atoms
) -> None:
    """The script that `init --cluster` writes: rockets side by side, to which it passes the warning of the queue on."""
    user, small = user_with_classes, str(user_with_classes.configs / "small")
    user.hold_pw("small")
    user.submit(*(shifted(si_atoms, 0.02 * n) for n in range(4)))
    user.must("qlaunch", "-c", small, "singleshot")
    user.wait_for(lambda: len(pw_sessions(user.folder)) == 2)
    user.warn_job()
    user.let_pw_go()
    # Those that had begun are READY again, and no rocket has begun another one.
    assert user.wait_for_jobs() == ["COMPLETED"]
    assert user.states() == ["READY"] * 4
    user.must("qlaunch", "-c", small, "singleshot")
    user.wait_for_states(*["COMPLETED"] * 4)
    assert user.wait_for_jobs() == ["COMPLETED"] * 2


def test_offline_job_never_sees_the_database_and_recover_brings_its_label(user: ClusterUser, si_atoms: Atoms) -> None:
    user.set_queue(rocket_launch=f"exec rlaunch -w {user.configs / 'my_fworker.yaml'} singleshot --offline")
    user.submit(si_atoms)
    user.qlaunch("-r", "singleshot")
    assert user.wait_for_jobs() == ["COMPLETED"]
    assert user.states() == ["RESERVED"]
    user.dftfactory("recover")
    assert user.states() == ["COMPLETED"]
    assert user.candidates()["a"].status == "COMPLETED"
    assert "jobs" not in specs(user.launchpad)["a"]
