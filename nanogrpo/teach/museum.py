"""The bug museum: the package's own code with one mistake in it, to read, to run and to hunt in.

    >>> from nanogrpo.teach import museum
    >>> print(museum.show("k3 reversed"))
    def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
        delta = _delta(logprobs, ref_logprobs, mask)
        return torch.expm1(-delta) + delta
    >>> p, q = torch.tensor([-1.0]), torch.tensor([-3.0])
    >>> museum.broken("k3 reversed").kl_k3(p, q), kl.kl_k3(p, q)
    (tensor([4.3891]), tensor([1.1353]))

A piece is a :class:`~nanogrpo.teach.collection.Fault`: an edit of a file of the package. It is made in
memory, so nothing is written twice and no file changes. :func:`failures` says which checks of
:mod:`nanogrpo.teach.check` notice.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch as torch  # for the example above

from nanogrpo import kl as kl
from nanogrpo.errors import FaultError
from nanogrpo.teach import check
from nanogrpo.teach.collection import FAULTS, Fault, planted
from nanogrpo.teach.subjects import SUBJECTS
from nanogrpo.teach.verdict import CheckFailed


def find(name: str | Fault) -> Fault:
    """The piece of that name; a piece of your own is handed back as it is.

    Raises:
        FaultError: There is none; the message lists the names.
    """
    if isinstance(name, Fault):
        return name
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise FaultError(f"no piece is called {name!r}; there are {', '.join(repr(f.name) for f in FAULTS)}")


def broken(name: str | Fault) -> ModuleType:
    """The module with the mistake in it, made in memory beside the right one; a traceback shows its lines.

    Raises:
        FaultError: No such piece, or the package has changed and it can no longer be planted.
    """
    fault = find(name)
    module = ModuleType(_module_name(fault.file), f"{fault.file} with a mistake in it: {fault.name}.")
    module.__file__ = f"<{fault.file}, broken: {fault.name}>"
    source = planted(_source(fault.file), fault)
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(True), module.__file__)
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


def show(name: str | Fault, mended: bool = False) -> str:
    """Source of the function that has the mistake (or of the right one), without docstrings.

    Raises:
        FaultError: As for :func:`broken`.
    """
    fault = find(name)
    right = _source(fault.file)
    wrong = planted(right, fault)
    path = _place(right, wrong)
    return _without_docstrings(right if mended else wrong, path)


def mend(name: str | Fault) -> str:
    """The lines to change: ``-`` before the broken ones, ``+`` before the right ones.

    Raises:
        FaultError: As for :func:`broken`.
    """
    fault = find(name)
    right = _source(fault.file)
    lines = difflib.unified_diff(planted(right, fault).splitlines(), right.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if line[:1] in "+-" and not line.startswith(("---", "+++")))


def implementations(name: str | Fault | None = None) -> dict[str, Callable]:
    """What each check is given: the package's functions, those of one file with the mistake of a piece in it.

    Raises:
        FaultError: As for :func:`broken`.
    """
    fault = find(name) if name else None
    bad = broken(name) if name else None
    result = {}
    for which, takes in SUBJECTS.items():
        file = fault.file if fault and fault.file in takes else next(iter(takes))
        module = bad if fault and file == fault.file else importlib.import_module(_module_name(file))
        result[which] = takes[file](module)
    return result


def failures(given: Mapping[str, Callable], seed: int | None = None) -> dict[str, str]:
    """The checks that fail, and what they say; ``given`` maps names of checks to implementations.

    >>> failures({"check_kl_k1": lambda p, q: q - p}, seed=0)
    {'check_kl_k1': 'The sign is reversed: k1 = -delta ...}
    """
    said = {}
    for which, implementation in given.items():
        try:
            getattr(check, which)(implementation, seed=seed)
        except CheckFailed as failed:
            said[which] = str(failed)
    return said


@contextmanager
def installed(name: str | Fault) -> Iterator[ModuleType]:
    """Put the mistake into the whole package for a while, so that a trainer runs with it.

    Every function and class of the broken file takes the place of the right one, wherever a loaded module of
    the package holds it; on leaving, all is as before. For the notebook and for tests, in one thread.

    Raises:
        FaultError: As for :func:`broken`.
    """
    module = broken(name)
    right = importlib.import_module(module.__name__)
    swap = {
        id(value): getattr(module, key)
        for key, value in vars(right).items()
        if getattr(value, "__module__", None) == module.__name__ and callable(value) and hasattr(module, key)
    }
    places = [
        vars(m) for n, m in list(sys.modules.items()) if n.split(".")[0] == "nanogrpo" and ".teach" not in n
    ]
    tables = [
        value for place in places for key, value in place.items() if isinstance(value, dict) and key.isupper()
    ]
    undo = [(at, key, value) for at in places + tables for key, value in at.items() if id(value) in swap]
    try:
        for at, key, value in undo:
            at[key] = swap[id(value)]
        yield module
    finally:
        for at, key, value in undo:
            at[key] = value


def _module_name(file: str) -> str:
    return f"nanogrpo.{file.removesuffix('.py')}"


def _source(file: str) -> str:
    return Path(importlib.util.find_spec(_module_name(file)).origin).read_text(encoding="utf-8")


def _nodes(tree: ast.AST, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ast.AST]]:
    """All functions and classes of a syntax tree, with their names from the outside in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield (*path, node.name), node
            yield from _nodes(node, (*path, node.name))


def _place(right: str, wrong: str) -> tuple[str, ...]:
    """Where two texts of a module differ: the names of the smallest function or class that holds it all."""
    blocks = difflib.SequenceMatcher(
        None, right.splitlines(), wrong.splitlines(), autojunk=False
    ).get_opcodes()
    changed = [(first + 1, max(first + 1, last)) for how, *_, first, last in blocks if how != "equal"]
    low, high = min(first for first, _ in changed), max(last for _, last in changed)
    around = [
        (node.end_lineno - node.lineno, path)
        for path, node in _nodes(ast.parse(wrong))
        if node.lineno <= low and high <= node.end_lineno
    ]
    return min(around)[1]


def _without_docstrings(source: str, path: tuple[str, ...]) -> str:
    node = dict(_nodes(ast.parse(source)))[path]
    dropped = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
            dropped |= set(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = source.splitlines()
    kept = [lines[n - 1] for n in range(first, node.end_lineno + 1) if n not in dropped]
    return textwrap.dedent("\n".join(kept))
