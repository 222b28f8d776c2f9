from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import InputError, StructureError
from dftfactory.inputs import (
    NAMELIST_OF,
    change_pw_input,
    check_structure,
    kpoint_grid,
    prescribed_parameters,
    read_pw_input,
    write_pw_input,
)
from dftfactory.parsers import parse_text, read_pw_output
from dftfactory.pseudos import Pseudopotential, load_pseudopotentials

VALENCE = {"Al": 3.0, "C": 4.0, "Fe": 8.0, "H": 1.0, "Ni": 10.0, "O": 6.0, "Si": 4.0}


def pseudopotentials(*elements: str, kind: str = "NC") -> dict[str, Pseudopotential]:
    """Make facts of files that need not be there: an input only names them."""
    return {
        element: Pseudopotential(
            element=element,
            path=Path(f"/pseudo/{element}.UPF"),
            type=kind,
            functional="PBE",
            z_valence=VALENCE[element],
            relativistic="scalar",
            ecutwfc=None,
            ecutrho=None,
            md5="0" * 32,
        )
        for element in elements
    }


def written(atoms: Atoms, path: Path, kind: str = "NC", max_seconds: float | None = None, **settings) -> str:
    """Return the pw.in of a structure."""
    config = DFTConfig(**{"ecutwfc": 30, **settings})
    files = pseudopotentials(*set(atoms.symbols), kind=kind)
    write_pw_input(atoms, config, path / "pw.in", pseudopotentials=files, max_seconds=max_seconds)
    return (path / "pw.in").read_text()


def iron(cubic: bool = False) -> Atoms:
    """Make bcc Fe without the moments of 2.3 μB that ASE puts on it."""
    atoms = bulk("Fe", cubic=cubic)
    atoms.set_initial_magnetic_moments(None)
    return atoms


def afm_iron() -> Atoms:
    """Two Fe of opposite moments in a cubic cell."""
    atoms = iron(cubic=True)
    atoms.set_initial_magnetic_moments([2.0, -2.0])
    return atoms


# What is written


def test_seed_case_an_aluminium_cell(tmp_path):
    text = written(bulk("Al", cubic=True), tmp_path)

    assert re.search(r"^ATOMIC_SPECIES\nAl \d+\.\d+ Al\.UPF$", text, re.M)
    assert re.search(r"^ +tprnfor += \.true\.$", text, re.M)
    grid = re.search(r"^K_POINTS automatic\n(\d+) (\d+) (\d+)  0 0 0$", text, re.M)
    assert all(int(n) % 2 == 1 for n in grid.groups())


def test_flags_that_no_label_does_without_are_always_there(tmp_path):
    written(bulk("Al"), tmp_path, pw={"system": {"nosym": True}, "electrons": {"mixing_ndim": 12}})
    namelists = read_pw_input(tmp_path / "pw.in").namelists

    assert namelists["control"] == {
        "calculation": "scf",
        "prefix": "pwscf",
        "outdir": "./out",
        "pseudo_dir": "/pseudo",
        "tprnfor": True,
        "tstress": True,
        "disk_io": "low",
    }
    assert namelists["system"]["nosym"] is True
    assert namelists["electrons"]["mixing_ndim"] == 12


def test_the_numbers_of_the_configuration_are_those_of_the_input(tmp_path):
    written(
        bulk("Al", cubic=True),
        tmp_path,
        max_seconds=3600,
        smearing="mp",
        degauss=0.015,
        conv_thr_per_atom=3e-10,
        electron_maxstep=77,
        mixing_beta=0.4,
        mixing_mode="plain",
        diagonalization="cg",
    )
    pw_input = read_pw_input(tmp_path / "pw.in")

    assert pw_input.namelists["system"] == {
        "ibrav": 0,
        "nat": 4,
        "ntyp": 1,
        "ecutwfc": 30.0,
        "ecutrho": 120.0,
        "occupations": "smearing",
        "smearing": "mp",
        "degauss": 0.015,
    }
    assert pw_input.namelists["electrons"] == {
        "conv_thr": 1.2e-9,  # 4 atoms
        "electron_maxstep": 77,
        "mixing_beta": 0.4,
        "mixing_mode": "plain",
        "diagonalization": "cg",
    }
    assert pw_input.get("max_seconds") == 3600.0
    assert pw_input.pseudopotentials == {"Al": "Al.UPF"}


