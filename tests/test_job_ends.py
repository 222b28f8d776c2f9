"""How a job ended, in the words of the queue and of the node's daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from dftfactory.job_ends import end_of_job
from dftfactory.queues import JobAnswer, JobState

JOB = {"queue": "slurm", "id": "12"}
# As Slurm 22.05 writes them.
MEMORY = """slurmstepd-vm: error: StepId=1.batch exceeded memory limit (433147904 > 104857600), being killed
slurmstepd-vm: error: *** JOB 1 ON vm CANCELLED AT 2026-11-23T04:27:35 ***
slurmstepd-vm: error: Exceeded job memory limit
"""
OOM_KILL = (
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.batch. Some of your processes may have been killed"
)
TIME = "slurmstepd-vm: error: *** JOB 2 ON vm CANCELLED AT 2026-11-23T04:29:01 DUE TO TIME LIMIT ***\n"
CANCELLED = "slurmstepd-vm: error: *** JOB 2 ON vm CANCELLED AT 2026-11-23T04:29:01 ***\n"


def answer(word: str) -> JobAnswer:
    return JobAnswer(JobState.OVER, f"slurm job 12: {word}", word)


def test_the_queues_word_is_enough(tmp_path: Path) -> None:
    assert [end_of_job(answer(word), JOB, tmp_path) for word in ("TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL")] == [
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "",
    ]


@pytest.mark.parametrize(
    ("printed", "word"),
    [
        (MEMORY, "OUT_OF_MEMORY"),
        (OOM_KILL, "OUT_OF_MEMORY"),
        (TIME, "TIMEOUT"),
        (CANCELLED, ""),
        ("=>> PBS: job killed: walltime 3630 exceeded limit 3600", "TIMEOUT"),
        ("=>> PBS: job killed: mem 2048000kb exceeded limit 1048576kb", "OUT_OF_MEMORY"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("above", [True, False])
def test_what_the_job_has_printed_is_known_for_longer(printed: str, word: str, above: bool, tmp_path: Path) -> None:
    launch = tmp_path / "launcher_1"
    launch.mkdir()
    ((tmp_path if above else launch) / "FW_job-12.error").write_text(f"some lines\n{printed}")
    assert end_of_job(answer("not known any more"), JOB, launch) == word
    assert end_of_job(None, JOB, launch) == word


def test_the_output_of_another_job_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "FW_job-112.error").write_text(TIME)
    (tmp_path / "FW_job-12.d").mkdir()
    assert end_of_job(answer("FAILED"), JOB, tmp_path) == ""
    assert end_of_job(answer("FAILED"), None, tmp_path) == ""
    assert end_of_job(answer("FAILED"), JOB, tmp_path / "gone") == ""
