"""What the job has: time left in the queue, and memory on this node; None where nobody can tell, never an error."""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from pathlib import Path

from dftfactory.queues import ask
from dftfactory.sessions import session_members, start_of

# An unreachable queue lets its commands hang; a calculation can do without the answer.
COMMAND_SECONDS = 5.0
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
MIB = 2**20
# The queue's variables that say in which job we are and what it has.
_JOB = (
    *("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_END_TIME"),
    *("PBS_JOBID", "PBS_WALLTIME", "LSB_JOBID", "LSB_JOBINDEX"),
)


def seconds_left() -> float | None:
    """Seconds until the queue ends this job; None outside a queue, without a limit, or when the queue cannot tell.

    The queue is asked until it has told once: a limit that is raised while the job runs is not noticed.
    """
    end = _end_of_job(*(os.environ.get(name, "") for name in _JOB))
    if end is None:  # perhaps it was only busy
        _end_of_job.cache_clear()
        return None
    return max(0.0, end - time.time())


def job_seconds() -> float | None:
    """Seconds of this job in all, those that are over included; None where `seconds_left` is."""
    left, age = seconds_left(), _age_of_session()
    return None if left is None else left + (age or 0.0)


def memory_limit(configured: float | None = None) -> float | None:
    """MB (2**20 bytes) that the calculations of this job may use on this node together.

    The first one that is known: the user's own setting; the smaller one of what Slurm has granted and of the limit that
    the kernel sets to this process; what the node has to give now.
    """
    if configured is not None:
        return configured
    limits = [limit for limit in (_slurm_memory(), _cgroup_memory()) if limit is not None]
    return min(limits) if limits else _available_memory()


@lru_cache(maxsize=8)
def _end_of_job(
    slurm_job: str,
    slurm_array: str,
    slurm_task: str,
    slurm_end: str,
    pbs_job: str,
    pbs_walltime: str,
    lsf_job: str,
    lsf_index: str,
) -> float | None:
    """Seconds since the epoch at which the job ends."""
    if slurm_job:
        if slurm_end.isdecimal() and int(slurm_end) > 0:
            return float(slurm_end)
        # One task of an array has the number of the whole array, under which squeue lists all of its tasks.
        left = _slurm_left(f"{slurm_array}_{slurm_task}" if slurm_array and slurm_task else slurm_job)
    elif pbs_job:
        left = _pbs_left(pbs_job, pbs_walltime)
    elif lsf_job:
        left = _lsf_left(lsf_job if lsf_index in ("", "0") else f"{lsf_job}[{lsf_index}]")
    else:
        left = None
    return None if left is None else time.time() + left


def _slurm_left(job: str) -> float | None:
    """`squeue` prints 1-02:03:04, 02:03:04 or 03:04; UNLIMITED, INVALID or NOT_SET where there is no such time."""
    said = _said(["squeue", "-h", "-j", job, "-o", "%L"])
    if said is not None:
        return _seconds(said.strip())
    end = re.search(r"\bEndTime=(\d+-\d+-\d+T\d+:\d+:\d+)", _said(["scontrol", "show", "job", job]) or "")
    # Local time, as Slurm prints it.
    return time.mktime(time.strptime(end[1], "%Y-%m-%dT%H:%M:%S")) - time.time() if end else None


def _pbs_left(job: str, walltime: str) -> float | None:
    """From what was asked for and used, both in (dd:)hh:mm:ss or in seconds."""
    said = _said(["qstat", "-f", job]) or ""
    asked = re.search(r"Resource_List\.walltime = (\S+)", said)
    used = re.search(r"resources_used\.walltime = (\S+)", said)
    total = _seconds(asked[1] if asked else walltime)
    # In its first moments a job has used nothing yet that qstat would know of.
    spent = _seconds(used[1]) if used else _age_of_session()
    return None if total is None or spent is None else total - spent


def _lsf_left(job: str) -> float | None:
    """`bjobs` prints hours:minutes and L; E or X stand for an estimate, which ends nothing."""
    said = re.fullmatch(r"(\d+):(\d+) *L", (_said(["bjobs", "-noheader", "-o", "time_left", job]) or "").strip())
    return 3600.0 * int(said[1]) + 60.0 * int(said[2]) if said else None


def _said(command: list[str]) -> str | None:
    """Output of a command of the queue; None when it is not there, fails, or does not answer."""
    process = ask(command, COMMAND_SECONDS)
    return process.stdout if process is not None and process.returncode == 0 else None


def _seconds(text: str) -> float | None:
    """`1-02:03:04`, `1:02:03:04`, `02:03:04`, `03:04` or `3600` in seconds; None for anything else."""
    if not re.fullmatch(r"(?:\d+-)?\d+(?::\d+){0,3}", text):
        return None
    parts = [float(part) for part in reversed(re.split("[-:]", text))]
    return sum(part * unit for part, unit in zip(parts, (1.0, 60.0, 3600.0, 86400.0), strict=False))


def _age_of_session() -> float | None:
    """Seconds since the oldest living process of our session began: the shell of the job, while it lives."""
    try:
        uptime = float((PROC / "uptime").read_text().split()[0])
        began = min(started for pid in session_members(os.getsid(0)) if (started := start_of(pid)) is not None)
        return uptime - began / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _slurm_memory() -> float | None:
    """Return what `--mem` or `--mem-per-cpu` has granted on this node; 0 stands for all of it."""
    granted = os.environ.get("SLURM_MEM_PER_NODE", "")
    if granted.isdecimal() and int(granted) > 0:
        return float(granted)
    per_cpu, cpus = (os.environ.get(name, "") for name in ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"))
    if per_cpu.isdecimal() and cpus.isdecimal() and int(per_cpu) * int(cpus) > 0:
        return float(int(per_cpu) * int(cpus))
    return None


def _cgroup_memory() -> float | None:
    """Return the smallest limit of the control groups of this process and of those above them, version 1 or 2."""
    limits = []
    for line in _text(PROC / "self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            root, name = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be that of the host, of which only the last root is there.
        group = Path(path.lstrip("/"))
        limits += [_text(root / above / name).strip() for above in (group, *group.parents)]
    # Without a limit version 2 says `max`, and version 1 nearly 2**63.
    numbers = [int(limit) for limit in limits if limit.isdecimal() and 0 < int(limit) < 2**60]
    return min(numbers) / MIB if numbers else None


def _available_memory() -> float | None:
    """Return what the kernel could give to a new process, with the swap space that is free."""
    found = dict(re.findall(r"^(MemAvailable|SwapFree): +(\d+) kB", _text(PROC / "meminfo"), re.M))
    if "MemAvailable" not in found:
        return None
    return sum(int(kilobytes) for kilobytes in found.values()) / 1024


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