def test_prescribed_parameters_are_those_that_are_written(tmp_path):
    """The parser compares them digit by digit."""
    for n_atoms in (1, 3, 7, 192):
        atoms = Atoms("Al" * n_atoms, positions=[[4.0 * n, 0, 0] for n in range(n_atoms)], cell=[4.0 * n_atoms, 4, 4])
        written(atoms, tmp_path, conv_thr_per_atom=2.3e-10)
        pw_input = read_pw_input(tmp_path / "pw.in")
        config = DFTConfig(ecutwfc=30, conv_thr_per_atom=2.3e-10)
        for keyword, value in prescribed_parameters(config, n_atoms).items():
            assert pw_input.get(keyword) == value


@pytest.mark.parametrize(("kind", "factor"), [("NC", 4), ("US", 8), ("PAW", 8)])
def test_charge_cutoff_follows_the_kind_of_pseudopotential(tmp_path, kind, factor):
    written(bulk("Al"), tmp_path, kind=kind)
    assert read_pw_input(tmp_path / "pw.in").get("ecutrho") == factor * 30


def test_charge_cutoff_of_the_configuration_wins(tmp_path):
    written(bulk("Al"), tmp_path, kind="US", ecutrho=200)
    assert read_pw_input(tmp_path / "pw.in").get("ecutrho") == 200


def test_entries_of_the_user_win_in_any_spelling(tmp_path):
    text = written(afm_iron(), tmp_path, pw={"SYSTEM": {"NBND": 33, "vdw_corr": "dft-d3"}})

    assert read_pw_input(tmp_path / "pw.in").get("nbnd") == 33
    assert text.lower().count("nbnd") == 1
    assert "vdw_corr         = 'dft-d3'" in text


def test_no_empty_namelists(tmp_path):
    text = written(bulk("Al"), tmp_path)
    assert re.findall(r"^&\w+", text, re.M) == ["&CONTROL", "&SYSTEM", "&ELECTRONS"]


def test_a_folder_that_would_break_the_input_is_refused(tmp_path):
    files = {"Al": replace(pseudopotentials("Al")["Al"], path=Path("/it's mine/Al.UPF"))}
    with pytest.raises(InputError, match=r"pseudo_dir = .* has quotes"):
        write_pw_input(bulk("Al"), DFTConfig(ecutwfc=30), tmp_path / "pw.in", pseudopotentials=files)


def test_an_existing_input_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "pw.in").write_text("old")
    assert written(bulk("Al"), tmp_path).startswith("&CONTROL")
    assert [path.name for path in tmp_path.iterdir()] == ["pw.in"]


# k-points


def test_grid_computed_by_hand():
    """A cubic cell of 4 Å: |b| = 2π / 4 Å = 1.5708 1/Å; at 0.25 that is 6.28 intervals, 7 points."""
    assert kpoint_grid(Atoms("Al", cell=[4, 4, 4], pbc=True), 0.25) == (7, 7, 7)
    # 2π/8 / 0.25 = 3.14 -> 4 -> 5; 2π/20 / 0.25 = 1.26 -> 2 -> 3
    assert kpoint_grid(Atoms("Al", cell=[4, 8, 20], pbc=True), 0.25) == (7, 5, 3)


def test_grid_of_an_fcc_primitive_cell():
    """a = 4 Å: |b| = 2π √3 / 4 = 2.7207 1/Å, which is not 2π over the length of the lattice vector."""
    assert kpoint_grid(bulk("Al", a=4.0), 0.4) == (7, 7, 7)  # 6.80
    assert kpoint_grid(bulk("Al", a=4.0), 0.38) == (9, 9, 9)  # 7.16


def test_one_point_where_the_structure_is_not_periodic():
    assert kpoint_grid(Atoms("Al", cell=[4, 4, 4], pbc=[True, True, False]), 0.25) == (7, 7, 1)
    assert kpoint_grid(Atoms("Al", cell=[4, 4, 4], pbc=False), 0.25) == (1, 1, 1)


@pytest.mark.parametrize("factor", [1 - 1e-12, 1.0, 1 + 1e-12])
def test_the_last_digit_of_a_cell_does_not_decide_a_grid(factor):
    """Exactly three intervals: 2π / (3 x 0.25) = 8.37758 Å."""
    length = 2 * np.pi / 0.75 * factor
    assert kpoint_grid(Atoms("Al", cell=[length] * 3, pbc=True), 0.25) == (3, 3, 3)


