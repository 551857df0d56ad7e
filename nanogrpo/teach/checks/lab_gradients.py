"""Checks of steps that only the labs have: exact sums over completions. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo.teach.checks.compare import (
    agree,
    agree_in_parts,
    call,
    compare,
    gradient,
    no_gradient,
    number,
    parts,
)
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.padding import not_reached, soiled
from nanogrpo.teach.checks.registry import CheckFailed, register
from nanogrpo.teach.checks.shapes import at_other_shapes
from nanogrpo.teach.checks.sizes import at_other_sizes


@register()
def check_reinforce_loss(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, advantages, mask)``: one number, minus the mean over rows of advantage times log-prob.

    Only its gradient is compared: its value means nothing.
    """
    B, T = draw.integer(3, 5), draw.integer(6, 8)
    logprobs, mask = draw.logprobs(B, T), draw.mask(B, T)
    advantages = draw.normal(B)
    advantages[-1] = 0.0  # a row that is as good as its baseline is one of the B
    logprobs[0, 1] = -40.0  # the more improbable a token was, the more there is to learn
    advantages.requires_grad_()

    def slope(logprobs, advantages, mask):
        leaf = logprobs.detach().requires_grad_()
        loss = number("the loss", call(implementation, leaf, advantages, mask))
        if loss.shape:
            raise CheckFailed(
                f"The loss has shape {tuple(loss.shape)}, expected one number: take the mean over rows."
            )
        if not loss.isfinite():
            raise CheckFailed(f"The loss is {loss.item()}: it is to be a finite number.")
        return gradient("the loss", loss, leaf)

    def reference(logprobs, advantages, mask):
        return -advantages[:, None] * mask / len(mask)

    A, n = advantages.detach()[:, None], mask.sum(1, keepdim=True)
    last = torch.arange(T) == n - 1
    right = -A * mask / B  # (B, T)
    mistakes = [
        (
            -right,
            "The sign is reversed: an optimizer goes down, so the loss is MINUS the advantage times "
            "log-prob.",
        ),
        (-A.expand(B, T) / B, "Padding gets a gradient: mask the log-probs before you add them up."),
        (right * B, f"You add up the {B} rows: take their mean."),
        (
            right / n,
            "You divide each row by its length: a log-prob of a completion is the SUM of its tokens'.",
        ),
        (
            right * B / mask.sum(),
            f"You divide by the {int(mask.sum())} tokens of the batch, and not by its {B} rows.",
        ),
        (
            right / T,
            f"You take a mean over all {B} x {T} places, padding included: sum over tokens, mean over rows.",
        ),
        (
            right * logprobs.exp(),
            "You weigh with the probability: the samples were drawn with it already.",
        ),
        (
            right * B / (B - 1),
            f"The row whose advantage is 0 is not counted: the mean is over all {B} rows.",
        ),
        (-A.mean() * mask / B, "Every row gets the mean advantage: row i has its own, advantages[i]."),
        *[
            (
                right * (logprobs > least),
                f"Below {least} a log-prob gets no gradient: you cut it off, where most is to be learned.",
            )
            for least in (-30, -20, -10, -5)
        ],
        (right * last, "Only the last token gets a gradient: add the log-probs of the whole completion."),
    ]

    arguments = (logprobs.requires_grad_(), advantages, mask)
    agree("the gradient of the loss by the log-probs", slope, reference, arguments, mistakes, alone=True)
    at_other_sizes("the gradient of the loss", slope, reference, arguments, scaled=((1,),))
    shapes = ({"B": T}, {"T": 1}, {"T": 60})
    at_other_shapes("the gradient of the loss", slope, reference, arguments, ("BT", "B", "BT"), shapes)
    holes = (logprobs, advantages, mask & (torch.arange(T) != 1))
    agree("where a mask has holes the gradient of the loss", slope, reference, holes)
    empty = (logprobs, advantages, mask & (torch.arange(B) > 0)[:, None])
    left_out = [
        (reference(*empty).detach() * B / (B - 1), f"A row without tokens is one of the {B} rows, too.")
    ]
    agree("where a row has no tokens the gradient of the loss", slope, reference, empty, left_out)
    loss = call(implementation, *arguments)
    no_gradient("the loss", loss, advantages, "the advantages: they are constants here, so detach them.")
    leaf = soiled(logprobs, mask)
    loss = number("the loss", call(implementation, leaf, advantages, mask))
    not_reached("the loss", loss)
    not_reached("the gradient of the loss", gradient("the loss", loss, leaf))


