"""What the commands cost with many structures: wall time, the part of it that the server takes, and memory.

Usage: python tests/benchmarks/scale.py [--sizes 1000 10000] [--keep FOLDER] [--profile COMMAND]

Rattled cells of 8 Si atoms in an ase.db database, the local server, no pw.x: labels, launches and failures are made up
between `submit` and `sync`. Each command is a process of its own, as typed. `server` is the time between the requests
of that process and their answers, as pymongo's listener sees it. `cpu` is what the process itself computed after its
imports (ours, ASE's, Python's), `its cpu` what the server did: on an idle machine the two and the imports are the time
that a command takes, and they depend less than it on who else uses the machine.
`grown` is the largest resident size, less what the process has after its imports.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import json
import os
import platform
import pstats
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase.build import bulk

from dftfactory import DFTConfig
from dftfactory.demo import DEBIAN_PSEUDOPOTENTIALS
from dftfactory.labels import make_label, structure_from_dict
from dftfactory.launchpad import load_launchpad
from dftfactory.local_launchpad import start_local_launchpad, stop_local_launchpad
from dftfactory.pseudos import load_pseudopotentials
from dftfactory.results import DFTResult

FILE = "Si.pz-vbc.UPF"
CONFIG = DFTConfig(pseudopotential_dir=DEBIAN_PSEUDOPOTENTIALS, pseudopotentials={"Si": FILE}, ecutwfc=15, kspacing=0.7)
# One in so many has failed.
FAILED = 20
PAGE = 500
MODULES = {
    "submit": ["dftfactory.pipeline", "dftfactory.importing"],
    "sync": ["dftfactory.pipeline"],
    "status": ["fireworks", "dftfactory.launches", "dftfactory.display"],
    "export": ["fireworks", "dftfactory.export"],
    "archive": ["fireworks", "dftfactory.archive"],
}


def main() -> None:
    """Go the whole road once for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--keep", type=Path, help="folder to work in; it stays")
    parser.add_argument("--profile", help="show where the time of this command goes")
    parser.add_argument("--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run_inside(options.inside, profile=options.profile == options.inside[0])
        return
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="dftfactory-scale-") as folder:
            measure((options.keep or Path(folder)) / str(size), size, options.profile)


def measure(folder: Path, size: int, profile: str | None) -> None:
    """Submit, make up what becomes of the Fireworks, and bring everything home."""
    folder.mkdir(parents=True)
    write_candidates(folder / "candidates.db", size)
    (folder / "dft.yaml").write_text(json.dumps(CONFIG.to_dict()))
    local = start_local_launchpad(folder / "launchpad")
    print(
        f"\n{size} structures\n{'command':36} {'seconds':>8} {'cpu':>6} {'server':>7} {'its cpu':>7} {'peak MB':>8} "
        f"{'grown MB':>9}"
    )
    try:
        campaign = ["--campaign", "bench"]
        run(folder, local.pid, ["submit", "candidates.db", *campaign], profile)
        run(folder, local.pid, ["status"], profile)
        make_up_results(local.launchpad_file)
        run(folder, local.pid, ["status", "candidates.db"], profile)
        run(folder, local.pid, ["status", *campaign], profile)
        run(folder, local.pid, ["sync", "candidates.db"], profile)
        run(folder, local.pid, ["sync", "candidates.db", *campaign], profile)
        run(folder, local.pid, ["export", "train.extxyz"], profile)
        run(folder, local.pid, ["export", "bench.extxyz", *campaign], profile)
        run(folder, local.pid, ["submit", "candidates.db", *campaign], profile)
        run(folder, local.pid, ["archive", "bench"], profile)
        run(folder, local.pid, ["status"], profile)
    finally:
        stop_local_launchpad(folder / "launchpad")


def run(folder: Path, server: int, words: list[str], profile: str | None) -> None:
    """Run one command in a process of its own, and print what it took."""
    before = cpu_of(server)
    own = ["--profile", profile] if profile else []
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *own, "--inside", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    *printed, last = ended.stderr.splitlines() or ["{}"]
    try:
        told = json.loads(last)
    except ValueError:
        sys.exit(f"{shown(words)} failed: {ended.stdout} {ended.stderr}")
    numbers = f"{told['cpu']:6.2f} {told['server']:7.2f} {cpu_of(server) - before:7.2f}"
    numbers += f" {told['peak']:8.1f} {told['grown']:9.1f}"
    print(f"{shown(words):36} {seconds:8.2f} {numbers}", flush=True)
    print("".join(f"    {line}\n" for line in [*filter(None, printed), *told["slow"]]), end="", flush=True)


def shown(words: list[str]) -> str:
    """Return a command in short."""
    return " ".join(words).replace("candidates.db", "DB")


