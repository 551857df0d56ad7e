"""Slides for each part of the book, made from the chapters' own figures: `make slides`.

    _build/slides/part-1.html ...      one file a part, with everything in it; open it in a browser

A chapter gives a title slide with what its readers will be able to do, one slide for each figure with its
caption, and its summary. Formulas are MathML. Arrow keys, space and Page Down turn the pages; printing gives
one slide a page.
"""

from __future__ import annotations

import base64
import html
import re
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import yaml
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build" / "slides"
READABLE = 700  # characters of a list on one slide


def formula(tex: str, options: dict) -> str:
    """A formula as MathML, which browsers draw themselves."""
    return convert(tex, display="block" if options["display_mode"] else "inline")


MARKDOWN = MarkdownIt().use(dollarmath_plugin, renderer=formula)
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --soft: #5c5c5c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #14171a; --soft: #a8a8a8; } }
html { scroll-snap-type: y mandatory; font: 22px/1.45 system-ui, sans-serif; }
body { margin: 0; color: var(--ink); background: var(--paper); }
section { box-sizing: border-box; min-height: 100vh; padding: 5vh 8vw; scroll-snap-align: start;
  display: flex; flex-direction: column; justify-content: center; break-after: page; }
h1 { font-size: 2em; margin: 0 0 .6em; } h2 { font-size: 1.2em; margin: 0 0 .6em; }
img { max-width: 100%; max-height: 66vh; object-fit: contain; align-self: center; background: #fff; }
figure { margin: 0; display: flex; flex-direction: column; gap: 1em; }
figcaption, footer { color: var(--soft); font-size: .8em; }
li { margin: .3em 0; }
"""
TURN = """
addEventListener("keydown", (event) => {
  const pages = [...document.querySelectorAll("section")];
  const now = pages.findIndex((page) => page.getBoundingClientRect().bottom > innerHeight / 2);
  const on = ["ArrowRight", "ArrowDown", "PageDown", " "], back = ["ArrowLeft", "ArrowUp", "PageUp"];
  const by = on.includes(event.key) - back.includes(event.key);
  if (by) { event.preventDefault(); pages[now + by]?.scrollIntoView(); }
});
"""


def parts(root: Path = ROOT) -> list[tuple[str, list[Path]]]:
    """The parts of the book that have chapters to teach from: caption and notebooks."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found = []
    for part in toc["parts"]:
        files = [root / f"{chapter['file']}.ipynb" for chapter in part["chapters"]]
        if re.match(r"[IVX]+\.", part["caption"]):
            found.append((part["caption"], [path for path in files if path.exists()]))
    return found


def section(inside: str) -> str:
    return f"<section>\n{inside}\n</section>"


def plain(text: str) -> str:
    """Markdown in one line, without what only the book understands: roles, and links to other chapters."""
    text = re.sub(r"\{[\w:]+\}`([^`]*)`", r"\1", " ".join(text.split()))
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)


def items(cells: list[str], after: str) -> list[str]:
    """The first list behind a phrase, in the cell of the phrase or the next, as inline Markdown."""
    text = next((cell[cell.index(after) :] for cell in cells if after in cell), "")
    found = []
    for token, inline in pairwise(MARKDOWN.parse(text)):
        if token.type == "bullet_list_close" or found and token.type == "heading_open":
            break
        if token.type == "paragraph_open" and token.level == 2:  # of a list's item
            found.append(plain(inline.content))
    return found


def listed(title: str, rows: list[str]) -> list[str]:
    """Slides with a heading and a list, as many as it takes to keep each readable."""
    pages: list[list[str]] = [[]]
    for row in rows:
        if pages[-1] and sum(map(len, pages[-1])) + len(row) > READABLE:
            pages.append([])
        pages[-1].append(row)
    lists = [[f"<li>{MARKDOWN.renderInline(row)}</li>" for row in page] for page in pages]
    return [section("\n".join([title, "<ul>", *rows, "</ul>"])) for rows in lists]


def address(data: dict[str, str]) -> str:
    """A stored picture as an address that holds all of it; nothing if there is none."""
    if "image/svg+xml" in data:
        drawing = base64.b64encode(data["image/svg+xml"].encode()).decode()
        return f"data:image/svg+xml;base64,{drawing}"
    return f"data:image/png;base64,{data['image/png'].replace(chr(10), '')}" if "image/png" in data else ""


def figures(notebook: NotebookNode) -> list[str]:
    """A slide for each figure with a caption: the stored picture, its alternative text, its caption."""
    slides = []
    for cell in notebook.cells:
        said = cell.metadata.get("mystnb", {})
        pictures = [found for o in cell.get("outputs", []) if (found := address(o.get("data", {})))]
        if "figure" in said and pictures:
            alt = html.escape(said.get("image", {}).get("alt", ""))
            picture = f'<img alt="{alt}" src="{pictures[0]}">'
            caption = MARKDOWN.renderInline(plain(said["figure"]["caption"]))
            slides.append(section(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"))
    return slides


def chapter(path: Path) -> list[str]:
    """All slides of one chapter."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    title = MARKDOWN.renderInline(plain(re.search(r"^# (.*)", cells[0], re.MULTILINE).group(1)))
    first = listed(f"<h1>{title}</h1>", items(cells, "Afterwards you can"))
    return [*first, *figures(notebook), *listed(f"<h2>{title}: summary</h2>", items(cells, "## Summary"))]


def page(caption: str, chapters: list[Path]) -> str:
    """One part as a page that needs nothing else."""
    note = "<footer>Figures of the book; see its chapters for the code.</footer>"
    slides = [section(f"<h1>{html.escape(caption)}</h1>\n{note}")]
    for path in chapters:
        slides += chapter(path)
    head = f'<meta charset="utf-8"><title>{html.escape(caption)}</title><style>{STYLE}</style>'
    body = "\n".join([*slides, f"<script>{TURN}</script>"])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def main(folder: Path = BUILD) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (caption, chapters) in enumerate(parts(), start=1):
        path = folder / f"part-{number}.html"
        path.write_text(page(caption, chapters), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
