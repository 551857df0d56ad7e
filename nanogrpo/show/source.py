"""Where the lines of the package stand in the repository, for pages that show what a line computed."""

import ast
import inspect
import textwrap
from importlib import import_module
from pathlib import Path

from nanogrpo.errors import SourceError

REPOSITORY = "https://github.com/asimkadav/nanogrpo"
ROOT = Path(__file__).parents[2]


def source_link(name: str) -> str:
    """The address of a function or class of the package, on the main branch, with its lines.

    Raises:
        SourceError: the package has no function or class of that name.

    >>> source_link("nanogrpo.losses.clipped_surrogate")
    'https://github.com/asimkadav/nanogrpo/blob/main/nanogrpo/losses.py#L...-L...'
    """
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if module.split(".")[0] != "nanogrpo":
        raise SourceError(f"{name!r} is no name in the package, such as nanogrpo.losses.grpo_loss")
    try:
        found = inspect.unwrap(getattr(import_module(module), attribute))
        if not callable(found):
            raise TypeError("it cannot be called")
        lines, first = inspect.getsourcelines(found)
        path = Path(inspect.getsourcefile(found) or "").relative_to(ROOT).as_posix()
    except (ImportError, AttributeError, TypeError, ValueError, OSError) as error:
        raise SourceError(f"{name!r} is no function or class that the package defines: {error}") from error
    return f"{REPOSITORY}/blob/main/{path}#L{first}-L{first + len(lines) - 1}"


def statement(name: str, begin: str) -> tuple[int, list[str]]:
    """A statement of a function of the package: the number of its first line there, and its lines.

    Raises:
        SourceError: no statement of the function begins so, or several do.

    >>> statement("nanogrpo.kl.kl_k3", "return torch.expm1(")[1]
    ['return torch.expm1(delta) - delta']
    """
    module, _, attribute = name.rpartition(".")
    lines = textwrap.dedent(inspect.getsource(getattr(import_module(module), attribute))).splitlines()
    found = [
        node
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.stmt) and lines[node.lineno - 1].lstrip().startswith(begin)
    ]
    if len(found) != 1:
        raise SourceError(f"{len(found)} statements of {name} begin with {begin!r}; name one that is there")
    first, last = found[0].lineno - 1, found[0].end_lineno
    return first, textwrap.dedent("\n".join(lines[first:last])).splitlines()
