"""Handlers: each failure belongs to one of them, and one run is answered once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from monty.json import MontyDecoder, MontyEncoder

from dftfactory import handlers
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.failures import Diagnosis, Failure
from dftfactory.handlers import AnnealHandler, _FailureHandler, all_handlers
from dftfactory.history import open_attempt, read_history, start_history
from dftfactory.jobs import LabelValidator, QEJob
from dftfactory.runner import QERunner

FakePw = Callable[..., WorkerConfig]


def corrections(run_dir: Path) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = json.loads((run_dir / "custodian.json").read_text())
    found: list[dict[str, Any]] = log[0]["corrections"]
    return found


def degauss_of(launches: list[str]) -> list[float]:
    return [float(re.findall(r"degauss\s*=\s*(\S+)", text)[0]) for text in launches]


@pytest.fixture
def ended_run(tmp_path: Path) -> Path:
    """A calculation whose first attempt has ended, somehow."""
    start_history(tmp_path, "si", {"degauss": 0.02, "conv_thr": 2e-9}, {"degauss": 0.02, "conv_thr": 2e-9}, None)
    (tmp_path / "pw.in").write_text("")
    (tmp_path / "exit_status").write_text("1")
    return tmp_path


def test_every_failure_belongs_to_exactly_one_handler() -> None:
    claimed = Counter(
        failure for handler in all_handlers() if isinstance(handler, _FailureHandler) for failure in handler.failures
    )
    assert claimed == Counter(Failure)


@pytest.mark.parametrize("failure", Failure)
def test_one_failure_is_claimed_by_one_handler(
    failure: Failure, ended_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "examine", lambda directory: Diagnosis(failure, "seen"))
    claims = [type(handler) for handler in all_handlers() if handler.check(str(ended_run))]
    assert len(claims) == 1
    assert failure in claims[0].failures


def test_a_run_is_examined_once_for_all_handlers_and_anew_for_the_next_attempt(
    ended_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(handlers, "examine", lambda directory: seen.append(directory))
    for handler in all_handlers():
        handler.check(str(ended_run))
    assert len(seen) == 1
    open_attempt(ended_run, {"level": 1})
    (ended_run / "exit_status").write_text("1")
    for handler in all_handlers():
        handler.check(str(ended_run))
    assert len(seen) == 2


def test_handlers_are_silent_about_an_attempt_that_was_not_run(
    ended_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "examine", lambda directory: Diagnosis(Failure.KILLED, "seen"))
    (claimed,) = (handler for handler in all_handlers() if handler.check(str(ended_run)))
    claimed.correct(str(ended_run))
    assert [handler for handler in all_handlers() if handler.check(str(ended_run))] == []


def test_a_handler_that_gives_up_records_why_and_nobody_else_acts(
    ended_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "examine", lambda directory: Diagnosis(Failure.GEOMETRY, "0.1 Å apart"))
    (claimed,) = (handler for handler in all_handlers() if handler.check(str(ended_run)))
    assert claimed.correct(str(ended_run)) == {"errors": ["GEOMETRY: 0.1 Å apart"], "actions": None}
    assert [handler for handler in all_handlers() if handler.check(str(ended_run))] == []
    (attempt,) = read_history(ended_run)["attempts"]
    assert (attempt["outcome"], attempt["evidence"]) == ("GEOMETRY", "0.1 Å apart")
    assert "too close" in attempt["explanation"]


def test_a_climb_to_the_hot_stage_is_not_taken_for_a_hot_stage_that_converged(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Callable[[], list[str]]
) -> None:
    """The run is whole, its accuracy is not: the climb writes degauss = 0.06, with which the old output looks like
    a stage that has converged hot. The hot stage must be run all the same."""
    runs = ["scf_still", "scf_still", "scf_loose", "scf_loose", "anneal_hot", "anneal_warm", "anneal_last"]
    result = QERunner(fake_config, fake_pw(*runs)).run(si_atoms, tmp_path / "run")
    assert degauss_of(launches()) == [0.02, 0.02, 0.02, 0.02, 0.06, 0.03, 0.02]
    assert (result.level, result.quality) == (3, "exact")
    by = [correction["handler"]["@class"] for correction in corrections(tmp_path / "run")]
    assert by == ["ConvergenceHandler"] * 4 + ["AnnealHandler"] * 2


def test_a_cooled_stage_is_not_taken_for_an_scf_that_fails(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Callable[[], list[str]]
) -> None:
    """The other way round: with the next input, the hot output would be one whose accuracy is not enough."""
    ladder = [{"name": "anneal", "anneal": [{"degauss_above": 0.04, "conv_thr": 1e-4}, {}]}]
    config = DFTConfig(**{**fake_config.to_dict(), "ladder": ladder})
    worker = fake_pw("scf_still", "anneal_hot", "anneal_last")
    result = QERunner(config, worker).run(si_atoms, tmp_path / "run")
    assert degauss_of(launches()) == [0.02, 0.06, 0.02]
    assert [attempt["outcome"] for attempt in result.history] == ["SCF_NOT_CONVERGED", "STAGE_CONVERGED", "CONVERGED"]


def test_the_anneal_handler_leaves_the_last_stage_to_the_validator(ended_run: Path) -> None:
    open_attempt(ended_run, {"degauss": 0.02, "level": 3, "stage": 2})
    (ended_run / "exit_status").write_text("0")
    assert not AnnealHandler().check(str(ended_run))


@pytest.mark.parametrize("part", [*all_handlers(), LabelValidator(), QEJob(WorkerConfig(parallel_cores=1, npool=1))])
def test_every_part_survives_the_way_through_custodian_json(part: Any) -> None:
    """custodian writes them only after the first correction: what cannot be written would fail there."""
    back = json.loads(json.dumps(part, cls=MontyEncoder), cls=MontyDecoder)
    assert type(back) is type(part)
    assert back.as_dict() == part.as_dict()


def test_the_job_keeps_the_settings_of_the_machine(tmp_path: Path) -> None:
    worker = WorkerConfig(pw_command="pw.x", mpi_command="mpirun -np {cores}", parallel_cores=4, environment={"A": "1"})
    back = json.loads(json.dumps(QEJob(worker), cls=MontyEncoder), cls=MontyDecoder)
    assert back.worker == worker
