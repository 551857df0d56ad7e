"""Checks of steps that only the labs have: whitening, explained variance. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nanogrpo import advantages, critic
from nanogrpo.teach.checks.compare import call, compare, padding_is_zero
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import register


@register()
def check_whiten(implementation: Callable, draw: Draw) -> None:
    """``f(advantages, mask, eps)``: mean 0 and standard deviation 1 over the unmasked tokens, ``(B, T)``."""
    B, T, eps = draw.integer(3, 5), draw.integer(6, 8), 0.01
    A, mask = 1 + 2 * draw.normal(B, T), draw.mask(B, T)
    kept, n = A[mask], mask.sum(1, keepdim=True)
    mean, std = kept.mean(), kept.std(correction=0)
    means = (A * mask).sum(1, keepdim=True) / n  # (B, 1)
    stds = (((A - means) ** 2 * mask).sum(1, keepdim=True) / n).sqrt()
    zeroed = A * mask
    wrong = [
        ((A - A.mean()) / (A.std(correction=0) + eps), "Mean and deviation run over padding, too: take the "
                                                       "unmasked tokens only, advantages[mask]."),
        ((A - A.mean()) / (A.std() + eps), "Mean and deviation run over padding, too: take "
                                           "advantages[mask]."),
        ((A - zeroed.mean()) / (zeroed.std(correction=0) + eps), "Padding counts as zeros: leave it out of "
                                                                 "mean "
                                                                 "and deviation, advantages[mask]."),
        ((A - zeroed.mean()) / (zeroed.std() + eps), "Padding counts as zeros: leave it out of mean and "
                                                     "deviation."),
        ((A - mean) / (kept.std() + eps), f"You divide the squares by n - 1 = {len(kept) - 1}: the "
                                          f"population's "
                                          f"deviation is asked for, correction=0."),
        ((A - means) / (stds + eps), "Each row is whitened by itself: mean and deviation are those of the "
                                     "whole "
                                     "batch."),
        (A - mean, "The deviation is missing: divide by it, plus eps."),
        (A / (std + eps), "The mean is not taken off."),
        ((A - mean) / (std**2 + eps), "You divide by the variance: take its square root."),
        ((A - mean) / std, "eps is missing: a batch of equal advantages would be divided by zero."),
    ]  # fmt: skip
    right = advantages.whiten(A, mask, eps)
    got = call(implementation, A, mask, eps)
    mistakes = [(torch.where(mask, values, 0.0), sentence) for values, sentence in wrong]
    compare("the whitened advantage", got, right, mistakes, mask)
    padding_is_zero("the whitened advantage", got, mask)


@register()
def check_explained_variance(implementation: Callable, draw: Draw) -> None:
    """``f(values, returns, mask)``: the share of the returns' variance that the critic knew, one number."""
    B, T = draw.integer(3, 5), draw.integer(6, 8)
    returns, mask = 2 * draw.normal(B, T), draw.mask(B, T)
    values = 1 + 0.6 * returns + 0.5 * draw.normal(B, T)  # off by a constant, which must not count
    R, V = returns[mask], values[mask]
    error = R - V
    right = torch.tensor(critic.explained_variance(values, returns, mask))
    mistakes = [
        (1 - (returns - values).var() / returns.var(), "Padding counts, too: take values[mask] and "
                                                       "returns[mask]."),
        (1 - (error**2).mean() / R.var(correction=0), "You take the mean square of the error: a constant "
                                                      "error "
                                                      "must not count, so take its variance."),
        (1 - (error**2).mean() / R.var(), "You take the mean square of the error: take its variance."),
        (error.var() / R.var(), "This is the share that is NOT explained: 1 minus it."),
        (1 - error.var() / V.var(), "You divide by the variance of the values: it is the returns' variance "
                                    "that "
                                    "is to be explained."),
        (1 - error.std() / R.std(), "You divide standard deviations: the shares of variances are asked for."),
        (V.var() / R.var(), "This compares the two spreads: a critic of pure noise would score well. Use the "
                            "variance of the error."),
        (torch.corrcoef(torch.stack([V, R]))[0, 1] ** 2, "This is the squared correlation: it forgives a "
                                                         "wrong "
                                                         "scale, which the advantages do not."),
        (1 - error.var(correction=0) / R.var(), "Numerator and denominator are corrected differently."),
    ]  # fmt: skip
    got = call(implementation, values, returns, mask)
    compare("the explained variance", got, right, mistakes)
