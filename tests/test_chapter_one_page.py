"""The one page: plain torch, as long as the README says, and the same algorithm as the package."""

import ast
import copy
import io
import json
import re
import tokenize
from pathlib import Path

import pytest
import torch

from nanogrpo import grpo
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.weights import load

ROOT = Path(__file__).parents[1]
TASK = Addition(digits=2)
TRAINING, _ = TASK.split()


def page() -> str:
    """The cell that holds the page."""
    cells = json.loads((ROOT / "book" / "one-page.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (found,) = [source for source in sources if "class GPT(" in source]
    return found


def lines_of_code(source: str) -> int:
    """Lines that hold code: no docstring, no comment, no blank line."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def reward(answer, row):
    return float(answer == row["answer"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"num_iterations": 3}, {"seed": 7, "learning_rate": 1e-3, "num_iterations": 2}],
    ids=["once", "three times", "another seed"],
)
def test_the_page_gives_the_rewards_and_weights_of_the_package(double, options):
    names = {}
    exec(page(), names)
    theirs, tokenizer = load("addition")
    theirs = theirs.double()
    mine = names["GPT"](tokenizer.vocab_size, TASK.block_size)
    mine.load_state_dict(theirs.state_dict())
    before = copy.deepcopy(theirs.state_dict())
    P, G, T, steps = 4, 6, TASK.max_new_tokens, 4
    config = grpo.GRPOConfig(prompts_per_step=P, group_size=G, max_new_tokens=T, max_steps=steps, **options)
    run = names["grpo"](mine, TRAINING, reward, P, G, T, **options)
    for row in grpo.train(theirs, tokenizer, TRAINING, exact_match, config):
        assert next(run) == row["reward"]
    after, found = theirs.state_dict(), mine.state_dict()
    moved = max((after[name] - before[name]).abs().max() for name in after)
    assert moved > 5e-4, "nothing was learned, so nothing was compared"
    for name in after:
        assert (found[name] - after[name]).abs().max() < 1e-4 * moved, name


def test_the_page_needs_nothing_but_torch():
    nodes = [n for n in ast.walk(ast.parse(page())) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert {ast.unparse(node) for node in nodes} == {"import torch", "from torch import nn"}


def test_page_and_package_are_as_long_as_the_readme_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert lines_of_code(page()) == int(re.search(r"(\d+) lines of plain PyTorch", text)[1])
    files = (ROOT / "nanogrpo").glob("*.py")
    core = sum(lines_of_code(path.read_text(encoding="utf-8")) for path in files)
    said = int(re.search(r"about ([\d,]+) lines", text)[1].replace(",", ""))
    assert said == pytest.approx(core, rel=0.1), f"files directly in nanogrpo have {core} lines of code"
