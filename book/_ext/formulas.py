"""Formulas typeset while the book is built, so that no page has to bring MathJax and run it.

Node runs the MathJax that `vendor.py` brought in, once for all pages. A page gets its formulas as elements,
with MathML for screen readers, and the few rules of style that they need. Without MathJax or node the pages
keep the script that typesets them in the browser.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

from pages import each_page
from sphinx.util import logging

MATHJAX = "vendor/mathjax"
FONTS = f"_static/{MATHJAX}/output/chtml/fonts/woff-v2"
ELEMENT = re.compile(
    r'<(span|div)( class="(?:amsmath )?math notranslate nohighlight"[^>]*)>(.*?)</\1>', re.DOTALL
)
TEX = re.compile(r"\\\((.*?)\\\)|\\\[(.*?)\\\]|(\\begin\{.*\\end\{\w+\*?\})", re.DOTALL)
SCRIPTS = re.compile(
    r"\s*<script[^>]*>window\.MathJax = .*?</script>|\s*<script[^>]*/mathjax[@/][^>]*></script>"
)
FAULT = re.compile(r'<mjx-merror[^>]*data-mjx-error="([^"]*)"')


class Typesetter:
    """MathJax in a process of its own, started by the first page that has a formula."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None

    def __call__(self, formulas: list[tuple[str, bool]]) -> dict:
        """The formulas of a page, (TeX, display), as `{"html": [...], "css": ...}`."""
        if self.process is None:
            command = ["node", str(Path(__file__).with_name("formulas.js")), str(self.folder)]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")
        self.process.stdin.write(json.dumps(formulas) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"node formulas.js ended with {self.process.wait()} instead of an answer")
        return json.loads(answer)

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def typeset(text: str, typesetter, fonts: str, warn) -> str:
    """The page with its formulas typeset and without the script that would do it; `warn` hears of faults."""
    formulas = []

    def number(element):
        def keep(match):
            inline, display, environment = match.groups()
            tex = next(part for part in (inline, display, environment) if part is not None)
            formulas.append((html.unescape(tex), inline is None))
            return f"<!--formula {len(formulas) - 1}-->"

        return f"<{element[1]}{element[2]}>{TEX.sub(keep, element[3])}</{element[1]}>"

    text = SCRIPTS.sub("", ELEMENT.sub(number, text))
    if not formulas:
        return text
    done = typesetter(formulas)
    for (tex, _), markup in zip(formulas, done["html"], strict=True):
        for fault in FAULT.findall(markup):
            warn(f"{html.unescape(fault)} in the formula {tex.strip()[:200]}")
    text = re.sub(r"<!--formula (\d+)-->", lambda match: done["html"][int(match[1])], text)
    style = re.sub(r"\s*\n\s*", "", done["css"]).replace("FONTS", fonts)
    return text.replace("</head>", f"<style>{style}</style>\n</head>", 1)


def typeset_all(app) -> None:
    """Typeset the formulas of every page that the builder renders, where MathJax has been brought in."""
    folders = (Path(app.confdir, name, MATHJAX) for name in app.config.html_static_path)
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if app.builder.format != "html" or folder is None or shutil.which("node") is None:
        return
    typesetter = Typesetter(folder)
    logger = logging.getLogger(__name__)

    def change(text, context):
        if "pathto" not in context:
            return text
        page = context.get("pagename")
        return typeset(text, typesetter, context["pathto"](FONTS, 1), partial(logger.warning, location=page))

    each_page(app, change)
    app.connect("build-finished", lambda app, exception: typesetter.close())
