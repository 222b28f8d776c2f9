"""Pictures show the numbers of the records, with units, and words of strangers in them stay words."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from dftfactory.monitor.attempts import Attempt
from dftfactory.monitor.records import Record
from dftfactory.report import pictures
from dftfactory.report.picture import COLORS, LEVEL_COLORS, Picture, Series, level_color, polygon
from dftfactory.report.pictures import figure_of, ladder_picture, overview, scf_picture
from dftfactory.report.plotly_figures import plotly_js

NOON = datetime(2026, 11, 1, 12, tzinfo=timezone.utc)
MARKUP = "<script>alert(1)</script><b>x</b>"


def record(state: str = "COMPLETED", **facts: Any) -> Record:
    usual = {"fw_id": 1, "calculation_id": "a", "formula": "Si", "fingerprint": "dft1", "campaigns": ()}
    return Record(**{**usual, "state": state, **facts})


def labelled(level: int = 0, quality: str = "exact", **facts: Any) -> Record:
    state = "COMPLETED" if quality == "exact" else "FIZZLED"
    return record(state, level=level, quality=quality, **{"ended": NOON, "core_seconds": 3600.0, **facts})


def failed(failure: str, **facts: Any) -> Record:
    spent = {"core_seconds": 7200.0, "wasted_core_seconds": 7200.0}
    return record("FIZZLED", failure=failure, level=0, **{"ended": NOON, **spent, **facts})


def heights(picture: Picture) -> dict[str, dict[Any, Any]]:
    """Series → what stands on each place that has something."""
    return {series.name: {x: y for x, y in zip(series.x, series.y, strict=True) if y} for series in picture.series}


def test_every_state_has_its_number_share_and_colour() -> None:
    picture = pictures.states([labelled(), labelled(), record("RUNNING"), failed("NAN")])
    bars = {series.name: (series.x, series.color, series.texts) for series in picture.series}
    assert bars["COMPLETED"] == ((2,), COLORS["COMPLETED"], ("2 (50 %)",))
    assert bars["RUNNING"] == ((1,), COLORS["RUNNING"], ("1 (25 %)",))
    assert bars["FIZZLED"][0] == (1,)
    assert "4 structures" in picture.title
    # In the order of a structure's life.
    assert [series.name for series in picture.series] == ["RUNNING", "COMPLETED", "FIZZLED"]


def test_levels_count_labels_and_tell_softened_ones_apart() -> None:
    picture = pictures.levels([labelled(), labelled(), labelled(1), labelled(3, "softened"), failed("NAN")])
    assert "4 structures" in picture.title
    assert picture.totals == {"level 0": 2, "level 1": 1, "level 2": 0, "level 3": 1}
    softened = next(series for series in picture.series if series.name == "softened")
    assert softened.hatched
    assert softened.color == COLORS["softened"]


def test_levels_of_a_longer_ladder_are_shown_too() -> None:
    picture = pictures.levels([labelled(6)])
    assert picture.totals["level 6"] == 1
    assert level_color(6) == LEVEL_COLORS[-1]


def test_failures_come_with_the_most_frequent_first() -> None:
    records = [failed("NAN"), failed("OUT_OF_MEMORY"), failed("OUT_OF_MEMORY"), record("FIZZLED"), labelled()]
    [series] = pictures.failures(records).series
    assert series.y[0] == "OUT_OF_MEMORY"
    assert dict(zip(series.y, series.x, strict=True)) == {"OUT_OF_MEMORY": 2, "NAN": 1, "UNKNOWN": 1}


def test_throughput_counts_what_ended_in_bins_that_a_person_can_name() -> None:
    records = [labelled(ended=NOON + timedelta(hours=hour)) for hour in range(48)]
    records += [failed("NAN", ended=NOON), labelled(3, "softened", ended=NOON)]
    picture = pictures.throughput(records, bins=30)
    assert "50 structures" in picture.title
    assert picture.y_label == "structures in 2 hours"
    middle = NOON + timedelta(hours=1)
    assert {name: bars[middle] for name, bars in heights(picture).items()} == {
        "COMPLETED": 2,
        "softened": 1,
        "FIZZLED": 1,
    }
    assert sum(heights(picture)["COMPLETED"].values()) == 48


def test_years_of_records_still_fit_into_the_bins() -> None:
    records = [labelled(ended=NOON + timedelta(days=days)) for days in (0, 4000)]
    picture = pictures.throughput(records, bins=20)
    [series] = picture.series
    assert len(series.x) <= 20
    assert sum(series.y) == 2


def test_cost_is_split_into_what_went_into_labels_and_what_was_wasted() -> None:
    records = [labelled(wasted_core_seconds=900.0), failed("NAN"), labelled(reused=True), record("READY")]
    picture = pictures.cost(records)
    assert "3 core-hours, 2.25 of them wasted" in picture.title
    assert {name: sum(bars.values()) for name, bars in heights(picture).items()} == {
        "went into labels": 0.75,
        "wasted in failed attempts": 2.25,
    }
    by_level = pictures.cost_by_level(records)
    assert by_level.totals == {"level 0": 1.0, "no label": 2.0}


def test_scf_picture_goes_through_all_attempts_with_their_thresholds() -> None:
    attempts = [
        Attempt(number=1, level=0, scf_accuracy=[1.0, 0.1, 0.5], conv_thr=1e-9, outcome="SCF_NOT_CONVERGED"),
        Attempt(number=2, level=3, stage=0, scf_accuracy=[1e-2, 0.0], conv_thr=1e-4, outcome="STAGE_CONVERGED"),
        Attempt(number=3, level=3, stage=1),
    ]
    picture = scf_picture(attempts)
    assert "5 iterations in 3 attempts" in picture.title
    assert picture.log_y
    first, threshold, second, its_threshold = picture.series
    assert (first.x, first.y) == ((1, 2, 3), (1.0, 0.1, 0.5))
    assert second.x == (4, 5)
    assert second.y == (1e-2, None)  # 0 has no logarithm
    assert (threshold.y[0], its_threshold.y[0]) == (1e-9, 1e-4)
    assert [series.in_legend for series in (threshold, its_threshold)] == [True, False]
    assert "stage 0" in second.name


def test_ladder_picture_tells_ends_apart_by_colour_and_mark() -> None:
    attempts = [
        Attempt(number=1, level=0, outcome="SCF_NOT_CONVERGED"),
        Attempt(number=2, level=3, stage=0, outcome="STAGE_CONVERGED"),
        Attempt(number=3, level=3, stage=1),
    ]
    picture = ladder_picture(attempts)
    assert picture.ticks == ("0 default", "1 soft mixing", "2 robust solver", "3 high temperature")
    ends = {series.name: (series.x, series.y) for series in picture.series[1:]}
    assert ends == {"failed": ((1,), (0,)), "went well": ((2,), (3,)), "runs": ((3,), (3,))}
    assert len({series.marker for series in picture.series[1:]}) == 3
    assert len({series.color for series in picture.series[1:]}) == 3


def test_where_there_is_nothing_words_say_why() -> None:
    for picture in (*overview([]), scf_picture([]), ladder_picture([])):
        assert picture.is_empty
        figure = figure_of(picture)
        assert figure["data"] == []
        [words] = figure["layout"]["annotations"]
        assert words["text"] == picture.instead
        assert figure["layout"]["xaxis"] == {"visible": False}


def test_figures_are_json_without_nan_and_times_are_in_utc() -> None:
    plus_two = timezone(timedelta(hours=2))
    records = [labelled(ended=NOON.astimezone(plus_two)), labelled(2), failed("NAN")]
    texts = [json.dumps(figure_of(picture), allow_nan=False) for picture in overview(records)]
    assert any("2026-11-01 12:00" in text for text in texts)


def test_names_of_strangers_are_no_tags_for_plotly() -> None:
    """plotly.js reads <b>, <br> and <a href> in every text that it draws."""
    records = [record(MARKUP), failed(MARKUP)]
    attempts = [Attempt(number=1, level=0, start=MARKUP, scf_accuracy=[1.0], outcome=MARKUP)]
    for picture in (*overview(records), scf_picture(attempts), ladder_picture(attempts, [MARKUP])):
        text = json.dumps(figure_of(picture))
        assert "<script" not in text
        assert "<b>" not in text
    assert "&lt;script&gt;" in json.dumps(figure_of(pictures.states(records)))


def test_bars_begin_at_zero() -> None:
    records = [labelled(), failed("NAN")]
    for picture in overview(records):
        layout = figure_of(picture)["layout"]
        if picture.kind == "bars":
            assert layout["yaxis"]["rangemode"] == "tozero"
        else:
            assert layout["xaxis"]["range"][0] == 0
        assert picture.x_label or picture.y_label


def test_a_row_stands_on_its_base_and_its_largest_bin_is_as_high_as_asked() -> None:
    outline = polygon([0.0, 1.0, 2.0], [2, 4], base=3, height=0.8)
    assert outline == [(0, 3), (0, 3.4), (1, 3.4), (1, 3.8), (2, 3.8), (2, 3)]
    picture = Picture("r", "r", "x", "", (Series("a", (0, 1), (3,), "#000", ("3 labels",)),), kind="rows", ticks=("a",))
    [trace] = figure_of(picture)["data"]
    assert len(trace["x"]) == len(trace["hovertext"]) == 4


@pytest.mark.parametrize("package", ["plotly", "matplotlib", "pymatgen", "ase"])
def test_pictures_are_made_without_slow_imports(package: str) -> None:
    code = "import sys; from dftfactory.report.pictures import overview; overview([])"
    code += "; sys.exit(sys.argv[1] in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, package], check=False).returncode == 0


def test_plotly_js_is_found_in_the_installed_package() -> None:
    assert plotly_js().read_text(encoding="utf-8")[:200].count("plotly.js") == 1


def test_marks_of_a_short_logarithmic_axis_say_their_power_of_ten() -> None:
    """plotly.js writes a bare 2 for 0.2 and for 20: where no whole decade is in sight nobody can tell."""
    series = (Series("a", (0.2, 0.3, 0.6), (3, 1), "#000"),)
    axis = figure_of(Picture("r", "r", "x", "", series, kind="rows", ticks=("a",), log_x=True))["layout"]["xaxis"]
    assert dict(zip(axis["tickvals"], axis["ticktext"], strict=True)) == {
        0.1: "0.1", 0.2: "0.2", 0.5: "0.5", 1.0: "1", 2.0: "2", 5.0: "5",
    }  # fmt: skip


def test_attempts_are_counted_in_whole_numbers() -> None:
    attempts = [Attempt(number=n, level=0, outcome="CONVERGED") for n in (1, 2)]
    assert figure_of(ladder_picture(attempts))["layout"]["xaxis"]["dtick"] == 1
