from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from dftfactory.pw_text import last_run, parse_text

FILES = Path(__file__).parent / "files"


@pytest.fixture
def fe() -> str:
    return (FILES / "reference" / "fe2_bcc_rattled" / "pw.out").read_text()


def test_every_block_of_an_output_is_read_in_the_units_that_are_printed(fe):
    found = parse_text(fe)

    # Read by eye from the file.
    assert found.version == "6.7MaX"
    assert found.started == datetime(2026, 11, 22, 17, 4, 59)
    assert found.ended == datetime(2026, 11, 22, 17, 5, 6)
    assert (found.job_done, found.converged) == (True, True)
    assert (found.n_atoms, found.n_ranks, found.n_kpoints, found.iterations) == (2, 1, 14, 18)
    assert (found.estimated_memory, found.wall_time) == (44.35, 7.16)
    assert (found.energy, found.smearing, found.scf_error) == (-111.61536191, 0.00133406, 8.2e-12)
    assert found.fermi_energy == 12.8098
    assert (found.total_magnetization, found.absolute_magnetization) == (5.34, 5.69)
    assert found.forces.tolist() == [[0.02034991, 0.01167384, 0.01577323], [-0.02034991, -0.01167384, -0.01577323]]
    assert found.scf_correction == 1e-6
    assert found.stress[0].tolist() == [0.00005628, -0.00004527, 0.00004810]
    assert found.stress[2].tolist() == [0.00004810, -0.00007142, 0.00003334]
    assert found.kinds == ("Fe", "Fe")
    np.testing.assert_allclose(found.positions[1], np.multiply(5.469539, [0.4942758, 0.4958310, 0.5096667]))
    np.testing.assert_allclose(found.cell[0], np.multiply(5.469539, [0.999988, 0.003953, -0.002964]))
    assert len(found.scf_accuracy) == 18
    assert found.scf_accuracy[0] == 0.52411773


def test_the_first_nine_days_of_a_month_are_printed_with_a_blank(fe):
    text = fe.replace("starts on 22Nov2026", "starts on  3Nov2026").replace("22Nov2026", " 3Nov2026")

    assert parse_text(text).started == datetime(2026, 11, 3, 17, 4, 59)
    assert parse_text(text).ended == datetime(2026, 11, 3, 17, 5, 6)


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@pytest.mark.parametrize("month", MONTHS)
def test_all_months_are_known(fe, month):
    assert parse_text(fe.replace("22Nov2026", f"22{month}2026")).started.month == MONTHS.index(month) + 1


def test_a_date_that_is_none_is_no_start(fe):
    assert parse_text(fe.replace("22Nov2026 at 17: 4:59", "31Feb2026 at 17: 4:59")).started is None


@pytest.mark.parametrize(
    ("lines", "ranks"),
    [
        ("     Serial version\n", 1),
        ("     Parallel version (MPI), running on    16 processors\n", 16),
        (
            "     Parallel version (MPI & OpenMP), running on       8 processor cores\n"
            "     Number of MPI processes:                 4\n"
            "     Threads/MPI process:                     2\n",
            4,
        ),
    ],
)
def test_ranks_are_not_threads(fe, lines, ranks):
    assert parse_text(fe.replace("     Parallel version (MPI), running on     1 processors\n", lines)).n_ranks == ranks


@pytest.mark.parametrize(
    ("printed", "seconds"), [("7.16s", 7.16), ("1m23.50s", 83.5), ("2h 5m", 7500.0), ("1d 3h 2m", 97320.0)]
)
def test_wall_time_in_all_its_forms(fe, printed, seconds):
    text = fe.replace("PWSCF        :      4.76s CPU      7.16s WALL", f"PWSCF        :   4.76s CPU   {printed} WALL")
    assert parse_text(text).wall_time == pytest.approx(seconds)


def test_large_forces_touch_each_other_and_are_read(fe):
    text = fe.replace("     0.02034991    0.01167384    0.01577323", "-10000.00000001-20000.00000002-30000.00000003")

    assert parse_text(text).forces[0].tolist() == [-10000.00000001, -20000.00000002, -30000.00000003]


def test_forces_that_overflow_are_nan_and_not_missing(fe):
    text = fe.replace("     0.02034991    0.01167384    0.01577323", "*" * 28 + "    0.01577323")

    assert np.isnan(parse_text(text).forces[0]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "damaged",
    [
        "force =     0.02034991    0.01167384",  # a component is missing; its neighbour must not be split in two
        "force =     0.02034991    0.01167384    0.015",
        "force =     0.02034991    0.01167384    0.01577323    0.1",
        "force =     0.02034991    0.0116\0\0\0\0    0.01577323",
    ],
)
def test_a_damaged_line_of_forces_is_no_block_of_forces(fe, damaged):
    assert parse_text(fe.replace("force =     0.02034991    0.01167384    0.01577323", damaged)).forces is None


