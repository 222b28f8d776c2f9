"""A Slurm of our own for the tests: munged, slurmctld and slurmd in one folder, which end with them."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Daemons that the Debian packages `munge` and `slurm-wlm` put where an ordinary PATH does not look.
DAEMONS = {name: f"/usr/sbin/{name}" for name in ("munged", "slurmctld", "slurmd")}
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
# States of a job of which something may still run, or will.
UNFINISHED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")
TEMPLATE = Path(__file__).parent / "slurm.conf"
# Far more than anything takes on a loaded machine: nothing is asserted of times.
PATIENCE = 120.0


@dataclass
class LocalSlurm:
    """A running Slurm; `environment` leads its commands to it."""

    folder: Path
    ports: tuple[int, int]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *words: str) -> str:
        """Output of one of Slurm's commands; what it complains of is an error."""
        done = subprocess.run(
            words, env=os.environ | self.environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, *states: str) -> dict[int, str]:
        """Job → its state, of those in `states`, else of all that Slurm still knows."""
        listed = self.command("squeue", "-h", "-t", ",".join(states) or "all", "-o", "%i %T")
        return {int(number): word for number, word in (line.split() for line in listed.splitlines())}

    def cancel_all(self) -> None:
        """Cancel all jobs, and see them gone."""
        if jobs := self.jobs(*UNFINISHED):
            self.command("scancel", *map(str, jobs))
            wait_for(lambda: not self.jobs(*UNFINISHED), self.report)

    def report(self) -> str:
        """What a person would look at when a test fails."""
        logs = [f"--- {path.name}\n{_tail(path)}" for path in sorted(self.folder.glob("*.log"))]
        with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):
            logs.insert(0, "--- squeue\n" + self.command("squeue", "-t", "all", "-l"))
        return "\n".join(logs)


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[LocalSlurm]:
    """Run a Slurm in an existing folder; whatever happens, nothing of it and of its jobs outlives the block."""
    slurm = LocalSlurm(folder, (_free_port(), _free_port()))
    try:
        _start(slurm)
        yield slurm
    finally:
        _stop(slurm)


def wait_for(happened: Callable[[], Any], report: Callable[[], str], seconds: float = PATIENCE) -> Any:
    """Wait until `happened` returns something true, and return it."""
    deadline = time.monotonic() + seconds
    while not (result := happened()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain\n{report()}")
        time.sleep(0.1)
    return result


def processes_of(slurm: LocalSlurm) -> dict[int, str]:
    """Pid → command of all processes of this Slurm and of its jobs, by SLURM_CONF in their environment."""
    mark, found = f"SLURM_CONF={slurm.environment['SLURM_CONF']}".encode(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (
                    (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                )
    return found


def _start(slurm: LocalSlurm) -> None:
    folder = slurm.folder
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    host = socket.gethostname().partition(".")[0]
    values = {"folder": folder, "name": folder.name, "host": host, "user": getpass.getuser()}
    ports = dict(zip(("slurmctld_port", "slurmd_port"), slurm.ports, strict=True))
    (folder / "slurm.conf").write_text(TEMPLATE.read_text().format(**values, **ports))
    own = {"socket": "munge.socket", "key-file": key.name, "pid-file": "munged.pid", "seed-file": "munge.seed"}
    # --force: it complains of a folder that only we can enter, which is what we want.
    _run(slurm, "munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in own.items()))
    _wait_for_daemons(slurm, (folder / "munge.socket").exists)
    _run(slurm, "slurmctld", "-D", "-i")
    _run(slurm, "slurmd", "-D")
    _wait_for_daemons(slurm, lambda: _is_idle(slurm))


def _run(slurm: LocalSlurm, name: str, *words: str) -> None:
    with (slurm.folder / f"{name}.printed.log").open("wb") as printed:
        slurm.daemons[name] = subprocess.Popen(
            [DAEMONS[name], *words],
            env=os.environ | slurm.environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for pytest, which then ends them in order.
            start_new_session=True,
        )


def _wait_for_daemons(slurm: LocalSlurm, ready: Callable[[], bool]) -> None:
    def happened() -> bool:
        ended = [name for name, process in slurm.daemons.items() if process.poll() is not None]
        assert not ended, f"{ended} ended at once\n{slurm.report()}"
        return ready()

    wait_for(happened, slurm.report, 60)


def _is_idle(slurm: LocalSlurm) -> bool:
    with contextlib.suppress(AssertionError):
        return slurm.command("sinfo", "-h", "-p", "main", "-o", "%T").strip() == "idle"
    return False


def _stop(slurm: LocalSlurm) -> None:
    """End the jobs as Slurm does it, then the daemons in the order in which they need each other, then the rest."""
    with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):
        slurm.cancel_all()
    for name in ("slurmd", "slurmctld", "munged"):
        if (process := slurm.daemons.get(name)) is not None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    for pid in processes_of(slurm):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(slurm), lambda: str(processes_of(slurm)), 15)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(path: Path, lines: int = 40) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)
