"""The login of the web GUI: guesses wait, the password comes from a private file or the environment."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from web_logins import PASSWORD

from dftfactory.errors import ConfigError
from dftfactory.webgui import login as login_module
from dftfactory.webgui.login import PASSWORD_VARIABLE, Login, read_password


def request_with(username: str, password: str, address: str = "10.0.0.1") -> Any:
    authorization = SimpleNamespace(type="basic", username=username, password=password)
    return SimpleNamespace(authorization=authorization, remote_addr=address)


def test_guesses_wait_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(login_module.time, "sleep", slept.append)
    login = Login("ada", PASSWORD)
    for _ in range(10):
        assert not login.accepts(request_with("ada", "guess"), known=False)
    assert slept == sorted(slept)
    assert slept[-1] == 2.0
    slept.clear()
    # The right one waits as long, so that the time tells nothing; a known browser and another address do not.
    assert login.accepts(request_with("ada", PASSWORD), known=False)
    assert slept == [2.0]
    assert login.accepts(request_with("ada", PASSWORD), known=True)
    assert login.accepts(request_with("ada", PASSWORD, "10.0.0.2"), known=False)
    assert slept == [2.0]


def test_failures_are_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    slept: list[float] = []
    monkeypatch.setattr(login_module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=slept.append))
    login = Login("ada", PASSWORD)
    for _ in range(10):
        login.accepts(request_with("ada", "guess"), known=False)
    slept.clear()
    now[0] += 3600
    assert login.accepts(request_with("ada", PASSWORD), known=False)
    assert slept == []
    for n in range(3000):
        login.accepts(request_with("ada", "guess", f"10.0.{n // 256}.{n % 256}"), known=False)
    assert len(login._failures) <= 1000


def test_crowd_of_guesses_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are not taken up by them, and there are not more guesses than places."""
    from werkzeug.exceptions import TooManyRequests

    monkeypatch.setattr(login_module, "_PATIENCE", 0.01)
    monkeypatch.setattr(login_module, "_WAITS", (0.0, 0.1))
    login = Login("ada", PASSWORD)
    assert not login.accepts(request_with("ada", "guess"), known=False)
    for _ in range(login_module._WAITING):
        login._places.acquire()
    with pytest.raises(TooManyRequests):
        login.accepts(request_with("ada", PASSWORD), known=False)
    assert login.accepts(request_with("ada", PASSWORD), known=True)


def test_password_is_the_first_line_of_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\nsecond line\n")
    file.chmod(0o600)
    assert read_password(file) == PASSWORD


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_password_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "password"
    file.write_text("secret\n")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="others can read the password") as error:
        read_password(file)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"   \nsecond\n", b"\xff\xfe\n"])
def test_file_without_a_password_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"empty|UTF-8"):
        read_password(file)


def test_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the password"):
        read_password(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot read the password"):
        read_password(tmp_path)
    with pytest.raises(ConfigError, match="is not a file"):
        read_password(Path("/dev/null"))


def test_password_of_the_environment_does_not_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that is started from here would inherit it."""
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    assert read_password(None) == PASSWORD
    assert PASSWORD_VARIABLE not in os.environ
    assert read_password(None) is None
    monkeypatch.setenv(PASSWORD_VARIABLE, "")
    with pytest.raises(ConfigError, match="is empty"):
        read_password(None)
