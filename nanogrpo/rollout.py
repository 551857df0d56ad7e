"""Sampling completions in groups, and the log-probs of given completions: the simple path.

This is the version to read. ``packed.py`` does the same work faster and is tested to give the same tokens,
log-probs and gradients.

A row holds its prompt and its completion without a gap, padded on the right. Causal attention never looks to
the right, so padding needs no attention mask, and column ``c`` is position ``c`` in every row.

Dimensions: ``P`` prompts, ``G`` completions a prompt, ``B = P * G`` rows (row ``i`` answers prompt
``i // G``), ``Tp`` tokens of the longest prompt, ``T`` tokens of the longest completion, ``V`` vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanogrpo.errors import OptionError, check_shape, check_whole
from nanogrpo.inputs import (
    a_token_of_each_row,
    check_draw,
    check_fits,
    check_sampled,
    check_temperature,
    check_token_ids,
    group_size_of,
)
from nanogrpo.model import GPT, KVCache
from nanogrpo.precision import widen


@dataclass(frozen=True)
class Rollout:
    """What was sampled: ``G`` completions for each of ``P`` prompts.

    Attributes:
        prompt_ids: ``(P, Tp)``, padded on the right.
        prompt_lens: ``(P,)``, tokens of each prompt.
        completion_ids: ``(B, T)``, padded on the right after the end-of-sequence token.
        completion_mask: ``(B, T)``, true for each sampled token, the end-of-sequence token included.
        logprobs: ``(B, T)``, nats, of each sampled token under the policy that sampled it; 0 where masked.
        truncated: ``(B,)``, true where the completion was cut off before it ended itself.
        group_size: ``G``.
    """

    prompt_ids: Tensor
    prompt_lens: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    logprobs: Tensor
    truncated: Tensor
    group_size: int

    @property
    def lengths(self) -> Tensor:
        """Sampled tokens of each completion, ``(B,)``."""
        return self.completion_mask.sum(1)

    def pick(self, prompts: Tensor) -> "Rollout":
        """The rollout of some prompts, by their indices, with their whole groups, without idle columns."""
        members = torch.arange(self.group_size, device=prompts.device)
        rows = (prompts.unsqueeze(1) * self.group_size + members).flatten()  # (B,)
        Tp, T = int(self.prompt_lens[prompts].max()), int(self.lengths[rows].max())
        return Rollout(
            self.prompt_ids[prompts, :Tp],
            self.prompt_lens[prompts],
            self.completion_ids[rows, :T],
            self.completion_mask[rows, :T],
            self.logprobs[rows, :T],
            self.truncated[rows],
            self.group_size,
        )


def sample_token(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Sample one token a row by inverting the cumulative distribution.

    The token is the first one whose cumulative probability reaches the row's uniform number:
    :math:`\min\{j : \sum_{i \le j} p_i \ge u\}` with :math:`p = \mathrm{softmax}(\text{logits} / \tau)`.
    The same uniform numbers give the same tokens, whatever path computed the logits.

    Args:
        logits: ``(..., V)``. Half precision is widened first: summed up in bfloat16, a fifth of an alphabet
            would never be drawn.
        uniforms: ``(...)``, each in (0, 1], float32 or float64; 0 is excluded so that no token of
            probability 0 is chosen.
        temperature: :math:`\tau`. 0 stands for the most probable token, with log-prob 0.

    Returns:
        token ids ``(...)`` and their log-probs ``(...)`` in nats at this temperature. Where a logit is not
        finite, the greedy log-prob is NaN; so is any log-prob on a GPU, which is not asked at each token.

    Raises:
        ShapeError, DTypeError, OptionError: an argument is not as described.
        NonFiniteError: a logit is NaN or infinite, or a uniform number is not in (0, 1].

    >>> sample_token(torch.log(torch.tensor([[0.2, 0.3, 0.5]])), torch.tensor([0.4]))
    (tensor([1]), tensor([-1.2040]))
    """
    logits = widen("logits", logits)
    check_draw(logits, uniforms, temperature)
    if temperature == 0:
        best, tokens = logits.max(-1)
        return tokens, (best - best).to(uniforms)  # 0, or NaN where the best is not finite
    probs = torch.softmax(logits / temperature, -1)
    cdf = probs.cumsum(-1, dtype=torch.promote_types(probs.dtype, uniforms.dtype))
    # The last sum is 1 only up to rounding, so the uniform number is scaled to it.
    tokens = torch.searchsorted(cdf, uniforms.to(cdf.dtype).unsqueeze(-1) * cdf[..., -1:])
    if not tokens.is_cpu:
        tokens = tokens.clamp(max=logits.shape[-1] - 1)  # past the end, a GPU would stop the whole process
    with a_token_of_each_row():
        return tokens.squeeze(-1), probs.gather(-1, tokens).squeeze(-1).log()


