"""Fixtures of all tests: small structures, a configuration for them, a stand-in pw.x that plays recorded runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, molecule
from paths import FILES, PSEUDO_DIR, PSEUDOPOTENTIALS
from upf_texts import version_2

from dftfactory.config import DFTConfig, WorkerConfig

pytest_plugins = ["launchpad_fixtures", "browser_fixtures", "cli_fixtures"]


def pytest_configure() -> None:
    """Begin as on a terminal.

    `nohup` lets the signal of a closed terminal be ignored, and a script's `&` that of Ctrl-C; children inherit it.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of the real pw.x where it is not installed; fail there in CI, where a skip would prove nothing."""
    if item.get_closest_marker("pw") is None:
        return
    missing = [name for name in ("pw.x", "mpirun") if shutil.which(name) is None]
    missing += [] if PSEUDO_DIR.is_dir() else [str(PSEUDO_DIR)]
    if missing:
        reason = f"{', '.join(missing)} not installed (apt-get install quantum-espresso)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture
def pseudo_dir() -> Path:
    """Folder of real pseudopotentials, for tests marked pw."""
    return PSEUDO_DIR


@pytest.fixture
def config() -> DFTConfig:
    """Return a cheap configuration for real runs: 15 Ry, few k-points."""
    return DFTConfig(
        pseudopotential_dir=str(PSEUDO_DIR),
        pseudopotentials=PSEUDOPOTENTIALS,
        ecutwfc=15,
        kspacing=0.7,
        conv_thr_per_atom=1e-9,
    )


@pytest.fixture
def fake_config(config: DFTConfig, tmp_path: Path) -> DFTConfig:
    """Return the same configuration for the stand-in pw.x, with a pseudopotential that is fit for nothing else."""
    folder = tmp_path / "pseudo"
    folder.mkdir()
    (folder / "Si.pz-vbc.UPF").write_text(version_2(functional="PZ"))
    return config.model_copy(update={"pseudopotential_dir": str(folder)})


@pytest.fixture
def si_atoms() -> Atoms:
    """Return two Si atoms off their sites: forces, and a fraction of a second in pw.x."""
    atoms = bulk("Si", a=5.43)
    atoms.positions[1] += (0.05, 0.0, 0.02)
    return atoms


@pytest.fixture
def h2_atoms() -> Atoms:
    """Return H2 in a box, not periodic."""
    atoms = molecule("H2")
    atoms.center(vacuum=2.5)
    return atoms


@pytest.fixture
def fake_pw(tmp_path: Path) -> Callable[..., WorkerConfig]:
    """Return a function that makes a stand-in pw.x and the worker that runs it.

    The stand-in plays one recorded run per launch, in the order given (the last one again and again): each is a folder
    of tests/files/runs or tests/files/pw with pw.out and, where they were recorded, out/, CRASH, pw.err and
    exit_status. It leaves a wavefunction and a density behind as pw.x does. What it was given it keeps in `launches/`
    beside itself, so that a test can read what each attempt asked for and found: NNN.in is pw.in, NNN.args its
    arguments, NNN.files the names in the run folder.
    """

    def make(*recorded: str | Path, **settings: object) -> WorkerConfig:
        folder = tmp_path / "fake_pw"
        (folder / "launches").mkdir(parents=True)
        program = folder / "pw.x"
        program.write_text(
            _FAKE_PW.format(python=sys.executable, folder=str(folder), runs=[str(_recorded(run)) for run in recorded])
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return WorkerConfig(pw_command=[str(program)], **settings)

    return make


@pytest.fixture
def scf_diverged(tmp_path: Path) -> Path:
    """Return `scf_still` with accuracies of 20 Ry for the stand-in: more than 1 Ry for each of 8 valence electrons."""
    folder = tmp_path / "scf_diverged"
    shutil.copytree(FILES / "runs" / "scf_still", folder)
    text = (folder / "pw.out").read_text()
    (folder / "pw.out").write_text(re.sub(r"(?<=scf accuracy    <) *\S+", "      20.00000000", text))
    return folder


@pytest.fixture
def disturbed(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that makes a pw.x before whose first runs a line of shell is run, one for each of them."""

    def make(*lines: str) -> list[str]:
        script = tmp_path / "pw.sh"
        cases = "".join(f"{n}) {line};;\n" for n, line in enumerate(lines))
        # The folders of the attempts that have ended count them, for all ranks alike.
        script.write_text(f'#!/bin/sh\ncase $(ls -d attempt_* 2>/dev/null | wc -l) in\n{cases}esac\nexec pw.x "$@"\n')
        script.chmod(0o755)
        return [str(script)]

    return make


@pytest.fixture
def launches(tmp_path: Path) -> Callable[[], list[str]]:
    """Return a function that gives the inputs of all launches of the stand-in pw.x, oldest first."""
    return lambda: [path.read_text() for path in sorted((tmp_path / "fake_pw" / "launches").glob("*.in"))]


def _recorded(run: str | Path) -> Path:
    folder = Path(run)
    return next(path for path in (FILES / "runs" / folder, FILES / "pw" / folder) if path.is_dir())


_FAKE_PW = """#!{python}
import glob, hashlib, pathlib, re, shutil, sys
folder, runs = pathlib.Path({folder!r}), {runs!r}
n = len(list((folder / "launches").glob("*.in")))
shutil.copy("pw.in", folder / "launches" / f"{{n:03d}}.in")
(folder / "launches" / f"{{n:03d}}.args").write_text(" ".join(sys.argv[1:]))
(folder / "launches" / f"{{n:03d}}.files").write_text("\\n".join(sorted(glob.glob("*") + glob.glob("out/*"))))
pathlib.Path("out/pwscf.save").mkdir(parents=True, exist_ok=True)
for name in ("out/pwscf.wfc1", "out/pwscf.save/charge-density.dat"):
    pathlib.Path(name).write_text("binary")
run = pathlib.Path(runs[min(n, len(runs) - 1)])
for name in ("CRASH", "out/pwscf.xml"):
    if (run / name).is_file():
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(run / name, name)
# As pw.x does, it says the md5 of the files that it is given, and the threshold.
given = pathlib.Path("pw.in").read_text()
pseudo_dir = re.search(r"pseudo_dir *= *'(.*)'", given)[1]
species = given.split("ATOMIC_SPECIES")[1].split("K_POINTS")[0].split()[2::3]
threshold = re.search(r"conv_thr *= *([^\\s,!]+)", given)
md5 = iter([hashlib.md5((pathlib.Path(pseudo_dir) / name).read_bytes()).hexdigest() for name in species])
for name, stream in (("pw.out", sys.stdout), ("pw.err", sys.stderr)):
    if (run / name).is_file():
        text = (run / name).read_text(errors="replace")
        if threshold:
            text = re.sub(r"(?<=convergence threshold =) +\\S+", f"{{float(threshold[1]):13.1E}}", text)
        stream.write(re.sub(r"(?<=MD5 check sum: )\\w+", lambda match: next(md5, match[0]), text))
        stream.flush()
status = run / "exit_status"
code = int(status.read_text()) if status.is_file() else 0
if code < 0:
    import os, signal
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
