"""A report is one file with everything in it: right numbers, no request, and nobody's file is overwritten."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser_fixtures import console_errors, requested_urls, screenshot, wait_until
from every_state import MARKUP, plant_every_state
from made_up_labels import made_up_label
from queue_helpers import write_launchpad_file
from typer.testing import CliRunner

from dftfactory.cli import app
from dftfactory.errors import DFTFactoryError
from dftfactory.monitor.records import Record
from dftfactory.report.data_set import read_data_set
from dftfactory.report.page import (
    MARK,
    Report,
    address_of,
    checked_path,
    json_for_script,
    make_report,
    put_together,
    to_html,
    write_report,
)
from dftfactory.store import LabelStore

if TYPE_CHECKING:
    from fireworks import LaunchPad


class Page(HTMLParser):
    """What a browser would ask for, and the blocks of data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.blocks: dict[str, str] = {}
        self._block: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        self._block = values.get("id") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._block = None

    def handle_data(self, data: str) -> None:
        if self._block:
            self.blocks[self._block] = data


def table(report: Report, name: str) -> list[tuple[str, ...]]:
    return list(next(t for section in report.sections for t in section.tables if t.name == name).rows)


def record(state: str, **facts: Any) -> Record:
    usual = {"fw_id": 1, "calculation_id": "a", "formula": "Si", "fingerprint": "dft1", "campaigns": ()}
    return Record(**{**usual, "state": state, **facts})


def test_the_page_holds_everything_and_links_to_nothing_outside() -> None:
    report = put_together([record("COMPLETED")], read_data_set([made_up_label("a")]), "localhost:27017")
    text = to_html(report)
    page = Page(text)
    assert [link for link in page.links if not link.startswith("#")] == []
    assert page.tags.isdisjoint({"link", "img", "iframe", "object", "embed"})
    assert "default-src 'none'" in text
    figures = json.loads(page.blocks["figures"])
    assert set(figures) == {picture.name for picture in report.pictures}
    assert len(text) < 5_500_000


def test_headline_says_how_far_it_is_and_what_it_cost() -> None:
    records = [
        record("COMPLETED", core_seconds=7200.0, wasted_core_seconds=0.0),
        record("FIZZLED", core_seconds=7200.0, wasted_core_seconds=7200.0, failure="NAN"),
        record("READY"),
    ]
    report = put_together(records, read_data_set([made_up_label("a")]), "localhost:27017")
    numbers = {what: number for number, what in report.headline}
    assert numbers["structures"] == "3"
    assert numbers["COMPLETED"] == "1"
    assert numbers["waiting or running"] == "1"
    assert numbers["core-hours"] == "4"
    assert numbers["core-hours wasted"] == "2 (50 %)"
    assert numbers["core-seconds per label"] == "10"


def test_tables_say_which_level_solved_what_and_at_what_cost() -> None:
    labels = [made_up_label("a"), made_up_label("b", level=1), made_up_label("c", level=3, quality="softened")]
    report = put_together([], read_data_set(labels), "localhost:27017")
    rows = {row[0]: row[1:] for row in table(report, "levels")}
    # 20 s on 2 ranks for each failed attempt, 5 s for the last one.
    assert rows["0 default"][1:] == ("1", "0", "10", "10", "0.00278", "10", "5")
    assert rows["1 soft mixing"][:3] == ("mixing_beta = 0.3, mixing_mode = plain", "1", "0")
    assert rows["1 soft mixing"][3:5] == ("90", "90")
    assert "degauss + 0.04 Ry, then + 0.01 Ry, then as prescribed" in rows["3 high temperature"][0]
    assert rows["3 high temperature"][1:3] == ("0", "1")
    assert table(report, "rungs") == [("SCF_NOT_CONVERGED", "next level", "2")]
    assert table(report, "softened") == [("c", "Si", "3", "softened")]


