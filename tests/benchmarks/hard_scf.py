"""Runs a ladder over a folder of structures that are hard, slow or easy for the SCF, on real pw.x.

Each subfolder has the pw.in of level 0 (pw.x 6.7, K_POINTS as it stands); forces and stress are asked for besides.
The results go into a CSV as they come, and a second call goes on where the first one stopped.

Usage: python tests/benchmarks/hard_scf.py FOLDER RESULTS.csv [--ladder NAME] [--only CASE,CASE] [--jobs 2]
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError
from dftfactory.inputs import PwInput, read_pw_input
from dftfactory.pseudos import Pseudopotential
from dftfactory.recovery import LADDER
from dftfactory.runner import QERunner
from dftfactory.upf import read_pseudopotential

SOFT, ROBUST, ANNEAL = json.loads(json.dumps(LADDER))
# name → (mixing at level 0, levels above it)
LADDERS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "default": ("local-TF", [SOFT, ROBUST, ANNEAL]),
    "plain": ("plain", [SOFT, ROBUST]),
    "no anneal": ("local-TF", [SOFT, ROBUST]),
    "anneal first": ("local-TF", [ANNEAL, SOFT, ROBUST]),
    "level 0": ("local-TF", []),
    "level 0 plain": ("plain", []),
}
COLUMNS = ("case", "ladder", "bands", "solved", "level", "quality", "runs", "iterations", "seconds", "energy", "moment")


class GivenKpoints(QERunner):
    """A QERunner that takes the K_POINTS card of a pw.in instead of a k-point spacing."""

    def __init__(self, config: DFTConfig, worker: WorkerConfig, template: Path, bands: str) -> None:
        super().__init__(config, worker)
        self.template, self.bands = template, bands

    def _pw_input(self, atoms: Any, pseudopotentials: dict[str, Pseudopotential]) -> str:
        card = re.compile(r"^K_POINTS.*\n(?:[ \d]+\n)?", re.M)
        given = card.search(self.template.read_text())
        assert given is not None
        text = card.sub(given[0], super()._pw_input(atoms, pseudopotentials))
        return text if self.bands == "spin" else re.sub(r"^ *nbnd .*\n", "", text, flags=re.M)


def main() -> None:
    """Run what is missing in the CSV, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("results", type=Path)
    arguments.add_argument("--ladder", choices=sorted(LADDERS), default="default")
    arguments.add_argument(
        "--bands", choices=("spin", "pw"), default="spin", help="counted for the majority spin, or by pw.x"
    )
    arguments.add_argument("--only", help="cases, with commas")
    arguments.add_argument("--jobs", type=int, default=2)
    options = arguments.parse_args()
    done = {(row["case"], row["ladder"], row["bands"]) for row in read_results(options.results)}
    names = (
        options.only.split(",") if options.only else sorted(path.parent.name for path in options.folder.glob("*/pw.in"))
    )
    missing = [name for name in names if (name, options.ladder, options.bands) not in done]
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(run_case, options.folder / name, options.ladder, options.bands) for name in missing]
        for future in as_completed(futures):
            append_result(options.results, future.result())
            print(*(f"{value}" for value in future.result().values()), flush=True)
    print_table(row for row in read_results(options.results) if row["case"] in names)


def run_case(folder: Path, ladder: str, bands: str) -> dict[str, Any]:
    """Run one structure up a ladder, and say what it took."""
    given = read_pw_input(folder / "pw.in")
    mixing, levels = LADDERS[ladder]
    pseudo_dir = Path(str(given.get("pseudo_dir")))
    files = {re.sub(r"\d+$", "", kind): file for kind, file in given.pseudopotentials.items()}
    config = DFTConfig(
        pseudopotential_dir=str(pseudo_dir),
        pseudopotentials=files,
        ecutwfc=float(given.get("ecutwfc")),
        ecutrho=float(given.get("ecutrho", 4 * given.get("ecutwfc"))),
        kspacing=1.0,
        smearing=given.get("smearing"),
        degauss=float(given.get("degauss")),
        conv_thr_per_atom=float(given.get("conv_thr")) / len(given.symbols),
        electron_maxstep=int(given.get("electron_maxstep")),
        mixing_mode=mixing,
        magnetism="none",
        ladder=levels,
    )
    atoms = given.to_ase_atoms()
    if given.get("nspin") == 2:
        atoms.set_initial_magnetic_moments(moments(given, pseudo_dir))
    row: dict[str, Any] = {"case": folder.name, "ladder": ladder, "bands": bands}
    with tempfile.TemporaryDirectory(prefix="hard-scf-") as run_dir:
        try:
            runner = GivenKpoints(config, WorkerConfig(), folder / "pw.in", bands)
            result = runner.run(atoms, Path(run_dir) / "run", folder.name, softened=True)
        except CalculationError as error:
            history, outcome = error.details["history"], {"solved": 0, "level": error.details["level"]}
        else:
            history = result.history
            outcome = {
                "solved": int(result.quality == "exact"),
                "level": result.level,
                "quality": result.quality,
                "energy": round(result.energy, 6),
                "moment": result.total_magnetization,
            }
    outcome["runs"] = len(history)
    outcome["iterations"] = sum(attempt.get("iterations") or 0 for attempt in history)
    outcome["seconds"] = round(sum(attempt.get("wall_time") or 0.0 for attempt in history), 1)
    return {column: (row | outcome).get(column, "") for column in COLUMNS}


def moments(given: PwInput, pseudo_dir: Path) -> list[float]:
    """Starting moments in μB of the fractions of the valence that the input has."""
    start = {
        kind: float(given.get(f"starting_magnetization({n})", 0.0)) * read_pseudopotential(pseudo_dir / file).z_valence
        for n, (kind, file) in enumerate(given.pseudopotentials.items(), start=1)
    }
    return [start[kind] for kind in given.kinds]


def read_results(path: Path) -> list[dict[str, str]]:
    """Rows of the CSV; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_result(path: Path, row: dict[str, Any]) -> None:
    """Add one line."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def print_table(rows: Any) -> None:
    """Print solved, runs, iterations and seconds in total, for each ladder."""
    totals: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        total = totals.setdefault((row["ladder"], row["bands"]), [0, 0, 0, 0, 0])
        for n, value in enumerate((1, row["solved"], row["runs"], row["iterations"], row["seconds"])):
            total[n] += float(value or 0)
    print(f"{'ladder':14} {'bands':6} structures solved runs iterations seconds")
    for (ladder, bands), (number, solved, runs, iterations, seconds) in totals.items():
        print(f"{ladder:14} {bands:6} {number:10.0f} {solved:6.0f} {runs:4.0f} {iterations:10.0f} {seconds:7.0f}")


if __name__ == "__main__":
    main()
