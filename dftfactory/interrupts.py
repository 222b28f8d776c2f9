"""Signals that end this program, turned into an exception, so that pw.x is stopped before Python ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# Signals that have come while they were postponed; None while they are not.
_postponed: list[int] | None = None


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM (scancel, a shutdown) and SIGHUP into SystemExit, so that pw.x is stopped before Python ends.

    A signal that the application has a handler of its own for, or ignores as `nohup` does, is left to it.
    """
    # Only the main thread may set handlers.
    numbers = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []

    def stop(number: int, frame: FrameType | None) -> None:
        if _postponed is not None:
            _postponed.append(number)
            return
        # Both come when a terminal closes; the second one must not break off what the first has begun to stop.
        for ours_too in ours:
            signal.signal(ours_too, signal.SIG_IGN)
        raise SystemExit(128 + number)

    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def ctrl_c_of_python() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt; the handler of `rlaunch` calls sys.exit(1), which looks like a failure."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def postponed_signals() -> Iterator[None]:
    """Let Ctrl-C and the signals of `stopped_by_signals` wait for the end of the block.

    For the start of a process: broken off between the fork and the moment when its number is known, it would live on.
    """
    global _postponed
    if threading.current_thread() is not threading.main_thread():  # no signal arrives here
        yield
        return
    _postponed = came = []
    ctrl_c = signal.getsignal(signal.SIGINT)
    if ctrl_c is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        _postponed = None
        if ctrl_c is signal.default_int_handler:
            signal.signal(signal.SIGINT, ctrl_c)
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(128 + came[0])
