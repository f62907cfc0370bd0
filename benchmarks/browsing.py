"""Debian's Chromium for the benchmarks of the page. It measures nothing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from benchmarks import rig

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

try:
    from playwright.sync_api import Browser, sync_playwright
except ImportError as error:
    raise SystemExit(f"not measured: {error}; the extra `dev` brings Playwright") from None


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, without a window and without anything that it does of its own accord."""
    path = shutil.which("chromium")
    if path is None:
        raise rig.NotMeasured("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()
