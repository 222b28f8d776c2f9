"""Times on a machine that is not ours alone: a run beside which others took a core is made again."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
# Share of one core that others may take.
DISTURBED = 0.1


@dataclass
class Quiet:
    """Makes runs again that were disturbed, until its patience (seconds for all of them) is over."""

    patience: float = 600.0
    disturbed: int = 0

    def timed(self, action: Callable[[], Result]) -> tuple[float, Result]:
        """Return the wall time of an action, and what it returns; `disturbed` counts those that had company."""
        while True:
            self._wait_for_silence()
            began, busy, own = time.perf_counter(), _busy_seconds(), _own_seconds()
            result = action()
            seconds = time.perf_counter() - began
            others = (_busy_seconds() - busy) - (_own_seconds() - own)
            if others <= DISTURBED * seconds:
                return seconds, result
            if self.patience <= 0:
                self.disturbed += 1
                return seconds, result
            self.patience -= seconds

    def _wait_for_silence(self) -> None:
        while self.patience > 0:
            busy = _busy_seconds()
            time.sleep(0.3)
            if _busy_seconds() - busy <= DISTURBED * 0.3:
                return
            self.patience -= 0.3


def _busy_seconds() -> float:
    """CPU time of all processes of the machine since it started."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
