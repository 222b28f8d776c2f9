"""Our pages of the web GUI, without a browser: the right numbers for every state, and nothing that leads astray."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from every_state import MARKUP, plant_every_state
from flask import Flask

from dftfactory.monitor.records import Record
from dftfactory.monitor.story import Story, tell_story
from dftfactory.webgui import pages, words
from dftfactory.webgui.one_structure import facts_of_structure, file_of, names_of_files
from dftfactory.webgui.pages import make_pages
from dftfactory.webgui.table import COLUMNS, ROWS, STATES, Query, choices_of, page_of


@pytest.fixture(scope="module")
def planted(local_launchpad, tmp_path_factory):
    from browser_fixtures import fresh_launchpad

    with fresh_launchpad(local_launchpad) as launchpad:
        yield launchpad, plant_every_state(launchpad, tmp_path_factory.mktemp("pages"))


def client_of(launchpad):
    app = Flask("pages")
    app.register_blueprint(make_pages(launchpad))
    return app.test_client()


@pytest.fixture(scope="module")
def client(planted):
    return client_of(planted[0])


@pytest.fixture(scope="module")
def fw_ids(planted):
    return planted[1]


def words_of(response):
    """What a reader sees: the text without its tags, in one line."""
    text = re.sub(r"<script.*?</script>", "", response.text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def shown_ids(response):
    return [int(fw_id) for fw_id in re.findall(r'<th scope="row"><a href="/dft/structures/(\d+)"', response.text)]


# ---- overview


def test_the_overview_shows_the_numbers_of_the_launchpad(client, planted):
    launchpad, fw_ids = planted
    response = client.get("/dft/")
    said = words_of(response)
    counts = {state: launchpad.fireworks.count_documents({"state": state}) for state in STATES}
    assert all(counts.values())
    for state, number in counts.items():
        assert f"{state} {number}" in said
    over = sum(counts[state] for state in ("COMPLETED", "FIZZLED", "DEFUSED", "ARCHIVED"))
    assert f"{over} of {len(fw_ids)} structures done" in said


def test_failures_are_grouped_with_what_to_do_and_lead_to_their_structures(client, fw_ids):
    response = client.get("/dft/")
    assert "memory ran out; give the job more memory" in words_of(response)
    assert '<a href="/dft/structures?failure=OUT_OF_MEMORY">' in response.text
    assert shown_ids(client.get("/dft/structures?failure=OUT_OF_MEMORY")) == [fw_ids["OUT_OF_MEMORY"]]


def test_what_runs_now_is_shown_with_its_iteration(client, fw_ids):
    facts = client.get("/dft/api/overview").json
    running = {each["fw_id"]: each for each in facts["progress"]["running"]}
    assert set(running) == {fw_ids["running"], fw_ids["running elsewhere"]}
    seen = running[fw_ids["running"]]
    assert seen["attempt"] == 2
    part = html.unescape(facts["parts"]["running"])
    assert f"{seen['accuracy']:.1e}" in part
    assert running[fw_ids["running elsewhere"]]["unseen"] in part


def test_the_page_and_its_refresh_show_the_same(client):
    page, facts = client.get("/dft/").text, client.get("/dft/api/overview").json
    assert facts["live"] is True
    for part in ("failures", "levels"):
        assert facts["parts"][part] in page
    figures = json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)[1])
    assert figures == facts["figures"]
    assert set(figures) == {"throughput", "cost"}


def test_a_campaign_is_shown_alone(client, planted):
    launchpad, _ = planted
    number = launchpad.fireworks.count_documents({"spec.campaigns": "oxides"})
    assert client.get("/dft/api/overview?campaign=oxides").json["progress"]["total"] == number
    said = words_of(client.get("/dft/?campaign=oxides"))
    assert "Campaign oxides" in said
    assert f"of {number} structures done" in said
    assert "silicon" in said  # to be chosen


def test_an_unknown_campaign_says_so(client):
    response = client.get("/dft/?campaign=nothing")
    assert response.status_code == 200
    assert "No structure is in the campaign nothing" in words_of(response)
    assert "No structure is in the campaign" in words_of(client.get("/dft/structures?campaign=nothing"))


def test_an_empty_launchpad_says_what_to_type(local_launchpad):
    from browser_fixtures import fresh_launchpad

    with fresh_launchpad(local_launchpad) as launchpad:
        empty = client_of(launchpad)
        for address in ("/dft/", "/dft/structures"):
            response = empty.get(address)
            assert response.status_code == 200
            assert "dftfactory submit candidates.db" in words_of(response)
        # The first structures come by themselves; a campaign that does not exist would be asked for forever.
        assert empty.get("/dft/api/overview").json["live"] is True
        assert empty.get("/dft/api/overview?campaign=nowhere").json["live"] is False
        assert empty.get("/dft/structures/1").status_code == 404


# ---- the table


def test_every_structure_is_in_the_table_with_its_state(client, fw_ids, planted):
    launchpad, _ = planted
    response = client.get("/dft/structures?sort=calculation_id")
    assert sorted(shown_ids(response)) == sorted(fw_ids.values())
    rows = re.findall(r"<tr>.*?</tr>", response.text, re.S)
    for fw_id in fw_ids.values():
        state = launchpad.fireworks.find_one({"fw_id": fw_id})["state"]
        (row,) = [row for row in rows if f'"/dft/structures/{fw_id}"' in row]
        assert f'<span class="badge state-{state}">{state}</span>' in row


@pytest.mark.parametrize(
    ("asked", "nicknames"),
    [
        ("state=PAUSED", ["paused"]),
        ("state=RUNNING&campaign=silicon", ["running"]),
        ("level=2&quality=exact", ["level 2"]),
        ("quality=softened", ["softened"]),
        ("q=several-starts", ["several starts"]),
        ("q=SEVERAL", ["several starts"]),
        ("q=pseudopotential", ["PSEUDOPOTENTIAL"]),
        ("q=Cannot+allocate", ["OUT_OF_MEMORY"]),
        ("formula=fe2&state=COMPLETED&q=level", ["level 3"]),
        ("q=nothing+like+it", []),
    ],
)
def test_the_table_is_filtered_by_what_the_url_says(client, fw_ids, asked, nicknames):
    found = shown_ids(client.get(f"/dft/structures?{asked}"))
    assert sorted(found) == sorted(fw_ids[name] for name in nicknames)


def test_the_table_finds_a_structure_by_its_fingerprint_and_number(client, fw_ids, planted):
    launchpad, _ = planted
    fingerprint = launchpad.fireworks.find_one({"fw_id": fw_ids["level 3"]})["spec"]["fingerprint"]
    assert shown_ids(client.get(f"/dft/structures?q={fingerprint[:12]}")) == [fw_ids["level 3"]]
    assert fw_ids["level 3"] in shown_ids(client.get(f"/dft/structures?q={fw_ids['level 3']}"))


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts_both_ways_with_the_unknown_last(client, column):
    answers = {}
    for order in ("asc", "desc"):
        rows = client.get(f"/dft/api/structures?sort={column}&order={order}").json["structures"]
        key = {"core_hours": "core_seconds"}.get(column, column)
        values = [row[key] for row in rows]
        known = [value for value in values if value is not None]
        assert values[: len(known)] == known
        answers[order] = known
    if column != "state":  # sorted by the life of a Firework, not by the alphabet
        fold = [str.lower if column == "calculation_id" else lambda value: value][0]
        assert answers["asc"] == sorted(answers["asc"], key=fold)
        assert answers["desc"] == sorted(answers["desc"], key=fold, reverse=True)


def test_the_head_of_the_sorted_column_turns_it_round(client):
    text = client.get("/dft/structures?sort=energy&order=asc&state=COMPLETED").text
    assert 'aria-sort="ascending"' in text
    assert 'href="/dft/structures?state=COMPLETED&amp;sort=energy"' in text  # the other way is the default
    assert 'href="/dft/structures?state=COMPLETED&amp;sort=max_force&amp;order=asc"' in text


@pytest.mark.parametrize(
    "nonsense",
    [
        "page=-1",
        "page=0",
        "page=99999999999999999999",
        "page=" + "9" * 5000,
        "page=zwei",
        "level=high",
        "level=1e9",
        "sort=password&order=sideways",
        "sort=__class__",
        "q=%00%ff%fe",
        "q=" + "x" * 5000,
        "q=(((",
        "state[$ne]=READY",
        'state={"$gt":""}',
        "campaign=%3Cscript%3Ealert(1)%3C/script%3E",
        "state=%3Cscript%3Ealert(1)%3C/script%3E",
        "q=%3Cscript%3Ealert(1)%3C/script%3E",
        'formula="><script>alert(1)</script>',
    ],
)
@pytest.mark.parametrize("address", ["/dft/", "/dft/structures", "/dft/api/overview", "/dft/api/structures"])
def test_nonsense_in_the_url_is_no_error_and_comes_back_as_text(client, address, nonsense):
    response = client.get(f"{address}?{nonsense}")
    assert response.status_code == 200
    if not address.startswith("/dft/api"):
        assert "<script>alert" not in response.text


def many(number):
    now = datetime(2026, 11, 23, tzinfo=timezone.utc)
    return [
        Record(
            fw_id=n,
            calculation_id=f"c{n}",
            formula="Si2",
            fingerprint=f"{n:064x}",
            campaigns=(),
            state="COMPLETED",
            ended=now + timedelta(seconds=n),
        )
        for n in range(1, number + 1)
    ]


def test_pages_of_the_table_hold_all_rows_once():
    records = Query().select(many(2 * ROWS + 1))
    shown = [record.fw_id for number in (1, 2, 3) for record in page_of(records, number).rows]
    assert shown == list(range(2 * ROWS + 1, 0, -1))  # the last that ended first
    assert page_of(records, 99).number == 3
    assert page_of([], 5).number == 1
    assert page_of(records, 2).first_row == ROWS + 1


def test_the_url_of_a_table_has_nothing_but_what_differs():
    query = Query.from_args({"state": "FIZZLED", "page": "2", "sort": "energy", "order": "asc", "q": " "})
    assert query.to_args() == {"state": "FIZZLED", "page": 2, "sort": "energy", "order": "asc"}
    assert Query.from_args({name: str(value) for name, value in query.to_args().items()}) == query
    assert Query().to_args() == {}
    assert query.sorted_by("energy")["state"] == "FIZZLED"
    assert "page" not in query.sorted_by("energy")


def test_the_filter_offers_what_there_is():
    records = many(3)
    records[0] = replace(records[0], state="FIZZLED", failure="HANG", level=3)
    choices = choices_of(records)
    assert choices.states == {"COMPLETED": 2, "FIZZLED": 1}
    assert (choices.failures, choices.levels, choices.formulas) == ({"HANG": 1}, {3: 1}, ["Si2"])


# ---- one structure


def test_every_structure_has_a_page(client, fw_ids):
    for nickname, fw_id in fw_ids.items():
        response = client.get(f"/dft/structures/{fw_id}")
        assert response.status_code == 200, nickname
        answer = client.get(f"/dft/api/structures/{fw_id}")
        assert answer.status_code == 200, nickname
        assert set(answer.json["figures"]) == {"structure", "scf", "ladder"}, nickname


def test_a_label_is_shown_with_its_numbers_and_units(client, fw_ids):
    story = client.get(f"/dft/api/structures/{fw_ids['level 3']}").json["story"]
    said = words_of(client.get(f"/dft/structures/{fw_ids['level 3']}"))
    record = story["record"]
    assert f"{record['energy']:,.6f} eV" in said
    assert f"{record['energy'] / 2:,.6f} eV" in said  # two atoms of iron
    assert f"{record['max_force']:.4f} eV/Å" in said
    assert "4.410 μB" in said
    assert "GPa" in said
    assert "3 (exact)" in said


def test_the_ladder_is_told_attempt_by_attempt(client, fw_ids):
    fw_id = fw_ids["level 1"]
    story = client.get(f"/dft/api/structures/{fw_id}").json["story"]
    said = words_of(client.get(f"/dft/structures/{fw_id}"))
    assert f"The ladder it climbed {len(story['attempts'])} attempts" in said
    assert "80 iterations, best accuracy 1.0e-02 Ry" in said
    assert "mixing_beta 0.7 → 0.3" in said
    assert "SCF_NOT_CONVERGED" in said
    assert "CONVERGED" in said


def test_a_failure_is_shown_with_reason_and_explanation(client, fw_ids):
    said = words_of(client.get(f"/dft/structures/{fw_ids['REJECTED']}"))
    assert "largest force 81.2 eV/Å is above max_force = 40 eV/Å" in said
    assert f"dftfactory retry {fw_ids['REJECTED']}" in said


def test_doubts_reuse_and_links_are_said(client, fw_ids):
    doubt = client.get(f"/dft/structures/{fw_ids['state warning']}")
    assert "state_warning:" in words_of(doubt)
    assert "nothing was computed" in words_of(client.get(f"/dft/structures/{fw_ids['reused']}"))
    assert f'href="/dft/structures/{fw_ids["level 1"]}"' in client.get(f"/dft/structures/{fw_ids['linked']}").text


def test_a_structure_leads_to_its_fireworks_pages(client, fw_ids):
    text = client.get(f"/dft/structures/{fw_ids['level 0']}").text
    assert f'href="/fw/{fw_ids["level 0"]}"' in text
    assert f'href="/wf/{fw_ids["level 0"]}"' in text


def test_what_is_over_is_not_asked_for_again(client, fw_ids):
    assert client.get(f"/dft/api/structures/{fw_ids['level 0']}").json["live"] is False
    assert client.get(f"/dft/api/structures/{fw_ids['running']}").json["live"] is True


@pytest.mark.parametrize("address", ["structures", "api/structures"])
def test_unknown_structures_are_not_found(client, address):
    for fw_id in ("99999999", "0", "99999999999999999999999999", "-1", "abc", "1.5"):
        assert client.get(f"/dft/{address}/{fw_id}").status_code == 404
    assert client.get("/dft/structures/99999999/files/pw.out").status_code == 404


def test_a_structure_that_cannot_be_read_has_a_page_without_a_picture(client, fw_ids, monkeypatch):
    story = pages.tell_story

    def damaged(launchpad, fw_id):
        return replace(story(launchpad, fw_id), structure={"symbols": ["Xx"]})

    monkeypatch.setattr(pages, "tell_story", damaged)
    response = client.get(f"/dft/structures/{fw_ids['level 0']}")
    assert response.status_code == 200
    assert "the structure of the specification is damaged" in words_of(response)


@pytest.mark.parametrize(("pbc", "is_shown"), [((True, True, True), True), ((True, True, False), False)])
def test_a_pressure_is_shown_only_where_it_means_something(planted, fw_ids, pbc, is_shown):
    """That of a slab depends on the size of its vacuum; the report leaves it out, too."""
    story = tell_story(planted[0], fw_ids["level 3"])
    result = story.result.with_record(pbc=pbc)
    assert ("pressure" in facts_of_structure(replace(story, result=result))["facts"]) == is_shown


def test_a_story_of_which_nothing_is_known_has_facts():
    facts = facts_of_structure(Story(many(1)[0]))
    assert facts["view"] is None
    assert "damaged" in facts["structure_words"]
    assert (facts["has_forces"], facts["atoms"], facts["files"]) == (False, [], [])


# ---- find


def test_find_leads_to_a_structure_by_each_of_its_names(client, fw_ids, planted):
    launchpad, _ = planted
    fw_id = fw_ids["several starts"]
    fingerprint = launchpad.fireworks.find_one({"fw_id": fw_id})["spec"]["fingerprint"]
    for who in ("several-starts", str(fw_id), fingerprint, fingerprint[:10], f"  {fw_id} "):
        response = client.get("/dft/find", query_string={"q": who})
        assert response.status_code == 302
        assert response.location == f"/dft/structures/{fw_id}"


def test_find_shows_the_table_for_a_part_of_a_name_and_for_nothing(client):
    assert client.get("/dft/find?q=several").location == "/dft/structures?q=several"
    assert client.get("/dft/find?q=").location == "/dft/structures"
    assert client.get("/dft/find?q=%3Cscript%3Enothing").status_code == 404


# ---- names with markup


def test_markup_in_names_is_text_everywhere(client, fw_ids):
    fw_id = fw_ids["markup"]
    addresses = ("/dft/", "/dft/structures", "/dft/structures?q=markup", f"/dft/structures/{fw_id}")
    for address in addresses:
        text = client.get(address).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text
    for address in ("/dft/api/overview", "/dft/api/structures", f"/dft/api/structures/{fw_id}"):
        response = client.get(address)
        assert response.mimetype == "application/json"
        assert not any("<script>alert" in part for part in response.json["parts"].values())
    # Nothing that would make a browser run what is in a page: no script but files of ours and data, no handlers.
    for address in addresses:
        text = client.get(address).text
        for tag in re.findall(r"<script[^>]*>", text):
            assert ' src="/dft/' in tag or 'type="application/json"' in tag
        assert not re.search(r"<[^>]*\s(?:on\w+|style)\s*=\s*\"", text.replace(html.escape(MARKUP), ""))


def test_the_title_of_a_structure_with_markup_is_its_name(client, fw_ids):
    title = re.search(r"<title>(.*?)</title>", client.get(f"/dft/structures/{fw_ids['markup']}").text, re.S)[1]
    # What would turn the words after it round is seen instead.
    name = MARKUP.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd")
    assert html.unescape(title) == f"markup {name} · dftfactory"
    assert "\u202e" not in client.get("/dft/structures").text


# ---- files


def test_files_of_a_run_are_text(client, fw_ids):
    fw_id = fw_ids["running"]
    text = client.get(f"/dft/structures/{fw_id}").text
    assert f'href="/dft/structures/{fw_id}/files/pw.out"' in text
    for name in ("pw.out", "attempt_0/pw.in", "history.json"):
        response = client.get(f"/dft/structures/{fw_id}/files/{name}")
        assert response.status_code == 200
        assert response.mimetype == "text/plain"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Program PWSCF" in client.get(f"/dft/structures/{fw_id}/files/pw.out").text


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "attempt_0/../../secret",
        "attempt_0/../pw.out",
        "pw.out%00",
        ".",
        "attempt_0",
        "nothing.txt",
    ],
)
def test_no_other_file_is_given(client, fw_ids, name):
    assert client.get(f"/dft/structures/{fw_ids['running']}/files/{name}").status_code in (404, 308)


def test_files_out_of_sight_say_so(client, fw_ids):
    response = client.get(f"/dft/structures/{fw_ids['level 0']}/files/pw.out")
    assert response.status_code == 404
    assert "out of sight" in response.text
    assert "out of sight" in words_of(client.get(f"/dft/structures/{fw_ids['level 0']}"))


def test_links_and_pipes_in_a_run_folder_lead_nowhere(tmp_path):
    """Whoever computes writes into the folder; the server may read more than the one who asks it."""
    import os

    folder, outside = tmp_path / "run", tmp_path / "secret"
    (folder / "attempt_0").mkdir(parents=True)
    outside.write_text("secret")
    (folder / "pw.in").write_text("input")
    (folder / "pw.out").symlink_to(outside)
    (folder / "attempt_0" / "pw.out").symlink_to(folder / "pw.in")
    (folder / "attempt_1").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pw.err")
    files = [folder / name for name in ("pw.in", "pw.out", "attempt_0/pw.out", "attempt_1/secret", "pw.err", "gone")]
    story = Story(many(1)[0], folder=folder, files=[*files, outside, folder / ".." / "secret"])
    # A link from one file of the run to another one is harmless.
    assert names_of_files(story) == ["pw.in", "attempt_0/pw.out"]
    assert file_of(story, "pw.out") is None
    assert file_of(story, "../secret") is None
    assert file_of(replace(story, folder=None), "pw.in") is None


def test_a_run_folder_that_is_reached_through_a_link_is_seen(tmp_path):
    """A home directory often is."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "pw.in").write_text("input")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    story = Story(many(1)[0], folder=tmp_path / "link", files=[tmp_path / "link" / "pw.in"])
    assert names_of_files(story) == ["pw.in"]


