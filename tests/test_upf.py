"""One pseudopotential file: every format is read, and a damaged file is refused with its name."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from upf_texts import SCHEMA, SPIN_ORBIT_OF_VERSION_1, VERSION_1, version_2, write

from dftfactory.errors import PseudopotentialError
from dftfactory.upf import Pseudopotential, read_pseudopotential

REAL = Path("/usr/share/espresso/pseudo")


def refusal(path: Path) -> str:
    """The message of the refusal, once it is known to be one line that names the file."""
    with pytest.raises(PseudopotentialError) as refused:
        read_pseudopotential(path)
    assert str(path) in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.to_dict()["path"] == str(path)
    return refused.value.message


# Reading one file


def test_version_2_header_is_read_although_the_file_is_no_xml(tmp_path: Path) -> None:
    path = write(tmp_path, "Si.UPF", version_2())
    assert read_pseudopotential(path) == Pseudopotential(
        element="Si",
        path=path,
        type="NC",
        functional="PBE",
        z_valence=4.0,
        relativistic="scalar",
        ecutwfc=30.0,
        ecutrho=120.0,
        md5=hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
    )


def test_version_1_header_is_read_line_by_line(tmp_path: Path) -> None:
    read = read_pseudopotential(write(tmp_path, "Si.UPF", VERSION_1))
    assert (read.element, read.type, read.functional, read.z_valence) == ("Si", "US", "PBE", 4.0)
    assert (read.relativistic, read.ecutwfc, read.ecutrho) == ("scalar", 23.557, 371.902)


def test_schema_header_is_read_and_its_pp_info_is_not(tmp_path: Path) -> None:
    read = read_pseudopotential(write(tmp_path, "Si.UPF", SCHEMA))
    assert (read.element, read.type, read.functional, read.z_valence) == ("Si", "PAW", "PBESOL", 4.0)
    assert (read.relativistic, read.ecutwfc, read.ecutrho) == ("scalar", 44.0, 175.0)


def test_windows_line_ends_change_nothing_but_the_md5(tmp_path: Path) -> None:
    for text in (version_2(), VERSION_1, SCHEMA):
        unix = read_pseudopotential(write(tmp_path, "Si.UPF", text))
        (tmp_path / "Si.UPF").write_bytes(text.replace("\n", "\r\n").encode())
        windows = read_pseudopotential(tmp_path / "Si.UPF")
        assert (windows.element, windows.functional, windows.ecutrho) == (unix.element, unix.functional, unix.ecutrho)
        assert windows.md5 != unix.md5


@pytest.mark.parametrize(
    ("written", "functional"),
    [
        ("SLA PW PBE PBE", "PBE"),
        (" SLA  PW   PBX  PBC ", "PBE"),
        ("SLA-PW-PBX-PBC", "PBE"),
        ("sla+pw+pbx+pbc", "PBE"),
        ("PBE", "PBE"),
        ("pbe   ", "PBE"),
        (" SLA  PZ   NOGX NOGC", "PZ"),
        ("PZ", "PZ"),
        ("LDA                 ", "PZ"),
        ("SLA PW NOGX NOGC", "PW"),
        (" SLA  PW   PSX  PSC", "PBESOL"),
        ("PBESOL", "PBESOL"),
        (" SLA  LYP  B88  BLYP", "BLYP"),
        (" SLA  PW   TPSS TPSS", "TPSS"),
        ("scan", "SCAN"),
        ("vdw-df2", "VDW-DF2"),
        ("sla  pw rw86   vdw2", "SLA PW RW86 VDW2"),
    ],
)
def test_long_and_short_names_of_a_functional_are_equal(tmp_path: Path, written: str, functional: str) -> None:
    assert read_pseudopotential(write(tmp_path, "Si.UPF", version_2(functional=written))).functional == functional


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({"pseudo_type": "NC"}, "NC"),
        ({"pseudo_type": "SL"}, "NC"),
        ({"pseudo_type": "1/r"}, "NC"),
        ({"pseudo_type": "US", "is_ultrasoft": None}, "US"),
        ({"pseudo_type": "USPP", "is_ultrasoft": ".true."}, "US"),
        ({"pseudo_type": "PAW", "is_ultrasoft": "T", "is_paw": "T"}, "PAW"),
        ({"pseudo_type": "US", "is_ultrasoft": "true", "is_paw": "true"}, "PAW"),
    ],
)
def test_type_follows_the_flags_and_then_the_name(tmp_path: Path, header: dict[str, str | None], kind: str) -> None:
    assert read_pseudopotential(write(tmp_path, "Si.UPF", version_2(**header))).type == kind


def test_cutoffs_of_zero_or_absent_are_none(tmp_path: Path) -> None:
    for cutoff in ("0.000000000000E+00", None):
        read = read_pseudopotential(write(tmp_path, "Si.UPF", version_2(wfc_cutoff=cutoff, rho_cutoff=cutoff)))
        assert (read.ecutwfc, read.ecutrho) == (None, None)


def test_mesh_length_that_oncvpsp_calls_rho_cutoff_is_no_cutoff(tmp_path: Path) -> None:
    """ONCVPSP writes `rho_cutoff` = the last radius in bohr, about 15, and no `wfc_cutoff`."""
    oncvpsp = version_2(wfc_cutoff=None, rho_cutoff="   1.52700000000E+01")
    assert read_pseudopotential(write(tmp_path, "Si.upf", oncvpsp)).ecutrho is None


def test_fortran_double_precision_exponent_is_a_number(tmp_path: Path) -> None:
    assert read_pseudopotential(write(tmp_path, "Si.UPF", version_2(z_valence="0.4D+01"))).z_valence == 4.0


def test_spin_orbit_makes_a_file_fully_relativistic_in_every_format(tmp_path: Path) -> None:
    fully = [
        version_2(relativistic="full"),
        version_2(has_so="T"),
        version_2(has_so="1"),
        VERSION_1 + SPIN_ORBIT_OF_VERSION_1,
        VERSION_1.replace("Scalar-Relativistic", "Fully-Relativistic"),  # PP_ADDINFO cut off
        SCHEMA.replace("<has_so>false", "<has_so>true"),
    ]
    for text in fully:
        assert read_pseudopotential(write(tmp_path, "Si.UPF", text)).relativistic == "full"


# Refusing one file


def test_missing_file_and_folder_instead_of_file_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "Si.UPF")
    (tmp_path / "Ge.UPF").mkdir()
    assert "Is a directory" in refusal(tmp_path / "Ge.UPF")


def test_file_without_read_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answer is simulated, because root may read everything."""
    path = write(tmp_path, "Si.UPF", version_2())

    def deny(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", deny)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Si.UPF</body></html>\n",
        bytes(range(256)) * 40,
        b"    7    3    2   26   0.38508E+02\n",
    ],
    ids=["empty", "web page", "binary", "older format"],
)
def test_what_is_no_upf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "Si.UPF").write_bytes(content)
    assert f"is not UPF (no PP_HEADER in its {len(content)} bytes)" in refusal(tmp_path / "Si.UPF")


