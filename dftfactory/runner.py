"""QERunner: one structure in, one label out, on this machine and without a database."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from custodian import Custodian
from custodian.custodian import CustodianError, ReturnCodeError, ValidationError

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError, DFTFactoryError, ParserError, StructureError
from dftfactory.estimate import make_estimate
from dftfactory.events import about, start_begun
from dftfactory.giving_up import calculation_error, softened_error
from dftfactory.handlers import all_handlers, attempt_facts
from dftfactory.history import (
    close_attempt,
    foreign_file,
    has_history,
    open_attempt,
    read_history,
    start_history,
    write_atomically,
    write_history,
)
from dftfactory.inputs import NAMELIST_OF, change_pw_input, prescribed_parameters, read_pw_input, write_pw_input
from dftfactory.interrupts import stopped_by_signals
from dftfactory.jobs import LabelValidator, QEJob, clean_up, keep_state, may_resume, next_parameters
from dftfactory.layout import Layout, fitted_parameters, worker_layout
from dftfactory.limits import memory_limit
from dftfactory.moments import Start, starts_of
from dftfactory.parsers import read_pw_output
from dftfactory.pseudos import Pseudopotential, load_pseudopotentials, verify_md5
from dftfactory.results import DFTResult
from dftfactory.start_folders import has_ended, is_start_of, put_aside, read_ended
from dftfactory.states import StartsRecord, state_warning
from dftfactory.structures import to_ase_atoms

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Molecule, Structure

# custodian never runs the last correction that it allows. `recovery` ends every climb by itself (the longest one that
# its table allows has about 100 attempts, with as many ranks and pools to shed as a node has), so this is only a stop
# for the case that the table is wrong.
MAX_CORRECTIONS = 200


class QERunner:
    """Labels structures with pw.x under custodian.

    Parameters
    ----------
    config
        How the labels are computed.
    worker
        How this machine runs pw.x; my_fworker.yaml of the present folder, or what is installed, where absent.
    pseudopotential_md5
        Element → md5 that the files of this machine must have; not compared where absent.
    """

    def __init__(
        self,
        config: DFTConfig,
        worker: WorkerConfig | None = None,
        pseudopotential_md5: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.worker = worker if worker is not None else WorkerConfig.find()
        self.pseudopotential_md5 = pseudopotential_md5

    def run(
        self,
        structure: Atoms | Structure | Molecule,
        run_dir: str | Path,
        calculation_id: str = "calculation",
        *,
        softened: bool = False,
        goes_on: bool = False,
    ) -> DFTResult:
        """Compute one label, recovering on the way as the ladder allows.

        Parameters
        ----------
        structure
            ASE Atoms or a pymatgen Structure.
        run_dir
            Folder for the run; made where it does not exist, and without an earlier calculation in it. Where
            `magnetism` asks for several starts, each is a calculation of its own in `start_0`, `start_1`, ... below it.
        calculation_id
            Name of the calculation, kept in the record.
        softened
            Whether a result at more than the prescribed degauss is returned, marked `quality = "softened"`, when the
            last stage of the anneal fails; it is part of the error's details otherwise.
        goes_on
            Whether `run_dir` has several starts that an earlier job has left: those that have ended are kept, and the
            one that was broken off goes on from its state. A single start goes on by `resume`.

        Returns
        -------
        DFTResult
            The label, with level and history; of several starts the one of the lowest energy.

        Raises
        ------
        StructureError, PseudopotentialError, ConfigError
            Something cannot be right; nothing was run.
        CalculationError
            Recovery gave up; its details have `failure`, `level`, `evidence`, `explanation` and `history`, of several
            starts also `states`, and after all remedies against lack of memory `request`, what another job should have.
        """
        atoms = to_ase_atoms(structure)
        run_dir = Path(run_dir).resolve()
        pseudopotentials = self.pseudopotentials(atoms)
        starts = starts_of(atoms, self.config.magnetism)
        inputs = [self._pw_input(start.applied_to(atoms), pseudopotentials) for start in starts]
        histories = [self._first_history(start, atoms, pseudopotentials) for start in starts]
        if not goes_on or len(starts) == 1:
            _refuse_used_folder(run_dir)
        if len(starts) == 1:
            result = self._run_start(run_dir, calculation_id, inputs[0], histories[0])
        else:
            result = self._run_starts(run_dir, calculation_id, starts, inputs, histories)
        if result.quality == "softened" and not softened:
            raise softened_error(run_dir, result)
        return result

    def resume(self, run_dir: str | Path, *, softened: bool = False) -> DFTResult:
        """Go on with a calculation whose time was over, from the state that it has saved.

        Parameters
        ----------
        run_dir
            Folder of a `run` that ended with a CalculationError whose `failure` is WALLTIME; of several starts the
            folder of the one that ended so.
        softened
            As for `run`.

        Returns
        -------
        DFTResult
            As `run` returns it; the history has the attempts before and after the break.

        Raises
        ------
        ConfigError
            There is nothing to go on with, or this runner computes other labels than the one that has begun there.
        PseudopotentialError, CalculationError
            As for `run`.
        """
        run_dir = Path(run_dir).resolve()
        if not may_resume(run_dir):
            raise ConfigError(
                f"{run_dir} has nothing to go on with: no calculation ended there because its time was over, "
                "or what it had saved is gone; compute it anew in another folder"
            )
        history = read_history(run_dir)
        pw_input = read_pw_input(run_dir / "pw.in")
        own, begun = self.config.label_parameters(), history["prescribed"].get("label_parameters", {})
        if other := sorted(name for name in own if own[name] != begun.get(name)):
            raise ConfigError(f"{run_dir} was begun with another configuration: it differs in {', '.join(other)}")
        pseudopotentials = self.pseudopotentials(pw_input.to_ase_atoms())
        verify_md5(pseudopotentials, history["prescribed"]["md5"])
        parameters = self._on_these_cores(run_dir, next_parameters(history["attempts"][-1]))
        folder = next(iter(pseudopotentials.values())).path.parent.resolve()
        with _named_folder(run_dir):
            open_attempt(run_dir, parameters)
            going_on = {name: parameters.get(name) for name in ("restart_mode", "startingpot")}
            change_pw_input(run_dir / "pw.in", {**going_on, "pseudo_dir": str(folder)})
        result = _with_record(run_dir, self._supervise(run_dir, history["calculation_id"]))
        if result.quality == "softened" and not softened:
            raise softened_error(run_dir, result)
        return result

    def pseudopotentials(self, atoms: Atoms) -> dict[str, Pseudopotential]:
        """Pseudopotentials of the structure on this machine, checked against `pseudopotential_md5`."""
        folder = self.worker.pseudopotential_dir or self.config.pseudopotential_dir
        if folder is None:
            raise ConfigError("pseudopotential_dir is given neither in dft.yaml nor in the worker's settings")
        if len(atoms) == 0:
            raise StructureError("the structure has no atoms")
        found = load_pseudopotentials(set(atoms.symbols), Path(folder).expanduser(), self.config.pseudopotentials)
        if self.pseudopotential_md5 is not None:
            verify_md5(found, self.pseudopotential_md5)
        return found

    def _pw_input(self, atoms: Atoms, pseudopotentials: dict[str, Pseudopotential]) -> str:
        """Return the text of pw.in; whatever is refused is refused here, before there is a run folder."""
        config = self._without_magnetism()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pw.in"
            write_pw_input(atoms, config, path, pseudopotentials=pseudopotentials, max_seconds=self.worker.max_seconds)
            return path.read_text(encoding="utf-8")

    def _on_these_cores(self, run_dir: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of an attempt for this job, which may have fewer cores than the one before.

        pw.x 6.7 keeps wavefunctions and mixing history for each rank: with other ranks or pools `restart` ends with an
        error or never. The density is one file, from which every layout goes on to the same energy.
        """
        cores = self.worker.parallel_cores
        fitted = fitted_parameters(parameters, cores)
        if fitted == parameters:
            return fitted
        history = read_history(run_dir)
        # A level that begins from scratch goes back to these.
        write_history(run_dir, {**history, "configured": fitted_parameters(history["configured"], cores)})
        if fitted.pop("restart_mode", None) is not None:
            fitted["startingpot"] = "file"
        return fitted

    def _run_start(self, run_dir: Path, calculation_id: str, pw_input: str, history: dict[str, Any]) -> DFTResult:
        """Run one start of the SCF in its folder."""
        with _named_folder(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(run_dir / "pw.in", pw_input)
            start_history(run_dir, calculation_id, **history)
        return _with_record(run_dir, self._supervise(run_dir, calculation_id))

    def _go_on_with_start(self, folder: Path, calculation_id: str, pw_input: str, history: dict[str, Any]) -> DFTResult:
        """Take the end of a start that an earlier job has left, go on from its state, or run it."""
        if not is_start_of(folder, pw_input, history["prescribed"]):
            put_aside(folder)
        if has_ended(folder):
            return _with_record(folder, read_ended(folder))
        if may_resume(folder):
            return self.resume(folder, softened=True)
        put_aside(folder)
        return self._run_start(folder, calculation_id, pw_input, history)

    def _run_starts(
        self,
        run_dir: Path,
        calculation_id: str,
        starts: Sequence[Start],
        inputs: Sequence[str],
        histories: Sequence[dict[str, Any]],
    ) -> DFTResult:
        """Run each start from scratch in a folder of its own, and keep the state of the lowest energy."""
        record = StartsRecord()
        with _named_folder(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
            start_history(run_dir, calculation_id, **histories[0])
        for start, pw_input, history in zip(starts, inputs, histories, strict=True):
            folder = record.begin(start, history["parameters"])
            _write_starts(run_dir, record)
            start_begun(calculation_id, start.name, len(record.states) + 1, len(starts), folder)
            try:
                record.end_well(self._go_on_with_start(run_dir / folder, calculation_id, pw_input, history))
            except CalculationError as error:
                record.fail(error)
                if not record.may_go_on:
                    raise record.error(run_dir) from error
            finally:
                _write_starts(run_dir, record)
        return record.label(run_dir)

    def _supervise(self, run_dir: Path, calculation_id: str) -> DFTResult:
        """Run pw.x under custodian until there is a label or no rung is left, and clean up."""
        job = QEJob(self.worker)
        custodian = Custodian(
            all_handlers(), [job], [LabelValidator()], max_errors=MAX_CORRECTIONS, directory=str(run_dir)
        )
        with stopped_by_signals(), _quiet_custodian(), about(calculation_id):
            try:
                custodian.run()
                result = read_pw_output(run_dir)
                history = read_history(run_dir)["attempts"]
                history[-1] |= {"outcome": "CONVERGED", **attempt_facts(run_dir)}
                # A disk that is full by now takes the record, and not the label.
                with contextlib.suppress(OSError):
                    close_attempt(run_dir, **history[-1])
            except (CustodianError, DFTFactoryError, OSError) as error:
                memory = memory_limit(self.worker.memory_mb)
                refused = isinstance(error, ValidationError | ReturnCodeError)
                raise calculation_error(run_dir, calculation_id, error, refused=refused, memory=memory) from error
            finally:
                job.terminate(str(run_dir))
                # What another job can go on from outlives this one.
                (keep_state if may_resume(run_dir) else clean_up)(run_dir)
        return result.with_record(level=history[-1]["parameters"]["level"], history=tuple(history))

    def _layout(self, atoms: Atoms, pseudopotentials: dict[str, Pseudopotential]) -> Layout:
        """Return the ranks and pools of the first attempt; recovery may take fewer."""
        if self.worker.parallel_cores == 1:
            return Layout(1, 1)
        return worker_layout(self.worker, make_estimate(atoms, self._without_magnetism(), pseudopotentials))

    def _without_magnetism(self) -> DFTConfig:
        """Return the configuration for atoms that have the moments of a start, or none."""
        return self.config.model_copy(update={"magnetism": "none"})

    def _first_history(
        self, start: Start, atoms: Atoms, pseudopotentials: dict[str, Pseudopotential]
    ) -> dict[str, Any]:
        """Return what `start_history` writes: the first parameters, and what must be true of a label."""
        parameters = {
            # The user's own entries are what a level without a value of its own goes back to.
            **{
                keyword.lower(): value
                for entries in self.config.pw.values()
                for keyword, value in entries.items()
                if keyword.lower() in NAMELIST_OF
            },
            **prescribed_parameters(self.config, len(atoms)),
            "nspin": 1 if start.moments is None else 2,
        }
        return {
            "parameters": {**parameters, **self._layout(start.applied_to(atoms), pseudopotentials).parameters()},
            "prescribed": {
                "md5": {element: pseudo.md5 for element, pseudo in pseudopotentials.items()},
                "degauss": parameters["degauss"],
                "conv_thr": parameters["conv_thr"],
                "smearing": self.config.smearing,
                "label_parameters": self.config.label_parameters(),
                # What another job that goes on with it compares with its own.
                "config": self.config.to_dict(),
                "max_force": self.config.max_force,
                "min_distance_fraction": self.config.min_distance_fraction,
                "early_stop": self.config.early_stop,
                "starting_moments": None if start.moments is None else start.moments.tolist(),
                "pbc": [bool(periodic) for periodic in atoms.pbc],
            },
            "ladder": self.config.to_dict().get("ladder"),
        }


def _refuse_used_folder(run_dir: Path) -> None:
    """Refuse a folder with a calculation in it, ours or not: pw.in and out/ would be replaced."""
    if has_history(run_dir):
        try:
            last = read_history(run_dir)["attempts"][-1]
        except ParserError:
            last = {"outcome": "with a damaged history.json"}
        end = f"ended: {last['outcome']}" if "outcome" in last else "has not ended, or was killed"
        why = f", {last['evidence']}" if last.get("evidence") else ""
        choice = "go on with it by QERunner.resume, choose" if may_resume(run_dir) else "choose"
        raise ConfigError(
            f"{run_dir} already holds a calculation; {choice} another folder or remove it (it {end}{why})"
        )
    if (foreign := foreign_file(run_dir)) is not None:
        raise ConfigError(
            f"{foreign} is there already, from a calculation that is not one of dftfactory's; "
            "nothing was changed: choose another folder or remove it"
        )


@contextlib.contextmanager
def _named_folder(run_dir: Path) -> Iterator[None]:
    """Say which folder it is that cannot be made or written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"the run folder {run_dir} cannot be made or written: {reason}") from error


def _with_record(run_dir: Path, result: DFTResult) -> DFTResult:
    """Fill in what history.json knows of the calculation, and what the end of the SCF says of its start."""
    history = read_history(run_dir)
    moments = history["prescribed"].get("starting_moments")
    return result.with_record(
        calculation_id=history["calculation_id"],
        pbc=tuple(history["prescribed"].get("pbc", result.pbc)),
        state_warning=state_warning(result, None if moments is None else np.array(moments)),
    )


def _write_starts(run_dir: Path, record: StartsRecord) -> None:
    """Keep the attempts of all starts in the history of the run folder; a full disk takes the record, not the label."""
    with contextlib.suppress(OSError, ParserError):
        write_history(run_dir, {**read_history(run_dir), "attempts": record.attempts, "states": record.states})


@contextlib.contextmanager
def _quiet_custodian() -> Iterator[None]:
    """Keep custodian's log lines off a terminal that nobody configured for them; they stand in custodian.json."""
    logger = logging.getLogger("custodian")
    silence = logging.NullHandler()
    logger.addHandler(silence)
    try:
        yield
    finally:
        logger.removeHandler(silence)