def test_a_cell_slightly_smaller_takes_the_next_odd_number():
    length = 2 * np.pi / 0.75 * 0.999
    assert kpoint_grid(Atoms("Al", cell=[length] * 3, pbc=True), 0.25) == (5, 5, 5)


def test_a_large_cell_has_one_point():
    assert kpoint_grid(Atoms("Al", cell=[100, 100, 100], pbc=True), 0.25) == (1, 1, 1)


@given(
    cell=st.lists(st.floats(2.0, 40.0), min_size=3, max_size=3),
    shear=st.floats(-1.0, 1.0),
    kspacing=st.floats(0.05, 1.0),
)
def test_no_grid_is_coarser_than_asked_nor_finer_than_needed(cell, shear, kspacing):
    atoms = Atoms("Al", cell=[[cell[0], 0, 0], [shear, cell[1], 0], [0, shear, cell[2]]], pbc=True)
    lengths = 2 * np.pi * np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    for n, length in zip(kpoint_grid(atoms, kspacing), lengths, strict=True):
        assert n % 2 == 1
        assert length / n <= kspacing * (1 + 1e-7)
        assert n == 1 or length / (n - 2) > kspacing * (1 - 1e-7)


def test_one_point_is_written_as_gamma(tmp_path, h2_atoms):
    assert "K_POINTS gamma\n" in written(h2_atoms, tmp_path)
    assert read_pw_input(tmp_path / "pw.in").kpoints == "gamma"


@pytest.mark.parametrize("name", ["lelfield", "LELFIELD"])
def test_a_finite_field_has_no_gamma_tricks(tmp_path, h2_atoms, name):
    written(h2_atoms, tmp_path, pw={"control": {name: True}})
    assert read_pw_input(tmp_path / "pw.in").kpoints == (1, 1, 1, 0, 0, 0)


# Magnetism


def test_without_magnetism_there_is_no_spin(tmp_path):
    assert "nspin" not in written(iron(), tmp_path, magnetism="none")
    assert "nspin" not in written(bulk("Al"), tmp_path, magnetism="auto")


def test_auto_starts_magnetic_elements_with_the_moment_of_the_free_atom(tmp_path):
    """4 μB on an Fe of 8 valence electrons is a starting_magnetization of 0.5."""
    written(iron(), tmp_path, magnetism="auto")
    pw_input = read_pw_input(tmp_path / "pw.in")

    assert pw_input.get("nspin") == 2
    assert pw_input.get("starting_magnetization(1)") == 0.5


def test_of_several_starts_the_first_is_written(tmp_path):
    assert "nspin" not in written(iron(), tmp_path, magnetism=["none", "auto"])
    assert "nspin" in written(iron(), tmp_path, magnetism=["auto", "none"])


def test_the_word_antiferromagnetic_makes_two_kinds_of_one_element(tmp_path):
    crystal = bulk("Fe", cubic=True)
    crystal.set_initial_magnetic_moments(None)
    written(crystal, tmp_path, magnetism="antiferromagnetic")
    pw_input = read_pw_input(tmp_path / "pw.in")
    assert pw_input.kinds == ("Fe", "Fe1")
    assert [pw_input.get(f"starting_magnetization({n})") for n in (1, 2)] == [0.5, -0.5]


def test_an_antiferromagnet_has_two_kinds_of_one_element(tmp_path):
    text = written(afm_iron(), tmp_path)
    pw_input = read_pw_input(tmp_path / "pw.in")

    assert pw_input.kinds == ("Fe", "Fe1")
    assert pw_input.symbols == ("Fe", "Fe")
    assert pw_input.get("ntyp") == 2
    assert pw_input.get("starting_magnetization(1)") == 0.25  # 2 μB of 8 electrons
    assert pw_input.get("starting_magnetization(2)") == -0.25
    assert len(re.findall(r"^Fe\d? +\d+\.\d+ Fe\.UPF$", text, re.M)) == 2


