"""What libraries say while a progress bar is drawn comes above it, in one line."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console
from rich.progress import Progress

from dftfactory.cli_options import progress_bar
from dftfactory.messages import messages_above


class Terminal(io.StringIO):
    """Keeps what is sent to a terminal."""

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make a terminal on which stdout and stderr are shown; pytest changes them back between fixture and test."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    return terminal


@contextmanager
def library_on(stream: io.StringIO) -> Iterator[logging.StreamHandler[io.StringIO]]:
    """Give a library a log handler of its own, made before anything is drawn."""
    handler = logging.StreamHandler(stream)
    logging.getLogger("some.library").addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger("some.library").removeHandler(handler)


def test_warning_and_log_line_come_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with library_on(terminal), progress_bar("submitting", 2) as step, warnings.catch_warnings():
        warnings.simplefilter("always")
        step(1)
        warnings.warn("use spam\ninstead of eggs", FutureWarning, stacklevel=1)
        logging.getLogger("some.library").error("the disk is warm")
        step(1)
    printed = terminal.getvalue()
    # rich moves to the first column and clears the line of the bar before it prints what is above.
    for line in ("FutureWarning: use spam instead of eggs\n", "the disk is warm\n"):
        before, found, _ = printed.partition(line)
        assert found, line
        assert before.endswith("\x1b[2K")
    assert "test_messages.py" not in printed


def test_everything_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, said_so = terminal_of(monkeypatch), warnings.showwarning
    with library_on(terminal) as library:
        with Progress(console=Console()), messages_above():
            assert library.stream is not terminal
            assert warnings.showwarning is not said_so
        assert library.stream is terminal
    assert warnings.showwarning is said_so


def test_handlers_that_write_elsewhere_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, elsewhere = terminal_of(monkeypatch), io.StringIO()
    with library_on(elsewhere) as library, progress_bar("syncing", 1):
        assert library.stream is elsewhere
        logging.getLogger("some.library").error("to a file")
    assert elsewhere.getvalue() == "to a file\n"
    assert "to a file" not in terminal.getvalue()
