"""What stands at padding is arbitrary: checks put NaN and infinities there, which no product removes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nanogrpo.teach.checks.compare import call, compare, gradient, number, parts
from nanogrpo.teach.checks.registry import CheckFailed

CHOOSE = (
    "NaN and infinity stand at padding in this case, and times a mask of 0 both are NaN. Choose, and do not "
    "multiply by the mask: torch.where(mask, x, 0.0), x.masked_fill(~mask, 0.0) or x[mask], before anything "
    "is computed with x."
)


def soiled(x: Tensor, mask: Tensor) -> Tensor:
    """The same numbers where a mask is true, and NaN, infinity or minus infinity where it is not."""
    kinds = x.new_tensor([torch.nan, torch.inf, -torch.inf])
    other = kinds[torch.arange(x.numel()).view(x.shape) % 3]
    return torch.where(mask, x.detach(), other).requires_grad_(x.requires_grad)


def padding_is_arbitrary(
    names: str | tuple[str, ...],
    implementation: Callable,
    reference: Callable,
    arguments: tuple,
    mask: Tensor,
    places: Iterable[int],
    trained: int | None = None,
    zero_gradient: bool = True,
    atol: float = 1e-5,
) -> None:
    """Raise CheckFailed if what stands at padding reaches an answer.

    Args:
        names: The answer in messages, or all parts of it.
        implementation: Of a student; it returns tensors in which padding is 0, or that have none.
        reference: Gives the right answer for the same arguments.
        arguments: Of both.
        mask: ``(B, T)``, true where something is to be read.
        places: Of the arguments at whose padding anything may stand.
        trained: The place of an argument whose gradient is looked at.
        zero_gradient: Its gradient at padding is looked at as well: it is 0 there.
        atol: Of the numbers.
    """
    places = set(places)
    given = tuple(soiled(a, mask) if i in places else a for i, a in enumerate(arguments))
    result, right = call(implementation, *given), reference(*arguments)
    if isinstance(names, tuple):
        answers = list(zip(names, parts(result, names), right, strict=True))
    else:
        answers = [(names, number(names, result), right)]
    for name, got, wanted in answers:
        not_reached(name, got)
        compare(f"where NaN stands at padding {name}", got, wanted, atol=atol)
        if trained is not None:
            slope, clean = (gradient(name, x, a[trained]) for x, a in ((got, given), (wanted, arguments)))
            looked_at = None if zero_gradient else mask
            not_reached(f"the gradient of {name}", slope if zero_gradient else torch.where(mask, slope, 0.0))
            compare(f"where NaN stands at padding the gradient of {name}", slope, clean, where=looked_at)


def not_reached(name: str, got: Tensor) -> None:
    """Raise CheckFailed if an answer is not finite where NaN or infinity stands at padding."""
    if not got.detach().isfinite().all():
        raise CheckFailed(f"What stands at padding reaches {name}: it is not finite. {CHOOSE}")


HOLES = (
    "The answer is right for a mask without holes, and a mask may have some, as where a tool has written. "
    "Read the mask itself: to count its tokens, and take as many from the start of the row, is not enough."
)


def holes_are_read(
    what: str, implementation: Callable, reference: Callable, arguments: tuple, mask: Tensor
) -> None:
    """Raise CheckFailed unless a mask whose second column is out, where a row goes on, is taken as it is.

    What is compared, with the gradient by the first argument, is 0 at padding, or one number.
    """
    holes = mask & ((torch.arange(mask.shape[1]) != 1) | (mask.sum(1, keepdim=True) < 3))
    given = tuple(holes if a is mask else a for a in arguments)
    right, got = reference(*given), number(what, call(implementation, *given))
    same = got if got.shape == right.shape else torch.zeros_like(right)
    compare(f"where a mask has holes {what}", got, right, [(same, HOLES)])
    slope, wanted = (gradient(what, x, arguments[0]) for x in (got, right))
    compare(f"where a mask has holes the gradient of {what}", slope, wanted, [(slope, HOLES)])
