"""Checks of steps that only the labs have: preferences and their noise. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from nanogrpo import reward_model
from nanogrpo.teach.checks.compare import call, compare
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import register


@register()
def check_preference_probs(implementation: Callable, draw: Draw) -> None:
    """``f(scores_a, scores_b, temperature)``: how probably a noisy judge prefers ``a``, ``(N,)``."""
    N, tau = draw.integer(4, 8), draw.uniform(0.3, 0.7, 1).item()
    a, b = draw.normal(N), draw.normal(N)
    gap = a - b
    mistakes = [
        (torch.sigmoid(-gap / tau), "The difference is reversed: this is the probability of preferring b."),
        (torch.sigmoid(gap), f"The temperature {tau:.2f} is ignored: divide the difference by it."),
        (torch.sigmoid(gap * tau), "You multiply by the temperature: divide. A larger one means more noise."),
        (gap / tau, "These are log-odds: take their sigmoid."),
        (torch.nn.functional.logsigmoid(gap / tau), "This is a log-probability: take sigmoid, not "
                                                    "logsigmoid."),
        (a.exp() / (a.exp() + b.exp()), f"The temperature {tau:.2f} is ignored: divide the scores by it."),
        ((gap > 0).float(), "This judge makes no mistakes: the temperature says how often it does."),
        (torch.sigmoid(a / tau), "You judge a alone: only the difference of the two scores counts."),
    ]
    right = reward_model.preference_probs(a, b, tau)
    compare("the probability", call(implementation, a, b, tau), right, mistakes)


@register()
def check_noise_ceiling(implementation: Callable, draw: Draw) -> None:
    """``f(probs)``: the share of noisy labels that the judge itself would get right, one number."""
    probs = draw.uniform(0.05, 0.95, draw.integer(5, 9))
    right = torch.maximum(probs, 1 - probs).mean()
    mistakes = [
        (probs.mean(), "This is how often a is preferred: the judge's own guess is a where p is above a "
                       "half, and "
                       "b elsewhere."),
        ((probs > 0.5).float().mean(), "This is the share of pairs in which a is better: average the "
                                       "probability "
                                       "that the label agrees with the better one."),
        (torch.maximum(probs, 1 - probs), "This is one number a pair: take the mean."),
        (torch.minimum(probs, 1 - probs).mean(), "This is the share of labels that the judge gets wrong."),
        (torch.maximum(probs, 1 - probs).max(), "This is the easiest pair: take the mean over all."),
        ((probs**2 + (1 - probs) ** 2).mean(), "This is how often two noisy labels agree: the judge's own "
                                               "guess is "
                                               "the more probable one, always."),
        (torch.maximum(probs.mean(), 1 - probs.mean()), "The mean comes too early: first max(p, 1 - p) of "
                                                        "each "
                                                        "pair."),
    ]  # fmt: skip
    compare("the ceiling", call(implementation, probs), right, mistakes)


@register()
def check_pair_accuracy(implementation: Callable, draw: Draw) -> None:
    """``f(chosen, rejected)``: share of pairs that are ranked right; a tie counts half."""
    N = draw.integer(6, 9)
    chosen, rejected = draw.normal(N), draw.normal(N)
    chosen[0], rejected[0] = 1.0, 0.0  # one right, one wrong, and two ties, whatever else was drawn
    chosen[1], rejected[1] = 0.0, 1.0
    rejected[2:4] = chosen[2:4]
    right = torch.tensor(reward_model.pair_accuracy(chosen, rejected))
    above, ties = (chosen > rejected).float(), (chosen == rejected).float()
    mistakes = [
        (above.mean(), "A tie counts as wrong: a model that says the same of everything would score 0, and "
                       "a coin "
                       "0.5. Count ties half."),
        ((above + ties).mean(), "A tie counts as right: a model that says the same of everything would be "
                                "perfect. "
                                "Count ties half."),
        (above.sum() / (1 - ties).sum(), "You leave ties out: they count half."),
        ((chosen < rejected).float().mean() + ties.mean() / 2, "The order is reversed: the chosen text "
                                                               "should "
                                                               "score higher."),
        ((chosen - rejected).mean(), "This is the mean margin: count the pairs."),
        ((chosen > 0).float().mean(), "A score alone says nothing: compare the two of a pair."),
        (torch.sigmoid(chosen - rejected).mean(), "This is the mean probability: count the pairs."),
        (above.sum() + ties.sum() / 2, f"This is the number of pairs: divide by N = {N}."),
    ]  # fmt: skip
    compare("the accuracy", call(implementation, chosen, rejected), right, mistakes)


@register()
def check_best_of_n(implementation: Callable, draw: Draw) -> None:
    """``f(scores, values, n)``: mean value of the best-scored of ``n``, over all subsets of a pool."""
    N, n = draw.integer(6, 8), draw.integer(3, 4)
    scores, values = draw.normal(N), 2 * draw.normal(N)
    scores[-1] = scores.max() + 1  # the best of all is not among the first n
    order = scores.argsort()  # the worst first
    weight = torch.tensor([math.comb(i, n - 1) / math.comb(N, n) for i in range(N)])
    late = torch.tensor([math.comb(i + 1, n - 1) / math.comb(N, n) for i in range(N)])
    rank = torch.arange(N + 1) / N
    replaced = rank[1:] ** n - rank[:-1] ** n
    right = values[order] @ weight
    mistakes = [
        (scores[order] @ weight, "This is the score of the best: what is it worth? Take values, sorted by "
                                 "score."),
        (values.sort().values @ weight, "You sort by value: nobody knows the values when choosing. Sort by "
                                        "score."),
        (values[order.flip(0)] @ weight, "The order is reversed: this picks the worst-scored of n."),
        (values @ weight, "The values are not sorted: bring them into the order of the scores."),
        (values[scores.argmax()], "This is the best of the whole pool: average over all subsets of n."),
        (values[scores[:n].argmax()], "This is the best of the first n: average over all subsets."),
        (values[scores.topk(n).indices].mean(), "This is the mean of the n best: keep one of n."),
        (values[order] @ replaced, "This draws with replacement: a subset of n has n different members, so "
                                   "the "
                                   "weights are comb(i - 1, n - 1) / comb(N, n)."),
        (values[order] @ late, "The ranks are one too high: the worst of the pool has rank i = 1."),
        (values.mean(), "This is the mean of the pool, the best of 1."),
    ]  # fmt: skip
    compare("the mean value", call(implementation, scores, values, n), right, mistakes)