def draw_uniforms(rows: int, tokens: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform numbers in (0, 1], ``(rows, tokens)``: all the chance that a rollout needs.

    They are drawn on the CPU, so that a seed means the same numbers on every device; in float64 where
    ``like`` is, else in float32, since half precision has only 256 different ones.

    Raises:
        OptionError: a count is negative, or no whole number, or no memory holds so many.
    """
    check_whole("rows", rows, 0)
    check_whole("tokens", tokens, 0)
    if rows * tokens > 2**34:
        raise OptionError(f"{rows} completions of {tokens} tokens are more than memory holds; take fewer")
    dtype = torch.promote_types(like.dtype, torch.float32)
    return (1 - torch.rand(rows, tokens, generator=generator, dtype=dtype)).to(like.device)


def completion_mask(ids: Tensor, eos_id: int) -> Tensor:
    """True for each sampled token, ``(B, T)`` bool: up to the first end of a row, which belongs to it.

    What stands after the first end was not sampled, whatever it is. A row without an end was cut off, and all
    of it counts.

    >>> completion_mask(torch.tensor([[5, 1, 1, 0], [5, 6, 7, 8]]), eos_id=1)
    tensor([[ True,  True, False, False],
            [ True,  True,  True,  True]])
    """
    ends = ids == eos_id
    return ends.cumsum(1) - ends.long() == 0


@torch.no_grad()
def generate(
    model: GPT,
    prompt_ids: Tensor,
    prompt_lens: Tensor,
    *,
    group_size: int,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    uniforms: Tensor,
    temperature: float = 1.0,
) -> Rollout:
    """Sample ``group_size`` completions for each prompt, reading each prompt once for its whole group.

    All prompts are read up to the shortest one's length in one pass; the cache is then copied to the group's
    rows. From there on each step adds one column: a row whose prompt goes on is given its next prompt token,
    every other row samples. Sampling stops when all rows have ended.

    Args:
        model: the policy.
        prompt_ids: ``(P, Tp)`` and ``prompt_lens`` ``(P,)``, as
            :meth:`~nanogrpo.tokenizer.CharTokenizer.encode_prompts` gives them.
        group_size: ``G``, completions a prompt.
        max_new_tokens: a completion that has not ended by then is truncated.
        eos_id: ends a completion, and belongs to it; outside the vocabulary, it ends none.
        pad_id: fills the rows after their end.
        uniforms: ``(B, max_new_tokens)`` from :func:`draw_uniforms`; number ``[i, t]`` chooses
            token ``t`` of row ``i``.
        temperature: divides the logits; 0 takes the most probable token.

    Raises:
        BlockSizeError: a prompt and ``max_new_tokens`` do not fit the model; nothing was sampled.
        ShapeError, DTypeError, DeviceError, TokenError, OptionError: an argument is not as described, or
            ``torch.autocast`` is on; nothing was sampled.
        NonFiniteError: the model's logits are NaN or infinite.
    """
    check_fits(
        model, prompt_ids, prompt_lens, uniforms, group_size=group_size, max_new_tokens=max_new_tokens,
        eos_id=eos_id, pad_id=pad_id, temperature=temperature,
    )  # fmt: skip
    P, shortest, longest = len(prompt_ids), int(prompt_lens.min()), int(prompt_lens.max())
    B, width = P * group_size, longest + max_new_tokens
    lens = prompt_lens.repeat_interleave(group_size)  # (B,)
    at = lens.unsqueeze(1) + torch.arange(max_new_tokens, device=lens.device)  # (B, max_new_tokens)
    u = uniforms.new_ones(B, width).scatter(1, at, uniforms)  # each number in its token's column
    tokens = prompt_ids.new_full((B, width), pad_id)
    tokens[:, :longest] = prompt_ids[:, :longest].repeat_interleave(group_size, 0)
    logprobs, sampled = torch.zeros_like(u), torch.zeros_like(u, dtype=torch.bool)
    ended = torch.zeros_like(lens, dtype=torch.bool)

    cache = KVCache(model.config, P, width, like=model.head.weight)
    logits = model(prompt_ids[:, :shortest], cache)[:, -1].repeat_interleave(group_size, 0)  # (B, V)
    cache = cache.repeat(group_size)
    for column in range(shortest, width):
        open_ = (column >= lens) & (column < lens + max_new_tokens) & ~ended
        chosen, logprob = sample_token(logits, u[:, column], temperature)
        tokens[:, column] = torch.where(open_, chosen, tokens[:, column])
        logprobs[:, column] = torch.where(open_, logprob, 0.0)
        sampled[:, column] = open_
        ended |= open_ & (chosen == eos_id)
        if bool((ended | (column + 1 >= lens + max_new_tokens)).all()):
            break
        logits = model(tokens[:, column : column + 1], cache)[:, -1]  # (B, V)

    at = at[:, : int(sampled.sum(1).max())]  # trim to the longest completion
    check_sampled(logprobs)
    ids, mask, logprobs = (table.gather(1, at) for table in (tokens, sampled, logprobs))
    return Rollout(prompt_ids, prompt_lens, ids, mask, logprobs, ~ended, group_size)


def completion_logits(model: GPT, prompt_ids: Tensor, prompt_lens: Tensor, completion_ids: Tensor) -> Tensor:
    """Logits that predict each completion token, from one teacher-forced pass: ``(B, T, V)``.

    This is the one place where the shift between inputs and targets is written: the logits at position ``c``
    are for the token at position ``c + 1``, so completion token ``t``, which stands at position ``len + t``,
    is predicted at position ``len + t - 1``. The first one is predicted by the last token of the prompt.

    Args:
        model: the policy or the reference.
        prompt_ids: ``(P, Tp)`` with ``prompt_lens`` ``(P,)``.
        completion_ids: ``(B, T)`` with ``B`` a multiple of ``P``; row ``i`` belongs to prompt
            ``i // (B / P)``.

    Raises:
        BlockSizeError: prompt and completion do not fit the model.
        ShapeError, DTypeError, DeviceError, TokenError: an argument is not as described.
    """
    group_size = group_size_of(model, prompt_ids, prompt_lens, completion_ids)
    B, T = completion_ids.shape
    lens = prompt_lens.repeat_interleave(group_size)  # (B,)
    at = lens.unsqueeze(1) + torch.arange(T, device=lens.device)  # (B, T), where each completion token stands
    rows = prompt_ids.repeat_interleave(group_size, 0)  # (B, Tp)
    rows = torch.cat([rows, rows.new_zeros(B, T)], 1).scatter(1, at, completion_ids)  # (B, Tp + T)
    used = int(lens.max()) + T - 1  # the last token predicts nothing that is needed
    hidden = model.hidden(rows[:, :used])  # (B, Tp + T - 1, C)
    wanted = (at - 1).unsqueeze(2).expand(-1, -1, hidden.shape[2])
    return model.head(hidden.gather(1, wanted))  # (B, T, V)


def logprobs_of(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Log-probs in nats of given tokens, :math:`\log \mathrm{softmax}(\text{logits} / \tau)[\text{id}]`.

    Args:
        logits: ``(B, T, V)`` from :func:`completion_logits`, which has done the shift already.
        ids: ``(B, T)``.
        temperature: the one that the tokens were sampled at. With another, the ratio of new to old policy is
            not 1 before the first step, and the gradient is another policy's.

    Returns:
        ``(B, T)``, in float32 at least.

    Raises:
        OptionError: the temperature is not a finite number above 0.
        ShapeError, DTypeError, TokenError: an argument is not as described.
    """
    check_temperature(temperature, low_is_allowed=False)
    logits = widen("logits", logits)
    check_shape("ids", ids, logits.shape[:-1], "one for each distribution")
    check_token_ids("ids", ids, logits.shape[-1] if logits.ndim else 0)
    return torch.log_softmax(logits / temperature, -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def token_logprobs(
    model: GPT, prompt_ids: Tensor, prompt_lens: Tensor, completion_ids: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probs of completion tokens under ``model``, in nats, ``(B, T)``; padding is not masked."""
    return logprobs_of(
        completion_logits(model, prompt_ids, prompt_lens, completion_ids), completion_ids, temperature
    )