def test_nearly_equal_moments_share_a_kind(tmp_path):
    """Fifty moments from an earlier calculation, no two equal; pw.x has room for ten kinds."""
    atoms = iron(cubic=True).repeat((5, 5, 1))
    atoms.set_initial_magnetic_moments(np.linspace(1.0, 3.5, 50))
    written(atoms, tmp_path)
    pw_input = read_pw_input(tmp_path / "pw.in")

    n_kinds = pw_input.get("ntyp")
    assert 2 < n_kinds <= 10
    fractions = [pw_input.get(f"starting_magnetization({i})") for i in range(1, n_kinds + 1)]
    assert min(fractions) == pytest.approx(1.0 / 8)
    assert max(fractions) == pytest.approx(3.5 / 8)


def test_a_small_moment_that_only_breaks_the_symmetry_is_kept(tmp_path):
    atoms = iron(cubic=True)
    atoms.set_initial_magnetic_moments([0.004, -0.004])
    written(atoms, tmp_path)

    assert read_pw_input(tmp_path / "pw.in").get("starting_magnetization(1)") == pytest.approx(0.0005)
    assert read_pw_input(tmp_path / "pw.in").get("starting_magnetization(2)") == pytest.approx(-0.0005)


def test_a_moment_above_the_valence_is_cut_to_it(tmp_path):
    atoms = Atoms("H", cell=[5, 5, 5])
    atoms.set_initial_magnetic_moments([3.0])
    written(atoms, tmp_path)
    assert read_pw_input(tmp_path / "pw.in").get("starting_magnetization(1)") == 1.0


def test_bands_hold_the_majority_spin(tmp_path):
    """Seven Fe of 4 μB: 56 electrons, 42 of one spin; pw.x would take 1.2 x 28 = 34 bands, and lose moment."""
    atoms = iron(cubic=True).repeat((2, 2, 1))[:7]
    written(atoms, tmp_path, magnetism="auto")
    assert read_pw_input(tmp_path / "pw.in").get("nbnd") == 47  # 1.1 x 42 = 46.2


def test_without_spin_pw_counts_the_bands(tmp_path):
    assert "nbnd" not in written(bulk("Al"), tmp_path)


def test_hubbard_u_by_element_reaches_every_kind_of_it(tmp_path):
    atoms = Atoms("FeOFe", positions=[[0, 0, 0], [2, 0, 0], [4, 0, 0]], cell=[6, 6, 6], magmoms=[4, 0, -4])
    written(atoms, tmp_path, pw={"system": {"lda_plus_u": True, "Hubbard_U": {"Fe": 4.6, "Ni": 6.0}}})
    pw_input = read_pw_input(tmp_path / "pw.in")

    assert pw_input.kinds == ("Fe", "O", "Fe1")
    assert pw_input.get("hubbard_u(1)") == 4.6
    assert pw_input.get("hubbard_u(2)") is None
    assert pw_input.get("hubbard_u(3)") == 4.6


def test_hubbard_u_is_switched_on_where_it_applies_and_only_there(tmp_path):
    """pw.x 6.7 ignores it without lda_plus_u, and refuses lda_plus_u in a structure that has no U."""
    u = {"system": {"Hubbard_U": {"Fe": 4.6}}}
    assert re.search(r"lda_plus_u +=\s+\.true\.", written(iron(), tmp_path, pw=u))
    assert "lda_plus_u" not in written(bulk("Al"), tmp_path, pw=u)


# Structures that cannot be right


@pytest.mark.parametrize(
    ("atoms", "what"),
    [
        (Atoms(cell=[5, 5, 5]), "no atoms"),
        (Atoms("X", cell=[5, 5, 5]), "no chemical element"),
        (Atoms("Al", positions=[[np.nan, 0, 0]], cell=[5, 5, 5]), "NaN"),
        (Atoms("Al", positions=[[np.inf, 0, 0]], cell=[5, 5, 5]), "infinite"),
        (Atoms("Al", cell=[5, 5, np.nan]), "NaN"),
        (Atoms("Al", positions=[[1e5, 0, 0]], cell=[5, 5, 5]), "beyond 10000 Å"),
        (Atoms("Al", cell=[5, 5, 2e4]), "beyond 10000 Å"),
        (molecule("H2"), "no cell"),
        (Atoms("Al", cell=[5, 5, 0]), "no cell"),
        (Atoms("Al", cell=[[5, 0, 0], [5, 0, 0], [0, 0, 5]]), "flat"),
        (Atoms("Al", cell=[[5, 0, 0], [0, 5, 0], [5, 5, 1e-4]]), "flat"),
        (Atoms("Al2", positions=[[0, 0, 0], [0, 0, 0]], cell=[9, 9, 9]), r"atoms 1 \(Al\) and 2 \(Al\) are 0\.000 Å"),
    ],
)
def test_structures_that_cannot_be_right_are_refused(tmp_path, atoms, what):
    with pytest.raises(StructureError, match=what):
        check_structure(atoms)
    if len(atoms) and "X" not in atoms.symbols:
        with pytest.raises(StructureError, match=what):
            written(atoms, tmp_path)
        assert not (tmp_path / "pw.in").exists()


