"""What queues say of jobs: recorded from Slurm 22.05; PBS and LSF as their manuals and users show it."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dftfactory import queues
from dftfactory.queues import JobState, job_state, job_states, own_job, reserved_job

ME = pwd.getpwuid(os.getuid()).pw_name
Command = Callable[[str, str], Path]
VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    *("PBS_JOBID", "LSB_JOBID", "LSB_JOBINDEX"),
)
CONFIG = "ClusterName             = local\nMaxJobId                = 67043328\nPrivateData             = {}\n"
UNKNOWN_ID = "slurm_load_jobs error: Invalid job id specified"


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of every queue."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Make a command of the queue that writes its arguments to a file and does what the shell line says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cat", "sleep"):
        (folder / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(folder))  # the queue of this machine is not asked

    def make(name: str, line: str) -> Path:
        program, called = folder / name, tmp_path / f"{name}.called"
        program.write_text(f'#!/bin/sh\necho "$@" >> {called}\n{line}\n')
        program.chmod(0o755)
        return called

    return make


def prints(text: str, error: str = "", status: int = 0) -> str:
    return f"cat <<'END'\n{text}\nEND\necho '{error}' >&2\nexit {status}"


@pytest.fixture
def slurm(command: Command) -> Callable[..., Path]:
    """Make a Slurm whose squeue prints these lines."""

    def make(*lines: str, private: str = "none", error: str = "", status: int = 0) -> Path:
        command("scontrol", prints(CONFIG.format(private)))
        return command("squeue", prints("\n".join(lines), error, status))

    return make


def job(number: str = "8", restarts: str = "0", user: str = ME, cluster: str = "local") -> dict[str, str]:
    return {"queue": "slurm", "id": number, "cluster": cluster, "restarts": restarts, "user": user}


# Which job we are in


def test_outside_a_queue_there_is_no_job() -> None:
    assert own_job() is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"SLURM_JOB_ID": "8", "SLURM_CLUSTER_NAME": "local"},
            {"queue": "slurm", "id": "8", "cluster": "local", "restarts": "0"},
        ),
        (
            {"SLURM_JOB_ID": "8", "SLURM_CLUSTER_NAME": "local", "SLURM_RESTART_COUNT": "2"},
            {"queue": "slurm", "id": "8", "cluster": "local", "restarts": "2"},
        ),
        # Task 1 of array 2, which squeue shows as 2_1 and as job 12.
        (
            {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "2", "SLURM_ARRAY_TASK_ID": "1"},
            {"queue": "slurm", "id": "12", "cluster": "", "restarts": "0"},
        ),
        ({"PBS_JOBID": "12[3].pbs01"}, {"queue": "pbs", "id": "12[3].pbs01"}),
        ({"LSB_JOBID": "99", "LSB_JOBINDEX": "0"}, {"queue": "lsf", "id": "99"}),
        ({"LSB_JOBID": "99", "LSB_JOBINDEX": "3"}, {"queue": "lsf", "id": "99[3]"}),
    ],
)
def test_the_job_is_in_the_environment(
    variables: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert own_job() == expected | {"user": ME}


# Slurm


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("8|RUNNING|0|{me}|", JobState.RUNNING),
        ("8|COMPLETING|0|{me}|", JobState.RUNNING),
        ("8|COMPLETING|1|{me}|", JobState.RUNNING),  # being requeued: the processes of the first run may live
        ("8|SUSPENDED|0|{me}|", JobState.RUNNING),
        ("8|COMPLETED|0|{me}|", JobState.OVER),
        ("8|CANCELLED|0|{me}|", JobState.OVER),
        ("8|FAILED|0|{me}|", JobState.OVER),
        ("8|TIMEOUT|0|{me}|", JobState.OVER),
        ("8|NODE_FAIL|0|{me}|", JobState.OVER),
        ("8|OUT_OF_MEMORY|0|{me}|", JobState.OVER),
        ("8|PREEMPTED|0|{me}|", JobState.OVER),
        ("8|BOOT_FAIL|0|{me}|", JobState.OVER),
        ("8|DEADLINE|0|{me}|", JobState.OVER),
        ("8|PENDING|1|{me}|", JobState.OVER),  # requeued
        ("8|RUNNING|1|{me}|", JobState.OVER),
        ("8|RUNNING|1|somebody|", JobState.UNKNOWN),  # the number was given again, or on another cluster
        ("8|REVOKED|0|{me}|", JobState.UNKNOWN),
        ("8|A_NEW_WORD|0|{me}|", JobState.UNKNOWN),
        ("8", JobState.UNKNOWN),
        ("2|RUNNING|0|{me}|\n12|RUNNING|0|{me}|", JobState.OVER),  # other tasks of its array; it is gone
        ("", JobState.OVER),  # as squeue answers for several jobs that it does not know
    ],
)
def test_what_slurm_says_of_a_job_that_was_running(line: str, state: JobState, slurm: Callable[..., Path]) -> None:
    slurm(*line.format(me=ME).splitlines())
    answer = job_state(job())
    assert answer.state is state
    assert "slurm job 8: " in answer.said


def test_the_restarts_of_the_record_count(slurm: Callable[..., Path]) -> None:
    slurm(f"8|RUNNING|2|{ME}|")
    assert job_state(job(restarts="2")).state is JobState.RUNNING
    assert job_state(job(restarts="1")).state is JobState.OVER


def test_a_job_that_squeue_calls_invalid_is_over(slurm: Callable[..., Path]) -> None:
    slurm(error=UNKNOWN_ID, status=1)
    assert job_state(job()).state is JobState.OVER


@pytest.mark.parametrize(
    "error",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "squeue: fatal: Unable to process configuration file",
    ],
)
def test_a_controller_that_is_away_says_nothing(error: str, slurm: Callable[..., Path], command: Command) -> None:
    slurm(error=error, status=1)
    answer = job_state(job())
    assert answer.state is JobState.UNKNOWN
    assert error in answer.said
    called = slurm(f"8|COMPLETED|0|{ME}|")
    command("scontrol", prints("", error, 1))
    assert job_state(job()).state is JobState.UNKNOWN
    assert called.read_text().count("\n") == 1  # squeue would wait in vain too


def test_a_command_that_is_missing_or_hangs_says_nothing(
    command: Command, slurm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dftfactory.queues.COMMAND_SECONDS", 0.2)
    for record in (job(), {"queue": "pbs", "id": "12.pbs01"}, {"queue": "lsf", "id": "99"}):
        answer = job_state(record)
        assert answer.state is JobState.UNKNOWN
        assert "no answer" in answer.said
    slurm()
    command("squeue", "exec sleep 60")
    assert job_state(job()).state is JobState.UNKNOWN


def test_another_cluster_is_not_asked_for(slurm: Callable[..., Path]) -> None:
    """Two clusters give the same numbers."""
    slurm(f"8|COMPLETED|0|{ME}|")
    assert job_state(job(cluster="elsewhere")).state is JobState.UNKNOWN
    assert job_state(job("9", cluster="elsewhere")).state is JobState.UNKNOWN
    assert job_state(job(cluster="LOCAL")).state is JobState.OVER


def test_a_job_of_somebody_else_may_be_hidden(slurm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With PrivateData=jobs squeue shows each user only their own."""
    slurm(private="accounts,jobs")
    assert job_state(job(user="somebody")).state is JobState.UNKNOWN
    assert job_state(job()).state is JobState.OVER
    slurm()
    assert job_state(job(user="somebody")).state is JobState.OVER


