"""The log: one line for each thing that happens to a calculation, for people to read or for programs.

Whoever wants the lines adds a handler to the logger `dftfactory`, at level INFO. Nothing is configured on import; a
rocket shows them on its standard output and `dftfactory run` on a terminal, while they work and when nobody else does.
Each record has `calculation_id`, `fw_id` (None without FireWorks), `event` and `facts` (a dict of plain values).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ParamSpec, TextIO

from dftfactory.errors import DFTFactoryError, printable
from dftfactory.plain_values import plain

LOGGER = logging.getLogger("dftfactory")
# "json" for one JSON object per line; `log` in the worker's `env` says the same.
VARIABLE = "DFTFACTORY_LOG"
# A pipe takes 4096 bytes in one piece, between which nobody else's bytes come.
LONGEST_TEXT = 1000

_calculation: ContextVar[tuple[str, int | None]] = ContextVar("dftfactory_calculation", default=("", None))
P = ParamSpec("P")


@contextlib.contextmanager
def about(calculation_id: str, fw_id: int | None = None) -> Iterator[None]:
    """Name the calculation that the events inside of the block are about, and its Firework where there is one."""
    token = _calculation.set((calculation_id, _calculation.get()[1] if fw_id is None else fw_id))
    try:
        yield
    finally:
        _calculation.reset(token)


@contextlib.contextmanager
def shown_on(stream: TextIO, *, as_json: bool = False) -> Iterator[None]:
    """Show the events of the block on a stream, unless somebody has a handler that they reach."""
    if LOGGER.isEnabledFor(logging.INFO) and LOGGER.hasHandlers():
        yield
        return
    handler, before = EventHandler(stream, as_json=as_json), (LOGGER.level, LOGGER.propagate)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    # A handler of the root has no use for them: at its level they do not even exist.
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]


@contextlib.contextmanager
def shown_on_terminal() -> Iterator[None]:
    """Show the events of the block on stderr: as lines on a terminal, as JSON wherever the environment asks for it."""
    as_json = wants_json()
    if as_json or sys.stderr.isatty():
        with shown_on(sys.stderr, as_json=as_json):
            yield
    else:
        yield


def wants_json(setting: object = None) -> bool:
    """Whether the log is for programs: as the environment says, else as the worker's `env` does."""
    return str(os.environ.get(VARIABLE) or setting).strip().lower() == "json"


class EventHandler(logging.Handler):
    """Writes each event as one line, in one piece, and never minds when that is not possible."""

    def __init__(self, stream: TextIO, *, as_json: bool = False) -> None:
        super().__init__(logging.INFO)
        self.stream = stream
        self.as_json = as_json

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk or a closed pipe takes the line and nothing else."""
        with contextlib.suppress(Exception):
            line = (json_line if self.as_json else text_line)(record) + "\n"
            if type(self.stream) is io.TextIOWrapper:
                self.stream.flush()
                # One write of the system: lines of several rockets in one file stay whole, and what has failed does
                # not stay in a buffer to fail again when Python ends.
                os.write(self.stream.fileno(), line.encode(self.stream.encoding, "replace"))
            else:
                self.stream.write(line)
                self.stream.flush()


def text_line(record: logging.LogRecord) -> str:
    """Return the line for people: time of this machine's clock, calculation, what has happened."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
    return f"{when}  {printable(record.getMessage())}"


def json_line(record: logging.LogRecord) -> str:
    """Return the line for programs: `time` in UTC, `calculation_id`, `fw_id`, `event`, `said`, and the facts."""
    values = {
        "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
        "calculation_id": getattr(record, "calculation_id", None),
        "fw_id": getattr(record, "fw_id", None),
        "event": getattr(record, "event", "message"),
        "said": getattr(record, "said", record.getMessage()),
    }
    # Whatever the facts are called, these come first and stay.
    return json.dumps(values | plain(getattr(record, "facts", {})) | values)


def _harmless(said: Callable[P, None]) -> Callable[P, None]:
    """Let a line of the log cost nothing when nobody listens, and never a label, whatever is wrong with it."""

    @functools.wraps(said)
    def told(*args: P.args, **facts: P.kwargs) -> None:
        if LOGGER.isEnabledFor(logging.INFO):
            with contextlib.suppress(Exception):
                said(*args, **facts)

    return told


def _tell(event: str, said: str, calculation_id: str | None = None, **facts: Any) -> None:
    present, fw_id = _calculation.get()
    name, said = printable(calculation_id or present), _short(printable(said))
    facts = {key: _short(value) if isinstance(value, str) else value for key, value in facts.items()}
    extra = {"event": event, "calculation_id": name, "fw_id": fw_id, "said": said, "facts": facts}
    LOGGER.info("%s  %s", name, said, extra=extra)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."


@_harmless
def begun(cores: int, folder: Path, job: Mapping[str, str] | None) -> None:
    """Tell that a rocket has begun with a Firework, with at most `cores` ranks and in a job of the queue or in none."""
    host = socket.gethostname()
    fw_id = _calculation.get()[1]
    what = "an offline Firework" if fw_id is None else f"Firework {fw_id}"
    queue = "" if job is None else f", job {job['id']} of {job['queue']}"
    said = f"{what} begun on {host}, {_number(cores, 'core')}{queue}, in {folder}"
    names = {"job": None if job is None else job["id"], "queue": None if job is None else job["queue"]}
    _tell("begun", said, host=host, cores=cores, folder=str(folder), **names)


@_harmless
def start_begun(calculation_id: str, name: str, number: int, total: int, folder: str) -> None:
    """Tell that one of several starts of the SCF comes now."""
    said = f"start {number} of {total}, {name}, in {folder}"
    _tell("start_begun", said, calculation_id, start=name, number=number, total=total, folder=folder)


