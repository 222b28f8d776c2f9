"""What each rung of recovery changes: pure functions from the situation after a failed run to the next parameters.

Parameters travel as one flat dict: QE keywords (`mixing_beta`, `degauss`, ...), the machine's layout
(`parallel_cores`, `npool`, `ndiag`), and the memory of the climb:

level       present level of the ladder, 0 is the user's configuration
climbed     levels that were entered, in that order
stage       stage of an anneal, 0 is the hottest; absent outside an anneal
continued   whether this level or stage was continued from its density
cooled      level of an anneal of which only the last stage has failed
softening   whether the anneal is made to end above the prescribed degauss, after which nothing follows; `softened` in
            its last stage
gaining     whether the SCF still gained when it stopped (observed by `diagnose`)
hopeless    whether it stood still far from its end (observed by `diagnose`)
diverged    whether the SCF has left all reason, and its density with it (observed by `diagnose`)
n_bands     bands of a run that were too few (observed by `diagnose`)
lost_fermi_level whether the smearing has missed the Fermi level (observed by `diagnose`)
tried       solvers that failed in the diagonalization, or for which memory was too small
kept        changes that outlive a climb, such as fewer pools after memory ran out
used        how often each rung was used
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Parameters = dict[str, Any]

# In the order of trust. paro and ppcg come last: not every build has them.
SOLVERS = ("david", "cg", "paro", "ppcg")
PW_DEFAULT_CONV_THR = 1e-6  # Ry per cell
PW_DEFAULT_MIXING_NDIM = 8
PW_DEFAULT_DAVID_NDIM = 2


@dataclass(frozen=True)
class Situation:
    """What a rung looks at: the parameters of the run that failed, the user's own, and the ladder."""

    current: Parameters
    configured: Mapping[str, Any]
    ladder: Sequence[Mapping[str, Any]]

    def but(self, **changes: Any) -> Situation:
        """Return the same situation after a run with other parameters."""
        return replace(self, current={**self.current, **changes})


Change = Callable[[Situation], "Parameters | None"]


