"""One structure to one Firework: a specification of plain values that says all that a node needs to know."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fireworks import Firework, Workflow
from fireworks.utilities.fw_serializers import reconstitute_dates

from dftfactory.config import DFTConfig
from dftfactory.errors import CandidateError
from dftfactory.firetasks import RunDFT
from dftfactory.labels import config_hash, fingerprint, structure_to_dict
from dftfactory.pseudos import Pseudopotential

if TYPE_CHECKING:
    from ase import Atoms


# What a workflow says of its Firework, for the lists of the web GUI.
METADATA = ("calculation_id", "formula", "fingerprint", "config_hash", "campaigns")
# Becomes the name of a file, and of a word on the command line.
CAMPAIGN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def make_workflow(
    atoms: Atoms,
    calculation_id: str,
    config: DFTConfig,
    pseudopotentials: Mapping[str, Pseudopotential],
    *,
    campaigns: Iterable[str] = (),
    entries: Mapping[str, Any] | None = None,
) -> Workflow:
    """Return the workflow of one structure: one Firework with one RunDFT.

    Parameters
    ----------
    atoms
        The structure.
    calculation_id
        Names the candidate.
    config
        How the label is computed.
    pseudopotentials
        Element → pseudopotential, of this data set; those of the structure go into the specification.
    campaigns
        The sets of structures that it belongs to; the fingerprint does not depend on them.
    entries
        More entries of the specification, in plain values: what it asks of the queue, a priority, ...
    """
    spec = make_spec(atoms, calculation_id, config, pseudopotentials) | dict(entries or {})
    name = f"{spec['formula']} {calculation_id}"
    workflow = Workflow([Firework(RunDFT(), spec=spec, name=name)], name=name, metadata=metadata_of(spec))
    join_campaigns(workflow, campaigns)
    return workflow


def metadata_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a workflow says of the specification of its Firework."""
    return {key: spec[key] for key in METADATA if key in spec}


def join_campaigns(workflow: Workflow, campaigns: Iterable[str]) -> None:
    """Add the names of campaigns to those of a workflow that is not in the LaunchPad yet."""
    spec = workflow.fws[0].spec
    if names := sorted({*spec.get("campaigns", ()), *campaigns}):
        spec["campaigns"] = names
        workflow.metadata["campaigns"] = list(names)


def checked_campaign(value: Any, owner: str) -> str:
    """Return the name of a campaign; refuse one that ase.db or FireWorks would change, or that fits no file name."""
    from ase.db.core import str_represents

    value_is_odd = reconstitute_dates(value) != value
    if not (isinstance(value, str) and CAMPAIGN.fullmatch(value)):
        raise CandidateError(
            f"the campaign of {owner} must be 1 to 100 letters, digits, '.', '_' or '-' and begin with a letter or "
            f"digit, got {value!r}"
        )
    with contextlib.suppress(ValueError):
        datetime.fromisoformat(value)  # FireWorks before 2.1 reads dates without a time, too
        value_is_odd = True
    if value_is_odd or any(str_represents(value, kind) for kind in (bool, int, float)):
        raise CandidateError(
            f"the campaign of {owner} looks like a number or a date, {value!r}; put a letter before it"
        )
    return value


def make_spec(
    atoms: Atoms,
    calculation_id: str,
    config: DFTConfig,
    pseudopotentials: Mapping[str, Pseudopotential],
) -> dict[str, Any]:
    """Return the specification of a Firework: plain JSON, self-contained, readable in the web GUI.

    Files of pseudopotentials are named by md5 too, so that a node with another content refuses to run.

    Raises
    ------
    CandidateError
        FireWorks would turn the calculation_id into a date.
    """
    if reconstitute_dates(calculation_id) != calculation_id:
        raise CandidateError(
            f"FireWorks reads calculation_id {calculation_id!r} as a date and would change it; put a letter before it",
            calculation_id=calculation_id,
        )
    own = {element: pseudopotentials[element] for element in sorted(set(atoms.symbols))}
    return {
        "calculation_id": calculation_id,
        "formula": atoms.get_chemical_formula("metal"),
        "fingerprint": fingerprint(atoms, config, {element: pseudo.md5 for element, pseudo in own.items()}),
        "config_hash": config_hash(config, own),
        "config": config.to_dict(),
        "pseudopotentials": {e: {"file": p.path.name, "md5": p.md5} for e, p in own.items()},
        "structure": structure_to_dict(atoms),
        # FireWorks then hands the LaunchPad to the task, which stores the label beside it.
        "_add_launchpad_and_fw_id": True,
    }