def test_settings_of_the_user_do_not_hide_jobs(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SQUEUE_USERS or SQUEUE_PARTITION set, squeue prints nothing and exits with 0."""
    command("scontrol", prints(CONFIG.format("none")))
    command("squeue", f'test -n "$SQUEUE_USERS$SLURM_CLUSTERS" || echo "8|RUNNING|0|{ME}|"')
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    assert job_state(job()).state is JobState.RUNNING


def test_many_jobs_are_asked_for_in_one_command(slurm: Callable[..., Path]) -> None:
    called = slurm(*(f"{n}|RUNNING|0|{ME}|" for n in range(1, 900, 2)))
    answers = job_states({n: job(str(n)) for n in range(900)})
    assert [answers[n].state for n in (1, 2, 899)] == [JobState.RUNNING, JobState.OVER, JobState.RUNNING]
    assert called.read_text().count("\n") == 1
    assert "-h -t all -j 0,1,10," in called.read_text()


def test_more_jobs_than_an_argument_can_hold_take_more_commands(
    slurm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "_IDS_AT_ONCE", 10)
    called = slurm(f"24|RUNNING|0|{ME}|")
    answers = job_states({n: job(str(n)) for n in range(25)})
    assert called.read_text().count("\n") == 3
    assert [n for n, answer in answers.items() if answer.state is JobState.RUNNING] == [24]


def test_without_jobs_nobody_is_asked(slurm: Callable[..., Path]) -> None:
    called = slurm()
    assert job_states({}) == {}
    assert not called.exists()


# Records that are no jobs


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"queue": "sge", "id": "8"},
        {"queue": "slurm"},
        {"queue": "slurm", "id": 8},
        {"queue": "slurm", "id": None},
        {"queue": ["slurm"], "id": "8"},
        *({"queue": "slurm", "id": text} for text in ("", "-8", "8,9", "8;x", "--me", "8\n", "٨", "8_1", "1" * 11)),
        *({"queue": "pbs", "id": text} for text in ("-x", "8@evil.example.org", "8.-x", "8 9", "8[x]", "8.a/../b")),
        *({"queue": "lsf", "id": text} for text in ("-u", "8[1-9]", "8[1", "0x8")),
    ],
)
def test_what_is_no_id_does_not_become_an_argument(
    record: dict[str, object], slurm: Callable[..., Path], command: Command
) -> None:
    """A record comes from a database that others can write to."""
    called = [slurm(), command("qstat", "exit 0"), command("bjobs", "exit 0")]
    assert job_state(record).state is JobState.UNKNOWN
    assert not any(file.exists() for file in called)


@pytest.mark.parametrize("restarts", [None, "", "x", "-1", 3.5])
def test_a_damaged_count_of_restarts_ends_nothing(restarts: object, slurm: Callable[..., Path]) -> None:
    slurm(f"8|RUNNING|1|{ME}|")
    assert job_state({**job(), "restarts": restarts}).state is JobState.RUNNING


# PBS


QSTAT = """Job Id: {id}
    Job_Name = dftfactory
    Job_Owner = {owner}@login1
    resources_used.walltime = 00:10:00
    job_state = {word}
    queue = batch
"""


@pytest.mark.parametrize(
    ("word", "state"),
    [
        *(("R", JobState.RUNNING), ("E", JobState.RUNNING), ("S", JobState.RUNNING)),
        *(("C", JobState.OVER), ("F", JobState.OVER), ("Q", JobState.OVER), ("H", JobState.OVER)),
        ("M", JobState.UNKNOWN),
    ],
)
def test_what_pbs_says_of_a_job_that_was_running(word: str, state: JobState, command: Command) -> None:
    """One that waits was requeued; one that has moved is another server's."""
    called = command("qstat", prints(QSTAT.format(id="12.pbs01.example.org", owner=ME, word=word)))
    assert job_state({"queue": "pbs", "id": "12.pbs01", "user": ME}).state is state
    # A server that a database names is not called.
    assert called.read_text() == "-f 12\n"


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [
        ("qstat: Unknown Job Id 12.pbs01", 153, JobState.OVER),
        ("qstat: Unknown Job Id Error 12.pbs01", 153, JobState.OVER),
        ("qstat: 12.pbs01 Job has finished, use -x or -H to obtain historical job information", 35, JobState.OVER),
        ("qstat: Unknown Job Id 12.pbs02", 153, JobState.UNKNOWN),  # the one of another cluster
        ("qstat: Unknown Job Id 12", 153, JobState.UNKNOWN),
        ("qstat: Unknown Job Id 112.pbs01", 153, JobState.UNKNOWN),
        ("Connection refused\nqstat: cannot connect to server pbs01 (errno=111)", 255, JobState.UNKNOWN),
        ("", 0, JobState.UNKNOWN),
    ],
)
def test_what_pbs_says_of_a_job_that_has_gone(error: str, status: int, state: JobState, command: Command) -> None:
    command("qstat", prints("", error, status))
    assert job_state({"queue": "pbs", "id": "12.pbs01", "user": ME}).state is state
    assert job_state({"queue": "pbs", "id": "12.pbs01", "user": "somebody"}).state in (JobState.UNKNOWN, state)


