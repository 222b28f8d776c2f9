"""Label documents for the tests of reports: only what a report reads, made without a calculation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# eV/Å³ in one GPa, written out: 1 eV = 1.602176634e-19 J and 1 GPa = 1e9 J/m³.
GPA = 1e9 * 1e-30 / 1.602176634e-19


def made_up_label(
    name: str,
    symbols: Sequence[str] = ("Si", "Si"),
    energy: float = -215.0,
    *,
    largest_force: float = 1.0,
    pressure: float = 0.0,
    level: int = 0,
    quality: str = "exact",
    config_hash: str = "cfg0",
    md5: dict[str, str] | None = None,
    **result: Any,
) -> dict[str, Any]:
    """Return a label with one force along x, on the first atom; `energy` in eV per cell, `pressure` in GPa."""
    forces = np.zeros((len(symbols), 3))
    forces[0, 0] = largest_force
    failed = [
        {
            "outcome": "SCF_NOT_CONVERGED",
            "iterations": 80,
            "wall_time": 20.0,
            "n_ranks": 2,
            "parameters": {"level": n, "used": {"SCF_NOT_CONVERGED: next level": n} if n else {}},
        }
        for n in range(level)
    ]
    used = {"SCF_NOT_CONVERGED: next level": level} if level else {}
    last = {
        "outcome": "CONVERGED",
        "iterations": 10,
        "wall_time": 5.0,
        "n_ranks": 2,
        "parameters": {"level": level, "used": used},
    }
    return {
        "fingerprint": f"dft{name}",
        "calculation_id": name,
        "config_hash": config_hash,
        "level": level,
        "quality": quality,
        "pseudopotentials": {
            element: {"file": f"{element}.UPF", "md5": (md5 or {}).get(element, "0" * 32)} for element in set(symbols)
        },
        "label_parameters": {"ecutwfc": 60, "degauss": 0.02},
        "dftfactory": "0.1.0",
        "result": {
            "energy": energy,
            "forces": forces.tolist(),
            "stress": (np.eye(3) * -pressure * GPA).tolist(),
            "symbols": list(symbols),
            "pbc": [True, True, True],
            "iterations": 10,
            "history": [*failed, last],
            "pw_version": "6.7",
            "source": "xml",
            "state_warning": None,
            **result,
        },
    }
