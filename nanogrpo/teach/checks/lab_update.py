"""Checks of steps that only the labs have: GRPO's policy loss and update. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nanogrpo import rollout as rollouts
from nanogrpo.losses import clipped_surrogate, grpo_loss
from nanogrpo.model import GPT
from nanogrpo.rollout import Rollout, token_logprobs
from nanogrpo.teach.checks.compare import call, compare, gradient, no_gradient, padding_is_zero
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.losses import surrogate_mistakes
from nanogrpo.teach.checks.registry import CheckFailed, register

AUTOGRAD = {  # what PyTorch says, and what it means here
    "through the graph a second time": "backward runs twice through one graph: the log-probs belong inside "
    "the loop. Each update has moved the policy, so the next one must ask it again.",
    "modified by an inplace operation": "A weight was changed after the log-probs were computed and before "
    "backward: call backward first, then optimizer.step(). The log-probs of an update are computed anew.",
}


@register()
def check_policy_loss(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, advantages, mask, clip_low, clip_high)``: ratio and clip, ``(B, T)``."""
    B, T, low, high = draw.integer(4, 6), 3, 0.2, 0.3
    logprobs, mask = draw.logprobs(B, T).requires_grad_(), draw.mask(B, T)
    mask[:2] = True  # one of each sign with all three ratios; the last row ends early
    mask[-1, 1:] = False
    r = torch.stack([draw.uniform(a, b, B) for a, b in ((0.4, 0.75), (0.9, 1.1), (1.4, 1.7))], 1)
    old = (logprobs.detach() - r.log()).requires_grad_()
    advantages = draw.uniform(0.5, 2, B) * torch.tensor([1.0, -1.0]).repeat(3)[:B]
    advantages.requires_grad_()
    A = advantages.detach()[:, None].expand(B, T)
    right, mistakes = clipped_surrogate(r, A, mask, low, high), surrogate_mistakes(r, A, mask, low, high)
    mistakes += [
        (clipped_surrogate(wrong, A, mask, low, high), sentence)
        for wrong, sentence in _wrong_ratios(r, logprobs.detach(), old.detach())
    ]
    got = call(implementation, logprobs, old, advantages, mask, low, high)
    compare("the loss of a token", got, right, mistakes, mask)
    padding_is_zero("the loss of a token", got, mask)
    moves = mask & (r < 1 + high).where(A > 0, r > 1 - low)
    slope = torch.where(moves, -A * r, 0.0)  # the derivative of the ratio by the log-prob is the ratio
    found = gradient("the loss (are the log-probs detached?)", got, logprobs)
    compare("the gradient of the loss", found, slope)
    no_gradient(
        "the loss", got, old, "old_logprobs: they are not detached. They are constants from sampling."
    )
    no_gradient(
        "the loss", got, advantages, "the advantages: they are not detached. They are constants here."
    )
    _padding_does_not_overflow(implementation, logprobs, old, advantages, mask, low, high)


def _wrong_ratios(r: Tensor, logprobs: Tensor, old: Tensor) -> list[tuple[Tensor, str]]:
    return [
        (1 / r, "The ratio is upside down: new over old, exp(logprobs - old_logprobs)."),
        (r.log(), "This is the log-ratio: take its exp."),
        (logprobs / old, "You divide log-probs: the ratio is exp(logprobs - old_logprobs)."),
        (
            torch.ones_like(r),
            "The ratio is always 1: old_logprobs are those kept from sampling; the policy divided by itself "
            "never meets the clip.",
        ),
    ]


def _padding_does_not_overflow(implementation: Callable, logprobs, old, advantages, mask, low, high) -> None:
    far = old.detach().masked_fill(~mask, -1e4)
    got = call(implementation, logprobs, far, advantages, mask, low, high)
    found = gradient("the loss", got, logprobs)
    if not (got.isfinite().all() and found.isfinite().all()):
        what = "loss" if not got.isfinite().all() else "gradient, not the loss itself,"
        raise CheckFailed(
            f"Padding with an old log-prob of -10000 makes the {what} infinite or NaN: exp overflows there, "
            "and infinity times the mask's 0 is NaN. Mask the log-ratio before exp, not the loss after it."
        )


