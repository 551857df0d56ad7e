"""Sampling and the training pass, fast: the same calls and the same results as ``rollout.py``.

A prompt is read once for its whole group, in training too. Several completions of a group decode as one
packed row, so that their prompt's keys are fetched once for all; finished rows are dropped on the way.

Each step appends one column for each completion of the packed row, side by side. The cache stays a plain
table that grows, and what a completion may look at is a mask that never changes. With ``pack = 3`` and a
prompt of three tokens (padding of shorter prompts is hidden as well), the step that reads token 1 sees::

                        keys, in the order of the cache
                      prompt     token 0     token 1    (token 2 ...)
                     p  p  p     a  b  c     a  b  c
    queries    a     x  x  x     x  .  .     x  .  .
               b     x  x  x     .  x  .     .  x  .
               c     x  x  x     .  .  x     .  .  x

The price is ``pack`` times the scores of the completions' own tokens, most of them hidden; ``MAX_PACK``
bounds it.

What it leaves out, and why: a second copy of the model. Prompts and training go through :class:`GPT`. Only
``read``, which takes one token a row and runs most often, is written flat on the same weights: it is faster.

A GPU is asked what has ended only every ``GPU_STRIDE`` tokens. With ``CUDA_GRAPHS = True`` it replays
captured steps. That is off because it has not been run on a GPU yet; its test runs wherever there is one.

Dimensions as in ``rollout.py``; ``R = B / pack`` packed rows, ``L`` layers, ``H`` heads, ``D = C / H``,
``S`` columns of the cache.
"""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogrpo.inputs import check_fits, check_sampled, group_size_of
from nanogrpo.model import GPT, KVCache
from nanogrpo.rollout import Rollout, completion_mask, sample_token
from nanogrpo.rollout import generate as generate_simply

MAX_PACK = 8  # completions that share a packed row, at most
SHRINK = 0.75  # drop finished rows once this share of the rows is enough
GPU_STRIDE = 16  # tokens between two looks at what has ended, on a GPU
CUDA_GRAPHS = False
_captured: WeakKeyDictionary = WeakKeyDictionary()  # model -> {shape: decoder}


@torch.no_grad()
def generate(
    model: GPT, prompt_ids: Tensor, prompt_lens: Tensor, *, group_size: int, max_new_tokens: int,
    eos_id: int, pad_id: int, uniforms: Tensor, temperature: float = 1.0,
) -> Rollout:  # fmt: skip
    """Sample as :func:`nanogrpo.rollout.generate` does, faster: same arguments, same tokens, same errors.

    A model with other layers than ours (:mod:`nanogrpo.causal`) is handed to that function.
    """
    if not hasattr(model, "blocks"):  # not by type: the museum loads these modules a second time
        return generate_simply(
            model, prompt_ids, prompt_lens, group_size=group_size, max_new_tokens=max_new_tokens,
            eos_id=eos_id, pad_id=pad_id, uniforms=uniforms, temperature=temperature,
        )  # fmt: skip
    check_fits(
        model, prompt_ids, prompt_lens, uniforms, group_size=group_size, max_new_tokens=max_new_tokens,
        eos_id=eos_id, pad_id=pad_id, temperature=temperature,
    )  # fmt: skip
    options, weight = (group_size, max_new_tokens, eos_id, temperature), model.head.weight
    if weight.is_cuda and CUDA_GRAPHS:
        shape = (*options, prompt_ids.shape, uniforms.dtype, weight.data_ptr())
        decoders = _captured.setdefault(model, {})
        decoder = decoders.get(shape) or decoders.setdefault(shape, _Decoder(model, *options, captured=True))
    else:
        decoder = _Decoder(model, *options)
    decoder.load(model, prompt_ids, prompt_lens, uniforms)
    decoder.run()
    tokens, logprobs = decoder.tokens.T, decoder.logprobs.T  # (B, max_new_tokens)
    sampled, truncated = completion_mask(tokens, eos_id), ~(tokens == eos_id).any(1)
    T = int(sampled.sum(1).max())  # trim to the longest completion
    completion_ids = torch.where(sampled, tokens, pad_id)[:, :T].contiguous()
    check_sampled(torch.where(sampled, logprobs, 0.0))
    logprobs, mask = torch.where(sampled, logprobs, 0.0)[:, :T].contiguous(), sampled[:, :T].contiguous()
    return Rollout(prompt_ids, prompt_lens, completion_ids, mask, logprobs, truncated, group_size)


