"""What a link to a chapter looks like elsewhere: a card for each, drawn while the book is built.

A page that is no numbered chapter has the card of the book. Names hold a hash of what is drawn: a card that
is there already is not drawn again, and whoever keeps a copy of an old one sees that it is old.
"""

from __future__ import annotations

import hashlib
import textwrap
from pathlib import Path

import yaml
from chapter_map import number

FOLDER = "_images/cards"
WIDTH, HEIGHT, DPI = 1200, 630, 100
GROUND, INK, SOFT, LINE = "#14181e", "#ffffff", "#a8b3bd", "#56b4e9"
BOOK = ("", "nanoGRPO", "RLHF from scratch, in code small enough to read")


def wrapped(title: str, width: int = 28) -> list[str]:
    """The title in as many lines as it takes, at most four."""
    return textwrap.wrap(title, width, max_lines=4, placeholder=" …")


def draw(path: Path, own: str, title: str, below: str) -> None:
    """One card: number, title, and what stands below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor=GROUND)
    FigureCanvasAgg(figure)
    left = 0.07
    if own:
        figure.text(left, 0.80, own, color=LINE, size=54, weight="bold", va="center")
    lines = wrapped(title)
    for i, line in enumerate(lines):
        figure.text(left, 0.60 - 0.125 * i, line, color=INK, size=44, weight="bold", va="center")
    figure.text(left, 0.11, below, color=SOFT, size=22, va="center")
    figure.savefig(path, facecolor=GROUND, metadata={"Software": None})


def captions(root: Path) -> dict[str, str]:
    """The part of the book that a page stands in."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return {chapter["file"]: part["caption"] for part in toc["parts"] for chapter in part["chapters"]}


def words(app, pagename: str) -> tuple[str, str, str]:
    """What the card of a page says: number, title, and a line below."""
    own = number(app.env, pagename)
    if not own:
        return BOOK
    caption = captions(Path(app.srcdir))[pagename]
    return own, app.env.titles[pagename].astext(), f"nanoGRPO  ·  {caption}"


def add_card(app, pagename, templatename, context, doctree) -> None:
    """Name the card in the head of the page, by its whole address, and draw it if it is not there."""
    if not doctree or app.builder.format != "html" or "ogp_site_url" not in app.config:
        return  # without the extension for other sites, nobody would read it
    said = words(app, pagename)
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()[:8]
    name = f"{FOLDER}/{Path(pagename).name if said[0] else 'book'}-{digest}.png"
    path = Path(app.outdir, name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path, *said)
    alt = f"Chapter {said[0]}: {said[1]}" if said[0] else f"{said[1]}: {said[2]}"
    context["meta"] = {
        **(context.get("meta") or {}),
        "og:image": app.config.ogp_site_url + name,
        "og:image:alt": alt,
        "og:image:width": str(WIDTH),
        "og:image:height": str(HEIGHT),
    }
