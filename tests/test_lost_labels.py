"""`dftfactory recover`: labels on the disk reach the LaunchPad, and their Fireworks are COMPLETED."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from queue_helpers import label_for, make_database, rlaunch, shifted, specs, states, statuses

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import LaunchPadError
from dftfactory.labels import write_label
from dftfactory.lost_labels import recover_labels
from dftfactory.pipeline import submit, sync
from dftfactory.store import LabelStore

pytestmark = pytest.mark.mongodb


@pytest.fixture
def queued(launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> Any:
    """Three structures in the LaunchPad, a, b and c."""
    db = make_database(tmp_path / "c.db", *(shifted(si_atoms, 0.1 * n) for n in range(3)))
    submit(db, fake_config, launchpad)
    return db


def launch(launchpad: Any, folder: Path, name: str, state: str = "RUNNING") -> Path:
    """Check a Firework out as a rocket does, and leave it in this state; the folder is that of the launch."""
    from fireworks import FWAction, FWorker

    folder.mkdir(parents=True)
    fw_id = launchpad.fireworks.find_one({"spec.calculation_id": name})["fw_id"]
    _, launch_id = launchpad.checkout_fw(FWorker(), str(folder), fw_id=fw_id)
    if state != "RUNNING":
        launchpad.complete_launch(launch_id, FWAction(), state)
    return folder


def state_of(launchpad: Any, name: str) -> str:
    return str(launchpad.fireworks.find_one({"spec.calculation_id": name})["state"])


@pytest.mark.parametrize("state", ["RUNNING", "FIZZLED"])
def test_a_label_on_the_disk_completes_its_firework(state: str, launchpad: Any, queued: Any, tmp_path: Path) -> None:
    """The database was away for longer than RunDFT waits: FIZZLED where FireWorks could still say so."""
    folder = launch(launchpad, tmp_path / "launch", "a", state)
    write_label(folder, label_for(specs(launchpad)["a"], energy=-7.5))
    summary = recover_labels(launchpad, [tmp_path])
    assert (summary.found, summary.stored, summary.completed, summary.problems) == (1, 1, 1, [])
    assert state_of(launchpad, "a") == "COMPLETED"
    sync(queued, launchpad)
    assert queued.get(calculation_id="a").energy == -7.5
    stored = launchpad.launches.find_one({"launch_dir": str(folder)})["action"]["stored_data"]
    assert (stored["energy"], stored["run_dir"], stored["recovered"]) == (-7.5, str(folder), True)


def test_repeated_it_finds_everything_done(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    folder = launch(launchpad, tmp_path / "launch", "a")
    write_label(folder, label_for(specs(launchpad)["a"]))
    recover_labels(launchpad, [tmp_path])
    again = recover_labels(launchpad, [tmp_path])
    assert (again.found, again.stored, again.completed) == (1, 0, 0)
    assert len(list(LabelStore(launchpad).all())) == 1


def test_without_a_folder_it_looks_where_fireworks_without_a_label_have_run(
    launchpad: Any, queued: Any, tmp_path: Path
) -> None:
    """Also those that are COMPLETED: a rocket in offline mode has no label store."""
    for name, state in (("a", "RUNNING"), ("b", "COMPLETED")):
        folder = launch(launchpad, tmp_path / f"launch_{name}", name, state) / name
        folder.mkdir()
        write_label(folder, label_for(specs(launchpad)[name]))
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    write_label(unknown, label_for(specs(launchpad)["c"]))
    summary = recover_labels(launchpad)
    assert (summary.found, summary.stored, summary.completed) == (2, 2, 1)
    assert {label["calculation_id"] for label in LabelStore(launchpad).all()} == {"a", "b"}


def test_a_firework_that_has_not_run_finds_its_label_by_itself(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    (tmp_path / "copied").mkdir()
    write_label(tmp_path / "copied", label_for(specs(launchpad)["a"]))
    assert recover_labels(launchpad, [tmp_path]).completed == 0
    assert state_of(launchpad, "a") == "READY"
    rlaunch(launchpad, tmp_path / "rocket", WorkerConfig(pw_command="/nonexistent/pw.x"), "singleshot", "-f", "1")
    assert states(launchpad)[1] == "COMPLETED"


def test_a_label_that_nobody_has_queued_is_stored(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    """The LaunchPad was lost, and a new one is filled from the disk."""
    label = label_for(specs(launchpad)["a"])
    launchpad.fireworks.delete_many({})
    (tmp_path / "old").mkdir()
    write_label(tmp_path / "old", label)
    assert recover_labels(launchpad, [tmp_path]).stored == 1
    assert LabelStore(launchpad).get(label["fingerprint"]) == label


def test_what_cannot_be_right_is_named_and_the_others_are_stored(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    labels = {name: label_for(spec) for name, spec in specs(launchpad).items()}
    labels["a"]["result"]["positions"][0][0] += 0.01
    labels["b"]["result"]["energy"] = None
    for name, label in labels.items():
        write_label(launch(launchpad, tmp_path / name, name), label)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "label.json").write_text(json.dumps(labels["c"])[:-100])
    summary = recover_labels(launchpad, [tmp_path])
    assert (summary.stored, summary.completed) == (1, 1)
    [other, damaged, cut] = (next(p for p in summary.problems if f"/{name}/" in p) for name in ("a", "b", "cut"))
    assert "its result is that of other atoms than its fingerprint names" in other
    assert "is damaged" in damaged
    assert "is damaged" in cut
    assert {name: state_of(launchpad, name) for name in "abc"} == {"a": "RUNNING", "b": "RUNNING", "c": "COMPLETED"}


def test_an_older_label_does_not_answer_a_forced_submit(
    launchpad: Any, queued: Any, fake_config: DFTConfig, tmp_path: Path
) -> None:
    label = label_for(specs(launchpad)["a"])
    write_label(launch(launchpad, tmp_path / "launch", "a", "COMPLETED"), label)
    LabelStore(launchpad).put(label)
    queued.update(1, status="SELECTED")
    assert submit(queued, fake_config, launchpad, force=True).rerun == 1
    [problem] = recover_labels(launchpad, [tmp_path]).problems
    assert "an older label than the one that `submit --force` has asked for" in problem
    assert LabelStore(launchpad).get(label["fingerprint"]) is None


def test_a_softened_label_is_stored_and_its_firework_fails(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    folder = launch(launchpad, tmp_path / "launch", "a")
    write_label(folder, label_for(specs(launchpad)["a"], quality="softened"))
    summary = recover_labels(launchpad, [tmp_path])
    assert (summary.stored, summary.completed) == (1, 0)
    assert state_of(launchpad, "a") == "FIZZLED"
    sync(queued, launchpad)
    assert statuses(queued)["a"] == "FAILED"
    assert "degauss = 0.03 Ry only" in queued.get(calculation_id="a").reason


def test_a_folder_that_is_not_there_is_an_error(launchpad: Any, tmp_path: Path) -> None:
    with pytest.raises(LaunchPadError, match="nowhere is no folder; give the one in which the rockets ran"):
        recover_labels(launchpad, [tmp_path / "nowhere"])


def test_a_fizzled_firework_whose_label_is_stored_is_completed(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    """Somebody else has computed it, or FireWorks failed after the label was stored."""
    launch(launchpad, tmp_path / "a", "a", "FIZZLED")
    launch(launchpad, tmp_path / "b", "b", "FIZZLED")
    LabelStore(launchpad).put(label_for(specs(launchpad)["a"]))
    LabelStore(launchpad).put(label_for(specs(launchpad)["b"], quality="softened"))
    assert recover_labels(launchpad).completed == 1
    assert {name: state_of(launchpad, name) for name in "ab"} == {"a": "COMPLETED", "b": "FIZZLED"}


def test_of_twins_that_were_forced_once_none_takes_the_old_label(
    launchpad: Any, queued: Any, tmp_path: Path, fake_config: DFTConfig
) -> None:
    """Two Fireworks of one fingerprint, of which `submit --force` has marked one."""
    spec = specs(launchpad)["a"]
    folder = launch(launchpad, tmp_path / "old", "a", "FIZZLED")
    write_label(folder, label_for(spec, energy=-1.0))
    launchpad.fireworks.update_one({"spec.calculation_id": "b"}, {"$set": {"spec": {**spec, "force": "wish"}}})
    [problem] = recover_labels(launchpad, [tmp_path]).problems
    assert "an older label" in problem
    new = {**label_for(spec, energy=-2.0), "force": "wish"}
    LabelStore(launchpad).put(label_for(spec, energy=-1.0))
    (tmp_path / "new").mkdir()
    write_label(tmp_path / "new", new)
    recover_labels(launchpad, [tmp_path / "new"])
    assert LabelStore(launchpad).get(spec["fingerprint"]) == new
    assert launchpad.db["dft_results_put_aside"].find_one()["result"]["energy"] == -1.0


def test_a_folder_that_cannot_be_read_is_named(launchpad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(top: Path, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", str(top / "secret")))
        return iter(())

    monkeypatch.setattr("dftfactory.lost_labels.os.walk", unreadable)
    [problem] = recover_labels(launchpad, [tmp_path]).problems
    assert "Permission denied" in problem
    assert "secret" in problem


def test_an_odd_firework_keeps_no_label_from_the_others(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    """Its specification is one of another version; once with the label on the disk, once in the store."""
    for name in "abc":
        folder = launch(launchpad, tmp_path / name, name, "FIZZLED")
        if name == "c":
            LabelStore(launchpad).put(label_for(specs(launchpad)[name]))
        else:
            write_label(folder, label_for(specs(launchpad)[name]))
    for name in "ac":
        launchpad.fireworks.update_one({"spec.calculation_id": name}, {"$set": {"spec.config.of_the_future": 1}})
    summary = recover_labels(launchpad, [tmp_path])
    assert (summary.stored, summary.completed) == (2, 1)
    [problem] = summary.problems
    assert "a/label.json: its Firework is odd (DFTConfig: of_the_f" in problem
    assert {name: state_of(launchpad, name) for name in "abc"} == {"a": "FIZZLED", "b": "COMPLETED", "c": "FIZZLED"}


def test_a_firework_without_a_wish_is_served_by_a_forced_label(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    """Its twin was asked for by `submit --force`, and has computed it."""
    launch(launchpad, tmp_path / "a", "a", "FIZZLED")
    LabelStore(launchpad).put({**label_for(specs(launchpad)["a"]), "force": "wish"})
    assert recover_labels(launchpad, [tmp_path]).completed == 1
    assert state_of(launchpad, "a") == "COMPLETED"
