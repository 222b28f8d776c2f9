"""Many structures: each query that a command sends has an index, and memory does not grow with their number."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.db
import pytest
from ase import Atoms
from pymongo.monitoring import CommandListener
from queue_helpers import label_for, make_database, shifted, specs, write_launchpad_file

from dftfactory import candidates, pipeline
from dftfactory.archive import archive
from dftfactory.candidates import index_rows, open_candidates, select_candidates
from dftfactory.config import DFTConfig
from dftfactory.export import export_labels
from dftfactory.launchpad import read_launchpad_file
from dftfactory.lost_labels import recover_labels
from dftfactory.lost_runs import reconcile
from dftfactory.monitor.failed import read_failed
from dftfactory.monitor.finding import find_fw_id
from dftfactory.monitor.progress import read_progress
from dftfactory.monitor.record_table import RecordTable
from dftfactory.monitor.records import read_records
from dftfactory.monitor.story import tell_story
from dftfactory.pipeline import submit, sync
from dftfactory.retry import retry
from dftfactory.store import LabelStore

# Read from end to end, and why that is right.
WHOLE = {
    "fw_id_assigner",  # one document
    "dft_claims",  # one for each rocket that works: reconcile looks at all of them
    "dft_results",  # an export of all labels, in the order of _id
    "launches",  # recover without folders looks into all of them
}


class Recorder(CommandListener):  # type: ignore[misc]  # pymongo is untyped here
    """Keeps what a client asks the server for: collection, filter, order."""

    def __init__(self) -> None:
        self.queries: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def started(self, event: Any) -> None:
        command, name = event.command, event.command_name
        if name == "count" and not command.get("query"):
            return  # how many documents there are at all, the server knows without looking at them
        if name in ("find", "count", "distinct", "findAndModify"):
            query = command.get("filter") or command.get("query") or {}
            self.queries.append((command[name], dict(query), dict(command.get("sort") or {})))
        elif name == "aggregate":
            first = command["pipeline"][0]
            self.queries.append((command[name], dict(first.get("$match", {})), {}))
        elif name in ("update", "delete"):
            self.queries += [(command[name], dict(change["q"]), {}) for change in command[f"{name}s"]]

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def recorded(launchpad: Any, recorder: Recorder, tmp_path: Path) -> Iterator[Any]:
    """The LaunchPad once more, through a client whose requests are recorded."""
    from fireworks import LaunchPad

    settings = read_launchpad_file(write_launchpad_file(launchpad, tmp_path))
    again = LaunchPad.from_dict(settings | {"mongoclient_kwargs": {"event_listeners": [recorder]}})
    yield again
    again.connection.close()


def stages(plan: dict[str, Any]) -> Iterator[str]:
    yield plan["stage"]
    for inner in (plan.get("inputStage"), *plan.get("inputStages", ())):
        if inner is not None:
            yield from stages(inner)


def uses_index(launchpad: Any, collection: str, query: dict[str, Any], order: dict[str, Any]) -> bool:
    """Whether `explain` says IXSCAN for a query, or for one of its conditions alone.

    The local server plans with a single index for the whole query only; MongoDB needs an index for one condition, and
    looks at the other ones in the documents that it finds.
    """

    def by_index(part: dict[str, Any], sort: dict[str, Any]) -> bool:
        command = {"find": collection, "filter": part, **({"sort": sort} if sort else {})}
        answer = launchpad.db.command("explain", command, verbosity="queryPlanner")
        found = set(stages(answer["queryPlanner"]["winningPlan"]))
        return "IXSCAN" in found and "COLLSCAN" not in found

    return by_index(query, order) or any(by_index({key: value}, {}) for key, value in query.items())


def without_index(launchpad: Any, recorder: Recorder) -> list[tuple[str, dict[str, Any]]]:
    return [
        (collection, query)
        for collection, query, order in recorder.queries
        if not (collection in WHOLE and not query) and not uses_index(launchpad, collection, query, order)
    ]


# Queries


@pytest.mark.mongodb
def test_every_query_of_our_commands_has_an_index(
    launchpad: Any, recorded: Any, recorder: Recorder, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """Those that FireWorks sends for us, too; on a LaunchPad that had only been reset."""
    from fireworks import FWAction, FWorker

    structures = [shifted(si_atoms, 0.01 * n) for n in range(6)]
    db = make_database(tmp_path / "c.db", *structures)
    submit(db, fake_config, recorded, campaign="one")
    recorder.queries.clear()  # the indexes are there from the first `submit` on

    for name, state in (("a", "COMPLETED"), ("b", "FIZZLED"), ("c", "COMPLETED"), ("d", "FIZZLED")):
        spec = specs(launchpad)[name]
        if state == "COMPLETED":
            LabelStore(recorded).put({**label_for(spec), "campaigns": ["one"]})
        _, launch_id = launchpad.checkout_fw(FWorker(), str(tmp_path), host="node7", fw_id=ord(name) - 96)
        launchpad.complete_launch(launch_id, FWAction(), state)
    launchpad.checkout_fw(FWorker(), str(tmp_path / "run"), host="node7", fw_id=5)
    other = make_database(tmp_path / "d.db", *structures)
    other.update(4, status="NONE")
    submit(other, fake_config, recorded, campaign="two")  # linked, labelled, run again
    for row_id in (1, 6):
        other.update(row_id, status="SELECTED")
    submit(other, fake_config, recorded, force=True)
    for campaign in (None, "one"):
        read_progress(recorded, campaign)
        list(read_records(recorded, campaign, fw_ids=[1, 2, 5]))
        failed = list(read_failed(recorded, campaign))
        retry(recorded, [each.fw_id for each in failed], {"mixing_beta": 0.3}, dry_run=True)
        sync(db, recorded, campaign=campaign)
        export_labels(LabelStore(recorded).all(campaign=campaign), tmp_path / "train.extxyz")
        recover_labels(recorded, campaign=campaign)
        reconcile(recorded, gone=["node7"], campaign=campaign)
    export_labels(LabelStore(recorded).all(config_hash=specs(launchpad)["a"]["config_hash"]), tmp_path / "t.extxyz")
    table = RecordTable(recorded, seconds=0)
    assert len(table.records()) == len(table.records()) == 6  # once all, once what has changed
    assert {find_fw_id(recorded, who) for who in ("a", "1", specs(launchpad)["a"]["fingerprint"][:10])} == {1}
    tell_story(recorded, 1)
    for fw_id in launchpad.get_fw_ids({"state": {"$nin": ["COMPLETED", "FIZZLED"]}}):
        launchpad.defuse_fw(fw_id)
    archive(recorded, "one", tmp_path / "one.jsonl.gz", failed=True)
    archive(recorded, "two", tmp_path / "two.jsonl.gz", failed=True)

    asked = {collection for collection, _, _ in recorder.queries}
    assert asked >= {"fireworks", "workflows", "launches", "offline_runs", "dft_results", "dft_claims"}
    assert without_index(launchpad, recorder) == []


@pytest.mark.mongodb
def test_query_without_an_index_is_noticed(launchpad: Any, recorded: Any, recorder: Recorder) -> None:
    """Else the test above proves nothing."""
    list(recorded.fireworks.find({"spec.formula": "Si2"}))
    recorded.fireworks.count_documents({})
    recorded.launches.update_many({"action.exit": True}, {"$set": {"x": 1}})
    recorded.fireworks.find_one({"fw_id": 1, "spec.formula": "Si2"})
    names = [collection for collection, _ in without_index(launchpad, recorder)]
    assert names == ["fireworks", "fireworks", "launches"]


def test_change_of_a_row_reads_no_table_from_end_to_end(si_atoms: Atoms, tmp_path: Path) -> None:
    """ASE's own database has no index by which it would find the keys of a row."""
    db = make_database(tmp_path / "c.db", si_atoms)

    def plan(table: str) -> str:
        with db:
            return str(db.connection.execute(f"EXPLAIN QUERY PLAN DELETE FROM {table} WHERE id = 1").fetchall())  # noqa: S608  (names from below)

    tables = ("keys", "text_key_values", "number_key_values", "species")
    assert all("SCAN" in plan(table) for table in tables)
    for _ in range(2):
        index_rows(db)
    assert all("USING" in plan(table) and "SCAN" not in plan(table) for table in tables)
    db.update(1, status="QUEUED")
    assert [row.status for row in db.select("status=QUEUED")] == ["QUEUED"]


