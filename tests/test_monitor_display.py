"""`status`, `show`, `failures` and `retry` as they are read: at 80 and 160 columns, in a file, and with any name."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from every_state import plant_every_state
from rich.cells import cell_len
from rich.console import Console

from dftfactory.cluster import ClusterConfig
from dftfactory.cost import Cost
from dftfactory.failures import EXPLANATIONS, Failure
from dftfactory.monitor.attempts import Attempt
from dftfactory.monitor.failed import Failed, group_failures, read_failed
from dftfactory.monitor.progress import Progress, read_progress
from dftfactory.monitor.records import Record
from dftfactory.monitor.running import Running
from dftfactory.monitor.sections import Cell, Column, Section, plain_lines, print_sections, split_command
from dftfactory.monitor.status_display import (
    BAR_LETTERS,
    duration,
    failure_sections,
    is_over,
    retry_sections,
    status_line,
    status_sections,
)
from dftfactory.monitor.story import LaunchFacts, Story, tell_story
from dftfactory.monitor.story_display import sparkline, story_sections
from dftfactory.retry import Refused, Retried, RetrySummary, retry

NOW = datetime.now(timezone.utc)
MARKUP = "<script>alert(1)</script>[red]x[/red][/]\x1b[31m\u202eend"
LONG = "a-structure-with-a-rather-long-name-of-a-hundred-letters-and-more-of-it-than-anybody-reads-in-a-table"

RUNNING = [
    Running(
        7,
        LONG,
        "Al108Fe12O180",
        "node-with-a-long-name-0123.cluster.example.org",
        NOW - timedelta(days=3, hours=4),
        3,
        12,
        117,
        1.2345e-05,
        2.5e-10,
    ),
    Running(8, MARKUP, MARKUP, MARKUP, NOW - timedelta(seconds=40), 0, 1, 2, 3.2, 2e-9),
    Running(9, "far", "Si2", "node8", NOW, unseen=f"its folder is on another machine {MARKUP}"),
]
PROGRESS = Progress(
    total=123456,
    states={"FIZZLED": 234, "COMPLETED": 45678, "RUNNING": 123, "READY": 77401, "PAUSED": 20},
    levels={(0, "exact"): 45000, (1, "exact"): 500, (3, "exact"): 150, (3, "softened"): 28},
    failures={"SCF_NOT_CONVERGED": 200, "OUT_OF_MEMORY": 33, MARKUP: 1},
    labels_per_hour=1234.5,
    seconds_to_go=225_900.0,
    core_hours=98765.4,
    wasted_core_hours=321.0,
    running=RUNNING,
)
STORY = Story(
    record=Record(
        fw_id=123456,
        calculation_id=MARKUP,
        formula="Al108Fe12O180",
        fingerprint="dft0123456789abcdef0123456789abcdef",
        campaigns=("one", "two"),
        state="FIZZLED",
        level=3,
        quality="softened",
        failure="SCF_NOT_CONVERGED",
        reason=f"{LONG} [bold] did not converge {MARKUP}",
        explanation=EXPLANATIONS[Failure.SCF_NOT_CONVERGED],
        iterations=1234,
        runs=3,
        energy=-12345.67890123,
        max_force=12.345678,
        total_magnetization=-2.125,
        core_seconds=3700.0,
        wasted_core_seconds=61.0,
        created=NOW - timedelta(hours=5),
        started=NOW - timedelta(hours=2),
        ended=NOW - timedelta(hours=1),
    ),
    attempts=[
        Attempt(
            1,
            level=0,
            outcome="SCF_NOT_CONVERGED",
            evidence=f"convergence NOT achieved after 80 iterations {MARKUP}",
            iterations=80,
            scf_accuracy=[10.0 ** (1 - n / 20) for n in range(80)],
            conv_thr=2e-9,
            seconds=12345.6,
            cores=4,
            cost=Cost(49382.4, 49382.4),
        ),
        Attempt(
            2,
            level=3,
            stage=0,
            changes={"degauss": [0.02, 0.06], "mixing_ndim": [None, 20]},
            outcome="STAGE_CONVERGED",
            iterations=20,
            scf_accuracy=[1.0, 1e-3, 1e-5],
        ),
        Attempt(3, start=MARKUP, level=3, stage=2, outcome=None),
    ],
    launches=[
        LaunchFacts(7, "FIZZLED", "node7", "worker", "/scratch/" + LONG, NOW - timedelta(hours=3), NOW, MARKUP),
        LaunchFacts(8, "RUNNING", MARKUP),
    ],
    resources={"class": "large", "nodes": 1, "cores": 16, "memory_mb": 64000, "walltime_seconds": 86400},
    jobs={"WALLTIME": 2, "IDLE": 0},
    folder=Path("/runs/x"),
    files=[Path(f"/runs/x/attempt_{n}/pw.out") for n in range(40)],
)
CLASS = {"memory_mb": 16000, "walltime_seconds": 86400, "nodes": 1, "cores": 4, "partition": None}
ASKED = {**CLASS, "class": "only", "classes": {"only": CLASS}, "queue": "slurm", "memory_mb": 4000}
FAILED = [
    *(Failed(n, f"{LONG}-{n}", "OUT_OF_MEMORY", "x", "y", {**ASKED, "memory_mb": 4000 + n}) for n in range(7)),
    Failed(8, MARKUP, "WALLTIME", MARKUP, "y", {**ASKED, "walltime_seconds": 3600}),
    Failed(9, "a", "SCF_NOT_CONVERGED", "NOT achieved", "y", {}),
    Failed(10, "b", "REJECTED", "too large a force", "y", {}),
]
RETRY = RetrySummary(
    dry_run=False,
    retried=[
        Retried(123456, LONG, "FIZZLED", "SCF_NOT_CONVERGED", {"electron_maxstep": [80, 200]}, {"memory_mb": [1, 2]}),
        Retried(2, MARKUP, "READY", None, {}, {}),
    ],
    refused=[Refused(123457, LONG, "RUNNING", MARKUP)],
)
EVERYTHING = {
    "status": status_sections(PROGRESS, candidates={"SELECTED": 12, MARKUP: 3}, explanations={MARKUP: MARKUP}),
    "show": story_sections(STORY),
    "failures": failure_sections(group_failures(FAILED, ["-l", "/some/rather/deep/folder/my_launchpad.yaml"])),
    "retry": retry_sections(RETRY),
}


def on_terminal(sections: Sequence[Section], width: int, **options: object) -> str:
    file = io.StringIO()
    settings: dict[str, object] = {"force_terminal": True, "highlight": False, "_environ": {"TERM": "xterm-256color"}}
    print_sections(sections, Console(file=file, width=width, **{**settings, **options}))  # type: ignore[arg-type]
    return file.getvalue()


def without_styles(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# At both widths, with any text


@pytest.mark.parametrize("command", EVERYTHING)
@pytest.mark.parametrize("width", [80, 160])
def test_no_line_is_longer_than_the_terminal(command: str, width: int) -> None:
    lines = without_styles(on_terminal(EVERYTHING[command], width)).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("command", EVERYTHING)
def test_what_strangers_wrote_is_text(command: str) -> None:
    """Neither markup of rich nor what a terminal obeys; the names are whole where they are not folded."""
    for text in (on_terminal(EVERYTHING[command], 160), "\n".join(plain_lines(EVERYTHING[command]))):
        assert "\x1b[31m\ufffd" not in text
        assert "\u202e" not in text
        assert "\ufffd[31m\ufffdend" in re.sub(r"\s", "", without_styles(text))
    assert "[red]x[/red][/]" in "\n".join(plain_lines(EVERYTHING[command]))


@pytest.mark.parametrize("width", [80, 160])
def test_numbers_are_whole(width: int) -> None:
    status = without_styles(on_terminal(EVERYTHING["status"], width))
    for number in (
        "45,678 of 123,456",
        "77,401",
        "45,000",
        "98,765 core-hours",
        "1.2e-05",
        "2.5e-10",
        "117",
        "3 d 4 h",
    ):
        assert number in status, number
    assert "2 d 14 h to go" in status
    story = without_styles(on_terminal(EVERYTHING["show"], width))
    for number in ("-12345.67890123 eV", "12.345678 eV/Å", "-2.125 μB", "12345.6", "1234 in 3 runs", "123456"):
        assert number in story, number


@pytest.mark.parametrize("command", EVERYTHING)
def test_a_file_gets_bare_lines(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_sections(EVERYTHING[command])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert not re.search(r"[\u2500-\u259f]", text)
    assert not any(line.endswith(" ") for line in text.splitlines())
    # Never folded: this name would take more than a line of 80.
    assert LONG in text or command == "show"


def test_no_colour_and_a_dumb_terminal_are_respected() -> None:
    assert "\x1b[31m" in on_terminal(EVERYTHING["status"], 80)
    quiet = on_terminal(EVERYTHING["status"], 80, _environ={"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", quiet)
    assert "█" in quiet
    dumb = on_terminal(EVERYTHING["status"], 80, _environ={"TERM": "dumb"})
    assert "\x1b" not in dumb
    assert "█" not in dumb


# status


def test_bar_has_a_letter_for_whatever_is_there() -> None:
    def bar(states: dict[str, int]) -> str:
        return without_styles(on_terminal(status_sections(Progress(states=states)), 80)).splitlines()[1].strip()

    assert bar({"COMPLETED": 3, "READY": 1}) == "█" * 45 + "░" * 15
    assert bar({"COMPLETED": 100000, "FIZZLED": 1, "RUNNING": 1}) == "█" * 58 + "▓▒"
    assert bar({"FIZZLED": 7}) == "▓" * 60
    assert bar({"RUNNING": 1, "READY": 99999}) == "▒" + "░" * 59
    for states in ({"COMPLETED": n, "FIZZLED": 1, "RUNNING": m, "READY": 5} for n in (0, 1, 999) for m in (0, 1, 999)):
        assert len(bar(states)) == BAR_LETTERS


def test_share_is_100_percent_only_at_the_end() -> None:
    def title(done: int, total: int) -> str:
        return plain_lines(status_sections(Progress(states={"COMPLETED": done, "READY": total - done})))[0]

    assert title(9999, 10000) == "9,999 of 10,000 Fireworks COMPLETED (99.9%)"
    assert title(10000, 10000) == "10,000 of 10,000 Fireworks COMPLETED (100%)"
    assert title(3, 10000).endswith("(0.0%)")
    assert title(0, 10).endswith("(0%)")


def test_no_time_to_go_where_nothing_is_left_or_the_pace_is_not_known() -> None:
    done = Progress(states={"COMPLETED": 3}, labels_per_hour=5.0, seconds_to_go=0.0)
    assert is_over(done)
    assert "per hour" not in "\n".join(plain_lines(status_sections(done)))
    new = Progress(states={"READY": 3})
    assert not is_over(new)
    assert plain_lines(status_sections(new)) == [
        "0 of 3 Fireworks COMPLETED (0%)",
        "Fireworks",
        "  READY  3",
        "Labels",
        "  none",
    ]


def test_empty_launchpad_says_so() -> None:
    assert plain_lines(status_sections(Progress())) == ["nothing is queued", "Fireworks", "  none", "Labels", "  none"]


def test_only_some_running_ones_are_listed_and_those_out_of_sight_say_why() -> None:
    many = Progress(states={"RUNNING": 30}, running=[RUNNING[2]] * 30)
    lines = plain_lines(status_sections(many, most_running=3))
    assert sum(line.strip().startswith("far ") for line in lines) == 3
    assert "  and 27 more" in lines
    assert any(line.startswith("  30 without numbers: its folder is on another machine") for line in lines)


def test_status_in_one_line() -> None:
    line = status_line(PROGRESS)
    assert line.startswith("77,401 READY, 123 RUNNING, 20 PAUSED, 45,678 COMPLETED, 234 FIZZLED; ")
    assert "1,234 labels per hour, about 2 d 14 h to go" in line
    assert "98,765 core-hours, 321 of them (0.3%) wasted in failed attempts" in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 min"),
        (3599, "59 min"),
        (3600, "1 h 0 min"),
        (90061, "1 d 1 h"),
        (float("inf"), "for ever"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# show


def test_sparkline_comes_down_to_the_goal() -> None:
    assert sparkline([10.0**-n for n in range(8)], 1e-7) == "█▇▆▅▄▃▂▁"
    # One that stands still above the goal does not look as if it had reached it.
    assert sparkline([1e-2] * 3, 1e-9) == "███"
    assert len(sparkline([1.0 / (n + 1) for n in range(500)], 1e-9)) == 20
    assert sparkline([], 1e-9) == ""
    assert sparkline([0.0, float("nan")], 1e-9) == ""
    assert sparkline([1.0, 1e-3], None) == "█▁"


def test_each_run_says_what_was_changed_for_it_and_what_was_seen() -> None:
    lines = [" ".join(line.split()) for line in plain_lines(EVERYTHING["show"])]
    assert "run 2 degauss 0.02 → 0.06; mixing_ndim default → 20" in lines
    assert any(line.startswith("run 1 convergence NOT achieved after 80 iterations") for line in lines)
    assert "2 3.0 20 1.0e-05 STAGE_CONVERGED" in lines
    assert "3 3.2 running" in lines
    assert "cost 1 h 1 min of a core, 1 min of it wasted" in lines
    assert "asks for class large, nodes 1, cores 16, memory_mb 64000, walltime_seconds 86400" in lines
    assert "jobs 2 ended with WALLTIME" in lines


def test_story_of_what_has_not_begun_is_short() -> None:
    lines = plain_lines(story_sections(Story(Record(1, "a", "Si2", "dft0", (), "READY"))))
    assert lines == ["a  Si2", "  state        READY", "  Firework     1", "  fingerprint  dft0"]


# failures


def test_failures_have_number_names_advice_and_a_command() -> None:
    groups = {group.failure: group for group in group_failures(FAILED, ["--campaign", "one"])}
    assert list(groups) == ["OUT_OF_MEMORY", "REJECTED", "SCF_NOT_CONVERGED", "WALLTIME"]
    assert groups["OUT_OF_MEMORY"].number == 7
    assert len(groups["OUT_OF_MEMORY"].calculation_ids) == 5
    # Twice the largest memory, and twice the largest time, that they have asked for.
    assert groups["OUT_OF_MEMORY"].to_dict()["retry"] == (
        "dftfactory retry --reason OUT_OF_MEMORY --memory 8012M --campaign one"
    )
    assert "--walltime 02:00:00" in groups["WALLTIME"].to_dict()["retry"]
    assert groups["SCF_NOT_CONVERGED"].explanation == EXPLANATIONS[Failure.SCF_NOT_CONVERGED]
    lines = [line.strip() for line in plain_lines(EVERYTHING["failures"])]
    assert lines[0] == "OUT_OF_MEMORY  7"
    assert lines[1].endswith("and 2 more")
    assert "what to do: pw.x ended well and its result is refused; `dftfactory show` has the reason" in lines


@pytest.mark.parametrize(
    ("failed", "retry"),
    [
        # Recovery has tried what it knows: the same again fails again.
        (Failed(1, "a", "SCF_NOT_CONVERGED", "x", "y", {}), None),
        (Failed(1, "a", "SYMMETRY", "x", "y", ASKED), None),
        (Failed(1, "a", "REJECTED", "x", "y", ASKED), None),
        (Failed(1, "a", "DISK_FULL", "x", "y", ASKED), "dftfactory retry --reason DISK_FULL"),
        # How large their jobs are, this person alone knows.
        (Failed(1, "a", "WALLTIME", "x", "y", {}), "dftfactory retry --reason WALLTIME"),
        # The largest class has no more: `retry` would refuse what is proposed.
        (Failed(1, "a", "OUT_OF_MEMORY", "x", "y", {**ASKED, "memory_mb": 9000}), None),
        (Failed(1, "a", "WALLTIME", "x", "y", ASKED), None),
        (Failed(1, "a", "OUT_OF_MEMORY", "x", "y", {"memory_mb": 1}), None),
    ],
)
def test_a_command_is_proposed_only_where_it_is_sure_to_make_sense(failed: Failed, retry: str | None) -> None:
    (group,) = group_failures([failed])
    assert group.to_dict()["retry"] == retry
    assert any("dftfactory retry" in line for line in plain_lines(failure_sections([group]))) == (retry is not None)


def test_classes_of_today_count_for_what_is_proposed() -> None:
    larger = ClusterConfig(queue="slurm", classes={"huge": {"cores": 4, "memory_mb": 99000, "walltime": "01:00:00"}})
    (group,) = group_failures([Failed(1, "a", "OUT_OF_MEMORY", "x", "y", {**ASKED, "memory_mb": 9000})], (), larger)
    assert group.to_dict()["retry"] == "dftfactory retry --reason OUT_OF_MEMORY --memory 18000M"


@pytest.mark.parametrize("width", [40, 80])
def test_a_long_command_is_split_as_a_shell_reads_it(width: int) -> None:
    words = ["dftfactory", "retry", "--reason", "SCF_NOT_CONVERGED", "--set", "electron_maxstep=200", "-l", "/a/b c"]
    quoted = [shlex.quote(word) for word in words]
    text = split_command(quoted, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert shlex.split(text.replace("\\\n", "")) == words


# retry


def test_retry_says_what_has_changed_and_what_was_left() -> None:
    lines = [" ".join(line.split()) for line in plain_lines(EVERYTHING["retry"])]
    assert lines[0] == "1 Firework READY again; 1 was READY already"
    changed = "electron_maxstep 80 → 200, memory_mb 1 → 2"
    assert f"123456 {LONG} SCF_NOT_CONVERGED {changed}" in lines
    assert "1 Firework left as it is" in lines
    dry = plain_lines(retry_sections(RetrySummary(dry_run=True, retried=RETRY.retried[:1])))
    assert dry[0] == "1 Firework would be READY again"


def test_sections_without_rows_have_no_table() -> None:
    assert plain_lines([Section("x", (Column("y"),))]) == ["x"]
    assert plain_lines([Section("", (Column(), Column()), [[Cell("█", art=True), "a"], ["", "b"]])]) == ["  a", "  b"]


# With everything that real runs leave


@pytest.mark.mongodb
def test_every_state_can_be_looked_at(launchpad: Any, tmp_path: Path) -> None:
    fw_ids = plant_every_state(launchpad, tmp_path)
    stories = {name: story_sections(tell_story(launchpad, fw_id)) for name, fw_id in fw_ids.items()}
    looks = {
        "status": status_sections(read_progress(launchpad)),
        "failures": failure_sections(group_failures(read_failed(launchpad))),
        **stories,
    }
    for name, sections in looks.items():
        for width in (80, 160):
            lines = without_styles(on_terminal(sections, width)).splitlines()
            assert max(cell_len(line) for line in lines) <= width, name
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e\u2500-\u259f]", "\n".join(plain_lines(sections))), name
    progress = read_progress(launchpad)
    assert sum(progress.states.values()) == len(fw_ids)
    drawn = without_styles(on_terminal(looks["status"], 80))
    assert all(f"{state} " in drawn for state in progress.states)
    # Each way to fail has a sentence that says what to do.
    assert all(group.explanation for group in group_failures(read_failed(launchpad)))
    summary = retry(launchpad, list(fw_ids.values()), {"mixing_beta": 0.3}, dry_run=True)
    assert {each.state for each in summary.retried} <= {"FIZZLED", "DEFUSED", "READY"}
    assert {each.state for each in summary.refused} >= {"RUNNING", "RESERVED", "COMPLETED", "PAUSED", "ARCHIVED"}
