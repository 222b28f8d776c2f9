"""Each line of `dftfactory check` names what is wrong and what to do about it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dftfactory import checks, launchpad
from dftfactory.checks import Check, check_all
from dftfactory.setup_files import rocket_query

UPF = """<UPF version="2.0.1">
<PP_HEADER element="{element}" pseudo_type="NC" z_valence="4" functional="{functional}" relativistic="scalar"/>
</UPF>
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dft.yaml, one pseudopotential, and a PATH with nothing in it but what the test puts there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "upf").mkdir()
    (tmp_path / "upf" / "Si.upf").write_text(UPF.format(element="Si", functional="PBE"))
    (tmp_path / "dft.yaml").write_text("pseudopotential_dir: upf\necutwfc: 30\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def answers(folder: Path, worker: dict[str, Any] | None = None, launchpad: str = "none.yaml") -> dict[str, Check]:
    """The lines by their name, with pw.x in bin/ unless the worker says otherwise."""
    lines = [f"{key}: {value}" for key, value in ({"pw_command": folder / "bin" / "pw.x"} | (worker or {})).items()]
    (folder / "worker.yaml").write_text("\n".join(lines))
    found = list(check_all(folder / "dft.yaml", folder / "worker.yaml", folder / launchpad))
    return {check.name: check for check in found}


def test_version_and_command_of_a_pw_that_starts(files: Path) -> None:
    program(files / "bin" / "pw.x", "echo '     Program PWSCF v.7.3 starts'; exit 1")
    line = answers(files)["pw.x"]
    assert line == Check("pw.x", True, f"version 7.3, {files / 'bin' / 'pw.x'} -in pw.in")


def test_missing_pw_says_how_to_get_it(files: Path) -> None:
    line = answers(files)["pw.x"]
    assert not line.ok
    assert "No such file" in line.says
    assert "apt-get install quantum-espresso" in line.says


def test_pw_that_is_not_executable_says_so(files: Path) -> None:
    program(files / "bin" / "pw.x", "").chmod(0o644)
    line = answers(files)["pw.x"]
    assert not line.ok
    assert "Permission denied; make it executable" in line.says


def test_program_that_is_no_pw_is_quoted(files: Path) -> None:
    """Also with bytes that are no text; the first line of mpirun's message is only dashes."""
    program(files / "bin" / "pw.x", "printf '\\377'; printf -- '------\\nlibmkl.so: cannot open' >&2; exit 127")
    line = answers(files)["pw.x"]
    assert not line.ok
    assert "is no pw.x that starts (exit 127): libmkl.so: cannot open; correct pw_command" in line.says


def test_pw_that_never_answers_does_not_hang_the_check(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "START_SECONDS", 1)
    program(files / "bin" / "pw.x", f"echo $$ > {files}/pid; sleep 600")
    line = answers(files)["pw.x"]
    assert not line.ok
    assert "did not answer within 1 s" in line.says
    assert not Path(f"/proc/{(files / 'pid').read_text().strip()}").exists()


def test_ranks_of_a_launcher_that_hangs_do_not_survive_the_check(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI gives each rank a process group of its own; this launcher dies of SIGTERM and leaves its rank."""
    monkeypatch.setattr(checks, "START_SECONDS", 3)
    rank = (
        f"import os, time; os.setpgid(0, 0); open({str(files / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    program(files / "bin" / "pw.x", f'{sys.executable} -c "{rank}" & wait')
    assert "did not answer within 3 s" in answers(files)["pw.x"].says
    stat = Path(f"/proc/{(files / 'pid').read_text()}/stat")
    # Dead is also who only waits for the system to take notice.
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in ("Z", "X")


def test_worker_file_that_is_used_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers(files)["worker"] == Check("worker", True, str(files / "worker.yaml"))
    monkeypatch.chdir(files)
    monkeypatch.setenv("HOME", str(files))
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    first = next(check_all(files / "dft.yaml", None, files / "none.yaml"))
    assert first == Check("worker", True, "no my_fworker.yaml: what is installed")
    (files / "FW_config.yaml").write_text(f"FWORKER_LOC: {files}/worker.yaml\n")
    assert next(check_all(files / "dft.yaml", None, files / "none.yaml")).says == str(files / "worker.yaml")


def test_launcher_that_starts_serial_programs_is_found_out(files: Path) -> None:
    """A serial pw.x, or the mpirun of another MPI: N times the same calculation, which looks fine otherwise."""
    program(files / "bin" / "pw.x", "echo '     Program PWSCF v.7.3 starts'; echo 'Serial version'")
    program(files / "bin" / "twice", 'shift; "$@"; "$@"')
    line = answers(files, {"mpi_command": f"{files}/bin/twice {{cores}}", "parallel_cores": 2})["pw.x on 2 ranks"]
    assert not line.ok
    assert "starts 2 pw.x of 1 rank(s)" in line.says
    assert "parallel_cores: 1" in line.says


def test_missing_launcher_is_named(files: Path) -> None:
    program(files / "bin" / "pw.x", "echo '     Program PWSCF v.7.3 starts'")
    line = answers(files, {"mpi_command": "'srunn -n {cores}'", "parallel_cores": 2})["pw.x on 2 ranks"]
    assert not line.ok
    assert line.says.startswith("srunn: No such file")


def test_bad_worker_file_does_not_end_the_check(files: Path) -> None:
    lines = answers(files, {"npol": 2})
    assert not lines["worker"].ok
    assert "did you mean npool?" in lines["worker"].says
    assert lines["pseudopotentials"].ok


def test_scratch_folder_that_cannot_be_written(files: Path) -> None:
    (files / "scratch").write_text("a file, not a folder")
    line = answers(files, {"scratch_dir": files / "scratch"})["scratch"]
    assert not line.ok
    assert "cannot be written" in line.says
    assert "change scratch_dir" in line.says


def test_free_space_of_the_scratch_disk_is_said(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the run folder where there is no other; little of it is worth a look."""
    free = 3 * 2**30
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    line = answers(files, {"scratch_dir": files / "scratch"})["scratch"]
    assert line == Check("scratch", True, f"{files / 'scratch'} can be written, 3.0 GB free")
    line = answers(files)["scratch"]
    assert line.says.startswith("the run folder itself, 3.0 GB free here; set scratch_dir")
    free = 2**20
    assert answers(files)["scratch"].ok is None


def test_missing_configuration_is_not_yet_a_problem(files: Path) -> None:
    """A worker node needs none."""
    (files / "dft.yaml").unlink()
    line = answers(files)["configuration"]
    assert line.ok is None
    assert "`dftfactory init` writes one" in line.says


def test_every_problem_of_the_configuration_is_listed(files: Path) -> None:
    (files / "dft.yaml").write_text("ecutwfc: -60\nkspcing: 0.2\n")
    line = answers(files)["configuration"]
    assert not line.ok
    assert "ecutwfc = -60" in line.says
    assert "did you mean kspacing?" in line.says


def test_pseudopotentials_of_the_folder_are_read(files: Path) -> None:
    assert answers(files)["pseudopotentials"].says == f"1 in {files / 'upf'}, PBE: Si (NC)"


def test_missing_folder_of_pseudopotentials(files: Path) -> None:
    shutil.rmtree(files / "upf")
    line = answers(files)["pseudopotentials"]
    assert not line.ok
    assert f"{files / 'upf'} cannot be read" in line.says


def test_empty_folder_of_pseudopotentials(files: Path) -> None:
    (files / "upf" / "Si.upf").unlink()
    assert answers(files)["pseudopotentials"].says.startswith(f"no .UPF file in {files / 'upf'}")


def test_several_candidates_are_listed(files: Path) -> None:
    (files / "upf" / "Si_r.upf").write_text(UPF.format(element="Si", functional="PBE"))
    line = answers(files)["pseudopotentials"]
    assert not line.ok
    assert "Si.upf, Si_r.upf" in line.says
    assert "choose one in dft.yaml" in line.says


def test_folder_of_a_whole_library_does_not_fill_the_screen(files: Path) -> None:
    for element in ("Al", "C", "Fe", "H", "Ni", "O"):
        for name in ("a", "b"):
            (files / "upf" / f"{element}.{name}.upf").write_text(UPF.format(element=element, functional="PBE"))
    (files / "worker.yaml").write_text("pw_command: pw.x")
    lines = [c for c in check_all(files / "dft.yaml", files / "worker.yaml", None) if c.name == "pseudopotentials"]
    assert [line.ok for line in lines] == [False] * (checks.MAX_PROBLEMS + 1)
    assert lines[-1].says == f"2 more; list the files that you use in {files / 'dft.yaml'}"


def test_launchpad_that_is_away(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchpad, "CONNECT_SECONDS", 0.5)
    (files / "away.yaml").write_text("host: 127.0.0.1\nport: 1\nname: fireworks\n")
    line = answers(files, launchpad="away.yaml")["LaunchPad"]
    assert not line.ok
    assert "no LaunchPad answers at 127.0.0.1:1" in line.says


def test_rockets_that_would_take_everything_are_named(files: Path) -> None:
    """A worker file of an earlier version, or of FireWorks' own tutorial."""
    line = answers(files)["query"]
    assert line.ok is None
    assert "rockets take whatever stands in the LaunchPad, other commands too" in line.says
    (files / "my_fworker.yaml").write_text(f"name: me\nquery: '{rocket_query()}'\nenv: {{}}\n")
    assert {check.name: check.ok for check in check_all(files / "x", files / "my_fworker.yaml", files / "y")}["query"]


@pytest.mark.pw
@pytest.mark.mongodb
def test_everything_is_fine_with_the_real_programs(files: Path, pseudo_dir: Path, local_launchpad: Any) -> None:
    (files / "dft.yaml").write_text(
        f"pseudopotential_dir: {pseudo_dir}\npseudopotentials: {{Si: Si.pz-vbc.UPF}}\necutwfc: 15\n"
    )
    worker = {"pw_command": "pw.x", "mpi_command": "mpirun -np {cores} --oversubscribe", "parallel_cores": 2}
    lines = answers(files, worker, launchpad=str(local_launchpad.launchpad_file))
    assert all(line.ok for name, line in lines.items() if name != "query"), lines
    names = {"worker", "query", "pw.x", "pw.x on 2 ranks", "scratch", "configuration", "pseudopotentials", "LaunchPad"}
    assert set(lines) == names
    assert f"answers at 127.0.0.1:{local_launchpad.port} ({local_launchpad.launchpad_file})" in lines["LaunchPad"].says
    assert lines["pseudopotentials"].says.endswith("PZ: Si (NC)")
