"""What a cluster offers: classes of jobs with their limits, from the cluster.yaml that `dftfactory init` writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from dftfactory.config import FW_CONFIG, fireworks_home, read_fireworks_settings
from dftfactory.errors import ConfigError
from dftfactory.settings import Settings, Strict, problems_error, read_yaml

CLUSTER_FILE = "cluster.yaml"
# What stands in a job script, or names a category of FireWorks: no blanks, quotes or line breaks. The `query` of
# my_fworker.yaml lets the same letters through.
SAFE_TEXT = re.compile(r"[A-Za-z0-9:._-]{1,100}")
_DURATION = re.compile(r"(?:(\d+)-)?(\d{1,4}):([0-5]\d):([0-5]\d)")

PositiveInt = Annotated[int, Field(gt=0)]


class JobClass(Strict):
    """The limits of one class of jobs."""

    # MPI ranks of one calculation on one node, at most.
    cores: PositiveInt
    # Nodes of one calculation, at most.
    nodes: PositiveInt = 1
    # MB (2**20) of a node that one calculation may have.
    memory_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    # Of one job, at most: hours:minutes:seconds, or days-hours:minutes:seconds.
    walltime: str
    # What Slurm calls it; under PBS the queue. The one of my_qadapter.yaml where absent.
    partition: str | None = None
    # Many calculations side by side in jobs that last as long as the class allows (`qlaunch` without -r).
    packed: bool = False

    @field_validator("walltime")
    @classmethod
    def _time_is_readable(cls, value: str) -> str:
        if seconds_of(value) is None:
            raise ValueError('must be a time such as "24:00:00" or "2-00:00:00"')
        return value

    @field_validator("partition")
    @classmethod
    def _name_is_safe(cls, value: str | None) -> str | None:
        if value is not None and not SAFE_TEXT.fullmatch(value):
            raise ValueError("must be a name of letters, digits and : . _ -")
        return value

    @property
    def walltime_seconds(self) -> int:
        """The walltime in seconds."""
        return seconds_of(self.walltime) or 0


class ClusterConfig(Settings):
    """Which queue there is, and the classes of jobs from the smallest to the largest.

    Raises
    ------
    ConfigError
        Unknown keys, wrong types, values out of range: all of them in one error.
    """

    queue: Literal["slurm", "pbs"]
    # The first class that a structure fits into is taken; the name is the `category` of a my_fworker.yaml.
    classes: dict[str, JobClass]
    # Jobs that one calculation may take, where one was too short or had too little memory.
    max_jobs: PositiveInt = 10
    # How fast one core is against the one that the estimated times are of; 2 is twice as fast.
    core_speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    @field_validator("classes")
    @classmethod
    def _names_are_categories(cls, value: dict[str, JobClass], info: ValidationInfo) -> dict[str, JobClass]:
        if not value:
            raise ValueError("must have at least one class of jobs")
        if problems := [
            (name, name, "must be a name of letters, digits and : . _ -, not beginning with __")
            for name in value
            if not SAFE_TEXT.fullmatch(name) or name.startswith("__")
        ]:
            raise problems_error(problems)
        return value

    @classmethod
    def from_yaml(cls, path: str | Path) -> ClusterConfig:
        """Read a cluster.yaml."""
        values = read_yaml(Path(path))
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", **error.details) from error

    @classmethod
    def find(cls) -> ClusterConfig | None:
        """Read the cluster.yaml that `find_cluster_file` finds; None where there is none."""
        file = find_cluster_file()
        return None if file is None else cls.from_yaml(file)


def find_cluster_file() -> Path | None:
    """Find cluster.yaml in this folder, in ./fw_configs, or in the folder that FireWorks' own settings name.

    Raises
    ------
    ConfigError
        FireWorks' settings cannot be read.
    """
    named = Path(str(read_fireworks_settings().get("CONFIG_FILE_DIR") or "."))
    folders = (Path(), Path("fw_configs"), named, fireworks_home())
    return next((file for folder in folders if (file := folder / CLUSTER_FILE).is_file()), None)


def fireworks_finds(configs: Path) -> bool:
    """Whether FireWorks' own settings lead to the files in the folder of a cluster.yaml; True where it has none."""
    named = read_fireworks_settings().get("CONFIG_FILE_DIR")
    return not (configs / FW_CONFIG).is_file() or (
        named is not None and Path(str(named)).resolve() == configs.resolve()
    )


def find_classes(class_name: str | None = None) -> ClusterConfig | None:
    """Read the cluster.yaml of `find_cluster_file`, which must have a class of this name; None where there is no file.

    Raises
    ------
    ConfigError
        It cannot be read, or has no such class, or there is none and a class is asked for.
    """
    cluster = ClusterConfig.find()
    if class_name is None or (cluster is not None and class_name in cluster.classes):
        return cluster
    if cluster is None:
        raise ConfigError(f"class {class_name!r}: no {CLUSTER_FILE} here or in fw_configs; `dftfactory init --cluster`")
    raise ConfigError(f"{CLUSTER_FILE} has no class {class_name!r}; it has {', '.join(cluster.classes)}")


def seconds_of(walltime: str) -> int | None:
    """`24:00:00` or `1-00:00:00` in seconds; None for anything else, and for no time at all."""
    found = _DURATION.fullmatch(walltime)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds or None


def walltime_text(seconds: int) -> str:
    """Seconds as every queue reads them: hours:minutes:seconds, with any number of hours."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
