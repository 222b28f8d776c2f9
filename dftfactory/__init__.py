"""SELECTED structures in, trustworthy Quantum ESPRESSO labels out.

The public names are imported when they are first used, so that `import dftfactory` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dftfactory.config import DFTConfig as DFTConfig
    from dftfactory.config import WorkerConfig as WorkerConfig
    from dftfactory.errors import CalculationError as CalculationError
    from dftfactory.errors import CandidateError as CandidateError
    from dftfactory.errors import ClaimedError as ClaimedError
    from dftfactory.errors import ConfigError as ConfigError
    from dftfactory.errors import DFTFactoryError as DFTFactoryError
    from dftfactory.errors import IncompleteOutputError as IncompleteOutputError
    from dftfactory.errors import InconsistentOutputError as InconsistentOutputError
    from dftfactory.errors import InputError as InputError
    from dftfactory.errors import LaunchPadAwayError as LaunchPadAwayError
    from dftfactory.errors import LaunchPadError as LaunchPadError
    from dftfactory.errors import NonFiniteError as NonFiniteError
    from dftfactory.errors import NotConvergedError as NotConvergedError
    from dftfactory.errors import ParserError as ParserError
    from dftfactory.errors import PseudopotentialError as PseudopotentialError
    from dftfactory.errors import SeveralStructuresError as SeveralStructuresError
    from dftfactory.errors import StructureError as StructureError
    from dftfactory.errors import UnknownStructureError as UnknownStructureError
    from dftfactory.failures import Failure as Failure
    from dftfactory.failures import diagnose as diagnose
    from dftfactory.inputs import read_pw_input as read_pw_input
    from dftfactory.inputs import write_pw_input as write_pw_input
    from dftfactory.jobs import QEJob as QEJob
    from dftfactory.parsers import read_pw_output as read_pw_output
    from dftfactory.recovery import get_next_params as get_next_params
    from dftfactory.recovery import get_recovery_strategy as get_recovery_strategy
    from dftfactory.results import DFTResult as DFTResult
    from dftfactory.runner import QERunner as QERunner

__version__ = "0.1.0"

_ERRORS = (
    *("CalculationError", "CandidateError", "ClaimedError", "ConfigError", "DFTFactoryError", "IncompleteOutputError"),
    *("InconsistentOutputError", "InputError", "LaunchPadAwayError", "LaunchPadError", "NonFiniteError"),
    *("NotConvergedError", "ParserError", "PseudopotentialError", "StructureError"),
    *("SeveralStructuresError", "UnknownStructureError"),
)
_HOME = {
    **dict.fromkeys(("DFTConfig", "WorkerConfig"), "config"),
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(("Failure", "diagnose"), "failures"),
    **dict.fromkeys(("read_pw_input", "write_pw_input"), "inputs"),
    "QEJob": "jobs",
    "read_pw_output": "parsers",
    **dict.fromkeys(("get_next_params", "get_recovery_strategy"), "recovery"),
    "DFTResult": "results",
    "QERunner": "runner",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
