"""What a person writes down: how labels are defined (DFTConfig) and how a machine runs them (WorkerConfig)."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from dftfactory.errors import ConfigError

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
Scalar = bool | int | float | str

# Names that `write_pw_input` or the recovery sets; an entry of `pw` must not move them behind their back.
MANDATORY = {"tprnfor", "tstress", "disk_io"}
RESERVED = {
    "control": {
        *MANDATORY,
        "calculation",
        "prefix",
        "outdir",
        "wfcdir",
        "pseudo_dir",
        "restart_mode",
        "max_seconds",
        "verbosity",
        "nstep",
    },
    "system": {
        "ibrav",
        "nat",
        "ntyp",
        "celldm",
        *("a", "b", "c", "cosab", "cosac", "cosbc"),
        *("ecutwfc", "ecutrho", "occupations", "smearing", "degauss", "nspin", "starting_magnetization"),
        *("noncolin", "lspinorb"),
    },
    "electrons": {
        *("conv_thr", "electron_maxstep", "mixing_beta", "mixing_mode", "diagonalization"),
        *("scf_must_converge", "adaptive_thr", "startingpot"),
    },
}
# Entries of `pw` that change the way to the number and not the number: left out of the config hash.
NUMERICAL = {"mixing_ndim", "mixing_fixed_ns", "startingwfc", "diago_thr_init", "diago_david_ndim", "diago_cg_maxiter"}


class _Strict(BaseModel):
    """No conversion of types, no unknown keys, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Settings(_Strict):
    """Raises one ConfigError that lists every problem."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _config_error(type(self).__name__, error, type(self).model_fields) from error

    @classmethod
    def _read_yaml(cls, path: Path) -> dict[str, Any]:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            # YAML 1.2: `1e-9` is a number and `no` is a word.
            values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"{path} does not exist; `dftfactory init` writes one with comments") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        except YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if values is None:
            values = {}
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"{path} must hold `key: value` lines, got {type(values).__name__}")
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values that the constructor takes back; unset ones are left out."""
        return self.model_dump(mode="json", exclude_none=True)


class AnnealStage(_Strict):
    """One stage of an anneal: how far above the prescribed smearing, and how well it must converge."""

    degauss_above: float = Field(0.0, ge=0, le=0.2, description="Ry above the prescribed degauss")
    conv_thr: PositiveFloat | None = Field(None, description="Ry per cell; the prescribed one where absent")


class LadderLevel(_Strict):
    """One level of a user's own recovery ladder: what differs from the configuration while it is tried."""

    name: str
    mixing_beta: float | None = Field(None, gt=0, le=1)
    mixing_mode: Literal["plain", "TF", "local-TF"] | None = None
    mixing_ndim: PositiveInt | None = None
    diagonalization: Literal["david", "cg", "paro", "ppcg"] | None = None
    diago_david_ndim: PositiveInt | None = None
    electron_maxstep: PositiveInt | None = None
    anneal: list[AnnealStage] | None = None

    @field_validator("anneal")
    @classmethod
    def _ends_at_the_prescribed_parameters(cls, value: list[AnnealStage] | None) -> list[AnnealStage] | None:
        if value is not None and (len(value) < 2 or value[-1] != AnnealStage()):
            raise ValueError("an anneal needs a hot stage and ends with the prescribed parameters, `{}`")
        return value


