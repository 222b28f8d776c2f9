"""What dftfactory costs beyond pw.x itself: QERunner, the rlaunch path, the parser, the log, submit.

Usage: python tests/benchmarks/overhead.py [--labels N] [--structures N]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ase.db
from ase import Atoms
from ase.build import bulk, molecule

from dftfactory import DFTConfig, QERunner, WorkerConfig, read_pw_output
from dftfactory.candidates import open_candidates
from dftfactory.demo import DEBIAN_PSEUDOPOTENTIALS, PSEUDOPOTENTIALS
from dftfactory.events import attempt_ended, shown_on
from dftfactory.launchpad import load_launchpad
from dftfactory.local_launchpad import start_local_launchpad, stop_local_launchpad
from dftfactory.pipeline import submit

CONFIG = DFTConfig(
    pseudopotential_dir=DEBIAN_PSEUDOPOTENTIALS,
    pseudopotentials=PSEUDOPOTENTIALS,
    ecutwfc=15,
    kspacing=0.7,
    conv_thr_per_atom=1e-8,
)
WORKER = WorkerConfig()


def main() -> None:
    """Run all measurements and print one line for each."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--labels", type=int, default=100, help="Fireworks of the rlaunch path")
    arguments.add_argument("--structures", type=int, default=1000, help="structures to submit")
    options = arguments.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="dftfactory-bench-") as folder:
        measure_runner(Path(folder))
        measure_parser(Path(folder))
        measure_log(Path(folder))
        measure_queue(Path(folder), options.labels)
        measure_submit(Path(folder), options.structures)


def measure_runner(folder: Path, repeats: int = 15) -> None:
    """QERunner against pw.x alone on the input that QERunner wrote, one after the other."""
    atoms = rattled_silicon(0)
    runner = QERunner(CONFIG, WORKER)
    runner.run(atoms, folder / "warm-up")
    bare, ours = [], []
    for n in range(repeats):
        alone = folder / f"bare_{n}"
        alone.mkdir()
        shutil.copy(folder / "warm-up" / "pw.in", alone / "pw.in")
        bare.append(seconds(lambda alone=alone: run_pw(alone)))
        ours.append(seconds(lambda n=n: runner.run(atoms, folder / f"runner_{n}")))
    difference = statistics.median(b - a for a, b in zip(bare, ours, strict=True))
    print(f"QERunner: pw.x alone {statistics.median(bare):.3f} s, with QERunner {statistics.median(ours):.3f} s, "
          f"adds {difference:.3f} s (median of {repeats} pairs)")  # fmt: skip


def measure_parser(folder: Path, repeats: int = 20) -> None:
    """Reading of a finished run of 100 atoms, from XML with all its checks, and from the text alone."""
    atoms = bulk("Al", a=4.05).repeat((5, 5, 4))
    atoms.rattle(0.05, seed=1)
    run_dir = folder / "hundred_atoms"
    config = CONFIG.model_copy(update={"ecutwfc": 8.0, "kspacing": 1.0, "conv_thr_per_atom": 1e-7})
    QERunner(config, WORKER).run(atoms, run_dir)
    xml = run_dir / "out" / "pwscf.xml"
    whole = statistics.median(seconds(lambda: read_pw_output(run_dir)) for _ in range(repeats))
    xml.rename(folder / "kept.xml")
    text = statistics.median(seconds(lambda: read_pw_output(run_dir)) for _ in range(repeats))
    print(f"parser, {len(atoms)} atoms: XML checked against text and input {whole * 1e3:.1f} ms, "
          f"text alone {text * 1e3:.1f} ms (median of {repeats})")  # fmt: skip


