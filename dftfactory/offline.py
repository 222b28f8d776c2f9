"""FireWorks' offline mode: `rlaunch singleshot --offline` on a node that cannot see the database.

`qlaunch -r` reserves a Firework and writes it to the folder of its launch; the rocket keeps what becomes of it in
FW_offline.json there, and `lpad recover_offline` brings that to the LaunchPad later. The label stays in the folder.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dftfactory.id_pages import id_pages
from dftfactory.launches import OURS
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

FIREWORK_FILE = "FW.json"
STATE_FILE = "FW_offline.json"
PING_FILE = "FW_ping.json"


class OfflineState(Enum):
    """What the folder of an offline launch says of it."""

    UNSEEN = "unseen"  # the folder is not to be seen from here
    DAMAGED = "damaged"  # STATE_FILE is missing or cut
    WAITING = "waiting"  # no rocket has begun
    RUNNING = "running"  # a rocket has begun, and may have been killed since
    ENDED = "ended"


@dataclass(frozen=True)
class OfflineLaunch:
    """A launch that was made for offline mode and of whose end the LaunchPad does not know."""

    launch_id: int
    fw_id: int
    launch_dir: Path
    state: OfflineState


def give_zopen_its_mode() -> None:
    """Let FireWorks' rocket open its files in offline mode.

    FireWorks 2.1.4 calls `zopen(path)`, and monty refuses that since 2026.2.18: the rocket ends before it has begun,
    and `lpad recover_offline` calls it recovered. Only the rocket's own name is changed, where it has to be, and safe
    to repeat. RunDFT.from_dict is the place to call it: a rocket reads its Firework before it opens anything.
    """
    from fireworks.core import rocket

    zopen: Callable[..., IO[Any]] = getattr(rocket, "zopen", open)
    mode = inspect.signature(zopen).parameters.get("mode")
    if mode is None or mode.default is not inspect.Parameter.empty:
        return

    def zopen_with_mode(filename: str, mode: str = "rt", **options: Any) -> IO[Any]:
        return zopen(filename, mode, **options)

    rocket.zopen = zopen_with_mode


def earlier_launch_dirs(launch_dir: Path) -> list[Path]:
    """Folders of the earlier launches of the Firework of an offline rocket, from its own file, as far as they are here.

    A rocket that has the database asks it instead.
    """
    try:
        firework = json.loads((launch_dir / FIREWORK_FILE).read_text(encoding="utf-8"))
        launches = [*firework.get("archived_launches", ()), *firework.get("launches", ())]
        folders = [Path(launch["launch_dir"]) for launch in launches]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    return [folder for folder in folders if folder.is_dir() and folder != launch_dir]


@launchpad_errors()
def find_offline_launches(launchpad: LaunchPad) -> list[OfflineLaunch]:
    """Offline launches of our Fireworks that are not over for the LaunchPad, oldest first."""
    query = {"completed": False, "deprecated": False}
    unfinished = [run["launch_id"] for run in launchpad.offline_runs.find(query, {"launch_id": 1})]
    # A launch that was given up for another one is in `archived_launches`.
    pages = id_pages(unfinished)
    fireworks = (
        launchpad.fireworks.find({**OURS, "launches": {"$in": page}}, {"fw_id": 1, "launches": 1}) for page in pages
    )
    fw_ids = {launch_id: fw["fw_id"] for fw in chain.from_iterable(fireworks) for launch_id in fw["launches"]}
    ours = [launch_id for launch_id in unfinished if launch_id in fw_ids]
    keys = {"launch_id": 1, "launch_dir": 1}
    found = (launchpad.launches.find({"launch_id": {"$in": page}}, keys) for page in id_pages(ours))
    folders = {launch["launch_id"]: Path(launch["launch_dir"]) for launch in chain.from_iterable(found)}
    return [
        OfflineLaunch(launch_id, fw_ids[launch_id], folder, read_state(folder))
        for launch_id, folder in sorted(folders.items())
    ]


def read_state(launch_dir: Path) -> OfflineState:
    """Read what a rocket has left; a rocket that is just writing may show DAMAGED for a moment."""
    if not launch_dir.is_dir():
        return OfflineState.UNSEEN
    try:
        kept = json.loads((launch_dir / STATE_FILE).read_text(encoding="utf-8"))
        if "fwaction" in kept:
            complete = isinstance(kept["fwaction"], dict) and {"state", "started_on", "completed_on"} <= set(kept)
            return OfflineState.ENDED if complete else OfflineState.DAMAGED
        return OfflineState.RUNNING if "started_on" in kept else OfflineState.WAITING
    except (OSError, ValueError, TypeError):
        return OfflineState.DAMAGED


def bring_all_home(launchpad: LaunchPad, complete: Callable[[int], bool]) -> tuple[int, list[str]]:
    """Bring all offline launches home, after the labels in their folders were stored; safe to repeat.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    complete
        Sets a Firework COMPLETED whose label is stored, and says whether it was: for rockets that were killed between
        the label and their end, and for those whose file is damaged.

    Returns
    -------
    int, list of str
        How many launches ended, and where nothing could be read.
    """
    ended, problems = 0, []
    for launch in find_offline_launches(launchpad):
        home = bring_home(launchpad, launch)
        if launch.state in (OfflineState.RUNNING, OfflineState.DAMAGED) and complete(launch.fw_id):
            close(launchpad, launch.launch_id)
            ended += 1
        elif not home:
            why = "is not to be seen from here" if launch.state is OfflineState.UNSEEN else "cannot be read now"
            problems.append(f"Firework {launch.fw_id} runs offline, and {launch.launch_dir / STATE_FILE} {why}")
        elif launch.state is OfflineState.ENDED:
            ended += 1
    return ended, problems


@launchpad_errors()
def bring_home(launchpad: LaunchPad, launch: OfflineLaunch) -> bool:
    """Tell the LaunchPad what became of an offline launch; whether that worked.

    As `lpad recover_offline` does, but for two faults of it. A file that cannot be read at that moment leaves the
    Firework as it is, and is tried again; `lpad` makes it FIZZLED for good. And the last ping of the rocket is kept, so
    that `lpad detect_lostruns` does not take a living one for lost. A label in the folder is stored before this: then
    nobody finds a Firework COMPLETED without it.
    """
    if launch.state in (OfflineState.UNSEEN, OfflineState.DAMAGED):
        return False
    with warnings.catch_warnings():
        # It says so of each rocket that has ended before its first ping.
        warnings.filterwarnings("ignore", "Unable to find FW_ping", UserWarning)
        if launchpad.recover_offline(launch.launch_id, ignore_errors=True) is not None:
            return False
    ping = _last_ping(launch.launch_dir)
    if launch.state is OfflineState.RUNNING and ping is not None:
        launchpad.ping_launch(launch.launch_id, ptime=ping)
    return True


@launchpad_errors()
def close(launchpad: LaunchPad, launch_id: int) -> None:
    """Keep `lpad recover_offline` from a launch whose Firework was completed or set READY by somebody else.

    It would set that Firework RUNNING or FIZZLED again.
    """
    launchpad.forget_offline(launch_id)


def _last_ping(launch_dir: Path) -> datetime | None:
    """Return when the rocket said for the last time that it lives; None while it has not."""
    try:
        return datetime.fromisoformat(json.loads((launch_dir / PING_FILE).read_text(encoding="utf-8"))["ping_time"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
