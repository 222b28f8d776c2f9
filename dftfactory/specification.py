"""The specification of a Firework: what one rocket is asked for, checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import ConfigError
from dftfactory.labels import CALCULATION_ID, FORCE, fingerprint, structure_from_dict


class Specification:
    """The specification of a Firework, read back through the validating constructors.

    Raises
    ------
    ConfigError, StructureError
        It is damaged, was changed after it was submitted, or does not go with this worker's settings.
    """

    def __init__(self, fw_spec: Mapping[str, Any]) -> None:
        try:
            self.calculation_id = str(fw_spec["calculation_id"])
            self.fingerprint = str(fw_spec["fingerprint"])
            # What `next_job` looks at; absent where there is no cluster.yaml, and in the first job.
            self.queue = {key: dict(fw_spec[key]) for key in ("resources", "jobs") if fw_spec.get(key)}
            self.campaigns = [str(name) for name in fw_spec.get("campaigns", ())]
            # Names the wish of `submit --force`: a label without it is an old one.
            self.force = None if fw_spec.get(FORCE) is None else str(fw_spec[FORCE])
            files = {element: str(entry["file"]) for element, entry in fw_spec["pseudopotentials"].items()}
            self.md5 = {element: str(entry["md5"]) for element, entry in fw_spec["pseudopotentials"].items()}
            config = {**fw_spec["config"], "pseudopotentials": files}
            self.atoms = structure_from_dict(fw_spec["structure"])
            if missing := sorted(set(self.atoms.symbols) - set(files)):
                raise KeyError(f"pseudopotential of {', '.join(missing)}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
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
