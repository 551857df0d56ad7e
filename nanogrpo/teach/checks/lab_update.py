"""Checks of steps that only the labs have: GRPO's policy loss and update. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nanogrpo import advantages
from nanogrpo import rollout as rollouts
from nanogrpo.losses import clipped_surrogate, grpo_loss, importance_ratio
from nanogrpo.model import GPT
from nanogrpo.rollout import Rollout, token_logprobs
from nanogrpo.teach.checks.compare import agree, call, compare, gradient, listed, no_gradient, number
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.keep import with_gradients
from nanogrpo.teach.checks.losses import (
    ADVANTAGES,
    CLIPS,
    OLD,
    SHAPES,
    check_penalty,
    clip_case,
    loss_case,
    loss_mistakes,
    number_alone,
    one_number,
    padding_does_not_overflow,
    policy_loss,
    ratio_mistakes,
    surrogate_mistakes,
)
from nanogrpo.teach.checks.padding import holes_are_read, not_reached, padding_is_arbitrary, soiled
from nanogrpo.teach.checks.registry import CheckFailed, register
from nanogrpo.teach.checks.shapes import at_other_shapes
from nanogrpo.teach.checks.sizes import at_other_sizes

AUTOGRAD = {  # what PyTorch says, and what it means here
    "through the graph a second time": "backward runs twice through one graph: the log-probs belong inside "
    "the loop. Each update has moved the policy, so the next one must ask "
    "it again.",
    "modified by an inplace operation": "A weight was changed after the log-probs were computed and before "
    "backward: call backward first, then optimizer.step(). The log-probs "
    "of an update are computed anew.",
}


@register()
def check_small_spread(implementation: Callable, draw: Draw) -> None:
    """``f(rewards)``: groups whose rewards hardly differ are not tied, and eps, 1e-4, holds them down."""
    size = torch.tensor([[1e-3], [1e-3], [1e-3], [1e-5]])  # the last group's eps counts more than its spread
    r = size * draw.uniform(1, 3, 4, 1) * draw.normal(4, draw.integer(4, 6))
    r[:3] += draw.integers(0, 2, 3, 1)
    centered, std = r - r.mean(1, keepdim=True), r.std(1, keepdim=True, correction=0)
    seen = "where rewards differ by thousandths only: eps = 1e-4 is added to the standard deviation."
    mistakes = [
        *[
            (
                torch.where(std < small, 0.0, centered / (std + 1e-4)),
                "The groups are not tied, though their rewards are close: compare max and min.",
            )
            for small in (1.0, 1e-4)
        ],
        (centered / std, f"There is no eps, {seen}"),
        (centered / (std**2 + 1e-4).sqrt(), f"eps stands under the root, {seen}"),
        *[(centered / (std + eps), f"You add {eps:g}, {seen}") for eps in (0.1, 0.01, 1e-3, 1e-5, 1e-8)],
    ]
    agree("the advantage", implementation, advantages.group_advantages, (r,), mistakes, rtol=5e-3, atol=5e-3)
    shapes = ({"P": r.shape[1]}, {"P": 1, "G": 2}, {"P": 40, "G": 60})
    at_other_shapes("the advantage", implementation, advantages.group_advantages, (r,), ("PG",), shapes)
    best = torch.eye(1, 40)  # one of forty is right
    what = "where one of forty is right the advantage"
    compare(what, call(implementation, best), advantages.group_advantages(best), rtol=1e-3)
    _odd_groups(implementation)
    tiny = torch.tensor([[0.0] * 4 + [1e-6], [0.5] * 4 + [0.500004]])  # close, and not tied
    wanted = advantages.group_advantages(tiny)
    tied = [
        (
            torch.where(silent, 0.0, wanted),
            "Rewards that differ by a little are not tied: compare max and min.",
        )
        for silent in torch.tensor([[[True], [True]], [[True], [False]], [[False], [True]]])
    ]
    # the largest: 0.0079 and 0.032
    compare("the advantage", call(implementation, tiny), wanted, tied, rtol=0.05, atol=1e-3)
    near = torch.tensor([[-1.0, 1.0, 5e-4, -5e-4], [2.0, 0.0, 1.0003, 0.9997]])
    wanted = advantages.group_advantages(near)
    silent = torch.where(wanted.abs() < 1e-2, 0.0, wanted)
    cut = "A small advantage is set to 0: only a group whose rewards are all equal is silent."
    compare("the advantage near the group's mean", call(implementation, near), wanted, [(silent, cut)])


def _odd_groups(implementation: Callable) -> None:
    """Groups of which one reward differs, at each place once."""
    one, at = torch.eye(8), torch.arange(8)
    wanted = advantages.group_advantages(one)
    sentence = "A group of which one reward differs is not tied: compare the largest and the smallest."
    silent = [(at != 0) & (at != 7) & (at != place) for place in range(8)]  # some places are not looked at
    known = [(wanted.masked_fill(rows[:, None], 0.0), sentence) for rows in silent]
    what = "where one reward of a group differs the advantage"
    compare(what, call(implementation, one), wanted, known, rtol=1e-3)


@register()
def check_policy_loss(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, advantages, mask, clip_low, clip_high)``: ratio and clip, ``(B, T)``."""
    ratio, advantages, mask, low, high = clip_case(draw)
    logprobs = draw.logprobs(*ratio.shape)
    old = logprobs - ratio.log()
    A = advantages.detach()[:, None].expand_as(ratio)
    mistakes = surrogate_mistakes(ratio, A, mask, low, high)
    mistakes += [
        (clipped_surrogate(wrong, A, mask, low, high), sentence)
        for wrong, sentence in ratio_mistakes(logprobs, old, mask)
    ]
    near = (logprobs - old).clamp(-low, high).exp()
    mistakes += [(torch.where(mask, -near * A, 0.0), "You clip the log-ratio: clip the ratio, after exp.")]

    def reference(logprobs, old_logprobs, advantages, mask, clip_low, clip_high):
        ratio = importance_ratio(logprobs, old_logprobs, mask)
        return clipped_surrogate(ratio, advantages, mask, clip_low, clip_high)

    bounds = (advantages, mask, low, high)
    agree(
        "the loss of a token", implementation, reference,
        (logprobs.requires_grad_(), old.requires_grad_(), *bounds), mistakes, mask, True,
        trained=(0,), constants={1: OLD, 2: ADVANTAGES}, alone=True,
    )  # fmt: skip
    got = call(implementation, logprobs, old.detach().masked_fill(~mask, -1e4), *bounds)
    padding_does_not_overflow("loss", got, got, logprobs)
    arguments = (logprobs, old, *bounds)
    what = "the loss of a token"
    padding_is_arbitrary(what, implementation, reference, arguments, mask, (0, 1), trained=0)
    holes_are_read(what, implementation, reference, arguments, mask)
    _far_off(implementation, reference, arguments)
    clips = {place + 1: values for place, values in CLIPS.items()}
    at_other_sizes("the loss of a token", implementation, reference, arguments, clips, ((2,),), mask)
    axes = ("BT", "BT", "B", "BT", "", "")
    at_other_shapes("the loss of a token", implementation, reference, arguments, axes, SHAPES, 0)


