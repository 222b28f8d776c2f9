"""The LaunchPad: find the file that says where it is, open it, and make sure that it answers.

It speaks MongoDB's wire protocol: a MongoDB, given by a URI, or the local server of `local_launchpad`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from dftfactory.errors import LaunchPadError
from dftfactory.server_process import write_private

if TYPE_CHECKING:
    from fireworks import LaunchPad

LAUNCHPAD_FILE = "my_launchpad.yaml"
DEFAULT_FOLDER = Path("launchpad")
# How the file of a local LaunchPad begins; the line after it has the command that starts the server.
FIRST_LINE = "# The local LaunchPad of dftfactory. This file is written anew by\n"
# One round trip to a distant MongoDB takes well below a second; people give up on a silent command after a few.
CONNECT_SECONDS = 5.0

# Where a MongoDB's URI, with user and password, can be without standing in a file: for `write_launchpad_file`.
URI_VARIABLE = "DFTFACTORY_LAUNCHPAD_URI"
# User and password stand beside the URI: `lpad` prints the host when nobody answers, and needs no %40 there.
CONNECT_FIRST_LINE = (
    "# Written by `dftfactory launchpad connect`. It may hold a password: keep it yours and out of git.\n"
)

# All that FireWorks reads from the file. It ignores other keys, a misspelt `password` too.
_KEYS: dict[str, type] = {
    **dict.fromkeys(("host", "name", "username", "password", "authsource", "logdir", "strm_lvl"), str),
    **dict.fromkeys(("user_indices", "wf_user_indices"), list),
    "port": int,
    "uri_mode": bool,
    "mongoclient_kwargs": dict,
}
_EXPECTED = {str: "text, between quotes", int: "a number", bool: "true or false", list: "a list", dict: "key: value"}
_SECRET_KWARGS = ("password", "tlsCertificateKeyFilePassword", "authMechanismProperties")
# A LaunchPad file has a dozen lines; the YAML reader takes a minute for 10 MB.
_MAX_BYTES = 100_000


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
    file = find_launchpad_file() if file is None else file
    settings = read_launchpad_file(file)
    if _secrets(settings):
        _warn_of_readers(file)
    launchpad = connect(settings, file)
    if not _is_initialised(launchpad, settings, file):
        launchpad.connection.close()
        address = _address(settings)
        raise LaunchPadError(
            f"database {launchpad.name!r} at {address} is not a LaunchPad yet: run `lpad -l {file} reset` once",
            address=address,
        )
    return launchpad


def write_launchpad_file(file: Path, name: str | None = None) -> str:
    """Write a my_launchpad.yaml, readable by its owner only, for the MongoDB whose URI is in the environment.

    Parameters
    ----------
    file
        An existing file is replaced only when it was written by this function.
    name
        The database; without one that of the URI, else `fireworks`.

    Returns
    -------
    str
        What to say: where the LaunchPad is, and `lpad reset` when the database is none yet.

    Raises
    ------
    LaunchPadError
        DFTFACTORY_LAUNCHPAD_URI is not set, the database does not answer to it, or the file is the user's own;
        nothing was written.
    """
    uri = os.environ.get(URI_VARIABLE)
    if not uri:
        raise LaunchPadError(
            f"{URI_VARIABLE} is not set. So that the password comes neither into a file nor into the history: "
            f"read -rs {URI_VARIABLE}; export {URI_VARIABLE}   then paste mongodb://USER:PASSWORD@HOST:27017/?authSource=admin"
        )
    if os.path.lexists(file) and not (file.is_file() and _text(file).startswith(CONNECT_FIRST_LINE)):
        raise LaunchPadError(f"{file} is there already and is not overwritten; move it away or give another name")
    scheme, _, rest = uri.rpartition("://")
    userinfo, _, address = rest.rpartition("@")
    user, _, password = map(unquote_plus, userinfo.partition(":"))
    # 2 minutes outlast a restart of MongoDB: FireWorks drops what it cannot store in this time.
    kwargs = {"username": user, "password": password, "serverSelectionTimeoutMS": 120000}
    settings = {
        "host": f"{scheme or 'mongodb'}://{address}",
        "uri_mode": True,
        "name": name or address.partition("/")[2].partition("?")[0] or "fireworks",
        "mongoclient_kwargs": {key: value for key, value in kwargs.items() if value},
        "strm_lvl": "WARNING",
    }
    _check_settings(settings, URI_VARIABLE)
    launchpad = connect(settings, URI_VARIABLE)
    initialised = _is_initialised(launchpad, settings, URI_VARIABLE)
    launchpad.connection.close()
    try:
        # JSON is YAML, whatever the password is made of.
        write_private(file, CONNECT_FIRST_LINE + "".join(f"{k}: {json.dumps(v)}\n" for k, v in settings.items()))
    except OSError as error:
        raise LaunchPadError(f"cannot write {file}: {error.strerror}") from error
    reset = "" if initialised else f"; it is new: run `lpad -l {shlex.quote(str(file))} reset` once"
    return f"LaunchPad {settings['name']} at {_address(settings)}, in {file}{reset}"


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
    """Read the settings as FireWorks would; the errors quote none of them, because it may be the password."""
    from ruamel.yaml import YAML

    text = _text(file)
    try:
        settings = YAML(typ="safe", pure=True).load(text)
    except (
        Exception
    ) as error:  # ValueError, AttributeError, RecursionError and others of the reader, not only YAMLError
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" (line {mark.line + 1})"
        raise LaunchPadError(f"{file} is not valid YAML{line}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("host"), str) or not settings["host"]:
        raise LaunchPadError(f"{file} is no LaunchPad file: expected `host: ...`, a host name or a MongoDB URI")
    _check_settings(settings, file)
    return settings


def connect(settings: dict[str, Any], source: Path | str) -> LaunchPad:
    """Build the LaunchPad, its messages on standard error; nothing is sent to the server yet."""
    from pymongo.errors import InvalidURI, PyMongoError

    # FireWorks' own default, INFO, prints a line for each workflow that is added.
    settings = settings | {"strm_lvl": settings.get("strm_lvl") or "WARNING"}
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            from fireworks import LaunchPad

            # pymongo only warns of an option of a URI that it does not understand: `tsl=true` is not encrypted.
            warnings.filterwarnings("error", category=UserWarning, module="pymongo")
            return LaunchPad.from_dict(settings)
    except (PyMongoError, AttributeError, LookupError, OSError, TypeError, UserWarning, ValueError) as error:
        reason = f": {error}"
        # pymongo quotes the part of a URI that it could not read, which can be the password.
        about_the_uri = ":" in settings["host"] and isinstance(error, (InvalidURI, ValueError))
        if about_the_uri or any(secret in reason for secret in _secrets(settings)):
            reason = "; special characters in the user and password of a URI are written as %40 and the like"
        raise LaunchPadError(
            f"the settings in {source} cannot be used for {_address(settings)} ({type(error).__name__}){reason}"
        ) from None


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise LaunchPadError(f"{file} is no LaunchPad file: it has more than {_MAX_BYTES} bytes")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise LaunchPadError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise LaunchPadError(f"{file} is not valid YAML: it is not text in UTF-8") from None


def _check_settings(settings: dict[Any, Any], source: Path | str) -> None:
    """FireWorks and pymongo find most of this too, much later or with a value in the message."""
    for key, kind in _KEYS.items():
        value = settings.get(key)
        if value is not None and type(value) is not kind:
            raise LaunchPadError(f"`{key}` in {source} must be {_EXPECTED[kind]}")
    # Keys of older versions of FireWorks stand in many files, with null.
    if any(value is not None for key, value in settings.items() if key not in _KEYS):
        raise LaunchPadError(f"{source} has a key that FireWorks does not know; it knows {', '.join(_KEYS)}")
    if settings.get("port") is not None and not 0 < settings["port"] < 65536:
        raise LaunchPadError(f"`port` in {source} must be a number from 1 to 65535")
    name = settings.get("name")
    if settings.get("uri_mode") and not name:
        raise LaunchPadError(f"{source} has a URI and no `name: ...`, the database that holds the LaunchPad")
    if name is not None and not (re.fullmatch(r"[^\s/\\.\"$*<>:|?]{1,63}", name) and name.isprintable()):
        raise LaunchPadError(f"`name` in {source} must be the name of a database: 1 to 63 letters, digits, _ and -")
    if not all(isinstance(key, str) for key in settings.get("mongoclient_kwargs") or {}):
        raise LaunchPadError(f"`mongoclient_kwargs` in {source} must have names of options of MongoClient as keys")


def _secrets(settings: dict[str, Any]) -> list[str]:
    userinfo = settings["host"].rpartition("@")[0].rpartition("://")[2]
    kwargs = settings.get("mongoclient_kwargs") or {}
    candidates = [settings.get("password"), userinfo.partition(":")[2], *(kwargs.get(key) for key in _SECRET_KWARGS)]
    return [str(candidate) for candidate in candidates if candidate]


@functools.cache
def _warn_of_readers(file: Path) -> None:
    if file.stat().st_mode & 0o077:
        sys.stderr.write(f"warning: {file} holds a password and others can read it: run `chmod 600 {file}`\n")


def _is_initialised(launchpad: LaunchPad, settings: dict[str, Any], source: Path | str) -> bool:
    """Ask the database whether it is a LaunchPad; the connection is closed when it does not answer or refuses."""
    import pymongo
    from pymongo.errors import OperationFailure, PyMongoError

    address = _address(settings)
    try:
        with pymongo.timeout(CONNECT_SECONDS):
            # A ping is answered without a login; a read is not.
            launchpad.connection.admin.command("ping")
            return launchpad.fw_id_assigner.find_one() is not None
    except OperationFailure as error:
        problem = f"the LaunchPad at {address} refuses database {launchpad.name!r} (code {error.code})"
        cure = _cure(source, f"check user, password and authsource in {source}")
    except PyMongoError:
        problem = f"no LaunchPad answers at {address} within {CONNECT_SECONDS:.0f} s"
        cure = _cure(source, f"check host and port in {source}, the network, and that MongoDB runs")
    except ValueError:  # characters that no password can have
        problem = f"the user or password for {address} cannot be used"
        cure = _cure(source, f"check them in {source}")
    launchpad.connection.close()
    raise LaunchPadError(f"{problem}: {cure}", address=address)


def _address(settings: dict[str, Any]) -> str:
    """Host and port without user, password or options, also of a URI that is not well formed."""
    hosts: str = settings["host"].rpartition("@")[2].rpartition("://")[2]
    hosts = re.split(r"[/?]", hosts, maxsplit=1)[0]
    # What stands in the place of the port and is no number can be a password whose @host was forgotten.
    hosts = ",".join(re.sub(r":(?!\d+$)[^\]]*$", "", host) for host in hosts.split(","))
    return hosts if settings.get("uri_mode") else f"{hosts}:{settings.get('port') or 27017}"


def _cure(source: Path | str, otherwise: str) -> str:
    if isinstance(source, Path) and (lines := _text(source).splitlines(keepends=True))[0] == FIRST_LINE:
        return f"run `{lines[1].strip().removeprefix('# ')}`"
    return otherwise
