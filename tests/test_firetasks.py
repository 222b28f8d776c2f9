"""RunDFT as a rocket runs it: label on disk, then in the store; every failure readable in the launch record."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import bson
import pytest
from ase import Atoms
from queue_helpers import (
    label_for,
    make_database,
    rlaunch,
    rows,
    shifted,
    specs,
    start_rlaunch,
    states,
    statuses,
    write_launchpad_file,
)

from dftfactory import firetasks
from dftfactory.claims import Claims, make_claim
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import (
    CalculationError,
    ClaimedError,
    ConfigError,
    LaunchPadAwayError,
    PseudopotentialError,
    StructureError,
)
from dftfactory.export import export_labels
from dftfactory.firetasks import RunDFT
from dftfactory.labels import structure_to_dict, write_label
from dftfactory.launch_folders import claim_folder, find_unfinished
from dftfactory.lost_labels import recover_labels
from dftfactory.pipeline import submit, sync, write_workflows
from dftfactory.pseudos import load_pseudopotentials
from dftfactory.runner import QERunner
from dftfactory.sessions import start_of
from dftfactory.specification import Specification
from dftfactory.store import LabelStore
from dftfactory.workflows import make_spec

FakePw = Callable[..., WorkerConfig]


@pytest.fixture
def spec(si_atoms: Atoms, fake_config: DFTConfig) -> dict[str, Any]:
    """The specification of a Firework as it comes out of a file, with a worker that has no pw.x."""
    folder = Path(fake_config.pseudopotential_dir or "")
    pseudopotentials = load_pseudopotentials(["Si"], folder, fake_config.pseudopotentials)
    values = make_spec(si_atoms, "si", fake_config, pseudopotentials)
    return {**json.loads(json.dumps(values)), "_fw_env": {"pw_command": "/nonexistent/pw.x"}}


def last_launch(launchpad: Any, fw_id: int = 1) -> dict[str, Any]:
    launches = launchpad.fireworks.find_one({"fw_id": fw_id})["launches"]
    return dict(launchpad.launches.find_one({"launch_id": launches[-1]}))


# Specifications that are not the ones that were submitted


@pytest.mark.parametrize("key", ["calculation_id", "fingerprint", "config", "pseudopotentials", "structure"])
def test_missing_key_is_named(spec: dict[str, Any], key: str) -> None:
    del spec[key]
    with pytest.raises(ConfigError, match=f"damaged: KeyError.'{key}'.; submit it again"):
        RunDFT().run_task(spec)


def test_structure_that_was_changed_is_refused(spec: dict[str, Any], si_atoms: Atoms) -> None:
    """The label would be stored under the name of another structure."""
    spec["structure"] = structure_to_dict(shifted(si_atoms, 0.001))
    with pytest.raises(ConfigError, match="it was changed after it was submitted; submit it again"):
        RunDFT().run_task(spec)


def test_label_parameter_that_was_changed_is_refused(spec: dict[str, Any]) -> None:
    spec["config"]["ecutwfc"] = 10.0
    with pytest.raises(ConfigError, match="it was changed after it was submitted"):
        RunDFT().run_task(spec)


def test_damaged_structure_and_configuration_are_named(spec: dict[str, Any]) -> None:
    with pytest.raises(StructureError, match="the structure of the specification is damaged"):
        RunDFT().run_task({**spec, "structure": {**spec["structure"], "positions": [[0, 0, 0]]}})
    with pytest.raises(ConfigError, match="ecutwfc = -1"):
        RunDFT().run_task({**spec, "config": {**spec["config"], "ecutwfc": -1}})


def test_element_without_pseudopotential_is_named(spec: dict[str, Any]) -> None:
    spec["structure"]["symbols"] = ["Si", "Ge"]
    with pytest.raises(ConfigError, match="pseudopotential of Ge"):
        RunDFT().run_task(spec)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a/b", "", "x\ny", "2026-01-01 12:00:00"])  # noqa: S108
def test_calculation_id_that_leaves_its_folder_is_refused(spec: dict[str, Any], name: str) -> None:
    """Whoever can write to the LaunchPad must not choose where on the disk a calculation writes."""
    spec["calculation_id"] = name
    with pytest.raises(ConfigError, match="not fit for the name of a folder"):
        RunDFT().run_task(spec)


@pytest.mark.parametrize("file", ["/etc/passwd", "../x", "a/../../x", ".."])
def test_pseudopotential_outside_of_its_folder_is_refused(
    spec: dict[str, Any], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec["pseudopotentials"]["Si"]["file"] = file
    with pytest.raises(PseudopotentialError, match="must be a bare file name"):
        RunDFT().run_task(spec)


def test_pseudopotential_of_another_content_is_refused(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node, another version of the file of the same name: the labels would not fit together."""
    monkeypatch.chdir(tmp_path)
    file = Path(spec["config"]["pseudopotential_dir"]) / "Si.pz-vbc.UPF"
    file.write_text(file.read_text().replace("Author", "author"))
    with pytest.raises(PseudopotentialError, match=r"expected .*: use the same file on every node"):
        RunDFT().run_task(spec)


