"""Damaged outputs of pw.x: whether one of them hangs or breaks the parser, or gives a label that is another one.

Usage: nice -n 19 python tests/benchmarks/fuzz_outputs.py N [--seed S] [--only NUMBER --keep FOLDER]

Case NUMBER of a seed is the same every time: `--only` makes it alone, and `--keep` leaves its files in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from dftfactory.errors import DFTFactoryError
from dftfactory.failures import examine
from dftfactory.parsers import read_pw_output
from dftfactory.results import DFTResult

FILES = Path(__file__).parents[1] / "files"
READ = ("pw.in", "pw.out", "pw.err", "CRASH", "exit_status", "history.json", "out/pwscf.xml")
# Mostly what a label is made of.
WEIGHTS = (3, 8, 1, 1, 1, 2, 6)
SECONDS = 1.0  # of the processor, for one case; what is above is reported
GIVEN_UP = 20.0
# Refused for one line alone, a warning or a second JOB DONE, which a hole in the text may take away.
WARNED = {"hubbard_card_ignored", "mpi_serial_pw", "pseudo_other_folder", "pseudo_wrong_element", "charge_drift_qe72"}
# What the parser can know: XML and text agree to two units of the last printed digit of the text (Ry atomic units).
# A text alone repeats its numbers with fewer digits: 1e-7 Ry, 2e-6 Ry/bohr for all forces together, 0.01 kbar.
DIGITS = {
    "xml": {"energy": 4e-7, "smearing_energy": 4e-7, "forces": 7e-7, "stress": 3e-6, "magnetization": 0.011},
    "text": {"energy": 3e-6, "smearing_energy": 3e-6, "forces": 1e-4, "stress": 2e-5, "magnetization": 0.011},
}
POSITIONS = 2.5e-5  # Å; the input against the seven digits of the output
Files = dict[str, bytes]


@dataclass(frozen=True)
class Run:
    """A recorded run and the label that it has, if it has one."""

    name: str
    files: Files
    label: DFTResult | None


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def cut_at_a_page(content: bytes, rng: random.Random) -> bytes:
    return content[: 4096 * rng.randrange(len(content) // 4096 + 1)]


def without_its_beginning(content: bytes, rng: random.Random) -> bytes:
    return content[rng.randrange(len(content)) :]


def a_hole(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randrange(1, 4096) :]


def zeros(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    end = min(start + rng.randrange(1, 4096), len(content))
    return content[:start] + bytes(end - start) + content[end:]


def flipped_bits(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 10, 100))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def other_digits(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    digits = [n for n, byte in enumerate(content) if 48 <= byte <= 57]
    for place in rng.sample(digits, min(len(digits), rng.choice((1, 1, 1, 2, 5)))):
        damaged[place] = rng.choice(b"0123456789")
    return bytes(damaged)


def another_sign(content: bytes, rng: random.Random) -> bytes:
    places = [n for n, byte in enumerate(content) if byte in b"-+"]
    if not places:
        return content
    place = rng.choice(places)
    return content[:place] + rng.choice((b" ", b"-", b"+")) + content[place + 1 :]


def another_number(content: bytes, rng: random.Random) -> bytes:
    words = (b"****", b"***********", b"NaN", b"-Infinity", b"1.0E+300", b"1.0E+999", b"9" * 5000, b"1.0D-400", b"-")
    numbers = [n for n, byte in enumerate(content) if 48 <= byte <= 57 and content[n - 1 : n] == b" "]
    if not numbers:
        return content
    start = rng.choice(numbers)
    end = next((n for n in range(start, len(content)) if content[n] in b" \n<,"), len(content))
    return content[:start] + rng.choice(words) + content[end:]


def one_line_less(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    del lines[rng.randrange(len(lines))]
    return b"\n".join(lines)


def one_line_twice(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)


def lines_swapped(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"\n".join(lines)


def a_block_moved(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    start = rng.randrange(len(lines))
    block = lines[start : start + rng.randrange(1, 30)]
    if rng.random() < 0.5:
        del lines[start : start + len(block)]
    place = rng.randrange(len(lines) + 1)
    return b"\n".join([*lines[:place], *block, *lines[place:]])


def a_stray_word(content: bytes, rng: random.Random) -> bytes:
    words = (b"NaN", b"****", b"<", b"</output>", b"&", b"\xff\xfe", b"\n", b"\r\n", b"\0", b"(", b")", b"\x1b[2J")
    start = rng.randrange(len(content))
    return content[:start] + rng.choice(words) + content[start:]


def a_very_long_line(content: bytes, rng: random.Random) -> bytes:
    piece = rng.choice((b" ", b"9", b"*", b"-", b".", b"1.", b"a", b"0.0 ", b"(", b"=", b"1h", b"\t", b"-0.00000000"))
    place = rng.randrange(len(content))
    if rng.random() < 0.5:  # in the place of a number or blank, where a pattern may follow it
        place = content.rfind(rng.choice((b" ", b"=", b"(")), 0, place) + 1
    return content[:place] + piece * (rng.choice((3_000, 100_000)) // len(piece)) + content[place:]


def a_line_many_times(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    n = rng.randrange(len(lines))
    return b"\n".join([*lines[:n], *[lines[n]] * rng.choice((100, 10_000)), *lines[n:]])


def xml_bomb(content: bytes, rng: random.Random) -> bytes:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE b [<!ENTITY a0 "1.0 ">{entities}<!ENTITY f SYSTEM "file:///etc/passwd">]>'.encode()
    head, _, body = content.partition(b"?>")
    body = body.replace(b"<etot>", rng.choice((b"<etot>&a9;", b"<etot>&f;", b"<etot>")), 1)
    return head + b"?>" + bomb + body


def xml_nested(content: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((1_000, 50_000))
    return content.replace(b"<output>", b"<output>" * depth, 1) + b"</output>" * rng.choice((0, depth))


def nothing(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"", b"\0" * 4096, b"\n"))


USUAL: list[Callable[[bytes, random.Random], bytes]] = [
    *(cut, cut_at_a_page, without_its_beginning, a_hole, zeros, flipped_bits, other_digits, other_digits, other_digits),
    *(another_sign, another_sign, another_number, another_number, one_line_less, one_line_twice, lines_swapped),
    *(a_block_moved, a_stray_word, nothing),
]
LARGE = [a_very_long_line, a_line_many_times]
# Of a hundred cases: large ones take longer than all others together.
N_LARGE, N_XML, N_MIXED = 3, 1, 8


def main() -> int:
    """Make the cases, count how they end, and name the slowest and the wrong ones."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("number", type=int, nargs="?", default=1000, help="how many cases")
    arguments.add_argument("--seed", default="1")
    arguments.add_argument("--only", type=int, help="make this case alone")
    arguments.add_argument("--keep", type=Path, help="folder for the files of that case")
    options = arguments.parse_args()
    runs = recorded_runs()
    ends: Counter[str] = Counter()
    slowest: list[tuple[float, int, str]] = []
    wrong = 0
    began = time.monotonic()
    # In memory where there is such a place: the disk would be most of the time.
    shared = Path("/dev/shm")  # noqa: S108  (a folder of our own is made in it)
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as scratch:
        for number in range(options.number) if options.only is None else [options.only]:
            folder = options.keep or Path(scratch) / "run"
            what, run, files = make_case(runs, random.Random(f"{options.seed}/{number}"))  # noqa: S311
            write_case(folder, files)
            # Not the clock on the wall: the machine may have other work to do.
            started = time.process_time()
            end = how_it_ends(folder, run)
            seconds = time.process_time() - started
            ends[end.partition(":")[0]] += 1
            slowest = sorted([*slowest, (seconds, number, what)], reverse=True)[:5]
            if end.startswith("WRONG") or seconds > SECONDS:
                wrong += 1
                print(f"{number} {seconds:.2f} s {end}\n    {what}", flush=True)
            if number % 10_000 == 9_999:
                print(f"{number + 1} after {time.monotonic() - began:.0f} s, {wrong} of them wrong", flush=True)
    for end, count in ends.most_common():
        print(f"{count:8}  {end}")
    for seconds, number, what in slowest:
        print(f"{seconds:8.3f} s  {number}: {what}")
    print(f"seed {options.seed}: {wrong} wrong or slow of {ends.total()} in {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def recorded_runs() -> list[Run]:
    """Read all recorded runs, each as it is, and those with a label as runs of dftfactory, too."""
    runs = []
    for folder in sorted(path.parent for path in FILES.glob("*/*/pw.out")):
        if folder.name in WARNED:
            continue
        files = {name: (folder / name).read_bytes() for name in READ if (folder / name).is_file()}
        name = f"{folder.parent.name}/{folder.name}"
        label = label_of(folder)
        runs.append(Run(name, files, label or label_of_text(files)))
        if label is not None:
            runs += [runs[-1]] * 4  # more than half of all cases are made of runs that are good
            if label.degauss is not None:
                runs += [Run(f"{name} of ours", {**files, "history.json": history_of(label, files)}, label)] * 3
    return runs


def label_of(folder: Path) -> DFTResult | None:
    try:
        return read_pw_output(folder)
    except DFTFactoryError:
        return None


def label_of_text(files: Files) -> DFTResult | None:
    """Return the label of a run that is refused for its XML alone, such as one that a full disk has cut."""
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder) / "run", {name: text for name, text in files.items() if not name.endswith(".xml")})
        return label_of(Path(folder) / "run")


