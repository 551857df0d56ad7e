"""Where the lines of the package stand in the repository, for pages that show what a line computed."""

import inspect
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
