"""A tiny GPT: token ids in, next-token logits out, and nothing else.

What it leaves out, and why: dropout (it would make the policy that is trained differ from the policy that
sampled), weight tying (nothing here needs it), and any loss (losses are in ``losses.py``).

Dimensions: ``B`` rows, ``T`` tokens, ``C`` channels, ``H`` heads, ``D = C / H`` channels a head, ``V``
vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogrpo.errors import BlockSizeError, DeviceError, DTypeError, OptionError, ShapeError, TokenError
from nanogrpo.options import Options, option


@dataclass(frozen=True)
class GPTConfig(Options):
    """The shape of a GPT."""

    vocab_size: int = option(help="different tokens.", low=1, high=10_000_000)
    block_size: int = option(
        help="tokens of the longest sequence, prompt and completion, that it can read.",
        low=1,
        high=10_000_000,
    )
    n_layer: int = option(3, help="layers.", low=1, high=1000)
    n_head: int = option(4, help="heads of the attention; they share the channels.", low=1, high=10_000)
    n_embd: int = option(128, help="channels.", low=1, high=100_000)

    def check(self) -> None:
        if self.n_embd % self.n_head:
            raise OptionError(f"n_embd={self.n_embd} does not divide into n_head={self.n_head} equal heads")


class KVCache:
    """Keys and values of the tokens read so far, so that each new token costs one position and not all.

    A cache also tells the model where the new tokens stand (``positions``) and what each may look at
    (``attend``). Another layout of the cache is another class with these three methods; the model stays as
    it is.
    """

    def __init__(self, config: GPTConfig, rows: int, max_len: int, like: Tensor):
        head_dim = config.n_embd // config.n_head
        shape = (config.n_layer, rows, config.n_head, max_len, head_dim)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)  # (layer, B, H, max_len, D)
        self.length = 0

    def positions(self, tokens: int) -> Tensor:
        """Positions of the next ``tokens`` columns, ``(T,)``."""
        return torch.arange(self.length, self.length + tokens, device=self.keys.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new keys and values of one layer, then attend from the new queries to all so far."""
        new, end = q.shape[2], self.length + q.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        mask = None if new == 1 else torch.ones(new, end, dtype=torch.bool, device=q.device).tril(self.length)
        return F.scaled_dot_product_attention(
            q, self.keys[layer, :, :, :end], self.values[layer, :, :, :end], attn_mask=mask
        )

    def advance(self, tokens: int) -> None:
        """Count the columns as read, once all layers have stored them."""
        self.length += tokens

    def repeat(self, times: int) -> "KVCache":
        """A cache in which every row stands ``times`` times in a row: one prefill serves a whole group."""
        copy = object.__new__(KVCache)
        copy.keys = self.keys.repeat_interleave(times, dim=1)
        copy.values = self.values.repeat_interleave(times, dim=1)
        copy.length = self.length
        return copy


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = cache.attend(layer, q, k, v)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """One layer: each half reads the residual stream through a LayerNorm and adds to it."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        C = config.n_embd
        self.norm1, self.attention = nn.LayerNorm(C), Attention(config)
        self.norm2, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.norm1(x), layer, cache)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A decoder-only transformer in GPT-2's shape (learned positions, LayerNorm before each half, GELU).

    Args:
        config: the shape.

    ``forward`` returns the logits of the token *after* each position; turning them into log-probs of given
    tokens, with the shift by one that this needs, is :func:`nanogrpo.rollout.completion_logits`'s work.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab_size, config.n_embd)
        self.position = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._initialize()

    def _initialize(self) -> None:
        # Each linear layer keeps the variance of what it reads (std = fan_in ** -0.5); those that write to
        # the residual stream are scaled down, so that its variance does not grow with depth. GPT-2's std of
        # 0.02 is meant for models that are much wider.
        for name, p in self.named_parameters():
            if name in ("token.weight", "position.weight"):
                nn.init.normal_(p, std=0.1)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2:
                residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=(p.shape[1] * (2 * self.config.n_layer if residual else 1)) ** -0.5)

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """The residual stream after the last layer, normalized: ids ``(B, T)`` to ``(B, T, C)``.

        Raises:
            BlockSizeError: the sequence is longer than ``block_size``.
            ShapeError, DTypeError, DeviceError: ``idx`` is no table of ids where the weights are.
            TokenError: an id is outside the vocabulary.
        """
        _check_table(idx, self.token.weight)
        T = idx.shape[1]
        past = 0 if cache is None else cache.length
        if past + T > self.config.block_size:
            raise BlockSizeError(
                f"{past + T} tokens do not fit block_size={self.config.block_size}; "
                "shorten the text or build the model with a larger block_size"
            )
        positions = torch.arange(T, device=idx.device) if cache is None else cache.positions(T)
        try:
            x = self.token(idx) + self.position(positions)  # (B, T, C)
        except IndexError:
            low, high = (int(end) for end in idx.aminmax())
            last = self.config.vocab_size - 1
            raise TokenError(f"ids go from {low} to {high}, but the vocabulary from 0 to {last}") from None
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)

    def forward(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the next token at every position: ids ``(B, T)`` to ``(B, T, V)``."""
        return self.head(self.hidden(idx, cache))

    @property
    def num_parameters(self) -> int:
        """How many numbers training may change."""
        return sum(p.numel() for p in self.parameters())


def _check_table(idx: Tensor, weight: Tensor) -> None:
    if not isinstance(idx, Tensor) or idx.dtype not in (torch.int64, torch.int32):
        raise DTypeError(f"ids are {getattr(idx, 'dtype', type(idx).__name__)}, need a tensor of torch.int64")
    if idx.ndim != 2:
        raise ShapeError(f"ids have shape {tuple(idx.shape)}, expected (B, T); ids.unsqueeze(0) is one row")
    if idx.device != weight.device:
        raise DeviceError(f"ids are on {idx.device}, the model on {weight.device}; use ids.to(...)")
