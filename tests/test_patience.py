"""A database that is away is asked again, for as long as the user allows."""

from __future__ import annotations

import pytest

from dftfactory import patience
from dftfactory.errors import LaunchPadAwayError, LaunchPadError
from dftfactory.patience import patiently


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def away_until(clock: Clock, end: float) -> str:
    if clock.now < end:
        raise LaunchPadAwayError("it does not answer")
    return "answer"


def test_it_is_asked_until_it_answers_with_growing_pauses(clock: Clock) -> None:
    assert patiently(lambda: away_until(clock, 200), 1000) == "answer"
    assert clock.pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_last_try_is_at_the_very_end(clock: Clock) -> None:
    assert patiently(lambda: away_until(clock, 10), 10) == "answer"
    assert clock.pauses == [1, 2, 4, 3]


def test_after_the_time_it_is_an_error(clock: Clock) -> None:
    with pytest.raises(LaunchPadAwayError, match="does not answer"):
        patiently(lambda: away_until(clock, 11), 10)
    assert clock.now == 10


def test_without_patience_it_is_asked_once(clock: Clock) -> None:
    with pytest.raises(LaunchPadAwayError):
        patiently(lambda: away_until(clock, 1), 0)
    assert clock.pauses == []


def test_a_refusal_is_final(clock: Clock) -> None:
    """A wrong password does not become right by waiting."""

    def refuse() -> None:
        raise LaunchPadError("wrong password")

    with pytest.raises(LaunchPadError, match="wrong password"):
        patiently(refuse, 1000)
    assert clock.pauses == []
