"""Checks of steps that only the labs have: exact sums over completions. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo.teach.checks.compare import call, compare, gradient
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import CheckFailed, register


@register()
def check_reinforce_loss(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, advantages, mask)``: one number, minus the mean over rows of advantage times log-prob.

    Only its gradient is compared: its value means nothing.
    """
    B, T = draw.integer(3, 5), draw.integer(6, 8)
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), draw.mask(B, T)
    advantages = draw.normal(B).requires_grad_()
    loss = call(implementation, logprobs, advantages, mask)
    if tuple(getattr(loss, "shape", ())) != ():
        raise CheckFailed(f"The loss has shape {tuple(loss.shape)}, expected one number: take the mean "
                          f"over rows.")
    found = gradient("the loss", loss, logprobs)
    A, n = advantages.detach()[:, None], mask.sum(1, keepdim=True)
    right = -A * mask / B  # (B, T)
    mistakes = [
        (-right, "The sign is reversed: an optimizer goes down, so the loss is MINUS the advantage times "
                 "log-prob."),
        (-A.expand(B, T) / B, "Padding gets a gradient: mask the log-probs before you add them up."),
        (right * B, f"You add up the {B} rows: take their mean."),
        (right / n, "You divide each row by its length: a log-prob of a completion is the SUM of its "
                    "tokens'."),
        (right * B / mask.sum(), f"You divide by the {int(mask.sum())} tokens of the batch, and not by its "
                                 f"{B} rows."),
        (right / T, f"You take a mean over all {B} x {T} places, padding included: sum over tokens, mean "
                    f"over rows."),
        (right * logprobs.detach().exp(), "You weigh with the probability: the samples were drawn with it "
                                          "already."),
        (-A.mean() * mask / B, "Every row gets the mean advantage: row i has its own, advantages[i]."),
    ]  # fmt: skip
    compare("the gradient of the loss by the log-probs", found, right, mistakes)
    leak = torch.autograd.grad(loss, advantages, allow_unused=True)[0]
    if leak is not None and bool(leak.ne(0).any()):
        raise CheckFailed("The advantages get a gradient: they are constants here, so detach them.")


