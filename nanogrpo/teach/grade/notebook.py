"""Notebooks of a lab: what they hold, and which lab a submission is."""

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
            f"no source of a lab in {path}: name the folder or the notebook with --source. It is that "
            "with solutions and hidden tests, in book/labs/source"
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
