"""FireWorks' web GUI as we serve it: every address answers, nothing is open without the login, nothing is written."""

from __future__ import annotations

import base64
import json
import random
import re
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from browser_fixtures import Site, fresh_launchpad
from pymongo.monitoring import CommandListener
from web_logins import PASSWORD, RIGHT, WRONG

from dftfactory.errors import ConfigError
from dftfactory.launchpad import read_launchpad_file
from dftfactory.local_launchpad import LocalLaunchPad
from dftfactory.webgui import login as login_module
from dftfactory.webgui.app import make_app
from dftfactory.webgui.safety import is_loopback
from dftfactory.webgui.serve import describe
from dftfactory.webgui.stock import mend_template

# What somebody types into the bar of addresses.
ODD = [
    *("0", "-1", "1", "1.5", "99999999", str(2**63), "9" * 400, "nan", "abc", "null", "%00", "%ff", "..%2f..", "a%2fb"),
    *(
        "$where",
        "%24where",
        "_id",
        "spec",
        "created_on",
        "updated_on",
        "ASCENDING",
        "DESCENDING",
        "up",
        "hours",
        "days",
    ),
    *("months", "years", "weeks", "total", "COMPLETED", "completed", "NONE", "fireworks", "workflows", "launches"),
    *("fingerprint", "calculation_id", "a.b", ".", "%3Cscript%3E", "{}", "é", "1_0"),
]
ODD_ARGUMENTS = [
    *(
        "",
        "page=1",
        "page=2",
        "page=0",
        "page=-1",
        "page=abc",
        "page=1e3",
        f"page={'9' * 30}",
        "page=",
        "page=1&page=x",
    ),
    *("page_parameter=record_name", "per_page=0", "per_page=x", "_external=1", "_scheme=javascript", "_anchor=x"),
    *(
        "fw_query=",
        "fw_query=%7B%7D",
        "fw_query=[1]",
        "wf_query={%22$where%22:%221%22}",
        "fw_query={%22a%22:{%22$foo%22:1}}",
    ),
    "fw_query={%22fw_id%22:1e400}",
]


@pytest.fixture(scope="module")
def app(site: Site) -> Any:
    return make_app(site.launchpad)


@pytest.fixture
def client(app: Any) -> Any:
    return app.test_client()


@pytest.fixture
def locked(site: Site) -> Any:
    return make_app(site.launchpad, password=PASSWORD).test_client()


def home(client: Any, **queries: Any) -> Any:
    """The home page with queries in its two fields."""
    return client.get("/", query_string={key: json.dumps(value) for key, value in queries.items()})


def counts(page: Any) -> dict[str, tuple[int, int]]:
    """State → numbers of Fireworks and workflows, as the home page shows them."""
    found = re.findall(r'href="/fw/(\w+)">([\d,]+)</a>.*?href="/wf/\w+">([\d,]+)</a>', page.text, re.DOTALL)
    return {state: (int(fws), int(wfs)) for state, fws, wfs in found}


# Every address


@pytest.mark.mongodb
def test_home_counts_every_state(site: Site, client: Any) -> None:
    shown = counts(client.get("/"))
    for state, (fireworks, workflows) in shown.items():
        assert fireworks == site.launchpad.fireworks.count_documents({"state": state}), state
        assert workflows == site.launchpad.workflows.count_documents({"state": state}), state
    assert sum(fireworks for fireworks, _ in shown.values()) == len(site.planted)


