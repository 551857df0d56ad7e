"""Notebooks that students hand in: a small lab, and right and wrong answers to it in many shapes."""

import json
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "labs"))

import release  # noqa: E402

STEPS = ("completion_mask", "logprobs_of", "perplexity")
MOST = 30


def lab():
    """Lab 1 with three of its steps and nothing beside them."""
    source = release.read(ROOT / "book/labs/source/lab1/lab1.ipynb")
    ids = {name for step in STEPS for name in (step, f"{step}-tests")}
    source.cells = [
        c
        for i, c in enumerate(source.cells)
        if i < 2 or c.metadata.get("nbgrader", {}).get("grade_id") in ids
    ]
    return source


def find(notebook, grade_id):
    """The cell of that id."""
    return next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)


def unanswered():
    """As it is handed out."""
    return release.student(lab())


def solved():
    """As a good student hands it in: her answers, the visible tests."""
    notebook, source = unanswered(), lab()
    for step in STEPS:
        find(notebook, step).source = find(source, step).source
    return notebook


def insert(notebook, source, at=2):
    """A cell more."""
    notebook.cells.insert(at, new_code_cell(source))
    return notebook


def append(notebook, source):
    return insert(notebook, source, len(notebook.cells))


def answer(step, source, notebook=None):
    """The solved notebook with another answer to one step."""
    notebook = notebook or solved()
    find(notebook, step).source = source
    return notebook


def without(notebook, *grade_ids):
    notebook.cells = [
        c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") not in grade_ids
    ]
    return notebook


def bare(notebook, ids=True):
    """Without cells' metadata, as some editors store it."""
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if not ids:
            cell.id = nbformat.v4.nbbase.random_cell_id()
    notebook.metadata = nbformat.NotebookNode()
    return notebook


def copied(notebook, source, first=False):
    """Each graded cell twice, the copy with another text, the metadata the same."""
    cells = []
    for cell in notebook.cells:
        twice = [cell]
        if cell.metadata.get("nbgrader", {}).get("grade"):
            copy = cell.copy()
            copy.source, copy.id = source, cell.id + "x"
            twice = [copy, cell] if first else [cell, copy]
        cells += twice
    notebook.cells = cells
    return notebook


def edited(notebook, source):
    """Each graded cell with another text."""
    for step in STEPS:
        find(notebook, f"{step}-tests").source = source
    return notebook


def colab(notebook):
    """As Colab writes it: nbformat 4.0, no ids of cells, metadata of its own."""
    notebook.nbformat_minor = 0
    for number, cell in enumerate(notebook.cells):
        cell.metadata["id"] = f"aBcD{number}"
        cell.pop("id", None)
        if cell.cell_type == "code":
            cell.execution_count = number
            cell.outputs = [nbformat.v4.new_output("stream", text="x" * 1000)]
    notebook.metadata = nbformat.from_dict(
        {"colab": {"provenance": []}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    return notebook


def vscode(notebook):
    """As VS Code writes it."""
    for cell in notebook.cells:
        cell.metadata["vscode"] = {"languageId": "python"}
    notebook.metadata = nbformat.from_dict({"language_info": {"name": "python", "version": "3.12.1"}})
    return notebook


def huge(notebook):
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="0123456789\n" * 3_000_000)]
    return append(notebook, "for i in range(300000): print('x' * 100)\nlist(range(1000000))")


def with_text(notebook):
    """A cell of notes."""
    notebook.cells.insert(3, new_markdown_cell("# My notes\n\n" * 10))
    return notebook


def only_text(notebook):
    """Its text alone."""
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    return notebook


def to_text(notebook):
    """Graded cells turned into text."""
    for index, cell in enumerate(notebook.cells):
        if cell.metadata.get("nbgrader", {}).get("grade"):
            notebook.cells[index] = new_markdown_cell(cell.source, metadata=cell.metadata, id=cell.id)
    return notebook


def with_points(notebook):
    """Graded cells that promise more."""
    for step in STEPS:
        find(notebook, f"{step}-tests").metadata.nbgrader.points = 1000
    return notebook


def other_ids(notebook):
    """Graded cells that are others."""
    for step in STEPS:
        cell = find(notebook, f"{step}-tests")
        cell.metadata.nbgrader.grade_id, cell.source, cell.id = f"{step}-other", "pass", f"other-{step}"
    return notebook


def moved(notebook):
    """The answer stands in a cell of the student's own, right behind the untouched one."""
    cell = find(notebook, "completion_mask")
    own = new_code_cell(cell.source)
    notebook.cells.insert(notebook.cells.index(cell) + 1, own)
    cell.source = find(unanswered(), "completion_mask").source
    return notebook


