"""Many structures with a recorded run each, made from one: the second atom moves, and the numbers with it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from stand_in_pw import key_of

from dftfactory.config import DFTConfig
from dftfactory.parsers import read_pw_output
from dftfactory.units import BOHR

FILES = Path(__file__).parent.parent / "files"
PROGRAM = Path(__file__).with_name("stand_in_pw.py")
STEP = 0.001  # Å; what the second atom moves from one structure to the next
ENERGY_STEP, FORCE_STEP = 1e-3, 1e-5  # Ry, Ry/bohr


def structure(n: int) -> Atoms:
    """Return the structure number `n`; number 0 is the recorded one."""
    atoms = bulk("Si", a=5.43)
    atoms.positions[1] += (0.05 + STEP * n, 0.0, 0.02)
    return atoms


def overlapping() -> Atoms:
    """Return a structure that `submit` refuses."""
    atoms = bulk("Si", a=5.43)
    atoms.positions[1] = (0.1, 0.0, 0.0)
    return atoms


@dataclass(frozen=True)
class StandIn:
    """A stand-in pw.x with its recordings and what it has noted."""

    folder: Path

    @property
    def command(self) -> list[str]:
        """`pw_command` of a worker."""
        return [sys.executable, "-IS", str(PROGRAM), str(self.folder)]

    def record(self, n: int, config: DFTConfig, *, fails: bool = False) -> str:
        """Record the run of a structure, and return its key; with `fails` pw.x refuses the input."""
        source = FILES / ("pw/nml_unknown_key" if fails else "runs/converged")
        given = _moved_input(n)
        key = key_of(given)
        target = self.folder / "recorded" / key
        shutil.copytree(source, target)
        (target / "pw.in").write_text(given)
        if not fails:
            (target / "pw.out").write_text(_moved_output((source / "pw.out").read_text(), n))
            (target / "out/pwscf.xml").write_text(_moved_xml((source / "out/pwscf.xml").read_text(), n))
        return key

    def label(self, key: str) -> dict[str, Any]:
        """Return what a label of the recorded run must hold, to the last digit."""
        return numbers_of(read_pw_output(self.folder / "recorded" / key).to_dict())

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What was noted, oldest first: `start`, `stopped`, `end`, `violation`."""
        file = self.folder / "events"
        lines = file.read_text().splitlines() if file.exists() else []
        events = [json.loads(line) for line in lines]
        return [event for event in events if kind in (None, event["event"])]

    def hold(self) -> None:
        """Let each run wait before its end until `let_go`."""
        (self.folder / "gate").touch()

    def let_go(self) -> None:
        """End what `hold` has begun."""
        (self.folder / "gate").unlink(missing_ok=True)


def make_stand_in(folder: Path, seconds: tuple[float, float] = (0.0, 0.0), **settings: Any) -> StandIn:
    """Make a stand-in in a new folder, whose runs take between so many seconds."""
    (folder / "recorded").mkdir(parents=True)
    defaults = {"seconds": seconds, "wavefunction": 1000, "real": "pw.x"}
    (folder / "settings.json").write_text(json.dumps({**defaults, **settings}))
    return StandIn(folder)


def numbers_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a label for which it is made."""
    return {name: result[name] for name in ("energy", "smearing_energy", "forces", "stress")}


def _moved_input(n: int) -> str:
    text = (FILES / "runs/converged/pw.in").read_text()
    return text.replace("1.4075000000", f"{1.4075 + STEP * n:.10f}")


def _moved_output(text: str, n: int) -> str:
    """The text of pw.x for structure `n`: position, energy with one of its terms, forces and total force."""
    alat = 7.255773194184 * BOHR
    text = text.replace("0.3665756", f"{0.3665756 + STEP * n / alat:.7f}")
    shift = ENERGY_STEP * n
    for before in ("-15.78795310", "-15.78777440"):
        text = text.replace(before, f"{float(before) + shift:.8f}")
    text = text.replace("       4.68152100", f"{4.68152100 + shift:17.8f}")
    force = np.array([0.02435955 + FORCE_STEP * n, -0.00349952, 0.00980569])
    text = text.replace(" 0.02435955 ", f" {force[0]:.8f} ").replace("-0.02435955 ", f"-{force[0]:.8f} ")
    return text.replace("0.037464", f"{np.sqrt(2) * np.linalg.norm(force):.6f}")


def _moved_xml(text: str, n: int) -> str:
    text = text.replace("2.659789520410771e0", f"{2.659789520410771 + STEP * n / BOHR:.15f}")
    text = text.replace("-7.893976551710235e0", f"{-7.893976551710235 + ENERGY_STEP * n / 2:.15f}")
    force = 1.217977605101097e-2 + FORCE_STEP * n / 2
    return re.sub(r"1\.217977605101097e-2", f"{force:.15f}", text)
