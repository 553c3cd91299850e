"""A real headless Chromium that opens a page from disk, and what it complained of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def require_chromium() -> tuple[str, str]:
    """The browser and its driver: skip where there is none, fail where there has to be one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser and driver:
        return browser, driver
    if os.environ.get("CI_REQUIRE_CHROMIUM") == "1":
        pytest.fail("CI_REQUIRE_CHROMIUM=1, but there is no chromium with its chromedriver")
    pytest.skip("no chromium with its chromedriver")


@contextmanager
def chromium(profile: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A browser of its own, with an empty profile."""
    from selenium import webdriver

    browser, driver = require_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for word in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        resize(found, width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        found.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        found.get("about:blank")
        found.get_log("performance")  # those of the browser's own first page
        found.get_log("browser")
        yield found
    finally:
        found.quit()


def resize(driver: Any, width: int, height: int = 900) -> None:
    """A window narrower than a real one can be."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requests(driver: Any) -> list[str]:
    """Every address that was asked for since the last look; the page itself apart, and what its policy stopped."""
    found, stopped = {}, set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        told = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            found[told["requestId"]] = told["request"]["url"]
        if message["method"] == "Network.loadingFailed" and told.get("blockedReason") == "csp":
            stopped.add(told["requestId"])
    pages = [url for key, url in found.items() if key not in stopped]
    return [url for url in pages if url != "about:blank" and not url.split("#")[0].endswith("report.html")]


def complaints(driver: Any) -> list[str]:
    """What stands on the console: errors, and what the content security policy stopped."""
    return [entry["message"] for entry in driver.get_log("browser")]


def shoot(driver: Any, path: Path, *, whole: bool = False) -> None:
    """A picture of the window, or of the whole page."""
    import base64

    given: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
    if whole:
        size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        given["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    path.write_bytes(base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", given)["data"]))
