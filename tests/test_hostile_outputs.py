"""Outputs that no pw.x has written: the parser neither hangs nor breaks, and gives no other label.

`tests/benchmarks/fuzz_outputs.py` makes as many of them as one likes.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dftfactory import parsers, pw_xml
from dftfactory.errors import IncompleteOutputError, InconsistentOutputError, InputError, ParserError
from dftfactory.failures import examine
from dftfactory.parsers import read_output, read_pw_output
from dftfactory.pw_in import read_pw_input

HERE = Path(__file__).parent
AL = "reference/al4_fcc_rattled"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a recorded run; without its XML where the text is to serve alone."""

    def copy(name: str = AL, *, text_alone: bool = False) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(HERE / "files" / name, folder)
        if text_alone:
            (folder / "out" / "pwscf.xml").unlink()
        return folder

    return copy


def change(path: Path, pattern: str, replacement: str) -> None:
    text, number = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.M)
    assert number == 1
    path.write_text(text)


# Size


@pytest.mark.parametrize("piece", [" ", "9", "*", "1.", "a", "0.0 ", "(", "=", "-0.00000000", "a: "])
def test_a_line_of_any_length_is_read_in_no_time(run: Callable[..., Path], piece: str) -> None:
    folder = run()
    for place in (r"(?<=celldm\(1\)=)", r"(?<=Total force =)", r"^!", r"(?<=PseudoPot. # 1)", r"(?<=PWSCF        :)"):
        change(folder / "pw.out", place, (piece * (300_000 // len(piece))).replace("\\", r"\\"))
    with pytest.raises(ParserError):
        read_pw_output(folder)
    examine(folder)


def test_of_an_endless_output_only_the_end_is_read(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole of any size, such as a file system leaves after a crash, takes no memory."""
    folder = run()
    with (folder / "pw.out").open("r+b") as file:
        file.truncate(2**36)
        file.seek(2**36)
        file.write(b"\nMaximum CPU time exceeded\n")
    monkeypatch.setattr(parsers, "MAX_OUTPUT", 10_000)
    assert len(read_output(folder)) <= 10_000
    assert read_output(folder).endswith("Maximum CPU time exceeded\n")
    with pytest.raises(IncompleteOutputError, match="without its beginning"):
        read_pw_output(folder)


def test_an_endless_xml_is_not_read(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run("pw/ok_si2_mpi2")
    with (folder / "out" / "pwscf.xml").open("r+b") as file:
        file.truncate(2**36)
    assert read_pw_output(folder).source == "text"


def test_line_ends_of_another_system_are_line_ends(run: Callable[..., Path]) -> None:
    folder = run()
    energy = read_pw_output(folder).energy
    (folder / "pw.out").write_bytes((folder / "pw.out").read_bytes().replace(b"\n", b"\r\n"))
    assert read_pw_output(folder).energy == energy


@pytest.mark.parametrize("number", ["99999999999", "9" * 900, "0"])
def test_a_wrong_number_of_atoms_takes_no_memory(run: Callable[..., Path], number: str) -> None:
    folder = run(text_alone=True)
    change(folder / "pw.out", r"(?<=number of atoms/cell      = ) *\d+", number)
    with pytest.raises(IncompleteOutputError):
        read_pw_output(folder)


# XML


def test_entities_in_an_xml_are_not_followed(run: Callable[..., Path]) -> None:
    """Nine lines of them would become a gigabyte, and one could name any file of the machine."""
    folder = run("pw/ok_si2_mpi2")
    bomb = '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd"><!ENTITY a "1.0">]>'
    path = folder / "out" / "pwscf.xml"
    path.write_text(path.read_text().replace("?>", f"?>{bomb}", 1).replace("<etot>", "<etot>&f;", 1))
    assert pw_xml.read_xml(folder) is None
    assert read_pw_output(folder).source == "text"


def test_an_xml_of_any_depth_is_read(run: Callable[..., Path]) -> None:
    folder = run("pw/ok_si2_mpi2")
    energy = read_pw_output(folder).energy
    path = folder / "out" / "pwscf.xml"
    path.write_text(path.read_text().replace("<output>", "<output>" + "<a>" * 100_000 + "</a>" * 100_000, 1))
    assert read_pw_output(folder).energy == energy


def test_more_levels_than_the_xml_says_are_no_levels(run: Callable[..., Path]) -> None:
    folder = run("pw/ok_si2_mpi2")
    change(
        folder / "out" / "pwscf.xml", r"(?<=<eigenvalues size=\"8\">)|(?<=<eigenvalues size=\"4\">)", "\n0.1 " * 1000
    )
    assert read_pw_output(folder).source == "text"


def test_a_smearing_energy_of_another_sign_is_noticed(run: Callable[..., Path]) -> None:
    """It is part of the label, and not of the total energy."""
    folder = run("reference/fe2_bcc_sym")
    change(folder / "out" / "pwscf.xml", "<demet>-", "<demet>")
    with pytest.raises(InconsistentOutputError, match="smearing energy"):
        read_pw_output(folder)


# A text that serves alone


@pytest.mark.parametrize("atom", [1, 2, 3, 4])
def test_another_sign_of_a_force_is_noticed(run: Callable[..., Path], atom: int) -> None:
    """It changes nothing in the total force, which is the root of a sum of squares."""
    folder = run(text_alone=True)
    text = (folder / "pw.out").read_text()
    turned = re.sub(
        rf"(?<=atom    {atom} type  1   force = )( *)(-?)(\d)",
        lambda match: f"{match[1]}{'' if match[2] else '-'}{match[3]}",
        text,
    )
    assert turned != text
    (folder / "pw.out").write_text(turned)
    with pytest.raises(InconsistentOutputError, match="sum of zero"):
        read_pw_output(folder)


def test_a_text_without_the_terms_of_its_energy_does_not_serve_alone(run: Callable[..., Path]) -> None:
    folder = run(text_alone=True)
    change(folder / "pw.out", "sum of the following terms", "sum")
    with pytest.raises(IncompleteOutputError, match="terms of the total energy"):
        read_pw_output(folder)


def test_rows_of_the_stress_in_another_order_are_noticed(run: Callable[..., Path]) -> None:
    """Of a cubic crystal the tensor stays symmetric, and only the pressure tells."""
    folder = run("pw/syn_xml_zero")
    lines = (folder / "pw.out").read_text().split("\n")
    [start] = [number for number, line in enumerate(lines) if "total   stress" in line]
    lines[start + 2], lines[start + 3] = lines[start + 3], lines[start + 2]
    (folder / "pw.out").write_text("\n".join(lines))
    with pytest.raises(InconsistentOutputError, match="pressure"):
        read_pw_output(folder)


def test_a_lost_fermi_level_shows_in_the_text_too(run: Callable[..., Path]) -> None:
    """With a gap there is no smearing energy; pw.x 6.7 has put the level where cold smearing counts right as well."""
    folder = run("pw/fermi_level_outside_gap", text_alone=True)
    with pytest.raises(InconsistentOutputError, match=r"gap of .* eV, and yet the smearing energy"):
        read_pw_output(folder)


# Inputs


@pytest.mark.parametrize("keyword", ["degauss", "conv_thr"])
def test_an_input_that_was_changed_after_the_run_is_noticed(run: Callable[..., Path], keyword: str) -> None:
    folder = run()
    change(folder / "pw.in", rf"^ *{keyword} = .*\n", "")
    with pytest.raises(InconsistentOutputError, match=f"{keyword} is .* in pw.in"):
        read_pw_output(folder)


@pytest.mark.parametrize("word", ["(", ")(", "((1)", "1)", "2*(3"])
def test_an_open_bracket_in_a_position_is_an_error(run: Callable[..., Path], word: str) -> None:
    """ASE looks for its other half for ever, and takes all memory meanwhile."""
    folder = run()
    change(folder / "pw.in", r"(?<=^Al )0\.1114136886", word)
    with pytest.raises(InputError, match="bracket"):
        read_pw_input(folder / "pw.in")


@pytest.mark.parametrize("number", ["1.0E+999", "-1.0E+999"])
@pytest.mark.parametrize("place", [r"(?<=^Al )0\.1114136886", r"^4\.0986000000"])
def test_a_structure_that_is_not_finite_is_no_input(run: Callable[..., Path], number: str, place: str) -> None:
    """An infinite cell would make any difference to the output a small one."""
    folder = run()
    change(folder / "pw.in", place, number)
    with pytest.raises(InputError, match="not finite"):
        read_pw_input(folder / "pw.in")
    with pytest.raises(InconsistentOutputError):
        read_pw_output(folder)


# history.json


@pytest.mark.parametrize(
    "history",
    [
        {"prescribed": 3},
        {"prescribed": []},
        {"prescribed": {}},
        {"prescribed": {"degauss": "0.02", "conv_thr": 1e-9, "max_force": 40.0}},
        {"prescribed": {"degauss": 0.02, "conv_thr": 1e-9, "max_force": None}},
        {"prescribed": {"degauss": 0.02, "conv_thr": 1e-9, "max_force": 40.0, "md5": "x"}},
        {"attempts": [{"parameters": 3}]},
    ],
)
def test_a_damaged_history_is_no_permission(run: Callable[..., Path], history: dict[str, object]) -> None:
    folder = run()
    good = {"degauss": 0.02, "conv_thr": 1e-10, "max_force": 40.0}
    whole = {"prescribed": good, "configured": {}, "ladder": None, "attempts": [{"parameters": {}}]}
    (folder / "history.json").write_text(json.dumps(whole))
    assert read_pw_output(folder).quality == "exact"
    (folder / "history.json").write_text(json.dumps({**whole, **history}))
    with pytest.raises(ParserError, match="does not say what is prescribed"):
        read_pw_output(folder)


# All at once


def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_outputs", HERE / "benchmarks" / "fuzz_outputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_few_hundred_damaged_outputs_are_refused_or_still_have_their_label(tmp_path: Path) -> None:
    """Another few hundred each time would be better for finding, and worse for whoever has changed something else."""
    fuzz = fuzzer()
    runs = fuzz.recorded_runs()
    ends = {}
    for number in range(300):
        what, run, files = fuzz.make_case(runs, random.Random(f"1/{number}"))  # noqa: S311
        fuzz.write_case(tmp_path / "run", files)
        ends[f"{number}: {what}"] = fuzz.how_it_ends(tmp_path / "run", run)
    assert {what: end for what, end in ends.items() if end.startswith("WRONG")} == {}
    # Otherwise it would prove nothing.
    assert {end.partition(",")[0] for end in ends.values()} == {"refused", "label as recorded"}
