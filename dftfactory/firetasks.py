"""RunDFT: what a rocket does on a node. Its import path and the keys of its specification are permanent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fireworks import FiretaskBase, FWAction, explicit_serialize

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError
from dftfactory.giving_up import details_of_softened
from dftfactory.history import foreign_file, has_history, read_history
from dftfactory.inputs import read_pw_input
from dftfactory.jobs import may_resume
from dftfactory.labels import (
    CALCULATION_ID,
    FORCES_EXPLANATION,
    LENGTH_TOLERANCE,
    fingerprint,
    forces_above,
    make_label,
    read_label,
    structure_from_dict,
    write_label,
)
from dftfactory.moments import MOMENT_TOLERANCE, starting_moments
from dftfactory.results import DFTResult
from dftfactory.runner import QERunner
from dftfactory.store import LabelStore

if TYPE_CHECKING:
    from fireworks import LaunchPad

# In each folder that a calculation has taken: its calculation_id.
CLAIM = "calculation_id"


@explicit_serialize
class RunDFT(FiretaskBase):  # type: ignore[misc]  # FireWorks is untyped
    """Label the structure of the specification: on disk first, then in the label store.

    Raises
    ------
    DFTFactoryError
        FireWorks keeps its `to_dict()` in the launch record, and the Firework ends FIZZLED.
    """

    launchpad: LaunchPad | None = None
    fw_id: int | None = None

    def run_task(self, fw_spec: dict[str, Any]) -> FWAction:
        """Compute the label, or find that it is already there."""
        spec = _Spec(fw_spec)
        store = LabelStore(self.launchpad) if self.launchpad is not None else None
        label = store.get(spec.fingerprint) if store is not None else None
        if label is not None and label["quality"] == "exact":
            _refuse_large_forces(label, spec)
            return FWAction(stored_data={**_summary(label), "reused": True})
        launch_dirs = [Path.cwd(), *self._earlier_launch_dirs()]
        run_dir, label = _find_label(launch_dirs, spec)
        unwritten: OSError | None = None
        if label is None:
            run_dir = _find_unfinished(launch_dirs, spec) or _claim_folder(Path.cwd(), spec)
            label = self._compute(spec, run_dir)
            try:
                write_label(run_dir, label)
            except OSError as error:
                # A full disk: the store is then the only place that can keep it.
                unwritten = error
        if store is not None:
            store.put(label)
        elif unwritten is not None:
            raise unwritten
        if label["quality"] != "exact":
            raise _only_softened(label, run_dir)
        return FWAction(stored_data={**_summary(label), "run_dir": str(run_dir)})

    def _compute(self, spec: _Spec, run_dir: Path) -> dict[str, Any]:
        runner = QERunner(spec.config, spec.worker, spec.md5)
        # Read before the run: afterwards a folder that has gone would cost the label.
        pseudopotentials = runner.pseudopotentials(spec.atoms)
        if may_resume(run_dir):
            result = runner.resume(run_dir, softened=True)
        else:
            result = runner.run(spec.atoms, run_dir, spec.calculation_id, softened=True)
        return make_label(result, spec.fingerprint, spec.config, pseudopotentials)

    def _earlier_launch_dirs(self) -> list[Path]:
        """Folders of earlier launches of this Firework that this machine can see: each launch has a new one."""
        if self.launchpad is None:
            return []
        launches = self.launchpad.launches.find({"fw_id": self.fw_id}, {"_id": 0, "launch_dir": 1})
        return [path for launch in launches if (path := Path(launch["launch_dir"])).is_dir()]


class _Spec:
    """The specification of a Firework, read back through the validating constructors."""

    def __init__(self, fw_spec: dict[str, Any]) -> None:
        try:
            self.calculation_id = str(fw_spec["calculation_id"])
            self.fingerprint = str(fw_spec["fingerprint"])
            files = {element: str(entry["file"]) for element, entry in fw_spec["pseudopotentials"].items()}
            self.md5 = {element: str(entry["md5"]) for element, entry in fw_spec["pseudopotentials"].items()}
            config = {**fw_spec["config"], "pseudopotentials": files}
            self.atoms = structure_from_dict(fw_spec["structure"])
            if missing := sorted(set(self.atoms.symbols) - set(files)):
                raise KeyError(f"pseudopotential of {', '.join(missing)}")
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the specification of the Firework is damaged: {error!r}; submit it again") from error
        if not CALCULATION_ID.fullmatch(self.calculation_id):
            raise ConfigError(
                f"calculation_id {self.calculation_id!r} of the specification is not fit for the name of a folder; "
                "submit it again"
            )
        self.config = DFTConfig(**config)
        try:
            self.worker = WorkerConfig.from_fw_env(fw_spec.get("_fw_env"))
        except ConfigError as error:
            raise ConfigError(f"`env` of this worker's my_fworker.yaml: {error.message}", **error.details) from error
        computed = fingerprint(self.atoms, self.config, self.md5)
        if computed != self.fingerprint:
            raise ConfigError(
                f"the fingerprint of the specification, {self.fingerprint}, does not belong to its structure and "
                f"configuration ({computed}): it was changed after it was submitted; submit it again"
            )


def _own_folders(launch_dir: Path, spec: _Spec) -> Iterator[Path]:
    """Where a calculation may be: `rlaunch singleshot` runs one after the other, or two at once, in one folder."""
    yield launch_dir
    yield launch_dir / spec.calculation_id
    yield from (launch_dir / f"{spec.calculation_id}_{n}" for n in count(1))


def _earlier_folders(launch_dirs: list[Path], spec: _Spec) -> Iterator[Path]:
    """Where a calculation of this name has been before, in these launch folders."""
    return chain.from_iterable(takewhile(Path.is_dir, _own_folders(path, spec)) for path in launch_dirs)


def _find_label(launch_dirs: list[Path], spec: _Spec) -> tuple[Path, dict[str, Any] | None]:
    """Find the label of an earlier launch that could not be stored."""
    for folder in _earlier_folders(launch_dirs, spec):
        label = read_label(folder)
        if label is not None and label["fingerprint"] == spec.fingerprint:
            return folder, label
    return launch_dirs[0], None


def _find_unfinished(launch_dirs: list[Path], spec: _Spec) -> Path | None:
    """Find an earlier launch of this very calculation whose time was over, and whose state is there to go on from."""
    folders = _earlier_folders(launch_dirs, spec)
    return next((folder for folder in folders if may_resume(folder) and _has_begun(folder, spec)), None)


def _has_begun(folder: Path, spec: _Spec) -> bool:
    """Whether the calculation of the specification is the one in a folder; the name alone does not tell."""
    prescribed, begun = read_history(folder)["prescribed"], read_pw_input(folder / "pw.in")
    moments, began_from = starting_moments(spec.atoms, spec.config.magnetism), prescribed.get("starting_moments")
    return bool(
        prescribed.get("label_parameters") == spec.config.label_parameters()
        and prescribed["md5"] == spec.md5
        and prescribed.get("pbc") == spec.atoms.pbc.tolist()
        and begun.symbols == tuple(spec.atoms.symbols)
        and np.allclose(begun.cell, spec.atoms.cell, atol=LENGTH_TOLERANCE)
        and np.allclose(begun.positions, spec.atoms.positions, atol=LENGTH_TOLERANCE)
        and (moments is None) == (began_from is None)
        and (moments is None or np.allclose(moments, began_from, atol=MOMENT_TOLERANCE))
    )


def _claim_folder(launch_dir: Path, spec: _Spec) -> Path:
    """Take the first folder that no other calculation has, in one step that only one process can do."""
    for folder in _own_folders(launch_dir, spec):
        with suppress(FileExistsError):
            folder.mkdir(exist_ok=True)
            with (folder / CLAIM).open("x", encoding="utf-8") as claim:
                claim.write(f"{spec.calculation_id}\n")
            if not has_history(folder) and foreign_file(folder) is None:
                return folder
    raise AssertionError("the folders are endless")


def _refuse_large_forces(label: dict[str, Any], spec: _Spec) -> None:
    """`max_force` is no label parameter: a label of another configuration may be above the one of this."""
    if (reason := forces_above(label, spec.config)) is not None:
        raise CalculationError(
            reason, **_summary(label), failure="REJECTED", evidence=reason, explanation=FORCES_EXPLANATION
        )


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
        "state_warning": result.state_warning,
        "states": list(result.states),
        "iterations": result.total_iterations,
        "runs": len(result.history),
        "wall_time": result.wall_time,
    }


def _only_softened(label: dict[str, Any], run_dir: Path) -> CalculationError:
    result = DFTResult.from_dict(label["result"])
    return CalculationError(
        f"{label['calculation_id']}: the SCF converged at degauss = {result.degauss:g} Ry only; "
        "the softened label is stored and left out of exports unless asked for",
        **{**_summary(label), **details_of_softened(result)},
        run_dir=str(run_dir),
    )
