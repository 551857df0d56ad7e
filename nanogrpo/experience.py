"""What a step learns from: prompts are drawn, answered in groups, and the answers are rewarded.

    **prompt -> rollout -> reward** -> advantage -> loss -> step

GRPO and PPO share this file. Nothing here has a gradient.

Legend: P prompts, G completions a prompt, B = P*G rows, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogrpo.errors import OptionError
from nanogrpo.model import GPT
from nanogrpo.packed import completion_logits, generate
from nanogrpo.rollout import Rollout, draw_uniforms, logprobs_of
from nanogrpo.tasks import Problem, RewardFunction, call_reward
from nanogrpo.tokenizer import CharTokenizer

# Tokens of one forward and backward pass: on a CPU its activations should fit in the cache, a GPU wants many.
MICROBATCH_TOKENS = {"cpu": 2048, "cuda": 1 << 18}


class Sampling(Protocol):
    """The options of a trainer that are read here."""

    group_size: int
    max_new_tokens: int
    temperature: float


class Drawing(Sampling, Protocol):
    """The options that are read by :func:`collect`."""

    prompts_per_step: int
    max_resamples: int
    reward_weights: Sequence[float] | None


@dataclass(frozen=True)
class Groups:
    """Groups of completions and what they earned.

    Attributes:
        rollout: P prompts with G completions each.
        rewards: (P, G), the weighted sum of what the reward functions gave.
        parts: (P, G) of each reward function by its name; empty where there is only one.
    """

    rollout: Rollout
    rewards: Tensor
    parts: dict[str, Tensor]

    @property
    def tied(self) -> Tensor:
        """(P,), true for a group whose rewards are all equal; found by ``max == min``, not by a small eps."""
        return self.rewards.amax(1) == self.rewards.amin(1)

    def metrics(self, config: Drawing) -> dict[str, float]:
        """What :func:`describe` says, with the mean of each reward function and the groups that it took."""
        means = {f"rewards/{name}/mean": part.mean().item() for name, part in self.parts.items()}
        drawn = {"groups_sampled": len(self.rewards)} if config.max_resamples else {}
        return {**describe(self.rollout, self.rewards), **means, **drawn}

    def pick(self, prompts: Tensor) -> "Groups":
        """The groups of some prompts, by their indices."""
        parts = {name: part[prompts] for name, part in self.parts.items()}
        return Groups(self.rollout.pick(prompts), self.rewards[prompts], parts)


def collect(
    model: GPT,
    tokenizer: CharTokenizer,
    problems: Sequence[Problem],
    reward_fn: RewardFunction | Sequence[RewardFunction],
    config: Drawing,
    generator: torch.Generator,
) -> tuple[Groups, Groups]:
    """Draw prompts and answer them; with ``max_resamples``, draw others in place of groups without signal.

    Dynamic sampling (DAPO, arXiv 2503.14476): a group whose rewards are all equal has no signal and is put
    aside, and as many new prompts are drawn, for at most ``max_resamples`` further rounds. If groups with a
    signal are still missing then, groups without one fill their places, where they count as zeros.

    Args:
        model: the policy.
        tokenizer: its alphabet.
        problems: no prompt is drawn twice in a step.
        reward_fn: one function or several, see :func:`rewards_of`.
        config: ``prompts_per_step`` is P; where there are fewer problems, all are drawn.
        generator: of all random draws.

    Returns:
        What to train on, and everything that was sampled. Report the rewards of the second; those of the
        first are of prompts chosen for being neither too easy nor too hard.

    Raises:
        RewardError, BlockSizeError, OptionError: as in the functions called here.
    """
    waiting = torch.randperm(len(problems), generator=generator).tolist()
    rounds: list[Groups] = []
    missing = config.prompts_per_step
    while missing and waiting and len(rounds) <= config.max_resamples:
        rows, waiting = [problems[i] for i in waiting[:missing]], waiting[missing:]
        rollout = sample(model, tokenizer, [row["prompt"] for row in rows], config, generator)
        completions = tokenizer.decode_batch(rollout.completion_ids)
        rounds.append(Groups(rollout, *rewards_of(reward_fn, config.reward_weights, rows, completions)))
        missing -= int((~rounds[-1].tied).sum())
    everything = join(rounds, tokenizer.pad_id)
    if len(rounds) == 1:
        return everything, everything
    best = everything.tied.long().argsort(stable=True)  # (P,), those with a signal first, as they were drawn
    return everything.pick(best[: config.prompts_per_step]), everything


def sample(
    model: GPT, tokenizer: CharTokenizer, prompts: list[str], config: Sampling, generator: torch.Generator
) -> Rollout:
    """``group_size`` completions for each prompt."""
    weights = model.head.weight
    prompt_ids, prompt_lens = tokenizer.encode_prompts(prompts)
    return generate(
        model,
        prompt_ids.to(weights.device),
        prompt_lens.to(weights.device),
        group_size=config.group_size,
        max_new_tokens=config.max_new_tokens,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        uniforms=draw_uniforms(len(prompts) * config.group_size, config.max_new_tokens, generator, weights),
        temperature=config.temperature,
    )


def rewards_of(
    reward_fn: RewardFunction | Sequence[RewardFunction],
    weights: Sequence[float] | None,
    rows: Sequence[Problem],
    completions: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of one or more reward functions, and, of several, what each gave: all (P, G).

    A function of weight 0 is only watched: give the judge beside the reward model that stands for it.

    Raises:
        OptionError: as many weights as functions are needed, and names that differ.
        RewardError: see :func:`~nanogrpo.tasks.call_reward`.
    """
    functions = [reward_fn] if callable(reward_fn) else list(reward_fn)
    names = [getattr(function, "__name__", type(function).__name__) for function in functions]
    weights = [1.0] * len(functions) if weights is None else weights
    if not functions or len(weights) != len(functions):
        raise OptionError(
            f"{len(weights)} reward_weights for {len(functions)} reward functions; give each one"
        )
    if len(set(names)) < len(names):
        raise OptionError(f"the reward functions are called {names}; give each a name of its own for the log")
    parts = [call_reward(function, rows, completions).view(len(rows), -1) for function in functions]  # (P, G)
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return total, dict(zip(names, parts, strict=True)) if len(parts) > 1 else {}


