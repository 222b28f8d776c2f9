from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dftfactory.errors import (
    IncompleteOutputError,
    InconsistentOutputError,
    NonFiniteError,
    NotConvergedError,
    ParserError,
)
from dftfactory.failures import Failure, diagnose
from dftfactory.history import start_history
from dftfactory.inputs import change_pw_input, read_pw_input
from dftfactory.parsers import parse_text, read_exit_status, read_output, read_pw_output
from dftfactory.recovery import LADDER

FILES = Path(__file__).parent / "files"
REFERENCES = sorted(path.parent.name for path in FILES.glob("reference/*/reference.json"))

# CODATA 2018.
HARTREE = 27.211386245988  # eV
RYDBERG = 13.605693122994  # eV
BOHR = 0.529177210903  # Å


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a recorded run into a folder of the test."""

    def copy(name: str = "reference/si2_rattled") -> Path:
        folder = tmp_path / "run"
        shutil.copytree(FILES / name, folder, dirs_exist_ok=True)
        return folder

    return copy


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode()))


# The references


@pytest.mark.parametrize("name", REFERENCES)
def test_references_are_reproduced_from_the_xml(name):
    expected = json.loads((FILES / "reference" / name / "reference.json").read_text())

    result = read_pw_output(FILES / "reference" / name)

    assert result.source == "xml"
    assert result.energy == result.free_energy == pytest.approx(expected["energy_eV"], abs=1e-6)
    assert result.smearing_energy == pytest.approx(expected["minusTS_eV"], abs=1e-6)
    np.testing.assert_allclose(result.forces, expected["forces_eV_per_ang"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.stress, expected["stress_ase_eV_per_ang3"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(result.positions, expected["positions_ang"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.cell, expected["cell_ang"], rtol=0, atol=1e-6)
    assert result.symbols == tuple(expected["symbols"])
    assert result.iterations == expected["n_scf_steps"]
    assert result.scf_error == pytest.approx(2 * expected["scf_error_xml"])
    if expected["total_magnetization_muB"] is None:
        assert result.total_magnetization is None
    else:
        assert result.total_magnetization == pytest.approx(expected["total_magnetization_muB"], abs=0.01)


@pytest.mark.parametrize("name", REFERENCES)
def test_references_are_reproduced_from_the_text_alone(run, name):
    """Half a unit of the eighth decimal, in Ry, Ry/bohr and Ry/bohr³, is what the text can hold."""
    folder = run(f"reference/{name}")
    (folder / "out" / "pwscf.xml").unlink()
    from_xml = read_pw_output(FILES / "reference" / name)

    result = read_pw_output(folder)

    assert result.source == "text"
    assert result.energy == pytest.approx(from_xml.energy, abs=1e-8 * RYDBERG)
    assert result.smearing_energy == pytest.approx(from_xml.smearing_energy, abs=1e-8 * RYDBERG)
    np.testing.assert_allclose(result.forces, from_xml.forces, rtol=0, atol=1e-8 * RYDBERG / BOHR)
    np.testing.assert_allclose(result.stress, from_xml.stress, rtol=0, atol=1e-8 * RYDBERG / BOHR**3)
    # The accuracy is printed with two digits, the Fermi level with four decimals, moments with two.
    assert result.scf_error == pytest.approx(from_xml.scf_error, rel=0.05)
    assert result.fermi_energy == pytest.approx(from_xml.fermi_energy, abs=6e-5)
    if from_xml.total_magnetization is not None:
        assert result.total_magnetization == pytest.approx(from_xml.total_magnetization, abs=6e-3)
    # The structure has all digits, because it is that of the input.
    np.testing.assert_allclose(result.positions, from_xml.positions, rtol=0, atol=1e-8)


def test_conversion_to_ev_and_angstrom_spelled_out():
    """Numbers of fe2_bcc_rattled/out/pwscf.xml and pw.out, read by eye."""
    result = read_pw_output(FILES / "reference" / "fe2_bcc_rattled")

    # ! total energy = -111.61536191 Ry, smearing contrib. (-TS) = 0.00133406 Ry
    assert result.energy == pytest.approx(-111.61536191 * 13.605693122994, abs=1e-7)
    assert result.smearing_energy == pytest.approx(0.00133406 * 13.605693122994, abs=1e-7)
    # atom 1 type 1 force = 0.02034991 0.01167384 0.01577323 Ry/bohr
    assert result.forces[0, 0] == pytest.approx(0.02034991 * 13.605693122994 / 0.529177210903, abs=3e-7)
    # total stress, first row: 0.00005628 -0.00004527 0.00004810 Ry/bohr³, 8.28 kbar; ASE's sign is the other one.
    assert result.stress[0, 0] == pytest.approx(-0.00005628 * 13.605693122994 / 0.529177210903**3, abs=1e-6)
    assert result.stress[0, 0] == pytest.approx(-8.28 / 1602.1766, abs=1e-5)  # 1 eV/Å³ = 1602.1766 kbar
    # <fermi_energy> 4.707529026542892e-1 Hartree; the text prints 12.8098 eV
    assert result.fermi_energy == pytest.approx(4.707529026542892e-1 * 27.211386245988)
    # Total SCF correction = 0.000001 Ry/bohr
    assert result.scf_force_correction == pytest.approx(1e-6 * 13.605693122994 / 0.529177210903)
    assert (result.total_magnetization, result.absolute_magnetization) == pytest.approx((5.34, 5.69), abs=6e-3)
    assert (result.degauss, result.conv_thr, result.n_kpoints, result.n_ranks) == (0.02, 1e-10, 14, 1)
    assert (result.estimated_memory, result.wall_time, result.pw_version) == (44.35, 7.16, "6.7MaX")


def test_the_energy_is_the_one_whose_derivative_the_forces_are():
    """F = E - TS: the text prints the internal energy -111.61669597 Ry, which is not the label."""
    result = read_pw_output(FILES / "reference" / "fe2_bcc_rattled")

    assert (result.energy - result.smearing_energy) / RYDBERG == pytest.approx(-111.61669597, abs=2e-8)


@pytest.mark.parametrize("xml", [True, False])
def test_pw_7_gives_the_same_label_as_pw_6(run, xml):
    """The same input with 7.2: same numbers, other header, contributions to the forces listed below them."""
    folder = run("pw/ok_si2_qe72")
    if not xml:
        (folder / "out" / "pwscf.xml").unlink()
    expected = json.loads((FILES / "reference" / "si2_rattled" / "reference.json").read_text())

    result = read_pw_output(folder)

    assert (result.pw_version, result.source) == ("7.2", "xml" if xml else "text")
    assert result.energy == pytest.approx(expected["energy_eV"], abs=1e-6)
    np.testing.assert_allclose(result.forces, expected["forces_eV_per_ang"], atol=1e-6)
    np.testing.assert_allclose(result.stress, expected["stress_ase_eV_per_ang3"], atol=1e-6)


# Files that are missing, empty, or damaged


@pytest.mark.parametrize("name", ["pw.out", "pw.in"])
@pytest.mark.parametrize("content", [None, b"", b"\0" * 4096, b"\xff\xfe garbage"])
def test_no_label_without_output_or_input(run, name, content):
    folder = run()
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)

    with pytest.raises(IncompleteOutputError if name == "pw.out" else InconsistentOutputError):
        read_pw_output(folder)


def test_no_label_in_an_empty_folder_or_in_none(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(IncompleteOutputError, match="missing, empty or without its beginning"):
            read_pw_output(folder)


@pytest.mark.parametrize("content", [None, b"", b"<?xml version", b"\0" * 1000])
def test_the_text_serves_alone_where_the_xml_is_unusable(run, content):
    folder = run()
    path = folder / "out" / "pwscf.xml"
    path.unlink() if content is None else path.write_bytes(content)

    assert read_pw_output(folder).source == "text"


def test_an_xml_that_a_full_disk_has_cut_discredits_the_text_too(run):
    folder = run()
    path = folder / "out" / "pwscf.xml"
    path.write_bytes(path.read_bytes()[:8192])

    with pytest.raises(IncompleteOutputError, match="the disk was full"):
        read_pw_output(folder)


@pytest.mark.parametrize("name", ["fe2_bcc_rattled", "si2_rattled", "h2_box_rattled"])
@pytest.mark.parametrize("xml", [True, False])
def test_an_output_cut_anywhere_is_never_another_label(run, name, xml):
    folder = run(f"reference/{name}")
    whole = read_pw_output(folder)
    if not xml:
        (folder / "out" / "pwscf.xml").unlink()
        whole = read_pw_output(folder)
    content = (folder / "pw.out").read_bytes()
    end_of_run = content.index(b"JOB DONE.") + len(b"JOB DONE.")

    for end in [*range(0, end_of_run, 211), *range(end_of_run - 40, end_of_run)]:
        (folder / "pw.out").write_bytes(content[:end])
        with pytest.raises(IncompleteOutputError):
            read_pw_output(folder)
    for end in range(end_of_run, len(content)):
        (folder / "pw.out").write_bytes(content[:end])
        assert read_pw_output(folder).to_dict() == whole.to_dict()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), xml=st.booleans())
def test_a_hole_in_an_output_is_never_another_label(run, data, xml):
    """Some file systems lose a piece in the middle: the end is there and the numbers are not.

    A hole is longer than a number: of a single digit that is gone only the XML can tell.
    """
    folder = run()
    if not xml:
        (folder / "out" / "pwscf.xml").unlink()
    whole = read_pw_output(folder)
    content = (folder / "pw.out").read_bytes()
    start = data.draw(st.integers(content.index(b"!    total energy") - 200, content.index(b"init_run")))
    end = data.draw(st.integers(start + (1 if xml else 16), min(start + 600, len(content))))

    (folder / "pw.out").write_bytes(content[:start] + content[end:])
    try:
        result = read_pw_output(folder)
    except ParserError:
        return
    assert result.energy == whole.energy
    np.testing.assert_array_equal(result.forces, whole.forces)
    np.testing.assert_array_equal(result.stress, whole.stress)


@pytest.mark.parametrize("name", ["fe2_bcc_rattled", "si2_rattled"])
def test_an_xml_cut_anywhere_is_never_another_label(run, name):
    folder = run(f"reference/{name}")
    path = folder / "out" / "pwscf.xml"
    content = path.read_bytes()
    path.unlink()
    from_text = read_pw_output(folder).to_dict()

    for end in range(0, len(content) - len("</qes:espresso>"), 997):
        path.write_bytes(content[:end])
        assert end % 4096 == 0 or read_pw_output(folder).to_dict() == from_text


# Numbers that are none


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "*" * 11])
@pytest.mark.parametrize(
    "line", ["!    total energy              =", "atom    1 type  1   force = ", "(kbar)     P=      -21.28\n"]
)
def test_one_number_of_the_text_that_is_none(run, bad, line):
    folder = run()
    text = (folder / "pw.out").read_text()
    start = text.index(line) + len(line)
    number = text[start:].split()[0]
    (folder / "pw.out").write_text(text[:start] + text[start:].replace(number, bad.rjust(len(number)), 1))

    with pytest.raises(NonFiniteError):
        read_pw_output(folder)


def test_one_number_of_the_xml_that_is_none(run):
    folder = run()
    path = folder / "out" / "pwscf.xml"
    path.write_text(path.read_text().replace("-7.914052408337469e0", "NaN"))

    with pytest.raises(NonFiniteError):
        read_pw_output(folder)


# Whole files that do not belong together


@pytest.mark.parametrize(
    ("block", "old", "new"),
    [
        ("energy", "-7.914052408337469e0", "-7.914052508337469e0"),
        ("forces", "-2.276818", "-2.276918"),
        ("stress", "-9.812352", "-9.816352"),
    ],
)
def test_an_xml_with_other_numbers_than_the_text(run, block, old, new):
    folder = run()
    edit(folder / "out" / "pwscf.xml", old, new)

    with pytest.raises(InconsistentOutputError, match=f"{block}.* differs"):
        read_pw_output(folder)


def test_an_xml_of_another_structure(run):
    folder = run()
    shutil.copy(FILES / "reference" / "al4_fcc_rattled" / "out" / "pwscf.xml", folder / "out" / "pwscf.xml")
    with pytest.raises(InconsistentOutputError):
        read_pw_output(folder)


@pytest.mark.parametrize("xml", [True, False])
@pytest.mark.parametrize(
    ("card", "what"), [("ATOMIC_POSITIONS", "positions"), ("CELL_PARAMETERS", "cell"), ("ATOMIC_SPECIES", "atoms")]
)
def test_an_output_of_another_structure_than_the_input(run, xml, card, what):
    """E.g. pw.in was rewritten after the run. One thousandth of an Å is seen from either file."""
    folder = run()
    if not xml:
        (folder / "out" / "pwscf.xml").unlink()
    lines = (folder / "pw.in").read_text().splitlines()
    if card == "ATOMIC_SPECIES":
        lines = [line.replace("Si ", "Ge ", 1) if line.startswith("Si ") else line for line in lines]
    else:
        n = next(n for n, line in enumerate(lines) if line.startswith(card)) + 1
        words = lines[n].split()
        words[-1] = str(float(words[-1]) + 0.001)
        lines[n] = " ".join(words)
    (folder / "pw.in").write_text("\n".join(lines) + "\n")

    with pytest.raises(InconsistentOutputError, match=what):
        read_pw_output(folder)


@pytest.mark.parametrize("time", ["16:59:59", "17:59:59"])
def test_an_xml_that_was_not_written_during_the_run(run, time):
    """XML files of an earlier run stay in the folder, and those of a later one overwrite them."""
    folder = run()
    edit(folder / "out" / "pwscf.xml", 'TIME="17: 4:36"', f'TIME="{time}"')

    with pytest.raises(InconsistentOutputError, match="stale"):
        read_pw_output(folder)


@pytest.mark.parametrize("status", [1, 2, 137, -9])
def test_a_run_that_did_not_exit_with_0_is_no_label_although_all_is_there(run, status):
    folder = run()
    (folder / "exit_status").write_text(f"{status}\n")

    with pytest.raises(IncompleteOutputError, match=f"exit status {status}") as error:
        read_pw_output(folder)
    assert error.value.details == {"exit_status": status}


def test_a_run_without_a_record_of_its_exit_status_is_judged_by_its_files(run):
    folder = run()
    (folder / "exit_status").unlink()

    assert read_exit_status(folder) is None
    assert read_pw_output(folder).energy == pytest.approx(-215.3523368542624, abs=1e-6)


def test_unconverged_although_job_done_and_exit_0(run):
    """As pw.x 7 ends: JOB DONE, exit status 0, and no result."""
    folder = run("pw/scf_maxstep_small")
    (folder / "exit_status").write_text("0\n")

    with pytest.raises(NotConvergedError):
        read_pw_output(folder)


def test_unconverged_in_the_xml_alone(run):
    folder = run()
    path = folder / "out" / "pwscf.xml"
    path.write_text(path.read_text().replace("<convergence_achieved>true", "<convergence_achieved>false"))

    with pytest.raises(NotConvergedError, match=r"pwscf\.xml"):
        read_pw_output(folder)


@pytest.mark.parametrize("xml", [True, False])
def test_achieved_but_above_conv_thr_is_not_converged(run, xml):
    """`scf_must_converge = .false.` makes pw.x say "achieved", with 243 meV/Å left in the forces of an Al cell."""
    folder = run("pw/scf_must_converge_false")
    if not xml:
        (folder / "out" / "pwscf.xml").unlink()

    with pytest.raises(NotConvergedError, match="above conv_thr"):
        read_pw_output(folder)


@pytest.mark.parametrize(
    ("printed", "conv_thr", "accepted"),
    [
        ("7.1E-11", "7.06e-11", True),  # 7.06e-11 is printed as 7.1E-11
        ("7.1E-11", "6.5e-11", False),
        ("     0.00000002", "1.7e-8", True),  # above 1e-8 pw.x prints eight decimals
        ("     0.00000002", "1.2e-8", False),
    ],
)
def test_the_accuracy_in_the_text_is_compared_within_its_digits(run, printed, conv_thr, accepted):
    folder = run()
    (folder / "out" / "pwscf.xml").unlink()
    edit(folder / "pw.out", "7.1E-11", printed)
    edit(folder / "pw.out", "threshold =      1.0E-10", f"threshold =      {float(conv_thr):.1E}")
    change_pw_input(folder / "pw.in", {"conv_thr": float(conv_thr)})

    if accepted:
        assert read_pw_output(folder).source == "text"
    else:
        with pytest.raises(NotConvergedError):
            read_pw_output(folder)


def test_forces_beyond_all_physics_are_refused():
    with pytest.raises(InconsistentOutputError, match=r"44\.08 eV/Å, is above max_force = 40 eV/Å"):
        read_pw_output(FILES / "pw" / "overlap_paw_O_1.0A")


def test_bands_that_are_too_few_are_refused_with_their_number():
    with pytest.raises(InconsistentOutputError, match=r"highest band is filled \(occupation 0\.500\)") as error:
        read_pw_output(FILES / "pw" / "efermi_wrong")
    assert error.value.details == {"n_bands": 2}


def fill_the_highest_band(folder: Path) -> None:
    """Write occupation 1 for the last band of each k-point and spin channel."""
    xml = folder / "out" / "pwscf.xml"
    spins = 2 if "<lsda>true" in xml.read_text() else 1

    def filled(match: re.Match[str]) -> str:
        words = match[2].split()
        for spin in range(spins):
            words[(spin + 1) * len(words) // spins - 1] = "1.0"
        return match[1] + " ".join(words) + "</occupations>"

    xml.write_text(re.sub(r"(<occupations[^/>]*>)([^<]*)</occupations>", filled, xml.read_text()))


def test_a_spin_channel_that_is_full_to_the_top_is_capped(run):
    """Fe2 with 10 bands converges to 4 μB, 1.1 eV above its 6 μB, with occupations of exactly 1."""
    folder = run("pw/ok_fe_mag")
    fill_the_highest_band(folder)
    with pytest.raises(InconsistentOutputError, match="too few for the electrons"):
        read_pw_output(folder)


def test_full_bands_of_an_insulator_are_accepted_only_where_the_input_is_not_ours(run):
    folder = run("pw/few_bands_smear_si")
    assert read_pw_output(folder).source == "xml"
    prescribe(folder, conv_thr=1e-8)
    with pytest.raises(InconsistentOutputError, match="too few for the electrons"):
        read_pw_output(folder)


def test_text_alone_does_not_serve_where_the_bands_may_have_been_too_few(run):
    """Occupations stand in the XML only."""
    folder = run("pw/few_bands_smear_si")
    (folder / "out" / "pwscf.xml").unlink()
    with pytest.raises(IncompleteOutputError, match="whether the bands were enough"):
        read_pw_output(folder)


def test_forces_that_the_scf_error_spoils_are_refused(run):
    folder = run("reference/al4_fcc_rattled")
    text = (folder / "pw.out").read_text()
    total = float(re.search(r"Total force = +(\S+)", text)[1])
    spoilt = re.sub(r"(Total SCF correction = +)\S+", rf"\g<1>{total / 2:.6f}", text)
    (folder / "pw.out").write_text(spoilt)
    with pytest.raises(InconsistentOutputError, match="lower conv_thr_per_atom"):
        read_pw_output(folder)


def test_a_run_of_ours_without_an_exit_status_is_no_label(run):
    """A full disk leaves an empty file."""
    folder = run("reference/al4_fcc_rattled")
    prescribe(folder)
    (folder / "exit_status").write_text("")
    with pytest.raises(IncompleteOutputError, match="is not known"):
        read_pw_output(folder)


def test_pseudopotential_that_pw_x_took_from_elsewhere_is_refused(run):
    """pw.x silently takes a file of the same name from the folder that it was built with."""
    folder = run("reference/al4_fcc_rattled")
    md5 = parse_text(read_output(folder)).md5
    prescribe(folder, md5=dict.fromkeys(read_pw_input(folder / "pw.in").symbols, md5[0]))
    assert read_pw_output(folder).quality == "exact"
    prescribe(folder, md5=dict.fromkeys(read_pw_input(folder / "pw.in").symbols, "0" * 32))
    with pytest.raises(InconsistentOutputError, match=r"another content .* a short path"):
        read_pw_output(folder)
    assert diagnose(folder) is Failure.PSEUDOPOTENTIAL


# Runs of other origin


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nspin1_fe", "nspin = 1 with Fe: without spin"),
        ("pseudo_other_folder", "pw.x has read /usr/share/espresso/pseudo/Si.pz-vbc.UPF"),
        ("pseudo_wrong_element", "Al.pz-vbc.UPF, a pseudopotential of Al, for Si"),
        ("hubbard_card_ignored", "ignored the card HUBBARD"),
    ],
)
def test_what_only_the_input_tells_is_refused_with_the_reason(name, what):
    with pytest.raises(InconsistentOutputError, match=re.escape(what)):
        read_pw_output(FILES / "pw" / name)


def test_without_spin_is_a_user_s_explicit_word_in_a_run_of_ours(run):
    """`magnetism: none`: nobody writes nspin = 1 for iron by mistake there."""
    folder = run("pw/nspin1_fe")
    degauss, conv_thr = (read_pw_input(folder / "pw.in").get(name) for name in ("degauss", "conv_thr"))
    prescribe(folder, degauss=degauss, conv_thr=conv_thr)
    assert read_pw_output(folder).total_magnetization is None


@pytest.mark.parametrize(
    ("valence", "accepted"),
    [("3.00", False), ("5.00", False), ("4.00", True), ("12.00", True), ("3.98", True), ("16.00", False)],
)
def test_a_core_of_an_odd_number_of_electrons_is_another_element_s(run, valence, accepted):
    """Silicon has 14: 4 or 12 of them are valence electrons, and a fraction is a virtual crystal's."""
    folder = run()
    row = re.search(r" +Si +4\.00 +28\.\d+ +Si\( 1\.00\)", (folder / "pw.out").read_text())[0]
    edit(folder / "pw.out", row, row.replace("4.00", valence, 1))
    if accepted:
        assert read_pw_output(folder).symbols == ("Si", "Si")
    else:
        with pytest.raises(InconsistentOutputError, match=f"{float(valence):g} valence electrons cannot be one of Si"):
            read_pw_output(folder)


