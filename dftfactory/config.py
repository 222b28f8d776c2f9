"""What a person writes down: how labels are defined (DFTConfig) and how a machine runs them (WorkerConfig)."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dftfactory.errors import ConfigError
from dftfactory.pw_entries import checked_entries, label_entries
from dftfactory.settings import (
    Problem,
    Settings,
    Strict,
    checked_path,
    is_finite_number,
    problems_error,
    read_yaml,
    unknown_elements,
)

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
MixingBeta = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
MixingMode = Literal["plain", "TF", "local-TF"]
Solver = Literal["david", "cg", "paro", "ppcg"]
MAGNETISM_WORDS = ("auto", "antiferromagnetic", "none")
# μB per atom. The largest spin moment of a free atom is 8 (Gd); more is a slip, such as a charge.
_LARGEST_MOMENT = 10.0
# Every mpirun of Open MPI (4, 5), Intel MPI and MVAPICH binds its ranks to cores from the first one on. Calculations
# side by side then share those, and the other cores idle: only one that has all cores for itself gains by it.
UNBOUND = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "I_MPI_PIN": "off",
    "MV2_ENABLE_AFFINITY": "0",
}
FWORKER, FW_CONFIG = "my_fworker.yaml", "FW_config.yaml"
# A my_fworker.yaml has at least one of them; a file of our settings alone has none.
_FWORKER_KEYS = {"name", "category", "query", "env"}


class AnnealStage(Strict):
    """One stage of an anneal: how far above the prescribed smearing, and how well it must converge."""

    # Ry above the prescribed degauss.
    degauss_above: float = Field(default=0.0, ge=0, le=0.2, allow_inf_nan=False)
    # Ry per cell; the prescribed one where absent.
    conv_thr: PositiveFloat | None = Field(default=None)


class LadderLevel(Strict):
    """One level of a user's own recovery ladder: what differs from the configuration while it is tried."""

    name: str
    mixing_beta: MixingBeta | None = None
    mixing_mode: MixingMode | None = None
    mixing_ndim: PositiveInt | None = None
    diagonalization: Solver | None = None
    diago_david_ndim: PositiveInt | None = None
    electron_maxstep: PositiveInt | None = None
    # Whether it comes before the others in calculations with spin.
    sooner_with_spin: bool | None = None
    anneal: list[AnnealStage] | None = None

    @field_validator("anneal")
    @classmethod
    def _ends_at_the_prescribed_parameters(cls, value: list[AnnealStage] | None) -> list[AnnealStage] | None:
        if value is not None and (len(value) < 2 or value[-1] != AnnealStage()):
            raise ValueError("must have a hot stage and end with the prescribed parameters, `{}`")
        return value


