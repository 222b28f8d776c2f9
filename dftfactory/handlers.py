"""custodian's ErrorHandlers: recognise one kind of failure, ask `recovery`, rewrite pw.in, say what was done.

custodian applies every handler that claims a run, one after the other. `diagnose` names exactly one failure, each
failure belongs to exactly one handler, and once a handler has spoken the others are silent: one failure, one rung.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from custodian.custodian import ErrorHandler

from dftfactory.errors import InconsistentOutputError, ParserError
from dftfactory.events import rung_chosen
from dftfactory.failures import Diagnosis, Failure, examine
from dftfactory.history import (
    awaits_verdict,
    close_attempt,
    current_parameters,
    has_history,
    open_attempt,
    read_history,
)
from dftfactory.inputs import NAMELIST_OF, change_pw_input
from dftfactory.parsers import parse_text, read_exit_status, read_output, read_pw_output
from dftfactory.recovery import LADDER, get_next_params, get_next_stage

# The SCF error in the forces goes with the square root of the one in the energy: ten times smaller.
TIGHTER = 100
TIGHTEN = "SCF_CORRECTION: tighten"
TIGHTEN_EXPLANATION = "the SCF error was not small against the forces; a run with a smaller conv_thr follows"


class _FailureHandler(ErrorHandler):  # type: ignore[misc]  # custodian is untyped
    """Claims the runs that end in one of `failures`."""

    failures: ClassVar[tuple[Failure, ...]] = ()

    def check(self, directory: str = "./") -> bool:
        """Whether the run ended in a failure of this handler."""
        diagnosis = _diagnosis(Path(directory))
        return diagnosis is not None and diagnosis.failure in self.failures

    def correct(self, directory: str = "./") -> dict[str, Any]:
        """Prepare the next attempt; `actions` is None when no rung is left."""
        diagnosis = _diagnosis(Path(directory))
        assert diagnosis is not None  # noqa: S101  (custodian calls `correct` only after `check`)
        return _recover(Path(directory), diagnosis)


class ConvergenceHandler(_FailureHandler):
    """SCF not converged: continue it once from its density, unless it has diverged; then climb the ladder."""

    failures = (Failure.SCF_NOT_CONVERGED,)


class DiagonalizationHandler(_FailureHandler):
    """The eigenvalue solver failed: one that was not tried yet."""

    failures = (Failure.DIAGONALIZATION,)


class OutOfMemoryHandler(_FailureHandler):
    """Memory ran out: one pool, a smaller subspace and history, a frugal solver, at the same level."""

    failures = (Failure.OUT_OF_MEMORY,)


class NaNHandler(_FailureHandler):
    """NaN or overflow: once more from scratch with soft mixing and another solver."""

    failures = (Failure.NAN,)


class MachineHandler(_FailureHandler):
    """The machine, the layout or the saved state failed, and not the physics: again at the same level."""

    failures = (
        Failure.PARALLELIZATION,
        Failure.DISK_FULL,
        Failure.WALLTIME,
        Failure.SYMMETRY,
        Failure.BAD_RESTART,
        Failure.HANG,
        Failure.KILLED,
        Failure.INCOMPLETE_OUTPUT,
    )


class OccupationsHandler(_FailureHandler):
    """The occupations do not fit: more bands, or gaussian smearing where the Fermi level is lost; else give up."""

    failures = (Failure.OCCUPATIONS,)


class HopelessHandler(_FailureHandler):
    """No rung can cure it, or nobody wants it cured: give up at once, without a second run."""

    failures = (
        Failure.ENVIRONMENT,
        Failure.INPUT_ERROR,
        Failure.PSEUDOPOTENTIAL,
        Failure.GEOMETRY,
        Failure.SOFT_STOP,
    )


class AnnealHandler(ErrorHandler):  # type: ignore[misc]  # custodian is untyped
    """A converged hot stage is not a label: cool down to the next stage, from the density of this one."""

    def check(self, directory: str = "./") -> bool:
        """Whether the run is a stage of an anneal that converged, and not the last one."""
        run_dir = Path(directory)
        if not has_history(run_dir) or not awaits_verdict(run_dir) or _next_stage(run_dir) is None:
            return False
        try:
            read_pw_output(directory)
        except InconsistentOutputError as error:
            return bool(error.details.get("intermediate"))
        except ParserError:
            return False
        return False

    def correct(self, directory: str = "./") -> dict[str, Any]:
        """Prepare the next stage."""
        run_dir = Path(directory)
        following = _next_stage(run_dir)
        assert following is not None  # noqa: S101  (custodian calls `correct` only after `check`)
        evidence = "converged at a raised degauss"
        close_attempt(run_dir, "STAGE_CONVERGED", evidence=evidence, **attempt_facts(run_dir))
        return {"errors": [evidence], "actions": _prepare(run_dir, following)}


class TightenHandler(ErrorHandler):  # type: ignore[misc]  # custodian is untyped
    """A label whose SCF error is not small against the forces: once more from the density, with a smaller conv_thr."""

    def check(self, directory: str = "./") -> bool:
        """Whether the run is a label but for its forces, and was not tightened before."""
        run_dir = Path(directory)
        if not has_history(run_dir) or not awaits_verdict(run_dir) or _used(run_dir).get(TIGHTEN):
            return False
        return _looseness(run_dir) is not None

    def correct(self, directory: str = "./") -> dict[str, Any]:
        """Prepare the same run from its own density."""
        run_dir = Path(directory)
        evidence = _looseness(run_dir) or ""
        close_attempt(
            run_dir, "TIGHTENED", evidence=evidence, explanation=TIGHTEN_EXPLANATION, **attempt_facts(run_dir)
        )
        current = current_parameters(run_dir)
        following = {name: value for name, value in current.items() if name != "restart_mode"}
        following |= {
            "startingpot": "file",
            "conv_thr": float(f"{current['conv_thr'] / TIGHTER:.6g}"),
            "used": {**_used(run_dir), TIGHTEN: 1},
        }
        return {"errors": [f"TIGHTENED: {evidence}"], "actions": _prepare(run_dir, following)}


def all_handlers() -> list[ErrorHandler]:
    """One handler for each failure, one for the stages of an anneal, and one for forces that are not converged."""
    return [
        ConvergenceHandler(),
        DiagonalizationHandler(),
        OutOfMemoryHandler(),
        NaNHandler(),
        OccupationsHandler(),
        MachineHandler(),
        HopelessHandler(),
        AnnealHandler(),
        TightenHandler(),
    ]


def attempt_facts(run_dir: Path) -> dict[str, Any]:
    """Plain facts of the run that has just ended, for the history."""
    text = parse_text(read_output(run_dir))
    accuracies = text.scf_accuracy
    return {
        "exit_status": read_exit_status(run_dir),
        "iterations": text.iterations,
        "cpu_time": text.cpu_time,
        "wall_time": text.wall_time,
        "n_ranks": text.n_ranks,
        "estimated_memory": text.estimated_memory,
        "best_accuracy": min(accuracies, default=None),
        "last_accuracy": accuracies[-1] if accuracies else None,
        # Stars and NaN are no numbers, and the record of a failure must be JSON for everybody.
        "scf_accuracy": [accuracy for accuracy in accuracies if math.isfinite(accuracy)],
        **({} if text.wall_time is not None else {"cpu_so_far": text.cpu_so_far}),
    }


def _diagnosis(run_dir: Path) -> Diagnosis | None:
    """Return the failure of the run that has just ended; None when there is none, or a handler has dealt with it."""
    if not has_history(run_dir):
        return examine(run_dir)
    if not awaits_verdict(run_dir):
        return None
    attempt = len(read_history(run_dir)["attempts"])
    return _examine(str(run_dir.resolve()), attempt, (run_dir / "exit_status").stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _examine(directory: str, attempt: int, ended: int) -> Diagnosis | None:
    """Examine a run once for all handlers, since reading it takes most of their time."""
    return examine(directory)


def _next_stage(run_dir: Path) -> dict[str, Any] | None:
    history = read_history(run_dir)
    return get_next_stage(
        history["attempts"][-1]["parameters"], configured=history["configured"], ladder=_ladder(history)
    )


def _looseness(run_dir: Path) -> str | None:
    """Return what the parser says of a run that is a label but for the SCF error in its forces."""
    try:
        read_pw_output(run_dir)
    except InconsistentOutputError as error:
        return error.message if error.details.get("loose") else None
    except ParserError:
        return None
    return None


def _used(run_dir: Path) -> dict[str, int]:
    used: dict[str, int] = current_parameters(run_dir).get("used", {})
    return used


def _ladder(history: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    # An empty ladder is a user's own: no recovery of the SCF.
    return LADDER if history["ladder"] is None else history["ladder"]


def _recover(run_dir: Path, diagnosis: Diagnosis) -> dict[str, Any]:
    history = read_history(run_dir)
    parameters = history["attempts"][-1]["parameters"]
    following = get_next_params(
        {**parameters, **diagnosis.observed},
        diagnosis.failure,
        parameters["level"],
        configured=history["configured"],
        ladder=_ladder(history),
    )
    close_attempt(
        run_dir,
        diagnosis.failure.value,
        evidence=diagnosis.evidence,
        explanation=diagnosis.explanation,
        **attempt_facts(run_dir),
    )
    actions = None if following is None else _prepare(run_dir, following)
    return {"errors": [f"{diagnosis.failure.value}: {diagnosis.evidence}"], "actions": actions}


def _prepare(run_dir: Path, following: dict[str, Any]) -> list[dict[str, Any]]:
    """Keep what the last attempt left, and write the input of the next one."""
    current = current_parameters(run_dir)
    rung_chosen(read_history(run_dir), following)
    open_attempt(run_dir, following)
    changes = {key: following.get(key) for key in NAMELIST_OF if following.get(key) != current.get(key)}
    change_pw_input(run_dir / "pw.in", changes)
    # custodian takes an empty list for "could not be corrected".
    return [{"level": following["level"], "stage": following.get("stage"), "changed": changes}]
