"""Runs ladders over a folder of structures that are hard, slow or easy for the SCF, on real pw.x.

Each subfolder has the pw.in of level 0 (pw.x 6.7, K_POINTS as it stands); forces and stress are asked for besides.
The results go into a CSV as they come, and a second call goes on where the first one stopped. One core each: compare
iterations and CPU seconds, not wall time.

Usage: python tests/benchmarks/hard_scf.py FOLDER RESULTS.csv [--ladder NAME,NAME] [--only CASE,CASE] [--jobs 2]
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError
from dftfactory.failures import Failure
from dftfactory.inputs import PwInput, read_pw_input
from dftfactory.pseudos import Pseudopotential
from dftfactory.recovery import LADDER, STRATEGIES, Rung
from dftfactory.rungs import Parameters, Situation, continue_scf
from dftfactory.runner import QERunner
from dftfactory.upf import read_pseudopotential

SOFT, ROBUST, ANNEAL = json.loads(json.dumps(LADDER))
ANNEAL_LAST = {name: value for name, value in ANNEAL.items() if name != "sooner_with_spin"}


def only_gaining(of: Situation) -> Parameters | None:
    """Continue a SCF only where it still gained."""
    return continue_scf(of) if of.current.get("gaining") else None


def long_history(of: Situation) -> Parameters | None:
    """Continue with a longer mixing history."""
    following = continue_scf(of)
    return following and {**following, "mixing_ndim": 20}


@dataclass(frozen=True)
class Ladder:
    """What is compared: mixing at level 0, the levels above it, and what is done with a SCF that does not arrive."""

    mixing_mode: str
    levels: list[dict[str, Any]]
    early_stop: bool = True
    continued: Any = continue_scf


LADDERS = {
    "default": Ladder("local-TF", [SOFT, ROBUST, ANNEAL]),
    "plain": Ladder("plain", [SOFT, ROBUST], early_stop=False, continued=None),
    "no early stop": Ladder("local-TF", [SOFT, ROBUST, ANNEAL], early_stop=False),
    "no continuation": Ladder("local-TF", [SOFT, ROBUST, ANNEAL], continued=None),
    "continued if gaining": Ladder("local-TF", [SOFT, ROBUST, ANNEAL], continued=only_gaining),
    "continued with ndim 20": Ladder("local-TF", [SOFT, ROBUST, ANNEAL], continued=long_history),
    "anneal last": Ladder("local-TF", [SOFT, ROBUST, ANNEAL_LAST]),
    "no anneal": Ladder("local-TF", [SOFT, ROBUST]),
    "plain at level 0": Ladder("plain", [SOFT, ROBUST, ANNEAL]),
    "level 0": Ladder("local-TF", [], early_stop=False, continued=None),
    "level 0 plain": Ladder("plain", [], early_stop=False, continued=None),
}
COLUMNS = (
    *("case", "ladder", "bands", "solved", "level", "quality", "runs", "iterations", "cpu_seconds"),
    *("energy", "moment", "n_atoms", "stopped_early"),
)
NUMBERS = {"runs", "stopped_early", "iterations", "cpu_seconds"}


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
    arguments.add_argument("--ladder", default="default", help="with commas: " + ", ".join(LADDERS))
    arguments.add_argument(
        "--bands", choices=("spin", "pw"), default="spin", help="counted for the majority spin, or by pw.x"
    )
    arguments.add_argument("--only", help="cases, with commas")
    arguments.add_argument("--jobs", type=int, default=2)
    options = arguments.parse_args()
    if unknown := set(options.ladder.split(",")) - set(LADDERS):
        arguments.error(f"no such ladder: {', '.join(sorted(unknown))}; there are {', '.join(LADDERS)}")
    done = {(row["case"], row["ladder"], row["bands"]) for row in read_results(options.results)}
    names = (
        options.only.split(",") if options.only else sorted(path.parent.name for path in options.folder.glob("*/pw.in"))
    )
    missing = [
        (options.folder / name, ladder, options.bands)
        for ladder in options.ladder.split(",")
        for name in names
        if (name, ladder, options.bands) not in done
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(run_case, *case) for case in missing]
        for future in as_completed(futures):
            append_result(options.results, future.result())
            print(*(f"{value}" for value in future.result().values()), flush=True)
    print_table([row for row in read_results(options.results) if row["case"] in names])


def run_case(folder: Path, name: str, bands: str) -> dict[str, Any]:
    """Run one structure up a ladder, and say what it took."""
    given = read_pw_input(folder / "pw.in")
    ladder = LADDERS[name]
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
        mixing_mode=ladder.mixing_mode,
        magnetism="none",
        early_stop=ladder.early_stop,
        ladder=ladder.levels,
    )
    atoms = given.to_ase_atoms()
    if given.get("nspin") == 2:
        atoms.set_initial_magnetic_moments(moments(given, pseudo_dir))
    row: dict[str, Any] = {"case": folder.name, "ladder": name, "bands": bands, "n_atoms": len(atoms)}
    climb = STRATEGIES[Failure.SCF_NOT_CONVERGED][1]
    rungs = (Rung("continue", ladder.continued, times=99), climb) if ladder.continued else (climb,)
    with (
        tempfile.TemporaryDirectory(prefix="hard-scf-") as run_dir,
        patch.dict(STRATEGIES, {Failure.SCF_NOT_CONVERGED: rungs}),  # type: ignore[arg-type]  # a dict behind its type
    ):
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
    outcome["cpu_seconds"] = round(sum(attempt.get("cpu_time") or 0.0 for attempt in history), 1)
    outcome["stopped_early"] = sum("stopped" in attempt for attempt in history)
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


def print_table(rows: Iterable[dict[str, str]]) -> None:
    """Print the totals of each ladder, what it solves of those that plain level 0 does not, and how low it ends.

    `high` are solved structures that ended more than 1 meV/atom above the lowest state that any ladder has found.
    """
    by_ladder: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    lowest: dict[str, float] = {}
    for row in rows:
        by_ladder[row["ladder"], row["bands"]].append(row)
        if row["solved"] == "1":
            lowest[row["case"]] = min(lowest.get(row["case"], 0.0), float(row["energy"]))
    print(f"{'ladder':22} {'bands':6} structures solved rescued runs stops iterations CPU seconds high")
    for (ladder, bands), group in by_ladder.items():
        hard = {row["case"] for row in by_ladder.get(("level 0 plain", bands), []) if row["solved"] == "0"}
        solved = [row for row in group if row["solved"] == "1"]
        high = sum(float(row["energy"]) - lowest[row["case"]] > 1e-3 * int(row["n_atoms"]) for row in solved)
        totals = {name: sum(float(row[name] or 0) for row in group) for name in COLUMNS if name in NUMBERS}
        print(
            f"{ladder:22} {bands:6} {len(group):10} {len(solved):6} {sum(row['case'] in hard for row in solved):7} "
            f"{totals['runs']:4.0f} {totals['stopped_early']:5.0f} {totals['iterations']:10.0f} "
            f"{totals['cpu_seconds']:11.0f} {high:4}"
        )


if __name__ == "__main__":
    main()