@pytest.mark.mongodb
@pytest.mark.parametrize(
    "address",
    [
        *("/fw/99999", "/fw/99999/details", "/wf/99999", "/wf/99999/json", f"/fw/{2**63}", f"/wf/{2**70}", "/fw/0"),
        *("/fw/SOLD/", "/wf/SOLD/", "/fw/total/spec/ASCENDING/", "/fw/total/_id/UP/", "/wf/total/name/ASCENDING/"),
        *("/fw/?page=0", "/fw/?page=-3", "/wf/?page=two", "/fw/COMPLETED/?page=2", "/fw/?page=99999999999999999999"),
        *("/report/weeks/", "/report/days/none/", "/report/days/0/", "/report/days/-1/", "/report/years/9999/"),
        *("/reports/files/days/7/fig.png", "/reports/fireworks/days/x/fig.png", "/reports/fireworks/weeks/1/fig.png"),
        *("/wf/metadata/$where/1/", "/wf/metadata/fingerprint/none/", "/wf/metadata/x/99999999999999999999/"),
        *("/nowhere", "/static/../app.py", "/static/nothing.js"),
    ],
)
def test_what_is_not_there_is_said_in_the_look_of_the_site(client: Any, address: str) -> None:
    page = client.get(address)
    assert page.status_code == 404
    assert 'href="/dft/"' in page.text
    assert "fw-logo.png" in page.text


@pytest.mark.mongodb
def test_no_address_makes_a_page_fail(app: Any, client: Any, site: Site) -> None:
    """All routes with all kinds of values, a fixed choice of the many."""
    choose = random.Random(6).choice  # noqa: S311  (no secret)
    values = [*ODD, *(str(fw_id) for fw_id in site.planted.values())]
    routes = [rule for rule in app.url_map.iter_rules() if not rule.endpoint.startswith("dft.")]
    assert {"simple", "workflow_json", "wf_metadata_find", "static"} <= {rule.endpoint for rule in routes}
    for rule in routes:
        for _ in range(25 if rule.arguments else 8):
            address = re.sub(r"<[^>]*>", lambda _: choose(values), rule.rule)
            answer = client.get(f"{address}?{choose(ODD_ARGUMENTS)}")
            assert answer.status_code in (200, 302, 308, 404), (address, answer.status_code, answer.text[-600:])


@pytest.mark.mongodb
def test_pages_of_lists_are_in_order(local_launchpad: LocalLaunchPad) -> None:
    """From memory, and the same as the database sorts."""
    with fresh_launchpad(local_launchpad) as launchpad:
        launchpad.fireworks.insert_many(
            {
                "fw_id": n,
                "name": f"structure {n}",
                "state": "READY" if n % 3 else "FIZZLED",
                "created_on": f"2026-01-01T00:{n:02}:00",
                "updated_on": f"2026-02-01T00:{(n * 7) % 50:02}:00",
            }
            for n in range(1, 51)
        )
        pages = make_app(launchpad).test_client()

        def shown(address: str) -> list[int]:
            return [int(fw_id) for fw_id in re.findall(r'<center><a href="/fw/(\d+)">', pages.get(address).text)]

        assert shown("/fw/") == list(range(50, 30, -1))
        assert shown("/fw/?page=3") == list(range(10, 0, -1))
        assert shown("/fw/FIZZLED/created_on/ASCENDING/") == list(range(3, 50, 3))
        by_update = launchpad.fireworks.find({"state": "READY"}, {"fw_id": 1}).sort([("updated_on", -1)]).limit(20)
        assert shown("/fw/READY/updated_on/DESCENDING/") == [document["fw_id"] for document in by_update]


@pytest.mark.mongodb
def test_workflow_that_was_cut_short_is_said_to_be(local_launchpad: LocalLaunchPad) -> None:
    """A process was killed between the two inserts of FireWorks."""
    with fresh_launchpad(local_launchpad) as launchpad:
        launchpad.workflows.insert_one(
            {"nodes": [1], "links": {"1": []}, "parent_links": {}, "name": "half", "state": "READY", "fw_states": {}}
        )
        pages = make_app(launchpad).test_client()
        assert "not complete" in pages.get("/wf/1").text
        assert pages.get("/wf/1/json").status_code == 404
        assert pages.get("/").status_code == 200


@pytest.mark.mongodb
def test_a_fault_of_ours_is_admitted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(site.launchpad)

    def broken() -> str:
        raise KeyError("<b>secret</b>")

    monkeypatch.setitem(app.view_functions, "dashboard", broken)
    page = app.test_client().get("/dashboard/")
    assert page.status_code == 500
    assert "KeyError" in page.text
    assert "secret" not in page.text


