"""Run a lab in this process and see which of its steps pass: no nbgrader, no kernel, no database.

A cell that raises does not stop the rest, as in nbgrader's autograder. The graded cells are always those of
the source, so a student who edits or deletes a check gains nothing by it.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import nbformat
from nbformat import NotebookNode

LABS = Path(__file__).resolve().parent


def nbgrader(cell: NotebookNode) -> dict:
    """What nbgrader knows of a cell; empty if nothing."""
    return cell.metadata.get("nbgrader", {})


def is_answer(cell: NotebookNode) -> bool:
    """A cell that students fill in, and that no person has to grade: the code of a step."""
    return bool(nbgrader(cell).get("solution")) and not nbgrader(cell).get("grade")


def is_test(cell: NotebookNode) -> bool:
    """A cell whose passing gives points."""
    return bool(nbgrader(cell).get("grade")) and not nbgrader(cell).get("solution")


def is_written(cell: NotebookNode) -> bool:
    """A cell that a person grades."""
    return bool(nbgrader(cell).get("grade")) and bool(nbgrader(cell).get("solution"))


def source_of(name: str) -> NotebookNode:
    """The source of a lab, by the name of its notebook: ``lab1``."""
    paths = sorted(LABS.glob(f"source/*/{name}.ipynb"))
    if not paths:
        known = ", ".join(path.stem for path in sorted(LABS.glob("source/*/*.ipynb")))
        raise FileNotFoundError(f"no lab is called {name!r}; rename your notebook to one of {known}")
    return nbformat.read(paths[0], as_version=4)


def graded_as(submitted: NotebookNode, source: NotebookNode) -> list[NotebookNode]:
    """The submitted cells, with the source's graded cells for the submitted ones; lost ones come last."""
    tests = {nbgrader(cell)["grade_id"]: cell for cell in source.cells if is_test(cell)}
    kept = [tests.pop(nbgrader(cell).get("grade_id"), cell) for cell in submitted.cells]
    return kept + list(tests.values())


def run(cell: NotebookNode, namespace: dict) -> Exception | None:
    """Run one code cell, quietly; what it raises is handed back."""
    code = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE)  # without magics
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            with warnings.catch_warnings(action="ignore"):
                exec(compile(code, f"<{nbgrader(cell).get('grade_id', 'cell')}>", "exec"), namespace)
    except Exception as error:
        return error
    return None


def run_all(cells: list[NotebookNode]) -> list[tuple[NotebookNode, Exception | None]]:
    """Run all code cells in one fresh namespace: each with what it raised."""
    namespace = {"__name__": "__main__"}
    return [(cell, run(cell, namespace)) for cell in cells if cell.cell_type == "code"]
