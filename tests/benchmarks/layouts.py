"""Ranks and pools: the layout that dftfactory chooses against every other one that pw.x takes.

Usage: python tests/benchmarks/layouts.py [--repeats N] [--patience SECONDS] [--cells NAME ...] [--count-only]

On 1 and 2 ranks everything is run. For 4, 8 and 16 ranks it is counted, from what one rank spent where.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

from ase import Atoms
from ase.build import bcc110, bulk, fcc111, molecule
from quiet import Quiet

from dftfactory import DFTConfig, WorkerConfig
from dftfactory.demo import DEBIAN_PSEUDOPOTENTIALS, PSEUDOPOTENTIALS
from dftfactory.estimate import MESSAGE_SECONDS, TRANSPOSES, Estimate, make_estimate
from dftfactory.inputs import write_pw_input
from dftfactory.layout import Layout, choose_layout, possible_layouts
from dftfactory.pseudos import load_pseudopotentials

FILES = {**PSEUDOPOTENTIALS, "Mg": "Mg.pz-n-vbc.UPF", "Cu": "Cu.pz-d-rrkjus.UPF", "Ni": "Ni.pz-nd-rrkjus.UPF"}
WORKER = WorkerConfig(mpi_command="mpirun --oversubscribe -np {cores}", parallel_cores=max(2, os.cpu_count() or 1))


def rattled(atoms: Atoms) -> Atoms:
    """Return the structure without symmetry."""
    atoms.rattle(0.05, seed=1)
    return atoms


def boxed(name: str) -> Atoms:
    """Return a molecule with vacuum around it."""
    atoms = molecule(name)
    atoms.center(vacuum=3.0)
    return atoms


# Structure, ecutwfc (Ry), kspacing (1/Å).
CELLS = {
    "Si2, many k": (rattled(bulk("Si")), 20.0, 0.5),
    "Si2, symmetric": (bulk("Si"), 30.0, 0.25),
    "Al4, metal": (rattled(bulk("Al", cubic=True)), 20.0, 0.5),
    "Al slab": (rattled(fcc111("Al", (1, 1, 5), vacuum=5)), 15.0, 0.7),
    "Fe2, magnetic": (bulk("Fe", cubic=True), 25.0, 0.5),
    "Fe slab, magnetic": (rattled(bcc110("Fe", (1, 1, 2), vacuum=4)), 20.0, 1.3),
    "MgO8, few k": (rattled(bulk("MgO", "rocksalt", a=4.21, cubic=True)), 25.0, 0.9),
    "H2O in a box": (boxed("H2O"), 25.0, 0.7),
    "Al32, gamma": (rattled(bulk("Al", cubic=True).repeat(2)), 12.0, 0.9),
    "Si32, two k": (rattled(bulk("Si", cubic=True).repeat((2, 2, 1))), 10.0, 0.8),
}


def main() -> None:
    """Run and count, and print one line for each cell."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeats", type=int, default=3, help="runs of each layout")
    arguments.add_argument("--cells", nargs="*", default=list(CELLS), help="part of them")
    arguments.add_argument("--count-only", action="store_true", help="leave the runs on two ranks out")
    arguments.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    options = arguments.parse_args()
    quiet = Quiet(options.patience)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory(prefix="dftfactory-bench-") as folder:
        for n, name in enumerate(options.cells):
            compare(name, Path(folder) / str(n), options.repeats, quiet, run_two=not options.count_only)
    print(f"load {os.getloadavg()[0]:.1f} at the end, {quiet.disturbed} runs beside others")


