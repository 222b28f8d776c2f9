"""Signals that end this program: an exception that stops pw.x before Python ends, or the wish for a soft stop."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from types import FrameType

# What a queue sends: SIGTERM at the end of a job, shortly before SIGKILL; SIGUSR1 where the job script asks for a
# warning (`--signal=B:USR1@600`); SIGHUP comes from a terminal.
SOFT_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)
# Seconds in which a second signal is taken for an echo of the first: a queue signals all processes of a job, and its
# script passes the signal on to them; a terminal that closes sends SIGHUP and SIGTERM.
ECHO_SECONDS = 2.0

# Signals that have come while they were postponed; None while they are not.
_postponed: list[int] | None = None


@dataclass
class SoftStop:
    """A signal that has asked for a soft stop, and when it came (`time.monotonic`)."""

    number: int
    came: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """SIGTERM, say."""
        return signal.Signals(self.number).name

    @property
    def is_urgent(self) -> bool:
        """Whether SIGKILL follows soon; SIGUSR1 is a warning."""
        return self.number != signal.SIGUSR1


@dataclass
class _Listening:
    """The state of `soft_stops`."""

    asked: SoftStop | None = None
    idle: bool = False


_listening: _Listening | None = None


@contextlib.contextmanager
def soft_stops() -> Iterator[None]:
    """Let the first of SOFT_SIGNALS only be noted, for `asked_to_stop`; a second one raises SystemExit at once.

    A signal that the application has a handler of its own for, or ignores as `nohup` does, is left to it.
    """
    global _listening
    state = _listening = _Listening()

    def ask(number: int, ours: Collection[int]) -> None:
        if state.asked is None:
            state.asked = SoftStop(number)
            if state.idle and state.asked.is_urgent:
                raise SystemExit(128 + number)
        elif time.monotonic() - state.asked.came > ECHO_SECONDS:
            _end_at_once(number, ours)

    try:
        with _handled_by(ask, SOFT_SIGNALS):
            yield
    finally:
        _listening = None


def asked_to_stop() -> SoftStop | None:
    """Return the signal that has asked for a soft stop; None while none has come, and outside of `soft_stops`."""
    return None if _listening is None else _listening.asked


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Mark a block that only waits, for a database that is away: SIGTERM and SIGHUP end it by SystemExit."""
    state = _listening or _Listening()
    state.idle = True
    try:
        yield
    finally:
        state.idle = False


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM (scancel, a shutdown) and SIGHUP into SystemExit, so that pw.x is stopped before Python ends.

    A signal that the application has a handler of its own for (as `soft_stops` has), or ignores as `nohup` does, is
    left to it.
    """
    with _handled_by(_end_at_once, (signal.SIGTERM, signal.SIGHUP)):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, Collection[int]], None], numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Handle those of the signals that nobody else handles or ignores; the handler is told which these are."""
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def handle(number: int, frame: FrameType | None) -> None:
        handler(number, ours)

    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end_at_once(number: int, ours: Collection[int]) -> None:
    if _postponed is not None:
        _postponed.append(number)
        return
    # Another one must not break off what this one has begun to stop.
    for other in ours:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


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
