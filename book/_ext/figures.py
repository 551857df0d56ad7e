"""The figures of the chapters, set into the page: its font, its color, its width.

A chapter stores a figure as SVG, on a white ground, so that Jupyter shows it well. In the page an image would
keep that ground in the dark, and shrink two panels to the width of a phone. So its drawing is set into the
page: black is the color of the text, white the ground, and each panel is a drawing of its own that flows.
"""

from __future__ import annotations

import copy
import html
import re
from pathlib import Path
from xml.etree import ElementTree as ET

from boxes import NUMBERS, SVG, Box, frame, groups, image_box, overlap, text_box, text_boxes, union
from lent import lean, lend

LINK = "{http://www.w3.org/1999/xlink}href"
IMAGE = re.compile(r'<img alt="([^"]*)" src="[^"]*_images/([^"/]+\.svg)"[^>]*/?>')
INKS = {
    "#000000": "currentColor",
    "#ffffff": "var(--pst-color-background)",
    "#555555": "var(--pst-color-text-muted)",
}
WIDE = 450.0  # points; on a phone a wider drawing scrolls, so that its text can be read
MOST = 4  # panels side by side, as they were drawn; a page has room for two pairs of four
GAP = 3.0  # around a panel, in points
SIDES = {2: ("left", "right"), 3: ("left", "middle", "right")}
# Words that say where a panel stands; on a phone it stands there no longer, so it says its name (book.css).
PLACED = re.compile(
    r"\b(?:[Ll]eft(?! out)|[Mm]iddle|Right(?=[,:])|[Rr]ight(?= panel| half)|[Oo]n the right)\b"
)
NO_PROSE = re.compile(r"<(pre|style|script)\b.*?</\1>", re.DOTALL)  # a style sheet has a middle as well
NEAR = 4000  # characters of the page, before a figure and behind it, in which a text speaks of it

ET.register_namespace("", SVG)
ET.register_namespace("xlink", LINK[1:].split("}")[0])


def across(found: list[tuple[list, Box]]) -> int:
    """How many panels stood side by side."""
    tops = [round(frame(axes[0])[1]) for axes, _ in found]
    return max(map(tops.count, tops), default=1)


def beside(own: Box, found: list) -> int | None:
    """The panel at whose right a scale of colors stands, by its place; nothing if these axes are no scale."""
    near = [
        (box[2], i)
        for i, (_, _, box) in enumerate(found)
        if box[2] <= own[0] and min(box[3], own[3]) > max(box[1], own[1])
        and own[2] - own[0] < 0.15 * (box[2] - box[0])
    ]  # fmt: skip
    return max(near)[1] if near else None


def panels(figure) -> list[tuple[list, Box]]:
    """What is drawn together, and where: axes whose frames overlap, or a scale of colors beside its axes."""
    found: list[tuple[list, list[Box], Box]] = []
    for axes in groups(figure, "axes"):
        own = frame(axes)
        boxes = [own, *text_boxes(axes)]
        at = next((i for i, known in enumerate(found) if overlap(own, known[2])), beside(own, found))
        if at is not None:
            found[at] = found[at][0] + [axes], found[at][1] + boxes, union([found[at][2], own])
        else:
            found.append(([axes], boxes, own))
    return [(axes, union(boxes)) for axes, boxes, _ in found]


def fill(element) -> str:
    """The color of a shape or a word, or nothing."""
    style = element.get("style", "")
    found = re.search(r"(?:^|; ?)fill: (#\w{6})", style)
    return found[1] if found and "opacity" not in style else ""


def keep_ink(figure) -> None:
    """Words on a colored ground keep their color: the ground is the same in the dark."""
    grounds: list[tuple[Box, str]] = []
    for element in figure.iter():
        if element.tag == f"{{{SVG}}}path" and fill(element):
            points = [float(n) for n in NUMBERS.findall(element.get("d", ""))]
            box = min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])
            grounds.append((box, fill(element)))
        elif element.tag == f"{{{SVG}}}image":
            grounds.append((image_box(element), "image"))
        elif element.tag == f"{{{SVG}}}text":
            left, top, right, bottom = text_box(element)
            x, y = (left + right) / 2, (top + bottom) / 2
            under = [ground for box, ground in grounds if box[0] < x < box[2] and box[1] < y < box[3]]
            if under and under[-1] != "#ffffff" and fill(element) in ("", *INKS):
                kept = (
                    "#fefefe" if fill(element) == "#ffffff" else "#111111"
                )  # as good, and no color of the page
                style = re.sub(r"(^|; ?)fill: #\w{6}", "", element.get("style", ""))
                element.set("style", f"{style}; fill: {kept}".lstrip("; "))


