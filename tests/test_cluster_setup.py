"""What `dftfactory init --cluster` asks, what it takes from the queue, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dftfactory.cluster_setup import ClusterSetup, Partition, ask_for_setup, find_partitions
from dftfactory.errors import ConfigError

NODE = {"cores": "16", "memory": "64G"}


@pytest.fixture
def sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes a sinfo which prints a text; until it is called there is none."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)

    def make(printed: str) -> None:
        program = tmp_path / "bin" / "sinfo"
        program.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{printed}\nEND\n")
        program.chmod(0o755)

    return make


CLUSTER = (
    "main*|32|128000|2-00:00:00|up\nmain*|24|96000|2-00:00:00|up\nfat|64|1000000+|12:00:00|up\nold|8|16000|5:00|down"
)


def setup_of(given: dict[str, str], **more: Any) -> ClusterSetup:
    setup = ask_for_setup("slurm", given, **more)
    assert setup is not None
    return setup


def test_queue_knows_the_sizes(sinfo: Callable[[str], None]) -> None:
    """Two kinds of nodes in one partition: what the smaller has, both have."""
    sinfo(CLUSTER)
    assert find_partitions() == [
        Partition("main", True, 24, 96000, 172800),
        Partition("fat", False, 64, 1000000, 43200),
    ]


def test_without_a_word_the_partition_of_the_queue_is_filled_in(sinfo: Callable[[str], None]) -> None:
    """Nobody is asked where there is no terminal."""
    sinfo(CLUSTER)
    setup = setup_of({})
    assert (setup.large.partition, setup.large.cores, setup.large.memory_mb) == ("main", 24, 96000)
    assert setup.large.seconds == 86400  # a day, although the queue allows two
    assert (setup.small.memory_mb, setup.small.seconds) == (4000, 4 * 3600)  # of one core
    assert setup.bigmem is not None
    assert (setup.bigmem.partition, setup.bigmem.memory_mb, setup.bigmem.seconds) == ("fat", 1000000, 43200)
    assert (setup.account, setup.scratch, setup.launchpad_file) == (None, None, None)


def test_in_a_terminal_only_what_was_not_given_is_asked_with_what_is_known(sinfo: Callable[[str], None]) -> None:
    sinfo(CLUSTER)
    asked = {}

    def answer(question: str, default: str) -> str:
        asked[question.split(",")[0]] = default
        return "my_project" if question.startswith("Account") else default

    setup = setup_of({"partition": "main", "cores": "12", "setup": "module load qe"}, prompt=answer)
    assert asked == {
        "Account": "",
        "Memory of a node": "96000M",
        "Longest time of a job": "24:00:00",
        "Fast folder of a node for wave functions": "",
        "my_launchpad.yaml of your MongoDB": "",
        "Partition with more memory": "fat",
    }
    assert (setup.account, setup.large.cores) == ("my_project", 12)


def test_queue_that_does_not_say_it_must_be_told(sinfo: Callable[[str], None]) -> None:
    with pytest.raises(ConfigError, match="cores must be a whole number: give --cores"):
        ask_for_setup("slurm", {})
    with pytest.raises(ConfigError, match="memory must be such as 64G"):
        ask_for_setup("pbs", {"cores": "16"})
    setup = ask_for_setup("pbs", {"partition": "long", **NODE})
    assert setup is not None
    assert (setup.queue, setup.large.partition, setup.large.memory_mb, setup.bigmem) == ("pbs", "long", 65536, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"partition": "nope"}, "the queue has no partition 'nope'; it has main, fat"),
        ({"account": "a b"}, "account 'a b' must be a name"),
        ({"account": "x\n#SBATCH --wrap"}, "must be a name"),
        ({"cores": "many"}, "cores must be a whole number"),
        ({"memory": "64"}, "memory must be such as 64G or 64000M"),
        ({"walltime": "1 day"}, "must be a time such as"),
        ({"setup": "export ID=$$"}, "FireWorks takes $$ for a name of its own"),
        ({"mongodb": "none.yaml"}, "none.yaml does not exist; `dftfactory launchpad connect` writes one"),
        ({"bigmem": "main"}, "which is not more than 96000 MB"),
    ],
)
def test_what_cannot_be_used_is_refused(sinfo: Callable[[str], None], given: dict[str, str], said: str) -> None:
    sinfo(CLUSTER)
    with pytest.raises(ConfigError) as caught:
        ask_for_setup("slurm", given)
    assert said in caught.value.message


def test_options_of_a_cluster_without_a_cluster_are_a_slip() -> None:
    assert ask_for_setup(None, {"partition": None}) is None
    with pytest.raises(ConfigError, match=r"--partition belongs to a cluster: add --cluster slurm"):
        ask_for_setup(None, {"partition": "main"})
    with pytest.raises(ConfigError, match="must be slurm or pbs, got 'sge'"):
        ask_for_setup("sge", {})


def test_virtual_environment_of_this_command_is_that_of_the_job(
    sinfo: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my venv" / "bin").mkdir(parents=True)
    (tmp_path / "my venv" / "bin" / "activate").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "my venv"))
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert setup_of(NODE).shell_lines == (f"source '{tmp_path}/my venv/bin/activate'",)
    assert setup_of({**NODE, "setup": "module load qe; module load x"}).shell_lines == (
        "module load qe",
        "module load x",
    )


def test_launchpad_file_near_by_is_taken(sinfo: Callable[[str], None], tmp_path: Path) -> None:
    """`dftfactory launchpad connect` has written it."""
    (tmp_path / "my_launchpad.yaml").touch()
    assert setup_of(NODE).launchpad_file == tmp_path / "my_launchpad.yaml"
