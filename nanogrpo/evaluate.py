"""How good is a model on held-out problems: accuracy, sampled, greedy or exact, and pass@k."""

import math
from collections.abc import Sequence
from math import comb

import torch

from nanogrpo.errors import NonFiniteError, OptionError, RowError, check_whole
from nanogrpo.model import GPT
from nanogrpo.packed import generate
from nanogrpo.rewards import Problem, RewardFunction, call_reward, check_rows
from nanogrpo.rollout import draw_uniforms, token_logprobs
from nanogrpo.together import check_vocabulary
from nanogrpo.tokenizer import CharTokenizer


def sample_texts(
    model: GPT,
    tokenizer: CharTokenizer,
    prompts: list[str],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """``group_size`` completions for each prompt, as text, in the order of the prompts.

    Raises:
        EmptyPromptError, TextError, UnknownCharacterError: as in
            :meth:`~nanogrpo.tokenizer.CharTokenizer.encode_prompts`.
        OptionError, BlockSizeError, NonFiniteError: as in :func:`nanogrpo.rollout.generate`.
    """
    check_vocabulary(model, tokenizer)
    check_whole("group_size", group_size, 1)
    check_whole("max_new_tokens", max_new_tokens, 1)
    check_whole("seed", seed, -(2**63), 2**64 - 1)
    device = model.head.weight.device
    prompt_ids, prompt_lens = tokenizer.encode_prompts(prompts)
    generator = torch.Generator().manual_seed(seed)
    rollout = generate(
        model,
        prompt_ids.to(device),
        prompt_lens.to(device),
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        uniforms=draw_uniforms(len(prompt_ids) * group_size, max_new_tokens, generator, model.head.weight),
        temperature=temperature,
    )
    return tokenizer.decode_batch(rollout.completion_ids)


def success_counts(
    model: GPT,
    tokenizer: CharTokenizer,
    problems: Sequence[Problem],
    reward_fn: RewardFunction,
    *,
    group_size: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[int]:
    """How many of ``group_size`` completions of each problem get the full reward of 1.

    Args:
        temperature: 1 measures the policy that is trained; 0 the greedy answer (one completion is enough).

    Raises:
        RowError, EmptyPromptError: as in :func:`nanogrpo.rewards.check_rows`.
        RewardError: as in :func:`nanogrpo.rewards.call_reward`.
        OptionError, BlockSizeError, NonFiniteError: as in :func:`nanogrpo.rollout.generate`.
    """
    check_rows(problems)
    texts = sample_texts(
        model,
        tokenizer,
        [row["prompt"] for row in problems],
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    rewards = call_reward(reward_fn, problems, texts)
    return (rewards.view(len(problems), group_size) >= 1).sum(1).tolist()


@torch.no_grad()
def success_probability(
    model: GPT, tokenizer: CharTokenizer, problems: Sequence[Problem], batch_size: int = 512
) -> float:
    r"""What :func:`success_counts` estimates, without the noise of sampling, where one answer is right.

    The mean over problems of :math:`\prod_t \pi(a_t \mid q, a_{<t})`, the probability that the policy writes
    the row's ``answer`` and then ends, at temperature 1. For a reward that more than one completion can earn
    it is a lower bound only.

    Raises:
        RowError, EmptyPromptError: as in :func:`nanogrpo.rewards.check_rows`, or a row has no ``answer``.
        TextError: an ``answer`` is no text.
        BlockSizeError: a prompt with its answer does not fit the model.
        NonFiniteError: the model's log-probs are NaN or infinite.
    """
    check_vocabulary(model, tokenizer)
    check_rows(problems)
    check_whole("batch_size", batch_size, 1)
    if "answer" not in problems[0]:
        raise RowError(f"row 0 lacks answer; it has {', '.join(problems[0])}")
    device, total = model.head.weight.device, 0.0
    for start in range(0, len(problems), batch_size):
        rows = problems[start : start + batch_size]
        prompt_ids, prompt_lens = tokenizer.encode_prompts([row["prompt"] for row in rows])
        ids, mask = tokenizer.encode_completions([row["answer"] for row in rows])
        batch = (prompt_ids.to(device), prompt_lens.to(device), ids.to(device))
        logprobs = token_logprobs(model, *batch).masked_fill(~mask.to(device), 0)  # (B, T)
        total += logprobs.sum(1).exp().sum().item()
    if not math.isfinite(total):
        raise NonFiniteError(f"the mean probability is {total}: the model's logits are NaN or infinite")
    return total / len(problems)


def pass_at_k(n: int, c: int, k: int) -> float:
    r"""Probability that at least one of ``k`` samples is right, estimated from ``c`` right ones among ``n``.

    :math:`1 - \binom{n-c}{k} / \binom{n}{k}` (Chen et al., arXiv:2107.03374), unbiased for ``k`` draws from
    the policy. Plugging :math:`\hat p = c/n` into :math:`1 - (1 - p)^k` would be biased.

    Raises:
        OptionError: a number is no whole one, or not ``0 <= c <= n`` or not ``1 <= k <= n``.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    for name, value in (("n", n), ("c", c), ("k", k)):
        check_whole(name, value)
    if not (0 <= c <= n and 1 <= k <= n):
        raise OptionError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n; got n={n}, c={c}, k={k}")
    return 1 - comb(n - c, k) / comb(n, k)
