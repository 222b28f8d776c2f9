"""Signals that end this program, turned into an exception, so that pw.x is stopped before Python ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM (scancel, a shutdown) and SIGHUP into SystemExit, so that pw.x is stopped before Python ends.

    A signal that the application has a handler of its own for, or ignores as `nohup` does, is left to it.
    """
    # Only the main thread may set handlers.
    numbers = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []

    def stop(number: int, frame: FrameType | None) -> None:
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