def test_a_missing_atom_is_no_block_of_forces(fe):
    """pw.x 7 lists the contributions below, in the same form: they must not fill the gap."""
    text = (FILES / "pw" / "ok_si2_qe72" / "pw.out").read_text()
    first = "     atom    1 type  1   force =    -0.04553637   -0.03184621    0.02368231\n"
    assert first in text

    assert parse_text(text).forces[0].tolist() == [-0.04553637, -0.03184621, 0.02368231]
    assert parse_text(text.replace(first, "")).forces is None


@pytest.mark.parametrize(
    "damaged", ["   0.00005628  -0.00004527            8.28       -6.66        7.08", "   0.00005628", ""]
)
def test_a_damaged_line_of_stress_is_no_stress(fe, damaged):
    whole = "   0.00005628  -0.00004527   0.00004810            8.28       -6.66        7.08"
    assert parse_text(fe.replace(whole, damaged)).stress is None


def test_memory_comes_in_several_units(fe):
    assert parse_text(fe.replace("44.35 MB", "44.35 GB")).estimated_memory == 44.35 * 1024


def test_an_output_cut_anywhere_is_read_as_far_as_it_goes(fe):
    whole = parse_text(fe)
    for end in range(0, len(fe), 97):
        found = parse_text(fe[:end])
        assert not found.job_done
        assert found.scf_accuracy[:-1] == whole.scf_accuracy[: max(0, len(found.scf_accuracy) - 1)]
        assert found.iterations <= whole.iterations
        assert found.forces is None or np.array_equal(found.forces, whole.forces)
        assert found.stress is None or np.array_equal(found.stress, whole.stress)
        assert found.energy in (None, whole.energy)


def test_nothing_at_all_is_nothing_found():
    found = parse_text("")
    assert (found.started, found.energy, found.forces, found.stress, found.positions) == (None,) * 5
    assert (found.job_done, found.converged, found.iterations, found.scf_accuracy) == (False, False, 0, ())


# What tells of a run that went wrong


def test_the_last_run_of_a_file_begins_at_its_own_header(fe):
    other = (FILES / "pw" / "sigkill_mid_scf" / "pw.out").read_text()

    assert last_run(other + fe) == last_run(fe)
    assert parse_text(last_run(other + fe)).energy == -111.61536191
    assert parse_text(last_run(fe + other)).job_done is False
    assert last_run("no header") == "no header"
    assert parse_text(last_run(fe)).n_ends == 1


def test_pseudopotentials_that_were_really_read(fe):
    found = parse_text(fe)
    assert [Path(file).suffix for file in found.files] == [".UPF"]
    assert found.valences == {"Fe": 8.0}
    assert len(found.md5[0]) == 32


def test_the_charge_drift_is_that_of_the_last_iteration():
    """7.2, from the file: 8.00005450 where 8.00000000 were expected."""
    text = (FILES / "pw" / "charge_drift_qe72" / "pw.out").read_text()
    assert parse_text(text).charge_drift == pytest.approx(5.45e-5, abs=1e-10)
    assert parse_text(text.replace("8.00005450", "8.00000000")).charge_drift == 0
    assert parse_text(text.replace("!    total", "!    tot")).charge_drift == 0


@pytest.mark.parametrize("name", ["reference/fe2_bcc_rattled", "reference/al4_fcc_rattled", "pw/ok_si2_qe72"])
def test_what_the_text_repeats_agrees(name):
    """The energy is the sum of its terms, and the total force the root of all squares; 1 Ry/bohr³ is 147105.08 kbar."""
    found = parse_text((FILES / name / "pw.out").read_text())
    assert found.energy_terms == pytest.approx(found.energy, abs=5e-8)
    assert found.total_force == pytest.approx(np.linalg.norm(found.forces), abs=1e-6)
    np.testing.assert_allclose(found.stress_kbar, found.stress * 147105.08, atol=0.0066)


def test_the_terms_of_a_hybrid_functional_are_not_all_of_its_energy():
    text = (FILES / "pw" / "ok_hybrid" / "pw.out").read_text()
    assert text.count("!    total energy") == 6
    assert parse_text(text).energy_terms is None
    assert parse_text(text).energy == -14.6239491


def test_the_highest_band_of_each_k_point_and_spin(fe):
    """Two spins at fourteen k-points."""
    found = parse_text(fe)
    assert len(found.top_levels) == 28
    assert min(found.top_levels) > found.fermi_energy


def test_cards_that_pw_x_did_not_know():
    text = (FILES / "pw" / "hubbard_card_ignored" / "pw.out").read_text()
    assert parse_text(text).ignored == ("HUBBARD (ATOMIC)", "U FE-3D 3.0")
