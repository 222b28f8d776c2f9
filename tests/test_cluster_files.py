"""The files of `dftfactory init --cluster`: FireWorks' own loaders take them, and the jobs do what they say."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fireworks import FWorker, LaunchPad
from fireworks.user_objects.queue_adapters.common_adapter import CommonAdapter
from fireworks.utilities.fw_serializers import load_object_from_file

from dftfactory.cluster import ClusterConfig
from dftfactory.cluster_files import next_commands
from dftfactory.cluster_setup import ClusterSetup, JobKind
from dftfactory.config import WorkerConfig
from dftfactory.setup_files import rocket_query, write_start_files

DAY = 86400


def setup_for(queue: str, **more: Any) -> ClusterSetup:
    """Nodes of 3 cores and 9000 MB, and one partition with 100 GB."""
    values = {
        "queue": queue,
        "small": JobKind("small", "main", 3, 3000, 14400),
        "large": JobKind("large", "main", 3, 9000, DAY),
        "bigmem": JobKind("bigmem", "fat", 8, 100000, DAY // 2),
        "account": "project-1",
        "shell_lines": ("module load qe", "source /venv/bin/activate"),
        "scratch": "/scratch/my name",
        "launchpad_file": None,
    }
    return ClusterSetup(**{**values, **more})


@pytest.fixture(params=["slurm", "pbs"])
def configs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """fw_configs of one cluster, in a folder whose name has a blank."""
    write_start_files(tmp_path / "my project", None, setup_for(request.param))
    return tmp_path / "my project" / "fw_configs"


def script_of(file: Path, folder: Path) -> str:
    """The script that FireWorks makes; bash can read it."""
    adapter = load_object_from_file(str(file))
    assert isinstance(adapter, CommonAdapter)
    script: str = adapter.get_script_str(str(folder))
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
    return script


@pytest.mark.filterwarnings("error:Key")
def test_each_class_has_a_worker_and_jobs_of_its_own(configs: Path, tmp_path: Path) -> None:
    """And cluster.yaml lists the same classes."""
    cluster = ClusterConfig.from_yaml(configs / "cluster.yaml")
    assert list(cluster.classes) == ["small", "large", "bigmem"]
    folders = {"small": configs / "small", "large": configs, "bigmem": configs / "bigmem"}
    for name, folder in folders.items():
        worker = FWorker.from_file(str(folder / "my_fworker.yaml"))
        assert worker.category == name
        assert (folder / "my_fworker.yaml").read_text().count(rocket_query().strip().splitlines()[0][:20]) == 1
        settings = WorkerConfig.from_yaml(folder / "my_fworker.yaml")
        assert settings.scratch_dir == "/scratch/my name"
        script = script_of(folder / "my_qadapter.yaml", tmp_path)
        assert f"-w '{folder}/my_fworker.yaml' {'rapidfire' if name == 'small' else 'singleshot'}" in script
        assert f"-l '{configs}/my_launchpad.yaml'" in script
        assert "\nmodule load qe\nsource /venv/bin/activate\n" in script
        assert f"export FW_CONFIG_FILE='{configs}/FW_config.yaml'" in script
        assert "project-1" in script


def test_small_structures_share_a_node_and_its_memory(configs: Path) -> None:
    worker = WorkerConfig.from_yaml(configs / "small" / "my_fworker.yaml")
    limits = ClusterConfig.from_yaml(configs / "cluster.yaml").classes["small"]
    assert (worker.parallel_cores, worker.memory_mb) == (1, 3000)
    assert (limits.cores, limits.memory_mb, limits.walltime, limits.packed) == (1, 3000, "04:00:00", True)


@pytest.mark.filterwarnings("error:Key")
def test_slurm_jobs_have_the_size_of_a_node(tmp_path: Path) -> None:
    write_start_files(tmp_path, None, setup_for("slurm"))
    head = {
        "nodes=1",
        "cpus-per-task=1",
        "account=project-1",
        "job-name=dftfactory",
        "output=dftfactory-%j.out",
        "error=dftfactory-%j.error",
        "signal=B:USR1@120",
    }
    own = {
        ".": {"ntasks-per-node=3", "mem=9000M", "time=24:00:00", "partition=main"},
        "small": {"ntasks-per-node=3", "mem=9000M", "time=24:00:00", "partition=main"},
        "bigmem": {"ntasks-per-node=8", "mem=100000M", "time=12:00:00", "partition=fat"},
    }
    for folder, lines in own.items():
        script = script_of(tmp_path / "fw_configs" / folder / "my_qadapter.yaml", tmp_path)
        said = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
        assert said == head | lines


@pytest.mark.filterwarnings("error:Key")
def test_pbs_jobs_have_the_size_of_a_node_and_say_their_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template is beside the files; a rocket counts the ranks of its job in the list of nodes that PBS writes."""
    write_start_files(tmp_path, None, setup_for("pbs"))
    configs = tmp_path / "fw_configs"
    script = script_of(configs / "bigmem" / "my_qadapter.yaml", tmp_path)
    assert "#PBS -l select=1:ncpus=8:mpiprocs=8:mem=100000mb\n" in script
    assert "#PBS -q fat\n#PBS -A project-1\n" in script
    (tmp_path / "nodes").write_text("node7\n" * 8)
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    assert WorkerConfig.from_yaml(configs / "bigmem" / "my_fworker.yaml").parallel_cores == 8