def _world(draw: Draw, N: int = 0, D: int = 0, rare: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (N,), rewards (N,) and scores (N, D) of a made-up policy; the mean score is 0.

    In a ``rare`` one the first completion is hardly ever drawn, and has much to say.
    """
    N, D = N or draw.integer(5, 7), D or draw.integer(3, 4)
    logits, scores = draw.normal(N), draw.normal(N, D)
    if rare:
        logits[0] = -12.0
        scores[0] *= 1e5
    probs = torch.softmax(logits, 0)
    return probs, 1 + draw.normal(N), scores - probs @ scores


def _exact(probs: Tensor, rewards: Tensor, scores: Tensor) -> Tensor:
    return (probs * rewards) @ scores


@register()
def check_exact_gradient(implementation: Callable, draw: Draw) -> None:
    """``f(probs, rewards, scores)``: the gradient ``(D,)`` of the expected reward."""
    probs, rewards, scores = _world(draw)
    N, right, best, likely = len(probs), _exact(probs, rewards, scores), rewards.argmax(), probs.argmax()
    mistakes = [
        (rewards @ scores / N, f"All {N} completions count alike: weigh each with its probability."),
        (
            rewards @ scores,
            "The probabilities are missing: an expectation weighs each completion with its own.",
        ),
        (right / N, f"You divide by N = {N}: the probabilities sum to 1 already."),
        (probs @ scores, "The rewards are missing; what you return is the mean score, which is always 0."),
        (probs**2 * rewards @ scores, "The probability is in there twice: grad p = p grad log p, once."),
        ((probs.log() * rewards) @ scores, "You weigh with log-probabilities: take the probabilities."),
        (-right, "The sign is reversed: this is the direction in which the expected reward falls."),
        ((probs * rewards).sum() * scores.sum(0), "The sum of products is not the product of sums."),
        (
            probs * rewards,
            "This is one number for each completion: times its score, summed over completions.",
        ),
        ((probs * rewards)[:, None] * scores, "Add up the completions: axis 0."),
        (right / right.norm(), "This has length 1: the gradient's length counts, too."),
        (
            probs[best] * rewards[best] * scores[best],
            "This is the best completion alone: add up all of them.",
        ),
        (
            probs[likely] * rewards[likely] * scores[likely],
            "This is the likeliest completion alone: add all.",
        ),
    ]
    agree("the gradient", implementation, _exact, (probs, rewards, scores), mistakes)
    agree("for one parameter alone the gradient", implementation, _exact, (probs, rewards, scores[:, :1]))
    unpaid = (probs, rewards.clone(), scores)  # the mean score stays 0, so any baseline may be taken off
    unpaid[1][draw.integer(0, N - 1)] = 0.0
    agree("for a completion whose reward is 0 the gradient", implementation, _exact, unpaid)
    at_other_sizes("the gradient", implementation, _exact, unpaid, scaled=((1,), (2,)))
    for N, D in ((4, 4), (300, 3)):
        what = f"for N = {N} and D = {D} the gradient"
        agree(what, implementation, _exact, _world(draw, N, D, rare=True), rtol=1e-3)


def _expected(probs: Tensor, estimates: Tensor) -> Tensor:
    return torch.einsum("i,j,ijd->d", probs, probs, estimates)


@register()
def check_expected_estimate(implementation: Callable, draw: Draw) -> None:
    """``f(probs, estimates)``: the expectation ``(D,)`` of estimates from two draws, ``(N, N, D)``."""
    N, D = draw.integer(5, 7), draw.integer(3, 4)
    probs, estimates = torch.softmax(draw.normal(N), 0), 1 + draw.normal(N, N, D)
    pairs, other = probs[:, None] * probs, 1 - torch.eye(N)  # (N, N)
    first = probs[:, None].expand(N, N)

    def over(weights: Tensor) -> Tensor:
        return torch.einsum("ij,ijd->d", weights, estimates)

    mistakes = [
        (
            estimates.mean((0, 1)),
            f"All {N * N} pairs count alike: pair (i, j) is drawn with probability p_i p_j.",
        ),
        (over(pairs * other), "The pairs (i, i) are missing: the same completion can be drawn twice."),
        (
            over(pairs * other) / (pairs * other).sum(),
            "You leave out the pairs (i, i): the second draw may repeat the first.",
        ),
        (over(pairs.triu()), "Each pair counts once, whatever its order: (i, j) and (j, i) are two draws."),
        (over(pairs.triu(1)), "Each pair counts once, and (i, i) not at all: all N x N draws are possible."),
        (probs @ estimates[range(N), range(N)], "You take only the pairs (i, i): both draws are free."),
        (over(first / N), "The second draw counts all completions alike: weigh it with p_j."),
        (over(first.T / N), "The first draw counts all completions alike: weigh it with p_i."),
        (over(first), "The probability of the second draw is missing: p_i p_j."),
        (over(first + first.T), "You add the probabilities of the two draws: multiply them."),
        (over(pairs.flip(1)), "The second draw has the probabilities in another order than the first."),
        (_expected(probs, estimates) / 2, "You divide by 2: the estimate is that of a pair already."),
        (over(pairs.tril()), "Each pair counts once, whatever its order: (i, j) and (j, i) are two draws."),
        (
            over(pairs.triu() + pairs.triu(1)),
            "You count (i, j) twice and leave (j, i) out: their estimates may differ.",
        ),
        (over((probs**2)[:, None].expand(N, N)), "Both draws get the probability of the first: p_i p_j."),
        (over((first + first.T) / 2), "You average the probabilities of the two draws: multiply them."),
        (over(pairs**2), "The probabilities are in there twice."),
        (over(pairs.sqrt()), "You take the root of the probabilities: take them as they are."),
        (estimates[probs.argmax(), probs.argmax()], "This is the likeliest pair alone: add up all of them."),
        (pairs[..., None] * estimates, "Add up the pairs: axes 0 and 1."),
    ]
    agree("the expectation", implementation, _expected, (probs, estimates), mistakes)
    single = (probs, estimates[..., :1])
    agree("for one parameter alone the expectation", implementation, _expected, single)
    at_other_sizes("the expectation", implementation, _expected, (probs, estimates), scaled=((1,),))
    rare = torch.softmax(torch.cat([torch.tensor([-7.0]), draw.normal(3)]), 0)
    square = 1 + draw.normal(4, 4, 4)  # N = D
    square[0, 0] *= 1e6
    agree("for N = D the expectation", implementation, _expected, (rare, square), rtol=1e-3, atol=1e-4)


def _baseline(probs: Tensor, rewards: Tensor, scores: Tensor) -> Tensor:
    weights = probs * scores.square().sum(1)
    return (weights * rewards).sum() / weights.sum()


@register()
def check_best_baseline(implementation: Callable, draw: Draw) -> None:
    """``f(probs, rewards, scores)``: the constant baseline with the least variance, a scalar."""
    probs, rewards, scores = _world(draw)
    square, right = scores.square().sum(1), _baseline(probs, rewards, scores)

    def weighed(weights: Tensor) -> Tensor:
        return (probs * rewards * weights).sum() / (probs * weights).sum()

    mistakes = [
        (
            (probs * rewards).sum(),
            "This is the mean reward: a good baseline, but not the best one. Weigh each completion with the "
            "square of its score's length, too.",
        ),
        (rewards.mean(), "This is the plain mean of the rewards, without probabilities or scores."),
        (weighed(square.sqrt()), "You weigh with the length of the score: take its square."),
        (weighed(square**2), "You weigh with the fourth power of the score's length: take its square."),
        (weighed(scores.sum(1)), "You weigh with the sum of the score: take its squared length."),
        (weighed(scores[:, 0] ** 2), "You take the first parameter alone: |s|^2 is a sum over all of them."),
        ((rewards * square).sum() / square.sum(), "The probabilities are missing, above and below the line."),
        ((probs * rewards * square).sum(), "The denominator is missing: E[|s|^2]."),
        ((probs * rewards * square).sum() / square.sum(), "The probabilities are missing below the line."),
        (weighed(scores.sum(1) ** 2), "You square the sum of the score: sum the squares."),
        (weighed(scores.abs().sum(1)), "You weigh with the sum of sizes: |s|^2 is the sum of squares."),
        (
            weighed((scores - scores.mean(0)).square().sum(1)),
            "You center the scores first: take them as they are.",
        ),
        (
            ((probs * rewards) @ scores**2 / (probs @ scores**2)).mean(),
            "You average one baseline a parameter: sum the squares first, above and below the line.",
        ),
        (1 / right, "The fraction is upside down."),
        (rewards[probs.argmax()], "This is the reward of the likeliest completion: weigh all of them."),
        (-right, "The sign is reversed: the baseline is subtracted from the reward later."),
    ]
    agree("the baseline", implementation, _baseline, (probs, rewards, scores), mistakes)
    flat = 1e-4 * scores  # as those of a policy that is nearly sure
    weights = probs * flat.square().sum(1)
    added = [
        (
            (weights * rewards).sum() / (weights.sum() + eps),
            f"{eps:g} is added below the line: where scores are short it outweighs E[|s|^2].",
        )
        for eps in (1e-12, 1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3)
    ]
    agree("where scores are short the baseline", implementation, _baseline, (probs, rewards, flat), added)
    made_up = (probs, rewards.clone(), 1 + draw.normal(*scores.shape))
    made_up[1][draw.integer(0, len(probs) - 1)] = 0.0
    agree(
        "for scores whose mean is not 0, and a reward of 0, the baseline", implementation, _baseline, made_up
    )
    at_other_sizes("the baseline", implementation, _baseline, made_up, scaled=((1,), (2,)))


def _mean_and_error(estimates: Tensor) -> tuple[Tensor, Tensor]:
    return estimates.mean(0), estimates.std(0) / math.sqrt(len(estimates))


@register()
def check_mean_and_error(implementation: Callable, draw: Draw) -> None:
    """``f(estimates)``: the mean of ``(M, D)`` over M, and the standard error of that mean, both ``(D,)``."""
    M, D = draw.integer(6, 9), draw.integer(3, 4)
    estimates = 0.5 + draw.normal(M, D)
    (mean, error), s, root = _mean_and_error(estimates), estimates.std(0), math.sqrt(M)
    means = [
        (
            estimates.mean(1),
            f"Your mean runs over the D = {D} numbers of a gradient: average the {M} estimates, axis 0.",
        ),
        (estimates.mean(), "This is one number: the mean of a gradient is a gradient, (D,)."),
        (estimates.sum(0), f"This is the sum: divide by M = {M}."),
        (estimates.median(0).values, "This is the median: take the mean."),
        (error, "The two are in the other order: first the mean, then its standard error."),
        (estimates[: M // 2].mean(0), "Half of the estimates are left out: average all of them."),
        (estimates[: M // 2 + 1].mean(0), "Estimates are left out: average all of them."),
    ]
    errors = [
        (s, "This is the spread of one estimate: the mean of M spreads sqrt(M) times less."),
        (s * root, "This is the error of the sum: that of the mean is s / sqrt(M)."),
        (
            estimates.std(0, correction=0) / root,
            f"You divide the squares by M: the spread of a sample needs M - 1 = {M - 1}.",
        ),
        (
            estimates.std(0, correction=0),
            "This is the population's standard deviation, and the square root of M is missing.",
        ),
        (s / M, "You divide by M: the error of a mean falls with the square root of M."),
        (s.square() / M, "This is the variance of the mean: take its square root."),
        (
            (estimates - mean).abs().mean(0) / root,
            "You average absolute deviations: take the root of the mean square.",
        ),
        (
            (estimates**2).mean(0).sqrt() / root,
            "You take the root of the mean square: take the deviations from the mean.",
        ),
        (
            ((estimates**2).sum(0) / (M - 1)).sqrt() / root,
            "The squares are those of the estimates: take the deviations from the mean.",
        ),
        (
            s / math.sqrt(D),
            f"You divide by the root of D = {D}: it is the number of estimates that counts, M = {M}.",
        ),
        (
            s / math.sqrt(M - 1),
            "You divide by the root of M - 1: correct once, inside the standard deviation.",
        ),
    ]
    names = ("the mean", "the standard error")
    agree_in_parts(names, implementation, _mean_and_error, (estimates,), (means, errors))
    single = tuple(f"for one parameter alone {name}" for name in names)
    agree_in_parts(single, implementation, _mean_and_error, (estimates[:, :1],), ((), ()))
    shapes = ({"M": D}, {"M": 2}, {"M": 300})  # square: either axis fits
    at_other_shapes(names, implementation, _mean_and_error, (estimates,), ("MD",), shapes)
    _hard_to_measure(implementation, estimates)


def _hard_to_measure(implementation: Callable, estimates: Tensor) -> None:
    """A mean that is large against the spread, and a small spread."""
    names = ("the mean", "the standard error")
    at_other_sizes(names, implementation, _mean_and_error, (estimates,), scaled=((0,),))
    M, high, small = len(estimates), estimates + 3000, 1e-4 * estimates
    moments = (high.square().mean(0) - high.mean(0) ** 2).clamp(min=0)
    lost = [
        (
            (moments / (M - shift)).sqrt(),
            "The mean of the squares less the square of the mean has lost its digits: both are large here, "
            "and their difference is not. Take the squared deviations from the mean, or torch.std.",
        )
        for shift in (0, 1)
    ]
    mean, error = parts(call(implementation, high), names)
    mean_there, error_there = _mean_and_error(high)
    compare("where the mean is large the mean", mean, mean_there)
    compare("where the mean is large the standard error", error, error_there, lost, rtol=5e-3, atol=5e-3)
    added = [
        (
            ((small.var(0) + eps) / M).sqrt(),
            f"{eps:g} is added under the root: where the estimates hardly differ it is larger than they are.",
        )
        for eps in (1e-12, 1e-10, 1e-8, 1e-6, 1e-5, 1e-4)
    ]
    _, error = parts(call(implementation, small), names)
    compare(
        "where the spread is small the standard error", error, _mean_and_error(small)[1], added, atol=1e-9
    )