@pytest.mark.parametrize("pbc", [True, False])
def test_images_overlap_whether_or_not_the_structure_calls_itself_periodic(pbc):
    """pw.x repeats every cell: two H at either end of a box that is hardly longer than they are apart."""
    atoms = Atoms("H2", positions=[[0, 0, 0.1], [0, 0, 7.9]], cell=[8, 8, 8], pbc=pbc)
    with pytest.raises(StructureError, match=r"0\.200 Å apart"):
        check_structure(atoms)


def test_an_atom_overlaps_its_own_image_in_a_tiny_cell():
    with pytest.raises(StructureError, match=r"atoms 1 \(Al\) and 1 \(Al\)"):
        check_structure(Atoms("Al", cell=[1.0, 9, 9]))


@pytest.mark.parametrize(("excess", "refused"), [(-1e-6, True), (1e-6, False)])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
def test_the_limit_is_a_fraction_of_the_covalent_radii(fraction, excess, refused):
    """Cordero 2008: Al 1.21 Å, O 0.66 Å."""
    distance = fraction * (1.21 + 0.66) + excess
    atoms = Atoms("AlO", positions=[[0, 0, 0], [0, 0, distance]], cell=[9, 9, 9])

    assert covalent_radii[[13, 8]].tolist() == [1.21, 0.66]
    if refused:
        with pytest.raises(StructureError, match=f"min_distance_fraction {fraction:g} x") as error:
            check_structure(atoms, fraction)
        assert error.value.details == {"atoms": [1, 2], "distance": pytest.approx(distance)}
    else:
        check_structure(atoms, fraction)


def test_exactly_at_the_limit_is_far_enough():
    """Two H of 0.31 Å at half the sum of their radii, numbers that binary floats hold to the same digit."""
    distance = 0.5 * (0.31 + 0.31)
    check_structure(Atoms("H2", positions=[[0, 0, 0], [0, 0, distance]], cell=[9, 9, 9]), 0.5)


def test_the_limit_can_be_switched_off_and_is_the_configuration_s(tmp_path):
    close = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.2]], cell=[9, 9, 9])
    check_structure(close, 0.0)
    written(close, tmp_path, min_distance_fraction=0.2)
    with pytest.raises(StructureError):
        written(close, tmp_path)


@pytest.mark.parametrize("atoms", [bulk("Al"), iron(), bulk("C"), bulk("Ni", cubic=True)])
def test_ordinary_structures_are_accepted(atoms):
    check_structure(atoms)


# Reading it back


