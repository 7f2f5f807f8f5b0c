"""A browser, and pages in it that fail the test if they log an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.page.browser import CHROMIUM, launch

TIMEOUT = 60_000
"""Time to wait for an element, in milliseconds."""
UNAVAILABLE = ("net::ERR_", "status of 503 ")
"""Parts of what the browser itself logs while the control plane is stopped, or starts."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: dependency group test")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = launch(driver)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Any]:
    """A page of 1440 by 900 pixels."""
    with browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce") as context:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        assert [error for error in errors if not any(part in error for part in UNAVAILABLE)] == []
