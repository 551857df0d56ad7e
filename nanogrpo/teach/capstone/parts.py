"""A loop may hand its batch on in parts, rows or sampled tokens alone: here they are put together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEFT = (
    "When the optimizer takes its step, loss_of or kl_of has seen a part of the batch only, or other tokens. "
    "Each of them sees every row, in order, by all of its tokens, or kl_of the sampled ones alone."
)


def has_some_rows(logprobs: object, B: int) -> bool:
    """Whether log-probs are of some rows of a batch."""
    return isinstance(logprobs, Tensor) and logprobs.ndim == 2 and len(logprobs) < B


def has_some_tokens(logprobs: object, B: int) -> bool:
    """Whether log-probs are those of some rows, or of tokens without their rows."""
    return B > 0 and isinstance(logprobs, Tensor) and (logprobs.ndim != 2 or len(logprobs) != B)


def joined(parts: list[tuple], B: int) -> tuple | None:
    """The arguments of one call of ``loss_of`` for all rows; None as long as there are fewer."""
    if sum(len(part[0]) for part in parts) != B:
        return None
    tensors = [torch.cat([part[i] for part in parts]) for i in range(4)]
    bounds = {part[4:] for part in parts}
    return (*tensors, *(bounds.pop() if len(bounds) == 1 else (math.nan, math.nan)))


def spread(parts: list[tuple], logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """The arguments of one call of ``kl_of`` for all tokens; None as long as there are fewer.

    Args:
        parts: The arguments of the calls so far.
        logprobs: What ``loss_of`` was called with, ``(B, T)``.
        mask: Where sampled tokens stand, ``(B, T)``.
    """
    new, ref = (torch.cat([part[i].reshape(-1) for part in parts]) for i in (0, 1))
    if new.shape != ref.shape or mask.shape != logprobs.shape or mask.dtype != torch.bool:
        return None
    if new.numel() == mask.numel():
        return new.view_as(mask), ref.view_as(mask)
    if not torch.equal(new.detach(), logprobs.detach()[mask]):
        return None
    rest = logprobs.detach()  # at padding, where the two then agree
    return rest.masked_scatter(mask, new), rest.masked_scatter(mask, ref)
