"""Whether a function keeps something from one call to the next: some calls of a check are made once more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOST = 4  # calls that are made again
STATE = (
    "Called again with arguments that it had before, your function gives another answer: it draws numbers of "
    "its own, or keeps something from one call to the next. An answer depends on the arguments alone."
)
BUFFER = (
    "What your function returned has changed since, by a later call of it: it fills one tensor again and "
    "again. Make a new one in each call."
)


class Call(NamedTuple):
    """One call, with copies of all that could change since."""

    function: Callable
    arguments: tuple
    options: dict
    weights: list[list[Tensor]]  # of each model among the arguments
    returned: list[Tensor]
    result: list[Tensor]


class Calls:
    """Those of a check that is running."""

    def __init__(self) -> None:
        self.kept: list[Call] | None = None

    def note(self, function: Callable, arguments: tuple, options: dict, result: Any) -> None:
        """After a call, unless it trained something, or took chance from a generator."""
        returned = _tensors(result)
        given = [*arguments, *options.values()]
        if self.kept is None or returned is None or not all(map(_is_plain, given)):
            return
        copies = {name: _copy(value) for name, value in options.items()}
        models = [_weights(a) for a in given if isinstance(a, nn.Module)]
        result = [x.detach().clone() for x in returned]
        self.kept.append(Call(function, tuple(map(_copy, arguments)), copies, models, returned, result))

    def judge(self) -> str:
        """What shows that something is kept; empty if nothing does."""
        calls, self.kept = self.kept or [], None
        if not all(map(_lasts, calls)):
            return BUFFER
        some = calls[:: max(1, -(-len(calls) // MOST))]
        return STATE if not all(map(_repeats, reversed(some))) else ""


CALLS = Calls()


def _is_plain(argument: Any) -> bool:
    return argument is None or isinstance(argument, Tensor | nn.Module | bool | int | float | str)


def _tensors(result: Any) -> list[Tensor] | None:
    parts = list(result) if isinstance(result, tuple | list) else [result]
    with suppress(TypeError, ValueError, RuntimeError):
        return [x if isinstance(x, Tensor) else torch.as_tensor(x) for x in parts]
    return None


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _weights(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in model.state_dict().values()]


def _lasts(call: Call) -> bool:
    """Whether what was returned is still what it was; a view of an argument is the caller's."""
    given = {a.untyped_storage().data_ptr() for a in call.arguments if isinstance(a, Tensor)}
    own = [x.untyped_storage().data_ptr() not in given for x in call.returned]
    pairs = zip(call.returned, call.result, own, strict=True)
    return all(_near(now.detach(), then) for now, then, mine in pairs if mine)


def _repeats(call: Call) -> bool:
    models = [a for a in [*call.arguments, *call.options.values()] if isinstance(a, nn.Module)]
    now = [x for model in models for x in _weights(model)]
    if not all(map(torch.equal, now, [x for weights in call.weights for x in weights])):
        return True  # a check has changed the model since
    try:
        again = _tensors(call.function(*map(_copy, call.arguments), **call.options))
    except Exception:  # noqa: BLE001 - it did not raise before
        return False
    return again is not None and len(again) == len(call.result) and all(map(_near, again, call.result))


def _near(a: Tensor, b: Tensor) -> bool:
    a = a.detach()
    return a.shape == b.shape and bool(
        torch.isclose(a.double(), b.double(), 1e-4, 1e-5, equal_nan=True).all()
    )
