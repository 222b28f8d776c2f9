"""What one structure asks the queue for: plain dicts in the specification of its Firework, and how they grow.

`resources` is self-contained: it has the limits of all classes of jobs, so that a node needs no cluster.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dftfactory.cluster import ClusterConfig, JobClass, walltime_text
from dftfactory.errors import ConfigError

if TYPE_CHECKING:
    from dftfactory.estimate import Estimate

# Memory is asked for so many times the estimate, and in steps of so many MB: a job with too much waits a little longer
# in the queue, one with too little has run for nothing.
MEMORY_MARGIN = 1.3
MEMORY_STEP = 500
# MB of the rocket itself, which is in the job too: Python with ASE, FireWorks and custodian has 130.
ROCKET_MB = 200
# The estimate is of one SCF at level 0, and rough; a recovered one takes two to three times as long. No more than that,
# because a job that was too short goes on in the next one from where it stopped, and short jobs start sooner.
TIME_MARGIN = 3.0
# Keys of a specification that say what it asks of the queue.
ASKED = ("resources", "_category", "_queueadapter")
# Steps of the walltime in s: half an hour, 1, 2, 4, 8, 12 and 24 h, then whole days.
_WALLTIMES = (1800, 3600, 7200, 14400, 28800, 43200, 86400)


def request_resources(estimate: Estimate, cluster: ClusterConfig, class_name: str | None = None) -> dict[str, Any]:
    """Return what a structure asks for: the first class that it fits into, with a margin for time and memory.

    Parameters
    ----------
    estimate
        What the structure needs.
    cluster
        The classes, from the smallest to the largest.
    class_name
        The class to take, whatever fits.

    Returns
    -------
    dict
        `class`; `nodes`; `cores`, the MPI ranks on all of them; `memory_mb` of one node; `walltime_seconds`; `queue`
        and `partition` (or None); `classes`, the table of their limits; `max_jobs`. Where no class is large enough all
        that the last one has.

    Raises
    ------
    ConfigError
        There is no class of this name.
    """
    if class_name is not None and class_name not in cluster.classes:
        raise ConfigError(f"cluster.yaml has no class {class_name!r}; it has {', '.join(cluster.classes)}")
    names = list(cluster.classes) if class_name is None else [class_name]
    asked = None
    for name in names:
        asked = _fitting(estimate, cluster.classes[name], cluster.core_speed)
        if asked is not None:
            break
    else:
        asked = _everything(cluster.classes[name], _most_cores(estimate, cluster.classes[name]))
    return _in_class(name, asked, cluster)


def whole_class(cluster: ClusterConfig, class_name: str) -> dict[str, Any]:
    """Return resources as `request_resources` does, with all that a class allows."""
    job_class = cluster.classes[class_name]
    return _in_class(class_name, _everything(job_class, job_class.cores * job_class.nodes), cluster)


def grow_memory(resources: Mapping[str, Any], needed_mb: float | None = None) -> dict[str, Any] | None:
    """Return resources with twice the memory, in the same class or the next one that has it; None at the limit.

    Where not even the largest class has twice as much, all that it has.

    Parameters
    ----------
    resources
        As `request_resources` returned them; not changed.
    needed_mb
        What to ask for at least, for all ranks together, where it is known.
    """
    nodes, has = int(resources["nodes"]), float(resources["memory_mb"])
    least = (needed_mb or 0) / nodes
    wanted = _memory_step(max(2 * has, least))
    grown = _grown(resources, "memory_mb", wanted)
    return None if grown is None or grown["memory_mb"] < least else grown


def grow_walltime(resources: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return resources with twice the walltime, in the same class or the next one that has it; None at the limit."""
    return _grown(resources, "walltime_seconds", 2 * int(resources["walltime_seconds"]))


