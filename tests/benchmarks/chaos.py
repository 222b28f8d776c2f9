"""Short calculations among random faults: nothing lost, nothing twice, nothing left.

Usage: python tests/benchmarks/chaos.py [--seconds 600] [--structures 200] [--rockets 4] [--seed 1] [--real 6]

Rockets label structures with a stand-in pw.x (and some with the real one) while every few seconds something is killed,
stopped or filled up. Then the faults stop, `recover` and `reconcile` put right what they find, the rockets drain the
queue, and it is counted what became of every structure. The exit status is 1 when something is not as it must be.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "faults")]

from plant import Plant  # noqa: E402  # tests are no package
from stand_in_pw import key_of  # noqa: E402
from verdict import Verdict, open_launchpad  # noqa: E402

from dftfactory.candidates import open_candidates, transaction  # noqa: E402
from dftfactory.errors import CandidateError  # noqa: E402
from dftfactory.sessions import folder_of  # noqa: E402

PAUSE = 45.0  # s that the server stands still; FireWorks' own patience with a database is 30 s
KILL_WAITING = 0.03  # chance per tenth of a second; a chance alone would hardly ever hit this moment
# Kind of fault → how often it comes, relative to the others.
FAULTS = {
    "kill -9 of a rocket": 4,
    "SIGTERM to a rocket": 1,
    "kill -9 of pw.x or its launcher": 6,
    "kill -9 of the server": 2,
    "server stands still": 0.4,
    "full disk": 1,
    "kill -9 of reconcile": 1,
}


class Chaos:
    """Faults and the work that goes on among them."""

    def __init__(self, plant: Plant, seconds: float) -> None:
        self.plant, self.seconds, self.rng = plant, seconds, plant.rng
        self.pause = min(PAUSE, seconds / 8)
        self.count: Counter[str] = Counter()
        self.rockets: dict[int, subprocess.Popen[bytes]] = {}
        self.reconcile: subprocess.Popen[bytes] | None = None
        self.commands: list[tuple[subprocess.Popen[bytes], float]] = []
        self.n_commands = 0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.server_is_well = True
        self.disk_is_full = False
        self.killed_keys: set[str] = set()

    def run(self) -> None:
        """Disturb the plant for so many seconds."""
        begin = time.monotonic()
        next_fault, portion = begin + 3, 0
        while (now := time.monotonic()) < begin + self.seconds:
            if now - begin >= portion * self.seconds / 11 and portion < 10:
                portion += 1
                self.plant.select(portion / 10)
            self._tend()
            if now >= next_fault:
                next_fault = now + self.rng.uniform(2, 6)
                self._disturb()
            time.sleep(0.1)

    def stop(self) -> None:
        """Take all faults back; rockets and reconcile go on."""
        for process, _ in self.commands:
            process.wait(timeout=300)
        self.commands = []
        for _, action in sorted(self.later, key=lambda entry: entry[0]):
            action()
        self.later = []
        self.plant.select(1)

    def tend_rockets(self) -> None:
        """Start what has ended: as many rockets as there should be, and the loop."""
        for n in range(self.plant.n_rockets):
            rocket = self.rockets.get(n)
            if rocket is None or rocket.poll() is not None:
                if rocket is not None and rocket.returncode not in (-signal.SIGKILL, -signal.SIGTERM):
                    self.count[f"(rocket ended by itself, {rocket.returncode})"] += 1
                self.rockets[n] = self.plant.start_rocket(n)
        # It looks for the LaunchPad when it starts.
        if self.server_is_well and (self.reconcile is None or self.reconcile.poll() is not None):
            self.reconcile = self.plant.dftfactory("reconcile", "--loop", "3", *self.plant.queue_words())

    def _tend(self) -> None:
        now = time.monotonic()
        due = [entry for entry in self.later if entry[0] <= now]
        self.later = [entry for entry in self.later if entry[0] > now]
        for _, action in due:
            action()
        if not self.server_is_well:
            self._kill_a_waiting_rocket()
        self.tend_rockets()
        self._tend_commands(now)

    def _tend_commands(self, now: float) -> None:
        """Run submit on both databases at once, then sync and export; half of them are killed half-way."""
        running = []
        for process, end in self.commands:
            if process.poll() is None and now > end:
                process.kill()
                process.wait()
                self.count["kill -9 of submit, sync or export"] += 1
            if process.poll() is None:
                running.append((process, end))
        self.commands = running
        if running:
            return
        self.n_commands += 1
        words = self.plant.queue_words()
        if self.n_commands % 2:
            processes = [self.plant.submit(name) for name in "ab"]
        else:
            processes = [self.plant.dftfactory("sync", str(self.plant.database(name)), *words) for name in "ab"]
            processes.append(self.plant.dftfactory("export", str(self.plant.folder / "train.extxyz"), *words))
        for process in processes:
            killed = self.rng.random() < 0.5
            self.commands.append((process, now + self.rng.uniform(0.5, 3) if killed else now + 1e9))

    def _disturb(self) -> None:
        kind = self.rng.choices(list(FAULTS), list(FAULTS.values()))[0]
        if self._do(kind):
            self.count[kind] += 1

    def _do(self, kind: str) -> bool:
        """Whether there was something to disturb in this way."""
        if "rocket" in kind:
            rocket = self.rockets[self.rng.choice(sorted(self.rockets))]
            rocket.send_signal(signal.SIGKILL if "kill" in kind else signal.SIGTERM)
        elif "pw.x" in kind:
            return self._kill_pw()
        elif "disk" in kind:
            return self._fill_disk()
        elif "reconcile" in kind:
            if self.reconcile is None or self.reconcile.poll() is not None:
                return False
            self.reconcile.kill()
            self.reconcile.wait()
        elif not self.server_is_well:
            return False
        else:
            kill = "kill" in kind
            self.server_is_well = False
            os.kill(self.plant.server_pid(), signal.SIGKILL if kill else signal.SIGSTOP)
            away = self.rng.uniform(0, 10) if kill else self.pause
            self._at(away, self._restart if kill else self._go_on)
        return True

    def _kill_a_waiting_rocket(self) -> None:
        """Kill one whose label is on the disk and cannot be stored, because the server is away."""
        for rocket in self.rockets.values():
            folder = folder_of(rocket.pid)
            waits = folder is not None and (folder / "label.json").exists()
            if waits and rocket.poll() is None and self.rng.random() < KILL_WAITING:
                rocket.kill()
                self.count["kill -9 of a rocket whose label waits for the server"] += 1

    def _kill_pw(self) -> bool:
        """Kill a process of a calculation that was spared so far: one that is killed twice is given up, rightly."""
        candidates = []
        for pid, folder in self.plant.pw_members().items():
            try:
                key = key_of((folder / "pw.in").read_text())
            except OSError:
                continue
            if key not in self.killed_keys:
                candidates.append((pid, key))
        if not candidates:
            return False
        pid, key = self.rng.choice(candidates)
        self.killed_keys.add(key)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _fill_disk(self) -> bool:
        if self.plant.small_disk is None or self.disk_is_full:
            return False
        self.disk_is_full = True
        filler = self.plant.small_disk / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(b"0" * 4096):
                    pass
        except OSError:
            pass
        self._at(self.rng.uniform(3, 12), self._empty_disk)
        return True

    def _empty_disk(self) -> None:
        assert self.plant.small_disk is not None
        (self.plant.small_disk / "filler").unlink()
        self.disk_is_full = False

    def _restart(self) -> None:
        self.plant.start_server()
        self.server_is_well = True

    def _go_on(self) -> None:
        os.kill(self.plant.server_pid(), signal.SIGCONT)
        self.server_is_well = True

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        self.later.append((time.monotonic() + seconds, action))


def put_right(chaos: Chaos, seconds: float) -> bool:
    """`recover`, `reconcile`, `submit` and `sync`, until nothing changes; False when that takes too long."""
    plant, deadline = chaos.plant, time.monotonic() + seconds
    words, last = plant.queue_words(), ""
    while time.monotonic() < deadline:
        chaos.tend_rockets()
        for command in (["recover"], ["reconcile"]):
            plant.dftfactory(*command, *words).wait(timeout=300)
        for process in [plant.submit(name) for name in "ab"]:
            process.wait(timeout=300)
        for process in [plant.dftfactory("sync", str(plant.database(name)), *words) for name in "ab"]:
            process.wait(timeout=300)
        chaos.count["(FAILED by a fault and selected again)"] += _select_again(plant)
        now = state_of(plant)
        if now == last and not any(word in now for word in ("SELECTED", "QUEUED", "READY", "RUNNING", "RESERVED")):
            return True
        last = now
        time.sleep(2)
    return False


def _select_again(plant: Plant) -> int:
    """Select once more what failed since its disk was full or its pw.x was killed too often, as a user would."""
    number = 0
    for name in "ab":
        db = open_candidates(plant.database(name))
        failed = [row for row in db.select() if row.status == "FAILED" and plant.pieces[row.piece].kind != "refused"]
        failed = [row for row in failed if plant.pieces[row.piece].kind != "fails" or row.failure != "INPUT_ERROR"]
        with (plant.folder / "logs" / "failed").open("a") as log:
            for row in failed:
                print(row.calculation_id, row.get("failure"), row.get("reason"), file=log)
        with transaction(db):
            for row in failed:
                db.update(row.id, status="SELECTED")
        number += len(failed)
    return number


def state_of(plant: Plant) -> str:
    """Describe where all structures and Fireworks stand."""
    rows = Counter(row.status for row in plant.rows())
    with open_launchpad(plant) as launchpad:
        fireworks = Counter(entry["state"] for entry in launchpad.fireworks.find({}, {"state": 1}))
    return f"candidates {dict(sorted(rows.items()))}, Fireworks {dict(sorted(fireworks.items()))}"


def main() -> int:
    """Run it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="for how long there are faults")
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument("--rockets", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--length", type=float, default=5, help="seconds of the longest run of the stand-in pw.x")
    parser.add_argument("--real", type=int, help="structures for the real pw.x; 6 where it is installed")
    parser.add_argument(
        "--patience", type=float, default=900, help="seconds for the end, when there are no more faults"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    n_real = options.real if options.real is not None else 6 if shutil.which("pw.x") else 0
    folder = Path(tempfile.mkdtemp(prefix="dftfactory-chaos-"))
    print(f"{options} in {folder}", flush=True)
    # Then what was started is ended, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    plant = Plant(folder, options.structures, options.rockets, n_real, options.seed, options.length)
    if plant.small_disk is None:
        print("no disk gets full: only root can mount a small one", flush=True)
    bad = True
    try:
        plant.start_server()
        chaos = Chaos(plant, options.seconds)
        chaos.run()
        print(f"{time.monotonic() - began:.0f} s: {state_of_faulty(plant)}; the faults stop", flush=True)
        chaos.stop()
        settled = put_right(chaos, options.patience)
        print(f"{time.monotonic() - began:.0f} s: {state_of(plant)}", flush=True)
        verdict = Verdict(plant, settled=settled)
        stop_all(chaos)
        bad = verdict.print(chaos.count)
    finally:
        plant.close()
        if bad or options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    return int(bad)


def state_of_faulty(plant: Plant) -> str:
    """Describe where the candidates stand while the server may be away."""
    try:
        return f"candidates {dict(sorted(Counter(row.status for row in plant.rows()).items()))}"
    except CandidateError as error:
        return error.message


def stop_all(chaos: Chaos) -> None:
    """End rockets, the loop and the server as a user does."""
    processes = [*chaos.rockets.values(), *([chaos.reconcile] if chaos.reconcile else [])]
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(timeout=60)
    chaos.plant.dftfactory("launchpad", "stop", "--dir", str(chaos.plant.server)).wait(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
