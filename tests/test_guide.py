"""The teacher's guide: its commands run as they are written, and its slides hold the chapters' figures."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "book" / "labs"
GUIDE = (LABS / "guide.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```bash\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
sys.path.insert(0, str(LABS))

import slides  # noqa: E402


@pytest.fixture
def desk(tmp_path):
    """A folder that looks like the repository's, in which commands may leave things behind."""
    for name in ("book", "nanogrpo", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def shell(command, folder):
    """What a command printed; it runs with this environment's programs first."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    bash = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(bash, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def only(word):
    """The one block of commands with this word in it."""
    (block,) = [command for command in COMMANDS if word in command]
    return block


def test_every_block_of_commands_is_tested_here():
    assert len(COMMANDS) == 4 and all(map(only, ("make labs", "make slides", "nbgrader autograde", "pytest")))


@pytest.mark.slow
def test_a_round_with_nbgrader_goes_as_the_guide_says(desk):
    shell(only("nbgrader autograde"), desk)
    assert (desk / "course/release/lab1/lab1.ipynb").is_file()
    assert list((desk / "course/feedback/ada/lab1").glob("*.html"))
    header, row = (desk / "course/grades.csv").read_text().strip().splitlines()
    grades = dict(zip(header.split(","), row.split(","), strict=True))
    assert grades["student_id"] == "ada"
    assert (float(grades["score"]), float(grades["max_score"])) == (80, 100)


@pytest.mark.slow
def test_pytest_alone_grades_as_the_guide_says(desk):
    assert " passed" in shell(only("pytest"), desk)


@pytest.mark.slow
@pytest.mark.parametrize("word, script", [("make labs", "release.py"), ("make slides", "slides.py")])
def test_the_make_targets_of_the_guide_run_their_scripts(word, script):
    assert only(word).strip() == word
    printed = shell(f"make --no-print-directory -n {word.split()[1]}", ROOT)
    assert f"python book/labs/{script}" in printed
    if script == "slides.py":  # the other one is tested in test_labs.py
        assert shell(f"{sys.executable} book/labs/slides.py", ROOT).count(".html") == len(slides.parts())


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
        assert page.count("summary</h2>") >= len(chapters), "a chapter without a summary"


def words_of(slide):
    """What a slide says to an audience, and its formulas' own text."""
    text = re.sub(r"<math.*?</math>", "x", slide, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


@pytest.mark.parametrize("path", [path for _, chapters in slides.parts() for path in chapters], ids=lambda p: p.stem)
def test_slides_are_short_and_hold_no_markup_and_no_solution(path):
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
    answers = "\n".join(cells).split("```{solution-start}")[1:]
    answers = [answer.split("```{solution-end}")[0].split("```", 1)[-1] for answer in answers]
    secrets = [line.strip() for answer in answers for line in answer.splitlines() if len(line.strip()) > 40]
    assert secrets, "a chapter has exercises with solutions"
    made = slides.chapter(path)
    assert len(made) >= 4
    for slide in made:
        assert 20 < len(words_of(slide)) <= 1500
        raw = re.findall(r"\$|`|\*\*|\]\(|:::|\{\w+\}|\\[a-z]", words_of(slide))
        assert not raw, f"{raw} in {words_of(slide)}"
        assert not [line for line in secrets if slides.plain(line) in " ".join(words_of(slide).split())]
        assert "Exercise" not in slide


@pytest.mark.parametrize("path", [path for _, chapters in slides.parts() for path in chapters], ids=lambda p: p.stem)
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
