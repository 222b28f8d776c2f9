"""`dftfactory WORDS`, as typed in the folder of a test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dftfactory import cli, launchpad


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Dftfactory = Callable[..., Outcome]


@pytest.fixture
def dftfactory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dftfactory:
    """`dftfactory WORDS` in tmp_path, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launchpad, "CONNECT_SECONDS", 0.5)

    def command(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dftfactory", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Outcome(status, *capsys.readouterr())

    return command
