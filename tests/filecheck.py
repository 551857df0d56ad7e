"""Trouble at a chosen file operation of a run: the process dies, the disk is full, the folder is read-only.

A run is made in a forked child. There, every operation that changes a file below a folder is counted: opening
for writing, each write, sync, move, removal, making and removing a folder. At the one that was chosen, and
for a full disk or a read-only folder at all that follow, trouble comes.
"""

import builtins
import errno
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What a full disk refuses; removing and moving files it allows.
NEEDS_SPACE = ("open", "write", "sync", "mkdir")


class Trouble:
    """Counts operations below ``folder``; at number ``at`` comes ``kind``: "kill", "full" or "read-only"."""

    def __init__(self, folder: Path, kind: str = "", at: int = 0):
        self.folder, self.kind, self.at = str(folder.resolve()), kind, at
        self.count, self.names = 0, []
        self.open, self.write = builtins.open, os.write

    def install(self) -> None:
        """Watch this process from now on; there is no way back, so do it in a child."""
        sys.addaudithook(self.audit)
        builtins.open = io.open = self.opened
        os.fsync, os.write = self.synced, self.written

    def below(self, path) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(
            self.folder
        )

    def audit(self, event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING and self.below(args[0]):
            self.operation("open", args[0])
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") and self.below(args[0]):
            self.operation(event.removeprefix("os."), args[0])
        elif event == "os.truncate":
            self.operation("truncate", args[0])

    def operation(self, name: str, path, partly=None) -> None:
        """Count one; where trouble comes, ``partly`` does a part of it before."""
        self.count += 1
        self.names.append((name, os.path.basename(os.fsdecode(path)) if self.below(path) else path))
        if not self.kind or self.count < self.at:
            return
        if self.kind == "kill":
            if partly:
                partly()
            os._exit(77)
        if self.kind == "full" and name in NEEDS_SPACE:
            if partly:
                partly()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.kind == "read-only" and name not in ("write", "sync", "truncate"):  # open files go on
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def opened(self, file, mode="r", *args, **kwargs):
        real = self.open(file, mode, *args, **kwargs)
        writes = set(mode) & set("wax+") and not isinstance(file, int) and self.below(file)
        return Watched(real, self, file) if writes else real

    def synced(self, fd: int) -> None:
        self.operation(
            "sync", fd
        )  # a process that dies loses nothing that it has handed over, so it is spared

    def written(self, fd: int, data: bytes) -> int:
        self.operation("write", fd)
        return self.write(fd, data)


class Watched:
    """An open file whose writes are counted."""

    def __init__(self, file, trouble: Trouble, path):
        self._file, self._trouble, self._path = file, trouble, path

    def write(self, data):
        def half():
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._trouble.operation("write", self._path, half)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._file.close()


@dataclass
class Outcome:
    """How a child ended: its exit status, what it said, and its operations."""

    status: int
    said: str
    operations: list


def in_child(call, folder: Path, kind: str = "", at: int = 0) -> Outcome:
    """Run ``call`` in a forked child, with trouble; a traceback is part of what it said."""
    log = folder.parent / f"{folder.name}.said"
    pid = os.fork()
    if not pid:
        status = 99
        try:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
            trouble = Trouble(folder, kind, at)
            trouble.install()
            try:
                call()
                status = 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
                print(stop.code)
            trouble.kind = ""
            print(f"OPERATIONS {trouble.names!r}")
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, code = os.waitpid(pid, 0)
    said = log.read_text(errors="replace")
    names = eval(said.rpartition("OPERATIONS ")[2]) if "OPERATIONS " in said else []
    return Outcome(os.waitstatus_to_exitcode(code), said.partition("OPERATIONS ")[0], names)
