"""Prove the labs with nbgrader itself: `make labs-grade`, or `python book/labs/course.py lab1`.

A course is set up in a temporary folder, each lab is released in it, and two students hand in: one the
solution, the other the released notebook as it is. Both are autograded, with nbgrader's own commands. The
table that is printed says what they got; the exit status is 1 unless the solution has all points that need no
person, and the unanswered lab none. With all labs, what each asks for and took goes to graded.md, which the
teacher's guide shows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from grading import run_all, source_of
from nbgrader.api import Gradebook

LABS = Path(__file__).resolve().parent
STUDENTS = ("solution", "unanswered")


def nbgrader(*arguments: str, folder: Path) -> None:
    """One command of nbgrader, with this environment's programs first, as nbgrader starts others by name."""
    bin = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([bin, os.environ.get("PATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"nbgrader {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")


def hand_in(course: Path, student: str, lab: str, notebook: Path) -> None:
    """Put a notebook where nbgrader collects them."""
    folder = course / "submitted" / student / lab
    folder.mkdir(parents=True)
    shutil.copy(notebook, folder / f"{lab}.ipynb")


def grade(course: Path, lab: str) -> dict[str, dict]:
    """Release one lab, hand in both notebooks, autograde them: what each student got."""
    nbgrader("generate_assignment", lab, folder=course)
    hand_in(course, "solution", lab, course / "source" / lab / f"{lab}.ipynb")
    hand_in(course, "unanswered", lab, course / "release" / lab / f"{lab}.ipynb")
    nbgrader("autograde", lab, folder=course)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "nanogrpo") as book:
        return {student: scores(book, lab, student) for student in STUDENTS}


def scores(book: Gradebook, lab: str, student: str) -> dict:
    """Points of the steps, the most there are, and the points that a person gives."""
    cells = book.find_submission_notebook(lab, lab, student).grades
    tests = [cell for cell in cells if cell.name.endswith("-tests")]
    return {
        "steps": {cell.name.removesuffix("-tests"): cell.auto_score for cell in tests},
        "score": sum(cell.auto_score for cell in tests),
        "max": sum(cell.max_score for cell in tests),
        "by hand": sum(cell.max_score for cell in cells if cell not in tests),
        "open": sum(cell.needs_manual_grade for cell in cells),
    }


def prove(lab: str, course: Path) -> dict[str, dict]:
    """Set up a course with one lab in a folder, and grade both notebooks in it."""
    shutil.copy(LABS / "nbgrader_config.py", course)
    shutil.copytree(LABS / "source" / lab, course / "source" / lab)
    return grade(course, lab)


def row(lab: str, got: dict) -> str:
    """A line of graded.md: title, points, minutes, and the seconds that the solution takes here."""
    cells = source_of(lab).cells
    title, minutes = re.search(r"# (.*)", cells[0].source)[1], re.search(r"(\d+) minutes", cells[0].source)[1]
    start = time.perf_counter()
    run_all(cells)
    took = time.perf_counter() - start
    points = f"{got['max']:g} | {got['by hand']:g}"
    return f"| [{title}]({lab}.ipynb) | {points} | {minutes} | {max(1, took):.0f} |"


def main(labs: list[str]) -> int:
    every, rows, failed = not labs, [], False
    labs = labs or sorted(path.name for path in (LABS / "source").iterdir())
    print(f"{'lab':<6} {'handed in':<11} {'points':>6}  of  by hand", flush=True)
    for lab in labs:
        with tempfile.TemporaryDirectory() as folder:
            for student, got in prove(lab, Path(folder)).items():
                points = f"{got['score']:>6g} {got['max']:>3g} {got['by hand']:>8g}"
                print(f"{lab:<6} {student:<11} {points}", flush=True)
                failed |= got["score"] != (got["max"] if student == "solution" else 0)
            rows.append(row(lab, got))
    if every and not failed:
        names = "| lab | points by tests | points by hand | minutes | seconds of the solution |"
        head = [names, "|---" * 5 + "|"]
        (LABS / "graded.md").write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
