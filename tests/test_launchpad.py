"""A LaunchPad is found and opened, or the reason is there within seconds, in one line and without the password."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dftfactory.errors import LaunchPadError
from dftfactory.launchpad import (
    CONNECT_FIRST_LINE,
    LAUNCHPAD_FILE,
    URI_VARIABLE,
    connect,
    describe_launchpad,
    load_launchpad,
    read_launchpad_file,
    rocket_command,
    write_launchpad_file,
)
from dftfactory.local_launchpad import LAUNCHPAD_FILE_TEXT, LocalLaunchPad, start_local_launchpad

PATIENT = "mongoclient_kwargs: {serverSelectionTimeoutMS: 60000}\n"


def _settings() -> st.SearchStrategy[bytes]:
    """Return files with the right keys and odd values, among them a password."""
    keys = ["name", "port", "username", "password", "authsource", "uri_mode", "mongoclient_kwargs"]
    keys += ["strm_lvl", "user_indices", "wf_user_indices", "ssl", "3"]
    # hypothesis takes words of this file, too, and a folder of logs would be written to.
    text = st.text(max_size=20).filter(lambda value: "s3cret" not in value)
    odd = st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), text),
        st.sampled_from([[1], {"password": "s3cret"}, {"password": ["s3cret"]}, {"s3cret": 1}, "$%/.", "2026-11-01"]),
        st.dictionaries(
            st.sampled_from(["tls", "tlsCAFile", "authMechanism", "w", "maxPoolSize"]), st.text(max_size=5)
        ),
    )
    hosts = ["localhost", "mongodb://me:s3cret@h/", "mongodb://me:s3cret", "mongodb://me:s3cret@h:x/?tls=1", "h:s3cret"]
    host = st.fixed_dictionaries({"host": st.one_of(st.sampled_from(hosts), text)})
    rest = st.dictionaries(st.sampled_from(keys), odd, max_size=5)
    password = st.sampled_from([{}, {"password": "s3cret"}, {"password": ["s3cret"]}])
    return st.builds(lambda *parts: json.dumps(dict(ChainMap(*parts))).encode(), password, host, rest)


def test_unreachable_launchpad_gives_one_line_within_seconds_and_no_password(tmp_path, monkeypatch):
    """pymongo itself would wait for 30 s, and the file asks for 60."""
    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 1.0)
    host = f"mongodb://alice:s3cret@127.0.0.1:{_closed_port()}/fireworks?authSource=admin"
    file = _launchpad_file(tmp_path, f"host: {host}\nuri_mode: true\nname: fireworks\n" + PATIENT)
    started = time.monotonic()
    message = r"no LaunchPad answers at 127\.0\.0\.1:\d+ within 1 s: check host"
    with pytest.raises(LaunchPadError, match=message) as caught:
        load_launchpad(file)
    assert time.monotonic() - started < 45
    _assert_one_line_without("s3cret", caught.value)


def test_stopped_local_launchpad_says_how_to_start_it(tmp_path, monkeypatch):
    """The file says which folder it belongs to, also where it was copied to."""
    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 0.5)
    file = _launchpad_file(tmp_path, _text_of_local(port=_closed_port()))
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
        ("host: localhost\nport: many\npassword: s3cret\n", r"`port` in .* must be a number$"),
        ("host: localhost\nport: 0\n", r"`port` in .* must be a number from 1 to 65535"),
        ("host: localhost\nport: true\n", r"`port` in .* must be a number$"),
        ("host: localhost\nhost: s3cret\n", r"is not valid YAML \(line 2\)"),
        ("host: !!python/object/apply:os.system [touch s3cret]\n", r"is not valid YAML \(line 1\)"),
        ("host: localhost\npassword: 2026-01-01\n", r"`password` in .* must be text, between quotes"),
        ("host: localhost\nuri_mode: 'no'\n", r"`uri_mode` in .* must be true or false"),
        ("host: localhost\npasswrod: s3cret\n", "has a key that FireWorks does not know; it knows host, name, "),
        ("host: localhost\ns3cret: 1\n", "has a key that FireWorks does not know"),
        ("host: localhost\nname: ../s3cret\n", r"`name` in .* must be the name of a database"),
        ("host: localhost\nname: a.$s3cret\n", r"`name` in .* must be the name of a database"),
        ("host: localhost\nmongoclient_kwargs: {1: s3cret}\n", "must have names of options"),
        ("host: localhost\nmongoclient_kwargs: {tlsCAfile: /no/such/file}\n", "cannot be used for localhost:27017"),
        ("host: localhost\nmongoclient_kwargs: {passwrod: s3cret}\n", "Unknown option: passwrod"),
        ("host: mongodb://h.example/?tsl=true\nuri_mode: true\nname: db\npassword: s3cret\n", "Unknown option: tsl"),
        ("host: localhost\nmongoclient_kwargs: {password: [s3cret]}\n", "cannot be used for localhost:27017"),
        ("[" * 1500, "is not valid YAML"),
        ("host: localhost\nlogdir: /no/such/folder\n", "No such file or directory"),
        ("host: localhost\nstrm_lvl: LOUD\n", "LOUD"),
        ("host: mongodb://alice:s3cret@h/db\nuri_mode: true\n", "has a URI and no `name"),
        ("host: mongodb://alice:s3cret\nuri_mode: true\nname: db\n", "cannot be used for alice "),
        ("host: mongodb://alice:x/s3cret@h.example/db\nuri_mode: true\nname: db\n", "cannot be used for h.example "),
        ("host: mongodb://alice:s3cret:@@h.example/db\nuri_mode: true\nname: db\n", "cannot be used for h.example "),
    ],
)
def test_unusable_launchpad_file_is_one_clear_line_without_the_password(text, complaint, tmp_path):
    with pytest.raises(LaunchPadError, match=complaint) as caught:
        load_launchpad(_launchpad_file(tmp_path, text))
    _assert_one_line_without("s3cret", caught.value)


def _junk() -> st.SearchStrategy[bytes]:
    """Return any content without the password, which only some places of a file keep secret."""
    anything = st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode))
    return anything.filter(lambda content: b"s3cret" not in content)


@given(st.one_of(_junk(), _settings()))
@example(b"host: localhost\nname: 2026-99-99\n")
@example(b"host: localhost\nname: !!int s3cret\n")
def test_any_content_is_a_launchpad_file_or_one_clear_error(content):
    """Whatever stands in the file: settings that FireWorks takes as well, or a LaunchPadError without the password."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / LAUNCHPAD_FILE
        file.write_bytes(content)
        try:
            settings = read_launchpad_file(file)
            settings["mongoclient_kwargs"] = {**(settings.get("mongoclient_kwargs") or {}), "connect": False}
            connect(settings, file).connection.close()
        except LaunchPadError as error:
            _assert_one_line_without("s3cret", error)
        assert "s3cret" not in describe_or_nothing(file)


