"""Random inputs of one round of a check, all from one seed."""

from __future__ import annotations

import torch
from torch import Tensor

from nanogrpo.model import GPT, GPTConfig


class Draw:
    """Random inputs of one round, all from one seed, of torch's default number type.

    Args:
        seed: Of all of them.
        twin: The numbers of each tensor stand in the reverse order: the same shapes, and other numbers.
    """

    def __init__(self, seed: int, twin: bool = False):
        self.generator, self.twin = torch.Generator().manual_seed(seed), twin

    def _ordered(self, numbers: Tensor) -> Tensor:
        return numbers.flatten().flip(0).view(numbers.shape) if self.twin else numbers

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return self._ordered(torch.randn(*shape, generator=self.generator))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers."""
        return self._ordered(low + (high - low) * torch.rand(*shape, generator=self.generator))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from ``low`` to ``high``, both included."""
        return self._ordered(torch.randint(low, high + 1, shape, generator=self.generator))

    def integer(self, low: int, high: int) -> int:
        """One of them."""
        return int(self.integers(low, high, 1))

    def mask(self, rows: int, tokens: int) -> Tensor:
        """A completion mask ``(rows, tokens)``: a full row, one that is not, one of one token, none empty."""
        lengths = self.integers(1, tokens, rows, 1)
        lengths[0], lengths[1] = tokens, self.integer(1, tokens - 1)
        lengths[2:3] = 1
        return torch.arange(tokens) < lengths

    def logprobs(self, *shape: int) -> Tensor:
        """Log-probs of sampled tokens, in nats."""
        return -self.normal(*shape).abs() - 0.1

    def model(self, vocab_size: int, block_size: int = 16) -> GPT:
        """A tiny GPT with large random weights, so that no two of its predictions are alike."""
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
        ):  # the reader's random numbers stay as they are
            model = GPT(GPTConfig(vocab_size, block_size, n_layer=1, n_head=1, n_embd=8))
            for weight in model.parameters():
                weight.copy_(self.normal(*weight.shape))
        return model
