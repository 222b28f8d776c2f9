"""`dftfactory ...` as a person types it: one line that names cause and cure, and the exit status that belongs to it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import pytest
from ase import Atoms
from cli_fixtures import Dftfactory
from queue_helpers import (
    label_for,
    make_database,
    rlaunch,
    rows,
    shifted,
    specs,
    states,
    statuses,
    write_launchpad_file,
)
from ruamel.yaml import YAML
from typer.testing import CliRunner

from dftfactory import __version__, cli, launchpad
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import LaunchPadAwayError
from dftfactory.labels import write_label
from dftfactory.store import LabelStore

COMMANDS = ["init", "check", "run", "submit", "sync", "status", "export", "recover", "reconcile", "archive", "demo"]
COMMANDS += ["show", "failures", "retry", "launchpad start", "launchpad connect", "launchpad stop", "launchpad status"]


@pytest.fixture
def dft_yaml(fake_config: DFTConfig, tmp_path: Path) -> Path:
    """The configuration that the recorded runs of the stand-in pw.x were made with."""
    with (tmp_path / "dft.yaml").open("w") as file:
        YAML(typ="safe").dump(fake_config.to_dict(), file)
    return tmp_path / "dft.yaml"


def process(*words: str, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


# Help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_into_80_columns(command: str) -> None:
    result = CliRunner().invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert max(len(line) for line in result.output.splitlines()) <= 80
    assert "\x1b" not in result.output
    assert re.search(rf"Usage: .*{command} \[OPTIONS\]", result.output)


def test_help_imports_nothing_heavy() -> None:
    """It answers in a fraction of a second; pymatgen alone takes more than one."""
    heavy = ("ase", "custodian", "fireworks", "numpy", "pymatgen", "pymongo", "pydantic", "secantus")
    code = (
        "import sys; from dftfactory.cli import app\n"
        "try: app(['--help'])\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    ended = process("-c", code)
    _, err = ended.communicate(timeout=60)
    assert err == "[]\n"


def test_version_is_said(dftfactory: Dftfactory) -> None:
    assert dftfactory("--version").out == f"dftfactory {__version__}\n"


def test_wrong_word_is_a_usage_error(dftfactory: Dftfactory) -> None:
    outcome = dftfactory("sumbit")
    assert outcome.status == 2
    assert "No such command 'sumbit'" in outcome.err


# Errors


@pytest.mark.parametrize(
    ("words", "cause", "cure"),
    [
        ("submit c.db --launchpad none.yaml", "dft.yaml does not exist", "`dftfactory init` writes one"),
        ("status", "no my_launchpad.yaml in ", "run `dftfactory launchpad start`"),
        ("status -l none.yaml", "cannot read none.yaml", "No such file"),
        ("sync none.db", "candidate database none.db does not exist", "check the path"),
        ("sync empty.db", "candidate database empty.db is empty", "import again"),
        ("sync text.db", "text.db is not an SQLite database", "give the ase.db file"),
        ("status text.db", "text.db is not an SQLite database", "give the ase.db file"),
        ("export train.txt -l away.yaml", "no LaunchPad answers at 127.0.0.1:1", "check host and port"),
        ("run none.xyz", "none.xyz does not exist", "give a structure file"),
        ("init", "dft.yaml", "Move it away"),
        ("demo there", "there already exists", "name another folder"),
    ],
)
def test_error_is_one_line_with_cause_and_cure(
    dftfactory: Dftfactory, tmp_path: Path, words: str, cause: str, cure: str
) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("hello")
    (tmp_path / "there").mkdir()
    (tmp_path / "away.yaml").write_text("host: 127.0.0.1\nport: 1\nname: fireworks\n")
    if words == "init":
        (tmp_path / "dft.yaml").touch()
    outcome = dftfactory(*words.split())
    assert outcome.status == 1
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: ")
    assert cause in outcome.err
    assert cure in outcome.err


@pytest.mark.parametrize("words", [("--debug", "status"), ("status", "--debug"), ("launchpad", "--debug", "status")])
def test_debug_shows_the_traceback_wherever_it_stands(
    dftfactory: Dftfactory, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dftfactory import local_launchpad
    from dftfactory.errors import LaunchPadError

    def fail(*arguments: object) -> None:
        raise LaunchPadError("broken")

    monkeypatch.setattr(launchpad, "load_launchpad", fail)
    monkeypatch.setattr(local_launchpad, "local_launchpad_status", fail)
    with pytest.raises(LaunchPadError, match="broken"):
        dftfactory(*words)


def test_error_of_somebody_else_is_one_line_too(dftfactory: Dftfactory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("first line\n   second line")

    monkeypatch.setattr(launchpad, "load_launchpad", fail)
    outcome = dftfactory("status")
    assert outcome.status == 1
    assert outcome.err == "error: ValueError: first line second line (with --debug: where)\n"


def test_interrupt_ends_with_130_and_stops_pw(dft_yaml: Path, si_atoms: Atoms, tmp_path: Path) -> None:
    """In the middle of a calculation."""
    slow = tmp_path / "pw.x"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; exec sleep 600\n")
    slow.chmod(0o755)
    (tmp_path / "worker.yaml").write_text(f"pw_command: {slow}\n")
    ase.io.write(tmp_path / "si.extxyz", si_atoms)
    running = process("-m", "dftfactory.cli", "run", "si.extxyz", "-w", "worker.yaml", cwd=tmp_path)
    try:
        while not (tmp_path / "pid").exists():
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


# init and check


def test_init_writes_what_check_takes(dftfactory: Dftfactory, tmp_path: Path) -> None:
    outcome = dftfactory("init", "work", "--pseudopotentials", "/some/folder")
    assert outcome.status == 0
    assert "wrote work/dft.yaml" in outcome.out
    assert "`dftfactory check`" in outcome.out
    assert DFTConfig.from_yaml(tmp_path / "work" / "dft.yaml").pseudopotential_dir == "/some/folder"
    assert (tmp_path / "work" / "fw_configs" / "my_fworker.yaml").is_file()


def test_check_says_ok_or_problem_and_its_status_tells(dftfactory: Dftfactory, dft_yaml: Path, tmp_path: Path) -> None:
    (tmp_path / "pw.x").write_text("#!/bin/sh\necho '     Program PWSCF v.7.3 starts'\n")
    (tmp_path / "pw.x").chmod(0o755)
    (tmp_path / "worker.yaml").write_text(f"pw_command: {tmp_path}/pw.x\n")
    dft_yaml.write_text(f"pseudopotential_dir: {tmp_path}/pseudo\necutwfc: 15\n")
    outcome = dftfactory("check", "-w", "worker.yaml")
    lines = {line.split(":")[0]: line for line in outcome.out.splitlines()}
    assert outcome.status == 1
    assert set(lines) == {
        "ok       worker",
        "not yet  query",
        "ok       pw.x",
        "ok       scratch",
        "ok       configuration",
        "ok       pseudopotentials",
        "PROBLEM  LaunchPad",
    }
    assert "dftfactory launchpad start" in lines["PROBLEM  LaunchPad"]


# run


def test_run_labels_one_structure(
    dftfactory: Dftfactory, dft_yaml: Path, si_atoms: Atoms, fake_pw: Callable[..., WorkerConfig], tmp_path: Path
) -> None:
    """And again without a second calculation."""
    ase.io.write(tmp_path / "si.extxyz", si_atoms)
    (tmp_path / "worker.yaml").write_text(f"pw_command: {fake_pw('converged').pw_command[0]}\n")
    outcome = dftfactory("run", "si.extxyz", "-w", "worker.yaml")
    assert outcome.status == 0, outcome.err
    assert re.search(r"energy\s+-21\d\.\d{8} eV", outcome.out)
    assert re.search(r"level\s+0 \(exact\)", outcome.out)
    assert (tmp_path / "si" / "label.json").is_file()
    (tmp_path / "worker.yaml").write_text("pw_command: /nonexistent\n")
    assert dftfactory("run", "si.extxyz", "-w", "worker.yaml").out == outcome.out


def test_run_that_fails_says_why(
    dftfactory: Dftfactory, dft_yaml: Path, si_atoms: Atoms, fake_pw: Callable[..., WorkerConfig], tmp_path: Path
) -> None:
    ase.io.write(tmp_path / "si.extxyz", si_atoms)
    (tmp_path / "worker.yaml").write_text(f"pw_command: {fake_pw('killed').pw_command[0]}\n")
    outcome = dftfactory("run", "si.extxyz", "-w", "worker.yaml")
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert re.match(r"error: si: KILLED at level 0 after \d runs: ", outcome.err)


# submit, sync, status, export


@pytest.mark.mongodb
def test_structure_file_from_submit_to_export(
    dftfactory: Dftfactory,
    dft_yaml: Path,
    launchpad: Any,
    si_atoms: Atoms,
    fake_pw: Callable[..., WorkerConfig],
    tmp_path: Path,
) -> None:
    """A structure file is imported first, and its name stands for the database beside it from then on."""
    overlapping = si_atoms.copy()
    overlapping.positions[1] = overlapping.positions[0]
    ase.io.write(tmp_path / "new.extxyz", [si_atoms, overlapping])
    write_launchpad_file(launchpad, tmp_path)

    outcome = dftfactory("submit", "new.extxyz")
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines() == [
        "2 structures of new.extxyz are SELECTED in new.db now",
        "1 queued; next: `rlaunch -l my_launchpad.yaml rapidfire`, then `dftfactory sync new.db`",
        "1 refused: it cannot be right and is FAILED now",
    ]
    assert "0.000 Å apart" in outcome.err
    assert "no structure in new.db is SELECTED; " in dftfactory("submit", "new.extxyz").out
    assert dftfactory("sync", "new.extxyz").out == "0 completed, 0 failed, 1 queued or running\n"
    where, _, counts = dftfactory("status", "new.extxyz").out.partition("\n")
    assert re.fullmatch(r"LaunchPad at 127\.0\.0\.1:\d+ \(my_launchpad\.yaml\)", where)
    assert counts[counts.index("Candidates") :].split() == [
        *("Candidates", "SELECTED", "0", "QUEUED", "1", "COMPLETED", "0", "FAILED", "1"),
        *("Fireworks", "READY", "1", "Labels", "none"),
    ]

    rlaunch(launchpad, tmp_path / "run", fake_pw("converged"))
    assert dftfactory("sync", "new.db").out == "1 completed, 0 failed, 0 queued or running\n"
    counts = dftfactory("status").out.partition("\nFireworks\n")[2]
    assert counts.split() == ["COMPLETED", "1", "Labels", "level", "0,", "exact", "1"]
    exported = dftfactory("export", "train.extxyz")
    assert re.fullmatch(r"1 label in train.extxyz \(configuration cfg[0-9a-f]{12}\)\n", exported.out)
    [atoms] = ase.io.read(tmp_path / "train.extxyz", ":")
    [row] = list(ase.db.connect(tmp_path / "new.db").select(status="COMPLETED"))
    assert atoms.info["REF_energy"] == row.energy


@pytest.mark.mongodb
def test_line_that_submit_prints_runs_what_was_queued(
    dftfactory: Dftfactory,
    dft_yaml: Path,
    launchpad: Any,
    si_atoms: Atoms,
    fake_pw: Callable[..., WorkerConfig],
    tmp_path: Path,
) -> None:
    """As it stands, with a LaunchPad and a worker that rlaunch would not find by itself."""
    (tmp_path / "my pad").mkdir()
    file = write_launchpad_file(launchpad, tmp_path / "my pad").relative_to(tmp_path)
    (tmp_path / "my_fworker.yaml").write_text(
        f"name: test\ncategory: ''\nquery: '{{}}'\nenv: {{pw_command: {fake_pw('converged').pw_command[0]}}}\n"
    )
    make_database(tmp_path / "c.db", si_atoms)
    out = dftfactory("submit", "c.db", "-l", file).out
    [rockets, sync] = re.findall("`([^`]+)`", out)
    assert rockets == f"rlaunch -l '{file}' -w my_fworker.yaml rapidfire"
    assert sync == f"dftfactory sync c.db -l '{file}'"
    ran = process("-m", "fireworks.scripts.rlaunch_run", *shlex.split(rockets)[1:], cwd=tmp_path)
    assert ran.wait(timeout=120) == 0
    assert states(launchpad) == {1: "COMPLETED"}


@pytest.mark.mongodb
def test_submit_says_what_it_did_not_queue(
    dftfactory: Dftfactory, dft_yaml: Path, launchpad: Any, si_atoms: Atoms, tmp_path: Path
) -> None:
    write_launchpad_file(launchpad, tmp_path)
    make_database(tmp_path / "c.db", si_atoms, si_atoms)
    assert dftfactory("submit", "c.db").out.splitlines()[1:] == [
        "1 queued before, linked to the Firework that is there"
    ]
    LabelStore(launchpad).put(label_for(specs(launchpad)["a"]))
    make_database(tmp_path / "d.db", si_atoms)
    outcome = dftfactory("submit", "d.db")
    assert outcome.out.splitlines()[0].startswith("0 queued")
    assert outcome.out.splitlines()[1:] == ["1 has a label already"]


def test_written_files_need_no_launchpad(
    dftfactory: Dftfactory, dft_yaml: Path, si_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms)
    outcome = dftfactory("submit", "c.db", "--write", "wf")
    assert outcome.status == 0, outcome.err
    assert outcome.out == "1 workflow file in wf; add them with `lpad add wf/*.json`\n"
    assert (tmp_path / "wf" / "a.json").is_file()
    assert statuses(db) == {"a": "QUEUED"}


@pytest.mark.mongodb
def test_sync_with_the_wrong_launchpad_says_so(
    dftfactory: Dftfactory, dft_yaml: Path, launchpad: Any, si_atoms: Atoms, tmp_path: Path
) -> None:
    make_database(tmp_path / "c.db", si_atoms)
    dftfactory("submit", "c.db", "--write", "wf")
    outcome = dftfactory("sync", "c.db", "-l", write_launchpad_file(launchpad, tmp_path))
    assert outcome.status == 0
    assert outcome.err.startswith("1 QUEUED structure is not in this LaunchPad: is it the right one?")


@pytest.mark.mongodb
def test_softened_labels_only_when_asked_for(
    dftfactory: Dftfactory, dft_yaml: Path, launchpad: Any, si_atoms: Atoms, tmp_path: Path
) -> None:
    write_launchpad_file(launchpad, tmp_path)
    db = make_database(tmp_path / "c.db", si_atoms)
    dftfactory("submit", "c.db")
    LabelStore(launchpad).put(label_for(specs(launchpad)["a"], "softened"))
    assert dftfactory("sync", "c.db").out.startswith("0 completed")
    refused = dftfactory("export", "train.extxyz")
    assert refused.status == 1
    assert "ask for them with --softened" in refused.err
    assert "ends in .extxyz or .xyz, got train.txt" in dftfactory("export", "train.txt", "--softened").err
    assert dftfactory("sync", "c.db", "--softened").out.startswith("1 completed")
    assert dftfactory("export", "train.extxyz", "--softened").status == 0
    assert rows(db)["a"].quality == "softened"
    assert states(launchpad) == {1: "READY"}


@pytest.mark.mongodb
def test_one_campaign_from_submit_to_archive(
    dftfactory: Dftfactory,
    dft_yaml: Path,
    launchpad: Any,
    si_atoms: Atoms,
    fake_pw: Callable[..., WorkerConfig],
    tmp_path: Path,
) -> None:
    """Beside another one, of which no command says or does anything; the label is from a rocket."""
    write_launchpad_file(launchpad, tmp_path)
    db = make_database(tmp_path / "c.db", si_atoms, shifted(si_atoms, 0.1))
    db.update(2, campaign="other")
    assert dftfactory("submit", "c.db").out.startswith("2 queued")
    db.update(1, status="SELECTED")
    assert "1 queued before" in dftfactory("submit", "c.db", "--campaign", "first").out
    assert dftfactory("submit", "c.db", "--campaign", "first").out == (
        "no structure in c.db is SELECTED for campaign first; `dftfactory status c.db` counts the others\n"
    )
    assert "campaign 'first' is not over: 1 READY" in dftfactory("archive", "first").err

    query = {"spec.campaigns": "first"}
    [fw_id] = launchpad.get_fw_ids(query)
    rlaunch(launchpad, tmp_path / "run", fake_pw("converged"), "singleshot", "-f", str(fw_id))
    counts = dftfactory("status", "c.db", "--campaign", "first").out.partition("\n")[2]
    assert counts[counts.index("Candidates") :].split() == [
        *("Candidates", "SELECTED", "0", "QUEUED", "1", "COMPLETED", "0", "FAILED", "0"),
        *("Fireworks", "COMPLETED", "1", "Labels", "level", "0,", "exact", "1"),
    ]
    [label] = LabelStore(launchpad).all()
    assert label["campaigns"] == ["first"]
    archived = dftfactory("archive", "first")
    assert archived.out == "1 Firework archived in first.jsonl.gz\n"
    assert launchpad.get_fw_ids(query) == []
    assert dftfactory("sync", "c.db", "--campaign", "first").out == "1 completed, 0 failed, 0 queued or running\n"
    assert statuses(db) == {"a": "COMPLETED", "b": "QUEUED"}
    assert dftfactory("export", "first.extxyz", "--campaign", "first").out.startswith("1 label in first.extxyz")
    assert "there are no labels" in dftfactory("export", "other.extxyz", "--campaign", "other").err
    assert dftfactory("recover", "--campaign", "other").status == 0
    assert dftfactory("reconcile", "--campaign", "other").out == "nothing is RUNNING or RESERVED\n"
    assert "the campaign of this command looks like a number" in dftfactory("submit", "c.db", "--campaign", "17").err


# launchpad


@pytest.mark.mongodb
def test_local_launchpad_starts_is_found_and_stops(dftfactory: Dftfactory, server_folder: Path, tmp_path: Path) -> None:
    """In ./launchpad, where the other commands look for it."""
    before = dftfactory("launchpad", "status")
    assert before.status == 1
    assert "does not run; start it with `dftfactory launchpad start" in before.out
    started = dftfactory("launchpad", "start")
    assert started.status == 0
    assert re.match(r"LaunchPad started on 127\.0\.0\.1:\d+ \(pid \d+\)\n", started.out)
    assert f"-l {server_folder / 'my_launchpad.yaml'}" in started.out
    assert dftfactory("launchpad", "start").out.startswith("LaunchPad already runs on 127.0.0.1:")
    assert dftfactory("launchpad", "status").out.startswith("runs on 127.0.0.1:")
    assert dftfactory("status").status == 0
    assert dftfactory("launchpad", "stop").out == "LaunchPad stopped\n"
    assert dftfactory("launchpad", "stop").out == "no LaunchPad was running in launchpad\n"
    away = dftfactory("status")
    assert away.status == 1
    assert f"run `dftfactory launchpad start --dir {server_folder}`" in away.err


# What was lost


@pytest.mark.mongodb
def test_recover_brings_a_label_from_the_disk(
    dftfactory: Dftfactory, launchpad: Any, dft_yaml: Path, si_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms)
    file = write_launchpad_file(launchpad, tmp_path)
    dftfactory("submit", "c.db", "-c", dft_yaml)
    (tmp_path / "runs" / "cut").mkdir(parents=True)
    write_label(tmp_path / "runs", label_for(specs(launchpad)["a"]))
    (tmp_path / "runs" / "cut" / "label.json").write_text("{")
    outcome = dftfactory("recover", "runs", "-l", file)
    assert outcome.out == "1 label on the disk, 1 of them stored now; 0 Fireworks set COMPLETED\n"
    assert "runs/cut/label.json is damaged" in outcome.err
    assert outcome.status == 1
    assert "1 completed" in dftfactory("sync", "c.db").out
    assert statuses(db) == {"a": "COMPLETED"}
    assert "nowhere is no folder" in dftfactory("recover", "nowhere").err


@pytest.mark.mongodb
def test_reconcile_says_what_it_found_and_did(
    dftfactory: Dftfactory,
    launchpad: Any,
    dft_yaml: Path,
    si_atoms: Atoms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fireworks import FWorker

    make_database(tmp_path / "c.db", si_atoms)
    write_launchpad_file(launchpad, tmp_path)
    dftfactory("submit", "c.db", "-c", dft_yaml)
    assert dftfactory("reconcile").out == "nothing is RUNNING or RESERVED\n"
    launchpad.checkout_fw(FWorker(), str(tmp_path), host="node7")
    [line, numbers] = dftfactory("reconcile").out.splitlines()
    assert line == "Firework 1 (a): unknown, its rocket ran on node7: see there, or give --gone node7"
    assert numbers == "1 out of sight"
    [line, numbers] = dftfactory("reconcile", "--gone", "node7", "--dry-run").out.splitlines()
    assert line == "Firework 1 (a): lost, node7 is gone, as you say"
    assert numbers == "1 lost"
    assert states(launchpad) == {1: "RUNNING"}
    dftfactory("reconcile", "--gone", "node7")
    assert states(launchpad) == {1: "READY"}


@pytest.mark.mongodb
def test_reconcile_goes_on_in_a_loop_when_the_database_is_away(
    dftfactory: Dftfactory, launchpad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_launchpad_file(launchpad, tmp_path)
    pauses, really_sleep = [], time.sleep

    def sleep(seconds: float) -> None:
        if seconds != 7:  # the driver's threads
            return really_sleep(seconds)
        pauses.append(seconds)
        if len(pauses) >= 3:
            raise KeyboardInterrupt

    def away(*_: Any, **__: Any) -> None:
        raise LaunchPadAwayError("it does not answer")

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("dftfactory.lost_runs.reconcile", away)
    outcome = dftfactory("reconcile", "--loop", "7")
    assert pauses == [7, 7, 7]
    assert outcome.err.count("error: it does not answer") == 3
    assert outcome.status == 130
    assert dftfactory("reconcile").status == 1
