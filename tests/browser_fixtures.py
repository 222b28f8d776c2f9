"""The web GUI as a person sees it: a server on loopback over a planted LaunchPad, and a headless Chromium.

`site` serves, `browser` looks. Whatever Chromium asks for is on record: `assert_only_local(browser)`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from dftfactory.launchpad import read_launchpad_file
from dftfactory.local_launchpad import LocalLaunchPad

SCREENSHOTS = Path(__file__).parent / "screenshots"
CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
# Schemes that need no network; chrome: is the browser's own empty page.
_LOCAL_SCHEMES = ("data", "blob", "about", "chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # Chromium refuses a sandbox to root, who runs the tests in a container
    "--disable-dev-shm-usage",  # /dev/shm of a container is small
    "--window-size=1280,900",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
    # 3D without a graphics card.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    # Nothing of the browser's own either: a name that is not of this machine is not found.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


@dataclass(frozen=True)
class Site:
    """A running web GUI: its address without a slash at the end, its LaunchPad, and what was planted there."""

    url: str
    launchpad: Any
    planted: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def serving(launchpad: Any, **options: Any) -> Iterator[str]:
    """Serve the web GUI from a thread of this process, on a free port; gives its address. Options are make_app's."""
    from werkzeug.serving import make_server

    from dftfactory.webgui.app import make_app

    server = make_server("127.0.0.1", 0, make_app(launchpad, **options), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def fresh_launchpad(local_launchpad: LocalLaunchPad) -> Iterator[Any]:
    """Give an initialised LaunchPad of its own, with the indexes of `submit`; not dropped afterwards: it is slow."""
    from fireworks import LaunchPad

    from dftfactory.launches import index_fingerprints

    settings = read_launchpad_file(local_launchpad.launchpad_file)
    launchpad = LaunchPad.from_dict(settings | {"name": f"site_{uuid4().hex}"})
    launchpad.reset("", require_password=False, max_reset_wo_password=0)
    index_fingerprints(launchpad)
    yield launchpad
    launchpad.connection.close()


@pytest.fixture(scope="module")
def site(local_launchpad: LocalLaunchPad, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give the web GUI of a LaunchPad with a Firework in every state, one for all tests of a file: they only look."""
    from every_state import plant_every_state

    with fresh_launchpad(local_launchpad) as launchpad:
        planted = plant_every_state(launchpad, tmp_path_factory.mktemp("every_state"))
        with serving(launchpad) as url:
            yield Site(url, launchpad, planted)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Give the one Chromium of a test run; skip where it is not installed, and fail there under CI."""
    missing = [path for path in (CHROMIUM, CHROMEDRIVER) if shutil.which(path) is None]
    missing += [] if importlib.util.find_spec("selenium") else ["selenium"]
    if missing:
        reason = f"{', '.join(missing)} not installed (apt-get install chromium chromium-driver; pip install selenium)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # With the path of the driver, selenium looks for none in the internet.
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any) -> Any:
    """Give Chromium with an empty page, no cookies and an empty record."""
    chromium.get("about:blank")
    chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    chromium.set_window_size(1280, 900)
    for kind in ("performance", "browser"):
        chromium.get_log(kind)
    chromium.asked = []
    return chromium


def requested_urls(browser: Any) -> list[str]:
    """Return the addresses of all that the browser has asked for since the test began, oldest first."""
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            params = message["params"]
            browser.asked.append(params["request"]["url"] if "request" in params else params["url"])
    return list(browser.asked)


def assert_only_local(browser: Any) -> None:
    """Fail when a request went to another machine, or would have without the resolver of these tests."""
    asked = requested_urls(browser)
    assert any(urlsplit(url).hostname == "127.0.0.1" for url in asked), "the browser has asked for nothing"
    away = [
        url
        for url in asked
        if urlsplit(url).scheme not in _LOCAL_SCHEMES and urlsplit(url).hostname not in ("127.0.0.1", "localhost")
    ]
    assert away == []


def console_errors(browser: Any) -> list[str]:
    """Return what the browser's console calls severe: scripts that failed, files that are missing or were refused."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def wait_until(browser: Any, condition: Callable[[Any], Any], seconds: float = 20) -> Any:
    """Return what `condition(browser)` gives as soon as it is true; elements that are not there yet count as false."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    missing = (NoSuchElementException, StaleElementReferenceException)
    return WebDriverWait(browser, seconds, poll_frequency=0.1, ignored_exceptions=missing).until(condition)


def screenshot(browser: Any, name: str) -> Path:
    """Keep a picture of the window in tests/screenshots, which git ignores and CI keeps."""
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    assert browser.save_screenshot(str(path))
    return path
