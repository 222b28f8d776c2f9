"""RunDFT: what a rocket does on a node. Its import path and the keys of its specification are permanent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireworks import FiretaskBase, FWAction, explicit_serialize

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError
from dftfactory.history import has_history
from dftfactory.labels import CALCULATION_ID, fingerprint, make_label, read_label, structure_from_dict, write_label
from dftfactory.results import DFTResult
from dftfactory.runner import QERunner
from dftfactory.store import LabelStore

if TYPE_CHECKING:
    from fireworks import LaunchPad


@explicit_serialize  # type: ignore[misc]  # FireWorks is untyped
class RunDFT(FiretaskBase):  # type: ignore[misc]  # FireWorks is untyped
    """Label the structure of the specification: on disk first, then in the label store.

    Raises
    ------
    DFTFactoryError
        FireWorks keeps its `to_dict()` in the launch record, and the Firework ends FIZZLED.
    """

    launchpad: LaunchPad | None = None

    def run_task(self, fw_spec: dict[str, Any]) -> FWAction:
        """Compute the label, or find that it is already there."""
        spec = _Spec(fw_spec)
        store = LabelStore(self.launchpad) if self.launchpad is not None else None
        label = store.get(spec.fingerprint) if store is not None else None
        if label is not None and label["quality"] == "exact":
            return FWAction(stored_data={**_summary(label), "reused": True})
        run_dir = Path.cwd()
        label = read_label(run_dir)
        if label is None or label["fingerprint"] != spec.fingerprint:
            # `rlaunch singleshot` runs one Firework after the other in one folder; each calculation has its own.
            run_dir = _free_folder(run_dir, spec.calculation_id)
            label = self._compute(spec, run_dir)
            write_label(run_dir, label)
        if store is not None:
            store.put(label)
        if label["quality"] != "exact":
            raise _only_softened(label, run_dir)
        return FWAction(stored_data={**_summary(label), "run_dir": str(run_dir)})

    def _compute(self, spec: _Spec, run_dir: Path) -> dict[str, Any]:
        runner = QERunner(spec.config, spec.worker, spec.md5)
        result = runner.run(spec.atoms, run_dir, spec.calculation_id, softened=True)
        return make_label(result, spec.fingerprint, spec.config, runner.pseudopotentials(spec.atoms))


class _Spec:
    """The specification of a Firework, read back through the validating constructors."""

    def __init__(self, fw_spec: dict[str, Any]) -> None:
        try:
            self.calculation_id = str(fw_spec["calculation_id"])
            self.fingerprint = str(fw_spec["fingerprint"])
            files = {element: str(entry["file"]) for element, entry in fw_spec["pseudopotentials"].items()}
            self.md5 = {element: str(entry["md5"]) for element, entry in fw_spec["pseudopotentials"].items()}
            config = {**fw_spec["config"], "pseudopotentials": files}
            structure = fw_spec["structure"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the specification of the Firework is damaged: {error!r}; submit it again") from error
        self.config = DFTConfig(**config)
        self.worker = WorkerConfig.from_fw_env(fw_spec.get("_fw_env"))
        self.atoms = structure_from_dict(structure)
        computed = fingerprint(self.atoms, self.config, self.md5)
        if computed != self.fingerprint:
            raise ConfigError(
                f"the fingerprint of the specification, {self.fingerprint}, does not belong to its structure and "
                f"configuration ({computed}): it was changed after it was submitted; submit it again"
            )


def _free_folder(folder: Path, calculation_id: str) -> Path:
    """Return the folder itself, or a new one in it where it already holds a calculation."""
    if not has_history(folder):
        return folder
    if not CALCULATION_ID.fullmatch(calculation_id):
        raise ConfigError(f"calculation_id {calculation_id!r} is not fit for the name of a folder; submit it again")
    names = [calculation_id, *(f"{calculation_id}_{n}" for n in range(1, 1000))]
    return next(folder / name for name in names if not (folder / name).exists())


def _summary(label: dict[str, Any]) -> dict[str, Any]:
    """Return what the web GUI shows of a finished Firework, in eV, Å and seconds."""
    result = DFTResult.from_dict(label["result"])
    return {
        "calculation_id": label["calculation_id"],
        "fingerprint": label["fingerprint"],
        "level": label["level"],
        "quality": label["quality"],
        "energy": result.energy,
        "max_force": result.max_force,
        "total_magnetization": result.total_magnetization,
        "iterations": result.total_iterations,
        "runs": len(result.history),
        "wall_time": result.wall_time,
    }


def _only_softened(label: dict[str, Any], run_dir: Path) -> CalculationError:
    result = DFTResult.from_dict(label["result"])
    return CalculationError(
        f"{label['calculation_id']}: the SCF converged at degauss = {result.degauss:g} Ry only; "
        "the softened label is stored and left out of exports unless asked for",
        **_summary(label),
        failure="SCF_NOT_CONVERGED",
        evidence=f"converged at degauss = {result.degauss:g} Ry only",
        history=list(result.history),
        run_dir=str(run_dir),
    )
