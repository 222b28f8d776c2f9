"""What one run of pw.x left in its folder, read once for the diagnosis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from dftfactory.errors import InputError, ParserError
from dftfactory.history import has_history, read_history
from dftfactory.inputs import PwInput, read_pw_input
from dftfactory.parsers import PwText, last_run, parse_text, read_exit_status, read_output

# Characters: whatever stops a run is said at its end, and the last pages of a runaway output are searched in no time.
END_OF_FILE = 200_000
# Nobody else writes into the folder within it, and the clocks of two machines agree to it.
CLOCKS = timedelta(minutes=1)


@dataclass(frozen=True)
class RunFiles:
    """What a run left; `messages` is where pw.x, its libraries and the system say what went wrong."""

    folder: Path
    status: int | None
    out: str
    err: str
    messages: str
    text: PwText
    pw_input: PwInput | None
    history: Mapping[str, Any]

    def asked(self, keyword: str, *values: Any) -> bool:
        """Whether the input has one of `values` (any value where none is given) for the keyword."""
        value = self.pw_input.get(keyword) if self.pw_input else None
        return value is not None and (not values or value in values)

    @property
    def restarted(self) -> bool:
        """Whether a saved state was asked for."""
        return self.asked("restart_mode", "restart") or self.asked("startingpot", "file")


def read_run_files(folder: Path) -> RunFiles:
    """Read all that is there; nothing is raised for what is missing or damaged."""
    out = last_run(read_output(folder))
    try:
        pw_input = read_pw_input(folder / "pw.in")
    except InputError:
        pw_input = None
    text = parse_text(out)
    err = read_output(folder, "pw.err")
    # pw.x writes its warnings so, and goes on.
    said = re.sub(r"^ *Message from routine .*\n.*\n", "", out[-END_OF_FILE:], flags=re.M)
    # CRASH has the errors of all pools. An earlier one stays in the folder; a run that says JOB DONE wrote none.
    crash = "" if text.job_done or _is_older(folder / "CRASH", text) else read_output(folder, "CRASH")
    messages = "\n".join((said, err[-END_OF_FILE:], crash[-END_OF_FILE:]))
    try:
        history = read_history(folder) if has_history(folder) else {}
    except ParserError:  # `read_pw_output` says so
        history = {}
    return RunFiles(folder, read_exit_status(folder), out, err, messages, text, pw_input, history)


def _is_older(path: Path, text: PwText) -> bool:
    """Whether a file was there before the run began, in a folder that has kept its times."""
    try:
        # pw.x prints local time, too.
        written, out = (datetime.fromtimestamp(file.stat().st_mtime) for file in (path, path.with_name("pw.out")))
    except OSError:
        return False
    return text.started is not None and written < text.started - CLOCKS <= out