@pytest.mark.parametrize("value", ["0.i2", "'abc'", "1d 9", ".true."])
@pytest.mark.parametrize("keyword", ["conv_thr", "ecutwfc", "degauss"])
def test_an_input_whose_numbers_are_none_is_not_that_of_the_run(run, keyword, value):
    folder = run("reference/al4_fcc_rattled")
    text = (folder / "pw.in").read_text()
    (folder / "pw.in").write_text(re.sub(rf"({keyword} *= *)[^,\n]+", rf"\g<1>{value}", text))
    with pytest.raises(InconsistentOutputError):
        read_pw_output(folder)


@pytest.mark.parametrize(("keyword", "other"), [("ecutwfc", 30.1), ("ecutrho", 121.0), ("degauss", 0.0201)])
def test_an_output_of_other_parameters_than_the_input(run, keyword, other):
    folder = run("reference/al4_fcc_rattled")
    change_pw_input(folder / "pw.in", {keyword: other})
    with pytest.raises(InconsistentOutputError, match=f"{keyword} is .* not of the same run"):
        read_pw_output(folder)


# Electrons that get lost


@pytest.mark.parametrize(("drift", "accepted"), [("12.00003900", True), ("12.00004100", False), ("NaN", False)])
def test_a_charge_that_drifts_is_refused_from_a_tenth_of_a_mev_on(run, drift, accepted):
    """Four atoms, 1e-5 electrons each."""
    folder = run("reference/al4_fcc_rattled")
    warning = f"     WARNING: integrated charge=    {drift}, expected=    12.00000000\n\n"
    text = (folder / "pw.out").read_text()
    end = text.index("!    total energy")
    (folder / "pw.out").write_text(text[:end] + warning + text[end:])
    if accepted:
        assert read_pw_output(folder).source == "xml"
        return
    with pytest.raises(InconsistentOutputError, match="electrons too many"):
        read_pw_output(folder)
    assert diagnose(folder) is Failure.OCCUPATIONS


