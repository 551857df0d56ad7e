"""Settings that every test shares, what a machine may lack, and the browser."""

import collections
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pagecheck
import patience
import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))

from corpus import missing, use_copy_beside  # noqa: E402
from find_browser import find_browser  # noqa: E402

from nanogrpo.data import load_corpus  # noqa: E402

# For processes of the foreign mode, and what needs the frameworks (`make parity`): no doctests there.
collect_ignore = ["foreign", *(f"parity/theirs_{side}.py" for side in ("trl", "verl", "openrlhf"))]
# As a module with doctests it would stand in the way of book/conftest.py.
collect_ignore.append("conftest.py")

# Derandomized: the same examples on every run, so a failure is the code's and not the draw's.
settings.register_profile("nanogrpo", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("nanogrpo")

use_copy_beside()

# Pages show numbers that are stored; these files install and start things. In the foreign mode, which is
# about rounding, both are left out.
COMPUTES_NOTHING = (
    "test_colab.py",
    "test_contributing.py",
    "test_jupyterlab.py",
    "test_pages.py",
    "test_wheel.py",
)
LEFT_OUT = "foreign: rounding is nothing to pages, installations and the like; `make test` runs these"


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files of many tests


def pytest_collection_modifyitems(items):
    """Files with slow tests first, then chapters; quick files fill the gaps. Thorough ones: see `turns`."""
    if os.environ.get("FOREIGN_SEED"):
        for item in items:
            if "site" in getattr(item, "fixturenames", ()) or item.path.name in COMPUTES_NOTHING:
                item.add_marker(pytest.mark.skip(reason=LEFT_OUT))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    paged = {item.path for item in items if "site" in getattr(item, "fixturenames", ())}
    builds = min(paged, default=None)  # one worker renders the book while the other tests what needs no page

    drawn = turns()

    def turn(item) -> tuple:
        path = item.path
        rank = 1 if path == builds else 2 + (path in paged) if path in slow else 5 - (path.suffix == ".ipynb")
        return rank, drawn(path)

    items.sort(key=turn)


# For thorough tests, which may have a limit: when they began, and how long they may go on.
BEGAN, LIMIT = time.monotonic(), os.environ.get("THOROUGH_MINUTES")


def turns():
    """With a limit, the order of files is drawn from the commit, so that each has its turn on some commit."""
    if not LIMIT:
        return lambda path: ""
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout
    return lambda path: hashlib.sha256(f"{commit}{path.name}".encode()).hexdigest()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if LIMIT and item.get_closest_marker("thorough") and time.monotonic() - BEGAN > 60 * float(LIMIT):
        pytest.skip(f"time: not begun within {LIMIT} minutes; `make test-thorough` has no limit")


@pytest.fixture(scope="session")
def corpus():
    """The text of tiny Shakespeare, or a skip that says how to get it."""
    if reason := missing():
        pytest.skip(reason)
    return load_corpus()


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="package: playwright is not installed")
    path = find_browser()
    if path is None:
        pytest.skip("browser: no Chromium or Chrome is here; `make browser` brings one")
    quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
    options = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=path, args=options) as browser:
            make = browser.new_context
            browser.new_context = lambda **options: patient(make(**options))
            yield browser


@pytest.fixture(scope="session")
def site(tmp_path_factory, request):
    """The rendered book, one for all workers."""
    folder = tmp_path_factory.getbasetemp()
    return pagecheck.build((folder.parent if hasattr(request.config, "workerinput") else folder) / "book")


@pytest.fixture(scope="session")
def address(site):
    server = pagecheck.serve(site)
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def axe():
    """The accessibility checker axe-core, which `make tools` brings in from npm."""
    script = pagecheck.ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        pytest.skip("package: axe-core, which checks accessibility, is not here: make tools (needs npm)")
    return script.read_text(encoding="utf-8")


@pytest.fixture
def visit(browser, address):
    """Open a page of the book; what answers its predictions is shown, or folded as a new reader finds it."""
    contexts = []

    def go(name: str, theme: str = "light", size: dict = pagecheck.WIDE, answers: str = "shown"):
        context, page = opened(browser, address, name, theme, size, answers)
        contexts.append(context)
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def seen(browser, address, request):
    """A page as (name, theme) is first seen; tests that only look at it share the visit."""
    context, page = opened(browser, address, *request.param)
    yield page
    context.close()


@pytest.fixture(scope="module")
def held(browser, address, request):
    """The same of a page on a phone."""
    context, page = opened(browser, address, request.param, size=pagecheck.PHONE)
    yield page
    context.close()


def opened(browser, address, name, theme="light", size=pagecheck.WIDE, answers="shown"):
    """A fresh context of the browser, and in it a page of the book."""
    context = browser.new_context(viewport=size, color_scheme=theme)
    if answers == "shown":
        context.add_init_script("localStorage.setItem('nanogrpo.answers', 'shown')")
    page = context.new_page()
    pagecheck.watch(page, address)
    page.goto(f"{address}{name}.html", wait_until="networkidle")
    return context, page


def pytest_unconfigure(config):
    """Say last, after pytest's own last line, what this machine did not check, and why."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:  # a worker of xdist prints nothing
        return
    reasons = collections.Counter(report.longrepr[2] for report in reporter.stats.get("skipped", []))
    reporter.write_line(f"Not checked here: {sum(reasons.values())} skipped")
    for reason, count in reasons.most_common():
        reporter.write_line(f"{count:>6}  {' '.join(reason.removeprefix('Skipped: ').split())}")


def patient(context):
    """A page's waits end when what they wait for has come, on however busy a machine."""
    context.set_default_timeout(patience.MILLISECONDS)
    return context