class DFTConfig(_Settings):
    """How every label of one data set is computed: label parameters and the first numerical ones.

    Raises
    ------
    ConfigError
        Unknown keys, wrong types, values out of range: all of them in one error.
    """

    pseudopotential_dir: str | None = None
    pseudopotentials: dict[str, str] = {}
    ecutwfc: PositiveFloat = Field(description="Ry")
    ecutrho: PositiveFloat | None = Field(None, description="Ry; 4 x ecutwfc, 8 x with ultrasoft or PAW files")
    kspacing: PositiveFloat = Field(0.2, description="1/Å, 2π included")
    smearing: Literal["mv", "mp", "fd", "gaussian"] = "mv"
    degauss: PositiveFloat = Field(0.02, lt=0.2, description="Ry")
    # 2e-10 Ry per atom left 0.4 meV/Å or less in the forces where 2.5e-7 left 15.
    conv_thr_per_atom: PositiveFloat = Field(2e-10, le=1e-6, description="Ry")
    electron_maxstep: PositiveInt = 80
    mixing_beta: float = Field(0.7, gt=0, le=1)
    mixing_mode: Literal["plain", "TF", "local-TF"] = "local-TF"
    diagonalization: Literal["david", "cg", "paro", "ppcg"] = "david"
    magnetism: Literal["none", "auto"] | dict[str, float] = Field("auto", description="μB per atom, by element")
    pw: dict[str, dict[str, Scalar | dict[str, float]]] = {}
    ladder: list[LadderLevel] | None = Field(None, description="levels above 0; the built-in ladder where absent")
    min_distance_fraction: float = Field(0.5, ge=0, lt=1, description="of the sum of two covalent radii")
    max_force: PositiveFloat = Field(40.0, description="eV/Å; a label above it is refused")

    @classmethod
    def from_yaml(cls, path: str | Path) -> DFTConfig:
        """Read dft.yaml; a relative `pseudopotential_dir` is taken from the folder of the file."""
        path = Path(path)
        values = cls._read_yaml(path)
        folder = values.get("pseudopotential_dir")
        if isinstance(folder, str):
            values["pseudopotential_dir"] = str((path.parent / Path(folder).expanduser()).resolve())
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", **error.details) from error

    @field_validator("pseudopotentials")
    @classmethod
    def _elements_are_known(cls, value: dict[str, str]) -> dict[str, str]:
        _refuse_unknown_elements(value)
        return value

    @field_validator("magnetism")
    @classmethod
    def _moments_are_known(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(value, dict):
            _refuse_unknown_elements(value)
            if any(abs(moment) > 10 for moment in value.values()):
                raise ValueError("moments are in μB per atom, between -10 and 10")
        return value

    @field_validator("pw")
    @classmethod
    def _nothing_reserved(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        for namelist, keys in value.items():
            name = namelist.lower().lstrip("&")
            if name not in RESERVED:
                raise ValueError(f"namelist {namelist!r} is none of {', '.join(RESERVED)}")
            for key, entry in keys.items():
                base = key.lower().split("(")[0].strip()
                if not re.fullmatch(r"[a-z_][a-z0-9_]*(\([0-9, ]+\))?", key.strip(), re.IGNORECASE):
                    raise ValueError(f"{key!r} is not the name of a parameter of pw.x")
                if base in RESERVED[name]:
                    why = "is always written by dftfactory" if base in MANDATORY else "is set by dftfactory itself"
                    raise ValueError(f"{name}.{key} {why} and cannot be overridden here")
                if isinstance(entry, dict):
                    _refuse_unknown_elements(entry)
                entries.setdefault(name, {})[key.strip()] = entry
        return entries

    @model_validator(mode="after")
    def _charge_cutoff_is_enough(self) -> DFTConfig:
        if self.ecutrho is not None and self.ecutrho < 4 * self.ecutwfc:
            raise ValueError(f"ecutrho must be at least 4 x ecutwfc = {4 * self.ecutwfc:g} Ry, got {self.ecutrho:g}")
        return self

    def label_parameters(self) -> dict[str, Any]:
        """Only what defines the number that is computed: equal for two configurations that give equal labels."""
        names = ("ecutwfc", "ecutrho", "kspacing", "smearing", "degauss", "conv_thr_per_atom", "magnetism")
        extra = {
            namelist: kept
            for namelist, keys in sorted(self.pw.items())
            if (kept := {key.lower(): keys[key] for key in sorted(keys) if key.lower() not in NUMERICAL})
        }
        return {**{name: getattr(self, name) for name in names}, "pw": extra}


class WorkerConfig(_Settings):
    """How one machine runs pw.x; the same labels come out of every machine.

    Raises
    ------
    ConfigError
        Unknown keys, wrong types, values out of range: all of them in one error.
    """

    pw_command: str | list[str] = "pw.x"
    mpi_command: str | list[str] | None = None
    parallel_cores: PositiveInt = 1
    npool: PositiveInt = 1
    scratch_dir: str | None = None
    pseudopotential_dir: str | None = None
    max_seconds: PositiveFloat | None = None
    environment: dict[str, str] = {}

    @model_validator(mode="after")
    def _layout_fits(self) -> WorkerConfig:
        if self.parallel_cores % self.npool:
            raise ValueError(f"npool = {self.npool} must divide parallel_cores = {self.parallel_cores}")
        if self.parallel_cores > 1 and self.mpi_command is None:
            raise ValueError(
                f"parallel_cores = {self.parallel_cores} needs mpi_command, for example 'mpirun -np {{cores}}'"
            )
        if self.mpi_command is not None and not any("{cores}" in word for word in _words(self.mpi_command)):
            raise ValueError("mpi_command needs the place of the number of ranks, {cores}: 'mpirun -np {cores}'")
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> WorkerConfig:
        """Read the settings from a YAML file of their own, or from the `env` of a FireWorks my_fworker.yaml."""
        values = cls._read_yaml(Path(path))
        env = values.get("env") if "env" in values else values
        if not isinstance(env, dict):
            raise ConfigError(f"{path}: `env` must hold `key: value` lines, got {type(env).__name__}")
        try:
            return cls.from_fw_env(env)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", **error.details) from error

    @classmethod
    def from_fw_env(cls, fw_env: Mapping[str, Any] | None) -> WorkerConfig:
        """Take the keys of `_fw_env` (the `env` of the FireWorks worker); what is not given is found on the machine."""
        return cls(**{**_machine_defaults(fw_env or {}), **(fw_env or {})})

    @classmethod
    def find(cls) -> WorkerConfig:
        """Return the settings of this machine: those of my_fworker.yaml in this folder, or else what is installed."""
        here = Path("my_fworker.yaml")
        return cls.from_yaml(here) if here.is_file() else cls.from_fw_env(None)

    def command(self, cores: int, npool: int) -> list[str]:
        """Argument list that starts pw.x on `cores` ranks in `npool` pools, without a shell."""
        mpi = [word.replace("{cores}", str(cores)) for word in _words(self.mpi_command or [])]
        pools = ["-nk", str(npool)] if npool > 1 else []
        return [*mpi, *_words(self.pw_command), *pools, "-in", "pw.in"]

    def process_environment(self) -> dict[str, str]:
        """Environment of pw.x: that of this process, our defaults below it, the user's `environment` above."""
        defaults = {"OMP_NUM_THREADS": "1", "GFORTRAN_UNBUFFERED_PRECONNECTED": "y"}
        if os.geteuid() == 0:  # Open MPI refuses to start as root, as in most containers, unless told twice.
            defaults |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return {**defaults, **os.environ, **self.environment}


def _machine_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """In a Slurm job its tasks, elsewhere one core; mpirun where more than one core is asked for."""
    cores = given.get("parallel_cores", int(os.environ.get("SLURM_NTASKS", "1") or 1))
    launcher = shutil.which("mpirun")
    if launcher is None:
        return {}
    many = isinstance(cores, int) and cores > 1
    return {"parallel_cores": cores, **({"mpi_command": "mpirun -np {cores}"} if many else {})}


def _words(command: str | list[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)


def _refuse_unknown_elements(names: Mapping[str, Any]) -> None:
    from ase.data import atomic_numbers

    if unknown := [name for name in names if name not in atomic_numbers or name == "X"]:
        raise ValueError(f"unknown element {', '.join(map(repr, unknown))}")


def _config_error(kind: str, error: ValidationError, fields: Mapping[str, FieldInfo]) -> ConfigError:
    problems = []
    for item in error.errors():
        path = [
            str(part) for part in item["loc"] if not re.match(r"dict\[|literal\[|list\[|float|bool|int|str", str(part))
        ]
        problem: dict[str, str] = {"key": ".".join(path)}
        if item["type"] == "missing":
            problem["problem"] = "is missing"
        elif item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(path[-1], fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(fields))}"
            problem |= {"value": repr(item["input"]), "problem": f"is unknown; {hint}"}
        else:
            text = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            unit = fields[path[0]].description if path and path[0] in fields else None
            if path:
                problem["value"] = repr(item["input"])
            problem["problem"] = text + (f" ({unit})" if unit else "")
        problems.append(problem)
    lines = []
    for key in dict.fromkeys(problem["key"] for problem in problems):
        same = [problem for problem in problems if problem["key"] == key]
        value = f" = {same[0]['value']}" if "value" in same[0] else ""
        lines.append(f"{key}{value}{':' if value else ''} ".lstrip() + ", or ".join(p["problem"] for p in same))
    return ConfigError(f"{kind}: " + "; ".join(line.strip() for line in lines), problems=problems)
