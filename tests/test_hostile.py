"""Hostile input: structures, names, configurations and specifications do nothing but what they are for."""

from __future__ import annotations

import ast
import copy
import gzip
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_export import label as make_label
from upf_texts import version_2

import dftfactory
from dftfactory import structures
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.display import candidate_table
from dftfactory.errors import CandidateError, ConfigError, DFTFactoryError, PseudopotentialError, StructureError
from dftfactory.export import export_labels
from dftfactory.importing import import_structures
from dftfactory.inputs import MAX_ATOMS, check_structure
from dftfactory.label_one import label_structure_file
from dftfactory.pseudos import find_pseudopotential
from dftfactory.settings import read_yaml
from dftfactory.specification import Specification
from dftfactory.upf import Pseudopotential
from dftfactory.workflows import make_spec

BAD_NAMES = ["../../x", "/abs", "a/b", ".", "..", "-rf", "a\0b", "a\nb", "a\x1b[31mb", "x" * 300, "", "a b", "a'b"]
SI = 'Lattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3'


# Structures


def test_a_million_atoms_are_refused_before_anything_is_computed() -> None:
    atoms = Atoms(numbers=np.ones(10**6, dtype=int), positions=np.zeros((10**6, 3)), cell=[100.0] * 3)
    with pytest.raises(StructureError, match=f"has 1000000 atoms; more than {MAX_ATOMS}"):
        check_structure(atoms)


@pytest.mark.parametrize(
    ("cell", "cause"),
    [
        ([np.nan] * 3, "NaN or infinite"),
        ([np.inf] * 3, "NaN or infinite"),
        ([1e30] * 3, "beyond 10000 Å"),
        ([0.0] * 3, "no cell"),
        ([1e-6] * 3, "0.000 Å apart .the cell repeats"),
        # Twenty images along each of its directions, and all of the vectors are 1 Å long.
        ([[1, 0, 0], [1, 0.05, 0], [1, 0, 0.05]], "0.050 Å apart .the cell repeats"),
    ],
)
def test_a_cell_that_cannot_be_right_is_refused_at_once(cell: list[Any], cause: str) -> None:
    with pytest.raises(StructureError, match=cause):
        check_structure(Atoms("H", cell=cell))


@pytest.mark.parametrize("number", [-3, 0, 119, 10**6])
def test_an_atom_of_no_element_is_refused(number: int) -> None:
    atoms = bulk("Si")
    atoms.numbers[1] = number
    with pytest.raises(StructureError, match="atom 2 is no chemical element"):
        check_structure(atoms)


# Structure files


@pytest.mark.parametrize("count", ["1000000000000", "9" * 6000, str(MAX_ATOMS + 1)])
@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz.gz"])
def test_a_file_that_promises_too_many_atoms_is_not_read(tmp_path: Path, count: str, name: str) -> None:
    """ASE would look for as many lines, long after the end of the file."""
    path = tmp_path / name
    with (gzip.open if name.endswith("gz") else open)(path, "wt") as file:
        file.write(f"1\n{SI}\nSi 0 0 0\n{count}\n{SI}\nSi 0 0 0\n")
    with pytest.raises(CandidateError, match=r"its frame 1 .* has \d+ atoms; more than .*nothing was imported"):
        import_structures(path, tmp_path / "pool.db")
    assert not (tmp_path / "pool.db").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "MAX_UNPACKED", 3_000_000)
    path = tmp_path / "bomb.cif.gz"
    path.write_bytes(gzip.compress(b" " * 10_000_000))
    with pytest.raises(CandidateError, match="unpacks to more than"):
        import_structures(path, tmp_path / "pool.db")
    (tmp_path / "dft.yaml").write_text("ecutwfc: 15\n")
    with pytest.raises(StructureError, match="unpacks to more than"):
        label_structure_file(path, tmp_path / "dft.yaml", None, None)


def test_a_packed_file_that_is_cut_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.extxyz.gz"
    path.write_bytes(gzip.compress(f"1\n{SI}\nSi 0 0 0\n".encode())[:-9])
    with pytest.raises(CandidateError, match="is it cut"):
        import_structures(path, tmp_path / "pool.db")


def test_a_packed_file_that_is_whole_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "good.extxyz.gz"
    path.write_bytes(gzip.compress(f"1\n{SI}\nSi 0 0 0\n".encode()))
    assert import_structures(path, tmp_path / "pool.db") == (1, 0)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    """Before ASE 3.9 a trajectory was one."""
    path = tmp_path / "old.traj"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(CandidateError, match="cannot be read by ASE"):
        import_structures(path, tmp_path / "pool.db")
    assert not (tmp_path / "owned").exists()


def test_json_of_any_depth_in_a_comment_line_imports_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    path.write_text(f'1\n{SI} note="_JSON {"[" * 3000}{"]" * 3000}"\nSi 0 0 0\n')
    with pytest.raises(CandidateError, match="cannot be read by ASE"):
        import_structures(path, tmp_path / "pool.db")
    assert not (tmp_path / "pool.db").exists()