def join(rounds: Sequence[Groups], pad_id: int) -> Groups:
    """The groups of several rounds as one batch, padded to the longest."""
    if len(rounds) == 1:
        return rounds[0]
    rollouts = [part.rollout for part in rounds]
    filler = {"prompt_ids": pad_id, "completion_ids": pad_id, "completion_mask": False, "logprobs": 0.0}
    tensors = {}
    for name in (field.name for field in fields(Rollout) if field.name != "group_size"):
        parts = [getattr(rollout, name) for rollout in rollouts]
        if name in filler:
            width = max(part.shape[1] for part in parts)
            parts = [F.pad(part, (0, width - part.shape[1]), value=filler[name]) for part in parts]
        tensors[name] = torch.cat(parts)
    scores = {name: torch.cat([part.parts[name] for part in rounds]) for name in rounds[0].parts}
    rewards = torch.cat([part.rewards for part in rounds])
    return Groups(replace(rollouts[0], **tensors), rewards, scores)


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
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)  # of which 32 bits are used
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
        numbers = of_part(part).where(part.completion_mask, 0.0)  # (b, t)
        groups[prompts, :, : numbers.shape[1]] = numbers.view(len(prompts), rollout.group_size, -1)
    return result


def logprobs_under(model: GPT, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Log-probs of the sampled tokens under another model, in nats, ``(B, T)``; 0 where masked."""

    def of_part(part: Rollout) -> Tensor:
        logits = completion_logits(model, part.prompt_ids, part.prompt_lens, part.completion_ids)  # (b, t, V)
        return logprobs_of(logits, part.completion_ids, temperature)

    return in_parts(rollout, of_part)


def describe(rollout: Rollout, rewards: Tensor) -> dict[str, float]:
    """Metrics of what was sampled.

    ``entropy`` is the mean of ``-log p`` over the sampled tokens: an unbiased estimate, in nats a token, of
    the entropy of the policy, at no cost.
    """
    lengths = rollout.lengths.float()
    return {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std().item(),
        "frac_reward_zero_std": rewards.amax(1).eq(rewards.amin(1)).float().mean().item(),
        "completions/mean_length": lengths.mean().item(),
        "completions/clipped_ratio": rollout.truncated.float().mean().item(),
        "entropy": (-rollout.logprobs.sum() / rollout.completion_mask.sum()).item(),
    }
