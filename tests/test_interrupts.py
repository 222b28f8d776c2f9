"""Signals that end this program: turned into an exception, and made to wait while a process is started."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from dftfactory.interrupts import postponed_signals, stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_with_its_exit_status(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as end, stopped_by_signals():
        os.kill(os.getpid(), number)
    assert end.value.code == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_comes_during_a_start_waits_for_its_end() -> None:
    """Broken off in the middle, the process that has just begun would be nobody's."""
    steps = []

    def start() -> None:
        with postponed_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("started")
        steps.append("went on")

    with pytest.raises(SystemExit) as end, stopped_by_signals():
        start()
    assert steps == ["started"]
    assert end.value.code == 128 + signal.SIGTERM


def test_what_is_no_longer_postponed_ends_at_once() -> None:
    steps = []

    def start() -> None:
        with postponed_signals():
            steps.append("started")
        os.kill(os.getpid(), signal.SIGHUP)
        steps.append("went on")

    with pytest.raises(SystemExit), stopped_by_signals():
        start()
    assert steps == ["started"]


def test_ctrl_c_waits_too_and_is_what_it_was_afterwards() -> None:
    steps = []

    def start() -> None:
        with postponed_signals():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("started")
        steps.append("went on")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert steps == ["started"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_postpones_nothing() -> None:
    """Signals arrive in the main thread, which must not wait for the others."""
    entered, left = threading.Event(), threading.Event()

    def start() -> None:
        with postponed_signals():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=start)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(SystemExit), stopped_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    left.set()
    thread.join()


def test_a_handler_of_the_application_is_left_alone() -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
