"""A campaign's name travels with its structures: on rows, Fireworks and labels, and two names where two ask for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from queue_helpers import label_for, make_database, rlaunch, rows, shifted, specs, states, statuses

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CandidateError
from dftfactory.export import export_labels
from dftfactory.labels import make_label
from dftfactory.launches import count_failures, count_fireworks
from dftfactory.lost_labels import recover_labels
from dftfactory.lost_runs import reconcile
from dftfactory.pipeline import submit, sync, write_workflows
from dftfactory.results import DFTResult
from dftfactory.specification import Specification
from dftfactory.store import LabelStore
from dftfactory.workflows import checked_campaign

pytestmark = pytest.mark.mongodb


@pytest.fixture
def structures(si_atoms: Atoms) -> list[Atoms]:
    return [shifted(si_atoms, 0.01 * n) for n in range(3)]


def campaigns(launchpad: Any) -> dict[str, list[str]]:
    """calculation_id → campaigns of its Firework, which its workflow must agree with."""
    found = {name: spec.get("campaigns", []) for name, spec in specs(launchpad).items()}
    flows = {flow["metadata"]["calculation_id"]: flow["metadata"] for flow in launchpad.workflows.find({})}
    assert {name: flow.get("campaigns", []) for name, flow in flows.items()} == found
    return found


def label_campaigns(launchpad: Any) -> dict[str, list[str]]:
    return {label["calculation_id"]: label.get("campaigns", []) for label in LabelStore(launchpad).all()}


def give_label(launchpad: Any, name: str, quality: str = "exact") -> None:
    """As RunDFT does it: with the campaigns of its specification."""
    spec = specs(launchpad)[name]
    LabelStore(launchpad).put({**label_for(spec, quality), "campaigns": spec.get("campaigns", [])})


# Names


@pytest.mark.parametrize("name", ["si-2026", "a", "gen_3.b", "9-lives", "x" * 100, "v1.2.3"])
def test_name_that_is_fine(name: str) -> None:
    assert checked_campaign(name, "row 1") == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "a/b", "../a", ".a", "-a", "a b", "Å", "x" * 101, "a+b", 17, None, True),
        *("17", "1e5", "nan", "inf", "True", "2026-01-31", "2026-01-31T10", "20260131"),
    ],
)
def test_name_that_no_file_could_have_or_that_would_be_changed(name: Any) -> None:
    with pytest.raises(CandidateError, match="campaign of row 1"):
        checked_campaign(name, "row 1")


def test_wrong_name_on_a_row_stops_before_anything_is_queued(
    launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", *structures, campaign="a b")
    with pytest.raises(CandidateError, match="the campaign of a must be 1 to 100 letters"):
        submit(db, fake_config, launchpad)
    assert states(launchpad) == {}


# submit


def test_name_comes_onto_rows_fireworks_and_workflows(
    launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", *structures)
    assert submit(db, fake_config, launchpad, campaign="one").added == 3
    assert campaigns(launchpad) == {name: ["one"] for name in "abc"}
    assert {row.campaign for row in rows(db).values()} == {"one"}


def test_only_rows_of_no_campaign_or_of_this_one_are_taken(
    launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", *structures)
    db.update(1, campaign="one")
    db.update(2, campaign="two")
    assert submit(db, fake_config, launchpad, campaign="one").added == 2
    assert statuses(db) == {"a": "QUEUED", "b": "SELECTED", "c": "QUEUED"}
    assert campaigns(launchpad) == {"a": ["one"], "c": ["one"]}
    assert submit(db, fake_config, launchpad).added == 1
    assert campaigns(launchpad)["b"] == ["two"]


def test_fingerprint_does_not_depend_on_the_campaign(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms, si_atoms)
    db.update(1, campaign="one")
    db.update(2, campaign="two")
    summary = submit(db, fake_config, launchpad)
    assert (summary.added, summary.already_queued) == (1, 1)
    assert campaigns(launchpad) == {"a": ["one", "two"]}
    assert rows(db)["a"].fingerprint == rows(db)["b"].fingerprint


def test_structure_that_another_campaign_has_gets_the_second_name(
    launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path
) -> None:
    """Queued there, labelled there, and failed there: none is computed for the second one only."""
    submit(make_database(tmp_path / "c.db", *structures), fake_config, launchpad, campaign="one")
    give_label(launchpad, "b")
    launchpad.defuse_fw(3)
    other = make_database(tmp_path / "d.db", *structures)
    summary = submit(other, fake_config, launchpad, campaign="two")
    assert (summary.already_queued, summary.already_labelled, summary.rerun) == (1, 1, 1)
    assert campaigns(launchpad) == {name: ["one", "two"] for name in "abc"}
    assert label_campaigns(launchpad) == {"b": ["one", "two"]}
    assert submit(other, fake_config, launchpad, campaign="two").added == 0
    assert campaigns(launchpad) == {name: ["one", "two"] for name in "abc"}


def test_forced_label_belongs_to_the_campaigns_of_the_old_one(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    submit(make_database(tmp_path / "c.db", si_atoms), fake_config, launchpad, campaign="one")
    give_label(launchpad, "a")
    launchpad.fireworks.delete_many({})  # as after `archive`
    submit(make_database(tmp_path / "d.db", si_atoms), fake_config, launchpad, campaign="two", force=True)
    assert specs(launchpad)["a"]["campaigns"] == ["one", "two"]


def test_structure_that_cannot_be_right_keeps_the_name(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    si_atoms.positions[1] = si_atoms.positions[0]
    db = make_database(tmp_path / "c.db", si_atoms)
    assert submit(db, fake_config, launchpad, campaign="one").refused == 1
    assert (rows(db)["a"].status, rows(db)["a"].campaign) == ("FAILED", "one")


def test_files_for_lpad_have_the_name(fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path) -> None:
    db = make_database(tmp_path / "c.db", *structures)
    write_workflows(db, fake_config, tmp_path / "wf", campaign="one")
    assert '"one"' in (tmp_path / "wf" / "a.json").read_text()
    assert rows(db)["a"].campaign == "one"


# Labels


def test_label_gets_the_campaigns_of_its_specification(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    submit(make_database(tmp_path / "c.db", si_atoms), fake_config, launchpad, campaign="one")
    spec = Specification(specs(launchpad)["a"])
    result = DFTResult.from_dict(label_for(specs(launchpad)["a"])["result"])
    assert spec.campaigns == ["one"]
    assert make_label(result, "dft1", fake_config, {}, None, spec.campaigns)["campaigns"] == ["one"]
    assert "campaigns" not in make_label(result, "dft1", fake_config, {})


@pytest.mark.parametrize("first", ["exact", "softened"])
def test_label_that_is_stored_twice_belongs_to_the_campaigns_of_both(launchpad: Any, first: str) -> None:
    store = LabelStore(launchpad)
    for campaign, quality in (("one", first), ("two", "exact")):
        store.put({"fingerprint": "dft1", "quality": quality, "level": 0, "config_hash": "c", "campaigns": [campaign]})
    [label] = store.all()
    assert (label["quality"], label["campaigns"]) == ("exact", ["one", "two"])


def test_sync_names_the_campaign_of_which_a_running_rocket_has_not_heard(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    submit(make_database(tmp_path / "c.db", si_atoms), fake_config, launchpad, campaign="one")
    spec = specs(launchpad)["a"]
    other = make_database(tmp_path / "d.db", si_atoms)
    submit(other, fake_config, launchpad, campaign="two")
    LabelStore(launchpad).put({**label_for(spec), "campaigns": spec["campaigns"]})
    assert label_campaigns(launchpad) == {"a": ["one"]}
    assert sync(other, launchpad).completed == 1
    assert label_campaigns(launchpad) == {"a": ["one", "two"]}


def test_rocket_that_finds_a_label_names_its_campaign_on_it(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """As after `lpad add` of files that were written for another campaign."""
    submit(make_database(tmp_path / "c.db", si_atoms), fake_config, launchpad, campaign="two")
    LabelStore(launchpad).put({**label_for(specs(launchpad)["a"]), "campaigns": ["one"]})
    rlaunch(launchpad, tmp_path / "run", WorkerConfig(pw_command=["/nonexistent"]))
    assert states(launchpad) == {1: "COMPLETED"}
    assert label_campaigns(launchpad) == {"a": ["one", "two"]}


# The other commands


@pytest.fixture
def two_campaigns(launchpad: Any, fake_config: DFTConfig, structures: list[Atoms], tmp_path: Path) -> Any:
    """Campaign one has a and b, campaign two has c; a and c have labels, b is FIZZLED."""
    from fireworks import FWAction, FWorker

    db = make_database(tmp_path / "c.db", *structures)
    for row_id, name in ((1, "one"), (2, "one"), (3, "two")):
        db.update(row_id, campaign=name)
    submit(db, fake_config, launchpad)
    for name in "ac":
        give_label(launchpad, name)
    _, launch_id = launchpad.checkout_fw(FWorker(), str(tmp_path), 2)
    launchpad.complete_launch(launch_id, FWAction(), "FIZZLED")
    return db


def test_sync_of_one_campaign_leaves_the_other(launchpad: Any, two_campaigns: Any) -> None:
    summary = sync(two_campaigns, launchpad, campaign="two")
    assert (summary.completed, summary.failed) == (1, 0)
    assert statuses(two_campaigns) == {"a": "QUEUED", "b": "QUEUED", "c": "COMPLETED"}
    summary = sync(two_campaigns, launchpad, campaign="one")
    assert (summary.completed, summary.failed) == (1, 1)


def test_counts_of_one_campaign(launchpad: Any, two_campaigns: Any) -> None:
    assert count_fireworks(launchpad, "one") == {"FIZZLED": 1, "READY": 1}
    assert count_fireworks(launchpad, "two") == {"READY": 1}
    assert count_failures(launchpad, "one") == {"UNKNOWN": 1}
    assert count_failures(launchpad, "two") == {}
    assert LabelStore(launchpad).count("one") == {(0, "exact"): 1}


def test_export_of_one_campaign(launchpad: Any, two_campaigns: Any, tmp_path: Path) -> None:
    store = LabelStore(launchpad)
    assert export_labels(store.all(campaign="one"), tmp_path / "one.extxyz").written == 1
    assert export_labels(store.all(), tmp_path / "all.extxyz").written == 2
    config_hash = specs(launchpad)["a"]["config_hash"]
    assert [label["calculation_id"] for label in store.all(config_hash, "two")] == ["c"]


def test_recover_and_reconcile_look_at_one_campaign(launchpad: Any, two_campaigns: Any, tmp_path: Path) -> None:
    from fireworks import FWorker

    launchpad.checkout_fw(FWorker(), str(tmp_path), 3, host="node7")
    assert [finding.calculation_id for finding in reconcile(launchpad, dry_run=True)[0]] == ["c"]
    assert reconcile(launchpad, dry_run=True, campaign="one") == ([], [])
    assert recover_labels(launchpad, campaign="two").found == 0
