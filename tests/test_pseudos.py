"""The pseudopotentials of a structure: one file for each element, fitting together, the same on every node."""

from __future__ import annotations

from pathlib import Path

import pytest
from upf_texts import version_2, write

from dftfactory.errors import PseudopotentialError
from dftfactory.pseudos import (
    find_pseudopotential,
    load_pseudopotentials,
    needs_dense_charge_grid,
    verify_md5,
)

REAL = Path("/usr/share/espresso/pseudo")


# Finding the file of an element


def test_file_is_found_by_element_in_any_case(tmp_path: Path) -> None:
    for name in ("C.upf", "c_pbe_v1.2.uspp.F.UPF", "C-PBE.Upf", "C"):
        folder = tmp_path / name
        folder.mkdir()
        write(folder, name if name != "C" else "C.pbe-n.UPF", version_2(element=" C"))
        assert find_pseudopotential("C", folder).element == "C"


def test_cobalt_is_not_taken_for_carbon(tmp_path: Path) -> None:
    write(tmp_path, "Co.pbe-spn.UPF", version_2(element="Co"))
    carbon = write(tmp_path, "C.pbe-n.UPF", version_2(element="C"))
    assert find_pseudopotential("C", tmp_path).path == carbon
    carbon.unlink()
    with pytest.raises(PseudopotentialError, match="no pseudopotential for C in") as refused:
        find_pseudopotential("C", tmp_path)
    assert refused.value.details["rejected"] == []


def test_several_candidates_are_listed_with_the_way_to_choose(tmp_path: Path) -> None:
    write(tmp_path, "Si.pbe.UPF", version_2())
    write(tmp_path, "si_pbe.upf", version_2())
    with pytest.raises(PseudopotentialError) as refused:
        find_pseudopotential("Si", tmp_path)
    assert "Si.pbe.UPF, si_pbe.upf" in refused.value.message
    assert "dft.yaml, pseudopotentials: {Si: FILE}" in refused.value.message
    assert refused.value.details["candidates"] == ["Si.pbe.UPF", "si_pbe.upf"]
    assert find_pseudopotential("Si", tmp_path, "si_pbe.upf").path == tmp_path / "si_pbe.upf"


def test_damaged_candidate_matters_only_when_no_other_is_left(tmp_path: Path) -> None:
    write(tmp_path, "Si.old.UPF", "")
    write(tmp_path, "Si.wrong.UPF", version_2(element="Ge"))
    with pytest.raises(PseudopotentialError) as refused:
        find_pseudopotential("Si", tmp_path)
    assert "Si.old.UPF is not UPF" in refused.value.message
    assert "Si.wrong.UPF is for Ge, not for Si" in refused.value.message
    good = write(tmp_path, "Si.new.UPF", version_2())
    assert find_pseudopotential("Si", tmp_path).path == good


def test_named_file_may_have_any_name_but_not_another_element(tmp_path: Path) -> None:
    write(tmp_path, "best.dat", version_2())
    assert find_pseudopotential("Si", tmp_path, "best.dat").element == "Si"
    with pytest.raises(PseudopotentialError, match=r"best\.dat is for Si, not for Ge"):
        find_pseudopotential("Ge", tmp_path, "best.dat")


@pytest.mark.parametrize("file", ["", ".", "..", "../Si.UPF", "sub/Si.UPF", "sub\\Si.UPF", "Si.UPF/", "Si.UPF\0"])
def test_named_file_outside_of_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    write(tmp_path, "Si.UPF", version_2())
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "Si.UPF", version_2())
    for name in (file, str(tmp_path / "Si.UPF")):
        with pytest.raises(PseudopotentialError, match="must be a bare file name"):
            find_pseudopotential("Si", tmp_path / "sub", name)


# Loading those of a whole structure


