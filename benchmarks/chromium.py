"""The browser for the App."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

_SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]


@contextlib.contextmanager
def open_chromium() -> Iterator[Any]:
    """Run Chromium without a window.

    Yields:
        a :class:`playwright.sync_api.Browser`
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium is not None, "no chromium here: make test-app installs it"
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=_SWITCHES) as browser,
    ):
        yield browser
