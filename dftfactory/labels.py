"""The label as a record: fingerprint, provenance and result in plain values, on disk and in the database."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dftfactory.config import DFTConfig
from dftfactory.errors import ParserError, StructureError
from dftfactory.history import write_atomically
from dftfactory.moments import MOMENT_TOLERANCE, starts_of
from dftfactory.pseudos import Pseudopotential
from dftfactory.results import DFTResult

if TYPE_CHECKING:
    from ase import Atoms

LABEL_FILE = "label.json"
# Becomes part of file names, and of the calculation's folder.
CALCULATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
# Key of a specification and of its label, where `submit --force` asks for a label although there is one.
FORCE = "force"
# Å; two structures that agree to this are the same calculation.
LENGTH_TOLERANCE = 1e-6
# Å; pw.x gives positions and cell back in bohr, with the digits of its output.
RESULT_TOLERANCE = 1e-4
# What `forces_above` means to a user.
FORCES_EXPLANATION = "the label is one of another configuration, and its forces are above the bound of this one"
# Without one of them a label file is damaged; the result has keys of its own.
_KEYS = ("fingerprint", "calculation_id", "config_hash", "level", "quality", "pseudopotentials")


def structure_to_dict(atoms: Atoms) -> dict[str, Any]:
    """Plain values of a structure: symbols, positions and cell in Å, pbc, and initial moments in μB if it has any."""
    moments = atoms.get_initial_magnetic_moments()
    return {
        "symbols": [str(symbol) for symbol in atoms.symbols],
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.tolist(),
        "pbc": [bool(periodic) for periodic in atoms.pbc],
        **({"initial_magnetic_moments": moments.tolist()} if moments.any() else {}),
    }


def structure_from_dict(values: Mapping[str, Any]) -> Atoms:
    """Build Atoms from `structure_to_dict`.

    Raises
    ------
    StructureError
        Keys are missing, or shapes and symbols are not those of a structure.
    """
    from ase import Atoms

    try:
        symbols = values["symbols"]
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise ValueError("symbols must be a list of text")
        return Atoms(
            symbols,
            positions=values["positions"],
            cell=values["cell"],
            pbc=values["pbc"],
            magmoms=values.get("initial_magnetic_moments"),
        )
    except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise StructureError(f"the structure of the specification is damaged: {error!r}") from error


def config_hash(config: DFTConfig, pseudopotentials: Mapping[str, Pseudopotential]) -> str:
    """Name of the label parameters and the functional: labels with the same one belong to one data set.

    The pseudopotentials are those of one structure; which file an element has, `export` compares by itself.
    """
    functional = sorted({pseudo.functional for pseudo in pseudopotentials.values()})
    # The letters keep ase.db and YAML from taking a digest like 12e4567 for a number.
    return f"cfg{_digest({**config.label_parameters(), 'functional': functional})[:12]}"


def fingerprint(atoms: Atoms, config: DFTConfig, md5: Mapping[str, str]) -> str:
    """Name of the label of one structure: equal for equal structures, label parameters and pseudopotential contents.

    Numerical and machine parameters do not count, since they do not change the number.

    Parameters
    ----------
    atoms
        Positions and cell count to 1e-6 Å, starting moments (those of `config.magnetism` where the structure has none,
        of all starts where there are several) to 1e-3 μB, and the order of the atoms counts.
    config
        How the label is computed.
    md5
        Element → md5 of its pseudopotential file.

    Raises
    ------
    StructureError
        A coordinate or a moment is NaN or infinite.
    """
    return fingerprint_of(atoms, config.label_parameters(), md5)


def fingerprint_of(atoms: Atoms, label_parameters: Mapping[str, Any], md5: Mapping[str, str]) -> str:
    """Return the fingerprint from `label_parameters()` of a configuration, as a label keeps them."""
    starts = starts_of(atoms, label_parameters["magnetism"])
    # None is a calculation without spin: not the same as spin that starts near zero.
    moments = [None if start.moments is None else _rounded(start.moments, MOMENT_TOLERANCE) for start in starts]
    values = {
        "symbols": [str(symbol) for symbol in atoms.symbols],
        "positions": _rounded(atoms.positions, LENGTH_TOLERANCE),
        "cell": _rounded(atoms.cell.array, LENGTH_TOLERANCE),
        "pbc": [bool(periodic) for periodic in atoms.pbc],
        "moments": moments[0] if len(moments) == 1 else moments,
        "label_parameters": label_parameters,
        "md5": {element: md5[element] for element in sorted(set(atoms.symbols))},
    }
    return f"dft{_digest(values)[:32]}"


def make_label(
    result: DFTResult,
    name: str,
    config: DFTConfig,
    pseudopotentials: Mapping[str, Pseudopotential],
    force: str | None = None,
    campaigns: Collection[str] = (),
) -> dict[str, Any]:
    """Return the record of one label: what it is (`fingerprint` is its name), how it was obtained, and the result."""
    from ase.formula import Formula

    from dftfactory import __version__

    return {
        "fingerprint": name,
        "calculation_id": result.calculation_id,
        "config_hash": config_hash(config, pseudopotentials),
        "formula": Formula.from_list(list(result.symbols)).format("metal"),
        "level": result.level,
        "quality": result.quality,
        "result": result.to_dict(),
        "label_parameters": config.label_parameters(),
        "pseudopotentials": {
            element: {"file": pseudo.path.name, "md5": pseudo.md5} for element, pseudo in pseudopotentials.items()
        },
        "created_on": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "dftfactory": __version__,
        **({} if force is None else {FORCE: force}),
        **({"campaigns": sorted(campaigns)} if campaigns else {}),
    }


def with_campaigns(label: Mapping[str, Any], campaigns: Iterable[str]) -> dict[str, Any]:
    """Return a label that belongs to more campaigns."""
    names = sorted({*label.get("campaigns", ()), *campaigns})
    return {**label, **({"campaigns": names} if names else {})}


def misfit(label: Mapping[str, Any], atoms: Atoms) -> str | None:
    """Why a label is not one for these atoms, by its fingerprint and by its result; None when it is.

    Raises
    ------
    ParserError
        The label is damaged.
    """
    try:
        md5 = {element: entry["md5"] for element, entry in label["pseudopotentials"].items()}
        result = DFTResult.from_dict(label["result"])
        # Symbols, positions, cell, pbc and starting moments are all in it.
        elements_differ = set(atoms.symbols) != set(result.symbols)
        same = not elements_differ and fingerprint_of(atoms, label["label_parameters"], md5) == label["fingerprint"]
        same_result = same and (
            result.symbols == tuple(atoms.symbols)
            and np.allclose(result.positions, atoms.positions, rtol=0, atol=RESULT_TOLERANCE)
            and np.allclose(result.cell, atoms.cell.array, rtol=0, atol=RESULT_TOLERANCE)
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ParserError(f"the label is damaged ({error!r})") from error
    if not same:
        return "it belongs to other atoms or starting moments"
    return None if same_result else "its result is that of other atoms than its fingerprint names"


def forces_above(label: Mapping[str, Any], config: DFTConfig) -> str | None:
    """Why a label is refused by the configuration's `max_force`; None when it is not."""
    largest = DFTResult.from_dict(label["result"]).max_force
    if largest <= config.max_force:
        return None
    return (
        f"the label {label['fingerprint']} exists, and its largest force, {largest:.4g} eV/Å, is above "
        f"max_force = {config.max_force:g} eV/Å: atoms are too close, or raise max_force in dft.yaml"
    )


