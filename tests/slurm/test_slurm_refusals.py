"""Jobs that Slurm does not take: nothing is lost, and `dftfactory check` says why (more in test_slurm_setup)."""

from __future__ import annotations

import re

import pytest
from ase import Atoms
from cluster_user import ClusterUser

pytestmark = [pytest.mark.slurm, pytest.mark.pw, pytest.mark.mongodb]

WRONG_PARTITION = {"queue": "nightly"}
WRONG_ACCOUNT = {"queue": "project", "account": "physics", "walltime": "00:05:00"}


@pytest.mark.parametrize("wrong", [WRONG_PARTITION, WRONG_ACCOUNT], ids=["partition", "account"])
def test_refused_job_leaves_its_firework_ready(wrong: dict[str, str], user: ClusterUser, si_atoms: Atoms) -> None:
    """qlaunch says what sbatch said, and ends well."""
    user.set_queue(**wrong)
    user.submit(si_atoms)
    said = user.qlaunch("-r", "singleshot")
    assert "queue script could not be submitted" in said
    assert "sbatch: error: " in said
    assert user.states() == ["READY"]
    assert user.jobs() == {}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"queue": "project", "account": "materials"}, r"walltime 00:20:00 is more than partition project allows"),
        ({"mem": "900G"}, r"no 1 nodes with 2 tasks and 900G of memory"),
    ],
    ids=["walltime", "memory"],
)
def test_check_names_the_limit_that_a_job_is_above(
    wrong: dict[str, str], says: str, user_with_classes: ClusterUser
) -> None:
    user_with_classes.set_queue(**wrong)
    done = user_with_classes.run_dftfactory("check")
    assert done.returncode == 1, done.stdout
    assert re.search(rf"^PROBLEM  queue.*{says}", done.stdout, re.M), done.stdout
    assert user_with_classes.jobs() == {}
