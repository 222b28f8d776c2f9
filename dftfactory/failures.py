"""What one failed run shows, turned into exactly one Failure.

`examine` reads everything that a run leaves: pw.in, pw.out, pw.err, CRASH, the XML and the exit status. The signatures
are one table; the first one that matches wins, so that the most specific ones come first.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from dftfactory.errors import (
    InconsistentOutputError,
    InputError,
    NonFiniteError,
    NotConvergedError,
    ParserError,
    StructureError,
)
from dftfactory.history import has_history, read_history
from dftfactory.inputs import PwInput, check_structure, read_pw_input
from dftfactory.parsers import PwText, parse_text, read_exit_status, read_output, read_pw_output


class Failure(str, Enum):
    """How a run of pw.x can end without a label."""

    ENVIRONMENT = "ENVIRONMENT"
    INPUT_ERROR = "INPUT_ERROR"
    PSEUDOPOTENTIAL = "PSEUDOPOTENTIAL"
    GEOMETRY = "GEOMETRY"
    OCCUPATIONS = "OCCUPATIONS"
    PARALLELIZATION = "PARALLELIZATION"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DISK_FULL = "DISK_FULL"
    WALLTIME = "WALLTIME"
    SOFT_STOP = "SOFT_STOP"
    SCF_NOT_CONVERGED = "SCF_NOT_CONVERGED"
    DIAGONALIZATION = "DIAGONALIZATION"
    NAN = "NAN"
    SYMMETRY = "SYMMETRY"
    BAD_RESTART = "BAD_RESTART"
    HANG = "HANG"
    KILLED = "KILLED"
    INCOMPLETE_OUTPUT = "INCOMPLETE_OUTPUT"


# One sentence for a person: what happened and what to do.
EXPLANATIONS = {
    Failure.ENVIRONMENT: "pw.x could not start; check pw_command, mpi_command and the folders with `dftfactory check`",
    Failure.INPUT_ERROR: "pw.x refuses the input; correct the parameter that it names, in dft.yaml or its `pw` part",
    Failure.PSEUDOPOTENTIAL: "a pseudopotential cannot be used; replace the file, or name one under `pseudopotentials`",
    Failure.GEOMETRY: "atoms are too close or the cell is degenerate; correct or remove the structure",
    Failure.OCCUPATIONS: "the occupations do not fit the electrons; check charge, moments, smearing and nbnd",
    Failure.PARALLELIZATION: "the layout does not fit the cell; use fewer pools or ranks",
    Failure.OUT_OF_MEMORY: "memory ran out; give the job more memory, more nodes or fewer pools",
    Failure.DISK_FULL: "the disk is full or over quota; free space, or point scratch_dir elsewhere",
    Failure.WALLTIME: "the time was over before the SCF; give it more time, more cores or a larger max_seconds",
    Failure.SOFT_STOP: "an EXIT file stopped pw.x; run it again if that was not meant",
    Failure.SCF_NOT_CONVERGED: "the SCF did not converge; look at its accuracies, starting moments and structure",
    Failure.DIAGONALIZATION: "the eigenvalue solver failed; look for a bad pseudopotential or a distorted structure",
    Failure.NAN: "numbers became NaN or overflowed; look for a bad pseudopotential or atoms that are too close",
    Failure.SYMMETRY: "pw.x stumbled over a nearly symmetric cell; set nosym = true, or symmetrize the structure",
    Failure.BAD_RESTART: "the saved state was damaged; start from scratch",
    Failure.HANG: "pw.x stopped writing; look at the node and its MPI",
    Failure.KILLED: "pw.x was killed from outside; look at the node, the queue's log and its memory",
    Failure.INCOMPLETE_OUTPUT: "parts of the output are missing; look at the disk and the file system",
}


@dataclass(frozen=True)
class Diagnosis:
    """One failure, the evidence for it, and what to do.

    Attributes
    ----------
    failure
        The outcome.
    evidence
        The line of the output, or the file and exit status, that shows it.
    observed
        What a rung needs to know of the run: whether the SCF was `gaining`, or `n_bands` that were too few.
    """

    failure: Failure
    evidence: str
    observed: dict[str, Any] = field(default_factory=dict)

    @property
    def explanation(self) -> str:
        """One sentence that tells a person what happened and what to do."""
        return EXPLANATIONS[self.failure]


@dataclass(frozen=True)
class _Run:
    """What a run left, read once."""

    folder: Path
    status: int | None
    out: str
    err: str
    messages: str
    text: PwText
    pw_input: PwInput | None

    def asked(self, keyword: str, *values: Any) -> bool:
        """Whether the input has one of `values` (any value where none is given) for the keyword."""
        value = self.pw_input.get(keyword) if self.pw_input else None
        return value is not None and (not values or value in values)

    @property
    def restarted(self) -> bool:
        return self.asked("restart_mode", "restart") or self.asked("startingpot", "file")


@dataclass(frozen=True)
class Signature:
    """A pattern in the messages of a run that shows a failure.

    `when`: "any", "silent" (before pw.x has said a word), "before" the first SCF iteration, "restart" (a saved state
    was asked for), "ranks" (more than one), "fft" (the input sets its own FFT grid).
    """

    failure: Failure
    pattern: str
    when: str = "any"


def _error_in(routines: str) -> str:
    """Return the pattern of an error that pw.x stops for; `errore` prints the first form, CRASH has the second one."""
    return rf"(?:Error in routine +(?:{routines}) *\(|^ *from +(?:{routines}) *: error #).*"


# In the order of priority. Blanks are never written as \s, which would run over line after empty line.
SIGNATURES = (
    Signature(Failure.ENVIRONMENT, r"command not found|error while loading shared libraries|Permission denied.*pw\.x"),
    Signature(Failure.ENVIRONMENT, r"No such file or directory$", "silent"),
    Signature(Failure.ENVIRONMENT, r"temporary directory .* cannot be created|" + _error_in("check_tempdir")),
    Signature(Failure.ENVIRONMENT, r"not enough slots available|orte_init failed|Unable to start a daemon", "before"),
    Signature(Failure.ENVIRONMENT, r"PMIX ERROR: .*OUT-OF-RESOURCE|ompi_mpi_init.*failed|unable to launch", "silent"),
    Signature(Failure.OUT_OF_MEMORY, r"Error allocating \d+ bytes|insufficient virtual memory|std::bad_alloc"),
    # The libraries of fast networks say the same of memory that they could not pin, and go on without it.
    Signature(Failure.OUT_OF_MEMORY, r"^(?!.*(?:ibv_|openib|UCX|memlock|regist)).*Cannot allocate memory"),
    Signature(Failure.OUT_OF_MEMORY, r"oom-kill|oom_kill|Out Of Memory"),
    Signature(Failure.OUT_OF_MEMORY, r"Allocation would exceed memory limit|cannot allocate"),
    Signature(Failure.PSEUDOPOTENTIAL, _error_in(r"readpp|read_upf\w*|read_pseudo\w*|upf_\w+|average_pp")),
    Signature(Failure.PSEUDOPOTENTIAL, r"conflicting values for i\w+|inconsistent DFT|FR-PP please use"),
    # The source file that stopped, not the path of the file that it read: a folder may be called upf.
    Signature(Failure.PSEUDOPOTENTIAL, r"of file \S*(?:xmltools|upf)\w*\.f90.*\nFortran runtime error: .*", "before"),
    Signature(Failure.PSEUDOPOTENTIAL, r"forrtl: severe .*\.(?:upf|UPF)\b.*", "before"),
    Signature(Failure.GEOMETRY, r"atoms # *\d+ and # *\d+ (?:overlap|differ by lattice vector).*"),
    Signature(Failure.OCCUPATIONS, r"charge is wrong: smearing is needed|fixed occupations and lsda need"),
    Signature(Failure.OCCUPATIONS, r"cannot bracket Ef|renormalised to +-\d.*"),
    Signature(Failure.PARALLELIZATION, _error_in(r"mp_start_\w+|mp_bands|mp_images|mp_world|mp_pools")),
    Signature(Failure.PARALLELIZATION, r"no planes|[Ss]ome (?:processors|nodes) have no .*|too many processors"),
    Signature(Failure.PARALLELIZATION, r"more bands than PWs", "ranks"),
    Signature(Failure.DISK_FULL, r"error writing file.*|No space left on device|Disk quota exceeded"),
    Signature(Failure.DISK_FULL, _error_in("davcio") + r"\n.*writ.*"),
    Signature(Failure.BAD_RESTART, _error_in(r"read_rhog|read_scf|davcio|pw_restart\w*|read_file\w*"), "restart"),
    Signature(Failure.BAD_RESTART, r"error reading file.*|error opening .*xml.*", "restart"),
    Signature(Failure.INPUT_ERROR, r"lone vector", "fft"),
    Signature(Failure.SYMMETRY, r"some of the original symmetry operations not satisfied|not orthogonal operation"),
    Signature(Failure.SYMMETRY, _error_in("checkallsym") + r"|lone vector"),
    Signature(Failure.DIAGONALIZATION, r"too many bands are not converged|eigenvectors failed to converge"),
    Signature(Failure.DIAGONALIZATION, r"problems computing cholesky|S matrix not positive definite"),
    Signature(Failure.DIAGONALIZATION, r"(?:zhegvd|dsygvd|zhegvx|dsygvx|zheevd|dsyevd) failed|diagonalization failed"),
    Signature(Failure.DIAGONALIZATION, _error_in(r"[cr]diaghg|\w*cegterg|\w*regterg|ppcg\w*|paro\w*|c_bands")),
    Signature(Failure.DIAGONALIZATION, r"negative dr2|" + _error_in("broyden")),
    # Whatever else `errore` stops for would stop a second run of the same input too.
    Signature(Failure.INPUT_ERROR, _error_in(r"[^\n(:]+")),
)
# Characters: whatever stops a run is said at its end, and the last pages of a runaway output are searched in no time.
END_OF_FILE = 200_000
# A LAPACK INFO that pw.x 6.7 hands to MPI_ABORT as its exit status, with the text lost in a buffer.
LAPACK_INFO = {9, 11, *range(33, 87)}
# Status of `timeout` when its time is over.
TIMED_OUT = 124
# An SCF that gained less than this in its last iterations stands still, and more of the same is in vain.
GAIN_WINDOW = 20  # iterations
GAIN_DECADES = 0.3


def diagnose(run_dir: str | Path) -> Failure | None:
    """Return how the run in `run_dir` failed; None when it did not, or when no rung could answer what is wrong.

    None is not yet a label: `read_pw_output` accepts or refuses it.
    """
    diagnosis = examine(run_dir)
    return diagnosis.failure if diagnosis else None


def examine(run_dir: str | Path) -> Diagnosis | None:
    """Return the failure of a run with its evidence; None as for `diagnose`."""
    folder = Path(run_dir)
    run = _read(folder)
    try:
        read_pw_output(folder)
    except ParserError as error:
        diagnosis = _from_messages(run) or _from_error(run, error)
    else:
        diagnosis = None
    if diagnosis is None or diagnosis.failure in (Failure.DIAGONALIZATION, Failure.NAN):
        # Atoms on top of each other converge happily, or break the solver; neither is the solver's fault.
        return _from_geometry(run) or diagnosis
    return diagnosis


def is_gaining(scf_accuracy: Sequence[float]) -> bool:
    """Whether an SCF (accuracies in Ry, oldest first) still gained at its end, so that more iterations may end it."""
    window = min(GAIN_WINDOW, len(scf_accuracy) // 2)
    if window < 1:
        return False
    before, last = min(scf_accuracy[:-window]), min(scf_accuracy[-window:])
    if not (before > 0 and last > 0):
        return False
    return math.log10(before / last) >= GAIN_DECADES * window / GAIN_WINDOW


def _read(folder: Path) -> _Run:
    out = read_output(folder)
    try:
        pw_input = read_pw_input(folder / "pw.in")
    except InputError:
        pw_input = None
    text = parse_text(out)
    err = read_output(folder, "pw.err")
    # pw.x writes its warnings so, and goes on.
    said = re.sub(r"^ *Message from routine .*\n.*\n", "", out[-END_OF_FILE:], flags=re.M)
    # CRASH has the errors of all pools. An earlier one stays in the folder; a run that says JOB DONE wrote none.
    crash = "" if text.job_done else read_output(folder, "CRASH")
    messages = "\n".join((said, err[-END_OF_FILE:], crash[-END_OF_FILE:]))
    return _Run(folder, read_exit_status(folder), out, err, messages, text, pw_input)


def _from_messages(run: _Run) -> Diagnosis | None:
    """Return what the messages say."""
    if run.status in (126, 127):
        return Diagnosis(
            Failure.ENVIRONMENT, f"exit status {run.status}: {_last_line(run.err) or 'cannot be executed'}"
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
    if stopped := re.search(r"convergence NOT achieved after +\d+ iterations.*", run.out):
        return _scf(stopped[0], run)
    return None


def _applies(signature: Signature, run: _Run) -> bool:
    return {
        "any": True,
        "before": run.text.iterations == 0,
        "silent": run.text.started is None,
        "restart": run.restarted,
        "ranks": run.text.n_ranks > 1,
        "fft": run.asked("nr1"),
    }[signature.when]


def _from_error(run: _Run, error: ParserError) -> Diagnosis | None:
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
    if isinstance(error, InconsistentOutputError):
        return None
    if re.search(r"total energy +=[ -]+(?:nan|inf|\*)|scf accuracy +<[ -]+(?:nan|inf|\*)", run.out, re.I):
        return Diagnosis(Failure.NAN, "NaN or stars in the energies of the SCF")
    if run.status in (0, None):
        return Diagnosis(Failure.INCOMPLETE_OUTPUT, error.message)
    if run.restarted and run.text.iterations <= 1 and not run.text.scf_accuracy:
        return Diagnosis(Failure.BAD_RESTART, f"{_how_it_ended(run.status)} right after reading the saved state")
    if run.status in LAPACK_INFO and run.text.iterations and "Backtrace" not in run.err:
        return Diagnosis(Failure.DIAGONALIZATION, f"{_how_it_ended(run.status)}, the INFO of a LAPACK routine")
    if run.text.started is None and (0 < run.status < TIMED_OUT or run.status == 255):
        said = _last_line(run.err)
        ended = f"{_how_it_ended(run.status)} before pw.x said anything"
        return Diagnosis(Failure.ENVIRONMENT, ended + (f": {said}" if said else ""))
    return Diagnosis(Failure.KILLED, f"{_how_it_ended(run.status)} in SCF iteration {run.text.iterations}")


def _from_geometry(run: _Run) -> Diagnosis | None:
    if run.pw_input is None:
        return None
    limits = read_history(run.folder)["prescribed"] if has_history(run.folder) else {}
    try:
        check_structure(run.pw_input.to_ase_atoms(), limits.get("min_distance_fraction", 0.5))
    except StructureError as error:
        return Diagnosis(Failure.GEOMETRY, error.message)
    return None


def _evidence(match: re.Match[str]) -> str:
    """Return the whole line of the match, and the next one where `errore` puts its text."""
    messages = match.string
    start = messages.rfind("\n", 0, match.start()) + 1
    lines = messages.count("\n", start, match.end()) + 1
    if re.match(r" *(Error in routine|from) ", messages[start : match.end()]):
        lines += 1
    return " ".join(" ".join(messages[start:].split("\n", lines)[:lines]).split())[:300]


def _scf(said: str, run: _Run) -> Diagnosis:
    accuracies = run.text.scf_accuracy
    best = f"; best accuracy {min(accuracies):.1e} Ry, last {accuracies[-1]:.1e} Ry" if accuracies else ""
    evidence = " ".join(said.split()) + best
    return Diagnosis(Failure.SCF_NOT_CONVERGED, evidence, {"gaining": is_gaining(accuracies)})


def _how_it_ended(status: int) -> str:
    if status == TIMED_OUT:
        return f"exit status {status} (time over)"
    try:
        return f"exit status {status} ({signal.Signals(-status if status < 0 else status - 128).name})"
    except ValueError:
        return f"exit status {status}"


def _last_line(text: str) -> str:
    return " ".join(text[-1000:].strip().rpartition("\n")[2].split())