def test_a_charge_that_drifted_on_the_way_does_not_matter(run):
    folder = run("reference/al4_fcc_rattled")
    text = (folder / "pw.out").read_text()
    first = text.index("     total energy  ")
    warning = "     WARNING: integrated charge=    12.01000000, expected=    12.00000000\n\n"
    (folder / "pw.out").write_text(text[:first] + warning + text[first:])
    assert read_pw_output(folder).source == "xml"


# A text that serves alone


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (r"^!    total energy.*?(\d)\d Ry", "energy and the sum of its terms"),
        (r"one-electron contribution.*?(\d)\d Ry", "energy and the sum of its terms"),
        (r"atom    1 type  1   force =.*?\.\d{3}(\d)", "forces and total force"),
        (r"total   stress .*\n.*?\.\d{5}(\d)", "stress in Ry/bohr³ and in kbar"),
    ],
)
def test_a_text_that_contradicts_itself_does_not_serve_alone(run, line, what):
    folder = run("reference/al4_fcc_rattled")
    (folder / "out" / "pwscf.xml").unlink()
    assert read_pw_output(folder).source == "text"
    text = (folder / "pw.out").read_text()
    digit = re.search(line, text, re.M).span(1)
    other = str((int(text[slice(*digit)]) + 5) % 10)
    (folder / "pw.out").write_text(text[: digit[0]] + other + text[digit[1] :])
    with pytest.raises(InconsistentOutputError, match=what):
        read_pw_output(folder)


