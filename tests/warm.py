"""A Python that has imported what is slow to import, and forks a process for each run of a module.

Tests that start ``python -m module`` a hundred times wait for PyTorch's import a hundred times. Here one
process imports it, and each run is a fork of it, in a session, a folder and an environment of its own. From
there on it is what ``python -m module`` is. Somewhere one test still starts the module as its users do.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys

# Forks, file descriptors that are sent, and waiting for a process that is not one's own child.
POSSIBLE = hasattr(os, "fork") and hasattr(os, "pidfd_open") and hasattr(socket, "send_fds")
SERVER = """
import importlib, json, os, runpy, signal, socket, sys

def serve(link):
    while True:
        asked, files, _, _ = socket.recv_fds(link, 1 << 17, 3)
        if not asked:
            sys.exit()
        if os.fork() == 0:
            os.setsid()
            for number, file in enumerate(files):
                os.dup2(file, number)
            link.send(str(os.getpid()).encode())
            return json.loads(asked)
        for file in files:
            os.close(file)

for name in sys.argv[2:]:
    importlib.import_module(name)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
with socket.socket(fileno=int(sys.argv[1])) as link:
    asked = serve(link)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
os.closerange(3, 256)
os.environ.clear()
os.environ.update(asked["env"])
os.chdir(asked["cwd"])
sys.path[0] = asked["cwd"]
sys.argv = sys.argv[:1]
runpy._run_module_as_main(asked["module"])
"""


class Warm:
    """The process that forks; for a ``with``. ``modules`` is what it imports, in the environment ``env``."""

    def __init__(self, *modules: str, env: dict[str, str]):
        self.link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command = [sys.executable, "-c", SERVER, str(other.fileno()), *modules]
            self.server = subprocess.Popen(command, env=env, pass_fds=[other.fileno()])

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_) -> None:
        self.link.close()
        self.server.wait()

    def popen(self, command: list[str], *, cwd: str, env: dict[str, str], **_) -> Forked:
        """Run ``[python, "-m", module]`` with pipes as its standard input and output, and no errors shown."""
        assert command[:2] == [sys.executable, "-m"] and len(command) == 3
        asked = json.dumps({"module": command[2], "cwd": str(cwd), "env": env}).encode()
        (stdin, ours), (theirs, stdout) = os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_WRONLY)
        socket.send_fds(self.link, [asked], [stdin, stdout, nothing])
        for file in (stdin, stdout, nothing):
            os.close(file)
        return Forked(int(self.link.recv(64)), ours, theirs)


class Forked:
    """As much of :class:`subprocess.Popen` as a caller needs who gives a process its input and reads it."""

    def __init__(self, pid: int, stdin: int, stdout: int):
        self.pid, self.stdin, self.stdout = pid, os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        try:
            self.ended = os.pidfd_open(pid)
        except ProcessLookupError:  # so soon
            self.ended = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> None:
        """Until it has ended; how, nobody knows."""
        if self.ended is not None:
            select.select([self.ended], [], [])
            os.close(self.ended)
            self.ended = None