def test_tables_say_what_the_labels_were_made_with_and_what_is_missing() -> None:
    damaged = made_up_label("damaged", energy=float("nan"))
    other = made_up_label("b", config_hash="cfg1", pw_version="7.2")
    records = [record("COMPLETED", linked_to=2, core_seconds=0.0), record("FIZZLED")]
    report = put_together(records, read_data_set([made_up_label("a"), other, damaged]), "localhost:27017", "first")
    made_with = {row[1]: row[2] for row in table(report, "configuration_1")}
    assert made_with["ecutwfc"] == "60"
    assert made_with["Si"].startswith("Si.UPF (md5 000")
    assert made_with["pw.x"] == "7.2: 1 label"
    missing = dict(table(report, "left_out"))
    assert "a number is not finite (damaged)" in missing["1 label"]
    assert "comparison of configurations" in missing
    assert "the cost of 1 structures" in missing
    assert "--campaign first" in missing["other campaigns"]


def test_an_empty_launchpad_gives_words_and_no_empty_axes() -> None:
    report = put_together([], read_data_set([]), "localhost:27017")
    text = to_html(report)
    assert all(picture.is_empty for picture in report.pictures)
    assert "dftfactory submit" in text
    assert "No labels yet." in text
    assert "NaN" not in Page(text).blocks["figures"]


def test_no_name_ends_a_block_of_data() -> None:
    values = {"</script><script>alert(1)</script>": "<!-- & \u2028"}
    text = json_for_script(values)
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == values


def test_markup_of_strangers_is_text_everywhere() -> None:
    odd = [made_up_label(f"{MARKUP}{n}", energy=-215 + 0.001 * n) for n in range(20)]
    odd.append(made_up_label(MARKUP, energy=-100.0, config_hash="cfg0", state_warning=MARKUP, pw_version=MARKUP))
    odd.append(made_up_label(MARKUP, config_hash=MARKUP, quality="softened", level=3))
    records = [record("FIZZLED", failure=MARKUP, reason=MARKUP, explanation=MARKUP, calculation_id=MARKUP)]
    text = to_html(put_together(records, read_data_set(odd), MARKUP, MARKUP))
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert text.count("<script") == 3
    assert text.count("</script>") == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("report.txt", r"ends in \.html"),
        ("missing/report.html", r"does not exist: `mkdir -p` it"),
        ("folder.html", r"no report of ours"),
        ("mine.html", r"no report of ours: move it away"),
        ("pipe.html", r"no report of ours: move it away"),
    ],
)
def test_a_path_that_cannot_be_is_refused_with_a_cure(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "mine.html").write_text("<html>my thesis</html>")
    os.mkfifo(tmp_path / "pipe.html")
    with pytest.raises(DFTFactoryError, match=says):
        checked_path(tmp_path / name)
    assert (tmp_path / "mine.html").read_text() == "<html>my thesis</html>"


@pytest.mark.mongodb
def test_report_of_every_state_says_what_the_launchpad_has(launchpad: LaunchPad, tmp_path: Path) -> None:
    planted = plant_every_state(launchpad, tmp_path)
    report = make_report(launchpad)
    numbers = {what: number for number, what in report.headline}
    states = [entry["state"] for entry in launchpad.fireworks.find({}, {"state": 1})]
    assert numbers["structures"] == str(len(planted)) == str(len(states))
    assert numbers["COMPLETED"] == str(states.count("COMPLETED"))
    assert numbers["FIZZLED"] == str(states.count("FIZZLED"))
    assert numbers["labels"] == str(launchpad.db.dft_results.count_documents({}))
    failures = table(report, "failures")
    assert sum(int(row[1]) for row in failures) == states.count("FIZZLED")
    assert all(row[2] for row in failures)  # what to do
    assert report.made["LaunchPad"].startswith("127.0.0.1:")
    assert launchpad.name in report.made["LaunchPad"]


