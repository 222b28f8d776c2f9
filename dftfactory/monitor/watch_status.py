"""`status --watch`: draw it again and again on a terminal, a line for each change elsewhere, until nothing is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live

from dftfactory.errors import DFTFactoryError, LaunchPadAwayError
from dftfactory.messages import messages_above
from dftfactory.monitor.progress import Progress
from dftfactory.monitor.sections import Cell, Section, drawing, is_plain
from dftfactory.monitor.status_display import is_over
from dftfactory.store import at_most, launchpad_errors

# The database gets at least so long for a look before we say that it is away, whatever its settings say.
PATIENCE_SECONDS = 10.0
# Lines of a terminal that all but the running ones take.
_OTHER_LINES = 28
_LEAST_RUNNING = 3


# What is drawn of a progress, with at most so many running ones; None is the usual number.
Sections = Callable[[Progress, "int | None"], list[Section]]


def watch_status(
    look: Callable[[], Progress],
    sections: Sections,
    line_of: Callable[[Progress], str],
    seconds: float,
    console: Console | None = None,
) -> None:
    """Look every `seconds`, until nothing is left to do or Ctrl-C; an outage of the LaunchPad is told and waited for.

    Parameters
    ----------
    look
        Reads the progress. The first time its errors are ours, too: they are of the settings, and not an outage.
    sections
        Makes what is drawn on a terminal.
    line_of
        Makes the line that is printed elsewhere when it has changed.
    seconds
        Between two looks.
    console
        Where to draw; stdout where absent.
    """
    console = Console(highlight=False) if console is None else console
    try:
        if is_plain(console):
            _print_changes(look, line_of, seconds)
        else:
            _redraw(look, sections, seconds, console)
    except KeyboardInterrupt:
        # The way to end it; what was drawn last stays.
        return


def _print_changes(look: Callable[[], Progress], line_of: Callable[[Progress], str], seconds: float) -> None:
    told: Any = None
    for progress, trouble in _looks(look, seconds):
        # Pace and time to go change all the time.
        now = trouble or (progress.states, progress.levels)
        if now != told:
            sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {trouble or line_of(progress)}\n")
            sys.stdout.flush()
            told = now


def _redraw(look: Callable[[], Progress], sections: Sections, seconds: float, console: Console) -> None:
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live, messages_above():
        for progress, trouble in _looks(look, seconds):
            most = max(_LEAST_RUNNING, console.height - _OTHER_LINES)
            note = f"{time.strftime('%H:%M:%S')}, every {seconds:g} s; Ctrl-C ends it"
            last = Section(Cell(trouble, "bold") if trouble else Cell(note, "bright_black"))
            live.update(drawing([*sections(progress, most), last], console.width), refresh=True)


def _looks(look: Callable[[], Progress], seconds: float) -> Iterator[tuple[Progress, str]]:
    """Yield the last progress that could be read, and what is wrong where that was not the last look."""
    began = time.monotonic()
    with launchpad_errors():
        progress = look()
    # Of a hundred thousand Fireworks each look takes long.
    patience = max(PATIENCE_SECONDS, 5 * (time.monotonic() - began))
    trouble = ""
    while True:
        yield progress, trouble
        if not trouble and is_over(progress):
            return
        time.sleep(seconds)
        since = time.strftime("%H:%M:%S")
        try:
            with launchpad_errors(), at_most(patience):
                progress = look()
        except LaunchPadAwayError:
            # The same words until it is back: they are printed once where lines are printed.
            trouble = trouble or f"the LaunchPad does not answer since {since}; looking again"
        except DFTFactoryError as error:
            trouble = error.message
        else:
            trouble = ""