def test_ten_megabytes_of_notes_are_data_and_no_key(tmp_path: Path) -> None:
    """Keys of all rows are read whenever something is looked for."""
    path = tmp_path / "a.extxyz"
    path.write_text(f'1\n{SI} note="{"x" * 10_000_000}" screen="\x1b[2J" short=abc\nSi 0 0 0\n')
    assert import_structures(path, tmp_path / "pool.db") == (1, 0)
    row = ase.db.connect(tmp_path / "pool.db").get(1)
    assert set(row.key_value_pairs) == {"status", "source", "digest", "short"}
    assert (len(row.data.note), row.data.screen) == (10_000_000, "\x1b[2J")


def test_a_file_name_is_kept_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\n\u202eb.extxyz"
    path.write_text(f"1\n{SI}\nSi 0 0 0\n")
    import_structures(path, tmp_path / "pool.db")
    assert ase.db.connect(tmp_path / "pool.db").get(1).source == "a?[31m??b.extxyz#0"


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name.isprintable() and "'" not in name])
def test_a_name_in_a_structure_file_is_no_path(tmp_path: Path, name: str) -> None:
    atoms = bulk("Si")
    atoms.info["calculation_id"] = name
    ase.io.write(tmp_path / "a.traj", atoms)
    with pytest.raises(CandidateError, match="files are named after it"):
        import_structures(tmp_path / "a.traj", tmp_path / "pool.db")
    assert not (tmp_path / "pool.db").exists()


# Configuration


@pytest.mark.parametrize(
    "entries",
    [
        {"control": {"outdir": "/tmp/x"}},  # noqa: S108  (never written)
        {"control": {"wfcdir": "x"}},
        {"control": {"prefix": "../x"}},
        {"control": {"pseudo_dir": "/"}},
        {"control": {"input_xml_schema_file": "x"}},
        {"control": {"title": "../../x"}},
        {"control": {"title": "a\nb"}},
        {"control": {"title": "a', outdir='/tmp"}},
        {"control": {"title\n/\n&SYSTEM": "x"}},
        {"system": {"vdw_table_name": "/etc/passwd"}},
        {"system": {"input_dft": "../x"}},
        {"system": {"input_dft": "x" * 1000}},
        {"system": {"dmft_prefix": "x", "dmft": True}},
        {"electrons": {"efield_phase": "read"}},
        {"ions": {"ion_dynamics": "bfgs"}},
        {"system": {"nbnd": 10**400}},
    ],
)
def test_an_entry_of_pw_leads_nowhere_else(entries: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DFTConfig(ecutwfc=15, pw=entries)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a'b\n/", "\x1b]0;x\x07", ""])
def test_a_folder_has_no_control_characters(name: str) -> None:
    for settings_of, keys in ((DFTConfig, ["pseudopotential_dir"]), (WorkerConfig, ["scratch_dir"])):
        for key in keys:
            if any(ord(letter) < 32 for letter in name) or not name:
                with pytest.raises(ConfigError, match=key):
                    settings_of(**{key: name, **({"ecutwfc": 15} if settings_of is DFTConfig else {})})


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../x.UPF", "a\nb.UPF", "a b.UPF", "a'.UPF", 'a".UPF', "..", "a,b.UPF"]
)
def test_a_pseudopotential_is_a_bare_name_that_pw_in_can_hold(tmp_path: Path, file: str) -> None:
    if "/" not in file and file != "..":
        (tmp_path / file).write_text(version_2(functional="PZ"))
    with pytest.raises(PseudopotentialError):
        find_pseudopotential("Si", tmp_path, file)


def test_a_bad_name_in_the_folder_is_not_found_by_itself(tmp_path: Path) -> None:
    (tmp_path / "Si.x\nATOMIC_POSITIONS.UPF").write_text(version_2(functional="PZ"))
    with pytest.raises(PseudopotentialError, match="rename the file"):
        find_pseudopotential("Si", tmp_path)


def test_a_link_to_a_pseudopotential_is_fine(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "anything").write_text(version_2(functional="PZ"))
    (tmp_path / "Si.UPF").symlink_to(tmp_path / "library" / "anything")
    assert find_pseudopotential("Si", tmp_path).element == "Si"


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']\n",
        "a: " + "[" * 5000 + "]" * 5000,
        "a: 2026-99-99\n",
        "a: &a [*a]\n",
        BOMB,
        "a: " + "x" * 2_000_000,
        "? [1, 2]\n: 3\n",
    ],
)
def test_yaml_is_data_and_no_more(tmp_path: Path, text: str) -> None:
    """Whatever is in the file: a configuration, or one error that is short."""
    path = tmp_path / "dft.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        DFTConfig.from_yaml(path)
    assert len(caught.value.message) < 10_000  # one line for each key


def test_settings_are_not_read_from_what_has_no_end() -> None:
    with pytest.raises(ConfigError, match="too large"):
        read_yaml(Path("/dev/zero"))


