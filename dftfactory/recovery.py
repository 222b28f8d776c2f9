"""The recovery ladder and the rungs for every failure as data, and pure functions over them.

Nothing here reads a file or runs anything. `rungs` says what parameters are, and how each rung changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dftfactory import rungs
from dftfactory.failures import Failure
from dftfactory.rungs import Change, Parameters, Situation

# Levels 1, 2, 3; level 0 is the user's configuration. Each holds what differs from that configuration.
# Measured with pw.x 6.7 on 34 structures that are hard, slow or easy, 80 iterations a run, with bands for the majority
# spin (`tests/benchmarks/hard_scf.py`): plain mixing at level 0, then levels 1 and 2, solves 26 in 2,816 SCF iterations
# and 1 of the 9 that fail at level 0; what stands here solves 33 in 1,690 and 8 of the 9. What each part is worth:
# - local-TF at level 0 solves 3 of the 9 by itself; easy cells take 60 iterations where plain mixing takes 58.
# - Going on from the density with an empty mixing history solved 8 of the 10 structures (4 of them not among the 34)
#   that fail with local-TF, in 24 to 50 iterations; 4 of the 8 had stood still.
# - From scratch the anneal solves 4 of those 10, in 47 to 113 iterations, beta 0.3 none of 10 in 80, beta 0.3 with cg
#   none of 6: hence the anneal comes first with spin. Without spin nothing has failed, and nothing can be said.
# Small cells at low cutoffs, nearly all failures open shells in vacuum: good for the order of the rungs, not for rates.
LADDER: tuple[Mapping[str, Any], ...] = (
    {"name": "soft mixing", "mixing_beta": 0.3, "mixing_mode": "plain"},
    {"name": "robust solver", "mixing_beta": 0.3, "mixing_mode": "plain", "diagonalization": "cg"},
    {
        "name": "high temperature",
        "sooner_with_spin": True,
        "mixing_mode": "local-TF",
        "mixing_ndim": 20,
        # One hot stage at 0.03 Ry solved 2 of 10, these two 8 of 11 (with pw.x's own bands). conv_thr in Ry per cell.
        "anneal": (
            {"degauss_above": 0.04, "conv_thr": 1e-4},
            {"degauss_above": 0.01, "conv_thr": 1e-5},
            {},
        ),
    },
)
# What is seen of one run, and says nothing of the next one.
OBSERVED = ("gaining", "hopeless", "diverged", "n_bands", "lost_fermi_level")


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
    # To go on exactly where a run left off is for the attempt after it, and for the same input only.
    current = {name: value for name, value in current_params.items() if name != "restart_mode"}
    base = current_params if configured is None else configured
    situation = Situation({**current, "level": level}, base, ladder)
    used: dict[str, int] = dict(current.get("used", {}))
    for rung in get_recovery_strategy(failure):
        key = f"{failure.value}: {rung.name}"
        if used.get(key, 0) >= rung.times:
            continue
        following = rung.change(situation)
        if following is not None:
            following = {name: value for name, value in following.items() if name not in OBSERVED}
            return {**following, "used": {**used, key: used.get(key, 0) + 1}}
    return None


def get_next_stage(
    current_params: Mapping[str, Any],
    *,
    configured: Mapping[str, Any],
    ladder: Sequence[Mapping[str, Any]] = LADDER,
) -> Parameters | None:
    """Return the next stage of an anneal after the present one has converged; None when it was the last one."""
    stages = rungs.anneal_stages(current_params, ladder)
    if "stage" not in current_params or current_params["stage"] + 1 >= len(stages):
        return None
    following = current_params["stage"] + 1
    if current_params.get("softening") and following == len(stages) - 1:
        return rungs.enter_last_stage_softened(current_params, configured, stages)
    return rungs.enter_stage(current_params, following, configured, stages)


ONE_POOL = Rung("one pool", rungs.change_to(npool=1))
FROM_SCRATCH = Rung("from scratch", rungs.from_scratch)

# Failures that are absent here (ENVIRONMENT, INPUT_ERROR, PSEUDOPOTENTIAL, GEOMETRY, SOFT_STOP) give up at once: a
# second run of the same input ends the same way. Only the SCF and the solver move the level, and a saved state that
# breaks twice: it belongs to a SCF that has failed, or to an anneal, and the next level begins without one.
STRATEGIES: Mapping[Failure, tuple[Rung, ...]] = {
    Failure.SCF_NOT_CONVERGED: (
        Rung("continue", rungs.continue_scf, times=99),
        Rung("next level", rungs.climb, times=99),
    ),
    # cg first: it cured 14 of 14 runs of others (aiida-quantumespresso, issue 742), 2 of unconverged bands and 12 of
    # Cholesky. A larger subspace can help david with the former only.
    Failure.DIAGONALIZATION: (
        Rung("other solver", rungs.other_solver("david", "cg"), times=2),
        Rung("larger subspace", rungs.larger_subspace),
        Rung("rare solver", rungs.other_solver("paro", "ppcg"), times=2),
    ),
    Failure.NAN: (Rung("other solver", rungs.other_solver(*rungs.SOLVERS)),),
    # Every input of ours has the smearing of the configuration, which is the cure for the other causes.
    Failure.OCCUPATIONS: (
        Rung("more bands", rungs.more_bands, times=3),
        Rung("gaussian smearing", rungs.gaussian_smearing),
    ),
    Failure.OUT_OF_MEMORY: (
        ONE_POOL,
        Rung("small subspace", rungs.short_memory),
        Rung("frugal solver", rungs.frugal_solver),
    ),
    Failure.PARALLELIZATION: (
        Rung("fewer pools", rungs.fewer_pools, times=20),
        Rung("fewer ranks", rungs.fewer_ranks, times=20),
    ),
    Failure.SYMMETRY: (Rung("no symmetry", rungs.change_to(nosym=True)),),
    Failure.WALLTIME: (Rung("resume", rungs.resume, times=3),),
    Failure.BAD_RESTART: (FROM_SCRATCH, Rung("next level", rungs.climb, times=99)),
    # From scratch out/ is emptied first. Less `disk_io` is no remedy: below "low" pw.x 6.7 writes no XML.
    Failure.DISK_FULL: (FROM_SCRATCH,),
    # pw.x writes its density when the SCF is over: what an earlier stage has saved is whole. One pool, because the
    # kernel kills what takes too much memory and tells only the administrator.
    Failure.KILLED: (Rung("again", rungs.again), ONE_POOL),
    # The saved density may be cut, or hold the NaN that pw.x hangs in.
    Failure.HANG: (FROM_SCRATCH,),
    Failure.INCOMPLETE_OUTPUT: (FROM_SCRATCH,),
}
