"""Good runs, damaged at random and reproducibly: never a crash of ours, never another number in the label."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dftfactory.errors import ParserError
from dftfactory.failures import examine
from dftfactory.parsers import read_pw_output

FILES = Path(__file__).parent / "files"
GOOD = [
    "reference/al4_fcc_rattled",
    "reference/fe2_bcc_rattled",
    "pw/ok_si2_qe72",
    "pw/ok_hybrid",
    "pw/syn_xml_missing",
]
N_MUTATIONS = 60  # of each run
# What a text says without an XML beside it is known to the digits that it repeats: 1e-6 Ry/bohr and 0.01 kbar.
ENERGY, FORCE, STRESS = 3e-6, 1e-4, 2e-5  # eV, eV/Å, eV/Å³


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def another_digit(content: bytes, rng: random.Random) -> bytes:
    place = rng.choice([n for n, byte in enumerate(content) if chr(byte) in "0123456789"])
    return (
        content[:place]
        + rng.choice(b"0123456789".replace(content[place : place + 1], b"")).to_bytes(1, "big")
        + content[place + 1 :]
    )


def one_line_less(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    del lines[rng.randrange(len(lines))]
    return b"\n".join(lines)


def one_line_twice(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)


def a_hole(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randrange(1, 4096) :]


def zeros(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    end = min(start + rng.randrange(1, 4096), len(content))
    return content[:start] + bytes(end - start) + content[end:]


def another_sign(content: bytes, rng: random.Random) -> bytes:
    place = rng.choice([n for n, byte in enumerate(content) if chr(byte) == "-"])
    return content[:place] + b" " + content[place + 1 :]


def a_stray_word(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.choice([b"NaN", b"****", b"1.0E+300", b"<", b"\xff\xfe", b"\n"]) + content[start:]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    cut, another_digit, one_line_less, one_line_twice, a_hole, zeros, another_sign, a_stray_word
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_damaged_run_is_refused_or_still_has_its_own_label(tmp_path, name):
    good = read_pw_output(FILES / name)
    rng = random.Random(name)  # noqa: S311  (no secret, and the same every time)
    for number in range(N_MUTATIONS):
        folder = tmp_path / str(number)
        shutil.copytree(FILES / name, folder)
        damaged = rng.choice(
            [path for path in (folder / "pw.out", folder / "out" / "pwscf.xml", folder / "pw.in") if path.is_file()]
        )
        mutation = MUTATIONS[number % len(MUTATIONS)]
        damaged.write_bytes(mutation(damaged.read_bytes(), rng))

        diagnosis = examine(folder)
        try:
            result = read_pw_output(folder)
        except ParserError:
            result = None

        where = f"{mutation.__name__} in {damaged}"
        if diagnosis is not None:
            assert result is None, where
        if result is not None:
            assert result.energy == pytest.approx(good.energy, abs=ENERGY), where
            np.testing.assert_allclose(result.forces, good.forces, atol=FORCE, err_msg=where)
            np.testing.assert_allclose(result.stress, good.stress, atol=STRESS, err_msg=where)
        shutil.rmtree(folder)
