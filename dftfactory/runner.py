"""QERunner: one structure in, one label out, on this machine and without a database."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from custodian import Custodian
from custodian.custodian import CustodianError, ReturnCodeError, ValidationError

from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.errors import CalculationError, ConfigError, DFTFactoryError, ParserError, StructureError
from dftfactory.failures import EXPLANATIONS, Failure
from dftfactory.handlers import all_handlers, attempt_facts
from dftfactory.history import (
    close_attempt,
    foreign_file,
    has_history,
    read_history,
    start_history,
    write_atomically,
)
from dftfactory.inputs import NAMELIST_OF, prescribed_parameters, write_pw_input
from dftfactory.jobs import LabelValidator, QEJob, clean_up
from dftfactory.parsers import read_pw_output
from dftfactory.pseudos import Pseudopotential, load_pseudopotentials, verify_md5
from dftfactory.results import DFTResult

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Molecule, Structure

# custodian never runs the last correction that it allows. `recovery` ends every climb by itself (the longest one that
# its table allows has about 30 attempts), so this is only a stop for the case that the table is wrong.
MAX_CORRECTIONS = 100


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
    ) -> DFTResult:
        """Compute one label, recovering on the way as the ladder allows.

        Parameters
        ----------
        structure
            ASE Atoms or a pymatgen Structure.
        run_dir
            Folder for the run; made where it does not exist, and without an earlier calculation in it.
        calculation_id
            Name of the calculation, kept in the record.
        softened
            Whether a result at more than the prescribed degauss is returned, marked `quality = "softened"`, when the
            last stage of the anneal fails; it is part of the error's details otherwise.

        Returns
        -------
        DFTResult
            The label, with level and history.

        Raises
        ------
        StructureError, PseudopotentialError, ConfigError
            Something cannot be right; nothing was run.
        CalculationError
            Recovery gave up; its details have `failure`, `level`, `evidence` and `history`.
        """
        atoms = to_ase_atoms(structure)
        run_dir = Path(run_dir).resolve()
        pseudopotentials = self.pseudopotentials(atoms)
        pw_input = self._pw_input(atoms, pseudopotentials)
        _refuse_used_folder(run_dir)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(run_dir / "pw.in", pw_input)
            self._start_history(run_dir, calculation_id, len(atoms), pseudopotentials)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"the run folder {run_dir} cannot be made or written: {reason}") from error
        result = self._supervise(run_dir, calculation_id)
        result = result.with_record(calculation_id=calculation_id, pbc=tuple(bool(periodic) for periodic in atoms.pbc))
        if result.quality == "softened" and not softened:
            raise _softened_error(run_dir, result)
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
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pw.in"
            write_pw_input(
                atoms, self.config, path, pseudopotentials=pseudopotentials, max_seconds=self.worker.max_seconds
            )
            return path.read_text(encoding="utf-8")

    def _supervise(self, run_dir: Path, calculation_id: str) -> DFTResult:
        """Run pw.x under custodian until there is a label or no rung is left, and clean up."""
        job = QEJob(self.worker)
        custodian = Custodian(
            all_handlers(), [job], [LabelValidator()], max_errors=MAX_CORRECTIONS, directory=str(run_dir)
        )
        with stopped_by_signals(), _quiet_custodian():
            try:
                custodian.run()
                result = read_pw_output(run_dir)
                history = read_history(run_dir)["attempts"]
                history[-1] |= {"outcome": "CONVERGED", **attempt_facts(run_dir)}
                # A disk that is full by now takes the record, and not the label.
                with contextlib.suppress(OSError):
                    close_attempt(run_dir, **history[-1])
            except (CustodianError, DFTFactoryError, OSError) as error:
                raise _calculation_error(run_dir, calculation_id, error) from error
            finally:
                job.terminate(str(run_dir))
                clean_up(run_dir)
        return result.with_record(level=history[-1]["parameters"]["level"], history=tuple(history))

    def _start_history(
        self, run_dir: Path, calculation_id: str, n_atoms: int, pseudopotentials: dict[str, Pseudopotential]
    ) -> None:
        parameters = {
            # The user's own entries are what a level without a value of its own goes back to.
            **{
                keyword.lower(): value
                for entries in self.config.pw.values()
                for keyword, value in entries.items()
                if keyword.lower() in NAMELIST_OF
            },
            **prescribed_parameters(self.config, n_atoms),
        }
        start_history(
            run_dir,
            calculation_id,
            parameters={**parameters, "parallel_cores": self.worker.parallel_cores, "npool": self.worker.npool},
            prescribed={
                "md5": {element: pseudo.md5 for element, pseudo in pseudopotentials.items()},
                "degauss": parameters["degauss"],
                "conv_thr": parameters["conv_thr"],
                "max_force": self.config.max_force,
                "min_distance_fraction": self.config.min_distance_fraction,
            },
            ladder=self.config.to_dict().get("ladder"),
        )


def to_ase_atoms(structure: Atoms | Structure | Molecule) -> Atoms:
    """Turn a pymatgen structure into Atoms, with its `magmom` site property as initial moments.

    Without that property the spins of the species, as `Structure.add_spin_by_element` sets them, are the moments (μB).
    Atoms stay as they are.
    """
    from ase import Atoms

    if isinstance(structure, Atoms):
        return structure
    from pymatgen.core import Structure
    from pymatgen.io.ase import AseAtomsAdaptor

    if not isinstance(structure, Structure):
        raise StructureError(
            f"expected ASE Atoms or a pymatgen Structure, got {type(structure).__name__}; "
            "a molecule needs a box: Molecule.get_boxed_structure"
        )
    try:
        atoms = AseAtomsAdaptor.get_atoms(structure)
    except ValueError as error:
        raise StructureError(f"the pymatgen structure cannot be computed: {error}") from error
    moments = atoms.get_initial_magnetic_moments() if atoms.has("initial_magmoms") else None
    # The adaptor takes the site property only.
    spins = [getattr(site.specie, "spin", None) for site in structure]
    if moments is None and any(spin is not None for spin in spins):
        moments = [spin or 0.0 for spin in spins]
    return Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, magmoms=moments)


def _refuse_used_folder(run_dir: Path) -> None:
    """Refuse a folder with a calculation in it, ours or not: pw.in and out/ would be replaced."""
    if has_history(run_dir):
        try:
            last = read_history(run_dir)["attempts"][-1]
        except ParserError:
            last = {"outcome": "with a damaged history.json"}
        end = f"ended: {last['outcome']}" if "outcome" in last else "has not ended, or was killed"
        why = f", {last['evidence']}" if last.get("evidence") else ""
        raise ConfigError(f"{run_dir} already holds a calculation; choose another folder or remove it (it {end}{why})")
    if (foreign := foreign_file(run_dir)) is not None:
        raise ConfigError(
            f"{foreign} is there already, from a calculation that is not one of dftfactory's; "
            "nothing was changed: choose another folder or remove it"
        )


def _calculation_error(run_dir: Path, calculation_id: str, cause: Exception) -> CalculationError:
    """Say why recovery gave up: as the handlers have recorded it, or else from what broke the calculation off."""
    try:
        attempts = read_history(run_dir)["attempts"]
    except ParserError:
        attempts = []
    end = attempts[-1] if attempts else {}
    if "outcome" not in end or isinstance(cause, OSError):
        end = _unclaimed_end(run_dir, cause)
        # What cannot be written to a full disk still stands in the error.
        with contextlib.suppress(OSError, ParserError):
            close_attempt(run_dir, **end, **attempt_facts(run_dir))
            attempts = read_history(run_dir)["attempts"]
    level = attempts[-1]["parameters"]["level"] if attempts else None
    runs = "1 run" if len(attempts) == 1 else f"{len(attempts)} runs"
    where = f" at level {level} after {runs}" if attempts else ""
    return CalculationError(
        f"{calculation_id}: {end['outcome']}{where}: {end['evidence']}; {end['explanation']}",
        calculation_id=calculation_id,
        failure=None if end["outcome"] == "REJECTED" else end["outcome"],
        level=level,
        evidence=end["evidence"],
        explanation=end["explanation"],
        history=attempts,
        run_dir=str(run_dir),
    )


def _unclaimed_end(run_dir: Path, cause: Exception) -> dict[str, Any]:
    """Return how an attempt ended that no handler has claimed."""
    if isinstance(cause, OSError):
        failure = Failure.DISK_FULL if cause.errno in (errno.ENOSPC, errno.EDQUOT) else Failure.ENVIRONMENT
        return {"outcome": failure.value, "evidence": str(cause), "explanation": EXPLANATIONS[failure]}
    evidence, explanation = str(cause), "the calculation was broken off"
    if isinstance(cause, ValidationError | ReturnCodeError):
        explanation = "pw.x ended well, and its result is refused"
        try:  # custodian only says that there was something
            read_pw_output(run_dir)
        except ParserError as error:
            evidence = error.message
    return {"outcome": "REJECTED", "evidence": evidence, "explanation": explanation}


def _softened_error(run_dir: Path, result: DFTResult) -> CalculationError:
    return CalculationError(
        f"{result.calculation_id}: SCF_NOT_CONVERGED at the prescribed degauss; it converged at {result.degauss:g} Ry, "
        "which is kept as a softened label and left out unless asked for",
        calculation_id=result.calculation_id,
        failure="SCF_NOT_CONVERGED",
        level=result.level,
        evidence=f"converged at degauss = {result.degauss:g} Ry only",
        history=list(result.history),
        run_dir=str(run_dir),
        softened=result.to_dict(),
    )


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM (scancel, a shutdown) and SIGHUP into SystemExit, so that pw.x is stopped before Python ends.

    A signal that the application has a handler of its own for, or ignores as `nohup` does, is left to it.
    """
    # Only the main thread may set handlers.
    numbers = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []

    def stop(number: int, frame: FrameType | None) -> None:
        # Both come when a terminal closes; the second one must not break off what the first has begun to stop.
        for ours_too in ours:
            signal.signal(ours_too, signal.SIG_IGN)
        raise SystemExit(128 + number)

    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


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
