"""Failed calculations once more: the same label, by another way or in a larger job, and nothing else is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import pytest
from ase import Atoms
from queue_helpers import make_database, rlaunch, rows, shifted, specs, states, statuses

from dftfactory.claims import Claims, make_claim
from dftfactory.cluster import ClusterConfig
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import ConfigError
from dftfactory.launch_folders import find_unfinished
from dftfactory.launches import FireworkState, set_to_run
from dftfactory.monitor.failed import Failed, read_failed
from dftfactory.pipeline import submit, sync
from dftfactory.retry import RetrySummary, parse_changes, retry, select_failed
from dftfactory.retry_resources import Wish, changed_resources
from dftfactory.runner import QERunner
from dftfactory.specification import Specification
from dftfactory.store import LabelStore

FakePw = Callable[..., WorkerConfig]
CLASSES = {
    "small": {"cores": 4, "nodes": 1, "memory_mb": 8000, "walltime_seconds": 3600, "partition": None, "packed": False},
    "large": {
        "cores": 32,
        "nodes": 2,
        "memory_mb": 64000,
        "walltime_seconds": 86400,
        "partition": "l",
        "packed": False,
    },
    "bigmem": {
        "cores": 16,
        "nodes": 1,
        "memory_mb": 512000,
        "walltime_seconds": 7200,
        "partition": "b",
        "packed": False,
    },
}
RESOURCES = {
    "class": "small",
    "nodes": 1,
    "cores": 4,
    "memory_mb": 4000,
    "walltime_seconds": 1800,
    "queue": "slurm",
    "partition": None,
    "classes": CLASSES,
    "max_jobs": 5,
}
CLUSTER = ClusterConfig(
    queue="slurm",
    classes={
        "shared": {"cores": 2, "memory_mb": 2000, "walltime": "01:00:00", "packed": True},
        "whole": {"cores": 64, "memory_mb": 256000, "walltime": "2-00:00:00", "partition": "w"},
    },
)


def fail(launchpad: Any, fw_id: int, failure: str = "SCF_NOT_CONVERGED", state: str = "FIZZLED") -> None:
    """End a Firework as RunDFT does when recovery gives up."""
    from fireworks import FWAction, FWorker

    details = {"error": "CalculationError", "failure": failure, "message": f"{failure} of {fw_id}"}
    _, launch_id = launchpad.checkout_fw(FWorker(), "/nowhere", fw_id=fw_id)
    launchpad.complete_launch(launch_id, FWAction(stored_data={"_exception": {"_details": details}}), state)


@pytest.fixture
def queued(launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> Any:
    """Four structures, a to d, in the LaunchPad; a is FIZZLED, b has run out of memory."""
    db = make_database(tmp_path / "c.db", *(shifted(si_atoms, 0.01 * n) for n in range(4)))
    submit(db, fake_config, launchpad, campaign="one")
    fail(launchpad, 1)
    fail(launchpad, 2, "OUT_OF_MEMORY")
    return db


# What may be changed


@pytest.mark.parametrize(
    "word",
    ["ecutwfc=90", "degauss=0.02", "kspacing=0.1", "magnetism=none", "pseudopotentials={Si: x}", "pw.system.nbnd=12"],
)
def test_what_defines_the_label_is_refused_with_the_cure(word: str) -> None:
    with pytest.raises(ConfigError, match=r"defines the label: .* Change it in dft.yaml and `dftfactory submit`"):
        parse_changes([word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mixing_beta", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("ladder=[", "cannot be read"),
        ("ladder={a: *x}", "cannot be"),
        ("pw.electrons.Electron_maxstep=200", "name of its own for it, electron_maxstep=VALUE"),
    ],
)
def test_slips_are_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_changes([word])


def test_values_are_read_as_in_dft_yaml() -> None:
    words = ["mixing_beta=2e-1", "early_stop=false", "ladder=null", "mixing_mode=TF", "pw.electrons.mixing_ndim=20"]
    assert parse_changes(words) == {
        "mixing_beta": 0.2,
        "early_stop": False,
        "ladder": None,
        "mixing_mode": "TF",
        "pw.electrons.mixing_ndim": 20,
    }
    assert parse_changes(["pseudopotential_dir=upf"]) == {"pseudopotential_dir": str(Path.cwd() / "upf")}


@pytest.mark.mongodb
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing_bete": 0.2}, r"mixing_bete = 0.2: is unknown; did you mean mixing_beta\?"),
        ({"mixing_beta": 7}, r"mixing_beta = 7: must be at most 1"),
        ({"electron_maxstep": "many"}, r"electron_maxstep = 'many': must be a whole number"),
        ({"pw.electrons": 3}, r"parameters of pw.x have a namelist"),
        ({"pw.electrons.mixing_beta": 0.1}, r"mixing_beta"),
        ({"ecutwfc": 90.0}, r"defines the label"),
    ],
)
def test_nothing_is_written_where_a_value_is_wrong(
    queued: Any, launchpad: Any, changes: dict[str, Any], message: str
) -> None:
    before = specs(launchpad)
    with pytest.raises(ConfigError, match=message):
        retry(launchpad, [2, 1], changes)
    assert specs(launchpad) == before
    assert states(launchpad) == {1: "FIZZLED", 2: "FIZZLED", 3: "READY", 4: "READY"}


# What happens


@pytest.mark.mongodb
def test_it_is_ready_again_with_the_change_and_the_same_fingerprint(queued: Any, launchpad: Any) -> None:
    before = specs(launchpad)["a"]
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.jobs": {"WALLTIME": 9}}})
    summary = retry(launchpad, [1], {"electron_maxstep": 200, "pw.electrons.mixing_ndim": 20, "mixing_beta": 0.7})
    (told,) = summary.retried
    assert (told.fw_id, told.calculation_id, told.state, told.failure) == (1, "a", "FIZZLED", "SCF_NOT_CONVERGED")
    # mixing_beta was 0.7 before.
    assert told.parameters == {"electron_maxstep": [80, 200], "pw.electrons.mixing_ndim": [None, 20]}
    assert states(launchpad)[1] == "READY"
    after = specs(launchpad)["a"]
    assert after["config"]["electron_maxstep"] == 200
    assert after["config"]["pseudopotentials"] == before["config"]["pseudopotentials"]
    assert {**after, "config": None} == {**before, "config": None}
    assert Specification(after).fingerprint == before["fingerprint"]
    assert launchpad.workflows.find_one({"nodes": 1})["state"] == "READY"


@pytest.mark.mongodb
def test_repeating_it_changes_nothing_more(queued: Any, launchpad: Any) -> None:
    retry(launchpad, [1], {"mixing_beta": 0.2})
    before = specs(launchpad)
    again = retry(launchpad, [1, 1], {"mixing_beta": 0.2})
    assert [(told.state, told.parameters) for told in again.retried] == [("READY", {})]
    assert specs(launchpad) == before
    # What has not begun takes another value.
    retry(launchpad, [1], {"mixing_beta": 0.1})
    assert specs(launchpad)["a"]["config"]["mixing_beta"] == 0.1
    assert states(launchpad)[1] == "READY"


@pytest.mark.mongodb
def test_dry_run_writes_nothing(queued: Any, launchpad: Any) -> None:
    before = specs(launchpad)
    summary = retry(launchpad, [1], {"mixing_beta": 0.2}, dry_run=True)
    assert summary.retried[0].parameters == {"mixing_beta": [0.7, 0.2]}
    assert specs(launchpad) == before
    assert states(launchpad)[1] == "FIZZLED"


@pytest.mark.mongodb
def test_what_runs_or_has_its_label_is_refused_and_the_others_are_not(
    queued: Any, launchpad: Any, tmp_path: Path
) -> None:
    from fireworks import FWorker

    launchpad.checkout_fw(FWorker(), str(tmp_path), fw_id=3)
    fail(launchpad, 4, state="COMPLETED")
    summary = retry(launchpad, [3, 4, 1, 77])
    assert [told.calculation_id for told in summary.retried] == ["a"]
    reasons = {each.calculation_id: (each.state, each.reason) for each in summary.refused}
    assert reasons["c"] == ("RUNNING", "it runs; `dftfactory reconcile` finds out whether its rocket is gone")
    assert reasons["d"][0] == "COMPLETED"
    assert states(launchpad) == {1: "READY", 2: "FIZZLED", 3: "RUNNING", 4: "COMPLETED"}


@pytest.mark.mongodb
def test_defused_one_runs_again_and_a_paused_one_says_how(queued: Any, launchpad: Any) -> None:
    launchpad.defuse_fw(3)
    launchpad.pause_fw(4)
    summary = retry(launchpad, [3, 4])
    assert [(told.calculation_id, told.failure) for told in summary.retried] == [("c", "DEFUSED")]
    assert "lpad resume_fws -i 4" in summary.refused[0].reason
    assert states(launchpad)[3] == "READY"
    assert states(launchpad)[4] == "PAUSED"


@pytest.mark.mongodb
def test_what_is_still_computed_is_not_begun_a_second_time(queued: Any, launchpad: Any, tmp_path: Path) -> None:
    """`lpad detect_lostruns --fizzle` says FIZZLED of a rocket that has only lost its pings."""
    Claims(launchpad).take(make_claim(specs(launchpad)["a"]["fingerprint"], 1, Path.cwd()))
    summary = retry(launchpad, [1])
    assert not summary.retried
    assert "it is still computed: process" in summary.refused[0].reason
    assert states(launchpad)[1] == "FIZZLED"


@pytest.mark.mongodb
def test_damaged_specification_is_refused(queued: Any, launchpad: Any) -> None:
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.config.kspacing": 0.1}})
    summary = retry(launchpad, [1, 2])
    assert "it was changed after it was submitted" in summary.refused[0].reason
    assert [told.calculation_id for told in summary.retried] == ["b"]


@pytest.mark.mongodb
def test_of_two_at_once_one_sets_it_ready(queued: Any, launchpad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the second one would take it from the rocket that has begun in between."""
    second: list[bool] = []
    rerun = launchpad.rerun_fw

    def slowly(fw_id: int) -> None:
        second.append(set_to_run(launchpad, FireworkState(1, "FIZZLED"), {"x": 2}))
        rerun(fw_id)

    monkeypatch.setattr(launchpad, "rerun_fw", slowly)
    assert set_to_run(launchpad, FireworkState(1, "FIZZLED"), {"x": 1})
    monkeypatch.undo()
    assert second == [False]
    assert (states(launchpad)[1], specs(launchpad)["a"]["x"]) == ("READY", 1)
    # Nothing of it is left for the next time.
    fail(launchpad, 1)
    assert set_to_run(launchpad, FireworkState(1, "FIZZLED"), {})


