"""What a lab gives is run for its page, up to the first answer, and nothing is stored in the lab itself."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from given import given, show  # noqa: E402

ALT = {"mystnb": {"image": {"alt": "A number."}}}


def lab(folder, *cells):
    path = folder / "lab.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def test_what_is_given_ends_at_the_first_answer():
    cells = [new_markdown_cell("a"), new_code_cell("1"), new_code_cell("raise NotImplementedError  # yours")]
    assert given(new_notebook(cells=[*cells, new_code_cell("2")])).cells == cells[:2]
    assert given(new_notebook(cells=cells[:2])).cells == cells[:2]


def test_outputs_are_stored_up_to_the_answer_and_none_behind(tmp_path):
    answer = new_code_cell("raise NotImplementedError")
    path = lab(tmp_path, new_code_cell("6 * 7", metadata=ALT), answer, new_code_cell("print(8)"))
    assert show(path)
    first, *others = nbformat.read(path, as_version=4).cells
    assert first.outputs[0].data["text/plain"] == "42"
    assert not any(cell.outputs for cell in others)


def test_a_lab_without_a_figure_is_not_run(tmp_path):
    path = lab(tmp_path, new_code_cell("raise ValueError"), new_code_cell("1", metadata={}))
    before = path.read_bytes()
    assert not show(path) and path.read_bytes() == before


def test_a_lab_that_is_stored_has_no_outputs():
    for path in (ROOT / "book" / "labs").glob("lab*.ipynb"):
        assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.slow
def test_the_page_of_lab_6_shows_the_curves_of_its_runs(site):
    page = (site / "book" / "labs" / "lab6.html").read_text(encoding="utf-8")
    said = re.findall(r'<div class="drawn" role="img"[^>]*aria-label="([^"]*curves[^"]*)"', page)
    assert len(said) == 8 and sum("runs A to G" in text for text in said) == 7
