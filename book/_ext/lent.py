"""Panels that share an axis, set apart: on a phone each has the numbers and the name that it went by.

Matplotlib writes the numbers of a shared axis beside one panel only. Where the panels stand one below the
other, the rest would have none, so each is lent a copy.
"""

from __future__ import annotations

import copy
from xml.etree import ElementTree as ET

from boxes import SVG, frame, groups

LINE, DIGIT = 12.0, 6.0  # points: the height of a line of numbers, the width of a digit
NEAR = 0.5  # points: frames that are drawn in one row, or in one column


def marks(axis) -> list:
    return groups(axis, "xtick") + groups(axis, "ytick")


def lacks_numbers(axis) -> bool:
    """Whether an axis has marks, and no number at any of them."""
    return bool(marks(axis)) and not any(list(mark.iter(f"{{{SVG}}}text")) for mark in marks(axis))


def lean(found: list) -> bool:
    """Whether a panel goes by the numbers of another one: then they cannot flow apart as they are."""
    return any(lacks_numbers(axis) for axes, _ in found for axis in groups(axes[0], "matplotlib.axis"))


def moved(element, dx: float, dy: float):
    """A copy of a text, so much further."""
    group = ET.Element(f"{{{SVG}}}g", {"id": "text", "transform": f"translate({dx:.3f} {dy:.3f})"})
    group.append(copy.deepcopy(element))
    return group


def stand(axis, along: int) -> list[int]:
    """Where the marks of an axis stand, in points along it."""
    used = [next(mark.iter(f"{{{SVG}}}use"), None) for mark in marks(axis)]
    return [-1 if use is None else round(float(use.get("xy"[along], 0))) for use in used]


def room(axis) -> float:
    """How wide the numbers of an axis are, about, in points."""
    numbers = ("".join(mark.itertext()).strip() for mark in marks(axis))
    return DIGIT * max(map(len, numbers), default=0)


def lender(panel, panels: list, along: int):
    """The panel of the same column, or of the same row, whose numbers this one goes by, if there is one."""
    own = frame(panel)
    for other in panels:
        axes, theirs = groups(other, "matplotlib.axis"), frame(other)
        apart = max(abs(own[along] - theirs[along]), abs(own[along + 2] - theirs[along + 2]))
        if other is not panel and len(axes) == 2 and apart < NEAR:
            mine = stand(groups(panel, "matplotlib.axis")[along], along)
            if stand(axes[along], along) == mine and not lacks_numbers(axes[along]):
                return other
    return None


def lend(panels: list) -> bool:
    """Give each panel the numbers that it lacks, and the name of that axis; says whether all were found."""
    done = True
    for panel in panels:
        own = groups(panel, "matplotlib.axis")
        for along, axis in enumerate(own[:2]):  # the first of them lies below, the second at the left
            if not lacks_numbers(axis):
                continue
            other = lender(panel, panels, along)
            if other is None:
                done = False
                continue
            theirs, place = groups(other, "matplotlib.axis")[along], frame(other)
            dx, dy = (0.0, frame(panel)[3] - place[3]) if along == 0 else (frame(panel)[0] - place[0], 0.0)
            for mark, number in zip(marks(axis), marks(theirs), strict=True):
                mark.extend([moved(text, dx, dy) for text in groups(number, "text")])
            titles = groups(axis, "text")
            if not titles:
                axis.extend([moved(text, dx, dy) for text in groups(theirs, "text")])
            for title in titles:  # it stood where the numbers are now
                axis.remove(title)
                axis.append(moved(title, *((0.0, LINE) if along == 0 else (-room(theirs), 0.0))))
    return done
