"""Code that a reader of Part III must scroll past is folded, so that ideas come before plumbing."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
MOST = 40  # lines of a code cell that stands open on its page
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def part(number, toc=ROOT / "_toc.yml"):
    """The notebooks of a part of the book, by its Roman number."""
    parts = yaml.safe_load(toc.read_text(encoding="utf-8"))["parts"]
    (found,) = [each for each in parts if each["caption"].startswith(f"{number}. ")]
    paths = [ROOT / re.sub(r"(\.ipynb)?$", ".ipynb", entry["file"], count=1) for entry in found["chapters"]]
    return [path for path in paths if path.exists()]


def long_cells(notebook):
    """Ids and lines of the code cells that are too long to stand open."""
    return {
        cell.id: lines
        for cell in notebook.cells
        if cell.cell_type == "code"
        and not FOLDED & set(cell.metadata.get("tags", []))
        and (lines := len(cell.source.splitlines())) > MOST
    }


def test_a_long_cell_is_caught_and_a_folded_one_is_not():
    long, edge = "\n".join(["x = 1"] * (MOST + 1)), "\n".join(["x = 1"] * MOST)
    folded = new_code_cell(long, metadata={"tags": ["hide-input", "run"]})
    other = new_code_cell(long, metadata={"tags": ["run"]})
    made = new_notebook(cells=[new_code_cell(edge), folded, other])
    assert long_cells(made) == {other.id: MOST + 1}


@pytest.mark.parametrize("path", part("III"), ids=lambda path: path.stem)
def test_no_cell_of_part_three_that_stands_open_is_long(path):
    assert long_cells(nbformat.read(path, as_version=4)) == {}


def test_part_three_is_found():
    assert {"kl", "masks", "scored", "zero-variance", "entropy"} <= {path.stem for path in part("III")}
