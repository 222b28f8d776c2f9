"""`dftfactory check --job` with a stand-in for Slurm, which runs the job on this machine or lets it wait."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_cluster_files import setup_for

from dftfactory import job_checks
from dftfactory.checks import Check
from dftfactory.job_checks import check_everything, check_in_job
from dftfactory.setup_files import write_start_files

CHECKOUT = Path(__file__).parents[1]
UPF = """<UPF version="2.0.1">
<PP_HEADER element="Si" pseudo_type="NC" z_valence="4" functional="PBE" relativistic="scalar"/>
</UPF>
"""
# Job 7 is in the state that stands in the file `state`.
SQUEUE = """case "$*" in
*%r*) echo 'PENDING, Priority';;
*) [ -f {folder}/state ] && echo "7|$(cat {folder}/state)|0|$(id -un)|" || true;;
esac"""
# Runs the script as the node would, in an environment of its own.
RUNS = """for last; do :; done
echo COMPLETED > {folder}/state
out=$(dirname "$last")/job
env -i HOME={folder} PATH={folder}/node:/usr/bin:/bin PYTHONPATH={packages} SLURM_NTASKS=2 \\
  bash "$last" > $out.out 2> $out.err
echo "Submitted batch job 7\""""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a function that makes a program of the login node, or of a compute node."""

    def make(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\nPATH=$PATH:/usr/bin:/bin\n{text}\n")
        file.chmod(0o755)
        return file

    return make


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str, str], Path]) -> Path:
    """A user on a login node without pw.x, after `dftfactory init --cluster slurm`; a node has pw.x and rlaunch."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    monkeypatch.setattr(job_checks, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(job_checks, "FILE_SECONDS", 0.2)
    setup = setup_for("slurm", shell_lines=(), scratch=str(tmp_path / "scratch"), bigmem=None)
    write_start_files(tmp_path / "project", None, setup)
    project = tmp_path / "project"
    (project / "upf").mkdir()
    (project / "upf" / "Si.upf").write_text(UPF)
    (project / "dft.yaml").write_text("pseudopotential_dir: upf\necutwfc: 30\n")
    worker = project / "fw_configs" / "my_fworker.yaml"
    worker.write_text(worker.read_text().replace("mpirun -np {cores}", f"{tmp_path}/node/mpirun {{cores}}"))
    # One job for each test but one.
    (project / "fw_configs" / "small" / "my_qadapter.yaml").rename(tmp_path / "small.yaml")
    # The one to fill in: to try it takes seconds.
    (project / "fw_configs" / "my_launchpad.yaml").unlink()
    monkeypatch.chdir(project)

    program("node/rlaunch", "")
    (tmp_path / "node" / "python3").symlink_to(sys.executable)
    program("node/pw.x", "echo '     Program PWSCF v.7.3 starts'; echo \"running on ${RANKS:-1} processors\"")
    program("node/mpirun", 'RANKS=$1; export RANKS; shift; exec "$@"')
    program("bin/squeue", SQUEUE.format(folder=tmp_path))
    program("bin/scontrol", "echo 'ClusterName = test'; echo 'PrivateData = none'")
    program("bin/scancel", f"echo scancel $* >> {tmp_path}/cancelled; echo CANCELLED > {tmp_path}/state")
    packages = ":".join([str(CHECKOUT), *(str(Path(entry).absolute()) for entry in sys.path)])
    program("bin/sbatch", RUNS.format(folder=tmp_path, packages=packages))
    return project


def answers(seconds: float = 60) -> dict[str, Check]:
    found = list(check_in_job(Path("dft.yaml"), None, None, seconds))
    return {check.name.partition(" on ")[0] if " ranks on " not in check.name else "ranks": check for check in found}


def test_each_class_is_tried_on_a_node_with_its_own_settings(project: Path, tmp_path: Path) -> None:
    small = project / "fw_configs" / "small"
    (tmp_path / "small.yaml").rename(small / "my_qadapter.yaml")
    (small / "my_fworker.yaml").write_text("env: {pw_command: pw_of_small.x}\n")
    found = {check.name: check.ok for check in check_in_job(Path("dft.yaml"), None, None, 60)}
    node = next(name.split()[2] for name in found if name.startswith("pw.x on") and "ranks" not in name)
    assert (found[f"pw.x on {node}"], found[f"pw.x on {node} (small)"]) == (True, False)


