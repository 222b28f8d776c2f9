"""FireWorks' own pages in a real browser: they work without the internet, and no name of a stranger does anything."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from browser_fixtures import (
    Site,
    assert_only_local,
    console_errors,
    fresh_launchpad,
    requested_urls,
    screenshot,
    serving,
    wait_until,
)

from dftfactory.local_launchpad import LocalLaunchPad

pytestmark = [pytest.mark.browser, pytest.mark.mongodb]

# Each would call alert() where it is taken for markup, for a script or for the inside of an attribute.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "javascript:alert(4)",
    "{{7*7}}${alert(5)}",
    "'-alert(6)-'",
    "<a href=\"javascript:alert(7)\" onmouseover='alert(8)'>x</a>",
)
# Before the graph is there, `cy` is the element of that id.
DRAWN = "return window.cy.nodes && window.cy.nodes().length"


@pytest.fixture(scope="module")
def hostile(local_launchpad: LocalLaunchPad) -> Iterator[Site]:
    """A LaunchPad in which every text that `lpad add` takes is hostile: a workflow of all of them in a row."""
    from fireworks import Firework, ScriptTask, Workflow

    with fresh_launchpad(local_launchpad) as launchpad:
        fireworks = [
            Firework(
                ScriptTask.from_str(text), spec={f"k{n}": text, text.replace(".", "_"): n}, name=text, fw_id=-n - 1
            )
            for n, text in enumerate(HOSTILE)
        ]
        links = dict(pairwise(fireworks))
        workflow = Workflow(fireworks, links, name=HOSTILE[1], metadata={"note": HOSTILE[0], "x": HOSTILE[2]})
        launchpad.add_wf(workflow)
        with serving(launchpad) as url:
            yield Site(url, launchpad)


def alert_text(browser: Any) -> str | None:
    """What an alert says that somebody's text has opened; None where there is none."""
    from selenium.common.exceptions import NoAlertPresentException

    try:
        alert = browser.switch_to.alert
    except NoAlertPresentException:
        return None
    text = str(alert.text)
    alert.dismiss()
    return text


def test_firework_shows_its_tree(site: Site, browser: Any) -> None:
    """Blank without jQuery, which FireWorks loads from the internet."""
    browser.get(f"{site.url}/fw/{site.planted['level 1']}")
    wait_until(browser, lambda b: b.find_element("css selector", "#json .jsonview"))
    tree = browser.find_element("id", "json")
    assert "calculation_id" in tree.text
    assert "COMPLETED" in tree.text
    browser.find_element("id", "collapse-btn").click()
    assert "calculation_id" not in tree.text
    browser.find_element("id", "expand-btn").click()
    assert "calculation_id" in tree.text
    assert console_errors(browser) == []
    assert_only_local(browser)
    screenshot(browser, "stock_firework")


def test_workflow_draws_its_graph_and_tells_a_step(hostile: Site, browser: Any) -> None:
    """The step that is clicked on is told below the graph."""
    browser.get(f"{hostile.url}/wf/1")
    wait_until(browser, lambda b: b.execute_script(DRAWN))
    assert browser.execute_script("return [cy.nodes().length, cy.edges().length]") == [len(HOSTILE), len(HOSTILE) - 1]
    assert len(browser.find_elements("css selector", "#cy canvas")) > 0
    drawn = "return Array.from(document.querySelectorAll('#cy canvas')).some(c => c.getContext('2d')"
    drawn += ".getImageData(0, 0, c.width, c.height).data.some(value => value > 0))"
    wait_until(browser, lambda b: b.execute_script(drawn))
    places = browser.execute_script("return cy.nodes().map(node => node.position('y'))")
    assert len(set(places)) == len(HOSTILE)
    browser.execute_script("cy.nodes()[0].trigger('click')")
    table = wait_until(browser, lambda b: b.find_element("css selector", "#job-details-target table"))
    assert "READY" in table.text or "WAITING" in table.text
    assert console_errors(browser) == []
    assert_only_local(browser)
    screenshot(browser, "stock_workflow")


