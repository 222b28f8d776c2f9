"""What runs now, and how far its SCF is: from the end of pw.out, where this machine sees it."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.errors import ParserError
from dftfactory.history import HISTORY, has_history, read_history
from dftfactory.launch_folders import earlier_folders
from dftfactory.launches import ours
from dftfactory.monitor.launch_facts import FACTS, launches_of
from dftfactory.orphans import rocket_of
from dftfactory.plain_values import plain, read_count, read_mapping, read_number, read_text, read_time
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# Bytes. An iteration of pw.x writes about 500, with 100 magnetic atoms some 20,000.
END_OF_FILE = 65_536
LARGEST_READ = 4_000_000
_ITERATION = re.compile(r"^ *iteration # *(\d+)", re.M)
_ACCURACY = re.compile(r"estimated scf accuracy +< *(\S+)")
_OUT_OF_SIGHT, _NOT_BEGUN = "its folder is not to be seen from this machine", "the calculation has not begun"
_LAST = datetime.max.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Running:
    """One calculation that runs now; None where nothing tells.

    Attributes
    ----------
    fw_id, calculation_id, formula
        Which one.
    host, started
        Where its launch runs, and since when.
    level, attempt
        Level of the ladder, and number of the attempt, from 1.
    iteration, accuracy, conv_thr
        SCF iteration that has begun, estimated accuracy after the last one (Ry), and where it is to go (Ry).
    unseen
        Why there are no numbers, in a few words; None where they are there.
    """

    fw_id: int
    calculation_id: str
    formula: str
    host: str | None = None
    started: datetime | None = None
    level: int | None = None
    attempt: int | None = None
    iteration: int | None = None
    accuracy: float | None = None
    conv_thr: float | None = None
    unseen: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = plain(self)
        return values


def read_running(launchpad: LaunchPad, campaign: str | None = None) -> list[Running]:
    """Return what runs now, the longest first.

    Raises
    ------
    LaunchPadError
        The database does not answer or refuses.
    """
    keys = {"_id": 0, "fw_id": 1, "spec.calculation_id": 1, "spec.formula": 1}
    with launchpad_errors():
        fireworks = list(launchpad.fireworks.find({"state": "RUNNING", **ours(campaign)}, keys))
        launches: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for launch in launches_of(launchpad, (firework["fw_id"] for firework in fireworks), FACTS):
            launches[launch["fw_id"]].append(launch)
    found = [_running(firework, launches[firework["fw_id"]]) for firework in fireworks]
    return sorted(found, key=lambda each: (each.started or _LAST, each.fw_id))


def find_run_folder(fw_id: int, calculation_id: str, launch_dirs: Iterable[str | None]) -> Path | None:
    """Find the folder where a calculation is, or was last, of the folders of its launches; None where none is seen.

    A launch may go on in the folder of an earlier one.
    """
    folders = []
    for name in launch_dirs:
        with contextlib.suppress(OSError, ValueError):  # a name from a database, which may be none
            if name and Path(name).is_absolute():
                folders += [path for path in earlier_folders([Path(name)], calculation_id) if has_history(path)]
    mine = [path for path in folders if rocket_of(path).get("fw_id") in (fw_id, None)]
    return max(mine, key=_last_written, default=None)


def history_in(run_dir: Path) -> list[dict[str, Any]]:
    """Return the attempts that a run folder knows of, those of the start that runs now included.

    Raises
    ------
    ParserError
        There is no history, or it is damaged.
    """
    attempts: list[dict[str, Any]] = read_history(run_dir)["attempts"]
    present = read_mapping(attempts[-1])
    if "start" not in present or "outcome" in present:
        return attempts
    name = str(present.get("folder"))
    own: list[dict[str, Any]] = read_history(_folder_of(present, run_dir))["attempts"]
    # As the history of all starts will have them.
    of_start = [
        {**entry, "start": present["start"], "folder": f"{name}/{entry['folder']}" if "folder" in entry else name}
        for entry in own
    ]
    return [*attempts[:-1], *of_start]


def with_series(attempts: Sequence[Mapping[str, Any]], run_dir: Path) -> list[dict[str, Any]]:
    """Return attempts with the SCF of those that have none on record: what runs now, and histories of old."""
    found = [dict(entry) for entry in attempts]
    for entry in found:
        if entry.get("scf_accuracy") is None:
            with contextlib.suppress(OSError):
                text = _end_of(_folder_of(entry, run_dir) / "pw.out", LARGEST_READ)
                numbers = (_number(value) for value in _ACCURACY.findall(text))
                entry["scf_accuracy"] = [value for value in numbers if read_number(value) is not None]
                entry.setdefault("iterations", len(_ITERATION.findall(text)))
    return found


def _folder_of(entry: Mapping[str, Any], run_dir: Path) -> Path:
    """Return the folder of an attempt, as the history says; a name that leads out of the run folder counts not."""
    folder = run_dir / str(entry.get("folder") or ".")
    return folder if ".." not in folder.parts and folder.is_relative_to(run_dir) else run_dir


def _running(firework: Mapping[str, Any], launches: list[dict[str, Any]]) -> Running:
    fw_id, spec = firework["fw_id"], read_mapping(firework.get("spec"))
    name = read_text(spec.get("calculation_id")) or ""
    last = max(launches, key=lambda launch: int(launch["launch_id"]), default={})
    known = Running(
        fw_id=fw_id,
        calculation_id=name,
        formula=read_text(spec.get("formula")) or "",
        host=read_text(last.get("host")),
        started=read_time(last.get("time_start")),
    )
    run_dir = find_run_folder(fw_id, name, [read_text(launch.get("launch_dir")) for launch in launches])
    if run_dir is None:
        seen = Path(str(last.get("launch_dir"))).is_dir() if last else False
        return replace(known, unseen=_NOT_BEGUN if seen else _OUT_OF_SIGHT)
    return _with_numbers(known, run_dir)


def _with_numbers(running: Running, run_dir: Path) -> Running:
    """Read how far a run folder is; the files change while they are read."""
    try:
        attempts = history_in(run_dir)
    except ParserError:
        return replace(running, unseen="its history.json cannot be read")
    present = read_mapping(attempts[-1])
    # Of several starts the last one runs, in a folder of its own.
    folder = _folder_of(present, run_dir)
    parameters = read_mapping(present.get("parameters"))
    known = replace(
        running,
        level=read_count(parameters.get("level")),
        attempt=len(attempts),
        conv_thr=read_number(parameters.get("conv_thr")),
    )
    if "outcome" in present:
        return replace(known, unseen="between two runs of pw.x")
    try:
        text = _end_of(folder / "pw.out")
    except OSError:
        return replace(known, unseen="pw.x has not begun")
    iterations, accuracies = _ITERATION.findall(text), _ACCURACY.findall(text)
    if not iterations:
        return replace(known, unseen="before its first SCF iteration")
    accuracy = read_number(_number(accuracies[-1])) if accuracies else None
    return replace(known, iteration=int(iterations[-1]), accuracy=accuracy)


def _end_of(path: Path, length: int = END_OF_FILE) -> str:
    """Read the last part of a file that is being written."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - length))
        return file.read(length).decode(errors="replace")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # stars
        return None


def _last_written(folder: Path) -> float:
    """Say when something was last written in a run folder."""
    times = [0.0]
    for path in (folder / HISTORY, folder / "pw.out"):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)
