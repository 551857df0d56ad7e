"""Checks of the policy's loss: ratio, clip, KL penalty. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nanogrpo import losses
from nanogrpo.teach.checks.compare import call, compare, gradient, no_gradient, padding_is_zero
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.means import means_of
from nanogrpo.teach.checks.registry import CheckFailed, register


@register("losses.importance_ratio")
def check_importance_ratio(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, mask)``: new over old probability of each token, and its gradient."""
    B, T = draw.integer(3, 4), draw.integer(3, 5)
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), draw.mask(B, T)
    old = (logprobs.detach() + 0.4 * draw.normal(B, T)).requires_grad_()
    log_ratio = (logprobs - old).detach()
    mistakes = [
        (
            torch.ones_like(log_ratio),
            "The ratio is always 1: you divide the policy by itself. old_logprobs are those kept from "
            "sampling; made "
            "anew at each update they follow the policy, and the clip never acts.",
        ),
        ((-log_ratio).exp(), "The ratio is upside down: new over old, exp(logprobs - old_logprobs)."),
        (log_ratio, "This is the log-ratio: take its exp."),
        (logprobs / old, "You divide log-probs: the ratio of probabilities is exp(logprobs - old_logprobs)."),
    ]
    got = call(implementation, logprobs, old, mask)
    compare("the ratio", got, log_ratio.exp(), mistakes, mask)
    slope = gradient("The ratio (is logprobs detached?)", got, logprobs, mask.to(logprobs))
    compare("the gradient of the ratio", slope, torch.where(mask, log_ratio.exp(), 0.0))
    why = (
        "old_logprobs: they are not detached. Where new and old come from one graph the two gradients "
        "cancel to "
        "zero. Use old_logprobs.detach()."
    )
    no_gradient("the ratio", got, old, why)


@register("losses.importance_ratio")
def check_mask_before_exp(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, mask)``: what padding holds reaches neither the ratio nor its gradient."""
    B, T = draw.integer(3, 4), draw.integer(3, 5)
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), draw.mask(B, T)
    old = (logprobs.detach() + 0.4 * draw.normal(B, T)).masked_fill(~mask, -1e4)
    got = call(implementation, logprobs, old, mask)
    if not isinstance(got, Tensor) or not got.requires_grad:
        return  # check_importance_ratio says what is wrong
    slope = gradient("the ratio", torch.where(mask, got, 0.0), logprobs)
    if not (got[mask].isfinite().all() and slope.isfinite().all() and got.isfinite().all()):
        what = "ratio" if not got.isfinite().all() else "gradient, not the ratio itself,"
        raise CheckFailed(
            f"Padding with an old log-prob of -10000 makes the {what} infinite or NaN: exp overflows "
            f"there, and "
            "infinity times the mask's 0 is NaN. Mask the log-ratio before exp, not the ratio after it."
        )


@register("losses.clipped_surrogate")
def check_clipped_surrogate(implementation: Callable, draw: Draw) -> None:
    """``f(ratio, advantages, mask, clip_low, clip_high)``: PPO's loss of each token, and its gradient."""
    B, T, low, high = draw.integer(4, 6), 3, 0.2, 0.3
    ratio = torch.stack([draw.uniform(a, b, B) for a, b in ((0.4, 0.75), (0.9, 1.1), (1.4, 1.7))], 1)
    ratio, mask = ratio.requires_grad_(), draw.mask(B, T)
    advantages = draw.uniform(0.5, 2, B) * torch.tensor([1.0, -1.0]).repeat(3)[:B]
    mask[:2] = True  # one of each sign with all three ratios
    advantages.requires_grad_()
    right = losses.clipped_surrogate(ratio, advantages, mask, low, high)
    got = call(implementation, ratio, advantages, mask, low, high)
    mistakes = surrogate_mistakes(ratio.detach(), advantages.detach()[:, None].expand(B, T), mask, low, high)
    compare("the loss of a token", got, right, mistakes, mask)
    padding_is_zero("the loss of a token", got, mask)
    slope = gradient("The loss (is the ratio detached?)", got, ratio)
    compare("the gradient of the loss", slope, gradient("", right, ratio))
    why = (
        "the advantages: they are not detached. An advantage is a constant of the loss; use "
        "advantages.detach()."
    )
    no_gradient("the loss", got, advantages, why)


def surrogate_mistakes(
    r: Tensor, A: Tensor, mask: Tensor, low: float, high: float
) -> list[tuple[Tensor, str]]:
    clipped = r.clamp(1 - low, 1 + high)
    smaller, larger = torch.min(r * A, clipped * A), torch.max(r * A, clipped * A)
    swapped = torch.min(r * A, r.clamp(1 - high, 1 + low) * A)
    wrong = [
        (-larger, "Your min is a max: the clip then stops the gradient where it should push, and pushes "
                  "where it "
                  "should stop. The loss is -min(ratio * A, clipped * A)."),
        (-torch.where(A < 0, larger, smaller), "For A < 0 you take the max: the min is right for both "
                                               "signs of A. At "
                                               "A < 0 it leaves a large ratio unbounded, so that it can "
                                               "come back."),
        (smaller, "The sign is reversed: this is the objective, which is maximized. A loss is "
                  "minimized: -min(...)."),
        (larger, "Two signs are reversed: the loss is -min(ratio * A, clipped * A)."),
        (-clipped * A, "The min is missing: with the clipped term alone, a token that went too far the "
                       "wrong way gets "
                       "no gradient that brings it back."),
        (-r * A, "Nothing is clipped."),
        (-swapped, f"The bounds are swapped: the ratio may count from 1 - {low} to 1 + {high}."),
        (-torch.min(r * A, r.clamp(max=1 + high) * A), "The lower bound, 1 - clip_low, is missing."),
        (-torch.min(r * A, r.clamp(min=1 - low) * A), "The upper bound, 1 + clip_high, is missing."),
        (-smaller / A, "The advantages are missing."),
    ]  # fmt: skip
    return [(torch.where(mask, values, 0.0), sentence) for values, sentence in wrong]