class DFTConfig(Settings):
    """How every label of one data set is computed: label parameters and the first numerical ones.

    Raises
    ------
    ConfigError
        Unknown keys, wrong types, values out of range: all of them in one error.
    """

    pseudopotential_dir: str | None = None
    pseudopotentials: dict[str, str] = Field(default_factory=dict)
    ecutwfc: PositiveFloat = Field(description="Ry")
    # Where absent 4 x ecutwfc, 8 x with any ultrasoft or PAW file.
    ecutrho: PositiveFloat | None = Field(None, description="Ry")
    kspacing: PositiveFloat = Field(0.2, description="1/Å, 2π included")
    smearing: Literal["mv", "mp", "fd", "gaussian"] = "mv"
    degauss: PositiveFloat = Field(0.02, lt=0.2, description="Ry")
    # 2e-10 Ry per atom left 0.4 meV/Å or less in the forces where 2.5e-7 left 15.
    conv_thr_per_atom: PositiveFloat = Field(2e-10, le=1e-6, description="Ry")
    electron_maxstep: PositiveInt = 80
    mixing_beta: MixingBeta = 0.7
    mixing_mode: MixingMode = "local-TF"
    diagonalization: Solver = "david"
    # Of several starts the lowest energy is kept.
    magnetism: str | dict[str, float] | list[str | dict[str, float]] = "auto"
    pw: dict[str, dict[str, bool | int | float | str | dict[str, float]]] = Field(default_factory=dict)
    ladder: list[LadderLevel] | None = Field(None, description="levels above 0; the built-in ladder where absent")
    min_distance_fraction: float = Field(
        0.5, ge=0, lt=1, allow_inf_nan=False, description="of the sum of two covalent radii"
    )
    max_force: PositiveFloat = Field(40.0, description="eV/Å; a label above it is refused")
    # Whether an SCF that leads nowhere is stopped while it runs.
    early_stop: bool = True

    @classmethod
    def from_yaml(cls, path: str | Path) -> DFTConfig:
        """Read dft.yaml; a relative `pseudopotential_dir` is taken from the folder of the file."""
        path = Path(path)
        values = read_yaml(path)
        folder = values.get("pseudopotential_dir")
        if isinstance(folder, str):
            values["pseudopotential_dir"] = str((path.parent / Path(folder).expanduser()).absolute())
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", **error.details) from error

    _paths_are_possible = field_validator("pseudopotential_dir")(checked_path)

    @field_validator("ecutrho")
    @classmethod
    def _charge_cutoff_is_enough(cls, value: float | None, info: ValidationInfo) -> float | None:
        ecutwfc = info.data.get("ecutwfc")
        if value is not None and ecutwfc is not None and value < 4 * ecutwfc:
            raise ValueError(f"must be at least 4 x ecutwfc = {4 * ecutwfc:g}")
        return value

    @field_validator("pseudopotentials")
    @classmethod
    def _elements_are_known(cls, value: dict[str, str]) -> dict[str, str]:
        if problems := list(unknown_elements(value)):
            raise problems_error(problems)
        return value

    @field_validator("magnetism", mode="plain")
    @classmethod
    def _moments_are_possible(cls, value: Any) -> str | dict[str, float] | list[str | dict[str, float]]:
        forms = {str(n): form for n, form in enumerate(value)} if isinstance(value, list) and value else {"": value}
        problems = [
            (".".join(filter(None, (place, key))), bad, text)
            for place, form in forms.items()
            for key, bad, text in _moment_problems(form)
        ]
        if problems:
            raise problems_error(problems)
        checked = [
            {element: float(moment) for element, moment in form.items()} if isinstance(form, dict) else form
            for form in forms.values()
        ]
        # One start is the same label whether it stands in a list or not.
        return checked if len(checked) > 1 else checked[0]

    @field_validator("pw", mode="plain")
    @classmethod
    def _entries_are_free(cls, value: Any) -> dict[str, dict[str, Any]]:
        return checked_entries(value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> DFTConfig:
        """Return a changed copy that is checked as a new one is, unlike pydantic's own."""
        return DFTConfig(**{**self.to_dict(), **(update or {})})

    def label_parameters(self) -> dict[str, Any]:
        """Only what defines the number that is computed: equal for two configurations that give equal labels."""
        names = ("ecutwfc", "ecutrho", "kspacing", "smearing", "degauss", "conv_thr_per_atom", "magnetism")
        return {**{name: getattr(self, name) for name in names}, "pw": label_entries(self.pw)}


def _moment_problems(form: Any) -> Iterator[Problem]:
    """Problems of one start of the SCF."""
    if isinstance(form, str) and form in MAGNETISM_WORDS:
        return
    if not isinstance(form, dict):
        words = ", ".join(MAGNETISM_WORDS)
        yield "", form, f"must be {words}, moments in μB per atom by element, such as {{Fe: 2.5}}, or a list of these"
        return
    yield from unknown_elements(form)
    for element, moment in form.items():
        if not is_finite_number(moment) or abs(moment) > _LARGEST_MOMENT:
            expected = f"must be a number between {-_LARGEST_MOMENT:g} and {_LARGEST_MOMENT:g} (μB per atom)"
            yield str(element), moment, expected


class WorkerConfig(Settings):
    """How one machine runs pw.x; the same labels come out of every machine.

    Raises
    ------
    ConfigError
        Unknown keys, wrong types, values out of range: all of them in one error.
    """

    pw_command: str | list[str] = "pw.x"
    mpi_command: str | list[str] | None = None
    # At most so many MPI ranks: where `npool` is "auto" a small cell gets fewer.
    parallel_cores: PositiveInt = 1
    npool: PositiveInt | Literal["auto"] = "auto"
    # Ranks that share the subspace matrix of a pool; null leaves it to pw.x, which shares the smallest one.
    ndiag: PositiveInt | Literal["auto"] | None = "auto"
    scratch_dir: str | None = None
    pseudopotential_dir: str | None = None
    max_seconds: PositiveFloat | None = None
    # Before the end of the queue's job, for pw.x to end its iteration, to compute forces and stress of an SCF that has
    # just converged, and to write its state: on a slow file system a minute.
    margin_seconds: PositiveFloat = 60.0
    # The least silence of pw.x that may count as a hang, in seconds.
    hang_seconds: PositiveFloat = 120.0
    # Of this node, for all ranks together; what the job has where absent.
    memory_mb: PositiveFloat | None = None
    # A finished label waits so long for a LaunchPad that is away; later `dftfactory recover` takes it from the disk.
    database_seconds: float = Field(1800.0, ge=0, allow_inf_nan=False)
    environment: dict[str, str] = Field(default_factory=dict)
    # What a rocket prints of a calculation: lines for people, or JSON objects.
    log: Literal["text", "json"] = "text"

    _paths_are_possible = field_validator("scratch_dir", "pseudopotential_dir")(checked_path)

    @field_validator("pw_command", "mpi_command", mode="plain")
    @classmethod
    def _command_has_words(cls, value: Any, info: ValidationInfo) -> str | list[str] | None:
        if value is None and info.field_name == "mpi_command":
            return None
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
            raise ValueError("must be a command, as text or as a list of its words")
        try:
            words = _words(value)
        except ValueError as error:
            raise ValueError(f"must be a command ({str(error).lower()})") from error
        if not words or not words[0]:
            raise ValueError("must be a command, not nothing")
        if info.field_name == "mpi_command" and not any("{cores}" in word for word in words):
            raise ValueError("must have the place of the number of ranks, {cores}: 'mpirun -np {cores}'")
        return value if isinstance(value, str) else words

    @field_validator("parallel_cores")
    @classmethod
    def _ranks_can_be_started(cls, value: int, info: ValidationInfo) -> int:
        # A mpi_command that is wrong itself is not in `data`.
        if value > 1 and info.data.get("mpi_command", "wrong") is None:
            raise ValueError("needs mpi_command when it is above 1, for example 'mpirun -np {cores}'")
        return value

    @field_validator("npool", mode="plain")
    @classmethod
    def _pools_fit(cls, value: Any, info: ValidationInfo) -> int | str:
        if value == "auto":
            return "auto"
        pools = _whole_number(value)
        cores = info.data.get("parallel_cores", pools)
        if cores % pools:
            raise ValueError(f"must divide parallel_cores = {cores}")
        return pools

    @field_validator("ndiag", mode="plain")
    @classmethod
    def _ranks_make_a_square(cls, value: Any) -> int | str | None:
        if value is None or value == "auto":
            return value and "auto"
        # pw.x would take the next smaller square without a word.
        if math.isqrt(ranks := _whole_number(value)) ** 2 != ranks:
            raise ValueError("must be a square number: 1, 4, 9, 16 ...")
        return ranks

    @field_validator("environment")
    @classmethod
    def _names_are_possible(cls, value: dict[str, str]) -> dict[str, str]:
        if problems := [
            (name, text, "must be a name without `=` and a text, neither with a zero byte")
            for name, text in value.items()
            if not re.fullmatch(r"[^=\0]+", name) or "\0" in text
        ]:
            raise problems_error(problems)
        return value

    @classmethod
    def from_yaml(cls, path: str | Path) -> WorkerConfig:
        """Read the settings from a YAML file of their own, or from the `env` of a FireWorks my_fworker.yaml."""
        values = read_yaml(Path(path))
        env = values if not _FWORKER_KEYS & set(values) else values.get("env") or {}
        if not isinstance(env, dict) or not all(isinstance(key, str) for key in env):
            raise ConfigError(f"{path}: `env` must hold `key: value` lines, got {env!r}")
        try:
            return cls.from_fw_env(env)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", **error.details) from error

    @classmethod
    def from_fw_env(cls, fw_env: Mapping[str, Any] | None) -> WorkerConfig:
        """Take the keys of `_fw_env` (the `env` of the FireWorks worker); what is not given is found on the machine."""
        if not isinstance(fw_env or {}, Mapping):
            raise ConfigError(f"must be settings by their names, such as `pw_command: pw.x`, got {fw_env!r}")
        return cls(**{**_machine_defaults(fw_env or {}), **(fw_env or {})})

    @classmethod
    def find(cls) -> WorkerConfig:
        """Return the settings of this machine: those of `find_worker_file`, or else what is installed."""
        file = find_worker_file()
        return cls.from_fw_env(None) if file is None else cls.from_yaml(file)

    def command(self, cores: int, npool: int, ndiag: int | None = None) -> list[str]:
        """Argument list that starts pw.x on `cores` ranks in `npool` pools, without a shell."""
        mpi = [word.replace("{cores}", str(cores)) for word in _words(self.mpi_command or [])]
        pools = ["-nk", str(npool)] if npool > 1 else []
        sharing = ["-nd", str(ndiag)] if ndiag is not None and cores > 1 else []
        return [*mpi, *_words(self.pw_command), *pools, *sharing, "-in", "pw.in"]

    def process_environment(self) -> dict[str, str]:
        """Environment of pw.x: that of this process, our defaults below it, the user's `environment` above."""
        defaults = {"OMP_NUM_THREADS": "1", "GFORTRAN_UNBUFFERED_PRECONNECTED": "y"}
        # pw.x without mpirun then starts no daemon: 0.1 s less, and Debian's quantum-espresso does not bring it.
        defaults["OMPI_MCA_ess_singleton_isolated"] = "1"
        if self.parallel_cores < _usable_cpus():
            defaults |= UNBOUND
        if os.geteuid() == 0:  # Open MPI refuses to start as root, as in most containers, unless told twice.
            defaults |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return {**defaults, **os.environ, **self.environment}


def _usable_cpus() -> int:
    """CPUs that this process may run on: those of the job, where the queue sets them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _whole_number(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("must be a whole number above 0, or auto")
    return value


def find_worker_file() -> Path | None:
    """Find the my_fworker.yaml of this folder, else the one that FireWorks' own settings lead to.

    Raises
    ------
    ConfigError
        FireWorks' settings cannot be read.
    """
    settings = read_fireworks_settings()
    if not Path(FWORKER).is_file() and settings.get("FWORKER_LOC"):
        return Path(str(settings["FWORKER_LOC"]))
    folders = (Path(), Path(str(settings.get("CONFIG_FILE_DIR") or ".")), fireworks_home())
    return next((path for folder in folders if (path := folder / FWORKER).is_file()), None)


def fireworks_home() -> Path:
    """Return the folder of a user's own files of FireWorks."""
    return Path.home() / ".fireworks"


def read_fireworks_settings() -> dict[str, Any]:
    """Read the FW_config.yaml that FireWorks takes; empty where there is none.

    Raises
    ------
    ConfigError
        It cannot be read.
    """
    # FireWorks takes the first of them that exists, too; what FW_CONFIG_FILE names comes last.
    named = os.environ.get("FW_CONFIG_FILE") or FW_CONFIG
    configs = (Path(FW_CONFIG), fireworks_home() / FW_CONFIG, Path(named))
    return next((read_yaml(path) for path in configs if path.is_file()), {})


def _machine_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """In a job of Slurm or PBS its tasks, elsewhere one core; mpirun where more than one core is asked for."""
    found = "mpirun -np {cores}" if shutil.which("mpirun") else None
    launcher = given.get("mpi_command", found)
    cores = given.get("parallel_cores", max(1, _tasks_of_job() if launcher is not None else 1))
    return {"parallel_cores": cores, "mpi_command": found if isinstance(cores, int) and cores > 1 else None}


def _tasks_of_job() -> int:
    """Return the MPI ranks that a job of Slurm or PBS is made for; 0 where nobody says so."""
    tasks = os.environ.get("SLURM_NTASKS", "")
    if tasks.isdecimal():
        return int(tasks)
    # PBS lists the node of each rank, line by line.
    with contextlib.suppress(OSError, KeyError):
        return len(Path(os.environ["PBS_NODEFILE"]).read_text(errors="replace").split())
    return 0


def _words(command: str | list[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)