@pytest.mark.mongodb
def test_somebody_who_was_faster_is_not_disturbed(queued: Any, launchpad: Any, tmp_path: Path) -> None:
    """Between the look and the write it was set to run by `submit`, and a rocket has it."""
    from fireworks import FWorker

    launchpad.rerun_fw(1)
    launchpad.checkout_fw(FWorker(), str(tmp_path), fw_id=1)
    assert not set_to_run(launchpad, FireworkState(1, "FIZZLED"), {"config": {}})
    assert not set_to_run(launchpad, FireworkState(1, "READY"), {"config": {}})
    assert states(launchpad)[1] == "RUNNING"
    assert specs(launchpad)["a"]["config"]


@pytest.mark.mongodb
def test_chosen_by_reason_and_campaign(queued: Any, launchpad: Any) -> None:
    failed = list(read_failed(launchpad, "one"))
    assert {each.calculation_id: each.failure for each in failed} == {"a": "SCF_NOT_CONVERGED", "b": "OUT_OF_MEMORY"}
    assert list(read_failed(launchpad, "two")) == []
    assert [each.fw_id for each in select_failed(failed, "OUT_OF_MEMORY")] == [2]
    assert len(select_failed(failed, None)) == 2
    with pytest.raises(ConfigError, match=r"FIZZLED are OUT_OF_MEMORY, SCF_NOT_CONVERGED; did you mean OUT_OF_MEMORY"):
        select_failed(failed, "out_of_memry")
    with pytest.raises(ConfigError, match=r"nothing is FIZZLED$"):
        select_failed([], "NAN")
    assert select_failed([], None) == []


