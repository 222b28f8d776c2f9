"""Where the electrons of a run sit: the gap, and a Fermi level that is not in it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import IncompleteOutputError, InconsistentOutputError
from dftfactory.failures import Failure, examine
from dftfactory.history import start_history
from dftfactory.occupations import check_fermi_level, has_gap
from dftfactory.parsers import read_pw_output
from dftfactory.pw_in import PwInput, read_pw_input
from dftfactory.pw_xml import PwXml, read_xml
from dftfactory.runner import QERunner

RECORDED = Path(__file__).parent / "files" / "pw"
# O2 in a box at degauss = 0.02 Ry: highest level at -6.41 eV, lowest empty one at -4.13 eV, Fermi level at -6.16 eV.
O2 = RECORDED / "fermi_level_outside_gap"
WIDTH = 0.01  # Hartree


@pytest.fixture(scope="module")
def xml() -> PwXml:
    found = read_xml(O2)
    assert found is not None
    return found


def an_input(**entries: Any) -> PwInput:
    given = read_pw_input(O2 / "pw.in")
    system = {**given.namelists["system"], **entries}
    return replace(given, namelists={**given.namelists, "system": system})


def test_a_molecule_has_a_gap_and_a_metal_has_none(xml: PwXml) -> None:
    assert has_gap(xml, WIDTH)
    metal = read_xml(RECORDED / "ok_fe_mag")
    assert metal is not None
    assert not has_gap(metal, WIDTH)


def test_a_gap_is_one_only_against_the_smearing(xml: PwXml) -> None:
    """2.28 eV are 8.4 widths of 0.272 eV, and 4.2 of twice that."""
    assert not has_gap(xml, 2 * WIDTH)


def test_half_filled_levels_are_no_gap(xml: PwXml) -> None:
    """One electron less, in a level that two spins share."""
    assert xml.n_electrons == 12
    assert not has_gap(replace(xml, n_electrons=11.5), WIDTH)


def test_levels_of_one_spin_hold_two_electrons_at_all_kpoints_together() -> None:
    silicon = read_xml(RECORDED / "ok_si2_unbuffered")
    assert silicon is not None
    n_kpoints = len(silicon.levels) // silicon.n_bands
    assert silicon.capacities.sum() == pytest.approx(2 * silicon.n_bands)
    assert len(silicon.capacities) == n_kpoints * silicon.n_bands


def test_a_fermi_level_of_each_spin_is_left_to_the_user(xml: PwXml) -> None:
    assert not has_gap(replace(xml, n_electrons=None), WIDTH)


def test_a_fermi_level_outside_the_gap_is_refused_with_its_energy(xml: PwXml) -> None:
    with pytest.raises(
        InconsistentOutputError, match=r"smearing energy is 0\.0444 eV.*take gaussian smearing"
    ) as error:
        check_fermi_level(xml, an_input(), "mv")
    assert error.value.details == {"lost_fermi_level": True}


@pytest.mark.parametrize("smearing", ["gaussian", "fd"])
def test_smearing_that_has_one_fermi_level_only_is_not_looked_at(xml: PwXml, smearing: str) -> None:
    check_fermi_level(xml, an_input(smearing=smearing), smearing)


def test_with_a_gap_gaussian_smearing_gives_the_number_of_the_prescribed_one(xml: PwXml) -> None:
    check_fermi_level(replace(xml, smearing=0.0), an_input(smearing="gaussian"), "mv")
    with pytest.raises(InconsistentOutputError, match="is not the prescribed 'mv'"):
        check_fermi_level(replace(xml, smearing=0.0), an_input(smearing="gaussian", degauss=0.05), "mv")


def test_the_recorded_run_is_one_of_occupations_and_says_what_to_do() -> None:
    diagnosis = examine(O2)
    assert diagnosis is not None
    assert (diagnosis.failure, diagnosis.observed) == (Failure.OCCUPATIONS, {"lost_fermi_level": True})
    assert "pw.x has put the Fermi level outside of it" in diagnosis.evidence


def test_without_the_xml_another_smearing_is_no_label(tmp_path: Path) -> None:
    """Only its levels tell whether there is a gap."""
    shutil.copytree(O2, tmp_path / "run")
    start_history(
        tmp_path / "run",
        "O2",
        parameters={},
        prescribed={"degauss": 0.02, "conv_thr": 4e-10, "smearing": "gaussian", "max_force": 40.0},
        ladder=None,
    )
    (tmp_path / "run" / "out" / "pwscf.xml").unlink()
    with pytest.raises(IncompleteOutputError, match="nobody knows whether there is a gap"):
        read_pw_output(tmp_path / "run")


@pytest.mark.pw
def test_a_molecule_gets_the_energy_without_smearing(config: DFTConfig, tmp_path: Path) -> None:
    """Cold smearing as configured, the gaussian one on the way; a metal keeps what it is configured with."""
    atoms: Atoms = molecule("O2")
    atoms.center(vacuum=2.5)
    config = config.model_copy(update={"magnetism": {"O": 1.0}, "ecutwfc": 25, "mixing_mode": "plain"})
    label = QERunner(config, WorkerConfig()).run(atoms, tmp_path / "mv")
    assert [attempt["outcome"] for attempt in label.history] in (["OCCUPATIONS", "CONVERGED"], ["CONVERGED"])
    assert abs(label.smearing_energy) < 1e-6
    direct = QERunner(config.model_copy(update={"smearing": "gaussian"}), WorkerConfig()).run(atoms, tmp_path / "g")
    assert label.energy == pytest.approx(direct.energy, abs=2e-5)
    assert np.abs(label.forces - direct.forces).max() < 1e-3
    assert label.level == 0
    if re.match(r"6\.", label.pw_version):
        assert "smearing         = 'gaussian'" in (tmp_path / "mv" / "pw.in").read_text()
