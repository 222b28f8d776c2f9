"""The files of fw_configs for one cluster: those of the package with partition, cores, memory and times filled in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from dftfactory.cluster import ClusterConfig, find_cluster_file, fireworks_finds, walltime_text
from dftfactory.cluster_setup import ClusterSetup, JobKind
from dftfactory.config import FW_CONFIG
from dftfactory.errors import ConfigError

# Jobs in the queue at once, in the commands that we print.
MOST_PACKED, MOST_RESERVED = 5, 20
# What rlaunch may begin in a packed job: the tenth that is left is for those that have begun.
LAST_START = 0.9


def fill_in(sources: Mapping[str, str], configs: Path, setup: ClusterSetup) -> dict[Path, str]:
    """Return file → text of fw_configs for this cluster.

    Parameters
    ----------
    sources
        Name → text of the files of fw_configs, of `cluster/...` too.
    configs
        The folder that they will be in; absolute.
    setup
        What to fill in.
    """
    adapter = sources["my_qadapter.yaml" if setup.queue == "slurm" else "my_qadapter_pbs.yaml"]
    launchpad = setup.launchpad_file or configs / "my_launchpad.yaml"
    files = {configs / "cluster.yaml": _cluster_yaml(sources["cluster/cluster.yaml"], setup)}
    # FireWorks itself finds those of the large class, which need no folder of their own.
    kinds = {configs: setup.large, configs / "small": setup.small}
    if setup.bigmem is not None:
        kinds[configs / "bigmem"] = setup.bigmem
    for folder, kind in kinds.items():
        paragraph = sources["cluster/packed.yaml" if kind is setup.small else "cluster/reserved.yaml"]
        words = {
            "class": kind.name,
            "qlaunch": qlaunch_command(configs, folder, kind is setup.small),
            "launchpad": shlex.quote(str(launchpad)),
            "worker": shlex.quote(str(folder / "my_fworker.yaml")),
            "cores": str(kind.cores),
            "timeout": str(int(setup.large.seconds * LAST_START)),
        }
        files[folder / "my_fworker.yaml"] = _worker(sources["my_fworker.yaml"], kind, setup)
        files[folder / "my_qadapter.yaml"] = _adapter(adapter, _with_words(paragraph, words), kind, setup)
    settings = sources["FW_config.yaml"]
    if setup.launchpad_file is None:
        files[configs / "my_launchpad.yaml"] = sources["my_launchpad.yaml"]
    else:
        settings = _with_values(settings, {"LAUNCHPAD_LOC": json.dumps(str(launchpad))})
    files[configs / "FW_config.yaml"] = settings
    if setup.queue == "pbs":
        files[configs / "PBS_template.txt"] = sources["PBS_template.txt"]
    return files


def qlaunch_command(configs: Path, folder: Path, packed: bool) -> str:
    """Return how jobs of one class are submitted; FireWorks finds the files in `configs` by FW_CONFIG_FILE."""
    where = [] if folder == configs else ["-c", shlex.quote(str(folder.absolute()))]
    return " ".join(["qlaunch", *([] if packed else ["-r"]), *where])


def rapidfire_command(configs: Path, folder: Path, packed: bool) -> str:
    """Return how jobs of one class are submitted while there is work; without a number FireWorks submits on and on."""
    return f"{qlaunch_command(configs, folder, packed)} rapidfire -m {MOST_PACKED if packed else MOST_RESERVED}"


def export_command(configs: Path) -> str:
    """Return the line of shell with which FireWorks finds the files in a folder."""
    return f"export FW_CONFIG_FILE={shlex.quote(str((configs / FW_CONFIG).absolute()))}"


def commands_for_classes(names: Iterable[str]) -> dict[str, str]:
    """Class of jobs → how its jobs are submitted, in the order of cluster.yaml; empty where there is none.

    Where FireWorks' own settings lead somewhere else, each has the line before it that leads to these files.
    """
    file, cluster = find_cluster_file(), ClusterConfig.find()
    wanted = set(names)
    if file is None or cluster is None:
        return {}
    configs, commands = file.parent, {}
    before = "" if fireworks_finds(configs) else f"{export_command(configs)}; "
    for name, job_class in cluster.classes.items():
        # A class without a folder of its own has the files that FireWorks itself finds.
        folder = configs / name if (configs / name / "my_qadapter.yaml").is_file() else configs
        if name in wanted:
            commands[name] = before + rapidfire_command(configs, folder, job_class.packed)
    return commands


def next_commands(folder: Path, setup: ClusterSetup) -> list[str]:
    """Return what the user types next, in the order of typing."""
    configs = folder / "fw_configs"
    empty = [folder / "dft.yaml", *([] if setup.launchpad_file else [configs / "my_launchpad.yaml"])]
    small, large = (rapidfire_command(configs, *kind) for kind in ((configs / "small", True), (configs, False)))
    bigmem = rapidfire_command(configs, configs / "bigmem", packed=False)
    return [
        f"# fill in {' and '.join(map(str, empty))}",
        export_command(configs),
        "dftfactory check --job",
        "dftfactory submit candidates.db",
        f"{small}      # many side by side in one job",
        f"{large}      # one job for each large structure",
        *([f"{bigmem}      # those that need more memory"] if setup.bigmem else []),
    ]


def _cluster_yaml(text: str, setup: ClusterSetup) -> str:
    blocks = []
    for kind in filter(None, (setup.small, setup.large, setup.bigmem)):
        lines = {
            "cores": 1 if kind is setup.small else kind.cores,
            "nodes": 1,
            "memory_mb": kind.memory_mb,
            "walltime": f'"{walltime_text(kind.seconds)}"',
            **({"partition": f'"{kind.partition}"'} if kind.partition else {}),
            **({"packed": "true"} if kind is setup.small else {}),
        }
        blocks.append(f"  {kind.name}:\n" + "".join(f"    {key}: {value}\n" for key, value in lines.items()))
    return _with_words(text, {"queue": setup.queue, "classes": "".join(blocks).rstrip("\n")})


def _worker(text: str, kind: JobKind, setup: ClusterSetup) -> str:
    values = {"name": f'"{kind.partition or setup.queue}_{kind.name}"', "category": kind.name}
    if setup.scratch is not None:
        values["scratch_dir"] = json.dumps(setup.scratch)
    if kind is setup.small:  # they share the node
        values |= {"parallel_cores": "1", "memory_mb": str(kind.memory_mb)}
    return _with_values(text, values)


def _adapter(text: str, paragraph: str, kind: JobKind, setup: ClusterSetup) -> str:
    header, paragraph = paragraph.split("\n\n", 1)
    names, begin, end = (
        text.index(f"{words}") for words in ("_fw_name:", "# What runs in the job.", "# The size of one")
    )
    memory = setup.large.memory_mb if kind is setup.small else kind.memory_mb
    nodes, cores, unit = ("nodes", "ntasks_per_node", "M") if setup.queue == "slurm" else ("nnodes", "ppnode", "mb")
    seconds = setup.large.seconds if kind is setup.small else kind.seconds
    values = {
        nodes: "1",
        cores: str(kind.cores),
        "walltime": f'"{walltime_text(seconds)}"',
        "mem": f"{memory}{unit}",
        "queue": f'"{kind.partition}"' if kind.partition else "null",
        "account": f'"{setup.account}"' if setup.account else "null",
    }
    return _with_shell_lines(
        _with_values(f"{header}\n{text[names:begin]}{paragraph}{text[end:]}", values), setup.shell_lines
    )


def _with_shell_lines(text: str, lines: tuple[str, ...]) -> str:
    """Replace the examples of pre_rocket."""
    if not lines:
        return text
    return re.sub(
        r"(?:^  # (?:module|source) .*\n)+", lambda _: "".join(f"  {line}\n" for line in lines), text, flags=re.M
    )


def _with_values(text: str, values: Mapping[str, str]) -> str:
    """Give keys of a YAML text another value, and take away the hash before those that are only an example."""
    for key, value in values.items():
        found = re.search(rf"^( *)(?:# )?{key}: .*$", text, re.M)
        if found is None:
            raise ConfigError(f"fw_configs of this installation have no line {key!r}; install dftfactory again")
        text = f"{text[: found.start()]}{found[1]}{key}: {value}{text[found.end() :]}"
    return text


def _with_words(text: str, words: Mapping[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda found: words[found[1]], text)