# Memory


def peak_of(action: Callable[[], object]) -> int:
    """Bytes that are in use at once while something is done, beyond those before."""
    action()  # what is loaded and kept for ever, it is now
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        action()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def candidate_file(path: Path, atoms: Atoms, number: int) -> Path:
    with ase.db.connect(path, use_lock_file=False) as db:
        for n in range(number):
            db.write(shifted(atoms, 1e-4 * n), status="SELECTED", calculation_id=f"name-of-{n}")
    return path


def test_selection_keeps_numbers_only(si_atoms: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bytes for each candidate; its structure, keys and calculation_id would be more than 1,000."""
    monkeypatch.setattr(candidates, "_PAGE", 10)
    monkeypatch.setattr(candidates, "_KEYS_PAGE", 20)
    peaks = []
    for number in (100, 600):
        db = open_candidates(candidate_file(tmp_path / f"{number}.db", si_atoms, number))
        peaks.append(peak_of(lambda db=db: sum(1 for _ in select_candidates(db))))
    assert peaks[1] - peaks[0] < 500 * 50


def test_selection_is_whole_where_rows_are_missing(
    si_atoms: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are ranges of ids, and ids have gaps."""
    monkeypatch.setattr(candidates, "_PAGE", 3)
    monkeypatch.setattr(candidates, "_KEYS_PAGE", 4)
    path = candidate_file(tmp_path / "c.db", si_atoms, 60)
    with ase.db.connect(path) as db:
        db.delete([*range(1, 9), *range(20, 45), 50, 59, 60])
        db.update(15, status="DONE")
    expected = [n for n in (*range(9, 20), *range(45, 59)) if n not in (15, 50)]
    assert [candidate.row_id for candidate in select_candidates(open_candidates(path))] == expected


@pytest.mark.mongodb
def test_submit_and_sync_keep_a_page(
    launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_PAGE", 5)
    monkeypatch.setattr(candidates, "_KEYS_PAGE", 10)
    monkeypatch.setattr(pipeline, "PAGE", 5)
    peaks: dict[str, list[int]] = {"submit": [], "sync": []}
    for number in (70, 210):
        db = open_candidates(candidate_file(tmp_path / f"{number}.db", si_atoms, number))

        def select_and_submit(db: Any = db, number: int = number) -> None:
            with db:
                for row_id in range(1, number + 1):
                    db.update(row_id, status="SELECTED")
            submit(db, fake_config, launchpad)

        peaks["submit"].append(peak_of(select_and_submit))
        peaks["sync"].append(peak_of(lambda db=db: sync(db, launchpad)))
    # A structure with all that belongs to it takes some 20 kB in memory.
    assert all(large - small < 140 * 1000 for small, large in peaks.values())


def test_export_keeps_a_number_for_each_label(fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> None:
    """Its fingerprint as a hash."""
    from dftfactory.labels import structure_to_dict

    spec = {"structure": structure_to_dict(si_atoms), "config": fake_config.to_dict(), "config_hash": "cfg1"}
    spec |= {"calculation_id": "a", "formula": "Si2", "fingerprint": "dft", "pseudopotentials": {"Si": {}}}
    label = label_for(spec) | {"pseudopotentials": {"Si": {"file": "Si.UPF", "md5": "0" * 32}}}

    def labels(number: int) -> Iterator[dict[str, Any]]:
        return ({**label, "fingerprint": f"dft{n:032x}"} for n in range(number))

    peaks = [peak_of(lambda n=n: export_labels(labels(n), tmp_path / "t.extxyz")) for n in (100, 600)]
    assert peaks[1] - peaks[0] < 500 * 120
