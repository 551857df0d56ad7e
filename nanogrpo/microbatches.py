"""A batch in parts: microbatches that fit a processor's cache, and minibatches that get an update each.

The result of a pass over microbatches is that of the whole batch. A minibatch is a batch of its own.

Legend: P prompts, G completions a prompt, B = P*G rows, T tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo.model import GPT
from nanogrpo.packed import completion_logits
from nanogrpo.rollout import Rollout, logprobs_of

# Tokens of one forward and backward pass: on a CPU its activations should fit in the cache, a GPU wants many.
MICROBATCH_TOKENS = {"cpu": 2048, "cuda": 1 << 18}


def microbatches(rollout: Rollout, prompts: Tensor) -> tuple[Tensor, ...]:
    """Indices of prompts ``(P,)`` in parts of about ``MICROBATCH_TOKENS``, alike in length to pad little."""
    if not len(prompts):
        return ()
    longest = rollout.lengths.view(-1, rollout.group_size).amax(1)  # (P,)
    tokens = MICROBATCH_TOKENS["cuda" if longest.is_cuda else "cpu"]
    size = max(1, tokens // (rollout.group_size * rollout.completion_ids.shape[1]))
    return prompts[longest[prompts].argsort()].split(size)


def minibatches(num_prompts: int, epochs: int, parts: int, seed: int, step: int) -> list[Tensor]:
    """Indices of prompts for each update of a step: ``epochs`` times all of them, cut into ``parts``.

    They are shuffled anew for each epoch, with random numbers of their own, so that prompts and samples do
    not depend on how often a batch is gone through.
    """
    if parts == 1:
        return [torch.arange(num_prompts)] * epochs
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)  # of which 32 bits are used
    orders = [torch.randperm(num_prompts, generator=generator) for _ in range(epochs)]
    return [part for order in orders for part in order.tensor_split(min(parts, num_prompts))]


@torch.no_grad()
def in_parts(rollout: Rollout, of_part: Callable[[Rollout], Tensor]) -> Tensor:
    """``of_part`` of every part of a rollout, put together: ``(B, T)``; 0 where masked, no gradient.

    Args:
        rollout: what was sampled.
        of_part: a number for each token ``(b, t)`` of a few groups, trimmed to their longest completion.
            A part fits a processor's cache, as in the training pass.
    """
    result = torch.zeros_like(rollout.logprobs)  # (B, T)
    groups = result.view(len(rollout.prompt_ids), rollout.group_size, -1)  # (P, G, T), the same memory
    for prompts in microbatches(rollout, torch.arange(len(groups), device=result.device)):
        part = rollout.pick(prompts)
        numbers = of_part(part).where(part.completion_mask, 0.0).to(groups)  # (b, t)
        groups[prompts, :, : numbers.shape[1]] = numbers.view(len(prompts), rollout.group_size, -1)
    return result


def logprobs_under(model: GPT, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Log-probs of the sampled tokens under another model, in nats, ``(B, T)``; 0 where masked."""

    def of_part(part: Rollout) -> Tensor:
        logits = completion_logits(model, part.prompt_ids, part.prompt_lens, part.completion_ids)  # (b, t, V)
        return logprobs_of(logits, part.completion_ids, temperature)

    return in_parts(rollout, of_part)
