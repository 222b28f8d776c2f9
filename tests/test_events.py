"""The log of a calculation: its story in lines, for people and for programs, and never at the cost of a label."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from queue_helpers import label_for, make_database, rlaunch, rows, specs, states

from dftfactory import events
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError
from dftfactory.events import LOGGER, about, shown_on, shown_on_terminal
from dftfactory.firetasks import RunDFT
from dftfactory.pipeline import submit
from dftfactory.rocket_output import rocket_output
from dftfactory.runner import QERunner
from dftfactory.store import LabelStore
from dftfactory.workflows import make_spec

FakePw = Callable[..., WorkerConfig]


def lines_of(tell: Callable[[], object], *, as_json: bool = False) -> list[str]:
    """What is told about Firework 7, Si-bulk, without the time."""
    stream = io.StringIO()
    with about("Si-bulk", 7), shown_on(stream, as_json=as_json):
        tell()
    printed = stream.getvalue().splitlines()
    return printed if as_json else [line.split("  ", 1)[1] for line in printed]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Our logger; whatever a test does to it is undone."""
    yield LOGGER
    LOGGER.handlers.clear()
    LOGGER.setLevel(logging.NOTSET)


# The story


def climbed(fake_pw: FakePw, config: DFTConfig, atoms: Atoms, folder: Path) -> Callable[[], object]:
    """A calculation that stands still twice and arrives at level 1."""
    runner = QERunner(config, fake_pw("scf_still", "scf_still", "converged"))
    return lambda: runner.run(atoms, folder / "run", "Si-bulk")


