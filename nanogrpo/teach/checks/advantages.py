"""Checks of advantages. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo import advantages
from nanogrpo.teach.checks.compare import agree, agree_in_parts, call, compare, number
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.padding import padding_is_arbitrary
from nanogrpo.teach.checks.registry import CheckFailed, register
from nanogrpo.teach.checks.shapes import at_other_shapes
from nanogrpo.teach.checks.sizes import at_other_sizes


def _rewards(draw: Draw) -> Tensor:
    """Rewards (P, G), of prompts that differ in level and in spread, with P and G unequal."""
    P = draw.integer(3, 6)
    G = P + draw.integer(1, 3)
    return 2 * draw.normal(P, 1) + draw.uniform(0.5, 3, P, 1) * draw.normal(P, G)


def _right_or_wrong(draw: Draw) -> Tensor:
    """Rewards (P, G) of 1 and 0, as most tasks have; the first two of a group are equal, and not all."""
    rewards = draw.integers(0, 1, draw.integer(3, 5), draw.integer(6, 8)).to(torch.get_default_dtype())
    rewards[:, :2], rewards[:, -1] = 1.0, 0.0
    rewards[::2] = 1 - rewards[::2]
    return rewards


@register("advantages.group_advantages")
def check_group_advantages(implementation: Callable, draw: Draw) -> None:
    """``f(rewards)``: rewards ``(P, G)`` less their group's mean, over its population standard deviation."""
    r = _rewards(draw)
    P, G = r.shape
    std, bessel = (r.std(1, keepdim=True, correction=c) for c in (0, 1))
    centered = r - r.mean(1, keepdim=True)
    mistakes = [
        (
            centered / bessel,
            f"Your standard deviation divides by G - 1 = {G - 1} (Bessel, torch's default) instead of G = "
            f"{G}: all advantages are too small by sqrt((G-1)/G). Use correction=0.",
        ),
        ((r - r.mean(0)) / r.std(0, correction=0), _axis("mean and standard deviation run", P, G)),
        ((r - r.mean(0)) / r.std(0), _axis("mean and standard deviation run", P, G)),
        ((r - r.mean(0)) / std, _axis("the mean runs", P, G)),
        ((r - r.mean(0)) / bessel, _axis("the mean runs", P, G)),
        ((r - r.mean()) / r.std(correction=0), _batch("mean and standard deviation", P, G)),
        ((r - r.mean()) / r.std(), _batch("mean and standard deviation", P, G)),
        (centered / r.std(correction=0), _batch("standard deviation", P, G)),
        (centered / r.std(), _batch("standard deviation", P, G)),
        ((r - r.mean()) / std, _batch("mean", P, G)),
        (centered / std[:1], "The standard deviation is that of the first group: each group has its own."),
        (centered, "You subtract the group's mean but do not divide by its standard deviation."),
        (r / std, "You divide by the standard deviation but do not subtract the group's mean."),
        (centered / std**2, "You divide by the variance: take its square root."),
        (centered / (std**2 + 1e-4), "You divide by the variance: take its square root."),
        (
            (r - r.median(1, keepdim=True).values) / std,
            "You subtract the median: take the mean of the group.",
        ),
        (
            centered / centered.abs().amax(1, keepdim=True),
            "You divide by the largest deviation: take the standard deviation.",
        ),
        (-centered / std, "The sign is reversed: a reward above the mean has a positive advantage."),
    ]
    right, close = advantages.group_advantages, 1e-3
    agree("the advantage", implementation, right, (r,), mistakes, alone=True, rtol=close, atol=close)
    some = _right_or_wrong(draw)
    quiet = "Groups count as tied although their rewards are 0 and 1: compare the largest and the smallest."
    known = [(0 * some, quiet)]
    agree("the advantage", implementation, right, (some,), known, rtol=close, atol=close)


def _axis(what: str, P: int, G: int) -> str:
    return (
        f"The wrong axis: {what} over the {P} prompts (axis 0), which compares answers to different prompts. "
        f"The group, {G} answers to one prompt, is axis 1."
    )


def _batch(what: str, P: int, G: int) -> str:
    return (
        f"Your {what} is that of the whole batch of {P * G} rewards, not of each group of {G}: use axis 1 "
        "and keepdim=True."
    )