def test_pbs_is_asked_for_many_jobs_at_once(command: Command) -> None:
    rows = QSTAT.format(id="12.pbs01", owner=ME, word="R") + QSTAT.format(id="14[2].pbs01", owner=ME, word="R")
    called = command("qstat", prints(rows, "qstat: Unknown Job Id 13.pbs01", 153))
    ids = ("12.pbs01", "13.pbs01", "14[2].pbs01", "15.pbs01")
    answers = job_states({name: {"queue": "pbs", "id": name, "user": ME} for name in ids})
    running, over, unknown = JobState.RUNNING, JobState.OVER, JobState.UNKNOWN
    assert [answer.state for answer in answers.values()] == [running, over, running, unknown]
    assert called.read_text() == "-f 12 13 14[2] 15\n"


# LSF


@pytest.mark.parametrize(
    ("word", "state"),
    [
        *(("RUN", JobState.RUNNING), ("USUSP", JobState.RUNNING), ("SSUSP", JobState.RUNNING)),
        *(("DONE", JobState.OVER), ("EXIT", JobState.OVER), ("PEND", JobState.OVER)),
        *(("UNKWN", JobState.UNKNOWN), ("ZOMBI", JobState.UNKNOWN)),
    ],
)
def test_what_lsf_says_of_a_job_that_was_running(word: str, state: JobState, command: Command) -> None:
    """A node that does not answer (UNKWN, ZOMBI) may go on computing."""
    called = command("bjobs", prints(f"99 3 {word} {ME}\n99 4 RUN {ME}"))
    assert job_state({"queue": "lsf", "id": "99[3]", "user": ME}).state is state
    assert called.read_text() == "-noheader -u all -o jobid jobindex stat user 99[3]\n"


