"""What `rlaunch` prints while it runs one of our tasks: our events, and one line where the task fails."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dftfactory.errors import DFTFactoryError
from dftfactory.events import about, gave_up, shown_on, wants_json
from dftfactory.plain_values import read_mapping

if TYPE_CHECKING:
    from typing import TextIO


@contextlib.contextmanager
def rocket_output(fw_spec: Mapping[str, Any], fw_id: int | None) -> Iterator[None]:
    """Show the events of a task on the standard output of its rocket, and its error as one line.

    Parameters
    ----------
    fw_spec
        Specification of the Firework, as it is: it may be damaged.
    fw_id
        None in offline mode.
    """
    setting = read_mapping(fw_spec.get("_fw_env")).get("log")
    with about(str(fw_spec.get("calculation_id")), fw_id), shown_on(sys.stdout, as_json=wants_json(setting)):
        try:
            yield
        except DFTFactoryError as error:
            gave_up(error)
            _print_in_one_line(error)
            raise


def _print_in_one_line(error: DFTFactoryError) -> None:
    """Let FireWorks print one line in place of the traceback of an error that says itself what to do.

    FireWorks prints each exception by `traceback.print_exc` and then formats it once more for the launch record, which
    keeps the whole of it. Only the rocket's own name of the module is changed, until it has printed: that of every
    other module, and of every other exception, stay as they are.
    """
    from fireworks.core import rocket

    if getattr(rocket, "traceback", None) is traceback:
        rocket.traceback = _OneLine(rocket, error)


class _OneLine:
    """Stands in for the module `traceback`."""

    def __init__(self, rocket: Any, error: DFTFactoryError) -> None:
        self._rocket = rocket
        self._error = error

    def print_exc(self, limit: int | None = None, file: TextIO | None = None, chain: bool = True) -> None:
        self._rocket.traceback = traceback
        if sys.exc_info()[1] is not self._error:
            traceback.print_exc(limit, file, chain)
            return
        # With the file closed or full, as with a traceback, FireWorks could not end the launch.
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {self._error.message}", file=file or sys.stderr, flush=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(traceback, name)
