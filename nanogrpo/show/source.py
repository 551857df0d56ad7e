"""Where the lines of the package stand in the repository, for pages that show what a line computed."""

import inspect
from importlib import import_module
from pathlib import Path

REPOSITORY = "https://github.com/asimkadav/nanogrpo"
ROOT = Path(__file__).parents[2]


def source_link(name: str) -> str:
    """The address of a function or class of the package, on the main branch, with its lines.

    Raises:
        ModuleNotFoundError, AttributeError: the package has nothing of that name.

    >>> source_link("nanogrpo.losses.clipped_surrogate")
    'https://github.com/asimkadav/nanogrpo/blob/main/nanogrpo/losses.py#L...-L...'
    """
    module, _, attribute = name.rpartition(".")
    found = inspect.unwrap(getattr(import_module(module), attribute))
    lines, first = inspect.getsourcelines(found)
    path = Path(inspect.getsourcefile(found) or "").relative_to(ROOT).as_posix()
    return f"{REPOSITORY}/blob/main/{path}#L{first}-L{first + len(lines) - 1}"
