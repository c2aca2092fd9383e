"""A page in a real browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE = {"width": 390, "height": 844}


@contextmanager
def browser_page(own: str, **settings: Any) -> Iterator[Page]:
    """A page of a phone's width, on which no script may fail and which may ask for nothing but what begins with
    `own`.
    """
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed: on Debian, apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET.split())
        page = browser.new_page(**{"viewport": PHONE, **settings})
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(own) else None)
        yield page
        assert not complaints, complaints
        browser.close()
