"""PNG files for papers: their size, their words, and nothing of ours stays behind in matplotlib."""

from __future__ import annotations

import subprocess
import sys
import warnings
from datetime import datetime, timezone
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from made_up_labels import made_up_label
from PIL import Image

from dftfactory.errors import DFTFactoryError
from dftfactory.report.data_pictures import data_pictures
from dftfactory.report.data_set import read_data_set
from dftfactory.report.picture import COLORS, Picture, Series
from dftfactory.report.png import DPI, WIDTH, write_png, write_pngs

BARS = Picture("bars", "Two bars", "", "labels", (Series("a", ("x", "y"), (1, 2), COLORS["COMPLETED"]),))


def with_name(name: str) -> Picture:
    series = Series(name, (3,), (name,), COLORS["FIZZLED"], (name,), hatched=True)
    return Picture("lying", name, name, "", (series,), kind="lying", note=name)


def test_a_picture_is_as_wide_as_a_page_and_sharp_in_print(tmp_path: Path) -> None:
    write_png(BARS, tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as image:
        assert image.size[0] == WIDTH * DPI
        assert image.info["dpi"] == pytest.approx((DPI, DPI), rel=1e-3)
        # Green is there, and so is white around it.
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=10**6) or []}
    assert (42, 157, 99) in colors  # #2a9d63
    assert (255, 255, 255) in colors


def test_every_kind_of_picture_is_drawn(tmp_path: Path) -> None:
    times = tuple(datetime(2026, 11, day, tzinfo=timezone.utc) for day in (1, 2))
    over_time = Picture("time", "t", "time (UTC)", "n", (Series("a", times, (1, 0), "#000", widths=(80000.0,) * 2),))
    line = Series("a", (1, 2, 3), (1.0, None, 1e-3), "#000", marker="x")
    lines = Picture(
        "lines",
        "l",
        "iteration",
        "Ry",
        (line, Series("b", (0, 3), (1e-2, 1e-2), "#000", dashed=True)),
        "lines",
        log_y=True,
    )
    labels = [made_up_label(str(n), largest_force=0.1 * (n + 1), pressure=n) for n in range(30)]
    drawn = write_pngs(
        [BARS, over_time, lines, with_name("a"), *data_pictures(read_data_set(labels))], tmp_path / "new"
    )
    assert len(drawn) == 10
    for path in drawn:
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).min() < 120  # something dark is in it


@pytest.mark.parametrize("name", ["$x_2$", r"\$a$ ${", "_hidden", "<b>x</b>\x1b[31m", "原子", "\\frac{"])
def test_any_name_is_drawn_as_it_is(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_png(with_name(name), tmp_path / "name.png")
    assert (tmp_path / "name.png").stat().st_size > 1000


def test_settings_of_matplotlib_are_neither_used_nor_changed(tmp_path: Path) -> None:
    """A matplotlibrc for slides would make letters too large for print, and one with LaTeX would fail without it."""
    write_png(BARS, tmp_path / "before.png")
    with matplotlib.rc_context({"font.size": 40, "text.usetex": True, "axes.facecolor": "red"}):
        write_png(BARS, tmp_path / "after.png")
        assert matplotlib.rcParams["font.size"] == 40
    with Image.open(tmp_path / "before.png") as before, Image.open(tmp_path / "after.png") as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))


def test_pyplot_is_not_touched(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dftfactory.report.picture import Picture, Series; "
        "from dftfactory.report.png import write_png; "
        "write_png(Picture('a', 'a', '', 'n', (Series('a', ('x',), (1,), '#000'),)), Path(sys.argv[1])); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], check=False, env={"MPLBACKEND": "tkagg"}
    )
    assert ended.returncode == 0
    assert (tmp_path / "a.png").is_file()


def test_pictures_of_an_earlier_report_are_replaced_and_empty_ones_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "png"
    write_pngs([BARS, with_name("a")], folder)
    nothing = Picture("lying", "nothing", "", "", (), kind="lying")
    assert write_pngs([BARS, nothing], folder) == [folder / "bars.png"]
    assert [path.name for path in folder.iterdir()] == ["bars.png"]


def test_a_picture_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "lying.png").write_bytes(b"my own figure")
    with pytest.raises(DFTFactoryError, match="not written by `dftfactory report`"):
        write_pngs([BARS, with_name("a")], tmp_path)
    assert (tmp_path / "lying.png").read_bytes() == b"my own figure"
    assert not (tmp_path / "bars.png").exists()


def test_a_folder_that_is_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "png").write_text("")
    with pytest.raises(DFTFactoryError, match=r"cannot write pictures into .*png"):
        write_pngs([BARS], tmp_path / "png")
