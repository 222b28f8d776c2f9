"""What runs now: from files that pw.x is writing, as far as this machine sees them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from every_state import Garden, plant_every_state, silicon, write_running_folder
from paths import FILES

from dftfactory.history import read_history, write_history
from dftfactory.monitor.running import END_OF_FILE, Running, find_run_folder, history_in, read_running, with_series
from dftfactory.orphans import take_folder

pytestmark = pytest.mark.mongodb


@pytest.fixture
def garden(launchpad: Any, tmp_path: Path) -> Garden:
    return Garden(launchpad, tmp_path)


@pytest.fixture
def run_dir(garden: Garden) -> Path:
    """The folder of the only Firework, in the fourth iteration of its second attempt."""
    folder = garden.folder / "run"
    write_running_folder(folder, "si", garden.config)
    garden.launch(garden.add("si", silicon(1)), folder=folder)
    return folder


def only(garden: Garden) -> Running:
    (running,) = read_running(garden.launchpad)
    return running


def test_nothing_runs(launchpad: Any) -> None:
    assert read_running(launchpad) == read_running(launchpad, "campaign") == []


def test_runs_are_told_longest_first(launchpad: Any, tmp_path: Path) -> None:
    ids = plant_every_state(launchpad, tmp_path)
    elsewhere, here = read_running(launchpad)
    assert (elsewhere.fw_id, here.fw_id) == (ids["running elsewhere"], ids["running"])
    assert elsewhere.unseen == "its folder is not to be seen from this machine"
    assert (elsewhere.host, elsewhere.iteration) == ("node9", None)
    # The recorded run was cut in its fourth iteration; `estimated scf accuracy < 0.00018815 Ry` is the third one.
    assert (here.iteration, here.accuracy, here.attempt, here.level, here.unseen) == (4, 0.00018815, 2, 0, None)
    assert here.conv_thr == 8e-9  # 1e-9 Ry for each of 8 atoms
    assert [each.fw_id for each in read_running(launchpad, "silicon")] == [ids["running"]]
    json.dumps([each.to_dict() for each in (elsewhere, here)], allow_nan=False)


def test_end_of_a_long_output_is_enough(garden: Garden, run_dir: Path) -> None:
    text = (run_dir / "pw.out").read_text()
    (run_dir / "pw.out").write_text("x" * 3 * END_OF_FILE + "\n" + text)
    assert (only(garden).iteration, only(garden).accuracy) == (4, 0.00018815)


@pytest.mark.parametrize(
    ("damage", "unseen"),
    [
        (lambda folder: (folder / "history.json").write_text("{"), "its history.json cannot be read"),
        (lambda folder: (folder / "pw.out").unlink(), "pw.x has not begun"),
        (lambda folder: (folder / "pw.out").write_text(""), "before its first SCF iteration"),
        (lambda folder: (folder / "history.json").unlink(), "the calculation has not begun"),
        (shutil.rmtree, "its folder is not to be seen from this machine"),
    ],
)
def test_missing_numbers_have_a_reason(garden: Garden, run_dir: Path, damage: Any, unseen: str) -> None:
    damage(run_dir)
    assert (only(garden).unseen, only(garden).iteration) == (unseen, None)


@pytest.mark.parametrize("printed", ["*************", "NaN", "Infinity"])
def test_accuracy_that_is_no_number(garden: Garden, run_dir: Path, printed: str) -> None:
    text = (run_dir / "pw.out").read_text().replace("0.00018815", printed)
    (run_dir / "pw.out").write_text(text)
    assert (only(garden).iteration, only(garden).accuracy) == (4, None)


def test_attempt_that_has_ended_is_not_taken_for_the_next_one(garden: Garden, run_dir: Path) -> None:
    history = read_history(run_dir)
    history["attempts"][-1]["outcome"] = "SCF_NOT_CONVERGED"
    write_history(run_dir, history)
    assert (only(garden).unseen, only(garden).attempt) == ("between two runs of pw.x", 2)


def test_launch_that_goes_on_in_the_folder_of_an_earlier_one(garden: Garden, run_dir: Path) -> None:
    fw_id = garden.fw_ids["si"]
    garden.launchpad.rerun_fw(fw_id)
    (garden.folder / "second").mkdir()
    garden.launch(fw_id, folder=garden.folder / "second")
    assert only(garden).iteration == 4
    assert find_run_folder(fw_id, "si", [str(garden.folder / "second"), str(run_dir)]) == run_dir


def test_folder_that_another_firework_has_taken(garden: Garden, run_dir: Path) -> None:
    """Two Fireworks may have one calculation_id, and one launch folder."""
    take_folder(run_dir, "si", 99)
    assert only(garden).unseen == "the calculation has not begun"
    own = run_dir / "si"
    write_running_folder(own, "si", garden.config)
    take_folder(own, "si", garden.fw_ids["si"])
    assert find_run_folder(garden.fw_ids["si"], "si", [str(run_dir)]) == own


@pytest.mark.parametrize("name", [None, "", "relative", "/nowhere", "/proc/\0", "/etc/passwd"])
def test_folders_from_a_database_may_be_none(name: str | None) -> None:
    assert find_run_folder(1, "../../etc", [name]) is None


def test_start_that_runs_has_a_folder_of_its_own(garden: Garden, run_dir: Path) -> None:
    """The history above it has the starts that have ended, and a placeholder for this one."""
    history = read_history(run_dir)
    shutil.move(run_dir / "history.json", run_dir / "kept.json")
    write_running_folder(run_dir / "start_1", "si", garden.config)
    (run_dir / "pw.out").unlink()
    ended = {**history["attempts"][0], "outcome": "CONVERGED", "start": "auto", "folder": "start_0"}
    begun = {"parameters": history["attempts"][0]["parameters"], "start": "Fe 0.5", "folder": "start_1"}
    write_history(run_dir, {**history, "attempts": [ended, begun]})
    assert (only(garden).attempt, only(garden).iteration) == (3, 4)
    assert [entry["folder"] for entry in history_in(run_dir)] == ["start_0", "start_1/attempt_0", "start_1"]


def test_series_of_an_old_history_is_read_from_its_output(tmp_path: Path) -> None:
    shutil.copytree(FILES / "runs" / "anneal_hot", tmp_path / "attempt_0")
    old = {"outcome": "STAGE_CONVERGED", "folder": "attempt_0"}
    kept, known, outside = with_series([old, {"scf_accuracy": [0.5]}, {"folder": "../../.."}], tmp_path)
    assert kept["scf_accuracy"][:2] == [0.07348328, 0.01773503]
    assert kept["iterations"] == 4
    assert known["scf_accuracy"] == [0.5]
    assert "scf_accuracy" not in outside