def compare(name: str, folder: Path, repeats: int, quiet: Quiet, run_two: bool) -> None:
    """Measure one cell on up to two ranks, and count it on more."""
    atoms, ecutwfc, kspacing = CELLS[name]
    config = DFTConfig(
        pseudopotential_dir=DEBIAN_PSEUDOPOTENTIALS,
        pseudopotentials=FILES,
        ecutwfc=ecutwfc,
        kspacing=kspacing,
        conv_thr_per_atom=1e-8,
    )
    pseudopotentials = load_pseudopotentials(set(atoms.symbols), Path(DEBIAN_PSEUDOPOTENTIALS), config.pseudopotentials)
    estimate = make_estimate(atoms, config, pseudopotentials)
    folder.mkdir()
    write_pw_input(atoms, config, folder / "pw.in", pseudopotentials=pseudopotentials)
    layouts = list(possible_layouts(estimate, 2)) if run_two else [Layout(1, 1)]
    times: dict[Layout, list[float]] = {layout: [] for layout in layouts}
    report = ""
    for repeat in range(repeats if run_two else 1):
        # The order turns round, so that what the machine does besides meets all of them.
        for layout in layouts if repeat % 2 == 0 else reversed(layouts):
            seconds, text = quiet.timed(lambda layout=layout: run(folder, layout))
            times[layout].append(seconds)
            report = text if layout.cores == 1 else report
    what = f"{name} ({len(atoms)} atoms, {estimate.n_kpoints} k, {estimate.n_bands} bands)"
    if not run_two:
        print(what)
    else:
        medians = {layout: statistics.median(seconds) for layout, seconds in times.items()}
        auto = choose_layout(estimate, 2)
        print(f"{what}: {', '.join(f'{shown(x)} {s:.2f} s' for x, s in medians.items())}; auto {shown(auto)}, "
              f"{medians[auto] / min(medians.values()):.2f} of the best")  # fmt: skip
    clocks = read_clocks(report)
    for cores in (4, 8, 16):
        counted = {layout: count(layout, estimate, clocks) for layout in possible_layouts(estimate, cores)}
        auto, best = choose_layout(estimate, cores), min(counted, key=counted.__getitem__)
        print(f"    {cores:2d} cores: auto {shown(auto)} {counted[auto]:.2f} s, best {shown(best)} "
              f"{counted[best]:.2f} s, ratio {counted[auto] / counted[best]:.2f}, "
              f"{clocks['PWSCF'] / counted[auto]:.1f} x faster than one core")  # fmt: skip


def run(folder: Path, layout: Layout) -> str:
    """Run pw.x; return its output."""
    command = WORKER.command(layout.cores, layout.npool, layout.ndiag)
    environment = WORKER.process_environment()
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def shown(layout: Layout) -> str:
    """Write `ranks/pools`."""
    return f"{layout.cores}/{layout.npool}"


def read_clocks(report: str) -> dict[str, float]:
    """CPU seconds of each clock of pw.x's timing report; on one rank CPU time is what the work takes."""
    found = re.findall(r"^ +(\w[\w:]*) +: +(?:(\d+)m *)?([\d.]+)s CPU", report, re.M)
    clocks = {name: 60 * float(minutes or 0) + float(seconds) for name, minutes, seconds in found}
    clocks["iterations"] = len(re.findall(r"iteration # *\d+", report))
    return clocks


def count(layout: Layout, estimate: Estimate, clocks: dict[str, float]) -> float:
    """Count the time of a layout from the report of one rank.

    Over pools go k-points, whole ones: the solver, the sum over bands, most of forces and stress. Over the ranks of a
    pool go plane waves evenly, planes of the FFT grid in whole ones, and the matrix of the solver not at all. What is
    done with the density is done by every pool, by its ranks together, but for augmentation charges, which all ranks
    share. Messages are added as the estimate has them: what they cost on another machine cannot be counted here.
    """
    per_pool = layout.cores // layout.npool
    kpoints = math.ceil(estimate.n_kpoints / layout.npool) / estimate.n_kpoints
    planes = math.ceil(estimate.fft_grid[2] / per_pool) / estimate.fft_grid[2]
    matrix = clocks.get("cdiaghg", 0.0) + clocks.get("rdiaghg", 0.0)
    transforms = clocks.get("vloc_psi", 0.0)
    density = sum(clocks.get(name, 0.0) for name in ("v_of_rho", "mix_rho"))
    added = clocks.get("addusdens", 0.0)
    augmentation = sum(clocks.get(name, 0.0) for name in ("addusdens", "newd", "PAW_pot"))
    of_kpoints = sum(clocks.get(name, 0.0) for name in ("c_bands", "sum_band", "wfcinit", "forces", "stress")) - added
    # Reading of files and the search for symmetry are in no clock of their own, and no rank can help another with them.
    start = clocks["PWSCF"] - sum(clocks.get(name, 0.0) for name in ("init_run", "electrons", "forces", "stress"))
    rest = clocks["PWSCF"] - start - of_kpoints - density - augmentation
    seconds = kpoints * ((of_kpoints - matrix - transforms) / per_pool + transforms * planes + matrix)
    seconds += start + density * planes + augmentation / layout.cores + rest / per_pool
    if per_pool > 1:
        messages = estimate.n_bands * TRANSPOSES * per_pool / (2 if estimate.is_gamma else 1)
        seconds += clocks["iterations"] * math.ceil(estimate.n_kpoints / layout.npool) * messages * MESSAGE_SECONDS
    return seconds


if __name__ == "__main__":
    main()
