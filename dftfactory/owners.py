"""Which process a thing belongs to, written down so that other processes can tell whether it lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dftfactory.sessions import PROC, start_of

MACHINE_ID = Path("/etc/machine-id")


def this_process() -> dict[str, Any]:
    """Return plain values that name this process and no other one, on this machine and on every other."""
    return {**this_host(), "user": os.getuid(), "pid": os.getpid(), "started": start_of(os.getpid())}


def is_alive(owner: Mapping[str, Any]) -> bool | None:
    """Whether the process that `this_process` has described still lives; None when that cannot be told from here."""
    here = this_host()
    if not here or not isinstance(owner, Mapping) or owner.get("host") != here["host"]:
        return None
    if owner.get("boot") != here["boot"]:
        # Only the same machine has booted again; another one of the same name is out of sight.
        same_machine = here["machine"] and owner.get("machine") == here["machine"]
        return False if same_machine else None
    if owner.get("processes") != here["processes"] or owner.get("started") is None:
        return None
    started = start_of(int(owner["pid"]))
    if started is None and os.getuid() not in (0, owner.get("user")):
        return None  # some systems hide the processes of others
    # The kernel gives a pid again; the time at which its process began tells the two apart.
    return bool(started == owner["started"])


def this_host() -> dict[str, str]:
    """Name one kernel and, for containers, the one room in it whose processes we can see; empty where it cannot."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        processes = str((PROC / "self/ns/pid").readlink())
    except OSError:
        return {}
    try:
        machine = MACHINE_ID.read_text(encoding="utf-8").strip()
    except OSError:
        machine = ""
    return {"host": socket.gethostname(), "machine": machine, "boot": boot, "processes": processes}
