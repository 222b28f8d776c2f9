"""The files that `dftfactory init` copies: FireWorks' own loaders take them as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fireworks
import pytest
from fireworks import Firework, FWorker, LaunchPad, ScriptTask
from fireworks.user_objects.queue_adapters.common_adapter import CommonAdapter
from fireworks.utilities.fw_serializers import load_object_from_file
from queue_helpers import make_database, rlaunch

from dftfactory.cluster import ClusterConfig
from dftfactory.config import WorkerConfig
from dftfactory.errors import LaunchPadError
from dftfactory.firetasks import RunDFT
from dftfactory.launchpad import load_launchpad
from dftfactory.pipeline import submit
from dftfactory.resources import spec_entries, whole_class

FW_CONFIGS = Path(__file__).parents[1] / "fw_configs"

# Keys of a specification that FireWorks itself acts on: none that makes it do more than run the task is let through.
BARRED = {
    "_background_tasks": "runs other tasks beside, with a `_fw_env` of the specification's own",
    "_files_in": "copies any file to any place",
    "_trackers": "reads the end of any file into the LaunchPad",
    "_launch_dir": "runs in any folder",
    "_recovery": "copies any folder, and leaves out the task",
    "_dupefinder": "gives it the result of another Firework",
    "_fw_env": "is the worker's own, with the command of pw.x",
}
# qlaunch -r writes `_queueadapter` into the job script: only the size of a job is let through, and no line of shell.
SIZES = {"nodes": 2, "ntasks": 32, "ntasks_per_node": 16, "mem": "64000M", "walltime": "1-00:00:00", "queue": "main"}
PBS_SIZES = {"nnodes": 1, "ppnode": 16, "mem": "64000mb", "walltime": "24:00:00", "queue": "long.q_2-a"}
ATTACKS = {
    "line of shell": {"walltime": "1:00:00\ntouch was-here"},
    "line break alone": {"queue": "main\n"},
    "carriage return": {"queue": "main\rtouch was-here"},
    "separator of lines": {"queue": "main\u2028touch"},
    "command in a value": {"queue": "$(touch was-here)"},
    "option after a blank": {"mem": "1G --wrap=touch"},
    "name of another value": {"mem": "$${rocket_launch}"},
    "what runs": {"rocket_launch": "touch was-here"},
    "before it": {"pre_rocket": "touch was-here"},
    "after it": {"post_rocket": "touch was-here"},
    "account": {"account": "theirs"},
    "mail": {"mail_user": "me@example.org"},
    "folder of the log": {"logdir": "elsewhere"},
    "nested": {"mem": {"a": "b"}},
    "list": {"mem": ["1G"]},
    "fraction": {"nodes": 1.5},
    "yes": {"nodes": True},
    "nothing": {"mem": None},
    "text": "touch was-here",
    "list of pairs": [["mem", "1G"]],
}
# They act on nothing but who takes a Firework, what its children see, or what the task is handed.
HARMLESS = {
    *("_fworker", "_category", "_priority", "_preserve_fworker", "_add_fworker", "_add_launchpad_and_fw_id"),
    *("_files_prev", "_files_out", "_pass_job_info", "_job_info", "_tasks", "_exception_details"),
    *("_allow_fizzled_parents", "_fizzled_parents"),
}


def test_worker_gives_our_keys():
    worker = FWorker.from_file(str(FW_CONFIGS / "my_fworker.yaml"))
    assert worker.name == "my_cluster"
    assert "spec._category" not in worker.query

    settings = WorkerConfig.from_fw_env(worker.env)

    assert settings.command(cores=4, npool=2) == ["mpirun", "-np", "4", "pw.x", "-nk", "2", "-in", "pw.in"]
    assert settings.environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.mongodb
def test_rocket_takes_nothing_but_a_single_run_dft(launchpad, tmp_path):
    """Somebody who can write to the LaunchPad plants Fireworks, which come first; ours is damaged and FIZZLES."""
    script = ScriptTask.from_str(f"touch {tmp_path}/was-here")
    planted = {
        "script": ([script], {}),
        "script, then ours": ([script, RunDFT()], {}),
        "ours, then script": ([RunDFT(), script], {}),
        "nothing": ([], {}),
        "background": (
            [RunDFT()],
            {"_background_tasks": [{"_fw_name": "BackgroundTask", "tasks": [script.to_dict()]}]},
        ),
        **{key: ([RunDFT()], {key: {}}) for key in BARRED if key != "_background_tasks"},
        **{f"queue: {name}": ([RunDFT()], {"_queueadapter": value}) for name, value in ATTACKS.items()},
    }
    for name, (tasks, spec) in planted.items():
        launchpad.add_wf(Firework(tasks, name=name, spec={**spec, "_priority": 9}))
    # What FireWorks cannot make itself, but who writes to the database can.
    nested = launchpad.add_wf(Firework(RunDFT(), name="nested", spec={"_priority": 9}))
    tasks = [[RunDFT().to_dict()], script.to_dict()]
    launchpad.fireworks.update_one({"fw_id": next(iter(nested.values()))}, {"$set": {"spec._tasks": tasks}})
    launchpad.add_wf(Firework(RunDFT(), name="ours", spec={"_category": "small"}))
    (tmp_path / "my_launchpad.yaml").write_text(json.dumps(launchpad.to_dict()))
    worker = (FW_CONFIGS / "my_fworker.yaml").read_text().replace('category: ""', "category: [small, __none__]")
    (tmp_path / "category.yaml").write_text(worker)

    environment = os.environ | {"PYTHONPATH": str(FW_CONFIGS.parent)}
    for worker_file in (tmp_path / "category.yaml", FW_CONFIGS / "my_fworker.yaml"):
        command = [sys.executable, "-m", "fireworks.scripts.rlaunch_run", "-l", "my_launchpad.yaml"]
        rockets = [*command, "-w", str(worker_file), "rapidfire"]
        subprocess.run(rockets, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)

    states = {firework["name"]: firework["state"] for firework in launchpad.fireworks.find()}
    assert states.pop("ours") == "FIZZLED"
    assert "specification of the Firework is damaged" in str(launchpad.launches.find_one({}))
    assert states == dict.fromkeys([*planted, "nested"], "READY")
    assert not (tmp_path / "was-here").exists()


def test_every_key_that_fireworks_acts_on_is_known():
    """A new FireWorks with a new key: it belongs into one of the two tables."""
    package = Path(fireworks.__file__).parent
    sources = [path.read_text() for folder in ("core", "queue") for path in (package / folder).glob("*.py")]
    names = (
        r"""spec\[["'](_\w+)|["'](_\w+)["'] (?:not )?in \w*\.?\w*spec|spec\.(?:get|pop)\(["'](_\w+)|["']spec\.(_\w+)"""
    )
    found = {name for source in sources for match in re.findall(names, source) for name in match if name}
    assert found - HARMLESS <= {*BARRED, "_queueadapter"}
    assert {"_background_tasks", "_queueadapter", "_recovery", "_priority"} <= found

    query = FWorker.from_file(str(FW_CONFIGS / "my_fworker.yaml")).query
    assert {key for key, value in query.items() if value == {"$exists": False}} == {f"spec.{key}" for key in BARRED}


def test_optional_worker_keys_are_valid_when_the_hash_is_taken_away(tmp_path):
    """Every key of WorkerConfig is in the file, and the examples behind # fit together."""
    text = (FW_CONFIGS / "my_fworker.yaml").read_text()
    # An optional line is `  # key: value`; a sentence of explanation does not have one word before its colon.
    everything = re.sub(r"^  # (\w+: \S+)$", r"  \1", text, flags=re.MULTILINE)
    (tmp_path / "my_fworker.yaml").write_text(everything)

    worker = FWorker.from_file(str(tmp_path / "my_fworker.yaml"))

    assert set(worker.env) == set(WorkerConfig.model_fields)
    settings = WorkerConfig.from_fw_env(worker.env)
    assert (settings.parallel_cores, settings.max_seconds) == (16, 21600)


@pytest.mark.mongodb
def test_fireworks_that_say_the_size_of_their_job_are_taken(launchpad):
    """What `dftfactory submit` writes with a cluster.yaml, for both kinds of queue; and none of the attacks."""
    query = FWorker.from_file(str(FW_CONFIGS / "my_fworker.yaml")).query
    sizes = {"slurm": SIZES, "pbs": PBS_SIZES, "none": {}}
    for name, value in {**sizes, **ATTACKS}.items():
        launchpad.add_wf(Firework(RunDFT(), name=name, spec={"_queueadapter": value}))
    assert {firework["name"] for firework in launchpad.fireworks.find(query)} == set(sizes)


@pytest.mark.parametrize(("queue", "sizes"), [("slurm", SIZES), ("pbs", PBS_SIZES)])
def test_query_lets_through_what_resources_ask_for(queue, sizes):
    """The keys of `spec_entries` and those of the query are the same."""
    limits = {"cores": 16, "nodes": 2, "memory_mb": 64000, "walltime": "24:00:00", "partition": "main"}
    cluster = ClusterConfig(queue=queue, classes={"large": limits})
    asked = spec_entries(whole_class(cluster, "large"))["_queueadapter"]
    assert set(asked) == set(sizes)
    schema = FWorker.from_file(str(FW_CONFIGS / "my_fworker.yaml")).query["$jsonSchema"]
    allowed = schema["properties"]["spec"]["properties"]["_queueadapter"]
    [(keys, value)] = allowed["patternProperties"].items()
    assert all(re.search(keys, key) for key in asked)
    no_text = value["anyOf"][1]["not"]["pattern"]
    assert not any(re.search(no_text, str(text)) for text in asked.values())


@pytest.mark.filterwarnings("error:Key")
def test_slurm_job_runs_rlaunch_in_its_own_folder(tmp_path):
    """FireWorks warns of a key that its template does not have, and such a key does nothing: here it is an error."""
    adapter = load_object_from_file(str(FW_CONFIGS / "my_qadapter.yaml"))
    assert isinstance(adapter, CommonAdapter)

    lines = _script_lines(adapter, tmp_path)

    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=16",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --time=24:00:00",
        "#SBATCH --job-name=dftfactory",
        "#SBATCH --output=dftfactory-%j.out",
        "#SBATCH --error=dftfactory-%j.error",
        "#SBATCH --signal=B:USR1@120",
    ]
    assert _commands(lines) == [
        "export FW_CONFIG_FILE=/path/to/this/folder/FW_config.yaml",
        f"cd {tmp_path}",
        "exec rlaunch -c /path/to/this/folder rapidfire --timeout 57600",
    ]


@pytest.mark.filterwarnings("error:Key")
def test_pbs_job_runs_rlaunch_in_its_own_folder(tmp_path):
    """OpenPBS and PBS Pro: by the template that is beside the file."""
    lines = _script_lines(_pbs_adapter(tmp_path), tmp_path)

    assert [line for line in lines if line.startswith("#PBS")] == [
        "#PBS -l select=1:ncpus=16:mpiprocs=16:mem=60gb",
        "#PBS -l walltime=24:00:00",
        "#PBS -q batch",
        "#PBS -N dftfactory",
        "#PBS -o FW_job.out",
        "#PBS -e FW_job.error",
    ]
    assert _commands(lines)[1:] == [f"cd {tmp_path}", "exec rlaunch -c /path/to/this/folder rapidfire --timeout 57600"]


@pytest.mark.filterwarnings("error:Key")
def test_torque_takes_the_template_of_fireworks(tmp_path):
    """As the comment says: without the line of the template, and with pmem in the place of mem."""
    text = (FW_CONFIGS / "my_qadapter_pbs.yaml").read_text()
    torque = re.sub(r"^_fw_template_file: .*$", "", text, flags=re.M).replace("mem: 60gb", "pmem: 4gb")
    (tmp_path / "my_qadapter.yaml").write_text(torque.replace("place: null", ""))
    lines = _script_lines(load_object_from_file(str(tmp_path / "my_qadapter.yaml")), tmp_path)
    assert [line for line in lines if line.startswith("#PBS -l")] == [
        "#PBS -l nodes=1:ppn=16",
        "#PBS -l walltime=24:00:00",
        "#PBS -l pmem=4gb",
    ]


@pytest.mark.filterwarnings("error:Key")
@pytest.mark.parametrize("own", [{}, {"ntasks": 8}, {"ntasks_per_node": None, "nodes": 4}])
def test_size_that_a_firework_asks_for_takes_the_place_of_the_files(tmp_path, own):
    """Whatever of the two words for tasks my_qadapter.yaml has: they never contradict each other."""
    adapter = load_object_from_file(str(FW_CONFIGS / "my_qadapter.yaml"))
    adapter.update(own)
    adapter.update(SIZES)  # as qlaunch -r does
    lines = _script_lines(adapter, tmp_path)
    asked = [line for line in lines if re.search(r"--(nodes|ntasks|ntasks-per-node|mem|time|partition)=", line)]
    assert asked == [
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks=32",
        "#SBATCH --ntasks-per-node=16",
        "#SBATCH --time=1-00:00:00",
        "#SBATCH --partition=main",
        "#SBATCH --mem=64000M",
    ]


@pytest.mark.filterwarnings("error:Key")
def test_size_that_a_firework_asks_for_under_pbs(tmp_path):
    adapter = _pbs_adapter(tmp_path)
    adapter.update(PBS_SIZES)
    lines = _script_lines(adapter, tmp_path)
    assert "#PBS -l select=1:ncpus=16:mpiprocs=16:mem=64000mb" in lines
    assert "#PBS -q long.q_2-a" in lines


def test_signal_comes_before_the_end_and_after_pw_x_has_saved_by_itself():
    """A pw.x that knows the end of its job leaves itself margin_seconds."""
    adapter = load_object_from_file(str(FW_CONFIGS / "my_qadapter.yaml"))
    [seconds] = re.fullmatch(r"B:USR1@(\d+)", adapter["signal"]).groups()
    assert int(seconds) > WorkerConfig().margin_seconds


@pytest.mark.parametrize("name", ["my_qadapter.yaml", "my_qadapter_pbs.yaml"])
def test_no_calculation_begins_too_late_in_a_job(name):
    """The walltime leaves the longest pw.x run, `max_seconds` of my_fworker.yaml, room after rlaunch's --timeout."""
    adapter = load_object_from_file(str(FW_CONFIGS / name))
    hours, minutes, seconds = map(int, adapter["walltime"].split(":"))
    timeout = int(adapter["rocket_launch"].split("--timeout ")[1])
    max_seconds = int(re.findall(r"max_seconds: (\d+)", (FW_CONFIGS / "my_fworker.yaml").read_text())[0])
    assert timeout + max_seconds < 3600 * hours + 60 * minutes + seconds


def test_launchpad_file_keeps_the_password_out_of_the_uri():
    """`lpad` prints `host` when nobody answers."""
    launchpad = LaunchPad.from_file(str(FW_CONFIGS / "my_launchpad.yaml"))
    assert launchpad.uri_mode
    assert launchpad.host == "mongodb://mongo.example.org:27017/?authSource=admin"
    credentials = launchpad.connection.options.pool_options._credentials
    assert (credentials.username, credentials.password, credentials.source) == ("USER", "PASSWORD", "admin")
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


def _pbs_adapter(folder: Path) -> CommonAdapter:
    """my_qadapter_pbs.yaml with the folder filled in, as `dftfactory init` does."""
    text = (FW_CONFIGS / "my_qadapter_pbs.yaml").read_text()
    template = f"_fw_template_file: {FW_CONFIGS}/PBS_template.txt"
    (folder / "pbs.yaml").write_text(re.sub(r"^_fw_template_file: .*$", template, text, flags=re.M))
    return load_object_from_file(str(folder / "pbs.yaml"))


def _script_lines(adapter: CommonAdapter, folder: Path) -> list[str]:
    """The script that FireWorks makes, which is one that bash can read."""
    script = adapter.get_script_str(str(folder))
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
    return script.splitlines()


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


@pytest.mark.mongodb
def test_rlaunch_can_be_left_with_our_lines_alone(launchpad, fake_pw, fake_config, si_atoms, tmp_path, monkeypatch):
    """The two lines of FW_config.yaml that are behind a #."""
    text = (FW_CONFIGS / "FW_config.yaml").read_text()
    edited = tmp_path / "FW_config.yaml"
    edited.write_text(re.sub(r"^# (\w*STREAM_LOGLEVEL: WARNING)$", r"\1", text, flags=re.MULTILINE))
    assert edited.read_text().count("\nSTREAM_LOGLEVEL") == edited.read_text().count("\nROCKET_STREAM_LOGLEVEL") == 1
    submit(make_database(tmp_path / "c.db", si_atoms), fake_config, launchpad)
    monkeypatch.setenv("FW_CONFIG_FILE", str(edited))
    printed = rlaunch(launchpad, tmp_path / "run", fake_pw("converged"), "rapidfire").splitlines()
    assert [line.split()[2] for line in printed] == ["a"] * 5
