"""What is noticed while pw.x runs: decided from texts and times, without waiting for anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dftfactory.failures import Failure
from dftfactory.watch import LONGEST_GAP, Output, Silence, Verdict, Watch

FILES = Path(__file__).parent / "files"
# Recorded runs that are labels.
LABELS = sorted(
    path.parent.name for path in FILES.glob("pw/*/case.json") if json.loads(path.read_text())["accepted"] == ["NONE"]
)


def iteration(number: int, accuracy: str = "0.00100000", energy: str = "-15.00000000") -> str:
    """One iteration as pw.x 6.7 prints it."""
    return (
        f"     iteration #{number:3d}     ecut=    15.00 Ry     beta= 0.70\n"
        "     Davidson diagonalization with overlap\n"
        "     ethr =  1.00E-02,  avg # of iterations =  2.0\n"
        f"     total energy              ={energy:>17} Ry\n"
        f"     estimated scf accuracy    <{accuracy:>17} Ry\n\n"
    )


def standing_still(iterations: int) -> str:
    return "".join(iteration(n) for n in range(1, iterations + 1))


def never() -> float | None:
    raise AssertionError("nobody should look at the processes yet")


# Output


@pytest.mark.parametrize("case", LABELS)
def test_no_recorded_label_would_have_been_stopped(case: str) -> None:
    output = Output(memory_mb=1000)
    text = (FILES / "pw" / case / "pw.out").read_text()
    assert [output.read(text[start : start + 1000]) for start in range(0, len(text), 1000)] == [None] * (
        len(text) // 1000 + 1
    )
    assert output.converged


def test_text_that_is_cut_anywhere_gives_the_same_verdict_once() -> None:
    text = "     number of electrons       =         8.00\n" + standing_still(60)
    for length in (1, 7, 1000, len(text)):
        output = Output()
        verdicts = [output.read(text[start : start + length]) for start in range(0, len(text), length)]
        (verdict,) = [verdict for verdict in verdicts if verdict]
        assert (verdict.failure, verdict.softly) == (Failure.SCF_NOT_CONVERGED, True)
        assert verdict.evidence.startswith("stopped early, the SCF stands still: best accuracy 1.0e-03 Ry")
        assert len(output.scf_accuracy) == 60


def test_the_early_stop_can_be_switched_off() -> None:
    assert Output(early_stop=False).read(standing_still(60)) is None


def test_a_run_that_has_converged_is_not_stopped_any_more() -> None:
    output = Output()
    assert output.read(standing_still(60) + "     convergence has been achieved in  60 iterations\n") is None
    assert output.converged


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "Inf", "nan"])
def test_a_number_that_is_none_stops_the_run_at_once(number: str) -> None:
    for text in (iteration(1, energy=number), iteration(1, accuracy=number)):
        verdict = Output(early_stop=False).read(text)
        assert verdict is not None
        assert (verdict.failure, verdict.softly) == (Failure.NAN, False)
        assert verdict.evidence.startswith(number)
        assert verdict.evidence.endswith("of SCF iteration 1")


def test_the_second_scf_of_a_hybrid_functional_begins_anew() -> None:
    output = Output()
    assert output.read(standing_still(40)) is None
    output.read("     convergence has been achieved in  40 iterations\n")
    assert output.read("     EXX: now go back to refine exchange calculation\n") is None
    assert not output.has_pace
    assert output.read(standing_still(40)) is None
    assert not output.converged


def test_a_line_without_end_fills_no_memory() -> None:
    output = Output()
    for _ in range(100):
        output.read("x" * 10000)
    assert len(output._rest) <= 1000


def memory_lines(ranks: str, estimate: str) -> str:
    return f"     {ranks}\n\n     Estimated max dynamical RAM per process >  {estimate}\n"


@pytest.mark.parametrize(
    ("ranks", "estimate", "expected"),
    [
        ("Parallel version (MPI), running on     1 processors", "   1.60 GB", None),  # 1638 MB: it may fit
        ("Parallel version (MPI), running on     2 processors", "   1.60 GB", (1638, 2)),
        ("Number of MPI processes:                 4", " 500.00 MB", (500, 4)),
        ("Parallel version (MPI), running on     8 processors\n     MPI processes distributed on     4 nodes",
         " 500.00 MB", None),
        ("Parallel version (MPI & OpenMP), running on      16 processor cores\n     Number of MPI processes:    1",
         " 500.00 MB", None),
    ],
)  # fmt: skip
def test_memory_is_compared_as_soon_as_it_is_printed(
    ranks: str, estimate: str, expected: tuple[int, int] | None
) -> None:
    """1200 MB on the node; pw.x may need as little as two thirds of what it expects."""
    verdict = Output(memory_mb=1200).read(memory_lines(ranks, estimate))
    assert Output(memory_mb=None).read(memory_lines(ranks, estimate)) is None
    if expected is None:
        assert verdict is None
        return
    assert verdict is not None
    assert (verdict.failure, verdict.softly) == (Failure.OUT_OF_MEMORY, False)
    assert verdict.evidence == (
        f"pw.x expects to need {expected[0]} MB for each of {expected[1]} ranks on this node, "
        "which has 1200 MB for them"
    )


# Silence


def silent_for(silence: Silence, seconds: float, *, has_pace: bool = True, cpu: Any = lambda: 100.0) -> float | None:
    """Look once a second; return after how many seconds the run is said to hang."""
    for second in range(1, int(seconds) + 1):
        verdict = silence.goes_on(1.0, has_pace=has_pace, cpu_seconds=cpu)
        if verdict is not None:
            assert (verdict.failure, verdict.softly) == (Failure.HANG, False)
            assert verdict.evidence.startswith(f"no output for {second} s")
            return second
    return None


class Busy:
    """One rank that computes, or spins while it waits for another one."""

    def __init__(self, share: float = 1.0) -> None:
        self.share, self.used = share, 0.0

    def __call__(self) -> float:
        self.used += self.share
        return self.used


def test_nobody_looks_at_the_processes_before_the_silence_is_long() -> None:
    assert silent_for(Silence(120), 119, cpu=never) is None


def test_a_session_that_computes_nothing_hangs_after_a_few_of_its_own_iterations() -> None:
    silence = Silence(120)
    for _ in range(10):
        silence.goes_on(10.0, has_pace=True, cpu_seconds=Busy())
    silence.broken(0.0)
    # 120 s in which nobody looks, and then 5 x 100 s without work; with work it would have 2000 s.
    assert silent_for(silence, 5000) == 621


def test_a_session_that_computes_has_twenty_times_its_longest_silence() -> None:
    silence = Silence(120)
    for _ in range(3):
        silence.goes_on(10.0, has_pace=True, cpu_seconds=Busy())
    silence.broken(0.0)
    assert silent_for(silence, 5000, cpu=Busy()) == 601
    fast = Silence(120)
    fast.broken(0.5)
    assert silent_for(fast, 5000, cpu=Busy()) == 121


def test_before_the_first_iteration_only_a_session_without_any_work_hangs() -> None:
    """Starting wavefunctions of a large cell may take an hour."""
    assert silent_for(Silence(120), 36000, has_pace=False, cpu=Busy(0.1)) is None
    assert silent_for(Silence(120), 36000, has_pace=False) == 721


def test_where_the_ranks_cannot_be_seen_only_the_pace_counts() -> None:
    """Under srun, or on other nodes."""
    silence = Silence(120)
    for _ in range(10):
        silence.goes_on(10.0, has_pace=True, cpu_seconds=Busy())
    silence.broken(0.0)
    assert silent_for(silence, 5000, cpu=lambda: None) == 2001
    assert silent_for(Silence(120), 36000, has_pace=False, cpu=lambda: None) is None


def test_writing_to_a_slow_disk_is_work() -> None:
    """A hundredth of a core."""
    silence = Silence(120)
    for _ in range(60):
        silence.goes_on(10.0, has_pace=True, cpu_seconds=Busy())
    silence.broken(0.0)
    assert silent_for(silence, 6000, cpu=Busy(0.01)) is None


def test_time_in_which_we_were_suspended_ourselves_is_no_silence() -> None:
    """The queue or a closed laptop stops Python with pw.x; when it goes on, an hour has passed between two looks."""
    silence = Silence(120)
    assert silence.goes_on(3600.0, has_pace=True, cpu_seconds=never) is None
    silence.broken(3600.0)
    assert silence.longest == 2 * LONGEST_GAP


# The file


def test_only_what_pw_out_has_grown_by_is_read(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listener(Output):
        def read(self, text: str) -> Verdict | None:
            heard.append(text)
            return super().read(text)

    path = tmp_path / "pw.out"
    path.write_bytes(b"")
    watch = Watch(path, Listener(), Silence(120))
    for piece in (b"one\ntw", "ö\n".encode(), b""):
        with path.open("ab") as file:
            file.write(piece)
        assert watch.look(never) is None
    assert heard == ["one\ntw", "ö\n".encode().decode("latin-1")]


def test_a_file_system_that_fails_is_no_silence(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "gone", Output(), Silence(1e-9))
    assert watch.look(never) is None


def test_looks_become_rare_with_the_age_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1000.0, 1000.0, 1000.3, 1010.0, 1100.0, 90000.0])
    monkeypatch.setattr("dftfactory.watch.time.monotonic", lambda: next(clock))
    watch = Watch(tmp_path, Output(), Silence(120))
    intervals = [watch.interval for _ in range(5)]
    assert intervals == pytest.approx([0.05, 0.05, 0.5, 5.0, 5.0])


def test_every_line_that_matters_is_found_in_a_recorded_output() -> None:
    output = Output()
    text = (FILES / "pw" / "ok_si2_mpi2" / "pw.out").read_text()
    assert output.read(text) is None
    printed = re.findall(r"estimated scf accuracy +< +(\S+) Ry", text)
    assert output.scf_accuracy == [float(number) for number in printed]
    assert (output._electrons, output._ranks, output._nodes, output.converged) == (8.0, 2, 1, True)
