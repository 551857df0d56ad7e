"""GRPO: prompt -> rollout -> reward -> advantage -> loss -> step, once a step, in this order in this file.

What it leaves out, and why: a schedule of the learning rate (runs here are short), several devices (one
model fits in a cache), a separate sampling engine (the policy that samples is the policy that is trained, so
no correction for a mismatch between the two is needed).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogrpo.advantages import group_advantages
from nanogrpo.errors import GroupSizeError, OptionError
from nanogrpo.losses import Denominators, grpo_loss
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW, clip_grad_norm
from nanogrpo.packed import completion_logits, generate
from nanogrpo.rollout import Rollout, draw_uniforms, logprobs_of
from nanogrpo.state import TrainState
from nanogrpo.tasks import Problem, RewardFunction, call_reward
from nanogrpo.tokenizer import CharTokenizer

# Tokens of one forward and backward pass: on a CPU its activations should fit in the cache, a GPU wants many.
MICROBATCH_TOKENS = {"cpu": 2048, "cuda": 1 << 18}


@dataclass(frozen=True)
class GRPOConfig:
    """Options of :func:`train`; names as in TRL where it has them.

    Attributes:
        max_new_tokens: the longest completion; what has not ended by then is truncated.
        group_size: G, completions a prompt (TRL: ``num_generations``).
        prompts_per_step: P, prompts a step.
        learning_rate: of AdamW.
        max_steps: how many steps the generator yields at most.
        temperature: of sampling, and of the log-probs that are trained.
        scale_rewards: ``"group"``, ``"batch"`` or ``"none"``, see
            :func:`~nanogrpo.advantages.group_advantages`.
        aggregation: see :func:`~nanogrpo.losses.aggregate` (TRL: ``loss_type``).
        beta: price of a nat of KL to the reference; 0 needs no reference and loads none.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        clip_low: how far below 1 a ratio may count (TRL: ``epsilon``).
        clip_high: how far above 1 (TRL: ``epsilon_high``).
        num_iterations: updates on each batch of samples (the paper's mu).
        max_grad_norm: the gradient is scaled down to this length.
        seed: of the prompts and of the sampling.
    """

    max_new_tokens: int
    group_size: int = 16
    prompts_per_step: int = 32
    learning_rate: float = 3e-4
    max_steps: int = 200
    temperature: float = 1.0
    scale_rewards: str = "group"
    aggregation: str = "token_mean"
    beta: float = 0.0
    kl_estimator: str = "k3"
    clip_low: float = 0.2
    clip_high: float = 0.2
    num_iterations: int = 1
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.group_size < 2:
            raise GroupSizeError(
                f"group_size={self.group_size}: a completion is compared with the others of its group, "
                "so a group needs at least 2"
            )
        for name in ("max_new_tokens", "prompts_per_step", "num_iterations"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.temperature > 0:
            raise OptionError(f"temperature={self.temperature} must be above 0: greedy groups are all alike")


def train(
    model: GPT,
    tokenizer: CharTokenizer,
    problems: Sequence[Problem],
    reward_fn: RewardFunction,
    config: GRPOConfig,
    reference: GPT | None = None,
    state: TrainState | None = None,
) -> Iterator[dict[str, float]]:
    """Train ``model`` in place; yield one dict of metrics a step, named as TRL names them.

    Nothing runs until the first row is asked for. Leave the loop, or press Ctrl-C in it, whenever you like:
    the model stands as the last finished update left it.

    Args:
        model: the policy, usually after :mod:`nanogrpo.sft`.
        tokenizer: its alphabet.
        problems: rows with a ``prompt`` and the columns that ``reward_fn`` asks for.
        reward_fn: see :mod:`nanogrpo.tasks`.
        config: the options.
        reference: the frozen policy of the KL penalty; a copy of ``model`` if there is none and ``beta`` is
            not 0.
        state: to go on with a run that was saved; then hand in its ``reference`` as well.

    Raises:
        RewardError: the reward function returned the wrong number of values or one that is not finite.
        BlockSizeError: a prompt leaves no room for ``max_new_tokens``.
        NonFiniteError: the gradient is NaN or infinite; the weights are as they were before that update.
    """
    if config.beta and reference is None:
        reference = copy.deepcopy(model).requires_grad_(False)
    state = state or TrainState.start(model.parameters(), config.learning_rate, config.seed)
    optimizer, generator = state.optimizer, state.generator
    for step in range(state.step + 1, config.max_steps + 1):
        order = torch.randperm(len(problems), generator=generator)
        rows = [problems[i] for i in order[: config.prompts_per_step]]
        rollout = sample(model, tokenizer, [row["prompt"] for row in rows], config, generator)
        completions = tokenizer.decode_batch(rollout.completion_ids)
        rewards = call_reward(reward_fn, rows, completions).view(len(rows), config.group_size)  # (P, G)
        advantages = group_advantages(rewards, config.scale_rewards).to(rollout.logprobs)  # (P, G)
        for _ in range(config.num_iterations):
            update = improve(model, reference, optimizer, rollout, advantages, config, f"GRPO step {step}")
        state.step, state.num_tokens = step, state.num_tokens + int(rollout.completion_mask.sum())
        yield {"step": step, "num_tokens": state.num_tokens, **describe(rollout, rewards), **update}


def sample(
    model: GPT, tokenizer: CharTokenizer, prompts: list[str], config: GRPOConfig, generator: torch.Generator
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


def improve(
    model: GPT,
    reference: GPT | None,
    optimizer: AdamW,
    rollout: Rollout,
    advantages: Tensor,
    config: GRPOConfig,
    where: str,
) -> dict[str, float]:
    """One update of the policy on one rollout; its metrics.

    The old log-probs are those that were kept from sampling, so no second pass is needed for them. Without a
    KL penalty, a group without signal (all advantages 0) has gradient 0 and is not computed; it still counts
    in the denominators, so the result is exactly that of the whole batch. The gradient is summed over
    microbatches, which fit into a processor's cache and keep the peak of memory low.
    """
    denominators = Denominators.of(rollout.completion_mask, config.max_new_tokens)
    computed = torch.ones_like(advantages[:, 0]) if config.beta else advantages.ne(0).any(1)
    sums = {"loss": 0.0, "clip_ratio/region_mean": 0.0} | ({"kl": 0.0} if config.beta else {})
    optimizer.zero_grad()
    for prompts in microbatches(rollout, computed.nonzero().squeeze(1)):
        part = rollout.pick(prompts)
        loss, metrics = loss_of(model, reference, part, advantages[prompts], config, denominators)
        loss.backward()
        for name in sums:
            sums[name] += (loss.detach() if name == "loss" else metrics[name]).item()
    grad_norm = clip_grad_norm(optimizer.params, config.max_grad_norm, where)
    optimizer.step()  # also where no group has a signal: Adam moves on with what it remembers
    return {**sums, "grad_norm": grad_norm}


def microbatches(rollout: Rollout, prompts: Tensor) -> tuple[Tensor, ...]:
    """Indices of prompts ``(P,)`` in parts of about ``MICROBATCH_TOKENS``, alike in length to pad little."""
    if not len(prompts):
        return ()
    longest = rollout.lengths.view(-1, rollout.group_size).amax(1)  # (P,)
    tokens = MICROBATCH_TOKENS["cuda" if longest.is_cuda else "cpu"]
    size = max(1, tokens // (rollout.group_size * rollout.completion_ids.shape[1]))
    return prompts[longest[prompts].argsort()].split(size)


def loss_of(
    model: GPT,
    reference: GPT | None,
    part: Rollout,
    advantages: Tensor,
    config: GRPOConfig,
    denominators: Denominators,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of some groups, and its metrics; both add up over the parts of a batch."""
    batch = (part.prompt_ids, part.prompt_lens, part.completion_ids)
    logits = completion_logits(model, *batch)  # (B, T, V)
    logprobs = logprobs_of(logits, part.completion_ids, config.temperature)  # (B, T)
    ref_logprobs = None
    if config.beta:
        with torch.no_grad():
            ref_logits = completion_logits(reference, *batch)
            ref_logprobs = logprobs_of(ref_logits, part.completion_ids, config.temperature)
    return grpo_loss(
        logprobs,
        part.logprobs,
        ref_logprobs,
        advantages.flatten(),
        part.completion_mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        beta=config.beta,
        kl_estimator=config.kl_estimator,
        aggregation=config.aggregation,
        denominators=denominators,
    )


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