def test_settings_of_the_worker_that_cannot_be_used(spec: dict[str, Any]) -> None:
    spec["_fw_env"] = {"pw_comand": "pw.x", "npool": 0}
    with pytest.raises(ConfigError, match=r"`env` of this worker's my_fworker\.yaml.*did you mean pw_command") as error:
        RunDFT().run_task(spec)
    assert {problem["key"] for problem in error.value.to_dict()["problems"]} == {"pw_comand", "npool"}


def test_each_calculation_claims_a_folder_of_its_own(spec: dict[str, Any], tmp_path: Path) -> None:
    """Eight at once in one folder, and one more where a calculation without a claim is."""
    start = threading.Barrier(8)
    launch_dir = tmp_path / "run"
    launch_dir.mkdir()

    def claim(_: int) -> Path:
        start.wait()
        return claim_folder(launch_dir, Specification(spec), 1)

    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(claim, range(8)))
    assert sorted(folders) == sorted([launch_dir, launch_dir / "si", *(launch_dir / f"si_{n}" for n in range(1, 7))])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "history.json").write_text("{}")
    assert claim_folder(tmp_path / "other", Specification(spec), 1) == tmp_path / "other" / "si"
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "pw.in").write_text("a calculation of the user's own")
    assert claim_folder(tmp_path / "users", Specification(spec), 1) == tmp_path / "users" / "si"


# Rockets with the stand-in pw.x


@pytest.fixture
def queued(launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> Any:
    """One candidate `a` in the queue: the structure that the stand-in pw.x has recorded runs of."""
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config, launchpad)
    return db


@pytest.mark.mongodb
def test_label_is_on_disk_in_the_store_and_in_the_launch(
    launchpad: Any, queued: Any, fake_pw: FakePw, scf_diverged: Path, tmp_path: Path
) -> None:
    worker = fake_pw(scf_diverged, "converged")
    printed = rlaunch(launchpad, tmp_path / "run", worker)
    assert states(launchpad) == {1: "COMPLETED"}, printed
    on_disk = json.loads((tmp_path / "run" / "label.json").read_text())
    assert LabelStore(launchpad).get(rows(queued)["a"].fingerprint) == on_disk
    stored = last_launch(launchpad)["action"]["stored_data"]
    assert stored["calculation_id"] == "a"
    assert (stored["level"], stored["quality"], stored["runs"]) == (1, "exact", 2)
    assert stored["energy"] == on_disk["result"]["energy"]
    assert stored["run_dir"] == str(tmp_path / "run")
    assert list((tmp_path / "run").glob("**/*wfc*")) == []