@pytest.mark.parametrize("name", ["efermi_wrong", "few_bands_smear_si"])
def test_bands_that_reach_up_to_the_fermi_level_are_too_few_in_a_text_too(run, name):
    folder = run(f"pw/{name}")
    (folder / "out" / "pwscf.xml").unlink()
    with pytest.raises(IncompleteOutputError, match="whether the bands were enough"):
        read_pw_output(folder)


def test_two_pw_x_that_wrote_one_file_are_no_label():
    """A serial pw.x under mpirun: each rank is a calculation of its own."""
    folder = FILES / "pw" / "mpi_serial_pw"
    with pytest.raises(InconsistentOutputError, match=r"2 pw\.x have written"):
        read_pw_output(folder)


# The prescribed parameters of a calculation


def prescribe(folder: Path, parameters: dict | None = None, **prescribed: object) -> None:
    start_history(
        folder,
        "al4",
        parameters or {},
        {"degauss": 0.02, "conv_thr": 1e-10, "max_force": 40.0, "min_distance_fraction": 0.5, **prescribed},
        list(LADDER),
    )


def test_a_label_at_the_prescribed_parameters_is_exact(run):
    folder = run("reference/al4_fcc_rattled")
    prescribe(folder)

    assert read_pw_output(folder).quality == "exact"


