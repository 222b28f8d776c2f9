"""A LaunchPad with a Firework in every state: through our own functions, so that it is what real runs leave."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from made_up_runs import MadeUpRun, falling, made_up_result, still
from many_fireworks import plant_many as plant_many
from paths import FILES
from upf_texts import version_2

from dftfactory.config import DFTConfig
from dftfactory.cost import spent_in_vain
from dftfactory.errors import CalculationError, PseudopotentialError
from dftfactory.failures import Failure
from dftfactory.firetasks import fizzled, only_softened, summary_of
from dftfactory.history import start_history, write_history
from dftfactory.labels import make_label, structure_from_dict
from dftfactory.launches import index_fingerprints
from dftfactory.next_job import make_ready, next_job
from dftfactory.pseudos import load_pseudopotentials
from dftfactory.store import LabelStore
from dftfactory.workflows import make_workflow

if TYPE_CHECKING:
    from fireworks import LaunchPad

VALENCES = {"Al": 3, "Fe": 8, "H": 1, "O": 6, "Si": 4}
# What a stranger may have put into the database.
MARKUP = "<script>alert(1)</script>[red]x[/red]\x1b[31m\u202e\"'"
FIRST, SECOND = "silicon", "oxides"
RESOURCES = {
    "class": "small",
    "nodes": 1,
    "cores": 4,
    "memory_mb": 4000,
    "walltime_seconds": 3600,
    "queue": "slurm",
    "partition": "debug",
    "classes": {
        "small": {"cores": 4, "nodes": 1, "memory_mb": 4000, "walltime_seconds": 7200, "partition": "debug"},
        "large": {"cores": 32, "nodes": 2, "memory_mb": 64000, "walltime_seconds": 86400, "partition": "long"},
    },
    "max_jobs": 10,
}


def plant_every_state(launchpad: LaunchPad, tmp_path: Path) -> dict[str, int]:
    """Fill a LaunchPad, and return nickname → fw_id. `running` writes its pw.out below `tmp_path`."""
    garden = Garden(launchpad, tmp_path)
    _plant_what_waits(garden)
    _plant_labels(garden)
    _plant_other_ways_to_a_label(garden)
    _plant_failures(garden)
    _plant_jobs(garden)
    _plant_running(garden)
    _plant_markup(garden)
    return garden.fw_ids


class Garden:
    """Adds Fireworks and gives them launches."""

    def __init__(self, launchpad: LaunchPad, folder: Path) -> None:
        self.launchpad, self.folder = launchpad, folder
        self.store = LabelStore(launchpad)
        self.store.prepare()
        index_fingerprints(launchpad)
        self.fw_ids: dict[str, int] = {}
        self.config = DFTConfig(
            pseudopotential_dir=str(write_pseudopotentials(folder)), ecutwfc=40, kspacing=0.3, conv_thr_per_atom=1e-9
        )
        self.now = datetime.now(timezone.utc).replace(microsecond=0)

    def add(self, nickname: str, atoms: Atoms, *campaigns: str, config: DFTConfig | None = None, **entries: Any) -> int:
        """Add a Firework, READY, as `submit` does."""
        config = config or self.config
        found = load_pseudopotentials(set(atoms.symbols), Path(str(config.pseudopotential_dir)))
        name = nickname.replace(" ", "-")
        workflow = make_workflow(atoms, name, config, found, campaigns=campaigns, entries=entries)
        (fw_id,) = self.launchpad.add_wf(workflow).values()
        self.fw_ids[nickname] = fw_id
        submitted = (self.now - timedelta(minutes=120 - len(self.fw_ids))).isoformat()
        self.launchpad.fireworks.update_one({"fw_id": fw_id}, {"$set": {"created_on": submitted}})
        return int(fw_id)

    def spec(self, fw_id: int) -> dict[str, Any]:
        spec: dict[str, Any] = self.launchpad.fireworks.find_one({"fw_id": fw_id})["spec"]
        return spec

    def launch(self, fw_id: int, host: str = "node1", *, folder: Path | None = None) -> int:
        """Begin a launch, which is RUNNING then."""
        from fireworks import FWorker

        folder = folder or self.folder / "out_of_sight" / f"launcher_{fw_id}"
        worker = FWorker(name="cluster", category="small")
        _, launch_id = self.launchpad.checkout_fw(worker, str(folder), fw_id=fw_id, host=host, ip="10.0.0.1")
        return int(launch_id)

    def end(self, launch_id: int, action: Any, state: str, *, minutes_ago: float, seconds: float) -> None:
        """End a launch some time ago, after so many seconds."""
        self.launchpad.complete_launch(launch_id, action, state)
        ended = self.now - timedelta(minutes=minutes_ago)
        self.date(launch_id, started=ended - timedelta(seconds=seconds), ended=ended)
        self.launchpad.fireworks.update_one({"launches": launch_id}, {"$set": {"updated_on": ended.isoformat()}})

    def date(self, launch_id: int, *, started: datetime, ended: datetime | None = None) -> None:
        """Change when a launch began and ended."""
        launch = self.launchpad.launches.find_one({"launch_id": launch_id})
        history = launch["state_history"]
        history[0]["created_on"] = history[0]["updated_on"] = started.isoformat()
        times: dict[str, Any] = {"time_start": started.isoformat()}
        if ended is not None:
            history[-1]["created_on"] = ended.isoformat()
            seconds = (ended - started).total_seconds()
            times |= {"time_end": ended.isoformat(), "runtime_secs": seconds}
        self.launchpad.launches.update_one({"launch_id": launch_id}, {"$set": {"state_history": history, **times}})

    def label(self, fw_id: int, run: MadeUpRun, *, minutes_ago: float, **changes: Any) -> dict[str, Any]:
        """End a Firework with a label, as RunDFT does."""
        from fireworks import FWAction

        spec = self.spec(fw_id)
        result = made_up_result(spec, run.attempts, seed=fw_id, **changes)
        config = DFTConfig(**spec["config"])
        found = load_pseudopotentials(set(result.symbols), Path(str(config.pseudopotential_dir)))
        label = make_label(result, spec["fingerprint"], config, found, campaigns=spec.get("campaigns", ()))
        self.store.put(label)
        launch_id = self.launch(fw_id)
        run_dir = self.folder / "out_of_sight" / f"launcher_{fw_id}"
        if result.quality == "exact":
            action, state = FWAction(stored_data={**summary_of(label), "run_dir": str(run_dir)}), "COMPLETED"
        else:
            action, state = fizzled(only_softened(label, run_dir)), "FIZZLED"
        self.end(launch_id, action, state, minutes_ago=minutes_ago, seconds=_seconds(run) + 2)
        return label

    def give_up(self, fw_id: int, run: MadeUpRun, *, minutes_ago: float, host: str = "node2", **more: Any) -> int:
        """End a Firework as one that recovery gave up, and return its launch."""
        launch_id = self.launch(fw_id, host)
        error = given_up(self.spec(fw_id), run, self.folder / "out_of_sight" / f"launcher_{launch_id}", **more)
        self.end(launch_id, fizzled(error), "FIZZLED", minutes_ago=minutes_ago, seconds=_seconds(run) + 2)
        return launch_id


def given_up(spec: dict[str, Any], run: MadeUpRun, run_dir: Path, **more: Any) -> CalculationError:
    """Return the error of a calculation without a label, as RunDFT raises it."""
    end = run.attempts[-1]
    said = f"{spec['calculation_id']}: {end['outcome']} at level {run.level} after {len(run.attempts)} runs"
    return CalculationError(
        f"{said}: {end['evidence']}; {end['explanation']}",
        calculation_id=spec["calculation_id"],
        failure=end["outcome"],
        level=run.level,
        evidence=end["evidence"],
        explanation=end["explanation"],
        history=run.attempts,
        run_dir=str(run_dir),
        **spent_in_vain(run.attempts),
        **more,
    )


def silicon(n: int) -> Atoms:
    """Eight atoms, a little off their sites, each time in another way."""
    atoms = bulk("Si", a=5.43, cubic=True)
    atoms.rattle(0.05, seed=n)
    return atoms


def iron(n: int) -> Atoms:
    atoms = bulk("Fe", a=2.83, cubic=True)
    atoms.rattle(0.03, seed=n)
    return atoms


def oxygen(distance: float) -> Atoms:
    atoms = Atoms("O2", positions=[(0, 0, 0), (0, 0, distance)])
    atoms.center(vacuum=3.0)
    return atoms


def _plant_what_waits(garden: Garden) -> None:
    from fireworks import FWorker

    launchpad = garden.launchpad
    garden.add("ready", silicon(1), FIRST, resources=RESOURCES)
    waiting = garden.add("waiting", silicon(2), FIRST)
    # Ours have no parents; a user may give them some.
    launchpad.fireworks.update_one({"fw_id": waiting}, {"$set": {"state": "WAITING"}})
    reserved = garden.add("reserved", silicon(3), FIRST)
    launchpad.reserve_fw(FWorker(name="cluster"), str(garden.folder / "block"), host="login1", fw_id=reserved)
    launchpad.pause_fw(garden.add("paused", silicon(4), FIRST))
    launchpad.defuse_fw(garden.add("defused", silicon(5), SECOND))
    launchpad.archive_wf(garden.add("archived", silicon(6), SECOND))


def _plant_labels(garden: Garden) -> None:
    run = partial(MadeUpRun, garden.config, 8)
    easy = run().converge(falling(0.3, 4e-9, 11), 42.5)
    garden.label(garden.add("level 0", silicon(10), FIRST), easy, minutes_ago=50)
    garden.label(garden.add("both campaigns", silicon(11), FIRST, SECOND), easy, minutes_ago=41)

    soft = run().fail(Failure.SCF_NOT_CONVERGED, still(0.02, 80), 310.0, "80 iterations, best accuracy 1.0e-02 Ry")
    assert soft.level == 1
    soft.converge(falling(0.5, 5e-9, 24), 95.0)
    garden.label(garden.add("level 1", silicon(12), FIRST), soft, minutes_ago=33)

    robust = run().fail(Failure.DIAGONALIZATION, falling(0.3, 0.02, 5), 22.0, "S matrix not positive definite")
    while robust.level < 2:
        robust.fail(Failure.SCF_NOT_CONVERGED, still(0.01, 80), 300.0, "80 iterations, best accuracy 5.0e-03 Ry")
    robust.converge(falling(0.4, 3e-9, 31), 160.0)
    garden.label(garden.add("level 2", silicon(13), FIRST), robust, minutes_ago=25)

    hot = MadeUpRun(garden.config, 2, nspin=2)
    while hot.level < 3:
        hot.fail(Failure.SCF_NOT_CONVERGED, still(0.05, 80), 120.0, "80 iterations, best accuracy 2.5e-02 Ry")
    hot.stage(falling(0.3, 6e-5, 14), 20.0).stage(falling(0.01, 7e-6, 9), 14.0).converge(falling(1e-3, 1e-9, 12), 18.0)
    moments = np.array([4.0, 4.0])
    magnetic = {"total_magnetization": 4.41, "absolute_magnetization": 4.6, "moments": moments}
    garden.label(garden.add("level 3", iron(1), SECOND), hot, minutes_ago=18, energy_per_atom=-450.0, **magnetic)

    fallen = MadeUpRun(garden.config, 2, nspin=2).converge(falling(2.0, 2e-9, 30), 75.0)
    collapsed = {"total_magnetization": 0.0, "absolute_magnetization": 0.01, "moments": moments}
    garden.label(
        garden.add("state warning", iron(2), SECOND), fallen, minutes_ago=14, energy_per_atom=-449.6, **collapsed
    )
    _plant_starts(garden, moments)


def _plant_starts(garden: Garden, moments: Any) -> None:
    """Two starts: the ferromagnetic one is the lower state, the other one fails."""
    config = garden.config.model_copy(update={"magnetism": ["auto", {"Fe": 0.5}]})
    high = MadeUpRun(config, 2, nspin=2).converge(falling(2.0, 1e-9, 28), 70.0)
    low = MadeUpRun(config, 2, nspin=2)
    while not low.is_over:
        low.fail(Failure.SCF_NOT_CONVERGED, still(0.1, 40), 90.0, "40 iterations, best accuracy 5.0e-02 Ry")
    states = []
    for number, (name, run, energy) in enumerate((("auto", high, -900.1), ("Fe 0.5", low, None))):
        folder = f"start_{number}"
        for attempt in run.attempts:
            attempt |= {"start": name, "folder": "/".join(filter(None, (folder, attempt.get("folder"))))}
        magnetization = None if energy is None else 4.4
        states.append(
            {
                "start": name,
                "folder": folder,
                "outcome": run.attempts[-1]["outcome"],
                "energy": energy,
                "total_magnetization": magnetization,
                "absolute_magnetization": magnetization,
                "level": run.level,
                "iterations": sum(attempt["iterations"] for attempt in run.attempts),
                **({"evidence": run.attempts[-1]["evidence"]} if energy is None else {}),
            }
        )
    both = MadeUpRun(config, 2)
    both.attempts = [*high.attempts, *low.attempts]
    end = {"scf_accuracy": tuple(high.attempts[-1]["scf_accuracy"]), "level": 0, "energy": -900.1, "scf_error": 1e-9}
    end |= {"conv_thr": 2e-9, "total_magnetization": 4.4, "absolute_magnetization": 4.6, "degauss": config.degauss}
    fw_id = garden.add("several starts", iron(3), SECOND, config=config)
    garden.label(fw_id, both, minutes_ago=9, states=tuple(states), moments=moments, **end)


def _plant_other_ways_to_a_label(garden: Garden) -> None:
    from fireworks import FWAction

    run = MadeUpRun(garden.config, 2)
    while run.attempts[-1]["parameters"].get("stage") != 2 and not run.is_over:
        if "stage" in run.attempts[-1]["parameters"]:
            run.stage(falling(0.2, 5e-5, 12), 16.0)
        else:
            run.fail(Failure.SCF_NOT_CONVERGED, still(0.05, 80), 110.0, "80 iterations, best accuracy 2.1e-02 Ry")
    run.converge(falling(1e-3, 1e-9, 20), 30.0)
    run.attempts[-1]["parameters"] |= {"degauss": 0.03, "softened": True, "softening": True}
    garden.label(garden.add("softened", oxygen(1.9), SECOND), run, minutes_ago=30, quality="softened")

    label = garden.store.get(garden.spec(garden.fw_ids["level 0"])["fingerprint"])
    assert label is not None
    reused = garden.add("reused", structure_from_dict(garden.spec(garden.fw_ids["level 0"])["structure"]), SECOND)
    action = FWAction(stored_data={**summary_of(label), "reused": True})
    garden.store.join_campaigns(label, [SECOND])
    garden.end(garden.launch(reused), action, "COMPLETED", minutes_ago=6, seconds=1)

    linked = garden.add("linked", structure_from_dict(garden.spec(garden.fw_ids["level 1"])["structure"]), FIRST)
    spec = garden.spec(linked)
    stored = {name: spec[name] for name in ("calculation_id", "fingerprint")} | {"linked_to": garden.fw_ids["level 1"]}
    garden.end(garden.launch(linked), FWAction(stored_data=stored), "COMPLETED", minutes_ago=34, seconds=1)


def _plant_failures(garden: Garden) -> None:
    scf = MadeUpRun(garden.config, 2, nspin=2)
    while not scf.is_over:
        evidence = "stopped early, the SCF stands still: best accuracy 3.1e-02 Ry after 60 iterations"
        scf.fail(Failure.SCF_NOT_CONVERGED, still(0.06, 60), 88.0, evidence)
    garden.give_up(garden.add("SCF_NOT_CONVERGED", oxygen(2.2), SECOND), scf, minutes_ago=44)

    memory = MadeUpRun(garden.config, 8)
    while not memory.is_over:
        memory.fail(Failure.OUT_OF_MEMORY, [], None, "Error allocating 81920000 bytes: Cannot allocate memory")
    request = {"request": {"memory_mb": 16000}}
    garden.give_up(garden.add("OUT_OF_MEMORY", silicon(20), FIRST), memory, minutes_ago=38, **request)

    squeezed = MadeUpRun(garden.config, 2, nspin=2).converge(falling(1.0, 1e-9, 22), 31.0)
    evidence = "largest force 81.2 eV/Å is above max_force = 40 eV/Å"
    said = {"evidence": evidence, "explanation": "pw.x ended well, and its result is refused"}
    squeezed.attempts[-1] |= {"outcome": "REJECTED", **said}
    garden.give_up(garden.add("REJECTED", oxygen(0.8), SECOND), squeezed, minutes_ago=29)
    _name_no_failure(garden, "REJECTED")

    missing = PseudopotentialError("no pseudopotential for H in the folder of this node; put H.upf there")
    water = molecule("H2O")
    water.center(vacuum=3.0)
    launch_id = garden.launch(garden.add("PSEUDOPOTENTIAL", water, SECOND), "node3")
    garden.end(launch_id, fizzled(missing), "FIZZLED", minutes_ago=21, seconds=1)

    # Its rlaunch was killed; `lpad detect_lostruns --fizzle` leaves no action.
    launch_id = garden.launch(garden.add("without a word", silicon(21), FIRST), "node4")
    garden.launchpad.mark_fizzled(launch_id)


def _name_no_failure(garden: Garden, nickname: str) -> None:
    """A run that ended well and is refused has no failure of pw.x."""
    path = "action.stored_data._exception._details.failure"
    garden.launchpad.launches.update_one({"fw_id": garden.fw_ids[nickname]}, {"$set": {path: None}})


def _plant_jobs(garden: Garden) -> None:
    """One that lacked memory waits for a larger job; one went on in a second job; one was retried after a failure."""
    fw_id = garden.add("second job", silicon(30), FIRST, resources=RESOURCES, _category="small")
    run = MadeUpRun(garden.config, 8)
    run.fail(Failure.OUT_OF_MEMORY, falling(0.2, 0.02, 3), 35.0, "slurmstepd: error: Detected 1 oom-kill event")
    run.attempts.pop()
    run.attempts[-1].pop("folder")
    launch_id = garden.launch(fw_id)
    wanted = {"reason": "OUT_OF_MEMORY", "memory_mb": 7000}
    make_ready(garden.launchpad, fw_id, next_job(garden.spec(fw_id), wanted))
    error = given_up(garden.spec(fw_id), run, garden.folder / "out_of_sight" / f"launcher_{launch_id}")
    garden.end(launch_id, fizzled(error), "FIZZLED", minutes_ago=12, seconds=40)

    resumed = garden.add("resumed", silicon(32), FIRST)
    garden.launch(resumed, "node5")
    make_ready(garden.launchpad, resumed, next_job(garden.spec(resumed), {"reason": "WALLTIME"}))
    long = MadeUpRun(garden.config, 8)
    of_the_job = {"time_limit": {"seconds": 600.0, "of": "queue"}, "exit_status": 2}
    long.fail(Failure.WALLTIME, falling(0.3, 1e-4, 9), 600.0, "Maximum CPU time exceeded", **of_the_job)
    garden.label(resumed, long.converge(falling(1e-4, 4e-9, 7), 420.0), minutes_ago=16)

    retried = garden.add("retried", silicon(31), FIRST)
    killed = MadeUpRun(garden.config, 8)
    killed.fail(Failure.KILLED, falling(0.2, 0.01, 4), None, "exited on signal 9 (Killed)", cpu_so_far=25.0)
    killed.attempts.pop()
    garden.give_up(retried, killed, minutes_ago=60)
    garden.launchpad.rerun_fw(retried)
    garden.label(retried, MadeUpRun(garden.config, 8).converge(falling(0.3, 4e-9, 12), 44.0), minutes_ago=3)


def _plant_running(garden: Garden) -> None:
    """One whose folder this machine sees, in its second attempt, and one on a node out of sight."""
    fw_id = garden.add("running", silicon(40), FIRST)
    run_dir = garden.folder / "launcher_running"
    write_running_folder(run_dir, "running", garden.config)
    garden.date(garden.launch(fw_id, "node1", folder=run_dir), started=garden.now - timedelta(minutes=4))
    fw_id = garden.add("running elsewhere", silicon(41), SECOND)
    garden.date(garden.launch(fw_id, "node9"), started=garden.now - timedelta(minutes=11))


def write_running_folder(run_dir: Path, calculation_id: str, config: DFTConfig) -> None:
    """Write a run folder whose second attempt, at level 0, is in its fourth SCF iteration."""
    run = MadeUpRun(config, 8)
    gaining = {"observed": {"gaining": True}}
    run.fail(
        Failure.SCF_NOT_CONVERGED, falling(0.3, 1e-5, 80), 330.0, "80 iterations, best accuracy 1.0e-05 Ry", **gaining
    )
    first, second = run_dir / "attempt_0", run_dir
    for folder, recorded in ((first, "scf_gaining"), (second, "killed")):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("pw.in", "pw.out"):
            shutil.copy(FILES / "runs" / recorded / name, folder / name)
    start_history(run_dir, calculation_id, run.configured, {"conv_thr": run.configured["conv_thr"]}, None)
    history = json.loads((run_dir / "history.json").read_text())
    write_history(run_dir, {**history, "attempts": run.attempts})


def _plant_markup(garden: Garden) -> None:
    """Everything that a stranger may write into the database has letters that somebody would obey."""
    fw_id = garden.add("markup", silicon(50), SECOND)
    run = MadeUpRun(garden.config, 8).fail(Failure.HANG, falling(0.1, 0.01, 4), 60.0, f"no output {MARKUP}")
    run.attempts.pop()
    run.attempts[-1] |= {"explanation": MARKUP}
    garden.give_up(fw_id, run, minutes_ago=2, host=f"node{MARKUP}")
    texts = {"spec.calculation_id": f"markup {MARKUP}", "spec.formula": f"Si8{MARKUP}", "name": f"Si8 {MARKUP}"}
    garden.launchpad.fireworks.update_one({"fw_id": fw_id}, {"$set": texts, "$push": {"spec.campaigns": f"c{MARKUP}"}})


def _seconds(run: MadeUpRun) -> float:
    return sum(attempt.get("wall_time") or 20.0 for attempt in run.attempts)


def write_pseudopotentials(folder: Path) -> Path:
    """Write one file for each element; nothing here is run."""
    pseudo_dir = folder / "pseudopotentials_of_every_state"
    pseudo_dir.mkdir(parents=True, exist_ok=True)
    for element, valence in VALENCES.items():
        text = version_2(element=element, z_valence=f"{valence}.0E+000", functional="PZ")
        (pseudo_dir / f"{element}.upf").write_text(text)
    return pseudo_dir
