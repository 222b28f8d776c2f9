"""What one failed run shows, turned into exactly one Failure.

`examine` reads everything that a run leaves: pw.in, pw.out, pw.err, CRASH, the XML and the exit status. Messages come
first (`signatures`), then what the parser refuses, then the exit status; the structure and the pseudopotential files
can explain better what broke the solver.
"""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

from dftfactory.causes import from_disk, from_geometry, from_pseudopotentials, tightest_folder
from dftfactory.errors import InconsistentOutputError, NonFiniteError, NotConvergedError, ParserError
from dftfactory.parsers import read_pw_output
from dftfactory.run_files import END_OF_FILE as END_OF_FILE
from dftfactory.run_files import RunFiles, read_run_files
from dftfactory.scf import GAIN_WINDOW, is_diverging, is_gaining, is_hopeless
from dftfactory.signatures import EXPLANATIONS as EXPLANATIONS
from dftfactory.signatures import SIGNATURES, Signature
from dftfactory.signatures import Diagnosis as Diagnosis
from dftfactory.signatures import Failure as Failure

# One line of a record or a web page.
MAX_EVIDENCE = 300
# `errore` stops with 1, an SCF that does not converge with 2, ions that do not with 3. What is between them and 124 is
# a LAPACK INFO that pw.x 6.7 hands to MPI_ABORT as its exit status, with the text lost in a buffer.
LAPACK_INFO = range(4, 124)
# What pw.x does not send itself.
FROM_OUTSIDE = {"SIGHUP", "SIGINT", "SIGKILL", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGXFSZ", "SIGQUIT"}
# Status of `timeout` when its time is over.
TIMED_OUT = 124


def diagnose(run_dir: str | Path) -> Failure | None:
    """Return how the run in `run_dir` failed; None when it did not, or when no rung could answer what is wrong.

    None is not yet a label: `read_pw_output` accepts or refuses it.
    """
    diagnosis = examine(run_dir)
    return diagnosis.failure if diagnosis else None


def examine(run_dir: str | Path) -> Diagnosis | None:
    """Return the failure of a run with its evidence; None as for `diagnose`."""
    folder = Path(run_dir)
    run = read_run_files(folder)
    try:
        read_pw_output(folder)
    except ParserError as error:
        if (stopped := _stopped_by_us(run)) is not None:
            return stopped
        diagnosis = _from_messages(run) or _from_error(run, error)
    else:
        diagnosis = None
    crashed = diagnosis is not None and diagnosis.failure is Failure.KILLED and _crashed(run)
    broken = (Failure.DIAGONALIZATION, Failure.NAN, Failure.OCCUPATIONS)
    if diagnosis is None or crashed or diagnosis.failure in broken:
        # Atoms on top of each other converge happily, or break the solver; neither is the solver's fault.
        diagnosis = from_geometry(run) or diagnosis
    if diagnosis is None:
        return None
    diagnosis = from_pseudopotentials(run, diagnosis) or diagnosis
    if diagnosis.failure in (Failure.DIAGONALIZATION, Failure.NAN) and _broke_at_restart(run):
        # NaN in a saved density breaks the first diagonalization; whether it was that, a start from scratch tells.
        diagnosis = replace(diagnosis, failure=Failure.BAD_RESTART)
    return _with_context(run, from_disk(run, diagnosis) or diagnosis)


def _stopped_by_us(run: RunFiles) -> Diagnosis | None:
    """Return what the live watch has recorded before it stopped the run."""
    try:
        stopped = run.history["attempts"][-1]["stopped"]
        failure, evidence = Failure(stopped["failure"]), str(stopped["evidence"])
    except (LookupError, TypeError, ValueError):
        return None
    return Diagnosis(failure, evidence, _observed(run) if failure is Failure.SCF_NOT_CONVERGED else {})


def _from_messages(run: RunFiles) -> Diagnosis | None:
    """Return what the messages say."""
    if run.status in (126, 127):
        return Diagnosis(
            Failure.ENVIRONMENT, f"exit status {run.status}: {_first_words(run.err) or 'cannot be executed'}"
        )
    if not run.text.job_done:
        for signature in SIGNATURES:
            if _applies(signature, run) and (match := re.search(signature.pattern, run.messages, re.M)):
                return Diagnosis(signature.failure, _evidence(match))
    if "Maximum CPU time exceeded" in run.out:
        said = f"Maximum CPU time exceeded after {run.text.iterations} SCF iterations"
        # An SCF that stands still does not need more time.
        stands_still = len(run.text.scf_accuracy) > GAIN_WINDOW and not is_gaining(run.text.scf_accuracy)
        return _scf(said, run) if stands_still else Diagnosis(Failure.WALLTIME, said)
    # With an EXIT file that was there before, pw.x begins, and ends with 255 before the first iteration.
    stopped_at_once = run.status == 255 and run.text.started is not None and not run.text.scf_accuracy
    if "Program stopped by user request" in run.out or stopped_at_once:
        return Diagnosis(Failure.SOFT_STOP, f"stopped by an EXIT file after {run.text.iterations} SCF iterations")
    # Stars in an early iteration can still come down; the last numbers tell.
    for name in (r"total energy +=", r"estimated scf accuracy +<"):
        numbers = re.findall(rf"{name} *(\S+) Ry", run.out)
        if numbers and re.match(r"-?(?:nan|inf|\*)", numbers[-1], re.I):
            said = f"{numbers[-1]} for an energy in SCF iteration {run.text.iterations}"
            return Diagnosis(Failure.NAN, said)
    if stopped := re.search(r"convergence NOT achieved after +\d+ iterations.*", run.out):
        return _scf(stopped[0], run)
    return None


def _applies(signature: Signature, run: RunFiles) -> bool:
    return {
        "any": True,
        "before": run.text.iterations == 0,
        "silent": run.text.started is None,
        "restart": run.restarted,
        "ranks": run.text.n_ranks > 1,
        "fft": run.asked("nr1"),
        "own functional": not run.asked("input_dft"),
    }[signature.when]


def _from_error(run: RunFiles, error: ParserError) -> Diagnosis | None:
    """Return what the parser's refusal and the exit status say, where no message does."""
    if isinstance(error, NonFiniteError):
        return Diagnosis(Failure.NAN, error.message)
    if isinstance(error, NotConvergedError):
        return _scf(error.message, run)
    if error.details.get("disk_full"):
        return Diagnosis(Failure.DISK_FULL, error.message)
    if "pseudopotentials" in error.details:
        return Diagnosis(Failure.PSEUDOPOTENTIAL, error.message)
    if "n_bands" in error.details:
        return Diagnosis(Failure.OCCUPATIONS, error.message, {"n_bands": error.details["n_bands"]})
    if "charge_drift" in error.details or "lost_fermi_level" in error.details:
        return Diagnosis(Failure.OCCUPATIONS, error.message, {"lost_fermi_level": True})
    if "copies" in error.details:
        return Diagnosis(Failure.ENVIRONMENT, error.message)
    if isinstance(error, InconsistentOutputError):
        return None
    if run.status is None or (run.status == 0 and not _broke_at_restart(run)):
        return Diagnosis(Failure.INCOMPLETE_OUTPUT, error.message)
    if _broke_at_restart(run) and _signal(run.status) not in FROM_OUTSIDE:
        return Diagnosis(Failure.BAD_RESTART, _how_it_ended(run, "right after reading the saved state"))
    # The first matrices are diagonalized before the first iteration.
    diagonalized = run.text.iterations or "Starting wfcs are" in run.out
    if run.status in LAPACK_INFO and diagonalized and "Backtrace" not in run.err:
        return Diagnosis(Failure.DIAGONALIZATION, _how_it_ended(run, "the INFO of a LAPACK routine"))
    # A launcher that was told to end before pw.x had begun ends with 1, too.
    was_told = "Forwarding signal" in run.err
    if run.text.started is None and not was_told and (0 < run.status < TIMED_OUT or run.status == 255):
        said = _first_words(run.err)
        ended = f"exit status {run.status} before pw.x said anything"
        return Diagnosis(Failure.ENVIRONMENT, ended + (f": {said}" if said else ""))
    # The smallest share of sticks, of the wavefunctions in the third column: pw.x 6.7 dies of 0 without a word.
    idle = re.search(r"some processors have no G-vectors.*|^ *Min +\d+ +\d+ +0 .*", run.out, re.M)
    if idle and run.text.n_ranks > 1 and not run.text.iterations:
        return Diagnosis(Failure.PARALLELIZATION, _how_it_ended(run, f"before the SCF; {' '.join(idle[0].split())}"))
    return Diagnosis(Failure.KILLED, _how_it_ended(run, f"in SCF iteration {run.text.iterations}"))


def _crashed(run: RunFiles) -> bool:
    """Whether pw.x died of a signal of its own making, such as SIGSEGV."""
    name = _signal(run.status)
    return name is not None and name not in FROM_OUTSIDE


def _broke_at_restart(run: RunFiles) -> bool:
    """Whether a run from a saved state ended before its first SCF iteration did."""
    text = run.text
    begun = text.started is not None and not text.job_done and not text.scf_accuracy and text.iterations <= 1
    return run.restarted and begun


def _with_context(run: RunFiles, diagnosis: Diagnosis) -> Diagnosis:
    """Add to the evidence what the machine and the layout were, where the failure is about them."""
    context = ""
    ranks = f"{run.text.n_ranks} rank{'' if run.text.n_ranks == 1 else 's'}"
    if diagnosis.failure is Failure.DISK_FULL:
        folder, free = tightest_folder(run)
        context = "" if free is None else f"; {free / 1e6:.0f} MB are free in {folder} now"
    elif diagnosis.failure is Failure.PARALLELIZATION:
        pools = re.search(r"npool += +(\d+)", run.out)
        layout = run.history["attempts"][-1]["parameters"] if run.history else {}
        n_pools = layout.get("npool") or (int(pools[1]) if pools else None)
        context = f"; on {ranks}" + (f" in {n_pools} pools" if n_pools else "")
    elif run.text.estimated_memory is not None and (
        diagnosis.failure is Failure.OUT_OF_MEMORY
        or (diagnosis.failure is Failure.KILLED and _signal(run.status) == "SIGKILL")
    ):
        # What takes too much memory dies of SIGKILL, too, and the system tells only its administrator.
        context = f"; pw.x estimated {run.text.estimated_memory:.3g} MB for each rank, on {ranks}"
    evidence = diagnosis.evidence[: max(MAX_EVIDENCE - len(context), 0)] + context
    return replace(diagnosis, evidence=evidence)


def _evidence(match: re.Match[str]) -> str:
    """Return the whole line of the match, and the next one where `errore` puts its text."""
    messages = match.string
    start = messages.rfind("\n", 0, match.start()) + 1
    lines = messages.count("\n", start, match.end()) + 1
    if re.match(r" *(Error in routine|from) ", messages[start : match.end()]):
        lines += 1
    return " ".join(" ".join(messages[start:].split("\n", lines)[:lines]).split())[:MAX_EVIDENCE]


def _scf(said: str, run: RunFiles) -> Diagnosis:
    accuracies = run.text.scf_accuracy
    best = f"; best accuracy {min(accuracies):.1e} Ry, last {accuracies[-1]:.1e} Ry" if accuracies else ""
    evidence = " ".join(said.split()) + best
    return Diagnosis(Failure.SCF_NOT_CONVERGED, evidence, _observed(run))


def _observed(run: RunFiles) -> dict[str, bool]:
    """Return what a rung needs to know of an SCF that has not converged."""
    accuracies, electrons = run.text.scf_accuracy, run.text.n_electrons
    return {
        "gaining": is_gaining(accuracies),
        "hopeless": is_hopeless(accuracies),
        "diverged": electrons is not None and is_diverging(accuracies, electrons),
    }


def _how_it_ended(run: RunFiles, when: str) -> str:
    """Return the exit status with what it means, and what the Fortran library or mpirun says of it."""
    status = run.status
    name = "time over" if status == TIMED_OUT else _signal(status)
    said = re.search(r"Fortran runtime error: .*|.*exited on signal \d+.*|Unable to .*", run.err[-END_OF_FILE:])
    quoted = f": {' '.join(said[0].split())}" if said else ""
    return f"exit status {status}{f' ({name})' if name else ''} {when}{quoted}"


def _signal(status: int | None) -> str | None:
    """Return the name of the signal that an exit status stands for: negative, or above 128 from a shell or mpirun."""
    try:
        return None if status is None else signal.Signals(-status if status < 0 else status - 128).name
    except ValueError:
        return None


def _first_words(text: str) -> str:
    """Return the first line that says something; mpirun begins with a line of dashes."""
    return next((" ".join(line.split()) for line in text[:END_OF_FILE].splitlines() if re.search(r"\w", line)), "")
