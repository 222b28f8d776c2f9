from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from dftfactory.errors import IncompleteOutputError, NonFiniteError
from dftfactory.pw_xml import DISK_PAGE, read_xml

FILES = Path(__file__).parent / "files"
FE = (FILES / "reference" / "fe2_bcc_rattled" / "out" / "pwscf.xml").read_text()


def xml_of(folder: Path, content: str | bytes):
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "pwscf.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_xml(folder)


def test_every_block_is_read_in_hartree_atomic_units(tmp_path):
    xml = xml_of(tmp_path, FE)

    # Read by eye from the file; the text has twice the energy, in Ry: -111.61536191, 0.00133406, 8.2e-12.
    assert xml.created == datetime(2026, 11, 22, 17, 5, 6)
    assert xml.converged
    assert 2 * xml.energy == pytest.approx(-111.61536191, abs=6e-9)
    assert 2 * xml.smearing == pytest.approx(0.00133406, abs=6e-9)
    assert 2 * xml.scf_error == pytest.approx(8.2e-12, abs=6e-14)
    assert xml.fermi_energy == 4.707529026542892e-1
    assert (2 * xml.forces[0]).tolist() == pytest.approx([0.02034991, 0.01167384, 0.01577323], abs=6e-9)
    assert (2 * xml.stress[0]).tolist() == pytest.approx([0.00005628, -0.00004527, 0.00004810], abs=6e-9)
    assert xml.kinds == ("Fe", "Fe")
    assert xml.positions[0].tolist() == [-1.365957341145777e-1, -5.984212575209458e-2, -4.096089070618199e-2]
    assert xml.cell[2].tolist() == [-1.621385014928911e-2, 3.242770029857822e-2, 5.485685967176147e0]
    assert (xml.total_magnetization, xml.absolute_magnetization) == pytest.approx((5.34, 5.69), abs=0.006)


def test_each_spin_channel_has_a_highest_band(tmp_path):
    """Fe has 12 bands and 14 k-points: the list of a k-point holds 24 occupations, up and down."""
    xml = xml_of(tmp_path, FE)

    assert xml.n_bands == 12
    assert len(xml.top_occupations) == 2 * 14


def test_an_insulator_has_no_magnetization_and_full_bands(tmp_path):
    xml = read_xml(FILES / "reference" / "si2_sym")

    assert (xml.total_magnetization, xml.absolute_magnetization) == (None, None)
    assert set(xml.top_occupations) == {1.0}
    assert xml.smearing == 0.0


def test_the_higher_one_of_two_fermi_levels_counts(tmp_path):
    two = FE.replace(
        "<fermi_energy>4.707529026542892e-1</fermi_energy>", "<two_fermi_energies>4.1e-1 5.2e-1</two_fermi_energies>"
    )
    assert xml_of(tmp_path, two).fermi_energy == 0.52


@pytest.mark.parametrize(
    "element", ["created", "etot", "forces", "stress", "a2", "scf_error", "atomic_positions", "output"]
)
def test_a_whole_xml_without_one_of_its_blocks_is_unusable(tmp_path, element):
    damaged = FE.replace(f"<{element}", "<gone").replace(f"</{element}>", "</gone>")

    assert xml_of(tmp_path, damaged) is None


@pytest.mark.parametrize("content", ["", "\0" * 1000, "<a/>", "no xml at all", b"\xff\xfe\x00"])
def test_what_is_no_xml_is_unusable(tmp_path, content):
    assert xml_of(tmp_path, content) is None


def test_no_xml_is_unusable(tmp_path):
    assert read_xml(tmp_path) is None


def test_an_xml_cut_anywhere_is_unusable(tmp_path):
    content = FE.encode()
    end_of_content = content.rindex(b"</qes:espresso>") + len(b"</qes:espresso>") - 1
    for end in [*range(1, end_of_content, 1013), end_of_content]:
        assert end % DISK_PAGE == 0 or xml_of(tmp_path, content[:end]) is None


def test_an_xml_cut_at_the_end_of_a_page_was_cut_by_a_full_disk(tmp_path):
    with pytest.raises(IncompleteOutputError, match="the disk was full") as error:
        xml_of(tmp_path, FE.encode()[: 3 * DISK_PAGE])
    assert error.value.details["disk_full"]


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity", "****************"])
@pytest.mark.parametrize("element", ["<etot>", "<scf_error>", '<forces rank="2" dims="3 2" order="F">', "<a1>"])
def test_one_number_that_is_none_is_an_error_of_its_own(tmp_path, bad, element):
    """It must not fall back to the text: both files would have to be wrong, or this one is damaged."""
    output = FE.index("<output>")
    start = FE.index(element, output) + len(element)
    first = FE[start:].split()[0].partition("<")[0]
    damaged = FE[:start] + FE[start:].replace(first, bad, 1)

    with pytest.raises(NonFiniteError, match=r"pwscf\.xml has NaN or Inf"):
        xml_of(tmp_path, damaged)
