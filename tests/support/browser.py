"""A real browser for tests of pages: headless Chromium, driven through its own driver; nothing is downloaded."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PHONE, DESKTOP = (360, 800), (1280, 900)

needed = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium with chromedriver here: apt-get install chromium chromium-driver",
)
"""Mark of tests that use `chromium`."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A driver whose browser keeps its console's lines."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (the test extra has it)"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield found
    finally:
        found.quit()


def visit(driver: Any, address: str) -> None:
    """Open a page and wait for all of it: on a busy machine the driver's own `get` returns before a page that it had open before."""
    driver.get(address)
    deadline = time.monotonic() + 60
    while driver.execute_script("return document.readyState") != "complete":
        assert time.monotonic() < deadline, f"{address} does not load"
        time.sleep(0.01)
