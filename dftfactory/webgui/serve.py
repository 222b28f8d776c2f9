"""The server of the web GUI: one process with a thread for each request, until Ctrl-C or SIGTERM.

It is Werkzeug's server and not gunicorn's, both of which come with FireWorks. The pages keep all records in memory and
logins wait by address: that is one process, which gunicorn would be as well with a single worker, while a second worker
would load everything twice. What Werkzeug's is warned of is missing here or added: no debugger and no reloader, the
port is bound by us, connections that say nothing are closed, and no more requests work at once than the application
lets: one that is not read yet, or whose answer is not fetched, keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import logging
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.errors import ConfigError
from dftfactory.webgui.login import GOOD_LENGTH, PASSWORD_VARIABLE, check_username, read_password
from dftfactory.webgui.safety import is_loopback

if TYPE_CHECKING:
    from fireworks import LaunchPad
    from werkzeug.serving import BaseWSGIServer

PORT = 5000
# Connections at once, each with a thread that mostly sleeps: a browser keeps six open. A process has 1024 files.
_CONNECTIONS = 500
# Seconds until a connection that says nothing is closed; browsers open some in advance. Also for a whole request: who
# sends a letter now and then would stay for ever.
_IDLE_SECONDS = 30
# Ports to look at for a free one.
_NEARBY = 100


def serve(
    launchpad: LaunchPad,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    username: str = "dftfactory",
    password_file: Path | None = None,
    browser: bool = False,
    verbose: bool = False,
) -> None:
    """Serve the web GUI until Ctrl-C or SIGTERM.

    Raises
    ------
    ConfigError
        The port is taken or not ours to take, the host is none of this machine, or the password cannot be used.
    """
    username, password = check_username(username), read_password(password_file)
    with _listening(host, port) as listener:
        from dftfactory.webgui.app import make_app

        app = make_app(launchpad, username=username, password=password, host=host)
        server = _make_server(app, host, listener, verbose=verbose)
        address = f"http://{_in_url(host)}:{port or server.port}/dft/"
        for line in describe(host, server.port, username, password):
            print(line, flush=True)  # noqa: T201  (the output of the command)
        print(f"open {address}   (Ctrl-C ends it)", flush=True)  # noqa: T201
        # The first page is not kept waiting for what it needs.
        threading.Thread(target=_warm_up, args=(app,), daemon=True).start()
        if browser:
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        _serve_until_asked_to_stop(server)
    print("stopped", flush=True)  # noqa: T201


def describe(host: str, port: int, username: str, password: str | None) -> list[str]:
    """Return what a user must know about who can read the pages from where, in lines."""
    lines = []
    if password is not None:
        lines.append(f"login: user {username}, with the password")
        if len(password) < GOOD_LENGTH:
            lines.append(f"warning: a password of less than {GOOD_LENGTH} letters can be found by trying")
    if is_loopback(host):
        if password is None:
            lines.append(
                "every user of this machine can read the pages; to ask for a password: "
                f"--password-file FILE (`(umask 077; openssl rand -hex 16 > FILE)` makes one), or {PASSWORD_VARIABLE}"
            )
        lines.append(f"from another machine: {ssh_command(port)}")
        return lines
    readers = "everybody who reaches this machine over the network can read the pages"
    if password is not None:
        readers = "the password and the pages travel over the network unencrypted"
    lines.append(f"WARNING: {readers}. Safer: leave --host away, and on your own machine run {ssh_command(port)}")
    if password is None:
        lines.append(f"WARNING: there is no password: set one with --password-file FILE or {PASSWORD_VARIABLE}")
    return lines


def ssh_command(port: int) -> str:
    """Return the line that brings the pages to another machine, encrypted and with the login of this one."""
    who = f"{getpass.getuser()}@{socket.getfqdn()}"
    return shlex.join(["ssh", "-N", "-L", f"{port}:127.0.0.1:{port}", who])


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port before anything else is done."""
    if not 0 <= port < 65536:
        raise ConfigError(f"--port must be a number from 1 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {host!r} is no address of this machine: {error.strerror}") from error
    with socket.socket(family, kind, protocol) as listener:
        # A port that the last run has just left is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                free = _free_port(family, host, port)
                other = "" if free is None else f": take the next free one, --port {free}"
                raise ConfigError(f"port {port} on {host} is taken{other}") from error
            raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
        yield listener


def _free_port(family: int, host: str, taken: int) -> int | None:
    for port in range(taken + 1, min(taken + _NEARBY, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    return None


def _make_server(app: Any, host: str, listener: socket.socket, *, verbose: bool) -> BaseWSGIServer:
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

    # Flask's lines about errors go to standard error; Werkzeug's own are those of every request.
    logging.getLogger("werkzeug").setLevel(logging.INFO if verbose else logging.ERROR)
    places = threading.BoundedSemaphore(_CONNECTIONS)
    # Connections whose request is not read yet → when they are given up.
    unread: dict[socket.socket, float] = {}

    def give_up(connection: socket.socket) -> None:
        unread.pop(connection, None)
        with contextlib.suppress(OSError):  # it has gone by itself
            connection.shutdown(socket.SHUT_RDWR)

    def make_room() -> bool:
        """Give up the connection that has said nothing for the longest time: a request is read in no time."""
        longest = next(iter(list(unread)), None)
        if longest is not None:
            give_up(longest)
        return longest is not None

    class Handler(WSGIRequestHandler):
        timeout = _IDLE_SECONDS
        server_version = sys_version = ""

        def version_string(self) -> str:
            return "dftfactory"

        def handle_one_request(self) -> None:
            unread[self.connection] = time.monotonic() + _IDLE_SECONDS
            try:
                super().handle_one_request()
            finally:
                unread.pop(self.connection, None)

        def run_wsgi(self) -> None:
            unread.pop(self.connection, None)
            super().run_wsgi()

        def log_error(self, format: str, *args: Any) -> None:
            if verbose:  # who closes a connection is no error of ours
                super().log_error(format, *args)

    class Server(ThreadedWSGIServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            if not places.acquire(blocking=False) and not (make_room() and places.acquire(timeout=0.2)):
                self.shutdown_request(request)
                return
            try:
                super().process_request(request, client_address)
            except BaseException:  # no more threads for this user
                places.release()
                raise

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                places.release()

        def service_actions(self) -> None:
            for connection, until in list(unread.items()):
                if time.monotonic() > until:
                    give_up(connection)

        def handle_error(self, request: Any, client_address: Any) -> None:
            # A browser that goes away in the middle of an answer.
            if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
                super().handle_error(request, client_address)

    return Server(host, listener.getsockname()[1], app, Handler, fd=listener.fileno())


def _serve_until_asked_to_stop(server: BaseWSGIServer) -> None:
    def stop(number: int, frame: Any) -> None:
        # From another thread: it waits for the loop of this one to end.
        threading.Thread(target=server.shutdown, daemon=True).start()

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _warm_up(app: Any) -> None:
    # A database that is away now is asked again by the first page.
    from dftfactory.webgui.app import RECORDS

    with contextlib.suppress(Exception):
        app.extensions[RECORDS].records()
        import matplotlib.figure  # noqa: F401  (half a second, for the first chart)

        app.lp.warm_up()


def _in_url(host: str) -> str:
    shown = {"0.0.0.0": socket.getfqdn(), "::": socket.getfqdn()}.get(host, host)  # noqa: S104  (a comparison)
    return f"[{shown}]" if ":" in shown else shown
