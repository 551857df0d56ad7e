"""The bug museum: the package's own code with one mistake in it, to read, to run and to hunt in.

    >>> from nanogrpo.teach import museum
    >>> print(museum.show("k3 reversed"))
    def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
        delta = _delta(logprobs, ref_logprobs, mask)
        return torch.expm1(-delta) + delta
    >>> p, q = torch.tensor([-1.0]), torch.tensor([-3.0])
    >>> museum.broken("k3 reversed").kl_k3(p, q), kl.kl_k3(p, q)
    (tensor([4.3891]), tensor([1.1353]))

A piece is a :class:`~nanogrpo.teach.museum.pieces.Piece`: an edit of a file of the package. It is made in
memory, so nothing is written twice and no file changes. :func:`failures` says which checks of
:mod:`nanogrpo.teach.check` notice.
"""

from __future__ import annotations

import difflib
import importlib
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

import torch as torch  # for the example above

import nanogrpo.teach.check  # noqa: F401, it finds all checks
from nanogrpo import kl as kl
from nanogrpo.errors import MuseumError
from nanogrpo.teach.checks.registry import CHECKS, CheckFailed
from nanogrpo.teach.museum.pieces import PIECES, Piece, planted
from nanogrpo.teach.museum.source import module_name, place_of_change, source_of, without_docstrings


def find(name: str | Piece) -> Piece:
    """The piece of that name; a piece of your own is handed back as it is.

    Raises:
        MuseumError: There is none; the message lists the names.
    """
    if isinstance(name, Piece):
        return name
    for piece in PIECES:
        if piece.name == name:
            return piece
    raise MuseumError(f"no piece is called {name!r}; there are {', '.join(repr(p.name) for p in PIECES)}")


def broken(name: str | Piece) -> ModuleType:
    """The module with the mistake in it, made in memory beside the right one; a traceback shows its lines.

    Raises:
        MuseumError: No such piece, or the package has changed and it can no longer be planted.
    """
    piece = find(name)
    module = ModuleType(module_name(piece.file), f"{piece.file} with a mistake in it: {piece.name}.")
    module.__file__ = f"<{piece.file}, broken: {piece.name}>"
    source = planted(source_of(piece.file), piece)
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(True), module.__file__)
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


def show(name: str | Piece, mended: bool = False) -> str:
    """Source of the function that has the mistake (or of the right one), without docstrings.

    Raises:
        MuseumError: As for :func:`broken`.
    """
    piece = find(name)
    right = source_of(piece.file)
    wrong = planted(right, piece)
    path = place_of_change(right, wrong)
    return without_docstrings(right if mended else wrong, path)


def mend(name: str | Piece) -> str:
    """The lines to change: ``-`` before the broken ones, ``+`` before the right ones.

    Raises:
        MuseumError: As for :func:`broken`.
    """
    piece = find(name)
    right = source_of(piece.file)
    lines = difflib.unified_diff(planted(right, piece).splitlines(), right.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if line[:1] in "+-" and not line.startswith(("---", "+++")))


def implementations(name: str | Piece | None = None) -> dict[str, Callable]:
    """What each check is given: the package's functions, those of one file with the mistake of a piece in it.

    Raises:
        MuseumError: As for :func:`broken`.
    """
    piece = find(name) if name else None
    bad = broken(name) if name else None
    result = {}
    for which, takes in [(which, check.takes) for which, check in CHECKS.items() if check.takes]:
        file = piece.file if piece and piece.file in takes else next(iter(takes))
        module = bad if bad and piece and file == piece.file else importlib.import_module(module_name(file))
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
            CHECKS[which].run(implementation, seed=seed)
        except CheckFailed as failed:
            said[which] = str(failed)
    return said


@contextmanager
def installed(name: str | Piece) -> Iterator[ModuleType]:
    """Put the mistake into the whole package for a while, so that a trainer runs with it.

    Every function and class of the broken file takes the place of the right one, wherever a loaded module of
    the package holds it; on leaving, all is as before. For the notebook and for tests, in one thread.

    Raises:
        MuseumError: As for :func:`broken`.
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
