"""The theme's icons, cut down to those that the book shows.

The theme's style sheet draws an icon from one of three fonts, 0.3 MB together. After the pages are written,
`icons.css` gets the few glyphs that they use, as fonts of some KB inside the style sheet. Any other icon
still comes from the theme's own fonts.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

FONTS = {  # file: (family, weight)
    "fa-solid-900": ("Font Awesome 6 Free", 900),
    "fa-regular-400": ("Font Awesome 6 Free", 400),
    "fa-brands-400": ("Font Awesome 6 Brands", 400),
}
RULE = re.compile(r'((?:\.fa-[a-z0-9-]+::?before,?)+)\{content:"\\([0-9a-f]+)"\}')
CLASS = re.compile(r"\bfa-[a-z0-9-]+")
ESCAPE = re.compile(r"\\(f[0-9a-f]{3})\b", re.IGNORECASE)
PRIVATE = re.compile("[\ue000-\uf8ff]")
FACE = """@font-face {{ font-family: "{family}"; font-weight: {weight}; font-display: block;
  src: url(data:font/woff;base64,{data}) format("woff"); unicode-range: {codes}; }}
"""


def codes_of(sheets: list[str], pages: list[str]) -> set[int]:
    """The icons that the pages name by a class, and those that the style sheets set by themselves."""
    by_class, own = {}, set()
    for sheet in sheets:
        for selectors, code in RULE.findall(sheet):
            by_class |= {name: int(code, 16) for name in CLASS.findall(selectors)}
        rest = RULE.sub("", sheet)
        own |= {int(code, 16) for code in ESCAPE.findall(rest)} | set(map(ord, PRIVATE.findall(rest)))
    return own | {by_class[name] for page in pages for name in CLASS.findall(page) if name in by_class}


def cut(font: Path, codes: set[int]) -> tuple[bytes, set[int]]:
    """The font with these characters only, as WOFF, and which of them it has."""
    from fontTools import subset
    from fontTools.ttLib import TTFont

    loaded = TTFont(font)
    found = codes & loaded.getBestCmap().keys()
    options = subset.Options(flavor="woff", layout_features=[], hinting=False, notdef_outline=True)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=found)
    cutter.subset(loaded)
    loaded.flavor, buffer = "woff", io.BytesIO()
    loaded.save(buffer)
    return buffer.getvalue(), found


def write_icons(app, exception) -> None:
    """Write `_static/icons.css` from the pages as they are."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    sheets = [p.read_text(encoding="utf-8") for p in static.rglob("*.css") if p.name != "icons.css"]
    pages = [p.read_text(encoding="utf-8") for p in Path(app.outdir).rglob("*.html")]
    scripts = [p.read_text(encoding="utf-8") for p in static.glob("scripts/*theme.js")]
    codes, faces = codes_of(sheets, pages + scripts), []
    for name, (family, weight) in FONTS.items():
        font = static / "vendor" / "fontawesome" / "webfonts" / f"{name}.ttf"
        data, found = cut(font, codes)
        if found:
            ranges = ", ".join(f"U+{code:x}" for code in sorted(found))
            encoded = base64.b64encode(data).decode()
            faces.append(FACE.format(family=family, weight=weight, data=encoded, codes=ranges))
    (static / "icons.css").write_text("".join(faces), encoding="utf-8")