@pytest.mark.mongodb
def test_failure_is_readable_in_the_launch_record(launchpad: Any, queued: Any, fake_pw: FakePw, tmp_path: Path) -> None:
    """Plain values that MongoDB, JSON and the web GUI take, and the whole history among them."""
    rlaunch(launchpad, tmp_path / "run", fake_pw("out_of_memory"))
    assert states(launchpad) == {1: "FIZZLED"}
    exception = last_launch(launchpad)["action"]["stored_data"]["_exception"]
    details = exception["_details"]
    assert json.loads(json.dumps(details)) == details
    assert bson.decode(bson.encode(details)) == details
    assert (details["error"], details["failure"], details["level"]) == ("CalculationError", "OUT_OF_MEMORY", 0)
    assert all("outcome" in attempt and attempt["evidence"] in details["message"] for attempt in details["history"])
    assert "Error allocating" in details["evidence"]
    assert "memory ran out" in details["explanation"]
    # Twice what this node has is more than the estimate of 2.76 MB.
    assert details["request"]["memory_mb"] > 100
    assert details["history"][-1]["request"] == details["request"]
    assert details["message"] in exception["_stacktrace"]
    assert not (tmp_path / "run" / "label.json").exists()
    sync(queued, launchpad)
    row = rows(queued)["a"]
    assert (row.status, row.failure, row.level) == ("FAILED", "OUT_OF_MEMORY", 0)
    assert (row.evidence, row.explanation) == (details["evidence"], details["explanation"])


@pytest.mark.mongodb
def test_softened_label_is_kept_and_the_firework_fizzles(
    launchpad: Any, fake_config: DFTConfig, queued: Any, fake_pw: FakePw, tmp_path: Path
) -> None:
    # Every level and the last stage are continued once.
    worker = fake_pw(*["scf_still"] * 6, "anneal_hot", "anneal_warm", *["scf_still"] * 2, "softened")
    printed = rlaunch(launchpad, tmp_path / "run", worker)
    assert states(launchpad) == {1: "FIZZLED"}, printed
    label = LabelStore(launchpad).get(rows(queued)["a"].fingerprint)
    assert label is not None
    assert (label["quality"], label["level"]) == ("softened", 3)
    details = last_launch(launchpad)["action"]["stored_data"]["_exception"]["_details"]
    assert (details["failure"], details["quality"]) == ("SCF_NOT_CONVERGED", "softened")
    assert all(details[name] for name in ("evidence", "explanation", "history"))
    assert "asked for" in details["message"]


@pytest.mark.mongodb
def test_several_starts_are_one_firework_and_one_label(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, scf_diverged: Path, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config.model_copy(update={"magnetism": ["auto", {"Si": 1.0}]}), launchpad)
    printed = rlaunch(launchpad, tmp_path / "run", fake_pw(scf_diverged, "converged"))
    assert states(launchpad) == {1: "COMPLETED"}, printed
    label = json.loads((tmp_path / "run" / "label.json").read_text())
    assert LabelStore(launchpad).get(rows(db)["a"].fingerprint) == label
    assert [state["start"] for state in label["result"]["states"]] == ["auto", "Si 1"]
    stored = last_launch(launchpad)["action"]["stored_data"]
    assert (stored["runs"], stored["states"]) == (3, label["result"]["states"])
    assert "reached at level 1" in stored["state_warning"]
    assert sync(db, launchpad).completed == 1
    assert rows(db)["a"].state_warning == stored["state_warning"]
    export_labels(LabelStore(launchpad).all(), tmp_path / "train.extxyz")
    assert ase.io.read(tmp_path / "train.extxyz").info["state_warning"] == stored["state_warning"]


@pytest.mark.mongodb
def test_starts_that_all_fail_are_all_in_the_launch_record(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config.model_copy(update={"magnetism": ["auto", {"Si": 1.0}], "ladder": []}), launchpad)
    rlaunch(launchpad, tmp_path / "run", fake_pw("scf_still"))
    details = last_launch(launchpad)["action"]["stored_data"]["_exception"]["_details"]
    assert bson.decode(bson.encode(details)) == details
    assert [state["outcome"] for state in details["states"]] == ["SCF_NOT_CONVERGED"] * 2
    sync(db, launchpad)
    assert "from auto: SCF_NOT_CONVERGED" in rows(db)["a"].evidence
    assert not (tmp_path / "run" / "label.json").exists()


