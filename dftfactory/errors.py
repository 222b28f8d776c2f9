"""Every exception of the package.

DFTFactoryError
├── ConfigError                 dft.yaml, the worker's settings or a command's options
├── PseudopotentialError        missing, cut, of another element, functional or content
├── StructureError              cannot be right: no atoms, NaN, no cell, atoms on top of each other
├── InputError                  a pw.in that cannot be read or changed
├── ParserError                 an output that is no label
│   ├── IncompleteOutputError   cut, missing or without an end
│   ├── NotConvergedError       the SCF did not reach conv_thr
│   ├── NonFiniteError          NaN, Inf or **** where a number belongs
│   └── InconsistentOutputError whole, and yet not the answer to this input
├── CalculationError            pw.x was run and recovery ended without a label
├── CandidateError              the candidate database
├── UnknownStructureError       no Firework of ours goes by this name
│   └── SeveralStructuresError  more than one does
└── LaunchPadError              the LaunchPad, its label store, or the local server
    ├── LaunchPadAwayError      it does not answer; it may do so later
    └── ClaimedError            the calculation runs already
"""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """Replace what would move a terminal's cursor or turn its letters round; texts come from files and databases."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


class DFTFactoryError(Exception):
    """Base of all errors: one readable line naming the cause and the cure, plus plain data.

    Parameters
    ----------
    message
        What is wrong and what to do, in one line.
    details
        Plain values (text, numbers, lists, dicts) that describe the error to a program.
    """

    def __init__(self, message: str, **details: Any) -> None:
        self.message = printable(message)
        super().__init__(self.message)
        self.details = details

    def to_dict(self) -> dict[str, Any]:
        """Plain data; FireWorks keeps it in the launch record and the web GUI shows it."""
        return {"error": type(self).__name__, "message": self.message, **self.details}


class ConfigError(DFTFactoryError):
    """The configuration cannot be used; lists every problem that was found in it."""


class PseudopotentialError(DFTFactoryError):
    """A pseudopotential is missing, unreadable, or not the one that the data set is made with."""


class StructureError(DFTFactoryError):
    """The structure cannot be right; nothing was run."""


class InputError(DFTFactoryError):
    """A pw.in cannot be read, written or changed."""


class ParserError(DFTFactoryError):
    """The output of pw.x is no label."""


class IncompleteOutputError(ParserError):
    """The output is missing, empty, or ends before its end."""


class NotConvergedError(ParserError):
    """The SCF did not reach conv_thr, whatever else the output says."""


class NonFiniteError(ParserError):
    """A number of the output is NaN, infinite, or printed as stars."""


class InconsistentOutputError(ParserError):
    """Text, XML, exit status and input do not describe the same finished run."""


class CalculationError(DFTFactoryError):
    """Recovery gave up: `details` has `failure`, `level`, `evidence` and the `history` of all attempts."""


class CandidateError(DFTFactoryError):
    """The candidate database cannot be read or written, or is not one."""


class UnknownStructureError(DFTFactoryError):
    """The LaunchPad has no structure of ours that goes by this name."""


class SeveralStructuresError(UnknownStructureError):
    """A name stands for more than one structure; `details` has their `fw_ids`."""


class LaunchPadError(DFTFactoryError):
    """The LaunchPad, its label store or the local server is missing, unreachable or refused."""


class LaunchPadAwayError(LaunchPadError):
    """The LaunchPad does not answer, or stopped to answer in the middle."""


class ClaimedError(LaunchPadError):
    """An earlier launch of the same Firework still runs, and a second one would compute the same beside it."""
