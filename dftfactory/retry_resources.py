"""What a retried calculation asks the queue for: the memory, the time or the class of jobs that a person names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dftfactory.cluster import ClusterConfig, seconds_of, walltime_text
from dftfactory.cluster_setup import megabytes
from dftfactory.errors import ConfigError
from dftfactory.resources import request_resources, whole_class

if TYPE_CHECKING:
    from dftfactory.specification import Specification


@dataclass(frozen=True)
class Wish:
    """What the next job is to have; None leaves it as it was.

    Attributes
    ----------
    memory_mb
        MB of one node.
    walltime_seconds
        Of the job.
    class_name
        Class of jobs.
    """

    memory_mb: int | None = None
    walltime_seconds: int | None = None
    class_name: str | None = None

    @classmethod
    def from_words(cls, memory: str | None, walltime: str | None, class_name: str | None) -> Wish:
        """Read what a person types: `64G` or `64000` MB, `24:00:00` or `2-00:00:00`."""
        seconds = None if walltime is None else seconds_of(walltime)
        if walltime is not None and seconds is None:
            raise ConfigError(f'walltime must be a time such as "24:00:00" or "2-00:00:00", got {walltime!r}')
        return cls(None if memory is None else megabytes("memory", memory), seconds, class_name)

    def __bool__(self) -> bool:
        return self != Wish()


def first_resources(spec: Specification, cluster: ClusterConfig | None) -> dict[str, Any]:
    """Return what a calculation asks for that was queued before there was a cluster.yaml.

    Raises
    ------
    ConfigError
        There is none now, either.
    PseudopotentialError
        This machine has not the files that the estimate needs.
    """
    from dftfactory.estimate import make_estimate
    from dftfactory.runner import QERunner

    if cluster is None:
        raise ConfigError(
            f"{spec.calculation_id} asks the queue for nothing, since there was no cluster.yaml: give memory and time "
            "in my_qadapter.yaml, or let `dftfactory init --cluster` write a cluster.yaml"
        )
    pseudopotentials = QERunner(spec.config, spec.worker).pseudopotentials(spec.atoms)
    return request_resources(make_estimate(spec.atoms, spec.config, pseudopotentials), cluster)


def changed_resources(resources: Mapping[str, Any], wish: Wish, cluster: ClusterConfig | None) -> dict[str, Any]:
    """Return resources as `request_resources` does, with what is wished for.

    A class that is named without a memory gives all the memory that it has: what is retried with another class has
    lacked it. Where no class is named it is the first one, from the present one on, that has what is wished for.

    Parameters
    ----------
    resources
        What the calculation has asked for until now; not changed.
    wish
        What the next job is to have.
    cluster
        The classes of today; those of the resources where absent.

    Raises
    ------
    ConfigError
        No class has as much, or there is none of this name.
    """
    now = dict(resources) if cluster is None else {**resources, **_of_cluster(cluster)}
    classes: Mapping[str, Mapping[str, Any]] = now["classes"]
    if wish.class_name is not None and wish.class_name not in classes:
        raise ConfigError(f"there is no class of jobs {wish.class_name!r}; there are {', '.join(classes)}")
    name = _first_that_has(wish, now, classes)
    limits = classes[name]
    memory = wish.memory_mb or (limits["memory_mb"] if wish.class_name is not None else now["memory_mb"])
    seconds = wish.walltime_seconds or now["walltime_seconds"]
    if limits.get("packed"):  # it shares the job with others, and cannot have less of it
        memory, seconds = limits["memory_mb"], limits["walltime_seconds"]
    nodes = min(now["nodes"], limits["nodes"])
    return {
        **now,
        "class": name,
        "partition": limits["partition"],
        "nodes": nodes,
        "cores": min(now["cores"], limits["cores"] * nodes),
        "memory_mb": min(memory, limits["memory_mb"]),
        "walltime_seconds": min(seconds, limits["walltime_seconds"]),
    }


def _first_that_has(wish: Wish, now: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(classes)
    # A class that cluster.yaml has no more: any other.
    later = names[names.index(now["class"]) :] if now["class"] in names else names
    candidates = later if wish.class_name is None else [wish.class_name]
    # For more time it must not lose memory; for more memory it may need more jobs.
    most_memory = max(classes[name]["memory_mb"] for name in candidates)
    kept = 0 if wish.class_name is not None else min(now["memory_mb"], most_memory)
    for name in candidates:
        enough = (wish.memory_mb or kept) <= classes[name]["memory_mb"]
        if enough and (wish.walltime_seconds or 0) <= classes[name]["walltime_seconds"]:
            return name
    most = ", ".join(
        f"{name} {classes[name]['memory_mb']} MB and {walltime_text(classes[name]['walltime_seconds'])}"
        for name in candidates
    )
    wanted = [
        *([f"{wish.memory_mb} MB"] if wish.memory_mb else []),
        *([walltime_text(wish.walltime_seconds)] if wish.walltime_seconds else []),
    ]
    raise ConfigError(f"no class of jobs has {' and '.join(wanted)}: there is at most {most}")


def _of_cluster(cluster: ClusterConfig) -> dict[str, Any]:
    whole = whole_class(cluster, next(iter(cluster.classes)))
    return {key: whole[key] for key in ("queue", "classes", "max_jobs")}
