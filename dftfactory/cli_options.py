"""What the commands have in common: their options, and what they say."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fireworks import LaunchPad

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="How the labels are computed.")]
LaunchPadFile = Annotated[
    Path | None,
    typer.Option("--launchpad", "-l", help="my_launchpad.yaml; found in . or ./launchpad where not given."),
]
WorkerFile = Annotated[
    Path | None,
    typer.Option("--worker", "-w", help="my_fworker.yaml, or its `env` alone; found in . where not given."),
]
CANDIDATES_HELP = "Candidates: an ASE database (candidates.db), or a structure file that ASE reads."
Candidates = Annotated[str, typer.Argument(help=CANDIDATES_HELP)]
Campaign = Annotated[str | None, typer.Option("--campaign", help="Only the structures of this campaign.")]
Folder = Annotated[Path, typer.Option("--dir", help="Folder of the server.")]


def open_launchpad(file: Path | None) -> LaunchPad:
    """Open the LaunchPad of a file, or the one that is found."""
    from dftfactory.launchpad import load_launchpad

    return load_launchpad(file)


def database_of(candidates: str, *, import_structures: bool = False) -> str:
    """Return the candidate database; that of a structure file is beside it, and on demand it is imported first."""
    from dftfactory import importing

    path = Path(candidates)
    if "://" in candidates or path.suffix in (".db", ".json", ".aselmdb") or not path.is_file():
        return candidates
    database = importing.candidate_database_for(path)
    if import_structures:
        new, known = importing.import_structures(path, database)
        were_there = f", {known} {'was' if known == 1 else 'were'} there" if known else ""
        are = "is" if new == 1 else "are"
        typer.echo(f"{number_of(new, 'structure')} of {path} {are} SELECTED in {database} now{were_there}")
    return str(database)


def again(database: str, launchpad: Path | None) -> str:
    """Return the words that lead the next command to the same candidates and the same LaunchPad."""
    return shlex.join([database, *([] if launchpad is None else ["-l", str(launchpad)])])


def prompt(question: str, default: str) -> str:
    """Ask on the terminal."""
    return str(typer.prompt(question, default=default, show_default=bool(default)))


def number_of(number: int, what: str) -> str:
    """Return a number and what is counted."""
    from dftfactory.display import number_of

    return number_of(number, what)


def say(number: int, what: str, many: str | None = None) -> None:
    """Print a line of a summary, unless it is about nothing; `many` is for other numbers than 1."""
    if number:
        typer.echo(f"{number} {what if number == 1 or many is None else many}")


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Draw a progress bar on a terminal and nothing elsewhere; gives the function that moves it."""
    from rich.console import Console
    from rich.progress import Progress

    from dftfactory.messages import messages_above

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar, messages_above():
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)
