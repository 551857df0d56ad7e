"""Checks of imitation, reward model, critic and trainer. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace

import torch

from nanogrpo import critic, grpo, losses, rollout
from nanogrpo.tasks import Addition
from nanogrpo.teach.checks.compare import agree, call, compare, gradient, number
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.padding import padding_is_arbitrary
from nanogrpo.teach.checks.registry import CheckFailed, register
from nanogrpo.teach.checks.shapes import at_other_shapes
from nanogrpo.teach.checks.sizes import at_other_sizes


@register("tokenizer.CharTokenizer")
def check_encode_completions(implementation: Callable, draw: Draw) -> None:
    """``f(alphabet)``: a tokenizer whose ``encode_completions`` gives a mask with the EOS in it."""
    alphabet = "".join(chr(97 + int(i)) for i in torch.randperm(26, generator=draw.generator)[:6])
    texts = ["".join(alphabet[i] for i in draw.integers(0, 5, n)) for n in (3, draw.integer(1, 2), 0)]
    tokenizer = call(implementation, alphabet)
    ids, mask = call(tokenizer.encode_completions, texts)
    lengths = torch.tensor([len(text) + 1 for text in texts])
    right = torch.arange(int(lengths.max())) < lengths[:, None]
    ends = torch.arange(int(lengths.max())) == lengths[:, None] - 1
    shared = (
        f"pad and eos are the same id, {tokenizer.pad_id}: what hides the padding hides the end of every "
        "completion, and the model never learns to stop. Give each its own id."
        if tokenizer.pad_id == tokenizer.eos_id
        else "The EOS is outside the mask: the model never learns to stop. It belongs to what is learned."
    )
    mistakes = [
        (right & ~ends, shared),
        (torch.ones_like(right), "Padding is in the mask: the model would learn to write it."),
    ]
    compare("the mask of the demonstrations", mask, right, mistakes)
    if tokenizer.pad_id == tokenizer.eos_id:
        raise CheckFailed(shared)
    compare("the last id of a demonstration", ids[ends], torch.full((3,), tokenizer.eos_id))
    decoded = [tokenizer.decode(row) for row in ids.tolist()]
    if decoded != texts:
        raise CheckFailed(f"The demonstrations {texts} come back as {decoded}.")


@register("losses.sft_loss")
def check_sft_loss(implementation: Callable, draw: Draw) -> None:
    """``f(logits, targets, mask)``: surprise at each completion token; the shift is made already."""
    B, T, V = draw.integer(3, 4), draw.integer(3, 5), draw.integer(5, 7)
    logits, targets = draw.normal(B, T, V).requires_grad_(), draw.integers(0, V - 1, B, T)
    mask = draw.mask(B, T)
    shifted = partial(losses.sft_loss, logits.detach(), mask=mask)
    right = shifted(targets)
    mistakes = [
        (
            shifted(targets.roll(-1, 1)),
            "The targets are shifted twice: logits[:, t] predicts targets[:, t] here, so compare column with "
            "column.",
        ),
        (shifted(targets.roll(1, 1)), "The targets are shifted: logits[:, t] predicts targets[:, t]."),
        (-right, "The sign is reversed: the loss is -log p."),
        (1 - (-right).exp(), "Take the logarithm: the loss is -log p, not 1 - p."),
    ]
    arguments = (logits, targets, mask)
    agree(
        "the loss of a token", implementation, losses.sft_loss, arguments, mistakes, mask, True, trained=(0,)
    )


@register("losses.bradley_terry_loss")
def check_bradley_terry(implementation: Callable, draw: Draw) -> None:
    """``f(chosen, rejected)``: surprise at each preference ``(N,)``, and its gradient, far off as well."""
    N = draw.integer(4, 8)
    chosen, rejected = draw.normal(N).requires_grad_(), draw.normal(N).requires_grad_()
    right, gap = losses.bradley_terry_loss(chosen, rejected), (chosen - rejected).detach()
    log = torch.nn.functional.logsigmoid
    mistakes = [
        (
            -log(-gap),
            "The sign of the difference is reversed: this prefers what was rejected. It is chosen - "
            "rejected.",
        ),
        (-right, "The sign is reversed: the loss is -log sigmoid(chosen - rejected)."),
        (1 - torch.sigmoid(gap), "The logarithm is missing: this is the probability of the wrong order."),
        (-torch.sigmoid(gap), "The logarithm is missing: the loss is -log sigmoid(chosen - rejected)."),
        ((gap < 0).float(), "This counts mistakes: it has no gradient. Take -log sigmoid."),
        ((1 - torch.sigmoid(gap)) ** 2, "This is a squared error: take -log sigmoid."),
        (-log(gap / 2), "The difference is halved: take it as it is."),
        (-gap, "The log-sigmoid is missing: a difference alone can be lowered for ever."),
        ((1 - gap).clamp(min=0), "This is a hinge: the loss is -log sigmoid(chosen - rejected)."),
        (
            -log(chosen) - log(-rejected),
            "You judge each score on its own: only the difference of the two counts.",
        ),
        (
            -log(chosen - rejected.mean()),
            "You compare with the mean of all: each chosen text has its rejected one.",
        ),
        (right.mean(), "This is the mean: return one number a pair."),
        (right.sum(), "This is the sum: return one number a pair."),
    ]
    arguments = (chosen, rejected)
    agree(
        "the loss of a pair", implementation, losses.bradley_terry_loss, arguments, mistakes,
        trained=(0, 1), alone=True,
    )  # fmt: skip
    _curved(implementation, draw)
    for size in (200.0, 1000.0):
        _far_apart(implementation, size)


def _curved(implementation: Callable, draw: Draw) -> None:
    """The loss is a straight line only where float32 sees no difference, and equal scores are pushed."""
    gap = -torch.tensor([3.2, 4.2, 5.2, 6.5, 8.5, 10.3])
    gap = torch.cat([gap * draw.uniform(1, 1.05, len(gap)), -gap[:2]])
    chosen, rejected = gap.clone().requires_grad_(), torch.zeros_like(gap)
    right = losses.bradley_terry_loss(chosen, rejected)
    mistakes = [
        (
            torch.where(gap < -most, -gap, right),
            f"Beyond a difference of {most} your loss is a straight line, and there is a curve: what remains "
            "is e^-difference. The threshold of softplus is 20, and no smaller one will do.",
        )
        for most in (3, 4, 5, 6, 8, 10)
    ]
    got = number("the loss of a pair", call(implementation, chosen, rejected))
    compare("where scores differ by 3 to 10 the loss of a pair", got, right, mistakes, rtol=2e-6, atol=5e-6)
    equal = torch.zeros(2).requires_grad_()
    slope = gradient("the loss", call(implementation, equal, torch.zeros(2)), equal)
    if not torch.allclose(slope, torch.tensor(-0.5).to(slope), atol=1e-4):
        raise CheckFailed(
            f"Where the two scores are equal the gradient of the loss is {slope[0]:.4g}, expected -0.5: an "
            "untrained model scores all texts 0, so it would not begin to learn as it should. A kink of "
            "relu, abs or clamp lies there. Use logsigmoid."
        )


def _far_apart(implementation: Callable, size: float) -> None:
    """Loss and gradient of two scores that are far apart, the wrong way and the right way."""
    chosen = torch.tensor([-size, size]).requires_grad_()
    got = number("the loss of a pair", call(implementation, chosen, torch.zeros(2)))
    if got.shape != (2,) or not torch.allclose(got.double(), torch.tensor([size, 0.0]).double(), atol=1e-3):
        raise CheckFailed(
            f"At a difference of -{size:.0f} the loss is {got.flatten()[0]:.4g}, expected {size:.0f}, and at "
            f"{size:.0f} it is {got.flatten()[-1]:.4g}, expected 0: sigmoid has rounded to 0 before the "
            "logarithm, exp has overflowed, or the difference is cut off. Use logsigmoid."
        )
    slope = gradient("the loss", got, chosen)
    if not torch.allclose(slope, torch.tensor([-1.0, 0.0]), atol=1e-3):
        raise CheckFailed(
            f"At a difference of -{size:.0f} the loss is right, and its gradient is {slope[0]:.4g}, expected "
            f"-1; at {size:.0f} it is {slope[1]:.4g}, expected 0. What is cut off learns nothing, and a "
            "branch of torch.where that is not taken may still give NaN. Use logsigmoid."
        )


def _pooling(module: ModuleType) -> Callable:
    outputs_as_they_are = SimpleNamespace(gpt=lambda outputs: outputs.unsqueeze(2), pool="last")
    return lambda outputs, lens: module.RewardModel.forward(outputs_as_they_are, outputs, lens)


@register(("reward_model", _pooling))
def check_reward_pooling(implementation: Callable, draw: Draw) -> None:
    """``f(outputs, lens)``: of an output at every token, ``(B, T)``, that of each text's last one."""
    B, T = draw.integer(3, 5), draw.integer(6, 8)
    lens, outputs = draw.mask(B, T).sum(1).clamp(max=T - 1), draw.normal(B, T)
    outputs[1, lens[1] - 1] = 0.0  # a score may be 0
    inside = torch.arange(T) < lens[:, None]
    late = outputs.gather(1, lens[:, None]).squeeze(1)
    mistakes = [
        (
            outputs[:, -1].clone(),
            f"The score is read in the last column, {T - 1}, at the padding: the last tokens stand at lens - "
            f"1 = {(lens - 1).tolist()}. A score must not depend on what a text is batched with.",
        ),
        (late, "The score is read one token after the end: at lens - 1."),
        (outputs[:, 0].clone(), "The score is read at the first token, which has seen nothing of the text."),
        (outputs.mean(1), "You average over all columns, padding included: read the last token."),
        (
            torch.where(inside, outputs, 0.0).sum(1) / lens,
            "You average over the text: read the last token, which has seen it whole.",
        ),
        (torch.where(inside, outputs, 0.0).sum(1), "You add up the text: read the last token alone."),
        (
            outputs.masked_fill(~inside, -1e9).amax(1),
            "You take the largest of the text: read the last token.",
        ),
        (
            outputs.gather(1, (lens[:, None] - 2).clamp(min=0)).squeeze(1),
            "The score is read one token before the last: at lens - 1.",
        ),
        (
            outputs.gather(1, T - lens[:, None]).squeeze(1),
            "You count from the end: the last token is at lens - 1.",
        ),
    ]

    def reference(outputs, lens):
        return outputs.gather(1, lens[:, None] - 1).squeeze(1)

    arguments = (outputs.requires_grad_(), lens)
    agree("the score", implementation, reference, arguments, mistakes, trained=(0,), alone=True)
    padding_is_arbitrary("the score", implementation, reference, arguments, inside, [0], trained=0)
    at_other_sizes("the score", implementation, reference, arguments, scaled=((0,),))
    full = torch.full_like(lens, T)
    agree("the score of texts without padding", implementation, reference, (outputs, full))