def _far_off(implementation: Callable, reference: Callable, arguments: tuple) -> None:
    """Tokens whose probability has changed by many orders."""
    logprobs, old, A, *others = (a.detach() if isinstance(a, Tensor) else a for a in arguments)
    sentence = "The ratio is exp of the difference of log-probs, however large: nothing else bounds it."
    for gap in (12.0, 25.0):
        given = (logprobs + gap, old, A, *others)
        got, right = number("the loss", call(implementation, *given)), reference(*given)
        size = right.abs().clamp(min=1.0)
        same = got / size if got.shape == right.shape else torch.zeros_like(right)
        what = "where log-probs are far off the loss of a token"
        compare(what, got / size, right / size, [(same, sentence)], rtol=1e-3)


@register()
def check_penalized_loss(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta=...)``: both parts of GRPO's loss.

    The mean of the policy's part is the paper's, or the package's default. That of the KL is the same.
    """
    token_mean = partial(policy_loss, how="token_mean")
    while True:
        batch = loss_case(draw, draw.mask(draw.integer(3, 5), draw.integer(3, 5)))
        if (token_mean(*batch) - policy_loss(*batch)).abs() > 1e-3:
            break  # by their values it can be told which of the two means it is
    logprobs, old, _, A, mask = batch

    def loss(*batch: Tensor) -> Tensor:
        return number_alone(call(implementation, *batch, beta=0.0))

    same = torch.allclose(loss(*batch).double(), token_mean(*batch).double(), atol=1e-5)
    right, how = (token_mean, "token_mean") if same else (policy_loss, "sequence_mean")
    mistakes = loss_mistakes(importance_ratio(logprobs, old, mask).detach(), A[:, None].expand_as(mask), mask)
    agree("the loss without KL (beta = 0)", loss, right, batch, mistakes, trained=(0,))
    beta = draw.uniform(0.5, 2, 1).item()
    for times in (1, 0.02, 8):
        check_penalty(implementation, batch, times * beta, how)
    near = logprobs.detach() + 0.01 * draw.normal(*mask.shape)  # where the reference is close, it pulls, too
    check_penalty(implementation, (logprobs, old, near, A, mask), 20.0, how)
    some = A.detach().clone()
    some[0] = 0.0  # a row of advantage 0 pays for its KL, too
    silent = (*batch[:3], some, mask)
    at_other_shapes(
        "the loss", lambda *batch: number_alone(call(implementation, *batch, beta=beta)),
        lambda *batch: grpo_loss(*batch, beta=beta, aggregation=how)[0], silent,
        ("BT", "BT", "BT", "B", "BT"),
        ({"B": mask.shape[1]}, {"T": 1}, {"T": 60}), 0,
    )  # fmt: skip
    holes_are_read(
        "the loss", lambda *batch: number_alone(call(implementation, *batch, beta=beta)),
        lambda *batch: grpo_loss(*batch, beta=beta, aggregation=how)[0], batch, mask,
    )  # fmt: skip
    ref = batch[2].clone().requires_grad_()
    loss_of_ref = number_alone(call(implementation, *batch[:2], ref, *batch[3:], beta=beta))
    no_gradient("the loss", loss_of_ref, ref, REFERENCE)
    dirty = (*(soiled(x, mask) for x in batch[:3]), *batch[3:])
    dirty_loss = number_alone(call(implementation, *dirty, beta=beta))
    not_reached("the loss", dirty_loss)
    clean_loss = number_alone(call(implementation, *batch, beta=beta))
    compare("where NaN stands at padding the loss", dirty_loss, clean_loss)
    slope, clean = (gradient("the loss", x, a[0]) for x, a in ((dirty_loss, dirty), (clean_loss, batch)))
    not_reached("the gradient of the loss", slope)
    compare("where NaN stands at padding the gradient of the loss", slope, clean)


REFERENCE = "ref_logprobs: the reference is a constant. Use ref_logprobs.detach()."


@register()
def check_reference_is_constant(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta=...)``: a constant reference."""
    logprobs, old, ref, *others = loss_case(draw, draw.mask(3, 4))
    loss = one_number(call(implementation, logprobs, old, ref.requires_grad_(), *others, beta=0.5))
    no_gradient("the loss", loss, ref, REFERENCE)


