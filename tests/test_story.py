"""The whole story of one structure, from what the LaunchPad, the label store and the run folder know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from every_state import Garden, plant_every_state, silicon
from queue_helpers import make_database, rlaunch

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.cost import cost_of
from dftfactory.errors import SeveralStructuresError, UnknownStructureError
from dftfactory.monitor.attempts import attempts_of
from dftfactory.monitor.finding import find_fw_id
from dftfactory.monitor.story import Story, tell_story
from dftfactory.pipeline import submit

pytestmark = pytest.mark.mongodb


@pytest.fixture
def planted(launchpad: Any, tmp_path: Path) -> dict[str, Story]:
    ids = plant_every_state(launchpad, tmp_path)
    return {name: tell_story(launchpad, fw_id) for name, fw_id in ids.items()}


def test_every_state_has_a_story(planted: dict[str, Story]) -> None:
    for name, story in planted.items():
        json.dumps(story.to_dict(), allow_nan=False)
        assert story.structure["symbols"], name
        assert story.config["ecutwfc"] == 40
        if story.record.core_seconds and name != "retried":
            told = sum(attempt.cost.core_seconds for attempt in story.attempts)
            assert told == pytest.approx(story.record.core_seconds), name
            wasted = sum(attempt.cost.wasted_core_seconds for attempt in story.attempts)
            assert wasted == pytest.approx(story.record.wasted_core_seconds), name
    assert planted["ready"].attempts == planted["ready"].launches == []

    level_1 = planted["level 1"]
    assert [(each.level, each.outcome, each.folder) for each in level_1.attempts] == [
        (0, "SCF_NOT_CONVERGED", "attempt_0"),
        (1, "CONVERGED", "."),
    ]
    assert level_1.attempts[1].changes == {"mixing_beta": [0.7, 0.3], "mixing_mode": ["local-TF", "plain"]}
    assert (len(level_1.attempts[0].scf_accuracy), level_1.attempts[0].conv_thr) == (80, 8e-9)
    assert level_1.result is not None
    assert level_1.label is not None
    assert (level_1.label.quality, level_1.label.level) == ("exact", 1)
    assert level_1.launches[0].outcome == "label at level 1, 2 runs"

    stages = [each.stage for each in planted["level 3"].attempts][-3:]
    assert stages == [0, 1, 2]
    starts = [each.start for each in planted["several starts"].attempts]
    assert starts == ["auto", *["Fe 0.5"] * 4]
    # Each start begins from the user's own parameters, and not from the end of the one before.
    assert planted["several starts"].attempts[1].changes == {}


def test_story_of_what_has_failed(planted: dict[str, Story]) -> None:
    failed = planted["SCF_NOT_CONVERGED"]
    assert {each.outcome for each in failed.attempts} == {"SCF_NOT_CONVERGED"}
    assert "stopped early" in str(failed.launches[0].outcome)
    assert (failed.result, failed.label) == (None, None)
    assert planted["without a word"].launches[0].outcome is not None
    assert planted["PSEUDOPOTENTIAL"].attempts == []
    softened = planted["softened"]
    assert softened.label is not None
    assert softened.label.quality == "softened"
    assert softened.attempts[-1].outcome == "CONVERGED"


def test_story_of_several_jobs(planted: dict[str, Story]) -> None:
    second = planted["second job"]
    assert (second.jobs["OUT_OF_MEMORY"], second.resources["class"]) == (1, "large")
    assert [each.outcome for each in second.attempts] == ["OUT_OF_MEMORY"]
    assert [each.state for each in planted["retried"].launches] == ["FIZZLED", "COMPLETED"]
    assert [each.outcome for each in planted["resumed"].attempts] == ["WALLTIME", "CONVERGED"]
    assert planted["linked"].launches[0].outcome == "left to Firework 9, which computed the same label"
    assert planted["reused"].launches[0].outcome == "took the label that was there"


def test_story_of_what_runs_now(planted: dict[str, Story]) -> None:
    """Its attempts are in the run folder, and the accuracies of the last one in a pw.out that grows."""
    story = planted["running"]
    assert story.folder is not None
    assert [(each.outcome, each.iterations) for each in story.attempts] == [("SCF_NOT_CONVERGED", 80), (None, 4)]
    assert story.attempts[-1].scf_accuracy == [0.075482, 0.01858409, 0.00018815]
    assert story.attempts[-1].changes == {"startingpot": [None, "file"]}
    names = [str(path.relative_to(story.folder)) for path in story.files]
    assert names == ["history.json", "pw.in", "pw.out", "attempt_0/pw.in", "attempt_0/pw.out"]
    assert (planted["running elsewhere"].folder, planted["running elsewhere"].files) == (None, [])


def test_label_that_is_damaged_is_no_result(launchpad: Any, tmp_path: Path) -> None:
    ids = plant_every_state(launchpad, tmp_path)
    launchpad.db.dft_results.update_many({}, {"$set": {"result.forces": "gone"}, "$unset": {"level": ""}})
    launchpad.launches.update_many({}, {"$set": {"fworker": None}})
    story = tell_story(launchpad, ids["level 0"])
    assert story.result is None
    assert story.attempts == []
    json.dumps(story.to_dict(), allow_nan=False)


@pytest.mark.parametrize("entry", [{}, {"parameters": None}, {"scf_accuracy": 3, "iterations": "x", "start": {}}])
def test_damaged_attempts(entry: dict[str, Any]) -> None:
    (attempt,) = attempts_of([entry])
    assert (attempt.scf_accuracy, attempt.seconds, attempt.level) == ([], None, None)


def test_structure_is_found_by_every_name(launchpad: Any, tmp_path: Path) -> None:
    ids = plant_every_state(launchpad, tmp_path)
    fw_id = ids["level 2"]
    fingerprint = tell_story(launchpad, fw_id).record.fingerprint
    for who in ("level-2", str(fw_id), fingerprint, fingerprint[:12]):
        assert find_fw_id(launchpad, who) == fw_id
    with pytest.raises(SeveralStructuresError, match=r"7 \(level-0, COMPLETED\), 15 \(reused, COMPLETED\)") as error:
        find_fw_id(launchpad, tell_story(launchpad, ids["reused"]).record.fingerprint)
    assert error.value.details["fw_ids"] == [ids["level 0"], ids["reused"]]


@pytest.mark.parametrize("who", ["nobody", "", "dft", "0", "9" * 40, "²", "-1", "a\0b", "dft\uffff", ".*", "$where"])
def test_unknown_name_is_said(launchpad: Any, who: str) -> None:
    with pytest.raises(UnknownStructureError):
        find_fw_id(launchpad, who)


def test_fingerprint_needs_eight_letters(launchpad: Any, tmp_path: Path) -> None:
    """Else `dft` would be every structure."""
    garden = Garden(launchpad, tmp_path)
    fw_id = garden.add("a", silicon(1))
    name = garden.spec(fw_id)["fingerprint"]
    assert find_fw_id(launchpad, name[:8]) == fw_id
    with pytest.raises(UnknownStructureError):
        find_fw_id(launchpad, name[:7])


def test_calculation_id_wins_over_the_number_of_a_firework(launchpad: Any, tmp_path: Path) -> None:
    garden = Garden(launchpad, tmp_path)
    garden.add("2", silicon(1))
    garden.add("other", silicon(2))
    assert find_fw_id(launchpad, "2") == 1


def test_unknown_firework_has_no_story(launchpad: Any) -> None:
    from fireworks import Firework, ScriptTask

    launchpad.add_wf(Firework(ScriptTask.from_str("true")))
    for fw_id in (1, 2, -5):
        with pytest.raises(UnknownStructureError):
            tell_story(launchpad, fw_id)


@pytest.mark.pw
def test_story_of_a_real_calculation(launchpad: Any, config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> None:
    """The first attempt may not converge in four iterations; it is continued from its density."""
    short = config.model_copy(update={"electron_maxstep": 4})
    submit(make_database(tmp_path / "c.db", si_atoms), short, launchpad)
    rlaunch(launchpad, tmp_path / "block", WorkerConfig(pw_command=["pw.x"], parallel_cores=1))
    story = tell_story(launchpad, find_fw_id(launchpad, "a"))
    assert story.record.state == "COMPLETED", story.record.reason
    assert story.result is not None
    first, last = story.attempts[0], story.attempts[-1]
    assert (first.outcome, last.outcome) == ("SCF_NOT_CONVERGED", "CONVERGED")
    assert last.changes["startingpot"] == [None, "file"]
    assert (len(first.scf_accuracy), first.iterations) == (4, 4)
    assert last.scf_accuracy == list(story.result.scf_accuracy)
    assert last.scf_accuracy[-1] <= story.result.conv_thr
    # Nothing was in vain: each attempt went on from the one before.
    assert story.record.wasted_core_seconds == 0
    assert story.record.core_seconds == pytest.approx(cost_of(story.result.history).core_seconds, abs=0.01)
    assert story.record.core_seconds > 0
    assert story.folder is not None
    assert {path.name for path in story.files} >= {"pw.in", "pw.out", "label.json", "history.json"}
    assert (story.record.max_force, story.record.energy) == (story.result.max_force, story.result.energy)
