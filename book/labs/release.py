"""Make the students' notebooks and the solutions of all labs from their sources: `make labs`.

    source/lab1/lab1.ipynb        what is edited: nbgrader's cells, with solutions and hidden tests
    lab1.ipynb                    the student's, committed, so that the book and Colab can open it
    _build/labs/student/          the students' once more, to hand out
    _build/labs/solution/         for the teacher

Releasing needs no database, so nbgrader's own steps are run here without one: `nbgrader generate_assignment`
writes the same notebook, and takes seven seconds a lab.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import nbformat
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


def main() -> int:
    for path in sources():
        source = read(path)
        released = student(source)
        write(released, LABS / path.name)
        write(released, BUILD / "student" / path.name)
        write(source, BUILD / "solution" / path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
