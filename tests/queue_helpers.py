"""What the tests of the queue share: candidate databases, labels without a calculation, rockets as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.db
import numpy as np
from ase import Atoms
from ase.db.core import Database
from ruamel.yaml import YAML

from dftfactory.candidates import open_candidates
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.labels import structure_from_dict
from dftfactory.results import DFTResult

if TYPE_CHECKING:
    from fireworks import LaunchPad


def make_database(path: Path, *structures: Atoms, **keys: Any) -> Database:
    """A candidate database in which all structures are SELECTED, with ids a, b, c, ..."""
    with ase.db.connect(path) as db:
        for number, atoms in enumerate(structures):
            db.write(atoms, **({"status": "SELECTED", "calculation_id": "abcdefghijklmnopqrstuvwxyz"[number]} | keys))
    return open_candidates(path)


def rows(db: Database) -> dict[str, Any]:
    """calculation_id → row, read anew."""
    return {str(row.calculation_id): row for row in ase.db.connect(db.filename).select()}


def statuses(db: Database) -> dict[str, str]:
    return {name: row.status for name, row in rows(db).items()}


def shifted(atoms: Atoms, distance: float) -> Atoms:
    """The same atoms with the last one moved along x, by Å: another structure."""
    other = atoms.copy()
    other.positions[-1, 0] += distance
    return other


def label_for(spec: dict[str, Any], quality: str = "exact", energy: float = -215.0) -> dict[str, Any]:
    """A label for the structure of a specification, as RunDFT would store it."""
    atoms = structure_from_dict(spec["structure"])
    result = DFTResult(
        energy=energy,
        smearing_energy=-0.01,
        forces=np.full((len(atoms), 3), 0.25),
        stress=np.eye(3) * 0.125,
        symbols=tuple(atoms.symbols),
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=tuple(bool(periodic) for periodic in atoms.pbc),
        degauss=0.02 if quality == "exact" else 0.03,
        conv_thr=2e-9,
        scf_accuracy=(1e-3, 1e-10),
        scf_error=1e-10,
        iterations=11,
        wall_time=1.5,
        n_kpoints=4,
        n_ranks=1,
        pw_version="6.7",
        source="xml",
        quality=quality,
        level=0 if quality == "exact" else 3,
        calculation_id=spec["calculation_id"],
    )
    return {
        "fingerprint": spec["fingerprint"],
        "calculation_id": spec["calculation_id"],
        "config_hash": spec["config_hash"],
        "formula": spec["formula"],
        "level": result.level,
        "quality": quality,
        "result": result.to_dict(),
        "pseudopotentials": spec["pseudopotentials"],
        "label_parameters": DFTConfig(**spec["config"]).label_parameters(),
        "created_on": "2026-01-01T00:00:00+00:00",
        "dftfactory": "0.1.0",
    }


def specs(launchpad: LaunchPad) -> dict[str, dict[str, Any]]:
    """calculation_id → specification of all Fireworks."""
    return {entry["spec"]["calculation_id"]: entry["spec"] for entry in launchpad.fireworks.find({}, {"spec": 1})}


def states(launchpad: LaunchPad) -> dict[int, str]:
    return {entry["fw_id"]: entry["state"] for entry in launchpad.fireworks.find({}, {"fw_id": 1, "state": 1})}


def write_launchpad_file(launchpad: LaunchPad, folder: Path) -> Path:
    file = folder / "my_launchpad.yaml"
    file.write_text(json.dumps(launchpad.to_dict()))
    file.chmod(0o600)
    return file


def start_rlaunch(
    launchpad: LaunchPad, folder: Path, worker: WorkerConfig | dict[str, Any], *words: str
) -> subprocess.Popen[str]:
    """Start FireWorks' rocket launcher in a folder of its own, as a user does."""
    folder.mkdir(exist_ok=True)
    env = worker if isinstance(worker, dict) else worker.to_dict()
    with (folder / "my_fworker.yaml").open("w") as file:
        YAML(typ="safe").dump({"name": "test", "category": "", "query": "{}", "env": env}, file)
    files = ["-l", str(write_launchpad_file(launchpad, folder)), "-w", str(folder / "my_fworker.yaml")]
    return subprocess.Popen(
        [sys.executable, "-m", "fireworks.scripts.rlaunch_run", *files, *words],
        cwd=folder,
        # It finds the same packages as we do, from its own folder.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rlaunch(launchpad: LaunchPad, folder: Path, worker: WorkerConfig | dict[str, Any], *words: str) -> str:
    """Run one Firework, or what `words` say, and return what was printed."""
    process = start_rlaunch(launchpad, folder, worker, *(words or ("singleshot",)))
    printed, _ = process.communicate(timeout=120)
    return printed
