"""What became of every structure of a plant, and what must not have happened."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from plant import Piece, Plant
from recordings import numbers_of
from stand_in_pw import key_of

from dftfactory.launchpad import read_launchpad_file
from dftfactory.store import COLLECTION, LabelStore

if TYPE_CHECKING:
    from fireworks import LaunchPad

# Of a real run that went on from a saved state: below conv_thr, and never to the last digit.
RESTARTED = {"energy": 1e-6, "smearing_energy": 1e-4, "forces": 1e-3, "stress": 1e-4}


class Verdict:
    """Counts, taken while the server still runs; `print` adds what is left when all has ended."""

    def __init__(self, plant: Plant, *, settled: bool) -> None:
        self.plant = plant
        self.wrong: dict[str, int] = {"not settled": 0 if settled else 1}
        self.facts: dict[str, Any] = {}
        with open_launchpad(plant) as launchpad:
            labels = list(LabelStore(launchpad).all())
            self._candidates(labels)
            self._labels(labels)
            self._computed_again(labels)
            self._launchpad(launchpad)
        self._exported(labels)
        self.wrong["pw.x processes left"] = len(plant.pw_members())

    def print(self, faults: Mapping[str, int]) -> bool:
        """Print all as a table; whether something is wrong."""
        self.wrong["processes left"] = len(left := self.plant.processes())
        for pid, command in left.items():
            print(f"left: {pid} {command}")
        self.wrong["scratch folders left"] = len(list((self.plant.folder / "scratch").glob("*")))
        for title, counts in (("faults", faults), ("what came of it", self.facts), ("must be 0", self.wrong)):
            print(f"\n{title}")
            for name, number in counts.items():
                print(f"  {number!s:>6}  {name}")
        return any(self.wrong.values())

    def _candidates(self, labels: list[dict[str, Any]]) -> None:
        rows, pieces = self.plant.rows(), self.plant.pieces
        n = len(pieces)
        self.facts["structures, in two databases that share a fifth"] = n
        self.facts["rows COMPLETED"] = sum(row.status == "COMPLETED" for row in rows)
        by_design = [row for row in rows if row.status == "FAILED" and pieces[row.piece].kind in ("fails", "refused")]
        self.facts["rows FAILED by design"] = len(by_design)
        self.wrong["rows FAILED, and not by design"] = sum(r.status == "FAILED" for r in rows) - len(by_design)
        self.wrong["rows in between"] = sum(row.status not in ("COMPLETED", "FAILED") for row in rows)
        self.wrong["rows lost or doubled"] = abs(len(rows) - (n * 3 // 5 + n - n * 2 // 5))
        self.wrong["rows COMPLETED that should fail"] = sum(
            row.status == "COMPLETED" and pieces[row.piece].kind in ("fails", "refused") for row in rows
        )
        self.piece_of = {row.fingerprint: pieces[row.piece] for row in rows if row.get("fingerprint")}
        energies = {label["fingerprint"]: label["result"]["energy"] for label in labels}
        self.wrong["rows whose energy is not that of their label"] = sum(
            row.status == "COMPLETED" and row.energy != energies.get(row.fingerprint) for row in rows
        )

    def _labels(self, labels: list[dict[str, Any]]) -> None:
        expected = {name for name, piece in self.piece_of.items() if piece.kind in ("recorded", "real")}
        count = Counter(label["fingerprint"] for label in labels)
        self.facts["labels"] = len(count)
        self.wrong["labels lost"] = len(expected - set(count))
        self.wrong["labels stored twice"] = sum(number - 1 for number in count.values())
        differ = [label for label in labels if not is_recorded(label, self.piece_of[label["fingerprint"]])]
        self.wrong["labels that differ from the recorded ones"] = len(differ)
        stored = set(count)
        self.on_disk: dict[str, float] = {}
        for path in self.plant.folder.glob("rocket_*/**/label.json"):
            fingerprint = json.loads(path.read_text())["fingerprint"]
            time = path.stat().st_mtime
            self.on_disk[fingerprint] = min(time, self.on_disk.get(fingerprint, time))
        self.wrong["labels on the disk that are not stored"] = len(set(self.on_disk) - stored)

    def _computed_again(self, labels: list[dict[str, Any]]) -> None:
        # A label that the full disk did not take is in the store only; that time has no fractions.
        there = {
            label["fingerprint"]: datetime.fromisoformat(label["created_on"]).timestamp() + 1 for label in labels
        } | self.on_disk
        times = defaultdict(list)
        for event in self.plant.stand_in.events("start"):
            times[event["key"]].append(event["time"])
        key_of_piece = {name: _key(piece, self.plant) for name, piece in self.piece_of.items()}
        again = [
            (name, key_of_piece[name], begun) for name, since in there.items() for begun in times[key_of_piece[name]]
            if begun > since
        ]  # fmt: skip
        for name, key, begun in again:
            print(f"computed again: {name} (recording {key}) at {begun:.2f}, its label is of {there[name]:.2f}")
        self.wrong["computed again after the label was on disk"] = len(again)
        violations = self.plant.stand_in.events("violation")
        for event in violations:
            print(f"violation: {event}")
        self.wrong["two pw.x at once, or a restart without its state"] = len(violations)
        self.facts["launches of pw.x in all"] = sum(len(starts) for starts in times.values())
        self.facts["structures that were launched"] = len(times)
        self.facts["launches that went on from a saved state"] = sum(
            event["restart"] for event in self.plant.stand_in.events("start")
        )

    def _launchpad(self, launchpad: LaunchPad) -> None:
        states = Counter(entry["state"] for entry in launchpad.fireworks.find({}, {"state": 1}))
        fingerprints = Counter(
            entry["spec"]["fingerprint"] for entry in launchpad.fireworks.find({}, {"spec.fingerprint": 1})
        )
        self.facts["Fireworks"] = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        self.facts["structures with more than one Firework"] = sum(number > 1 for number in fingerprints.values())
        over = states["COMPLETED"] + states["FIZZLED"]
        self.wrong["Fireworks in between"] = states.total() - over
        labelled = launchpad.db[COLLECTION].distinct("fingerprint")
        self.wrong["Fireworks FIZZLED although there is a label"] = launchpad.fireworks.count_documents(
            {"state": "FIZZLED", "spec.fingerprint": {"$in": labelled}}
        )
        self.wrong["workflows locked"] = launchpad.workflows.count_documents({"locked": {"$exists": True}})
        nodes = [flow["nodes"][0] for flow in launchpad.workflows.find({}, {"nodes": 1})]
        fw_ids = [entry["fw_id"] for entry in launchpad.fireworks.find({}, {"fw_id": 1})]
        self.wrong["Fireworks without workflow, or the reverse"] = len(set(nodes) ^ set(fw_ids))
        self.wrong["Fireworks or workflows doubled"] = len(nodes) + len(fw_ids) - len(set(nodes)) - len(set(fw_ids))
        # Those of the dead do no harm.
        self.facts["claims left"] = launchpad.db["dft_claims"].count_documents({})

    def _exported(self, labels: list[dict[str, Any]]) -> None:
        path = self.plant.folder / "train.extxyz"
        export = self.plant.dftfactory("export", str(path), *self.plant.queue_words())
        export.wait(timeout=120)
        frames = ase.io.read(path, ":") if path.exists() else []
        energies = {frame.info["REF_energy"] for frame in frames}
        missing = {label["result"]["energy"] for label in labels} - energies
        self.wrong["labels not exported"] = len(missing) + abs(len(frames) - len(labels))


def is_recorded(label: dict[str, Any], piece: Piece) -> bool:
    """Whether a label has the numbers that it must have, to the last digit where it was computed in one go."""
    numbers = numbers_of(label["result"])
    if numbers == piece.numbers:
        return True
    restarted = any(a["parameters"].get("restart_mode") == "restart" for a in label["result"]["history"])
    return piece.kind == "real" and restarted and all(
        np.allclose(numbers[name], piece.numbers[name], rtol=0, atol=tolerance) for name, tolerance in RESTARTED.items()
    )  # fmt: skip


@contextlib.contextmanager
def open_launchpad(plant: Plant) -> Iterator[LaunchPad]:
    """Open the LaunchPad of a plant for a look."""
    from fireworks import LaunchPad

    launchpad = LaunchPad.from_dict(read_launchpad_file(plant.launchpad_file))
    try:
        yield launchpad
    finally:
        launchpad.connection.close()


def _key(piece: Piece, plant: Plant) -> str:
    if piece.kind != "real":
        return piece.key
    return key_of((Path(plant.folder) / "reference" / piece.key.removeprefix("real_") / "pw.in").read_text())