def test_summary_is_plain() -> None:
    failed = Failed(1, "a", "NAN", "x", "y", {})
    assert failed.failure == "NAN"
    text = json.dumps(RetrySummary(dry_run=True).to_dict())
    assert json.loads(text) == {"dry_run": True, "retried": [], "refused": [], "by_class": {}}


# Resources


def test_more_memory_moves_to_the_first_class_that_has_it() -> None:
    moved = changed_resources(RESOURCES, Wish(memory_mb=60000), None)
    assert (moved["class"], moved["memory_mb"], moved["walltime_seconds"]) == ("large", 60000, 1800)
    assert moved["partition"] == "l"
    assert changed_resources(RESOURCES, Wish(memory_mb=8000), None)["class"] == "small"
    assert RESOURCES["memory_mb"] == 4000


def test_more_time_does_not_cost_memory() -> None:
    has_much = {**RESOURCES, "class": "small", "memory_mb": 8000}
    moved = changed_resources(has_much, Wish(walltime_seconds=80000), None)
    assert (moved["class"], moved["memory_mb"], moved["walltime_seconds"]) == ("large", 8000, 80000)


def test_a_named_class_gives_its_memory() -> None:
    moved = changed_resources({**RESOURCES, "class": "large", "nodes": 2, "cores": 64}, Wish(class_name="bigmem"), None)
    assert (moved["class"], moved["memory_mb"], moved["nodes"], moved["cores"]) == ("bigmem", 512000, 1, 16)
    assert changed_resources(RESOURCES, Wish(9000, None, "bigmem"), None)["memory_mb"] == 9000


