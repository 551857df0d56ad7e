"""The figures of the chapters, set into the page: its font, its color, its width.

A chapter stores a figure as SVG, on a white ground, so that Jupyter shows it well. In the page an image would
keep that ground in the dark, and shrink two panels to the width of a phone. So its drawing is set into the
page: black is the color of the text, white the ground, and each panel is a drawing of its own that flows.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree as ET

SVG, LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
IMAGE = re.compile(r'<img alt="([^"]*)" src="[^"]*_images/([^"/]+\.svg)"[^>]*/?>')
INKS = {
    "#000000": "currentColor",
    "#ffffff": "var(--pst-color-background)",
    "#555555": "var(--pst-color-text-muted)",
}
NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
Box = tuple[float, float, float, float]  # left, top, right, bottom
WIDE = 420.0  # points; on a phone a wider drawing scrolls, so that its text can be read
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


def groups(element, prefix: str = "") -> list:
    """The groups right below an element that Matplotlib named so."""
    return [g for g in element.findall(f"{{{SVG}}}g") if g.get("id", "").startswith(prefix)]


def across(found: list[tuple[list, Box]]) -> int:
    """How many panels stood side by side."""
    tops = [round(frame(axes[0])[1]) for axes, _ in found]
    return max(map(tops.count, tops), default=1)


def text_box(text) -> Box:
    """About where a text stands; its width is a guess that is on the wide side."""
    words, style = "".join(text.itertext()).strip(), text.get("style", "")
    size = float((re.search(r"font(?:-size)?:[^;]*?([\d.]+)px", style) or [0, 10])[1])
    turn, x, y = 0.0, float(text.get("x", 0)), float(text.get("y", 0))
    transform = text.get("transform", "")
    if moved := re.search(r"translate\(([^)]*)\)", transform):
        x, y = map(float, NUMBERS.findall(moved[1])[:2])
    if turned := re.search(r"rotate\(([^)]*)\)", transform):
        turn = float(NUMBERS.findall(turned[1])[0])
    width, height = 0.58 * size * len(words), size
    before = {"middle": 0.5, "end": 1.0}.get((re.search(r"text-anchor: (\w+)", style) or [0, ""])[1], 0.0)
    left, right = -before * width, (1 - before) * width
    if abs(abs(turn) - 90) < 1:
        return x - height, y - right, x + 0.3 * height, y - left
    return x + left, y - height, x + right, y + 0.3 * height


def text_boxes(element, x: float = 0.0, y: float = 0.0) -> list[Box]:
    """Where the texts in an element stand; a formula, as on a logarithmic axis, is moved by its group."""
    found = []
    for part in element:
        if part.tag == f"{{{SVG}}}text":
            left, top, right, bottom = text_box(part)
            found.append((left + x, top + y, right + x, bottom + y))
        else:
            moved = re.search(r"translate\(([^)]*)\)", part.get("transform", ""))
            dx, dy = map(float, NUMBERS.findall(moved[1])[:2]) if moved else (0.0, 0.0)
            found += text_boxes(part, x + dx, y + dy)
    return found


def frame(axes) -> Box:
    """The rectangle of a panel's axes."""
    path = next(groups(axes, "patch")[0].iter(f"{{{SVG}}}path"))
    points = [float(n) for n in NUMBERS.findall(path.get("d"))]
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def union(boxes: list[Box]) -> Box:
    lows, highs = zip(*((box[:2], box[2:]) for box in boxes), strict=True)
    return *map(min, zip(*lows, strict=True)), *map(max, zip(*highs, strict=True))


