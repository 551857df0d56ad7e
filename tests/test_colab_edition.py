"""The Colab edition of the chapters: nothing that only the book's renderer reads, and the same code."""

import json
import re

import nbformat
import pytest
from colab import EDITION, ROOT, addresses, badge, edition, inline, page, title
from execute import chapters

CHAPTERS = chapters(ROOT)
CHAPTER = ROOT / "book" / "kl.ipynb"
API = page("api/nanogrpo.kl")
LABS = sorted((ROOT / "book" / "labs").glob("lab*.ipynb"))
per_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
# A role, a directive, a label before a paragraph, a colon fence, an empty link, an address that is not whole.
RAW = re.compile(
    r"\{[\w:-]+\}`|^(?:`{3,}|:{3,}|~{3,})\{|^\([\w-]+\)=|^:{3,}|\[\]\(|\]\((?!https?:)", re.MULTILINE
)
CODE = re.compile(r"(?<![}`])(`+)(?![`{]).*?(?<!`)\1(?!`)", re.DOTALL)
TITLE = re.compile(r"# @title Solution of exercise [\d.]+, in code\n")


def read(path):
    return nbformat.read(path, as_version=4)


def text_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def test_each_chapter_has_an_edition_and_nothing_else_does():
    assert {path.name for path in CHAPTERS} == {path.name for path in EDITION.glob("*")}


@per_chapter
def test_the_edition_is_that_of_today_s_chapter(path):
    made = json.loads(nbformat.writes(edition(read(path), path.stem)))
    assert made == json.loads((EDITION / path.name).read_text(encoding="utf-8")), "run `make colab`"


@pytest.mark.parametrize("path", [*sorted(EDITION.glob("*.ipynb")), *LABS], ids=lambda path: path.stem)
def test_a_notebook_shows_no_raw_markup_in_plain_jupyter(path):
    for text in text_of(read(path)):
        assert not RAW.findall(CODE.sub("code", text)), text


@per_chapter
def test_the_code_is_that_of_the_chapter_and_solutions_are_folded(path):
    own, made = read(path), read(EDITION / path.name)
    code = [[cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in (own, made)]
    solved = None
    bodies = []
    for cell in own.cells:
        if cell.cell_type == "code":
            bodies.append(solved)
        for word in re.findall(r"\{solution-(start|end)\}", cell.source):
            solved = word == "start"
    for before, after, solution in zip(*code, bodies, strict=True):
        assert bool(TITLE.match(after.source)) == bool(solution)
        own_title = r"^# @title .*\n" if solution else "^$(?!.)"
        assert TITLE.sub("", after.source, count=1) == re.sub(own_title, "", before.source, count=1)
        folded = {"hide-input", "hide-cell"} & set(before.metadata.get("tags", []))
        assert bool(solution or folded) == ("cellView" in after.metadata)
        assert after.outputs == [] and after.execution_count is None


@per_chapter
def test_every_exercise_has_a_heading_and_every_solution_a_fold(path):
    own, made = "\n".join(text_of(read(path))), "\n".join(text_of(read(EDITION / path.name)))
    names = re.findall(r"\{exercise(?:-start)?\} *(.*)", own)
    assert re.findall(r"^### Exercise [\d.]+: (.*)", made, re.MULTILINE) == names
    assert made.count("<details>") == made.count("</details>") == made.count("<summary>")
    notebook = read(EDITION / path.name)
    sources = "\n".join(cell.source for cell in notebook.cells)
    solved = set(re.findall(r"Solution of exercise ([\d.]*\d)", sources))
    assert len(solved) == len(re.findall(r"\{solution(?:-start)?\}", own))
    for text in text_of(notebook):  # a fold that is not closed in its cell would swallow the rest of the text
        assert text.count("<details>") == text.count("</details>")


@pytest.mark.slow
def test_exercises_have_the_numbers_of_the_page(site):
    for path in CHAPTERS:
        shown = (site / "book" / f"{path.stem}.html").read_text(encoding="utf-8")
        on_page = re.findall(r"caption-number.>Exercise ([\d.]+)", shown)
        made = "\n".join(text_of(read(EDITION / path.name)))
        assert re.findall(r"^### Exercise ([\d.]+)", made, re.MULTILINE) == on_page, path.stem
        solved = re.findall(r"Solution to Exercise ([\d.]+)", shown)
        assert set(re.findall(r"<summary>Solution of exercise ([\d.]+)<", made)) <= set(solved), path.stem


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("a {cite}`schulman2017ppo`.", "a ([Schulman et al., 2017](https://arxiv.org/abs/1707.06347))."),
        ("{cite}`bradley1952rank`", "([Bradley and Terry, 1952](https://doi.org/10.2307/2334029))"),
        ("[two](kl.ipynb), [x](fig-a)", f"[two]({page('kl')}), [x]({page('grpo')}#fig-a)"),
        ("[`f`](kl#three) [g](https://x.org/kl)", f"[`f`]({page('kl')}#three) [g](https://x.org/kl)"),
        ("[](fig-a), [](kl)", f"[the figure]({page('grpo')}#fig-a), [{title(CHAPTER)}]({page('kl')})"),
        ("`{cite}` and ``[a](b)``", "`{cite}` and ``[a](b)``"),
        ("```python\nx[0](kl)\n```", "```python\nx[0](kl)\n```"),
        ("{py:func}`nanogrpo.kl.kl_k3`", f"[`nanogrpo.kl.kl_k3`]({API}#nanogrpo.kl.kl_k3)"),
        ("{py:func}`~nanogrpo.kl.kl_k3`", f"[`kl_k3`]({API}#nanogrpo.kl.kl_k3)"),
        ("{py:mod}`nanogrpo.kl`", f"[`nanogrpo.kl`]({API}#module-nanogrpo.kl)"),
    ],
)  # fmt: skip
def test_worked_texts(given, plain):
    assert inline(given, "grpo") == plain


def test_two_works_in_one_citation_are_two_links():
    made = inline("{cite}`schulman2017ppo,schulman2020kl`", "kl")
    assert len(re.findall(r"\]\(https?:", made)) == 2 and "; " in made


@pytest.mark.parametrize("text", ["{numref}`fig-a`", "```{figure} a.png\nA text.\n```"])
def test_markup_that_nothing_stands_for_is_an_error_and_not_left_raw(text):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    with pytest.raises(ValueError, match="nothing that stands for"):
        edition(notebook, "kl")


def test_the_addresses_are_those_of_the_project():
    slug = addresses()["Repository"].split("github.com")[1]
    assert badge("kl") == f"https://colab.research.google.com/github{slug}/blob/main/book/colab/kl.ipynb"
    for path in CHAPTERS:
        assert badge(path.stem) in read(path).cells[0].source


@pytest.mark.parametrize(
    "raw", ["{cite}`a`", "```{exercise-start} T", "````{note}", ":::{tip}", "(here)=", "[x](kl)", "[](#a)"]
)
def test_raw_markup_is_seen(raw):
    assert RAW.search(CODE.sub("code", f"Words `x` and\n{raw}\nmore `y`."))


def test_a_box_becomes_a_quotation_with_its_title():
    cell = nbformat.v4.new_markdown_cell("```{admonition} A title\nA text.\n\nAnother.\n```")
    made = edition(nbformat.v4.new_notebook(cells=[cell]), "kl").cells[0].source
    assert "> **A title**\n>\n> A text.\n>\n> Another.\n" in made + "\n"
