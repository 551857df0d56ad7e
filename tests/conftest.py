"""Settings that every test shares, and the browser."""

import os
import shutil
from pathlib import Path

import patience
import pytest
from hypothesis import settings

# Derandomized: the same examples on every run, so a failure is the code's and not the draw's.
settings.register_profile("nanogrpo", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("nanogrpo")

# A copy of tiny Shakespeare beside the repository spares the chapters that are run here the download.
LOCAL_DATA = Path(__file__).parents[2] / "shared" / "data"
if LOCAL_DATA.exists():
    os.environ.setdefault("NANOGRPO_DATA", str(LOCAL_DATA))


def find_browser() -> str | None:
    names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    return os.environ.get("CHROMIUM") or next((p for p in map(shutil.which, names) if p), None)


@pytest.fixture(scope="session")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium here: install it (Debian: apt install chromium) or set CHROMIUM to its path")
    from playwright.sync_api import sync_playwright

    quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
    options = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=path, args=options) as browser:
            make = browser.new_context
            browser.new_context = lambda **options: patient(make(**options))
            yield browser


def patient(context):
    """A page's waits end when what they wait for has come, on however busy a machine."""
    context.set_default_timeout(patience.MILLISECONDS)
    return context
