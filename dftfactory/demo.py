"""`dftfactory demo`: the whole road on eight small structures, with real pw.x and FireWorks' own rocket launcher.

Everything that it makes stays in one folder, and everything that it does a user can do with the commands that it names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dftfactory.config import DFTConfig
from dftfactory.errors import ConfigError
from dftfactory.interrupts import postponed_signals, stopped_by_signals
from dftfactory.messages import messages_above
from dftfactory.setup_files import rocket_query

if TYPE_CHECKING:
    from ase import Atoms
    from fireworks import LaunchPad

# The folder of Debian's quantum-espresso-data; ESPRESSO_PSEUDO is the variable that pw.x itself knows.
DEBIAN_PSEUDOPOTENTIALS = "/usr/share/espresso/pseudo"
PSEUDOPOTENTIALS = {
    "Al": "Al.pz-vbc.UPF",
    "Fe": "Fe.pz-nd-rrkjus.UPF",
    "H": "H.pz-vbc.UPF",
    "O": "O.pz-rrkjus.UPF",
    "Si": "Si.pz-vbc.UPF",
}
DFT_YAML = """\
# Made for a demonstration of a few minutes: the cutoffs and k-points are far from converged.
pseudopotential_dir: {folder}
pseudopotentials: {files}
ecutwfc: 25
ecutrho: 200
kspacing: 0.5
smearing: mv
degauss: 0.02
conv_thr_per_atom: 1e-9
electron_maxstep: 30
magnetism: auto
"""
FWORKER_YAML = """\
name: demo
category: ""
query: '{query}'
env:
  pw_command: pw.x
  parallel_cores: 1
"""
# More rockets than this do not make seven small structures faster.
MAX_ROCKETS = 4


def demo_structures() -> dict[str, Atoms]:
    """Return eight structures of the kinds that a training set has, by calculation_id.

    The SCF of `O2-stretched` fails at level 0. `O2-squeezed` converges, to forces that no label should have.
    """
    from ase import Atoms
    from ase.build import bulk, fcc111, molecule

    silicon = bulk("Si", a=5.43)
    aluminium = bulk("Al", a=4.05, cubic=True)
    strained = bulk("Si", a=5.43 * 1.03)
    iron = bulk("Fe", a=2.83, cubic=True)
    slab = fcc111("Al", size=(1, 1, 4), a=4.05, vacuum=4.0)
    for seed, atoms in enumerate((silicon, aluminium, strained, iron, slab)):
        atoms.rattle(0.05, seed=seed)
    water = molecule("H2O")
    stretched = Atoms("O2", positions=[(0, 0, 0), (0, 0, 1.8)], magmoms=[1, 1])
    squeezed = Atoms("O2", positions=[(0, 0, 0), (0, 0, 0.9)], magmoms=[1, 1])
    for atoms in (water, stretched, squeezed):
        atoms.center(vacuum=3.0)
    return {
        "Si-bulk": silicon,
        "Si-strained": strained,
        "Al-bulk": aluminium,
        "Al111-slab": slab,
        "H2O-in-a-box": water,
        "Fe-magnetic": iron,
        "O2-stretched": stretched,
        "O2-squeezed": squeezed,
    }


@stopped_by_signals()
def run_demo(folder: Path) -> None:
    """Make candidates, start a LaunchPad, submit, run, sync, export, and print what came out.

    Whatever ends it, SIGTERM and SIGHUP included, neither server nor rocket nor pw.x is left behind.

    Raises
    ------
    ConfigError
        The folder exists, or pw.x or the pseudopotentials of Debian's package are not there.
    LaunchPadError
        The local server cannot be started.
    """
    from dftfactory.candidates import open_candidates
    from dftfactory.display import candidate_table, number_of
    from dftfactory.export import export_labels
    from dftfactory.launchpad import load_launchpad
    from dftfactory.local_launchpad import start_local_launchpad, stop_local_launchpad
    from dftfactory.pipeline import submit, sync
    from dftfactory.store import LabelStore

    console = Console(highlight=False)
    began = time.monotonic()
    _refuse_what_cannot_work(folder)
    _write_files(folder)
    structures = demo_structures()
    _write_candidates(folder / "candidates.db", structures)
    console.print(f"{len(structures)} SELECTED structures in {folder}/candidates.db")
    try:
        local = start_local_launchpad(folder / "launchpad")
        console.print(f"LaunchPad on 127.0.0.1:{local.port}  (dftfactory launchpad start)")
        launchpad = load_launchpad(local.launchpad_file)
        config = DFTConfig.from_yaml(folder / "dft.yaml")
        summary = submit(open_candidates(folder / "candidates.db"), config, launchpad)
        console.print(f"{summary.added} Fireworks queued  (dftfactory submit candidates.db --config dft.yaml)")
        rockets = min(MAX_ROCKETS, len(os.sched_getaffinity(0)))
        console.print(f"{rockets} {'rocket' if rockets == 1 else 'rockets'}  (rlaunch -w my_fworker.yaml rapidfire)")
        with _rockets(folder, local.launchpad_file, rockets) as processes:
            _watch(console, launchpad, processes, summary.added)
        sync(open_candidates(folder / "candidates.db"), launchpad)
        exported = export_labels(LabelStore(launchpad).all(), folder / "train.extxyz")
        rows = list(_rows(folder / "candidates.db", LabelStore(launchpad)))
    finally:
        stop_local_launchpad(folder / "launchpad")
    console.print(candidate_table(rows))
    for row in rows:
        if row["reason"]:
            console.print(row["reason"], markup=False, style="red")
    console.print(
        f"{number_of(exported.written, 'label')} in {folder}/train.extxyz  (dftfactory export train.extxyz), "
        f"{time.monotonic() - began:.0f} s, LaunchPad stopped"
    )


def _refuse_what_cannot_work(folder: Path) -> None:
    if folder.exists():
        raise ConfigError(f"{folder} already exists; remove it, or name another folder: dftfactory demo FOLDER")
    if shutil.which("pw.x") is None:
        raise ConfigError("pw.x is not in the PATH; install it with `apt-get install -y quantum-espresso`")
    missing = [name for name in PSEUDOPOTENTIALS.values() if not (_pseudopotential_dir() / name).is_file()]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not found in {_pseudopotential_dir()}; install quantum-espresso-data, "
            "or set ESPRESSO_PSEUDO to the folder that has them"
        )


def _pseudopotential_dir() -> Path:
    return Path(os.environ.get("ESPRESSO_PSEUDO", DEBIAN_PSEUDOPOTENTIALS))


def _write_files(folder: Path) -> None:
    (folder / "runs").mkdir(parents=True)
    files = "{" + ", ".join(f"{element}: {file}" for element, file in PSEUDOPOTENTIALS.items()) + "}"
    (folder / "dft.yaml").write_text(DFT_YAML.format(folder=_pseudopotential_dir(), files=files), encoding="utf-8")
    (folder / "my_fworker.yaml").write_text(FWORKER_YAML.format(query=rocket_query()), encoding="utf-8")


def _write_candidates(path: Path, structures: dict[str, Atoms]) -> None:
    import ase.db

    with ase.db.connect(path) as db:
        for name, atoms in structures.items():
            db.write(atoms, status="SELECTED", calculation_id=name)


@contextlib.contextmanager
def _rockets(folder: Path, launchpad_file: Path, number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start FireWorks' rocket launcher a few times; whatever happens, none is left behind."""
    command = [sys.executable, "-m", "fireworks.scripts.rlaunch_run"]
    command += ["-l", str(launchpad_file.resolve()), "-w", str((folder / "my_fworker.yaml").resolve()), "rapidfire"]
    processes = []
    with contextlib.ExitStack() as logs:
        try:
            for n in range(number):
                log = logs.enter_context((folder / "runs" / f"rlaunch_{n}.log").open("wb"))
                options: dict[str, Any] = {"cwd": folder / "runs", "stdin": subprocess.DEVNULL}
                with postponed_signals():
                    processes.append(subprocess.Popen(command, **options, stdout=log, stderr=subprocess.STDOUT))
            yield processes
        finally:
            # RunDFT stops pw.x with it. FireWorks takes that for the failure of one Firework and goes on with the next.
            while alive := [process for process in processes if process.poll() is None]:
                for process in alive:
                    process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    alive[0].wait(1)


