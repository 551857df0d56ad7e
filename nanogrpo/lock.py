"""A lock that dies with its process: the operating system's own, on a file that says who holds it."""

import os
import sys
from pathlib import Path
from stat import S_ISREG

from nanogrpo.errors import RunError, os_errors

NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nor wait for a pipe's other end
PLACE = 1 << 20  # of the byte that is locked on Windows, where a locked byte cannot be read

if sys.platform == "win32":
    import msvcrt

    def _try(fd: int) -> None:
        os.lseek(fd, PLACE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lock:
    """Held by one process at a time. A process that is killed leaves the file, but not the lock.

    The file is removed with the lock. One that holds a process' number while nobody has locked it was left by
    a process that was killed; the lock is taken over, and that is said.

    Args:
        path: the file; its folder must exist.
        what: is locked, for messages.
    """

    def __init__(self, path: Path, what: str):
        self.path, self.what = path, what
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process holds it."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunError: another process holds it, whose number is given; or the file cannot be written.
        """
        if self.held:
            return
        with os_errors(RunError, f"write {self.path}", "choose another --out"):
            while self._fd is None:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
                try:
                    self._check_own(fd)
                    self._lock(fd)
                    if os.path.exists(self.path) and os.path.samestat(os.fstat(fd), os.stat(self.path)):
                        self._fd = fd  # and not a file that its holder has removed in this moment
                finally:
                    if self._fd is None:
                        os.close(fd)
            try:
                if before := _read(self._fd):
                    print(
                        f"process {before}, which held {self.what}, is gone: lock taken over", file=sys.stderr
                    )
                os.ftruncate(self._fd, 0)
                os.lseek(self._fd, 0, os.SEEK_SET)
                os.write(self._fd, str(os.getpid()).encode())
            except BaseException:
                self.release()
                raise

    def _check_own(self, fd: int) -> None:
        """Raise RunError unless the file is a lock: somebody's text by that name would be written over."""
        stat = os.fstat(fd)
        if S_ISREG(stat.st_mode) and stat.st_nlink <= 1:
            said = _read(fd)
            if not said.strip("0123456789"):
                return
        raise RunError(f"{self.path} is no lock that a run has left; move it away, or choose another --out")

    def _lock(self, fd: int) -> None:
        try:
            _try(fd)
        except (BlockingIOError, PermissionError) as error:
            raise RunError(
                f"{self.what} is held by process {_read(fd) or '(unknown)'}; wait until it ends, or "
                "choose another --out"
            ) from error
        except OSError as error:  # some network folders have no locks
            print(f"{self.what} cannot be locked ({error.strerror}); start it only once", file=sys.stderr)

    def release(self) -> None:
        """Give the lock back; without one, do nothing."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        if os.name == "nt":  # there, only a closed file can be removed
            os.close(fd)
        try:
            self.path.unlink()
        except OSError:
            pass  # a folder that was removed or made read-only; the lock goes all the same
        if os.name != "nt":
            os.close(fd)


def _read(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, 32).decode("ascii", "replace")