@pytest.mark.mongodb
def test_fireworks_module_stays_as_it_is(site: Site) -> None:
    from fireworks.flask_site.app import app as stock

    ours = [make_app(site.launchpad) for _ in range(2)]
    assert len({id(stock), *map(id, ours)}) == 3
    assert not hasattr(stock, "lp")
    assert not stock.blueprints
    assert stock.before_request_funcs == {}


@pytest.mark.mongodb
def test_nothing_is_written(local_launchpad: LocalLaunchPad, site: Site) -> None:
    """Neither by pages nor by queries; seen by what the driver sends."""
    from fireworks import LaunchPad

    sent: set[str] = set()

    class Listener(CommandListener):  # type: ignore[misc]  # pymongo is untyped here
        def started(self, event: Any) -> None:
            sent.add(event.command_name)

        def succeeded(self, event: Any) -> None:
            pass

        def failed(self, event: Any) -> None:
            pass

    settings = read_launchpad_file(local_launchpad.launchpad_file) | {"name": site.launchpad.name}
    launchpad = LaunchPad.from_dict(settings | {"mongoclient_kwargs": {"event_listeners": [Listener()]}})
    pages = make_app(launchpad).test_client()
    for address in ("/", "/fw/", "/wf/", "/fw/1", "/wf/1", "/wf/1/json", "/dashboard/", "/report/", "/dft/"):
        assert pages.get(address).status_code == 200, address
    home(pages, fw_query={"state": "FIZZLED"}, wf_query={"name": {"$regex": "^Si"}})
    launchpad.connection.close()
    login = {"saslStart", "saslContinue", "endSessions"}
    assert sent - login <= {"find", "aggregate", "count", "ping", "getMore"}


@pytest.mark.mongodb
@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options", "trace"])
def test_pages_are_only_looked_at(client: Any, method: str) -> None:
    for address in ("/", "/dft/", "/fw/1", "/static/css/styles.css"):
        assert getattr(client, method)(address).status_code == 405
    assert client.head("/").status_code == 200


# What the pages are made of


@pytest.mark.mongodb
def test_pages_name_no_other_machine(client: Any) -> None:
    """Their links do, to FireWorks' home page; what a browser loads by itself does not."""
    for address in ("/", "/fw/", "/wf/", "/fw/1", "/wf/1", "/dashboard/", "/report/"):
        text = client.get(address).text
        loaded = re.findall(r'(?:src|<link[^>]*href)="([^"]*)"', text)
        assert [url for url in loaded if not url.startswith("/") or url.startswith("//")] == []
        for url in loaded:
            assert client.get(url).status_code == 200, url
            if url.endswith(".css"):
                assert not re.search(r"(@import|url\()[^;)]*//", client.get(url).text), url
        assert "onsubmit" not in text
        assert len(re.findall(r"<script(?! nonce=| id=)", text)) == 0


