"""What lies behind a failure: atoms, pseudopotential files or a disk that explain it better than its message does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from dftfactory.errors import PseudopotentialError, StructureError
from dftfactory.inputs import check_structure
from dftfactory.run_files import RunFiles
from dftfactory.signatures import Diagnosis, Failure
from dftfactory.upf import read_pseudopotential

# Bytes; the smallest run writes more.
DISK_IS_FULL = 1_000_000


def from_geometry(run: RunFiles) -> Diagnosis | None:
    """Return a structure that cannot be right."""
    if run.pw_input is None:
        return None
    limits = run.history.get("prescribed", {})
    try:
        check_structure(run.pw_input.to_ase_atoms(), limits.get("min_distance_fraction", 0.5))
    except StructureError as error:
        return Diagnosis(Failure.GEOMETRY, error.message)
    return None


def from_pseudopotentials(run: RunFiles, diagnosis: Diagnosis) -> Diagnosis | None:
    """Return a damaged pseudopotential where it explains a solver that failed, NaN, or a crash before the SCF."""
    broken = diagnosis.failure in (Failure.DIAGONALIZATION, Failure.NAN)
    crashed = diagnosis.failure is Failure.KILLED and run.text.iterations <= 1 and not run.text.scf_accuracy
    if not broken and not crashed:
        return None
    paths = [run.folder / file for file in run.text.files]
    for path in paths:
        if path.is_file():
            try:
                read_pseudopotential(path)
            except PseudopotentialError as error:
                return Diagnosis(Failure.PSEUDOPOTENTIAL, f"{error.message} ({diagnosis.evidence})")
    # The file may be on another machine by now.
    if not all(path.is_file() for path in paths) and (info := _nan_in_first_matrix(run)) is not None:
        files = ", ".join(path.name for path in paths)
        return Diagnosis(
            Failure.PSEUDOPOTENTIAL,
            f"the first matrix that was diagonalized held NaN (LAPACK INFO {info}), before any SCF: it can only come "
            f"from {files}",
        )
    return None


def from_disk(run: RunFiles, diagnosis: Diagnosis) -> Diagnosis | None:
    """Return a full disk where it explains output or scratch that is not what pw.x has written.

    pw.x 6.7 with `disk_io = 'high'` reads its wavefunctions back from a full disk without a word, and says that the
    charge is wrong.
    """
    damaged = diagnosis.failure in (
        Failure.INCOMPLETE_OUTPUT,
        Failure.BAD_RESTART,
        Failure.DIAGONALIZATION,
        Failure.NAN,
        Failure.OCCUPATIONS,
    )
    _, free = tightest_folder(run)
    if not damaged or free is None or free >= DISK_IS_FULL:
        return None
    return Diagnosis(Failure.DISK_FULL, diagnosis.evidence)


def tightest_folder(run: RunFiles) -> tuple[Path, int | None]:
    """Return where less space is left, with its bytes: the run folder, or the scratch disk that out/ leads to."""
    folders = [folder.resolve() for folder in (run.folder, run.folder / "out") if folder.is_dir()]
    free = {folder: shutil.disk_usage(folder).free for folder in folders}
    tightest = min(free, key=lambda folder: free[folder], default=run.folder)
    return tightest, free.get(tightest)


def _nan_in_first_matrix(run: RunFiles) -> int | None:
    """Return the INFO of LAPACK where it says that the very first Hamiltonian held NaN; None else.

    LAPACK solves every finite Hermitian matrix of order n, so that an INFO up to n (`failed to converge`) is NaN. n + 1
    is an overlap matrix whose first element is not positive; it is the norm of a wavefunction.
    """
    text = run.text
    order = re.search(r"Starting wfcs are +(\d+) randomized atomic wfcs(?: \+ +(\d+) random wfcs)?", run.out)
    said = re.search(r"Error in routine +[cr]diaghg +\((\d+)\)|with errorcode (\d+)", run.messages)
    info = int(said[1] or said[2]) if said else run.status
    if order is None or info is None or text.iterations > 1 or text.scf_accuracy or run.restarted:
        return None
    return info if 1 < info <= int(order[1]) + int(order[2] or 0) + 1 else None
