"""Waiting for a database that is away: what is worth hours of computing is worth more than one try."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from dftfactory.errors import LaunchPadAwayError

T = TypeVar("T")
# The first pause and the longest one: a restart is noticed soon, and a database that comes back is not stormed.
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


def patiently(call: Callable[[], T], seconds: float) -> T:
    """Call until the database answers, with growing pauses.

    Parameters
    ----------
    call
        Something that may be done twice: whether the database did it before it went away is not known.
    seconds
        How long it is tried again; how long one try takes, the driver's own settings say.

    Raises
    ------
    LaunchPadAwayError
        It was away all the time.
    """
    end, pause = time.monotonic() + seconds, SHORTEST_PAUSE
    while True:
        try:
            return call()
        except LaunchPadAwayError:
            left = end - time.monotonic()
            if left <= 0:
                raise
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
