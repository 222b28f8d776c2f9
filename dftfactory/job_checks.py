"""`dftfactory check --job`: the checks of `checks` once more, inside a short job of the queue.

The command submits a job that runs this module on a node, and waits for the answers in a folder that both see.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dftfactory
from dftfactory.checks import Check, check_all, pseudopotential_folder, pseudopotentials_in
from dftfactory.cluster import find_cluster_file, seconds_of
from dftfactory.config import FWORKER, DFTConfig, WorkerConfig, find_worker_file
from dftfactory.errors import DFTFactoryError, LaunchPadError, printable
from dftfactory.history import write_atomically
from dftfactory.interrupts import postponed_signals
from dftfactory.queue_checks import (
    COMMAND_SECONDS,
    QADAPTER_FILE,
    check_queue,
    explain,
    job_script,
    load_qadapter,
    qadapter_files,
)
from dftfactory.queues import JobState, ask, job_state

REQUEST, ANSWERS = "request.json", "answers.json"
# All checks together take some seconds on a node; a short job starts sooner than a long one.
WALLTIME = "00:10:00"
POLL_SECONDS = 1.0
# What a file that was written on a node may take to be seen here: the caches of NFS hold up to a minute.
FILE_SECONDS = 60.0

# In the job Python is the one of rlaunch, since that is what runs there later.
_COMMAND = """command -v rlaunch >/dev/null || { echo 'rlaunch: not found in the job' >&2; exit 127; }
PATH="$(dirname "$(readlink -f "$(command -v rlaunch)")"):$PATH" exec python3 -m dftfactory.job_checks"""


def check_everything(
    config_file: Path, worker_file: Path | None, launchpad_file: Path | None, job_seconds: float | None = None
) -> Iterator[Check]:
    """Check this machine, then the queue where there is a cluster.yaml, then a node from inside a job.

    Parameters
    ----------
    config_file, worker_file, launchpad_file
        As for `check_all`.
    job_seconds
        How long to wait for the job to start; None to submit none.
    """
    in_queue = list(check_queue())
    for check in check_all(config_file, worker_file, launchpad_file):
        if in_queue and check.ok is False and check.name.startswith(("pw.x", "scratch")):
            # The modules that a job loads, and the disks of a node, are not those of the login node.
            says = f"not on this machine ({check.says}); `dftfactory check --job` tries a node"
            yield replace(check, ok=None, says=says)
        else:
            yield check
    well = True
    for check in in_queue:
        well = well and check.ok is not False
        yield check
    if job_seconds is None:
        return
    if not well:
        yield Check("job", None, "not submitted, because the queue would not take it")
        return
    yield from check_in_job(config_file, worker_file, launchpad_file, job_seconds)


def check_in_job(
    config_file: Path, worker_file: Path | None, launchpad_file: Path | None, seconds: float
) -> Iterator[Check]:
    """Submit the job of each my_qadapter.yaml with our checks in the place of the rockets, and give what they say.

    Whatever happens, also Ctrl-C, no job is left behind.
    """
    first, *others = _adapter_files()
    for adapter_file in (first, *others):
        beside = adapter_file.with_name(FWORKER)
        worker = beside if worker_file is None and beside.is_file() else worker_file
        kind = "" if adapter_file == first else f" ({adapter_file.parent.name})"
        for check in _check_on_node(adapter_file, config_file, worker, launchpad_file, seconds):
            yield replace(check, name=check.name + kind)


def _check_on_node(
    adapter_file: Path, config_file: Path, worker_file: Path | None, launchpad_file: Path | None, seconds: float
) -> Iterator[Check]:
    folder = None
    try:
        adapter = load_qadapter(adapter_file)
        # The folder that one works in is one that the nodes must see.
        folder = Path(tempfile.mkdtemp(prefix="dftfactory-check-", dir=Path.cwd()))
        _write_request(folder, config_file, worker_file, launchpad_file)
        script = _script(adapter, folder)
        yield from _run_job(adapter, script, folder, adapter_file, seconds)
    except DFTFactoryError as error:
        yield Check("job", False, error.message)
    except OSError as error:
        yield Check("job", False, f"the files for the job cannot be written here: {error.strerror}")
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def answer_in_job(folder: Path) -> None:
    """Run the checks on the node, and write their answers for the one who waits."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    files = {name: None if path is None else Path(path) for name, path in request["files"].items()}
    found = list(check_all(files["config"] or Path("dft.yaml"), files["worker"], files["launchpad"]))
    found += [_check_version(request["version"]), *_check_md5(request["md5"], files["config"], files["worker"])]
    answers = {"node": socket.gethostname(), "checks": [asdict(check) for check in found]}
    write_atomically(folder / ANSWERS, json.dumps(answers))


