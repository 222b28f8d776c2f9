"""The last words of a calculation name what to change, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ase import Atoms

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError
from dftfactory.giving_up import calculation_error
from dftfactory.runner import QERunner

FakePw = Callable[..., WorkerConfig]


def test_a_full_disk_is_named_although_the_system_does_not_say_which(tmp_path: Path) -> None:
    """The error of a write to an open file has no name in it."""
    cause = OSError(28, "No space left on device")
    error = calculation_error(tmp_path / "run", "si", cause, refused=False, memory=None)
    assert error.details["failure"] == "DISK_FULL"
    assert error.details["evidence"] == f"[Errno 28] No space left on device in {tmp_path / 'run'}"
    named = OSError(28, "No space left on device", "/scratch/wfc1")
    error = calculation_error(tmp_path / "run", "si", named, refused=False, memory=None)
    assert error.details["evidence"] == "[Errno 28] No space left on device: '/scratch/wfc1'"


def test_where_memory_ran_out_the_sentence_says_how_much_to_ask_for(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    with pytest.raises(CalculationError) as caught:
        QERunner(fake_config, fake_pw("out_of_memory", memory_mb=1000)).run(si_atoms, tmp_path / "run")
    for said in (str(caught.value), caught.value.details["explanation"]):
        assert said.endswith("fewer pools; 2000 MB on a node may be enough")  # twice what it had
