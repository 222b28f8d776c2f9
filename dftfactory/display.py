"""What the commands print: tables on a terminal, plain text elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dftfactory.errors import printable
from dftfactory.results import DFTResult

if TYPE_CHECKING:
    from dftfactory.lost_runs import Finding


def make_console() -> Console:
    """Return a console that folds its lines to the terminal, and to nothing narrow in a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def print_result(result: DFTResult, run_dir: Path) -> None:
    """Print one label."""
    from ase.units import GPa

    console = make_console()
    table = Table(show_header=False, box=None)
    runs, ranks = max(1, len(result.history)), result.n_ranks
    rows = {
        "energy": f"{result.energy:.8f} eV",
        "-TS": f"{result.smearing_energy:.8f} eV",
        "largest force": f"{result.max_force:.6f} eV/Å",
        # Of a slab or a molecule it is that of its vacuum.
        "pressure": f"{-result.stress.trace() / 3 / GPa:.4f} GPa" if all(result.pbc) else "",
        "magnetization": "" if result.total_magnetization is None else f"{result.total_magnetization:.3f} μB",
        "level": f"{result.level} ({result.quality})",
        "SCF iterations": f"{result.total_iterations} in {number_of(runs, 'run')}",
        "pw.x": f"{result.pw_version}, {number_of(result.n_kpoints, 'k-point')}, {number_of(ranks, 'rank')}"
        + (f", {result.wall_time:.1f} s" if result.wall_time is not None else ""),
        "files": f"{run_dir} (label.json, history.json, {'start_0, start_1, ...' if result.states else 'pw.out'})",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, _plain(value))
    console.print(table)
    for state in result.states:
        console.print(_plain(_state(state)))
    if result.state_warning is not None:
        console.print(_plain(result.state_warning), style="bold")
    if result.quality == "softened":
        console.print(f"[bold]softened: at degauss = {result.degauss:g} Ry, not the prescribed one[/bold]")


def print_findings(findings: Sequence[Finding], repaired: Iterable[str]) -> None:
    """Print what `reconcile` found and did: a line for each run that is not simply alive, and the numbers."""
    from dftfactory.lost_runs import Fate

    console = make_console()
    number = Counter(finding.fate for finding in findings)
    for line in repaired:
        console.print(_plain(line))
    for finding in findings:
        if finding.fate is not Fate.LIVES:
            who = f"Firework {finding.fw_id} ({finding.calculation_id})"
            console.print(_plain(f"{who}: {finding.fate.value}, {finding.evidence}"))
    words = {
        Fate.LIVES: "running",
        Fate.LOST: "lost",
        Fate.COMPLETED: "COMPLETED",
        Fate.READY: "READY again",
        Fate.FIZZLED: "FIZZLED",
        Fate.UNKNOWN: "out of sight",
        Fate.BLOCKED: "blocked",
    }
    told = [f"{number[fate]} {word}" for fate, word in words.items() if number[fate]]
    console.print(", ".join(told) or "nothing is RUNNING or RESERVED")


def candidate_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return the table of candidates, 80 columns wide for names of up to 16 letters.

    Parameters
    ----------
    rows
        Each with `name` and `status`, and where they are known `level`, `iterations`, `seconds`, `energy` (eV),
        `max_force` (eV/Å) and `failure`; the reason in words is a line and does not fit into a column.
    """
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, collapse_padding=True)
    for column in ("structure", "status"):
        table.add_column(column, no_wrap=True)
    for column in ("level", "SCF\nsteps", "time\n(s)", "energy\n(eV)", "max force\n(eV/Å)"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("failure", overflow="fold")
    for row in rows:
        status = _visible(row["status"])
        table.add_row(
            _plain(row["name"]),
            Text(status, style={"COMPLETED": "green", "FAILED": "red"}.get(status, "yellow")),
            _text(row.get("level"), "d"),
            _text(row.get("iterations"), "d"),
            _text(row.get("seconds"), ".1f"),
            _text(row.get("energy"), ".4f"),
            _text(row.get("max_force"), ".3f"),
            _plain(row.get("failure") or ""),
        )
    return table


def _state(state: Mapping[str, Any]) -> str:
    """Return the line of one of several starts."""
    if state["energy"] is None:
        return f"from {state['start']}: {state['outcome']} ({state['evidence']})"
    magnetization = "" if state["total_magnetization"] is None else f", {state['total_magnetization']:.3f} μB"
    return f"from {state['start']}: {state['energy']:.6f} eV{magnetization}, level {state['level']}"


def _plain(value: Any) -> str:
    """Return text without markup of rich, and without what a terminal would obey."""
    return escape(_visible(value))


def _visible(value: Any) -> str:
    """Return text with a mark for each letter that cannot be seen."""
    return printable(str(value))


def _text(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def number_of(number: int, what: str) -> str:
    """Return a number and what is counted: 1 label, 2 labels."""
    return f"{number} {what}{'' if number == 1 else 's'}"
