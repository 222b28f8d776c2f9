"""Jobs that end before their calculation does: it goes on in the next one, to the label of an undisturbed run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from cluster_user import ClusterUser
from queue_helpers import specs

from dftfactory.config import DFTConfig
from dftfactory.results import DFTResult
from dftfactory.runner import QERunner
from dftfactory.sessions import pw_sessions

pytestmark = [pytest.mark.slurm, pytest.mark.pw, pytest.mark.mongodb]

# k-points for some 10 s, or 30 s, of pw.x on one core of an ordinary machine.
SOME_SECONDS, HALF_A_MINUTE = {"kspacing": 0.25}, {"kspacing": 0.18}
# Slurm's limits are whole minutes; this makes a job of 30 s. A newer Slurm sets the variable by itself.
ENDS_SOON = (
    "scontrol update JobId=$SLURM_JOB_ID EndTime=now+30",
    "export SLURM_JOB_END_TIME=$(($(date +%s) + 30))",
)
# Has 600 MB for some seconds before it becomes pw.x; rlaunch itself has some 200 MB.
GREEDY = f"""#!/bin/sh
{sys.executable} -c 'import time; data = b"x" * (600 << 20); time.sleep(3)' || exit 1
exec pw.x "$@"
"""


def test_cancelled_job_leaves_nothing_running_and_its_structure_is_labelled_by_the_next(
    user: ClusterUser, si_atoms: Atoms
) -> None:
    user.hold_pw()
    user.submit(si_atoms)
    user.qlaunch("singleshot")
    user.wait_for(lambda: pw_sessions(user.folder))
    user.slurm.command("scancel", str(user.running_job()))
    assert user.wait_for_jobs() == ["CANCELLED"]
    user.dftfactory("reconcile")
    assert user.states() == ["READY"]
    assert not pw_sessions(user.folder)
    user.let_pw_go()
    user.qlaunch("singleshot")
    user.wait_for_states("COMPLETED")
    assert user.candidates()["a"].status == "COMPLETED"


def test_job_killed_hard_at_its_limit_is_found_by_reconcile_and_repeated(user: ClusterUser, si_atoms: Atoms) -> None:
    """Nothing warns it: neither SIGUSR1, nor SIGTERM, which it does not hear; mpirun would."""
    user.set_queue(pre_rocket=user.pre_rocket("trap '' TERM"), signal=None)
    user.set_worker(mpi_command=None)
    user.hold_pw()
    user.submit(si_atoms)
    user.qlaunch("singleshot")
    user.wait_for(lambda: pw_sessions(user.folder))
    # Slurm looks at the limits each half a minute.
    user.slurm.command("scontrol", "update", f"JobId={user.running_job()}", "EndTime=now+1")
    assert user.wait_for_jobs() == ["TIMEOUT"]
    assert user.states() == ["RUNNING"]
    user.dftfactory("reconcile")
    assert user.states() == ["READY"]
    assert jobs_had(user) == {"WALLTIME": 1}
    assert not pw_sessions(user.folder)
    user.let_pw_go()
    user.qlaunch("singleshot")
    user.wait_for_states("COMPLETED")
    assert user.candidates()["a"].status == "COMPLETED"


def test_calculation_that_is_longer_than_a_job_goes_on_in_the_next_to_the_same_label(
    user: ClusterUser, si_atoms: Atoms, cluster_config: DFTConfig, tmp_path: Path
) -> None:
    config = cluster_config.model_copy(update=HALF_A_MINUTE)
    user.set_config(config)
    user.set_queue(pre_rocket=user.pre_rocket(*ENDS_SOON), signal=None)
    user.set_worker(margin_seconds=8)
    user.submit(si_atoms)
    user.qlaunch("singleshot")
    here = QERunner(config).run(si_atoms, tmp_path / "here", "a")
    # It stopped in time, and well.
    assert user.wait_for_jobs() == ["COMPLETED"]
    assert user.states() == ["READY"]
    assert jobs_had(user) == {"WALLTIME": 1}
    user.set_queue(pre_rocket=user.pre_rocket())
    user.qlaunch("singleshot")
    user.wait_for_states("COMPLETED")
    went_on_to(user, here)


def test_warning_of_the_queue_lets_pw_save_and_the_next_job_goes_on_to_the_same_label(
    user: ClusterUser, si_atoms: Atoms, cluster_config: DFTConfig, tmp_path: Path
) -> None:
    """SIGUSR1 to the shell of the job, as `--signal=B:USR1@120` lets Slurm send it."""
    config = cluster_config.model_copy(update=SOME_SECONDS)
    user.set_config(config)
    user.submit(si_atoms)
    user.qlaunch("singleshot")
    user.wait_for(lambda: "estimated scf accuracy" in user.pw_out())
    user.warn_job()
    assert user.wait_for_jobs() == ["COMPLETED"]
    assert user.states() == ["READY"]
    assert jobs_had(user) == {"WALLTIME": 1}
    user.qlaunch("singleshot")
    here = QERunner(config).run(si_atoms, tmp_path / "here", "a")
    user.wait_for_states("COMPLETED")
    went_on_to(user, here)


def test_job_killed_for_its_memory_comes_back_with_twice_as_much(
    user_with_classes: ClusterUser, si_atoms: Atoms, cluster_config: DFTConfig, tmp_path: Path
) -> None:
    user = user_with_classes
    user.set_program(GREEDY)
    cluster = user.configs / "cluster.yaml"
    cluster.write_text(cluster.read_text().replace("cores: 2", "cores: 1"))  # each rank is greedy
    user.submit(si_atoms, words=("--class", "large"))  # it asks for 500 MB, the least that is asked for
    user.qlaunch("-r", "singleshot")
    user.wait_for_jobs()
    assert user.states() == ["RUNNING"]
    user.dftfactory("reconcile")
    assert user.states() == ["READY"]
    assert jobs_had(user) == {"OUT_OF_MEMORY": 1}
    user.qlaunch("-r", "singleshot")
    user.wait_for_states("COMPLETED")
    assert user.slurm.command("squeue", "-h", "-t", "all", "-j", str(max(user.jobs())), "-o", "%m").strip() == "1000M"
    here = QERunner(cluster_config).run(si_atoms, tmp_path / "here", "a")
    assert user.candidates()["a"].energy == pytest.approx(here.energy, abs=1e-6)


def jobs_had(user: ClusterUser) -> dict[str, int]:
    """Reason → jobs that the only structure has had for it. IDLE is no reason: on a busy machine pw.x gets nowhere."""
    jobs: dict[str, int] = specs(user.launchpad)["a"]["jobs"]
    return {reason: n for reason, n in jobs.items() if n and reason != "IDLE"}


def went_on_to(user: ClusterUser, undisturbed: DFTResult) -> None:
    """The calculation went on from what was saved, as one Firework, to the label of an undisturbed one."""
    row = user.candidates()["a"]
    assert row.status == "COMPLETED"
    stored: dict[str, Any] = user.labels()["a"]["result"]
    result = DFTResult.from_dict(stored)
    assert result.history[0]["outcome"] == "WALLTIME"
    assert result.history[-1]["parameters"]["restart_mode"] == "restart"
    assert len(user.states()) == 1
    assert result.energy == pytest.approx(undisturbed.energy, abs=1e-6)
    # pw.x prints forces to 1e-8 Ry/bohr; the SCF of both ended below 2e-9 Ry.
    assert result.forces == pytest.approx(undisturbed.forces, abs=1e-3)
