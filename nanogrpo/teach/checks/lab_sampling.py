"""Checks of steps that only the labs have: a sampling loop, a perplexity. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo import rollout
from nanogrpo.model import GPT
from nanogrpo.teach.checks.compare import call, compare
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import CheckFailed, register

EOS = 1


def _complete(model: GPT, prompt: Tensor, uniforms: Tensor, reads: str = "all", at: int = -1) -> Tensor:
    """All tokens of a completion, ends ignored, ``(2, N)`` with their log-probs; or a mistake in the loop."""
    text, tokens, logprobs = prompt, [], []
    for u in uniforms:
        read = {"all": text, "prompt": prompt, "last": text[-1:]}[reads]
        token, logprob = rollout.choose(model(read[None])[:, at], u[None])
        text = torch.cat([text, token])
        tokens.append(token)
        logprobs.append(logprob)
    return torch.stack([torch.cat(tokens).to(uniforms), torch.cat(logprobs)])


def _case(draw: Draw, N: int, early: bool) -> tuple[GPT, Tensor, Tensor, Tensor, int]:
    """A completion that ends after 3 to N - 1 tokens, or is cut off: what to call with, and its length."""
    while True:
        model, prompt = draw.model(6), draw.integers(2, 5, draw.integer(3, 4))
        model.head.weight.mul_(0.3)  # varied samples
        for _ in range(10):
            uniforms = draw.uniform(0.02, 1, N)
            loop = _complete(model, prompt, uniforms)
            length = 1 + int((loop[0] != EOS).long().cumprod(0).sum())  # above N: no end
            if 2 < length < N if early else length > N:
                return model, prompt, uniforms, loop, min(length, N)


@register(rounds=2)
@torch.no_grad()
def check_complete(implementation: Callable, draw: Draw) -> None:
    """``f(model, prompt, uniforms, eos_id)``: ids of one completion, its end included, and log-probs."""
    N = 6
    for early in (True, False):
        model, prompt, uniforms, loop, end = _case(draw, N, early)
        got = call(implementation, model, prompt, uniforms, EOS)
        if not isinstance(got, tuple) or len(got) != 2:
            raise CheckFailed("Return two tensors: the ids (n,) of the completion, and their log-probs (n,).")
        ids, logprobs = map(torch.as_tensor, got)
        if ids.shape != logprobs.shape:
            raise CheckFailed(
                f"Ids of shape {tuple(ids.shape)} and log-probs of shape {tuple(logprobs.shape)}: return one "
                "of each for every sampled token, without the prompt."
            )
        _check_loop(torch.stack([ids.to(loop), logprobs.to(loop)]), loop, end, model, prompt, uniforms)


def _check_loop(got: Tensor, loop: Tensor, end: int, model: GPT, prompt: Tensor, uniforms: Tensor) -> None:
    right, N = loop[:, :end], len(uniforms)
    if got.shape == right.shape and torch.allclose(got, right, atol=1e-4):
        return  # the mistakes below are loops, and slow
    mistakes = [
        (right[:, :-1], "The end is missing: EOS was sampled too, so it belongs to the ids, with its "
                        "log-prob."),
        (torch.stack([right[0], right[1].exp()]), "You return probabilities: take their logarithm."),
    ]  # fmt: skip
    if end < N:
        mistakes += [
            (loop, f"The loop does not stop: EOS was sampled as token {end - 1}. Append it, then break."),
            (loop[:, : end + 1], "The loop stops one token late: leave it as soon as EOS was appended."),
        ]
    wrong_loops = [
        (dict(reads="prompt"), "Each token is sampled as if it were the first: append it to what is read."),
        (dict(reads="last"), "The model reads the last token only, and there is no cache that remembers "
                             "the rest: give it the prompt and all tokens so far."),
        (dict(at=0), "You sample from the logits at position 0: the next token is predicted at the last "
                     "position, logits[:, -1]."),
        (dict(at=-2), "You sample from the logits one position too early: use logits[:, -1]."),
    ]  # fmt: skip
    others = [(_complete(model, prompt, uniforms, **how), why) for how, why in wrong_loops]
    once = _complete(model, prompt, uniforms[:1].expand(N))
    others += [
        (once, "All tokens are chosen with the same uniform number: token t has its own, uniforms[t]."),
        (_greedy(model, prompt, N), "You always take the most probable token: use choose with uniforms[t]."),
    ]
    for wrong, why in others:
        ends = (wrong[0] == EOS).nonzero()
        mistakes.append((wrong[:, : int(ends[0]) + 1] if len(ends) else wrong, why))
    compare("the completion (ids in row 0, log-probs in row 1)", got, right, mistakes, atol=1e-4)


def _greedy(model: GPT, prompt: Tensor, N: int) -> Tensor:
    text, logprobs = prompt, []
    for _ in range(N):
        best = torch.log_softmax(model(text[None])[0, -1:], -1).max(1)
        text = torch.cat([text, best.indices])
        logprobs.append(best.values)
    logprobs = torch.cat(logprobs)
    return torch.stack([text[len(prompt) :].to(logprobs), logprobs])


@register()
def check_perplexity(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, mask)``: exp of the mean surprise of each completion's sampled tokens, ``(B,)``."""
    B, T = draw.integer(3, 5), draw.integer(6, 8)
    logprobs, mask = draw.logprobs(B, T), draw.mask(B, T)  # padding is not zero
    kept, n = torch.where(mask, logprobs, 0.0), mask.sum(1)
    surprise = -kept.sum(1) / n  # (B,)
    early = mask & (torch.arange(T) < n[:, None] - 1)
    right = surprise.exp()
    mistakes = [
        ((-logprobs.mean(1)).exp(), f"Your mean runs over all {T} columns, padding included: mask it."),
        ((-kept.mean(1)).exp(), f"You divide by {T}, the padded length, and not by each completion's own "
                                f"number of tokens, mask.sum(1) = {n.tolist()}."),
        ((-logprobs.sum(1) / n).exp(), "You add up padding too: mask before you add."),
        ((-kept.sum(1)).exp(), "You add the surprises: take their mean, or long completions look worse."),
        ((-(kept * early).sum(1) / n.sub(1).clamp(min=1)).exp(), "The last token is left out: the end was "
                                                                 "sampled too, and counts."),
        (1 / right, "The sign is reversed: exp of the mean of minus the log-probs; it is at least 1."),
        (surprise, "This is the mean surprise in nats: take its exp."),
        (2**surprise, "The log-probs are in nats: take exp, not a power of 2."),
        (torch.where(mask, (-logprobs).exp(), 0.0).sum(1) / n, "You average exp(surprise): take the mean "
                                                               "first, then exp once."),
        ((-kept.sum() / n.sum()).exp(), f"This is one number for the whole batch: return one for each of "
                                        f"the {B} completions."),
        ((-kept.sum() / n.sum()).exp().expand(B), "All completions get the number of the whole batch: sum "
                                                  "over axis 1."),
    ]  # fmt: skip
    got = call(implementation, logprobs, mask)
    compare("the perplexity", got, right, mistakes)
    even = torch.full((1, T), -math.log(7.0))
    got = call(implementation, even, even < 0)
    compare("the perplexity of tokens of probability 1/7", got, torch.tensor([7.0]))