@pytest.mark.mongodb
def test_label_of_the_same_fingerprint_is_reused_without_a_run(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    """`lpad add` of the same file twice; the worker has no pw.x, so that a run would fail."""
    LabelStore(launchpad).put(label_for(specs(launchpad)["a"]))
    rlaunch(launchpad, tmp_path / "run", {"pw_command": "/nonexistent/pw.x"})
    assert states(launchpad) == {1: "COMPLETED"}
    stored = last_launch(launchpad)["action"]["stored_data"]
    assert stored["reused"] is True
    assert stored["energy"] == -215.0


@pytest.mark.mongodb
@pytest.mark.parametrize("place", [".", "a", "a_1"])
def test_label_on_disk_that_was_never_stored_is_picked_up(
    launchpad: Any, queued: Any, tmp_path: Path, place: str
) -> None:
    """The database was away at the end of the last launch: nothing finished is computed again."""
    for name in ("a", "a_1"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / place / "label.json").write_text(json.dumps(label_for(specs(launchpad)["a"])))
    rlaunch(launchpad, tmp_path / "run", {"pw_command": "/nonexistent/pw.x"})
    assert states(launchpad) == {1: "COMPLETED"}
    assert sync(queued, launchpad).completed == 1
    assert rows(queued)["a"].energy == -215.0


@pytest.mark.mongodb
def test_label_of_an_earlier_launch_is_found_from_a_new_folder(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    """`rlaunch rapidfire` makes a folder for each launch; the one of the launch that was lost holds the label."""
    rlaunch(launchpad, tmp_path / "first", {"pw_command": "/nonexistent/pw.x"})
    assert states(launchpad) == {1: "FIZZLED"}
    (tmp_path / "first" / "label.json").write_text(json.dumps(label_for(specs(launchpad)["a"])))
    launchpad.rerun_fw(1)
    rlaunch(launchpad, tmp_path / "second", {"pw_command": "/nonexistent/pw.x"})
    assert states(launchpad) == {1: "COMPLETED"}
    assert sync(queued, launchpad).completed == 1


@pytest.mark.mongodb
def test_a_calculation_whose_time_was_over_goes_on_in_its_folder(
    launchpad: Any, fake_pw: FakePw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queued: Any
) -> None:
    """The queue's time was over in the middle of the SCF; the next launch has a folder of its own."""
    times = iter([1000.0, 70.0])
    monkeypatch.setattr("dftfactory.jobs.seconds_left", lambda: next(times, None))
    spec = {**specs(launchpad)["a"], "_fw_env": fake_pw("max_seconds", "converged").to_dict()}
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    task = RunDFT()
    task.launchpad, task.fw_id = launchpad, 1
    monkeypatch.chdir(first)
    ended: list[int] = []
    monkeypatch.setattr(firetasks, "_exit", ended.append)
    with pytest.raises(CalculationError, match="WALLTIME"):
        task.run_task(spec)
    # The rocket, too: it would take the next Firework in a job that is over.
    assert ended == [0]
    assert specs(launchpad)["a"]["jobs"] == {"WALLTIME": 1, "IDLE": 0}
    launchpad.launches.insert_one({"launch_id": 1, "fw_id": 1, "launch_dir": str(first)})
    monkeypatch.chdir(second)
    action = task.run_task(spec)
    assert Path(action.stored_data["run_dir"]) == first
    assert action.stored_data["quality"] == "exact"
    assert "restart_mode" in (first / "pw.in").read_text()
    outcomes = [attempt["outcome"] for attempt in json.loads((first / "history.json").read_text())["attempts"]]
    assert outcomes == ["WALLTIME", "WALLTIME", "CONVERGED"]
    assert list(second.iterdir()) == []


@pytest.mark.parametrize("other", ["moments", "pbc", "positions", "magnetism", None])
def test_the_state_of_another_calculation_of_the_same_name_is_left_alone(
    other: str | None, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its label would be stored under a fingerprint that does not belong to it."""
    monkeypatch.setattr("dftfactory.jobs.seconds_left", lambda: 1.0)
    with pytest.raises(CalculationError, match="WALLTIME"):
        QERunner(fake_config, fake_pw("converged")).run(si_atoms, tmp_path / "a", "a")
    pseudopotentials = load_pseudopotentials({"Si"}, Path(str(fake_config.pseudopotential_dir)), {})
    if other == "moments":
        si_atoms.set_initial_magnetic_moments([1.0, 0.0])
    elif other == "pbc":
        si_atoms.pbc = (True, True, False)
    elif other == "positions":
        si_atoms.positions[0] += 0.01
    config = fake_config.model_copy(update={"magnetism": "none"} if other == "magnetism" else {})
    spec = Specification(make_spec(si_atoms, "a", config, pseudopotentials))
    assert find_unfinished([tmp_path], spec) == (tmp_path / "a" if other is None else None)


@pytest.mark.mongodb
def test_label_that_cannot_be_written_is_stored_all_the_same(
    launchpad: Any, queued: Any, fake_pw: FakePw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full by the end of the run."""

    def full(run_dir: Path, label: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(firetasks, "write_label", full)
    task, spec = RunDFT(), specs(launchpad)["a"]
    task.launchpad, task.fw_id = launchpad, 1
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    action = task.run_task({**spec, "_fw_env": fake_pw("converged").to_dict()})
    assert action.stored_data["quality"] == "exact"
    assert LabelStore(launchpad).get(spec["fingerprint"]) is not None


@pytest.mark.mongodb
def test_label_of_another_calculation_in_the_folder_is_not_taken(
    launchpad: Any, queued: Any, fake_pw: FakePw, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    other = {**label_for(specs(launchpad)["a"]), "fingerprint": "dft0"}
    (tmp_path / "run" / "label.json").write_text(json.dumps(other))
    (tmp_path / "run" / "history.json").write_text("{}")
    rlaunch(launchpad, tmp_path / "run", fake_pw("converged"))
    assert states(launchpad) == {1: "COMPLETED"}
    assert json.loads((tmp_path / "run" / "label.json").read_text()) == other
    assert (tmp_path / "run" / "a" / "label.json").is_file()


@pytest.mark.mongodb
def test_rockets_in_one_folder_do_not_meet(
    launchpad: Any, queued: Any, fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, tmp_path: Path
) -> None:
    """`rlaunch singleshot` launches where it is called, two at once and a third one later."""
    third = make_database(tmp_path / "d.db", si_atoms, shifted(si_atoms, 0.1), calculation_id="x")
    third.update(2, calculation_id="y")
    submit(third, fake_config.model_copy(update={"ecutwfc": 20.0}), launchpad)
    worker = fake_pw("killed")
    rockets = [start_rlaunch(launchpad, tmp_path / "run", worker, "singleshot") for _ in range(2)]
    for rocket in rockets:
        rocket.communicate(timeout=60)
    rlaunch(launchpad, tmp_path / "run", worker)
    assert states(launchpad) == {1: "FIZZLED", 2: "FIZZLED", 3: "FIZZLED"}
    paths = [path for path in (tmp_path / "run").glob("**/history.json") if not path.parent.name.startswith("attempt")]
    histories = [json.loads(path.read_text()) for path in paths]
    assert sorted(history["calculation_id"] for history in histories) == ["a", "x", "y"]
    details = [last_launch(launchpad, n)["action"]["stored_data"]["_exception"]["_details"] for n in (1, 2, 3)]
    assert [entry["failure"] for entry in details] == ["KILLED"] * 3
    assert len({entry["run_dir"] for entry in details}) == 3


@pytest.mark.mongodb
def test_bad_env_of_the_worker_fizzles_with_a_clear_reason(launchpad: Any, queued: Any, tmp_path: Path) -> None:
    rlaunch(launchpad, tmp_path / "run", {"pw_comand": "pw.x"})
    sync(queued, launchpad)
    row = rows(queued)["a"]
    assert (row.status, row.failure) == ("FAILED", "ConfigError")
    assert "did you mean pw_command?" in row.reason


@pytest.mark.mongodb
def test_settings_of_the_worker_decide_how_pw_is_started(
    launchpad: Any, queued: Any, fake_pw: FakePw, tmp_path: Path
) -> None:
    launcher = tmp_path / "launcher"
    launcher.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nshift\nexec "$@"\n')
    launcher.chmod(0o755)
    (tmp_path / "scratch").mkdir()
    worker = fake_pw("converged", mpi_command=f"{launcher} {{cores}}", scratch_dir=str(tmp_path / "scratch"))
    rlaunch(launchpad, tmp_path / "run", {**worker.to_dict(), "parallel_cores": 4, "npool": 2})
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith(f"4 {tmp_path}/fake_pw/pw.x -nk 2 ")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.mongodb
def test_lpad_add_of_a_written_file_gives_the_same_label(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, fake_pw: FakePw, tmp_path: Path
) -> None:
    """Nothing but the file: the database of candidates is on another machine, and sync finds the label."""
    db = make_database(tmp_path / "c.db", si_atoms)
    write_workflows(db, fake_config, tmp_path / "wf")
    lpad = [sys.executable, "-m", "fireworks.scripts.lpad_run", "-l", str(write_launchpad_file(launchpad, tmp_path))]
    subprocess.run([*lpad, "add", str(tmp_path / "wf" / "a.json")], check=True, capture_output=True)
    rlaunch(launchpad, tmp_path / "run", fake_pw("converged"), "rapidfire")
    assert sync(db, launchpad).completed == 1
    label = LabelStore(launchpad).get(rows(db)["a"].fingerprint)
    assert label is not None
    assert rows(db)["a"].energy == label["result"]["energy"]


@pytest.mark.mongodb
def test_rocket_without_dftfactory_leaves_a_hint(
    launchpad: Any, queued: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FireWorks in another environment: it cannot read the Firework, launches nothing and marks it FIZZLED."""
    (tmp_path / "empty" / "dftfactory").mkdir(parents=True)
    (tmp_path / "empty" / "dftfactory" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "empty")
    rlaunch(launchpad, tmp_path / "run", {})
    sync(queued, launchpad)
    assert "rlaunch runs where dftfactory is missing" in rows(queued)["a"].reason


# Rockets with the real pw.x


@pytest.mark.pw
@pytest.mark.mongodb
def test_h2_in_a_box_through_submit_rlaunch_and_sync(
    launchpad: Any, config: DFTConfig, h2_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", h2_atoms)
    assert submit(db, config, launchpad).added == 1
    printed = rlaunch(launchpad, tmp_path / "run", {"pw_command": "pw.x", "parallel_cores": 1}, "rapidfire")
    assert states(launchpad) == {1: "COMPLETED"}, printed
    assert sync(db, launchpad).completed == 1

    [row] = ase.db.connect(tmp_path / "c.db").select()
    assert row.status == "COMPLETED"
    assert (row.level, row.quality) == (0, "exact")
    # H2 with LDA is at -2.27 Ry; 15 Ry of cutoff and a small box leave it a few tenths of an eV above.
    assert row.energy == pytest.approx(-2.27 * 13.605693, abs=1.0)
    assert abs(row.forces.sum(axis=0)).max() < 1e-3
    assert row.forces.shape == (2, 3)
    assert row.stress.shape == (6,)
    assert not row.pbc.any()
    run_dirs = [path.parent for path in (tmp_path / "run").glob("**/label.json")]
    assert len(run_dirs) == 1
    left = [path.name for path in tmp_path.rglob("*") if "wfc" in path.name or path.name == "pwscf.save"]
    assert left == []


@pytest.mark.pw
@pytest.mark.mongodb
def test_real_worker_without_its_pseudopotential(
    launchpad: Any, config: DFTConfig, si_atoms: Atoms, tmp_path: Path, pseudo_dir: Path
) -> None:
    """`pseudopotential_dir` of the worker wins over the one of the submitting machine, and its file is another."""
    (tmp_path / "node").mkdir()
    shutil.copy(pseudo_dir / "Si.pbe-rrkj.UPF", tmp_path / "node" / "Si.pz-vbc.UPF")
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, config, launchpad)
    rlaunch(launchpad, tmp_path / "run", {"pw_command": "pw.x", "pseudopotential_dir": str(tmp_path / "node")})
    sync(db, launchpad)
    assert statuses(db) == {"a": "FAILED"}
    assert "use the same file on every node" in rows(db)["a"].reason


# Two rockets and one fingerprint, and a label that is asked for again


def run_here(
    launchpad: Any, folder: Path, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fw_id: int = 1
) -> Any:
    """What a rocket of the LaunchPad does with the task, in this process."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    task = RunDFT()
    task.launchpad, task.fw_id = launchpad, fw_id
    return task.run_task(spec).stored_data


@pytest.mark.mongodb
def test_a_second_firework_of_the_fingerprint_is_linked_while_the_first_one_runs(
    launchpad: Any, queued: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two `submit`s at once, or `lpad add` twice: no pw.x is started, and both candidates get the one label."""
    spec = {**specs(launchpad)["a"], "_fw_env": {"pw_command": "/nonexistent/pw.x"}}
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as rocket:
        claim = make_claim(spec["fingerprint"], 1, tmp_path)
        claim["owner"] |= {"pid": rocket.pid, "started": start_of(rocket.pid)}
        assert Claims(launchpad).take(claim) is None
        stored = run_here(launchpad, tmp_path / "second", spec, monkeypatch, fw_id=2)
        assert stored == {"calculation_id": "a", "fingerprint": spec["fingerprint"], "linked_to": 1}
        with pytest.raises(ClaimedError, match=f"still runs .process {rocket.pid} .* lives. and goes on"):
            run_here(launchpad, tmp_path / "again", spec, monkeypatch, fw_id=1)
        rocket.kill()
    with pytest.raises(CalculationError, match="ENVIRONMENT"):
        run_here(launchpad, tmp_path / "third", spec, monkeypatch, fw_id=2)
    assert Claims(launchpad).of_fireworks([1, 2]) == {}


@pytest.mark.mongodb
def test_a_forced_label_is_computed_although_there_is_one(
    launchpad: Any,
    queued: Any,
    fake_pw: FakePw,
    fake_config: DFTConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launches: Any,
) -> None:
    """The old one is put aside, in the store, and passed over on the disk, where the rerun would find it."""
    env = {"_fw_env": fake_pw("converged").to_dict()}
    first = run_here(launchpad, tmp_path / "first", {**specs(launchpad)["a"], **env}, monkeypatch)
    launchpad.launches.insert_one({"launch_id": 1, "fw_id": 1, "launch_dir": str(tmp_path / "first")})
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"state": "COMPLETED"}})
    queued.update(1, status="SELECTED")
    assert submit(queued, fake_config, launchpad).already_labelled == 1
    queued.update(1, status="SELECTED")
    assert submit(queued, fake_config, launchpad, force=True).rerun == 1
    assert LabelStore(launchpad).get(first["fingerprint"]) is None
    assert launchpad.db["dft_results_put_aside"].count_documents({"fingerprint": first["fingerprint"]}) == 1
    assert sync(queued, launchpad).waiting == 1
    second = run_here(launchpad, tmp_path / "second", {**specs(launchpad)["a"], **env}, monkeypatch)
    assert len(launches()) == 2
    assert "reused" not in second
    # Once more, it has been done.
    assert run_here(launchpad, tmp_path / "third", {**specs(launchpad)["a"], **env}, monkeypatch)["reused"]
    assert len(launches()) == 2


@pytest.mark.mongodb
def test_a_forced_firework_of_a_file_puts_the_label_aside_itself(
    launchpad: Any, queued: Any, fake_pw: FakePw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launches: Any
) -> None:
    """`submit --write --force` and `lpad add`: nobody else has touched the store."""
    spec = specs(launchpad)["a"]
    LabelStore(launchpad).put(label_for(spec, energy=-1.0))
    env = {"_fw_env": fake_pw("converged").to_dict()}
    run_here(launchpad, tmp_path / "first", {**spec, **env, "force": "wish"}, monkeypatch)
    [label] = LabelStore(launchpad).find([spec["fingerprint"]])
    assert (label["force"], label["result"]["energy"] < -100) == ("wish", True)
    assert launchpad.db["dft_results_put_aside"].find_one()["result"]["energy"] == -1.0


@pytest.mark.mongodb
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_ends_the_rocket_and_not_one_firework_after_the_other(
    number: int,
    launchpad: Any,
    queued: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Any other trouble with the folder is the trouble of one Firework."""
    from fireworks import FWorker

    died = []
    monkeypatch.setattr(firetasks, "_die_of", died.append)

    def no_room(*_: Any) -> Path:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(firetasks, "claim_folder", no_room)
    spec = {**specs(launchpad)["a"], "_fw_env": {"pw_command": "/nonexistent/pw.x"}}
    launchpad.checkout_fw(FWorker(), str(tmp_path), fw_id=1)
    with pytest.raises(OSError, match=os.strerror(number)):
        run_here(launchpad, tmp_path / "run", spec, monkeypatch)
    is_full = number != errno.EACCES
    assert died == ([signal.SIGTERM] if is_full else [])
    assert states(launchpad)[1] == ("READY" if is_full else "RUNNING")
    assert Claims(launchpad).all() == []
    assert ("Firework 1 is READY again, and this rocket ends" in capsys.readouterr().out) is is_full


@pytest.mark.mongodb
def test_a_softened_structure_can_be_tried_again(
    launchpad: Any, queued: Any, fake_pw: FakePw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launches: Any
) -> None:
    """Its label lies in the folder of the first launch; `submit` says that it is set to run again, and it is."""
    spec = {**specs(launchpad)["a"], "_fw_env": fake_pw("converged").to_dict()}
    softened = label_for(specs(launchpad)["a"], quality="softened")
    (tmp_path / "first").mkdir()
    write_label(tmp_path / "first", softened)
    launchpad.launches.insert_one({"launch_id": 1, "fw_id": 1, "launch_dir": str(tmp_path / "first")})
    # It could not be stored: that is done first, without computing.
    with pytest.raises(CalculationError, match=r"0\.03 Ry only"):
        run_here(launchpad, tmp_path / "second", spec, monkeypatch)
    assert launches() == []
    assert LabelStore(launchpad).get(spec["fingerprint"]) == softened
    assert run_here(launchpad, tmp_path / "third", spec, monkeypatch)["quality"] == "exact"
    assert len(launches()) == 1


@pytest.mark.mongodb
def test_a_failure_waits_for_the_database_too(
    launchpad: Any, queued: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FireWorks would drop it, and the whole failing calculation be paid again."""
    tries = []

    def give_back(self: Claims, claim: dict[str, Any]) -> bool:
        tries.append(claim["fw_id"])
        if len(tries) < 3:
            raise LaunchPadAwayError("it does not answer")
        return True

    monkeypatch.setattr(Claims, "give_back", give_back)
    monkeypatch.setattr("dftfactory.patience.SHORTEST_PAUSE", 0.01)
    spec = {**specs(launchpad)["a"], "_fw_env": {"pw_command": "/nonexistent/pw.x"}}
    with pytest.raises(CalculationError, match="ENVIRONMENT"):
        run_here(launchpad, tmp_path / "run", spec, monkeypatch)
    assert tries == [1, 1, 1]


@pytest.mark.mongodb
def test_a_label_for_which_there_was_no_room_is_written_when_the_database_stays_away(
    launchpad: Any, queued: Any, fake_pw: FakePw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the rocket waited, somebody has made room."""
    really_write, tries = firetasks.write_label, []

    def full_at_first(run_dir: Path, label: dict[str, Any]) -> Path:
        tries.append(run_dir)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really_write(run_dir, label)

    def away(self: LabelStore, label: dict[str, Any]) -> None:
        raise LaunchPadAwayError("it does not answer")

    monkeypatch.setattr(firetasks, "write_label", full_at_first)
    monkeypatch.setattr(LabelStore, "put", away)
    spec = {**specs(launchpad)["a"], "_fw_env": fake_pw("converged", database_seconds=0).to_dict()}
    with pytest.raises(LaunchPadAwayError, match=r"the label is in .*: `dftfactory recover` stores it"):
        run_here(launchpad, tmp_path / "run", spec, monkeypatch)
    monkeypatch.undo()
    assert recover_labels(launchpad, [tmp_path]).stored == 1