@pytest.mark.parametrize("text", [version_2(), VERSION_1, SCHEMA], ids=["version 2", "version 1", "schema"])
def test_file_cut_anywhere_is_refused(tmp_path: Path, text: str) -> None:
    """Every length from nothing to one byte short of the last tag's end, in steps of 7 bytes, and the special ones."""
    whole = len(text.rstrip())
    for size in {*range(0, whole, 7), whole // 2, len(text) - 900, whole - 1}:
        assert re.search("is cut|is not UPF", refusal(write(tmp_path, "Si.UPF", text[:size]))), size


def test_version_1_cut_in_its_spin_orbit_section_is_refused(tmp_path: Path) -> None:
    text = VERSION_1 + SPIN_ORBIT_OF_VERSION_1
    assert "is cut before its end" in refusal(write(tmp_path, "Si.UPF", text[: text.index("</PP_ADDINFO>")]))


def test_header_cut_between_lines_but_closed_is_refused(tmp_path: Path) -> None:
    start, end = VERSION_1.index("    4.00000000000      Z valence"), VERSION_1.index("</PP_HEADER>")
    assert "incomplete header" in refusal(write(tmp_path, "Si.UPF", VERSION_1[:start] + VERSION_1[end:]))


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        ({"element": None}, "no element"),
        ({"element": "  "}, "no element"),
        ({"z_valence": None}, "positive z_valence in its header, got None"),
        ({"z_valence": "0.0"}, "positive z_valence in its header, got 0.0"),
        ({"z_valence": "-4"}, "positive z_valence in its header, got -4"),
        ({"z_valence": "four"}, "number for z_valence in its header, got 'four'"),
        ({"z_valence": "NaN"}, "number for z_valence in its header, got 'NaN'"),
        ({"total_psenergy": "NaN"}, "number for total_psenergy in its header, got 'NaN'"),
        ({"wfc_cutoff": "Infinity"}, "number for wfc_cutoff in its header, got 'Infinity'"),
        ({"rho_cutoff": "*****"}, "number for rho_cutoff in its header, got '*****'"),
        ({"pseudo_type": "XX"}, "pseudo_type in its header, got 'XX'"),
        ({"pseudo_type": None}, "pseudo_type in its header, got ''"),
    ],
)
def test_header_without_a_usable_value_is_refused(tmp_path: Path, header: dict[str, str | None], cause: str) -> None:
    assert cause in refusal(write(tmp_path, "Si.UPF", version_2(**header)))


