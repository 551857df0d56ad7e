r"""What the clip alone does to the entropy: rewards are coins, so that there is nothing to learn.

One token, a table of logits, groups of answers, several passes over each group with plain gradient steps.
:func:`entropy_change` sums over every group and every toss of the coins; :func:`coin_runs` draws them.

    >>> probable = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64).log()
    >>> changes = [entropy_change(probable, clip) for clip in (NONE, CLIPS["clip-high only"])]
    >>> [f"{change:+.4f}" for change in changes]
    ['+0.0062', '-0.0045']
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from nanogrpo.advantages import group_advantages
from nanogrpo.kl import entropy


class Clip(NamedTuple):
    """Bounds of the ratio, None for no bound.

    ``blind`` is the control: as much weight is taken away as the clip would take, and from all answers
    with an advantage of the same sign alike, whichever token they are.
    """

    low: float | None = None
    high: float | None = None
    blind: bool = False


NONE = Clip()
CLIPS = {
    "no clip": NONE,
    "clip-low only": Clip(low=0.2),
    "clip-high only": Clip(high=0.2),
    "both": Clip(0.2, 0.2),
}
CONTROLS = {
    "clip-low, any token": Clip(low=0.2, blind=True),
    "clip-high, any token": Clip(high=0.2, blind=True),
}


def weights(ratio: Tensor, advantages: Tensor, clip: Clip) -> Tensor:
    """What each answer weighs in the gradient of the clipped surrogate; all are (B, G)."""
    whole, cut = ratio * advantages, torch.zeros_like(ratio, dtype=torch.bool)
    if clip.high is not None:
        cut |= (advantages > 0) & (ratio > 1 + clip.high)
    if clip.low is not None:
        cut |= (advantages < 0) & (ratio < 1 - clip.low)
    left = whole.masked_fill(cut, 0.0)
    if not clip.blind:
        return left
    for same in (advantages > 0, advantages < 0):
        kept, all_ = ((x * same).sum(1, keepdim=True) for x in (left, whole))
        whole = torch.where(same, whole * kept / all_.where(all_ != 0, 1.0), whole)
    return whole


def passes(
    logits: Tensor, drawn: Tensor, rewards: Tensor, clip: Clip, step: float = 1.0, times: int = 4
) -> tuple[Tensor, Tensor]:
    """Several gradient steps on one group each.

    Args:
        logits: (B, V) of the policy that has sampled.
        drawn: (B, G), answers.
        rewards: (B, G).
        clip: the bounds.
        step: size of a gradient step.
        times: how many.

    Returns:
        The new logits (B, V), and the share of answers that ``clip`` cuts, mean over passes (B,).
    """
    advantages = group_advantages(rewards)
    old, cut = logits.log_softmax(1).gather(1, drawn), torch.zeros(len(logits))
    for _ in range(times):
        logprobs = logits.log_softmax(1)
        ratio = (logprobs.gather(1, drawn) - old).exp()
        w = weights(ratio, advantages, clip)
        push = torch.zeros_like(logits).scatter_add(1, drawn, w) - w.sum(1, keepdim=True) * logprobs.exp()
        logits = logits + step * push / drawn.shape[1]
        cut = cut + ((w == 0) & (advantages != 0)).to(cut).mean(1) / times
    return logits, cut


def entropy_change(
    logprobs: Tensor, clip: Clip, step: float = 1.0, group_size: int = 4, times: int = 4
) -> float:
    """Expected change of the entropy by one group, over all groups and all tosses; exact.

    Args:
        logprobs: (V,) of the policy.
        clip, step, times: as for :func:`passes`.
        group_size: of the group; there are (2 V) ** group_size cases.
    """
    every = torch.tensor(list(product(range(len(logprobs)), repeat=group_size)))  # (N, G)
    coins = torch.tensor(list(product((0.0, 1.0), repeat=group_size)), dtype=logprobs.dtype)  # (M, G)
    drawn = every.repeat_interleave(len(coins), 0)
    chance = logprobs[drawn].sum(1).exp() / len(coins)
    start = logprobs.expand(len(drawn), -1)
    ends, _ = passes(start, drawn, coins.repeat(len(every), 1), clip, step, times)
    return (chance @ entropy(ends) - entropy(logprobs)).item()


def coin_runs(
    logprobs: Tensor, clip: Clip, seed: int, steps: int, prompts: int = 32, group_size: int = 16,
    step: float = 1.0, times: int = 4,
) -> Iterator[tuple[float, float]]:  # fmt: skip
    """Training on coins from sampled groups: mean entropy and share that is cut, after each step.

    The random numbers depend on the seed and the step alone, so that runs of one seed are paired.
    """
    chance = torch.Generator().manual_seed(seed)
    logits = logprobs.repeat(prompts, 1)
    for _ in range(steps):
        u = torch.rand(prompts, group_size, generator=chance, dtype=logits.dtype)
        coins = torch.rand(prompts, group_size, generator=chance, dtype=logits.dtype).round()
        drawn = torch.searchsorted(logits.softmax(1).cumsum(1), u).clamp(max=logits.shape[1] - 1)
        logits, cut = passes(logits, drawn, coins, clip, step, times)
        yield entropy(logits).mean().item(), cut.mean().item()