def _flat(model: GPT) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Updates(NamedTuple):
    """What the updates of one batch are made of, ``(B,)`` advantages among it."""

    policy: GPT
    reference: GPT
    sampled: Rollout
    advantages: Tensor
    beta: float
    lr: float
    updates: int
    momentum: float = 0.0
    memory: tuple[Tensor, ...] = ()  # what the optimizer remembers of an earlier batch, for each weight


def _updated(
    case: Updates,
    sign: int = 1,
    own: bool = False,
    clear: bool = True,
    first: float = 0.0,
    how: str = "sequence_mean",
    forget: bool = False,
) -> tuple[Tensor, list[float]]:
    """All weights after some updates, and the loss before each; or a mistake in the loop."""
    model, sampled, seen = copy.deepcopy(case.policy), case.sampled, []
    weights = list(model.parameters())
    totals = [torch.full_like(p, first) for p in weights]
    memory = [m.clone() for m in case.memory] or [torch.zeros_like(p) for p in weights]
    batch = (sampled.prompt_ids, sampled.prompt_lens, sampled.completion_ids)
    ref, mask = token_logprobs(case.reference, *batch).detach(), sampled.completion_mask
    for i in range(case.updates):
        logprobs = token_logprobs(model, *batch)
        old = logprobs.detach() if own else sampled.logprobs
        loss, _ = grpo_loss(logprobs, old, ref, case.advantages, mask, beta=case.beta, aggregation=how)
        seen.append(loss.item())
        with torch.no_grad():
            grads = torch.autograd.grad(loss, weights)
            for p, total, kept, grad in zip(weights, totals, memory, grads, strict=True):
                total.mul_(0.0 if clear and i else 1.0).add_(grad)
                kept.mul_(0.0 if forget else case.momentum).add_(sign * total)
                p.sub_(case.lr * kept)
    return _flat(model), seen


