"""The LaunchPad: find the file that says where it is, open it, and make sure that it answers.

It speaks MongoDB's wire protocol: a MongoDB, given by a URI, or the local server of `local_launchpad`.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.errors import LaunchPadError

if TYPE_CHECKING:
    from fireworks import LaunchPad

LAUNCHPAD_FILE = "my_launchpad.yaml"
DEFAULT_FOLDER = Path("launchpad")
# How the file of a local LaunchPad begins; the line after it has the command that starts the server.
FIRST_LINE = "# The local LaunchPad of dftfactory. This file is written anew by\n"
# One round trip to a distant MongoDB takes well below a second; people give up on a silent command after a few.
CONNECT_SECONDS = 5.0


def load_launchpad(file: Path | None = None) -> LaunchPad:
    """Open the LaunchPad and make sure that it answers.

    Parameters
    ----------
    file
        A my_launchpad.yaml. Without one: my_launchpad.yaml in the current folder, then the one of a local LaunchPad in
        ./launchpad, then the one that FireWorks' own configuration names (FW_config.yaml, ~/.fireworks).

    Raises
    ------
    LaunchPadError
        No file, a file that cannot be used, or a database that does not answer within a few seconds, refuses, or was
        never initialised. The message names host and port, and never a password.
    """
    import pymongo
    from pymongo.errors import OperationFailure, PyMongoError

    file = find_launchpad_file() if file is None else file
    settings = read_launchpad_file(file)
    address = _address(settings)
    launchpad = connect(settings, file)
    try:
        with pymongo.timeout(CONNECT_SECONDS):
            # A ping is answered without a login; a read is not.
            launchpad.connection.admin.command("ping")
            counters = launchpad.fw_id_assigner.find_one()
    except OperationFailure as error:
        launchpad.connection.close()
        raise LaunchPadError(
            f"the LaunchPad at {address} refuses database {launchpad.name!r} (code {error.code}): "
            f"check user, password and authsource in {file}",
            address=address,
        ) from error
    except PyMongoError as error:
        launchpad.connection.close()
        raise LaunchPadError(
            f"no LaunchPad answers at {address} within {CONNECT_SECONDS:.0f} s: {_cure(file)}", address=address
        ) from error
    if counters is None:
        launchpad.connection.close()
        raise LaunchPadError(
            f"database {launchpad.name!r} at {address} is not a LaunchPad yet: run `lpad -l {file} reset` once",
            address=address,
        )
    return launchpad


def find_launchpad_file() -> Path:
    """Return the file that `load_launchpad` takes where none is given.

    Raises
    ------
    LaunchPadError
        There is none.
    """
    if near := _file_near_by():
        return near
    # FireWorks prints when it finds several FW_config.yaml; standard output belongs to our own commands.
    with contextlib.redirect_stdout(sys.stderr):
        from fireworks import fw_config
    if fw_config.LAUNCHPAD_LOC:
        return Path(fw_config.LAUNCHPAD_LOC)
    raise LaunchPadError(
        f"no {LAUNCHPAD_FILE} in {Path.cwd()}: run `dftfactory launchpad start` for a local LaunchPad, "
        f"or write one with the URI of your MongoDB"
    )


def describe_launchpad(file: Path | None = None) -> str:
    """Return host, port and file of the LaunchPad that `load_launchpad` opens; never a password."""
    file = find_launchpad_file() if file is None else file
    return f"{_address(read_launchpad_file(file))} ({file})"


def rocket_command(file: Path | None = None, worker_file: Path | None = None) -> str:
    """Return the line that starts rockets on the LaunchPad that `load_launchpad` opens.

    Where FireWorks' own configuration leads there, its commands find it without our help.
    """
    file = _file_near_by() if file is None else file
    if file is None:
        return "rlaunch rapidfire"
    worker = [] if worker_file is None else ["-w", str(worker_file)]
    return shlex.join(["rlaunch", "-l", str(file), *worker, "rapidfire"])


def _file_near_by() -> Path | None:
    candidates = (Path(LAUNCHPAD_FILE), DEFAULT_FOLDER / LAUNCHPAD_FILE)
    return next((candidate for candidate in candidates if candidate.exists()), None)


def read_launchpad_file(file: Path) -> dict[str, Any]:
    """Read the settings as FireWorks would; the errors quote no line, because it may hold the password."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        settings = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchPadError(f"cannot read {file}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" (line {mark.line + 1})"
        raise LaunchPadError(f"{file} is not valid YAML{line}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("host"), str):
        raise LaunchPadError(f"{file} is no LaunchPad file: expected `host: ...`, a host name or a MongoDB URI")
    if settings.get("uri_mode") and not settings.get("name"):
        raise LaunchPadError(f"{file} has a URI and no `name: ...`, the database that holds the LaunchPad")
    return settings


def connect(settings: dict[str, Any], file: Path) -> LaunchPad:
    """Build the LaunchPad, its messages on standard error; nothing is sent to the server yet."""
    from pymongo.errors import PyMongoError

    # FireWorks' own default, INFO, prints a line for each workflow that is added.
    settings = settings | {"strm_lvl": settings.get("strm_lvl") or "WARNING"}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            from fireworks import LaunchPad

            return LaunchPad.from_dict(settings)
    except (PyMongoError, AttributeError, OSError, TypeError, ValueError) as error:
        # pymongo quotes the part of a URI that it could not read, which can be the password.
        reason = "" if "@" in settings["host"] else f": {error}"
        raise LaunchPadError(
            f"the settings in {file} cannot be used for {_address(settings)} ({type(error).__name__}){reason}; "
            "special characters in the user and password of a URI are written as %40 and the like"
        ) from None


def _address(settings: dict[str, Any]) -> str:
    """Host and port without user, password or options, also of a URI that is not well formed."""
    host: str = settings["host"].rpartition("@")[2].rpartition("://")[2]
    host = host.partition("/")[0].partition("?")[0]
    if settings.get("uri_mode"):
        return host
    return f"{host}:{settings.get('port') or 27017}"


def _cure(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if text.startswith(FIRST_LINE):
        return f"run `{text.splitlines()[1].removeprefix('# ')}`"
    return f"check host and port in {file}, the network, and that MongoDB runs"
