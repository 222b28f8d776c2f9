"""Our pages as a person sees them: in a real browser, over a LaunchPad with every state."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import numpy as np
import pytest
from ase.build import bulk
from browser_fixtures import (
    assert_only_local,
    console_errors,
    fresh_launchpad,
    screenshot,
    serving,
    wait_until,
)
from every_state import Garden, plant_every_state, write_running_folder
from made_up_runs import MadeUpRun, falling, still

from dftfactory.failures import Failure

pytestmark = pytest.mark.browser

# (nickname or address, name of the screenshot)
PAGES = (
    ("/dft/", "overview"),
    ("/dft/structures", "structures"),
    ("level 3", "structure_level_3"),
    ("several starts", "structure_several_starts"),
    ("SCF_NOT_CONVERGED", "structure_failed"),
    ("running", "structure_running"),
    ("markup", "structure_markup"),
    ("ready", "structure_ready"),
)


def address_of(site, page):
    return f"{site.url}{page if page.startswith('/') else '/dft/structures/' + str(site.planted[page])}"


def text(browser, selector):
    """What is read there, in one line."""
    return " ".join(browser.find_element("css selector", selector).text.split())


def figures_are_drawn(browser):
    """Whether plotly.js has made a figure in each place, and the 3D ones show something."""
    return browser.execute_script(
        "return [...document.querySelectorAll('[data-figure]')].every("
        "(each) => each.querySelector('.main-svg') && (!each.matches('.three') || each.querySelector('canvas')))"
    )


def set_width(browser, width, height=1000):
    # A window of Chromium is not narrower than 500 pixels.
    sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)


def whole_page(browser, name, width):
    """Keep a picture of the page from top to bottom."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    set_width(browser, width, min(height, 3500))
    time.sleep(0.5)  # plotly.js fits its figures to the window
    path = screenshot(browser, name)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return path


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize(("page", "name"), PAGES)
def test_each_page_loads_from_this_machine_alone_and_fits_the_window(browser, site, page, name, width):
    set_width(browser, width)
    browser.get(address_of(site, page))
    wait_until(browser, figures_are_drawn)
    wait_until(browser, lambda b: "updated" in text(b, "#updated"))
    sideways = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    whole_page(browser, f"{name}_{width}", width)
    assert sideways <= 0
    assert_only_local(browser)
    assert console_errors(browser) == []


def test_the_overview_has_the_numbers_of_the_launchpad(browser, site):
    browser.get(f"{site.url}/dft/")
    states = text(browser, ".states")
    for state in ("READY", "RUNNING", "COMPLETED", "FIZZLED", "PAUSED", "DEFUSED"):
        assert f"{state} {site.launchpad.fireworks.count_documents({'state': state})}" in states
    running = text(browser, "[data-part=running]")
    assert "running-elsewhere" in running


def test_the_table_is_searched_and_sorted(browser, site):
    browser.get(f"{site.url}/dft/structures")
    field = browser.find_element("css selector", ".filter [name=q]")
    field.send_keys("level")
    field.submit()
    wait_until(browser, lambda b: "q=level" in b.current_url)
    # Fields without a value are not in an address that is sent to a colleague.
    assert browser.current_url == f"{site.url}/dft/structures?q=level"
    browser.find_element("link text", "energy (eV)").click()
    wait_until(browser, lambda b: b.find_elements("css selector", "[aria-sort=ascending]"))
    cells = [each.text for each in browser.find_elements("css selector", ".records td:nth-child(7)")]
    energies = [float(cell.replace(",", "")) for cell in cells if cell != "–"]
    assert len(energies) >= 4  # levels 0 to 3
    assert energies == sorted(energies)


def test_find_leads_to_the_structure(browser, site):
    browser.get(f"{site.url}/dft/")
    field = browser.find_element("css selector", ".find [name=q]")
    field.send_keys("level-3")
    field.submit()
    wait_until(browser, lambda b: text(b, "h1").startswith("level-3"))
    assert browser.current_url == f"{site.url}/dft/structures/{site.planted['level 3']}"


def test_names_with_markup_are_words(browser, site):
    for page in ("/dft/", "/dft/structures", "markup"):
        browser.get(address_of(site, page))
        wait_until(browser, figures_are_drawn)
        assert "<script>alert(1)</script>" in browser.find_element("tag name", "main").text
        assert browser.execute_script("return document.querySelectorAll('main script').length") == 0
    assert console_errors(browser) == []


def test_forces_are_switched_off_without_turning_the_structure(browser, site):
    browser.get(address_of(site, "level 3"))
    wait_until(browser, figures_are_drawn)
    place = "document.querySelector('.plot.three')"
    visible = f"return {place}.data.filter((t) => t.legendgroup === 'forces').map((t) => t.visible !== false)"
    assert browser.execute_script(visible) == [True, True]
    browser.execute_async_script(
        f"Plotly.relayout({place}, {{'scene.camera.eye': {{x: 0.1, y: 2, z: 0.3}}}}).then(arguments[0])"
    )
    browser.find_element("css selector", "[data-show-forces]").click()
    wait_until(browser, lambda b: b.execute_script(visible) == [False, False])
    assert browser.execute_script(f"return {place}.layout.scene.camera.eye.y") == pytest.approx(2, abs=0.01)


def test_dark_pages_are_dark_and_readable(browser, site):
    media = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    try:
        for page, name in (("/dft/", "overview_dark"), ("level 3", "structure_dark")):
            set_width(browser, 1400)
            browser.get(address_of(site, page))
            wait_until(browser, figures_are_drawn)
            ground, ink = browser.execute_script(
                "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
            )
            assert ground == "rgb(20, 24, 29)"
            assert ink == "rgb(230, 234, 238)"
            whole_page(browser, name, 1400)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.fixture
