"""A stand-in pw.x that takes its time and may be killed: it plays the recorded run of the structure that it is given.

Started as `python -IS stand_in_pw.py FOLDER -in pw.in`, in a run folder. FOLDER has `recorded/KEY` for each structure
(`recordings.py` makes them), `settings.json`, and `events`, to which each start, soft stop and end appends a line. A
structure that is not recorded goes to the real pw.x.

As pw.x does, it writes its output bit by bit, saves its state and stops when it finds an EXIT file, goes on from that
state when asked to restart, dies of SIGTERM without a word, and says JOB DONE although the disk is full. Besides, it
notices when another one computes the same structure at the same time, or the label of a structure is there already.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

HEAD = "Initial potential from superposition"


def key_of(pw_input: str) -> str:
    """Name a structure by cell and positions of a pw.in, to 1e-4 Å."""
    cards = pw_input.partition("CELL_PARAMETERS")[2]
    numbers = [float(number) for number in re.findall(r"(?<![\w.])-?\d+\.\d+", cards)]
    return hashlib.sha256(" ".join(f"{number + 0.0:.4f}" for number in numbers).encode()).hexdigest()[:12]


def note(folder: Path, event: str, **facts: Any) -> None:
    """Append one line to the events, on the disk before anything else happens."""
    line = json.dumps({"event": event, "pid": os.getpid(), "time": time.time(), "cwd": str(Path.cwd()), **facts})
    descriptor = os.open(folder / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> int:
    """Play one run."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    given = Path("pw.in").read_text()
    key = key_of(given)
    # Held to the very end of this process, whatever that is, and of the real pw.x.
    lock = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    restart = "restart_mode     = 'restart'" in given
    note(folder, "start", key=key, restart=restart)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(folder, "violation", key=key, what="a second pw.x beside a living one")
    recorded = folder / "recorded" / key
    if not recorded.is_dir():
        os.execvp(settings["real"], [settings["real"], *sys.argv[2:]])  # noqa: S606
    return _play(folder, recorded, key, given, settings, restart=restart)


def _play(folder: Path, recorded: Path, key: str, given: str, settings: dict[str, Any], *, restart: bool) -> int:
    # As pw.x does, it says the md5 of the files that it is given.
    pseudo_dir = re.search(r"pseudo_dir *= *'(.*)'", given)
    file = Path(pseudo_dir[1] if pseudo_dir else ".") / "Si.pz-vbc.UPF"
    md5 = hashlib.md5(file.read_bytes()).hexdigest()  # noqa: S324  # it is what pw.x prints
    text = re.sub(r"(?<=MD5 check sum: )\w+", md5, (recorded / "pw.out").read_text())
    pieces = re.split(rf"(?m)^(?= *iteration #| *{HEAD}| *Writing output data)", text)
    state = Path("out/pwscf.save/progress.json")
    begin = 0
    if restart:
        saved = json.loads(state.read_text()) if state.is_file() else {}
        if saved.get("key") == key:
            begin = saved["done"]
        else:
            note(folder, "violation", key=key, what="a restart without its state")
    with contextlib.suppress(OSError):
        state.parent.mkdir(parents=True, exist_ok=True)
        Path("out/pwscf.wfc1").write_bytes(b"0" * settings["wavefunction"])
    spread = random.Random(f"{key} {os.getpid()}").uniform(*settings["seconds"])  # noqa: S311
    # Some take so long that a rocket which dies is missed, and its work given to another one, while they still run.
    spread *= settings.get("longer", 1) if int(key, 16) % 6 == 0 else 1
    for number, piece in enumerate(pieces[:-1]):
        _write(piece)
        if number < begin:
            continue
        if _stopped(spread / len(pieces), settings, folder, key):
            return _stop(folder, key, state, number)
    with contextlib.suppress(OSError):
        if (recorded / "out/pwscf.xml").is_file():
            Path("out/pwscf.xml").write_bytes((recorded / "out/pwscf.xml").read_bytes())
    status = recorded / "exit_status"
    if (recorded / "CRASH").is_file():
        with contextlib.suppress(OSError):
            Path("CRASH").write_bytes((recorded / "CRASH").read_bytes())
    _write(pieces[-1])
    # The state of a run that ended well is saved, too.
    _save(state, key, len(pieces) - 1)
    note(folder, "end", key=key)
    return int(status.read_text()) if status.is_file() else 0


def _write(text: str) -> None:
    # A full disk takes a part of it, and nobody says so.
    with contextlib.suppress(OSError):
        os.write(1, text.encode())


def _stopped(seconds: float, settings: dict[str, Any], folder: Path, key: str) -> bool:
    """Work for so long, and as long as a test holds it; whether an EXIT file has come."""
    end = time.monotonic() + seconds
    gate = folder / "gate"
    while True:
        for name in ("pwscf.EXIT", "out/pwscf.EXIT"):
            if Path(name).exists() and not settings.get("deaf"):
                Path(name).unlink()
                return True
        if time.monotonic() >= end and not gate.exists():
            return False
        time.sleep(0.02)


def _stop(folder: Path, key: str, state: Path, done: int) -> int:
    """Save and stop, as after an EXIT file."""
    _save(state, key, done)
    _write("\n     Program stopped by user request\n\n=---=\n   JOB DONE.\n=---=\n")
    note(folder, "stopped", key=key, done=done)
    return 2


def _save(state: Path, key: str, done: int) -> None:
    with contextlib.suppress(OSError):
        (state.parent / "charge-density.dat").write_bytes(b"0" * 1000)
        state.write_text(json.dumps({"key": key, "done": done}))


if __name__ == "__main__":
    sys.exit(main())
