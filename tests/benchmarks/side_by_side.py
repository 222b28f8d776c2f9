"""Labels of small structures per core and hour: one core each, side by side, against all cores for one after the other.

Usage: python tests/benchmarks/side_by_side.py [--structures N] [--cores N] [--repeats N] [--patience SECONDS]

Everything runs through QERunner. `mpirun` stands for a machine whose pw.x needs a launcher, also on one rank.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.build import bulk, molecule
from quiet import Quiet

from dftfactory import DFTConfig, QERunner, WorkerConfig
from dftfactory.config import UNBOUND
from dftfactory.demo import DEBIAN_PSEUDOPOTENTIALS, PSEUDOPOTENTIALS

CONFIG = DFTConfig(
    pseudopotential_dir=DEBIAN_PSEUDOPOTENTIALS,
    pseudopotentials=PSEUDOPOTENTIALS,
    ecutwfc=15,
    kspacing=0.7,
    conv_thr_per_atom=1e-8,
)


def main() -> None:
    """Run all ways in turn, and print the labels per core-hour of each."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--structures", type=int, default=8)
    arguments.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    options = arguments.parse_args()
    cores, mpirun = options.cores, {"mpi_command": "mpirun --oversubscribe -np {cores}"}
    bound = dict.fromkeys(UNBOUND, "core") | {"I_MPI_PIN": "on", "MV2_ENABLE_AFFINITY": "1"}
    ways = {
        "one core each, pw.x alone": (cores, WorkerConfig()),
        "one core each, mpirun": (cores, WorkerConfig(**mpirun)),
        "one core each, mpirun that binds": (cores, WorkerConfig(environment=bound, mpi_command="mpirun -np {cores}")),
        f"{cores} cores for each, auto": (1, WorkerConfig(parallel_cores=cores, **mpirun)),
        f"{cores} cores for each, one pool": (1, WorkerConfig(parallel_cores=cores, npool=1, **mpirun)),
    }
    structures = [small(n) for n in range(options.structures)]
    quiet = Quiet(options.patience)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(options.repeats):
        for way in ways if repeat % 2 == 0 else reversed(ways):
            at_once, worker = ways[way]
            seconds[way].append(
                quiet.timed(lambda at_once=at_once, worker=worker: label(structures, worker, at_once))[0]
            )
    for way, times in seconds.items():
        median = statistics.median(times)
        rate = options.structures / (median * cores / 3600)
        print(f"{way}: {options.structures} labels in {median:.2f} s, {rate:.0f} labels per core-hour "
              f"(median of {options.repeats})")  # fmt: skip
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f} at the end, {quiet.disturbed} runs beside others")


def small(seed: int) -> Atoms:
    """Return one of three kinds of small structures, each one a little different."""
    atoms = (bulk("Si", a=5.43), bulk("Al", a=4.05, cubic=True), molecule("H2O"))[seed % 3]
    if seed % 3 == 2:
        atoms.center(vacuum=2.5)
    atoms.rattle(0.02, seed=seed)
    return atoms


def label(structures: Sequence[Atoms], worker: WorkerConfig, at_once: int) -> None:
    """Label all structures, `at_once` side by side, each of these in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="dftfactory-bench-") as folder:
        tasks = [(atoms, worker, Path(folder) / str(n)) for n, atoms in enumerate(structures)]
        if at_once == 1:
            for task in tasks:
                label_one(task)
            return
        with multiprocessing.get_context("fork").Pool(at_once) as pool:
            pool.map(label_one, tasks, chunksize=1)
            pool.close()
            pool.join()


def label_one(task: tuple[Atoms, WorkerConfig, Path]) -> None:
    """Label one structure."""
    atoms, worker, run_dir = task
    QERunner(CONFIG, worker).run(atoms, run_dir)


if __name__ == "__main__":
    main()
