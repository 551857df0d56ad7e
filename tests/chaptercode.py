"""What a chapter defines, so that a test can call the chapter's own code without running its cells."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

BOOK = Path(__file__).parents[1] / "book"


def chapter(name: str, also: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> SimpleNamespace:
    """The imports, functions and CAPITAL constants of a chapter, and the assignments named in ``also``.

    Constants named in ``without``, which take long, are left out.
    """
    cells = json.loads((BOOK / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    kept = []
    for source in sources:
        plain = re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)  # without magics
        kept += [node for node in ast.parse(plain).body if _defines(node, also, without)]
    found = {}
    exec(compile(ast.Module(kept, type_ignores=[]), f"{name}.ipynb", "exec"), found)
    missing = [word for word in also if word not in found]
    assert not missing, f"{name}.ipynb assigns no {missing}"
    return SimpleNamespace(**found)


def computed(name: str) -> Iterator[dict]:
    """All that a chapter computes before its exercises: its cells run in order, and nothing is shown.

    A generator, for a fixture: PyTorch's threads, which chapters set, are as they were afterwards.
    """
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    space, threads = {}, torch.get_num_threads()
    try:
        for cell in json.loads((BOOK / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and "## Exercises" in source:
                break
            if cell["cell_type"] == "code":
                exec(re.sub(r"%pip.*", "pass", source), space)
        yield space
    finally:
        plt.close("all")
        torch.set_num_threads(threads)


def _defines(node: ast.stmt, also: tuple[str, ...], without: tuple[str, ...]) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
        return True
    if not isinstance(node, ast.Assign):
        return False
    names = [leaf.id for target in node.targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
    return all(word.isupper() and word not in without or word in also for word in names)
