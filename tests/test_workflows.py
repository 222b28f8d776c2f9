"""The specification of a Firework stays what it is: through FireWorks, through a file, through years."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from fireworks import Firework, Workflow

from dftfactory.config import DFTConfig
from dftfactory.errors import CandidateError
from dftfactory.labels import fingerprint, structure_from_dict
from dftfactory.pseudos import Pseudopotential, load_pseudopotentials
from dftfactory.workflows import make_spec, make_workflow

# They stand in users' databases: what is written today must run in ten years.
TASK = "{{dftfactory.firetasks.RunDFT}}"
KEYS = {
    *("calculation_id", "formula", "fingerprint", "config_hash", "config", "pseudopotentials", "structure"),
    *("_add_launchpad_and_fw_id", "_tasks"),
}


@pytest.fixture
def pseudopotentials(fake_config: DFTConfig) -> dict[str, Pseudopotential]:
    folder = Path(fake_config.pseudopotential_dir or "")
    return load_pseudopotentials(["Si"], folder, fake_config.pseudopotentials)


@pytest.fixture
def firework(si_atoms: Atoms, fake_config: DFTConfig, pseudopotentials: dict[str, Pseudopotential]) -> Firework:
    si_atoms.set_initial_magnetic_moments(np.array([1, -1]))
    full = DFTConfig(
        **{**fake_config.to_dict(), "pw": {"system": {"hubbard_u": {"Si": 4.0}, "vdw_corr": "dft-d3"}}},
        ladder=[{"name": "softer", "mixing_beta": 0.2}],
    )
    return make_workflow(si_atoms, "Si2-0001.a", full, pseudopotentials).fws[0]


def walk(value: Any) -> Iterator[Any]:
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(part)


def test_task_and_keys_are_permanent(firework: Firework) -> None:
    values = firework.to_dict()
    assert [task["_fw_name"] for task in values["spec"]["_tasks"]] == [TASK]
    assert set(values["spec"]) == KEYS
    assert set(values["spec"]["structure"]) == {"symbols", "positions", "cell", "pbc", "initial_magnetic_moments"}
    assert set(values["spec"]["pseudopotentials"]["Si"]) == {"file", "md5"}


def test_specification_is_the_same_after_fireworks_wrote_and_read_it(firework: Firework) -> None:
    """FireWorks turns what it does not know into text, and text that looks like a date into a date, without a word."""
    before = firework.to_dict()["spec"]
    after = Firework.from_dict(json.loads(json.dumps(firework.to_dict()))).to_dict()["spec"]
    assert after == before
    assert dict(firework.spec)["structure"] == before["structure"]


def test_everything_in_it_is_plain(firework: Firework) -> None:
    """Of exactly these types, so no numpy number, which is also an int or a float; and MongoDB's rules for keys."""
    spec = {key: value for key, value in firework.spec.items() if key != "_tasks"}
    for value in walk(spec):
        assert type(value) in (dict, list, str, int, float, bool, type(None)), value
        if isinstance(value, dict):
            assert all(re.fullmatch(r"[^.$][^.]{0,30}", key) for key in value)


def test_structure_and_fingerprint_can_be_made_from_it_alone(firework: Firework, si_atoms: Atoms) -> None:
    spec = json.loads(json.dumps(firework.to_dict()))["spec"]
    atoms = structure_from_dict(spec["structure"])
    assert np.array_equal(atoms.positions, si_atoms.positions)
    assert np.array_equal(atoms.cell, si_atoms.cell)
    assert atoms.get_initial_magnetic_moments().tolist() == [1, -1]
    md5 = {element: entry["md5"] for element, entry in spec["pseudopotentials"].items()}
    assert fingerprint(atoms, DFTConfig(**spec["config"]), md5) == spec["fingerprint"]


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_workflow_file_gives_the_same_workflow(firework: Firework, tmp_path: Path, suffix: str) -> None:
    workflow = Workflow([firework], name="Si", metadata={"fingerprint": "dft0"})
    workflow.to_file(str(tmp_path / f"wf.{suffix}"))
    again = Workflow.from_file(str(tmp_path / f"wf.{suffix}"))
    assert again.fws[0].to_dict()["spec"] == firework.to_dict()["spec"]
    assert again.metadata == workflow.metadata


def test_people_see_formula_and_calculation_id(
    si_atoms: Atoms, fake_config: DFTConfig, pseudopotentials: dict[str, Pseudopotential]
) -> None:
    workflow = make_workflow(si_atoms, "my-17", fake_config, pseudopotentials)
    assert workflow.name == workflow.fws[0].name == "Si2 my-17"
    assert set(workflow.metadata) == {"calculation_id", "formula", "fingerprint", "config_hash"}


def test_only_the_pseudopotentials_of_the_structure_are_in_it(
    fake_config: DFTConfig, pseudopotentials: dict[str, Pseudopotential]
) -> None:
    more = {**pseudopotentials, "Ge": pseudopotentials["Si"]}
    spec = make_spec(bulk("Si"), "a", fake_config, more)
    assert set(spec["pseudopotentials"]) == {"Si"}


@pytest.mark.parametrize(
    "name",
    [
        "2026-01-01T12:00:00",
        pytest.param(
            "20260101T120000", marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="no date before Python 3.11")
        ),
    ],
)
def test_name_that_fireworks_takes_for_a_date_is_refused(
    si_atoms: Atoms, fake_config: DFTConfig, pseudopotentials: dict[str, Pseudopotential], name: str
) -> None:
    """It would come back as a datetime, and be another calculation."""
    with pytest.raises(CandidateError, match="as a date and would change it; put a letter before it"):
        make_spec(si_atoms, name, fake_config, pseudopotentials)
    assert make_spec(si_atoms, f"c{name}", fake_config, pseudopotentials)["calculation_id"] == f"c{name}"
