"""What the repository says of itself, as pages of the book: how to cite it, and what has changed.

The files stand where GitHub and package indices look for them, so their text is set in while a page is read.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

CITE, CHANGES = "<!-- the entry of CITATION.cff -->", "<!-- the text of CHANGELOG.md -->"
DATED = re.compile(r"^### .*?(\d{4})-(\d\d)-(\d\d)$", re.MULTILINE)


def bibtex(citation: dict, date: tuple[str, str]) -> str:
    """The entry for a bibliography: what CITATION.cff says, and year and month of the last change."""
    authors = " and ".join(
        f"{{{a['name']}}}" if "name" in a else f"{a['family-names']}, {a['given-names']}"
        for a in citation["authors"]
    )
    rows = {
        "title": f"{{{citation['title']}}}",
        "author": authors,
        "year": date[0],
        "month": str(int(date[1])),
        "version": citation["version"],
        "url": citation["url"],
        "note": f"Code: {citation['repository-code']}",
    }
    inside = "".join(f"  {name:<8}= {{{value}}},\n" for name, value in rows.items())
    return f"@{citation['type']}{{nanogrpo,\n{inside}}}"


def changes(text: str) -> str:
    """The changelog below its title."""
    return text.split("\n", 1)[1].strip()


def last_change(text: str) -> tuple[str, str]:
    """Year and month of the latest dated entry."""
    return max(DATED.findall(text))[:2]


def set_in(app, docname: str, source: list[str]) -> None:
    """Put the files' text where a page has its mark."""
    from nanogrpo.show.source import ROOT

    if CITE not in source[0] and CHANGES not in source[0]:
        return
    cff, log = ROOT / "CITATION.cff", ROOT / "CHANGELOG.md"
    changelog = log.read_text(encoding="utf-8")
    entry = bibtex(yaml.safe_load(cff.read_text(encoding="utf-8")), last_change(changelog))
    source[0] = source[0].replace(CITE, f"```bibtex\n{entry}\n```").replace(CHANGES, changes(changelog))
    app.env.dependencies[docname] |= {str(Path(cff)), str(Path(log))}