@pytest.mark.mongodb
def test_a_password_is_in_no_report(launchpad: LaunchPad) -> None:
    settings = json.dumps(launchpad.to_dict())
    secret = re.search(r'"password": "([^"]+)"', settings)
    assert secret is not None
    assert secret[1] not in to_html(make_report(launchpad))
    assert "@" not in address_of(launchpad)


@pytest.mark.mongodb
def test_report_of_one_campaign_has_its_labels_only(launchpad: LaunchPad, tmp_path: Path) -> None:
    store = LabelStore(launchpad)
    for name in ("a", "b", "c"):
        store.put({**made_up_label(name), "campaigns": ["first" if name == "a" else "second"]})
    report = make_report(launchpad, "first")
    assert {what: number for number, what in report.headline}["labels"] == "1"
    assert report.made["campaign"] == "first"


@pytest.mark.mongodb
def test_command_writes_page_and_pictures_and_replaces_its_own(launchpad: LaunchPad, tmp_path: Path) -> None:
    LabelStore(launchpad).put(made_up_label("a"))
    words = ["report", str(tmp_path / "out.html"), "--png", "-l", str(write_launchpad_file(launchpad, tmp_path))]
    for _ in range(2):
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, ended.output
        assert f"report in {tmp_path / 'out.html'}" in ended.output
    assert MARK in (tmp_path / "out.html").read_text(encoding="utf-8")[:100]
    pictures = {path.name for path in (tmp_path / "out_png").iterdir()}
    assert {"energy.png", "max_force.png", "cost_per_label.png"} <= pictures
    assert "failures.png" not in pictures  # nothing has failed
    # No rest of a temporary file.
    assert {path.name for path in tmp_path.iterdir()} == {"out.html", "out_png", "my_launchpad.yaml"}


@pytest.mark.mongodb
def test_nothing_is_written_when_the_page_is_refused(launchpad: LaunchPad, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(DFTFactoryError, match="no report of ours"):
        write_report(launchpad, tmp_path / "mine.html", png=True)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.html"}


@pytest.fixture(scope="module")
def page_of_every_state(local_launchpad: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from browser_fixtures import fresh_launchpad

    folder = tmp_path_factory.mktemp("report")
    with fresh_launchpad(local_launchpad) as launchpad:
        plant_every_state(launchpad, folder)
        # Enough labels for all pictures, and one that is odd.
        for n in range(30):
            label = made_up_label(f"si-{n}", energy=-215 + 0.01 * (n % 7), pressure=n / 10, level=int(n == 0))
            LabelStore(launchpad).put(label)
        LabelStore(launchpad).put(made_up_label("odd-one", energy=-200.0))
        write_report(launchpad, folder / "out.html")
    return folder / "out.html"


@pytest.mark.browser
@pytest.mark.mongodb
def test_report_draws_everything_in_a_browser_without_a_single_request(browser: Any, page_of_every_state: Path) -> None:
    browser.get(page_of_every_state.as_uri())
    pictures = wait_until(browser, lambda b: b.find_elements("css selector", "[data-picture] .main-svg"))
    places = browser.find_elements("css selector", "[data-picture]")
    assert len(places) == 12
    assert len(pictures) >= len(places)
    for place in places:
        drawn = place.find_elements("css selector", ".bars path, .scatterlayer path, .annotation-text")
        assert drawn, f"{place.get_attribute('data-picture')} is empty"
    asked = [url for url in requested_urls(browser) if not url.startswith(("data:", "blob:", "about:", "chrome"))]
    assert asked == [page_of_every_state.as_uri()]
    assert console_errors(browser) == []
    assert "odd-one" in browser.find_element("id", "table-outliers").text
    # Nothing is wider than the window.
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    screenshot(browser, "report")


@pytest.mark.browser
@pytest.mark.mongodb
def test_report_fits_a_narrow_window(browser: Any, page_of_every_state: Path) -> None:
    browser.set_window_size(500, 900)
    browser.get(page_of_every_state.as_uri())
    wait_until(browser, lambda b: b.find_elements("css selector", "[data-picture] .main-svg"))
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
