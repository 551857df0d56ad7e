"""The notebook of one run of TRL's trainer: the chapter's code, the study's numbers, and it runs."""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from nanogrpo import weights
from nanogrpo.show.seeds import final, study_runs

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "book" / "notebooks" / "grpo_trainer.ipynb"
CELLS = nbformat.read(NOTEBOOK, as_version=4).cells
# What stands in no chapter: the length of the run, what is shown of it, and the answers before and after.
OWN = {"STEPS", "problems", "answers_of", "before", "after", "reward", "trained", "shares", "shown"}


def chapter(name):
    return nbformat.read(ROOT / "book" / f"{name}.ipynb", as_version=4).cells


def text_of(cells):
    return "\n".join(cell.source for cell in cells)


def statements(cells):
    """The top-level statements of the code, comments and layout aside, without Colab's installation."""
    for cell in cells:
        if cell.cell_type == "code":
            source = re.sub(r"(?m)^( *)%.*$", r"\1pass", cell.source)
            yield from (node for node in ast.parse(source).body if not isinstance(node, ast.If))


def names(node):
    """What a statement assigns or defines."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def test_what_trains_is_the_chapters_code_to_the_letter():
    known = {ast.unparse(node) for name in ("trl", "quickstart") for node in statements(chapter(name))}
    new = [node for node in statements(CELLS) if ast.unparse(node) not in known]
    assert set().union(*map(names, new)) - {"figure", "ax", "_"} == OWN
    told = " ".join(ast.unparse(node) for node in statements(CELLS))
    parts = ("options = dict(", "trainer = GRPOTrainer(", "exact_match", "training, held_out = task.split()")
    assert all(part in told for part in parts)
    assert "GRPO" not in " ".join(ast.unparse(node) for node in new if not isinstance(node, ast.ImportFrom))


def test_it_opens_on_colab_and_installs_what_the_chapter_installs():
    place = NOTEBOOK.relative_to(ROOT).as_posix()
    assert f"colab.research.google.com/github/asimkadav/nanogrpo/blob/main/{place})" in CELLS[0].source
    own, chapters = (re.findall("%pip.*", text_of(cells)) for cells in (CELLS, chapter("trl")))
    assert own == chapters != []
    links = re.findall(r"nanogrpo/book/([\w-]+)\.html", text_of(CELLS))
    assert set(links) == {"trl", "smollm", "quickstart"}
    assert f"blob/main/{place})" in text_of(chapter("trl")), "the chapter leads here"


def test_its_words_have_the_numbers_of_the_study():
    success = study_runs("trl/success")
    start, ends = success["success"][0], final(success, "TRL")
    text = "".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    said = [f"{100 * x:.1f} %" for x in (start, ends.mean(), ends.min(), ends.max())]
    assert [s for s in said if s in text] == said
    assert len(ends) == 10 and "ten seeds" in text
    policy, _ = weights.load("addition")
    assert round(sum(p.numel() for p in policy.parameters()) / 1e6, 1) == 0.4


@pytest.mark.skipif(
    find_spec("trl") is None, reason="package: TRL is not installed here; `make parity` runs the notebook"
)
def test_it_runs_from_top_to_bottom(tmp_path):
    command = [sys.executable, ROOT / "book/_ext/execute.py", NOTEBOOK, "--output", tmp_path / "ran.ipynb"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    ran = nbformat.read(tmp_path / "ran.ipynb", as_version=4).cells
    kinds = [set(output.get("data", {})) for cell in ran for output in cell.get("outputs", [])]
    assert any("image/svg+xml" in kind for kind in kinds) and any("text/html" in kind for kind in kinds)
