"""history.json: the memory of one calculation, and the moving of an attempt's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dftfactory import history
from dftfactory.errors import ParserError
from dftfactory.history import (
    awaits_verdict,
    close_attempt,
    current_parameters,
    open_attempt,
    read_history,
    remove_traces,
    start_history,
    write_atomically,
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A calculation that has been started, and whose first attempt has ended."""
    start_history(tmp_path, "si", {"mixing_beta": 0.7}, {"degauss": 0.02}, None)
    (tmp_path / "out").mkdir()
    for name in ("pw.in", "pw.out", "pw.err", "exit_status", "out/pwscf.xml", "out/pwscf.wfc1"):
        (tmp_path / name).write_text(f"first {name}")
    return tmp_path


def test_the_first_attempt_stands_at_level_0_with_the_configured_parameters(run_dir: Path) -> None:
    assert read_history(run_dir) == {
        "calculation_id": "si",
        "prescribed": {"degauss": 0.02},
        "configured": {"mixing_beta": 0.7},
        "ladder": None,
        "attempts": [{"parameters": {"mixing_beta": 0.7, "level": 0}}],
    }


def test_an_attempt_waits_for_a_verdict_from_its_end_to_the_first_word_about_it(run_dir: Path) -> None:
    assert awaits_verdict(run_dir)
    close_attempt(run_dir, "KILLED", evidence="signal 9")
    assert not awaits_verdict(run_dir)
    open_attempt(run_dir, {"mixing_beta": 0.3, "level": 1})
    assert not awaits_verdict(run_dir)  # it was not run yet
    (run_dir / "exit_status").write_text("0")
    assert awaits_verdict(run_dir)


def test_the_next_attempt_starts_with_the_input_alone_and_the_saved_state(run_dir: Path) -> None:
    open_attempt(run_dir, {"mixing_beta": 0.3, "level": 1})
    kept = sorted(path.name for path in (run_dir / "attempt_0").iterdir())
    assert kept == ["exit_status", "history.json", "out", "pw.err", "pw.in", "pw.out"]
    assert (run_dir / "attempt_0" / "out" / "pwscf.xml").read_text() == "first out/pwscf.xml"
    assert current_parameters(run_dir / "attempt_0")["level"] == 0
    left = sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())
    assert [name for name in left if not name.startswith("attempt_0")] == ["history.json", "out/pwscf.wfc1", "pw.in"]
    assert current_parameters(run_dir) == {"mixing_beta": 0.3, "level": 1}
    assert read_history(run_dir)["attempts"][0]["folder"] == "attempt_0"


def test_traces_of_an_earlier_run_are_removed_and_its_input_and_density_stay(run_dir: Path) -> None:
    for name in ("pwscf.EXIT", "out/pwscf.EXIT", "CRASH"):
        (run_dir / name).write_text("stale")
    remove_traces(run_dir)
    left = sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())
    assert left == ["history.json", "out/pwscf.wfc1", "pw.in"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempts": []}', '{"attempts": [{"parameters": {}}]}', "null"])
def test_a_damaged_history_is_an_error_and_not_an_empty_one(run_dir: Path, text: str) -> None:
    (run_dir / "history.json").write_text(text)
    with pytest.raises(ParserError, match=r"history\.json cannot be read .* start again in an empty folder"):
        read_history(run_dir)


def test_a_missing_history_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ParserError, match="No such file"):
        read_history(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_whole_and_no_other(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(run_dir.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(history.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(run_dir / "history.json", "half of a new")
    assert json.loads((run_dir / "history.json").read_text())["calculation_id"] == "si"
    assert sorted(run_dir.iterdir()) == before
