"""A look at a running pw.x: an SCF that leads nowhere, numbers that are none, too much memory, silence.

`Output` judges what pw.x has written and `Silence` how long it has written nothing: both see texts and times only.
`Watch` feeds them with the bytes that pw.out has grown by. What is done about a verdict stands in `jobs`.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dftfactory.failures import Failure
from dftfactory.pw_text import MB
from dftfactory.scf import is_diverging, is_hopeless

# pw.x counts arrays that it may never fill: with a long mixing history or cg it used as little as 0.77 of its estimate,
# and else up to 1.25 (six cells of 0.1 to 2 GB). What is above the limit by less, the kernel has to judge.
SURELY_TOO_MUCH = 1.5
# Silence that counts as a hang, in units of the longest one so far that was followed by output. From one iteration to
# the next the work grew by up to 10 times (2 to 20 steps of the eigenvalue solver in 350 recorded runs), and forces
# and stress took up to 4 iterations. A session that uses no CPU time either is not working on a long iteration.
BUSY_PACE = 20.0
IDLE_PACE = 5.0
# Before an iteration has ended there is no pace: only a session without any CPU time hangs, after so many hang_seconds.
IDLE_AT_FIRST = 5.0
# Share of one core, above a few ticks of the kernel. An mpirun that waits uses nothing at all (20 s), a rank that waits
# for another one spins, and one that writes to a slow disk has some work.
IDLE_SHARE, IDLE_SECONDS = 0.002, 0.05
# Bytes of pw.out. 1,000 iterations with 100 atoms write 10 MB; what writes so much runs wild and fills the disk.
LARGEST_OUTPUT = 2_000_000_000
LARGEST_READ = 16_000_000
# Seconds between two looks: a twentieth of the age of the run, so that looking costs a short run nothing and a long one
# next to nothing.
FIRST_INTERVAL, LAST_INTERVAL, INTERVAL_PER_AGE = 0.05, 5.0, 0.05
# Seconds. Between two looks we may have been suspended ourselves, together with pw.x: that is no silence of its own.
LONGEST_GAP = 2 * LAST_INTERVAL

_FIELD = r"[^\s,]+"
_SAID = re.compile(
    rf"^ *iteration # *(?P<iteration>\d+)"
    rf"|^!? +total energy += *(?P<energy>{_FIELD})"
    rf"|^ +estimated scf accuracy +< *(?P<accuracy>{_FIELD})"
    rf"|^ +number of electrons += *(?P<electrons>\d+\.?\d*)"
    rf"|Estimated max dynamical RAM per process > *(?P<memory>\d+\.?\d* *[kMG]B)"
    rf"|(?:running on|Number of MPI processes:) +(?P<ranks>\d+)\b(?! processor cores)"
    rf"|MPI processes distributed on +(?P<nodes>\d+) nodes"
    rf"|(?P<exchange>EXX)"
    rf"|(?P<converged>convergence has been achieved)",
    re.M,
)
# Stars in an early iteration can still come down; NaN does not go away.
_NOT_FINITE = re.compile(r"[-+]?(?:nan|inf)", re.I)


@dataclass(frozen=True)
class Verdict:
    """Why a run is to be stopped.

    Attributes
    ----------
    failure
        The outcome that the attempt is to have.
    evidence
        One line for the record.
    softly
        Whether it is asked to stop, through the EXIT file, and may still converge; else it is killed.
    """

    failure: Failure
    evidence: str
    softly: bool = False


class Output:
    """What pw.x has written so far.

    Parameters
    ----------
    memory_mb
        What the ranks on this node may use together; not compared where absent.
    early_stop
        Whether an SCF that leads nowhere is to be stopped.
    """

    def __init__(self, memory_mb: float | None = None, *, early_stop: bool = True) -> None:
        self.memory_mb = memory_mb
        self.early_stop = early_stop
        self.scf_accuracy: list[float] = []
        self.converged = False
        self._rest = ""
        self._iteration = 0
        self._electrons = math.inf
        self._ranks = self._nodes = 1
        self._asked_to_stop = False

    @property
    def has_pace(self) -> bool:
        """Whether an iteration has ended, after which the next one will take a similar time."""
        return bool(self.scf_accuracy)

    def read(self, text: str) -> Verdict | None:
        """Take what was written since the last time, which may end anywhere in a line."""
        lines, newline, rest = (self._rest + text).rpartition("\n")
        # A program that runs wild may never end its line.
        self._rest = rest[-1000:]
        for said in _SAID.finditer(lines + newline):
            if (verdict := self._take(str(said.lastgroup), said[str(said.lastgroup)])) is not None:
                return verdict
        if not self.early_stop or self.converged or self._asked_to_stop:
            return None
        verdict = self._scf()
        self._asked_to_stop = verdict is not None
        return verdict

    def _take(self, what: str, value: str) -> Verdict | None:
        if what in ("energy", "accuracy") and _NOT_FINITE.match(value):
            return Verdict(Failure.NAN, f"{value} as {what} of SCF iteration {self._iteration}")
        if what == "accuracy":
            with contextlib.suppress(ValueError):  # a line that two ranks have written at once
                self.scf_accuracy.append(float(value))
        elif what == "iteration":
            if int(value) <= self._iteration:
                self.scf_accuracy.clear()  # a new SCF, such as a hybrid functional has several of
            self._iteration, self.converged = int(value), False
        elif what == "exchange":
            # With exact exchange an iteration takes many times longer: its pace is not known yet.
            self.scf_accuracy.clear()
        elif what == "converged":
            self.converged = True
        elif what == "electrons":
            self._electrons = float(value)
        elif what == "ranks":
            self._ranks = int(value)
        elif what == "nodes":
            self._nodes = max(1, int(value))
        elif what == "memory":
            return self._memory(float(value[:-2]) * MB[value[-2:]])
        return None

    def _memory(self, estimate: float) -> Verdict | None:
        ranks = max(1, self._ranks // self._nodes)
        if self.memory_mb is None or estimate * ranks <= SURELY_TOO_MUCH * self.memory_mb:
            return None
        return Verdict(
            Failure.OUT_OF_MEMORY,
            f"pw.x expects to need {estimate:.0f} MB for each of {ranks} ranks on this node, "
            f"which has {self.memory_mb:.0f} MB for them",
        )

    def _scf(self) -> Verdict | None:
        best = (
            f"best accuracy {min(self.scf_accuracy, default=math.nan):.1e} Ry after {len(self.scf_accuracy)} iterations"
        )
        if is_diverging(self.scf_accuracy, self._electrons):
            return Verdict(Failure.SCF_NOT_CONVERGED, f"stopped early, the SCF diverges: {best}", softly=True)
        if is_hopeless(self.scf_accuracy):
            return Verdict(Failure.SCF_NOT_CONVERGED, f"stopped early, the SCF stands still: {best}", softly=True)
        return None


class Silence:
    """How long pw.x has written nothing, against its own pace.

    Parameters
    ----------
    hang_seconds
        The least silence that counts.
    """

    def __init__(self, hang_seconds: float) -> None:
        self.hang_seconds = hang_seconds
        self.longest = 0.0
        self._silent = 0.0
        # CPU seconds, and length of the silence, at the end of the last work that was seen in it.
        self._worked: tuple[float, float] | None = None

    def broken(self, seconds: float) -> None:
        """Pw.x has written something within the `seconds` since the last look."""
        self.longest = max(self.longest, self._silent + min(seconds, LONGEST_GAP))
        self._silent, self._worked = 0.0, None

    def goes_on(self, seconds: float, *, has_pace: bool, cpu_seconds: Callable[[], float | None]) -> Verdict | None:
        """Pw.x has written nothing for `seconds` more.

        `cpu_seconds`, all that its processes have used so far (None when they cannot be seen), is asked for only when
        the silence is long.
        """
        self._silent += min(seconds, LONGEST_GAP)
        if self._silent < self.hang_seconds:
            return None
        idle = self._idle(cpu_seconds())
        least = max(self.hang_seconds, IDLE_PACE * self.longest) if has_pace else IDLE_AT_FIRST * self.hang_seconds
        if idle > least:
            return self._hang(f"and no CPU time for {idle:.0f} s")
        if has_pace and self._silent > max(self.hang_seconds, BUSY_PACE * self.longest):
            return self._hang(f"although its longest silence before was {self.longest:.1f} s")
        return None

    def _idle(self, used: float | None) -> float:
        """Seconds of this silence, up to now, without CPU time."""
        if used is None:
            self._worked = None
            return 0.0
        before, since = self._worked or (used, self._silent)
        # Less than before is a process that has ended.
        if abs(used - before) > IDLE_SECONDS + IDLE_SHARE * (self._silent - since):
            before, since = used, self._silent
        self._worked = (before, since)
        return self._silent - since

    def _hang(self, why: str) -> Verdict:
        return Verdict(Failure.HANG, f"no output for {self._silent:.0f} s, {why}")


class Watch:
    """Looks at the output of one run of pw.x, more and more seldom.

    Parameters
    ----------
    path
        Its pw.out, which is there already.
    output, silence
        What judges it.
    """

    def __init__(self, path: Path, output: Output, silence: Silence) -> None:
        self.path = path
        self.output = output
        self.silence = silence
        self._offset = 0
        self._began = self._last = time.monotonic()

    @property
    def interval(self) -> float:
        """Seconds until the next look."""
        return min(max(FIRST_INTERVAL, INTERVAL_PER_AGE * (time.monotonic() - self._began)), LAST_INTERVAL)

    def look(self, cpu_seconds: Callable[[], float | None]) -> Verdict | None:
        """Look once."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                # One character for each byte, wherever the text was cut.
                text = file.read(LARGEST_READ).decode("latin-1")
        except OSError:  # the file system, of which pw.x will know soon enough
            return None
        self._offset += len(text)
        if not text:
            return self.silence.goes_on(seconds, has_pace=self.output.has_pace, cpu_seconds=cpu_seconds)
        self.silence.broken(seconds)
        if self._offset > LARGEST_OUTPUT:
            return Verdict(Failure.INCOMPLETE_OUTPUT, f"pw.out has more than {LARGEST_OUTPUT / 1e9:g} GB and no end")
        return self.output.read(text)
