"""Checks of the variants' own parts: ratios and weights of whole completions, CISPO, dual clip, unbiased KL.

Where a function is asked twice, the two answers are compared with each other, so that a mistake elsewhere in
its file is left to the check that is meant for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nanogrpo import offpolicy
from nanogrpo.teach.checks.compare import call, compare, gradient
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.losses import loss_case, one_number
from nanogrpo.teach.checks.registry import CheckFailed, register

Case = tuple[Tensor, Tensor, Tensor]


def _pair(draw: Draw) -> Case:
    """Log-probs of two policies and a mask with rows of several lengths."""
    B, T = draw.integer(3, 4), draw.integer(3, 5)
    logprobs, mask = draw.logprobs(B, T), draw.mask(B, T)
    return logprobs, logprobs + 0.4 * draw.normal(B, T), mask


@register("losses.importance_ratio")
def check_sequence_ratio(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, mask, level)``: with ``"sequence"`` the geometric mean of the tokens'."""
    logprobs, old, mask = _pair(draw)
    each = call(implementation, logprobs, old, mask, level="token")
    whole = call(implementation, logprobs, old, mask, level="sequence")
    log, lengths = torch.where(mask, each.log(), 0.0), mask.sum(1, keepdim=True)
    total = log.sum(1, keepdim=True)
    right = "GSPO's ratio is the mean of the log-ratios, under exp: the geometric mean of the tokens' ratios."
    mistakes = [
        (
            total.exp().expand_as(log),
            "The root is missing: this is the product of the tokens' ratios, and it spreads with the length, "
            f"so that one bound clips long completions and not short ones. {right}",
        ),
        ((total / mask.shape[1]).exp().expand_as(log), f"You divide by the padded length. {right}"),
        (
            (torch.where(mask, each, 0.0).sum(1, keepdim=True) / lengths).expand_as(log),
            f"This is the plain mean of the ratios. {right}",
        ),
        (each, f"Each token still has its own ratio. {right}"),
    ]
    compare("the ratio of a completion", whole, (total / lengths).exp().expand_as(log), mistakes, mask)


@register("losses.cispo_surrogate")
def check_cispo(implementation: Callable, draw: Draw) -> None:
    """``f(ratio, logprobs, advantages, mask, clip_low, clip_high)``: its gradient reaches every token."""
    old, low, high = draw.logprobs(4, 3), 1.0, round(draw.uniform(0.2, 0.4, 1).item(), 2)
    moved = torch.stack([draw.uniform(a, b, 4) for a, b in ((0.5, 0.8), (1.0, 1.15), (1.7, 2.5))], 1)
    mask, advantages = draw.mask(4, 3), draw.uniform(0.5, 2, 4) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    logprobs = (old + moved.log()).requires_grad_()
    ratio = (logprobs - old).exp()
    loss = call(implementation, ratio, logprobs, advantages, mask, low, high)
    slope = gradient("the loss of a token", loss, logprobs, torch.ones_like(loss))
    r, A = ratio.detach(), advantages[:, None].expand(4, 3)
    weight = r.clamp(1 - low, 1 + high)
    inside = (r > 1 - low) & (r < 1 + high)
    stopped = (
        "Stop the gradient at the weight, and let the log-prob carry it: -weight.detach() * A * logprobs."
    )
    mistakes = [
        (
            torch.where(inside, -r * A, 0.0),
            "A token whose ratio is beyond the bound gets no gradient: you train the clipped ratio. "
            f"{stopped}",
        ),
        (
            -weight * A - torch.where(inside, r * A * logprobs.detach(), 0.0),
            f"The gradient also runs through the weight. {stopped}",
        ),
        (-r * A, "The weight has no upper bound, 1 + clip_high."),
        (-A.clone(), "The weight is missing."),
        (weight * A, "The sign is reversed."),
    ]
    wrong = [(torch.where(mask, value, 0.0), sentence) for value, sentence in mistakes]
    compare("the gradient of the loss", slope, torch.where(mask, -weight * A, 0.0), wrong)


@register("losses.clipped_surrogate")
def check_dual_clip(implementation: Callable, draw: Draw) -> None:
    """``f(ratio, advantages, mask, clip_low, clip_high, delta)``: bounds what A < 0 leaves unbounded."""
    delta, mask = draw.uniform(2.5, 4, 1).item(), torch.ones(2, 3, dtype=torch.bool)
    advantages = torch.stack([draw.uniform(0.5, 2, 1), -draw.uniform(0.5, 2, 1)])[:, 0]
    ratio = torch.stack([draw.uniform(a, b, 2) for a, b in ((0.5, 0.7), (0.95, 1.05), (1.5, 2.0))], 1)

    def loss(ratio: Tensor, delta: float | None) -> Tensor:
        return call(implementation, ratio, advantages, mask, 0.2, 0.2, delta)

    free, bounded = loss(ratio, None), loss(ratio, delta)
    both = "Where A > 0 delta changes the loss. Its bound is for A < 0, where min leaves a large ratio free"
    compare(
        "the loss of a token below delta", bounded[0], free[0],
        [((-delta * advantages[0]).expand(3), f"{both}; here it is always the larger one, and a constant.")],
    )  # fmt: skip
    compare("the loss of a token below delta, where A < 0", bounded[1], free[1])
    near, far = (torch.full((2, 3), delta * by) for by in (1.1, 3.0))
    if not torch.allclose(loss(near, delta)[1], loss(far, delta)[1]):
        raise CheckFailed(
            f"Where A < 0, ratios of {1.1 * delta:.2f} and {3 * delta:.2f} have different losses: delta = "
            f"{delta:.2f} bounds nothing."
        )


