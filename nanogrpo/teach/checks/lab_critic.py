"""Checks of steps that only the labs have: whitening, explained variance. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo import advantages
from nanogrpo.teach.checks.compare import agree
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.padding import padding_is_arbitrary
from nanogrpo.teach.checks.registry import register
from nanogrpo.teach.checks.shapes import at_other_shapes
from nanogrpo.teach.checks.sizes import at_other_sizes

MOMENTS = (
    "The mean of the squares less the square of the mean has lost its digits: both are large here, and their "
    "difference is not. Take the mean of the squared deviations, or torch.var."
)


@register()
def check_whiten(implementation: Callable, draw: Draw) -> None:
    """``f(advantages, mask, eps)``: mean 0 and standard deviation 1 over the unmasked tokens, ``(B, T)``."""
    B, T, eps = draw.integer(3, 5), draw.integer(6, 8), draw.uniform(0.02, 0.2, 1).item()
    A, mask = 1 + 2 * draw.normal(B, T), draw.mask(B, T)
    kept, n, zeroed = A[mask], mask.sum(1, keepdim=True), A * mask
    mean, std = kept.mean(), kept.std(correction=0)
    means = zeroed.sum(1, keepdim=True) / n  # (B, 1)
    stds = (((A - means) ** 2 * mask).sum(1, keepdim=True) / n).sqrt()
    padding = "take the unmasked tokens only, advantages[mask]."
    wrong = [
        (
            (A - A.mean()) / (A.std(correction=0) + eps),
            f"Mean and deviation run over padding, too: {padding}",
        ),
        ((A - A.mean()) / (A.std() + eps), f"Mean and deviation run over padding, too: {padding}"),
        ((A - zeroed.mean()) / (zeroed.std(correction=0) + eps), f"Padding counts as zeros: {padding}"),
        ((A - zeroed.mean()) / (zeroed.std() + eps), f"Padding counts as zeros: {padding}"),
        (
            (A - mean) / (kept.std() + eps),
            f"You divide the squares by n - 1 = {len(kept) - 1}: the population's deviation is asked for, "
            "correction=0.",
        ),
        (
            (A - means) / (stds + eps),
            "Each row is whitened by itself: mean and deviation are those of the whole batch.",
        ),
        ((A - means.mean()) / (std + eps), "The mean is that of the rows' means: take it over all tokens."),
        ((A - means[0]) / (stds[0] + eps), "Mean and deviation are those of the first row: take all rows."),
        (A - mean, "The deviation is missing: divide by it, plus eps."),
        (A / (std + eps), "The mean is not taken off."),
        (
            (A - mean) / ((kept**2).mean().sqrt() + eps),
            "You divide by the root of the mean square: take the deviation from the mean.",
        ),
        ((A - mean) / (std**2 + eps), "You divide by the variance: take its square root."),
        ((A - mean) / (std**2 + eps).sqrt(), "eps stands under the root: add it to the deviation."),
        ((A - mean) / std, "eps is missing: a batch of equal advantages would be divided by zero."),
        ((A - mean) / (std + 1e-8), "eps is fixed at a tiny number: take the argument."),
    ]
    mistakes = [(torch.where(mask, values, 0.0), sentence) for values, sentence in wrong]
    arguments = (A, mask, eps)
    agree(
        "the whitened advantage", implementation, advantages.whiten, arguments, mistakes, mask, True,
        alone=True,
    )  # fmt: skip
    padding_is_arbitrary("the whitened advantage", implementation, advantages.whiten, arguments, mask, [0])
    high = torch.where(mask, A + 3000, A)  # the squares have no digits left for the deviation
    by_moments = ((high[mask] ** 2).mean() - high[mask].mean() ** 2).clamp(min=0).sqrt()
    lost = torch.where(mask, (high - high[mask].mean()) / (by_moments + eps), 0.0)
    agree(
        "where the mean is large the whitened advantage", implementation, advantages.whiten,
        (high, mask, eps), [(lost, MOMENTS)], mask, True, rtol=5e-3, atol=5e-3,
    )  # fmt: skip
    what, numbers = "the whitened advantage", {2: (0.0, 3.0)}
    shapes, axes = ({"B": T}, {"B": 1, "T": 1}, {"T": 90}), ("BT", "BT", "")
    at_other_shapes(what, implementation, advantages.whiten, arguments, axes, shapes)
    far = torch.where(mask.cumsum(1).cumsum(0) == 1, A + 1000, A)  # one token stands far off the others
    many, all = far.repeat(20, 1) * (torch.arange(20 * B) < B)[:, None], mask.repeat(20, 1)
    agree(f"where one is far off {what}", implementation, advantages.whiten, (many, all, eps), [], all, True)
    at_other_sizes(what, implementation, advantages.whiten, arguments, numbers, ((0,),), mask)


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    return 1 - (returns - values)[mask].var() / returns[mask].var()


@register()
def check_explained_variance(implementation: Callable, draw: Draw) -> None:
    """``f(values, returns, mask)``: the share of the returns' variance that the critic knew, one number."""
    B, T = draw.integer(3, 5), draw.integer(6, 8)
    returns, mask = 2 * draw.normal(B, T), draw.mask(B, T)
    for knows in (0.6, -1.0):  # a critic that does harm comes second
        values = 1 + knows * returns + 0.5 * draw.normal(B, T)  # off by a constant, which must not count
        R, V = returns[mask], values[mask]
        error, square = R - V, (R - V) ** 2
        correlation = torch.corrcoef(torch.stack([V, R]))[0, 1]
        mistakes = [
            (
                1 - (returns - values).var() / returns.var(),
                "Padding counts, too: take values[mask] and returns[mask].",
            ),
            (
                1 - square.mean() / R.var(correction=0),
                "You take the mean square of the error: a constant error must not count, so take its "
                "variance.",
            ),
            (1 - square.mean() / R.var(), "You take the mean square of the error: take its variance."),
            (
                1 - square.sum() / (R**2).sum(),
                "You take sums of squares: take variances, deviations from the mean.",
            ),
            (error.var() / R.var(), "This is the share that is NOT explained: 1 minus it."),
            (
                1 - error.var() / V.var(),
                "You divide by the variance of the values: it is the returns' variance that is to be "
                "explained.",
            ),
            (
                1 - error.std() / R.std(),
                "You divide standard deviations: the shares of variances are asked for.",
            ),
            (
                V.var() / R.var(),
                "This compares the two spreads: a critic of pure noise would score well. Use the variance of "
                "the error.",
            ),
            (
                correlation**2,
                "This is the squared correlation: it forgives a wrong scale, which the advantages do not.",
            ),
            (
                1 - (mask * (returns - values)).var() / (mask * returns).var(),
                "Padding counts as zeros: take values[mask] and returns[mask].",
            ),
            (
                _explained_variance(values[:1], returns[:1], mask[:1]),
                "This is the first completion alone: take the tokens of all of them.",
            ),
            (
                correlation,
                "This is the correlation: it forgives a wrong scale. Use the variance of the error.",
            ),
            (1 - R.var() / error.var(), "The fraction is upside down: the error's variance is above."),
            (1 - error.var() / R.var(correction=0), "Numerator and denominator are corrected differently."),
            (1 - error.var(correction=0) / R.var(), "Numerator and denominator are corrected differently."),
            (
                torch.tensor(0.0 if knows < 0 else 9.0),
                "It is never below 0: a critic that does harm is to be seen, so do not cut it off.",
            ),
            (
                torch.tensor(-1.0 if knows < 0 else 9.0),
                "It is cut off at -1: a critic that does harm is to be seen as it is.",
            ),
        ]
        arguments = (values, returns, mask)
        agree("the explained variance", implementation, _explained_variance, arguments, mistakes)
    _hard_to_explain(implementation, values, returns, mask)


