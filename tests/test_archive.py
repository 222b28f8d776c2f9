"""A finished campaign leaves the LaunchPad whole: what is deleted is in the file, wherever the command is killed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from queue_helpers import label_for, make_database, rows, shifted, specs, statuses

from dftfactory import archive as archive_module
from dftfactory.archive import CHANGED, CLAIMED, FAILED, archive, read_archive
from dftfactory.claims import Claims, make_claim
from dftfactory.config import DFTConfig
from dftfactory.errors import ConfigError, LaunchPadError
from dftfactory.launches import count_fireworks
from dftfactory.pipeline import submit, sync
from dftfactory.repairs import repair
from dftfactory.store import LabelStore

pytestmark = pytest.mark.mongodb


class Killed(BaseException):
    """As sudden as a signal."""


def launch(launchpad: Any, name: str, folder: Path, state: str = "COMPLETED") -> None:
    """Run a Firework without a calculation; where it is COMPLETED, with a label."""
    from fireworks import FWAction, FWorker

    spec = specs(launchpad)[name]
    if state == "COMPLETED":
        LabelStore(launchpad).put({**label_for(spec), "campaigns": spec["campaigns"]})
    fw_id = launchpad.get_fw_ids({"spec.calculation_id": name})[0]
    _, launch_id = launchpad.checkout_fw(FWorker(), str(folder), fw_id)
    launchpad.complete_launch(launch_id, FWAction(stored_data={"energy": -1.0}), state)


@pytest.fixture
def done(launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> Any:
    """Campaign one: a, b, c have labels; and another campaign, whose d is READY."""
    db = make_database(tmp_path / "c.db", *(shifted(si_atoms, 0.01 * n) for n in range(4)))
    db.update(4, campaign="two")
    submit(db, fake_config, launchpad, campaign="one")
    submit(db, fake_config, launchpad)
    for name in "abc":
        launch(launchpad, name, tmp_path)
    return db


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "one.jsonl.gz"


def left(launchpad: Any) -> dict[str, int]:
    names = ("fireworks", "workflows", "launches", "offline_runs")
    return {name: getattr(launchpad, name).count_documents({}) for name in names}


def names_in(path: Path) -> list[str]:
    return [record["firework"]["spec"]["calculation_id"] for record in read_archive(path)]


def test_finished_campaign_is_in_the_file_and_not_in_the_launchpad(launchpad: Any, done: Any, to: Path) -> None:
    before = {fw["fw_id"]: fw for fw in launchpad.fireworks.find({})}
    summary = archive(launchpad, "one", to)
    assert (summary.archived, summary.shared, summary.finished, summary.stay) == (3, 0, 0, {})
    assert summary.file == to
    assert left(launchpad) == {"fireworks": 1, "workflows": 1, "launches": 0, "offline_runs": 0}
    records = list(read_archive(to, "one"))
    assert [record["firework"]["fw_id"] for record in records] == [1, 2, 3]
    for record in records:
        assert record["firework"]["spec"] == before[record["firework"]["fw_id"]]["spec"]
        assert record["firework"]["_id"] == before[record["firework"]["fw_id"]]["_id"]
        assert record["workflow"]["nodes"] == [record["firework"]["fw_id"]]
        assert record["launches"][0]["action"]["stored_data"] == {"energy": -1.0}
    assert count_fireworks(launchpad, "two") == {"READY": 1}


def test_labels_stay_and_candidates_sync_afterwards(
    launchpad: Any, done: Any, to: Path, fake_config: DFTConfig
) -> None:
    archive(launchpad, "one", to)
    assert len(list(LabelStore(launchpad).all(campaign="one"))) == 3
    assert sync(done, launchpad).completed == 3
    done.update(1, status="SELECTED")
    assert submit(done, fake_config, launchpad).already_labelled == 1


def test_campaign_that_is_not_over_is_refused(launchpad: Any, done: Any, to: Path) -> None:
    launchpad.rerun_fw(2)
    with pytest.raises(LaunchPadError, match=r"campaign 'one' is not over: 1 READY; wait for them") as raised:
        archive(launchpad, "one", to)
    assert raised.value.details["states"] == {"READY": 1}
    assert left(launchpad)["fireworks"] == 4
    assert not to.exists()


def test_campaign_that_does_not_exist(launchpad: Any, done: Any, tmp_path: Path) -> None:
    with pytest.raises(LaunchPadError, match="no Firework of campaign 'ome'"):
        archive(launchpad, "ome", tmp_path / "ome.jsonl.gz")


def test_failed_ones_stay_until_they_are_asked_for(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, to: Path
) -> None:
    """Their candidates learn the reason from the LaunchPad, and selected again they run again."""
    db = make_database(tmp_path / "c.db", si_atoms, shifted(si_atoms, 0.1), shifted(si_atoms, 0.2))
    submit(db, fake_config, launchpad, campaign="one")
    launch(launchpad, "a", tmp_path)
    launch(launchpad, "b", tmp_path, "FIZZLED")
    launch(launchpad, "c", tmp_path)
    LabelStore(launchpad).collection.delete_one({"calculation_id": "c"})
    summary = archive(launchpad, "one", to)
    assert (summary.archived, summary.stay) == (1, {FAILED: 2})
    assert sync(db, launchpad).failed == 2
    assert "ended without a word" in rows(db)["b"].reason
    again = archive(launchpad, "one", to, failed=True)
    assert (again.archived, again.stay, again.file) == (2, {}, tmp_path / "one-2.jsonl.gz")
    assert names_in(to) == ["a"]
    assert sorted(names_in(tmp_path / "one-2.jsonl.gz")) == ["b", "c"]
    assert left(launchpad) == {"fireworks": 0, "workflows": 0, "launches": 0, "offline_runs": 0}
    assert statuses(db) == {"a": "COMPLETED", "b": "FAILED", "c": "FAILED"}


def test_what_another_campaign_has_too_stays_for_that_one(
    launchpad: Any, done: Any, to: Path, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    other = make_database(tmp_path / "d.db", si_atoms)
    submit(other, fake_config, launchpad, campaign="three")
    summary = archive(launchpad, "one", to)
    assert (summary.archived, summary.shared) == (2, 1)
    assert names_in(to) == ["a", "b", "c"]
    assert specs(launchpad)["a"]["campaigns"] == ["three"]
    assert count_fireworks(launchpad, "one") == {}
    assert launchpad.launches.count_documents({"fw_id": 1}) == 1
    assert archive(launchpad, "one", to).finished == 0
    assert archive(launchpad, "three", tmp_path / "three.jsonl.gz").archived == 1


def test_campaign_that_joins_while_a_file_waits_keeps_its_fireworks(
    launchpad: Any, done: Any, to: Path, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """The command was interrupted, and is repeated after somebody else has asked for one of the structures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_module, "_take_out", lambda *_: {"deleted": 0, "shared": 0, "changed": 0})
        archive(launchpad, "one", to)
    submit(make_database(tmp_path / "d.db", si_atoms), fake_config, launchpad, campaign="three")
    assert archive(launchpad, "one", to).finished == 3
    assert specs(launchpad)["a"]["campaigns"] == ["three"]
    assert count_fireworks(launchpad, "three") == {"COMPLETED": 1}