# Specifications

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text()
    | st.sampled_from(["Si", "auto", "../x", "/etc/passwd", "$set", "a.b", "'\n/\n", "1e-5"])
)
KEYS = st.text() | st.sampled_from(["control", "system", "electrons", "nbnd", "Si", "$where"])
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=15
)


def specification() -> dict[str, Any]:
    pseudopotential = Pseudopotential("Si", Path("/pseudo/Si.UPF"), "NC", "PZ", 4.0, "no", None, None, "0" * 32)
    config = DFTConfig(ecutwfc=15.0, pseudopotential_dir="/pseudo")
    return make_spec(bulk("Si"), "slab", config, {"Si": pseudopotential})


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, below in items for found in [(*place, key), *places(below, (*place, key))]]


SPECIFICATION = specification()


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(DFTConfig.model_fields)) | st.text(), TREES, max_size=4))
def test_any_configuration_is_one_or_is_refused(values: dict[str, Any]) -> None:
    try:
        config = DFTConfig(**{"ecutwfc": 15.0, **values})
    except ConfigError as error:
        json.dumps(error.to_dict())  # FireWorks keeps it
    else:
        assert DFTConfig(**json.loads(json.dumps(config.to_dict()))) == config


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(WorkerConfig.model_fields)) | st.text(), TREES, max_size=4))
def test_any_worker_settings_are_some_or_are_refused(values: dict[str, Any]) -> None:
    try:
        worker = WorkerConfig.from_fw_env(values)
    except ConfigError:
        return
    assert all(isinstance(word, str) for word in worker.command(1, 1))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(places(SPECIFICATION))), TREES, st.booleans())
def test_a_specification_that_was_changed_is_refused_or_means_the_same(
    place: tuple[Any, ...], value: Any, is_gone: bool
) -> None:
    spec = copy.deepcopy(SPECIFICATION)
    inner = spec
    for key in place[:-1]:
        inner = inner[key]
    if is_gone:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    try:
        found = Specification(spec)
    except DFTFactoryError:
        return
    assert found.fingerprint == SPECIFICATION["fingerprint"]
    assert all(isinstance(file, str) for file in found.config.pseudopotentials.values())


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_in_a_specification_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match="not fit for the name of a folder"):
        Specification({**SPECIFICATION, "calculation_id": name})


# What is shown


def test_a_table_obeys_nothing_that_stands_in_it() -> None:
    hostile = "[red]a[/red]\x1b[2J\n\u202e\\[b]<script>"
    text = io.StringIO()
    console = Console(file=text, width=300, force_terminal=False)
    console.print(candidate_table([{"name": hostile, "status": hostile, "failure": hostile}]))
    printed = text.getvalue()
    assert "[red]a[/red]" in printed
    assert "\\[b]<script>" in printed
    assert not any(letter in printed for letter in "\x1b\u202e")


@pytest.mark.parametrize(
    "text",
    ['a"b', "a\nb", '1\n2\nH 0 0 0"', "a=b c=d", "{[('", "\\", 'x" Lattice="1 0 0', "\x1b[2J", "ü\u2028", "_JSON {"],
)
def test_text_of_a_label_stays_inside_its_quotes(tmp_path: Path, text: str) -> None:
    """One frame stays one frame, with the same text in it."""
    label = {**make_label(), "calculation_id": text}
    export_labels([label], tmp_path / "train.extxyz")
    [atoms] = ase.io.read(tmp_path / "train.extxyz", ":")
    assert atoms.info["calculation_id"] == text
    assert len(atoms) == len(make_label()["result"]["symbols"])


# The code itself


def test_nothing_is_run_by_a_shell_loaded_as_a_pickle_or_evaluated() -> None:
    forbidden = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "system",
        "popen",
        "getoutput",
        "getstatusoutput",
        "literal_eval",
    }
    modules = {"pickle", "marshal", "shelve", "dill", "yaml", "cloudpickle", "joblib"}
    found = []
    for path in sorted(Path(dftfactory.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                )
                found += [f"{where} {name}" for name in names if name.split(".")[0] in modules]
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            is_method = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "re"
            found += [f"{where} {name}"] if name in forbidden and not is_method else []
            for keyword in node.keywords:
                if keyword.arg == "shell" or (keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"):
                    found.append(f"{where} {keyword.arg}")
            if name in ("run", "Popen", "check_call", "check_output", "call") and "subprocess" in ast.unparse(
                node.func
            ):
                # A list, or a name that holds one; never a text.
                first = node.args[0] if node.args else None
                found += [f"{where} text"] if isinstance(first, ast.JoinedStr | ast.Constant | ast.BinOp) else []
            if name == "YAML":
                safe = any(k.arg == "typ" and ast.unparse(k.value) == "'safe'" for k in node.keywords)
                found += [] if safe else [f"{where} YAML"]
    assert found == []


def test_sqlite_is_given_values_and_never_text_made_of_them() -> None:
    for path in sorted(Path(dftfactory.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("execute", "executemany"):
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"
    assert sqlite3.apilevel == "2.0"
