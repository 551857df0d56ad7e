"""Whether an answer is right for inputs of other shapes: square, of one token, long, and large."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo.teach.checks.compare import call, compare, gradient, in_pairs


def at_other_shapes(
    names: str | tuple[str, ...],
    implementation: Callable,
    reference: Callable,
    arguments: tuple,
    axes: tuple[str, ...],
    sizes: tuple[dict[str, int], ...],
    trained: int | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-4,
) -> None:
    """Raise CheckFailed unless an implementation agrees with the reference for inputs of other shapes.

    Args:
        names: The answer in messages, or all parts of it.
        implementation: Of a student; at padding it returns what the reference does.
        reference: Gives the right answer for the same arguments.
        arguments: Of both. A mask of bool is a completion mask, and stays one.
        axes: A letter for each axis of each argument, such as ``("BTV", "BT", "")``.
        sizes: The axes that are of another size, each time: what is there is repeated, or cut.
        trained: The place of an argument whose gradient is compared.
        rtol: Of the numbers.
        atol: Of the numbers.
    """
    for wanted in sizes:
        plain = tuple(
            _resized(a.detach(), axis, wanted) if isinstance(a, Tensor) else a
            for a, axis in zip(arguments, axes, strict=True)
        )
        given = tuple(a.requires_grad_() if i == trained else a for i, a in enumerate(plain))
        shape = ", ".join(f"{axis} = {size}" for axis, size in wanted.items())
        sentence = f"The answer is right for other shapes, and not for {shape}: it depends on the size."
        got, right = call(implementation, *given), reference(*given)
        for name, x, y in in_pairs(names, got, right):
            same = torch.zeros_like(y) if x.shape != y.shape else x
            compare(f"for {shape} {name}", x, y, [(same, sentence)], rtol=rtol, atol=atol)
            if trained is not None:
                slope, wanted_slope = (gradient(name, z, given[trained]) for z in (x, y))
                of = f"for {shape} the gradient of {name}"
                compare(of, slope, wanted_slope, [(slope, sentence)], atol=1e-4)


def _resized(x: Tensor, axes: str, sizes: dict[str, int]) -> Tensor:
    """What is there, repeated or cut; a completion mask keeps its share of each row, and at least a token."""
    if x.dtype == torch.bool and "T" in axes and (T := sizes.get("T", 0)):
        rows = _resized(x.sum(1), axes.replace("T", ""), sizes)
        lengths = (rows * T / x.shape[1]).ceil().clamp(min=1, max=T)
        return torch.arange(T) < lengths[:, None]
    for axis, letter in enumerate(axes):
        if letter in sizes:
            x = x.index_select(axis, torch.arange(sizes[letter]) % x.shape[axis])
    return x.clone()
