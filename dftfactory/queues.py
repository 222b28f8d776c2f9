"""What the queue says of a job: it runs, it waits, it is certainly over, or nobody can tell."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

# squeue 22.05 takes 9 to 18 s to say that slurmctld is away, and 10 s that it hangs.
COMMAND_SECONDS = 30.0
# Ids in one command: Linux takes 128 kB in one argument.
_IDS_AT_ONCE = 1000
# Settings of a user that hide jobs from squeue, or lead it to another cluster.
_MISLEADING = re.compile(r"SQUEUE_\w+|SLURM_CLUSTERS")
# An id comes from a database and becomes an argument. The server of PBS stays behind: qstat would call it.
_IDS = {
    "slurm": re.compile(r"[0-9]{1,10}"),
    "pbs": re.compile(r"[0-9]{1,15}(\[[0-9]{1,9}\])?(\.[A-Za-z0-9][A-Za-z0-9._-]{0,200})?"),
    "lsf": re.compile(r"[0-9]{1,15}(\[[0-9]{1,9}\])?"),
}
# What FireWorks calls them: `_fw_q_type` of my_qadapter.yaml.
_FIREWORKS_NAMES = {"SLURM": "slurm", "PBS": "pbs", "LoadSharingFacility": "lsf"}
_COMMANDS = {"slurm": "squeue", "pbs": "qstat", "lsf": "bjobs"}
_GONE = "not known any more"
Key = TypeVar("Key")


class JobState(Enum):
    """What is certain of a job."""

    RUNNING = "running"  # its processes may live
    WAITING = "waiting"
    OVER = "over"  # it has ended, or has been requeued since
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class JobAnswer:
    """The state of a job, and in the queue's words why; `word` is the one for it, such as TIMEOUT."""

    state: JobState
    said: str
    word: str = ""


# The queues' words. COMPLETING and E: the processes are being ended, and may live for KillWait and more. What is not
# here is unknown, as are ZOMBI and UNKWN of LSF, whose node does not answer.
_WORDS = {
    "slurm": {
        JobState.RUNNING: "RUNNING COMPLETING CONFIGURING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
        JobState.WAITING: "PENDING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD",
        JobState.OVER: "COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL OUT_OF_MEMORY PREEMPTED BOOT_FAIL DEADLINE",
    },
    "pbs": {JobState.RUNNING: "R E S U", JobState.WAITING: "Q H W T", JobState.OVER: "C F X"},
    "lsf": {JobState.RUNNING: "RUN USUSP SSUSP PROV", JobState.WAITING: "PEND PSUSP WAIT", JobState.OVER: "DONE EXIT"},
}


@dataclass(frozen=True)
class _Row:
    """What a queue printed of one job; `restarts` and the rest where it says so."""

    word: str
    user: str = ""
    cluster: str = ""
    restarts: int = 0


@dataclass(frozen=True)
class _Printed:
    """What a queue printed: rows of the jobs that it knows, or said that it does not know; else why there are none."""

    rows: dict[str, _Row] = field(default_factory=dict)
    trouble: str = "it does not answer"
    hides_others: bool = True


def own_job() -> dict[str, str] | None:
    """Return the job of the queue that this process is in, in plain values for a database; None outside of a queue.

    `restarts` tells the runs of a requeued job apart. A task of an array and a part of a heterogeneous job of Slurm
    have a number of their own in SLURM_JOB_ID; that of the array or of the whole is not needed.
    """
    job: dict[str, str]
    if number := os.environ.get("SLURM_JOB_ID", ""):
        cluster, restarts = (os.environ.get(f"SLURM_{name}", "") for name in ("CLUSTER_NAME", "RESTART_COUNT"))
        job = {"queue": "slurm", "id": number, "cluster": cluster, "restarts": restarts or "0"}
    elif number := os.environ.get("PBS_JOBID", ""):
        job = {"queue": "pbs", "id": number}
    elif number := os.environ.get("LSB_JOBID", ""):
        index = os.environ.get("LSB_JOBINDEX", "")
        job = {"queue": "lsf", "id": number if index in ("", "0") else f"{number}[{index}]"}
    else:
        return None
    return {**job, "user": _user(os.getuid())}


