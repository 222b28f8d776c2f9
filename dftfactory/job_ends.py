"""How a job of the queue has ended: by its walltime, or for want of memory; from the queue, or what the job printed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dftfactory.queues import JobAnswer

TIMEOUT, OUT_OF_MEMORY = "TIMEOUT", "OUT_OF_MEMORY"
# What the daemon of a node writes into the output of a job that it kills. Slurm forgets a job after MinJobAge (five
# minutes), and calls one that JobAcctGatherParams=OverMemoryKill has killed FAILED or CANCELLED (22.05).
_SAID = {
    OUT_OF_MEMORY: re.compile(
        rb"slurmstepd\S*: error: .*(?:exceeded (?:job )?memory limit|oom.kill)"
        rb"|=>> PBS: job killed: v?mem|TERM_MEMLIMIT",
        re.I,
    ),
    TIMEOUT: re.compile(
        rb"slurmstepd\S*: error: \*\*\* \w+ .*DUE TO TIME LIMIT|=>> PBS: job killed: walltime|TERM_RUNLIMIT"
    ),
}
# Bytes at the end of a file that are looked at.
_TAIL = 100_000


def end_of_job(answer: JobAnswer | None, job: Mapping[str, Any] | None, launch_dir: Path) -> str:
    """Return TIMEOUT or OUT_OF_MEMORY; empty for every other end, and where nothing tells.

    Parameters
    ----------
    answer
        What the queue says of the job.
    job
        The job; its output is a file with its number in the name, as those of FireWorks' templates are.
    launch_dir
        Folder of the launch: the output is there, or in the folder above, where `rlaunch rapidfire` was started.
    """
    if answer is not None and answer.word in _SAID:
        return answer.word
    number = str((job or {}).get("id", "")).partition(".")[0].partition("[")[0]
    if not number.isdecimal():
        return ""
    has_number = re.compile(rf"(?<!\d){number}(?!\d)")
    for folder in (launch_dir, launch_dir.parent):
        with contextlib.suppress(OSError):
            for path in sorted(folder.iterdir()):
                if has_number.search(path.name) and path.is_file() and (word := _said_in(path)):
                    return word
    return ""


def _said_in(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        text = file.read(_TAIL)
    return next((word for word, said in _SAID.items() if said.search(text)), "")