@register("losses.value_loss")
def check_value_loss(implementation: Callable, draw: Draw) -> None:
    """``f(values, returns, mask, old_values, clip_range)``: the critic's clipped error of each token."""
    B, T, c = draw.integer(3, 5), draw.integer(4, 6), draw.uniform(0.25, 0.5, 1).item()
    v, mask = draw.normal(B, T), draw.mask(B, T)
    r, o = draw.normal(B, T), v + 0.9 * draw.normal(B, T)
    r[0, 0] = o[0, 0] = v[0, 0]  # a value that is right, where a root has no gradient
    free, bounded = (v - r) ** 2, (o + (v - o).clamp(-c, c) - r) ** 2
    larger = torch.max(free, bounded)
    mistakes = [
        (
            0.5 * torch.min(free, bounded),
            "Your max is a min: the smaller error lets a value off that has moved too far. Take the larger "
            "one.",
        ),
        (larger, "The half is missing: 0.5 * max(...)."),
        (0.5 * bounded, "You take the clipped error alone: take the larger of the two."),
        (0.5 * free, "Nothing is clipped: compare with the error of old + clamp(value - old, -c, c)."),
        (0.5 * (free + bounded), "You add the two errors: take the larger of the two."),
        (0.25 * (free + bounded), "You average the two errors: take the larger of the two."),
        *[
            (0.5 * torch.max(free, (moved - r) ** 2), f"{sentence}: old + clamp(value - old, -c, c).")
            for moved, sentence in (
                (o + (o - v).clamp(-c, c), "The difference is turned round"),
                (o + (v - o).clamp(max=c), "The lower bound of the clip is missing"),
                (o + (v - o).clamp(min=-c), "The upper bound of the clip is missing"),
                (o * (v / o).clamp(1 - c, 1 + c), "You clip the ratio: clip the difference"),
            )
        ],
        (
            0.5 * torch.max(v - r, o + (v - o).clamp(-c, c) - r) ** 2,
            "The square comes too late: square the two errors, then take the larger.",
        ),
        (larger.sqrt() * 0.5, "The square is missing."),
        (larger.sqrt(), "The square is missing, and the half."),
    ]
    arguments = (v.requires_grad_(), r.requires_grad_(), mask, o.requires_grad_(), c)
    constants = {
        1: "the returns: they are not detached. A target that moves toward the value makes any critic look "
        "good.",
        3: "old_values: they are not detached. They are what the critic said at sampling.",
    }
    agree(
        "the loss of a token", implementation, losses.value_loss, arguments, mistakes, mask, True,
        trained=(0,), constants=constants, alone=True,
    )  # fmt: skip
    what = "the loss of a token"
    padding_is_arbitrary(  # a mask after the square is an answer too: the critic computes no NaN at padding
        what, implementation, losses.value_loss, arguments, mask, (0, 1, 3), trained=0, zero_gradient=False
    )
    axes = ("BT", "BT", "BT", "BT", "")
    at_other_shapes(
        what, implementation, losses.value_loss, arguments, axes, ({"B": T}, {"T": 1}, {"T": 60}), 0
    )
    high = (v.detach() + 3000, r.detach() + 3000, mask, o.detach() + 3000, c)
    agree(
        f"where values are large {what}", implementation, losses.value_loss, high, [], mask, True,
        rtol=1e-2, atol=1e-2,
    )  # fmt: skip
    other = {4: (0.0, 0.01, 5.0)}
    at_other_sizes(what, implementation, losses.value_loss, arguments, other, ((0, 1, 3),), mask)