def test_no_text_of_a_stranger_is_run(hostile: Site, browser: Any) -> None:
    pages = ["/", "/fw/", "/wf/", "/wf/1", "/report/", *(f"/fw/{n}" for n in range(1, len(HOSTILE) + 1))]
    pages += ["/fw/<script>alert(1)<%2Fscript>/", '/?fw_query="><script>alert(1)</script>', "/wf/metadata/x/<b>/"]
    for page in pages:
        browser.get(hostile.url + page)
        wait_until(browser, lambda b: b.execute_script("return document.readyState") == "complete")
        assert alert_text(browser) is None, page
        assert browser.find_elements("css selector", "img[src=x], b, [onerror], [onmouseover]") == [], page
        # Nor was it only the browser that kept a script from being run.
        assert [m for m in console_errors(browser) if "Content Security Policy" in m] == [], page
    assert_only_local(browser)
    browser.get(f"{hostile.url}/wf/1")
    wait_until(browser, lambda b: b.execute_script(DRAWN))
    for fw_id in range(1, len(HOSTILE) + 1):
        browser.execute_script(f"cy.nodes('#{fw_id}').trigger('click')")
        shown = f"return $('#job-details-target a').text() == '{fw_id}'"
        wait_until(browser, lambda b, shown=shown: b.execute_script(shown))
        name = browser.find_element("css selector", "#job-details-target td").text
        assert name == hostile.launchpad.fireworks.find_one({"fw_id": fw_id})["name"]
        assert alert_text(browser) is None


def test_script_without_the_number_of_the_answer_is_not_run(hostile: Site, browser: Any) -> None:
    """What holds when a page should fail to escape a text: the browser itself refuses."""
    browser.get(f"{hostile.url}/")
    browser.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=/nothing onerror=\"window.ran=1\">');"
        "const s = document.createElement('script'); s.textContent = 'window.ran = 2'; document.body.append(s);"
        "const t = document.createElement('script'); t.src = 'http://evil.example/x.js'; document.body.append(t);"
        "const i = document.createElement('img'); i.src = 'http://evil.example/x.png'; document.body.append(i);"
    )
    refused = wait_until(browser, lambda b: len(seen := console_errors(b)) >= 3 and seen)
    assert all("Content Security Policy" in message or "404" in message for message in refused)
    assert browser.execute_script("return window.ran") is None


def test_text_cannot_be_compiled(hostile: Site, browser: Any) -> None:
    """FireWorks' Handlebars would need it; ours does without."""
    browser.get(f"{hostile.url}/wf/1")
    # What execute_script runs may do more than the page itself; what the page calls later may not.
    browser.execute_script(
        "setTimeout(() => { try { new Function('return 1')(); window.made = 'yes'; }"
        " catch (error) { window.made = error.name; } })"
    )
    assert wait_until(browser, lambda b: b.execute_script("return window.made")) == "EvalError"


def test_every_page_loads_from_this_machine_only(site: Site, browser: Any) -> None:
    pages = ("/", "/fw/", "/wf/", "/dashboard/", "/report/days/30/", "/fw/COMPLETED/", f"/wf/{site.planted['running']}")
    for page in pages:
        browser.get(site.url + page)
        wait_until(browser, lambda b: b.execute_script("return document.readyState") == "complete")
        assert console_errors(browser) == [], page
        broken = "return Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
        assert browser.execute_script(broken) == [], page
    assert_only_local(browser)
    assert any(url.endswith("/reports/workflows/years/10/fig.png") for url in requested_urls(browser))
    browser.get(site.url)
    screenshot(browser, "stock_home")


def test_bar_leads_to_our_pages_and_page_says_what_it_is(site: Site, browser: Any) -> None:
    browser.get(f"{site.url}/fw/")
    assert "dftfactory" in browser.title
    browser.find_element("link text", "Overview").click()
    wait_until(browser, lambda b: b.current_url.endswith("/dft/"))


def test_form_leads_to_a_page_of_the_list(site: Site, browser: Any) -> None:
    """FireWorks has a handler in an attribute there, which the browser refuses; the form does without."""
    browser.get(f"{site.url}/fw/")
    field = browser.find_element("id", "page-input-fw")
    field.send_keys("2")
    field.submit()
    wait_until(browser, lambda b: "page=2" in b.current_url)
    assert len(browser.find_elements("css selector", "td a")) == len(site.planted) - 20


def test_not_found_is_a_page_of_the_site(site: Site, browser: Any) -> None:
    browser.get(f"{site.url}/fw/99999")
    assert "There is no Firework with the number 99999" in browser.find_element("css selector", "body").text
    screenshot(browser, "stock_not_found")
    browser.find_element("link text", "FireWorks' home page").click()
    wait_until(browser, lambda b: b.title.startswith("FireWorks Dashboard"))


def test_login_is_asked_for_once(site: Site, browser: Any) -> None:
    with serving(site.launchpad, password="open sesame") as url:  # noqa: S106  (of this test)
        browser.get(url)
        assert "Newest Workflows" not in browser.page_source
        browser.get(url.replace("http://", "http://dftfactory:open%20sesame@"))
        browser.get(f"{url}/dashboard/")
        broken = "return Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
        wait_until(browser, lambda b: b.execute_script("return document.readyState") == "complete")
        assert browser.execute_script(broken) == []
        assert len(browser.execute_script("return Array.from(document.images)")) == 9
    assert_only_local(browser)
