"""A LaunchPad is found and opened, or the reason is there within seconds, in one line and without the password."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dftfactory.errors import LaunchPadError
from dftfactory.launchpad import LAUNCHPAD_FILE, describe_launchpad, load_launchpad, rocket_command
from dftfactory.local_launchpad import LAUNCHPAD_FILE_TEXT

PATIENT = "mongoclient_kwargs: {serverSelectionTimeoutMS: 60000}\n"


def test_unreachable_launchpad_gives_one_line_within_seconds_and_no_password(tmp_path, monkeypatch):
    """pymongo itself would wait for 30 s, and the file asks for 60."""
    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 1.0)
    host = f"mongodb://alice:s3cret@127.0.0.1:{_closed_port()}/fireworks?authSource=admin"
    file = _launchpad_file(tmp_path, f"host: {host}\nuri_mode: true\nname: fireworks\n" + PATIENT)
    started = time.monotonic()
    message = r"no LaunchPad answers at 127\.0\.0\.1:\d+ within 1 s: check host"
    with pytest.raises(LaunchPadError, match=message) as caught:
        load_launchpad(file)
    assert time.monotonic() - started < 5
    _assert_one_line_without("s3cret", caught.value)


def test_stopped_local_launchpad_says_how_to_start_it(tmp_path, monkeypatch):
    """The file says which folder it belongs to, also where it was copied to."""
    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 0.5)
    file = _launchpad_file(tmp_path, LAUNCHPAD_FILE_TEXT.format(folder="/home/me/launchpad", port=_closed_port()))
    with pytest.raises(LaunchPadError, match="run `dftfactory launchpad start --dir /home/me/launchpad`"):
        load_launchpad(file)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("host: [s3cret\n", r"is not valid YAML \(line \d\)"),
        ("password: s3cret: s3cret\n", r"is not valid YAML \(line 1\)"),
        ("", "is no LaunchPad file: expected `host"),
        ("- s3cret\n", "is no LaunchPad file: expected `host"),
        ("port: 27017\npassword: s3cret\n", "is no LaunchPad file: expected `host"),
        ("host: localhost\nport: many\npassword: s3cret\n", "port must be an instance of int"),
        ("host: localhost\nlogdir: /no/such/folder\n", "No such file or directory"),
        ("host: localhost\nstrm_lvl: LOUD\n", "LOUD"),
        ("host: mongodb://alice:s3cret@h/db\nuri_mode: true\n", "has a URI and no `name"),
        ("host: mongodb://alice:x/s3cret@h.example/db\nuri_mode: true\nname: db\n", "cannot be used for h.example "),
        ("host: mongodb://alice:s3cret:@@h.example/db\nuri_mode: true\nname: db\n", "cannot be used for h.example "),
    ],
)
def test_unusable_launchpad_file_is_one_clear_line_without_the_password(text, complaint, tmp_path):
    with pytest.raises(LaunchPadError, match=complaint) as caught:
        load_launchpad(_launchpad_file(tmp_path, text))
    _assert_one_line_without("s3cret", caught.value)


def test_binary_and_missing_launchpad_files_are_named(tmp_path):
    with pytest.raises(LaunchPadError, match=r"cannot read .*no\.yaml: No such file"):
        load_launchpad(tmp_path / "no.yaml")
    (tmp_path / LAUNCHPAD_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LaunchPadError, match="is not valid YAML"):
        load_launchpad(tmp_path / LAUNCHPAD_FILE)


@pytest.mark.mongodb
def test_database_that_is_no_launchpad_yet_says_so(local_launchpad, tmp_path):
    """FireWorks itself fails later, when the first Firework asks for an id."""
    file = _launchpad_file(tmp_path, f"host: 127.0.0.1\nport: {local_launchpad.port}\nname: empty\n")
    with pytest.raises(LaunchPadError, match=r"database 'empty' at .* is not a LaunchPad yet: run `lpad -l .* reset`"):
        load_launchpad(file)


@pytest.mark.mongodb
def test_current_folder_comes_before_the_local_default_and_fireworks_configuration(
    local_launchpad, monkeypatch, tmp_path
):
    """Each place is looked into when the one before has no file."""
    monkeypatch.chdir(tmp_path)
    ours = local_launchpad.launchpad_file.read_text()
    elsewhere = _launchpad_file(tmp_path / "configured", ours.replace("authsource: null", "authsource: configured"))
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", str(elsewhere))
    assert load_launchpad().authsource == "configured"
    _launchpad_file(tmp_path / "launchpad", ours.replace("authsource: null", "authsource: default"))
    assert load_launchpad().authsource == "default"
    _launchpad_file(tmp_path, ours.replace("authsource: null", "authsource: current"))
    assert load_launchpad().authsource == "current"


def test_no_launchpad_anywhere_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", None)
    with pytest.raises(LaunchPadError, match="run `dftfactory launchpad start` for a local LaunchPad, or write one"):
        load_launchpad()


@pytest.mark.mongodb
def test_opening_a_launchpad_leaves_standard_output_alone(local_launchpad):
    """`dftfactory export > train.extxyz` must not begin with a log line."""
    code = (
        "from dftfactory.launchpad import load_launchpad; from pathlib import Path; from fireworks import *;"
        f"lp = load_launchpad(Path({str(local_launchpad.launchpad_file)!r}));"
        "lp.m_logger.warning('a warning')"
    )
    quiet = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert quiet.stdout == ""
    assert "a warning" in quiet.stderr


def test_line_for_rockets_names_what_rlaunch_would_not_find(tmp_path, monkeypatch):
    """What FW_config.yaml names it finds by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", "/configured/my_launchpad.yaml")
    assert rocket_command(None, Path("my_fworker.yaml")) == "rlaunch rapidfire"
    _launchpad_file(tmp_path / "launchpad", "host: localhost\n")
    assert rocket_command() == "rlaunch -l launchpad/my_launchpad.yaml rapidfire"
    assert rocket_command(None, Path("w.yaml")) == "rlaunch -l launchpad/my_launchpad.yaml -w w.yaml rapidfire"
    assert rocket_command(Path("my pad.yaml")) == "rlaunch -l 'my pad.yaml' rapidfire"


def test_launchpad_is_described_without_its_password(tmp_path):
    host = "mongodb://alice:s3cret@db.example:27018/fireworks?authSource=admin"
    file = _launchpad_file(tmp_path, f"host: {host}\nuri_mode: true\nname: fireworks\n")
    assert describe_launchpad(file) == f"db.example:27018 ({file})"
    file = _launchpad_file(tmp_path, "host: localhost\npassword: s3cret\n")
    assert describe_launchpad(file) == f"localhost:27017 ({file})"


def _launchpad_file(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / LAUNCHPAD_FILE
    file.write_text(text)
    return file


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _assert_one_line_without(secret: str, error: LaunchPadError) -> None:
    assert secret not in json.dumps(error.to_dict())
    assert secret not in str(error)
    assert "\n" not in str(error)
