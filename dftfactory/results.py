"""The label of one structure, and the record of how it was obtained."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DFTResult:
    """Energy, forces and stress of one structure, with everything that is needed to trust them.

    Attributes
    ----------
    energy, free_energy
        eV. Both are F = E - TS, the `!` line of pw.x: the energy whose derivative the forces are.
    smearing_energy
        eV. -TS as pw.x prints it; the internal energy is `energy - smearing_energy`. 0 without smearing.
    forces
        Shape (n_atoms, 3), eV/Å, in the order of the input structure.
    stress
        Shape (3, 3), eV/Å³, ASE's sign: positive under tension (pw.x prints the opposite sign, in kbar).
    symbols, positions, cell, pbc
        The structure that was computed: n_atoms symbols, (n_atoms, 3) Å, (3, 3) Å with one lattice vector per row.
    total_magnetization, absolute_magnetization
        μB per cell; None in a calculation without spin.
    fermi_energy
        eV; with two spin channels of their own the higher one; the highest occupied level of an insulator; else None.
    degauss, conv_thr
        Ry, as they were in the run that gave this label.
    scf_accuracy
        Ry, the estimated SCF accuracy after each iteration of that run, as printed.
    scf_error
        Ry, the accuracy at the end; not above `conv_thr`.
    iterations
        SCF iterations of the run that gave this label. `total_iterations` counts those of all attempts.
    scf_force_correction
        eV/Å, `Total SCF correction` of pw.x: what the remaining SCF error may have left in the forces.
    wall_time
        Seconds of that run, as pw.x measured it.
    n_kpoints, n_ranks
        Irreducible k-points (spin not counted twice) and MPI ranks.
    estimated_memory
        MB per rank, `Estimated max dynamical RAM per process`; None where pw.x printed none.
    source
        "xml" (checked against the text) or "text" (the XML could not be used, the text alone was whole).
    quality
        "exact" at the prescribed parameters; "softened" when `degauss` is above the prescribed one.
    level
        Level of the recovery ladder at which the label was reached; 0 is the user's own configuration.
    history
        One dict per attempt, oldest first: parameters, outcome, evidence, iterations, wall time. After several starts
        the attempts of all of them, each with its `start`.
    states
        One dict per start where there were several (`DFTConfig.magnetism`), in the order of the list: start, folder,
        outcome, energy (eV; None where it failed), total and absolute magnetization (μB), level, iterations, and the
        evidence of a failure. The label is the lowest of them.
    state_warning
        Why there may be a lower electronic state, in one line; None where nothing tells.
    """

    energy: float
    smearing_energy: float
    forces: FloatArray
    stress: FloatArray
    symbols: tuple[str, ...]
    positions: FloatArray
    cell: FloatArray
    degauss: float | None
    conv_thr: float
    scf_accuracy: tuple[float, ...]
    scf_error: float
    iterations: int
    wall_time: float | None
    n_kpoints: int
    n_ranks: int
    pw_version: str
    source: str
    total_magnetization: float | None = None
    absolute_magnetization: float | None = None
    fermi_energy: float | None = None
    scf_force_correction: float | None = None
    estimated_memory: float | None = None
    pbc: tuple[bool, bool, bool] = (True, True, True)
    quality: str = "exact"
    level: int = 0
    calculation_id: str = ""
    history: tuple[dict[str, Any], ...] = field(default=())
    states: tuple[dict[str, Any], ...] = field(default=())
    state_warning: str | None = None

    @property
    def free_energy(self) -> float:
        """F = E - TS in eV, the same as `energy`."""
        return self.energy

    @property
    def max_force(self) -> float:
        """Length of the largest force on an atom, eV/Å."""
        return float(np.linalg.norm(self.forces, axis=1).max())

    @property
    def total_iterations(self) -> int:
        """SCF iterations of all attempts together: what the label cost."""
        return sum(int(attempt.get("iterations") or 0) for attempt in self.history) or self.iterations

    def to_ase_atoms(self) -> Atoms:
        """Return the structure with energy, forces and stress attached as results of a calculator."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.stress import full_3x3_to_voigt_6_stress

        atoms = Atoms(self.symbols, positions=self.positions, cell=self.cell, pbc=self.pbc)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=self.energy,
            free_energy=self.free_energy,
            forces=self.forces,
            stress=full_3x3_to_voigt_6_stress(self.stress),
        )
        return atoms

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, text, lists and dicts: what is written to the label file and to the database."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DFTResult:
        """Build the result from `to_dict`; keys of a later version are ignored.

        Raises
        ------
        KeyError, TypeError, ValueError
            A value is missing or of another form; `read_label` and `label_to_atoms` say which label it is.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for name in ("forces", "stress", "positions", "cell"):
            known[name] = np.array(known[name], dtype=float)
        for name in {"symbols", "scf_accuracy", "pbc", "history", "states"} & set(known):
            known[name] = tuple(known[name])
        return cls(**known)

    def with_record(self, **changes: Any) -> DFTResult:
        """Return a copy with `level`, `history`, `states`, `calculation_id`, `pbc` or `quality` filled in."""
        return replace(self, **changes)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