def describe_or_nothing(file: Path) -> str:
    try:
        return describe_launchpad(file)
    except LaunchPadError as error:
        return str(error)


def test_folder_and_huge_file_are_no_launchpad_files(tmp_path):
    """The YAML reader would take a minute for 10 MB."""
    (tmp_path / LAUNCHPAD_FILE).mkdir()
    with pytest.raises(LaunchPadError, match=r"cannot read .*: Is a directory"):
        load_launchpad(tmp_path / LAUNCHPAD_FILE)
    (tmp_path / "huge.yaml").write_text("host: localhost\n" + "- x\n" * 2_500_000)
    with pytest.raises(LaunchPadError, match="has more than 100000 bytes"):
        load_launchpad(tmp_path / "huge.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_unreadable_launchpad_file_is_named(tmp_path):
    file = _launchpad_file(tmp_path, "host: localhost\n")
    file.chmod(0)
    with pytest.raises(LaunchPadError, match=r"cannot read .*: Permission denied"):
        load_launchpad(file)


@pytest.mark.mongodb
def test_password_that_others_can_read_is_warned_of_once(local_launchpad, tmp_path, capfd):
    file = _launchpad_file(tmp_path, local_launchpad.launchpad_file.read_text())
    file.chmod(0o640)
    for _ in range(2):
        load_launchpad(file).connection.close()
    load_launchpad(local_launchpad.launchpad_file).connection.close()
    warning = f"warning: {file} holds a password and others can read it: run `chmod 600 {file}`\n"
    assert capfd.readouterr() == ("", warning)


# `dftfactory launchpad connect`


@pytest.fixture
def awkward(server_folder: Path) -> LocalLaunchPad:
    """A server whose password has all that a URI needs escaped."""
    server_folder.mkdir(mode=0o700)
    text = _text_of_local(port=_closed_port(), folder=server_folder, password="p@ss/w:r%d?é #&")  # noqa: S106 - no real one
    (server_folder / LAUNCHPAD_FILE).write_text(text)
    return start_local_launchpad(server_folder)


@pytest.mark.mongodb
def test_file_from_the_environment_is_private_and_opens(awkward, tmp_path, monkeypatch):
    """Our commands and FireWorks' own read it; the URI in it, which `lpad` prints, has no password."""
    uri = f"mongodb://dftfactory:{quote_plus('p@ss/w:r%d?é #&')}@127.0.0.1:{awkward.port}/?authSource=admin"
    monkeypatch.setenv(URI_VARIABLE, uri)
    file = tmp_path / "my_launchpad.yaml"
    for _ in range(2):
        assert write_launchpad_file(file) == f"LaunchPad fireworks at 127.0.0.1:{awkward.port}, in {file}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_launchpad_file(file)["host"] == f"mongodb://127.0.0.1:{awkward.port}/?authSource=admin"
    assert load_launchpad(file).get_new_fw_id() == 1
    lpad = [sys.executable, "-m", "fireworks.scripts.lpad_run", "-l", str(file), "get_fws", "-d", "count"]
    assert subprocess.run(lpad, capture_output=True, text=True, check=True).stdout.split() == ["0"]

    said = write_launchpad_file(tmp_path / "new.yaml", "another")
    assert said.startswith(f"LaunchPad another at 127.0.0.1:{awkward.port}, in ")
    assert said.endswith(f"; it is new: run `lpad -l {tmp_path}/new.yaml reset` once")


@pytest.mark.mongodb
@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("mongodb://dftfactory:s3cret@127.0.0.1:{port}/?authSource=admin", r"refuses .* \(code 18\): check user, "),
        ("mongodb://me:s3cret@127.0.0.1:1/", f"no LaunchPad answers at 127.0.0.1:1 .* in {URI_VARIABLE}, "),
        ("mongodb://me:s3cret@127.0.0.1:{port}/?tls=perhaps", "cannot be used for 127.0.0.1"),
        ("mongodb://me:s3cret@", "cannot be used for"),
        ("mongodb://me:s3cret@127.0.0.1:{port}/a.b", f"`name` in {URI_VARIABLE} must be"),
        ("", f"{URI_VARIABLE} is not set"),
    ],
)
def test_unusable_uri_is_one_clear_line_and_nothing_is_written(uri, complaint, local_launchpad, tmp_path, monkeypatch):
    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 1.0)
    monkeypatch.setenv(URI_VARIABLE, uri.format(port=local_launchpad.port))
    with pytest.raises(LaunchPadError, match=complaint) as caught:
        write_launchpad_file(tmp_path / LAUNCHPAD_FILE)
    _assert_one_line_without("s3cret", caught.value)
    assert list(tmp_path.iterdir()) == []