def history_of(label: DFTResult, files: Files) -> bytes:
    """Return the history.json that dftfactory would have written for a recorded run."""
    out = files["pw.out"].decode(errors="replace").splitlines()
    md5 = [line.split()[-1] for line in out if "MD5 check sum" in line]
    elements = list(dict.fromkeys(label.symbols))
    parameters = {"degauss": label.degauss, "conv_thr": label.conv_thr, "nspin": 1, "level": 0}
    prescribed = {"md5": dict(zip(elements, md5, strict=False)), "max_force": 40.0, "label_parameters": {}}
    history = {
        "calculation_id": "recorded",
        "prescribed": {**prescribed, "degauss": label.degauss, "conv_thr": label.conv_thr},
        "configured": parameters,
        "ladder": None,
        "attempts": [{"parameters": parameters}],
    }
    return json.dumps(history, indent=1).encode()


def make_case(runs: list[Run], rng: random.Random) -> tuple[str, Run, Files]:
    """Return what was done, the run whose pw.out it is, and the files."""
    run = rng.choice(runs)
    files = dict(run.files)
    done = [run.name]
    if rng.randrange(100) < N_MIXED:
        other = rng.choice(runs)
        name = rng.choice([name for name in other.files if name != "pw.out"])
        files[name] = other.files[name]
        done.append(f"{name} of {other.name}")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choices(READ, WEIGHTS)[0]
        if not files.get(name):
            continue
        chance = rng.randrange(100)
        if chance < N_LARGE:
            mutation = rng.choice(LARGE)
        elif chance < N_LARGE + N_XML and name.endswith(".xml"):
            mutation = rng.choice((xml_bomb, xml_nested))
        else:
            mutation = rng.choice(USUAL)
        files[name] = mutation(files[name], rng)
        done.append(f"{name}: {mutation.__name__}")
    if rng.randrange(50) == 0 and (gone := rng.choice(list(files))):
        del files[gone]
        done.append(f"without {gone}")
    return ", ".join(done), run, files