def test_version_1_header_with_a_word_for_a_number_is_refused(tmp_path: Path) -> None:
    text = VERSION_1.replace("    4.00000000000      Z valence", "    NaN                Z valence")
    assert "number for z_valence in its header, got 'NaN'" in refusal(write(tmp_path, "Si.UPF", text))


@pytest.mark.parametrize(
    "bad", ["NaN", "nan", "-NaN", "0.1E-003NaN", "+inf", "-Infinity", "**********************", "\0\0\0"]
)
@pytest.mark.parametrize("text", [version_2(), VERSION_1, SCHEMA], ids=["version 2", "version 1", "schema"])
def test_one_bad_number_in_the_data_is_refused_with_its_line(tmp_path: Path, text: str, bad: str) -> None:
    """The same words in PP_INFO, an author's name or an e-mail address are no numbers: see the files above."""
    middle = text.rindex("2.500000000000000E-003")
    path = write(tmp_path, "Si.UPF", text[:middle] + bad + text[middle + len("2.500000000000000E-003") :])
    line = text[:middle].count("\n") + 1
    assert f"instead of a number in line {line}:" in refusal(path)


def test_words_that_only_contain_nan_or_inf_are_no_numbers(tmp_path: Path) -> None:
    text = version_2().replace("</PP_MESH>", "</PP_MESH> <!-- Hunan information -->") + SPIN_ORBIT_OF_VERSION_1
    assert read_pseudopotential(write(tmp_path, "Si.UPF", text)).element == "Si"


# The files that come with Quantum ESPRESSO