class _Decoder:
    """The state of one rollout: ``load`` sets it, each ``step`` changes it in place; nothing is recorded."""

    kv: Tensor
    mask: Tensor
    positions: Tensor
    logits: Tensor
    uniforms: Tensor
    rows: Tensor
    lens: Tensor
    ended: Tensor
    tokens: Tensor
    logprobs: Tensor

    def __init__(self, model, group_size, max_new_tokens, eos_id, temperature, captured=False):
        self.group_size, self.steps = group_size, max_new_tokens
        self.eos_id, self.temperature = eos_id, temperature
        self.pack = next(n for n in range(MAX_PACK, 0, -1) if group_size % n == 0)
        self.table, self.norm, self.head = model.token.weight, model.norm, model.head.weight.T
        self.layers = [
            (m.weight.T if m.weight.ndim == 2 else m.weight, m.bias)  # views, so an update in place is seen
            for b in model.blocks
            for m in (b.norm1, b.attention.qkv, b.attention.proj, b.norm2, b.up, b.down)
        ]
        self.captured, self.warm, self.graphs, self.pool = captured, False, {}, None

    @torch.inference_mode()
    def load(self, model: GPT, prompt_ids: Tensor, prompt_lens: Tensor, uniforms: Tensor) -> None:
        """Read the prompts, and set the state to what it is before the first token."""
        (P, self.width), times, device = prompt_ids.shape, self.group_size // self.pack, prompt_ids.device
        cache = KVCache(model.config, P, self.width, like=self.head)
        last = model.hidden(prompt_ids, cache)[torch.arange(P, device=device), prompt_lens - 1]  # (P, C)
        kv = torch.stack([cache.keys, cache.values], 1).repeat_interleave(times, 2)  # (L, 2, R, H, Tp, D)
        lens = prompt_lens.repeat_interleave(times)  # (R,)
        places = lens + torch.arange(self.steps - 1, device=device).unsqueeze(1)  # (steps - 1, R)
        as_scored = torch.promote_types(last.dtype, torch.float32)  # whatever type the uniform numbers have
        rows = torch.arange(P * self.group_size, device=device)  # which completion each place of a pack holds
        state = {
            "kv": self._with_room(kv),
            "mask": self._mask(lens),
            "positions": model.position(places).unsqueeze(2),  # (steps - 1, R, 1, C)
            "logits": model.head(last).repeat_interleave(self.group_size, 0),  # (B, V)
            "uniforms": uniforms.T.contiguous(),  # (steps, B)
            "rows": rows,
            "lens": lens,
            "ended": torch.zeros_like(rows, dtype=torch.bool),
            "tokens": rows.new_zeros(self.steps, len(rows)),
            "logprobs": torch.zeros(self.steps, len(rows), device=device, dtype=as_scored),
        }
        if self.captured and self.warm:  # captured steps know the addresses
            for name, value in state.items():
                getattr(self, name).copy_(value)
        else:
            self.__dict__.update(state)

    def _with_room(self, kv: Tensor, read: int = 0) -> Tensor:
        *outer, filled, D = kv.shape
        room = kv.new_empty(*outer, filled + self.pack * (self.steps - 1 - read), D)
        room[..., :filled, :] = kv
        return room  # (L, 2, R, H, S, D)

    def _mask(self, lens: Tensor) -> Tensor:
        member = torch.arange(self.pack, device=lens.device)
        own = member.repeat(self.steps - 1) == member.unsqueeze(1)  # (pack, pack * (steps - 1))
        return _visible(lens, self.width, own, self.head, same_shape=self.captured)

    @torch.inference_mode()
    def run(self) -> None:
        """Sample until every row has ended or is at its full length."""
        stride = GPU_STRIDE if self.logits.is_cuda else 1
        for first in range(0, self.steps, stride):
            self.advance(range(first, min(first + stride, self.steps)))
            going = self.ended.tolist().count(False)
            if not going:
                break
            if not self.captured and going <= SHRINK * len(self.ended) and first + stride < self.steps:
                self.shrink(first + stride)
        self.warm = True

    def advance(self, steps: range) -> None:
        """Some steps in one go. Where they are captured, the first rollout is not: it warms up."""
        if not (self.captured and self.warm):
            for t in steps:
                self.step(t)
            return
        if steps not in self.graphs:
            self.graphs[steps] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[steps], pool=self.pool):
                for t in steps:
                    self.step(t)
            self.pool = self.graphs[steps].pool()
        self.graphs[steps].replay()

    def step(self, t: int) -> None:
        """Read the token before, unless the prompt is just before, and sample token ``t`` of every row."""
        if t:
            self.read(self.tokens[t - 1].index_select(0, self.rows), t - 1)
        chosen, logprob = sample_token(self.logits, self.uniforms[t], self.temperature)
        self.tokens[t].scatter_(0, self.rows, chosen)
        self.logprobs[t].scatter_(0, self.rows, logprob)
        self.ended |= chosen == self.eos_id

    def read(self, ids: Tensor, t: int) -> None:
        """The model's ``forward`` for token ``t`` of every row, ``(R * pack,)``, flat and in place."""
        R, pack, C = len(self.lens), self.pack, self.table.shape[1]
        H, D, start = self.kv.shape[3], self.kv.shape[5], self.width + t * self.pack
        kv, mask = self.kv[..., : start + pack, :], self.mask[..., : start + pack]
        x = torch.embedding(self.table, ids).view(R, pack, C).add_(self.positions[t]).view(-1, C)
        weights = iter(self.layers)
        for cache, norm1, qkv, proj, norm2, up, down in zip(kv, *[weights] * 6, strict=True):
            h = torch.addmm(qkv[1], torch.layer_norm(x, (C,), *norm1), qkv[0])  # (R * pack, 3 * C)
            h = h.view(R, pack, 3, H, D).permute(2, 0, 3, 1, 4)  # (3, R, H, pack, D)
            cache[:, :, :, start:] = h[1:]
            y = F.scaled_dot_product_attention(h[0], cache[0], cache[1], attn_mask=mask)  # (R, H, pack, D)
            x.add_(proj[1]).addmm_(y.transpose(1, 2).reshape(-1, C), proj[0])
            h = F.gelu(torch.addmm(up[1], torch.layer_norm(x, (C,), *norm2), up[0]))  # (R * pack, 4 * C)
            x.add_(down[1]).addmm_(h, down[0])
        torch.mm(self.norm(x), self.head, out=self.logits)  # (R * pack, V)

    def shrink(self, sampled: int) -> None:
        """Drop packed rows that have ended and narrow the others, where few enough rows are left then."""
        going = ~self.ended.view(-1, self.pack)  # (R, pack)
        pack, stay = int(going.sum(1).max()), going.any(1).nonzero().squeeze(1)
        if len(stay) * pack > SHRINK * going.numel():
            return
        keep = going.int().argsort(dim=1, descending=True, stable=True)[stay, :pack]  # (R', pack')
        rows = (stay.unsqueeze(1) * self.pack + keep).flatten()
        columns = torch.arange(self.width, device=rows.device).expand(len(stay), -1)
        steps = self.width + self.pack * torch.arange(sampled - 1, device=rows.device).unsqueeze(1)
        own = (steps + keep.unsqueeze(1)).flatten(1)  # (R', (sampled - 1) * pack')
        columns = torch.cat([columns, own], 1)[:, None, :, None]  # (R', 1, S', 1)
        kv = self.kv[:, :, stay]
        kv = kv.gather(4, columns.expand(*kv.shape[:4], -1, kv.shape[5]))
        self.pack, self.lens, self.rows, self.ended = pack, self.lens[stay], self.rows[rows], self.ended[rows]
        self.uniforms, self.positions = self.uniforms[:, rows], self.positions[:, stay]
        self.logits, self.kv = self.logits[: len(rows)], self._with_room(kv, sampled - 1)
        self.mask = self._mask(self.lens)


