"""What the job has: queues that answer, that say nothing, and that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dftfactory import limits
from dftfactory.limits import memory_limit, seconds_left

VARIABLES = (
    *("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    *("SLURM_JOB_ID", "SLURM_JOB_END_TIME", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
    *("PBS_JOBID", "PBS_WALLTIME", "LSB_JOBID", "LSB_JOBINDEX"),
)


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of every queue, and with nothing asked yet."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    limits._end_of_job.cache_clear()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Make a command of the queue that writes its arguments to a file and does what the shell line says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, line: str) -> Path:
        program, called = folder / name, tmp_path / f"{name}.called"
        program.write_text(f'#!/bin/sh\necho "$@" >> {called}\n{line}\n')
        program.chmod(0o755)
        return called

    return make


def near(seconds: float) -> object:
    return pytest.approx(seconds, abs=60)  # the machine that runs the tests may be slow


# Time


def test_outside_a_queue_there_is_no_end() -> None:
    assert seconds_left() is None


def test_slurm_says_when_the_job_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    assert seconds_left() == near(3600)
    limits._end_of_job.cache_clear()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 10))
    assert seconds_left() == 0


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("1-02:03:04", 93784),
        ("02:03:04", 7384),
        ("3:04", 184),
        ("0:00", 0),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("NOT_SET", None),
        ("", None),
    ],
)
def test_an_older_slurm_is_asked_what_is_left(
    said: str, seconds: float | None, command: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    called = command("squeue", f"echo '{said}'")
    assert seconds_left() == (None if seconds is None else near(seconds))
    assert called.read_text() == "-h -j 7 -o %L\n"


def test_a_task_of_a_slurm_array_is_asked_for_by_its_own_name(
    command: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the tasks has the number of the whole array, for which squeue prints a line for each task."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    called = command("squeue", "echo 10:00")
    assert seconds_left() == near(600)
    assert called.read_text() == "-h -j 7_3 -o %L\n"


def test_the_queue_is_asked_once(command: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    called = command("squeue", "echo 10:00")
    first, second = seconds_left(), seconds_left()
    assert first is not None
    assert second is not None
    assert second <= first
    assert called.read_text().count("\n") == 1


def test_without_squeue_scontrol_is_asked(command: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command("squeue", "exit 1")
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 3600))
    command("scontrol", f"echo 'JobId=7 JobName=x'; echo '   StartTime=2026-11-22T10:00:00 EndTime={end} Deadline=N/A'")
    assert seconds_left() == near(3600)


def test_a_queue_that_cannot_be_reached_is_no_error(
    command: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMMAND_SECONDS", 0.2)
    for variable in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"):
        monkeypatch.setenv(variable, "7")
        assert seconds_left() is None
        monkeypatch.delenv(variable)
    command("bjobs", "exec sleep 60")
    monkeypatch.setenv("LSB_JOBID", "8")
    assert seconds_left() is None


QSTAT = """cat <<'END'
Job Id: 12.server
    Job_Name = dftfactory
    resources_used.cput = 00:00:01
    resources_used.walltime = {used}
    Resource_List.nodes = 1:ppn=16
    Resource_List.walltime = {asked}
END"""


@pytest.mark.parametrize(
    ("asked", "used", "seconds"),
    [("24:00:00", "00:10:00", 85800), ("1:00:00:00", "23:00:00", 3600), ("3600", "600", 3000)],
)
def test_pbs_is_asked_for_both_times(
    asked: str, used: str, seconds: float, command: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_JOBID", "12.server")
    called = command("qstat", QSTAT.format(asked=asked, used=used))
    assert seconds_left() == near(seconds)
    assert called.read_text() == "-f 12.server\n"


def test_torque_without_an_answer_has_the_walltime_and_the_age_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("PBS_JOBID", "12.server")
    monkeypatch.setenv("PBS_WALLTIME", "1000000")
    age = limits._age_of_session()
    assert age is not None
    assert 0 <= age < 1000000
    assert seconds_left() == near(1000000 - age)


def test_the_age_of_a_job_whose_shell_has_ended_is_that_of_its_oldest_process() -> None:
    """The leader of the session is gone as soon as a script ends with `rlaunch ... &`, or starts it by setsid."""
    code = (
        "import os, time\n"
        "if os.fork(): os._exit(0)\n"
        "while os.getppid() == os.getsid(0): time.sleep(0.01)\n"
        "from dftfactory import limits\n"
        "print(limits._age_of_session())"
    )
    # Its output stays open until the process that is left has ended.
    python = subprocess.run([sys.executable, "-c", code], start_new_session=True, check=True, capture_output=True)
    assert 0 <= float(python.stdout) < 60


@pytest.mark.parametrize(("said", "seconds"), [("1:30 L", 5400), ("13:57 E", None), ("0:02 X", None), ("-", None)])
def test_lsf_prints_hours_and_minutes_and_whether_they_are_a_limit(
    said: str, seconds: float | None, command: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSB_JOBID", "99")
    monkeypatch.setenv("LSB_JOBINDEX", "3")
    called = command("bjobs", f"echo '{said}'")
    assert seconds_left() == (None if seconds is None else near(seconds))
    assert called.read_text() == "-noheader -o time_left 99[3]\n"


# Memory


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write files of a /proc and a /sys/fs/cgroup that are ours."""
    monkeypatch.setattr(limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\nSwapFree:        1048576 kB\n")
    return write


def test_what_the_user_says_counts(node: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1000")
    assert memory_limit(64000.0) == 64000.0


def test_slurm_grants_memory_to_the_node_or_to_each_cpu(node: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2000")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "16")
    assert memory_limit() == 32000
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1000")
    assert memory_limit() == 1000


def test_all_of_the_node_is_what_it_can_give(node: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--mem=0`; 4 GB are free, and 1 GB of swap."""
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")
    assert memory_limit() == 5 * 1024


def test_the_smallest_limit_above_the_process_counts(
    node: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    node("proc/self/cgroup", "0::/system/job_1/step_0\n")
    node("cgroup/system/job_1/memory.max", f"{300 * 2**20}\n")
    node("cgroup/system/job_1/step_0/memory.max", "max\n")
    node("cgroup/system/memory.max", f"{900 * 2**20}\n")
    assert memory_limit() == 300
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "200")
    assert memory_limit() == 200


def test_control_groups_of_the_first_version_count_too(node: Callable[[str, str], None]) -> None:
    node("proc/self/cgroup", "9:cpu,cpuacct:/a\n4:memory:/a/b\n0::/\n")
    node("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_limit() == 5 * 1024  # no limit
    node("cgroup/memory/a/memory.limit_in_bytes", f"{2**30}\n")
    assert memory_limit() == 1024


def test_a_container_whose_path_is_that_of_the_host_has_the_limit_of_its_root(
    node: Callable[[str, str], None],
) -> None:
    node("proc/self/cgroup", "0::/docker/0123\n")
    node("cgroup/memory.max", f"{2**31}\n")
    assert memory_limit() == 2048


def test_a_system_without_proc_has_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROC", tmp_path / "nowhere")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "nowhere")
    assert memory_limit() is None


def test_this_machine_has_memory() -> None:
    limit = memory_limit()
    assert limit is not None
    assert 10 < limit <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20 * 10