def _world(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (N,), rewards (N,) and scores (N, D) of a made-up policy; the mean score is 0."""
    N, D = draw.integer(5, 7), draw.integer(3, 4)
    probs = torch.softmax(draw.normal(N), 0)
    scores = draw.normal(N, D)
    return probs, 1 + draw.normal(N), scores - probs @ scores


@register()
def check_exact_gradient(implementation: Callable, draw: Draw) -> None:
    """``f(probs, rewards, scores)``: the gradient ``(D,)`` of the expected reward."""
    probs, rewards, scores = _world(draw)
    N = len(probs)
    right = (probs * rewards) @ scores
    mistakes = [
        (rewards @ scores / N, f"All {N} completions count alike: weigh each with its probability."),
        (rewards @ scores, "The probabilities are missing: an expectation weighs each completion with its "
                           "own."),
        (right / N, f"You divide by N = {N}: the probabilities sum to 1 already."),
        (probs @ scores, "The rewards are missing; what you return is the mean score, which is always 0."),
        (probs**2 * rewards @ scores, "The probability is in there twice: grad p = p grad log p, once."),
        (-right, "The sign is reversed: this is the direction in which the expected reward falls."),
        ((probs * rewards).sum() * scores.sum(0), "The sum of products is not the product of sums."),
        (probs * rewards, "This is one number for each completion: times its score, summed over "
                          "completions."),
        ((probs * rewards)[:, None] * scores, "Add up the completions: axis 0."),
    ]  # fmt: skip
    compare("the gradient", call(implementation, probs, rewards, scores), right, mistakes)


@register()
def check_expected_estimate(implementation: Callable, draw: Draw) -> None:
    """``f(probs, estimates)``: the expectation ``(D,)`` of estimates from two draws, ``(N, N, D)``."""
    N, D = draw.integer(5, 7), draw.integer(3, 4)
    probs, estimates = torch.softmax(draw.normal(N), 0), 1 + draw.normal(N, N, D)
    pairs = probs[:, None] * probs  # (N, N)
    right = torch.einsum("ij,ijd->d", pairs, estimates)
    other = 1 - torch.eye(N)

    def over(weights: Tensor) -> Tensor:
        return torch.einsum("ij,ijd->d", weights, estimates)

    mistakes = [
        (estimates.mean((0, 1)), f"All {N * N} pairs count alike: pair (i, j) is drawn with probability "
                                 f"p_i p_j."),
        (over(pairs * other), "The pairs (i, i) are missing: the same completion can be drawn twice."),
        (over(pairs * other) / (pairs * other).sum(), "You leave out the pairs (i, i): the second draw may "
                                                      "repeat "
                                                      "the first."),
        (over(pairs.triu()), "Each pair counts once, whatever its order: (i, j) and (j, i) are two draws."),
        (over(pairs.triu(1)), "Each pair counts once, and (i, i) not at all: all N x N draws are possible."),
        (probs @ estimates[range(N), range(N)], "You take only the pairs (i, i): both draws are free."),
        (over(probs[:, None].expand(N, N) / N), "The second draw counts all completions alike: weigh it "
                                                "with p_j."),
        (over(probs[:, None].expand(N, N)), "The probability of the second draw is missing: p_i p_j."),
        (right / 2, "You divide by 2: the estimate is that of a pair already."),
        (over(pairs**2), "The probabilities are in there twice."),
    ]  # fmt: skip
    compare("the expectation", call(implementation, probs, estimates), right, mistakes)


@register()
def check_best_baseline(implementation: Callable, draw: Draw) -> None:
    """``f(probs, rewards, scores)``: the constant baseline with the least variance, a scalar."""
    probs, rewards, scores = _world(draw)
    square = scores.square().sum(1)  # (N,)
    right = (probs * rewards * square).sum() / (probs * square).sum()
    long = square.sqrt()
    mistakes = [
        ((probs * rewards).sum(), "This is the mean reward: a good baseline, but not the best one. Weigh "
                                  "each "
                                  "completion with the square of its score's length, too."),
        (rewards.mean(), "This is the plain mean of the rewards, without probabilities or scores."),
        ((probs * rewards * long).sum() / (probs * long).sum(), "You weigh with the length of the score: "
                                                                "take its "
                                                                "square."),
        ((rewards * square).sum() / square.sum(), "The probabilities are missing, above and below the line."),
        ((probs * rewards * square).sum(), "The denominator is missing: E[|s|^2]."),
        ((probs * rewards * square).sum() / square.sum(), "The probabilities are missing below the line."),
        (1 / right, "The fraction is upside down."),
        (-right, "The sign is reversed: the baseline is subtracted from the reward later."),
    ]  # fmt: skip
    compare("the baseline", call(implementation, probs, rewards, scores), right, mistakes)


@register()
def check_mean_and_error(implementation: Callable, draw: Draw) -> None:
    """``f(estimates)``: the mean of ``(M, D)`` over M, and the standard error of that mean, both ``(D,)``."""
    M, D = draw.integer(6, 9), draw.integer(3, 4)
    estimates = draw.normal(M, D)
    got = call(implementation, estimates)
    if not isinstance(got, tuple) or len(got) != 2:
        raise CheckFailed("Return two tensors: the mean (D,) and its standard error (D,).")
    mean, error = (torch.as_tensor(part, dtype=estimates.dtype) for part in got)
    compare("the mean", mean, estimates.mean(0), [
        (estimates.mean(1), f"Your mean runs over the D = {D} numbers of a gradient: average the {M} "
                            f"estimates, axis 0."),
        (estimates.mean(), "This is one number: the mean of a gradient is a gradient, (D,)."),
        (estimates.sum(0), f"This is the sum: divide by M = {M}."),
    ])  # fmt: skip
    s, root = estimates.std(0), math.sqrt(M)
    compare("the standard error", error, s / root, [
        (s, "This is the spread of one estimate: the mean of M spreads sqrt(M) times less."),
        (estimates.std(0, correction=0) / root, f"You divide the squares by M: the spread of a sample "
                                                f"needs M - 1 = {M - 1}."),
        (estimates.std(0, correction=0), "This is the population's standard deviation, and the square root "
                                         "of M is missing."),
        (s / M, "You divide by M: the error of a mean falls with the square root of M."),
        (s.square() / M, "This is the variance of the mean: take its square root."),
        (s / math.sqrt(D), f"You divide by the root of D = {D}: it is the number of estimates that counts, "
                           f"M = {M}."),
        (s / math.sqrt(M - 1), "You divide by the root of M - 1: correct once, inside the standard "
                               "deviation."),
    ])  # fmt: skip