def ink(root, name: str) -> None:
    """Colors by the page, names of its own for what a drawing refers to, and nothing that is not needed."""
    used = set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values())))
    for element in root.iter():
        own = element.attrib.pop("id", "")
        if own in used:
            element.set("id", f"{name}-{own}")
        for key, value in element.attrib.items():
            if key == LINK:
                element.set(key, value.replace("#", f"#{name}-"))
            elif key == "clip-path":
                element.set(key, value.replace("url(#", f"url(#{name}-"))
            elif key == "style":
                value = re.sub(r"font-family: [^;]*(; )?", "", value.replace("url(#", f"url(#{name}-"))
                value = re.sub(r"(font: [^;]*?px) [^;]*", r"\1 inherit", value)
                element.set(key, re.sub("|".join(INKS), lambda found: INKS[found[0]], value))
            elif key == "d":
                element.set(key, re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split())))


def places(row: int, count: int) -> list[str]:
    """What a text calls each of so many panels, in rows of `row`; nothing where it has no such names."""
    sides, rows = SIDES.get(row, ()), -(-count // row)
    if not sides or rows > 2:
        return [""] * count
    heights = ("top ", "bottom ") if rows == 2 else ("",)
    return [f"{heights[i // row]}{sides[i % row]}" for i in range(count)]


def prepare(root) -> tuple:
    """The figure without its grounds, what its drawings refer to, and whether all its axes have frames."""
    figure = groups(root)[0]
    for ground in groups(figure, "patch"):
        figure.remove(ground)
    framed = all(groups(axes, "patch") for axes in groups(figure, "axes"))
    for axes in groups(figure, "axes"):
        for ground in groups(axes, "patch")[:1] if framed else []:  # its color is the page's
            next(ground.iter(f"{{{SVG}}}path")).set("style", "fill: none")
    keep_ink(figure)
    shared = root.findall(f"{{{SVG}}}defs")
    for defs in shared:
        for style in defs.findall(f"{{{SVG}}}style"):
            defs.remove(style)
    return figure, shared, framed


def draw(parts: list[tuple[list, Box]], shared: list, name: str, kind: str = "") -> tuple[list[str], bool]:
    """Each part as a drawing of its own, and whether one is so wide that on a phone it scrolls."""
    drawings, wide = [], False
    for i, (drawn, (x0, y0, x1, y1)) in enumerate(parts):
        view = " ".join(f"{v:.1f}" for v in (x0, y0, x1 - x0, y1 - y0))
        one = ET.Element(f"{{{SVG}}}svg", {"viewBox": view, "aria-hidden": "true"})
        scrolls = x1 - x0 > WIDE and kind != "together"  # which a phone does not show
        if kinds := " ".join(filter(None, (kind, "wide" * scrolls))):
            one.set("class", kinds)
        width = x1 - x0
        one.set("style", f"flex: {width:.0f} 1 0; max-width: {1.35 * width:.0f}px; --points: {width:.0f}")
        one.extend([*([] if i else shared), *drawn])
        drawings.append(one)
        wide = wide or scrolls
    stage = ET.Element("div")
    stage.extend(drawings)
    ink(stage, name)
    return [ET.tostring(one, encoding="unicode") for one in drawings], wide


def serves_more(panel: tuple[list, Box]) -> bool:
    """Whether a scale of colors is higher than the panel it stands beside: then it is that of others, too."""
    heights = [bottom - top for _, top, _, bottom in map(frame, panel[0])]
    return max(heights) > 1.1 * heights[0]


def room(parts: list[tuple[list, Box]]) -> list[tuple[list, Box]]:
    """Panels with a gap around each; those of one row have like margins, so that their axes are in line."""
    rows: dict[tuple[int, int], list[Box]] = {}
    for axes, (x0, y0, x1, y1) in parts:
        left, top, right, bottom = frame(axes[0])
        margins = left - x0, top - y0, x1 - right, y1 - bottom
        rows.setdefault((round(top), round(bottom)), []).append(margins)
    roomy = []
    for axes, _ in parts:
        left, top, right, bottom = frame(axes[0])
        most = map(max, zip(*rows[round(top), round(bottom)], strict=True))
        before, above, behind, below = (margin + GAP for margin in most)
        roomy.append((axes, (left - before, top - above, right + behind, bottom + below)))
    return roomy


def apart(root, name: str, placed: bool) -> tuple[str, bool]:
    """The panels of a drawing that is one for a wide page, one below the other for a phone; or nothing."""
    figure, shared, framed = prepare(root)
    found = panels(figure) if framed else []
    others = [e for e in figure if not e.get("id", "").startswith(("axes", "text"))]
    if len(found) < 2 or across(found) < 2 or others or any(map(serves_more, found)):
        return "", False
    if not lend([axes[0] for axes, _ in found]):
        return "", False
    names = places(across(found), len(found)) if placed else [""] * len(found)
    notes = [" ".join("".join(g.itertext()).split()) for g in groups(figure, "text")]
    alone = [part for panel in panels(figure) for part in room([panel])]
    drawings, wide = draw(alone, shared, f"{name}p", "apart")  # takes the groups' names
    said = "".join(f'<p class="drawn-note apart">{html.escape(note)}</p>' for note in notes)
    return said + flow(drawings, names), wide


def flow(drawings: list[str], names: list[str]) -> str:
    """Drawings, each below the name of its place."""
    named = zip(names, drawings, strict=True)
    return "".join((f'<p class="drawn-place">{place}</p>' if place else "") + one for place, one in named)


def inline(svg: str, alt: str, name: str, placed: bool = False) -> str:
    """The drawing as it stands in the page; `alt` is escaped already. Panels that are `placed` say where."""
    root = ET.fromstring(svg)
    left, top, width, height = map(float, root.get("viewBox").split())
    kept = copy.deepcopy(root)
    figure, shared, framed = prepare(root)
    found = panels(figure) if framed else []  # axes that are turned off have no frame to go by
    others = [e for e in figure if not e.get("id", "").startswith(("axes", "text"))]
    notes = [" ".join("".join(g.itertext()).split()) for g in groups(figure, "text")]
    whole = len(found) < 2 or bool(others) or lean(found) or any(
        overlap(a[1], b[1]) for i, a in enumerate(found) for b in found[i + 1 :]
    )  # fmt: skip
    row, side, note, reached = 1, "", "", False
    if whole:
        side, reached = apart(kept, name, placed) if width > WIDE else ("", False)
        parts = [([*figure], (left, top, left + width, top + height))]
        drawings, wide = draw(parts, shared, name, "together" if side else "")
        inside = flow(drawings, [""])
    else:
        row = across(found)
        drawings, wide = draw(room(found), shared, name)
        inside = flow(drawings, places(row, len(found)) if placed else [""] * len(found))
        note = "".join(f'<p class="drawn-note">{html.escape(note)}</p>' for note in notes)
    grid = f' style="--row: {2 if row == MOST else row}"' if 1 < row <= MOST else ""
    reach = ' tabindex="0"' if wide or reached else ""  # by keyboard, to scroll
    return f'<div class="drawn" role="img"{reach}{grid} aria-label="{alt}">{note}{inside}{side}</div>'


def set_in(text: str, folder_of) -> str:
    """The page with each of its SVG figures set in; `folder_of` finds the file of an image by its name."""
    count = 0
    prose = NO_PROSE.sub(lambda found: " " * len(found[0]), text)  # as long as the page

    def drawn(match):
        nonlocal count
        count += 1
        source = folder_of(match[2])
        if not source:
            return match[0]
        near = prose[max(0, match.start() - NEAR) : match.start()] + prose[match.end() : match.end() + NEAR]
        placed = bool(PLACED.search(re.sub(r"<[^>]*>", " ", near)))
        return inline(Path(source).read_text(encoding="utf-8"), match[1], f"d{count}", placed)

    return IMAGE.sub(drawn, text)
