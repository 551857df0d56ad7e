"""Make the students' notebooks and the solutions of all labs from their sources: `make labs [COURSE=name]`.

    source/lab1/lab1.ipynb        what is edited: nbgrader's cells, with solutions and hidden tests
    lab1.ipynb                    the student's, committed, so that the book and Colab can open it
    _build/labs/student/          the students' once more, to hand out
    _build/labs/solution/         for the teacher

With a course's name all three go to `_build/NAME`, and nothing is committed: sources, students', solutions.
The course has steps in other variants than the book, and runs of its own in lab 6. Both follow from the
name.

Students' notebooks are made by nbgrader's own preprocessors, called here. `nbgrader generate_assignment
--no-db` writes the same cells (a test compares them), but takes seconds a lab and wants a course's folder
around each.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import lab6_runs
import nbformat
import variants
from nbformat import NotebookNode
from nbgrader.converters import GenerateAssignment
from nbgrader.preprocessors import SaveCells
from traitlets.config import PyFileConfigLoader

LABS = Path(__file__).resolve().parent
BUILD = LABS.parents[1] / "_build" / "labs"


def sources(folder: Path = LABS) -> list[Path]:
    """The notebooks that all others are made of, in order."""
    return sorted(folder.glob("source/*/*.ipynb"))


def read(path: Path) -> NotebookNode:
    """A notebook as it is stored."""
    return nbformat.read(path, as_version=4)


def student(source: NotebookNode) -> NotebookNode:
    """A lab without solutions and hidden tests, as nbgrader releases it."""
    config = PyFileConfigLoader("nbgrader_config.py", str(LABS)).load_config()
    notebook, resources = copy.deepcopy(source), {}
    for step in GenerateAssignment().preprocessors:
        if step is not SaveCells:
            notebook, resources = step(config=config).preprocess(notebook, resources)
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Store a notebook, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    print(path)


def course_sources(course: str) -> dict[str, NotebookNode]:
    """The sources of a course of its own, by name."""
    options, made = variants.chosen(course), {}
    for path in sources():
        made[path.stem] = read(path)
        if path.stem in options:
            variants.apply(made[path.stem], path.stem, options[path.stem])
        if path.stem == "lab6":
            lab6_runs.write(made["lab6"], *lab6_runs.make(course))
    return made


def main(argv: list[str] | None = None) -> int:
    """Release the book's labs, or a course's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--course", default="", help="a name; variants of steps, and the runs of lab 6, follow from it"
    )
    course = parser.parse_args(argv).course
    folder = BUILD.parent / course if course else BUILD
    made = course_sources(course) if course else {path.stem: read(path) for path in sources()}
    for name, source in made.items():
        released = student(source)
        if course:
            write(source, folder / "source" / name / f"{name}.ipynb")
        else:
            write(released, LABS / f"{name}.ipynb")
        write(released, folder / "student" / f"{name}.ipynb")
        write(source, folder / "solution" / f"{name}.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main())
