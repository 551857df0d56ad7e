"""A student's answer as a graded cell gets it: plain, or spoiled."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable

import torch


def plain(value):
    """A result as torch and Python have it: a class of the student's own could compare as it likes."""
    if isinstance(value, torch.Tensor) and type(value) not in (torch.Tensor, torch.nn.Parameter):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(torch.Tensor)
    if isinstance(value, tuple | list):
        return (tuple if isinstance(value, tuple) else list)(plain(part) for part in value)
    if isinstance(value, dict):
        return {plain(key): plain(part) for key, part in value.items()}
    for kind in (bool, int, float, complex, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind.__new__(kind, value)
    return value


def spoil(value):
    """Another result of the same kind, with other numbers."""
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bool:
            return ~value
        return value * 1.5 + 0.5 if value.is_floating_point() or value.is_complex() else value + 1
    if isinstance(value, tuple | list):
        return type(value)(spoil(part) for part in value)
    if isinstance(value, dict):
        return {key: spoil(part) for key, part in value.items()}
    if isinstance(value, str):
        return value + "?"
    return (
        not value
        if isinstance(value, bool)
        else value * 1.5 + 0.5
        if isinstance(value, int | float)
        else None
    )


def guarded(value, restore: Callable[[], object], spoiled: bool = False, watch: Callable | None = None):
    """A student's answer for a graded cell: a function whose results are plain, or a plain value.

    Args:
        value: The answer.
        restore: Called after each call, to put back what the function replaced.
        spoiled: Give other results.
        watch: A profile function that is told of each call inside.
    """
    after = (lambda result: spoil(plain(result))) if spoiled else plain
    if not callable(value):
        return after(value)

    @functools.wraps(value, updated=())
    def function(*arguments, **options):
        if watch:
            sys.setprofile(watch)
        result = None
        try:
            result = after(value(*arguments, **options))
        finally:
            restore()
        return result

    if inspect.isfunction(value):
        function.__dict__["__signature__"] = inspect.signature(value)
    del function.__wrapped__
    return function