@given(
    seed=st.integers(0, 10_000),
    symbols=st.lists(st.sampled_from(["Al", "Fe", "H", "O", "Si"]), min_size=1, max_size=6),
    magnetic=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read_back(tmp_path, seed, symbols, magnetic):
    random = np.random.default_rng(seed)
    cell = np.diag(random.uniform(5, 12, 3)) + random.uniform(-1, 1, (3, 3))
    atoms = Atoms(symbols, positions=random.uniform(-20, 20, (len(symbols), 3)), cell=cell, pbc=random.random(3) < 0.5)
    if magnetic:
        atoms.set_initial_magnetic_moments(random.uniform(-3, 3, len(symbols)).round(1))
    written(atoms, tmp_path, min_distance_fraction=0.0)

    pw_input = read_pw_input(tmp_path / "pw.in")

    assert pw_input.symbols == tuple(symbols)
    np.testing.assert_allclose(pw_input.positions, atoms.positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(pw_input.cell, atoms.cell.array, rtol=0, atol=1e-9)
    np.testing.assert_allclose(pw_input.to_ase_atoms().positions, atoms.positions, rtol=0, atol=1e-9)
    grid = kpoint_grid(atoms, 0.2)
    assert pw_input.kpoints == ("gamma" if grid == (1, 1, 1) else (*grid, 0, 0, 0))


def test_an_input_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"pw\.in does not exist"):
        read_pw_input(tmp_path / "pw.in")
    with pytest.raises(InputError, match="cannot be read"):
        change_pw_input(tmp_path / "pw.in", {"mixing_beta": 0.3})


def test_an_input_cut_anywhere_before_its_last_line_is_refused(tmp_path):
    atoms = afm_iron()
    text = written(atoms, tmp_path)
    path = tmp_path / "pw.in"
    last_line = text.rstrip().rindex("\n")

    for end in range(0, last_line, 3):
        path.write_text(text[:end])
        with pytest.raises(InputError):
            read_pw_input(path)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("nat              = 2", "nat              = 3", "nat = 3, but ATOMIC_POSITIONS lists 2"),
        ("nat              = 2", "nat              = 1", "nat = 1, but ATOMIC_POSITIONS lists 2"),
        ("ibrav            = 0", "ibrav            = 2", "only ibrav = 0 is read, got 2"),
        ("K_POINTS automatic", "", "no K_POINTS card"),
        ("CELL_PARAMETERS angstrom", "", "no CELL_PARAMETERS card"),
        ("ATOMIC_POSITIONS angstrom", "", "no complete input"),
        ("ATOMIC_SPECIES\n", "", "no complete input"),
        ("Fe1 ", "Zz ", "no complete input"),
        ("&SYSTEM", "&OTHER", "no complete input"),
    ],
)
def test_inputs_that_contradict_themselves_are_refused(tmp_path, old, new, what):
    text = written(afm_iron(), tmp_path)
    assert old in text
    (tmp_path / "pw.in").write_text(text.replace(old, new))

    with pytest.raises(InputError, match=what):
        read_pw_input(tmp_path / "pw.in")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"&", b"=" * 100, b"\0" * 4096])
def test_what_is_no_input_is_refused(tmp_path, content):
    (tmp_path / "pw.in").write_bytes(content)
    with pytest.raises(InputError):
        read_pw_input(tmp_path / "pw.in")


# Changing named parameters

HAND_MADE = """! an input as a person writes it
&control
   calculation = 'scf' , outdir='./out', pseudo_dir = '/a/b, c = 3 ! no/comment' ! not so "
   disk_io = 'low' /
&SYSTEM ibrav=0, nat=1, ntyp=1, ECUTWFC=30.0, degauss = 1.0d-2 ! degauss = 9
/
&Electrons
   conv_thr = 1e-9, Mixing_Beta=0.7,mixing_mode = 'plain' ! mixing_beta = 0.9
! diagonalization = 'david'
   diagonalization = "david"
/
ATOMIC_SPECIES
Al 26.98 Al.UPF
"""


def change(path: Path, text: str, **changes) -> str:
    file = path / "pw.in"
    file.write_bytes(text.encode())
    change_pw_input(file, changes)
    return file.read_bytes().decode()


def test_only_the_named_value_changes_among_several_on_a_line(tmp_path):
    text = change(tmp_path, HAND_MADE, mixing_beta=0.3)
    assert text == HAND_MADE.replace("Mixing_Beta=0.7", "Mixing_Beta=0.3")


@pytest.mark.parametrize(
    ("keyword", "value", "old", "new"),
    [
        ("conv_thr", 1e-6, "conv_thr = 1e-9", "conv_thr = 1e-06"),
        ("diagonalization", "cg", '"david"', "'cg'"),
        ("mixing_mode", "local-TF", "'plain'", "'local-TF'"),
        ("degauss", 0.05, "1.0d-2", "0.05"),
        ("ecutwfc", 40, "30.0", "40"),
        ("disk_io", "none", "'low'", "'none'"),
        ("pseudo_dir", "/x", "'/a/b, c = 3 ! no/comment'", "'/x'"),
    ],
)
def test_quotes_comments_capitals_and_slashes_do_not_mislead(tmp_path, keyword, value, old, new):
    assert change(tmp_path, HAND_MADE, **{keyword: value}) == HAND_MADE.replace(old, new, 1)


def test_a_new_keyword_goes_into_its_namelist(tmp_path):
    text = change(tmp_path, HAND_MADE, startingpot="file", nbnd=12, max_seconds=100)

    assert "&Electrons\n   startingpot      = 'file'\n" in text
    assert "&SYSTEM nbnd = 12, ibrav=0" in text
    assert "&control\n   max_seconds      = 100\n" in text
    back = change(tmp_path, text, startingpot=None, nbnd=None, max_seconds=None)
    assert back == HAND_MADE


