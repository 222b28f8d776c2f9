"""Signals that end this program: turned into an exception, and made to wait while a process is started."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from dftfactory import interrupts
from dftfactory.interrupts import asked_to_stop, postponed_signals, soft_stops, stopped_by_signals, waiting


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


# A soft stop


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP])
def test_a_first_signal_is_noted_and_the_work_goes_on(number: signal.Signals) -> None:
    with soft_stops():
        assert asked_to_stop() is None
        with stopped_by_signals():  # as around each calculation
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)  # an echo, from the script of the job
            stop = asked_to_stop()
    assert stop is not None
    assert (stop.name, stop.is_urgent) == (number.name, number != signal.SIGUSR1)
    assert asked_to_stop() is None
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_second_signal_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "ECHO_SECONDS", -1.0)

    def work() -> None:
        with soft_stops():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        work()
    assert end.value.code == 128 + signal.SIGTERM


def test_what_only_waits_is_ended_but_not_by_a_warning() -> None:
    """A database may be away for half an hour."""
    steps = []

    def wait(number: signal.Signals) -> None:
        with soft_stops(), waiting():
            os.kill(os.getpid(), number)
            steps.append(number)

    wait(signal.SIGUSR1)
    with pytest.raises(SystemExit):
        wait(signal.SIGTERM)
    assert steps == [signal.SIGUSR1]
