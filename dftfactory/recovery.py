"""The recovery ladder as data, and pure functions over it: nothing here reads a file or runs anything.

Parameters travel as one flat dict: QE keywords (`mixing_beta`, `degauss`, ...), the machine's layout
(`parallel_cores`, `npool`), and the memory of the climb:

level       present level of the ladder, 0 is the user's configuration
stage       stage of an anneal, 0 is the hottest; absent outside an anneal
gaining     whether the SCF still gained when it stopped (observed by `diagnose`)
n_bands     bands of a run that were too few (observed by `diagnose`)
tried       solvers that failed in the diagonalization
kept        changes that outlive a climb, such as fewer pools after memory ran out
used        how often each rung was used
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dftfactory.failures import Failure

Parameters = dict[str, Any]

# Levels 1, 2, 3; level 0 is the user's configuration. Each holds what differs from that configuration.
# Measured with pw.x 6.7 on 27 hard, slow and easy structures, 80 iterations a run: plain mixing at level 0, then
# levels 1 and 2, solved 19 in 2,946 SCF iterations; local-TF at level 0 solved 21 in 2,163. Of 11 structures that fail
# at level 0 the anneal solved 8, beta 0.3 one, cg two. Small samples of small cells: good for the order of the rungs,
# not for rates of success. Those runs had pw.x's own number of bands, which caps the moment of larger magnetic cells;
# with bands for the majority spin this ladder solved 10 of 11 structures in 934 iterations, 410 of them on the one that
# nothing solves (`tests/benchmarks/hard_scf.py`).
LADDER: tuple[Mapping[str, Any], ...] = (
    {"name": "soft mixing", "mixing_beta": 0.3, "mixing_mode": "plain"},
    {"name": "robust solver", "mixing_beta": 0.3, "mixing_mode": "plain", "diagonalization": "cg"},
    {
        "name": "high temperature",
        "mixing_mode": "local-TF",
        "mixing_ndim": 20,
        # One hot stage at 0.03 Ry solved 2 of 10, these two 8 of 11. conv_thr in Ry per cell.
        "anneal": (
            {"degauss_above": 0.04, "conv_thr": 1e-4},
            {"degauss_above": 0.01, "conv_thr": 1e-5},
            {},
        ),
    },
)
# In the order of trust. paro and ppcg come last: not every build has them.
SOLVERS = ("david", "cg", "paro", "ppcg")
PW_DEFAULT_CONV_THR = 1e-6  # Ry per cell

Change = Callable[[Parameters, Mapping[str, Any], Sequence[Mapping[str, Any]]], "Parameters | None"]


@dataclass(frozen=True)
class Rung:
    """One remedy: how the parameters change, and how often it may be used in one calculation."""

    name: str
    change: Change
    times: int = 1


def get_recovery_strategy(failure: Failure) -> tuple[Rung, ...]:
    """Return the rungs for a failure, cheapest first; none where no rung can cure it."""
    return STRATEGIES.get(failure, ())


def get_next_params(
    current_params: Mapping[str, Any],
    failure: Failure,
    level: int,
    *,
    configured: Mapping[str, Any] | None = None,
    ladder: Sequence[Mapping[str, Any]] = LADDER,
) -> Parameters | None:
    """Return the parameters of the next attempt after `failure` at `level`, or None to give up.

    Parameters
    ----------
    current_params
        Parameters of the attempt that failed.
    failure
        How it failed.
    level
        Level of the ladder at which it failed.
    configured
        The user's own parameters, to which every level is relative; `current_params` where absent.
    ladder
        Levels 1, 2, ... as in `LADDER`.

    Returns
    -------
    dict or None
        A new dict; `level` tells where it stands. None when no rung is left.
    """
    current = {**current_params, "level": level}
    base = dict(current_params if configured is None else configured)
    used: dict[str, int] = dict(current.get("used", {}))
    for rung in get_recovery_strategy(failure):
        key = f"{failure.value}: {rung.name}"
        if used.get(key, 0) >= rung.times:
            continue
        following = rung.change(current, base, ladder)
        if following is not None:
            following = {name: value for name, value in following.items() if name not in ("gaining", "n_bands")}
            return {**following, "used": {**used, key: used.get(key, 0) + 1}}
    return None


def get_next_stage(
    current_params: Mapping[str, Any],
    *,
    configured: Mapping[str, Any],
    ladder: Sequence[Mapping[str, Any]] = LADDER,
) -> Parameters | None:
    """Return the next stage of an anneal after the present one has converged; None when it was the last one."""
    stages = _stages(current_params, ladder)
    if "stage" not in current_params or current_params["stage"] + 1 >= len(stages):
        return None
    return _enter_stage(dict(current_params), current_params["stage"] + 1, configured, stages)


def _stages(parameters: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    level = parameters.get("level", 0)
    return ladder[level - 1].get("anneal") or () if 0 < level <= len(ladder) else ()


def _enter_stage(
    parameters: Parameters, stage: int, base: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]
) -> Parameters:
    above = stages[stage].get("degauss_above", 0.0)
    prescribed = base.get("conv_thr", PW_DEFAULT_CONV_THR)
    parameters |= {
        "stage": stage,
        "degauss": round(base.get("degauss", 0.0) + above, 10),
        # A loose threshold must not be tighter than the prescribed one.
        "conv_thr": max(stages[stage].get("conv_thr", 0.0), prescribed),
    }
    if stage > 0:
        parameters["startingpot"] = "file"
    parameters.pop("continued", None)
    return parameters


def _enter_level(
    level: int, current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]
) -> Parameters:
    """Begin a level from scratch: the user's parameters, what the level changes, and what outlives a climb."""
    changes = {name: value for name, value in ladder[level - 1].items() if name not in ("name", "anneal")}
    following = {**base, **changes, **current.get("kept", {}), "level": level}
    following |= {name: current[name] for name in ("kept", "tried") if name in current}
    if current.get("tried") and "diagonalization" in current:
        # Where a solver has failed, the present one is the one that works.
        following["diagonalization"] = current["diagonalization"]
    stages = _stages(following, ladder)
    return _enter_stage(following, 0, base, stages) if stages else following