def test_own_launchpad_file_is_not_replaced_by_connect(tmp_path, monkeypatch):
    monkeypatch.setenv(URI_VARIABLE, "mongodb://me:s3cret@127.0.0.1:1/")
    file = _launchpad_file(tmp_path, "host: localhost\n")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere.yaml")
    for there in (file, tmp_path / "link.yaml", tmp_path):
        with pytest.raises(LaunchPadError, match="is there already and is not overwritten"):
            write_launchpad_file(there)
    assert file.read_text() == "host: localhost\n"
    assert not CONNECT_FIRST_LINE.startswith("host")


# TLS

TLS_SERVER = """
import sys
from secantus.server import SecantusDBServer
from dftfactory.local_server import set_password
folder = sys.argv[1]
server = SecantusDBServer(storage_path=folder, require_auth=True, tls_cert_file=folder + "/cert.pem",
                          tls_key_file=folder + "/key.pem")
set_password(server.storage, "s3cret")
server.start()
print(server.address[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tls_server(local_launchpad: LocalLaunchPad, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Port of a server that speaks TLS only, and the certificate of who signed for it, which is itself."""
    folder = tmp_path / "tls"
    folder.mkdir()
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(["/usr/bin/openssl", *words.split(), *files], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", TLS_SERVER, str(folder)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), folder / "cert.pem"
        finally:
            process.kill()


@pytest.mark.mongodb
@pytest.mark.skipif(
    not (os.environ.get("CI") or Path("/usr/bin/openssl").exists()), reason="openssl makes the certificate"
)
def test_encrypted_launchpad_opens_with_the_file_that_we_give(tls_server, tmp_path, monkeypatch):
    """fw_configs/my_launchpad.yaml with its optional lines; without the authority's file the server is not trusted."""
    monkeypatch.setattr("dftfactory.launchpad.CONNECT_SECONDS", 2.0)
    port, certificate = tls_server
    text = (Path(__file__).parents[1] / "fw_configs" / LAUNCHPAD_FILE).read_text()
    text = text.replace("mongo.example.org:27017", f"127.0.0.1:{port}").replace("# tls: true", "tls: true")
    text = text.replace('"USER"', "dftfactory").replace('"PASSWORD"', "s3cret")
    with pytest.raises(LaunchPadError, match=rf"no LaunchPad answers at 127\.0\.0\.1:{port}"):
        load_launchpad(_launchpad_file(tmp_path, text))
    text = text.replace("# tlsCAFile: /path/to/ca.pem", f"tlsCAFile: {certificate}")
    with pytest.raises(LaunchPadError, match="is not a LaunchPad yet"):
        load_launchpad(_launchpad_file(tmp_path, text))

    options = f"authSource=admin&tls=true&tlsCAFile={quote_plus(str(certificate))}"
    monkeypatch.setenv(URI_VARIABLE, f"mongodb://dftfactory:s3cret@127.0.0.1:{port}/?{options}")
    assert "it is new" in write_launchpad_file(tmp_path / "connected.yaml")


def test_binary_and_missing_launchpad_files_are_named(tmp_path):
    with pytest.raises(LaunchPadError, match=r"cannot read .*no\.yaml: No such file"):
        load_launchpad(tmp_path / "no.yaml")
    (tmp_path / LAUNCHPAD_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LaunchPadError, match="is not valid YAML"):
        load_launchpad(tmp_path / LAUNCHPAD_FILE)


@pytest.mark.mongodb
def test_database_that_is_no_launchpad_yet_says_so(local_launchpad, tmp_path):
    """FireWorks itself fails later, when the first Firework asks for an id."""
    ours = local_launchpad.launchpad_file.read_text()
    file = _launchpad_file(tmp_path, ours.replace("name: fireworks", "name: empty"))
    with pytest.raises(LaunchPadError, match=r"database 'empty' at .* is not a LaunchPad yet: run `lpad -l .* reset`"):
        load_launchpad(file)


@pytest.mark.mongodb
def test_current_folder_comes_before_the_local_default_and_fireworks_configuration(
    local_launchpad, monkeypatch, tmp_path
):
    """Each place is looked into when the one before has no file."""
    monkeypatch.chdir(tmp_path)
    ours = local_launchpad.launchpad_file.read_text()
    elsewhere = _launchpad_file(tmp_path / "configured", ours.replace("user_indices: []", "user_indices: [configured]"))
    monkeypatch.setattr("fireworks.fw_config.LAUNCHPAD_LOC", str(elsewhere))
    assert load_launchpad().user_indices == ["configured"]
    _launchpad_file(tmp_path / "launchpad", ours.replace("user_indices: []", "user_indices: [default]"))
    assert load_launchpad().user_indices == ["default"]
    _launchpad_file(tmp_path, ours.replace("user_indices: []", "user_indices: [current]"))
    assert load_launchpad().user_indices == ["current"]


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


def _text_of_local(port: int, folder: object = "/home/me/launchpad", password: str = "s3cret") -> str:  # noqa: S107
    return LAUNCHPAD_FILE_TEXT.format(folder=folder, port=port, user="dftfactory", password=json.dumps(password))


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
