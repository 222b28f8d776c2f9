"""`status`, `show`, `failures`, `retry` as a person types them, and as a program reads them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from cli_fixtures import Dftfactory
from queue_helpers import make_database, shifted, specs, states, write_launchpad_file
from rich.console import Console
from test_retry import RESOURCES, fail

from dftfactory.config import DFTConfig
from dftfactory.errors import DFTFactoryError, LaunchPadAwayError, LaunchPadError
from dftfactory.monitor.progress import Progress
from dftfactory.monitor.status_display import status_line, status_sections
from dftfactory.monitor.watch_status import watch_status
from dftfactory.pipeline import submit


@pytest.fixture
def queued(launchpad: Any, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path) -> None:
    """Four structures, a to d, whose LaunchPad `dftfactory` finds; a and b are FIZZLED."""
    db = make_database(tmp_path / "c.db", *(shifted(si_atoms, 0.01 * n) for n in range(4)))
    submit(db, fake_config, launchpad, campaign="one")
    fail(launchpad, 1)
    fail(launchpad, 2, "OUT_OF_MEMORY")
    write_launchpad_file(launchpad, tmp_path)


# status


@pytest.mark.mongodb
def test_status_counts_candidates_fireworks_and_failures(queued: None, dftfactory: Dftfactory) -> None:
    outcome = dftfactory("status", "c.db")
    assert outcome.status == 0
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert lines[0].startswith("LaunchPad at 127.0.0.1:")
    assert {"Candidates", "QUEUED 4", "READY 2", "FIZZLED 2", "0 of 4 Fireworks COMPLETED (0%)"} <= set(lines)
    assert any(line.startswith("OUT_OF_MEMORY 1 memory ran out; give the job more memory") for line in lines)
    assert "\x1b" not in outcome.out


@pytest.mark.mongodb
def test_status_as_json(queued: None, dftfactory: Dftfactory) -> None:
    document = dftfactory("status", "c.db", "--campaign", "one", "--json").document
    assert document["campaign"] == "one"
    assert document["candidates"]["QUEUED"] == 4
    assert document["states"] == {"READY": 2, "FIZZLED": 2}
    assert document["failures"] == {"SCF_NOT_CONVERGED": 1, "OUT_OF_MEMORY": 1}
    keys = {"launchpad", "campaign", "candidates", "total", "states", "levels", "failures", "labels_per_hour"}
    assert set(document) == keys | {"seconds_to_go", "core_hours", "wasted_core_hours", "running"}
    assert dftfactory("status", "--json").document["candidates"] is None


@pytest.mark.mongodb
@pytest.mark.parametrize(
    "words",
    [
        *(("status",), ("failures",), ("retry",), ("report", "out.html")),
        *(("sync", "c.db"), ("export", "out.extxyz"), ("recover",), ("reconcile",)),
    ],
)
def test_a_slip_in_the_name_of_a_campaign_is_no_empty_campaign(
    queued: None, dftfactory: Dftfactory, words: tuple[str, ...]
) -> None:
    outcome = dftfactory(*words, "--campaign", "onee")
    assert outcome.status == 1
    assert "no campaign 'onee' in this LaunchPad: there are one; did you mean one?" in outcome.err


@pytest.mark.mongodb
def test_json_and_watch_do_not_go_together(queued: None, dftfactory: Dftfactory) -> None:
    outcome = dftfactory("status", "--json", "--watch")
    assert outcome.status == 2
    assert outcome.out == ""


@pytest.mark.mongodb
@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("--watch", 2.0),
        ("--watch 7", 7.0),
        ("--watch=0.5", 0.5),
        ("--watch --campaign one", 2.0),
        ("c.db --watch 3", 3.0),
    ],
)
def test_watch_with_or_without_seconds(
    queued: None, dftfactory: Dftfactory, monkeypatch: pytest.MonkeyPatch, words: str, seconds: float
) -> None:
    given: list[float] = []
    monkeypatch.setattr("dftfactory.monitor.watch_status.watch_status", lambda *arguments: given.append(arguments[-1]))
    assert dftfactory("status", *words.split()).status == 0
    assert given == [seconds]


@pytest.mark.mongodb
def test_watch_takes_no_file_for_seconds(queued: None, dftfactory: Dftfactory, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("dftfactory.monitor.watch_status.watch_status", lambda look, *rest: seen.append(rest))
    assert dftfactory("status", "--watch", "c.db").status == 0
    assert dftfactory("status", "--watch", "none.db").status == 1
    assert len(seen) == 1


# --watch

LIVES = [
    Progress(states={"READY": 2}),
    Progress(states={"READY": 2}),
    LaunchPadAwayError("away"),
    LaunchPadAwayError("away once more"),
    Progress(states={"READY": 1, "RUNNING": 1}),
    LaunchPadError("the LaunchPad refuses"),
    Progress(states={"COMPLETED": 2}),
    AssertionError("it did not end"),
]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Progress]:
    """Plays a life of the LaunchPad, without waiting."""
    monkeypatch.setattr("dftfactory.monitor.watch_status.time.sleep", lambda seconds: None)
    life: Iterator[Any] = iter(LIVES)

    def look() -> Progress:
        now = next(life)
        if isinstance(now, Exception):
            raise now
        return now  # type: ignore[no-any-return]

    return look


def watched(look: Callable[[], Progress], **options: Any) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, height=40, highlight=False, **options)
    watch_status(look, lambda progress, most: status_sections(progress), status_line, 1.0, console)
    return file.getvalue()


def test_without_a_terminal_watch_prints_a_line_for_each_change(
    look: Callable[[], Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    """An outage is told once, and waited for; at the end it ends by itself."""
    watched(look)
    lines = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "2 READY"
    assert re.fullmatch(r"the LaunchPad does not answer since \d\d:\d\d:\d\d; looking again", lines[1])
    assert lines[2:] == ["1 READY, 1 RUNNING", "the LaunchPad refuses", "2 COMPLETED"]


def test_on_a_terminal_watch_redraws_and_leaves_the_end(look: Callable[[], Progress]) -> None:
    text = watched(look, force_terminal=True, _environ={"TERM": "xterm"})
    assert "\x1b[2K" in text
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.split("\x1b[2K")[-1])
    assert "2 of 2 Fireworks COMPLETED (100%)" in last
    assert "Ctrl-C ends it" in last
    assert "does not answer since" in text


def test_ctrl_c_is_the_way_to_end_it(look: Callable[[], Progress], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dftfactory.monitor.watch_status.time.sleep", stop)
    assert "0 of 2 Fireworks COMPLETED" in watched(look, force_terminal=True, _environ={"TERM": "xterm"})


def test_settings_that_are_wrong_are_no_outage() -> None:
    def look() -> Progress:
        raise LaunchPadAwayError("no LaunchPad answers")

    with pytest.raises(DFTFactoryError, match="no LaunchPad answers"):
        watched(look)


# show


@pytest.mark.mongodb
@pytest.mark.parametrize("who", ["a", "1"])
def test_show_tells_one_story(queued: None, dftfactory: Dftfactory, who: str) -> None:
    outcome = dftfactory("show", who)
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert outcome.status == 0
    assert lines[:3] == ["a Si2", "state FIZZLED", "Firework 1"]
    assert "failure SCF_NOT_CONVERGED" in lines


@pytest.mark.mongodb
def test_show_as_json(queued: None, launchpad: Any, dftfactory: Dftfactory) -> None:
    fingerprint = specs(launchpad)["c"]["fingerprint"]
    document = dftfactory("show", fingerprint[:12], "--json").document
    assert document["record"]["calculation_id"] == "c"
    assert document["record"]["state"] == "READY"
    assert document["structure"]["symbols"] == ["Si", "Si"]
    assert document["attempts"] == []


@pytest.mark.mongodb
def test_unknown_structure_is_an_error_that_says_what_to_do(queued: None, dftfactory: Dftfactory) -> None:
    outcome = dftfactory("show", "nobody", "--json")
    assert outcome.status == 1
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert "nobody" in outcome.err


# failures


@pytest.mark.mongodb
def test_failures_with_a_command_that_can_be_pasted(queued: None, launchpad: Any, dftfactory: Dftfactory) -> None:
    launchpad.fireworks.update_one({"fw_id": 2}, {"$set": {"spec.resources": RESOURCES}})
    lines = [line.strip() for line in dftfactory("failures", "-l", "my_launchpad.yaml").out.splitlines()]
    assert "OUT_OF_MEMORY  1" in lines
    command = next(line for line in lines if "--memory" in line)
    assert command == "dftfactory retry --reason OUT_OF_MEMORY --memory 8000M -l my_launchpad.yaml"
    outcome = dftfactory(*command.split()[1:])
    assert outcome.status == 0
    assert states(launchpad)[2] == "READY"
    assert specs(launchpad)["b"]["resources"]["memory_mb"] == 8000
    # It is no failure any more.
    assert "OUT_OF_MEMORY" not in dftfactory("failures").out


@pytest.mark.mongodb
def test_failures_as_json(queued: None, dftfactory: Dftfactory) -> None:
    document = dftfactory("failures", "--json", "--campaign", "one").document
    assert document["campaign"] == "one"
    first, _ = document["failures"]
    assert set(first) == {"failure", "number", "calculation_ids", "example", "explanation", "retry"}
    assert {each["failure"]: each["calculation_ids"] for each in document["failures"]} == {
        "OUT_OF_MEMORY": ["b"],
        "SCF_NOT_CONVERGED": ["a"],
    }


@pytest.mark.mongodb
def test_no_failures_says_so(queued: None, launchpad: Any, dftfactory: Dftfactory) -> None:
    launchpad.fireworks.update_many({}, {"$set": {"state": "READY"}})
    outcome = dftfactory("failures", "--campaign", "one")
    assert (outcome.status, outcome.out) == (0, "nothing is FIZZLED in campaign one\n")
    assert dftfactory("failures", "--json", "--campaign", "one").document["failures"] == []


# retry


@pytest.mark.mongodb
def test_retry_says_what_was_done_and_what_is_next(queued: None, launchpad: Any, dftfactory: Dftfactory) -> None:
    outcome = dftfactory("retry", "a", "--set", "electron_maxstep=200", "--set", "mixing_beta=0.3")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert outcome.status == 0
    assert lines[0] == "1 Firework READY again"
    assert "1 a SCF_NOT_CONVERGED mixing_beta 0.7 → 0.3, electron_maxstep 80 → 200" in lines or (
        "1 a SCF_NOT_CONVERGED electron_maxstep 80 → 200, mixing_beta 0.7 → 0.3" in lines
    )
    assert lines[-2:] == ["next: `rlaunch -l my_launchpad.yaml rapidfire`", "then: `dftfactory sync CANDIDATES`"]
    assert specs(launchpad)["a"]["config"]["electron_maxstep"] == 200
    assert states(launchpad)[1] == "READY"


@pytest.mark.mongodb
def test_retry_by_campaign_as_json(queued: None, launchpad: Any, dftfactory: Dftfactory) -> None:
    document = dftfactory("retry", "--campaign", "one", "--json", "--dry-run").document
    assert document["dry_run"] is True
    assert sorted(each["calculation_id"] for each in document["retried"]) == ["a", "b"]
    assert document["next"] == []
    assert states(launchpad)[1] == "FIZZLED"
    document = dftfactory("retry", "--campaign", "one", "--json").document
    assert set(document) == {"dry_run", "retried", "refused", "by_class", "next"}
    assert set(document["retried"][0]) == {"fw_id", "calculation_id", "state", "failure", "parameters", "resources"}
    # Safe to repeat.
    again = dftfactory("retry", "--campaign", "one", "--json")
    assert again.status == 0
    assert again.document["retried"] == []


@pytest.mark.mongodb
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("", 2, "give IDs, or --reason, --campaign or both"),
        ("a --reason NAN", 2, "give IDs, or --reason, --campaign or both"),
        ("a --set ecutwfc=80", 1, "ecutwfc defines the label"),
        ("a --set mixing_bete=0.2", 1, "did you mean mixing_beta?"),
        ("a --set mixing_beta", 1, "KEY=VALUE"),
        ("a --walltime soon", 1, "24:00:00"),
        ("a --memory 64", 1, "64G"),
        ("a --class huge", 1, "no cluster.yaml"),
        ("a --memory 64G", 1, "my_qadapter.yaml"),
        ("nobody", 1, "nobody"),
        ("--reason out_of_memory", 1, "did you mean OUT_OF_MEMORY?"),
    ],
)
def test_retry_refuses_with_cause_and_cure(
    queued: None, launchpad: Any, dftfactory: Dftfactory, words: str, status: int, said: str
) -> None:
    before = specs(launchpad)
    outcome = dftfactory("retry", *words.split(), "--json")
    assert outcome.status == status
    assert outcome.out == ""
    assert said in " ".join(re.sub("[│\n]", " ", outcome.err).split())
    assert specs(launchpad) == before
    assert states(launchpad)[1] == "FIZZLED"


@pytest.mark.mongodb
def test_retry_of_what_runs_is_refused_and_the_status_tells(
    queued: None, launchpad: Any, dftfactory: Dftfactory, tmp_path: Path
) -> None:
    from fireworks import FWorker

    launchpad.checkout_fw(FWorker(), str(tmp_path), fw_id=3)
    outcome = dftfactory("retry", "c", "a")
    assert outcome.status == 1
    assert "1 Firework READY again" in outcome.out
    assert "`dftfactory reconcile` finds out" in outcome.out
    assert states(launchpad)[3] == "RUNNING"
