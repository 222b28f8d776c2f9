"""Who may look: one user name and one password for every address of the web GUI (HTTP basic auth)."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dftfactory.errors import ConfigError

if TYPE_CHECKING:
    from werkzeug.wrappers import Request

PASSWORD_VARIABLE = "DFTFACTORY_WEBGUI_PASSWORD"  # noqa: S105  (the name of a variable)
# A password of this length, of random letters, is not found by trying.
GOOD_LENGTH = 12
# Seconds that a login waits after so many failures from the same address, the last one from then on. Not longer: on a
# login node all users come from the same address, and somebody else's failures must not keep the right one out.
_WAITS = (0.0, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
# Logins that wait at once, of all addresses: with two seconds each, four guesses in a second.
_WAITING = 8
_PATIENCE = 20.0
# Failures are forgotten after so many seconds, and addresses when there are more.
_MEMORY = 600.0
_ADDRESSES = 1000


def read_password(file: Path | None) -> str | None:
    """Return the first line of a file, or DFTFACTORY_WEBGUI_PASSWORD without one; None where neither is given.

    The variable is taken out of the environment, which programs that are started from here would inherit.

    Raises
    ------
    ConfigError
        The file cannot be read, others can read it, or the password is empty.
    """
    from_environment = os.environ.pop(PASSWORD_VARIABLE, None)
    if file is None:
        if from_environment == "":
            raise ConfigError(f"{PASSWORD_VARIABLE} is empty: unset it, or give it a password")
        return from_environment
    try:
        # The file that is looked at is the one that is read.
        with file.open("rb") as opened:
            state = os.fstat(opened.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise ConfigError(f"{file} is not a file")
            if state.st_mode & 0o077:
                raise ConfigError(f"others can read the password in {file}: run `chmod 600 {file}`")
            line = opened.readline(10_000)
    except OSError as error:
        raise ConfigError(f"cannot read the password in {file}: {error.strerror}") from error
    try:
        password = line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"the password in {file} is not text in UTF-8") from None
    if not password.strip():
        raise ConfigError(f"the first line of {file} is empty: expected the password")
    return password


def check_username(username: str) -> str:
    """Return a user name that basic auth can carry; refuse another one."""
    if not username or ":" in username or not username.isprintable():
        raise ConfigError(f"the user name of the web GUI is one or more letters without a colon, got {username!r}")
    return username


class Login:
    """Compares logins with the right one, and makes guessing slow.

    Before a login is looked at it waits, the longer the more have failed from its address lately, whether it is right
    or not: who guesses learns nothing from the time. A browser that has logged in before is `known` and never waits.
    """

    def __init__(self, username: str, password: str) -> None:
        self._right = _digest(username, password)
        self._failures: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_WAITING)

    def accepts(self, request: Request, *, known: bool) -> bool:
        """Whether a request has the right user name and password.

        Raises
        ------
        werkzeug.exceptions.TooManyRequests
            So many logins wait already that this one was not looked at.
        """
        from werkzeug.exceptions import TooManyRequests

        given = request.authorization
        if given is None or given.type != "basic" or given.username is None or given.password is None:
            return False  # every browser begins so; it is no guess
        address = request.remote_addr or ""
        wait = 0.0 if known else self._seconds_to_wait(address)
        if wait:
            if not self._places.acquire(timeout=_PATIENCE):
                raise TooManyRequests
            try:
                time.sleep(wait)
            finally:
                self._places.release()
        right = hmac.compare_digest(self._right, _digest(given.username, given.password))
        if not right:
            self._remember(address)
        return right

    def _seconds_to_wait(self, address: str) -> float:
        with self._lock:
            number, when = self._failures.get(address, (0, 0.0))
        if time.monotonic() - when > _MEMORY:
            return 0.0
        return _WAITS[min(number, len(_WAITS) - 1)]

    def _remember(self, address: str) -> None:
        now = time.monotonic()
        with self._lock:
            number, when = self._failures.pop(address, (0, now))
            self._failures[address] = (1 if now - when > _MEMORY else number + 1, now)
            if len(self._failures) > _ADDRESSES:
                del self._failures[next(iter(self._failures))]  # the one that failed longest ago


def _digest(username: str, password: str) -> bytes:
    """Return a value of one length for every login, so that a comparison tells nothing of it."""
    return hashlib.sha256(f"{username}:{password}".encode("utf-8", "surrogatepass")).digest()
