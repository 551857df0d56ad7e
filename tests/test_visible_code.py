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


# --- in a browser: what is open on a page, and what a fold says ---

# The page whose subject is 49 lines of code, all of them to be read.
CODE_IS_THE_LESSON = {"book/one-page"}
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
CHAPTERS = [
    chapter["file"]
    for each in TOC["parts"]
    if not each["caption"].startswith("Labs")  # there the code is what the student writes
    for chapter in each["chapters"]
    if (ROOT / f"{chapter['file']}.ipynb").exists()
]
OPEN = """() => {
  const page = document.querySelector("article.bd-article"), height = (e) => e.getBoundingClientRect().height;
  const code = [...page.querySelectorAll("div.highlight")]
    .filter((e) => !e.closest(".cell_output") && e.checkVisibility());
  const folds = [...page.querySelectorAll("details:not(.answer)")].filter((e) => e.querySelector("pre"));
  return { share: code.reduce((sum, e) => sum + height(e), 0) / height(page), count: code.length,
    folds: folds.map((fold) => [fold.querySelector("summary").textContent.replace(/\\s+/g, " ").trim(),
      fold.querySelector("pre").textContent.trim().split("\\n").length]) };
}"""


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAPTERS)
def test_open_code_is_at_most_a_quarter_of_a_page_and_a_fold_says_what_it_holds(visit, name):
    page = visit(name, size={"width": 1440, "height": 900})
    page.evaluate("document.querySelectorAll('details.answer').forEach((e) => (e.open = true))")
    found = page.evaluate(OPEN)
    assert found["count"] and found["folds"], "nothing was measured"
    assert found["share"] <= (0.4 if name in CODE_IS_THE_LESSON else 0.25)
    for title, lines in found["folds"]:
        words, _, size = title.rpartition(", ")
        assert size == f"{lines} line{'s' * (lines > 1)}" and len(words) > 3, title