def test_a_removed_keyword_takes_its_line_with_it_where_it_stands_alone(tmp_path):
    assert change(tmp_path, HAND_MADE, diagonalization=None) == HAND_MADE.replace('   diagonalization = "david"\n', "")
    assert change(tmp_path, HAND_MADE, mixing_beta=None) == HAND_MADE.replace(" Mixing_Beta=0.7,", "")
    assert change(tmp_path, HAND_MADE, disk_io=None) == HAND_MADE.replace("   disk_io = 'low' /", " /")


def test_removing_what_is_not_there_changes_nothing(tmp_path):
    assert change(tmp_path, HAND_MADE, startingpot=None, nosym=None) == HAND_MADE


def test_of_a_keyword_given_twice_the_one_that_counts_changes(tmp_path):
    """pw.x takes the last one."""
    twice = "&ELECTRONS\n  mixing_beta = 0.7\n  mixing_beta = 0.6\n/\n"
    assert change(tmp_path, twice, mixing_beta=0.3) == twice.replace("0.6", "0.3")
    assert change(tmp_path, twice, mixing_beta=None) == "&ELECTRONS\n/\n"


def test_a_keyword_of_the_same_name_elsewhere_is_left_alone(tmp_path):
    text = "&CONTROL\n/\n&ELECTRONS\n/\n&OTHER\n  mixing_beta = 1\n/\nCARD mixing_beta = 2\n"
    assert change(tmp_path, text, mixing_beta=0.3) == text.replace(
        "&ELECTRONS\n", "&ELECTRONS\n   mixing_beta      = 0.3\n"
    )


def test_line_ends_of_another_system_stay(tmp_path):
    windows = HAND_MADE.replace("\n", "\r\n")
    assert change(tmp_path, windows, diagonalization="cg", nosym=True).replace("\r\n", "").count("\n") == 0


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"nat": 3}, "'nat' is not a keyword that is changed"),
        ({"diagonalization": "it's"}, "quotes"),
        ({"mixing_beta": float("nan")}, "nothing that pw.in can hold"),
        ({"mixing_beta": [0.3]}, "nothing that pw.in can hold"),
    ],
)
def test_changes_that_cannot_be_made_leave_the_file_alone(tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        change(tmp_path, HAND_MADE, **{"conv_thr": 1e-6, **changes})
    assert (tmp_path / "pw.in").read_text() == HAND_MADE


def test_a_namelist_that_is_not_there_cannot_take_a_keyword(tmp_path):
    with pytest.raises(InputError, match="no namelist &ELECTRONS"):
        change(tmp_path, "&CONTROL\n/\n", mixing_beta=0.3)


NUMBERS = ("degauss", "conv_thr", "mixing_beta", "ecutwfc", "ecutrho", "max_seconds", "diago_thr_init")
COUNTS = ("nbnd", "electron_maxstep", "mixing_ndim", "diago_david_ndim", "diago_cg_maxiter", "nspin")
FLAGS = ("nosym", "scf_must_converge")
VALUES = {
    **{name: st.sampled_from(["word", "two words", "a/b!c, d = 1", "x=y"]) for name in NAMELIST_OF},
    **{name: st.floats(1e-12, 1e6) for name in NUMBERS},
    **{name: st.integers(1, 1000) for name in COUNTS},
    **{name: st.booleans() for name in FLAGS},
}


@given(st.fixed_dictionaries({}, optional=VALUES), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_parameters_changed_and_changed_back_leave_the_identical_file(tmp_path, changes, magnetic):
    original = written(afm_iron() if magnetic else bulk("Al"), tmp_path)
    path = tmp_path / "pw.in"
    before = read_pw_input(path)

    change_pw_input(path, changes)
    after = read_pw_input(path)
    for keyword, value in changes.items():
        assert after.get(keyword) == value
    for namelist, entries in before.namelists.items():
        for keyword, value in entries.items():
            assert keyword in changes or after.namelists[namelist][keyword] == value
    assert (after.kinds, after.kpoints) == (before.kinds, before.kpoints)

    change_pw_input(path, {keyword: before.get(keyword) for keyword in changes})
    assert path.read_text() == original


# The real pw.x


def run_pw(folder: Path) -> None:
    with (folder / "pw.out").open("wb") as out, (folder / "pw.err").open("wb") as err:
        status = subprocess.run(
            [shutil.which("pw.x"), "-in", "pw.in"],
            cwd=folder,
            stdout=out,
            stderr=err,
            env=WorkerConfig().process_environment(),
            check=False,
        ).returncode
    (folder / "exit_status").write_text(f"{status}\n")


@pytest.mark.pw
@pytest.mark.parametrize("name", ["silicon", "hydrogen", "antiferromagnet"])
def test_pw_accepts_what_is_written_and_its_output_is_a_label(tmp_path, config, si_atoms, h2_atoms, name):
    if name == "antiferromagnet":
        atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 2.0]], cell=[4, 4, 6], pbc=True, magmoms=[1.0, -1.0])
        # In its gap cold smearing loses the Fermi level (pw.x 6.7), and the result is refused.
        config = config.model_copy(update={"smearing": "gaussian"})
    else:
        atoms = {"silicon": si_atoms, "hydrogen": h2_atoms}[name]
    write_pw_input(atoms, config, tmp_path / "pw.in")
    run_pw(tmp_path)

    result = read_pw_output(tmp_path)

    assert result.source == "xml"
    assert result.symbols == tuple(atoms.symbols)
    np.testing.assert_allclose(result.positions, atoms.positions, atol=1e-8)
    assert result.conv_thr == pytest.approx(config.conv_thr_per_atom * len(atoms))
    text = (tmp_path / "pw.out").read_text()
    if name == "silicon":
        assert result.n_kpoints > 1
        assert result.max_force > 0.1
    if name == "hydrogen":
        assert "gamma-point specific algorithms are used" in text
    if name == "antiferromagnet":
        assert read_pw_input(tmp_path / "pw.in").kinds == ("H", "H1")
        assert result.total_magnetization == pytest.approx(0.0, abs=0.01)
        assert result.absolute_magnetization > 0.1


