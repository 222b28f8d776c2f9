"""Candidates into the LaunchPad and back: nothing is lost, nothing is computed twice, one bad row stops no other."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from fireworks import Workflow
from queue_helpers import label_for, make_database, rows, shifted, specs, states, statuses, write_launchpad_file
from upf_texts import version_2

from dftfactory import pipeline
from dftfactory.cluster import ClusterConfig
from dftfactory.config import DFTConfig
from dftfactory.errors import CalculationError, ConfigError, LaunchPadError, PseudopotentialError
from dftfactory.launches import count_failures, count_fireworks
from dftfactory.pipeline import submit, sync, write_workflows
from dftfactory.store import LabelStore

pytestmark = pytest.mark.mongodb


@pytest.fixture
def structures(si_atoms: Atoms) -> list[Atoms]:
    return [shifted(si_atoms, 0.01 * n) for n in range(5)]


def give_labels(launchpad: Any, *names: str, quality: str = "exact") -> None:
    """What RunDFT does at its end, without a calculation."""
    for name in names:
        LabelStore(launchpad).put(label_for(specs(launchpad)[name], quality))


def fizzle(launchpad: Any, name: str, error: Exception | None = None, state: str = "FIZZLED") -> int:
    """Launch the Firework of a candidate and let it end as FireWorks ends one that raised `error`."""
    from fireworks import FWAction, FWorker

    fw_id = launchpad.get_fw_ids({"spec.calculation_id": name})[0]
    _, launch_id = launchpad.checkout_fw(FWorker(), "/tmp", fw_id)  # noqa: S108  (only a name here)
    details = None if error is None or not hasattr(error, "to_dict") else error.to_dict()
    trace = f"Traceback (most recent call last):\n  ...\n{error!r}" if error is not None else None
    stored = {"_message": "runtime error during task", "_exception": {"_stacktrace": trace, "_details": details}}
    launchpad.complete_launch(launch_id, FWAction(stored_data=stored if error is not None else {}), state)
    return int(fw_id)


GAVE_UP = CalculationError(
    "a: SCF_NOT_CONVERGED at level 3",
    failure="SCF_NOT_CONVERGED",
    level=3,
    evidence="NOT achieved after 80 iterations",
    explanation="look at it",
    history=[{"x": 1}],
)


# submit


def test_one_firework_for_each_selected_row(
    launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And only for those; FireWorks' own progress bar is not seen."""
    db = make_database(tmp_path / "c.db", *structures)
    db.update(4, status="COMPLETED")
    db.update(5, delete_keys=["status"])
    steps: list[int] = []
    summary = submit(db, fake_config, launchpad, steps.append)
    assert (summary.added, summary.rerun, summary.already_queued, summary.already_labelled) == (3, 0, 0, 0)
    assert steps == [3]
    assert set(specs(launchpad)) == {"a", "b", "c"}
    assert states(launchpad) == {1: "READY", 2: "READY", 3: "READY"}
    found = rows(db)
    assert {name: found[name].status for name in "abcd"} == dict.fromkeys("abc", "QUEUED") | {"d": "COMPLETED"}
    assert found["a"].fingerprint == specs(launchpad)["a"]["fingerprint"]
    assert "it/s" not in capfd.readouterr().err