def reserved_job(reservation_id: object, launch_dir: Path, queue: str | None = None) -> dict[str, str]:
    """Return the job of `qlaunch -r`, of which FireWorks keeps the number only.

    Parameters
    ----------
    reservation_id
        As FireWorks keeps it in the launch.
    launch_dir
        Folder of the launch. Where it is not to be seen, the number may be one of another cluster, and nothing is
        certain.
    queue
        `_fw_q_type` of my_qadapter.yaml; None for the one whose commands are here.
    """
    if queue is None:
        here = [name for name, command in _COMMANDS.items() if shutil.which(command)]
        name = here[0] if len(here) == 1 else ""
    else:
        name = _FIREWORKS_NAMES.get(queue, "")
    try:
        user = _user(launch_dir.stat().st_uid)
    except OSError:
        user = ""
    return {"queue": name, "id": str(reservation_id), "user": user, "reserved": "yes"}


def job_state(job: Mapping[str, Any]) -> JobAnswer:
    """Ask for one job; see `job_states`."""
    return job_states({"": job})[""]


def job_states(jobs: Mapping[Key, Mapping[str, Any]]) -> dict[Key, JobAnswer]:
    """Ask the queues for many jobs at once, with a fixed number of commands for each queue.

    Parameters
    ----------
    jobs
        Key of the caller's → what `own_job` or `reserved_job` returned.

    Returns
    -------
    dict
        The same keys → OVER only where the queue answered, and said that the job has ended, was requeued since (under
        PBS and LSF: waits again), or is not known any more although it would be shown. A queue that does not answer, a
        job of another cluster, and one that another user may have hidden from us are UNKNOWN.
    """
    answers = {key: JobAnswer(JobState.UNKNOWN, _no_job(job)) for key, job in jobs.items()}
    for queue, ask_queue in _ASK.items():
        own = {key: job for key, job in jobs.items() if job.get("queue") == queue and not _no_job(job)}
        ids = sorted({_number(job) for job in own.values()})
        for first in range(0, len(ids), _IDS_AT_ONCE):
            asked = ids[first : first + _IDS_AT_ONCE]
            printed = ask_queue(asked)
            for key, job in own.items():
                if _number(job) in asked:
                    state, said = _decide(job, printed)
                    answers[key] = JobAnswer(state, f"{queue} job {job['id']}: {said}", said)
    return answers


