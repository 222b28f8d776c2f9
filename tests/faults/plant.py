"""A factory to be disturbed: candidate databases, a local server, rockets, a reconcile loop, and `dftfactory ...`.

Every process has the folder in its environment, so that none is overlooked, and none of others is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.db
from ase import Atoms
from ase.build import bulk
from recordings import make_stand_in, overlapping, structure
from ruamel.yaml import YAML
from upf_texts import version_2

from dftfactory.candidates import open_candidates, transaction
from dftfactory.config import DFTConfig, WorkerConfig
from dftfactory.runner import QERunner
from dftfactory.server_process import read_server
from dftfactory.sessions import pw_sessions, session_members

ROOT = Path(__file__).parent.parent.parent
PSEUDO_DIR = Path("/usr/share/espresso/pseudo")
MARK = "DFTFACTORY_CHAOS"
# MB of the disk that gets full; each launch leaves a tenth of one.
SMALL_DISK = 64
# Status of rows that the pipeline has not selected yet.
NOT_YET = "NEW"


@dataclass(frozen=True)
class Piece:
    """One structure: how it is to end, and the numbers that its label must have."""

    atoms: Atoms
    kind: str  # recorded, real, fails, refused
    key: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


class Plant:
    """The folder of one run and all that works in it."""

    def __init__(self, folder: Path, n_structures: int, n_rockets: int, n_real: int, seed: int, length: float) -> None:
        self.folder, self.n_rockets, self.rng = folder, n_rockets, random.Random(seed)  # noqa: S311
        self.server = folder / "launchpad"
        self.launchpad_file = self.server / "my_launchpad.yaml"
        self.small_disk: Path | None = None
        (folder / "logs").mkdir()
        self.stand_in = make_stand_in(folder / "stand_in", (length / 5, length), wavefunction=200_000, longer=5)
        self.config = self._write_config()
        self.pieces = self._make_pieces(n_structures, n_real)
        self._write_candidates()
        for n in range(n_rockets):
            self._prepare_rocket(n)

    # What there is to compute

    def _write_config(self) -> DFTConfig:
        pseudo_dir = PSEUDO_DIR
        if not pseudo_dir.is_dir():
            pseudo_dir = self.folder / "pseudo"
            pseudo_dir.mkdir()
            (pseudo_dir / "Si.pz-vbc.UPF").write_text(version_2(functional="PZ"))
        values: dict[str, Any] = {
            "pseudopotential_dir": str(pseudo_dir),
            "pseudopotentials": {"Si": "Si.pz-vbc.UPF"},
            **{"ecutwfc": 15, "kspacing": 0.7, "conv_thr_per_atom": 1e-9},
        }
        (self.folder / "dft.yaml").write_text(json.dumps(values))
        return DFTConfig(**values)

    def _make_pieces(self, number: int, n_real: int) -> list[Piece]:
        n_fails = max(1, number // 30)
        pieces = [Piece(overlapping(), "refused")]
        for n in range(number - n_real - 1):
            fails = n < n_fails
            key = self.stand_in.record(n, self.config, fails=fails)
            numbers = {} if fails else self.stand_in.label(key)
            pieces.append(Piece(structure(n), "fails" if fails else "recorded", key, numbers))
        for n in range(n_real):
            atoms = bulk("Si", a=5.43, cubic=True)
            atoms.rattle(0.05, seed=n)
            runner = QERunner(self.config, WorkerConfig.from_fw_env({"pw_command": "pw.x"}))
            result = runner.run(atoms, self.folder / "reference" / str(n)).to_dict()
            names = ("energy", "smearing_energy", "forces", "stress")
            pieces.append(Piece(atoms, "real", f"real_{n}", {name: result[name] for name in names}))
        self.rng.shuffle(pieces)
        return pieces

    def _write_candidates(self) -> None:
        """Write two databases: each has three fifths of the structures, so that they share a fifth."""
        n = len(self.pieces)
        for name, start, end in (("a", 0, n * 3 // 5), ("b", n * 2 // 5, n)):
            with ase.db.connect(self.database(name)) as db:
                for number in range(start, end):
                    db.write(self.pieces[number].atoms, status=NOT_YET, calculation_id=f"{name}{number}", piece=number)

    def database(self, name: str) -> Path:
        """Return the candidate database `a` or `b`."""
        return self.folder / f"candidates_{name}.db"

    def rows(self) -> list[Any]:
        """Return the rows of both databases."""
        return [row for name in "ab" for row in ase.db.connect(self.database(name)).select()]

    def select(self, share: float) -> None:
        """Let the pipeline select the first part of each database."""
        for name in "ab":
            db = open_candidates(self.database(name))
            new = [row.id for row in db.select() if row.status == NOT_YET and row.id <= share * db.count()]
            with transaction(db):
                for row_id in new:
                    db.update(row_id, status="SELECTED")

    # Who works on it

    def _prepare_rocket(self, n: int) -> None:
        folder = self.rocket_folder(n)
        folder.mkdir()
        if n == 0 and os.geteuid() == 0:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}m", "tmpfs", str(folder)]
            if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
                self.small_disk = folder
        env: dict[str, Any] = {"pw_command": self.stand_in.command, "parallel_cores": 1}
        if n % 2:
            env["scratch_dir"] = str(self.folder / "scratch")
        if n % 4 == 2:  # a launcher whose death leaves its rank behind
            launcher = self.folder / "launcher"
            launcher.write_text('#!/bin/sh\nshift\n"$@"\nexit $?\n')
            launcher.chmod(0o755)
            env["mpi_command"] = [str(launcher), "{cores}"]
        if n % 4 == 3 and shutil.which("mpirun"):
            env["mpi_command"] = "mpirun -np {cores}"
        query = YAML(typ="safe").load(ROOT / "fw_configs/my_fworker.yaml")["query"]
        worker = {"name": f"rocket_{n}", "category": "", "query": query, "env": env}
        (self.folder / f"fworker_{n}.yaml").write_text(json.dumps(worker))

    def rocket_folder(self, n: int) -> Path:
        """Return the folder in which rocket `n` launches."""
        return self.folder / f"rocket_{n}"

    def start_rocket(self, n: int) -> subprocess.Popen[bytes]:
        """Start one that never ends by itself."""
        files = ["-l", str(self.launchpad_file), "-w", str(self.folder / f"fworker_{n}.yaml")]
        words = ["rapidfire", "--nlaunches", "infinite", "--sleep", "2"]
        command = ["-m", "fireworks.scripts.rlaunch_run", *files, *words]
        return self.start(f"rocket_{n}", self.rocket_folder(n), *command)

    def dftfactory(self, *words: str) -> subprocess.Popen[bytes]:
        """Start one command of ours."""
        return self.start(f"{words[0]}", self.folder, "-m", "dftfactory.cli", *words)

    def queue_words(self) -> list[str]:
        """Return the words that lead a command to the LaunchPad."""
        return ["-l", str(self.launchpad_file)]

    def submit(self, name: str) -> subprocess.Popen[bytes]:
        """Start `dftfactory submit` on a database."""
        return self.dftfactory(
            "submit", str(self.database(name)), "-c", str(self.folder / "dft.yaml"), *self.queue_words()
        )

    def start(self, log: str, cwd: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start Python with these words."""
        with (self.folder / "logs" / log).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=cwd,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join([str(ROOT), *(str(Path(path).absolute()) for path in sys.path)]),
                    "FW_CONFIG_FILE": str(ROOT / "fw_configs/FW_config.yaml"),
                    MARK: str(self.folder),
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def start_server(self) -> None:
        """Start the server on the files that there are, and wait for it."""
        status = self.dftfactory("launchpad", "start", "--dir", str(self.server)).wait(timeout=120)
        if status:
            raise RuntimeError(f"the server did not start: see {self.folder}/logs/launchpad")

    def server_pid(self) -> int:
        """Return the process of the server."""
        server = read_server(self.server)
        assert server is not None
        return server.pid

    # What is left of it

    def processes(self) -> dict[int, str]:
        """Living processes of this plant: pid → command."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                marked = f"{MARK}={self.folder}".encode() in (process / "environ").read_bytes().split(b"\0")
                if marked and (command := (process / "cmdline").read_bytes()):
                    found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:150]
        return found

    def pw_members(self) -> dict[int, Path]:
        """Every process of a pw.x or its launcher: pid → run folder."""
        sessions = pw_sessions(self.folder)
        return {pid: folder for session, folder in sessions.items() for pid in session_members(session)}

    def close(self) -> None:
        """End what still runs, whatever has happened, and give the small disk back."""
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        if self.small_disk is not None:
            subprocess.run(["umount", str(self.small_disk)], check=False)  # noqa: S607  # it is where mount is
