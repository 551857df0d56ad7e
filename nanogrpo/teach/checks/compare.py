"""What all checks share: the call of a student's function, the comparison, and the sentence that fails.

A check compares what a function returns with the right answer. Where the two differ, it computes the usual
wrong answers as well, and names the one that matches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nanogrpo.teach.checks.registry import CheckFailed

Mistakes = Iterable[tuple[Tensor, str]]  # a wrong answer, and what makes it


def call(function: Callable, *arguments, **options):
    """Call an implementation; what it raises, and an argument that it changes, are failures of the check."""
    tensors = [(i, a, a.detach().clone()) for i, a in enumerate(arguments) if isinstance(a, Tensor)]
    try:
        result = function(*arguments, **options)
    except NotImplementedError as error:
        raise CheckFailed("Nothing is written here yet.") from error
    except Exception as error:
        raise CheckFailed(
            f"It stopped with {type(error).__name__}: {error}. It was called with "
            f"{', '.join(map(_describe, [*arguments, *options.values()]))}."
        ) from error
    for i, now, before in tensors:
        if not torch.equal(now.detach().nan_to_num(), before.nan_to_num()):
            raise CheckFailed(
                f"Your function changes its argument {i + 1} in place: the caller still needs it. "
                "Use operations without a trailing underscore, or clone first."
            )
    if result is None:
        raise CheckFailed("Your function returns None: is its return missing?")
    return result


def compare(
    what: str,
    got: Tensor,
    expected: Tensor,
    mistakes: Mistakes = (),
    where: Tensor | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Raise CheckFailed unless two tensors agree (at the places ``where`` is true).

    Args:
        what: Its name in the message, such as ``"the loss"``.
        got: What the implementation returned; a number or a list will do.
        expected: The right answer.
        mistakes: Wrong answers and what makes them; the first one that fits ``got`` is named.
        where: Bool, of the shape of ``expected``.
        rtol: Of the numbers.
        atol: Of the numbers.
    """
    if not isinstance(got, Tensor):
        try:
            got = torch.as_tensor(got)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckFailed(f"{what} is a {type(got).__name__}, expected a tensor.") from error
    got, expected = got.detach(), expected.detach()

    def agrees(answer: Tensor) -> bool:
        if got.shape != answer.shape:
            return False
        close = torch.isclose(got.double(), answer.detach().double(), rtol, atol, equal_nan=True)
        return bool((close if where is None or where.shape != close.shape else close | ~where).all())

    if agrees(expected) and got.is_complex() == expected.is_complex():
        return
    for wrong, sentence in mistakes:
        if agrees(wrong):
            raise CheckFailed(f"{sentence} ({_difference(what, got, expected, where)})")
    raise CheckFailed(_difference(what, got, expected, where).capitalize() + ".")


def padding_is_zero(what: str, got: Tensor, mask: Tensor) -> None:
    """Raise CheckFailed unless all is zero where a ``(B, T)`` mask is false."""
    if bool(got.detach()[~mask].ne(0).any()):
        row, column = (int(i) for i in ((got.detach() != 0) & ~mask).nonzero()[0])
        raise CheckFailed(
            f"{what} is right at the sampled tokens, but not zero at padding: "
            f"{got[row, column].item():.4g} at "
            f"[{row}, {column}], where the mask is false. Mask it (torch.where(mask, ..., 0.0))."
        )


def gradient(what: str, output: Tensor, leaf: Tensor, weights: Tensor | None = None) -> Tensor:
    """Gradient of an implementation's output (its weighted sum) with respect to one of its inputs."""
    if not isinstance(output, Tensor) or not output.requires_grad:
        raise CheckFailed(
            f"{what} has no gradient, so nothing could be trained with it. Something on the way was "
            f"detached, "
            "computed under no_grad, or made a Python number with .item()."
        )
    total = output.sum() if weights is None else (output * weights).sum()
    found = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(leaf) if found is None else found


def no_gradient(what: str, output: Tensor, leaf: Tensor, why: str) -> None:
    """Raise CheckFailed if an output sends a gradient to an input that is to be a constant."""
    if bool(gradient(what, output, leaf).ne(0).any()):
        raise CheckFailed(f"A gradient flows into {why}")


def _difference(what: str, got: Tensor, expected: Tensor, where: Tensor | None) -> str:
    if got.shape != expected.shape:
        return f"{what} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.ndim == 0:
        return f"{what} is {got.item():.4g}, expected {expected.item():.4g}"
    gap = (got.double() - expected.double()).abs().nan_to_num(nan=torch.inf)
    gap = gap if where is None else gap.masked_fill(~where, 0)
    place = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    return (
        f"{what}, shape {tuple(got.shape)}, is {got[place].item():.4g} at {list(place)}, "
        f"expected {expected[place].item():.4g}"
    )


def _describe(argument) -> str:
    if isinstance(argument, Tensor):
        return f"a tensor {tuple(argument.shape)} of {str(argument.dtype).removeprefix('torch.')}"
    return f"a {type(argument).__name__}" if isinstance(argument, torch.nn.Module) else repr(argument)[:60]