def write_label(run_dir: Path, label: Mapping[str, Any]) -> Path:
    """Write the label file of a run folder in one step, before anything else happens to the label."""
    path = run_dir / LABEL_FILE
    write_atomically(path, json.dumps(label, indent=1))
    return path


def read_label(run_dir: Path) -> dict[str, Any] | None:
    """Read the label file of a run folder; None where there is none.

    Raises
    ------
    ParserError
        The file is damaged.
    """
    path = run_dir / LABEL_FILE
    if not path.is_file():
        return None
    try:
        label: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        result = DFTResult.from_dict(label["result"])
        numbers = (result.energy, result.forces, result.stress, result.positions, result.cell)
        if not all(np.isfinite(np.asarray(array, dtype=float)).all() for array in numbers):
            raise ValueError("a number is not finite")
        if result.forces.shape != (len(result.symbols), 3) or result.stress.shape != (3, 3):
            raise ValueError("forces and stress do not fit the atoms")
        if missing := [key for key in _KEYS if key not in label]:
            raise KeyError(*missing)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ParserError(f"{path} is damaged ({error!r}); remove it to compute the label again") from error
    return label


def _rounded(values: Any, tolerance: float) -> list[Any]:
    array = np.asarray(values, dtype=float)
    if not np.isfinite(array).all():
        raise StructureError("the structure has NaN or infinite coordinates or moments")
    if (np.abs(array) > 1e9).any():  # beyond whole numbers of 64 bits, all would be the same
        raise StructureError("the structure has coordinates or moments beyond all bounds")
    rounded: list[Any] = np.rint(array / tolerance).astype(np.int64).tolist()
    return rounded


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