@register("critic.values_of", rounds=2)
def check_values_of(implementation: Callable, draw: Draw) -> None:
    """``f(critic, policy, rollout)``: the value before each token, which has not seen it."""
    policy, V, T = draw.model(6), 6, 4
    judge = critic.new_critic(policy, "separate")
    with torch.no_grad():
        head = judge.get_parameter("head.weight")
        head.copy_(draw.normal(*head.shape))
    lens = torch.tensor([3, 2])
    sampled = rollout.generate(
        policy, draw.integers(2, V - 1, 2, 3), lens, group_size=2, max_new_tokens=T, eos_id=V, pad_id=0,
        uniforms=rollout.draw_uniforms(4, T, draw.generator, policy.head.weight),
    )  # fmt: skip
    with torch.no_grad():
        right = critic.values_of(judge, policy, sampled)  # (B, T)
        got = call(implementation, judge, policy, sampled)
    late = (
        "Your value of token t has seen token t: a baseline must be known before the token is sampled. Read "
        "it where the log-prob of the token is read, one position earlier."
    )
    before = torch.arange(T - 1).expand(len(right), -1) >= 0
    if tuple(got.shape) == tuple(right.shape) and not torch.allclose(got, right, atol=1e-4):
        compare("the value", got[:, :-1], right[:, :-1], [(right[:, 1:], late)], before)
    compare("the value", got, right, atol=1e-4)


@register("grpo.train", rounds=1)
def check_reference_is_frozen(implementation: Callable, draw: Draw) -> None:
    """``f(model, tokenizer, problems, reward_fn, config)``: a trainer whose KL is to its start."""
    task = Addition(digits=1, held_out=10)
    config = grpo.GRPOConfig(
        max_new_tokens=task.max_new_tokens, group_size=4, prompts_per_step=8, max_steps=3, beta=0.1,
        learning_rate=0.01, seed=draw.integer(0, 10**6),
    )  # fmt: skip
    model = draw.model(task.tokenizer.vocab_size, task.block_size)
    with torch.no_grad():
        model.head.weight.mul_(0.2)  # varied answers, so that no group is tied and the policy does move

    def length(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    rows = list(call(implementation, model, task.tokenizer, task.split()[0], length, config))
    if not rows or "kl" not in rows[-1]:
        raise CheckFailed("With beta = 0.1 the trainer's rows have no 'kl'.")
    if not rows[-1]["kl"] > 1e-6:
        raise CheckFailed(
            f"After two updates the KL to the reference is still {rows[-1]['kl']:.1e}: the reference moves "
            "with the policy. It must be a frozen copy (copy.deepcopy), made before the first step."
        )