def ask(command: list[str], seconds: float) -> subprocess.CompletedProcess[str] | None:
    """Run a command of the queue; None where it is not there or does not answer in time."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env={name: value for name, value in os.environ.items() if not _MISLEADING.fullmatch(name)},
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _no_job(job: Mapping[str, Any]) -> str:
    """Why the queue is not asked for a record; empty where it is."""
    queue, number = job.get("queue"), job.get("id")
    if not isinstance(queue, str) or queue not in _IDS:
        return f"no queue that dftfactory can ask: {queue!r}"[:100]
    if not isinstance(number, str) or not _IDS[queue].fullmatch(number):
        return f"not the id of a job of {queue}: {number!r}"[:100]
    if job.get("reserved") and not job.get("user"):
        return "the folder of the launch is not to be seen from here: its job may be one of another cluster"
    return ""


def _number(job: Mapping[str, Any]) -> str:
    return str(job["id"]).partition(".")[0]


def _decide(job: Mapping[str, Any], printed: _Printed) -> tuple[JobState, str]:
    row = printed.rows.get(_number(job))
    if row is None:
        return JobState.UNKNOWN, printed.trouble
    user, cluster = str(job.get("user", "")), str(job.get("cluster") or str(job["id"]).partition(".")[2])
    # A server is named with and without its domain.
    if cluster and cluster.lower().split(".")[0] != row.cluster.lower().split(".")[0]:
        return JobState.UNKNOWN, f"it is one of {cluster}, and the queue that answers is {row.cluster or 'nameless'}"
    if row.word == _GONE:
        if user != _user(os.getuid()) and printed.hides_others:
            return JobState.UNKNOWN, f"not shown, and it may be hidden: it is one of {user or 'another user'}"
        return JobState.OVER, _GONE
    if user and row.user and user != row.user:
        return JobState.UNKNOWN, f"that number is a job of {row.user}, not of {user}"
    words = _WORDS[job["queue"]]
    state = next((state for state in words if row.word in words[state].split()), JobState.UNKNOWN)
    if not job.get("reserved"):
        # The job was running when it wrote down its number.
        if state is JobState.WAITING:
            return JobState.OVER, f"requeued: {row.word}"
        restarts = str(job.get("restarts", ""))
        # In COMPLETING it may be the earlier run that is being ended.
        if restarts.isdecimal() and row.restarts > int(restarts) and row.word in ("RUNNING", "CONFIGURING"):
            return JobState.OVER, f"requeued: {row.word} for the {row.restarts + 1}th time"
    return state, row.word


def _ask_slurm(ids: list[str]) -> _Printed:
    """Two commands: which cluster answers and what it hides, and the jobs."""
    settings = ask(["scontrol", "show", "config"], COMMAND_SECONDS)
    listed = None
    if settings is not None and settings.returncode == 0:
        # With one id that it does not know, squeue fails; with two, it prints the others.
        fields = ",".join(f"{name}:|" for name in ("JobID", "State", "RestartCnt", "UserName"))
        listed = ask(["squeue", "-h", "-t", "all", "-j", ",".join([*ids, ids[0]]), "-O", fields], COMMAND_SECONDS)
    if settings is None or listed is None:
        return _Printed(trouble=_trouble(settings))
    answered = listed.returncode == 0 or "Invalid job id specified" in listed.stderr
    if not answered:
        return _Printed(trouble=_trouble(listed))
    said = dict(re.findall(r"^(ClusterName|PrivateData) *= *(.*?) *$", settings.stdout, re.M))
    cluster = said.get("ClusterName", "")
    rows = {number: _Row(_GONE, cluster=cluster) for number in ids}
    for line in listed.stdout.splitlines():
        number, word, restarts, user = (*line.strip().split("|"), "", "", "", "")[:4]
        if number in rows:
            rows[number] = _Row(word, user, cluster, int(restarts) if restarts.isdecimal() else 0)
    return _Printed(rows, hides_others="PrivateData" not in said or "jobs" in said["PrivateData"])


def _ask_pbs(ids: list[str]) -> _Printed:
    """PBS Pro, OpenPBS and Torque."""
    process = ask(["qstat", "-f", *ids], COMMAND_SECONDS)
    if process is None:
        return _Printed(trouble=_trouble(process))
    rows = {}
    for block in re.split(r"^Job Id: *", process.stdout, flags=re.M)[1:]:
        number, _, server = block.splitlines()[0].strip().partition(".")
        word = re.search(r"^\s+job_state = (\w)", block, re.M)
        owner = re.search(r"^\s+Job_Owner = ([^@\s]+)", block, re.M)
        if word:
            rows[number] = _Row(word[1], owner[1] if owner else "", server)
    unknown = r"Unknown Job Id (?:Error )?(\d+(?:\[\d+\])?)(?:\.(\S+))?"
    finished = r"(\d+(?:\[\d+\])?)(?:\.(\S+))? Job has finished"
    for number, server in re.findall(unknown, process.stderr):
        rows.setdefault(number, _Row(_GONE, cluster=server))
    for number, server in re.findall(finished, process.stderr):
        rows.setdefault(number, _Row("F", cluster=server))
    return _Printed(rows, _trouble(process))


def _ask_lsf(ids: list[str]) -> _Printed:
    # Without `-u all` the jobs of others are not found.
    process = ask(["bjobs", "-noheader", "-u", "all", "-o", "jobid jobindex stat user", *ids], COMMAND_SECONDS)
    if process is None:
        return _Printed(trouble=_trouble(process))
    rows = {number: _Row(_GONE) for number in re.findall(r"Job <(\d+(?:\[\d+\])?)> is not found", process.stderr)}
    for line in process.stdout.splitlines():
        number, index, word, user = (*line.split(), "", "", "", "")[:4]
        rows[number if index == "0" else f"{number}[{index}]"] = _Row(word, user)
    return _Printed(rows, _trouble(process))


_ASK: dict[str, Callable[[list[str]], _Printed]] = {"slurm": _ask_slurm, "pbs": _ask_pbs, "lsf": _ask_lsf}


def _trouble(process: subprocess.CompletedProcess[str] | None) -> str:
    said = "" if process is None else " ".join(process.stderr.split())
    return f"the queue does not answer: {said or 'command missing, or no answer in time'}"[:200]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container
        return str(uid)
