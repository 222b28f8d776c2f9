"""`submit`, `sync` and `export`, two at once or killed at any write: no row is lost, doubled or left in between."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import ase.io
import pytest
from queue_helpers import label_for, make_database, rows, specs, statuses
from recordings import StandIn, structure
from victims import FORKING, launch, run_export, run_submit, run_sync

from dftfactory.candidates import open_candidates
from dftfactory.config import DFTConfig
from dftfactory.export import export_labels
from dftfactory.pipeline import submit, sync
from dftfactory.repairs import repair
from dftfactory.store import LabelStore

pytestmark = pytest.mark.mongodb


def fireworks_of(launchpad: Any) -> Counter[str]:
    """Fingerprint → number of its Fireworks."""
    found = launchpad.fireworks.find({}, {"spec.fingerprint": 1})
    return Counter(entry["spec"]["fingerprint"] for entry in found)


def run_all(launchpad: Any, stand_in: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Fireworks in this process until none is READY."""
    for n in range(launchpad.fireworks.count_documents({"state": "READY"})):
        run_dir = folder / f"launch_{n}"
        run_dir.mkdir(parents=True)
        with monkeypatch.context() as patch:
            patch.chdir(run_dir)
            launch(launchpad, {"pw_command": stand_in.command, "parallel_cores": 1})


