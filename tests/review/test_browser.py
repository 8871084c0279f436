"""The page in a real browser, where there is one: mouse and keyboard, two windows, a kill of the server, a phone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import HOSTILE

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no Chromium with its chromedriver is installed"),
]
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def start(identities: Path, features: NDArray[np.float32]) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str]]]:
    np.savez(identities.parent / "features.npz", features=features)
    command = [sys.executable, "-m", "ccreid_cli", "review", identities.name, "--features", "features.npz"]
    root = str(Path(__file__).parents[2])
    servers = []

    def run() -> tuple[subprocess.Popen[str], str]:
        server = subprocess.Popen(
            [*command, "--no-browser"],
            cwd=identities.parent,
            env={**os.environ, "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        servers.append(server)
        assert server.stdout is not None
        return server, server.stdout.readline().strip()

    yield run
    for server in servers:
        server.kill()
        server.communicate()


class Page:
    """What a person does in one window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def click(self, selector: str, number: int = 0) -> None:
        self.until(lambda: len(self.all(selector)) > number)
        self.driver.execute_script("arguments[0].click()", self.all(selector)[number])

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def text(self, selector: str) -> str:
        return str(
            self.driver.execute_script("return document.querySelector(arguments[0])?.textContent || ''", selector)
        )

    def until(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, self.driver.find_element("css selector", "body").text
            time.sleep(0.05)

    def shows(self, selector: str, part: str) -> None:
        self.until(lambda: part in self.text(selector))


def test_identities_are_corrected_in_the_browser(
    browser: Any, start: Callable[[], tuple[subprocess.Popen[str], str]], identities: Path
) -> None:
    server, address = start()
    page = Page(browser)
    browser.get(address)
    page.shows("#counts", "3 identities")
    # Merge by mouse: the second identity into the first.
    page.click('[data-view="identities"]')
    page.click('[data-identity="0"]')
    page.click("#merge")
    page.press("2")
    page.until(lambda: len(page.all("#choices button")) == 1)
    page.click("#choices button")
    page.shows("#who", "10 pictures")
    page.shows("#counts", "2 identities")
    # Split off by keyboard, undo, redo.
    browser.execute_script("document.querySelectorAll('.list .tile')[8].focus()")
    page.press(" ")
    page.press("\ue014", " ")  # arrow right
    page.shows("#selected", "2 pictures")
    page.press("n")
    page.shows("#who", "8 pictures")
    page.press("u")
    page.shows("#who", "10 pictures")
    page.press("r")
    page.shows("#who", "8 pictures")
    browser.refresh()
    page.shows("#counts", "3 identities")
    # A second window does not overwrite the first.
    browser.switch_to.new_window("tab")
    browser.get(address)
    page.shows("#counts", "3 identities")
    page.until(lambda: page.all("#send"))
    page.press("\ue007")  # Enter: answer as marked
    page.until(lambda: "answered 0" not in page.text("#left"))
    browser.execute_script("state.revision -= 1; act({ do: 'undo' })")
    page.shows("#message", "nother window")
    answered = page.text("#counts")
    browser.close()
    browser.switch_to.window(browser.window_handles[0])
    page.until(lambda: page.text("#counts") == answered)
    # A killed server loses nothing, and the page says so.
    server.send_signal(signal.SIGKILL)
    server.wait()
    page.press("u")
    page.shows("#message", "does not answer")
    server, address = start()
    browser.get(address)
    page.until(lambda: page.text("#counts") == answered)
    # A phone, and names that are HTML.
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page.until(lambda: page.all("#send") or "No question" in page.text("#left"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    page.click('[data-view="identities"]')
    page.until(lambda: len(page.all(".identity")) == 3)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert HOSTILE in page.text(".list")
    assert browser.title == "ccreid review"
    errors = [entry["message"] for entry in browser.get_log("browser")]
    assert [text for text in errors if "ERR_CONNECTION_REFUSED" not in text and " 409 " not in text] == []
    # Ctrl-C writes the CSV.
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 130
    lines = identities.read_text().splitlines()
    assert lines[0] == "path,id,camera,split,confidence,checked"
    assert sum(line.split(",")[1] in ("1", '"1"') for line in lines[1:]) == 8
