"""Lighthouse on every page of the rendered book: performance, accessibility and best practices on a desktop.

    make lighthouse                          all pages
    make lighthouse PAGES="book/grpo book/kl"

Brings Lighthouse in from npm, into _build, where nothing is committed, and serves _build/html as a web server
would, compressed. Performance depends on what else the machine does, so a page below the goal is tried again,
three times at most, and its best score counts.
"""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SITE, TOOL = ROOT / "_build" / "html", ROOT / "_build" / "lighthouse"
PACKAGE = "lighthouse@12.8.2"
GOAL, TRIES = 0.95, 3
CATEGORIES = ("performance", "accessibility", "best-practices")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TEXT = re.compile("text|javascript|json|svg|xml")


class Server(http.server.SimpleHTTPRequestHandler):
    """The files of a folder; those of text travel compressed."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        kind, body = self.guess_type(str(path)), path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", kind + ("; charset=utf-8" if "html" in kind else ""))
        self.send_header("Cache-Control", "max-age=600")
        if TEXT.search(kind):
            body = gzip.compress(body, 6)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def install() -> Path | None:
    """The program, or None where it cannot be had."""
    program = TOOL / "node_modules" / ".bin" / "lighthouse"
    if not program.exists():
        if shutil.which("npm") is None:
            return None
        TOOL.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(TOOL), PACKAGE]
        if subprocess.run(command).returncode:
            return None
    return program


def measure(program: Path, address: str, browser: str) -> dict[str, float]:
    """The scores of one page, from 0 to 1, and what its ``failed`` audits are."""
    flags = "--headless=new --no-sandbox --disable-gpu"
    only = "--only-categories=" + ",".join(CATEGORIES)
    command = [
        program,
        address,
        "--preset=desktop",
        only,
        "--output=json",
        "--quiet",
        f"--chrome-flags={flags}",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"CHROME_PATH": browser}
    )
    if done.returncode:
        raise SystemExit(f"lighthouse failed on {address}: {done.stderr.strip()[-500:]}")
    report = json.loads(done.stdout)
    scores = {name: report["categories"][name]["score"] for name in CATEGORIES}
    audits = {
        ref["id"] for name in CATEGORIES for ref in report["categories"][name]["auditRefs"] if ref["weight"]
    }
    poor = {name: report["audits"][name] for name in sorted(audits)}
    scores["failed"] = ", ".join(
        f"{name} {audit.get('displayValue', '')}".strip()
        for name, audit in poor.items()
        if audit["score"] is not None and audit["score"] < 0.9
    )
    return scores


def main(pages: list[str]) -> int:
    if not SITE.is_dir():
        raise SystemExit("no rendered book in _build/html: make render")
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    program = install()
    if browser is None or program is None:
        raise SystemExit("needed are Chromium (or CHROMIUM, its path) and npm, which brings Lighthouse")
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = pages or re.findall(r"'(?:root|file)': '([^']+)'", str(toc))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{'page':28}", *CATEGORIES, "audits below 0.9", flush=True)
    below = 0
    for page in pages:
        address, best = f"http://127.0.0.1:{server.server_port}/{page}.html", None
        for _ in range(TRIES):
            found = measure(program, address, browser)
            if best is None or found["performance"] > best["performance"]:
                best = found
            if min(best[name] for name in CATEGORIES) >= GOAL:
                break
        below += min(best[name] for name in CATEGORIES) < GOAL
        scores = (f"{best[name]:<{len(name)}.2f}" for name in CATEGORIES)
        print(f"{page:28}", *scores, best["failed"], flush=True)
    server.shutdown()
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