class Descent:
    """Plain gradient descent: what the updates did can be told from where the weights are."""

    def __init__(self, model: GPT, lr: float):
        self.params, self.lr = list(model.parameters()), lr

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move each weight once along its gradient; one without a gradient stays."""
        for p in self.params:
            if p.grad is not None:
                p -= self.lr * p.grad


def _flat(model: GPT) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _improved(
    policy: GPT, reference: GPT, sampled: Rollout, A: Tensor, beta: float, lr: float, updates: int,
    sign: int = 1, own: bool = False, clear: bool = True, how: str = "sequence_mean",
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """All weights after some updates, and the loss before each; or a mistake in the loop."""
    model, totals, seen = copy.deepcopy(policy), None, []
    batch = (sampled.prompt_ids, sampled.prompt_lens, sampled.completion_ids)
    ref = token_logprobs(reference, *batch).detach()
    for _ in range(updates):
        logprobs = token_logprobs(model, *batch)
        old = logprobs.detach() if own else sampled.logprobs
        loss, _ = grpo_loss(logprobs, old, ref, A, sampled.completion_mask, beta=beta, aggregation=how)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        totals = grads if clear or totals is None else [a + b for a, b in zip(totals, grads, strict=True)]
        seen.append(loss.item())
        with torch.no_grad():
            for p, g in zip(model.parameters(), totals, strict=True):
                p -= sign * lr * g
    return _flat(model), seen


def _wrong_updates(policy, reference, sampled, A, beta, lr, updates) -> Iterator[tuple[Tensor, str]]:
    """The weights that the usual mistakes lead to; computed only where there is one."""
    known = (policy, reference, sampled, A, beta, lr)
    everywhere = replace(sampled, completion_mask=torch.ones_like(sampled.completion_mask))
    unmoved = "backward fills the gradients, then optimizer.step() uses them."
    yield _flat(policy), f"The policy's weights have not moved: {unmoved}"
    for n, options, sentence in [
        (1, {}, f"The policy was updated once: go through the batch num_updates = {updates} times."),
        (updates - 1, {}, "The last gradient is never used: call backward before optimizer.step()."),
        (updates, {"sign": -1}, "The loss goes up: you ascend. Call backward on the loss as it is."),
        (updates, {"clear": False}, "The gradients of earlier updates are still there: optimizer.zero_grad() "
                                    "belongs into the loop."),
        (updates, {"own": True}, "The old log-probs are made anew at each update, so the ratio is always 1: "
                                 "use those of sampling, rollout.logprobs."),
        (updates, {"how": "token_mean"}, "This is the loss with the mean over tokens: take the paper's, "
                                         "aggregation='sequence_mean'."),
    ]:  # fmt: skip
        yield _improved(*known, n, **options)[0], sentence
    pull = "its log-probs are those of reference, not of policy, and beta is handed on."
    yield _improved(*known[:4], 0.0, lr, updates)[0], f"There is no pull to the reference: {pull}"
    padded = _improved(policy, reference, everywhere, *known[3:], updates)[0]
    yield padded, "Padding counts as sampled tokens: hand on rollout.completion_mask."


def _batch(draw: Draw) -> tuple[GPT, GPT, Rollout, Tensor, float]:
    """A policy, a reference, groups that the policy sampled, advantages ``(B,)``, and a rate for three
    updates that reach the clip and do not run away."""
    policy, P, G, T = draw.model(6).double(), 3, 4, 5
    with torch.no_grad():
        policy.head.weight.mul_(0.3)  # varied samples
        reference = copy.deepcopy(policy)
        for p in reference.parameters():
            p.add_(0.1 * draw.normal(*p.shape))
    sampled = rollouts.generate(
        policy, draw.integers(2, 5, P, 3), torch.tensor([3, 2, 3]), group_size=G, max_new_tokens=T, eos_id=1,
        pad_id=0, uniforms=rollouts.draw_uniforms(P * G, T, draw.generator, policy.head.weight),
    )  # fmt: skip
    if sampled.completion_mask.all():
        return _batch(draw)  # nothing ended early, so padding would not be seen
    A, lr, gap = draw.normal(P * G).double(), 0.5, torch.inf
    moved = copy.deepcopy(policy)
    while gap > 0.8:
        lr /= 2
        weights = _improved(policy, reference, sampled, A, 0.0, lr, 1)[0]
        torch.nn.utils.vector_to_parameters(weights, moved.parameters())
        batch = (sampled.prompt_ids, sampled.prompt_lens, sampled.completion_ids)
        change = token_logprobs(moved, *batch).detach() - sampled.logprobs  # (B, T)
        gap = change[sampled.completion_mask].abs().max()
    return policy, reference, sampled, A, lr


@register(rounds=2)
def check_improve(implementation: Callable, draw: Draw) -> None:
    """``f(policy, reference, optimizer, rollout, advantages, beta, num_updates)``: losses of the updates.

    The policy is trained in place, and its weights are compared with those that the updates should give.
    """
    policy, reference, sampled, A, lr = _batch(draw)
    updates, beta = 3, draw.uniform(0.3, 0.6, 1).item()
    known = (policy, reference, sampled, A, beta, lr, updates)
    right, losses = _improved(*known)
    student, frozen = copy.deepcopy(policy), copy.deepcopy(reference)
    try:
        got = call(implementation, student, frozen, Descent(student, lr), sampled, A, beta, updates)
    except CheckFailed as failed:
        named = [sentence for error, sentence in AUTOGRAD.items() if error in str(failed)]
        raise CheckFailed(named[0]) if named else failed from None
    compare("a weight of the reference after the updates", _flat(frozen), _flat(reference))
    compare("a weight of the policy after the updates", _flat(student), right, _wrong_updates(*known))
    last, sentence = torch.tensor(losses[-1:]), "Return the losses of all updates, not of the last one."
    compare("the loss of an update", got, torch.tensor(losses), [(last, sentence), (last[0], sentence)])
