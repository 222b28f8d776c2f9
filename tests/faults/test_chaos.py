"""`tests/benchmarks/chaos.py`, cut short: half a minute of random faults, always the same ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent.parent / "benchmarks" / "chaos.py"


@pytest.mark.mongodb
def test_nothing_is_lost_and_nothing_done_twice_among_random_faults() -> None:
    words = ["--seconds", "30", "--structures", "12", "--rockets", "3", "--length", "2", "--real", "0", "--seed", "3"]
    chaos = subprocess.Popen(
        [sys.executable, str(CHAOS), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        printed, _ = chaos.communicate()
    finally:
        chaos.terminate()  # it ends what it has started
        chaos.wait()
    assert chaos.returncode == 0, printed