@register("advantages.group_advantages")
def check_bessel(implementation: Callable, draw: Draw) -> None:
    """``f(rewards, correction=1)``: the same over Bessel's standard deviation, which divides by G - 1."""
    r = _rewards(draw)
    ignored = (
        "The option is ignored: with correction=1 the standard deviation divides by G - 1 = "
        f"{r.shape[1] - 1}, not by G = {r.shape[1]}. Results will not compare with TRL's."
    )
    plain, close = advantages.group_advantages(r), 5e-3
    if not torch.allclose(call(implementation, r), plain, close, close):
        return  # wrong without the option as well: check_group_advantages says why
    right = advantages.group_advantages(r, correction=1)
    compare(
        "the advantage", call(implementation, r, correction=1), right, [(plain, ignored)], None, close, close
    )


@register("advantages.group_advantages")
def check_tied_groups(implementation: Callable, draw: Draw) -> None:
    """``f(rewards)``: a group of equal rewards gets 0, in float32 as well, and another group does not."""
    for _ in range(1000):  # look for a number whose mean float32 misses: for some G there is none
        G, value = draw.integer(3, 9), draw.uniform(0.1, 2.0, 1).float()
        rewards = torch.stack([value.expand(G), torch.linspace(0, 1, G, dtype=torch.float32)])  # (2, G)
        miss = float(rewards.mean(1)[0] - value)
        if miss:
            break
    got = number("the advantage", call(implementation, rewards))
    if tuple(got.shape) != tuple(rewards.shape) or not got[1].nan_to_num().ne(0).any():
        seen = f"shape {tuple(got.shape)}, second group {[round(a, 3) for a in got[-1:].flatten().tolist()]}"
        raise CheckFailed(f"One group of two is tied, and the other, of shape ({G},), is not: {seen}.")
    worst = got[0].abs().max().item()
    if worst != worst:
        raise CheckFailed(
            f"{G} equal rewards of {value.item():.6g} get NaN, expected 0: 0 / 0. A tied group is found by "
            "max == min, and what was divided by zero must not be chosen there (masked_fill, torch.where)."
        )
    if worst:
        raise CheckFailed(
            f"{G} equal rewards of {value.item():.6g} get an advantage of {worst:.3g}, expected 0. In "
            f"float32 their mean misses them by {miss:.1e}, and you divide that by next to nothing. A tied "
            "group is found by max == min, not by a small eps."
        )


@register("advantages.leave_one_out")
def check_leave_one_out(implementation: Callable, draw: Draw) -> None:
    """``f(rewards)``: rewards ``(P, G)`` less the mean of the *other* rewards of their group."""
    r = _rewards(draw)
    G = r.shape[1]
    total = r.sum(1, keepdim=True)
    mistakes = [
        (
            r - total / G,
            f"Your baseline is the mean of all {G} rewards of the group, the own one included: leave it out, "
            f"(sum - r) / {G - 1}. You are too small by (G-1)/G.",
        ),
        (
            r - (total - r) / G,
            f"You leave the own reward out of the sum, but still divide by G = {G}, not {G - 1}.",
        ),
        (r - (r.sum(0) - r) / (r.shape[0] - 1), _axis("the mean of the others runs", *r.shape)),
        (r - (r.sum() - r) / (r.numel() - 1), _batch("mean of the others", *r.shape)),
        (
            (r - (total - r) / (G - 1)) / r.std(1, keepdim=True),
            "You divide by the standard deviation: RLOO only subtracts the others' mean.",
        ),
        (r - r.median(1, keepdim=True).values, "You subtract the median: take the mean of the others."),
        (
            r - torch.stack([r[:, [j for j in range(G) if j != i]].amax(1) for i in range(G)], 1),
            "You subtract the best of the others: take their mean.",
        ),
        (r - r.amax(1, keepdim=True), "You subtract the best of the group: take the mean of the others."),
        (
            r - torch.stack([r[:, [j for j in range(G) if j != i]].median(1).values for i in range(G)], 1),
            "You subtract the median of the others: take their mean.",
        ),
        (r - (total - r) / (G - 2), f"You divide by G - 2: there are G - 1 = {G - 1} others."),
        (
            r - (r.cumsum(1) - r) / torch.arange(G).clamp(min=1),
            "You compare with the rewards before it only: all others of the group count.",
        ),
        (r - r.roll(1, 1), "You compare with one of the others: take the mean of all of them."),
        ((total - r) / (G - 1) - r, "The sign is reversed: a reward above the others' mean is positive."),
        ((total - r) / (G - 1), "This is the baseline itself: subtract it from the reward."),
    ]
    agree("the advantage", implementation, advantages.leave_one_out, (r,), mistakes, alone=True)
    some = _right_or_wrong(draw)
    equal = "Others with the same reward are left out, too: leave out the own one alone."
    agree("the advantage", implementation, advantages.leave_one_out, (some,), [(2 * some - 1, equal)])
    pair = r[:, :2]
    compare("the advantage in groups of two", call(implementation, pair), pair - pair.flip(1))
    at_other_sizes("the advantage", implementation, advantages.leave_one_out, (r,), scaled=((0,),))
    shapes = ({"P": G}, {"P": 1, "G": 2}, {"P": 40, "G": 60})
    at_other_shapes("the advantage", implementation, advantages.leave_one_out, (r,), ("PG",), shapes)


