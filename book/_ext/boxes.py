"""Where the parts of a drawing of Matplotlib stand: its texts, the frames of its axes, what lies on what."""

from __future__ import annotations

import re

SVG = "http://www.w3.org/2000/svg"
NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
Box = tuple[float, float, float, float]  # left, top, right, bottom


def groups(element, prefix: str = "") -> list:
    """The groups right below an element that Matplotlib named so."""
    return [g for g in element.findall(f"{{{SVG}}}g") if g.get("id", "").startswith(prefix)]


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


def image_box(image) -> Box:
    """Where a map of colors stands; Matplotlib draws it upside down and turns it."""
    x, y, width, height = (float(image.get(key, 0)) for key in ("x", "y", "width", "height"))
    moved = re.search(r"translate\(([^)]*)\)", image.get("transform", ""))
    dx, dy = map(float, NUMBERS.findall(moved[1])[:2]) if moved else (0.0, 0.0)
    turned = "scale(1 -1)" in image.get("transform", "")
    top = -(y + dy + height) if turned else y + dy
    return x + dx, top, x + dx + width, top + height
