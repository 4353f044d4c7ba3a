"""A headless browser for tests. If none is installed, tests fail with a message that says what to install."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_INSTALL = "apt-get install chromium chromium-driver"


def _executable(variable: str, names: tuple[str, ...]) -> str:
    """Returns the path in an environment variable, or the first of ``names`` on the PATH."""
    given = os.environ.get(variable)
    found = shutil.which(given) if given else next(filter(None, map(shutil.which, names)), None)
    if found is None:
        what = f"{variable}={given} is not a program" if given else f"None of {', '.join(names)} is on the PATH"
        pytest.fail(f"{what}. The report page is tested in a real browser: {_INSTALL}, or set {variable}.")
    return found


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Starts a browser that logs its console and all requests."""
    options = Options()
    options.binary_location = _executable("SDP_COMPILE_BROWSER", _BROWSERS)
    # Containers lack the privileges that the sandbox needs, and their /dev/shm is small.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(_executable("SDP_COMPILE_CHROMEDRIVER", ("chromedriver",)))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: webdriver.Chrome, path: Path, scheme: str = "light", width: int = 1280) -> None:
    """Opens a file from a file:// address, as a reader would, with a system theme and a window width."""
    media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}  # no animated scrolling
    features = [{"name": name, "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics: Mapping[str, Any] = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(metrics))
    driver.get(path.as_uri())