def test_classes_of_today_count() -> None:
    """The class that it had is no more, and another one has come."""
    moved = changed_resources(RESOURCES, Wish(memory_mb=100000), CLUSTER)
    assert (moved["class"], moved["memory_mb"]) == ("whole", 100000)
    packed = changed_resources(RESOURCES, Wish(class_name="shared"), CLUSTER)
    # It shares the job with others.
    assert (packed["memory_mb"], packed["walltime_seconds"], packed["cores"]) == (2000, 3600, 2)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(class_name="huge"), r"no class of jobs 'huge'; there are small, large, bigmem"),
        (Wish(memory_mb=10**6), r"no class of jobs has 1000000 MB: there is at most small 8000 MB and 01:00:00, large"),
        (Wish(9000, None, "small"), r"has 9000 MB: there is at most small 8000 MB"),
        (Wish(200000, 86400), r"has 200000 MB and 24:00:00"),
    ],
)
def test_more_than_there_is_is_refused(wish: Wish, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed_resources(RESOURCES, wish, None)


def test_wishes_are_read_from_words() -> None:
    assert Wish.from_words("64G", "2-00:00:00", "large") == Wish(65536, 172800, "large")
    assert Wish.from_words("64000", None, None) == Wish(64000)
    assert not Wish.from_words(None, None, None)
    with pytest.raises(ConfigError, match=r"memory must be such as 64G or 64000M, got '64'"):
        Wish.from_words("64", None, None)
    with pytest.raises(ConfigError, match=r"walltime must be a time such as"):
        Wish.from_words(None, "soon", None)


@pytest.mark.mongodb
def test_resources_go_where_fireworks_looks_for_them(queued: Any, launchpad: Any) -> None:
    launchpad.fireworks.update_one({"fw_id": 2}, {"$set": {"spec.resources": RESOURCES, "spec._category": "small"}})
    summary = retry(launchpad, [2], wish=Wish(memory_mb=60000))
    assert summary.retried[0].resources["memory_mb"] == [4000, 60000]
    assert summary.by_class == {"large": 1}
    spec = specs(launchpad)["b"]
    assert spec["_category"] == "large"
    assert spec["_queueadapter"]["mem"] == "60000M"
    assert spec["resources"]["class"] == "large"


@pytest.mark.mongodb
def test_without_a_cluster_nothing_can_be_asked_for(queued: Any, launchpad: Any) -> None:
    with pytest.raises(ConfigError, match=r"b asks the queue for nothing.*my_qadapter.yaml"):
        retry(launchpad, [2], wish=Wish(memory_mb=60000))
    # With one that has come since, its estimate counts.
    retry(launchpad, [2], wish=Wish(memory_mb=60000), cluster=CLUSTER)
    assert specs(launchpad)["b"]["resources"]["memory_mb"] == 60000
    assert specs(launchpad)["b"]["_category"] == "whole"


# What an earlier attempt has left


@pytest.mark.mongodb
def test_changed_parameters_begin_anew_and_unchanged_ones_go_on(
    queued: Any, launchpad: Any, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """A run that had no time keeps its parameters in its history: with others, it is not gone on with."""
    folder = tmp_path / "launch"
    spec = specs(launchpad)["a"]
    runner = QERunner(Specification(spec).config, fake_pw("max_seconds"), Specification(spec).md5)
    with pytest.raises(Exception, match="WALLTIME"):
        runner.run(si_atoms, folder, "a")
    assert find_unfinished([folder], Specification(spec)) == folder
    retry(launchpad, [1])
    assert find_unfinished([folder], Specification(specs(launchpad)["a"])) == folder
    for changes in ({"mixing_beta": 0.2}, {"pw.system.nosym": True}, {"early_stop": False}, {"ladder": []}):
        launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.config": spec["config"]}})
        retry(launchpad, [1], changes)
        assert find_unfinished([folder], Specification(specs(launchpad)["a"])) is None, changes
    # The folder of pseudopotentials is no parameter: their content is compared.
    other = tmp_path / "other"
    shutil.copytree(str(fake_config.pseudopotential_dir), other)
    launchpad.fireworks.update_one({"fw_id": 1}, {"$set": {"spec.config": spec["config"]}})
    retry(launchpad, [1], {"pseudopotential_dir": str(other)})
    assert find_unfinished([folder], Specification(specs(launchpad)["a"])) == folder


@pytest.mark.mongodb
def test_history_of_before_is_gone_on_with(
    queued: Any, launchpad: Any, fake_pw: FakePw, si_atoms: Atoms, tmp_path: Path
) -> None:
    """An earlier version has not kept the configuration: its runs of many hours are not thrown away."""
    folder = tmp_path / "launch"
    spec = Specification(specs(launchpad)["a"])
    with pytest.raises(Exception, match="WALLTIME"):
        QERunner(spec.config, fake_pw("max_seconds"), spec.md5).run(si_atoms, folder, "a")
    history = json.loads((folder / "history.json").read_text())
    del history["prescribed"]["config"]
    (folder / "history.json").write_text(json.dumps(history))
    assert find_unfinished([folder], spec) == folder


# With the real pw.x


@pytest.mark.pw
@pytest.mark.mongodb
def test_too_few_iterations_are_retried_with_more_and_sync_completes_the_candidate(
    launchpad: Any, config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, config.model_copy(update={"electron_maxstep": 2, "ladder": []}), launchpad)
    fingerprint = specs(launchpad)["a"]["fingerprint"]
    worker = WorkerConfig(pw_command=shutil.which("pw.x") or "pw.x")
    rlaunch(launchpad, tmp_path / "runs", worker)
    sync(db, launchpad)
    assert statuses(db) == {"a": "FAILED"}
    (failed,) = read_failed(launchpad)
    assert failed.failure == "SCF_NOT_CONVERGED"

    summary = retry(launchpad, [failed.fw_id], parse_changes(["electron_maxstep=60"]))
    assert summary.retried[0].parameters == {"electron_maxstep": [2, 60]}
    rlaunch(launchpad, tmp_path / "runs", worker)
    assert states(launchpad) == {failed.fw_id: "COMPLETED"}
    label = LabelStore(launchpad).get(fingerprint)
    assert label is not None
    assert label["level"] == 0
    assert label["result"]["iterations"] > 2
    sync(db, launchpad)
    assert statuses(db) == {"a": "COMPLETED"}
    row = rows(db)["a"]
    assert row.get("failure") is None
    assert ase.db.connect(db.filename).get_atoms(id=row.id).get_potential_energy() == label["result"]["energy"]
