"""What libraries say while a progress bar is drawn: one line each, above the bar and not through it."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from dftfactory.errors import printable


@contextlib.contextmanager
def messages_above() -> Iterator[None]:
    """Bring warnings and log lines of libraries above what rich draws; for the inside of a Progress or Live.

    rich takes what is printed to stdout and stderr. A log handler that was made before has the terminal itself, and a
    warning has three lines of source code.
    """
    moved = [(handler, handler.stream) for handler in _on_the_terminal()]
    for handler, _ in moved:
        handler.setStream(sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _in_one_line
            yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


def _on_the_terminal() -> Iterator[logging.StreamHandler[Any]]:
    """Handlers that write to what rich has put itself before."""
    covered = [_behind(stream) for stream in (sys.stdout, sys.stderr) if _behind(stream) is not stream]
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream in covered:
                yield handler


def _behind(stream: Any) -> Any:
    """Return the stream that rich covers, or the stream itself."""
    return getattr(stream, "rich_proxied_file", stream)


def _in_one_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    sys.stderr.write(f"{category.__name__}: {printable(' '.join(str(message).split()))}\n")