def test_story_of_a_structure_can_be_read_from_its_lines(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    told = lines_of(climbed(fake_pw, fake_config, si_atoms, tmp_path))
    assert [line.partition(" (")[0] for line in told] == [
        "Si-bulk  attempt 1 at level 0",
        "Si-bulk  attempt 1 ended: SCF_NOT_CONVERGED after 8 iterations, 0.7 s, accuracy 1.2e-02 Ry",
        "Si-bulk  SCF_NOT_CONVERGED, so: continue, at level 0",
        "Si-bulk  attempt 2 at level 0: startingpot default → file",
        "Si-bulk  attempt 2 ended: SCF_NOT_CONVERGED after 8 iterations, 0.7 s, accuracy 1.2e-02 Ry",
        "Si-bulk  SCF_NOT_CONVERGED, so: next level, at level 1",
        "Si-bulk  attempt 3 at level 1: "
        "startingpot file → default, mixing_beta 0.7 → 0.3, mixing_mode local-TF → plain",
        "Si-bulk  attempt 3 ended: CONVERGED after 7 iterations, 0.6 s, accuracy 6.4e-10 Ry",
    ]


def test_the_same_story_for_a_program(fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> None:
    told = [json.loads(line) for line in lines_of(climbed(fake_pw, fake_config, si_atoms, tmp_path), as_json=True)]
    assert {(event["calculation_id"], event["fw_id"]) for event in told} == {("Si-bulk", 7)}
    assert [list(event)[:4] for event in told] == [["time", "calculation_id", "fw_id", "event"]] * 8
    assert [event["event"] for event in told] == [*("attempt_begun", "attempt_ended", "rung") * 2, *EVENTS_OF_A_RUN]
    assert (told[5]["rung"], told[5]["why"], told[5]["level"]) == ("next level", "SCF_NOT_CONVERGED", 1)
    assert told[6]["changes"] == {
        "startingpot": ["file", None],
        "mixing_beta": [0.7, 0.3],
        "mixing_mode": ["local-TF", "plain"],
    }
    assert (told[7]["outcome"], told[7]["iterations"], told[7]["accuracy"]) == ("CONVERGED", 7, 6.4e-10)


EVENTS_OF_A_RUN = ("attempt_begun", "attempt_ended")


def test_stages_of_an_anneal_are_named(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    runs = [*["scf_still"] * 6, "anneal_hot", "anneal_warm", "anneal_last"]
    told = lines_of(lambda: QERunner(fake_config, fake_pw(*runs)).run(si_atoms, tmp_path / "run", "Si-bulk"))
    assert "Si-bulk  STAGE_CONVERGED, so: next stage, at level 3, stage 1" in told


def test_several_starts_are_told_apart(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    config = fake_config.model_copy(update={"magnetism": ["none", {"Si": 0.5}]})
    with pytest.raises(CalculationError):
        lines_of(lambda: QERunner(config, fake_pw("nan")).run(si_atoms, tmp_path / "other", "Si-bulk"))
    stream = io.StringIO()
    with shown_on(stream), pytest.raises(CalculationError):
        QERunner(config, fake_pw_again(tmp_path)).run(si_atoms, tmp_path / "run", "Si-bulk")
    starts = [line.split("  ", 1)[1] for line in stream.getvalue().splitlines() if " start " in line]
    assert starts[0] == "Si-bulk  start 1 of 2, none, in start_0"
    assert starts[1].startswith("Si-bulk  start 2 of 2, ")


def fake_pw_again(tmp_path: Path) -> WorkerConfig:
    return WorkerConfig(pw_command=[str(tmp_path / "fake_pw" / "pw.x")])


SUMMARY = {
    **{"fingerprint": "dft1", "energy": -215.4971, "max_force": 1.7314, "level": 0, "quality": "exact"},
    **{"iterations": 7, "runs": 1, "wall_time": 0.4},
}
HISTORY = {"calculation_id": "Si-bulk", "attempts": [{"parameters": {"level": 2}}, {"parameters": {"level": 2}}]}
ENDED = {"parameters": {"level": 2}, "outcome": "KILLED", "evidence": "its rocket was killed"}
TOLD: dict[str, tuple[Callable[[], object], str]] = {
    "signal": (lambda: events.signal_came("SIGTERM"), "SIGTERM came while pw.x ran"),
    "stopped": (
        lambda: events.run_stopped("SCF_NOT_CONVERGED", "less than 0.3 decades in 20 iterations", softly=True),
        "pw.x is asked to stop: SCF_NOT_CONVERGED, less than 0.3 decades in 20 iterations",
    ),
    "label_written": (
        lambda: events.tell("label_written", "label written in", Path("/run")),
        "label written in /run",
    ),
    "linked": (
        lambda: events.tell("linked", "linked: Firework 3 computes the same label", linked_to=3),
        "linked: Firework 3 computes the same label",
    ),
    "label_stored": (
        lambda: events.label_stored(SUMMARY),
        "label stored: -215.497100 eV, largest force 1.7314 eV/Å, level 0, exact, 7 iterations in 1 run",
    ),
    "label_reused": (
        lambda: events.label_stored(SUMMARY, reused=True),
        "label was in the store already: -215.497100 eV, largest force 1.7314 eV/Å, level 0, exact, "
        "7 iterations in 1 run",
    ),
    "handed_back": (
        lambda: events.handed_back("is READY again", "SIGTERM", {}),
        "Firework 7 is READY again, and this rocket ends: SIGTERM",
    ),
    "next_job": (
        lambda: events.next_job_given(
            "goes on in a job of 8000 MB instead of 4000 MB", "it lacks memory", {"jobs": {}}
        ),
        "Firework 7 goes on in a job of 8000 MB instead of 4000 MB: it lacks memory",
    ),
    "gave_up": (
        lambda: events.gave_up(CalculationError("Si-bulk: REJECTED: too close", failure="REJECTED")),
        "gave up: REJECTED: too close",
    ),
    "attempt_begun": (lambda: events.attempt_begun(HISTORY, ("mixing_beta",)), "attempt 2 at level 2"),
    "attempt_ended": (
        lambda: events.attempt_ended({**HISTORY, "attempts": [ENDED]}),
        "attempt 1 ended: KILLED (its rocket was killed)",
    ),
}


@pytest.mark.parametrize("event", TOLD)
def test_each_event_is_a_sentence_and_an_object(event: str) -> None:
    tell, said = TOLD[event]
    assert lines_of(tell) == [f"Si-bulk  {said}"]
    [line] = lines_of(tell, as_json=True)
    there = json.loads(line)
    assert (there["event"], there["said"], there["fw_id"]) == (event, said, 7)


def test_a_rocket_says_where_it_is(tmp_path: Path) -> None:
    job = {"queue": "slurm", "id": "4711", "cluster": "", "restarts": "0", "user": "me"}
    [line] = lines_of(lambda: events.begun(8, tmp_path, job))
    assert line.startswith("Si-bulk  Firework 7 begun on ")
    assert line.endswith(f", 8 cores, job 4711 of slurm, in {tmp_path}")


def test_a_failure_that_another_job_goes_on_with_is_no_giving_up() -> None:
    error = CalculationError("Si-bulk: OUT_OF_MEMORY", next_job={"reason": "OUT_OF_MEMORY", "memory_mb": 100})
    assert lines_of(lambda: events.gave_up(error)) == []


# What comes from outside


def test_line_stays_one_line_whatever_a_name_holds() -> None:
    """Terminal escapes, line breaks, a name without an end."""
    error = ConfigError("evil\x1b[31m\nname: " + "x" * 100_000)
    with about("Si\x1b]0;owned\x07\nbulk"):
        stream = io.StringIO()
        with shown_on(stream):
            events.gave_up(error)
    [line] = stream.getvalue().splitlines()
    assert line.isprintable()
    assert len(line) < 1200
    [line] = lines_of(lambda: events.gave_up(error), as_json=True)
    assert len(line) < 3000
    assert json.loads(line)["event"] == "gave_up"


def test_numbers_that_json_does_not_have_are_null() -> None:
    attempt = {**ENDED, "iterations": 3, "wall_time": None, "last_accuracy": float("nan")}
    [line] = lines_of(lambda: events.attempt_ended({**HISTORY, "attempts": [attempt]}), as_json=True)
    assert "NaN" not in line.partition('"accuracy"')[2]
    assert json.loads(line)["accuracy"] is None


# Who listens


def test_nothing_is_configured_and_nothing_is_left_behind(capfd: pytest.CaptureFixture[str]) -> None:
    assert (LOGGER.handlers, LOGGER.level, LOGGER.propagate) == ([], logging.NOTSET, True)
    events.signal_came("SIGTERM")
    assert capfd.readouterr() == ("", "")
    lines_of(lambda: events.signal_came("SIGTERM"))
    assert (LOGGER.handlers, LOGGER.level, LOGGER.propagate) == ([], logging.NOTSET, True)


def test_whoever_has_a_handler_gets_the_events_and_a_rocket_adds_none(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    records: list[Any] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with rocket_output({"calculation_id": "Si-bulk"}, 7):
        events.label_stored(SUMMARY)
    assert capsys.readouterr().out == ""
    [record] = records
    assert (record.event, record.calculation_id, record.fw_id) == ("label_stored", "Si-bulk", 7)
    assert (record.levelname, record.facts["energy"]) == ("INFO", -215.4971)
    assert record.getMessage().startswith("Si-bulk  label stored: -215.4971")


@pytest.mark.parametrize(("setting", "variable"), [("json", None), (None, "json"), ("text", "JSON")])
def test_json_by_the_worker_or_the_environment(
    setting: str | None, variable: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DFTFACTORY_LOG", raising=False)
    if variable is not None:
        monkeypatch.setenv("DFTFACTORY_LOG", variable)
    with rocket_output({"calculation_id": "a", "_fw_env": {"log": setting}}, 1):
        events.signal_came("SIGTERM")
    assert json.loads(capsys.readouterr().out)["event"] == "signal"
    with rocket_output({"_fw_env": None}, None):
        events.signal_came("SIGTERM")


def test_env_that_is_no_mapping_is_refused_with_the_file_that_it_stands_in(
    fake_config: DFTConfig, si_atoms: Atoms, capsys: pytest.CaptureFixture[str]
) -> None:
    """`env: pw.x` in my_fworker.yaml is text."""
    pseudopotentials = QERunner(fake_config, WorkerConfig()).pseudopotentials(si_atoms)
    spec = make_spec(si_atoms, "a", fake_config, pseudopotentials)
    with pytest.raises(ConfigError, match=r"`env` of this worker's my_fworker.yaml: must be settings by their names"):
        RunDFT().run_task({**spec, "_fw_env": "pw.x"})
    assert "a  gave up: `env` of this worker's" in capsys.readouterr().out


def test_another_form_is_refused_by_the_worker() -> None:
    with pytest.raises(ConfigError, match="log"):
        WorkerConfig(log="xml")
    assert WorkerConfig(log="json").log == "json"


def test_run_shows_the_events_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere only where JSON is asked for."""
    monkeypatch.delenv("DFTFACTORY_LOG", raising=False)
    with shown_on_terminal(), about("a"):
        events.signal_came("SIGTERM")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with shown_on_terminal(), about("a"):
        events.signal_came("SIGTERM")
    assert capsys.readouterr().err.endswith("  a  SIGTERM came while pw.x ran\n")
    monkeypatch.setenv("DFTFACTORY_LOG", "json")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with shown_on_terminal(), about("a"):
        events.signal_came("SIGTERM")
    assert json.loads(capsys.readouterr().err)["calculation_id"] == "a"


# Where it is written


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_lines_of_two_rockets_stay_whole(how: str, tmp_path: Path) -> None:
    """Several rockets of one job write to one file; each line is one write."""
    code = (
        "import sys\nfrom dftfactory.events import *\n"
        "with about(sys.argv[1]), shown_on(sys.stdout):\n"
        "    for _ in range(300):\n        tell('label_found', sys.argv[1] * 900)\n"
    )
    if how == "file":
        with (tmp_path / "log").open("w") as log:
            processes = [subprocess.Popen([sys.executable, "-c", code, name], stdout=log) for name in "ab"]
            assert [process.wait(60) for process in processes] == [0, 0]
        text = (tmp_path / "log").read_text()
    else:
        both = f'{sys.executable} -c "$0" a & {sys.executable} -c "$0" b; wait'
        text = subprocess.run(
            ["/bin/sh", "-c", both, code], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    written = [line.split("  ", 1)[1] for line in text.splitlines()]
    assert sorted(written) == [f"a  {'a' * 900}"] * 300 + [f"b  {'b' * 900}"] * 300


def test_a_log_that_cannot_be_written_costs_no_label(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk, a pipe that nobody reads any more, a file that was closed."""
    reader, writer = os.pipe()
    os.close(reader)
    closed = (tmp_path / "closed").open("w")
    closed.close()
    streams = [Path("/dev/full").open("w"), os.fdopen(writer, "w"), closed]  # noqa: SIM115  (they are to fail)
    worker = fake_pw("scf_still", "converged")
    for number, stream in enumerate(streams):
        with shown_on(stream):
            result = QERunner(fake_config, worker).run(si_atoms, tmp_path / f"run_{number}")
        assert result.quality == "exact"
    for stream in streams[:2]:
        stream.close()  # nothing waits in a buffer to fail here
    assert capfd.readouterr() == ("", "")


def test_a_handler_that_breaks_costs_no_label(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, logger: logging.Logger
) -> None:
    """A user's own may raise whatever it likes."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError

    logger.addHandler(Broken())
    logger.setLevel(logging.INFO)
    assert QERunner(fake_config, fake_pw("converged")).run(si_atoms, tmp_path / "run").quality == "exact"


# What rlaunch prints


def kinds(printed: str) -> list[str]:
    """The kind of each line that rlaunch prints: FireWorks' own, one of our events, or the line itself."""
    found = []
    for line in printed.splitlines():
        after = line[19:]
        if after.startswith(",") and " INFO " in after:
            continue  # FireWorks' own
        found.append(" ".join(after[2:].split()[:3]) if after.startswith("  ") else line)
    return found


@pytest.mark.mongodb
def test_rlaunch_prints_one_line_for_an_error_and_keeps_the_traceback(
    launchpad: Any, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """The launch record has all that it had; a task that is not ours has its traceback on the screen, too."""
    from fireworks import Firework, PyTask

    submit(make_database(tmp_path / "c.db", si_atoms), fake_config, launchpad)
    launchpad.add_wf(Firework(PyTask(func="int", args=["no number"])))
    printed = rlaunch(launchpad, tmp_path / "run", fake_pw("nml_unknown_key"), "rapidfire")
    ours, _, others = printed.partition("RUNNING fw_id: 2")
    assert "Traceback" not in ours
    assert [line for line in ours.splitlines() if line.startswith("error: a: INPUT_ERROR at level 0 after 1 run")]
    assert kinds(ours)[:3] == ["a Firework 1", "a attempt 1", "a attempt 1"]
    assert [kind for kind in kinds(ours) if kind.startswith("a gave")] == ["a gave up:"]
    assert "Traceback" in others
    launch = launchpad.launches.find_one({"fw_id": 1})["action"]["stored_data"]["_exception"]
    assert launch["_stacktrace"].count("Traceback") == 2  # custodian's error, and ours from it
    assert launch["_stacktrace"].strip().endswith(launch["_details"]["message"])


@pytest.mark.mongodb
def test_label_that_is_there_and_one_that_somebody_computes(
    launchpad: Any, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    db = make_database(tmp_path / "c.db", si_atoms)
    submit(db, fake_config, launchpad)
    LabelStore(launchpad).put(label_for(specs(launchpad)["a"]))
    printed = rlaunch(launchpad, tmp_path / "run", fake_pw("converged"))
    assert kinds(printed) == ["a Firework 1", "a label was"]
    assert rows(db).keys() == {"a"}


@pytest.mark.pw
@pytest.mark.mongodb
def test_rlaunch_tells_the_story_of_real_runs(
    launchpad: Any, config: DFTConfig, si_atoms: Atoms, h2_atoms: Atoms, tmp_path: Path
) -> None:
    """One label at once, one after a second run; between FireWorks' own lines nothing but ours."""
    tight = config.model_copy(update={"electron_maxstep": 4})
    submit(make_database(tmp_path / "c.db", si_atoms), tight, launchpad)
    submit(make_database(tmp_path / "d.db", h2_atoms, calculation_id="h2"), config, launchpad)
    printed = rlaunch(launchpad, tmp_path / "run", {"pw_command": "pw.x"}, "rapidfire")
    assert kinds(printed) == [
        *("a Firework 1", "a attempt 1", "a attempt 1", "a SCF_NOT_CONVERGED, so:", "a attempt 2", "a attempt 2"),
        *("a label written", "a label stored:"),
        *("h2 Firework 2", "h2 attempt 1", "h2 attempt 1", "h2 label written", "h2 label stored:"),
    ]
    assert states(launchpad) == {1: "COMPLETED", 2: "COMPLETED"}