def _visible(lens: Tensor, width: int, own: Tensor, like: Tensor, same_shape: bool = False) -> Tensor:
    """What queries see of prompts and, by ``own`` ``(q, k)``, after them: numbers to add ``(R, 1, q, S)``."""
    if not same_shape and bool((lens == width).all()):
        lens = lens[:1]  # no padding to hide: one mask serves all
    prompt = torch.arange(width, device=lens.device) < lens.unsqueeze(1)  # (R, Tp)
    parts = [prompt.unsqueeze(1).expand(-1, len(own), -1), own.expand(len(lens), -1, -1)]
    return torch.where(torch.cat(parts, 2), 0.0, -torch.inf).to(like).unsqueeze(1)


class _SharedPrompt(KVCache):
    """The cache of a training pass: first the prompts are read, then each completion after its prompt."""

    def __init__(self, prompt_lens: Tensor, group_size: int):
        self.lens, self.group_size = prompt_lens.repeat_interleave(group_size), group_size
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.mask: Tensor | None = None
        self.length = 0

    def positions(self, tokens: int) -> Tensor:
        columns = torch.arange(tokens, device=self.lens.device)
        return self.lens.unsqueeze(1) + columns if self.length else columns  # (B, T) or (T,)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.length:
            self.prompts.append((k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.mask is None:
            causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
            self.mask = _visible(self.lens, self.length, causal, q)
        k, v = (
            torch.cat([prompt.repeat_interleave(self.group_size, 0), own], 2)  # (B, H, Tp + T, D)
            for prompt, own in zip(self.prompts[layer], (k, v), strict=True)
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

    def advance(self, tokens: int) -> None:
        self.length += tokens


def completion_hidden(model: GPT, prompt_ids: Tensor, prompt_lens: Tensor, completion_ids: Tensor) -> Tensor:
    """What the model's head reads to predict each completion token, ``(B, T, C)``."""
    group_size = group_size_of(model, prompt_ids, prompt_lens, completion_ids)
    P, T = len(prompt_ids), completion_ids.shape[1]
    cache = _SharedPrompt(prompt_lens, group_size)
    hidden = model.hidden(prompt_ids[:, : int(prompt_lens.max())], cache)  # (P, Tp, C)
    last = hidden[torch.arange(P, device=hidden.device), prompt_lens - 1]  # (P, C), predicts the first token
    last = last.repeat_interleave(group_size, 0).unsqueeze(1)  # (B, 1, C)
    rest = [model.hidden(completion_ids[:, :-1], cache)] if T > 1 else []  # (B, T - 1, C)
    return torch.cat([last, *rest], 1)  # (B, T, C)


def completion_logits(model: GPT, prompt_ids: Tensor, prompt_lens: Tensor, completion_ids: Tensor) -> Tensor:
    """As :func:`nanogrpo.rollout.completion_logits`, ``(B, T, V)``, reading a prompt once for its group."""
    return model.head(completion_hidden(model, prompt_ids, prompt_lens, completion_ids))  # (B, T, V)
