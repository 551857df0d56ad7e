"""A causal language model of ``transformers`` as a model of this package: the same loop trains it.

The loop asks little of a model: its ``config``, the residual stream before the last layer (``hidden``), the
last layer (``head``), and the table of its tokens (``token``). A model of ``transformers`` has them all under
other names. Only attention differs: here a cache says where tokens stand and what each may look at
(:class:`~nanogrpo.model.KVCache`), and ``transformers`` lets a program bring its own attention. So its
layers compute what they always do, and our caches attend: in sampling, and in the training pass, which reads
a prompt once for its group. Rollout, rewards, advantages, losses, optimizer and metrics stay as they are.

What it leaves out, and why: models whose attention has a window or a bias of its own (our caches would not
apply it), several devices, half precision (see :mod:`nanogrpo.precision`), and the packed sampler, which is
written for our own layers: :mod:`nanogrpo.rollout` samples instead. Needs ``pip install 'nanogrpo[hub]'``.

Dimensions: ``B`` rows, ``T`` tokens, ``C`` channels, ``H`` heads, ``D`` channels a head, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogrpo.errors import CheckpointError, OptionError, TextError, TokenError
from nanogrpo.hub import needs_transformers
from nanogrpo.model import GPTConfig, KVCache
from nanogrpo.tokenizer import CharTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

ATTENTION = "nanogrpo"  # what our attention is called in the registry of transformers
ROUNDING = 1e-3  # of the largest logit: two orders of sums in float32 are nearer, another formula is not


class CausalLM(nn.Module):
    """The model with our names; its weights are the same tensors, so that training changes it in place.

    Args:
        model: for instance ``LlamaForCausalLM``, in float32 or float64.
        block_size: tokens of the longest sequence; None for what the model was made for.

    Raises:
        PackageError: ``transformers`` is not installed.
        CheckpointError: through our attention the model does not give its own logits.
    """

    def __init__(self, model: Any, block_size: int | None = None):
        super().__init__()
        with needs_transformers():
            from transformers import AttentionInterface
        AttentionInterface.register(ATTENTION, _attention)
        shape, heads = model.config, model.config.num_attention_heads
        width = getattr(shape, "head_dim", None) or shape.hidden_size // heads
        self.config = GPTConfig(
            len(model.get_output_embeddings().weight), block_size or shape.max_position_embeddings,
            shape.num_hidden_layers, heads, heads * width,
        )  # fmt: skip
        self.theirs = model
        self._check_logits()

    @property
    def token(self) -> Any:
        """The table of tokens, ``(V, C)``."""
        return self.theirs.get_input_embeddings()

    @property
    def head(self) -> Any:
        """The last layer, from ``C`` channels to ``V`` logits."""
        return self.theirs.get_output_embeddings()

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the last layer reads: ids ``(B, T)`` to ``(B, T, C)``, as :meth:`nanogrpo.model.GPT.hidden`.

        Raises:
            TokenError: an id is outside the vocabulary.
        """
        B, T = idx.shape
        if idx.is_cpu and idx.numel() and not 0 <= int(idx.min()) <= int(idx.max()) < self.config.vocab_size:
            raise TokenError(
                f"ids go from {int(idx.min())} to {int(idx.max())}, but the vocabulary from 0 to "
                f"{self.config.vocab_size - 1}"
            )
        positions = torch.arange(T, device=idx.device) if cache is None else cache.positions(T)
        config = self.theirs.config
        own, config._attn_implementation = config._attn_implementation, ATTENTION
        try:
            hidden = self.theirs.base_model(
                input_ids=idx, position_ids=positions.expand(B, T), use_cache=False, nanogrpo_cache=cache
            ).last_hidden_state  # (B, T, C)
        finally:
            config._attn_implementation = own
        if cache is not None:
            cache.advance(T)
        return hidden

    def forward(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the next token at every position: ids ``(B, T)`` to ``(B, T, V)``."""
        return self.head(self.hidden(idx, cache))

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Raise CheckpointError unless a short text has the model's own logits, read at once or in parts."""
        weight, last = self.head.weight, self.config.vocab_size - 1
        ids = torch.arange(1, 7, device=weight.device).clamp(max=last)[None]  # (1, T)
        own = self.theirs(input_ids=ids).logits
        cache = KVCache(self.config, 1, ids.shape[1], like=weight)
        parts = torch.cat([self(ids[:, :3], cache), self(ids[:, 3:4], cache), self(ids[:, 4:], cache)], 1)
        for ours in (self(ids), parts):
            if not (ours - own).abs().max() <= ROUNDING * own.abs().max():
                raise CheckpointError(
                    f"through our attention, a {type(self.theirs).__name__} gives other logits than its own, "
                    f"off by {(ours - own).abs().max().item():.1e}: it scales, masks or caps in a way of its "
                    "own; take a model of the llama family"
                )


class HubTokenizer(CharTokenizer):
    """A tokenizer of ``transformers`` with the calls of ours.

    ``pad_id`` may be ``eos_id``, as it is in many: which tokens count is never read off the padding here, see
    :func:`~nanogrpo.rollout.completion_mask`.

    Args:
        tokenizer: one that adds no token of its own to a text.
        vocab_size: of the model, which may have rows to spare.

    Raises:
        OptionError: it has no end of sequence, or adds tokens.
    """

    def __init__(self, tokenizer: Any, vocab_size: int):
        if (added := tokenizer("")["input_ids"]) != []:
            raise OptionError(
                f"the tokenizer adds the ids {added} to every text; set add_bos_token=False and write them "
                "into the prompts, so that completions stay free of them"
            )
        if tokenizer.eos_token_id is None:
            raise OptionError("the tokenizer has no eos_token, so no completion could end; set one")
        self.theirs, self.size = tokenizer, vocab_size
        self.eos_id = tokenizer.eos_token_id
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @property
    def vocab_size(self) -> int:
        """Number of token ids, which is the model's."""
        return self.size

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; special tokens that are written out in it, as chat templates do, are read as such.

        Raises:
            TextError: ``text`` is something else.
        """
        if not isinstance(text, str):
            raise TextError(f"{text!r:.80} is of type {type(text).__name__}, need a text; use str(...)")
        return self.theirs(text)["input_ids"]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` without special tokens, as TRL hands it to reward functions."""
        row = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self.theirs.decode(row, skip_special_tokens=True)


def adapt(model: Any, tokenizer: Any, block_size: int | None = None) -> tuple[CausalLM, HubTokenizer]:
    """A model and its tokenizer, as :func:`nanogrpo.grpo.train` takes them.

    Raises:
        PackageError, CheckpointError, OptionError: see :class:`CausalLM` and :class:`HubTokenizer`.
    """
    ours = CausalLM(model, block_size)
    return ours, HubTokenizer(tokenizer, ours.config.vocab_size)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, nanogrpo_cache: Any, **_: Any
) -> tuple[Tensor, None]:
    """Attention of one layer by our cache: ``(B, H, T, D)`` and fewer keys and values to ``(B, T, H, D)``."""
    times = query.shape[1] // key.shape[1]  # several queries share a key
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    if nanogrpo_cache is None:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        mixed = nanogrpo_cache.attend(module.layer_idx, query, key, value)
    return mixed.transpose(1, 2), None
