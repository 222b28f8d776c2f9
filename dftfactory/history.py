"""history.json of a run folder: what is prescribed, and every attempt with its parameters and outcome.

It is the single memory of one calculation. Handlers read the present parameters from it and append the next ones,
the job reads its ranks and pools from it, and the parser the parameters without which a result is no label.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from dftfactory.errors import ParserError
from dftfactory.events import attempt_ended

HISTORY = "history.json"
# What one attempt leaves behind; wavefunctions and charge densities stay in out/ for the next one.
ATTEMPT_FILES = ("pw.in", "pw.out", "pw.err", "exit_status", "CRASH", "out/pwscf.xml")
FRESH_STATE = ("pw.out", "pw.err", "exit_status", "CRASH", "out/pwscf.xml", "pwscf.EXIT", "out/pwscf.EXIT")


def start_history(
    run_dir: Path,
    calculation_id: str,
    parameters: dict[str, Any],
    prescribed: dict[str, Any],
    ladder: list[Any] | None,
) -> None:
    """Write the history of a calculation whose first attempt has `parameters`.

    `ladder` has the levels above 0 of the user; None stands for the built-in ones.
    """
    write_history(
        run_dir,
        {
            "calculation_id": calculation_id,
            "prescribed": prescribed,
            "configured": parameters,
            "ladder": ladder,
            "attempts": [{"parameters": {**parameters, "level": 0}}],
        },
    )


def has_history(run_dir: Path) -> bool:
    """Whether the folder is one of ours; recorded runs of other origin have no history."""
    return (run_dir / HISTORY).is_file()


def foreign_file(run_dir: Path) -> Path | None:
    """Return a file of a calculation that is not one of ours, and that a run in this folder would replace."""
    there = (run_dir / name for name in ("pw.in", "pw.out", "out", "start_0"))
    return None if has_history(run_dir) else next((path for path in there if os.path.lexists(path)), None)


def read_history(run_dir: Path) -> dict[str, Any]:
    """Read history.json.

    Raises
    ------
    ParserError
        It is missing or damaged.
    """
    try:
        history: dict[str, Any] = json.loads((run_dir / HISTORY).read_text(encoding="utf-8"))
        _ = history["attempts"][-1]["parameters"], history["prescribed"], history["configured"], history["ladder"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ParserError(f"{run_dir / HISTORY} cannot be read ({error}); start again in an empty folder") from error
    return history


def write_history(run_dir: Path, history: dict[str, Any]) -> None:
    """Replace history.json in one step, so that a kill leaves the old one whole."""
    write_atomically(run_dir / HISTORY, json.dumps(history, indent=1))


def write_atomically(path: Path, text: str) -> None:
    """Write, sync to the disk, rename: after a crash there is the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        # A full disk leaves a part of it.
        temporary.unlink(missing_ok=True)
        raise


def current_parameters(run_dir: Path) -> dict[str, Any]:
    """Parameters of the attempt that runs now or has just ended."""
    parameters: dict[str, Any] = read_history(run_dir)["attempts"][-1]["parameters"]
    return parameters


def awaits_verdict(run_dir: Path) -> bool:
    """Whether the present attempt was run and nobody has recorded yet how it ended.

    custodian asks every handler in turn: those after the one that has prepared the next attempt must not take the
    output of the last attempt for one of the next.
    """
    return "outcome" not in read_history(run_dir)["attempts"][-1] and (run_dir / "exit_status").is_file()


def close_attempt(run_dir: Path, outcome: str, **facts: Any) -> None:
    """Record how the present attempt ended."""
    history = read_history(run_dir)
    is_told = "outcome" in history["attempts"][-1]
    history["attempts"][-1] |= {"outcome": outcome, **facts}
    if not is_told:
        attempt_ended(history)
    write_history(run_dir, history)


def open_attempt(run_dir: Path, parameters: dict[str, Any]) -> None:
    """Move the files of the attempt that ended to attempt_N/ and append the next one, which has pw.in only."""
    history = read_history(run_dir)
    folder = run_dir / f"attempt_{len(history['attempts']) - 1}"
    (folder / "out").mkdir(parents=True, exist_ok=True)
    for name in ATTEMPT_FILES:
        if (run_dir / name).is_file():
            (shutil.copy2 if name == "pw.in" else shutil.move)(run_dir / name, folder / name)
    history["attempts"][-1]["folder"] = folder.name
    # So that a hot stage, read by itself, is not taken for a label.
    write_history(folder, history)
    history["attempts"].append({"parameters": parameters})
    write_history(run_dir, history)


def remove_traces(run_dir: Path) -> None:
    """Remove everything of an earlier run that pw.x would leave looking fresh: XML, CRASH, EXIT, outputs."""
    for name in FRESH_STATE:
        (run_dir / name).unlink(missing_ok=True)