def _wrong_updates(case: Updates) -> Iterator[tuple[Tensor, str]]:
    """How far the usual mistakes move the weights; computed only where there is one."""
    start, updates, sampled, but = _flat(case.policy), case.updates, case.sampled, case._replace
    everywhere = replace(sampled, completion_mask=torch.ones_like(sampled.completion_mask))
    yield (
        torch.zeros_like(start),
        (
            "The policy's weights have not moved: backward fills the gradients, optimizer.step() uses them. "
            "It is policy itself that is trained, not a copy."
        ),
    )
    times = f"go through the batch num_updates = {updates} times."
    cleared = "The gradients of earlier updates are still there: optimizer.zero_grad() belongs into the loop."
    stood = (
        "The gradients that stood at the weights when update was called count in the first update: clear "
        "them before backward, optimizer.zero_grad()."
    )
    own = (
        "The old log-probs are made anew at each update, so the ratio is always 1: use those of sampling, "
        "rollout.logprobs."
    )
    pull = (
        "There is no pull to the reference: its log-probs are those of reference, not of policy, and beta is "
        "handed on."
    )
    tokens = "This is the loss with the mean over tokens: take the paper's, aggregation='sequence_mean'."
    order = "The advantages are in another order than the rows."
    wrong: list[tuple[Updates, dict, str]] = [
        (but(updates=1), {}, f"The policy was updated once: {times}"),
        (but(updates=updates - 1), {}, f"The last gradient is never used, or one update is missing: {times}"),
        *[(but(updates=n), {}, f"The policy was updated {n} times: {times}") for n in range(2, updates - 1)],
        (but(updates=updates + 1), {}, f"The policy was updated once too often: {times}"),
        (but(updates=2 * updates), {}, f"The policy was updated twice as often: {times}"),
        (case, {"sign": -1}, "The loss goes up: you ascend. Call backward on the loss as it is."),
        (case, {"clear": False}, cleared),
        (case, {"own": True}, own),
        (case, {"first": 0.5}, stood),
        (case, {"how": "token_mean"}, tokens),
        (but(beta=0.0), {}, pull),
        (but(reference=case.policy), {}, pull),
        (but(advantages=-case.advantages), {}, "The sign of the advantages is reversed."),
        (but(advantages=case.advantages.flip(0)), {}, order),
        (but(sampled=everywhere), {}, "Padding counts as sampled tokens: hand on rollout.completion_mask."),
        *[(but(beta=b), {}, f"beta is {b}, and not {case.beta:.2f}: hand it on.") for b in (0.1, 1.0)],
    ]
    if case.memory:
        wrong += [(but(memory=()), {}, FORGOTTEN), (case, {"forget": True}, FORGOTTEN)]
    B, few = len(sampled.completion_ids), range(sampled.group_size, 33, sampled.group_size)
    wrong += [
        (_first(case, n), {}, f"Only the first {n} rows of the rollout count: take all {B}.")
        for n in few
        if n < B
    ]
    for changed, options, sentence in wrong:
        yield _updated(changed, **options)[0] - start, sentence


