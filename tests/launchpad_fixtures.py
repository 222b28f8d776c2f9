"""Fixtures that start the real local server: one for the whole test run, with a database of its own for each test."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from dftfactory.launchpad import read_launchpad_file
from dftfactory.local_launchpad import LocalLaunchPad, start_local_launchpad, stop_local_launchpad

if TYPE_CHECKING:
    from fireworks import LaunchPad


def require_local_server() -> None:
    """Skip where SecantusDB is not installed; where CI says that it must be, fail."""
    if importlib.util.find_spec("secantus") is None:
        if os.environ.get("CI"):
            pytest.fail('CI must test the local LaunchPad: pip install "dftfactory[local]"')
        pytest.skip('SecantusDB is not installed: pip install "dftfactory[local]"')


@pytest.fixture
def server_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a server that the test starts itself; whatever happens, it is stopped afterwards."""
    require_local_server()
    folder = tmp_path / "launchpad"
    yield folder
    stop_local_launchpad(folder)


@pytest.fixture(scope="session")
def local_launchpad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLaunchPad]:
    require_local_server()
    folder = tmp_path_factory.mktemp("local") / "launchpad"
    try:
        yield start_local_launchpad(folder)
    finally:
        stop_local_launchpad(folder)


@pytest.fixture
def launchpad(local_launchpad: LocalLaunchPad) -> Iterator[LaunchPad]:
    """A fresh, initialised LaunchPad on the shared server. Not dropped afterwards: that takes seconds."""
    from fireworks import LaunchPad

    settings = read_launchpad_file(local_launchpad.launchpad_file)
    fresh = LaunchPad.from_dict(settings | {"name": f"test_{uuid4().hex}"})
    fresh.reset("", require_password=False, max_reset_wo_password=0)
    yield fresh
    fresh.connection.close()
