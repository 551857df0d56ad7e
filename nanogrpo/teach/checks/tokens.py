"""Checks of sampling: tokens, masks and log-probs. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from nanogrpo import rollout
from nanogrpo.teach.checks.compare import call, compare
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import CheckFailed, register

EOS, PAD = 1, 0


def _packed(module: ModuleType) -> Callable:
    def token_logprobs(model, prompt_ids, prompt_lens, ids):
        return rollout.logprobs_of(module.completion_logits(model, prompt_ids, prompt_lens, ids), ids)

    return token_logprobs


@register("rollout.token_logprobs", ("packed", _packed))
def check_token_logprobs(implementation: Callable, draw: Draw) -> None:
    """``f(model, prompt_ids, prompt_lens, completion_ids)``: log-probs of the completion tokens."""
    P, G, T, V = 3, 2, draw.integer(3, 4), 7
    model, lens = draw.model(V), torch.tensor([2, 4, draw.integer(2, 4)])
    prompts = draw.integers(2, V - 1, P, 4).masked_fill(torch.arange(4) >= lens[:, None], PAD)  # (P, 4)
    ids, mask = draw.integers(2, V - 1, P * G, T), draw.mask(P * G, T)
    arguments = (model, prompts, lens, ids.masked_fill(~mask, PAD))
    right = rollout.token_logprobs(*arguments)

    def other(
        shift: int = -1, lens: Tensor = lens, repeated: bool = False, read: Tensor = arguments[3]
    ) -> Tensor:
        logits = _logits_at(*arguments[:2], lens, read, shift, repeated)  # (B, T, V)
        return rollout.logprobs_of(logits, arguments[3])

    shifted = (
        "The logits at position c predict the token at c + 1, so read token t's at position len + t - 1."
    )
    raw = _logits_at(*arguments, -1).gather(2, arguments[3][..., None]).squeeze(2)
    mistakes = [
        (
            other(0),
            f"You score each token with the prediction that follows it: the shift is missing. {shifted}",
        ),
        (
            other(read=arguments[3].roll(-1, 1)),
            f"The model has read each token before it predicts it: the shift is missing in what it "
            f"reads. {shifted}",
        ),
        (other(-2), f"You shift twice: each token is scored one prediction too early. {shifted}"),
        (
            other(lens=torch.full_like(lens, 4)),
            "You read all completions from column 4 on, behind the padding of shorter prompts: a completion "
            "begins where its own prompt ends, at prompt_lens.",
        ),
        (
            other(repeated=True),
            f"The rows have the wrong prompts: row i answers prompt i // G (here G = {G}), so use "
            "repeat_interleave and not repeat.",
        ),
        (right.exp(), "These are probabilities: take log_softmax, not softmax."),
        (raw, "These are raw logits: they are no log-probs before log_softmax over the vocabulary."),
        (-right, "The sign is reversed: log-probs are negative."),
    ]
    compare("the log-prob of a token", call(implementation, *arguments), right, mistakes, mask)


def _logits_at(model, prompt_ids, prompt_lens, completion_ids, shift: int, repeated: bool = False) -> Tensor:
    """Logits ``shift`` positions from each completion token; ``repeated``: of wrong prompts."""
    B, T = completion_ids.shape
    owner = torch.arange(B) % len(prompt_ids) if repeated else torch.arange(B) // (B // len(prompt_ids))
    at = prompt_lens[owner, None] + torch.arange(T)  # (B, T)
    rows = torch.cat([prompt_ids[owner], completion_ids.new_zeros(B, T)], 1).scatter(1, at, completion_ids)
    logits = model(rows)  # (B, Tp + T, V)
    return logits.gather(1, (at + shift)[..., None].expand(-1, -1, logits.shape[2]))


@register("rollout.logprobs_of")
def check_logprobs_of(implementation: Callable, draw: Draw) -> None:
    """``f(logits, ids, temperature)``: log-probs ``(B, T)`` of given tokens at a temperature."""
    B, T, V = draw.integer(2, 4), draw.integer(2, 4), draw.integer(5, 8)
    logits, ids = 2 * draw.normal(B, T, V), draw.integers(0, V - 1, B, T)
    temperature = 0.5 if draw.integer(0, 1) else 1.7
    right = rollout.logprobs_of(logits, ids, temperature)
    at_one = rollout.logprobs_of(logits, ids)
    mistakes = [
        (
            at_one,
            f"The temperature {temperature} is ignored: these are log-probs of temperature 1, those of "
            f"another "
            "policy than the one that sampled. Divide the logits by it.",
        ),
        (
            at_one / temperature,
            "You divide the log-probs by the temperature: divide the logits, before log_softmax.",
        ),
        (
            rollout.logprobs_of(logits, ids, 1 / temperature),
            "You multiply the logits by the temperature: divide.",
        ),
        (
            torch.log_softmax(logits / temperature, 1).gather(2, ids[..., None]).squeeze(2),
            "Your softmax runs over the positions, axis 1: it runs over the vocabulary, the last axis.",
        ),
        (right.exp(), "These are probabilities: take log_softmax, not softmax."),
        (
            (logits / temperature).gather(2, ids[..., None]).squeeze(2),
            "These are raw logits: they are no log-probs before log_softmax over the vocabulary.",
        ),
    ]
    compare("the log-prob of a token", call(implementation, logits, ids, temperature), right, mistakes)


@register("rollout.choose", rounds=2)
def check_choose(implementation: Callable, draw: Draw) -> None:
    """``f(logits, uniforms, temperature)``: one sampled token a row, and its log-prob at that temperature."""
    N, V, temperature = 4000, 5, (0.4, 2.5)[draw.integer(0, 1)]
    logits = 1.5 * draw.normal(V)
    probs, at_one = torch.softmax(logits / temperature, 0), torch.softmax(logits, 0)
    while (probs - at_one).abs().max() < 0.15:  # else the counts could not tell the two apart
        logits = 1.5 * draw.normal(V)
        probs, at_one = torch.softmax(logits / temperature, 0), torch.softmax(logits, 0)
    uniforms = (torch.randperm(N, generator=draw.generator) + 0.5).to(logits) / N
    result = call(implementation, logits.expand(N, V), uniforms, temperature)
    if not isinstance(result, tuple) or len(result) != 2:
        raise CheckFailed("Return two tensors: the tokens (N,), and their log-probs (N,).")
    tokens, logprobs = result
    if tuple(tokens.shape) != (N,) or tokens.is_floating_point():
        raise CheckFailed(
            f"The tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, expected ids ({N},)."
        )
    shares = tokens.bincount(minlength=V)[:V].to(logits) / N
    greedy = torch.zeros(V).scatter(0, logits.argmax(0, keepdim=True), 1.0)
    mistakes = [
        (at_one, f"You sample at temperature 1 and not at {temperature}: divide the logits by it."),
        (
            torch.softmax(logits * temperature, 0),
            f"You multiply the logits by the temperature {temperature}: divide, so that a high one flattens.",
        ),
        (greedy, "You always take the most probable token: a group of such completions is all alike."),
        (torch.full((V,), 1 / V), "You take every token equally often: the logits have no influence."),
    ]
    compare("the share of each token among 4000 samples", shares, probs, mistakes, rtol=0, atol=0.05)
    mistakes = [
        (
            torch.log_softmax(logits, 0)[tokens],
            f"The log-probs are those of temperature 1, while the tokens were sampled at {temperature}: "
            f"the first "
            "ratio of new to old policy will not be 1. Take the log of the probabilities that you "
            "sample from.",
        ),
        (probs[tokens], "You return probabilities: take their logarithm."),
    ]
    compare("the log-prob of a sampled token", logprobs, probs.log()[tokens], mistakes, atol=1e-4)


@register("rollout.completion_mask")
def check_completion_mask(implementation: Callable, draw: Draw) -> None:
    """``f(completion_ids, eos_id)``: true ``(B, T)`` for each sampled token, the first EOS included."""
    B, T = draw.integer(4, 6), draw.integer(4, 6)
    ids = draw.integers(2, 6, B, T)
    ids[0, draw.integer(1, T - 2)] = EOS  # ends in the middle, ordinary tokens follow
    ids[1, 1], ids[1, T - 1] = EOS, EOS  # two ends
    ids[2, 0], ids[2, 1:] = EOS, PAD  # an empty completion
    right = rollout.completion_mask(ids, EOS)  # the last row has no end: it was cut off
    before = (ids == EOS).cumsum(1) == 0
    sizes = right.sum(1).tolist()
    mistakes = [
        (before, f"The EOS is left out of the mask: it was sampled too, so lengths are {sizes}; without "
                 f"it in the "
                 "mask the decision to stop is never trained."),
        (ids != EOS, "You mask out the EOS and keep what stands after it: it is the other way round. "
                     "The first EOS "
                     "was sampled and belongs to the completion, what follows was not."),
        (ids != PAD, "You mask out padding only: tokens after the first EOS were not sampled, whatever "
                     "their id."),
        (torch.ones_like(right), "Nothing is masked: what stands after the first EOS was not sampled."),
        (torch.cat([right[:, :1], right[:, :-1]], 1), "The mask goes one token beyond the first EOS."),
        (~right, "The polarity is reversed: the mask is true for a sampled token."),
    ]  # fmt: skip
    got = call(implementation, ids, EOS)
    compare("the mask", got, right, mistakes)
    if got.dtype != torch.bool:
        raise CheckFailed(f"The mask is {got.dtype}, expected torch.bool: return the comparison itself.")


@register("rollout.generate", "packed.generate")
def check_generate(implementation: Callable, draw: Draw) -> None:
    """``f(model, prompt_ids, prompt_lens, *, ...)``: a rollout, as :func:`nanogrpo.rollout.generate`."""
    P, G, T, V = 2, 3, 4, 4
    lens = torch.tensor([3, draw.integer(1, 3)])
    prompts = draw.integers(2, V - 1, P, 3).masked_fill(torch.arange(3) >= lens[:, None], PAD)
    model = draw.model(V)
    with torch.no_grad():
        model.head.weight.mul_(0.3)  # varied samples: some end early, some do not
    options = dict(group_size=G, max_new_tokens=T, eos_id=EOS, pad_id=PAD)
    uniforms = rollout.draw_uniforms(P * G, T, draw.generator, model.head.weight)
    right = rollout.generate(model, prompts, lens, **options, uniforms=uniforms)
    got = call(implementation, model, prompts, lens, **options, uniforms=uniforms)
    ended = (~right.truncated).long()
    mistakes = [
        (right.lengths - ended, "The EOS is left out of the mask: it was sampled, it has a log-prob, "
                                "and without it "
                                "in the mask the decision to stop is never trained."),
        (torch.full_like(right.lengths, right.lengths.max()), "Tokens after the EOS are in the mask."),
        (right.lengths + ended, "The mask goes one token beyond the EOS."),
    ]  # fmt: skip
    compare("the number of sampled tokens", got.completion_mask.sum(1), right.lengths, mistakes)
    mask = right.completion_mask
    compare("the sampled token", got.completion_ids, right.completion_ids, where=mask)
    by_prompt = right.logprobs.unflatten(0, (P, G)).transpose(0, 1).flatten(0, 1)
    mistakes = [
        (right.logprobs.exp(), "You keep probabilities: take their logarithm."),
        (by_prompt, "The rows are in the wrong order: row i answers prompt i // G."),
    ]
    compare("the log-prob of a sampled token", got.logprobs, right.logprobs, mistakes, mask, atol=1e-4)
