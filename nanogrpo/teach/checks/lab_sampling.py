"""Checks of steps that only the labs have: a sampling loop, a perplexity. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nanogrpo import rollout
from nanogrpo.model import GPT
from nanogrpo.teach.checks.compare import agree, call, compare, parts
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.keep import freeze_some, with_gradients
from nanogrpo.teach.checks.padding import padding_is_arbitrary
from nanogrpo.teach.checks.registry import CheckFailed, register
from nanogrpo.teach.checks.shapes import at_other_shapes


def _complete(
    model: GPT, prompt: Tensor, uniforms: Tensor, reads: Callable = lambda text, prompt: text, at: int = -1
) -> Tensor:
    """All tokens of a completion, ends ignored, ``(2, N)`` with their log-probs; or a mistake in the loop."""
    text, columns = prompt, []
    for u in uniforms:
        token, logprob = rollout.sample_token(model(reads(text, prompt)[None])[:, at], u[None])
        text = torch.cat([text, token])
        columns.append(torch.stack([token.to(logprob), logprob]))
    return torch.cat(columns, 1)


Arguments = tuple[GPT, Tensor, Tensor, int]  # model, prompt, uniforms, eos_id


def _case(draw: Draw, N: int, wanted: Callable[[int], bool]) -> tuple[Arguments, Tensor, int]:
    """A completion of a wanted length (above N: no end): what to call with, all its tokens, its length."""
    while True:
        eos = draw.integer(0, 5)
        model, prompt = draw.model(6), (eos + draw.integers(1, 5, draw.integer(3, 4))) % 6
        prompt[0] = eos  # an end that was not sampled ends nothing
        model.head.weight.mul_(0.3)  # varied samples
        with_gradients(model.train(bool(draw.integer(0, 1))))  # all of it stays
        freeze_some(model)
        for _ in range(10):
            uniforms = draw.uniform(0.02, 1, N)
            loop = _complete(model, prompt, uniforms)
            length = 1 + int((loop[0] != eos).long().cumprod(0).sum())
            if wanted(length):
                return (model, prompt, uniforms, eos), loop, min(length, N)


@register(rounds=2)
@torch.no_grad()
def check_complete(implementation: Callable, draw: Draw) -> None:
    """``f(model, prompt, uniforms, eos_id)``: ids of one completion, its end included, and log-probs."""
    N = draw.integer(5, 7)
    cases = [(N, lambda n: 2 < n < N), (N, lambda n: n > N), (N, lambda n: n == 1), (12, lambda n: n > 12)]
    for count, wanted in cases:
        arguments, loop, end = _case(draw, count, wanted)
        names = ("the ids (n,) of the completion", "their log-probs (n,)")
        ids, logprobs = parts(call(implementation, *arguments), names)
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise CheckFailed(
                f"The ids are of {ids.dtype}: return whole numbers, as sample_token gives them."
            )
        if ids.shape != logprobs.shape:
            raise CheckFailed(
                f"Ids of shape {tuple(ids.shape)} and log-probs of shape {tuple(logprobs.shape)}: return one "
                "of each for every sampled token, without the prompt."
            )
        got, right = torch.stack([ids.to(loop), logprobs.to(loop)]), loop[:, :end]
        mistakes = _wrong_completions(loop, end, *arguments)
        compare("the completion (ids in row 0, log-probs in row 1)", got, right, mistakes, atol=1e-4)
    model, prompt, uniforms, eos = arguments
    again = model, prompt, draw.uniform(0.02, 1, len(uniforms)), eos
    loop = _complete(*again[:3])
    ends = (loop[0] == eos).nonzero()
    got = torch.stack([x.to(loop) for x in parts(call(implementation, *again), names)])
    right = loop[:, : int(ends[0]) + 1] if len(ends) else loop
    compare("the second completion of a prompt (ids in row 0, log-probs in row 1)", got, right, atol=1e-4)


def _wrong_completions(
    loop: Tensor, end: int, model: GPT, prompt: Tensor, uniforms: Tensor, eos: int
) -> Iterator[tuple[Tensor, str]]:
    """The usual mistakes; loops are slow, so they are made only if one is looked for."""
    right, N = loop[:, :end], len(uniforms)
    missing = "The end is missing: EOS was sampled too, so it belongs to the ids, with its log-prob."
    yield right[:, :-1], missing if end < N else "One token is missing: each number of uniforms chooses one."
    yield torch.stack([right[0], right[1].exp()]), "You return probabilities: take their logarithm."
    for shift in (1, -1):
        yield torch.stack([right[0], right[1].roll(shift)]), "Each log-prob stands at another token."
    if end < N:
        yield loop, f"The loop does not stop: EOS was sampled as token {end - 1}. Append it, then break."
        yield loop[:, : end + 1], "The loop stops one token late: leave it as soon as EOS was appended."
        again = (loop[0, end:] == eos).nonzero()
        if len(again):
            yield loop[:, : end + int(again[0]) + 1], "The loop stops at the second EOS, not the first."
    if end > 1:
        yield loop[:, :1], "The loop stops after one token: an EOS in the prompt ends nothing."
    others = [
        (_complete(model, prompt, uniforms, lambda text, prompt: prompt),
         "Each token is sampled as if it were the first: append it to what is read."),
        (_complete(model, prompt, uniforms, lambda text, prompt: text[-1:]),
         "The model reads the last token only, and there is no cache that remembers the rest: give it the "
         "prompt and all tokens so far."),
        (_complete(model, prompt, uniforms, lambda text, prompt: text[1:]),
         "The first token of the prompt is not read: give the model the whole text."),
        (_complete(model, prompt, uniforms, at=0),
         "You sample from the logits at position 0: the next token is predicted at the last position, "
         "logits[:, -1]."),
        (_complete(model, prompt, uniforms, at=-2),
         "You sample from the logits one position too early: use logits[:, -1]."),
        (_complete(model, prompt, uniforms[:1].expand(N)),
         "All tokens are chosen with the same uniform number: token t has its own, uniforms[t]."),
        (_complete(model, prompt, uniforms.flip(0)), "The uniform numbers are used from the back: token t "
                                                     "has number t."),
        (_complete(model, prompt, uniforms.roll(-1)), "The uniform numbers are used one too early: token t "
                                                      "has number t."),
        (_complete(model, prompt, 1 - uniforms),
         "1 - u is used for u: hand the numbers to sample_token as they are."),
        (_greedy(model, prompt, N),
         "You always take the most probable token: use sample_token with uniforms[t]."),
    ]  # fmt: skip
    others += [(_complete(model, prompt, uniforms, lambda text, prompt, k=k: text[-k:]),
                f"The model reads the last {k} tokens only: give it the prompt and all tokens so "
                "far.") for k in (2, 3, 4)]  # fmt: skip
    for wrong, why in others:
        ends = (wrong[0] == eos).nonzero()
        yield wrong[:, : int(ends[0]) + 1] if len(ends) else wrong, why
    for id in set(range(6)) - {eos}:
        stop = (loop[0] == id).nonzero()
        sentence = f"The loop stops at token {id}, and the end is eos_id = {eos}."
        yield loop[:, : int(stop[0]) + 1] if len(stop) else loop, sentence


def _greedy(model: GPT, prompt: Tensor, N: int) -> Tensor:
    text, columns = prompt, []
    for _ in range(N):
        best = torch.log_softmax(model(text[None])[0, -1:], -1).max(1)
        text = torch.cat([text, best.indices])
        columns.append(torch.stack([best.indices.to(best.values), best.values]))
    return torch.cat(columns, 1)


def _perplexity(logprobs: Tensor, mask: Tensor) -> Tensor:
    return (-torch.where(mask, logprobs, 0.0).sum(1) / mask.sum(1)).exp()


@register()
def check_perplexity(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, mask)``: exp of the mean surprise of each completion's sampled tokens, ``(B,)``."""
    B, T = draw.integer(3, 5), draw.integer(6, 8)
    logprobs = draw.logprobs(B, T) * draw.uniform(0.5, 3, B, 1)  # padding is not zero
    mask = draw.mask(B, T)
    logprobs[0, 1] = 0.0  # a certain token is a token
    kept, n = torch.where(mask, logprobs, 0.0), mask.sum(1)
    surprise = -kept.sum(1) / n  # (B,)
    early = mask & (torch.arange(T) < n[:, None] - 1)
    right = surprise.exp()
    mistakes = [
        ((-logprobs.mean(1)).exp(), f"Your mean runs over all {T} columns, padding included: mask it."),
        (
            (-kept.mean(1)).exp(),
            f"You divide by {T}, the padded length, and not by each completion's own number of tokens, "
            f"mask.sum(1) = {n.tolist()}.",
        ),
        ((-logprobs.sum(1) / n).exp(), "You add up padding too: mask before you add."),
        ((-kept.sum(1)).exp(), "You add the surprises: take their mean, or long completions look worse."),
        (
            (-(kept * early).sum(1) / n.sub(1).clamp(min=1)).exp(),
            "The last token is left out: the end was sampled too, and counts.",
        ),
        (
            (-(kept[:, 1:]).sum(1) / n.sub(1).clamp(min=1)).exp(),
            "The first token is left out: it was sampled, too.",
        ),
        (1 / right, "The sign is reversed: exp of the mean of minus the log-probs; it is at least 1."),
        (surprise, "This is the mean surprise in nats: take its exp."),
        (2**surprise, "The log-probs are in nats: take exp, not a power of 2."),
        (
            torch.where(mask, (-logprobs).exp(), 0.0).sum(1) / n,
            "You average exp(surprise): take the mean first, then exp once.",
        ),
        (
            (-kept.sum() / n.sum()).exp(),
            f"This is one number for the whole batch: return one for each of the {B} completions.",
        ),
        (
            (-kept.sum() / n.sum()).exp().expand(B),
            "All completions get the number of the whole batch: sum over axis 1.",
        ),
    ]
    divisors = [(n + 1, "n + 1"), ((n - 1).clamp(min=1), "n - 1"), (n[:1], "the length of the first row"),
                (n.double().mean(), "the mean length")]  # fmt: skip
    mistakes += [((-kept.sum(1) / divisor).exp(), f"You divide by {name}: each completion has n = "
                                                  "mask.sum(1) tokens.")
                 for divisor, name in divisors]  # fmt: skip
    seen = torch.where(kept == 0, 0.0, 1.0).sum(1)
    mistakes.append(((-kept.sum(1) / seen).exp(), "A token of log-prob 0 is not counted: count the mask."))
    arguments = (logprobs, mask)
    agree("the perplexity", implementation, _perplexity, arguments, mistakes, alone=True)
    shapes = ({"B": T}, {"T": 1}, {"T": 90})
    at_other_shapes("the perplexity", implementation, _perplexity, arguments, ("BT", "BT"), shapes)
    holes = (logprobs, mask & (torch.arange(T) != 1) | (n == 2)[:, None] & mask)
    agree("where a mask has holes the perplexity", implementation, _perplexity, holes)
    padding_is_arbitrary("the perplexity", implementation, _perplexity, arguments, mask, [0])
    rare = torch.where(mask, logprobs - 28, logprobs)  # no float32 holds the product of the probabilities
    agree("where tokens are improbable the perplexity", implementation, _perplexity, (rare, mask), [
        (_perplexity(rare, mask).clamp(max=most), f"It is cut off at {most:g}: it has no upper bound.")
        for most in (100, 1e3, 1e4, 1e6)
    ])  # fmt: skip
    even = torch.full((1, T), -math.log(7.0))
    got = call(implementation, even, even < 0)
    compare("the perplexity of tokens of probability 1/7", got, torch.tensor([7.0]))
