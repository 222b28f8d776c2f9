"""Calculations that nobody has run: their histories are walked with the real ladder, their numbers are made up."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from dftfactory.config import DFTConfig
from dftfactory.failures import EXPLANATIONS, Failure
from dftfactory.inputs import prescribed_parameters
from dftfactory.labels import structure_from_dict
from dftfactory.recovery import get_next_params, get_next_stage
from dftfactory.results import DFTResult
from dftfactory.states import state_warning
from dftfactory.structures import to_ase_atoms


def falling(start: float, end: float, iterations: int) -> list[float]:
    """Accuracies (Ry) of an SCF that comes down, with the ups and downs that a real one has."""
    steps = np.linspace(np.log10(start), np.log10(end), iterations)
    wobble = 0.25 * np.sin(2.3 * np.arange(iterations)) * (np.arange(iterations) < iterations - 1)
    return [float(f"{value:.3g}") for value in 10 ** (steps + wobble)]


def still(level: float, iterations: int) -> list[float]:
    """Accuracies (Ry) of an SCF that comes down to `level` and stands still there."""
    first = falling(50 * level, level, 8)
    wobble = 0.3 * np.sin(1.7 * np.arange(iterations - 8))
    return [*first, *(float(f"{value:.3g}") for value in level * 10**wobble)]


class MadeUpRun:
    """The attempts of one calculation, one after the other, with the parameters that recovery really gives them."""

    def __init__(self, config: DFTConfig, n_atoms: int, *, cores: int = 4, nspin: int = 1) -> None:
        layout = {"parallel_cores": cores, "npool": min(2, cores)}
        self.configured = {**prescribed_parameters(config, n_atoms), "nspin": nspin, **layout}
        self.attempts: list[dict[str, Any]] = [{"parameters": {**self.configured, "level": 0}}]
        self.is_over = False

    def fail(
        self, failure: Failure, accuracies: list[float], seconds: float | None, evidence: str, **facts: Any
    ) -> MadeUpRun:
        """End the present attempt, and begin the next one where a rung is left."""
        observed = facts.pop("observed", {})
        present = self.attempts[-1]
        self._close(accuracies, seconds, failure.value, evidence, EXPLANATIONS[failure], facts)
        following = get_next_params(
            {**present["parameters"], **observed}, failure, present["parameters"]["level"], configured=self.configured
        )
        self._open(following)
        return self

    def stage(self, accuracies: list[float], seconds: float) -> MadeUpRun:
        """End a hot stage of the anneal, and begin the next one."""
        present = self.attempts[-1]
        self._close(accuracies, seconds, "STAGE_CONVERGED", "converged at a raised degauss", None, {})
        self._open(get_next_stage(present["parameters"], configured=self.configured))
        return self

    def converge(self, accuracies: list[float], seconds: float) -> MadeUpRun:
        """End the last attempt with a label."""
        self._close(accuracies, seconds, "CONVERGED", None, None, {"exit_status": 0})
        self.is_over = True
        return self

    @property
    def level(self) -> int:
        """Level of the last attempt."""
        return int(self.attempts[-1]["parameters"]["level"])

    def _close(
        self,
        accuracies: list[float],
        seconds: float | None,
        outcome: str,
        evidence: str | None,
        explanation: str | None,
        facts: dict[str, Any],
    ) -> None:
        said = {"evidence": evidence, "explanation": explanation}
        self.attempts[-1] |= {
            "outcome": outcome,
            **{name: text for name, text in said.items() if text is not None},
            "exit_status": 2,
            "iterations": len(accuracies),
            "cpu_time": None if seconds is None else round(0.9 * seconds, 2),
            "wall_time": seconds,
            "n_ranks": self.configured["parallel_cores"],
            "estimated_memory": 210.5,
            "best_accuracy": min(accuracies, default=None),
            "last_accuracy": accuracies[-1] if accuracies else None,
            "scf_accuracy": accuracies,
            **facts,
        }

    def _open(self, following: dict[str, Any] | None) -> None:
        if following is None:
            self.is_over = True
            return
        self.attempts[-1]["folder"] = f"attempt_{len(self.attempts) - 1}"
        self.attempts.append({"parameters": following})


def made_up_result(
    spec: dict[str, Any],
    attempts: list[dict[str, Any]],
    *,
    moments: Any = None,
    states: tuple[dict[str, Any], ...] = (),
    energy_per_atom: float = -107.5,
    seed: int = 0,
    **changes: Any,
) -> DFTResult:
    """The result of a calculation with these attempts: random forces, an energy of the right size."""
    atoms: Atoms = to_ase_atoms(structure_from_dict(spec["structure"]))
    random = np.random.default_rng(seed)
    forces = random.normal(scale=0.4, size=(len(atoms), 3))
    last = attempts[-1]
    stress = random.normal(scale=0.01, size=(3, 3))
    values: dict[str, Any] = {
        "energy": energy_per_atom * len(atoms) + 0.05 * float(random.normal()),
        "smearing_energy": -0.012,
        "forces": forces - forces.mean(axis=0),
        "stress": (stress + stress.T) / 2,
        "symbols": tuple(atoms.symbols),
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": tuple(bool(periodic) for periodic in atoms.pbc),
        "degauss": last["parameters"]["degauss"],
        "conv_thr": last["parameters"]["conv_thr"],
        "scf_accuracy": tuple(last["scf_accuracy"]),
        "scf_error": last["scf_accuracy"][-1],
        "iterations": last["iterations"],
        "wall_time": last["wall_time"],
        "n_kpoints": 14,
        "n_ranks": last["n_ranks"],
        "pw_version": "6.7",
        "source": "xml",
        "level": last["parameters"]["level"],
        "calculation_id": spec["calculation_id"],
        "history": tuple(attempts),
        "states": states,
        "quality": "exact",
        **changes,
    }
    result = DFTResult(**values)
    return result.with_record(state_warning=state_warning(result, moments))