@pytest.mark.parametrize("prescribed", [{"degauss": 0.01}, {"conv_thr": 1e-11}])
def test_a_run_at_other_than_the_prescribed_parameters_is_intermediate(run, prescribed):
    folder = run("reference/al4_fcc_rattled")
    prescribe(folder, **prescribed)

    with pytest.raises(InconsistentOutputError, match="not the prescribed") as error:
        read_pw_output(folder)
    assert error.value.details == {"intermediate": True}


def test_a_softened_result_says_so(run):
    folder = run("reference/al4_fcc_rattled")
    prescribe(folder, {"softened": True}, degauss=0.01)

    result = read_pw_output(folder)

    assert (result.quality, result.degauss) == ("softened", 0.02)


def test_a_softened_result_has_the_prescribed_accuracy(run):
    folder = run("reference/al4_fcc_rattled")
    prescribe(folder, {"softened": True}, degauss=0.01, conv_thr=1e-12)

    with pytest.raises(InconsistentOutputError, match="conv_thr"):
        read_pw_output(folder)


def test_the_largest_force_is_the_configuration_s(run):
    folder = run("reference/al4_fcc_rattled")
    prescribe(folder, max_force=0.01)

    with pytest.raises(InconsistentOutputError, match=r"max_force = 0\.01"):
        read_pw_output(folder)


def test_a_damaged_history_is_no_label(run):
    folder = run("reference/al4_fcc_rattled")
    (folder / "history.json").write_text("{")

    with pytest.raises(ParserError, match=r"history\.json cannot be read"):
        read_pw_output(folder)


# Line ends, bytes


def test_line_ends_of_another_system_change_nothing(run):
    folder = run()
    whole = read_pw_output(folder).to_dict()
    for name in ("pw.out", "pw.in", "out/pwscf.xml", "exit_status"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))

    assert read_pw_output(folder).to_dict() == whole


def test_bytes_that_are_no_text_change_nothing(run):
    """E.g. an MPI library that writes into pw.out in another encoding."""
    folder = run()
    whole = read_pw_output(folder).to_dict()
    content = (folder / "pw.out").read_bytes()
    (folder / "pw.out").write_bytes(b"\xe9\xff warning \xb5\n" + content + b"\xff\xfe")

    assert "�" in read_output(folder)
    assert read_pw_output(folder).to_dict() == whole
