"""Whether the process that something belongs to still lives, asked on its machine and on others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dftfactory import owners
from dftfactory.owners import is_alive, this_process

CHILD = "import json, time; from dftfactory.owners import this_process; print(json.dumps(this_process()), flush=True)"


@pytest.fixture
def the_dead() -> dict[str, Any]:
    """What a process wrote down that has ended since."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, check=True)
    owner: dict[str, Any] = json.loads(child.stdout)
    return owner


def test_a_process_lives_until_it_ends(the_dead: dict[str, Any]) -> None:
    assert is_alive(this_process()) is True
    assert is_alive(the_dead) is False


def test_a_pid_that_was_given_again_is_another_process() -> None:
    me = this_process()
    assert is_alive({**me, "started": me["started"] - 1}) is False


@pytest.mark.parametrize(
    "elsewhere", [{"host": "node7"}, {"processes": "pid:[1]"}, {"boot": "x", "machine": "y"}, {"started": None}]
)
def test_what_is_out_of_sight_is_neither_dead_nor_alive(elsewhere: dict[str, Any], the_dead: dict[str, Any]) -> None:
    assert is_alive({**this_process(), **elsewhere}) is None
    assert is_alive({**the_dead, **elsewhere}) is None


def test_nothing_survives_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "MACHINE_ID", tmp_path / "machine-id")
    before = {**this_process(), "boot": "the one before"}
    assert is_alive(before) is None  # without an id it may be another machine of this name
    (tmp_path / "machine-id").write_text("0123\n")
    assert is_alive({**before, "machine": "0123"}) is False


def test_who_is_hidden_from_us_is_not_dead(the_dead: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc is mounted with hidepid, the processes of other users look as if they were none."""
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert is_alive({**the_dead, "user": 1001}) is None
    assert is_alive({**the_dead, "user": 1000}) is False


@pytest.mark.parametrize("junk", [[], {}, {"host": 3}, None])
def test_a_damaged_record_says_nothing(junk: Any) -> None:
    assert is_alive(junk) is None
