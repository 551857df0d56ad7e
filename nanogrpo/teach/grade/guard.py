"""What a graded cell may rely on, whatever the notebook did before: the package, torch, Python as they were.

A student's function runs in the same process as the check, since a check differentiates it, trains with it
and looks at what it changed. So nothing here is a wall. There are four fences, and each is tested with
cheats:

1. What a notebook replaced in the package, in torch or in Python is put back before a graded cell, and after
   each call of a student's function: :class:`Snapshot`.
2. A graded cell runs in a namespace of its own: the imports are the source's, the student gives the answers,
   and their results are plain: :mod:`.results`.
3. A student's code may not look at its callers, search the memory, or end other processes: :func:`forbid`.
4. A graded cell that accepts *spoiled* answers as well, each number another one, is not believed.
"""

from __future__ import annotations

import _thread
import builtins
import gc
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

KEPT = frozenset(
    "nanogrpo torch numpy builtins math random functools contextlib copy operator itertools collections "
    "dataclasses inspect types re warnings json typing string unittest".split()
)
NEAR = frozenset("torch torch._tensor torch.functional builtins math random functools copy".split())
CONTAINERS = (dict, list, set)
# What no answer needs: events of Python's audit that read another function's variables, search the memory,
# hook into every call, or end another process.
FORBIDDEN = (
    "sys._getframe", "sys._current_frames", "sys.settrace", "sys.setprofile", "object.__getattr__", "gc.get_",
    "ctypes.", "os.kill",
)  # fmt: skip
ATTRIBUTES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
# Files that a student's code may stand behind.
BETWEEN = ("inspect.py", "traceback.py", "threading.py", "thread.py", "library.py")
MISSING = object()
ENVIRONMENT = os.environ, dict(vars(os.environ))

Place = types.ModuleType | type


class Snapshot:
    """The modules, classes and functions that a graded cell may rely on, as they are now.

    Args:
        near: Only those that the package's checks use directly: a look at them takes milliseconds.
    """

    def __init__(self, near: bool = False):
        self.modules = {name: m for name, m in sys.modules.items() if m is not None and _is_kept(name, near)}
        self.places: list[tuple[Place, dict, frozenset]] = []  # a module or a class, what it held, all names
        self.functions: list[tuple[types.FunctionType, tuple, dict]] = []
        self.contents: list[tuple[dict | list | set, Any]] = []  # now, and as it was
        seen: set[int] = set()
        for name, module in self.modules.items():
            own = name.split(".")[0] == "nanogrpo"
            kept = {k: v for k, v in vars(module).items() if own and not k.startswith("__") or callable(v)}
            self.places.append((module, kept, frozenset(vars(module))))
            for value in kept.values():
                self._look_at(value, own, seen)

    def _look_at(self, value: object, own: bool, seen: set[int]) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, types.FunctionType):
            cells = [_cell(cell) for cell in value.__closure__ or ()]
            self.functions.append((value, _code(value), dict(enumerate(cells))))
            for inner in cells:
                self._look_at(inner, own, seen)
        elif isinstance(value, type) and _is_kept(value.__module__):
            kept = {k: v for k, v in vars(value).items() if callable(v) or isinstance(v, property)}
            self.places.append((value, kept, frozenset(vars(value))))
            for method in kept.values():
                self._look_at(method, own, seen)
        elif own and isinstance(value, CONTAINERS):
            self.contents.append((value, value.copy()))

    def restore(self) -> list[str]:
        """Put back what was replaced: the names of it."""
        changed = []
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
                changed.append(name)
        for place in self.places:
            changed += _put_back(*place)
        for function, code, cells in self.functions:
            changed += _mend(function, code, cells)
        for now, before in self.contents:
            if len(now) != len(before) or any(
                a is not b for a, b in zip(_flat(now), _flat(before), strict=True)
            ):
                now.clear()
                now.extend(before) if isinstance(now, list) else now.update(before)
                changed.append("a table of the package")
        return changed


def _mend(function: types.FunctionType, code: tuple, cells: dict) -> list[str]:
    changed = any(a is not b for a, b in zip(_code(function), code, strict=True))
    if changed:
        function.__code__, function.__defaults__, function.__kwdefaults__ = code
    for cell, before in zip(function.__closure__ or (), cells.values(), strict=True):
        if before is not MISSING and _cell(cell) is not before:
            cell.cell_contents, changed = before, True
    return [function.__qualname__] if changed else []


def _is_kept(module: str, near: bool = False) -> bool:
    return module.startswith("nanogrpo") or (module in NEAR if near else module.split(".")[0] in KEPT)


def _code(function: types.FunctionType) -> tuple:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return MISSING


def _flat(container) -> Iterator[object]:
    return iter([*container, *container.values()] if isinstance(container, dict) else list(container))


def _put_back(place: Place, kept: dict, names: frozenset) -> list[str]:
    changed, now = [], vars(place)
    for name, value in kept.items():
        if now.get(name, MISSING) is not value:
            set_on = type.__setattr__ if isinstance(place, type) else setattr
            set_on(place, name, value)
            changed.append(name)
    if len(now) > len(names):
        for name in [name for name in now if name not in names and _hides(place, name)]:
            delete = type.__delattr__ if isinstance(place, type) else delattr
            delete(place, name)
            changed.append(name)
    return [f"{place.__name__}.{name}" for name in changed]


def _hides(place: Place, name: str) -> bool:
    """Whether a name that is new here is found before the one that was meant."""
    if isinstance(place, type):
        return any(name in vars(base) for base in place.__mro__[1:])
    return place.__name__.startswith("nanogrpo") and hasattr(builtins, name)


def calm() -> None:
    """End what could step in later: traces, timers, callbacks of the collector, hooks and modes of torch."""
    sys.settrace(None)
    sys.setprofile(None)
    gc.callbacks.clear()
    vars(os)["environ"] = ENVIRONMENT[0]
    vars(os.environ).update(ENVIRONMENT[1])
    for name, hooks in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            hooks.clear()
    while torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()
    if hasattr(signal, "setitimer"):
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack():
        torch._C._pop_torch_dispatch_stack(None)


def forbid(is_students: Callable[[str], bool]) -> None:
    """From now on a student's code may not do what :data:`FORBIDDEN` names.

    Args:
        is_students: Whether a file's name, as a code object has it, is that of a student's cell.
    """
    look: Callable[[int], types.FrameType | None] = sys._getframe
    inside: list[str] = []

    def students_turn(depth: int) -> bool:
        frame = look(depth)
        while frame and frame.f_code.co_filename.endswith(BETWEEN):
            frame = frame.f_back
        return frame is not None and is_students(frame.f_code.co_filename)

    def hook(event: str, arguments: tuple) -> None:
        if inside or not event.startswith(FORBIDDEN):
            return
        if event == "object.__getattr__" and arguments[1] not in ATTRIBUTES:
            return
        inside.append(event)
        try:
            refused = event == "os.kill" or students_turn(2)
        finally:
            inside.clear()
        if refused:
            raise PermissionError(f"{event}: an answer of a lab needs no such thing")

    def fenced(module: types.ModuleType, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments, **options):
            if students_turn(2):
                raise PermissionError(f"{name}: an answer of a lab needs no such thing")
            return original(*arguments, **options)

        setattr(module, name, call)

    fenced(torch._C, "_dispatch_library")  # a kernel of its own for all of torch
    fenced(threading, "_start_new_thread")  # Python's audit knows it from 3.12 on
    fenced(_thread, "start_new_thread")
    sys.addaudithook(hook)
