"""The local LaunchPad server: the program that `dftfactory launchpad start` runs in the background.

SecantusDB speaks MongoDB's wire protocol from Python, so that a laptop needs no MongoDB. FireWorks can trust it with
the mends of `server_mends`, durable commits, and a password, because a port is open to everybody who is logged in here,
and what is in a LaunchPad gets executed.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dftfactory.launchpad import LAUNCHPAD_FILE, read_launchpad_file
from dftfactory.server_mends import mend

# Longer than any walltime. FireWorks keeps a connection through a whole calculation, and the server's
# default of 5 minutes would close it under the rocket.
CLIENT_IDLE_SECONDS = 7 * 24 * 3600.0

USER = "dftfactory"
# What FireWorks needs and no more: not users, server settings or other people's operations. The last one is for
# serverStatus, by which the start recognises its own process.
ROLES = ("readWriteAnyDatabase", "dbAdminAnyDatabase", "clusterMonitor")


def set_password(storage: Any, password: str) -> None:
    """Make the one user of the server, or give it another password; the storage keeps salted hashes only."""
    from secantus.auth import SCRAM_SHA_256, derive_credentials

    credentials = derive_credentials(password, mechanism=SCRAM_SHA_256, username=USER).to_doc()
    user = {
        "_id": f"admin.{USER}",
        "user": USER,
        "db": "admin",
        "credentials": credentials,
        "roles": [{"role": role, "db": "admin"} for role in ROLES],
        "mechanisms": [SCRAM_SHA_256],
    }
    storage.add_user("admin", USER, user, replace=True)


def serve(folder: Path, port: int, password: str) -> None:
    """Serve the database in `folder` on 127.0.0.1, to who has the password, until SIGTERM or SIGINT comes.

    Raises
    ------
    OSError
        The port is taken.
    """
    from secantus.server import SecantusDBServer

    # Blocked before the server's threads exist, so that they inherit it and only sigwait below sees the signals.
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    os.umask(0o077)
    mend()
    server = SecantusDBServer(
        host="127.0.0.1",
        port=port,
        storage_path=str(folder / "database"),
        # Without both, kill -9 loses writes that were already acknowledged.
        durable=True,
        sync_on_commit=True,
        # Before a login only the handshake is answered; a test goes through all commands.
        require_auth=True,
        # The commands that inject failures exist for the tests of database drivers.
        enable_test_commands=False,
        client_idle_timeout_s=CLIENT_IDLE_SECONDS,
    )
    set_password(server.storage, password)
    server.start()
    received = signal.sigwait(stop_signals)
    logging.info("stopping on %s", signal.Signals(received).name)
    # stop() would wait 2 s for the thread that listens: on Linux, closing a socket does not wake who waits on it.
    with contextlib.suppress(OSError):
        server._socket.shutdown(socket.SHUT_RDWR)
    server.stop()
    logging.info("stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server of a folder, with the port and the password of its my_launchpad.yaml.

    They are not arguments, which `ps` shows, nor in the environment, which every child would inherit.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = read_launchpad_file(options.dir / LAUNCHPAD_FILE)
    serve(options.dir, settings["port"], settings["password"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