def _climb(current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Parameters | None:
    """Enter the next level; above the last one keep what an anneal can still give, softened."""
    if current["level"] < len(ladder):
        return _enter_level(current["level"] + 1, current, base, ladder)
    stages = _stages(current, ladder)
    if len(stages) < 2 or current.get("softened") or current.get("stage") != len(stages) - 1:
        return None
    # Only the last stage stood still: converge the one before it to the prescribed accuracy, as a softened result.
    softened = _enter_stage(dict(current), len(stages) - 2, base, stages)
    return {
        **softened,
        "stage": len(stages) - 1,
        "conv_thr": base.get("conv_thr", PW_DEFAULT_CONV_THR),
        "softened": True,
    }


def _continue(current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Parameters | None:
    """Go on from the saved density, once at each level and stage, where the SCF still gained."""
    if not current.get("gaining") or current.get("continued"):
        return None
    return {**current, "startingpot": "file", "continued": True}


def _other_solver(
    current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]
) -> Parameters | None:
    """Soft mixing and a solver not yet tried: the level of the robust solver, with the solver that is left."""
    tried = [*current.get("tried", []), current.get("diagonalization", SOLVERS[0])]
    solver = next((solver for solver in SOLVERS if solver not in tried), None)
    if solver is None:
        return None
    following = {**current, "diagonalization": solver, "tried": tried}
    robust = next((n for n, level in enumerate(ladder, start=1) if "diagonalization" in level), current["level"])
    return following if current["level"] >= robust else _enter_level(robust, following, base, ladder)


def _other_solver_from_scratch(
    current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]
) -> Parameters | None:
    """Forget the saved density too, which may hold the NaN."""
    return _other_solver(_from_scratch(current, base, ladder), base, ladder)


def _change(**changes: Any) -> Change:
    """Repeat the attempt at the same level with `changes`, which stay; None where they would change nothing."""

    def change(current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Parameters | None:
        if all(current.get(name) == value for name, value in changes.items()):
            return None
        return {**current, **changes, "kept": {**current.get("kept", {}), **changes}}

    return change


def _again(current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Parameters:
    """Repeat the attempt as it was."""
    return dict(current)


def _resume(current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Parameters:
    """Go on exactly where a soft stop by the clock left off."""
    return {**current, "restart_mode": "restart"}


def _from_scratch(current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Parameters:
    """Forget the saved state; an anneal begins again with its hot stage."""
    state = ("startingpot", "restart_mode", "continued", "softened")
    following = {name: value for name, value in current.items() if name not in state}
    stages = _stages(current, ladder)
    return _enter_stage(following, 0, base, stages) if "stage" in following and stages else following


def _more_bands(current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Parameters | None:
    """Go on from the density with more bands, where they were too few to hold the electrons."""
    if not current.get("n_bands"):
        return None
    following = _change(nbnd=math.ceil(1.3 * current["n_bands"]))(current, base, ladder)
    return following and {**following, "startingpot": "file"}


def _fewer_ranks(
    current: Parameters, base: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]
) -> Parameters | None:
    if current.get("parallel_cores", 1) <= 1:
        return None
    return _change(parallel_cores=current["parallel_cores"] // 2, npool=1)(current, base, ladder)


ONE_POOL = Rung("one pool", _change(npool=1))

# Failures that are absent here (ENVIRONMENT, INPUT_ERROR, PSEUDOPOTENTIAL, GEOMETRY, SOFT_STOP) give up at once: a
# second run of the same input ends the same way. Only the SCF and the solver move the level.
STRATEGIES: Mapping[Failure, tuple[Rung, ...]] = {
    Failure.SCF_NOT_CONVERGED: (Rung("continue", _continue, times=99), Rung("next level", _climb, times=99)),
    Failure.DIAGONALIZATION: (Rung("other solver", _other_solver, times=len(SOLVERS)),),
    Failure.NAN: (Rung("other solver", _other_solver_from_scratch),),
    Failure.OCCUPATIONS: (Rung("more bands", _more_bands, times=3),),
    Failure.OUT_OF_MEMORY: (
        ONE_POOL,
        Rung("small subspace", _change(diago_david_ndim=2, mixing_ndim=4)),
        Rung("frugal solver", _change(diagonalization="cg")),
    ),
    Failure.PARALLELIZATION: (ONE_POOL, Rung("fewer ranks", _fewer_ranks, times=20)),
    Failure.SYMMETRY: (Rung("no symmetry", _change(nosym=True)),),
    Failure.WALLTIME: (Rung("resume", _resume, times=3),),
    Failure.BAD_RESTART: (Rung("from scratch", _from_scratch),),
    Failure.DISK_FULL: (Rung("again", _again),),
    Failure.KILLED: (Rung("again", _again),),
    Failure.HANG: (Rung("again", _again),),
    Failure.INCOMPLETE_OUTPUT: (Rung("again", _again),),
}