def write_case(folder: Path, files: Files) -> None:
    """Make a run folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def how_it_ends(folder: Path, run: Run) -> str:
    """Return one word for how the parser takes a case, with the reason where it begins with WRONG."""
    try:
        with at_most(GIVEN_UP):
            diagnosis = examine(folder)
            try:
                result = read_pw_output(folder)
            except DFTFactoryError as error:
                return f"refused, {type(error).__name__}"
    except Exception as error:  # whatever it is, it is not ours
        place = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place if "dftfactory" in frame.filename][-1]
        return f"WRONG exception: {error!r:.200} at {Path(ours.filename).name}:{ours.lineno}"
    if diagnosis is not None:
        return f"WRONG label of a run that is diagnosed: {diagnosis}"
    if run.label is None:
        return f"WRONG label of a run that has none: {result.energy} eV"
    problems = list(differences(result, run.label))
    return f"WRONG label: {'; '.join(problems)}" if problems else f"label as recorded, from {result.source}"


def differences(result: DFTResult, recorded: DFTResult) -> Iterator[str]:
    """Yield where a label differs from the recorded one by more than the parser can know."""
    if result.symbols != recorded.symbols:
        yield f"symbols {result.symbols}"
        return
    digits = DIGITS[result.source]
    moment, known = result.total_magnetization, recorded.total_magnetization
    if (moment is None) != (known is None) or abs((moment or 0.0) - (known or 0.0)) > digits["magnetization"]:
        yield f"magnetization {moment} and not {known}"
    for name in ("energy", "smearing_energy", "forces", "stress", "positions", "cell"):
        difference = np.abs(np.subtract(getattr(result, name), getattr(recorded, name))).max()
        if not difference <= digits.get(name, POSITIONS):
            yield f"{name} off by {difference:.3g} ({result.source})"
    if result.degauss != recorded.degauss:
        yield f"degauss {result.degauss} and not {recorded.degauss}"


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def raise_timeout(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"hangs for {seconds} s")

    signal.signal(signal.SIGPROF, raise_timeout)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    sys.exit(main())