def write(notebook, path):
    """Store it as it is, however odd."""
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


IPYTHON = """
display(torch.ones(2))
print?
x = !echo hello
assert x == ["hello"]
%matplotlib inline
import asyncio
await asyncio.sleep(0)
y = (1
     != 2)
z = 7
w = (z
  % 3)
assert get_ipython() is not None
"""

ENDLESS = "while True:\n    pass"
DEAF = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
RIGHT = {
    "as it is": solved,
    "helper cells": lambda: insert(
        append(solved(), "helper = 3"), "import math\ndef helper(x):\n    return x"
    ),
    "text cells": lambda: with_text(solved()),
    "scratch: a graded cell copied, and it fails": lambda: copied(
        solved(), "check.check_perplexity(1)", first=True
    ),
    "scratch: a graded cell copied behind, and it fails": lambda: copied(solved(), "raise ValueError"),
    "graded cells edited": lambda: edited(solved(), "1 / 0"),
    "graded cells deleted": lambda: without(solved(), *(f"{step}-tests" for step in STEPS)),
    "graded cells to text": lambda: to_text(solved()),
    "metadata lost": lambda: bare(solved()),
    "metadata and ids lost": lambda: bare(solved(), ids=False),
    "double precision": lambda: insert(solved(), "torch.set_default_dtype(torch.float64)"),
    "IPython": lambda: insert(solved(), IPYTHON),
    "cell magics": lambda: insert(insert(solved(), "%%time\nq = 3"), "%%capture\nprint(1)"),
    "a line magic in an answer": lambda: answer(
        "perplexity", "%matplotlib inline\n" + find(lab(), "perplexity").source
    ),
    "Colab": lambda: colab(solved()),
    "VS Code": lambda: vscode(solved()),
    "huge outputs": lambda: huge(solved()),
    "exit at the end": lambda: append(solved(), "exit()"),
    "exit in the middle": lambda: insert(insert(solved(), "quit"), "import sys\nsys.exit(1)"),
    "an interrupt": lambda: insert(solved(), "raise KeyboardInterrupt"),
    "errors beside the steps": lambda: insert(insert(solved(), "1 / 0"), "def broken(:"),
    "input": lambda: insert(solved(), "name = input('Who are you?')"),
    "Colab's drive": lambda: insert(solved(), "from google.colab import drive\ndrive.mount('/content')"),
    "names of the graded cells": lambda: insert(solved(), "check = 3\nprint = None\n_ = 4"),
    "gradients off": lambda: insert(solved(), "torch.set_grad_enabled(False)"),
    "warnings are errors": lambda: insert(solved(), "import warnings\nwarnings.simplefilter('error')"),
    "a default device": lambda: insert(solved(), "torch.set_default_device('cpu')"),
    "a loop beside the steps": lambda: insert(solved(), ENDLESS),
    "a deaf loop beside the steps": lambda: insert(solved(), DEAF),
    "a dead process beside the steps": lambda: insert(solved(), "import os\nos._exit(0)"),
    "points edited": lambda: with_points(solved()),
    "a program that may not start": lambda: append(
        solved(), "import subprocess\nsubprocess.Popen(['sleep', '1000'])"
    ),
    "an answer behind its own cell": lambda: moved(solved()),
}


def mask(body):
    """The solved notebook with another body of one answer."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return lambda: answer("completion_mask", f"def completion_mask(completion_ids, eos_id):\n{lines}\n")


BODIES = {  # of one answer, which loses its step and no other
    "endless": ENDLESS,
    "endless and deaf": DEAF,
    "endless in C": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "asleep": "import time\ntime.sleep(1e6)",
    "hungry": "x = []\nwhile True: x.append(bytearray(10 ** 8))",
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "SystemExit": "raise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "segmentation fault": "import signal\nsignal.raise_signal(signal.SIGSEGV)",
    "bottomless": "return completion_mask(completion_ids, eos_id)",
    "skipped": "import unittest\nraise unittest.SkipTest",
}
MASK = "completion_mask"
PARTLY = {  # what it is, and the steps that are lost
    **{name: (mask(body), {MASK}) for name, body in BODIES.items()},
    "one wrong": (lambda: answer("perplexity", "def perplexity(a, b):\n    return a"), {"perplexity"}),
    "no Python": (lambda: answer(MASK, "def completion_mask(:"), {MASK}),
    "answer deleted": (lambda: without(solved(), MASK), {MASK}),
    "answer and test deleted": (lambda: without(solved(), MASK, f"{MASK}-tests"), {MASK}),
    "unanswered": (unanswered, set(STEPS)),
    "no cells of code": (lambda: only_text(unanswered()), set(STEPS)),
}
