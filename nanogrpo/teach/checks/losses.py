"""Checks of the policy's loss: ratio, clip, KL penalty. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nanogrpo import losses
from nanogrpo.kl import kl_k3
from nanogrpo.teach.checks.compare import Mistakes, agree, call, compare, gradient, number
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.means import means_of
from nanogrpo.teach.checks.padding import CHOOSE, padding_is_arbitrary, soiled
from nanogrpo.teach.checks.registry import CheckFailed, register
from nanogrpo.teach.checks.shapes import at_other_shapes
from nanogrpo.teach.checks.sizes import at_other_sizes

aggregate = partial(losses.aggregate, how="sequence_mean")
DETACHED = "they are not detached. They are constants"
OLD = f"old_logprobs: {DETACHED} from sampling; where both come from one graph the two gradients cancel."
ADVANTAGES = f"the advantages: {DETACHED} of the loss; use advantages.detach()."


@register("losses.importance_ratio")
def check_importance_ratio(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, mask)``: new over old probability of each token, and its gradient."""
    B, T = draw.integer(3, 4), draw.integer(3, 5)
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), draw.mask(B, T)
    old = logprobs.detach() + 0.4 * draw.normal(B, T)
    old[0, 0] -= 4.0  # a token that has become much more probable
    old.requires_grad_()
    agree(
        "the ratio", implementation, losses.importance_ratio, (logprobs, old, mask),
        ratio_mistakes(logprobs.detach(), old.detach(), mask), mask, trained=(0,), constants={1: OLD},
        alone=True,
    )  # fmt: skip
    plain, before = logprobs.detach(), old.detach()
    whole, shapes = torch.ones_like(mask), ({"B": T}, {"T": 1}, {"T": 2}, {"T": 60})
    given, axes = (logprobs, old, whole), ("BT", "BT", "BT")
    at_other_shapes("the ratio", implementation, losses.importance_ratio, given, axes, shapes, 0)
    for gap in (12.0, -12.0):
        given = (plain + gap, before, mask)
        right = losses.importance_ratio(*given)
        got, unit = number("the ratio", call(implementation, *given)), right.clamp(min=1.0)
        same = got / unit if got.shape == right.shape else torch.zeros_like(right)
        sentence = "The ratio is exp of the difference of log-probs, however large: nothing else bounds it."
        what = "where log-probs are far off the ratio"
        compare(what, got / unit, right / unit, [(same, sentence)], mask, rtol=1e-3)


def ratio_mistakes(logprobs: Tensor, old: Tensor, mask: Tensor) -> list[tuple[Tensor, str]]:
    """Ratios that are taken for the right one; looked at where the mask is true."""
    log_ratio = logprobs - old
    inside = torch.where(mask, log_ratio, 0.0)
    whole = inside.sum(1, keepdim=True).expand_as(mask)
    right = "the ratio of probabilities is exp(logprobs - old_logprobs)."
    return [
        (
            torch.ones_like(log_ratio),
            "The ratio is always 1: you divide the policy by itself. old_logprobs are those kept from "
            "sampling; made anew at each update they follow the policy, and the clip never acts.",
        ),
        ((-log_ratio).exp(), "The ratio is upside down: new over old, exp(logprobs - old_logprobs)."),
        (log_ratio, "This is the log-ratio: take its exp."),
        (1 + log_ratio, f"This is exp to the first order only: {right}"),
        (logprobs / old, f"You divide log-probs: {right}"),
        *[
            (log_ratio.clamp(-most, most).exp(), f"The log-ratio is cut off at {most}: {right}")
            for most in (0.5, 1, 2, 3)
        ],
        (log_ratio.exp2(), f"Log-probs are in nats, and this is a power of 2: {right}"),
        (whole.exp(), "This is the ratio of the whole completion: each token has its own."),
        (
            (whole / mask.sum(1, keepdim=True)).exp(),
            "This is the mean ratio of the completion, as GSPO takes it: each token has its own.",
        ),
        (inside.cumsum(1).exp(), "You multiply the ratios of all tokens so far: each token has its own."),
        (logprobs.exp() - old.exp(), f"This is a difference of probabilities: {right}"),
    ]


