"""The rendered book for the tests: built once, served here, with what its pages are asked."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
THEMES = ["light", "dark"]
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
TYPESET = "() => [...document.querySelectorAll('.math')].every(e => e.querySelector('math'))"
# The accessibility checker's findings.
CHECK = """() => axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) =>
  violations.flatMap(({ id, nodes }) => nodes.map(({ target }) => `${id}: ${target}`)))"""


def build(source: Path) -> Path:
    """The book from its stored outputs, with warnings as errors; whoever comes second finds it built."""
    if os.environ.get("SITE"):  # one that is rendered, for whoever works on a test of a page
        return Path(os.environ["SITE"])
    source.mkdir(exist_ok=True)
    done = source / "done"
    with FileLock(source / "lock"):
        if not done.exists():
            for name in ("_config.yml", "_toc.yml"):
                shutil.copy(ROOT / name, source)
            shutil.copytree(ROOT / "book", source / "book", dirs_exist_ok=True)
            given = [sys.executable, ROOT / "book" / "_ext" / "given.py", source / "book" / "labs"]
            subprocess.run(given, check=True)
            command = [Path(sys.executable).with_name("jupyter-book"), "build", source]
            command += ["-W", "-n", "--keep-going", "-q"]
            built = subprocess.run(command, capture_output=True, text=True)
            assert built.returncode == 0, f"the strict build failed:\n{built.stdout}\n{built.stderr}"
            done.touch()
    return source / "_build" / "html"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve(site: Path) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def watch(page, address: str) -> None:
    """Close the network to all but the book; collect what goes wrong, and what was answered."""
    page.trouble, page.answers = [], []

    def route(asked):
        inside = asked.request.url.startswith(address)
        if not inside:
            page.trouble.append(f"asks another site: {asked.request.url}")
        asked.continue_() if inside else asked.abort()

    def answer(response):
        page.answers.append(response)
        if response.status >= 400:
            page.trouble.append(f"{response.status}: {response.url}")

    page.route("**/*", route)
    page.on("response", answer)
    page.on("console", lambda m: page.trouble.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: page.trouble.append(f"script: {error}"))
