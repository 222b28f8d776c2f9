"""The package as a whole: light to import, with its public names, and with the fences between its modules."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dftfactory
from dftfactory import errors
from dftfactory.errors import DFTFactoryError

PACKAGE = Path(dftfactory.__file__).parent
# "pipeline", "webgui.pages", ...
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}

PUBLIC = {
    *("DFTConfig", "WorkerConfig", "DFTResult", "QERunner", "QEJob"),
    *("write_pw_input", "read_pw_input", "read_pw_output"),
    *("Failure", "diagnose", "get_recovery_strategy", "get_next_params"),
}
EXCEPTIONS = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
}

# Which modules may import a package that is somebody else's idea of the world.
FENCES = {
    "fireworks": {
        "workflows",
        "firetasks",
        "rocket_output",
        "lost_labels",
        "lost_runs",
        "repairs",
        "launchpad",
        "offline",
        "queue_checks",
    },
    "custodian": {"handlers", "jobs", "runner"},
    "pymongo": {"store", "launchpad", "local_launchpad", "webgui.app"},
    "secantus": {"local_server", "server_mends"},
}
# The lowest modules, and all that they may import from the package.
LOWEST = {
    "errors": set(),
    "settings": {"errors"},
    "pw_entries": {"errors", "settings"},
    "config": {"errors", "settings", "pw_entries"},
    "results": {"errors"},
    "plain_values": set(),
    "events": {"errors", "plain_values"},
    "history": {"errors", "events"},
    "upf": {"errors"},
    "pseudos": {"errors", "upf"},
}


# Import


def loaded_by(code: str, *heavy: str) -> list[str]:
    """Which of the heavy packages are loaded in a new process after the code has run."""
    code += f"\nimport sys, json; print('loaded', json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    names: list[str] = json.loads(process.stdout.rpartition("loaded")[2])
    return names


def test_import_is_light() -> None:
    heavy = ("ase", "pymatgen", "numpy", "custodian", "fireworks", "pydantic", "plotly", "pymongo", "matplotlib")
    assert loaded_by("import dftfactory", *heavy) == []


@pytest.mark.parametrize("words", [["--help"], ["submit", "--help"], ["launchpad", "--help"]])
def test_help_is_light(words: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['dftfactory', *{words!r}]\n"
        "from dftfactory.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
    )
    assert loaded_by(code, "ase", "pymatgen", "fireworks", "numpy", "custodian", "pymongo") == []


def test_public_names_are_there_and_listed() -> None:
    names = PUBLIC | set(EXCEPTIONS)
    assert set(dftfactory.__all__) == names
    assert names <= set(dir(dftfactory))
    for name in names:
        assert getattr(dftfactory, name).__name__ == name
        assert getattr(dftfactory, name).__module__.startswith("dftfactory.")


def test_names_for_type_checkers_are_those_that_are_there() -> None:
    [block] = [node for node in MODULES["__init__"].body if isinstance(node, ast.If)]
    typed = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(dftfactory.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    """hasattr, pickle and doctest rely on it."""
    with pytest.raises(AttributeError, match="has no attribute 'DTFConfig'"):
        dftfactory.DTFConfig  # noqa: B018  (the access is the test)


def test_version_is_that_of_the_metadata() -> None:
    stated = re.findall(r"^version = (\S+)$", (Path(__file__).parents[1] / "setup.cfg").read_text(), re.MULTILINE)
    assert stated == [dftfactory.__version__]


# Fences


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that are imported anywhere in a module, but for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def own_imports(name: str) -> set[str]:
    """Modules of the package that a module imports, wherever in it."""
    return {module.removeprefix("dftfactory.") for module in imports(MODULES[name])} & set(MODULES)


@pytest.mark.parametrize(("package", "allowed"), FENCES.items())
def test_package_is_imported_only_where_it_is_spoken_to(package: str, allowed: set[str]) -> None:
    found = {name for name, tree in MODULES.items() if package in {full.split(".")[0] for full in imports(tree)}}
    assert found <= allowed


def test_fences_see_imports_inside_of_functions_and_not_those_for_types() -> None:
    """Otherwise the tests above would prove nothing."""
    for_types = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
    inside = "def f():\n    from c.d import e\n    try:\n        import f.g\n    finally:\n        pass\n"
    assert list(imports(ast.parse(for_types + inside))) == ["b", "c.d", "c.d.e", "f.g"]
    assert "pymongo" in {full.split(".")[0] for full in imports(MODULES["launchpad"])}
    assert "secantus" in {full.split(".")[0] for full in imports(MODULES["local_server"])}


@pytest.mark.parametrize(("name", "allowed"), LOWEST.items())
def test_lowest_modules_import_nothing_above_themselves(name: str, allowed: set[str]) -> None:
    assert own_imports(name) <= allowed


@pytest.mark.parametrize("name", ["inputs", "parsers", "failures", "recovery", "pseudos", "handlers", "jobs", "runner"])
def test_labelling_one_structure_needs_no_queue(name: str) -> None:
    """A laptop without a database; the queue stands on top of the runner and never below it."""
    reached, waiting = set(), {name}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= own_imports(module) - reached
    queue = {"candidates", "database", "importing", "store", "launches", "workflows", "firetasks", "pipeline"}
    queue |= {"claims", "lost_labels", "lost_runs", "repairs", "launch_folders", "specification", "offline", "patience"}
    assert not reached & (queue | {"launchpad", "local_launchpad", "local_server", "export", "cli", "demo"})


def test_modules_import_each_other_in_one_direction() -> None:
    """TopologicalSorter raises CycleError with the cycle in it; imports inside of functions count, too."""
    graph = {name: own_imports(name) for name in MODULES if name != "__init__"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_nothing_but_definitions_happens_on_import() -> None:
    """No logger is configured, no other package altered: a module is imports, constants, functions and classes.

    cli alone also joins its groups of commands.
    """
    quiet = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.If)
    for name, tree in MODULES.items():
        others = [node for node in tree.body[1:] if not isinstance(node, quiet)]
        lines = [ast.unparse(node) for node in others]
        assert [line for line in lines if not re.search(r"add_typer|add_commands", line)] == [], name


# Exceptions


def test_every_exception_is_one_of_ours() -> None:
    assert all(issubclass(exception, DFTFactoryError) for exception in EXCEPTIONS.values())
    elsewhere = [
        f"{name}.{node.name}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error") and name != "errors"
    ]
    assert elsewhere == []


def test_drawing_of_the_exceptions_is_their_tree() -> None:
    """Each exactly once, indented below the one that it derives from."""
    drawn: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"((?:│   |    )*)(├── |└── |)(\w+Error)\b", line):
            depth = len(match[1]) // 4 + (1 if match[2] else 0)
            above[depth:] = [match[3]]
            assert match[3] not in drawn
            drawn[match[3]] = above[depth - 1] if depth else None
    assert drawn == {
        name: None if exception is DFTFactoryError else exception.__base__.__name__
        for name, exception in EXCEPTIONS.items()
    }


@pytest.mark.parametrize("exception", EXCEPTIONS.values())
def test_exception_is_one_line_and_plain_data(exception: type[DFTFactoryError]) -> None:
    """FireWorks keeps it in the launch record."""
    error = exception("ecutwfc must be positive", problems=[{"key": "ecutwfc"}], level=3)
    assert str(error) == error.message == "ecutwfc must be positive"
    there = json.loads(json.dumps(error.to_dict()))
    assert there == {
        "error": exception.__name__,
        "message": "ecutwfc must be positive",
        "problems": [{"key": "ecutwfc"}],
        "level": 3,
    }