@register("losses.importance_ratio")
def check_mask_before_exp(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, mask)``: what padding holds reaches neither the ratio nor its gradient."""
    B, T = draw.integer(3, 4), draw.integer(3, 5)
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), draw.mask(B, T)
    old = (logprobs.detach() + 0.4 * draw.normal(B, T)).masked_fill(~mask, -1e4)
    got = call(implementation, logprobs, old, mask)
    if not isinstance(got, Tensor) or not got.requires_grad or got.shape != mask.shape:
        return  # check_importance_ratio says what is wrong
    padding_does_not_overflow("ratio", got, torch.where(mask, got, 0.0), logprobs)
    leaf = soiled(logprobs, mask)
    got = call(implementation, leaf, soiled(old, mask), mask)
    slope = gradient("the ratio", got, leaf)
    if not got.isfinite().all() or not slope.isfinite().all():
        what = "ratio" if slope.isfinite().all() else "gradient of the ratio"
        raise CheckFailed(f"What stands at padding makes the {what} infinite or NaN. {CHOOSE}")


def padding_does_not_overflow(what: str, got: Tensor, looked_at: Tensor, logprobs: Tensor) -> None:
    """Raise CheckFailed unless a result is finite, and its gradient, for old log-probs of -1e4 at padding."""
    finite = bool(got.isfinite().all())
    if not (finite and gradient(f"the {what}", looked_at, logprobs).isfinite().all()):
        broken = f"gradient, not the {what} itself," if finite else what
        raise CheckFailed(
            f"Padding with an old log-prob of -10000 makes the {broken} infinite or NaN: exp overflows "
            f"there, and infinity times the mask's 0 is NaN. Mask the log-ratio before exp, not the {what} "
            "after it."
        )


def clip_case(draw: Draw) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Ratios below, within and above the clip, a mask, advantages of both signs, and the two bounds."""
    B, T = draw.integer(4, 6), 3
    low, high = (draw.uniform(*at, 1).item() for at in ((0.12, 0.18), (0.22, 0.3)))
    ratio = torch.stack([draw.uniform(a, b, B) for a, b in ((0.4, 0.75), (0.9, 1.1), (1.4, 1.7))], 1)
    mask = draw.mask(B, T)
    mask[:2], mask[-1, 1:] = True, False  # one of each sign with all three ratios; the last row ends early
    advantages = draw.uniform(0.5, 2, B) * torch.tensor([1.0, -1.0]).repeat(3)[:B]
    advantages[2] = 0.0  # as good as its group
    ratio[1, 2] = draw.uniform(30, 60, 1).item()  # far off, at a negative advantage: nothing bounds it
    return ratio, advantages.requires_grad_(), mask, round(low, 2), round(high, 2)


SHAPES = ({"B": 3}, {"T": 1}, {"T": 2}, {"T": 60})
CLIPS = {3: (0.0, 0.9), 4: (0.0, 4.0)}  # other bounds, by their places


@register("losses.clipped_surrogate")
def check_clipped_surrogate(implementation: Callable, draw: Draw) -> None:
    """``f(ratio, advantages, mask, clip_low, clip_high)``: PPO's loss of each token, and its gradient."""
    ratio, advantages, mask, low, high = clip_case(draw)
    mistakes = surrogate_mistakes(ratio, advantages.detach()[:, None].expand_as(ratio), mask, low, high)
    arguments = (ratio.requires_grad_(), advantages, mask, low, high)
    agree(
        "the loss of a token", implementation, losses.clipped_surrogate, arguments, mistakes, mask, True,
        trained=(0,), constants={1: ADVANTAGES}, alone=True,
    )  # fmt: skip
    what = "the loss of a token"
    padding_is_arbitrary(what, implementation, losses.clipped_surrogate, arguments, mask, [0], trained=0)
    at_other_sizes(what, implementation, losses.clipped_surrogate, arguments, CLIPS, ((1,),), mask)
    at_other_shapes(
        what, implementation, losses.clipped_surrogate, arguments, ("BT", "B", "BT", "", ""), SHAPES, 0
    )


