"""Handlers: each failure belongs to one of them, and one run is answered once."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc100
from monty.json import MontyDecoder, MontyEncoder

from dftfactory import handlers
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, InconsistentOutputError
from dftfactory.failures import Diagnosis, Failure
from dftfactory.handlers import AnnealHandler, TightenHandler, _FailureHandler, all_handlers
from dftfactory.history import open_attempt, read_history, start_history
from dftfactory.inputs import change_pw_input
from dftfactory.jobs import LabelValidator, QEJob
from dftfactory.parsers import read_pw_output
from dftfactory.runner import QERunner

RUNS = Path(__file__).parent / "files" / "runs"

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
    runs = [*["scf_still"] * 4, "scf_loose", "scf_loose", "anneal_hot", "anneal_warm", "anneal_last"]
    result = QERunner(fake_config, fake_pw(*runs)).run(si_atoms, tmp_path / "run")
    assert degauss_of(launches()) == [*[0.02] * 6, 0.06, 0.03, 0.02]
    assert (result.level, result.quality) == (3, "exact")
    by = [correction["handler"]["@class"] for correction in corrections(tmp_path / "run")]
    assert by == ["ConvergenceHandler"] * 6 + ["AnnealHandler"] * 2


def test_a_climb_out_of_the_anneal_is_not_taken_for_a_stage_that_converged(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Callable[[], list[str]]
) -> None:
    """With spin level 1 comes after the anneal; the last output that it finds is one of the stages'."""
    config = fake_config.model_copy(update={"magnetism": {"Si": 1.0}})
    runs = ["scf_still", "scf_still", "anneal_hot", "scf_still", "scf_still", "converged"]
    result = QERunner(config, fake_pw(*runs)).run(si_atoms, tmp_path / "run")
    assert degauss_of(launches()) == [0.02, 0.02, 0.06, 0.03, 0.03, 0.02]
    assert [attempt["parameters"].get("stage") for attempt in result.history] == [None, None, 0, 1, 1, None]
    assert (result.level, result.quality) == (1, "exact")
    by = [correction["handler"]["@class"] for correction in corrections(tmp_path / "run")]
    assert by == [*["ConvergenceHandler"] * 2, "AnnealHandler", *["ConvergenceHandler"] * 2]


def test_a_cooled_stage_is_not_taken_for_an_scf_that_fails(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Callable[[], list[str]]
) -> None:
    """The other way round: with the next input, the hot output would be one whose accuracy is not enough."""
    ladder = [{"name": "anneal", "anneal": [{"degauss_above": 0.04, "conv_thr": 1e-4}, {}]}]
    config = DFTConfig(**{**fake_config.to_dict(), "ladder": ladder})
    worker = fake_pw("scf_still", "scf_still", "anneal_hot", "anneal_last")
    result = QERunner(config, worker).run(si_atoms, tmp_path / "run")
    assert degauss_of(launches()) == [0.02, 0.02, 0.06, 0.02]
    assert [attempt["outcome"] for attempt in result.history] == [
        *["SCF_NOT_CONVERGED"] * 2,
        "STAGE_CONVERGED",
        "CONVERGED",
    ]


def test_the_anneal_handler_leaves_the_last_stage_to_the_validator(ended_run: Path) -> None:
    open_attempt(ended_run, {"degauss": 0.02, "level": 3, "stage": 2})
    (ended_run / "exit_status").write_text("0")
    assert not AnnealHandler().check(str(ended_run))


# Forces that the SCF error still moves


