"""Scratch folders of dead calculations are deleted, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dftfactory import owners
from dftfactory.scratch import make_scratch, release, sweep

# Makes a scratch folder, as a calculation in another process does, and says which.
OTHER = """
import sys, time
from pathlib import Path
from dftfactory.scratch import make_scratch
print(make_scratch(Path(sys.argv[1]), Path(sys.argv[2])), flush=True)
time.sleep(600)
"""


@pytest.fixture
def of_the_dead(tmp_path: Path) -> Path:
    """Scratch folder of a process that was killed while it worked."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [sys.executable, "-c", OTHER, str(tmp_path / "disk"), str(tmp_path / "run")]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        (folder / "pwscf.wfc1").write_text("gigabytes")
        sweep(tmp_path / "disk")
        assert folder.is_dir()  # it lives
        process.kill()
    return folder


def change_owner(folder: Path, **changes: object) -> None:
    note = folder / "owner.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), **changes}))


def test_the_folder_of_a_dead_process_is_deleted_when_a_new_one_is_made(of_the_dead: Path, tmp_path: Path) -> None:
    new = make_scratch(tmp_path / "disk", tmp_path / "run2")
    assert list((tmp_path / "disk").iterdir()) == [new]


@pytest.mark.parametrize(
    "other",
    [{"host": "node7"}, {"boot": "another", "machine": "another"}, {"processes": "pid:[1]"}, {"pid": "?"}],
)
def test_a_folder_of_another_host_container_or_boot_is_left_alone(other: dict[str, str], of_the_dead: Path) -> None:
    change_owner(of_the_dead, **other)
    sweep(of_the_dead.parent)
    assert (of_the_dead / "pwscf.wfc1").is_file()


def test_a_folder_from_before_a_reboot_of_the_machine_is_deleted(
    of_the_dead: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another machine may have the same name, but not the same id."""
    (tmp_path / "machine-id").write_text("0123\n")
    monkeypatch.setattr(owners, "MACHINE_ID", tmp_path / "machine-id")
    change_owner(of_the_dead, boot="another", machine="0123")
    sweep(of_the_dead.parent)
    assert not of_the_dead.exists()


def test_a_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    folder = make_scratch(tmp_path / "disk", tmp_path)
    sweep(tmp_path / "disk")
    assert folder.is_dir()


def test_a_pid_that_the_kernel_has_given_again_is_that_of_a_stranger(tmp_path: Path) -> None:
    folder = make_scratch(tmp_path / "disk", tmp_path)
    change_owner(folder, started=1)
    sweep(tmp_path / "disk")
    assert not folder.exists()


def test_a_pw_x_that_outlived_its_python_keeps_its_scratch(of_the_dead: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with subprocess.Popen(["/bin/sleep", "600"], cwd=tmp_path / "run") as orphan:
        sweep(of_the_dead.parent)
        assert of_the_dead.is_dir()
        orphan.kill()
    sweep(of_the_dead.parent)
    assert not of_the_dead.exists()


def test_what_has_no_note_or_another_name_is_not_ours_to_delete(of_the_dead: Path) -> None:
    disk = of_the_dead.parent
    for name, note in (("dftfactory-old", None), ("dftfactory-cut", "{"), ("dftfactory-list", "[]")):
        (disk / name).mkdir()
        if note is not None:
            (disk / name / "owner.json").write_text(note)
    (disk / "thesis").mkdir()
    (disk / "thesis" / "owner.json").write_text((of_the_dead / "owner.json").read_text())
    release(of_the_dead)
    sweep(disk)
    left = sorted(path.name for path in disk.iterdir())
    assert left == sorted(["dftfactory-cut", "dftfactory-list", "dftfactory-old", of_the_dead.name, "thesis"])
