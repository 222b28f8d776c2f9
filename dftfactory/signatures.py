"""The failures of pw.x by name, what each tells a person, and the table of the messages that show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


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
    Failure.KILLED: "pw.x crashed or was killed from outside; look at the node, the queue's log and its memory",
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
class Signature:
    """A pattern in the messages of a run that shows a failure.

    `when`: "any", "silent" (before pw.x has said a word), "before" the first SCF iteration, "restart" (a saved state
    was asked for), "ranks" (more than one), "fft" (the input sets its own FFT grid), "own functional" (the input
    leaves the functional to the pseudopotentials).
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
    Signature(
        Failure.ENVIRONMENT,
        r"PMIX ERROR: .*OUT-OF-RESOURCE|ompi_mpi_init.*failed|was unable to (?:find|launch|reliably start).*",
        "silent",
    ),
    Signature(Failure.OUT_OF_MEMORY, r"Error allocating \d+ bytes|insufficient virtual memory|std::bad_alloc"),
    # Open MPI, in a job whose limit is that of the address space, before pw.x has begun.
    Signature(Failure.OUT_OF_MEMORY, r"out of dynamic memory in .*"),
    # The libraries of fast networks say the same of memory that they could not pin, and go on without it.
    Signature(Failure.OUT_OF_MEMORY, r"^(?!.*(?:ibv_|openib|UCX|memlock|regist)).*Cannot allocate memory"),
    Signature(Failure.OUT_OF_MEMORY, r"oom-kill|oom_kill|Out Of Memory"),
    Signature(Failure.OUT_OF_MEMORY, r"Allocation would exceed memory limit|cannot allocate"),
    Signature(Failure.PSEUDOPOTENTIAL, _error_in(r"readpp|read_upf\w*|read_pseudo\w*|upf_\w+|average_pp")),
    Signature(Failure.PSEUDOPOTENTIAL, r"conflicting values for i\w+|inconsistent DFT|FR-PP please use"),
    # The source file that stopped, not the path of the file that it read: a folder may be called upf.
    Signature(Failure.PSEUDOPOTENTIAL, r"of file \S*(?:xmltools|upf)\w*\.f90.*\nFortran runtime error: .*", "before"),
    Signature(Failure.PSEUDOPOTENTIAL, r"^.*: unrecognized dft", "own functional"),
    Signature(Failure.PSEUDOPOTENTIAL, r"forrtl: severe .*\.(?:upf|UPF)\b.*", "before"),
    Signature(Failure.GEOMETRY, r"atoms # *\d+ and # *\d+ (?:overlap|differ by lattice vector).*"),
    Signature(Failure.OCCUPATIONS, r"charge is wrong.*|fixed occupations and lsda need"),
    Signature(Failure.OCCUPATIONS, r"cannot bracket Ef|renormalised to +-\d.*"),
    Signature(Failure.PARALLELIZATION, _error_in(r"mp_start_\w+|mp_bands|mp_images|mp_world|mp_pools")),
    Signature(
        Failure.PARALLELIZATION,
        r"no planes|[Ss]ome (?:processors|nodes) have no .*|too many processors|image parallelization not allowed",
    ),
    Signature(Failure.PARALLELIZATION, r"more bands than PWs", "ranks"),
    Signature(Failure.DISK_FULL, r"error writing file.*|No space left on device|Disk quota exceeded"),
    Signature(Failure.DISK_FULL, _error_in("davcio") + r"\n.*writ.*"),
    Signature(Failure.BAD_RESTART, _error_in(r"davcio|pw_restart\w*|read_(?!namelists|cards|input)\w+"), "restart"),
    Signature(Failure.BAD_RESTART, r"error reading file.*|error opening .*xml.*", "restart"),
    Signature(Failure.INPUT_ERROR, r"of file \S*(?:read_cards|read_namelists)\w*\.f90.*\nFortran runtime error: .*"),
    Signature(Failure.INPUT_ERROR, r"program stopped due to: .*"),
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
