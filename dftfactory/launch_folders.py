"""The folders of a Firework: where its calculation may be, whether a label is there, or something to go on with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from dftfactory.errors import ClaimedError
from dftfactory.history import foreign_file, has_history, read_history
from dftfactory.inputs import read_pw_input
from dftfactory.jobs import may_resume
from dftfactory.labels import CALCULATION_ID, FORCE, LENGTH_TOLERANCE, read_label
from dftfactory.moments import MOMENT_TOLERANCE, starting_moments
from dftfactory.orphans import end_orphans, is_rocket_dead, living_in, rocket_of, take_folder
from dftfactory.specification import Specification
from dftfactory.start_folders import may_resume_starts

# Entries of a configuration that its md5 sums stand for.
_FILES_AND_FOLDERS = {"pseudopotential_dir", "pseudopotentials"}


def own_folders(launch_dir: Path, calculation_id: str) -> Iterator[Path]:
    """Where a calculation may be: `rlaunch singleshot` runs one after the other, or two at once, in one folder."""
    yield launch_dir
    if not CALCULATION_ID.fullmatch(calculation_id):  # from a database, where it may say ../../
        return
    yield launch_dir / calculation_id
    yield from (launch_dir / f"{calculation_id}_{n}" for n in count(1))


def earlier_folders(launch_dirs: Iterable[Path], calculation_id: str) -> Iterator[Path]:
    """Where a calculation of this name has been before, in these launch folders."""
    folders = (takewhile(Path.is_dir, own_folders(path, calculation_id)) for path in launch_dirs)
    return chain.from_iterable(folders)


def find_label(launch_dirs: Iterable[Path], spec: Specification) -> tuple[Path, dict[str, Any]] | None:
    """Find the label of an earlier launch that could not be stored, and its folder.

    Raises
    ------
    ParserError
        A label file is damaged.
    """
    for folder in earlier_folders(launch_dirs, spec.calculation_id):
        label = read_label(folder)
        if label is not None and label["fingerprint"] == spec.fingerprint and spec.force in (None, label.get(FORCE)):
            return folder, label
    return None


def settle(launch_dirs: Iterable[Path], spec: Specification) -> None:
    """End what earlier launches of the calculation have left running, so that nothing is started beside it.

    Raises
    ------
    ClaimedError
        An earlier launch still runs.
    """
    for folder in earlier_folders(launch_dirs, spec.calculation_id):
        rocket = rocket_of(folder)
        if rocket and rocket["calculation_id"] != spec.calculation_id:
            continue
        if is_rocket_dead(folder):
            end_orphans(folder)
        elif living_in(folder):
            whose = f"process {rocket['owner'].get('pid')}" if rocket else "by whom is not known"
            raise ClaimedError(
                f"{spec.calculation_id} is still computed in {folder} ({whose}): wait for its end, or stop it first",
                run_dir=str(folder),
            )


def find_unfinished(launch_dirs: Iterable[Path], spec: Specification) -> Path | None:
    """Find an earlier launch of this very calculation whose time was over, and whose state is there to go on from."""
    folders = earlier_folders(launch_dirs, spec.calculation_id)
    return next((folder for folder in folders if _may_go_on(folder) and _has_begun(folder, spec)), None)


def _may_go_on(folder: Path) -> bool:
    return may_resume(folder) or may_resume_starts(folder)


def claim_folder(launch_dir: Path, spec: Specification, fw_id: int | None) -> Path:
    """Take the first folder that no other calculation has."""
    for folder in own_folders(launch_dir, spec.calculation_id):
        with suppress(FileExistsError):
            folder.mkdir(exist_ok=True)
            taken = take_folder(folder, spec.calculation_id, fw_id)
            if taken and not has_history(folder) and foreign_file(folder) is None:
                return folder
    raise AssertionError("the folders are endless")


def _has_begun(folder: Path, spec: Specification) -> bool:
    """Whether the calculation of the specification is the one in a folder; the name alone does not tell."""
    # Of several starts the first one is that of the history above them.
    first = folder if (folder / "pw.in").is_file() else folder / "start_0"
    prescribed, begun = read_history(folder)["prescribed"], read_pw_input(first / "pw.in")
    moments, began_from = starting_moments(spec.atoms, spec.config.magnetism), prescribed.get("starting_moments")
    return bool(
        prescribed.get("label_parameters") == spec.config.label_parameters()
        and _same_way(prescribed, spec)
        and prescribed["md5"] == spec.md5
        and prescribed.get("pbc") == spec.atoms.pbc.tolist()
        and begun.symbols == tuple(spec.atoms.symbols)
        and np.allclose(begun.cell, spec.atoms.cell, rtol=0, atol=LENGTH_TOLERANCE)
        and np.allclose(begun.positions, spec.atoms.positions, rtol=0, atol=LENGTH_TOLERANCE)
        and (moments is None) == (began_from is None)
        and (moments is None or np.allclose(moments, began_from, rtol=0, atol=MOMENT_TOLERANCE))
    )


def _same_way(prescribed: Mapping[str, Any], spec: Specification) -> bool:
    """Whether a calculation began with the numerical parameters of the specification.

    It goes on with those of its history: where `retry`, or `submit` with another dft.yaml, has changed them, it is to
    begin anew. A history of before they were kept tells nothing.
    """
    began, wanted = prescribed.get("config"), spec.config.to_dict()
    return began is None or all(
        began.get(name) == wanted.get(name) for name in (began.keys() | wanted.keys()) - _FILES_AND_FOLDERS
    )
