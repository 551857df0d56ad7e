"""Which chapter needs which, and how long each takes: read from the chapters' own words, set as a table.

A chapter says "**You need** [policy gradients](policy-gradients). **It takes** 30 minutes to read, ...". The
directive `chapter-map` makes a table of all numbered chapters from that, and so never says what they do not.
Numbers are Sphinx's (`numbered` in _toc.yml).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive

SAYS = re.compile(r"\*\*You need\*\*(?P<needs>.*?)\*\*It takes\*\*(?P<takes>.*?)(?:\n\s*\n|\Z)", re.DOTALL)
READING = re.compile(r"\b(?:(\d+) minutes|an hour) to (?:read|hunt)\b")
LINK = re.compile(r"\]\(([\w-]+)(?:\.ipynb|\.md)?(?:#[\w-]*)?\)")


class Chapter(NamedTuple):
    """A numbered chapter: its document, its title, the documents it needs, and its minutes of reading."""

    doc: str
    title: str
    needs: tuple[str, ...]
    minutes: int


def text_of(path: Path) -> str:
    """The text of a page, without code: of a notebook its cells of Markdown."""
    notebook = path.with_suffix(".ipynb")
    if not notebook.exists():
        return path.with_suffix(".md").read_text(encoding="utf-8")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def parse(doc: str, text: str) -> Chapter:
    """What a chapter says of itself.

    Raises:
        ValueError: it does not say what it needs, or how long it takes to read.
    """
    title, says = re.search(r"^# (.+)$", text, re.MULTILINE), SAYS.search(text)
    reading = READING.search(" ".join(says["takes"].split())) if says else None
    if not title or not says or not reading:
        raise ValueError(
            f"{doc} does not say what it needs and how long it takes; write '**You need** ... **It takes** "
            "N minutes to read, and ...' near its beginning"
        )
    folder = doc.rpartition("/")[0]
    needs = dict.fromkeys(f"{folder}/{name}" for name in LINK.findall(says["needs"]))
    return Chapter(doc, title[1].strip(), tuple(needs), int(reading[1] or 60))


def parts(root: Path) -> list[tuple[str, list[Chapter]]]:
    """The numbered parts of the book: caption and chapters, in the order of _toc.yml."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    numbered = [part for part in toc["parts"] if part.get("numbered")]
    return [
        (part["caption"], [parse(c["file"], text_of(root / c["file"])) for c in part["chapters"]])
        for part in numbered
    ]


def before(doc: str, chapters: dict[str, Chapter]) -> set[str]:
    """A chapter and all that it needs, directly or through others; what is no chapter does not count."""
    found: set[str] = set()
    waiting = [doc]
    while waiting:
        doc = waiting.pop()
        if doc in chapters and doc not in found:
            found.add(doc)
            waiting += chapters[doc].needs
    return found


class Placeholder(nodes.General, nodes.Element):
    """Where the map goes; numbers are known only when all pages are read."""


class ChapterMap(Directive):
    """``{chapter-map}``: the table."""

    def run(self):
        env = self.state.document.settings.env
        for _, chapters in parts(Path(env.srcdir)):
            for chapter in chapters:
                env.note_dependency(f"{chapter.doc}.ipynb")
        env.note_dependency("_toc.yml")
        return [Placeholder()]


def number(env, doc: str) -> str:
    """The number of a chapter, as "9", or nothing."""
    return ".".join(map(str, env.toc_secnumbers.get(doc, {}).get("", ())))


def renumber(app, env) -> None:
    """Let figures and exercises of a page without a number begin at 1; Sphinx counts on from page to page."""
    for doc, kinds in env.toc_fignumbers.items():
        for kind, found in kinds.items() if not number(env, doc) else ():
            in_order = sorted(found, key=found.get)
            kinds[kind] = {name: (place,) for place, name in enumerate(in_order, 1)}


def rows(of_part: list[Chapter], chapters: dict[str, Chapter], number_of, link) -> Iterable[str]:
    """The lines of one part."""
    for chapter in of_part:
        needs = ", ".join(
            f'<a href="{link(doc)}" title="{html.escape(chapters[doc].title)}">{number_of(doc)}</a>'
            for doc in chapter.needs
            if doc in chapters
        )
        way = sum(chapters[doc].minutes for doc in before(chapter.doc, chapters))
        name = f'<a href="{link(chapter.doc)}">{number_of(chapter.doc)}. {html.escape(chapter.title)}</a>'
        yield (
            f'<tr data-chapter="{chapter.doc}"><th scope="row">{name}</th><td>{needs or "none"}</td>'
            f"<td>{chapter.minutes}</td><td>{way}</td></tr>"
        )


def table(root: Path, number_of, link) -> str:
    """The map as HTML."""
    found = parts(root)
    chapters = {chapter.doc: chapter for _, each in found for chapter in each}
    heads = "".join(
        f'<th scope="col">{words}</th>'
        for words in ("Chapter", "Needs", "Minutes to read", "With all that it needs")
    )
    bodies = "".join(
        f'<tbody><tr><th scope="rowgroup" colspan="4">{html.escape(caption)}</th></tr>'
        f"{''.join(rows(each, chapters, number_of, link))}</tbody>"
        for caption, each in found
    )
    return f'<table class="table chapter-map"><thead><tr>{heads}</tr></thead>{bodies}</table>\n'


def draw(app, doctree, docname: str) -> None:
    for place in list(doctree.findall(Placeholder)):
        text = table(
            Path(app.srcdir),
            lambda doc: number(app.env, doc),
            lambda doc: app.builder.get_relative_uri(docname, doc),
        )
        place.replace_self(nodes.raw("", text, format="html"))


def add_mark(app, pagename, templatename, context, doctree) -> None:
    """The number in the title that is printed, and the place where a reader says that the chapter is read."""
    own = number(app.env, pagename) if app.builder.format == "html" else ""
    if own:
        context["pagetitle"] = f"{own}. {context['pagetitle']}"
        context["body"] += f'<div class="read-mark" data-chapter="{pagename}"></div>'