# ---- the rest


def test_plotly_comes_from_this_machine_packed_where_the_browser_can_unpack(client):
    packed = client.get("/dft/plotly.min.js", headers={"Accept-Encoding": "gzip"})
    plain = client.get("/dft/plotly.min.js")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert plain.mimetype == "text/javascript"
    assert len(packed.data) < len(plain.data) / 2


def test_what_is_shown_is_not_kept_by_a_browser(client):
    assert client.get("/dft/").headers["Cache-Control"] == "no-store"
    assert client.get("/dft/api/overview").headers["Cache-Control"] == "no-store"


def test_numbers_are_written_for_people():
    assert words.number(12345.678, 1) == "12,345.7"
    assert words.number(None) == words.number(float("nan")) == "–"
    assert words.hours(3600 * 1234.5) == "1,234"
    assert words.hours(36) == "0.01"
    assert [words.duration(seconds) for seconds in (4.25, 59, 61, 3 * 3600 + 60, 90000)] == [
        "4.2 s",
        "59 s",
        "1 min 1 s",
        "3 h 1 min",
        "1 d 1 h",
    ]
    assert [words.percent(part, 1000) for part in (0, 1, 500, 999, 1000)] == ["0 %", "< 1 %", "50 %", "99 %", "100 %"]
    # From 1 Ry to 1e-8 Ry are eight decades.
    assert words.scf_progress(1e-2, 1e-8) == 25
    assert words.scf_progress(50.0, 1e-8) == 0
    assert words.scf_progress(1e-12, 1e-8) == 100
    assert words.scf_progress(None, 1e-8) is words.scf_progress(1e-3, None) is None
    assert words.value([1.0, None, True]) == "1, default, true"
    assert words.css_class('x" onload="y') == "xonloady"