def surrogate_mistakes(
    r: Tensor, A: Tensor, mask: Tensor, low: float, high: float
) -> list[tuple[Tensor, str]]:
    """What the usual mistakes in the clip make of each token's loss."""
    clipped = r.clamp(1 - low, 1 + high)
    smaller, larger = torch.min(r * A, clipped * A), torch.max(r * A, clipped * A)
    swapped = torch.min(r * A, r.clamp(1 - high, 1 + low) * A)
    wrong = [
        (
            -larger,
            "Your min is a max: the clip then stops the gradient where it should push, and pushes where it "
            "should stop. The loss is -min(ratio * A, clipped * A).",
        ),
        (
            -torch.where(A < 0, larger, smaller),
            "For A < 0 you take the max: the min is right for both signs of A. At A < 0 it leaves a large "
            "ratio unbounded, so that it can come back.",
        ),
        (
            smaller,
            "The sign is reversed: this is the objective, which is maximized. A loss is minimized: "
            "-min(...).",
        ),
        (larger, "Two signs are reversed: the loss is -min(ratio * A, clipped * A)."),
        (
            -clipped * A,
            "The min is missing: with the clipped term alone, a token that went too far the wrong way gets "
            "no gradient that brings it back.",
        ),
        (-r * A, "Nothing is clipped."),
        *[
            (
                -torch.where(A < 0, smaller.maximum(most * A), smaller),
                f"For A < 0 a ratio above {most} is bounded (dual clip): here nothing bounds it.",
            )
            for most in (2, 3)
        ],
        (torch.zeros_like(r), "All losses are 0: one advantage of 0 says nothing of the other rows."),
        (-swapped, f"The bounds are swapped: the ratio may count from 1 - {low} to 1 + {high}."),
        (-torch.min(r * A, r.clamp(max=1 + high) * A), "The lower bound, 1 - clip_low, is missing."),
        (
            -torch.min(r * A, r.clamp(-low, 1 + high) * A),
            "The lower bound is 1 - clip_low, not minus clip_low.",
        ),
        (-torch.min(r * A, r.clamp(min=1 - low) * A), "The upper bound, 1 + clip_high, is missing."),
        (
            -torch.min(r * A, r.clamp(0.8, 1.2) * A),
            f"Both bounds are fixed at 0.2, and not {low} and {high}.",
        ),
        (
            smaller / mask.sum(1, keepdim=True) * -1,
            "You divide by the length: this is the loss of each token.",
        ),
        (-smaller / A, "The advantages are missing."),
    ]
    return [(torch.where(mask, values, 0.0), sentence) for values, sentence in wrong]


@register(("losses", lambda module: partial(module.grpo_loss, aggregation="sequence_mean")))
def check_kl_penalty(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta=...)``: what the KL adds, unpadded."""
    B, T, beta = draw.integer(3, 5), draw.integer(3, 5), draw.uniform(0.5, 2, 1).item()
    mask = torch.ones(B, T, dtype=torch.bool)
    check_penalty(implementation, loss_case(draw, mask), beta, "sequence_mean")
    small = draw.uniform(0.02, 0.1, 1).item()  # as in use
    check_penalty(implementation, loss_case(draw, mask), small, "sequence_mean")


def loss_case(draw: Draw, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What GRPO's loss takes."""
    logprobs = draw.logprobs(*mask.shape)
    old, ref = (logprobs + 0.5 * draw.normal(*mask.shape) for _ in range(2))
    return logprobs.requires_grad_(), old, ref, draw.normal(len(mask)), mask


def check_penalty(implementation: Callable, batch: tuple, beta: float, how: str) -> None:
    """Raise CheckFailed unless beta adds ``beta * k3``, averaged as ``how`` says, and its gradient."""

    def loss(*batch: Tensor, beta: float = beta) -> Tensor:
        return one_number(call(implementation, *batch, beta=beta))

    def added(*batch: Tensor) -> Tensor:
        return loss(*batch) - loss(*batch, beta=0.0)

    def penalty(logprobs, old_logprobs, ref_logprobs, advantages, mask):
        return beta * losses.aggregate(kl_k3(logprobs, ref_logprobs, mask), mask, how)

    known = _penalties(batch, beta, how)
    agree("what beta adds to the loss", added, penalty, batch, known, trained=(0,))


def _penalties(batch: tuple, beta: float, how: str) -> Mistakes:
    logprobs, old, ref, _, mask = batch
    aggregate = partial(losses.aggregate, how=how)
    delta, unmasked = ref - logprobs, kl_k3(logprobs, ref)
    k3, lengths = torch.where(mask, unmasked, 0.0), mask.sum(1)
    average = "average them as you average the rest of the loss."
    right = beta * aggregate(k3, mask)
    return [
        (
            -right,
            "The penalty has the wrong sign: the loss gets lower the farther the policy is from the "
            "reference. Add beta * KL to the loss.",
        ),
        (
            beta * aggregate(-delta, mask),
            "Your penalty is k1. Its expected gradient is zero, so that it restrains nothing: in a loss, use "
            "k3 (or k2).",
        ),
        (beta * aggregate(0.5 * delta**2, mask), "Your penalty is k2, expected k3."),
        (
            beta * aggregate(torch.expm1(-delta) + delta, mask),
            "Your k3 is reversed: delta = ref_logprobs - logprobs.",
        ),
        (
            beta * aggregate(kl_k3(logprobs, old), mask),
            "This is the KL to the policy that sampled: take ref_logprobs.",
        ),
        (right / beta, "Beta has no influence on your penalty."),
        (right * beta, "Your penalty has beta squared: multiply by beta once."),
        (beta * k3.sum(1).mean(), f"You add the KL of a completion's tokens: {average}"),
        (beta * k3.sum(), f"You add the KL of all tokens: {average}"),
        (beta * k3.sum() / mask.sum(), f"Your KL is a mean over all tokens of the batch: {average}"),
        (beta * (k3.sum(1) / lengths).mean(), f"Your KL is a mean of the completions' means: {average}"),
        (beta * unmasked.mean(), f"Padding has a KL, too, and the mean runs over it: mask it, and {average}"),
        (beta * k3.mean(), f"You divide the KL by the padded length: {average}"),
        (beta * (unmasked.sum(1) / lengths).mean(), "Padding has a KL, too: mask it before you add."),
        (0 * right, "Beta adds nothing to the loss."),
    ]


