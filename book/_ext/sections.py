"""What the search looks through: every section of the book, and every object of the package, with its text.

Sphinx's own index knows pages and names, ranks names first, and lands at the top of a page. This one is
written as a script, so that the search works in a folder that no server serves; book-search.js ranks it.
"""

from __future__ import annotations

import json
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

# Not prose: code, what it printed, formulas, and the titles, which have a place of their own.
SKIPPED = (nodes.literal_block, nodes.math, nodes.math_block, nodes.raw, nodes.comment, nodes.title)


def own_text(node) -> str:
    """The words of a section, without those of the sections and objects inside it."""
    words = []

    def walk(inside):
        for child in inside.children:
            if isinstance(child, nodes.Text):
                words.append(child.astext())
            elif child.get("refdomain") == "cite":
                continue  # the key of a work
            elif not isinstance(child, (nodes.section, addnodes.desc, addnodes.toctree, *SKIPPED)):
                walk(child)
                if isinstance(child, nodes.Element) and not isinstance(child, nodes.Inline):
                    words.append(" ")

    walk(node)
    return " ".join("".join(words).split())


def entries(docname: str, doctree) -> list[list[str]]:
    """Page, anchor, title of the page, own title and text, of each section and object of a page."""
    found, page = [], ""
    for node in doctree.findall(lambda n: isinstance(n, (nodes.section, addnodes.desc))):
        if isinstance(node, nodes.section):
            if not node.children or not isinstance(node[0], nodes.title):
                continue  # what is inside an exercise is a section without a title
            title, anchor = node[0].astext(), node["ids"][0]
            page = page or title
        else:
            signature = node.next_node(addnodes.desc_signature)
            if not signature or not signature["ids"]:
                continue
            title = anchor = signature["ids"][0]
        found.append([docname, "" if title == page else anchor, page, title, own_text(node)])
    return found


def write_sections(app, exception) -> None:
    if exception or app.builder.format != "html":
        return
    rows = [row for name in sorted(app.env.found_docs) for row in entries(name, app.env.get_doctree(name))]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    Path(app.outdir, "_static", "sections.js").write_text(f"const SECTIONS = {text};\n", encoding="utf-8")