def test_all_elements_are_loaded_once_in_sorted_order(tmp_path: Path) -> None:
    for element in ("Si", "C", "O"):
        write(tmp_path, f"{element}.UPF", version_2(element=element))
    write(tmp_path, "O.other.UPF", version_2(element="O"))
    loaded = load_pseudopotentials(["Si", "O", "C", "O", "Si"], tmp_path, {"O": "O.UPF", "Xe": "Xe.UPF"})
    assert [(element, entry.path.name) for element, entry in loaded.items()] == [
        ("C", "C.UPF"),
        ("O", "O.UPF"),
        ("Si", "Si.UPF"),
    ]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "C.UPF", version_2(element="C", functional="PZ"))
    write(tmp_path, "Ge.UPF", "")
    write(tmp_path, "O.UPF", version_2(element="O", has_so="T"))
    write(tmp_path, "Si.1.UPF", version_2())
    write(tmp_path, "Si.2.UPF", version_2())
    with pytest.raises(PseudopotentialError) as refused:
        load_pseudopotentials(["C", "Ge", "H", "O", "Si"], tmp_path)
    problems = refused.value.to_dict()["problems"]
    expected = [
        "no pseudopotential for Ge",
        "no pseudopotential for H",
        "2 pseudopotentials for Si",
        "different functionals (C → PZ, O → PBE)",
        "spin-orbit is not supported",
    ]
    assert [text in problem for text, problem in zip(expected, problems, strict=True)] == [True] * 5
    assert all(problem in refused.value.message for problem in problems)


def test_same_functional_in_two_spellings_is_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, "C.UPF", version_2(element="C", functional="SLA PW PBE PBE"))
    write(tmp_path, "Si.UPF", version_2(functional="PBE"))
    assert {entry.functional for entry in load_pseudopotentials(["C", "Si"], tmp_path).values()} == {"PBE"}


def test_missing_folder_is_one_problem_whatever_the_elements(tmp_path: Path) -> None:
    with pytest.raises(PseudopotentialError, match=r"folder of pseudopotentials .* cannot be read") as refused:
        load_pseudopotentials(["C", "Si"], tmp_path / "nowhere", {"Si": "Si.UPF"})
    assert refused.value.details == {"folder": str(tmp_path / "nowhere")}


# The identity of the files on another node


def test_file_that_differs_by_one_byte_is_refused_by_md5(tmp_path: Path) -> None:
    write(tmp_path, "Si.UPF", version_2())
    first = load_pseudopotentials(["Si"], tmp_path)
    expected = {"Si": first["Si"].md5, "Xe": "no such element in this structure"}
    verify_md5(first, expected)
    write(tmp_path, "Si.UPF", version_2() + " ")
    second = load_pseudopotentials(["Si"], tmp_path)
    with pytest.raises(PseudopotentialError) as refused:
        verify_md5(second, expected)
    assert all(text in refused.value.message for text in ("of Si", "Si.UPF", first["Si"].md5, second["Si"].md5))


def test_element_without_an_expected_md5_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "Si.UPF", version_2())
    with pytest.raises(PseudopotentialError, match="expected none"):
        verify_md5(load_pseudopotentials(["Si"], tmp_path), {})


def test_one_augmented_pseudopotential_needs_the_dense_charge_grid(tmp_path: Path) -> None:
    write(tmp_path, "Si.UPF", version_2())
    write(tmp_path, "O.UPF", version_2(element="O", pseudo_type="US", is_ultrasoft="T"))
    write(tmp_path, "C.UPF", version_2(element="C", pseudo_type="PAW", is_paw="T"))
    assert not needs_dense_charge_grid(load_pseudopotentials(["Si"], tmp_path))
    assert needs_dense_charge_grid(load_pseudopotentials(["Si", "O"], tmp_path))
    assert needs_dense_charge_grid(load_pseudopotentials(["Si", "C"], tmp_path))


# The files that come with Quantum ESPRESSO


@pytest.mark.pw
def test_real_folder_has_one_germanium_and_many_carbons() -> None:
    assert find_pseudopotential("Ge", REAL).path.name == "Ge.pbe-kjpaw.UPF"
    with pytest.raises(PseudopotentialError) as refused:
        find_pseudopotential("C", REAL)
    assert "Co.pbesol-spn-rrkjus_psl.0.3.1.UPF" not in refused.value.message
    assert {"C.UPF", "C_3.98148.UPF", "C.tpss-mt.UPF"} <= set(refused.value.details["candidates"])
