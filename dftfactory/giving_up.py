"""What is said when recovery has ended without a label: the exception, and the last words in history.json."""

from __future__ import annotations

import contextlib
import errno
import math
from pathlib import Path
from typing import Any

from dftfactory.errors import CalculationError, ParserError
from dftfactory.failures import EXPLANATIONS, Failure
from dftfactory.handlers import attempt_facts
from dftfactory.history import close_attempt, read_history
from dftfactory.jobs import may_resume
from dftfactory.parsers import read_pw_output
from dftfactory.results import DFTResult

# pw.x estimates its arrays from below ("> 2.76 MB"); program and libraries come on top, for each rank (MB).
MEMORY_MARGIN, PROGRAM_MEMORY = 1.3, 100


def calculation_error(
    run_dir: Path, calculation_id: str, cause: Exception, *, refused: bool, memory: float | None
) -> CalculationError:
    """Say why recovery gave up: as the handlers have recorded it, or else from what broke the calculation off.

    Parameters
    ----------
    run_dir, calculation_id
        Of the calculation, whose history.json is completed.
    cause
        What broke it off.
    refused
        Whether that was the refusal of a run that nothing was wrong with for the handlers.
    memory
        MB that this job has; None where it is not known.
    """
    try:
        attempts = read_history(run_dir)["attempts"]
    except ParserError:
        attempts = []
    end = attempts[-1] if attempts else {}
    if "outcome" not in end or isinstance(cause, OSError):
        end = _unclaimed_end(run_dir, cause, refused)
        # What cannot be written to a full disk still stands in the error.
        with contextlib.suppress(OSError, ParserError):
            close_attempt(run_dir, **end, **attempt_facts(run_dir))
            attempts = read_history(run_dir)["attempts"]
    request = _request(attempts, memory) if end["outcome"] == Failure.OUT_OF_MEMORY else {}
    if request:
        with contextlib.suppress(OSError, ParserError):
            close_attempt(run_dir, **{**attempts[-1], **request})
            attempts = read_history(run_dir)["attempts"]
    level = attempts[-1]["parameters"]["level"] if attempts else None
    runs = "1 run" if len(attempts) == 1 else f"{len(attempts)} runs"
    where = f" at level {level} after {runs}" if attempts else ""
    explanation = end["explanation"]
    if request:
        explanation += f"; {request['request']['memory_mb']} MB on a node may be enough"
    elif may_resume(run_dir):
        explanation += f"; another job can go on with QERunner.resume({str(run_dir)!r})"
    return CalculationError(
        f"{calculation_id}: {end['outcome']}{where}: {end['evidence']}; {explanation}",
        calculation_id=calculation_id,
        failure=None if end["outcome"] == "REJECTED" else end["outcome"],
        level=level,
        evidence=end["evidence"],
        explanation=explanation,
        history=attempts,
        run_dir=str(run_dir),
        **request,
    )


def _request(attempts: list[dict[str, Any]], memory: float | None) -> dict[str, Any]:
    """Return what a job that runs it again should have, for whoever queues it; nothing where nothing is known.

    Twice the memory (MB) that this one had, or the largest estimate of all attempts: the next job begins again with
    the user's own parameters.
    """
    known = [] if memory is None else [2 * memory]
    for attempt in attempts:
        if attempt.get("estimated_memory"):
            known.append((MEMORY_MARGIN * attempt["estimated_memory"] + PROGRAM_MEMORY) * attempt["n_ranks"])
    return {"request": {"memory_mb": math.ceil(max(known))}} if known else {}


def _unclaimed_end(run_dir: Path, cause: Exception, refused: bool) -> dict[str, Any]:
    """Return how an attempt ended that no handler has claimed."""
    if isinstance(cause, OSError):
        failure = Failure.DISK_FULL if cause.errno in (errno.ENOSPC, errno.EDQUOT) else Failure.ENVIRONMENT
        # A file that was open already is not named.
        evidence = str(cause) if cause.filename else f"{cause} in {run_dir}"
        return {"outcome": failure.value, "evidence": evidence, "explanation": EXPLANATIONS[failure]}
    evidence, explanation = str(cause), "the calculation was broken off"
    if refused:
        explanation = "pw.x ended well, and its result is refused"
        try:  # custodian only says that there was something
            read_pw_output(run_dir)
        except ParserError as error:
            evidence = error.message
    return {"outcome": "REJECTED", "evidence": evidence, "explanation": explanation}


def details_of_softened(result: DFTResult) -> dict[str, Any]:
    """Details of the error that stands for a softened label where nobody has asked for one."""
    return {
        "calculation_id": result.calculation_id,
        "failure": Failure.SCF_NOT_CONVERGED.value,
        "level": result.level,
        "evidence": f"converged at degauss = {result.degauss:g} Ry only",
        "explanation": EXPLANATIONS[Failure.SCF_NOT_CONVERGED],
        "history": list(result.history),
        **({"states": list(result.states)} if result.states else {}),
    }


def softened_error(run_dir: Path, result: DFTResult) -> CalculationError:
    """Return the error that stands for a softened label where nobody has asked for one; it carries the label."""
    return CalculationError(
        f"{result.calculation_id}: SCF_NOT_CONVERGED at the prescribed degauss; it converged at {result.degauss:g} Ry, "
        "which is kept as a softened label and left out unless asked for",
        **details_of_softened(result),
        run_dir=str(run_dir),
        softened=result.to_dict(),
    )
