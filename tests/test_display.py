"""What is printed can be read on a terminal of 80 columns, in a file, and with any name in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from queue_helpers import label_for
from rich.console import Console

from dftfactory.display import candidate_table, print_result
from dftfactory.results import DFTResult

ROWS = [
    {
        "name": "Al111-slab",
        "status": "COMPLETED",
        "level": 3,
        "iterations": 95,
        "seconds": 12.34,
        "energy": -12345.67891,
        "max_force": 12.3456,
    },
    {"name": "H2O-in-a-big-box", "status": "FAILED", "failure": "SCF_NOT_CONVERGED", "reason": "see below"},
    {"name": "[red]x[/red]", "status": "[bold]", "failure": "[/nothing]"},
]


def rendered(renderable: Any, **options: Any) -> str:
    console = Console(width=80, **options)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.fixture
def result() -> DFTResult:
    structure = {"symbols": ["H", "H"], "positions": np.zeros((2, 3)), "cell": np.eye(3) * 5, "pbc": [False] * 3}
    spec = {"structure": structure, **dict.fromkeys(("calculation_id", "fingerprint", "config_hash", "formula"), "x")}
    return DFTResult.from_dict(label_for({**spec, "pseudopotentials": {}, "config": {"ecutwfc": 60}})["result"])


def test_candidates_fit_into_80_columns() -> None:
    lines = rendered(candidate_table(ROWS)).splitlines()
    assert max(len(line) for line in lines) <= 80
    slab = next(line for line in lines if "Al111" in line)
    assert slab.split() == ["Al111-slab", "COMPLETED", "3", "95", "12.3", "-12345.6789", "12.346"]
    assert "H2O-in-a-big-box FAILED" in "\n".join(lines)


def test_names_with_brackets_are_text_and_not_markup() -> None:
    text = rendered(candidate_table(ROWS))
    assert "[red]x[/red]" in text
    assert "[bold]" in text
    assert "[/nothing]" in text


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in rendered(candidate_table(ROWS))
    assert "\x1b[32mCOMPLETED" in rendered(candidate_table(ROWS), force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in rendered(candidate_table(ROWS), force_terminal=True)


def test_result_has_units_and_the_sign_of_the_pressure(result: DFTResult, capsys: pytest.CaptureFixture[str]) -> None:
    """The stress is 0.125 eV/Å³ under tension, so the pressure is negative: 0.125 x 160.2177 GPa."""
    print_result(result.with_record(pbc=(True, True, True)), Path("/runs/[red]si"))
    printed = capsys.readouterr().out
    values = dict(line.strip().split("  ", 1) for line in printed.splitlines())
    assert values["energy"].strip() == "-215.00000000 eV"
    assert float(values["pressure"].split()[0]) == pytest.approx(-0.125 * 160.2176634, abs=1e-3)
    assert values["pressure"].endswith("GPa")
    # sqrt(3) x 0.25 eV/Å
    assert values["largest force"].strip() == "0.433013 eV/Å"
    assert values["SCF iterations"].strip() == "11 in 1 run"
    assert "/runs/[red]si" in values["files"]
    assert "magnetization" not in values
    print_result(result, Path("x"))
    assert "pressure" not in capsys.readouterr().out, "a molecule has none"


def test_softened_result_says_so(result: DFTResult, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(result.with_record(quality="softened", degauss=0.03), Path("x"))
    assert "softened: at degauss = 0.03 Ry, not the prescribed one" in capsys.readouterr().out


def test_states_and_their_warning_are_printed(result: DFTResult, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"energy": None, "total_magnetization": None, "level": 3}
    states = (
        {"start": "auto", "outcome": "CONVERGED", "energy": -215.0, "total_magnetization": 2.0, "level": 1},
        {"start": "Fe 0.5", "outcome": "SCF_NOT_CONVERGED", "evidence": "NOT achieved [80]", **nothing},
    )
    print_result(result.with_record(states=states, state_warning="there may be a lower state [x]"), Path("x"))
    printed = capsys.readouterr().out.splitlines()
    assert "from auto: -215.000000 eV, 2.000 μB, level 1" in printed
    assert "from Fe 0.5: SCF_NOT_CONVERGED (NOT achieved [80])" in printed
    assert "there may be a lower state [x]" in printed
    # Each start has a folder and a pw.out of its own.
    assert any(line.rstrip().endswith("x (label.json, history.json, start_0, start_1, ...)") for line in printed)


def test_long_paths_are_not_folded_in_a_pipe(result: DFTResult, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("/a/rather/deep/folder") / ("of_a_user_" * 8)
    print_result(result, folder)
    assert f"{folder} (label.json" in capsys.readouterr().out