def _watch(console: Console, launchpad: LaunchPad, processes: list[subprocess.Popen[bytes]], total: int) -> None:
    """Show how far it is until nothing is left to run, or no rocket is left to run it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress, messages_above():
        task = progress.add_task("starting", total=total)
        done: set[str] = set()
        while True:
            alive = any(process.poll() is None for process in processes)
            running = []
            for firework in launchpad.fireworks.find({}, {"_id": 0, "name": 1, "state": 1}):
                name = firework["name"].split()[-1]
                if firework["state"] in ("COMPLETED", "FIZZLED") and firework["name"] not in done:
                    done.add(firework["name"])
                    progress.console.print(f"  {firework['state']:9} {name}")
                elif firework["state"] == "RUNNING":
                    running.append(name)
            progress.update(task, completed=len(done), description=f"running {', '.join(running) or '-'}")
            if len(done) >= total or not alive:
                return
            time.sleep(0.5)


def _rows(path: Path, store: Any) -> Iterator[dict[str, Any]]:
    import ase.db
    import numpy as np

    for row in ase.db.connect(path).select():
        keys = row.key_value_pairs
        label = store.get(keys["fingerprint"]) if "fingerprint" in keys else None
        history = label["result"]["history"] if label else []
        yield {
            "name": keys["calculation_id"],
            "status": keys["status"],
            "level": keys.get("level"),
            "iterations": sum(attempt["iterations"] for attempt in history) if label else None,
            "seconds": sum(attempt["wall_time"] or 0.0 for attempt in history) if label else None,
            "energy": row.get("energy") if label else None,
            "max_force": float(np.linalg.norm(row.forces, axis=1).max()) if label else None,
            "failure": keys.get("failure"),
            "reason": keys.get("reason"),
        }