def _hard_to_explain(implementation: Callable, values: Tensor, returns: Tensor, mask: Tensor) -> None:
    """Padding of NaN; returns with a mean that is large against their spread; a small unit of the reward."""
    what = "the explained variance"
    padding_is_arbitrary(what, implementation, _explained_variance, (values, returns, mask), mask, (0, 1))
    shapes = ({"B": mask.shape[1]}, {"T": 1}, {"T": 60})
    axes = ("BT", "BT", "BT")
    at_other_shapes(what, implementation, _explained_variance, (values, returns, mask), axes, shapes)
    high = (values + 3000, returns + 3000, mask)

    def moments(x: Tensor) -> Tensor:
        return x.square().mean() - x.mean() ** 2

    by_moments = 1 - moments((returns - values)[mask]) / moments(high[1][mask])
    agree(
        f"where the mean is large {what}", implementation, _explained_variance, high,
        [(by_moments, MOMENTS)], rtol=5e-3, atol=5e-3,
    )  # fmt: skip
    small = (1e-4 * values, 1e-4 * returns, mask)
    error, spread = ((x[mask]).var() for x in (small[1] - small[0], small[1]))
    added = "is added to a variance: in a small unit of the reward it counts, and the share has no unit."
    mistakes = [(1 - error / (spread + eps), f"{eps:g} {added}") for eps in (1e-12, 1e-8, 1e-6, 1e-5, 1e-4)]
    agree(f"where returns are small {what}", implementation, _explained_variance, small, mistakes)
    at_other_sizes(what, implementation, _explained_variance, (values, returns, mask), scaled=((0, 1),))