def test_submitting_twice_adds_nothing(
    launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", *structures)
    submit(db, fake_config, launchpad)
    assert submit(db, fake_config, launchpad).added == 0
    for row_id in range(1, 6):
        db.update(row_id, status="SELECTED")
    again = submit(db, fake_config, launchpad)
    assert (again.added, again.already_queued) == (0, 5)
    assert len(states(launchpad)) == 5
    assert set(statuses(db).values()) == {"QUEUED"}


class Killed(BaseException):
    """As sudden as a signal."""


@pytest.mark.parametrize("moment", ["after the Fireworks", "before the Fireworks", "between two pages"])
def test_nothing_is_lost_or_doubled_when_submit_is_killed(
    launchpad: Any,
    fake_config: DFTConfig,
    structures: list[Atoms],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    db = make_database(tmp_path / "c.db", *structures)
    monkeypatch.setattr(pipeline, "PAGE", 2)

    def kill(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment != "between two pages":
            patch.setattr(pipeline, "mark_queued" if moment == "after the Fireworks" else "add_workflows", kill)
        with pytest.raises(Killed):
            submit(db, fake_config, launchpad, kill)
    submit(db, fake_config, launchpad)
    assert sorted(spec["calculation_id"] for spec in specs(launchpad).values()) == list("abcde")
    assert launchpad.fireworks.count_documents({}) == 5
    assert set(statuses(db).values()) == {"QUEUED"}


def test_kill_between_the_two_inserts_of_fireworks(
    launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It inserts workflows, then Fireworks; workflows without a Firework stay behind, and nothing runs them."""
    db = make_database(tmp_path / "c.db", *structures[:2])

    def insert_workflows_only(workflows: list[Workflow]) -> None:
        launchpad.workflows.insert_many(workflow.to_db_dict() for workflow in workflows)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(launchpad, "bulk_add_wfs", insert_workflows_only)
        with pytest.raises(Killed):
            submit(db, fake_config, launchpad)
    assert submit(db, fake_config, launchpad).added == 2
    assert launchpad.fireworks.count_documents({}) == 2
    assert launchpad.workflows.count_documents({}) == 4
    assert count_fireworks(launchpad) == {"READY": 2}


def test_twins_share_a_firework_and_both_get_the_label(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """On one page, and in another database."""
    db = make_database(tmp_path / "c.db", si_atoms, shifted(si_atoms, 0.1), si_atoms)
    other = make_database(tmp_path / "d.db", si_atoms, calculation_id="other")
    first, second = submit(db, fake_config, launchpad), submit(other, fake_config, launchpad)
    assert (first.added, first.already_queued) == (2, 1)
    assert (second.added, second.already_queued) == (0, 1)
    give_labels(launchpad, "a")
    assert sync(db, launchpad).completed == 2
    assert sync(other, launchpad).completed == 1
    assert statuses(db) == {"a": "COMPLETED", "b": "QUEUED", "c": "COMPLETED"}
    assert rows(other)["other"].energy == rows(db)["c"].energy == -215.0


def test_structure_that_has_a_label_is_linked_and_not_queued(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config, launchpad)
    give_labels(launchpad, "a")
    other = make_database(tmp_path / "d.db", si_atoms, calculation_id="other")
    summary = submit(other, fake_config, launchpad)
    assert (summary.added, summary.already_labelled) == (0, 1)
    assert len(states(launchpad)) == 1
    assert sync(other, launchpad).completed == 1


def test_failed_structure_that_is_selected_again_is_rerun_with_the_new_configuration(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """A numerical parameter names no other label: the Firework is the same, the way to the label is the new one."""
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config, launchpad)
    fw_id = fizzle(launchpad, "a", GAVE_UP)
    sync(db, launchpad)
    assert statuses(db) == {"a": "FAILED"}
    db.update(1, status="SELECTED")
    summary = submit(db, fake_config.model_copy(update={"electron_maxstep": 200}), launchpad)
    assert (summary.added, summary.rerun) == (0, 1)
    assert states(launchpad) == {fw_id: "READY"}
    assert specs(launchpad)["a"]["config"]["electron_maxstep"] == 200
    assert statuses(db) == {"a": "QUEUED"}
    assert "reason" not in rows(db)["a"]


@pytest.mark.parametrize(("state", "expected"), [("DEFUSED", {1: "READY"}), ("ARCHIVED", {1: "ARCHIVED", 2: "READY"})])
def test_firework_that_was_put_aside_by_hand_runs_when_the_row_is_selected_again(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, state: str, expected: dict[int, str]
) -> None:
    """FireWorks does not rerun either of them, and says so only in its log; an archived one stays archived."""
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config, launchpad)
    (launchpad.defuse_fw if state == "DEFUSED" else launchpad.archive_wf)(1)
    assert sync(db, launchpad).failed == 1
    assert rows(db)["a"].reason == f"Firework 1 was {state} by hand"
    assert rows(db)["a"].failure == state
    db.update(1, status="SELECTED")
    submit(db, fake_config, launchpad)
    assert states(launchpad) == expected
    assert sync(db, launchpad).waiting == 1


def test_structure_that_cannot_be_right_fails_alone(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    overlapping = shifted(si_atoms, 0)
    overlapping.positions[1] = overlapping.positions[0] + 0.1
    no_cell = Atoms("Si")
    steps: list[int] = []
    db = make_database(tmp_path / "c.db", overlapping, si_atoms, no_cell)
    summary = submit(db, fake_config, launchpad, steps.append)
    assert (summary.added, summary.refused) == (1, 2)
    assert sum(steps) == 3
    assert statuses(db) == {"a": "FAILED", "b": "QUEUED", "c": "FAILED"}
    assert rows(db)["a"].failure == "GEOMETRY"
    assert "0.173 Å apart" in rows(db)["a"].reason
    assert "0.173 Å apart" in rows(db)["a"].evidence
    assert "correct or remove the structure" in rows(db)["a"].explanation
    assert "no cell" in rows(db)["c"].reason
    assert [problem.split(":")[0] for problem in summary.problems] == ["a", "c"]


def test_missing_pseudopotential_stops_before_anything_of_the_page_is_queued(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, h2_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms, h2_atoms)
    with pytest.raises(PseudopotentialError, match=r"H\.pz-vbc\.UPF cannot be read"):
        submit(db, fake_config, launchpad)
    assert states(launchpad) == {}
    assert set(statuses(db).values()) == {"SELECTED"}


def test_functionals_are_not_mixed_within_a_data_set(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, h2_atoms: Atoms, tmp_path: Path
) -> None:
    """Neither structure has both elements."""
    folder = Path(fake_config.pseudopotential_dir or "")
    (folder / "H.pz-vbc.UPF").write_text(version_2(element="H", functional="PBE"))
    db = make_database(tmp_path / "c.db", si_atoms, h2_atoms)
    with pytest.raises(PseudopotentialError, match=r"different functionals .*H → PBE, Si → PZ"):
        submit(db, fake_config, launchpad)
    assert states(launchpad) == {}


def test_refused_candidate_forgets_the_label_that_it_had(
    launchpad: Any, fake_config: DFTConfig, tmp_path: Path
) -> None:
    """Selected again with a stricter configuration: the label of the old one must not come back onto the row."""
    db = make_database(tmp_path / "c.db", bulk("Si", a=4.6))
    submit(db, fake_config, launchpad)
    give_labels(launchpad, "a")
    assert sync(db, launchpad).completed == 1
    db.update(1, status="SELECTED")
    strict = fake_config.model_copy(update={"degauss": 0.01, "min_distance_fraction": 0.95})
    assert submit(db, strict, launchpad).refused == 1
    assert sync(db, launchpad).completed == 0
    assert statuses(db) == {"a": "FAILED"}


def test_label_above_the_largest_force_of_the_configuration_is_not_reused(
    launchpad: Any, queued: Any, fake_config: DFTConfig
) -> None:
    """`max_force` is no label parameter: the label was made with a larger one."""
    give_labels(launchpad, "a", "b")
    for row_id in (1, 2):
        queued.update(row_id, status="SELECTED")
    summary = submit(queued, fake_config.model_copy(update={"max_force": 0.1}), launchpad)
    assert (summary.already_labelled, summary.refused) == (0, 2)
    assert rows(queued)["a"].failure == "REJECTED"
    assert "max_force = 0.1 eV/Å" in rows(queued)["a"].reason
    sync(queued, launchpad)
    assert (statuses(queued)["a"], statuses(queued)["b"]) == ("FAILED", "FAILED")


CLUSTER = ClusterConfig(
    queue="slurm",
    classes={
        "small": {"cores": 1, "memory_mb": 300, "walltime": "00:10:00", "packed": True},
        "large": {"cores": 16, "memory_mb": 64000, "walltime": "24:00:00", "partition": "main"},
    },
)


@pytest.fixture
def small_and_large(si_atoms: Atoms, tmp_path: Path) -> Any:
    """`a` takes a core some seconds, `b` many cores hours."""
    large = si_atoms * (4, 4, 4)
    large.rattle(0.05, seed=1)
    return make_database(tmp_path / "c.db", si_atoms, large)


def test_each_structure_asks_for_the_class_of_jobs_that_it_fits_into(
    launchpad: Any, fake_config: DFTConfig, small_and_large: Any
) -> None:
    """Without a cluster.yaml a specification says nothing of a queue, and every rocket takes it."""
    summary = submit(small_and_large, fake_config, launchpad, cluster=CLUSTER)
    assert summary.by_class == {"small": 1, "large": 1}
    small, large = (specs(launchpad)[name] for name in "ab")
    assert (small["_category"], large["_category"]) == ("small", "large")
    assert large["_queueadapter"]["queue"] == "main"
    assert 1 < large["_queueadapter"]["ntasks"] <= 16
    assert large["resources"]["memory_mb"] <= 64000


def test_class_that_the_user_gives_is_that_of_all(
    launchpad: Any, fake_config: DFTConfig, small_and_large: Any, tmp_path: Path
) -> None:
    summary = write_workflows(small_and_large, fake_config, tmp_path / "wf", cluster=CLUSTER, job_class="large")
    assert summary.by_class == {"large": 2}
    assert '"_category": "large"' in (tmp_path / "wf" / "a.json").read_text()


def test_structure_that_runs_again_asks_anew_and_its_old_jobs_are_forgotten(
    launchpad: Any, fake_config: DFTConfig, small_and_large: Any
) -> None:
    submit(small_and_large, fake_config, launchpad, cluster=CLUSTER, job_class="large")
    fw_id = fizzle(launchpad, "a", GAVE_UP)
    launchpad.fireworks.update_one({"fw_id": fw_id}, {"$set": {"spec.jobs": {"OUT_OF_MEMORY": 9}}})
    sync(small_and_large, launchpad)
    small_and_large.update(1, status="SELECTED")
    assert submit(small_and_large, fake_config, launchpad, cluster=CLUSTER).by_class == {"small": 1}
    spec = specs(launchpad)["a"]
    assert (spec["_category"], spec.get("jobs")) == ("small", None)
    # Somewhere else, without classes.
    fizzle(launchpad, "a", GAVE_UP)
    sync(small_and_large, launchpad)
    small_and_large.update(1, status="SELECTED")
    submit(small_and_large, fake_config, launchpad)
    assert not {"resources", "_category", "_queueadapter"} & set(specs(launchpad)["a"])


@pytest.mark.pw
@pytest.mark.mongodb
def test_all_structures_of_a_data_set_share_one_density_cutoff(
    launchpad: Any, config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """Si is norm-conserving and Fe ultrasoft: decided one by one, Si would get 4 x and Fe 8 x ecutwfc."""
    submit(make_database(tmp_path / "c.db", si_atoms, bulk("Fe")), config, launchpad)
    assert [spec["config"]["ecutrho"] for spec in specs(launchpad).values()] == [8 * 15.0, 8 * 15.0]


def test_configuration_without_a_folder_of_pseudopotentials(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms)
    with pytest.raises(ConfigError, match="pseudopotential_dir"):
        submit(db, fake_config.model_copy(update={"pseudopotential_dir": None}), launchpad)


SUBMIT = """
import sys
from pathlib import Path
from dftfactory.candidates import open_candidates
from dftfactory.config import DFTConfig
from dftfactory.launchpad import load_launchpad
from dftfactory.pipeline import submit
db, config = open_candidates(sys.argv[1]), DFTConfig.from_yaml(sys.argv[2])
launchpad = load_launchpad(Path(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
submit(db, config, launchpad)
"""


def test_processes_that_submit_at_once_never_get_the_same_id(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """FireWorks draws the ids of a page in one findAndModify."""
    (tmp_path / "dft.yaml").write_text(f"pseudopotential_dir: {fake_config.pseudopotential_dir}\necutwfc: 15\n")
    file = write_launchpad_file(launchpad, tmp_path)
    databases = [
        make_database(tmp_path / f"{n}.db", *(shifted(si_atoms, 0.2 * n + 0.01 * m) for m in range(20)))
        for n in range(2)
    ]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SUBMIT, str(db.filename), str(tmp_path / "dft.yaml"), str(file)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for db in databases
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.communicate("go\n", timeout=60)
        assert [process.returncode for process in processes] == [0, 0]
    ids = [entry["fw_id"] for entry in launchpad.fireworks.find({}, {"fw_id": 1})]
    assert sorted(ids) == list(range(1, 41))
    assert sorted(node for wf in launchpad.workflows.find({}) for node in wf["nodes"]) == list(range(1, 41))
    assert all(set(statuses(db).values()) == {"QUEUED"} for db in databases)


def test_database_that_goes_away_leaves_the_rows_selected(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymongo.errors import AutoReconnect

    db = make_database(tmp_path / "c.db", si_atoms)

    def away(*arguments: object) -> None:
        raise AutoReconnect("connection closed")

    with monkeypatch.context() as patch:
        patch.setattr(launchpad, "bulk_add_wfs", away)
        with pytest.raises(LaunchPadError, match="AutoReconnect: connection closed"):
            submit(db, fake_config, launchpad)
    assert statuses(db) == {"a": "SELECTED"}
    assert submit(db, fake_config, launchpad).added == 1


# submit --write


def test_workflow_files_are_one_for_each_candidate(
    fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", *structures[:2])
    summary = write_workflows(db, fake_config, tmp_path / "wf")
    assert summary.added == 2
    assert sorted(path.name for path in (tmp_path / "wf").iterdir()) == ["a.json", "b.json"]
    workflow = Workflow.from_file(str(tmp_path / "wf" / "b.json"))
    assert workflow.fws[0].spec["fingerprint"] == rows(db)["b"].fingerprint
    assert set(statuses(db).values()) == {"QUEUED"}


def test_file_of_another_structure_is_not_overwritten(
    fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path
) -> None:
    """Two databases, both with a candidate `a`: the first structure would be QUEUED for ever."""
    write_workflows(make_database(tmp_path / "c.db", structures[0]), fake_config, tmp_path / "wf")
    before = (tmp_path / "wf" / "a.json").read_text()
    other = make_database(tmp_path / "d.db", structures[1])
    with pytest.raises(ConfigError, match=r"a\.json is there already, for another structure"):
        write_workflows(other, fake_config, tmp_path / "wf")
    assert (tmp_path / "wf" / "a.json").read_text() == before
    assert statuses(other) == {"a": "SELECTED"}


def test_files_are_written_again_after_a_kill(
    fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = make_database(tmp_path / "c.db", *structures[:2])

    def kill(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "mark_queued", kill)
        with pytest.raises(Killed):
            write_workflows(db, fake_config, tmp_path / "wf")
    assert write_workflows(db, fake_config, tmp_path / "wf").added == 2
    assert set(statuses(db).values()) == {"QUEUED"}


def test_folder_that_cannot_be_written(fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path) -> None:
    (tmp_path / "wf").write_text("a file")
    with pytest.raises(ConfigError, match=r"workflow files cannot be written to .*wf"):
        write_workflows(make_database(tmp_path / "c.db", structures[0]), fake_config, tmp_path / "wf")


# sync


@pytest.fixture
def queued(launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path) -> Any:
    """Five candidates that are QUEUED."""
    db = make_database(tmp_path / "c.db", *structures)
    submit(db, fake_config, launchpad)
    return db


def test_label_comes_back_with_energy_forces_and_stress(launchpad: Any, queued: Any) -> None:
    give_labels(launchpad, "a")
    summary = sync(queued, launchpad)
    assert (summary.completed, summary.failed, summary.waiting, summary.unknown) == (1, 0, 4, 0)
    row = rows(queued)["a"]
    assert row.status == "COMPLETED"
    assert row.energy == -215.0
    assert np.array_equal(row.forces, np.full((2, 3), 0.25))
    assert row.stress.tolist() == [0.125, 0.125, 0.125, 0, 0, 0]  # ASE's order: xx, yy, zz, yz, xz, xy
    assert (row.level, row.quality, row.iterations) == (0, "exact", 11)
    assert row.config_hash == specs(launchpad)["a"]["config_hash"]


def test_failure_comes_back_with_reason_kind_and_level(launchpad: Any, queued: Any) -> None:
    fizzle(launchpad, "a", GAVE_UP)
    fizzle(launchpad, "b", RuntimeError("not one of ours"))
    fizzle(launchpad, "c")
    summary = sync(queued, launchpad)
    assert (summary.failed, summary.waiting) == (3, 2)
    found = rows(queued)
    assert (found["a"].reason, found["a"].failure, found["a"].level) == (GAVE_UP.message, "SCF_NOT_CONVERGED", 3)
    assert (found["a"].evidence, found["a"].explanation) == ("NOT achieved after 80 iterations", "look at it")
    assert (found["b"].reason, found["b"].failure) == ("RuntimeError('not one of ours')", "UNKNOWN")
    assert found["c"].reason.startswith("Firework 3 ended without a word: its worker was killed, or rlaunch runs where")
    assert "level" not in found["b"]


def test_last_launch_gives_the_reason(launchpad: Any, queued: Any) -> None:
    fw_id = fizzle(launchpad, "a", ConfigError("the first time"))
    launchpad.rerun_fw(fw_id)
    fizzle(launchpad, "a", GAVE_UP)
    sync(queued, launchpad)
    assert rows(queued)["a"].failure == "SCF_NOT_CONVERGED"


def test_sync_again_changes_nothing(launchpad: Any, queued: Any) -> None:
    give_labels(launchpad, "a")
    fizzle(launchpad, "b", GAVE_UP)
    sync(queued, launchpad)
    before = {name: (row.mtime, row.status) for name, row in rows(queued).items()}
    summary = sync(queued, launchpad)
    assert (summary.completed, summary.failed, summary.waiting) == (0, 0, 3)
    assert {name: (row.mtime, row.status) for name, row in rows(queued).items()} == before


def test_softened_label_completes_only_when_asked_for(launchpad: Any, queued: Any) -> None:
    """Also later, when the candidate has become FAILED for it."""
    give_labels(launchpad, "a", quality="softened")
    fizzle(launchpad, "a", CalculationError("a: converged at 0.03 Ry only", failure="SCF_NOT_CONVERGED", level=3))
    assert sync(queued, launchpad).failed == 1
    assert "0.03 Ry only" in rows(queued)["a"].reason
    assert sync(queued, launchpad).completed == 0
    assert sync(queued, launchpad, softened=True).completed == 1
    row = rows(queued)["a"]
    assert (row.status, row.quality, row.level) == ("COMPLETED", "softened", 3)
    assert "reason" not in row


def test_candidate_that_had_failed_gets_the_label_of_a_rerun(launchpad: Any, queued: Any) -> None:
    """`lpad rerun_fws` is how FireWorks' users repeat what failed, and the database does not hear of it."""
    fizzle(launchpad, "a", GAVE_UP)
    sync(queued, launchpad)
    launchpad.rerun_fw(1)
    assert sync(queued, launchpad).completed == 0
    give_labels(launchpad, "a")
    assert sync(queued, launchpad).completed == 1
    assert rows(queued)["a"].status == "COMPLETED"


@pytest.mark.parametrize("change", ["moved", "atoms", "spin", "cell", "pbc"])
def test_candidate_changed_after_it_was_queued_fails_alone_and_keeps_its_atoms(
    launchpad: Any, queued: Any, si_atoms: Atoms, change: str
) -> None:
    """The label belongs to the old structure: it stays in the store, and must not be put on the new one."""
    new = si_atoms.copy()
    if change == "moved":
        new = shifted(new, 0.3)
    elif change == "atoms":
        new.symbols[0] = "Ge"
    elif change == "spin":
        new.set_initial_magnetic_moments([1.0, -1.0])
    elif change == "cell":
        new.set_cell(new.cell * 1.01)
    else:
        new.pbc = (True, True, False)
    queued.update(1, atoms=new)
    give_labels(launchpad, "a", "b")
    summary = sync(queued, launchpad)
    assert (summary.completed, summary.failed) == (1, 1)
    assert statuses(queued)["b"] == "COMPLETED"
    row = rows(queued)["a"]
    assert (row.status, row.failure) == ("FAILED", "MISFIT")
    assert "was changed after it was queued; select it again" in row.reason
    assert np.array_equal(row.positions, new.positions)
    assert sync(queued, launchpad).completed == 0


def test_selecting_the_changed_candidate_again_labels_the_new_structure(
    launchpad: Any, queued: Any, si_atoms: Atoms, fake_config: DFTConfig
) -> None:
    queued.update(1, atoms=shifted(si_atoms, 0.3))
    give_labels(launchpad, "a")
    sync(queued, launchpad)
    queued.update(1, status="SELECTED")
    assert submit(queued, fake_config, launchpad).added == 1
    assert rows(queued)["a"].fingerprint not in {label["fingerprint"] for label in LabelStore(launchpad).all()}


def test_damaged_label_fails_its_row_alone(launchpad: Any, queued: Any) -> None:
    give_labels(launchpad, "a", "b")
    LabelStore(launchpad).collection.update_one({"calculation_id": "a"}, {"$unset": {"result.forces": ""}})
    summary = sync(queued, launchpad)
    assert (summary.completed, summary.failed) == (1, 1)
    assert "the label in the LaunchPad is damaged (KeyError('forces'))" in rows(queued)["a"].reason


def test_completed_firework_without_its_label_is_not_waited_for(
    launchpad: Any, queued: Any, fake_config: DFTConfig
) -> None:
    """Somebody emptied dft_results: the candidate fails, and is computed when it is selected again."""
    fizzle(launchpad, "a", state="COMPLETED")
    assert sync(queued, launchpad).failed == 1
    assert "the LaunchPad has no label of it: `dftfactory recover` looks on the disk" in rows(queued)["a"].reason
    queued.update(1, status="SELECTED")
    assert submit(queued, fake_config, launchpad).rerun == 1
    assert states(launchpad)[1] == "READY"


def test_fingerprints_that_the_launchpad_does_not_know_are_counted(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """Written and not yet added with `lpad add`, or another LaunchPad."""
    db = make_database(tmp_path / "c.db", si_atoms)
    write_workflows(db, fake_config, tmp_path / "wf")
    summary = sync(db, launchpad)
    assert (summary.unknown, summary.waiting) == (1, 0)
    assert statuses(db) == {"a": "QUEUED"}


def test_of_two_fireworks_the_one_that_still_runs_counts(launchpad: Any, queued: Any) -> None:
    """`lpad add` of the same file twice: one may fail while the other still runs."""
    launchpad.add_wf(launchpad.get_wf_by_fw_id(1))
    fizzle(launchpad, "a", GAVE_UP)
    assert sync(queued, launchpad).failed == 0


# what is counted


def test_counts_of_fireworks_and_failures(launchpad: Any, queued: Any) -> None:
    """Only ours: a LaunchPad may have the Fireworks of others."""
    from fireworks import Firework, ScriptTask

    launchpad.add_wf(Firework(ScriptTask.from_str("true")))
    fizzle(launchpad, "a", GAVE_UP)
    fizzle(launchpad, "b", GAVE_UP)
    fizzle(launchpad, "c", CalculationError("the forces are beyond any physics", failure=None))
    fizzle(launchpad, "d")
    assert count_fireworks(launchpad) == {"FIZZLED": 4, "READY": 1}
    assert count_failures(launchpad) == {"SCF_NOT_CONVERGED": 2, "REJECTED": 1, "UNKNOWN": 1}


def test_number_of_queries_does_not_grow_with_the_failures(
    launchpad: Any, queued: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymongo.collection import Collection

    queries: list[str] = []
    find = Collection.find

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        queries.append(self.name)
        return find(self, *arguments, **options)

    for name in "abcd":
        fizzle(launchpad, name, GAVE_UP)
    monkeypatch.setattr(Collection, "find", counted)
    count_failures(launchpad)
    assert queries == ["fireworks", "launches"]
    queries.clear()
    sync(queued, launchpad)
    # Fireworks, labels, last launches and their exceptions of the QUEUED page, then the labels of the FAILED page.
    assert queries == ["fireworks", "dft_results", "fireworks", "launches", "dft_results"]


@pytest.mark.parametrize("command", ["sync", "submit"])
def test_calculation_that_ends_between_our_two_queries_is_not_lost(
    launchpad: Any, queued: Any, fake_config: DFTConfig, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A rocket stores its label, then its Firework is COMPLETED: nobody may find COMPLETED and no label."""
    queries: list[str] = []

    def then_the_rocket_ends(query: Any) -> Any:
        def asked(*arguments: Any) -> Any:
            found = query(*arguments)
            found = found if isinstance(found, dict) else iter(list(found))
            if not queries:
                give_labels(launchpad, "a")
                fizzle(launchpad, "a", state="COMPLETED")
            queries.append(query.__name__)
            return found

        return asked

    if command == "submit":
        queued.update(1, status="SELECTED")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "find_fireworks", then_the_rocket_ends(pipeline.find_fireworks))
        patch.setattr(LabelStore, "find", then_the_rocket_ends(LabelStore.find))
        summary = submit(queued, fake_config, launchpad) if command == "submit" else sync(queued, launchpad)
    assert len(queries) >= 2
    assert states(launchpad)[1] == "COMPLETED"
    assert getattr(summary, "rerun", 0) == getattr(summary, "failed", 0) == 0
    sync(queued, launchpad)
    assert statuses(queued)["a"] == "COMPLETED"