def anneal_stages(parameters: Mapping[str, Any], ladder: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the stages of the anneal at the level of `parameters`; none where it has no anneal."""
    level = parameters.get("level", 0)
    return ladder[level - 1].get("anneal") or () if 0 < level <= len(ladder) else ()


def enter_stage(
    parameters: Mapping[str, Any], stage: int, configured: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]
) -> Parameters:
    """Return the parameters of a stage, which goes on from the density of the one before it."""
    above = stages[stage].get("degauss_above", 0.0)
    prescribed = configured.get("conv_thr", PW_DEFAULT_CONV_THR)
    following = {
        **parameters,
        "stage": stage,
        "degauss": round(configured.get("degauss", 0.0) + above, 10),
        # A loose threshold must not be tighter than the prescribed one.
        "conv_thr": max(stages[stage].get("conv_thr", 0.0), prescribed),
    }
    if stage > 0:
        following["startingpot"] = "file"
    return {name: value for name, value in following.items() if name not in ("continued", "restart_mode")}


def enter_last_stage_softened(
    parameters: Mapping[str, Any], configured: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]
) -> Parameters:
    """Return the parameters that converge the stage before the last one to the prescribed accuracy, as the result."""
    return {
        **enter_stage(parameters, len(stages) - 2, configured, stages),
        "stage": len(stages) - 1,
        "startingpot": "file",
        "conv_thr": configured.get("conv_thr", PW_DEFAULT_CONV_THR),
        # An anneal that begins again, because this density was bad, has no second try at the prescribed degauss.
        "softening": True,
        "softened": True,
    }


def _enter_level(level: int, of: Situation) -> Parameters:
    """Begin a level from scratch: the user's parameters, what the level changes, and what outlives a climb."""
    entries = of.ladder[level - 1] if level else {}
    changes = {name: value for name, value in entries.items() if name not in ("name", "anneal", "sooner_with_spin")}
    following = {**of.configured, **changes, **of.current.get("kept", {}), "level": level}
    following |= {name: of.current[name] for name in ("kept", "tried", "cooled") if name in of.current}
    following["climbed"] = [*of.current.get("climbed", []), level]
    if of.current.get("tried") and "diagonalization" in of.current:
        # Where a solver has failed, the present one is the one that works.
        following["diagonalization"] = of.current["diagonalization"]
    stages = anneal_stages(following, of.ladder)
    return enter_stage(following, 0, of.configured, stages) if stages else following


def _is_new(level: int, of: Situation) -> bool:
    """Whether a level was not entered in this calculation, and differs from those that were.

    Where memory has already led to cg, soft mixing and the robust solver are one.
    """

    def content(n: int) -> Parameters:
        return _enter_level(n, of) | {
            "level": None,
            "climbed": [],
            "stages": list(anneal_stages({"level": n}, of.ladder)),
        }

    entered = {0, of.current["level"], *of.current.get("climbed", [])}
    return level not in entered and content(level) not in [content(n) for n in entered]


def _levels_ahead(of: Situation) -> list[int]:
    """Return the levels above 0 in the order of the climb, from the present one on."""
    levels = list(range(1, len(of.ladder) + 1))
    if of.configured.get("nspin", 1) != 2:
        return levels[of.current["level"] :]
    sooner = [n for n in levels if of.ladder[n - 1].get("sooner_with_spin")]
    order = sooner + [n for n in levels if n not in sooner]
    present = order.index(of.current["level"]) + 1 if of.current["level"] else 0
    # The solver may have led to a level before the one that comes first.
    return order[present:] + [n for n in order[:present] if n in sooner]


def climb(of: Situation) -> Parameters | None:
    """Enter the next level; above the last one keep what an anneal can still give, softened."""
    if of.current.get("softening"):
        return None
    stages = anneal_stages(of.current, of.ladder)
    at_last_stage = len(stages) > 1 and of.current.get("stage") == len(stages) - 1
    if at_last_stage:
        of = of.but(cooled=of.current["level"])
    for level in _levels_ahead(of):
        if _is_new(level, of):
            return _enter_level(level, of)
    if at_last_stage:
        # Only the last stage stood still: what it has left is near the result of the stage before it.
        return enter_last_stage_softened(of.current, of.configured, stages)
    if "cooled" in of.current:
        return {**_enter_level(of.current["cooled"], of), "softening": True}
    return None


def continue_scf(of: Situation) -> Parameters | None:
    """Go on from the saved density with an empty mixing history, once at each level and stage.

    At level 0 it is the cheapest thing left, however the SCF stood still, as long as its density is one. Above it what
    stood still far from its end is not worth as much again.
    """
    # Far out an SCF can come down, from 1000 Ry to 100, and its density is as bad.
    diverged = of.current.get("diverged", not of.current.get("gaining"))
    hopeless = of.current["level"] > 0 and of.current.get("hopeless")
    if diverged or hopeless or of.current.get("continued"):
        return None
    return {**of.current, "startingpot": "file", "continued": True}


def again(of: Situation) -> Parameters:
    """Repeat the attempt as it was."""
    return dict(of.current)


def resume(of: Situation) -> Parameters:
    """Go on exactly where a soft stop by the clock left off.

    Where the queue's time is over, the next attempt is not begun (`QEJob.run`), and another job goes on with it.
    """
    return {**of.current, "restart_mode": "restart"}


def from_scratch(of: Situation) -> Parameters:
    """Forget the saved state; an anneal begins again with its hot stage."""
    state = ("startingpot", "continued", "softened")
    following = {name: value for name, value in of.current.items() if name not in state}
    stages = anneal_stages(following, of.ladder)
    return enter_stage(following, 0, of.configured, stages) if "stage" in following and stages else following


def change_to(**changes: Any) -> Change:
    """Repeat the attempt at the same level with `changes`, which stay; None where they would change nothing."""

    def change(of: Situation) -> Parameters | None:
        if all(of.current.get(name) == value for name, value in changes.items()):
            return None
        return {**of.current, **changes, "kept": {**of.current.get("kept", {}), **changes}}

    return change


def other_solver(*solvers: str) -> Change:
    """Take a solver that was not tried yet, at the level of the robust one."""

    def change(of: Situation) -> Parameters | None:
        tried = _tried(of)
        solver = next((solver for solver in solvers if solver not in tried), None)
        return None if solver is None else _enter_robust_level(of.but(diagonalization=solver, tried=tried))

    return change


def larger_subspace(of: Situation) -> Parameters | None:
    """Take david again with twice its workspace, unless memory was too small for the half of it."""
    limited = "diago_david_ndim" in of.current.get("kept", {})
    if limited or of.current.get("diago_david_ndim", PW_DEFAULT_DAVID_NDIM) >= 4:
        return None
    following = change_to(diago_david_ndim=4)(of.but(diagonalization="david", tried=_tried(of)))
    return following and _enter_robust_level(replace(of, current=following))


def _enter_robust_level(of: Situation) -> Parameters:
    """Go on with soft mixing, from scratch: the saved density may be what the solver stumbled over."""
    robust = next((n for n, level in enumerate(of.ladder, start=1) if "diagonalization" in level), 0)
    stays = of.current["level"] >= robust or robust in of.current.get("climbed", []) or of.current.get("softening")
    return from_scratch(of) if stays else _enter_level(robust, of)


def _tried(of: Situation) -> list[str]:
    """Solvers that failed, with the present one."""
    return list(dict.fromkeys([*of.current.get("tried", []), of.current.get("diagonalization", SOLVERS[0])]))


def more_bands(of: Situation) -> Parameters | None:
    """Go on from the density with more bands, where they were too few to hold the electrons."""
    if not of.current.get("n_bands"):
        return None
    following = change_to(nbnd=math.ceil(1.3 * of.current["n_bands"]))(of)
    return following and {**following, "startingpot": "file"}


def gaussian_smearing(of: Situation) -> Parameters | None:
    """Go on from the density with the smearing that cannot miss the Fermi level.

    The parser takes the result for a label only where there is a gap, with which every smearing gives the same number.
    """
    if not of.current.get("lost_fermi_level"):
        return None
    following = change_to(smearing="gaussian")(of)
    return following and {**following, "startingpot": "file"}


def short_memory(of: Situation) -> Parameters | None:
    """Keep fewer wavefunctions in the solver and fewer densities in the mixing."""
    densities = min(4, of.current.get("mixing_ndim", PW_DEFAULT_MIXING_NDIM))
    return change_to(diago_david_ndim=PW_DEFAULT_DAVID_NDIM, mixing_ndim=densities)(of)


def frugal_solver(of: Situation) -> Parameters | None:
    """Take cg, which needs the least memory; nothing leads back to the solver that needed more."""
    tried = _tried(of)
    return None if "cg" in tried else {**of.current, "diagonalization": "cg", "tried": tried}


def fewer_pools(of: Situation) -> Parameters | None:
    """Take the next smaller number of pools that divides the ranks: pw.x refuses a layout within a second."""
    cores, npool = of.current.get("parallel_cores", 1), of.current.get("npool", 1)
    fewer = next((n for n in range(npool - 1, 0, -1) if cores % n == 0), None)
    return None if fewer is None else change_to(npool=fewer)(of)


def fewer_ranks(of: Situation) -> Parameters | None:
    """Take half the ranks in one pool, down to one rank."""
    if of.current.get("parallel_cores", 1) <= 1:
        return None
    return change_to(**layout_parameters(of.current["parallel_cores"] // 2, 1, of.current.get("ndiag")))(of)


def layout_parameters(cores: int, npool: int, ndiag: int | None) -> Parameters:
    """Return a layout as parameters; `ndiag`, where it is set, is the largest square that a pool has ranks for."""
    layout: Parameters = {"parallel_cores": cores, "npool": npool}
    if ndiag is not None:
        layout["ndiag"] = math.isqrt(min(ndiag, cores // npool)) ** 2
    return layout
