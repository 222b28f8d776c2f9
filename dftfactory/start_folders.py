"""Several starts of one structure, each in a folder of its own: what an earlier job has left of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from dftfactory.errors import ParserError
from dftfactory.failures import Failure
from dftfactory.giving_up import calculation_error
from dftfactory.history import has_history, read_history
from dftfactory.parsers import read_pw_output
from dftfactory.results import DFTResult
from dftfactory.states import FAILURES_OF_A_STATE

# Ends of a start after which another job goes on with the calculation; None is that of a rocket that was killed.
_ENDS_OF_A_JOB = (None, Failure.WALLTIME.value, Failure.KILLED.value, Failure.OUT_OF_MEMORY.value)


# What history.json says of a start beside its input.
_OF_A_START = ("label_parameters", "md5", "starting_moments", "pbc")


def may_resume_starts(run_dir: Path) -> bool:
    """Whether a calculation of several starts was broken off, so that the others, and its state, can be kept."""
    try:
        attempt = read_history(run_dir)["attempts"][-1]
    except ParserError:
        return False
    has_starts = not (run_dir / "pw.in").exists() and has_history(run_dir / "start_0")
    return has_starts and attempt.get("outcome") in _ENDS_OF_A_JOB


def is_start_of(folder: Path, pw_input: str, prescribed: Mapping[str, Any]) -> bool:
    """Whether a folder has this very start: label parameters, pseudopotentials, moments, atoms, cell and k-points."""
    try:
        begun = read_history(folder)["prescribed"]
        text = (folder / "pw.in").read_text(encoding="utf-8")
    except (ParserError, OSError, UnicodeDecodeError):
        return False
    # What recovery changes stands in the namelists, before the cards.
    same_cards = _cards(text) == _cards(pw_input)
    return same_cards and all(begun.get(key) == prescribed.get(key) for key in _OF_A_START)


def has_ended(folder: Path) -> bool:
    """Whether a start has come to its own end, a state or a failure of its state; a state that is lost counts not."""
    try:
        outcome = read_history(folder)["attempts"][-1].get("outcome")
        if outcome == "CONVERGED":
            read_pw_output(folder)
    except ParserError:
        return False
    return outcome in ("CONVERGED", *FAILURES_OF_A_STATE)


def put_aside(folder: Path) -> None:
    """Make room for a start that begins anew; what was left of it serves a reader only."""
    if folder.exists():
        names = (folder.with_name(f"{folder.name}_ended_{n}") for n in count())
        folder.rename(next(path for path in names if not path.exists()))


def read_ended(folder: Path) -> DFTResult:
    """Return the state that a start has ended in.

    Raises
    ------
    CalculationError
        It has failed.
    """
    history = read_history(folder)
    attempts = history["attempts"]
    if attempts[-1]["outcome"] == "CONVERGED":
        result = read_pw_output(folder)
        return result.with_record(level=attempts[-1]["parameters"]["level"], history=tuple(attempts))
    cause = ParserError("it was refused")
    raise calculation_error(folder, history["calculation_id"], cause, refused=False, memory=None)


def _cards(pw_input: str) -> str:
    return pw_input[pw_input.find("ATOMIC_SPECIES") :]
