"""Would the queue take our jobs: asked of the queue itself, with the scripts that FireWorks makes."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dftfactory.checks import Check
from dftfactory.cluster import ClusterConfig, find_cluster_file, fireworks_finds, seconds_of
from dftfactory.cluster_files import export_command
from dftfactory.errors import ConfigError, DFTFactoryError
from dftfactory.queues import ask
from dftfactory.resources import spec_entries, whole_class

QADAPTER_FILE = "my_qadapter.yaml"
# slurmctld that is away lets sbatch try for about a minute.
COMMAND_SECONDS = 90.0
# What sbatch and qsub say, and what to do, with the values of the job.
_CURES = (
    ("unknown queue", "there is no queue {queue}: correct it ({file}); `qstat -Q` lists those there are"),
    ("exceeds queue", "the job is larger than queue {queue} allows: ask for less, or take another queue ({file})"),
    ("invalid partition", "there is no partition {queue}: correct it ({file}); `sinfo` lists those there are"),
    (
        "invalid account",
        "account {account} may not use partition {queue}: correct `account` ({file}); `sacctmgr show assoc user=$USER` "
        "lists yours",
    ),
    ("invalid qos", "qos {qos} is none that you may use: correct it ({file})"),
    ("time", "walltime {walltime} is more than partition {queue} allows: lower it ({file}); `sinfo` shows the limit"),
    ("mutually exclusive", "`mem` and `mem_per_cpu` exclude each other: set mem_per_cpu to null ({file})"),
    ("feature", "no node has {constraint}: correct `constraint` ({file})"),
    (
        "(?:processors|node count|node configuration|memory|cpu count)",
        "partition {queue} has no {nodes} nodes with {tasks} tasks and {mem} of memory each: ask for less ({file}); "
        "`sinfo -o '%P %D %c %m'` shows nodes, cores and MB",
    ),
    (
        "(?:contact|connection|communication|configuration source)",
        "Slurm does not answer from here: run this on a login node of the cluster",
    ),
)


def check_queue() -> Iterator[Check]:
    """Try the jobs of my_qadapter.yaml and of all classes of cluster.yaml; nothing where there is no cluster.yaml."""
    try:
        file = find_cluster_file()
        cluster = None if file is None else ClusterConfig.from_yaml(file)
    except DFTFactoryError as error:
        yield Check("cluster", False, error.message)
        return
    if file is None or cluster is None:
        return
    yield Check("cluster", True, f"{file.absolute()}: {', '.join(cluster.classes)}")
    if not fireworks_finds(file.parent):
        cure = f"type `{export_command(file.parent)}`, or write it into the start-up file of your shell"
        yield Check("FireWorks", False, f"qlaunch, rlaunch and lpad do not find the files beside it: {cure}")
    for adapter_file in qadapter_files(file.parent):
        own = adapter_file.parent.name
        yield _check_script(f"queue, {own}/{adapter_file.name}", adapter_file, {}, str(adapter_file))
        for name, job_class in cluster.classes.items():
            belongs = own == name if (file.parent / name / QADAPTER_FILE).is_file() else own not in cluster.classes
            if belongs and not job_class.packed:
                asked = spec_entries(whole_class(cluster, name))["_queueadapter"]
                where = f"class {name} of {file}"
                yield _check_script(f"queue, class {name}", adapter_file, asked, where)


def qadapter_files(folder: Path) -> list[Path]:
    """Return the my_qadapter.yaml of a folder of fw_configs, and those of the classes below it."""
    return [path for path in (folder / QADAPTER_FILE, *sorted(folder.glob(f"*/{QADAPTER_FILE}"))) if path.is_file()]


def load_qadapter(file: Path) -> Any:
    """Read a my_qadapter.yaml as qlaunch does.

    Raises
    ------
    ConfigError
        FireWorks cannot read it, or it is for another queue than Slurm and PBS.
    """
    from fireworks.utilities.fw_serializers import load_object_from_file

    if not file.is_file():
        raise ConfigError(f"{file} does not exist; `dftfactory init --cluster slurm` writes one")
    try:
        adapter = load_object_from_file(str(file))
        kind = adapter.q_type
    except Exception as error:  # whatever FireWorks and its YAML reader raise
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"FireWorks cannot read {file}: {said}; compare it with what `dftfactory init` writes"
        ) from error
    if kind not in ("SLURM", "PBS"):
        raise ConfigError(f"{file} is for {kind}; dftfactory checks SLURM and PBS")
    return adapter


def job_script(adapter: Any, folder: Path, changes: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the script that qlaunch would submit, and what FireWorks warns of."""
    adapter.update(changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        script: str = adapter.get_script_str(str(folder))
    unknown = re.compile(r"Key (\S+) has been specified")
    return script, [found[1] for warning in caught if (found := unknown.match(str(warning.message)))]


def explain(adapter: Mapping[str, Any], said: str, file: str) -> str:
    """Turn what sbatch or qsub says into one line with the cure."""
    lines = [line.partition("error:")[2] or line for line in said.splitlines() if line.strip()]
    words = " ".join((lines[-1] if lines else "nothing").removeprefix("allocation failure:").split())
    tasks = adapter.get("ntasks_per_node") or adapter.get("ntasks") or adapter.get("ppnode") or 1
    values = {key: adapter.get(key) or "of the default" for key in ("queue", "qos", "constraint", "mem")}
    values |= {key: adapter.get(key) for key in ("walltime", "account")}
    values |= {"nodes": adapter.get("nodes") or adapter.get("nnodes") or 1, "tasks": tasks, "file": file}
    values["account"] = values["account"] or "(none given)"
    cure = next((cure for sign, cure in _CURES if re.search(sign, said, re.I)), "correct it ({file})")
    return f"{cure.format(**values)}. The queue says: {words}"


def _check_script(name: str, adapter_file: Path, changes: Mapping[str, Any], where: str) -> Check:
    try:
        adapter = load_qadapter(adapter_file)
        script, unknown = job_script(adapter, adapter_file.parent.absolute(), changes)
    except (DFTFactoryError, OSError) as error:
        return Check(name, False, str(error))
    if unknown:
        return Check(name, False, f"{', '.join(unknown)} in {where} does nothing: FireWorks' template has no such key")
    return _ask_pbs(name, adapter, where) if adapter.q_type == "PBS" else _ask_slurm(name, adapter, script, where)


def _ask_slurm(name: str, adapter: Any, script: str, where: str) -> Check:
    """`sbatch --test-only` submits nothing; it says when and where the job would start."""
    with tempfile.TemporaryDirectory(prefix="dftfactory-") as folder:
        file = Path(folder) / "job.sh"
        file.write_text(script, encoding="utf-8")
        answer = ask([adapter.q_commands["SLURM"]["submit_cmd"], "--test-only", str(file)], COMMAND_SECONDS)
    if answer is None:
        return Check(name, False, "sbatch is not here or does not answer: run this on a login node of the cluster")
    if answer.returncode != 0:
        return Check(name, False, explain(adapter, answer.stderr or answer.stdout, where))
    start = re.search(r"to start at (\S+) using (\d+) processors on nodes (\S+) in partition (\S+)", answer.stderr)
    if start is None:
        return Check(name, True, "Slurm takes it")
    return Check(name, True, f"Slurm takes it: {start[2]} cores in partition {start[4]}, could start {start[1]}")


def _ask_pbs(name: str, adapter: Any, where: str) -> Check:
    """PBS judges a job when it is submitted; before, it tells the limits of a queue."""
    queue = adapter.get("queue")
    if not queue:
        return Check(name, None, f"no `queue` ({where}): the default one is not checked")
    answer = ask(["qstat", "-Qf", str(queue)], COMMAND_SECONDS)
    if answer is None:
        return Check(name, False, "qstat is not here or does not answer: run this on a login node of the cluster")
    if answer.returncode != 0:
        said = " ".join(answer.stderr.split())
        return Check(
            name, False, f"there is no queue {queue}: correct it ({where}); `qstat -Q` lists them. PBS says: {said}"
        )
    limits = dict(re.findall(r"^ *(\S+) = (.*?) *$", answer.stdout, re.M))
    if "False" in (limits.get("enabled"), limits.get("started")):
        return Check(name, False, f"queue {queue} takes or starts no jobs now: take another one ({where})")
    limit = seconds_of(limits.get("resources_max.walltime", ""))
    walltime = seconds_of(str(adapter.get("walltime")))
    if limit and walltime and walltime > limit:
        most = limits["resources_max.walltime"]
        return Check(name, False, f"walltime {adapter['walltime']} is more than queue {queue} allows, {most} ({where})")
    return Check(name, True, f"queue {queue} is there; the rest PBS tells of a real job only: `dftfactory check --job`")
