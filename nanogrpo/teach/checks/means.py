"""Checks of how per-token losses become one number. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from nanogrpo import losses
from nanogrpo.losses import Denominators, aggregate
from nanogrpo.teach.checks.compare import call, compare, gradient
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import register


def _per_token(draw: Draw) -> tuple[Tensor, Tensor]:
    """Losses (B, T) whose padding is not zero, with gradient, and their mask."""
    B = draw.integer(3, 5)
    T = B + draw.integer(1, 2)
    return (1 + draw.normal(B, T)).requires_grad_(), draw.mask(B, T)


def means_of(x: Tensor, mask: Tensor, length: int) -> dict[str, tuple[Tensor, str]]:
    """Means that are taken for one another, each with the sentence for whoever took it by mistake."""
    B, T = mask.shape
    n, kept = int(mask.sum()), torch.where(mask, x, 0.0)
    lengths = mask.sum(1)
    return {
        "positions": (kept.sum() / (B * T), f"Your mean divides by {B * T}, the number of positions, instead "
                                            f"of {n}, the number of sampled tokens: divide by mask.sum()."),
        "unmasked": (x.mean(), f"Your mean runs over all {B * T} positions, padding included, instead of the "
                               f"{n} sampled tokens: mask before you average."),
        "unmasked sum": (x.sum() / n, f"You divide by {n}, the sampled tokens, but add up padding too: mask "
                                      "before you add."),
        "sequences unmasked": (x.mean(), f"Each completion's mean runs over all {T} columns, padding "
                                         "included."),
        "token_mean": (kept.sum() / n, f"This is the mean over all {n} tokens of the batch, in which a long "
                                       "completion weighs more."),
        "sequence_mean": ((kept.sum(1) / lengths).mean(), "This is the mean over completions of each one's "
                                                          "mean, in which a token of a long completion "
                                                          "weighs less."),
        "sum": (kept.sum(), "This is the sum: divide it."),
        "sequence_sum": (kept.sum() / B, f"You divide by {B}, the number of completions, only."),
        "sequence sums": ((kept.sum(1) / lengths).sum(), f"You add the completions' means: divide by {B}, "
                                                         "their number."),
        "by constant": (kept.sum() / (B * length), f"You divide by the constant length {length}."),
        "longest": (kept.sum() / (B * T), f"You divide by {T}, the padded length of this batch, instead of "
                                          f"{length}: it changes with the longest completion."),
        "without B": (kept.sum() / length, f"You divide by the length {length} only: divide by the {B} "
                                           "completions, too."),
    }  # fmt: skip


def _check_mean(implementation, draw: Draw, how: str, names: tuple[str, ...], *options) -> None:
    x, mask = _per_token(draw)
    length = mask.shape[1] + 3
    right = aggregate(x, mask, how, Denominators.of(mask, length))
    means = means_of(x.detach(), mask, length)
    got = call(implementation, x, mask, *([length] if how == "constant" else []))
    compare("the loss", got, right, [means[name] for name in names])
    compare("the weight of a token (the gradient)", gradient("the loss", got, x), gradient("", right, x))


def _aggregate(how: str, module: ModuleType) -> Callable:
    return lambda per_token, mask: module.aggregate(per_token, mask, how)


def _constant(module: ModuleType) -> Callable:
    def mean(per_token, mask, max_length):
        return module.aggregate(per_token, mask, "constant", module.Denominators.of(mask, max_length))

    return mean


@register(("losses", partial(_aggregate, "token_mean")))
def check_token_mean(implementation: Callable, draw: Draw) -> None:
    """``f(per_token, mask)``: one number, the mean over all sampled tokens of the batch."""
    names = ("positions", "unmasked", "unmasked sum", "sequence_mean", "sum", "sequence_sum")
    _check_mean(implementation, draw, "token_mean", names)


@register(("losses", partial(_aggregate, "sequence_mean")))
def check_sequence_mean(implementation: Callable, draw: Draw) -> None:
    """``f(per_token, mask)``: one number, the mean over completions of each one's own mean."""
    x, mask = _per_token(draw)
    (B, T), kept = mask.shape, torch.where(mask, x, 0.0)
    means = means_of(x.detach(), mask, T)
    divided = (
        kept.sum() / (B * T),
        f"You divide each completion by {T}, the padded length, instead of by its own, mask.sum(1) = "
        f"{mask.sum(1).tolist()}: short ones lose weight.",
    )
    names = ("sequences unmasked", "token_mean", "sequence_sum", "sequence sums", "sum")
    right = aggregate(x, mask, "sequence_mean")
    got = call(implementation, x, mask)
    compare("the loss", got, right, [divided, *(means[name] for name in names)])
    compare("the weight of a token (the gradient)", gradient("the loss", got, x), gradient("", right, x))


@register(("losses", _constant))
def check_constant_mean(implementation: Callable, draw: Draw) -> None:
    """``f(per_token, mask, max_length)``: the sum over tokens, over completions times a constant length."""
    names = ("longest", "unmasked", "without B", "sequence_sum", "token_mean", "sequence_mean", "sum")
    _check_mean(implementation, draw, "constant", names)


@register("losses.aggregate")
def check_microbatches(implementation: Callable, draw: Draw) -> None:
    """``f(per_token, mask, how, denominators)``: the parts of a batch add up to the whole, in each mean."""
    x, mask = _per_token(draw)
    n, cut = Denominators.of(mask, mask.shape[1] + 3), draw.integer(1, mask.shape[0] - 1)
    for how in losses.AGGREGATIONS:
        whole = call(implementation, x, mask, how, n)
        parts = [
            call(implementation, *part, how, n) for part in ((x[:cut], mask[:cut]), (x[cut:], mask[cut:]))
        ]
        total = parts[0] + parts[1]
        alone = [aggregate(x[a], mask[a], how, Denominators.of(mask[a], n.max_length))
                 for a in (slice(cut), slice(cut, None))]  # fmt: skip
        tokens = [int(mask[:cut].sum()), int(mask[cut:].sum())]
        mistake = (
            f"Each part is divided by its own counts, {tokens} tokens in {[cut, len(mask) - cut]} "
            f"completions, and not by those of the whole batch, {n.num_tokens} in {n.num_sequences}. Use the "
            "denominators that you are given."
        )
        compare(f"the sum of two microbatches under {how!r}", total, whole, [(alone[0] + alone[1], mistake)])