@_harmless
def attempt_begun(history: Mapping[str, Any], names: Collection[str]) -> None:
    """Tell that pw.x is started, at which level, and which of the parameters `names` differ from the run before."""
    attempts = history["attempts"]
    parameters = attempts[-1]["parameters"]
    before = attempts[-2]["parameters"] if len(attempts) > 1 else parameters
    changes = {
        name: [before.get(name), parameters.get(name)] for name in names if before.get(name) != parameters.get(name)
    }
    changed = ", ".join(f"{name} {_value(old)} → {_value(new)}" for name, (old, new) in changes.items())
    said = f"attempt {len(attempts)} at {_where(parameters)}{': ' if changed else ''}{changed}"
    facts = {"attempt": len(attempts), "level": parameters["level"], "stage": parameters.get("stage")}
    _tell("attempt_begun", said, history["calculation_id"], **facts, changes=changes)


@_harmless
def attempt_ended(history: Mapping[str, Any]) -> None:
    """Tell how the last attempt of a history has ended, as it is recorded there."""
    number, attempt = len(history["attempts"]), history["attempts"][-1]
    iterations, seconds, accuracy = (attempt.get(name) for name in ("iterations", "wall_time", "last_accuracy"))
    words = [] if iterations is None else [_number(iterations, "iteration")]
    words += [] if seconds is None else [f"{seconds:.1f} s"]
    words += [] if accuracy is None else [f"accuracy {accuracy:.1e} Ry"]
    evidence = attempt.get("evidence")
    numbers = f" after {', '.join(words)}" if words else ""
    said = f"attempt {number} ended: {attempt['outcome']}{numbers}{f' ({evidence})' if evidence else ''}"
    numeric = {"iterations": iterations, "seconds": seconds, "accuracy": accuracy}
    facts = {"attempt": number, "outcome": attempt["outcome"], **numeric, "evidence": evidence}
    _tell("attempt_ended", said, history["calculation_id"], **facts)


@_harmless
def rung_chosen(history: Mapping[str, Any], following: Mapping[str, Any]) -> None:
    """Tell which rung follows the last attempt, and why."""
    attempt = history["attempts"][-1]
    before: Mapping[str, int] = attempt["parameters"].get("used", {})
    after: Mapping[str, int] = following.get("used", {})
    # Keys are `failure: name of the rung`; a stage of the anneal that follows a good one is none.
    rung = next((key.partition(": ")[2] for key in after if after[key] != before.get(key, 0)), "next stage")
    said = f"{attempt['outcome']}, so: {rung}, at {_where(following)}"
    facts = {"rung": rung, "why": attempt["outcome"], "level": following["level"], "stage": following.get("stage")}
    _tell("rung", said, history["calculation_id"], **facts)


@_harmless
def run_stopped(failure: str, evidence: str, *, softly: bool) -> None:
    """Tell that the watch ends a run of pw.x: hopeless, hanging, or about to take too much memory."""
    how = "is asked to stop" if softly else "is stopped"
    _tell("stopped", f"pw.x {how}: {failure}, {evidence}", failure=failure, evidence=evidence, softly=softly)


@_harmless
def signal_came(name: str) -> None:
    """Tell that the queue or a person asks for the end."""
    _tell("signal", f"{name} came while pw.x ran", signal=name)


@_harmless
def tell(event: str, said: str, folder: Path | None = None, **facts: Any) -> None:
    """Tell what is one sentence: what becomes of a label or a folder."""
    where = "" if folder is None else f" {folder}"
    _tell(event, f"{said}{where}", folder=None if folder is None else str(folder), **facts)


@_harmless
def label_stored(summary: Mapping[str, Any], *, reused: bool = False) -> None:
    """Tell that a label is in the store, with the numbers that `firetasks.summary_of` has of it."""
    runs = f"{_number(summary['iterations'], 'iteration')} in {_number(summary['runs'], 'run')}"
    said = (
        f"label {'was in the store already' if reused else 'stored'}: {summary['energy']:.6f} eV, "
        f"largest force {summary['max_force']:.4f} eV/Å, level {summary['level']}, {summary['quality']}, {runs}"
    )
    names = ("fingerprint", "energy", "max_force", "level", "quality", "iterations", "runs", "wall_time")
    _tell("label_reused" if reused else "label_stored", said, **{name: summary[name] for name in names})


@_harmless
def handed_back(said: str, why: str, changes: Mapping[str, Any]) -> None:
    """Tell that the Firework is READY again with changes of its specification, and that this rocket ends."""
    _tell("handed_back", f"Firework {_calculation.get()[1]} {said}, and this rocket ends: {why}", why=why, next=changes)


@_harmless
def next_job_given(said: str, why: str, changes: Mapping[str, Any]) -> None:
    """Tell that the Firework is READY for a job with more of what this one has lacked."""
    _tell("next_job", f"Firework {_calculation.get()[1]} {said}: {why}", why=why, next=changes)


@_harmless
def gave_up(error: DFTFactoryError) -> None:
    """Tell that a Firework ends without a label that counts, why, and what to do."""
    details = error.details
    if "next_job" in details:
        # It has been told, or `dftfactory recover` will find it in the record.
        return
    named = f"{_calculation.get()[0]}: "
    said = error.message.removeprefix(named)
    facts = {name: details.get(name) for name in ("failure", "level", "evidence", "explanation", "run_dir")}
    _tell("gave_up", f"gave up: {said}", error=type(error).__name__, **facts)


def _where(parameters: Mapping[str, Any]) -> str:
    stage = parameters.get("stage")
    return f"level {parameters['level']}" + ("" if stage is None else f", stage {stage}")


def _value(value: Any) -> str:
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
