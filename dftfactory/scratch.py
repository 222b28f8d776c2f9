"""Folders on the scratch disk: each has a note of its owner, so that those of dead calculations can be deleted."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

from dftfactory.owners import is_alive, this_process
from dftfactory.sessions import works_in

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
    owner = {**this_process(), "run_dir": str(run_dir)}
    (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")


def release(folder: Path) -> None:
    """Let nobody delete a scratch folder whose content is still needed."""
    (folder / OWNER).unlink(missing_ok=True)


def sweep(disk: Path) -> None:
    """Delete the scratch folders whose owner is certainly dead: a process of this very host that is no more.

    A folder without a readable note, or of another host, is left alone, and so is that of a pw.x which has outlived
    the Python that started it.
    """
    for note in disk.glob(f"{SCRATCH_PREFIX}*/{OWNER}"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            owner = json.loads(note.read_text(encoding="utf-8"))
            if is_alive(owner) is False and not works_in(Path(owner["run_dir"])):
                shutil.rmtree(note.parent, ignore_errors=True)