def _adapter_files() -> list[Path]:
    """Those beside cluster.yaml and of the classes, else the one that FireWorks' own settings lead to."""
    cluster, worker = find_cluster_file(), find_worker_file()
    if cluster is not None and (of_classes := qadapter_files(cluster.parent)):
        return of_classes
    folders = [*([] if worker is None else [worker.parent]), Path(), Path("fw_configs")]
    near = [folder / QADAPTER_FILE for folder in folders]
    return [next((file for file in near if file.is_file()), near[-1])]


def _write_request(folder: Path, config: Path, worker: Path | None, launchpad: Path | None) -> None:
    from dftfactory.launchpad import find_launchpad_file

    worker = find_worker_file() if worker is None else worker
    if launchpad is None:
        with contextlib.suppress(LaunchPadError):  # the check on the node says so
            launchpad = find_launchpad_file()
    files = {"config": config, "worker": worker, "launchpad": launchpad}
    request = {
        "files": {name: None if file is None else str(file.absolute()) for name, file in files.items()},
        "version": dftfactory.__version__,
        "md5": _md5_here(config),
    }
    (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")


def _md5_here(config_file: Path) -> dict[str, str]:
    """Element → md5, of the files that `dftfactory submit` would name; none where they are not to be read."""
    try:
        config = DFTConfig.from_yaml(config_file)
        folder = pseudopotential_folder(config, None)
        found = {} if folder is None else pseudopotentials_in(folder, config)
    except DFTFactoryError:
        return {}
    return {element: pseudo.md5 for element, pseudo in found.items()}


def _script(adapter: Any, folder: Path) -> Path:
    changes = {
        "rocket_launch": f"{_COMMAND} {shlex.quote(str(folder))}",
        "walltime": min(
            str(adapter.get("walltime") or WALLTIME), WALLTIME, key=lambda text: seconds_of(text) or math.inf
        ),
        "job_name": "dftfactory-check",
        # No rocket is told of the end.
        "signal": None,
        "post_rocket": None,
    }
    text, _ = job_script(adapter, folder, changes)
    file = folder / "job.sh"
    file.write_text(text, encoding="utf-8")
    return file


def _run_job(adapter: Any, script: Path, folder: Path, adapter_file: Path, seconds: float) -> Iterator[Check]:
    queue = {"SLURM": "slurm", "PBS": "pbs"}[adapter.q_type]
    submit = adapter.q_commands[adapter.q_type]["submit_cmd"]
    # Its output belongs into our folder, not into the one where this command was called.
    out, err = folder / "job.out", folder / "job.err"
    slurm_words = [f"--chdir={folder}", f"--output={out}", f"--error={err}"]
    words = slurm_words if queue == "slurm" else ["-o", str(out), "-e", str(err)]
    number, state = "", JobState.WAITING
    try:
        # Ctrl-C in between would leave a job whose number nobody knows.
        with postponed_signals():
            answer = ask([submit, *words, str(script)], COMMAND_SECONDS)
            if answer is not None and answer.returncode == 0:
                number = str(adapter._parse_jobid(answer.stdout) or "")
        if answer is None:
            says = f"{submit} is not here or does not answer: run this on a login node of the cluster"
            yield Check("job", False, says)
        elif not number:
            yield Check("job", False, explain(adapter, answer.stderr or answer.stdout, str(adapter_file)))
        else:
            job = {"queue": queue, "id": number, "user": getpass.getuser(), "reserved": "yes"}
            yield Check("job", True, f"{queue} job {number} is submitted, and has {seconds:.0f} s to start")
            state, said = _wait(job, folder, seconds)
            yield from _answers(job, folder, state, said, seconds)
    finally:
        if number and state is not JobState.OVER:
            ask(["scancel" if queue == "slurm" else "qdel", number], COMMAND_SECONDS)


def _wait(job: dict[str, str], folder: Path, seconds: float) -> tuple[JobState, str]:
    """Wait for the answers, or for the end of the job; it has `seconds` to start, and then its walltime."""
    started = time.monotonic()
    while True:
        if (folder / ANSWERS).is_file():
            return JobState.RUNNING, ""
        answer = job_state(job)
        waited = time.monotonic() - started
        if answer.state is JobState.OVER:
            return answer.state, answer.said
        if waited > seconds and answer.state in (JobState.WAITING, JobState.UNKNOWN):
            return answer.state, answer.said
        time.sleep(POLL_SECONDS)


def _answers(job: dict[str, str], folder: Path, state: JobState, said: str, seconds: float) -> Iterator[Check]:
    until = time.monotonic() + (FILE_SECONDS if state is JobState.OVER else 0)
    while not (there := (folder / ANSWERS).is_file()) and not _complaint(folder) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    name = f"{job['queue']} job {job['id']}"
    if there:
        answers = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
        yield Check("job", True, f"{name} ran on {answers['node']}")
        for check in answers["checks"]:
            yield Check(f"{check['name']} on {answers['node']}", check["ok"], check["says"])
    elif state is JobState.OVER:
        complaint = _complaint(folder)
        if complaint:
            cure = "correct pre_rocket in my_qadapter.yaml: the lines that load modules and the virtual environment"
            yield Check("job", False, f"{name} ended without an answer: {printable(complaint)}; {cure}")
        else:
            yield Check(
                "job",
                False,
                f"{name} ended ({said}) and left nothing in {folder.parent}: do the nodes see this folder? "
                "Work in one that is shared",
            )
    else:
        reason = _reason(job) or said
        yield Check(
            "job",
            None,
            f"{name} did not start within {seconds:.0f} s ({reason}) and was cancelled: wait longer with --wait, or "
            "take a partition with free nodes",
        )


def _reason(job: dict[str, str]) -> str:
    """Why it waits, in the words of the queue."""
    if job["queue"] == "slurm":
        answer = ask(["squeue", "-h", "-j", job["id"], "-o", "%T, %r"], COMMAND_SECONDS)
        return answer.stdout.strip() if answer is not None and answer.returncode == 0 else ""
    answer = ask(["qstat", "-f", job["id"]], COMMAND_SECONDS)
    lines = [] if answer is None else [line.strip() for line in answer.stdout.splitlines()]
    return next((line.removeprefix("comment = ") for line in lines if line.startswith("comment = ")), "")


def _complaint(folder: Path) -> str:
    """Return the last line that the job has printed, errors first."""
    for pattern in ("*.err*", "*.out"):
        for file in folder.glob(pattern):
            lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return lines[-1][:300]
    return ""


def _check_version(expected: str) -> Check:
    if dftfactory.__version__ == expected:
        return Check("dftfactory", True, f"version {expected}, {Path(dftfactory.__file__).parent}")
    says = f"version {dftfactory.__version__}, and {expected} where you submit: install the same one, or load it in"
    return Check("dftfactory", False, f"{says} pre_rocket of my_qadapter.yaml")


def _check_md5(expected: dict[str, str], config_file: Path | None, worker_file: Path | None) -> Iterator[Check]:
    """Compare the pseudopotentials of the node with those that the labels are defined with."""
    if not expected or config_file is None:
        return
    try:
        worker = WorkerConfig.find() if worker_file is None else WorkerConfig.from_yaml(worker_file)
        config = DFTConfig.from_yaml(config_file)
        folder = pseudopotential_folder(config, worker)
        found = {} if folder is None else pseudopotentials_in(folder, config)
    except DFTFactoryError:
        return  # said by the check of the pseudopotentials itself
    other = [element for element, md5 in expected.items() if element not in found or found[element].md5 != md5]
    if other:
        says = f"those of {', '.join(other)} in {folder} have another content than where you submit: copy them there"
        yield Check("md5 of pseudopotentials", False, f"{says}, or give another pseudopotential_dir in my_fworker.yaml")
    else:
        yield Check("md5 of pseudopotentials", True, f"{', '.join(expected)}: the same as where you submit")


if __name__ == "__main__":
    answer_in_job(Path(sys.argv[1]))