def run_inside(words: list[str], *, profile: bool) -> None:
    """Run one command in this process, and write what it took as the last line of standard error."""
    from pymongo import monitoring

    from dftfactory import cli

    # What a command imports is not what grows with the structures.
    for module in MODULES.get(words[0], ()):
        importlib.import_module(module)

    class Listener(monitoring.CommandListener):  # type: ignore[misc]  # pymongo is untyped here
        def __init__(self) -> None:
            self.seconds: Counter[str] = Counter()
            self.numbers: Counter[str] = Counter()

        def started(self, event: Any) -> None:
            pass

        def failed(self, event: Any) -> None:
            pass

        def succeeded(self, event: Any) -> None:
            self.seconds[event.command_name] += event.duration_micros / 1e6
            self.numbers[event.command_name] += 1

    listener = Listener()
    monitoring.register(listener)
    sys.argv = ["dftfactory", *words]
    before, began = resident(), time.process_time()
    profiler = cProfile.Profile()
    try:
        if profile:
            profiler.enable()
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        profiler.disable()
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(60)
    peak = resident()
    slow = [f"{name}: {listener.numbers[name]} in {s:.2f} s" for name, s in listener.seconds.most_common() if s > 0.1]
    cpu = time.process_time() - began
    told = {"cpu": cpu, "server": listener.seconds.total(), "peak": peak, "grown": peak - before, "slow": slow}
    sys.stderr.write("\n" + json.dumps(told) + "\n")


def resident() -> float:
    """Return the largest resident size so far, in MB; what getrusage says is also that of the parent process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def cpu_of(pid: int) -> float:
    """Return the seconds that a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_candidates(path: Path, size: int) -> None:
    """Write SELECTED rows of 8 atoms, each a little different."""
    cell = bulk("Si", a=5.43, cubic=True)
    random = np.random.default_rng(1)
    with ase.db.connect(path, use_lock_file=False) as db:
        for _ in range(size):
            atoms = cell.copy()
            atoms.positions += random.normal(scale=0.05, size=(8, 3))
            db.write(atoms, status="SELECTED")


def make_up_results(launchpad_file: Path) -> None:
    """Give each Firework a launch; most get a label and are COMPLETED, the others are FIZZLED."""
    launchpad = load_launchpad(launchpad_file)
    pseudopotentials = load_pseudopotentials({"Si"}, Path(DEBIAN_PSEUDOPOTENTIALS), {"Si": FILE})
    fireworks = launchpad.fireworks.find({}, {"_id": 0, "fw_id": 1, "spec": 1})
    launchpad.db.dft_results.create_index("fingerprint", unique=True)
    for page in pages(fireworks):
        good = [firework["spec"] for firework in page if firework["fw_id"] % FAILED]
        launchpad.db.dft_results.insert_many(made_up_label(spec, pseudopotentials) for spec in good)
        launchpad.launches.insert_many(made_up_launch(firework) for firework in page)
        launchpad.fireworks.bulk_write([became(firework["fw_id"]) for firework in page])
    for state, ids in (("COMPLETED", {"$ne": 0}), ("FIZZLED", 0)):
        launchpad.workflows.update_many(
            {"nodes.0": {"$mod": [FAILED, 0]}} if ids == 0 else {}, {"$set": {"state": state}}
        )
    launchpad.connection.close()


def became(fw_id: int) -> Any:
    """Return the update of a Firework that has been launched once."""
    from pymongo import UpdateOne

    state = "COMPLETED" if fw_id % FAILED else "FIZZLED"
    return UpdateOne({"fw_id": fw_id}, {"$set": {"state": state, "launches": [fw_id]}})


def made_up_launch(firework: dict[str, Any]) -> dict[str, Any]:
    """Return a launch as FireWorks keeps it."""
    fw_id, state = firework["fw_id"], "COMPLETED" if firework["fw_id"] % FAILED else "FIZZLED"
    exception = {
        "_stacktrace": "Traceback (most recent call last):\n" + "  some line\n" * 20,
        "_details": {
            "error": "CalculationError",
            "failure": "SCF_NOT_CONVERGED",
            "level": 3,
            "evidence": "80 iterations",
        },
    }
    return {
        "launch_id": fw_id,
        "fw_id": fw_id,
        "launch_dir": f"/nowhere/launcher_{fw_id}",
        "fworker": {"name": "bench", "category": "", "query": "{}", "env": {}},
        "host": "node",
        "ip": "127.0.0.1",
        "trackers": [],
        "action": {
            "stored_data": {"_exception": exception} if state == "FIZZLED" else {"energy": -215.0},
            "exit": False,
        },
        "state": state,
        "state_history": [{"state": s, "created_on": "2026-01-01T00:00:00"} for s in ("RUNNING", state)],
    }


def made_up_label(spec: dict[str, Any], pseudopotentials: Any) -> dict[str, Any]:
    """Return a label that fits the structure of a specification."""
    atoms = structure_from_dict(spec["structure"])
    result = DFTResult(
        energy=-430.0,
        smearing_energy=-0.01,
        forces=np.full((len(atoms), 3), 0.25),
        stress=np.eye(3) * 0.125,
        symbols=tuple(atoms.symbols),
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=tuple(bool(periodic) for periodic in atoms.pbc),
        degauss=0.02,
        conv_thr=8e-9,
        scf_accuracy=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-10),
        scf_error=1e-10,
        iterations=8,
        wall_time=1.5,
        n_kpoints=4,
        n_ranks=1,
        pw_version="6.7",
        source="xml",
        quality="exact",
        level=0,
        calculation_id=spec["calculation_id"],
    )
    label = make_label(result, spec["fingerprint"], DFTConfig(**spec["config"]), pseudopotentials)
    return label | ({"campaigns": spec["campaigns"]} if "campaigns" in spec else {})


def pages(items: Any) -> Iterator[list[dict[str, Any]]]:
    """Lists of PAGE items."""
    iterator = iter(items)
    while page := list(islice(iterator, PAGE)):
        yield page


if __name__ == "__main__":
    main()