FORGOTTEN = (
    "What the optimizer remembers of earlier batches is lost. Its state, such as the moments of Adam, is the "
    "caller's: zero_grad clears the gradients, and nothing else is to be cleared."
)


def _first(case: Updates, rows: int) -> Updates:
    """The same with the first rows alone, whole groups."""
    sampled, P = case.sampled, rows // case.sampled.group_size
    part = replace(
        sampled, prompt_ids=sampled.prompt_ids[:P], prompt_lens=sampled.prompt_lens[:P],
        completion_ids=sampled.completion_ids[:rows], completion_mask=sampled.completion_mask[:rows],
        logprobs=sampled.logprobs[:rows],
    )  # fmt: skip
    return case._replace(sampled=part, advantages=case.advantages[:rows])


def _batch(draw: Draw, beta: float, P: int = 3, G: int = 4, T: int = 5) -> Updates:
    """A policy, a reference, groups that the policy sampled, advantages, and a rate at which three or four
    updates reach the clip and do not run away."""
    policy = draw.model(6).double()
    with torch.no_grad():
        policy.head.weight.mul_(0.3)  # varied samples
        reference = copy.deepcopy(policy)
        for p in reference.parameters():
            p.add_(0.1 * draw.normal(*p.shape))
    sampled = rollouts.generate(
        policy, draw.integers(2, 5, P, 3), torch.tensor(([3, 2, 3] * P)[:P]), group_size=G,
        max_new_tokens=T, eos_id=1, pad_id=0,
        uniforms=rollouts.draw_uniforms(P * G, T, draw.generator, policy.head.weight),
    )  # fmt: skip
    if sampled.completion_mask.all() and P * G > 1:
        return _batch(draw, beta, P, G, T)  # nothing ended early, so padding would not be seen
    shift = 0.1 * draw.normal(*sampled.logprobs.shape)  # the policy has moved since it sampled
    sampled = replace(sampled, logprobs=torch.where(sampled.completion_mask, sampled.logprobs + shift, 0.0))
    case = Updates(policy, reference, sampled, draw.normal(P * G).double(), beta, lr=0.5, updates=1)
    moved, gap = copy.deepcopy(policy), torch.inf
    while gap > 0.8:
        case = case._replace(lr=case.lr / 2)
        weights = _updated(case._replace(beta=0.0))[0]
        torch.nn.utils.vector_to_parameters(weights, moved.parameters())
        batch = (sampled.prompt_ids, sampled.prompt_lens, sampled.completion_ids)
        change = token_logprobs(moved, *batch).detach() - sampled.logprobs  # (B, T)
        gap = change[sampled.completion_mask].abs().max().item()
    return case


@register(rounds=2)
def check_update(implementation: Callable, draw: Draw) -> None:
    """``f(policy, reference, optimizer, rollout, advantages, beta, num_updates)``: losses of the updates.

    The policy is trained in place, and its weights are compared with those that the updates should give. The
    second time it goes so fast that the loss rises on the way. Then come many rows, with an optimizer that
    remembers an earlier batch and a reference that could be trained, and one row alone.
    """
    beta = draw.uniform(0.3, 0.6, 1).item()
    case = _batch(draw, beta)
    while _run_away(case.policy, _updated(case._replace(updates=4))[0]):
        case = _batch(draw, beta)
    _check_updates(implementation, case._replace(updates=draw.integer(3, 4)))
    fast = _rising(case)
    while fast is None:
        fast = _rising(_batch(draw, beta))
    _check_updates(implementation, fast, stale=True)
    _check_updates(implementation, _remembering(draw, beta), trainable=True)
    _check_updates(implementation, _batch(draw, beta, 1, 1), trainable=True)
    tied = _batch(draw, beta)  # without advantages the pull to the reference still counts
    _check_updates(implementation, tied._replace(advantages=torch.zeros_like(tied.advantages)))


