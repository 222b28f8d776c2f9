"""What the commands print: tables on a terminal, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dftfactory.results import DFTResult

if TYPE_CHECKING:
    from fireworks import LaunchPad


def print_result(result: DFTResult, run_dir: Path) -> None:
    """Print one label."""
    console = Console(highlight=False)
    table = Table(show_header=False, box=None)
    volume = abs(float(_determinant(result)))
    rows = {
        "energy": f"{result.energy:.8f} eV",
        "-TS": f"{result.smearing_energy:.8f} eV",
        "largest force": f"{result.max_force:.6f} eV/Å",
        "pressure": f"{-result.stress.trace() / 3 * 160.2176634:.4f} GPa" if volume else "",
        "magnetization": "" if result.total_magnetization is None else f"{result.total_magnetization:.3f} μB",
        "level": f"{result.level} ({result.quality})",
        "SCF iterations": f"{result.total_iterations} in {len(result.history)} run(s)",
        "pw.x": f"{result.pw_version}, {result.n_kpoints} k-points, {result.n_ranks} rank(s), {result.wall_time} s",
        "files": f"{run_dir} (label.json, history.json, pw.out)",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    console.print(table)
    if result.quality == "softened":
        console.print(f"[bold]softened: at degauss = {result.degauss:g} Ry, not the prescribed one[/bold]")


def print_status(launchpad: LaunchPad) -> None:
    """Print Fireworks by state, labels by level and quality, failures by reason."""
    from dftfactory.pipeline import count_failures, count_fireworks
    from dftfactory.store import LabelStore

    console = Console(highlight=False)
    console.print(_count_table("Fireworks", ("state", "number"), count_fireworks(launchpad).items()))
    labels = {f"level {level}, {quality}": n for (level, quality), n in sorted(LabelStore(launchpad).count().items())}
    console.print(_count_table("Labels", ("reached at", "number"), labels.items()))
    if failures := count_failures(launchpad):
        console.print(_count_table("Failures", ("reason", "number"), failures.items()))


def candidate_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return the table of candidates: structure, status, level, iterations, time, energy, largest force, reason."""
    table = Table()
    for column in ("structure", "status"):
        table.add_column(column, no_wrap=True)
    for column in ("level", "iterations", "time (s)", "energy (eV)", "max force (eV/Å)"):
        table.add_column(column, justify="right")
    table.add_column("reason", overflow="fold")
    for row in rows:
        colour = {"COMPLETED": "green", "FAILED": "red"}.get(row["status"], "yellow")
        table.add_row(
            escape(str(row["name"])),
            f"[{colour}]{row['status']}[/{colour}]",
            _text(row.get("level"), "d"),
            _text(row.get("iterations"), "d"),
            _text(row.get("seconds"), ".1f"),
            _text(row.get("energy"), ".4f"),
            _text(row.get("max_force"), ".3f"),
            escape(str(row.get("reason") or "")),
        )
    return table


def _count_table(title: str, columns: tuple[str, str], rows: Iterable[tuple[str, int]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    table.add_column(columns[1], justify="right")
    empty = True
    for name, number in rows:
        table.add_row(escape(name), str(number))
        empty = False
    if empty:
        table.add_row("none", "0")
    return table


def _text(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _determinant(result: DFTResult) -> float:
    import numpy as np

    return float(np.linalg.det(result.cell))
