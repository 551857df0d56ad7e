"""Checks of steps that only the labs have: preferences and their noise. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo import reward_model
from nanogrpo.teach.checks.compare import agree
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import register
from nanogrpo.teach.checks.shapes import at_other_shapes
from nanogrpo.teach.checks.sizes import at_other_sizes


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
        (torch.sigmoid(a / tau - b), "The temperature divides one score alone: divide the difference by it."),
        (gap / tau, "These are log-odds: take their sigmoid."),
        (torch.tanh(gap / tau), "tanh goes from -1 to 1: a probability is a sigmoid."),
        (
            torch.softmax(gap / tau, 0),
            "Your softmax runs over the pairs: each pair has a probability of its own.",
        ),
        (
            0.5 * (1 + torch.erf(gap / tau / 2**0.5)),
            "This is the normal law: Bradley and Terry take the sigmoid.",
        ),
        (
            torch.nn.functional.logsigmoid(gap / tau),
            "This is a log-probability: take sigmoid, not logsigmoid.",
        ),
        ((gap > 0).float(), "This judge makes no mistakes: the temperature says how often it does."),
        (torch.sigmoid(a / tau), "You judge a alone: only the difference of the two scores counts."),
        (torch.sigmoid((a + b) / tau), "You add the scores: only their difference counts."),
        (
            torch.sigmoid(gap.abs() / tau),
            "The sign of the difference is lost: a better b is not preferred to a.",
        ),
        (
            a.abs() / (a.abs() + b.abs()),
            "These are shares of the points: take the sigmoid of the difference.",
        ),
    ]
    probability = reward_model.preference_probs
    agree("the probability", implementation, probability, (a, b, tau), mistakes, alone=True)
    a = draw.uniform(1, 2, 6) * torch.tensor([1.0, 1, 1, -1, -1, -1])  # far from 0
    gap = draw.uniform(0.3, 0.8, 6) * torch.tensor([1.0, -1, 4, -4, 1, -1])  # exp(gap / 0.01) overflows
    b, cold = a + gap, 0.01
    floors = [
        (probability(a, b, floor), f"At the temperature {cold} the judge hardly errs: divide by it as it is.")
        for floor in (0.02, 0.05, 0.1, 0.2)
    ]
    odds = ((a - b) / cold).exp()
    floors += [(odds / (1 + odds), "exp overflows, and its share is no number: use torch.sigmoid.")]
    agree(f"at the temperature {cold} the probability", implementation, probability, (a, b, cold), floors)
    _many("the probability", implementation, probability, (a, b, tau))
    at_other_sizes("the probability", implementation, probability, (a, b, tau), {2: (0.05, 5.0, 100.0)})


def _ceiling(probs: Tensor) -> Tensor:
    return torch.maximum(probs, 1 - probs).mean()


@register()
def check_noise_ceiling(implementation: Callable, draw: Draw) -> None:
    """``f(probs)``: the share of noisy labels that the judge itself would get right, one number."""
    probs = draw.uniform(0.05, 0.95, draw.integer(5, 9))
    probs[0] = 0.5  # a coin is predicted half of the time
    best = torch.maximum(probs, 1 - probs)
    mistakes = [
        (
            probs.mean(),
            "This is how often a is preferred: the judge's own guess is a where p is above a half, and b "
            "elsewhere.",
        ),
        (
            (probs > 0.5).float().mean(),
            "This is the share of pairs in which a is better: average the probability that the label agrees "
            "with the better one.",
        ),
        (best, "This is one number a pair: take the mean."),
        ((best * (probs != 0.5)).mean(), "A coin, p = 0.5, is predicted half of the time: it counts a half."),
        (best.sum(), "This is the sum: take the mean."),
        (best.sum() / (len(best) - 1), "You divide by N - 1: this is a plain mean."),
        ((2 * probs - 1).abs().mean(), "This is the mean of |2p - 1|: halve it, and add one half."),
        (probs[probs > 0.5].mean(), "Pairs in which b is better are left out: they count with 1 - p."),
        (1 - best.mean(), "This is the share of labels that the judge gets wrong."),
        (best.max(), "This is the easiest pair: take the mean over all."),
        (best.min(), "This is the hardest pair: take the mean over all."),
        (best.median(), "This is the median pair: take the mean over all."),
        (best[: len(best) // 2].mean(), "Half of the pairs are left out: take the mean over all."),
        (
            probs.clamp(min=0.5).mean(),
            "Where b is better you count a half: the guess is b there, right with 1 - p.",
        ),
        ((probs - 0.5).abs().mean(), "This is the mean distance from a coin: add one half."),
        (torch.special.entr(probs).mean(), "This is -p log p: take the larger of p and 1 - p."),
        (
            (probs**2 + (1 - probs) ** 2).mean(),
            "This is how often two noisy labels agree: the judge's own guess is the more probable one, "
            "always.",
        ),
        (
            torch.maximum(probs.mean(), 1 - probs.mean()),
            "The mean comes too early: first max(p, 1 - p) of each pair.",
        ),
    ]
    agree("the ceiling", implementation, _ceiling, (probs,), mistakes)
    _many("the ceiling", implementation, _ceiling, (probs,))


@register()
def check_pair_accuracy(implementation: Callable, draw: Draw) -> None:
    """``f(chosen, rejected)``: share of pairs that are ranked right; a tie counts half."""
    N = draw.integer(8, 11)
    chosen, rejected = draw.normal(N), draw.normal(N)
    chosen[:2], rejected[:2] = torch.eye(2)  # one right, one wrong, two ties, and two that are nearly ties
    rejected[2:4] = chosen[2:4]
    rejected[4:6] = chosen[4:6] - torch.tensor([1e-3, 2e-3])
    rejected[6] = torch.nextafter(chosen[6], torch.tensor(-torch.inf))  # as near as can be
    above, ties = (chosen > rejected).float(), (chosen == rejected).float()
    gap = chosen - rejected
    near = torch.where(gap.abs() < 5e-3, 0.5, above)
    mistakes = [
        (
            above.mean(),
            "A tie counts as wrong: a model that says the same of everything would score 0, and a coin 0.5. "
            "Count ties half.",
        ),
        (
            (above + ties).mean(),
            "A tie counts as right: a model that says the same of everything would be perfect. Count ties "
            "half.",
        ),
        (
            torch.where(gap.abs() < 1e-4, 0.5, above).mean(),
            "Scores that are close count as ties: a tie is a pair of equal scores, ==.",
        ),
        (near.mean(), "Scores that are close count as ties: a tie is a pair of equal scores."),
        (
            torch.where(gap.abs() < 0.05, 0.5, above).mean(),
            "Scores that are close count as ties: compare with ==.",
        ),
        (above.sum() / (1 - ties).sum(), "You leave ties out: they count half."),
        ((above + ties / 4).mean(), "A tie counts a quarter: count it half."),
        (
            (chosen < rejected).float().mean() + ties.mean() / 2,
            "The order is reversed: the chosen text should score higher.",
        ),
        (
            torch.sign(gap).mean(),
            "This goes from -1 to 1: count a right pair 1, a wrong one 0, a tie one half.",
        ),
        (above + ties / 2, "This is one number a pair: take the mean."),
        (gap.mean(), "This is the mean margin: count the pairs."),
        ((chosen > 0).float().mean(), "A score alone says nothing: compare the two of a pair."),
        (
            (chosen > rejected.mean()).float().mean(),
            "You compare with the mean of all: compare the two of a pair.",
        ),
        (
            ((chosen[:, None] > rejected).float() + 0.5 * (chosen[:, None] == rejected)).mean(),
            "You compare all texts with all: compare the two of a pair.",
        ),
        (torch.sigmoid(gap).mean(), "This is the mean probability: count the pairs."),
        (above.sum() + ties.sum() / 2, f"This is the number of pairs: divide by N = {N}."),
    ]

    def reference(chosen, rejected):
        return torch.as_tensor(reward_model.pair_accuracy(chosen, rejected))

    agree("the accuracy", implementation, reference, (chosen, rejected), mistakes)
    _many("the accuracy", implementation, reference, (chosen, rejected))
    at_other_sizes("the accuracy", implementation, reference, (chosen, rejected), scaled=((0, 1),))
    low, high = torch.minimum(chosen, rejected), torch.maximum(chosen, rejected)
    half = [(torch.tensor(0.5), "Some pairs are tied, and not all: only those count half.")]
    agree("where no pair is ranked right the accuracy", implementation, reference, (low, high), half)
    agree("where no pair is ranked wrong the accuracy", implementation, reference, (high, low), half)
    alike = torch.zeros(N)
    untrained = [(torch.tensor(x), "Where all scores are equal, each pair is a tie and counts half.")
                 for x in (0.0, 1.0, torch.nan)]  # fmt: skip
    agree(
        "for a model that scores all texts 0 the accuracy",
        implementation,
        reference,
        (alike, alike),
        untrained,
    )


def _best(scores: Tensor, values: Tensor, n: int) -> Tensor:
    N = len(scores)
    return values[scores.argsort()] @ torch.tensor([math.comb(i, n - 1) / math.comb(N, n) for i in range(N)])


@register()
def check_best_of_n(implementation: Callable, draw: Draw) -> None:
    """``f(scores, values, n)``: mean value of the best-scored of ``n``, over all subsets of a pool."""
    N = draw.integer(6, 8)
    scores, values = draw.normal(N), 2 * draw.normal(N)
    scores[-1] = scores.max() + 1  # the best of all is not among the first n
    for n in (draw.integer(3, 4), 2, 1, N):
        agree("the mean value", implementation, _best, (scores, values, n), _other_bests(scores, values, n))
    N = draw.integer(120, 150)  # no factorial of it is a float32
    pool = draw.normal(N), draw.uniform(1, 3, N)
    for n in (2, N - 2):  # of both there are few enough subsets to go through them
        what = f"the mean value of the best of {n} in a large pool"
        agree(what, implementation, _best, (*pool, n), [], rtol=1e-2)
    at_other_sizes("the mean value", implementation, _best, (scores, values, 2), scaled=((0,), (1,)))


def _many(what: str, implementation: Callable, reference: Callable, arguments: tuple) -> None:
    """Two rows, and five thousand: no half precision counts so far."""
    axes = tuple("N" if isinstance(a, Tensor) else "" for a in arguments)
    at_other_shapes(
        what, implementation, reference, arguments, axes, ({"N": 2}, {"N": 5000}), None, 2e-5, 1e-6
    )


def _other_bests(scores: Tensor, values: Tensor, n: int) -> list[tuple[Tensor, str]]:
    N, order = len(scores), scores.argsort()  # the worst first
    low, weight, late = (
        torch.tensor([math.comb(max(i + shift, 0), n - 1) / math.comb(N, n) for i in range(N)])
        for shift in (-1, 0, 1)
    )
    rank, chosen = torch.arange(N + 1) / N, values[order]
    top, place = scores.topk(n).indices, scores.argsort().argsort()
    return [
        (
            scores[order] @ weight,
            "This is the score of the best: what is it worth? Take values, sorted by score.",
        ),
        (
            values.sort().values @ weight,
            "You sort by value: nobody knows the values when choosing. Sort by score.",
        ),
        (chosen.flip(0) @ weight, "The order is reversed: this picks the worst-scored of n."),
        (values @ weight, "The values are not sorted: bring them into the order of the scores."),
        (
            values[place] @ weight,
            "You index with ranks: scores.argsort() is the order, argsort of it the ranks.",
        ),
        (values[scores.argmax()], "This is the best of the whole pool: average over all subsets of n."),
        (values[scores[:n].argmax()], "This is the best of the first n: average over all subsets."),
        (values[top].mean(), "This is the mean of the n best: keep one of n."),
        (values[top].median(), "This is the median of the n best: keep one of n."),
        (
            chosen @ (rank[1:] ** n - rank[:-1] ** n),
            "This draws with replacement: a subset of n has n different members, so the weights are comb(i - "
            "1, n - 1) / comb(N, n).",
        ),
        (chosen @ late, "The ranks are one too high: the worst of the pool has rank i = 1."),
        (chosen @ low, "The ranks are one too low: the worst of the pool has rank i = 1."),
        (values.mean(), "This is the mean of the pool, the best of 1."),
    ]