def own_site(local_launchpad, tmp_path):
    """A site that a test may change."""
    with fresh_launchpad(local_launchpad) as launchpad:
        planted = plant_every_state(launchpad, tmp_path)
        with serving(launchpad) as url:
            yield url, launchpad, planted


def test_a_change_is_seen_within_seconds_without_a_reload(browser, own_site):
    url, launchpad, planted = own_site
    fw_id = planted["running"]
    for address in ("/dft/", "/dft/structures", f"/dft/structures/{fw_id}"):
        set_width(browser, 900, 400)
        browser.get(url + address)
        wait_until(browser, lambda b: "updated" in text(b, "#updated"))
        browser.execute_script("window.stays = true; window.scrollTo(0, 120)")
        before = launchpad.fireworks.find_one({"fw_id": fw_id})["state"]
        after = "PAUSED" if before == "RUNNING" else "RUNNING"
        now = datetime.now(timezone.utc).isoformat()
        launchpad.fireworks.update_one({"fw_id": fw_id}, {"$set": {"state": after, "updated_on": now}})
        count = launchpad.fireworks.count_documents({"state": after})
        seen = {
            "/dft/": lambda b, after=after, count=count: f"{after} {count}" in text(b, ".states"),
            "/dft/structures": lambda b, after=after: (
                after in b.find_element("xpath", f"//tr[.//a[@href='/dft/structures/{fw_id}']]").text
            ),
        }.get(address, lambda b, after=after: text(b, ".badges .badge") == after)
        wait_until(browser, seen)
        assert browser.execute_script("return [window.stays, window.scrollY]") == [True, 120]
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_server_that_is_gone_is_marked(browser, local_launchpad, tmp_path):
    with fresh_launchpad(local_launchpad) as launchpad:
        Garden(launchpad, tmp_path).add("waits", bulk("Si"))
        with serving(launchpad) as url:
            browser.get(f"{url}/dft/")
            wait_until(browser, lambda b: "updated" in text(b, "#updated"))
        wait_until(browser, lambda b: "no answer since" in text(b, "#updated.lost"), seconds=40)


def test_nothing_is_asked_when_nothing_runs_or_waits(browser, site):
    browser.get(address_of(site, "level 3"))
    wait_until(browser, lambda b: "nothing runs or waits" in text(b, "#updated"))
    assert browser.execute_script("return document.body.dataset.live") == "no"


def test_an_empty_launchpad_comes_to_life(browser, local_launchpad, tmp_path):
    with fresh_launchpad(local_launchpad) as launchpad, serving(launchpad) as url:
        browser.get(f"{url}/dft/")
        assert "The queue is empty" in text(browser, "main")
        whole_page(browser, "overview_empty", 1400)
        assert console_errors(browser) == []
        Garden(launchpad, tmp_path).add("first", bulk("Si"))
        wait_until(browser, lambda b: "of 1 structures done" in text(b, "main"))


def plant_a_search(launchpad, tmp_path):
    """Fill a LaunchPad as a search of iron and silicon does, a part of the way; return one structure."""
    garden = Garden(launchpad, tmp_path)
    random = np.random.default_rng(7)
    chosen = 0
    for n in range(46):
        kind = ("md", "rattle", "strain", "vacancy")[n % 4]
        atoms = bulk("Si", cubic=True) if n % 3 else bulk("Fe", a=2.83, cubic=True).repeat((2, 2, 1))
        atoms.rattle(0.08, seed=n)
        fw_id = garden.add(f"iter3-{kind}-{n + 1:04d}", atoms, "iter3")
        if n >= 36:
            if n < 39:
                folder = tmp_path / f"launcher_{n}"
                write_running_folder(folder, f"iter3-{kind}-{n + 1:04d}", garden.config)
                garden.launch(fw_id, f"node{n:03d}", folder=folder)
            continue
        run = MadeUpRun(garden.config, len(atoms), cores=16, nspin=1 if n % 3 else 2)
        ago = (36 - n) * 2.5
        if n in (11, 23):
            while not run.is_over:
                run.fail(Failure.SCF_NOT_CONVERGED, still(0.05, 60), 140.0, "stopped early, the SCF stands still")
            garden.give_up(fw_id, run, minutes_ago=ago)
            continue
        if n % 9 == 0:
            while run.level < 3:
                run.fail(Failure.SCF_NOT_CONVERGED, still(0.05, 80), 160.0, "80 iterations, best accuracy 2.5e-02 Ry")
            run.stage(falling(0.3, 6e-5, 14), 40.0).stage(falling(0.01, 7e-6, 9), 30.0)
            chosen = fw_id if n == 27 else chosen
        run.converge(falling(0.4, 1e-9, 12 + n % 5), float(random.integers(60, 200)))
        garden.label(fw_id, run, minutes_ago=ago, energy_per_atom=-110.0 - n % 3)
    return chosen


def test_two_small_pictures_for_the_readme(browser, local_launchpad, tmp_path):
    """With names as people give them."""
    from PIL import Image  # of matplotlib

    with fresh_launchpad(local_launchpad) as launchpad:
        fw_id = plant_a_search(launchpad, tmp_path)
        with serving(launchpad) as url:
            for address, name in (("/dft/", "readme_overview"), (f"/dft/structures/{fw_id}", "readme_structure")):
                set_width(browser, 1100, 860)
                browser.get(url + address)
                wait_until(browser, figures_are_drawn)
                wait_until(browser, lambda b: "updated" in text(b, "#updated"))
                time.sleep(0.5)
                path = screenshot(browser, name)
                # Fewer colours are a third of the size; this way the rare ones, those of the states, are kept.
                few = Image.open(path).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
                few.save(path, optimize=True)
                assert path.stat().st_size < 150_000
                browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
