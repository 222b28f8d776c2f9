"""Many Fireworks with what became of them, for measurements: written as documents, because `submit` would take long."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from made_up_runs import MadeUpRun, falling, made_up_result, still

from dftfactory.cost import spent_in_vain
from dftfactory.errors import CalculationError
from dftfactory.failures import Failure
from dftfactory.firetasks import fizzled, summary_of
from dftfactory.labels import make_label
from dftfactory.launches import index_fingerprints
from dftfactory.pseudos import load_pseudopotentials
from dftfactory.store import LabelStore
from dftfactory.workflows import make_spec, metadata_of

if TYPE_CHECKING:
    from fireworks import LaunchPad

    from dftfactory.config import DFTConfig

PAGE = 500
CAMPAIGNS = ("first", "second", "third")
# Of a hundred Fireworks: the others have a label at level 0.
KINDS = {"READY": 8, "FIZZLED": 6, "level 1": 4, "level 3": 2}
SECONDS_EACH = 8


def plant_many(launchpad: LaunchPad, number: int, config: DFTConfig) -> None:
    """Add `number` Fireworks of 2 to 8 atoms, with launches and labels; the last ones ended just now.

    Parameters
    ----------
    launchpad
        An empty one.
    config
        With the folder of pseudopotentials for Si, Al and Fe.
    """
    index_fingerprints(launchpad)
    LabelStore(launchpad).prepare()
    now = datetime.now(timezone.utc)
    kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
    kinds += ["level 0"] * (100 - len(kinds))
    planted = (
        _planted(fw_id, kinds[fw_id * 37 % 100], config, now - timedelta(seconds=SECONDS_EACH * (number - fw_id)))
        for fw_id in range(1, number + 1)
    )
    while page := list(islice(planted, PAGE)):
        for collection, name in (
            (launchpad.fireworks, "firework"),
            (launchpad.workflows, "workflow"),
            (launchpad.launches, "launch"),
            (launchpad.db.dft_results, "label"),
        ):
            if documents := [entry[name] for entry in page if entry.get(name)]:
                collection.insert_many(documents)
    launchpad.fw_id_assigner.update_one({}, {"$set": {"next_fw_id": number + 1, "next_launch_id": number + 1}})


def _planted(fw_id: int, kind: str, config: DFTConfig, ended: datetime) -> dict[str, Any]:
    atoms = _structure(fw_id)
    found = load_pseudopotentials(set(atoms.symbols), Path(str(config.pseudopotential_dir)))
    spec = make_spec(atoms, f"structure-{fw_id}", config, found) | {"campaigns": [CAMPAIGNS[fw_id % len(CAMPAIGNS)]]}
    entry: dict[str, Any] = {}
    state, action = "READY", None
    if kind != "READY":
        run = _run(kind, config, len(atoms))
        state = "FIZZLED" if kind == "FIZZLED" else "COMPLETED"
        if state == "FIZZLED":
            action = fizzled(_error(spec, run)).to_dict()
        else:
            result = made_up_result(spec, run.attempts, seed=fw_id)
            entry["label"] = make_label(result, spec["fingerprint"], config, found, campaigns=spec["campaigns"])
            action = {"stored_data": summary_of(entry["label"]), "exit": False}
        entry["launch"] = _launch(fw_id, state, action, ended)
    times = {"created_on": (ended - timedelta(days=1)).isoformat(), "updated_on": ended.isoformat()}
    entry["firework"] = {
        "fw_id": fw_id,
        "name": f"{spec['formula']} {spec['calculation_id']}",
        "state": state,
        "launches": [fw_id] if action else [],
        "archived_launches": [],
        "spec": {**spec, "_tasks": [{"_fw_name": "{{dftfactory.firetasks.RunDFT}}"}]},
        **times,
    }
    entry["workflow"] = {
        "nodes": [fw_id],
        "links": {str(fw_id): []},
        "parent_links": {},
        "fw_states": {str(fw_id): state},
        "state": state,
        "name": entry["firework"]["name"],
        "metadata": metadata_of(spec),
        **times,
    }
    return entry


def _structure(number: int) -> Atoms:
    cells = (bulk("Si", a=5.43, cubic=True), bulk("Al", a=4.05, cubic=True), bulk("Fe", a=2.83, cubic=True))
    atoms = cells[number % len(cells)]
    atoms.positions += np.random.default_rng(number).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def _run(kind: str, config: DFTConfig, n_atoms: int) -> MadeUpRun:
    run = MadeUpRun(config, n_atoms)
    while kind == "FIZZLED" and not run.is_over:
        run.fail(Failure.SCF_NOT_CONVERGED, still(0.05, 80), 100.0, "80 iterations, best accuracy 2.5e-02 Ry")
    level = int(kind[-1]) if kind.startswith("level") else 0
    while run.level < level:
        run.fail(Failure.SCF_NOT_CONVERGED, still(0.05, 60), 80.0, "stopped early, the SCF stands still")
    if level == 3:
        run.stage(falling(0.3, 6e-5, 14), 20.0).stage(falling(0.01, 7e-6, 9), 14.0)
    return run if kind == "FIZZLED" else run.converge(falling(0.3, 1e-9, 12), 40.0)


def _error(spec: dict[str, Any], run: MadeUpRun) -> CalculationError:
    end = run.attempts[-1]
    return CalculationError(
        f"{spec['calculation_id']}: {end['outcome']} at level {run.level}",
        calculation_id=spec["calculation_id"],
        failure=end["outcome"],
        level=run.level,
        evidence=end["evidence"],
        explanation=end["explanation"],
        history=run.attempts,
        run_dir="/nowhere",
        **spent_in_vain(run.attempts),
    )


def _launch(fw_id: int, state: str, action: dict[str, Any], ended: datetime) -> dict[str, Any]:
    began = ended - timedelta(seconds=45)
    return {
        "launch_id": fw_id,
        "fw_id": fw_id,
        "launch_dir": f"/nowhere/launcher_{fw_id}",
        "fworker": {"name": "bench", "category": "", "query": "{}", "env": {}},
        "host": f"node{fw_id % 16}",
        "ip": "127.0.0.1",
        "trackers": [],
        "action": action,
        "state": state,
        "state_history": [
            {"state": "RUNNING", "created_on": began.isoformat(), "updated_on": began.isoformat()},
            {"state": state, "created_on": ended.isoformat()},
        ],
        "time_start": began.isoformat(),
        "time_end": ended.isoformat(),
        "runtime_secs": 45.0,
    }