@pytest.mark.pw
@pytest.mark.parametrize(
    ("file", "element", "kind", "functional", "z_valence", "relativistic", "ecutwfc", "ecutrho"),
    [
        ("Si.pz-vbc.UPF", "Si", "NC", "PZ", 4.0, "no", None, None),
        ("H.blyp-vbc.UPF", "H", "NC", "BLYP", 1.0, "no", 60.0, 240.0),
        ("Fe.pbe-mt_fhi.UPF", "Fe", "NC", "PBE", 8.0, "no", None, None),  # SL
        ("H.coulomb-ae.UPF", "H", "NC", "PBE", 1.0, "no", None, None),  # 1/r
        ("C.tpss-mt.UPF", "C", "NC", "TPSS", 4.0, "no", None, None),
        ("Au.pz-rrkjus_aewfc.UPF", "Au", "US", "PZ", 11.0, "scalar", 22.78263766196461, 296.5868509776528),
        ("B.pbe-n-kjpaw_psl.0.1.UPF", "B", "US", "PBE", 3.0, "scalar", 42.58873786381, 170.3549514552),  # and not PAW
        ("N.pbe-kjpaw.UPF", "N", "PAW", "PBE", 5.0, "scalar", 38.63562444717012, 154.5424977886805),
        ("Fe.pbesol-spn-kjpaw_psl.1.0.0.UPF", "Fe", "PAW", "PBESOL", 16.0, "scalar", 70.76600131311, 496.4101169282),
        ("C_3.98148.UPF", "C", "NC", "PZ", 3.98148, "scalar", None, None),  # version 1
        ("Rhs.pbe-rrkjus_lb.UPF", "Rh", "US", "PBE", 10.0, "scalar", None, None),  # version 1
        ("Ni.rel-pbe-nd-rrkjus.UPF", "Ni", "US", "PBE", 10.0, "full", 23.557, 371.902),  # version 1
        ("Si_r.upf", "Si", "NC", "PBE", 4.0, "full", None, None),  # ONCVPSP
    ],
)
def test_real_header_is_read_as_a_person_reads_it(
    file: str,
    element: str,
    kind: str,
    functional: str,
    z_valence: float,
    relativistic: str,
    ecutwfc: float | None,
    ecutrho: float | None,
) -> None:
    read = read_pseudopotential(REAL / file)
    assert (read.element, read.type, read.functional) == (element, kind, functional)
    assert (read.z_valence, read.relativistic) == (z_valence, relativistic)
    assert (read.ecutwfc, read.ecutrho) == (ecutwfc, ecutrho)


@pytest.mark.pw
def test_every_real_upf_is_read_and_agrees_with_its_own_pp_info() -> None:
    """PP_INFO repeats element, type and relativity for a human reader, which read_pseudopotential does not look at."""
    files = sorted(path for path in REAL.iterdir() if path.suffix.lower() == ".upf")
    assert files
    for path in files:
        read = read_pseudopotential(path)
        info = path.read_text(errors="replace").partition("</PP_INFO>")[0]
        if kind := re.search(r"Pseudopotential type: *(\S+)", info):
            assert {"NC": "NC", "SL": "NC", "1/r": "NC", "US": "US", "USPP": "US", "PAW": "PAW"}[kind[1]] == read.type
        if element := re.search(r"Element: *(\S+)", info):
            assert element[1] == read.element
        if relativity := re.search(r"generated with a (\w+)-Relativistic", info):
            assert {"Fully": "full", "Scalar": "scalar", "Non": "no"}[relativity[1]] == read.relativistic, path


@pytest.mark.pw
@pytest.mark.parametrize("file", ["H_US.van", "HUSPBE.RRKJ3", "Si.bhs"])
def test_real_file_of_an_older_format_is_refused(file: str) -> None:
    assert "is not UPF" in refusal(REAL / file)


@pytest.mark.pw
@pytest.mark.parametrize("file", ["N.pbe-kjpaw.UPF", "Si.pz-vbc.UPF", "C.UPF"])
def test_real_file_is_refused_cut_or_with_one_nan(tmp_path: Path, file: str) -> None:
    text = (REAL / file).read_text()
    for size in (len(text) // 2, len(text) - 900):
        assert "is cut" in refusal(write(tmp_path, file, text[:size]))
    rhoatom = text.index("\n", text.index("<PP_RHOATOM")) + 1
    number = re.compile(r"\S+").search(text, rhoatom)
    assert number
    assert "'nan' instead of a number" in refusal(
        write(tmp_path, file, text[: number.start()] + "NaN" + text[number.end() :])
    )