def edited(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """`converged` with other numbers in it: file, old, new."""
    shutil.copytree(RUNS / "converged", folder)
    for name, old, new in changes:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    return folder


# 0.005 of 0.037 Ry/bohr in the forces: 13 %, and 0.13 eV/Å.
LOOSE = ("pw.out", "correction =     0.000011", "correction =     0.005000")
# SCF errors of 1E-12 Ry where there were 6.4E-10.
TIGHT = (("pw.out", "6.4E-10", "1.0E-12"), ("out/pwscf.xml", "3.200765379546638e-10", "5.000000000000000e-13"))


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    return edited(tmp_path / "loose", LOOSE)


@pytest.fixture
def tight(tmp_path: Path) -> Path:
    return edited(tmp_path / "tight", *TIGHT)


def asked(launches: list[str], keyword: str) -> list[str | None]:
    found = [re.search(rf"^ *{keyword} *= *(\S+)", text, re.M) for text in launches]
    return [match[1] if match else None for match in found]


def test_a_scf_error_that_is_not_small_against_the_forces_is_run_down_from_the_density(
    loose: Path, tight: Path, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Any
) -> None:
    result = QERunner(fake_config, fake_pw(loose, tight)).run(si_atoms, tmp_path / "run")
    assert asked(launches(), "conv_thr") == ["2e-09", "2e-11"]
    assert asked(launches(), "startingpot") == [None, "'file'"]
    assert (result.level, result.quality, result.conv_thr) == (0, "exact", 2e-11)
    assert [attempt["outcome"] for attempt in result.history] == ["TIGHTENED", "CONVERGED"]
    assert "0.129 of 0.963 eV/Å in the forces" in result.history[0]["evidence"]
    assert "smaller conv_thr follows" in result.history[0]["explanation"]
    by = [correction["handler"]["@class"] for correction in corrections(tmp_path / "run")]
    assert by == ["TightenHandler"]


def test_forces_are_run_down_once_and_refused_then(
    loose: Path, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Any
) -> None:
    still_loose = edited(tmp_path / "still_loose", LOOSE, *TIGHT)
    with pytest.raises(CalculationError, match="lower conv_thr_per_atom") as caught:
        QERunner(fake_config, fake_pw(loose, still_loose)).run(si_atoms, tmp_path / "run")
    assert len(launches()) == 2
    assert [attempt["outcome"] for attempt in caught.value.details["history"]] == ["TIGHTENED", "REJECTED"]
    assert caught.value.details["failure"] is None
    assert all(caught.value.details[name] for name in ("evidence", "explanation"))


def test_a_climb_does_not_give_a_second_chance(
    loose: Path, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Any
) -> None:
    """The tight run fails twice, level 1 converges at the prescribed conv_thr, and its forces are as loose."""
    with pytest.raises(CalculationError, match="lower conv_thr_per_atom"):
        QERunner(fake_config, fake_pw(loose, "scf_still", "scf_still", loose)).run(si_atoms, tmp_path / "run")
    assert asked(launches(), "conv_thr") == ["2e-09", "2e-11", "2e-11", "2e-09"]


def test_the_last_stage_of_an_anneal_is_run_down_at_its_level(
    loose: Path, tight: Path, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path, launches: Any
) -> None:
    ladder = [{"name": "anneal", "anneal": [{"degauss_above": 0.04, "conv_thr": 1e-4}, {}]}]
    config = DFTConfig(**{**fake_config.to_dict(), "ladder": ladder})
    runs = ["scf_still", "scf_still", "anneal_hot", loose, tight]
    result = QERunner(config, fake_pw(*runs)).run(si_atoms, tmp_path / "run")
    assert asked(launches(), "conv_thr") == ["2e-09", "2e-09", "0.0001", "2e-09", "2e-11"]
    assert degauss_of(launches()) == [0.02, 0.02, 0.06, 0.02, 0.02]
    assert (result.level, result.conv_thr) == (1, 2e-11)


def test_only_a_looser_conv_thr_is_not_the_prescribed_one(
    loose: Path, fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    QERunner(fake_config, fake_pw("converged")).run(si_atoms, run_dir)
    out = (run_dir / "pw.out").read_text()
    change_pw_input(run_dir / "pw.in", {"conv_thr": 1e-9})
    (run_dir / "pw.out").write_text(out.replace("threshold =      2.0E-09", "threshold =      1.0E-09"))
    assert read_pw_output(run_dir).conv_thr == 1e-9
    change_pw_input(run_dir / "pw.in", {"conv_thr": 1e-8})
    (run_dir / "pw.out").write_text(out.replace("threshold =      2.0E-09", "threshold =      1.0E-08"))
    with pytest.raises(InconsistentOutputError, match="conv_thr = 1e-08 Ry of this run is not the prescribed 2e-09 Ry"):
        read_pw_output(run_dir)


def test_the_tighten_handler_leaves_everything_else_alone(ended_run: Path) -> None:
    assert not TightenHandler().check(str(ended_run))
    assert not TightenHandler().check(str(ended_run / "nothing"))


@pytest.mark.pw
def test_forces_that_were_run_down_are_those_of_a_tight_run(config: DFTConfig, tmp_path: Path) -> None:
    """Four layers of Al at 1e-6 Ry per atom: 45 of 244 meV/Å in the forces may be the SCF's."""
    slab = fcc100("Al", (1, 1, 4), vacuum=4)
    slab.pbc = True
    slab.rattle(0.02, seed=2)
    loose = config.model_copy(update={"conv_thr_per_atom": 1e-6})
    result = QERunner(loose, WorkerConfig()).run(slab, tmp_path / "loose")
    assert [attempt["outcome"] for attempt in result.history] == ["TIGHTENED", "CONVERGED"]
    assert (result.level, result.conv_thr) == (0, 4e-8)  # 4 atoms, 100 times smaller
    tight = config.model_copy(update={"conv_thr_per_atom": 1e-10})
    reference = QERunner(tight, WorkerConfig()).run(slab, tmp_path / "tight")
    assert len(reference.history) == 1
    assert abs(result.energy - reference.energy) / 4 < 1e-5  # 0.01 meV/atom
    assert np.abs(result.forces - reference.forces).max() < 1e-3  # 1 meV/Å


def test_an_attempt_says_what_it_cost_and_what_it_needed(
    fake_pw: FakePw, fake_config: DFTConfig, si_atoms: Atoms, tmp_path: Path
) -> None:
    """`PWSCF : 0.19s CPU 0.22s WALL`, and `Estimated max dynamical RAM per process > 2.76 MB`."""
    result = QERunner(fake_config, fake_pw("converged")).run(si_atoms, tmp_path / "run")
    (attempt,) = result.history
    printed = re.search(r"PWSCF +: +(\S+)s CPU +(\S+)s WALL", (RUNS / "converged" / "pw.out").read_text())
    assert printed is not None
    assert (attempt["cpu_time"], attempt["wall_time"]) == (float(printed[1]), float(printed[2]))
    assert (attempt["n_ranks"], attempt["estimated_memory"]) == (1, 2.76)


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
