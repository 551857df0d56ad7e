"""What comes of grading: a table to read, a CSV for Canvas, ``results.json`` for Gradescope."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

from nanogrpo.teach.grade.process import Graded

# A notebook in the archive that Canvas makes: name, perhaps LATE, id of the user, of the file.
CANVAS = re.compile(r"^(?P<student>[^_]+)_(?:LATE_)?(?P<id>\d+)_\d+_")


def student(path: Path, root: Path) -> tuple[str, str]:
    """Name and id of who handed in a file: from Canvas's file name, else the first folder, else the file."""
    found = CANVAS.match(path.name)
    if found:
        return found["student"], found["id"]
    inside = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    return (inside[0] if len(inside) > 1 else path.stem), ""


def table(graded: Sequence[Graded]) -> str:
    """A line for each submission, then what its failed steps said and what is worth a look."""
    lines = []
    for one in graded:
        if one.lab is None:
            lines.append(f"{one.path.name}: not graded. {one.error}")
            continue
        by_hand = f", {one.lab.by_hand:g} more by hand" if one.lab.by_hand else ""
        lines.append(f"{one.path.name}: {one.points:g} of {one.most:g} points ({one.lab.name}{by_hand})")
        for step in one.steps:
            mark = "passed" if step.points else "failed"
            lines.append(f"    {mark}  {step.points:>4g}  {step.name.removesuffix('-tests')}")
            lines += [f"        {text}" for text in (step.said, step.note and f"look: {step.note}") if text]
    return "\n".join(lines)


def write_csv(graded: Sequence[Graded], path: Path, root: Path) -> None:
    """Points of each step, and what is worth a look; a file for each lab if there are several."""
    labs = {one.lab.name: one.lab for one in graded if one.lab}
    for lab in labs.values():
        target = path if len(labs) == 1 else path.with_stem(f"{path.stem}-{lab.name}")
        steps = [name.removesuffix("-tests") for name in lab.points]
        with target.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["student", "id", "file", *steps, "points", "of", "look"])
            for one in graded:
                if one.lab is lab:
                    noted = [step for step in one.steps if step.note]
                    notes = "; ".join(f"{step.name.removesuffix('-tests')} {step.note}" for step in noted)
                    points = [f"{step.points:g}" for step in one.steps]
                    total = [f"{one.points:g}", f"{one.most:g}"]
                    out.writerow([*student(one.path, root), one.path.name, *points, *total, notes])


def write_canvas(graded: Sequence[Graded], path: Path, root: Path) -> None:
    """A table that Canvas's gradebook imports: a column for each lab, a first row with the points possible.

    Canvas takes any other column for an assignment, so there is none.
    """
    labs = {one.lab.name: one.lab for one in graded if one.lab}
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for one in graded:
        if one.lab:
            rows.setdefault(student(one.path, root), {})[one.lab.name] = one.points
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        titles = [lab.title for lab in labs.values()]
        out.writerow(["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *titles])
        most = [f"{sum(lab.points.values()):g}" for lab in labs.values()]
        out.writerow(["    Points Possible", "", "", "", "", *most])
        for (name, number), points in rows.items():
            got = [f"{points[lab]:g}" if lab in points else "" for lab in labs]
            out.writerow([name, number, "", "", "", *got])


def write_gradescope(one: Graded, path: Path) -> None:
    """``results.json`` of one submission, as Gradescope's autograder reads it.

    What a graded cell tagged ``after-due`` says would help to guess: students see it when the time is up.
    """

    tagged = {
        name: cell.metadata.get("tags", []) for name, cell in (one.lab.tests if one.lab else {}).items()
    }
    tests = [
        {
            "name": step.name.removesuffix("-tests"),
            "score": step.points,
            "max_score": step.most,
            "status": "passed" if step.points else "failed",
            "output": step.said or "Passed.",
            "visibility": "after_due_date" if "after-due" in tagged[step.name] else "visible",
        }
        for step in one.steps
    ]
    told = one.error
    if one.lab:
        told = f"{one.points:g} of {one.most:g} points by tests; {one.lab.by_hand:g} more by hand."
    text = json.dumps({"score": one.points, "output": told, "tests": tests}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