@register("advantages.gae")
def check_gae(implementation: Callable, draw: Draw) -> None:
    """``f(rewards, values, mask, gamma, lam)``: advantages and the critic's targets, ``(B, T)``."""
    B, T = draw.integer(3, 5), draw.integer(4, 6)
    gamma, lam = draw.uniform(0.85, 0.97, 1).item(), draw.uniform(0.4, 0.8, 1).item()
    mask = draw.mask(B, T)
    rewards, values = draw.normal(B, T), draw.normal(B, T)  # padding holds a critic's opinion, as it does
    right, returns = advantages.gae(rewards, values, mask, gamma, lam)

    def other(v=values, gamma=gamma, lam=lam, decay=None, bootstrap=False):
        return _gae(rewards, v, mask, gamma, gamma * lam if decay is None else decay, bootstrap)

    late, nothing, end = values.roll(-1, 1), torch.zeros_like(values), mask.sum(1, keepdim=True) - 1
    mistakes = [
        (
            other(bootstrap=True),
            "At the last token you add the critic's value of the padding after it. Nothing follows the end: "
            "the next value there is 0, the (1 - done) of the formula.",
        ),
        (
            other(late),
            "Your values are one token late: token t is compared with the value before it, values[:, t].",
        ),
        (other(decay=lam), "Gamma is missing from the sum: errors decay by gamma * lam, not by lam alone."),
        (other(decay=gamma), "Lambda is ignored: errors decay by gamma * lam, not by gamma alone."),
        (other(decay=gamma * gamma * lam), "Gamma is in the sum twice: errors decay by gamma * lam."),
        (
            other(decay=0.0),
            "This is the one-step error alone: add gamma * lam times the next token's advantage.",
        ),
        (
            _gae(rewards + gamma * values * (torch.arange(T) == end), values, mask, gamma, gamma * lam),
            "After the last token you go on with its own value: nothing follows the end, the next is 0.",
        ),
        (other(nothing), "The values are missing: this is the return, not the advantage."),
        (returns, "These are the returns: the advantages are the returns less the values."),
        (-right, "The sign is reversed: delta is reward + gamma * next value - value."),
    ]
    targets = [
        (right, "The critic's targets lack the value: they are advantages + values."),
        (values - right, "The sign is reversed: the critic's targets are advantages + values."),
        (other(nothing, decay=gamma), "Your targets are those of lambda = 1: take advantages + values."),
    ]
    names, arguments = ("the advantage", "the critic's target"), (rewards, values, mask, gamma, lam)
    agree_in_parts(names, implementation, advantages.gae, arguments, (mistakes, targets), mask, alone=True)
    padding_is_arbitrary(names, implementation, advantages.gae, arguments, mask, (0, 1))
    ends = {3: (0.0, 1.0), 4: (0.0, 0.95, 1.0)}
    shapes, axes = ({"B": T}, {"T": 1}, {"T": 60}), ("BT", "BT", "BT", "", "")
    at_other_shapes(names, implementation, advantages.gae, (rewards, values, mask, gamma, lam), axes, shapes)
    at_other_sizes(names, implementation, advantages.gae, arguments, ends, ((0, 1),), mask)


