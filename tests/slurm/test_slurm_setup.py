"""From an empty folder to labels on a real Slurm, with the files that `dftfactory init --cluster slurm` writes."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ase import Atoms
from cluster_user import ClusterUser
from queue_helpers import shifted

from dftfactory.cluster import ClusterConfig
from dftfactory.resources import spec_entries, whole_class

if TYPE_CHECKING:
    from dftfactory.config import DFTConfig

pytestmark = [pytest.mark.slurm, pytest.mark.pw, pytest.mark.mongodb]


@pytest.fixture
def cluster_user(user: ClusterUser, config: DFTConfig) -> ClusterUser:
    """The user begins again, with --cluster: what is not given, Slurm says."""
    launchpad_file = user.folder / "my_launchpad.yaml"
    shutil.move(user.configs / "my_launchpad.yaml", launchpad_file)
    shutil.rmtree(user.configs)
    dft_yaml = (user.folder / "dft.yaml").read_text()
    (user.folder / "dft.yaml").unlink()
    lines = f'export PATH="{Path(sys.executable).parent}:$PATH"'
    printed = user.dftfactory("init", "--cluster", "slurm", "--setup", lines, "--mongodb", str(launchpad_file))
    assert f"qlaunch -c {user.configs}/small rapidfire -m 5 " in printed
    (user.folder / "dft.yaml").write_text(dft_yaml)
    return user


def test_slurm_fills_in_its_own_partition(cluster_user: ClusterUser) -> None:
    """4 cores, 8000 MB and one hour, as slurm.conf has them; half an hour for what shares a node."""
    cluster = ClusterConfig.from_yaml(cluster_user.configs / "cluster.yaml")
    small, large = cluster.classes["small"], cluster.classes["large"]
    assert (large.cores, large.memory_mb, large.walltime, large.partition) == (4, 8000, "01:00:00", "main")
    assert (small.cores, small.memory_mb, small.walltime) == (1, 2000, "00:30:00")


def test_check_answers_from_a_node(cluster_user: ClusterUser) -> None:
    """On the ranks of the job; and no job is left."""
    printed = cluster_user.dftfactory("check", "--job")
    assert "PROBLEM" not in printed
    node = re.findall(r"^ok +job: slurm job \d+ ran on (\S+)$", printed, re.M)[0]
    for line in (f"pw.x on 4 ranks on {node}: version", f"LaunchPad on {node}: database", f"scratch on {node}: "):
        assert f"ok       {line}" in printed
    assert f"ok       md5 of pseudopotentials on {node}" in printed
    cluster_user.wait_for_jobs()


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ("nope", "there is no partition nope: correct it (fw_configs/my_qadapter.yaml)"),
        ("project", "account theirs may not use partition project: correct `account`"),
    ],
)
def test_wrong_partition_and_wrong_account_are_clear(cluster_user: ClusterUser, queue: str, expected: str) -> None:
    cluster_user.set_queue(queue=queue, account="theirs", walltime="00:05:00")
    done = cluster_user.run(sys.executable, "-m", "dftfactory.cli", "check", "--job")
    assert done.returncode == 1
    [problem] = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
    assert problem.startswith(f"PROBLEM  queue, fw_configs/my_qadapter.yaml: {expected}")
    assert "not submitted, because the queue would not take it" in done.stdout


def test_job_that_waits_is_cancelled_with_the_reason(cluster_user: ClusterUser) -> None:
    cluster_user.slurm.command("sbatch", "--ntasks=4", f"--chdir={cluster_user.folder}", "--wrap=sleep 100")
    printed = cluster_user.dftfactory("check", "--job", "--wait", "1")
    assert "did not start within 1 s (PENDING, Resources) and was cancelled" in printed
    cluster_user.slurm.cancel_all()
    cluster_user.wait_for_jobs()


def test_small_ones_share_a_job_and_large_ones_have_their_own(cluster_user: ClusterUser, si_atoms: Atoms) -> None:
    """The category decides: two small structures side by side in one job, and a large one in a job of its size."""
    cluster_user.submit(si_atoms, shifted(si_atoms, 0.1), shifted(si_atoms, 0.2))
    cluster = ClusterConfig.from_yaml(cluster_user.configs / "cluster.yaml")
    large = whole_class(cluster, "large") | {"cores": 2, "memory_mb": 1500, "walltime_seconds": 600}
    changes = {f"spec.{key}": value for key, value in spec_entries(large).items()}
    cluster_user.launchpad.fireworks.update_one({"fw_id": 3}, {"$set": changes})

    cluster_user.must("qlaunch", "-c", "fw_configs/small", "singleshot")
    cluster_user.wait_for_states("COMPLETED", "COMPLETED", "READY")
    cluster_user.must("qlaunch", "-r", "rapidfire", "-m", "3")
    cluster_user.wait_for_states("COMPLETED", "COMPLETED", "COMPLETED")

    assert cluster_user.wait_for_jobs() == ["COMPLETED", "COMPLETED"]
    show = ("scontrol", "show", "job")
    packed, own = (cluster_user.slurm.command(*show, str(job)) for job in sorted(cluster_user.jobs()))
    assert "TimeLimit=01:00:00" in packed
    assert "NumCPUs=4" in packed
    assert "TimeLimit=00:10:00" in own
    assert "NumTasks=2" in own
    assert "mem=1500M" in own
    ranks = {name: label["result"]["n_ranks"] for name, label in cluster_user.labels().items()}
    assert (ranks["a"], ranks["b"]) == (1, 1)
    assert ranks["c"] <= 2
