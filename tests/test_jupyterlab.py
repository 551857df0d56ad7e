"""A chapter in a running JupyterLab: its cells run, and a figure there turns as it does in the page."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import patience
import pytest
from widgetcheck import WIDE, numbers

from nanogrpo.show.widgets.difficulty import dead_group_probability, difficulty_weight

ROOT = Path(__file__).resolve().parents[1]
ATTEMPTS = 15


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a folder that holds the first cells of the explorers."""
    pytest.importorskip("jupyterlab", reason="package: JupyterLab is not installed; pip install jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    chapter = nbformat.read(ROOT / "book" / "explorers.ipynb", as_version=4)
    chapter.cells = [cell for cell in chapter.cells if re.search("@title|^DifficultyExplorer", cell.source)]
    assert [cell.cell_type for cell in chapter.cells] == ["code", "code"]
    for cell in chapter.cells:
        cell.outputs, cell.execution_count = [], None
    chapter.cells.append(nbformat.v4.new_code_cell("print(Out[2].p, Out[2].group_size)"))
    chapter.metadata.pop("widgets")
    nbformat.write(chapter, folder / "explorers.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "port": port,
        "ip": "127.0.0.1",
        "open_browser": False,
        "allow_root": True,
        "root_dir": str(folder),
    }
    command = [sys.executable, "-m", "jupyterlab", "--IdentityProvider.token="]
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    home = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    home |= {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    log = open(folder / "log.txt", "w")  # noqa: SIM115
    server = subprocess.Popen(command, cwd=ROOT, env=os.environ | home, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(2 * patience.SECONDS):
            try:
                json.load(urllib.request.urlopen(f"{address}/api/status", timeout=60))
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (folder / "log.txt").read_text()[-2000:]
                time.sleep(0.5)
        else:
            pytest.fail((folder / "log.txt").read_text()[-2000:])
        yield f"{address}/lab/tree/explorers.ipynb"
    finally:
        server.terminate()
        server.wait(patience.SECONDS)
        log.close()


def run_all_cells(page):
    """Run the notebook until its figure stands there.

    JupyterLab drops a wish to run that comes while it still sets itself up, so it is asked again.
    """
    page.locator('.jp-NotebookPanel [data-status="idle"]').first.wait_for()
    sync_api = pytest.importorskip("playwright.sync_api")
    figure = page.locator(".jp-OutputArea .ng output")
    for _ in range(ATTEMPTS):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            figure.wait_for(timeout=patience.MILLISECONDS / ATTEMPTS)
            return
        except sync_api.TimeoutError as error:
            print(seen := f"{error}\n{page.locator('.jp-Notebook').inner_text()}")
    pytest.fail(seen)


@pytest.mark.slow
def test_a_figure_turns_in_jupyterlab_and_its_kernel_hears_of_it(browser, lab):
    with browser.new_context(viewport=WIDE) as context:
        page = context.new_page()
        page.goto(lab)
        page.locator(".jp-NotebookPanel .jp-CodeCell").nth(1).wait_for()
        run_all_cells(page)
        words = page.locator(".jp-OutputArea .ng output")
        page.get_by_role("slider", name="p, probability").fill("0.3")
        page.get_by_role("slider", name="G, answers").fill("16")
        expected = [0.3, 16, difficulty_weight(0.3, 16), 100 * dead_group_probability(0.3, 16)]
        assert numbers(words.inner_text()) == pytest.approx(expected, abs=0.051)
        last = page.locator(".jp-NotebookPanel .jp-CodeCell").nth(2)
        last.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        last.locator(".jp-OutputArea-output", has_text="0.3 16").wait_for()
