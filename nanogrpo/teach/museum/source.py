"""Reading the package as text: where two versions of a file differ, and the function that stands there."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import textwrap
from collections.abc import Iterator
from pathlib import Path

Definition = ast.FunctionDef | ast.ClassDef


def module_name(file: str) -> str:
    """Of a file of the package: ``nanogrpo.losses`` for ``losses.py``."""
    return f"nanogrpo.{file.removesuffix('.py')}"


def source_of(file: str) -> str:
    """Text of a file of the package."""
    spec = importlib.util.find_spec(module_name(file))
    assert spec and spec.origin, f"{file} is no file of the package"
    return Path(spec.origin).read_text(encoding="utf-8")


def _nodes(tree: ast.AST, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Definition]]:
    """All functions and classes of a syntax tree, with their names from the outside in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            yield (*path, node.name), node
            yield from _nodes(node, (*path, node.name))


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def place_of_change(right: str, wrong: str) -> tuple[str, ...]:
    """Where two texts of a module differ: the names of the smallest function or class that holds it all."""
    blocks = difflib.SequenceMatcher(
        None, right.splitlines(), wrong.splitlines(), autojunk=False
    ).get_opcodes()
    changed = [(first + 1, max(first + 1, last)) for how, *_, first, last in blocks if how != "equal"]
    low, high = min(first for first, _ in changed), max(last for _, last in changed)
    around = [
        (_end(node) - node.lineno, path)
        for path, node in _nodes(ast.parse(wrong))
        if node.lineno <= low and high <= _end(node)
    ]
    return min(around)[1]


def without_docstrings(source: str, path: tuple[str, ...]) -> str:
    """Source of the function or class at a path of names, without its docstrings."""
    node = dict(_nodes(ast.parse(source)))[path]
    dropped = set()
    for inner in ast.walk(node):
        if isinstance(inner, Definition) and ast.get_docstring(inner) is not None:
            dropped |= set(range(inner.body[0].lineno, _end(inner.body[0]) + 1))
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = source.splitlines()
    kept = [lines[n - 1] for n in range(first, _end(node) + 1) if n not in dropped]
    return textwrap.dedent("\n".join(kept))
