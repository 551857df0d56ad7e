"""What of a submission is run, and in which order."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nbformat import NotebookNode

from nanogrpo.teach.grade.notebook import Lab, nbgrader

HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS\n?", re.DOTALL)


@dataclass(frozen=True)
class Piece:
    """One code cell to run: the student's, or, with a ``step``, a graded cell of the source.

    Attributes:
        source: Its code.
        step: The id of the graded cell; None for a student's.
        given: Names that a graded cell takes from the student's notebook.
    """

    source: str
    step: str | None = None
    given: tuple[str, ...] = ()


def plan(submitted: NotebookNode, lab: Lab) -> list[Piece]:
    """What is run, in order: the submitted code, with the source's graded cells for the submitted ones.

    A graded cell is found by nbgrader's id (the last of several, as nbgrader does), by the cell's own id, or
    by its text. One that is missing comes right after the step's answer, or last. Every other cell that
    looks like a graded one is run as the student's own.
    """
    places = {step: _place(step, lab, submitted.cells) for step in lab.tests}
    replaced = {index: step for step, (index, found) in places.items() if found}
    after: dict[int, list[str]] = {}
    for step, (index, found) in places.items():
        if not found:
            after.setdefault(index, []).append(step)
    pieces = []
    for index, cell in enumerate(submitted.cells):
        if index in replaced:
            pieces.append(_graded(replaced[index], lab))
        elif cell.cell_type == "code":
            pieces.append(Piece(cell.source))
        pieces += [_graded(step, lab) for step in after.get(index, [])]
    return pieces + [_graded(step, lab) for step in after.get(-1, [])]


def _place(step: str, lab: Lab, cells: Sequence[NotebookNode]) -> tuple[int, bool]:
    """Where a graded cell belongs, and whether it is there."""
    test = lab.tests[step]
    shown = "".join(HIDDEN.sub("", test.source).split())
    for same in (
        lambda cell: nbgrader(cell).get("grade_id") == step,
        lambda cell: cell.get("id") == test.get("id", ""),
        lambda cell: cell.cell_type == "code" and "".join(cell.source.split()) == shown,
    ):
        found = [index for index, cell in enumerate(cells) if same(cell)]
        if found:
            return found[-1], True
    ids = [name for cell in lab.notebook.cells if (name := nbgrader(cell).get("grade_id"))]
    there = {nbgrader(cell).get("grade_id"): index for index, cell in enumerate(cells)}
    before = [there[name] for name in ids[: ids.index(step)] if name in there]
    return (before[-1] if before else -1), False


def _graded(step: str, lab: Lab) -> Piece:
    source = lab.tests[step].source
    nodes = list(ast.walk(ast.parse(source)))
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return Piece(source, step, tuple(sorted(read & lab.names)))
