"""What the queue says of our jobs, and what `dftfactory check` makes of it; the words of sbatch are those of 22.05."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_cluster_files import setup_for

from dftfactory.checks import Check
from dftfactory.cluster_files import commands_for_classes
from dftfactory.queue_checks import check_queue, load_qadapter
from dftfactory.setup_files import write_start_files

# As sbatch --test-only and sbatch printed it, with what the line must say then.
REFUSALS = [
    (
        "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified",
        "there is no partition main: correct it",
    ),
    (
        "allocation failure: Invalid account or account/partition combination specified",
        "account project-1 may not use partition main",
    ),
    (
        "allocation failure: Requested time limit is invalid (missing or exceeds some limit)",
        "walltime 24:00:00 is more than partition main allows",
    ),
    ("allocation failure: Requested node configuration is not available", "has no 1 nodes with 3 tasks and 9000M"),
    ("allocation failure: More processors requested than permitted", "has no 1 nodes with 3 tasks"),
    ("allocation failure: Node count specification invalid", "has no 1 nodes with 3 tasks"),
    ("sbatch: fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.", "set mem_per_cpu to null"),
    ("allocation failure: Invalid qos specification", "qos of the default is none that you may use"),
    ("allocation failure: Invalid feature specification", "correct `constraint`"),
    ("sbatch: error: Unable to contact slurm controller (connect failure)", "Slurm does not answer from here"),
    ("sbatch: fatal: Could not establish a configuration source", "Slurm does not answer from here"),
    ("sbatch: error: something new", "correct it"),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder after `dftfactory init --cluster slurm`, in which the user stands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FW_CONFIG_FILE", str(tmp_path / "project" / "fw_configs" / "FW_config.yaml"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    write_start_files(tmp_path / "project", None, setup_for("slurm"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], None]:
    """Return a function that makes a program of the queue."""

    def make(name: str, text: str) -> None:
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
        file.chmod(0o755)

    return make


def answers() -> dict[str, Check]:
    return {check.name: check for check in check_queue()}


def test_without_a_cluster_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert answers() == {}


def test_settings_of_fireworks_that_lead_elsewhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that `submit` prints would end in a traceback of FireWorks."""
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    assert answers()["FireWorks"] == Check(
        "FireWorks",
        False,
        "qlaunch, rlaunch and lpad do not find the files beside it: type `export FW_CONFIG_FILE="
        f"{project}/fw_configs/FW_config.yaml`, or write it into the start-up file of your shell",
    )
    assert commands_for_classes(["large"])["large"].startswith("export FW_CONFIG_FILE=")
    monkeypatch.setenv("FW_CONFIG_FILE", str(project / "fw_configs" / "FW_config.yaml"))
    assert commands_for_classes(["large"]) == {"large": "qlaunch -r rapidfire -m 20"}


def test_job_of_each_file_and_of_each_class_is_tried(project: Path, program: Callable[[str, str], None]) -> None:
    """With the whole size of the class, as FireWorks would write it, and without submitting anything."""
    program(
        "sbatch",
        f'echo "$1" >> {project}/said; cat $2 >> {project}/said\n'
        "echo 'sbatch: Job 5 to start at 2026-01-01T10:00:00 using 3 processors on nodes n1 in partition main' >&2",
    )
    lines = answers()
    assert all(line.ok for line in lines.values())
    assert list(lines) == [
        "cluster",
        "queue, fw_configs/my_qadapter.yaml",
        "queue, class large",
        "queue, bigmem/my_qadapter.yaml",
        "queue, class bigmem",
        "queue, small/my_qadapter.yaml",
    ]
    assert lines["queue, class large"].says == (
        "Slurm takes it: 3 cores in partition main, could start 2026-01-01T10:00:00"
    )
    said = (project / "said").read_text()
    assert said.count("--test-only") == 5
    assert said.count("#SBATCH --ntasks=") == 2  # of the two classes that ask for their own size
    assert "#SBATCH --mem=100000M" in said


