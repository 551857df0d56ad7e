"""Which files a submission may open while it is graded: Python's, the libraries' and those of its own folder.

The labs' sources, with solutions and hidden tests, lie on the disk of whoever grades. This is a fence, as
those of :mod:`.guard`: Python tells of each file that its own functions open, and of each program that they
start. Code of C that opens files by itself is not seen; ``torch.from_file`` is closed by name.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator

import torch

STARTS = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pty.spawn",
    "os.startfile",
)
LINKS = ("os.link", "os.symlink", "os.rename", "sqlite3.connect")
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev", "/System", "/Library")
CACHES = (
    "NANOGRPO_DATA",
    "HF_HOME",
    "TORCH_HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "MPLCONFIGDIR",
    "SYSTEMROOT",
)


def close(package: str) -> Callable[[], list[str]]:
    """From now on this process opens no other files, and starts no programs.

    Args:
        package: The folder of the package, whose weights the labs load.

    Returns:
        What gives, and forgets, the files and programs that were refused so far.
    """
    open_to = tuple(sorted({os.path.join(_real(folder), "") for folder in _folders(package)}))
    home = os.path.join(_real(os.path.expanduser("~")), ".")  # caches of libraries
    written = tuple(os.path.join(_real(folder), "") for folder in _writable())
    refused: list[str] = []
    inside: list[str] = []

    def allowed(path: object, writes: bool) -> bool:
        if type(path) is int:  # a file that is open already
            return True
        if type(path) not in (str, bytes):  # of a class that may give another name each time
            return path is None
        given = os.fsdecode(path)  # type: ignore[arg-type]
        name = _real(given)
        if given.endswith(".ipynb") or name.endswith(".ipynb"):
            return False
        if name.startswith("/proc/"):  # another process's memory and files are its own
            owner = name.split("/")[2]
            mine = not owner.isdigit() or int(owner) == os.getpid()
            return mine and not writes and not name.endswith("/mem")
        if writes:  # what Python reads when it starts, and the package, stay as they are
            return name.startswith((*written, "/dev/"))
        return name.startswith((*open_to, home)) or os.path.join(name, "") in open_to

    def hook(event: str, arguments: tuple) -> None:
        if inside or not (event == "open" or event.startswith((*STARTS, *LINKS))):
            return
        inside.append(event)
        two = event in LINKS[:3]
        try:
            if event.startswith(STARTS):
                what = "a program"
            elif all(allowed(path, _writes(event, arguments)) for path in arguments[: 2 if two else 1]):
                return
            else:
                what = str(arguments[0])
        finally:
            inside.clear()
        refused.append(what)
        raise PermissionError(f"{what}: an answer of a lab opens no such file, and starts no program")

    def closed(*arguments, **options):
        refused.append("torch.from_file")
        raise PermissionError("an answer of a lab reads no file with torch.from_file")

    for place in (torch, torch.UntypedStorage, torch.TypedStorage):
        for name in ("from_file",):
            setattr(place, name, closed)
    sys.addaudithook(hook)

    def told() -> list[str]:
        found = sorted(set(refused))
        refused.clear()
        return found

    return told


def _writes(event: str, arguments: tuple) -> bool:
    """Whether a file is opened to be written."""
    if event != "open":
        return True
    mode, flags = arguments[1:]
    return bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC))


def _writable() -> Iterator[str]:
    yield from (os.getcwd(), tempfile.gettempdir())
    yield from (os.path.join(os.path.expanduser("~"), name) for name in (".cache", ".config", ".ipython"))
    yield from (os.environ[name] for name in CACHES[:-1] if os.environ.get(name))


def _real(path: str) -> str:
    return os.path.normcase(os.path.realpath(path))


def _folders(package: str) -> Iterator[str]:
    yield from (package, os.getcwd(), tempfile.gettempdir(), sys.prefix, sys.base_prefix)
    yield from set(sysconfig.get_paths().values())
    yield os.path.dirname(os.path.dirname(torch.__file__))
    yield from (os.environ[name] for name in CACHES if os.environ.get(name))
    yield from (folder for folder in SYSTEM if os.path.isdir(folder))