@pytest.mark.pw
def test_hubbard_u_changes_the_energy_and_leaves_other_elements_alone(tmp_path, config):
    """4.6 eV on the d electrons of one Fe is worth more than 1 eV, which is 0.07 Ry."""
    cheap = {"ecutwfc": 12, "ecutrho": 60, "kspacing": 2.0, "magnetism": "none", "conv_thr_per_atom": 1e-6}
    plain = config.model_copy(update=cheap)
    with_u = plain.model_copy(update={"pw": {"system": {"Hubbard_U": {"Fe": 4.6}}}})
    energies = {}
    for name, atoms, chosen in (("plain", iron(), plain), ("u", iron(), with_u), ("al", bulk("Al"), with_u)):
        (tmp_path / name).mkdir()
        write_pw_input(atoms, chosen, tmp_path / name / "pw.in")
        run_pw(tmp_path / name)
        text = parse_text((tmp_path / name / "pw.out").read_text())
        assert text.converged
        energies[name] = text.energy

    assert abs(energies["u"] - energies["plain"]) > 0.07


@pytest.mark.pw
def test_pw_reads_an_input_that_was_changed(tmp_path, config, h2_atoms):
    write_pw_input(h2_atoms, config, tmp_path / "pw.in")
    change_pw_input(tmp_path / "pw.in", {"mixing_beta": 0.35, "nosym": True, "diago_david_ndim": 4, "max_seconds": 60})
    run_pw(tmp_path)

    text = (tmp_path / "pw.out").read_text()
    assert re.search(r"mixing beta +=\s+0\.3500", text)
    assert "JOB DONE" in text


@pytest.mark.pw
def test_real_pseudopotentials_decide_bands_and_charge_cutoff(tmp_path, config, pseudo_dir):
    files = load_pseudopotentials({"Fe"}, pseudo_dir, config.pseudopotentials)
    write_pw_input(iron(), config, tmp_path / "pw.in", pseudopotentials=files)
    pw_input = read_pw_input(tmp_path / "pw.in")

    assert pw_input.get("ecutrho") == 8 * config.ecutwfc  # ultrasoft
    assert pw_input.get("starting_magnetization(1)") == 4.0 / 8.0
    assert pw_input.get("nbnd") == 10  # 8 electrons, 6 of one spin, and four more
