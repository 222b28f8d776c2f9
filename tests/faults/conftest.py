"""Fixtures of tests of faults: the stand-in pw.x, processes that may be killed, and nothing that outlives a test."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from recordings import StandIn, make_stand_in
from victims import FORKING

from dftfactory import lost_runs, orphans, repairs
from dftfactory.sessions import pw_sessions, signal_session

Start = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def _quick_processes() -> Iterator[None]:
    """Let processes begin with everything imported: there are many of them."""
    FORKING.set_forkserver_preload(["victims", "dftfactory.firetasks", "dftfactory.runner", "ase.db", "ase.io.extxyz"])
    with pytest.MonkeyPatch.context() as patch:
        # It does not look for modules where we do.
        patch.setenv("PYTHONPATH", os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path))
        forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it would end with pytest


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts one of `victims` in a process, which does not outlive the test, nor its pw.x."""
    processes = []

    def begin(function: Callable[..., None], *arguments: Any, **options: Any) -> Any:
        process = FORKING.Process(target=function, args=arguments, kwargs=options)
        process.start()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        with contextlib.suppress(ValueError):
            process.kill()
            process.join()
    for session in pw_sessions(tmp_path):
        signal_session(session, signal.SIGKILL)


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """A stand-in pw.x whose runs take no time, unless they are held."""
    return make_stand_in(tmp_path / "stand_in")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take at once for lost, or for half done, what looks so: nobody else works on the LaunchPad of a test."""
    monkeypatch.setattr(lost_runs, "BEGIN_SECONDS", 0.0)
    monkeypatch.setattr(repairs, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(orphans, "SOFT_SECONDS", 20.0)