def spec_entries(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return what goes into the specification of a Firework: FireWorks' own keys, and the resources themselves.

    `_category` says which my_fworker.yaml takes it, `_queueadapter` what `qlaunch -r` writes into the job script in the
    place of what my_qadapter.yaml has.
    """
    write = _for_pbs if resources["queue"] == "pbs" else _for_slurm
    asked = {**write(resources), "walltime": walltime_text(resources["walltime_seconds"])}
    if resources["partition"] is not None:
        asked["queue"] = resources["partition"]
    return {"resources": dict(resources), "_category": resources["class"], "_queueadapter": asked}


def _fitting(estimate: Estimate, job_class: JobClass, core_speed: float) -> dict[str, Any] | None:
    """Return what to ask for on the fewest nodes of a class that are enough; None where it is too small."""
    from dftfactory.layout import choose_layout

    nodes = 1
    while nodes <= job_class.nodes:
        limit = max(job_class.memory_mb - ROCKET_MB, 1.0) * nodes
        layout = choose_layout(estimate, job_class.cores * nodes, limit / MEMORY_MARGIN)
        memory = estimate.memory_mb(layout.cores, layout.npool) * MEMORY_MARGIN / nodes + ROCKET_MB
        seconds = estimate.wall_seconds(layout.cores, layout.npool, layout.ndiag or 1) * TIME_MARGIN / core_speed
        if layout.cores < nodes:  # nothing for all nodes to do
            return None
        if memory <= job_class.memory_mb and seconds <= job_class.walltime_seconds:
            if job_class.packed:  # it shares the job with others, and cannot have less of it
                memory, seconds = job_class.memory_mb, job_class.walltime_seconds
            return {
                "nodes": nodes,
                "cores": layout.cores,
                "memory_mb": min(_memory_step(memory), _whole(job_class.memory_mb)),
                "walltime_seconds": min(_walltime_step(seconds), job_class.walltime_seconds),
            }
        nodes *= 2
    return None


def _most_cores(estimate: Estimate, job_class: JobClass) -> int:
    """Return how many ranks a structure can use of a class that is too small for it."""
    from dftfactory.layout import choose_layout

    memory = job_class.memory_mb * job_class.nodes / MEMORY_MARGIN
    return choose_layout(estimate, job_class.cores * job_class.nodes, memory).cores


def _everything(job_class: JobClass, cores: int) -> dict[str, Any]:
    return {
        "nodes": min(job_class.nodes, cores),  # a rank for each node
        "cores": cores,
        "memory_mb": _whole(job_class.memory_mb),
        "walltime_seconds": job_class.walltime_seconds,
    }


def _in_class(name: str, asked: Mapping[str, Any], cluster: ClusterConfig) -> dict[str, Any]:
    return {
        "class": name,
        **asked,
        "queue": cluster.queue,
        "partition": cluster.classes[name].partition,
        "classes": {name: _limits(job_class) for name, job_class in cluster.classes.items()},
        "max_jobs": cluster.max_jobs,
    }


def _limits(job_class: JobClass) -> dict[str, Any]:
    return {
        "cores": job_class.cores,
        "nodes": job_class.nodes,
        "memory_mb": _whole(job_class.memory_mb),
        "walltime_seconds": job_class.walltime_seconds,
        "partition": job_class.partition,
        "packed": job_class.packed,
    }


def _grown(resources: Mapping[str, Any], key: str, wanted: int) -> dict[str, Any] | None:
    """Move to the first class, from the present one on, that has `wanted` of `key`; else to the one with most of it."""
    names = list(resources["classes"])
    later = {name: resources["classes"][name] for name in names[names.index(resources["class"]) :]}
    if key == "walltime_seconds":  # for more time it must not lose memory; for more memory it may need more jobs
        later = {name: limits for name, limits in later.items() if limits["memory_mb"] >= resources["memory_mb"]}
    most = max((limits[key] for limits in later.values()), default=0)
    value = min(wanted, most)
    if value <= resources[key]:
        return None
    name = next(name for name, limits in later.items() if limits[key] >= value)
    limits = later[name]
    moved = {**resources, "class": name, "partition": limits["partition"]}
    moved["nodes"] = min(resources["nodes"], limits["nodes"])
    moved["cores"] = min(resources["cores"], limits["cores"] * moved["nodes"])
    moved["walltime_seconds"] = min(resources["walltime_seconds"], limits["walltime_seconds"])
    moved[key] = value
    return moved


def _for_slurm(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Say the number of tasks twice: whichever of the two my_qadapter.yaml has, it does not contradict the other."""
    nodes, cores = resources["nodes"], resources["cores"]
    return {
        "nodes": nodes,
        "ntasks": cores,
        "ntasks_per_node": math.ceil(cores / nodes),
        "mem": f"{resources['memory_mb']}M",
    }


def _for_pbs(resources: Mapping[str, Any]) -> dict[str, Any]:
    nodes, cores = resources["nodes"], resources["cores"]
    return {"nnodes": nodes, "ppnode": math.ceil(cores / nodes), "mem": f"{resources['memory_mb']}mb"}


def _whole(memory_mb: float) -> int:
    return max(1, math.floor(memory_mb))


def _memory_step(memory_mb: float) -> int:
    return MEMORY_STEP * math.ceil(memory_mb / MEMORY_STEP)


def _walltime_step(seconds: float) -> int:
    days = 86400 * math.ceil(seconds / 86400)
    return next((step for step in _WALLTIMES if seconds <= step), days)