def test_lsf_does_not_find_a_job_that_has_gone(command: Command) -> None:
    command("bjobs", prints(f"98 0 RUN {ME}", "Job <99> is not found", 255))
    answers = job_states({name: {"queue": "lsf", "id": name, "user": ME} for name in ("98", "99")})
    assert [answer.state for answer in answers.values()] == [JobState.RUNNING, JobState.OVER]
    command("bjobs", prints("", "batch daemon not responding ... still trying", 255))
    assert job_state({"queue": "lsf", "id": "99", "user": ME}).state is JobState.UNKNOWN


# Jobs of `qlaunch -r`


@pytest.mark.parametrize(
    ("line", "state"),
    [
        (f"8|PENDING|0|{ME}|", JobState.WAITING),
        (f"8|PENDING|1|{ME}|", JobState.WAITING),
        (f"8|RUNNING|1|{ME}|", JobState.RUNNING),
        (f"8|CONFIGURING|0|{ME}|", JobState.RUNNING),
        (f"8|CANCELLED|0|{ME}|", JobState.OVER),
        ("8|CANCELLED|0|somebody|", JobState.UNKNOWN),
        ("", JobState.OVER),
    ],
)
def test_a_reservation_may_wait(line: str, state: JobState, slurm: Callable[..., Path], tmp_path: Path) -> None:
    slurm(line)
    assert job_state(reserved_job("8", tmp_path, "SLURM")).state is state


def test_a_reservation_whose_folder_is_not_here_may_be_of_another_cluster(
    slurm: Callable[..., Path], tmp_path: Path
) -> None:
    called = slurm(f"8|CANCELLED|0|{ME}|")
    assert job_state(reserved_job("8", tmp_path / "missing", "SLURM")).state is JobState.UNKNOWN
    assert not called.exists()


def test_the_queue_of_a_reservation_is_the_one_that_is_here(slurm: Callable[..., Path], tmp_path: Path) -> None:
    slurm("")
    assert reserved_job(8, tmp_path)["queue"] == "slurm"
    assert job_state(reserved_job(8, tmp_path)).state is JobState.OVER


def test_of_two_queues_none_is_guessed(slurm: Callable[..., Path], command: Command, tmp_path: Path) -> None:
    slurm("")
    command("qstat", "exit 0")
    assert job_state(reserved_job("8", tmp_path)).state is JobState.UNKNOWN
    assert job_state(reserved_job("8", tmp_path, "SLURM")).state is JobState.OVER
    assert job_state(reserved_job("8", tmp_path, "Cobalt")).state is JobState.UNKNOWN


def test_a_reservation_of_pbs_has_no_server(command: Command, tmp_path: Path) -> None:
    command("qstat", prints("", "qstat: Unknown Job Id 12.pbs01", 153))
    assert job_state(reserved_job("12", tmp_path, "PBS")).state is JobState.OVER