def _remembering(draw: Draw, beta: float) -> Updates:
    """Two updates of many rows by an optimizer that has taken a step on other advantages before."""
    case = _batch(draw, beta, P=8, G=8, T=8)
    before = _flat(case.policy) - _updated(case._replace(advantages=case.advantages.roll(7)))[0]
    sizes = [p.numel() for p in case.policy.parameters()]
    split = zip(case.policy.parameters(), (before / case.lr).split(sizes), strict=True)
    memory = tuple(part.view_as(p) for p, part in split)
    case = case._replace(updates=2, momentum=0.8, memory=memory)
    return _remembering(draw, beta) if _run_away(case.policy, _updated(case)[0]) else case


def _run_away(policy: GPT, weights: torch.Tensor) -> bool:
    """Whether the weights went so far from the policy's that two right orders of summation end far apart."""
    return not (weights - _flat(policy)).abs().max() < 5


def _rising(case: Updates) -> Updates | None:
    """Four updates at the first of some growing rates at which the loss rises on the way; none where the
    weights run away."""
    for rate in range(24):
        case = case._replace(updates=4, lr=case.lr * 1.25 if rate else case.lr)
        weights, losses = _updated(case)
        if _run_away(case.policy, weights):
            return None
        if (torch.tensor(losses).diff() > 0).any():
            return case
    return None


def _check_updates(
    implementation: Callable, case: Updates, stale: bool = False, trainable: bool = False
) -> None:
    """Look at one call; ``stale``: gradients of an earlier batch stand at the weights; ``trainable``: the
    reference has weights that could be trained, and is in another mode."""
    policy, reference, sampled, A, beta, lr, updates, momentum, memory = case
    (right, seen), start = _updated(case), _flat(policy)
    student, kept = copy.deepcopy(policy), copy.deepcopy(sampled)
    if stale:
        with_gradients(student)
    frozen = copy.deepcopy(reference).train(trainable).requires_grad_(trainable)
    optimizer, steps = torch.optim.SGD(student.parameters(), lr, momentum), []  # what it did shows in them
    for p, kept_of in zip(student.parameters(), memory, strict=bool(memory)):
        optimizer.state[p]["momentum_buffer"] = kept_of.clone()
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    try:
        got = call(implementation, student, frozen, optimizer, sampled, A, beta, updates)
    except CheckFailed as failed:
        named = [sentence for error, sentence in AUTOGRAD.items() if error in str(failed)]
        raise CheckFailed(named[0]) if named else failed from None
    moved = [(_flat(student) - _flat(reference), "The reference follows the policy: it stays as it is.")]
    compare("the change of a weight of the reference", _flat(frozen) - _flat(reference), 0 * start, moved)
    change = _flat(student) - start
    compare("the change of a weight of the policy", change, right - start, _wrong_updates(case))
    if len(steps) != updates:
        raise CheckFailed(
            f"The weights are right, but optimizer.step() was called {len(steps)} times in {updates} "
            "updates. Let the optimizer that is handed over take the steps."
        )
    _same_rollout(sampled, kept)
    if memory and not all(optimizer.state.get(p) for p in student.parameters()):
        raise CheckFailed(FORGOTTEN)
    if optimizer.param_groups[0]["lr"] != lr:
        raise CheckFailed("The optimizer's learning rate has changed: the caller sets it.")
    losses = torch.tensor(seen)
    mistakes = [
        (losses[-1:], "Return the losses of all updates, not of the last one."),
        (losses[-1], "Return the losses of all updates, not of the last one."),
        (losses.mean(), "Return the losses of all updates, not their mean."),
        (losses[:-1], "The loss of the last update is missing."),
    ]
    compare("the loss of an update", got, losses, mistakes)
    listed("losses", got)


def _same_rollout(now: Rollout, before: Rollout) -> None:
    for field in fields(Rollout):
        value = getattr(before, field.name)
        if isinstance(value, Tensor) and not torch.equal(value, getattr(now, field.name)):
            raise CheckFailed(
                f"rollout.{field.name} is changed in place: it is what was sampled, and others still read it."
            )
