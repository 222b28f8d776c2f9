"""How many ranks of pw.x, and in how many pools of k-points, a calculation should have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dftfactory.config import WorkerConfig
from dftfactory.estimate import Estimate
from dftfactory.limits import memory_limit
from dftfactory.rungs import Parameters, layout_parameters

# Ranks are only worth it that shorten the calculation: of layouts as fast as this the one with the fewest is taken.
AS_FAST = 1.02
# Where nothing fits into the memory, a layout may need so many times the least that is possible.
AS_FRUGAL = 1.2
# Ranks of a pool from which on pw.x spreads the subspace matrix by itself.
PW_SPREADS = 4
# Bands. pw.x would spread every matrix; of Si2 with 8 bands the same run took 47 s so, and 4 s without (4 ranks on 2
# cores). The usual advice is several hundred.
LARGE_SUBSPACE = 400


@dataclass(frozen=True)
class Layout:
    """Ranks, pools, and the ranks that share the subspace matrix of a pool; None leaves that to pw.x."""

    cores: int
    npool: int
    ndiag: int | None = None

    def parameters(self) -> dict[str, Any]:
        """Return the entries of history.json."""
        return layout_parameters(self.cores, self.npool, self.ndiag)


def choose_layout(estimate: Estimate, cores: int, memory_mb: float | None = None) -> Layout:
    """Choose the fewest ranks that are about as fast as possible, in pools that fit into the memory.

    Parameters
    ----------
    estimate
        Of the structure.
    cores
        Ranks at most.
    memory_mb
        MB (2**20 bytes) for all ranks together; no limit where absent. Where even the most frugal layout needs more,
        it is taken nevertheless: the estimate may be wrong, and recovery knows what to do.
    """
    layouts = list(possible_layouts(estimate, cores))
    memory = {layout: estimate.memory_mb(layout.cores, layout.npool) for layout in layouts}
    limit = max(memory_mb or math.inf, AS_FRUGAL * min(memory.values()))
    seconds = {
        layout: estimate.wall_seconds(layout.cores, layout.npool, layout.ndiag or 1)
        for layout in layouts
        if memory[layout] <= limit
    }
    best = min(seconds.values())
    return min(
        (layout for layout in seconds if seconds[layout] <= AS_FAST * best),
        key=lambda layout: (layout.cores, seconds[layout]),
    )


def possible_layouts(estimate: Estimate, cores: int) -> Iterator[Layout]:
    """Yield the layouts that pw.x takes, in which no rank is without work."""
    for npool in range(1, min(cores, estimate.n_kpoints) + 1):
        for per_pool in range(1, min(cores // npool, estimate.most_ranks_of_a_pool) + 1):
            yield Layout(npool * per_pool, npool, _ndiag(estimate, npool * per_pool, per_pool))


def worker_layout(worker: WorkerConfig, estimate: Estimate) -> Layout:
    """Choose the layout of a calculation on this machine; a number that the user gives is obeyed."""
    if worker.npool == "auto":
        layout = choose_layout(estimate, worker.parallel_cores, memory_limit(worker.memory_mb))
    else:
        cores, npool = worker.parallel_cores, worker.npool
        layout = Layout(cores, npool, _ndiag(estimate, cores, cores // npool))
    if worker.ndiag == "auto":
        return layout
    return Layout(layout.cores, layout.npool, worker.ndiag)


def fitted_parameters(parameters: Parameters, cores: int) -> Parameters:
    """Return parameters whose layout has at most `cores` ranks: the same where it has, else all of them.

    No more pools than before: it may be for lack of memory that they were few.
    """
    if parameters.get("parallel_cores", 1) <= cores:
        return dict(parameters)
    npool = max(n for n in range(1, min(parameters.get("npool", 1), cores) + 1) if cores % n == 0)
    layout = layout_parameters(cores, npool, parameters.get("ndiag"))
    kept = {name: layout.get(name, value) for name, value in parameters.get("kept", {}).items()}
    return {**parameters, **layout, **({"kept": kept} if kept else {})}


def _ndiag(estimate: Estimate, cores: int, per_pool: int) -> int | None:
    """Return how many ranks share the subspace matrix of a pool; a small one is faster on each rank by itself."""
    if cores < PW_SPREADS:
        return None
    return math.isqrt(per_pool) ** 2 if estimate.n_bands >= LARGE_SUBSPACE else 1
