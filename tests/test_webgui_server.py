"""`dftfactory webgui` as a process: it serves, says what is wrong, ends cleanly, and nobody can hold it up."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_fixtures import Site
from queue_helpers import write_launchpad_file
from web_logins import PASSWORD, RIGHT

from dftfactory.errors import ConfigError
from dftfactory.webgui import serve as serve_module


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`dftfactory webgui` in a process of its own, as typed."""

    def __init__(self, launchpad_file: Path, *words: str, **environment: str) -> None:
        self.port = free_port()
        command = [
            sys.executable,
            "-m",
            "dftfactory.cli",
            "webgui",
            "-l",
            str(launchpad_file),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment,
        )
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("open "):
                break

    def get(self, address: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{address}", headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  (http above)
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.said) + rest


@pytest.fixture
def launchpad_file(site: Site, tmp_path: Path) -> Path:
    return write_launchpad_file(site.launchpad, tmp_path)


@pytest.mark.mongodb
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_serves_and_ends_cleanly(launchpad_file: Path, number: int) -> None:
    server = Server(launchpad_file)
    try:
        assert server.said[-1].startswith(f"open http://127.0.0.1:{server.port}/dft/")
        assert server.get("/fw/")[0] == 200
        assert server.get("/fw/99999")[0] == 404
        with socket.create_connection(("127.0.0.1", server.port)):  # one that says nothing
            code, said = server.end(number)
    finally:
        server.end()
    assert code == 0
    assert said.endswith("stopped\n")
    # No line for a request, and no warning of a development server.
    assert "GET" not in said
    assert "WARNING" not in said
    assert "Traceback" not in said


@pytest.mark.mongodb
def test_server_asks_for_the_password_of_a_file(launchpad_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    file.chmod(0o600)
    server = Server(launchpad_file, "--password-file", str(file), "--verbose")
    try:
        assert server.get("/static/images/fw-logo.png")[0] == 401
        assert server.get("/fw/", RIGHT)[0] == 200
        assert PASSWORD not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
    finally:
        _, said = server.end()
    assert "login: user dftfactory" in said
    assert PASSWORD not in said
    assert '"GET /fw/ HTTP/1.1" 200' in said


@pytest.mark.mongodb
def test_taken_port_is_told_with_the_next_free_one(launchpad_file: Path) -> None:
    server = Server(launchpad_file)
    try:
        second = subprocess.run(
            [*server.process.args[:-1], str(server.port)],  # type: ignore[misc, index]  # the list of above
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
    finally:
        server.end()
    assert second.returncode == 1
    told = re.search(rf"error: port {server.port} on 127\.0\.0\.1 is taken: .* --port (\d+)", second.stderr)
    assert told is not None
    assert int(told[1]) > server.port
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("host", "port"), [("no.such.host.invalid", 5000), ("203.0.113.7", 5000), ("127.0.0.1", 70000)]
)
def test_host_or_port_that_cannot_be_is_an_error(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=r"--host|--port|cannot listen"), serve_module._listening(host, port):
        pass


@pytest.mark.mongodb
def test_database_that_is_away_is_said_and_comes_back(server_folder: Path) -> None:
    from dftfactory.local_launchpad import start_local_launchpad, stop_local_launchpad

    local = start_local_launchpad(server_folder)
    server = Server(local.launchpad_file)
    try:
        assert server.get("/fw/")[0] == 200
        stop_local_launchpad(server_folder)
        time.sleep(3.1)  # for so long an answer of the database is good
        for address in ("/", "/fw/", "/dft/", "/fw/1"):
            code, text = server.get(address)
            assert code == 503, address
            assert "does not answer" in text
            assert "dftfactory launchpad start" in text or "dftfactory check" in text
        assert server.get("/static/css/styles.css")[0] == 200
        start_local_launchpad(server_folder)
        codes = []
        for _ in range(20):
            codes.append(server.get("/fw/")[0])
            if codes[-1] == 200:
                break
            time.sleep(0.5)
        assert codes[-1] == 200
    finally:
        _, said = server.end()
    assert "Traceback" not in said


@pytest.fixture
def serving() -> Iterator[int]:
    """Our server in this process, with an application that answers at once; its port."""

    def hello(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]

    with serve_module._listening("127.0.0.1", 0) as listener:
        server = serve_module._make_server(hello, "127.0.0.1", listener, verbose=False)
        loop = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        loop.start()
        yield server.port
        server.shutdown()
        loop.join()


def answer_of(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        return bytes(answer.read())


def test_connections_that_say_nothing_keep_nobody_waiting(serving: int) -> None:
    """Everybody on a login node can open them, without a login; and each browser keeps six."""
    with contextlib.ExitStack() as stack:
        for number in range(serve_module._CONNECTIONS + 20):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", serving)))
            connection.sendall(b"GET / HTTP/1.1\r\n" if number % 2 else b"")
        assert answer_of(serving) == b"hello"


def test_request_that_drips_in_is_given_up(serving: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each letter of it comes before the connection would be idle."""
    monkeypatch.setattr(serve_module, "_IDLE_SECONDS", 1)

    def drip(connection: socket.socket) -> None:
        for number in range(200):
            connection.sendall(b"X: 1\r\n" if number else b"GET / HTTP/1.1\r\n")
            time.sleep(0.1)

    with socket.create_connection(("127.0.0.1", serving)) as connection, pytest.raises(ConnectionError):
        drip(connection)