def test_campaign_that_has_left_while_a_file_waits_keeps_nothing(
    launchpad: Any, done: Any, to: Path, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    submit(make_database(tmp_path / "d.db", si_atoms), fake_config, launchpad, campaign="three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_module, "_take_out", lambda *_: {"deleted": 0, "shared": 0, "changed": 0})
        archive(launchpad, "one", to)
    assert archive(launchpad, "three", tmp_path / "three.jsonl.gz").shared == 1
    assert archive(launchpad, "one", to).finished == 3
    assert left(launchpad) == {"fireworks": 1, "workflows": 1, "launches": 0, "offline_runs": 0}


def test_firework_with_a_claim_stays(launchpad: Any, done: Any, to: Path, tmp_path: Path) -> None:
    """Somebody may still work on it, whatever FireWorks says."""
    Claims(launchpad).take(make_claim(specs(launchpad)["b"]["fingerprint"], 2, tmp_path))
    summary = archive(launchpad, "one", to)
    assert (summary.archived, summary.stay) == (2, {CLAIMED: 1})


@pytest.mark.parametrize(
    "moment", ["while it writes", "before it deletes", "after the Fireworks", "before the launches", "at the end"]
)
def test_killed_at_any_point_and_repeated(
    launchpad: Any, done: Any, to: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Everything is in the LaunchPad or in a complete file, and in the end in the file alone."""
    monkeypatch.setattr(archive_module, "_PAGE", 2)
    calls = {"to_json": 0, "_delete": 0}

    def killing(name: str, at: int) -> Any:
        original = getattr(archive_module, name)

        def called(*arguments: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            if calls[name] == at:
                raise Killed
            return original(*arguments)

        return called

    point = {
        "while it writes": ("to_json", 2),
        "before it deletes": ("_take_out", 1),
        "after the Fireworks": ("_delete", 1),
        "before the launches": ("_delete", 2),
        "at the end": ("_delete", 6),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(archive_module, point[0], killing(*point))
        with pytest.raises(Killed):
            archive(launchpad, "one", to)
    in_file = set(names_in(to)) if to.exists() else set()
    assert in_file | set(specs(launchpad)) == set("abcd")
    # What is half done harms nobody meanwhile.
    assert repair(launchpad) == []
    assert sync(done, launchpad).completed == 3
    summary = archive(launchpad, "one", to)
    assert summary.stay == {}
    assert names_in(to) == ["a", "b", "c"]
    assert left(launchpad) == {"fireworks": 1, "workflows": 1, "launches": 0, "offline_runs": 0}
    assert not list(tmp_path.glob(".*.part")) or moment == "while it writes"


def test_firework_that_runs_again_since_it_was_written_stays(
    launchpad: Any, done: Any, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_out = archive_module._take_out

    def after_a_rerun(*arguments: Any) -> Any:
        launchpad.rerun_fw(2)
        return take_out(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(archive_module, "_take_out", after_a_rerun)
        summary = archive(launchpad, "one", to)
    assert (summary.archived, summary.stay) == (2, {CHANGED: 1})
    assert count_fireworks(launchpad, "one") == {"READY": 1}
    assert launchpad.workflows.count_documents({"nodes": 2}) == 1


def test_file_of_another_campaign_or_of_somebody_else_is_not_touched(
    launchpad: Any, done: Any, to: Path, tmp_path: Path
) -> None:
    to.write_bytes(gzip.compress(b'{"kind": "mine"}\n'))
    before = to.read_bytes()
    with pytest.raises(ConfigError, match="no archive that can be read"):
        archive(launchpad, "one", to)
    assert to.read_bytes() == before
    assert left(launchpad)["fireworks"] == 4
    with pytest.raises(ConfigError, match=r"ends in \.jsonl\.gz"):
        archive(launchpad, "one", tmp_path / "one.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        archive(launchpad, "one", tmp_path / "nowhere" / "one.jsonl.gz")
    assert left(launchpad)["fireworks"] == 4


@pytest.mark.parametrize("damage", ["cut", "last line missing", "line missing", "changed byte"])
def test_damaged_file_deletes_nothing(launchpad: Any, done: Any, to: Path, damage: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_module, "_take_out", lambda *_: {"deleted": 0, "shared": 0, "changed": 0})
        archive(launchpad, "one", to)
    whole = to.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    to.write_bytes(
        {
            "cut": whole[:-20],
            "last line missing": gzip.compress(b"".join(lines[:-1])),
            "line missing": gzip.compress(b"".join([*lines[:2], *lines[3:]])),
            "changed byte": whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
        }[damage]
    )
    with pytest.raises(ConfigError, match="no archive that can be read"):
        archive(launchpad, "one", to)
    assert left(launchpad)["fireworks"] == 4


def test_file_is_plain_text_for_other_tools(launchpad: Any, done: Any, to: Path) -> None:
    archive(launchpad, "one", to)
    head, *lines, end = [json.loads(line) for line in gzip.decompress(to.read_bytes()).splitlines()]
    assert (head["campaign"], head["database"]) == ("one", launchpad.name)
    assert [line["firework"]["spec"]["formula"] for line in lines] == ["Si2"] * 3
    assert end == {"end": 3}
