"""Notebooks of a lab: what they hold, which lab a submission is, and what of it is run."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from nanogrpo.errors import NanoGRPOError

HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS\n?", re.DOTALL)


class SubmissionError(NanoGRPOError, ValueError):
    """A file is not a notebook of a lab that can be graded."""


def nbgrader(cell: NotebookNode) -> dict:
    """What nbgrader knows of a cell; empty if nothing."""
    found = cell.get("metadata", {}).get("nbgrader", {})
    return found if isinstance(found, dict) else {}


def is_answer(cell: NotebookNode) -> bool:
    """A cell that students fill in, and that no person has to grade: the code of a step."""
    return bool(nbgrader(cell).get("solution")) and not nbgrader(cell).get("grade")


def is_test(cell: NotebookNode) -> bool:
    """A cell whose passing gives points."""
    return bool(nbgrader(cell).get("grade")) and not nbgrader(cell).get("solution")


def is_written(cell: NotebookNode) -> bool:
    """A cell that a person grades."""
    return bool(nbgrader(cell).get("grade")) and bool(nbgrader(cell).get("solution"))


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


@dataclass(frozen=True, eq=False)
class Lab:
    """A lab as its source has it.

    Attributes:
        name: Of its notebook, such as ``lab1``.
        notebook: The source, with solutions and hidden tests.
    """

    name: str
    notebook: NotebookNode

    @property
    def tests(self) -> dict[str, NotebookNode]:
        """Graded cells by id, in order."""
        return {nbgrader(cell)["grade_id"]: cell for cell in self.notebook.cells if is_test(cell)}

    @property
    def points(self) -> dict[str, float]:
        """Points of each of them."""
        return {name: nbgrader(cell)["points"] for name, cell in self.tests.items()}

    @property
    def by_hand(self) -> float:
        """Points that a person gives."""
        return sum(nbgrader(cell)["points"] for cell in self.notebook.cells if is_written(cell))

    @property
    def title(self) -> str:
        """The heading of its first cell."""
        found = re.search(r"^# (.+)", self.notebook.cells[0].source, re.MULTILINE)
        return found[1].strip() if found else self.name

    @property
    def names(self) -> set[str]:
        """What its answers define."""
        return set().union(*(defined(cell.source) for cell in self.notebook.cells if is_answer(cell)))


def defined(source: str) -> set[str]:
    """Names that a cell's functions, classes and assignments define; empty if it is no Python."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError):
        return set(re.findall(r"^(?:async )?def (\w+)", source, re.MULTILINE))
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def read(path: Path) -> NotebookNode:
    """A notebook of any version, as version 4.

    Raises:
        SubmissionError: It is none, or its code is not Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cells without ids, as Colab writes them
            notebook = nbformat.reads(path.read_text(encoding="utf-8-sig"), as_version=4)
        for cell in notebook.cells:
            if not isinstance(cell.source, str):
                raise TypeError("a cell's source is no text")
    except Exception as error:  # whatever a broken file can raise in the reader
        told = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        raise SubmissionError(f"{path} is not a notebook that can be read ({told})") from error
    about = notebook.get("metadata", {})
    language = about.get("kernelspec", {}).get("language") or about.get("language_info", {}).get("name")
    if language and language.lower() not in ("python", "ipython"):
        raise SubmissionError(f"{path} holds {language}, and the labs are in Python")
    return notebook


def labs_in(path: Path) -> list[Lab]:
    """The sources of labs: one notebook, or all that have graded cells in a folder.

    Raises:
        SubmissionError: There is none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.ipynb"))
    labs = [Lab(file.stem, read(file)) for file in files if ".ipynb_checkpoints" not in file.parts]
    labs = [lab for lab in labs if lab.tests]
    if not labs:
        raise SubmissionError(
            f"no source of a lab in {path}: name the folder or the notebook with --source. It is the one with "
            "solutions and hidden tests, in book/labs/source"
        )
    return labs


def lab_of(submitted: NotebookNode, labs: Sequence[Lab], path: Path) -> Lab:
    """The lab that a notebook answers, by what is in it: its file may have been renamed.

    Raises:
        SubmissionError: It has nothing of any of them.
    """

    def likeness(lab: Lab) -> tuple[int, bool]:
        ids = {nbgrader(cell).get("grade_id") for cell in submitted.cells}
        ids |= {cell.get("id") for cell in submitted.cells}
        own = {
            name for cell in lab.notebook.cells for name in (nbgrader(cell).get("grade_id"), cell.get("id"))
        }
        written = set().union(*(defined(c.source) for c in submitted.cells if c.cell_type == "code"))
        headed = any(lab.title in cell.source for cell in submitted.cells)
        return len((ids & own) - {None}) + len(written & lab.names) + 10 * headed, lab.name in path.stem

    best = max(labs, key=likeness)
    if not any(likeness(best)):
        known = ", ".join(lab.name for lab in labs)
        raise SubmissionError(f"{path} has no cell of any lab ({known})")
    return best


def plan(submitted: NotebookNode, lab: Lab) -> list[Piece]:
    """What is run, in order: the submitted code, with the source's graded cells in place of the submitted ones.

    A graded cell is found by nbgrader's id (the last of several, as nbgrader does), by the cell's own id, or by
    its text. One that is missing comes right after the step's answer, or last. Every other cell that looks
    like a graded one is run as the student's own.
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
