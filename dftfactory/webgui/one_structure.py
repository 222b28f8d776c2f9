"""What the page of one structure shows beside its story: its label in words, its picture, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase.units import GPa

from dftfactory.errors import StructureError
from dftfactory.monitor.story import Story
from dftfactory.webgui import words
from dftfactory.webgui.structure_view import structure_figure


def facts_of_structure(story: Story) -> dict[str, Any]:
    """Return names and values of the page that come from the story of one structure."""
    forces = _forces(story)
    try:
        view = structure_figure(story.structure, forces)
        said = _in_words(story)
    except StructureError as error:
        view, said = None, error.message
    warning = story.record.state_warning or (story.label.state_warning if story.label else None)
    return {
        "facts": _facts(story),
        "view": view,
        "structure_words": said,
        "state_warning": warning,
        "several_starts": any(attempt.start for attempt in story.attempts),
        "resources": ", ".join(f"{name} {words.value(value)}" for name, value in story.resources.items()),
        "files": names_of_files(story),
        "config": {name: words.value(value) for name, value in story.config.items()},
        "atoms": _atoms(story, forces),
        "has_forces": forces is not None,
    }


def names_of_files(story: Story) -> list[str]:
    """Return the names, below the run folder, of the files that may be shown."""
    return [name for name, _ in _inside(story)]


def file_of(story: Story, name: str) -> Path | None:
    """Return the file with a name of `names_of_files`; None for every other name, whatever it leads to."""
    return next((path for own, path in _inside(story) if own == name), None)


def _inside(story: Story) -> list[tuple[str, Path]]:
    """Return names and real paths of the regular files of the story that lie in the run folder.

    Whoever computes writes into this folder, and a symbolic link in it may lead to any file of the user of this server.
    """
    if story.folder is None:
        return []
    found = []
    try:
        home = story.folder.resolve(strict=True)
        for path in story.files:
            real = path.resolve()
            # Neither a pipe, which would never end, nor a device.
            if real.is_relative_to(home) and real.is_file() and path.is_relative_to(story.folder):
                found.append((path.relative_to(story.folder).as_posix(), real))
    except (OSError, RuntimeError):  # a folder that has gone, a loop of links
        return found
    return found


def _forces(story: Story) -> Any:
    """Return the forces of the label, in eV/Å, if they belong to as many atoms as the structure has."""
    if story.result is None or len(story.result.forces) != len(story.structure.get("symbols", ())):
        return None
    return story.result.forces


def _in_words(story: Story) -> str:
    """Return what a picture of the structure shows, for those who do not see it."""
    count = len(story.structure["symbols"])
    cell = np.array(story.structure["cell"], dtype=float)
    a, b, c = np.linalg.norm(cell, axis=1)
    periodic = [name for name, is_so in zip("abc", story.structure["pbc"], strict=True) if is_so]
    where = f"periodic along {', '.join(periodic)}" if periodic else "not periodic"
    return (
        f"{story.record.formula}: {count} atom{'' if count == 1 else 's'}, cell {a:.2f} × {b:.2f} × {c:.2f} Å, {where}"
    )


def _facts(story: Story) -> dict[str, str]:
    """Return what the label says, in units; only what is known."""
    record, result = story.record, story.result
    energy = record.energy if record.energy is not None else (result.energy if result else None)
    force = record.max_force if record.max_force is not None else (result.max_force if result else None)
    count = len(story.structure.get("symbols", ()))
    moment = record.total_magnetization
    if moment is None and result is not None:
        moment = result.total_magnetization
    facts: dict[str, str | None] = {
        "energy": None if energy is None else f"{words.number(energy, 6)} eV",
        "per atom": f"{words.number(energy / count, 6)} eV" if energy is not None and count else None,
        "max force": None if force is None else f"{words.number(force, 4)} eV/Å",
        # In vacuum it depends on the size of the box, and means nothing.
        "pressure": None if result is None or not all(result.pbc) else f"{-np.trace(result.stress) / 3 / GPa:.3f} GPa",
        "magnetization": None if moment is None else f"{moment:.3f} μB",
        "level": None if record.level is None else f"{record.level}{f' ({record.quality})' if record.quality else ''}",
        "SCF iterations": None if record.iterations is None else _iterations(record.iterations, record.runs),
        "core-hours": None if record.core_seconds is None else _cost(record.core_seconds, record.wasted_core_seconds),
        "host": record.host,
        "class of jobs": record.job_class,
    }
    return {name: value for name, value in facts.items() if value}


def _iterations(iterations: int, runs: int | None) -> str:
    return f"{iterations:,}" if runs in (None, 0, 1) else f"{iterations:,} in {runs} runs"


def _cost(seconds: float, wasted: float | None) -> str:
    said = words.hours(seconds)
    return f"{said}, {words.percent(wasted, seconds)} wasted" if wasted else said


def _atoms(story: Story, forces: Any) -> list[tuple[str, list[float], list[float], float]]:
    """Return element, position (Å), force (eV/Å) and its length, of every atom."""
    symbols = story.structure.get("symbols", ())
    positions = story.structure.get("positions", ())
    try:
        own = np.zeros((len(symbols), 3)) if forces is None else np.asarray(forces, dtype=float)
        return [
            (str(symbol), [float(x) for x in position], force.tolist(), float(np.linalg.norm(force)))
            for symbol, position, force in zip(symbols, positions, own, strict=True)
        ]
    except (TypeError, ValueError):
        return []