def test_two_submits_at_once_of_the_same_structures_are_computed_once(
    launchpad: Any, fake_config: DFTConfig, stand_in: StandIn, start: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Both may look before the other one adds: then there are two Fireworks, and still one calculation."""
    together = FORKING.Barrier(2)
    databases, processes = [], []
    for name in "pq":
        (folder := tmp_path / name).mkdir()
        databases.append(make_database(tmp_path / f"{name}.db", *(structure(n) for n in range(3))))
        processes.append(
            start(
                run_submit, launchpad.to_dict(), folder, tmp_path / f"{name}.db", fake_config.to_dict(), start=together
            )
        )
    for n in range(3):
        stand_in.record(n, fake_config)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    run_all(launchpad, stand_in, tmp_path / "runs", monkeypatch)
    assert [sync(db, launchpad).completed for db in databases] == [3, 3]
    assert sorted(Counter(event["key"] for event in stand_in.events("start")).values()) == [1, 1, 1]
    assert launchpad.db["dft_results"].count_documents({}) == 3


@pytest.mark.usefixtures("impatient")
def test_submit_killed_before_any_of_its_writes(
    launchpad: Any, fake_config: DFTConfig, start: Any, tmp_path: Path
) -> None:
    """Two new structures, one that is queued already, and one that cannot be right; other ones each time."""
    n_writes, n = 1, 0
    while n <= n_writes:
        (folder := tmp_path / f"{n}").mkdir()
        known = make_database(folder / "known.db", structure(10 * n))
        submit(known, fake_config, launchpad)
        wrong = structure(0)
        wrong.positions[1] = wrong.positions[0] + 0.1
        db = make_database(folder / "c.db", *(structure(10 * n + i) for i in range(3)), wrong)
        process = start(run_submit, launchpad.to_dict(), folder, folder / "c.db", fake_config.to_dict(), n or None)
        process.join()
        if n == 0:
            n_writes = len((folder / "writes").read_text().splitlines())
        assert process.exitcode == (-signal.SIGKILL if n else 0), (folder / "printed").read_text()
        half = statuses(open_candidates(folder / "c.db"))
        assert set(half.values()) <= {"SELECTED", "QUEUED", "FAILED"}
        assert (half["d"] == "FAILED") or half["a"] == half["b"] == half["c"] == "SELECTED"
        # Whatever is QUEUED is in the queue.
        queued = [row.fingerprint for row in rows(db).values() if row.status == "QUEUED"]
        assert set(queued) <= set(fireworks_of(launchpad))

        submit(open_candidates(folder / "c.db"), fake_config, launchpad)

        assert statuses(db) == {"a": "QUEUED", "b": "QUEUED", "c": "QUEUED", "d": "FAILED"}, f"killed before {n}"
        assert len(rows(db)) == db.count() == 4
        n += 1
    assert n_writes > 8
    assert set(fireworks_of(launchpad).values()) == {1}
    assert len(fireworks_of(launchpad)) == 3 * n
    # What nobody runs, and only `lpad get_wflows` shows, reconcile removes.
    repair(launchpad)
    assert launchpad.workflows.count_documents({}) == launchpad.fireworks.count_documents({}) == 3 * n


def test_sync_killed_before_any_of_its_writes(
    launchpad: Any, fake_config: DFTConfig, start: Any, tmp_path: Path
) -> None:
    """Two labels and a failure; a row that has its new status has all that belongs to it."""
    db = make_database(tmp_path / "c.db", *(structure(i) for i in range(3)))
    submit(db, fake_config, launchpad)
    store = LabelStore(launchpad)
    store.prepare()
    for name, energy in (("a", -215.0), ("b", -214.0)):
        store.put(label_for(specs(launchpad)[name], energy=energy))
    launchpad.fireworks.update_one({"spec.calculation_id": "c"}, {"$set": {"state": "FIZZLED"}})
    before = (tmp_path / "c.db").read_bytes()
    n_writes, n = 1, 0
    while n <= n_writes:
        (folder := tmp_path / f"{n}").mkdir()
        path = folder / "c.db"
        path.write_bytes(before)
        process = start(run_sync, launchpad.to_dict(), folder, path, n or None)
        process.join()
        if n == 0:
            n_writes = len((folder / "writes").read_text().splitlines())
        assert process.exitcode == (-signal.SIGKILL if n else 0), (folder / "printed").read_text()
        for row in rows(open_candidates(path)).values():
            assert (row.status == "COMPLETED") == (row.get("energy") is not None)
            assert (row.status == "FAILED") == (row.get("reason") is not None)
        sync(open_candidates(path), launchpad)
        done = rows(open_candidates(path))
        assert {name: row.status for name, row in done.items()} == {"a": "COMPLETED", "b": "COMPLETED", "c": "FAILED"}
        assert (done["a"].energy, done["b"].energy) == (-215.0, -214.0)
        assert open_candidates(path).count() == 3
        n += 1
    assert n_writes > 3


def test_export_killed_before_any_of_its_writes(
    launchpad: Any, fake_config: DFTConfig, start: Any, tmp_path: Path
) -> None:
    """There is the old file or the new one."""
    db = make_database(tmp_path / "c.db", *(structure(i) for i in range(2)))
    submit(db, fake_config, launchpad)
    store = LabelStore(launchpad)
    store.prepare()
    store.put(label_for(specs(launchpad)["a"]))
    (out := tmp_path / "out").mkdir()
    export_labels(store.all(), out / "train.extxyz")
    old = (out / "train.extxyz").read_bytes()
    store.put(label_for(specs(launchpad)["b"]))
    export_labels(store.all(), out / "train.extxyz")
    new = (out / "train.extxyz").read_bytes()
    n_writes, n = 1, 0
    while n <= n_writes:
        (folder := tmp_path / f"{n}").mkdir()
        (out / "train.extxyz").write_bytes(old)
        process = start(run_export, launchpad.to_dict(), folder, out / "train.extxyz", n or None)
        process.join()
        if n == 0:
            n_writes = len((folder / "writes").read_text().splitlines())
        assert process.exitcode == (-signal.SIGKILL if n else 0), (folder / "printed").read_text()
        assert (out / "train.extxyz").read_bytes() in ((old, new) if n else (new,))
        n += 1
    export_labels(store.all(), out / "train.extxyz")
    assert (out / "train.extxyz").read_bytes() == new
    assert len(ase.io.read(out / "train.extxyz", ":")) == 2
