"""Folders on the scratch disk: each has a note of its owner, so that those of dead calculations can be deleted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from dftfactory.sessions import PROC, start_of, works_in

SCRATCH_PREFIX = "dftfactory-"
OWNER = "owner.json"


def make_scratch(disk: Path, run_dir: Path) -> Path:
    """Make a folder for the run on the scratch disk, after the folders of dead calculations have been deleted."""
    disk.mkdir(parents=True, exist_ok=True)
    sweep(disk)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=disk))
    take(folder, run_dir)
    return folder


def is_scratch(folder: Path) -> bool:
    """Whether the folder is one that `make_scratch` has made."""
    return folder.name.startswith(SCRATCH_PREFIX)


def take(folder: Path, run_dir: Path) -> None:
    """Write down that this process works in a scratch folder, for the run in `run_dir`."""
    owner = {**_this_host(), "pid": os.getpid(), "started": start_of(os.getpid()), "run_dir": str(run_dir)}
    (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")


def release(folder: Path) -> None:
    """Let nobody delete a scratch folder whose content is still needed."""
    (folder / OWNER).unlink(missing_ok=True)


def sweep(disk: Path) -> None:
    """Delete the scratch folders whose owner is certainly dead: a process of this very host that is no more.

    A folder without a readable note, or of another host, is left alone, and so is that of a pw.x which has outlived
    the Python that started it. After a reboot the note is that of another host: nothing tells a reboot from a second
    machine of the same name.
    """
    for note in disk.glob(f"{SCRATCH_PREFIX}*/{OWNER}"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            owner = json.loads(note.read_text(encoding="utf-8"))
            if _is_dead(owner) and not works_in(Path(owner["run_dir"])):
                shutil.rmtree(note.parent, ignore_errors=True)


def _is_dead(owner: dict[str, Any]) -> bool:
    here = _this_host()
    if None in here.values() or any(owner[name] != value for name, value in here.items()):
        return False
    # The kernel gives a pid again; the time at which its process began tells the two apart.
    return owner["started"] is not None and start_of(int(owner["pid"])) != owner["started"]


def _this_host() -> dict[str, str | None]:
    """Name one kernel and, for containers, the one room in it whose processes we can see."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return {"host": socket.gethostname(), "boot": boot, "processes": str((PROC / "self/ns/pid").readlink())}
    except OSError:
        return {"host": None}