def _gae(rewards, values, mask, gamma: float, decay: float, bootstrap: bool = False) -> Tensor:
    """Generalized advantages; ``bootstrap`` makes the mistake of reading a value after the end."""
    result = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + decay * next_advantage, 0.0)
        next_value = values[:, t] if bootstrap else torch.where(mask[:, t], values[:, t], 0.0)
        result[:, t] = next_advantage
    return result


@register("advantages.token_rewards")
def check_token_rewards(implementation: Callable, draw: Draw) -> None:
    """``f(scores, mask, kl, beta)``: the score on the last token, less the price of each one's KL."""
    B, T, beta = draw.integer(3, 5), draw.integer(4, 6), draw.uniform(0.1, 0.5, 1).item()
    mask, scores, kl = draw.mask(B, T), 3 + draw.normal(B), draw.normal(B, T)
    scores[-1] = 20 + 10 * scores[-1].abs()  # no score is too large
    penalty, end = torch.where(mask, -beta * kl, 0.0), mask.sum(1, keepdim=True)  # (B, T), (B, 1)

    def put(column: Tensor, penalty: Tensor = penalty, scores: Tensor = scores) -> Tensor:
        return penalty.scatter_add(1, column, scores[:, None])

    last, late = torch.full_like(end, T - 1), end.clamp(max=T - 1)
    total, is_last = penalty.sum(1), torch.arange(T) == end - 1
    own = "and not on each completion's own last token, mask.sum(1) - 1."
    mistakes = [
        (
            put(late),
            "The score stands one token after the end, on padding, where the mask will hide it: its column "
            "is mask.sum(1) - 1.",
        ),
        (
            torch.where(mask, put(late), 0.0),
            "The score stands one token after the end, where the mask hides it: its column is mask.sum(1) - "
            "1.",
        ),
        (put(last), f"The score stands in the last column, {T - 1}, {own}"),
        (torch.where(mask, put(last), 0.0), f"The score stands in the last column, {T - 1}, {own}"),
        (put(end[:1].expand_as(end) - 1), f"The score stands where the first row ends, {own}"),
        (put((end - 2).clamp(min=0)), f"The score stands on the token before the last, {own}"),
        (put(torch.zeros_like(end)), "The score stands on the first token: it is known only after the last."),
        (
            penalty + torch.where(mask, scores[:, None], 0.0),
            "Every token gets the score: only the last one does.",
        ),
        (
            penalty + torch.where(mask, scores[:, None] / end, 0.0),
            "The score is shared by all tokens: it stands on the last one, whole.",
        ),
        (
            torch.where(is_last, scores[:, None], penalty),
            "The last token does not pay for its KL: add the score to its penalty.",
        ),
        (
            put(end - 1, torch.zeros_like(kl), scores + total),
            "The KL of the whole completion is paid on the last token: each token pays for its own.",
        ),
        (
            put(end - 1, torch.where(mask, total[:, None] / end, 0.0)),
            "Each token pays for the mean KL of its completion: it pays for its own.",
        ),
        (
            put(end - 1, -penalty),
            "The KL has the wrong sign: this pays for drifting away from the reference.",
        ),
        (put(end - 1, -beta * kl), "Padding pays KL, too: mask the penalty."),
        (put(end - 1, torch.zeros_like(kl)), "The KL penalty is missing."),
        *[
            (
                put(end - 1, scores=scores.clamp(-most, most)),
                f"Scores are cut off at {most}: take them as they are.",
            )
            for most in (1, 5, 10)
        ],
    ]
    arguments, right = (scores, mask, kl, beta), advantages.token_rewards
    agree("the reward of a token", implementation, right, arguments, mistakes, alone=True)
    padding_is_arbitrary("the reward of a token", implementation, right, arguments, mask, [2])
    other = {3: (0.0, 4.0)}
    shapes, axes = ({"B": mask.shape[1]}, {"T": 1}, {"T": 60}), ("B", "BT", "BT", "")
    at_other_shapes("the reward of a token", implementation, right, arguments, axes, shapes)
    at_other_sizes("the reward of a token", implementation, right, arguments, other, ((0,), (0, 2)), mask)