def policy_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, how: str = "sequence_mean") -> Tensor:
    """GRPO's loss without KL, both clips at 0.2."""
    ratio = losses.importance_ratio(logprobs, old_logprobs, mask)
    return losses.aggregate(losses.clipped_surrogate(ratio, advantages, mask, 0.2, 0.2), mask, how)


def number_alone(result) -> Tensor:
    """The loss as one number, of a step of a lab: it asks for nothing else."""
    if isinstance(result, tuple | list | dict):
        kind = type(result).__name__
        raise CheckFailed(f"The loss is a {kind} of {len(result)} things, expected one number, the loss.")
    return one_number(result)


def one_number(result) -> Tensor:
    """The loss as one number, of an implementation that returns a loss or (loss, metrics)."""
    loss = number("the loss", result[0] if isinstance(result, tuple) and result else result)
    if loss.shape:
        raise CheckFailed(f"The loss has shape {tuple(loss.shape)}, expected one number: take the means.")
    return loss


def loss_mistakes(r: Tensor, A: Tensor, mask: Tensor) -> list[tuple[Tensor, str]]:
    """What the usual mistakes make of the policy's loss, as one number."""
    x = losses.clipped_surrogate(r, A, mask, 0.2, 0.2)
    free = r.clamp(0.8, 1.2)
    B, T = mask.shape
    kept, means = torch.where(mask, A, 0.0), means_of(x, mask, T)
    wrong = [
        (-x, "The sign is reversed: this is the objective; a loss is minimized."),
        (-torch.max(r * A, free * A), "Your min is a max: the loss is -min(ratio * A, clipped * A)."),
        (-r * A, "Nothing is clipped."),
        (-free * A, "The min is missing: you take the clipped term alone."),
        (x / torch.where(kept == 0, 1.0, kept), "The advantages are missing: they could all be 1."),
    ]
    return [
        *[(aggregate(torch.where(mask, values, 0.0), mask), sentence) for values, sentence in wrong],
        (torch.zeros(()), "The loss is 0: the policy's loss is missing, or the advantages are."),
        (aggregate(-kept, mask), "The ratio is always 1: it is new over old."),
        (x.mean(), f"Your mean runs over all {B * T} positions, padding included: mask before you average."),
        *[means[name] for name in ("token_mean", "sequence_sum", "sequence sums", "sum")],
    ]


@register()
def check_grpo_loss(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, ref_logprobs, advantages, mask)``: GRPO's loss of the paper without KL."""
    B, T = draw.integer(4, 6), 3
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), draw.mask(B, T)
    steps = torch.stack([draw.uniform(a, b, B) for a, b in ((-0.6, -0.4), (-0.1, 0.1), (0.4, 0.6))], 1)
    old, ref = logprobs.detach() - steps, logprobs.detach() + 0.3 * draw.normal(B, T)
    advantages = draw.uniform(0.5, 2, B) * torch.tensor([1.0, -1.0]).repeat(3)[:B]
    mask[:2] = True
    A = advantages[:, None].expand_as(mask)
    x = losses.clipped_surrogate(steps.exp(), advantages, mask, 0.2, 0.2)
    with_kl = x + kl_k3(logprobs.detach(), ref, mask)
    mistakes = [
        *loss_mistakes(steps.exp(), A, mask),
        (aggregate(-logprobs.detach() * A, mask), "This is REINFORCE: the ratio is missing."),
        (aggregate(with_kl, mask), "The KL is in the loss although beta is 0: multiply it by beta."),
    ]
    batch = (logprobs, old, ref, advantages, mask)

    def loss(*batch: Tensor) -> Tensor:
        return one_number(call(implementation, *batch))

    agree("the loss", loss, policy_loss, batch, mistakes, trained=(0,))