@pytest.mark.parametrize(("printed", "expected"), REFUSALS)
def test_what_the_queue_refuses_becomes_one_line_with_the_cure(
    project: Path, program: Callable[[str, str], None], printed: str, expected: str
) -> None:
    program("sbatch", f"cat >&2 <<'END'\n{printed}\nEND\nexit 1")
    line = answers()["queue, fw_configs/my_qadapter.yaml"]
    assert line.ok is False
    assert expected in line.says
    assert "\n" not in line.says
    # The user sees where, and the queue's own words.
    assert "fw_configs/my_qadapter.yaml" in line.says or "login node" in line.says
    assert line.says.endswith(printed.splitlines()[-1].split(":")[-1].strip())


def test_machine_without_the_queue_says_where_to_go(project: Path) -> None:
    assert answers()["queue, class large"].says == (
        "sbatch is not here or does not answer: run this on a login node of the cluster"
    )


def test_key_that_does_nothing_is_found(project: Path, program: Callable[[str, str], None]) -> None:
    """A slip, which FireWorks only warns of."""
    program("sbatch", "exit 0")
    file = project / "fw_configs" / "my_qadapter.yaml"
    file.write_text(file.read_text() + "\npartition: main\n")
    assert answers()["queue, fw_configs/my_qadapter.yaml"].says.startswith("partition in fw_configs/my_qadapter.yaml")


@pytest.mark.parametrize("text", ["", "_fw_name: CommonAdapter", "_fw_name: Nope\n", "a: [", "- 1"])
def test_damaged_file_is_one_line(project: Path, text: str) -> None:
    (project / "fw_configs" / "my_qadapter.yaml").write_text(text)
    line = answers()["queue, fw_configs/my_qadapter.yaml"]
    assert line.ok is False
    assert line.says.startswith("FireWorks cannot read fw_configs/my_qadapter.yaml")


def test_damaged_cluster_file_is_one_line(project: Path) -> None:
    (project / "fw_configs" / "cluster.yaml").write_text("queue: slurm\n")
    assert answers() == {
        "cluster": Check("cluster", False, "fw_configs/cluster.yaml: ClusterConfig: classes is missing")
    }


QSTAT = """Queue: main
    queue_type = Execution
    resources_max.walltime = {walltime}
    enabled = {enabled}
    started = True
"""


@pytest.mark.parametrize(
    ("qstat", "ok", "expected"),
    [
        ("echo 'qstat: Unknown queue main' >&2; exit 170", False, "there is no queue main: correct it"),
        (f"echo '{QSTAT.format(walltime='100:00:00', enabled=True)}'", True, "PBS tells of a real job only"),
        (f"echo '{QSTAT.format(walltime='10:00:00', enabled=True)}'", False, "more than queue main allows, 10:00:00"),
        (f"echo '{QSTAT.format(walltime='100:00:00', enabled=False)}'", False, "takes or starts no jobs now"),
    ],
)
def test_pbs_says_what_it_knows_before_a_job(
    project: Path, program: Callable[[str, str], None], qstat: str, ok: bool, expected: str
) -> None:
    write_start_files(project / "pbs", None, setup_for("pbs"))
    (project / "fw_configs").rename(project / "slurm")
    (project / "pbs" / "fw_configs").rename(project / "fw_configs")
    for file in (project / "fw_configs").rglob("my_qadapter.yaml"):
        file.write_text(file.read_text().replace(f"{project}/pbs/", f"{project}/"))
    program("qstat", qstat)
    line = answers()["queue, class large"]
    assert line.ok is ok, line.says
    assert expected in line.says


def test_file_of_another_queue_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "my_qadapter.yaml").write_text("_fw_name: CommonAdapter\n_fw_q_type: SGE\nrocket_launch: rlaunch\n")
    with pytest.raises(Exception, match="is for SGE; dftfactory checks SLURM and PBS"):
        load_qadapter(tmp_path / "my_qadapter.yaml")
