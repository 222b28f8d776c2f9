"""cluster.yaml: what it may say, and where it is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from dftfactory.cluster import ClusterConfig, find_cluster_file, seconds_of, walltime_text
from dftfactory.errors import ConfigError

CLUSTER = """
queue: slurm
classes:
  small: {cores: 1, memory_mb: 4000, walltime: "04:00:00", packed: true}
  large: {cores: 32, nodes: 2, memory_mb: 120000, walltime: "1-12:00:00", partition: main}
core_speed: 1.5
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a home folder without settings of FireWorks."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_classes_keep_the_order_in_which_they_are_written(tmp_path: Path) -> None:
    """The first one that fits is taken, so the order is what the user decides."""
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    cluster = ClusterConfig.from_yaml(tmp_path / "cluster.yaml")
    assert list(cluster.classes) == ["small", "large"]
    assert (cluster.max_jobs, cluster.core_speed) == (10, 1.5)
    assert cluster.classes["large"].walltime_seconds == 36 * 3600
    assert cluster.classes["large"].partition == "main"
    assert cluster.classes["small"].packed
    assert cluster.classes["small"].nodes == 1


@pytest.mark.parametrize(
    ("line", "wrong", "said"),
    [
        ("queue: slurm", "queue: lsf", "queue = 'lsf': must be 'slurm' or 'pbs'"),
        ("cores: 1,", "cores: 0,", "classes.small.cores = 0: must be greater than 0"),
        ('"04:00:00"', '"4 hours"', 'must be a time such as "24:00:00"'),
        ('"04:00:00"', '"00:00:00"', 'must be a time such as "24:00:00"'),
        ("partition: main", 'partition: "main\\ntouch /tmp/x"', "must be a name of letters, digits and"),
        ("small:", '"my class":', "must be a name of letters, digits and"),
        # FireWorks' word for Fireworks that have no category.
        ("small:", "__none__:", "not beginning with __"),
        ("core_speed: 1.5", "core_sped: 1.5", "did you mean core_speed?"),
    ],
)
def test_slip_is_named_with_its_place(tmp_path: Path, line: str, wrong: str, said: str) -> None:
    assert line in CLUSTER
    (tmp_path / "cluster.yaml").write_text(CLUSTER.replace(line, wrong))
    with pytest.raises(ConfigError, match=r"cluster\.yaml: ") as caught:
        ClusterConfig.from_yaml(tmp_path / "cluster.yaml")
    assert said in caught.value.message


def test_without_classes_there_is_nothing_to_choose(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("queue: slurm\nclasses: {}\n")
    with pytest.raises(ConfigError, match="at least one class"):
        ClusterConfig.from_yaml(tmp_path / "cluster.yaml")


def test_file_is_found_here_then_in_fw_configs_then_where_fireworks_is_led_to(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the files of fw_configs, wherever the user stands; without one there is none."""
    assert find_cluster_file() is None
    assert ClusterConfig.find() is None

    (home / "configs").mkdir()
    (home / "configs" / "cluster.yaml").write_text(CLUSTER)
    (home / "configs" / "FW_config.yaml").write_text(f"CONFIG_FILE_DIR: {home}/configs\n")
    monkeypatch.setenv("FW_CONFIG_FILE", str(home / "configs" / "FW_config.yaml"))
    assert find_cluster_file() == home / "configs" / "cluster.yaml"

    for place in ("fw_configs/cluster.yaml", "cluster.yaml"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).write_text(CLUSTER)
        assert find_cluster_file() == Path(place)
    found = ClusterConfig.find()
    assert found is not None
    assert found.queue == "slurm"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:30:00", 1800),
        ("100:00:00", 360000),
        ("2-00:00:01", 172801),
        ("5:00", None),
        ("infinite", None),
        ("1:2:3", None),
    ],
)
def test_walltimes(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds
    if seconds is not None:
        assert seconds_of(walltime_text(seconds)) == seconds
