"""One structure to one Firework: a specification of plain values that says all that a node needs to know."""

from __future__ import annotations

from collections.abc import Mapping
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
METADATA = ("calculation_id", "formula", "fingerprint", "config_hash")


def make_workflow(
    atoms: Atoms,
    calculation_id: str,
    config: DFTConfig,
    pseudopotentials: Mapping[str, Pseudopotential],
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
    """
    spec = make_spec(atoms, calculation_id, config, pseudopotentials)
    name = f"{spec['formula']} {calculation_id}"
    firework = Firework(RunDFT(), spec=spec, name=name)
    metadata = {key: spec[key] for key in METADATA}
    return Workflow([firework], name=name, metadata=metadata)


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
