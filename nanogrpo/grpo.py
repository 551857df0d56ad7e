"""GRPO: prompt -> rollout -> reward -> advantage -> loss -> step, once a step, in this order in this file.

What it leaves out, and why: a schedule of the learning rate (runs here are short), several devices (one
model fits in a cache), a separate sampling engine (what samples is the policy that is trained, or a copy of
it, see :mod:`nanogrpo.sampler`).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from nanogrpo.advantages import baseline_advantages, check_baseline, overlong_penalty
from nanogrpo.errors import GroupSizeError, OptionError
from nanogrpo.kl import entropy
from nanogrpo.losses import KL_ESTIMATORS, Denominators, aggregate, grpo_loss
from nanogrpo.model import GPT
from nanogrpo.offpolicy import off_policy_mask
from nanogrpo.options import option
from nanogrpo.packed import completion_hidden
from nanogrpo.rewards import Problem, RewardFunction, check_rows
from nanogrpo.rollout import logprobs_of
from nanogrpo.sampler import adapt_entropy, believe, sampling_config, sampling_model, weigh
from nanogrpo.state import TrainState
from nanogrpo.step import Batch, add_reference, collect, describe, update_all
from nanogrpo.step import sample as sample  # part of this module, too
from nanogrpo.surrogates import per_token
from nanogrpo.together import check_config, check_reference, check_state, check_vocabulary
from nanogrpo.tokenizer import CharTokenizer
from nanogrpo.variants import VariantConfig


@dataclass(frozen=True)
class GRPOConfig(VariantConfig):
    """Options of :func:`train`; names as in TRL where it has them."""

    group_size: int = option(
        16,
        help="G, completions a prompt (TRL: ``num_generations``); each is compared with the others.",
        low=2,
        high=1_000_000,
        error=GroupSizeError,
    )
    baseline: Literal["group", "leave_one_out", "batch", "none", "length"] = option(
        "group",
        help="what a reward is compared with, see :func:`~nanogrpo.advantages.baseline_advantages`.",
    )
    scale_rewards: Literal["group", "batch", "global", "none", "mean"] = option(
        "group", help="whose standard deviation, or ``mean``, it is divided by, see the same function."
    )
    correction: int = option(
        0,
        help="of that deviation: 0 divides by G, 1 by G - 1 (Bessel).",
        low=0,
        high=1,
        needs="scale_rewards=group|batch|global",
    )
    overlong_buffer: int = option(
        0,
        help="so many of the last tokens cost up to 1 of the reward, see "
        ":func:`~nanogrpo.advantages.overlong_penalty`; 0 for none.",
        low=0,
    )
    mask_truncated_completions: bool = option(
        False, help="leave truncated completions out of the loss; their rewards still count for the others."
    )
    max_resamples: int = option(  # type: ignore[misc]  # a constant of the base class
        0,
        help="rounds in which groups without signal are replaced, see :func:`~nanogrpo.step.collect`; "
        "0 for none.",
        low=0,
    )
    kl_in: Literal["loss", "reward"] = option(
        "loss",
        help="where KL is charged: in the ``loss`` token by token, or in the ``reward``, where a completion "
        "pays for the sum of its tokens before it is compared with its group.",
        needs="beta",
    )
    num_iterations: int = option(
        1, help="times that each batch of samples is gone through (the paper's mu).", low=1
    )

    def check(self) -> None:
        """What options must say of each other."""
        super().check()
        check_baseline(self.baseline, self.scale_rewards)
        if self.overlong_buffer > self.max_new_tokens:
            raise OptionError(
                f"overlong_buffer={self.overlong_buffer} is above max_new_tokens={self.max_new_tokens}: "
                "it is a part of these tokens"
            )


def train(
    model: GPT,
    tokenizer: CharTokenizer,
    problems: Sequence[Problem],
    reward_fn: RewardFunction | Sequence[RewardFunction],
    config: GRPOConfig,
    reference: GPT | None = None,
    state: TrainState | None = None,
) -> Iterator[dict[str, float]]:
    """Train ``model`` in place; yield one dict of metrics a step, named as TRL names them.

    Nothing runs until the first row is asked for. Leave the loop, or press Ctrl-C in it, whenever you like:
    the model stands as the last finished update left it. To see what was sampled as well, make the steps
    yourself with :func:`~nanogrpo.grpo.step`.

    ``reward`` and what stands beside it describe all that was sampled; the loss and what stands beside it are
    means over the updates of the step. ``kl``, in nats a token, is the estimate that the loss charges for;
    where it charges for none, it is k3 at the time of sampling.

    Args:
        model: the policy, usually after :mod:`nanogrpo.sft`.
        tokenizer: its alphabet.
        problems: rows with a ``prompt`` and the columns that ``reward_fn`` asks for.
        reward_fn: a rule or a trained reward model, see :mod:`nanogrpo.tasks`; or several, see
            :func:`~nanogrpo.step.rewards_of`.
        config: the options.
        reference: the frozen policy of the KL penalty; a copy of ``model`` if there is none and ``beta`` is
            not 0. With ``beta=0`` a reference that is handed in is for measuring ``kl`` only.
        state: to go on with a run that was saved; then hand in its ``reference`` as well.

    Raises:
        OptionError: the arguments do not belong together, see :mod:`nanogrpo.together`.
        RowError, EmptyPromptError: the problems are no rows, see :func:`~nanogrpo.rewards.check_rows`.
        RewardError: the reward function returned the wrong number of values or one that is not finite.
        BlockSizeError: a prompt leaves no room for ``max_new_tokens``.
        NonFiniteError: a gradient, a weight or a logit is NaN or infinite; the message says whether the
            weights are as they were before that step.
    """
    check_config(config, GRPOConfig)
    check_vocabulary(model, tokenizer)
    if config.beta and reference is None:
        reference = copy.deepcopy(model).requires_grad_(False)
    check_rows(problems)
    state = state or TrainState.start(model.parameters(), config.learning_rate, config.seed)
    check_state(state, model)
    while state.step < config.max_steps:
        metrics, _ = step(model, tokenizer, problems, reward_fn, config, state, reference)
        yield metrics


def step(
    model: GPT,
    tokenizer: CharTokenizer,
    problems: Sequence[Problem],
    reward_fn: RewardFunction | Sequence[RewardFunction],
    config: GRPOConfig,
    state: TrainState,
    reference: GPT | None = None,
) -> tuple[dict[str, float], Batch]:
    """One step: its metrics, and the batch that it learned from. Arguments, errors: as for :func:`train`."""
    check_reference(reference, model)
    sampler = sampling_model(model, config, state)
    batch, sampled = collect(
        sampler, tokenizer, problems, reward_fn, sampling_config(config), state.generator
    )
    batch, mismatch = believe(batch, model, config)
    batch, kl = add_reference(batch, reference, config)
    batch, advantages = compute_advantages(batch, config)
    batch, weights = weigh(batch, model, config, state)
    price = adapt_entropy(batch, config, state)
    if price:
        config = replace(config, **price)  # type: ignore[arg-type]  # of one float
    names = ("loss", "clip_ratio/region_mean", *(["kl"] if config.kl_in_loss else []))
    loss = partial(compute_loss, model, config)
    updates = update_all(
        model, batch, loss, [state.optimizer], config, config.num_iterations, state.step + 1, names
    )
    now = state.count(sampled.rollout.completion_mask)
    return now | describe(sampled, config) | mismatch | advantages | weights | price | kl | updates, batch


def compute_advantages(batch: Batch, config: GRPOConfig) -> tuple[Batch, dict[str, float]]:
    """The batch with advantages ``(B,)``, and the metric of how large they are.

    With the KL in the reward, a completion's reward loses ``beta`` times the sum of its tokens' estimates,
    and the baseline is the mean of these penalized rewards: what all members of a group pay alike cancels,
    and who strays farther than the group is pushed back. Prefer ``scale_rewards="none"`` then. Divided by
    the group's standard deviation, small differences in KL are blown up to size one where all answers are
    right, whatever ``beta`` is.
    """
    rollout, rewards = batch.rollout, batch.rewards
    if config.overlong_buffer:
        penalty = overlong_penalty(rollout.lengths, config.max_new_tokens, config.overlong_buffer)  # (B,)
        rewards = rewards + penalty.to(rewards).view_as(rewards)  # (P, G)
    if config.beta and config.kl_in == "reward":
        estimate = KL_ESTIMATORS[config.estimator]
        kl = estimate(rollout.logprobs, batch.ref_logprobs, rollout.completion_mask)  # (B, T)
        rewards = rewards - (config.beta * kl.sum(1)).to(rewards).view_as(rewards)  # (P, G)
    advantages = baseline_advantages(
        rewards, config.baseline, config.scale_rewards, config.std_eps, config.correction,
        lengths=rollout.lengths.view_as(rewards),
    ).to(rollout.logprobs)  # (P, G)  # fmt: skip
    if config.mask_truncated_completions:
        kept = rollout.completion_mask & ~rollout.truncated.unsqueeze(1)  # (B, T)
        rollout = replace(rollout, completion_mask=kept)
    metrics = {"advantage_abs_mean": advantages.abs().mean().item()}
    return replace(batch, rollout=rollout, advantages=advantages.flatten()), metrics


def compute_loss(
    model: GPT, config: VariantConfig, batch: Batch, denominators: Denominators, hidden: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of some groups, and its metrics; both add up over the parts of a batch.

    The old log-probs are those that were kept from sampling, so no second pass is needed for them. PPO takes
    the same loss, and hands in the policy's ``hidden`` states ``(B, T, C)`` where its critic reads them too.
    """
    rollout, mask = batch.rollout, batch.rollout.completion_mask
    if hidden is None:
        hidden = completion_hidden(model, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    logits = model.head(hidden)  # (B, T, V)
    logprobs = logprobs_of(logits, rollout.completion_ids, config.temperature)  # (B, T)
    loss, metrics = grpo_loss(
        logprobs,
        rollout.logprobs,
        batch.ref_logprobs if config.kl_in_loss else None,
        near_policy(batch, logprobs, config),
        mask,
        importance_sampling_level=config.importance_sampling_level,
        surrogate=config.surrogate,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        delta=config.delta,
        beta=config.beta if config.kl_in_loss else 0.0,
        kl_estimator=config.estimator,
        use_bias_correction_kl=config.use_bias_correction_kl,
        aggregation=config.aggregation,
        denominators=denominators,
        **config.shape,
    )
    if batch.careful is not None:
        moved = (logprobs - rollout.logprobs).where(batch.careful, 0.0).abs()  # (B, T)
        loss = loss + aggregate(config.kl_cov_coef * moved, mask, config.aggregation, denominators)
    if config.entropy_coef:
        bonus = config.entropy_coef * entropy(logits / config.temperature, mask)  # (B, T)
        loss = loss - aggregate(bonus, mask, config.aggregation, denominators)
    metrics = {name: metrics[name] for name in ("clip_ratio/region_mean", "kl") if name in metrics}
    return loss, {"loss": loss.detach(), **metrics}


def near_policy(batch: Batch, logprobs: Tensor, config: VariantConfig) -> Tensor:
    """The advantages, 0 for bad completions that the policy has moved away from, where that is asked for."""
    if config.off_policy_mask_threshold is None:
        return batch.advantages
    sampled, mask = batch.sampler_logprobs, batch.rollout.completion_mask
    sampled = batch.rollout.logprobs if sampled is None else sampled
    near = off_policy_mask(logprobs, sampled, batch.advantages, mask, config.off_policy_mask_threshold)
    return per_token(batch.advantages, mask) * near  # (B, T)