def test_node_answers_with_its_name(project: Path) -> None:
    """pw.x on the ranks of the job, the scratch disk, the pseudopotentials and the LaunchPad, as the node sees them."""
    (project / "my_launchpad.yaml").write_text("host: 127.0.0.1\nport: 1\nname: fireworks\n")
    lines = answers()
    assert lines["job"].ok, lines["job"].says
    assert lines["job"].says.startswith("slurm job 7 ran on ")
    node = lines["job"].says.split()[-1]
    assert lines["pw.x"].name == f"pw.x on {node}"
    assert "version 7.3" in lines["pw.x"].says
    assert lines["ranks"].ok, lines["ranks"].says
    assert "mpirun 2 pw.x" in lines["ranks"].says
    assert "GB free" in lines["scratch"].says
    assert lines["dftfactory"].ok
    assert lines["md5 of pseudopotentials"] == Check(
        f"md5 of pseudopotentials on {node}", True, "Si: the same as where you submit"
    )
    assert lines["LaunchPad"].ok is False
    assert "no LaunchPad answers at 127.0.0.1:1" in lines["LaunchPad"].says
    # Nothing is left behind.
    assert not list(project.glob("dftfactory-check-*"))


def test_pseudopotentials_of_the_node_may_be_others(project: Path, tmp_path: Path) -> None:
    """A folder of the same names that is not shared: the labels would be of another data set."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "Si.upf").write_text(UPF.replace("</UPF>", "<!-- another -->\n</UPF>"))
    file = project / "fw_configs" / "my_fworker.yaml"
    file.write_text(
        file.read_text().replace(
            "  # pseudopotential_dir: /path/to/pseudopotentials", f"  pseudopotential_dir: {tmp_path}/local"
        )
    )
    line = answers()["md5 of pseudopotentials"]
    assert line.ok is False
    assert f"those of Si in {tmp_path}/local have another content than where you submit" in line.says


def test_other_version_on_the_node_is_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dftfactory.__version__", "99.0")
    line = answers()["dftfactory"]
    assert line.ok is False
    assert ", and 99.0 where you submit: install the same one" in line.says


def test_environment_that_is_not_loaded_in_the_job(project: Path, tmp_path: Path) -> None:
    (tmp_path / "node" / "rlaunch").unlink()
    line = answers()["job"]
    assert line.ok is False
    assert "ended without an answer: rlaunch: not found in the job; correct pre_rocket" in line.says


def test_folder_that_the_nodes_do_not_see(project: Path, tmp_path: Path, program: Callable[[str, str], Path]) -> None:
    """The job cannot write there, not even what it complains of."""
    program("bin/sbatch", f"echo FAILED > {tmp_path}/state; echo 'Submitted batch job 7'")
    line = answers()["job"]
    assert line.ok is False
    assert f"(slurm job 7: FAILED) and left nothing in {project}: do the nodes see this folder?" in line.says


def test_job_that_does_not_start_says_why_and_is_cancelled(
    project: Path, tmp_path: Path, program: Callable[[str, str], Path]
) -> None:
    program("bin/sbatch", f"echo PENDING > {tmp_path}/state; echo 'Submitted batch job 7'")
    line = answers(seconds=0.2)["job"]
    assert line.ok is None
    assert "did not start within 0 s (PENDING, Priority) and was cancelled: wait longer with --wait" in line.says
    assert (tmp_path / "cancelled").read_text() == "scancel 7\n"


def test_ctrl_c_cancels_the_job(
    project: Path, tmp_path: Path, program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("bin/sbatch", f"echo RUNNING > {tmp_path}/state; echo 'Submitted batch job 7'")

    def interrupted(job: dict[str, str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job_checks, "job_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answers()
    assert (tmp_path / "cancelled").read_text() == "scancel 7\n"
    assert not list(project.glob("dftfactory-check-*"))


def test_refused_job_is_explained(project: Path, program: Callable[[str, str], Path]) -> None:
    program("bin/sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1")
    line = answers()["job"]
    assert line.ok is False
    assert line.says.startswith("account project-1 may not use partition main: correct `account`")


def test_pw_x_that_is_only_on_the_nodes_is_no_problem_of_the_login_node(
    project: Path, program: Callable[[str, str], Path]
) -> None:
    """It comes from a module that the job loads. The job is not submitted where the queue would refuse it."""
    program("bin/sbatch", "echo 'allocation failure: Invalid account' >&2; exit 1")
    lines = {check.name: check for check in check_everything(Path("dft.yaml"), None, None, 60)}
    assert lines["pw.x"].ok is None
    assert lines["pw.x"].says.startswith("not on this machine (pw.x: No such file")
    assert lines["pw.x"].says.endswith("`dftfactory check --job` tries a node")
    assert lines["queue, class large"].ok is False
    assert lines["job"] == Check("job", None, "not submitted, because the queue would not take it")


def test_short_queue_gets_a_shorter_job(project: Path, tmp_path: Path, program: Callable[[str, str], Path]) -> None:
    file = project / "fw_configs" / "my_qadapter.yaml"
    values = YAML(typ="safe").load(file)
    program("bin/sbatch", f"for last; do :; done; cp $last {tmp_path}/script; exit 1")
    for walltime, expected in (("00:05:00", "00:05:00"), ("24:00:00", "00:10:00")):
        file.write_text(json.dumps({**values, "walltime": walltime}))
        answers()
        assert f"#SBATCH --time={expected}\n" in (tmp_path / "script").read_text()
        assert "--signal" not in (tmp_path / "script").read_text()
