"""Somebody who works on a cluster: a folder that `dftfactory init` has made, and commands as they are typed there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms
from queue_helpers import make_database, rows, states, write_launchpad_file
from ruamel.yaml import YAML
from slurm_server import PATIENCE, UNFINISHED, LocalSlurm, wait_for

from dftfactory.store import LabelStore

if TYPE_CHECKING:
    from fireworks import LaunchPad

    from dftfactory.config import DFTConfig

# What a job has as long as a test does not say otherwise.
SMALL_JOB = {"nodes": 1, "ntasks_per_node": 1, "walltime": "00:10:00", "mem": "1000M", "queue": "main"}


@dataclass
class ClusterUser:
    """A folder with dft.yaml, fw_configs and candidates, a queue and a LaunchPad."""

    folder: Path
    slurm: LocalSlurm
    launchpad: LaunchPad
    jobs_before: frozenset[int] = frozenset()

    @classmethod
    def begin(cls, folder: Path, slurm: LocalSlurm, launchpad: LaunchPad, config: DFTConfig) -> ClusterUser:
        """Do what the README says first: `dftfactory init`, and fill the files in."""
        user = cls(folder, slurm, launchpad, frozenset(slurm.jobs()))
        user.dftfactory("init")
        _write_yaml(folder / "dft.yaml", config.to_dict())
        (user.configs / "my_launchpad.yaml").unlink()
        write_launchpad_file(launchpad, user.configs)
        user.set_queue(rocket_launch=user.rlaunch("singleshot"), pre_rocket=user.pre_rocket(), **SMALL_JOB)
        return user

    @classmethod
    def begin_with_classes(cls, folder: Path, slurm: LocalSlurm, launchpad: Any, config: DFTConfig) -> ClusterUser:
        """Do it with `dftfactory init --cluster`, which asks the queue and leaves nothing to fill in."""
        user = cls(folder, slurm, launchpad, frozenset(slurm.jobs()))
        file = write_launchpad_file(launchpad, folder)
        size = ("--partition", "main", "--cores", "2", "--memory", "4000M", "--walltime", "00:20:00")
        user.dftfactory("init", "--cluster", "slurm", *size, "--setup", user.pre_rocket(), "--mongodb", str(file))
        _write_yaml(folder / "dft.yaml", config.to_dict())
        return user

    @property
    def configs(self) -> Path:
        return self.folder / "fw_configs"

    @property
    def environment(self) -> dict[str, str]:
        """They find the same packages as we do, the commands of our Python, and our Slurm."""
        packages = (str(Path(entry).absolute()) for entry in sys.path)
        own = {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": os.pathsep.join(packages),
            "FW_CONFIG_FILE": str(self.configs / "FW_config.yaml"),
        }
        return {**os.environ, **own, **self.slurm.environment}

    def rlaunch(self, *words: str) -> str:
        """The line that starts the rocket in a job."""
        return " ".join(("exec rlaunch -c", str(self.configs), *words))

    def pre_rocket(self, *lines: str) -> str:
        """Lines of shell before it. The job has a login shell, which begins with a PATH of its own."""
        return "\n".join((f'export PATH="{Path(sys.executable).parent}:$PATH"', *lines))

    def set_queue(self, **entries: Any) -> None:
        """Change my_qadapter.yaml."""
        _change_yaml(self.configs / "my_qadapter.yaml", entries)

    def set_worker(self, of_class: str = ".", **entries: Any) -> None:
        """Change the `env` of my_fworker.yaml, of one class of jobs where there are several."""
        file = self.configs / of_class / "my_fworker.yaml"
        _change_yaml(file, {"env": {**YAML(typ="safe").load(file)["env"], **entries}})

    def set_config(self, config: DFTConfig) -> None:
        """Write dft.yaml anew."""
        _write_yaml(self.folder / "dft.yaml", config.to_dict())

    def set_program(self, script: str, of_class: str = ".") -> None:
        """Let a script be what is started as pw.x."""
        program = self.folder / "pw.sh"
        program.write_text(script)
        program.chmod(0o755)
        self.set_worker(of_class, pw_command=[str(program)])

    def hold_pw(self, of_class: str = ".") -> None:
        """Let each pw.x wait before it begins, until `let_pw_go`."""
        self._hold.touch()
        self.set_program(f'#!/bin/sh\nwhile [ -e {self._hold} ]; do sleep 0.1; done\nexec pw.x "$@"\n', of_class)

    def let_pw_go(self) -> None:
        self._hold.unlink()

    @property
    def _hold(self) -> Path:
        return self.folder / "hold"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder of the user; what it prints is in `stdout`."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def must(self, *words: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def run_dftfactory(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dftfactory.cli", *words)

    def dftfactory(self, *words: str) -> str:
        return self.must(sys.executable, "-m", "dftfactory.cli", *words)

    def submit(self, *structures: Atoms, words: tuple[str, ...] = ()) -> None:
        """Queue structures, which get the ids a, b, c, ..."""
        make_database(self.folder / "candidates.db", *structures)
        self.dftfactory("submit", "candidates.db", *words)

    def qlaunch(self, *words: str) -> str:
        return self.must("qlaunch", "-c", str(self.configs), *words)

    def states(self) -> list[str]:
        """State of each Firework, in the order of their ids."""
        return [state for _, state in sorted(states(self.launchpad).items())]

    def wait_for(self, happened: Callable[[], Any]) -> Any:
        return wait_for(happened, self.report)

    def wait_for_states(self, *wanted: str) -> None:
        """Wait until the Fireworks are in these states, in the order of their ids."""
        self.wait_for(lambda: self.states() == list(wanted))

    def jobs(self, *states: str) -> dict[int, str]:
        """Job of this user → its state, of those in `states`, else of all."""
        return {job: word for job, word in self.slurm.jobs(*states).items() if job not in self.jobs_before}

    def running_job(self) -> int:
        """The number of the only job that runs."""
        [job] = self.jobs("RUNNING")
        return job

    def warn_job(self) -> None:
        """Send the signal that announces the end of a job, to its shell only as the queue does."""
        self.slurm.command("scancel", "--signal=USR1", "--batch", str(self.running_job()))

    def wait_for_jobs(self) -> list[str]:
        """Wait until no job is left in the queue, and return how they have ended, in the order of their numbers."""
        self.wait_for(lambda: not self.jobs(*UNFINISHED))
        return [word for _, word in sorted(self.jobs().items())]

    def labels(self) -> dict[str, dict[str, Any]]:
        """calculation_id → its label."""
        return {label["calculation_id"]: label for label in LabelStore(self.launchpad).all()}

    def candidates(self) -> dict[str, Any]:
        """calculation_id → its row in the candidate database, after `dftfactory sync`."""
        self.dftfactory("sync", "candidates.db")
        from dftfactory.candidates import open_candidates

        return rows(open_candidates(self.folder / "candidates.db"))

    def pw_out(self) -> str:
        """All that pw.x has printed so far."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.rglob("pw.out")))

    def report(self) -> str:
        """What a person would look at when a test fails."""
        files = [path for end in ("*.out", "*.error", "pw.in") for path in sorted(self.folder.rglob(end))]
        texts = [f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in files]
        return "\n".join((str(self.states()), *texts, self.slurm.report()))


def _change_yaml(path: Path, entries: dict[str, Any]) -> None:
    _write_yaml(path, {**YAML(typ="safe").load(path), **entries})


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    with path.open("w") as file:
        YAML(typ="safe").dump(values, file)
