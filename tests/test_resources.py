"""What a structure asks the queue for, and how it grows; the needs of a structure are those that a test states."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from dftfactory.cluster import ClusterConfig
from dftfactory.errors import ConfigError
from dftfactory.resources import (
    MEMORY_MARGIN,
    TIME_MARGIN,
    grow_memory,
    grow_walltime,
    request_resources,
    spec_entries,
    whole_class,
)

CLASSES: dict[str, Any] = {
    "small": {"cores": 1, "memory_mb": 4000, "walltime": "04:00:00", "packed": True},
    "large": {"cores": 16, "memory_mb": 64000, "walltime": "24:00:00", "partition": "main"},
    "bigmem": {"cores": 32, "memory_mb": 500000, "walltime": "12:00:00", "partition": "fat"},
}
# Of several ranks, in these tests.
EFFICIENCY = 0.7


@dataclass(frozen=True)
class Needs:
    """MB of all ranks, seconds on one core, and how many ranks it can use."""

    megabytes: float
    seconds: float
    most_ranks: int = 1000

    def memory_mb(self, ranks: int, npool: int = 1) -> float:
        return self.megabytes

    def wall_seconds(self, ranks: int, npool: int = 1, ndiag: int = 1) -> float:
        return self.seconds / (1.0 if ranks == 1 else ranks * EFFICIENCY)


@pytest.fixture(autouse=True)
def layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many ranks as there are, and as the structure can use."""

    def choose_layout(estimate: Needs, cores: int, memory_mb: float | None = None) -> SimpleNamespace:
        return SimpleNamespace(cores=min(cores, estimate.most_ranks), npool=1, ndiag=None)

    monkeypatch.setitem(sys.modules, "dftfactory.layout", SimpleNamespace(choose_layout=choose_layout))


@pytest.fixture
def cluster() -> ClusterConfig:
    return ClusterConfig(queue="slurm", classes=CLASSES)


def request(megabytes: float, seconds: float, cluster: ClusterConfig, **more: Any) -> dict[str, Any]:
    return request_resources(Needs(megabytes, seconds), cluster, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("megabytes", "core_hours", "expected"),
    [
        (500, 0.5, "small"),
        (500, 4 / TIME_MARGIN + 0.1, "large"),  # too long for one core
        (4000 / MEMORY_MARGIN + 10, 0.5, "large"),  # too much memory for a share of a node
        (60000, 1, "bigmem"),
        (10**7, 10**5, "bigmem"),  # none is large enough: the last one
    ],
)
def test_first_class_that_the_structure_fits_into_with_a_margin(
    cluster: ClusterConfig, megabytes: float, core_hours: float, expected: str
) -> None:
    assert request(megabytes, 3600 * core_hours, cluster)["class"] == expected


def test_what_is_asked_for_has_margins_and_sensible_steps(cluster: ClusterConfig) -> None:
    """10,000 MB and 10 core hours on 16 ranks: 13,200 MB with the rocket, and 10 x 3 / (16 x 0.7) = 2.7 h, so 4 h."""
    asked = request(10000, 36000, cluster)
    assert (MEMORY_MARGIN, TIME_MARGIN, EFFICIENCY) == (1.3, 3.0, 0.7)
    assert {key: asked[key] for key in ("class", "nodes", "cores", "memory_mb", "walltime_seconds")} == {
        "class": "large",
        "nodes": 1,
        "cores": 16,
        "memory_mb": 13500,
        "walltime_seconds": 4 * 3600,
    }
    assert (asked["queue"], asked["partition"], asked["max_jobs"]) == ("slurm", "main", 10)


def test_nothing_above_the_limits_of_the_class_is_asked_for(cluster: ClusterConfig) -> None:
    """A job with more than the queue allows is never started."""
    asked = request(10**7, 10**9, cluster)
    assert (asked["memory_mb"], asked["walltime_seconds"], asked["cores"]) == (500000, 12 * 3600, 32)


def test_packed_calculations_have_the_share_of_the_node_that_they_have_anyway(cluster: ClusterConfig) -> None:
    """More of it would not help: what runs out of memory there has to go to the next class."""
    asked = request(100, 60, cluster)
    assert (asked["class"], asked["memory_mb"], asked["walltime_seconds"]) == ("small", 4000, 4 * 3600)
    grown = grow_memory(asked)
    assert grown is not None
    assert (grown["class"], grown["memory_mb"], grown["partition"]) == ("large", 8000, "main")


def test_user_decides_for_a_class(cluster: ClusterConfig) -> None:
    assert request(100, 60, cluster, class_name="bigmem")["class"] == "bigmem"
    too_small = request(10**6, 60, cluster, class_name="small")
    assert (too_small["class"], too_small["memory_mb"]) == ("small", 4000)
    with pytest.raises(ConfigError, match="no class 'huge'; it has small, large, bigmem"):
        request(100, 60, cluster, class_name="huge")