def test_launchpad_that_is_there_is_used_where_it_is(tmp_path: Path) -> None:
    """Its password is not copied."""
    file = tmp_path / "mine.yaml"
    file.write_text("host: 127.0.0.1\nname: fireworks\n")
    write_start_files(tmp_path / "p", None, setup_for("slurm", launchpad_file=file))
    assert not (tmp_path / "p/fw_configs/my_launchpad.yaml").exists()
    assert f'\nLAUNCHPAD_LOC: "{file}"\n' in (tmp_path / "p/fw_configs/FW_config.yaml").read_text()
    assert f"rlaunch -l {file} -w" in script_of(tmp_path / "p/fw_configs/my_qadapter.yaml", tmp_path)


def test_launchpad_file_to_fill_in_is_private(configs: Path) -> None:
    assert (configs / "my_launchpad.yaml").stat().st_mode & 0o077 == 0
    assert LaunchPad.from_file(str(configs / "my_launchpad.yaml")).name == "fireworks"


def test_next_commands_are_complete(tmp_path: Path) -> None:
    """Each is typed as it stands."""
    assert next_commands(tmp_path, setup_for("slurm")) == [
        f"# fill in {tmp_path}/dft.yaml and {tmp_path}/fw_configs/my_launchpad.yaml",
        f"export FW_CONFIG_FILE={tmp_path}/fw_configs/FW_config.yaml",
        "dftfactory check --job",
        "dftfactory submit candidates.db",
        f"qlaunch -c {tmp_path}/fw_configs/small rapidfire -m 5      # many side by side in one job",
        "qlaunch -r rapidfire -m 20      # one job for each large structure",
        f"qlaunch -r -c {tmp_path}/fw_configs/bigmem rapidfire -m 20      # those that need more memory",
    ]


ROCKET = """#!{python}
import os, pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
def stop(number, frame):
    time.sleep(0.2)
    (folder / f"{{os.getpid()}}.ended").write_text(signal.Signals(number).name)
    sys.exit()
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGTERM, stop)
words = folder / f"{{os.getpid()}}.part"
words.write_text(" ".join(sys.argv[1:]))
words.rename(words.with_suffix(".began"))
time.sleep(120)
"""


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_job_full_of_rockets_passes_a_signal_on_and_waits_for_them(configs: Path, tmp_path: Path, name: str) -> None:
    """The signal reaches the script only, as `--signal=B:` and an end by the queue's own kill of the shell do."""
    rocket = tmp_path / "rlaunch"
    rocket.write_text(ROCKET.format(python=sys.executable, folder=str(tmp_path)))
    rocket.chmod(0o755)
    (tmp_path / "job").mkdir()
    script = script_of(configs / "small" / "my_qadapter.yaml", tmp_path / "job")
    script = script.replace("module load qe\nsource /venv/bin/activate", f"export PATH={tmp_path}:$PATH")
    job = subprocess.Popen(["/bin/bash"], stdin=subprocess.PIPE, text=True)
    try:
        assert job.stdin is not None
        job.stdin.write(script)
        job.stdin.close()
        deadline = time.monotonic() + 60
        while len(began := list(tmp_path.glob("*.began"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(began) == 3
        assert "rapidfire --timeout 77760" in began[0].read_text()  # nine tenths of a day
        subprocess.run(["/bin/kill", f"-{name}", str(job.pid)], check=True)
        job.wait(60)
    finally:
        job.kill()
    assert [path.read_text() for path in tmp_path.glob("*.ended")] == [f"SIG{name}"] * 3
