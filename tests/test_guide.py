"""The teacher's guide: its slides hold the chapters' figures. test_clean_shell.py runs its commands."""

import html
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "book" / "labs"
sys.path.insert(0, str(LABS))

import slides  # noqa: E402

CHAPTERS = [path for _, chapters in slides.parts() for path in chapters]
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def test_slides_hold_every_captioned_figure_with_its_alternative_text_and_need_no_network():
    for caption, chapters in slides.parts():
        assert chapters, caption
        page = slides.page(caption, chapters)
        assert 'src="http' not in page and "<link" not in page and "@import" not in page
        wanted = 0
        for path in chapters:
            for cell in nbformat.read(path, as_version=4).cells:
                pictures = any(
                    {"image/png", "image/svg+xml"} & set(o.get("data", {})) for o in cell.get("outputs", [])
                )
                wanted += pictures and "figure" in cell.metadata.get("mystnb", {})
        alts = re.findall(r'<img alt="([^"]*)"', page)
        assert len(alts) == wanted > 0 and all(len(alt) > 20 for alt in alts)
        assert page.count("summary</h2>") >= len(chapters), "a chapter without a summary"


each_chapter = pytest.mark.parametrize(
    "path", [path for _, chapters in slides.parts() for path in chapters], ids=lambda path: path.stem
)


def words_of(slide):
    """What a slide says to an audience, and its formulas' own text."""
    text = re.sub(r"<math.*?</math>", "x", slide, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


@each_chapter
def test_slides_are_short_and_hold_no_markup_and_no_solution(path):
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
    answers = "\n".join(cells).split("```{solution-start}")[1:]
    answers = [answer.split("```{solution-end}")[0].split("```", 1)[-1] for answer in answers]
    secrets = [line.strip() for answer in answers for line in answer.splitlines() if len(line.strip()) > 40]
    assert secrets, "no exercise with a solution, or none that has a line of more than 40 characters"
    made = slides.chapter(path)
    assert len(made) >= 4
    for slide in made:
        assert 20 < len(words_of(slide)) <= 1500
        raw = re.findall(r"\$|`|\*\*|\]\(|:::|\{\w+\}|\\[a-z]", words_of(slide))
        assert not raw, f"{raw} in {words_of(slide)}"
        assert not [line for line in secrets if slides.plain(line) in " ".join(words_of(slide).split())]
        assert "Exercise" not in slide


@each_chapter
def test_slides_hold_all_aims_and_the_whole_summary(path):
    text = "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    for start, end in (("Afterwards you can", "\n**You need**"), ("## Summary", "\n## ")):
        part = text[text.index(start) + len(start) :]
        rows = re.findall(r"^- ", part[: part.index(end)], re.MULTILINE)
        title = r"<h2>" if start == "## Summary" else r"<h1>"
        shown = [slide for slide in slides.chapter(path) if title in slide]
        assert sum(slide.count("<li>") for slide in shown) == len(rows) >= 3, start


def test_the_table_of_the_guide_is_that_of_the_labs():
    rows = (LABS / "graded.md").read_text(encoding="utf-8").splitlines()[2:]
    names = sorted(path.stem for path in LABS.glob("source/*/*.ipynb"))
    assert len(rows) == len(names)
    for row, name in zip(rows, names, strict=True):
        title, tests, hand, minutes, seconds = (cell.strip() for cell in row.strip("|").split("|"))
        first = nbformat.read(LABS / f"source/{name}/{name}.ipynb", as_version=4).cells[0].source
        assert title == f"[{first.splitlines()[0].removeprefix('# ')}]({name}.ipynb)"
        assert f"**{int(tests) + int(hand)} points, {minutes} minutes.**" in first
        assert int(seconds) <= 180, "a solution takes at most three minutes"