def test_more_nodes_only_where_one_is_not_enough() -> None:
    classes = {"large": {"cores": 16, "nodes": 8, "memory_mb": 64000, "walltime": "24:00:00"}}
    cluster = ClusterConfig(queue="slurm", classes=classes)
    assert request(40000, 3600, cluster)["nodes"] == 1
    two = request(90000, 3600, cluster)
    assert (two["nodes"], two["cores"], two["memory_mb"]) == (2, 32, 59000)
    # More ranks than the cell can use do not make it faster.
    few = request_resources(Needs(40000, 10**8, most_ranks=3), cluster)  # type: ignore[arg-type]
    assert (few["nodes"], few["cores"]) == (3, 3)


def test_fast_cores_need_less_time(cluster: ClusterConfig) -> None:
    fast = cluster.model_copy(update={"core_speed": 4.0})
    assert request(500, 4 * 3600, cluster)["class"] == "large"
    assert request(500, 4 * 3600, fast)["class"] == "small"


def test_resources_travel_through_json_and_need_no_cluster_file(cluster: ClusterConfig) -> None:
    """They live in a specification: a node grows them without knowing the cluster."""
    asked = json.loads(json.dumps(request(10000, 36000, cluster)))
    grown = grow_memory(asked)
    assert grown is not None
    assert json.loads(json.dumps(grown)) == grown
    assert list(asked["classes"]) == ["small", "large", "bigmem"]
    assert asked["memory_mb"] == 13500  # not changed in place


def test_memory_doubles_and_moves_to_the_class_that_has_it_until_the_limit(cluster: ClusterConfig) -> None:
    resources: dict[str, Any] | None = request(10000, 36000, cluster)
    seen = []
    while resources is not None:
        seen.append((resources["class"], resources["memory_mb"], resources["walltime_seconds"]))
        resources = grow_memory(resources)
    four = 4 * 3600
    assert seen == [
        ("large", 13500, four),
        ("large", 27000, four),
        ("large", 54000, four),
        ("bigmem", 108000, four),
        ("bigmem", 216000, four),
        ("bigmem", 432000, four),
        ("bigmem", 500000, four),  # all that there is, although it is not twice as much
    ]


def test_known_need_is_gone_to_at_once_or_not_at_all(cluster: ClusterConfig) -> None:
    """What pw.x itself says that it needs: jumps over classes that are too small, and does not try in vain."""
    asked = request(10000, 36000, cluster)
    grown = grow_memory(asked, needed_mb=200000)
    assert grown is not None
    assert (grown["class"], grown["memory_mb"]) == ("bigmem", 200000)
    assert grow_memory(asked, needed_mb=600000) is None


def test_need_of_all_ranks_is_shared_by_the_nodes() -> None:
    classes = {"large": {"cores": 16, "nodes": 8, "memory_mb": 64000, "walltime": "24:00:00"}}
    asked = request(90000, 3600, ClusterConfig(queue="slurm", classes=classes))
    assert (asked["nodes"], asked["memory_mb"]) == (2, 59000)
    grown = grow_memory(asked, needed_mb=120000)
    assert grown is not None
    assert (grown["nodes"], grown["memory_mb"]) == (2, 64000)


def test_walltime_doubles_up_to_the_limit_and_never_loses_memory(cluster: ClusterConfig) -> None:
    resources: dict[str, Any] | None = request(10000, 36000, cluster)
    seen = []
    while resources is not None:
        seen.append((resources["class"], resources["walltime_seconds"] // 3600))
        resources = grow_walltime(resources)
    assert seen == [("large", 4), ("large", 8), ("large", 16), ("large", 24)]

    smallest = request(100, 60, cluster)
    moved = grow_walltime(smallest)
    assert moved is not None
    assert (moved["class"], moved["walltime_seconds"], moved["cores"]) == ("large", 8 * 3600, 1)


def test_slurm_is_told_nodes_tasks_memory_time_and_partition(cluster: ClusterConfig) -> None:
    asked = request(10000, 36000, cluster)
    entries = spec_entries(asked)
    assert entries["resources"] == asked
    assert entries["_category"] == "large"
    assert entries["_queueadapter"] == {
        "nodes": 1,
        "ntasks": 16,
        "ntasks_per_node": 16,
        "mem": "13500M",
        "walltime": "04:00:00",
        "queue": "main",
    }


def test_pbs_is_told_the_same_in_its_words() -> None:
    classes = {"large": {"cores": 16, "nodes": 2, "memory_mb": 64000, "walltime": "48:00:00"}}
    entries = spec_entries(whole_class(ClusterConfig(queue="pbs", classes=classes), "large"))
    assert entries["_queueadapter"] == {"nnodes": 2, "ppnode": 16, "mem": "64000mb", "walltime": "48:00:00"}