@register("losses.grpo_loss")
def check_kl_penalty(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta=...)``: what the KL adds."""
    B, T, beta = draw.integer(3, 5), draw.integer(2, 4), draw.uniform(0.5, 2, 1).item()
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), torch.ones(B, T, dtype=torch.bool)
    old, ref = (logprobs.detach() + 0.5 * draw.normal(B, T) for _ in range(2))
    batch = (logprobs, old, ref, draw.normal(B), mask)
    with_kl, without = (_first(call(implementation, *batch, beta=b)) for b in (beta, 0.0))
    delta = ref - logprobs
    k = {"k1": -delta, "k2": 0.5 * delta**2, "k3": torch.expm1(delta) - delta}
    added = {name: beta * value.mean() for name, value in k.items()}
    mistakes = [
        (-added["k3"], "The penalty has the wrong sign: the loss gets lower the farther the policy is "
                       "from the "
                       "reference. Add beta * KL to the loss."),
        (added["k1"], "Your penalty is k1. Its expected gradient is zero, so that it restrains nothing: "
                      "in a loss, use "
                      "k3 (or k2)."),
        (added["k2"], "Your penalty is k2, expected k3."),
        (beta * (torch.expm1(-delta) + delta).mean(), "Your k3 is reversed: delta = ref_logprobs - "
                                                      "logprobs."),
        (beta * losses.kl_k3(logprobs, old).mean(), "This is the KL to the policy that sampled: take "
                                                    "ref_logprobs."),
        (added["k3"] / beta, "Beta has no influence on your penalty."),
        (added["k3"] * T, "You add the KL of a completion's tokens: average them as you average the "
                          "rest of the loss."),
        (0 * added["k3"], "Beta adds nothing to the loss."),
    ]  # fmt: skip
    compare("what beta adds to the loss", with_kl - without, added["k3"], mistakes)
    slopes = [gradient("the loss", loss, logprobs) for loss in (with_kl, without)]
    compare("the gradient that beta adds", slopes[0] - slopes[1], gradient("", added["k3"], logprobs))


def _first(result):
    """The loss, of an implementation that returns a loss or (loss, metrics)."""
    return result[0] if isinstance(result, tuple) else result


@register()
def check_grpo_loss(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, ref_logprobs, advantages, mask)``: GRPO's loss of the paper without KL."""
    B, T = draw.integer(4, 6), 3
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), draw.mask(B, T)
    steps = torch.stack([draw.uniform(a, b, B) for a, b in ((-0.6, -0.4), (-0.1, 0.1), (0.4, 0.6))], 1)
    old, ref = logprobs.detach() - steps, logprobs.detach() + 0.3 * draw.normal(B, T)
    advantages = draw.uniform(0.5, 2, B) * torch.tensor([1.0, -1.0]).repeat(3)[:B]
    mask[:2] = True
    right = losses.grpo_loss(logprobs, old, ref, advantages, mask, aggregation="sequence_mean")[0]
    aggregate = partial(losses.aggregate, how="sequence_mean")
    x = losses.clipped_surrogate(steps.exp(), advantages, mask)
    A, free = advantages[:, None], steps.exp().clamp(0.8, 1.2)
    larger = -torch.max(steps.exp() * A, free * A)
    mistakes = [
        (-right, "The sign is reversed: this is the objective; a loss is minimized."),
        (aggregate(larger, mask), "Your min is a max: the loss is -min(ratio * A, clipped * A)."),
        (aggregate(-steps.exp() * A, mask), "Nothing is clipped."),
        (aggregate(-free * A, mask), "The min is missing: you take the clipped term alone."),
        (aggregate(-logprobs.detach() * A, mask), "This is REINFORCE: the ratio is missing."),
        (aggregate(x + losses.kl_k3(logprobs.detach(), ref, mask), mask), "The KL is in the loss although "
                                                                          "beta is 0: multiply it by beta."),
        *_grpo_means(x, mask),
    ]  # fmt: skip
    loss = _first(call(implementation, logprobs, old, ref, advantages, mask))
    compare("the loss", loss, right, mistakes)
    slope = gradient("the loss", loss, logprobs)
    compare("the gradient of the loss", slope, gradient("", right, logprobs))


def _grpo_means(x: Tensor, mask: Tensor) -> list[tuple[Tensor, str]]:
    means = means_of(x, mask, mask.shape[1])
    B, T = mask.shape
    return [
        (x.mean(), f"Your mean runs over all {B * T} positions, padding included: mask before you average."),
        means["token_mean"],
        means["sequence_sum"],
        means["sequence sums"],
        means["sum"],
    ]
