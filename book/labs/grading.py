"""Run a lab in this process, for tests and for timing: no time limit, nothing that keeps it in bounds.

Grading is `python -m nanogrpo.teach.grade`. What is shared with it is imported from there.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from nanogrpo.teach.grade.notebook import is_answer, is_test, is_written, nbgrader

__all__ = ["graded_as", "is_answer", "is_test", "is_written", "nbgrader", "run", "run_all", "source_of"]
LABS = Path(__file__).resolve().parent


def source_of(name: str) -> NotebookNode:
    """The source of a lab, by the name of its notebook: ``lab1``."""
    return nbformat.read(LABS / "source" / name / f"{name}.ipynb", as_version=4)


def graded_as(submitted: NotebookNode, source: NotebookNode) -> list[NotebookNode]:
    """The submitted cells, with the source's graded cells for the submitted ones."""
    tests = {nbgrader(cell)["grade_id"]: cell for cell in source.cells if is_test(cell)}
    return [tests.get(nbgrader(cell).get("grade_id"), cell) for cell in submitted.cells]


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
