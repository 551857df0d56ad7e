"""A reader meets no undefined word: each chapter tells what a word means where it first uses it."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from execute import chapters  # noqa: E402

from tests.glossarycheck import EVERYDAY, anchor, first_uses, terms, untold, uses  # noqa: E402

PAGE = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
WORDS = terms(PAGE)
SMALL = terms("# Glossary\n\n### Dead group\n\nx\n\n### Group\n\nx\n\n### KL divergence\n\nAlso: KL.\n\nx\n")


def told(text, words=SMALL):
    return [(use.term, use.told) for use in uses(text, "cell", words)]


def a_chapter(folder, *texts):
    path = folder / "chapter.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell(text) for text in texts]), path)
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A dead group teaches nothing.", [("Dead group", False)]),
        ("Two dead\ngroups, and the KL.", [("Dead group", False), ("KL divergence", False)]),
        (
            "A **dead group** has equal rewards. A dead group is one.",
            [("Dead group", True), ("Dead group", False)],
        ),
        ("**A dead group still pulls toward the start.**", [("Dead group", False)]),
        ("A [dead group](glossary.md#dead-group) teaches nothing.", [("Dead group", True)]),
        ("A [dead group](glossary.md#kl-divergence) teaches nothing.", [("Dead group", False)]),
        ("# Dead groups\n\n`KL`, $\\mathrm{KL}$ and [the KL](kl.ipynb), https://a.b/KL", []),
        (
            "```{exercise-start} The KL\n:label: KL\n```\nThe KL is\n```{exercise-end}\n```",
            [("KL divergence", False)],
        ),
        ("> A KL of the seed.\n\n*\"a KL\"*, <a id='KL'> and sKLerosis, {cite}`KL`", []),
        ("$$\nKL\n$$\n\n# Title\n\nBelow a title: KL.", [("KL divergence", False)]),
    ],
)
def test_a_word_is_found_where_it_is_read_and_told_where_it_is_bold_or_linked(text, found):
    assert told(text) == found


def test_a_chapter_that_uses_a_word_before_it_tells_what_it_means_is_caught(tmp_path):
    late = a_chapter(tmp_path, "A dead group.", "A **dead group** is one whose rewards are equal.")
    (said,) = untold(late, SMALL)
    assert said.startswith("chapter, cell ") and said.endswith(
        ": 'dead group' is neither bold nor a link to glossary.md#dead-group"
    )
    right = a_chapter(tmp_path, "A **dead group** is one whose rewards are equal.", "A dead group.")
    assert untold(right, SMALL) == []


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_no_chapter_uses_a_word_of_the_glossary_before_it_tells_what_it_means(path):
    assert untold(path, WORDS) == []


def test_the_glossary_is_a_page_of_the_book_and_its_words_are_used():
    assert "file: book/glossary\n" in (ROOT / "_toc.yml").read_text(encoding="utf-8")
    used = {term for path in chapters() for term in first_uses(path, WORDS)}
    unread = {term for term in WORDS if anchor(term) not in EVERYDAY} - used
    assert unread == set(), "in the glossary, and in no chapter"
    assert {word for word in EVERYDAY if word not in map(anchor, WORDS)} == set()


def test_each_link_into_the_glossary_names_a_word_that_is_there():
    places = [anchor(term) for term in WORDS]
    assert len(set(places)) == len(places)
    for path in chapters():
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        assert set(re.findall(r"\(glossary\.md#([^)]*)\)", text)) <= set(places), path.name


@pytest.mark.parametrize(
    "words", ["KL divergence", "Reward model", "Dead group", "Leave-one-out", "On-policy"]
)
def test_the_words_that_the_book_stands_on_are_in_it(words):
    assert words in WORDS