@pytest.mark.mongodb
def test_mended_file_is_asked_for_again_and_not_sent_again(client: Any) -> None:
    first = client.get("/static/css/flat-ui.css")
    assert first.headers["Cache-Control"] == "no-cache, private"
    again = client.get("/static/css/flat-ui.css", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304


def test_scripts_of_strangers_get_no_number() -> None:
    """Templates are mended before values are in them: no value can be taken for a part of a template."""
    mended = mend_template('<script type="text/javascript">var json = {{ fw | tojson }};</script>')
    assert mended == '<script nonce="{{ csp_nonce() }}" type="text/javascript">var json = {{ fw | tojson }};</script>'


def test_jquery_keeps_its_licence() -> None:
    text = (Path(login_module.__file__).parent / "static" / "jquery.min.js").read_text()
    assert text.startswith("/*! jQuery v3.6.1 | (c) OpenJS Foundation and other contributors | jquery.org/license */")


@pytest.mark.mongodb
def test_charts_are_drawn_again_when_numbers_change(local_launchpad: LocalLaunchPad) -> None:
    with fresh_launchpad(local_launchpad) as launchpad:
        app = make_app(launchpad)
        app.lp.fireworks.snapshot._looked = float("-inf")
        charts = app.test_client()
        address = "/reports/fireworks/days/7/fig.png"
        before = charts.get(address).data
        assert before.startswith(b"\x89PNG")
        now = datetime.now(timezone.utc).isoformat()
        launchpad.fireworks.insert_one({"fw_id": 1, "state": "READY", "created_on": now, "updated_on": now})
        app.lp.fireworks.snapshot._looked = float("-inf")
        after = charts.get(address).data
        assert after != before
        assert charts.get(address).data == after


@pytest.mark.mongodb
@pytest.mark.parametrize("collection", ["fireworks", "workflows"])
@pytest.mark.parametrize("interval", ["hours", "years"])
def test_report_from_memory_is_that_of_fireworks(site: Site, app: Any, collection: str, interval: str) -> None:
    """FireWorks looks for dates in text, and leaves out Fireworks that it dated otherwise: defused and paused ones."""
    from fireworks.features.fw_report import FWReport

    said = FWReport(site.launchpad).get_stats(collection, interval, 10)
    ours = FWReport(app.lp).get_stats(collection, interval, 10)
    otherwise = site.launchpad.db[collection].count_documents({"updated_on": {"$type": "date"}})
    left_out = otherwise if collection == "fireworks" else 0
    assert sum(each["count"] for each in ours) == sum(each["count"] for each in said) + left_out == len(site.planted)
    if not left_out:
        assert ours == said


# Memory


@pytest.mark.mongodb
@pytest.mark.parametrize("collection", ["fireworks", "workflows"])
@pytest.mark.parametrize("since", ["2026-01-01T00:00:00", datetime(2026, 1, 1)])
def test_changes_are_found_by_an_index(site: Site, collection: str, since: Any) -> None:
    """The only query that is sent again and again."""
    command = {"find": collection, "filter": {"updated_on": {"$gte": since}}}
    answer = site.launchpad.db.command("explain", command, verbosity="queryPlanner")
    assert "IXSCAN" in json.dumps(answer["queryPlanner"]["winningPlan"], default=str)


@pytest.mark.mongodb
def test_large_launchpad_is_asked_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MongoDB counts in its indexes."""
    in_memory = make_app(site.launchpad).test_client()
    monkeypatch.setattr("dftfactory.webgui.snapshot.MOST", 5)
    asked = make_app(site.launchpad).test_client()
    assert counts(asked.get("/")) == counts(in_memory.get("/")) != {}
    for address in ("/fw/", "/fw/COMPLETED/updated_on/ASCENDING/", "/wf/FIZZLED/"):
        ids = [re.findall(r"<center><a[^>]*>(\d+)", pages.get(address).text) for pages in (asked, in_memory)]
        assert sorted(ids[0]) == sorted(ids[1]) != []


# Queries


@pytest.mark.mongodb
def test_refused_query_is_told_on_the_page_and_not_sent(client: Any) -> None:
    page = home(client, fw_query={"$where": "<b>sleep(1e9)</b>"})
    assert page.status_code == 200
    assert "was not sent to the database: $where is not one of the operators" in page.text
    assert "<b>" not in page.text
    assert sum(number for number, _ in counts(page).values()) > 20


@pytest.mark.mongodb
def test_query_is_a_filter_of_the_other_pages_too(site: Site, client: Any) -> None:
    """As FireWorks means it: it is in the cookie until the home page is opened without."""
    shown = counts(home(client, fw_query={"fw_id": site.planted["level 1"]}))
    assert shown["COMPLETED"] == (1, 1)
    assert sum(number for number, _ in shown.values()) == 1
    assert "1 total Firework" in client.get("/fw/").text
    assert client.get("/fw/?page=2").status_code == 404
    assert counts(client.get("/"))["COMPLETED"][0] > 1
    shown = counts(home(client, wf_query={"state": "FIZZLED"}))
    assert shown["FIZZLED"][0] > 0 == shown["COMPLETED"][0]


@pytest.mark.mongodb
def test_filter_of_a_forged_cookie_is_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """FWAPP_SECRET_KEY is somebody's choice, and may be known."""
    monkeypatch.setenv("FWAPP_SECRET_KEY", "known")
    forged = make_app(site.launchpad).test_client()
    with forged.session_transaction() as session:
        session["fw_filt"] = {"$where": "while (true) {}"}
        session["wf_filt"] = "text"
    assert f"{len(site.planted)} total Fireworks" in forged.get("/fw/").text
    with forged.session_transaction() as session:
        assert "fw_filt" not in session


@pytest.mark.mongodb
def test_slow_query_ends_and_is_dropped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each page after it would be as slow."""
    from pymongo.errors import NetworkTimeout

    app = make_app(site.launchpad)
    pages = app.test_client()
    home(pages, fw_query={"name": "x"})

    def slow(*_: Any, **__: Any) -> Any:
        raise NetworkTimeout("timed out")

    with monkeypatch.context() as patch:
        patch.setattr(app.lp.fireworks, "count", slow)
        answer = pages.get("/fw/")
        assert answer.status_code == 503
        assert "takes too long" in answer.text
    assert f"{len(site.planted)} total Fireworks" in pages.get("/fw/").text


@pytest.mark.mongodb
def test_each_request_has_a_limit_on_the_database(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymongo import _csot

    app = make_app(site.launchpad)
    seen: list[float | None] = []
    monkeypatch.setitem(app.view_functions, "dashboard", lambda: str(seen.append(_csot.get_timeout())))
    app.test_client().get("/dashboard/")
    assert seen == [20.0]


# Login


@pytest.mark.mongodb
def test_no_address_is_open_without_the_password(locked: Any, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, files, addresses that are none, and other methods too."""
    monkeypatch.setattr(login_module, "_WAITS", (0.0,))
    rules = [re.sub(r"<[^>]*>", "1", rule.rule) for rule in app.url_map.iter_rules()]
    assert "/reports/1/1/1/fig.png" in rules
    more = [
        "/reports/fireworks/days/7/fig.png",
        "/static/css/styles.css",
        "/nowhere",
        "//",
        "/fw",
        "/dft",
        "/dft/static/dft.css",
    ]
    for address in [*rules, *more]:
        for headers in ({}, WRONG, {"Authorization": "Bearer x"}, {"Authorization": "Basic !!"}):
            answer = locked.get(address, headers=headers)
            assert answer.status_code == 401, address
            assert answer.headers["WWW-Authenticate"].startswith("Basic ")
            assert len(answer.data) < 100
        login_module._WAITS, waits = (0.0,), login_module._WAITS
        try:
            assert locked.post(address).status_code in (401, 405)
        finally:
            login_module._WAITS = waits


@pytest.mark.mongodb
def test_right_login_opens_every_page(locked: Any, site: Site) -> None:
    for address in ("/", "/fw/", f"/wf/{site.planted['ready']}", "/reports/fireworks/days/7/fig.png", "/dft/"):
        assert locked.get(address, headers=RIGHT).status_code == 200, address


@pytest.mark.mongodb
def test_login_of_fireworks_does_not_open_ours(site: Site) -> None:
    app = make_app(site.launchpad, username="ada", password=PASSWORD)
    app.config.update(WEBGUI_USERNAME="other", WEBGUI_PASSWORD="other")  # noqa: S106
    other = {"Authorization": "Basic " + base64.b64encode(b"other:other").decode()}
    assert app.test_client().get("/", headers=other).status_code == 401
    assert app.test_client().get("/", headers=RIGHT).status_code == 401  # the default user name is not hers


@pytest.mark.mongodb
@pytest.mark.parametrize("name", ["", "a:b", "a\nb"])
def test_user_name_that_no_browser_can_send_is_refused(site: Site, name: str) -> None:
    with pytest.raises(ConfigError, match="user name"):
        make_app(site.launchpad, username=name, password=PASSWORD)


# A machine with others on it


@pytest.mark.mongodb
@pytest.mark.parametrize(
    "address", ["/", "/fw/1", "/nowhere", "/static/css/styles.css", "/reports/fireworks/days/7/fig.png"]
)
def test_every_answer_has_the_headers(client: Any, locked: Any, address: str) -> None:
    for pages in (client, locked):
        headers = pages.get(address).headers
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert re.fullmatch(r"'self' 'nonce-[\w-]{16,}'", policy["script-src"])
        assert policy["frame-ancestors"] == "'none'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "public" not in headers["Cache-Control"]
        if not address.startswith("/static"):
            assert headers["Cache-Control"] == "no-store"
    assert (
        client.get(address).headers["Content-Security-Policy"] != client.get(address).headers["Content-Security-Policy"]
    )


@pytest.mark.mongodb
def test_cookies_stay_with_this_site(locked: Any) -> None:
    [cookie] = locked.get("/", headers=RIGHT).headers.getlist("Set-Cookie")
    assert cookie.startswith("dftfactory_webgui=")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie


@pytest.mark.mongodb
def test_name_of_another_machine_is_not_answered_to(site: Site) -> None:
    """Else a page of evil.example, whose name is changed to 127.0.0.1, reads ours."""
    pages = make_app(site.launchpad).test_client()
    for host in (
        "evil.example",
        "evil.example:5000",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[::2]:5000",
        "localhost.x",
    ):
        assert pages.get("/", headers={"Host": host}).status_code == 421, host
    for host in ("localhost", "127.0.0.1:5000", "[::1]:5000", "LOCALHOST:1234"):
        assert pages.get("/", headers={"Host": host}).status_code == 200, host
    open_to_all = make_app(site.launchpad, host="0.0.0.0", password=PASSWORD).test_client()  # noqa: S104
    assert open_to_all.get("/", headers={"Host": "node7.cluster", **RIGHT}).status_code == 200


def test_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "node7")))  # noqa: S104