def measure_log(folder: Path, number: int = 5000, repeats: int = 7) -> None:
    """One event of the log: with nobody who listens, as a line and as JSON in a file."""
    attempt = {"parameters": {"level": 1}, "outcome": "CONVERGED", "iterations": 7, "last_accuracy": 1e-9}
    history = {"calculation_id": "Si-bulk", "attempts": [attempt]}

    def microseconds() -> float:
        tell = partial(attempt_ended, history)
        times = [seconds(lambda: [tell() for _ in range(number)]) for _ in range(repeats)]
        return statistics.median(times) / number * 1e6

    unheard = microseconds()
    with (folder / "log").open("w") as log:
        with shown_on(log):
            line = microseconds()
        with shown_on(log, as_json=True):
            as_json = microseconds()
    print(f"log: {unheard:.1f} µs for an event that nobody listens to, {line:.0f} µs as a line, "
          f"{as_json:.0f} µs as JSON (median of {repeats})")  # fmt: skip


def measure_queue(folder: Path, number: int) -> None:
    """One rocket launcher on `number` Fireworks of H2, minus the time of pw.x as it measures it alone."""
    where = folder / "queue"
    local = start_local_launchpad(where / "launchpad")
    try:
        launchpad = load_launchpad(local.launchpad_file)
        write_candidates(where / "candidates.db", [h2(n) for n in range(number)])
        submit(open_candidates(where / "candidates.db"), CONFIG, launchpad)
        fworker = where / "my_fworker.yaml"
        fworker.write_text("name: bench\ncategory: ''\nquery: '{}'\nenv: {pw_command: pw.x}\n")
        runs = where / "runs"
        runs.mkdir()
        command = [sys.executable, "-m", "fireworks.scripts.rlaunch_run", "-s"]
        command += ["-l", str(local.launchpad_file.resolve()), "-w", str(fworker), "rapidfire"]
        total = seconds(lambda: subprocess.run(command, cwd=runs, check=True, capture_output=True))
        finished = launchpad.fireworks.count_documents({"state": "COMPLETED"})
        inputs = sorted(runs.glob("launcher_*/pw.in"))[:20]
        alone = statistics.median(run_again(path, folder / f"again_{n}") for n, path in enumerate(inputs))
        print(f"rlaunch: {finished} of {number} labels in {total:.1f} s, {total / number:.3f} s each, "
              f"pw.x alone {alone:.3f} s, adds {total / number - alone:.3f} s")  # fmt: skip
    finally:
        stop_local_launchpad(where / "launchpad")


def measure_submit(folder: Path, number: int) -> None:
    """Submitting of `number` structures of 8 atoms to the local server."""
    where = folder / "submit"
    local = start_local_launchpad(where / "launchpad")
    try:
        launchpad = load_launchpad(local.launchpad_file)
        write_candidates(where / "candidates.db", [rattled_silicon(n).repeat((2, 2, 1)) for n in range(number)])
        db = open_candidates(where / "candidates.db")
        print(f"submit: {number} structures in {seconds(lambda: submit(db, CONFIG, launchpad)):.1f} s")
    finally:
        stop_local_launchpad(where / "launchpad")


def rattled_silicon(seed: int) -> Atoms:
    """Return two Si atoms off their sites."""
    atoms = bulk("Si", a=5.43)
    atoms.rattle(0.05, seed=seed)
    return atoms


def h2(seed: int) -> Atoms:
    """Return H2 in a small box, each one a little different."""
    atoms = molecule("H2")
    atoms.rattle(0.02, seed=seed)
    atoms.center(vacuum=2.0)
    return atoms


def write_candidates(path: Path, structures: list[Atoms]) -> None:
    """Write SELECTED rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ase.db.connect(path) as db:
        for atoms in structures:
            db.write(atoms, status="SELECTED")


def run_pw(folder: Path) -> None:
    """Run pw.x as QEJob does, and nothing else."""
    with (folder / "pw.out").open("wb") as out:
        subprocess.run(
            WORKER.command(1, 1), cwd=folder, env=WORKER.process_environment(), stdout=out, stderr=out, check=True
        )


def run_again(pw_in: Path, folder: Path) -> float:
    """Time of pw.x alone on an input."""
    folder.mkdir()
    shutil.copy(pw_in, folder / "pw.in")
    return seconds(lambda: run_pw(folder))


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
