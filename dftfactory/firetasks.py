"""RunDFT: what a rocket does on a node. Its import path and the keys of its specification are permanent."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireworks import FiretaskBase, FWAction, explicit_serialize

from dftfactory.claims import Claims, look_at, make_claim
from dftfactory.config import WorkerConfig
from dftfactory.cost import NO_COST, cost_of, spent_in_vain
from dftfactory.errors import CalculationError, ClaimedError, ConfigError, DFTFactoryError, LaunchPadError
from dftfactory.events import begun, gave_up, handed_back, label_stored, next_job_given, tell
from dftfactory.giving_up import details_of_softened
from dftfactory.interrupts import SOFT_SIGNALS, asked_to_stop, ctrl_c_of_python, soft_stops, waiting
from dftfactory.jobs import has_time, may_resume
from dftfactory.labels import FORCE, FORCES_EXPLANATION, forces_above, make_label, with_campaigns, write_label
from dftfactory.launch_folders import claim_folder, find_label, find_unfinished, settle
from dftfactory.limits import job_seconds
from dftfactory.next_job import (
    NEXT_JOB,
    WALLTIME,
    NextJob,
    change_spec,
    count_attempts,
    given_up,
    make_ready,
    next_job,
    wanted_job,
)
from dftfactory.offline import earlier_launch_dirs, give_zopen_its_mode
from dftfactory.orphans import take_over_folder
from dftfactory.patience import patiently
from dftfactory.queues import own_job
from dftfactory.results import DFTResult
from dftfactory.rocket_output import rocket_output
from dftfactory.runner import QERunner
from dftfactory.specification import Specification
from dftfactory.start_folders import may_resume_starts
from dftfactory.store import LabelStore, at_most, launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# What the end of a launch may take when SIGKILL is near; what is not done then, `dftfactory reconcile` does.
HURRY_SECONDS = 10.0


@explicit_serialize
class RunDFT(FiretaskBase):  # type: ignore[misc]  # FireWorks is untyped
    """Label the structure of the specification: on disk first, then in the label store.

    Raises
    ------
    DFTFactoryError
        FireWorks keeps its `to_dict()` in the launch record, and the Firework ends FIZZLED.
    """

    launchpad: LaunchPad | None = None
    fw_id: int | None = None

    @classmethod
    def from_dict(cls, m_dict: dict[str, Any]) -> RunDFT:
        """Read a task; a rocket in offline mode needs help before it goes on, see there."""
        give_zopen_its_mode()
        return cls(m_dict)

    def run_task(self, fw_spec: dict[str, Any]) -> FWAction:
        """Compute the label, or find that it is already there.

        After SIGUSR1, SIGTERM or SIGHUP, and when the time of the job is over, the rocket ends here: `rlaunch
        rapidfire` would go on with the next Firework.
        """
        with rocket_output(fw_spec, self.fw_id), soft_stops():
            spec = Specification(fw_spec)
            begun(spec.worker.parallel_cores, Path.cwd(), own_job())
            if self.launchpad is None or self.fw_id is None:
                # Offline: `dftfactory recover` does what needs the database.
                label, run_dir, unwritten = self._find_or_compute(spec, [Path.cwd(), *earlier_launch_dirs(Path.cwd())])
                if unwritten is not None:
                    raise unwritten
                return _action(label, run_dir)
            with ctrl_c_of_python():
                return self._run_to_the_end(spec, self.launchpad, self.fw_id)

    def _run_to_the_end(self, spec: Specification, launchpad: LaunchPad, fw_id: int) -> FWAction:
        """Run, and after a signal tell the LaunchPad the end before this rocket ends, too."""
        try:
            action = self._run_online(spec, launchpad, fw_id)
        except DFTFactoryError as error:
            if asked_to_stop() is not None:
                gave_up(error)
                with contextlib.suppress(Exception), at_most(HURRY_SECONDS):
                    end_launch(launchpad, fw_id, fizzled(error), "FIZZLED")
                _end_rocket()
            raise
        if asked_to_stop() is not None:
            with contextlib.suppress(Exception), at_most(HURRY_SECONDS):
                end_launch(launchpad, fw_id, action, "COMPLETED")
            _end_rocket()
        return action

    def _run_online(self, spec: Specification, launchpad: LaunchPad, fw_id: int) -> FWAction:
        """Claim the fingerprint, so that nobody else computes it meanwhile, and store the label."""
        claims, store, patience = Claims(launchpad), LabelStore(launchpad), spec.worker.database_seconds
        claim = make_claim(spec.fingerprint, fw_id, Path.cwd())
        try:
            with waiting():
                other = patiently(lambda: claims.take(claim), patience)
            if other is not None:
                return _linked(other, spec, fw_id)
            with waiting():
                label = patiently(lambda: store.get(spec.fingerprint), patience)
            if label is not None and spec.force is not None and label.get(FORCE) != spec.force:
                patiently(lambda: store.set_aside([spec.fingerprint]), patience)
                label = None
            if label is not None and label["quality"] == "exact":
                _refuse_large_forces(label, spec)
                patiently(partial(store.join_campaigns, label, spec.campaigns), patience)
                label_stored(summary := summary_of(label), reused=True)
                return FWAction(stored_data={**summary, "reused": True})
            launch_dirs = [Path.cwd(), *patiently(lambda: _earlier_launch_dirs(launchpad, fw_id), patience)]
            label, run_dir, unwritten = self._find_or_compute(spec, launch_dirs, again=label is not None)
            with waiting():
                _store(
                    with_campaigns(label, spec.campaigns),
                    run_dir,
                    unwritten,
                    store,
                    HURRY_SECONDS if _is_urgent() else patience,
                )
            label_stored(summary_of(label))
            return _action(label, run_dir)
        except CalculationError as error:
            _try_another_job(error, spec, claims, claim, launchpad, fw_id)
            raise
        except (KeyboardInterrupt, SystemExit) as stop:
            number = _signal_of(stop)
            if number is not None:
                _hand_back(claims, claim, launchpad, fw_id, signal.Signals(number).name)
                _die_of(number)
            raise
        except (OSError, ConfigError) as error:
            if _is_disk_full(error):
                # One node with a full disk would else fail one Firework after the other.
                _hand_back(claims, claim, launchpad, fw_id, str(error))
                _die_of(signal.SIGTERM)
            raise
        finally:
            # With patience: FireWorks drops the end of a task, and its failure, when the database is away just then.
            # A claim that cannot be given back goes with this process.
            with contextlib.suppress(LaunchPadError):
                patiently(lambda: claims.give_back(claim), HURRY_SECONDS if _is_urgent() else patience)

    def _find_or_compute(
        self, spec: Specification, launch_dirs: list[Path], *, again: bool = False
    ) -> tuple[dict[str, Any], Path, OSError | None]:
        """Return the label, its folder, and why it could not be written there."""
        found = find_label(launch_dirs, spec)
        # A softened label that is stored already is what somebody wants to do better than.
        if found is not None and not (again and found[1]["quality"] != "exact"):
            tell("label_found", "label of an earlier launch found in", found[0])
            return found[1], found[0], None
        settle(launch_dirs, spec)
        run_dir = find_unfinished(launch_dirs, spec)
        if run_dir is None:
            run_dir = claim_folder(Path.cwd(), spec, self.fw_id)
        else:
            take_over_folder(run_dir, spec.calculation_id, self.fw_id)
            tell("goes_on", "goes on with what an earlier launch has saved in", run_dir)
        label = _compute(spec, run_dir, count_attempts(run_dir))
        try:
            write_label(run_dir, label)
        except OSError as error:
            # A full disk: the store is then the only place that can keep it.
            tell("label_unwritten", f"label not written ({error.strerror}) in", run_dir)
            return label, run_dir, error
        tell("label_written", "label written in", run_dir)
        return label, run_dir, None


def _compute(spec: Specification, run_dir: Path, n_before: int) -> dict[str, Any]:
    runner = QERunner(spec.config, spec.worker, spec.md5)
    # Read before the run: afterwards a folder that has gone would cost the label.
    pseudopotentials = runner.pseudopotentials(spec.atoms)
    try:
        if may_resume(run_dir):
            result = runner.resume(run_dir, softened=True)
        else:
            goes_on = may_resume_starts(run_dir)
            result = runner.run(spec.atoms, run_dir, spec.calculation_id, softened=True, goes_on=goes_on)
    except CalculationError as error:
        error.details |= spent_in_vain(error.details.get("history", ()))
        wanted = wanted_job(error, n_before, is_late=_is_late(spec.worker))
        # Without resources more memory is for whoever queues it.
        if wanted is not None and (wanted["reason"] == WALLTIME or spec.queue.get("resources")):
            error.details[NEXT_JOB] = wanted
        raise
    return make_label(result, spec.fingerprint, spec.config, pseudopotentials, spec.force, spec.campaigns)


def _is_late(worker: WorkerConfig) -> bool:
    """Whether a job in which there was no time is one that others have used, and not one that is always too short.

    What it takes to begin is none: a job of hardly more than pw.x needs would be begun, and handed back, without end.
    """
    seconds = job_seconds()
    return seconds is None or has_time(seconds - worker.margin_seconds, worker)


def _store(label: dict[str, Any], run_dir: Path, unwritten: OSError | None, store: LabelStore, patience: float) -> None:
    """Store a label however long the database is away; what is on the disk may wait there."""
    try:
        patiently(lambda: store.put(label), patience)
    except LaunchPadError as error:
        if unwritten is not None:
            write_label(run_dir, label)  # there may be room by now
        raise type(error)(
            f"{error.message.partition(';')[0]}; the label is in {run_dir}: `dftfactory recover` stores it when the "
            "database is back",
            run_dir=str(run_dir),
        ) from error


@launchpad_errors()
def _earlier_launch_dirs(launchpad: LaunchPad, fw_id: int) -> list[Path]:
    """Folders of earlier launches of a Firework that this machine can see: each launch has a new one."""
    launches = launchpad.launches.find({"fw_id": fw_id}, {"_id": 0, "launch_dir": 1})
    return [path for launch in launches if (path := Path(launch["launch_dir"])).is_dir()]


def _try_another_job(
    error: CalculationError,
    spec: Specification,
    claims: Claims,
    claim: dict[str, Any],
    launchpad: LaunchPad,
    fw_id: int,
) -> None:
    """Set the Firework READY where another job helps; when that is one for lack of time, this rocket ends.

    The record of the launch that lacked memory stays, as that of a failure; its Firework does not have it any more.
    """
    wanted = error.details.get(NEXT_JOB)
    if wanted is None:
        return
    job = next_job(spec.queue, wanted)
    if not job.is_ready:
        patience = HURRY_SECONDS if wanted["reason"] == WALLTIME else spec.worker.database_seconds
        patiently(lambda: change_spec(launchpad, fw_id, job), patience)
        raise given_up(error, job) from error
    if wanted["reason"] == WALLTIME:
        _hand_back(claims, claim, launchpad, fw_id, error.details["evidence"], job)
        _end_rocket()
        return
    # Where the database stays away, the error says what the next job should have, and `dftfactory recover` reads it.
    with contextlib.suppress(LaunchPadError):
        if patiently(lambda: claims.give_back(claim), spec.worker.database_seconds):
            patiently(lambda: make_ready(launchpad, fw_id, job), spec.worker.database_seconds)
            next_job_given(job.said, error.details["evidence"], job.changes)


def fizzled(error: DFTFactoryError) -> FWAction:
    """Return what FireWorks keeps of an error."""
    details = error.to_dict()
    exception = {"_stacktrace": details["message"], "_details": details}
    return FWAction(stored_data={"_message": "runtime error during task", "_exception": exception}, exit=True)


def end_launch(launchpad: LaunchPad, fw_id: int, action: FWAction, state: str, *, of: str = "RUNNING") -> None:
    """Do what FireWorks would do after the task, for a Firework that is RUNNING, or in the state `of`."""
    firework = launchpad.fireworks.find_one({"fw_id": fw_id, "state": of}, {"launches": 1})
    if firework is not None and firework["launches"]:
        launchpad.complete_launch(firework["launches"][-1], action, state)


def _signal_of(stop: KeyboardInterrupt | SystemExit) -> int | None:
    """Return the signal that has stopped pw.x; None where somebody called sys.exit."""
    if isinstance(stop, KeyboardInterrupt):
        return signal.SIGINT
    number = stop.code - 128 if isinstance(stop.code, int) else None
    return number if number in SOFT_SIGNALS else None


def _hand_back(
    claims: Claims, claim: dict[str, Any], launchpad: LaunchPad, fw_id: int, why: str, job: NextJob | None = None
) -> None:
    """Make the Firework READY for another rocket; FireWorks would make it FIZZLED."""
    with contextlib.suppress(Exception), at_most(HURRY_SECONDS):
        # Else the Firework is with another rocket by now.
        if claims.give_back(claim):
            job = job or NextJob(True, "is READY again")
            make_ready(launchpad, fw_id, job)
            handed_back(job.said, why, job.changes)


def _is_urgent() -> bool:
    stop = asked_to_stop()
    return stop is not None and stop.is_urgent


def _end_rocket() -> None:
    """End this process: by the signal that asks for it, or well, since it has done all that there was time for."""
    stop = asked_to_stop()
    if stop is not None and stop.is_urgent:
        _die_of(stop.number)
    _exit(0)


def _exit(status: int) -> None:
    """End this process, whose tasks FireWorks would go on with."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _die_of(number: int) -> None:
    """End this process: `rlaunch rapidfire` would go on with the next Firework, in a job that is about to be killed."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether there was no room for the first files of a run; pw.x itself has rungs for that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _linked(other: dict[str, Any], spec: Specification, fw_id: int) -> FWAction:
    """Leave the label to the rocket that computes it already."""
    if other["fw_id"] == fw_id:
        raise ClaimedError(
            f"an earlier launch of {spec.calculation_id} still runs ({look_at(other).evidence}) and goes on; "
            "this one was not needed",
            run_dir=other["launch_dir"],
        )
    tell("linked", f"linked: Firework {other['fw_id']} computes the same label", linked_to=other["fw_id"])
    return FWAction(
        stored_data={
            "calculation_id": spec.calculation_id,
            "fingerprint": spec.fingerprint,
            "linked_to": other["fw_id"],
        }
    )


def _refuse_large_forces(label: dict[str, Any], spec: Specification) -> None:
    """`max_force` is no label parameter: a label of another configuration may be above the one of this."""
    if (reason := forces_above(label, spec.config)) is not None:
        raise CalculationError(
            reason,
            **{**summary_of(label), **NO_COST.to_dict()},
            failure="REJECTED",
            evidence=reason,
            explanation=FORCES_EXPLANATION,
        )


def _action(label: dict[str, Any], run_dir: Path) -> FWAction:
    if label["quality"] != "exact":
        raise only_softened(label, run_dir)
    return FWAction(stored_data={**summary_of(label), "run_dir": str(run_dir)})


def summary_of(label: dict[str, Any]) -> dict[str, Any]:
    """Return what the web GUI shows of a finished Firework, in eV, Å, seconds and core seconds."""
    result = DFTResult.from_dict(label["result"])
    return {
        "calculation_id": label["calculation_id"],
        "fingerprint": label["fingerprint"],
        "level": label["level"],
        "quality": label["quality"],
        "energy": result.energy,
        "max_force": result.max_force,
        "total_magnetization": result.total_magnetization,
        "state_warning": result.state_warning,
        "states": list(result.states),
        "iterations": result.total_iterations,
        "runs": len(result.history),
        "wall_time": result.wall_time,
        **cost_of(result.history).to_dict(),
    }


def only_softened(label: dict[str, Any], run_dir: Path) -> CalculationError:
    """Return the error of a Firework whose label is not exact."""
    result = DFTResult.from_dict(label["result"])
    return CalculationError(
        f"{label['calculation_id']}: the SCF converged at degauss = {result.degauss:g} Ry only; "
        "the softened label is stored and left out of exports unless asked for",
        **{**summary_of(label), **details_of_softened(result)},
        run_dir=str(run_dir),
    )