@register("losses.grpo_loss")
def check_unbiased_kl(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old, ref, advantages, mask, beta=..., use_bias_correction_kl=...)``: what the ratio adds.

    One token, on fresh samples: there the ratio is 1, and all that it brings is a gradient.
    """
    mask, beta = torch.ones(1, 1, dtype=torch.bool), draw.uniform(0.5, 2, 1).item()
    logprobs, _, ref, _, _ = loss_case(draw, mask)
    old, A = logprobs.detach(), torch.ones(1)

    def loss(**options) -> Tensor:
        return one_number(call(implementation, logprobs, old, ref, A, mask, **options))

    def slope(value: Tensor) -> Tensor:
        return gradient("the loss", value, logprobs, torch.tensor(1.0))

    alone, plain = loss(beta=0.0), loss(beta=beta)
    corrected = loss(beta=beta, use_bias_correction_kl=True)
    compare("the loss on fresh samples, with the correction", corrected, plain)
    moves = slope(alone).abs()  # 1 where the ratio has a gradient at all
    compare(
        "the gradient that the correction adds",
        slope(corrected) - slope(plain),
        (plain - alone).detach() * moves,
        [(torch.zeros(1, 1), "The ratio before the KL is detached. On fresh samples its value is 1, and it "
          "stands there for its gradient, the score of the sampled token times the KL.")],
    )  # fmt: skip


@register("offpolicy.sampler_weights")
def check_sampler_weights(implementation: Callable, draw: Draw) -> None:
    """``f(old_logprobs, sampler_logprobs, mask, level, rule, high, low)``: trainer's over sampler's."""
    old, mu, mask = _pair(draw)
    log, lengths = torch.where(mask, old - mu, 0.0), mask.sum(1, keepdim=True)
    total = log.sum(1, keepdim=True)
    wide = partial(torch.Tensor.expand_as, other=log)
    product = (
        "The probability of a completion is a product, so its weight is exp of the sum of the log-ratios."
    )
    known = {
        "token": [(wide(total.exp()), "This is the weight of the completion, not of the token.")],
        "sequence": [
            (
                wide((total / lengths).exp()),
                f"You take the mean of the log-ratios, as GSPO's ratio does. {product}",
            ),
            (
                wide(torch.where(mask, log.exp(), 0.0).sum(1, keepdim=True)),
                f"You add the tokens' weights. {product}",
            ),
            (log.exp(), f"Each token still has its own weight. {product}"),
        ],
    }  # fmt: skip
    for level, mistakes in known.items():
        upside = (wide((-total).exp()) if level == "sequence" else (-log).exp(),
                  "The weight is upside down: the trainer's probability over the sampler's.")  # fmt: skip
        wrong = [(torch.where(mask, value, 0.0), sentence) for value, sentence in (*mistakes, upside)]
        arguments = (old, mu, mask, level, "truncate", None)
        compare(f"a weight of level {level!r}", call(implementation, *arguments),
                offpolicy.sampler_weights(*arguments), wrong)  # fmt: skip
    bounded = (old, mu, mask, "token", "mask", 1.3, 0.8)
    cut = torch.where(mask, log.exp().clamp(0.8, 1.3), 0.0)
    compare("a weight under a mask", call(implementation, *bounded), offpolicy.sampler_weights(*bounded),
            [(cut, "Weights outside of the bounds are moved to them: with a mask they are 0.")])  # fmt: skip


@register("advantages.global_advantages")
def check_global_advantages(implementation: Callable, draw: Draw) -> None:
    """``f(rewards)``: less the group's mean, over *one* deviation, that of the whole batch."""
    G = draw.integer(4, 6)
    one = draw.normal(G)
    one = (one - one.mean()) / one.std(correction=0)
    sizes = draw.uniform(1, 3, 2)  # groups that differ in spread; rows and columns have mean zero
    rewards = torch.stack([sizes[0] * one, sizes[1] * one, -sizes.sum() * one])
    each = rewards / (rewards.std(1, correction=0, keepdim=True) + 1e-4)
    mistakes = [
        (
            each,
            "You divide by the group's deviation, alone or by two deviations in a row. It takes away what "
            "the batch's keeps, that one group has a wider spread than another.",
        ),
        (rewards, "You do not divide by the deviation."),
    ]
    expected = rewards / (rewards.std(correction=0) + 1e-4)
    compare("the advantage", call(implementation, rewards), expected, mistakes, rtol=1e-3)
