"""The files that `dftfactory init` copies: FireWorks' own loaders take them as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fireworks import FWorker, LaunchPad
from fireworks.user_objects.queue_adapters.common_adapter import CommonAdapter
from fireworks.utilities.fw_serializers import load_object_from_file

from dftfactory.config import WorkerConfig
from dftfactory.errors import LaunchPadError
from dftfactory.launchpad import load_launchpad

FW_CONFIGS = Path(__file__).parents[1] / "fw_configs"


def test_worker_takes_every_firework_and_gives_our_keys():
    worker = FWorker.from_file(str(FW_CONFIGS / "my_fworker.yaml"))
    assert worker.name == "my_cluster"
    assert "spec._category" not in worker.query

    settings = WorkerConfig.from_fw_env(worker.env)

    assert settings.command(cores=4, npool=2) == ["mpirun", "-np", "4", "pw.x", "-nk", "2", "-in", "pw.in"]
    assert settings.environment == {"OMP_NUM_THREADS": "1"}


def test_optional_worker_keys_are_valid_when_the_hash_is_taken_away(tmp_path):
    """Every key of WorkerConfig is in the file, and the examples behind # fit together."""
    text = (FW_CONFIGS / "my_fworker.yaml").read_text()
    # An optional line is `  # key: value`; a sentence of explanation does not have one word before its colon.
    everything = re.sub(r"^  # (\w+: \S+)$", r"  \1", text, flags=re.MULTILINE)
    (tmp_path / "my_fworker.yaml").write_text(everything)

    worker = FWorker.from_file(str(tmp_path / "my_fworker.yaml"))

    assert set(worker.env) == set(WorkerConfig.model_fields)
    settings = WorkerConfig.from_fw_env(worker.env)
    assert (settings.parallel_cores, settings.npool, settings.max_seconds) == (16, 4, 21600)


@pytest.mark.filterwarnings("error:Key")
def test_slurm_job_runs_rlaunch_in_its_own_folder(tmp_path):
    """FireWorks warns of a key that its template does not have, and such a key does nothing: here it is an error."""
    adapter = load_object_from_file(str(FW_CONFIGS / "my_qadapter.yaml"))
    assert isinstance(adapter, CommonAdapter)

    lines = adapter.get_script_str(str(tmp_path)).splitlines()

    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=16",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --time=24:00:00",
        "#SBATCH --job-name=dftfactory",
        "#SBATCH --output=dftfactory-%j.out",
        "#SBATCH --error=dftfactory-%j.error",
    ]
    assert _commands(lines) == [
        "export FW_CONFIG_FILE=/path/to/this/folder/FW_config.yaml",
        f"cd {tmp_path}",
        "rlaunch -c /path/to/this/folder rapidfire --timeout 57600",
    ]


@pytest.mark.filterwarnings("error:Key")
def test_pbs_job_runs_rlaunch_in_its_own_folder(tmp_path):
    adapter = load_object_from_file(str(FW_CONFIGS / "my_qadapter_pbs.yaml"))

    lines = adapter.get_script_str(str(tmp_path)).splitlines()

    assert [line for line in lines if line.startswith("#PBS")] == [
        "#PBS -l nodes=1:ppn=16",
        "#PBS -l walltime=24:00:00",
        "#PBS -q batch",
        "#PBS -N dftfactory",
        "#PBS -o FW_job.out",
        "#PBS -e FW_job.error",
    ]
    assert _commands(lines)[1:] == [f"cd {tmp_path}", "rlaunch -c /path/to/this/folder rapidfire --timeout 57600"]


@pytest.mark.parametrize("name", ["my_qadapter.yaml", "my_qadapter_pbs.yaml"])
def test_no_calculation_begins_too_late_in_a_job(name):
    """The walltime leaves the longest pw.x run, `max_seconds` of my_fworker.yaml, room after rlaunch's --timeout."""
    adapter = load_object_from_file(str(FW_CONFIGS / name))
    hours, minutes, seconds = map(int, adapter["walltime"].split(":"))
    timeout = int(adapter["rocket_launch"].split("--timeout ")[1])
    max_seconds = int(re.findall(r"max_seconds: (\d+)", (FW_CONFIGS / "my_fworker.yaml").read_text())[0])
    assert timeout + max_seconds < 3600 * hours + 60 * minutes + seconds


def test_launchpad_file_is_a_uri_without_a_secret():
    launchpad = LaunchPad.from_file(str(FW_CONFIGS / "my_launchpad.yaml"))
    assert launchpad.uri_mode
    assert launchpad.host == "mongodb://USER:PASSWORD@mongo.example.org:27017/?authSource=admin"
    assert launchpad.db.name == "fireworks"
    launchpad.connection.close()


def test_unedited_launchpad_file_says_which_line_to_edit(monkeypatch):
    """It waits for 2 minutes for a database that is away; opening it for the first time does not."""
    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 0.5)
    with pytest.raises(LaunchPadError, match=r"no LaunchPad answers at mongo\.example\.org:27017.*: check host"):
        load_launchpad(FW_CONFIGS / "my_launchpad.yaml")


def test_fireworks_finds_its_settings_through_the_environment(tmp_path):
    """As in a job: another folder, and FW_CONFIG_FILE set by pre_rocket."""
    settings = _fireworks_settings(FW_CONFIGS / "FW_config.yaml", tmp_path)
    assert (settings["PING_TIME_SECS"], settings["RUN_EXPIRATION_SECS"]) == (60, 1800)
    # Several pings may be late before a run counts as lost.
    assert settings["RUN_EXPIRATION_SECS"] >= 10 * settings["PING_TIME_SECS"]
    assert settings["LAUNCHPAD_LOC"] is None


def test_fireworks_finds_the_other_files_through_the_folder_named_in_its_settings(tmp_path):
    """The first line that a user edits: CONFIG_FILE_DIR with the real folder."""
    text = (FW_CONFIGS / "FW_config.yaml").read_text()
    edited = tmp_path / "FW_config.yaml"
    edited.write_text(text.replace("# CONFIG_FILE_DIR: /path/to/this/folder", f"CONFIG_FILE_DIR: {FW_CONFIGS}"))
    (tmp_path / "elsewhere").mkdir()

    settings = _fireworks_settings(edited, tmp_path / "elsewhere")

    assert settings["LAUNCHPAD_LOC"] == str(FW_CONFIGS / "my_launchpad.yaml")
    assert settings["FWORKER_LOC"] == str(FW_CONFIGS / "my_fworker.yaml")
    assert settings["QUEUEADAPTER_LOC"] == str(FW_CONFIGS / "my_qadapter.yaml")


def _commands(lines: list[str]) -> list[str]:
    return [line for line in lines if line and not line.lstrip().startswith("#")]


def _fireworks_settings(config: Path, current_folder: Path) -> dict[str, object]:
    """FireWorks reads its settings on import, so each look needs a new process."""
    code = (
        "import json; from fireworks import fw_config;"
        "print(json.dumps({k: v for k, v in vars(fw_config).items() if k.endswith(('_SECS', '_LOC'))}))"
    )
    # A home folder without ~/.fireworks, which would come before FW_CONFIG_FILE.
    environment = os.environ | {"FW_CONFIG_FILE": str(config), "HOME": str(current_folder)}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=current_folder, env=environment, capture_output=True, text=True, check=True
    )
    settings: dict[str, object] = json.loads(printed.stdout)
    return settings