def overlap(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def panels(figure) -> list[tuple[list, Box]]:
    """What is drawn together, and where: axes whose frames overlap, or a scale of colors beside its axes."""
    found: list[tuple[list, list[Box], Box]] = []
    for axes in groups(figure, "axes"):
        own = frame(axes)
        boxes = [own, *text_boxes(axes)]
        narrow = found and own[2] - own[0] < 0.15 * (found[-1][2][2] - found[-1][2][0])
        if found and (overlap(own, found[-1][2]) or narrow):
            found[-1] = found[-1][0] + [axes], found[-1][1] + boxes, union([found[-1][2], own])
        else:
            found.append(([axes], boxes, own))
    return [(axes, union(boxes)) for axes, boxes, _ in found]


def lean(found: list[tuple[list, Box]]) -> bool:
    """Whether a panel goes by the numbers of another one: then they cannot flow apart."""
    named = [axis for axes, _ in found for axis in groups(axes[0], "matplotlib.axis")]
    marked = [groups(axis, "xtick") + groups(axis, "ytick") for axis in named]
    return any(marks and not any(list(mark.iter(f"{{{SVG}}}text")) for mark in marks) for marks in marked)


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


def image_box(image) -> Box:
    """Where a map of colors stands; Matplotlib draws it upside down and turns it."""
    x, y, width, height = (float(image.get(key, 0)) for key in ("x", "y", "width", "height"))
    moved = re.search(r"translate\(([^)]*)\)", image.get("transform", ""))
    dx, dy = map(float, NUMBERS.findall(moved[1])[:2]) if moved else (0.0, 0.0)
    turned = "scale(1 -1)" in image.get("transform", "")
    top = -(y + dy + height) if turned else y + dy
    return x + dx, top, x + dx + width, top + height


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


def inline(svg: str, alt: str, name: str, placed: bool = False) -> str:
    """The drawing as it stands in the page; `alt` is escaped already. Panels that are `placed` say where."""
    root = ET.fromstring(svg)
    left, top, width, height = map(float, root.get("viewBox").split())
    figure = groups(root)[0]
    for ground in groups(figure, "patch"):
        figure.remove(ground)
    framed = all(groups(axes, "patch") for axes in groups(figure, "axes"))
    for axes in groups(figure, "axes"):
        for ground in groups(axes, "patch")[:1] if framed else []:  # its color is the page's
            next(ground.iter(f"{{{SVG}}}path")).set("style", "fill: none")
    keep_ink(figure)
    shared = [e for e in root.findall(f"{{{SVG}}}defs")]
    for defs in shared:
        for style in defs.findall(f"{{{SVG}}}style"):
            defs.remove(style)
    ink_of = panels(figure) if framed else []  # axes that are turned off have no frame to go by
    others = [e for e in figure if not e.get("id", "").startswith(("axes", "text"))]
    notes = [" ".join("".join(g.itertext()).split()) for g in groups(figure, "text")]
    whole = len(ink_of) < 2 or bool(others) or lean(ink_of) or any(
        overlap(a[1], b[1]) for i, a in enumerate(ink_of) for b in ink_of[i + 1 :]
    )  # fmt: skip
    parts = [([*figure], (left, top, left + width, top + height))] if whole else ink_of
    row, drawings = 1 if whole else across(ink_of), []
    for i, (drawn, (x0, y0, x1, y1)) in enumerate(parts):
        gap = 0.0 if whole else GAP
        box = x0 - gap, y0 - gap, x1 - x0 + 2 * gap, y1 - y0 + 2 * gap
        view = " ".join(f"{v:.1f}" for v in box)
        one = ET.Element(f"{{{SVG}}}svg", {"viewBox": view, "aria-hidden": "true"})
        if box[2] > WIDE:
            one.set("class", "wide")
        one.set("style", f"flex: {box[2]:.0f} 1 0; max-width: {1.35 * box[2]:.0f}px; --points: {box[2]:.0f}")
        one.extend([*([] if i else shared), *drawn])
        drawings.append(one)
    stage = ET.Element("div")
    stage.extend(drawings)
    ink(stage, name)
    names = places(row, len(drawings)) if placed else [""] * len(drawings)
    inside = "".join(
        (f'<p class="drawn-place">{place}</p>' if place else "") + ET.tostring(one, encoding="unicode")
        for place, one in zip(names, drawings, strict=True)
    )
    said = "" if whole else "".join(f'<p class="drawn-note">{html.escape(note)}</p>' for note in notes)
    grid = f' style="--row: {2 if row == MOST else row}"' if 1 < row <= MOST else ""
    reach = ' tabindex="0"' if any(one.get("class") for one in drawings) else ""  # by keyboard, to scroll
    return f'<div class="drawn" role="img"{reach}{grid} aria-label="{alt}">{said}{inside}</div>'


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
