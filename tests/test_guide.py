"""The teacher's guide: its slides hold the chapters' figures. test_clean_shell.py runs its commands."""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "book" / "labs"
sys.path.insert(0, str(LABS))

import slides  # noqa: E402


def test_slides_hold_every_captioned_figure_with_its_alternative_text_and_need_no_network():
    for caption, chapters in slides.parts():
        assert chapters, caption
        page = slides.page(caption, chapters)
        assert "src=\"http" not in page and "<link" not in page and "@import" not in page
        wanted = 0
        for path in chapters:
            for cell in nbformat.read(path, as_version=4).cells:
                pictures = any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
                wanted += pictures and "figure" in cell.metadata.get("mystnb", {})
        alts = re.findall(r'<img alt="([^"]*)"', page)
        assert len(alts) == wanted > 0 and all(len(alt) > 20 for alt in alts)
        assert page.count("summary</h2>") == len(chapters), "a chapter without a summary"


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
