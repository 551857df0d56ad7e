"""What a call of a student's function leaves as it was around it: settings, random numbers, files."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

# Taken once: what an answer puts in their places later is not called.
ENVIRON, get_ident = os.environ, threading.get_ident
NUMPY = sys.modules["numpy"].random if "numpy" in sys.modules else None
GET, SET = (NUMPY.get_state, NUMPY.set_state) if NUMPY else (None, None)


def _numpy_state() -> tuple | None:
    return GET()[1:] if GET else None


def _set_numpy_state(state: tuple | None) -> None:
    if SET and state is not None:
        SET(("MT19937", *state))


def _print_options() -> dict:
    return dict(vars(torch._tensor_str.PRINT_OPTS))


# PyTorch's compiler sets variables of its own when it is first imported, as building torch.optim.AdamW does.
COMPILER = ("TORCHINDUCTOR_", "TRITON_", "PYTORCH_NVCC")


def _environment() -> dict:
    return {name: value for name, value in ENVIRON.items() if not name.startswith(COMPILER)}


def _set_environment(before: dict) -> None:
    for name in set(_environment()) - set(before):
        del ENVIRON[name]
    ENVIRON.update(before)


# What it is, how it is read, and how it is put back.
SETTINGS: tuple[tuple[str, Callable[[], Any], Callable[[Any], Any]], ...] = (
    ("Python's random numbers, random,", random.getstate, random.setstate),
    ("numpy's random numbers", _numpy_state, _set_numpy_state),
    ("torch's default number type", torch.get_default_dtype, torch.set_default_dtype),
    (
        "torch's default device",
        lambda: torch.empty(0).device,
        lambda kept: torch.set_default_device(None if kept.type == "cpu" else kept),
    ),
    ("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
    ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    (
        "torch's choice of deterministic algorithms",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    ("torch's anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (
        "the precision of matrix products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    ("the way in which tensors are printed", _print_options, lambda kept: torch.set_printoptions(**kept)),
    ("the working folder", os.getcwd, os.chdir),
    ("the environment's variables", _environment, _set_environment),
    ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
)
# Events of Python's audit.
CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "shutil.",
)
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def _of_an_import(path: object) -> bool:
    """Whether the first import of a module makes it: byte code, or the folder of PyTorch's compiler."""
    name, kept = str(path), sys.pycache_prefix
    return "__pycache__" in name or "torchinductor" in name or bool(kept and name.startswith(kept))


class _Ears:
    """Hears, while a student's function runs in this thread, what it writes and starts."""

    def __init__(self) -> None:
        self.thread: int | None = None  # none is running
        self.heard: list[str] = []
        self.hooked = False

    def hook(self, event: str, arguments: tuple) -> None:
        """Of Python's audit; there is no way to take one off again."""
        if self.thread is None or get_ident() != self.thread:
            return
        if event == "open":
            path, mode, flags = arguments
            kept = isinstance(path, int) or _of_an_import(path) or str(path) == os.devnull
            if not kept and (flags & WRITES or (mode and set(mode) & set("wax+"))):
                self.heard.append(f"writes a file, {os.path.basename(str(path))!r}")
        elif event.startswith(CHANGES):
            if not _of_an_import(arguments[0]):
                self.heard.append(f"changes files, {event} of {os.path.basename(str(arguments[0]))!r}")
        elif event.startswith(STARTS):
            self.heard.append(f"starts another process, {event}")
        elif event in ("socket.connect", "socket.bind"):
            self.heard.append(f"opens a connection, {event}")

    def listen(self) -> Callable[[], list[str]]:
        """Until the function that is returned is called; it tells what was heard."""
        if not self.hooked:
            sys.addaudithook(self.hook)
            self.hooked = True
        before, heard, save = self.thread, self.heard, torch.save
        self.thread, self.heard = get_ident(), []

        def stop() -> list[str]:
            found, self.thread, self.heard, torch.save = self.heard, before, heard, save
            return found

        def saved(obj, f, *arguments, **options):  # writes in C++, which no audit sees
            if isinstance(f, str | os.PathLike):
                EARS.heard.append(f"writes a file, {os.path.basename(str(f))!r}")
            return save(obj, f, *arguments, **options)

        torch.save = saved
        return stop


EARS = _Ears()


def watch() -> Callable[[], str]:
    """Look at the settings; the function that is returned puts them back, and says what has changed, or what
    was written or started since. It says nothing if all is as it was."""
    before, chance = [(what, read, put, read()) for what, read, put in SETTINGS], torch.get_rng_state()
    torch.manual_seed(random.SystemRandom().randrange(1 << 62))  # where nobody would seed it
    meanwhile, stop = torch.get_rng_state(), EARS.listen()

    def settle() -> str:
        heard, changed = stop(), []
        drawn = not torch.equal(torch.get_rng_state(), meanwhile)
        torch.set_rng_state(chance)
        for what, read, put, kept in before:
            if kept is not None and not _same(read(), kept):
                put(kept)
                changed.append(what)
        if drawn:
            return (
                "Your function draws from torch's own random numbers, or seeds them: all chance comes from "
                "its arguments, and the numbers of others stay as they are."
            )
        if changed:
            return (
                f"When your function returns, {changed[0]} is not as it was: an answer leaves the settings "
                "of others alone. What is wanted for a while belongs into a with block."
            )
        return f"Your function {heard[0]}: an answer computes and returns, and does no more." if heard else ""

    return settle


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool((a == b).all()) if hasattr(a, "all") else bool(a == b)
