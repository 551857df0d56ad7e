"""Whether an answer is right for numbers of another size: nothing is added to them, and nothing cut off."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from nanogrpo.teach.checks.compare import call, compare, in_pairs

FACTORS = (1e-13, 1e6)  # float32 holds the square of a number near 1 times each


def at_other_sizes(
    names: str | tuple[str, ...],
    implementation: Callable,
    reference: Callable,
    arguments: tuple,
    numbers: Mapping[int, tuple[float, ...]] | None = None,
    scaled: tuple[tuple[int, ...], ...] = (),
    mask: Tensor | None = None,
) -> None:
    """Raise CheckFailed unless an implementation agrees with the reference for other numbers, too.

    Args:
        names: The answer in messages, or all parts of it.
        implementation: Of a student.
        reference: Gives the right answer for the same arguments.
        arguments: Of both.
        numbers: Places of arguments that are plain numbers, each with other values.
        scaled: Places of tensors that are multiplied, together, with each of :data:`FACTORS`.
        mask: Where to look.
    """
    plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    for given, when, sentence in _cases(
        plain, list(inspect.signature(reference).parameters), numbers, scaled
    ):
        pairs = in_pairs(names, call(implementation, *given), reference(*given))
        for name, x, y in pairs:
            there = y if mask is None else y[mask]
            unit = float(there.abs().max()) or 1.0  # a tolerance in the size of the answer
            same = torch.zeros_like(y) if x.shape != y.shape else x / unit
            compare(f"{when} {name}", x / unit, y / unit, [(same, sentence)], mask, rtol=2e-3, atol=1e-4)


def _cases(
    arguments: tuple, names: list[str], numbers: Mapping | None, scaled: tuple
) -> Iterator[tuple[tuple, str, str]]:
    for place, values in (numbers or {}).items():
        for value in values:
            given = (*arguments[:place], value, *arguments[place + 1 :])
            sentence = (
                f"The answer is right for some `{names[place]}`, and not for {value:g}: take it as it is."
            )
            yield given, f"at `{names[place]}` = {value:g}", sentence
    for places in scaled:
        which = " and ".join(f"`{names[i]}`" for i in places)
        for factor in FACTORS:
            given = tuple(a * factor if i in places else a for i, a in enumerate(arguments))
            size = "tiny" if factor < 1 else "huge"
            sentence = (
                f"The answer is right for ordinary {which}, and not for {size} ones, {factor:g} times those: "
                "a constant is added somewhere, or something is cut off."
            )
            yield given, f"where {which} is {size}", sentence