def test_user_is_told_who_can_read_the_pages() -> None:
    here = " ".join(describe("127.0.0.1", 5001, "ada", None))
    assert "every user of this machine can read the pages" in here
    assert "--password-file" in here
    assert re.search(r"ssh -N -L 5001:127\.0\.0\.1:5001 \S+@\S+", here)
    assert "every user" not in " ".join(describe("127.0.0.1", 5001, "ada", PASSWORD))
    away = " ".join(describe("0.0.0.0", 5001, "ada", PASSWORD))  # noqa: S104
    assert "unencrypted" in away
    assert "ssh -N -L" in away
    assert "everybody" in " ".join(describe("0.0.0.0", 5001, "ada", None))  # noqa: S104
    assert "found by trying" in " ".join(describe("127.0.0.1", 5001, "ada", "short"))
    assert PASSWORD not in here + away


@pytest.mark.mongodb
def test_report_since_a_date_counts_only_what_is_younger(local_launchpad: LocalLaunchPad) -> None:
    with fresh_launchpad(local_launchpad) as launchpad:
        now = datetime.now(timezone.utc)
        for fw_id, days in ((1, 1), (2, 100)):
            date = (now - timedelta(days=days)).isoformat()
            launchpad.fireworks.insert_one({"fw_id": fw_id, "state": "READY", "created_on": date, "updated_on": date})
        text = make_app(launchpad).test_client().get("/report/days/7/").text
        assert len(re.findall(r"total : 1", text)) == 1


@pytest.mark.mongodb
def test_guesses_take_nobodys_turn_and_no_time_of_the_database(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login that has waited long for others' guesses sees its page; who has logged in before does not wait at all."""
    from dftfactory.webgui import app as app_module

    monkeypatch.setattr(app_module, "AT_ONCE", 1)
    monkeypatch.setattr(app_module, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(login_module, "_WAITS", (0.0, 2.0))
    locked = make_app(site.launchpad, password=PASSWORD)
    known = locked.test_client()
    assert known.get("/fw/", headers=RIGHT).status_code == 200
    assert known.get("/fw/", headers=WRONG).status_code == 401
    codes: list[int] = []

    def log_in() -> None:
        codes.append(locked.test_client().get("/fw/", headers=RIGHT).status_code)

    login = threading.Thread(target=log_in)
    login.start()
    assert known.get("/fw/", headers=RIGHT).status_code == 200
    assert codes == []
    login.join()
    assert codes == [200]
