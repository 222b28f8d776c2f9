"""`dftfactory init --cluster`: what the user says and what the queue knows, to be filled into fw_configs."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dftfactory.cluster import SAFE_TEXT, seconds_of, walltime_text
from dftfactory.errors import ConfigError
from dftfactory.queues import ask

# Asks the user for one value; the second word is the default.
Prompt = Callable[[str, str], str]

# A calculation that takes longer on one core is none of those that are packed side by side.
SMALL_SECONDS = 4 * 3600
# A day: what most queues allow, and long enough for most structures. What takes longer goes on in another job.
DEFAULT_SECONDS = 24 * 3600
# A partition whose nodes have so many times the memory is one for large structures.
MUCH_MORE_MEMORY = 1.5
SINFO_SECONDS = 10.0


@dataclass(frozen=True)
class Partition:
    """What the queue says of one partition: of the smallest of its nodes."""

    name: str
    is_default: bool
    cores: int
    memory_mb: int
    seconds: int | None  # no limit


@dataclass(frozen=True)
class JobKind:
    """One class of jobs that files are written for: its name, and the nodes that it is for."""

    name: str
    partition: str | None
    cores: int
    memory_mb: int
    seconds: int


@dataclass(frozen=True)
class ClusterSetup:
    """All that is filled in."""

    queue: str
    small: JobKind
    large: JobKind
    bigmem: JobKind | None
    account: str | None
    shell_lines: tuple[str, ...]
    scratch: str | None
    launchpad_file: Path | None


def ask_for_setup(
    queue: str | None, given: Mapping[str, str | None], prompt: Prompt | None = None
) -> ClusterSetup | None:
    """Collect what is to be filled in; None where there is no queue.

    Parameters
    ----------
    queue
        `slurm` or `pbs`.
    given
        What the options say: partition, account, cores, memory, walltime, setup (lines of shell), scratch, mongodb
        (a my_launchpad.yaml), bigmem (a partition); None for what was not said.
    prompt
        Asks for what was not said; None to take what the machine knows.

    Raises
    ------
    ConfigError
        A value that cannot be used, or the size of a node is neither said nor known.
    """
    if queue is None:
        if said := [f"--{name}" for name, text in given.items() if text is not None]:
            raise ConfigError(f"{', '.join(said)} belongs to a cluster: add --cluster slurm or --cluster pbs")
        return None
    if queue not in ("slurm", "pbs"):
        raise ConfigError(f"--cluster must be slurm or pbs, got {queue!r}")

    def value(name: str, question: str, default: str) -> str:
        said = given.get(name)
        if said is not None:
            return said.strip()
        return default if prompt is None else prompt(question, default).strip()

    known = {partition.name: partition for partition in find_partitions()} if queue == "slurm" else {}
    usual = next((partition for partition in known.values() if partition.is_default), None)
    listed = f" (one of {', '.join(known)})" if known else ""
    word = "Partition" if queue == "slurm" else "Queue"
    partition = _name(word, value("partition", f"{word}{listed}", usual.name if usual else ""))
    if partition and known and partition not in known:
        raise ConfigError(f"the queue has no partition {partition!r}; it has {', '.join(known)}")
    account = _name("account", value("account", "Account, or nothing", ""))
    node = known.get(partition or "") or usual
    cores = _number("cores", value("cores", "Cores of a node", str(node.cores) if node else ""))
    memory = megabytes("memory", value("memory", "Memory of a node, such as 64G", f"{node.memory_mb}M" if node else ""))
    limit = node.seconds if node and node.seconds else DEFAULT_SECONDS
    text = value("walltime", "Longest time of a job", walltime_text(min(limit, DEFAULT_SECONDS)))
    seconds = seconds_of(text)
    if seconds is None:
        raise ConfigError(f'walltime {text!r} must be a time such as "24:00:00" or "2-00:00:00"')
    more = _more_memory(known, node)
    lines = value("setup", "Lines of shell that a job needs, with ; between (module load ...)", _activate())
    scratch = value("scratch", "Fast folder of a node for wave functions, or nothing", "")
    near = Path("my_launchpad.yaml")
    mongodb = value("mongodb", "my_launchpad.yaml of your MongoDB, or nothing", str(near) if near.is_file() else "")
    bigmem = _name("bigmem", value("bigmem", "Partition with more memory, or nothing", more.name if more else ""))
    if mongodb and not Path(mongodb).expanduser().is_file():
        raise ConfigError(f"{mongodb} does not exist; `dftfactory launchpad connect` writes one for your MongoDB")
    return ClusterSetup(
        queue=queue,
        # Not more than half of a job, so that two fit into one.
        small=JobKind("small", partition, cores, memory // cores, min(SMALL_SECONDS, seconds // 2)),
        large=JobKind("large", partition, cores, memory, seconds),
        bigmem=None if bigmem is None else _bigmem(bigmem, known, cores, memory, seconds),
        account=account,
        shell_lines=_shell_lines(lines),
        scratch=scratch or None,
        launchpad_file=Path(mongodb).expanduser().absolute() if mongodb else None,
    )


def find_partitions() -> list[Partition]:
    """Return the partitions that Slurm says are up; none where Slurm does not answer."""
    listed = ask(["sinfo", "-h", "-e", "-o", "%P|%c|%m|%l|%a"], SINFO_SECONDS)
    found: dict[str, Partition] = {}
    for line in listed.stdout.splitlines() if listed is not None and listed.returncode == 0 else []:
        name, cores, memory, limit, state = [*line.strip().split("|"), "", "", "", ""][:5]
        numbers = [re.sub(r"\D", "", number) for number in (cores, memory)]
        if state != "up" or not all(numbers):
            continue
        # 5:00 is five minutes.
        seconds = seconds_of(limit if limit.count(":") == 2 else f"00:{limit.zfill(5)}")
        was = found.get(name.rstrip("*"))
        least_cores, least_memory = (int(number) for number in numbers)
        if was is not None:
            least_cores, least_memory = min(least_cores, was.cores), min(least_memory, was.memory_mb)
        found[name.rstrip("*")] = Partition(name.rstrip("*"), name.endswith("*"), least_cores, least_memory, seconds)
    return list(found.values())


def _more_memory(known: Mapping[str, Partition], node: Partition | None) -> Partition | None:
    if node is None:
        return None
    largest = max(known.values(), key=lambda partition: partition.memory_mb)
    return largest if largest.memory_mb >= MUCH_MORE_MEMORY * node.memory_mb else None


def _bigmem(name: str, known: Mapping[str, Partition], cores: int, memory: int, seconds: int) -> JobKind:
    node = known.get(name)
    if node is None:
        raise ConfigError(f"the queue has no partition {name!r}; add the class bigmem to cluster.yaml by hand")
    if node.memory_mb <= memory:
        raise ConfigError(f"partition {name!r} has {node.memory_mb} MB on a node, which is not more than {memory} MB")
    return JobKind("bigmem", name, node.cores, node.memory_mb, min(seconds, node.seconds or seconds))


def _name(what: str, text: str) -> str | None:
    if text and not SAFE_TEXT.fullmatch(text):
        raise ConfigError(f"{what} {text!r} must be a name of letters, digits and : . _ -")
    return text or None


def _number(what: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise ConfigError(f"{what} must be a whole number{_got(what, text)}")
    return int(text)


def megabytes(what: str, text: str) -> int:
    """MB of `64G`, `64000M` or `64000`; 64 alone would be a slip."""
    found = re.fullmatch(r"([0-9]{1,9})([MGT]?)B?", text.upper())
    megabytes = int(found[1]) * {"": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2]] if found else 0
    if megabytes < 100:
        raise ConfigError(f"{what} must be such as 64G or 64000M{_got(what, text)}")
    return megabytes


def _got(what: str, text: str) -> str:
    return f", got {text!r}" if text else f": give --{what}, the queue does not say it"


def _shell_lines(text: str) -> tuple[str, ...]:
    lines = tuple(line.strip() for line in re.split(r"[;\n]", text) if line.strip())
    # A line with it is left out of the script, as one whose value is not known.
    if bad := [line for line in lines if "$$" in line or not line.isprintable()]:
        raise ConfigError(
            f"setup {bad[0]!r}: FireWorks takes $$ for a name of its own; put it into a file and `source` it"
        )
    return lines


def _activate() -> str:
    """Return the line that gives the job the virtual environment which this command runs in."""
    activate = Path(sys.prefix) / "bin" / "activate"
    return f"source {shlex.quote(str(activate))}" if sys.prefix != sys.base_prefix and activate.is_file() else ""
