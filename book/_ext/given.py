"""Show on a lab's page what the lab gives: run its cells up to the first answer, in a copy.

    python book/_ext/given.py _build/source/book/labs

A student's notebook is stored without outputs, since students run it. A reader of the page has no kernel,
and a lab that begins with curves is nothing without them. Only labs with a figure among what is given are
run: its cell has an alt text in the metadata.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
from clean import clean, machine_paths
from execute import DRAWN, DRAWN_SETTINGS, ROOT, Client, kernels

ANSWER = "raise NotImplementedError"


def given(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook up to its first answer; the cells are those of ``nb`` itself."""
    first = next((i for i, cell in enumerate(nb.cells) if ANSWER in cell.source), len(nb.cells))
    return nbformat.v4.new_notebook(metadata=nb.metadata, cells=nb.cells[:first])


def shows_figures(nb: nbformat.NotebookNode) -> bool:
    return any(cell.metadata.get("mystnb", {}).get("image", {}).get("alt") for cell in nb.cells)


def show(path: Path) -> bool:
    """Run what a lab gives and store the outputs of cells with an alt text; whether there are any."""
    nb = nbformat.read(path, as_version=4)
    part = given(nb)
    if not shows_figures(part):
        return False
    client = Client(part, timeout=600, startup_timeout=900, kernel_name="python3", record_timing=False)
    client.resources, client.extra_arguments = {"metadata": {"path": str(path.parent)}}, DRAWN
    # What a kernel says of its own connection is of no use to who builds the book.
    settings = {**DRAWN_SETTINGS, "PYTHONHASHSEED": "0"}
    client.execute(env={**kernels(), **os.environ, **settings}, stderr=subprocess.DEVNULL)
    clean(part, machine_paths(ROOT))
    nbformat.write(nb, path)
    return True


if __name__ == "__main__":
    for lab in sorted(Path(sys.argv[1]).glob("lab*.ipynb")):
        show(lab)
