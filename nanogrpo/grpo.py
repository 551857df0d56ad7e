"""GRPO: prompt -> rollout -> reward -> advantage -> loss -> step, once a step, in this order in this file.

What it leaves out, and why: a schedule of the learning rate (runs here are short), several devices (one
model fits in a cache), a separate sampling engine (the policy that samples is the policy that is trained, so
no correction for a mismatch between the two is needed).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanogrpo.advantages import baseline_advantages, overlong_penalty
from nanogrpo.errors import GroupSizeError, OptionError, check_choice
from nanogrpo.experience import Groups, collect, logprobs_under, microbatches, minibatches
from nanogrpo.experience import describe as describe  # part of this module, too
from nanogrpo.experience import sample as sample
from nanogrpo.kl import entropy, kl_k3
from nanogrpo.losses import AGGREGATIONS, KL_ESTIMATORS, Denominators, aggregate, grpo_loss
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW, clip_grad_norm
from nanogrpo.packed import completion_logits
from nanogrpo.rollout import Rollout, logprobs_of
from nanogrpo.state import TrainState
from nanogrpo.tasks import Problem, RewardFunction
from nanogrpo.tokenizer import CharTokenizer


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
        advantage: what a reward is compared with, ``"group"``, ``"leave_one_out"``, ``"batch"`` or
            ``"none"``, see :func:`~nanogrpo.advantages.baseline_advantages`.
        scale_rewards: whose standard deviation it is divided by: ``"group"``, ``"batch"`` or ``"none"``.
        reward_weights: of several reward functions, one each; None for all 1.
        overlong_buffer: so many of the last tokens cost up to 1 of the reward, see
            :func:`~nanogrpo.advantages.overlong_penalty`; 0 for none.
        mask_truncated_completions: leave truncated completions out of the loss; their rewards still count
            for the others.
        max_resamples: rounds in which groups without signal are replaced, see
            :func:`~nanogrpo.experience.collect`; 0 for none.
        aggregation: see :func:`~nanogrpo.losses.aggregate` (TRL: ``loss_type``).
        beta: price of a nat of KL to the reference; 0 needs no reference and loads none.
        kl_in: ``"loss"``, a price for each token; or ``"reward"``, where a completion pays for the sum of its
            tokens before it is compared with its group.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``; None for k3 in the loss, and k1 in the reward, where
            only k1 has the right gradient.
        entropy_coef: reward for a nat of entropy, from the full logits, in the loss.
        clip_low: how far below 1 a ratio may count (TRL: ``epsilon``).
        clip_high: how far above 1 (TRL: ``epsilon_high``).
        num_iterations: times that each batch of samples is gone through (the paper's mu).
        num_mini_batches: updates each time. A minibatch holds whole groups.
        max_grad_norm: the gradient is scaled down to this length.
        seed: of the prompts, the sampling and the minibatches.
    """

    max_new_tokens: int
    group_size: int = 16
    prompts_per_step: int = 32
    learning_rate: float = 3e-4
    max_steps: int = 200
    temperature: float = 1.0
    advantage: str = "group"
    scale_rewards: str = "group"
    reward_weights: tuple[float, ...] | None = None
    overlong_buffer: int = 0
    mask_truncated_completions: bool = False
    max_resamples: int = 0
    aggregation: str = "token_mean"
    beta: float = 0.0
    kl_in: str = "loss"
    kl_estimator: str | None = None
    entropy_coef: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    num_iterations: int = 1
    num_mini_batches: int = 1
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.group_size < 2:
            raise GroupSizeError(
                f"group_size={self.group_size}: a completion is compared with the others of its group, "
                "so a group needs at least 2"
            )
        least = {"max_new_tokens": 1, "prompts_per_step": 1, "num_iterations": 1, "num_mini_batches": 1}
        for name, low in (least | {"max_resamples": 0, "overlong_buffer": 0}).items():
            if getattr(self, name) < low:
                raise OptionError(f"{name}={getattr(self, name)} must be at least {low}")
        for name, most in (("num_mini_batches", "prompts_per_step"), ("overlong_buffer", "max_new_tokens")):
            if getattr(self, name) > getattr(self, most):
                raise OptionError(f"{name}={getattr(self, name)} is above {most}={getattr(self, most)}")
        if not self.temperature > 0:
            raise OptionError(f"temperature={self.temperature} must be above 0: greedy groups are all alike")
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        check_choice("kl_in", self.kl_in, ("loss", "reward"))
        check_choice("kl_estimator", self.kl_estimator, (*KL_ESTIMATORS, None))
        baseline_advantages(torch.zeros(1, 2), self.advantage, self.scale_rewards)  # do the two go together?

    @property
    def estimator(self) -> str:
        """The KL estimator that is used."""
        return self.kl_estimator or ("k1" if self.kl_in == "reward" else "k3")

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss needs the reference."""
        return bool(self.beta) and self.kl_in == "loss"


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
    the model stands as the last finished update left it.

    ``reward`` and what stands beside it describe all that was sampled; the loss and what stands beside it are
    means over the updates of the step. ``kl``, in nats a token, is the estimate that the loss charges for;
    where it charges for none, it is k3 at the time of sampling.

    Args:
        model: the policy, usually after :mod:`nanogrpo.sft`.
        tokenizer: its alphabet.
        problems: rows with a ``prompt`` and the columns that ``reward_fn`` asks for.
        reward_fn: a rule or a trained reward model, see :mod:`nanogrpo.tasks`; or several, see
            :func:`~nanogrpo.experience.rewards_of`.
        config: the options.
        reference: the frozen policy of the KL penalty; a copy of ``model`` if there is none and ``beta`` is
            not 0. With ``beta=0`` a reference that is handed in is for measuring ``kl`` only.
        state: to go on with a run that was saved; then hand in its ``reference`` as well.

    Raises:
        RewardError: the reward function returned the wrong number of values or one that is not finite.
        BlockSizeError: a prompt leaves no room for ``max_new_tokens``.
        NonFiniteError: the gradient is NaN or infinite; the weights are as they were before that update.
    """
    if config.beta and reference is None:
        reference = copy.deepcopy(model).requires_grad_(False)
    state = state or TrainState.start(model.parameters(), config.learning_rate, config.seed)
    for step in range(state.step + 1, config.max_steps + 1):
        groups, sampled = collect(model, tokenizer, problems, reward_fn, config, state.generator)
        advantages, judged = compare(groups, reference, config)  # (P, G)
        rollout = groups.rollout
        if config.mask_truncated_completions:
            kept = rollout.completion_mask & ~rollout.truncated.unsqueeze(1)  # (B, T)
            rollout = replace(rollout, completion_mask=kept)
        passes = (config.num_iterations, config.num_mini_batches, config.seed)
        updates = [
            improve(
                model, reference, state.optimizer, rollout.pick(prompts), advantages[prompts], config,
                f"GRPO step {step}",
            )
            for prompts in minibatches(len(advantages), *passes, step)
        ]  # fmt: skip
        update = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        state.step, state.num_tokens = step, state.num_tokens + int(sampled.rollout.completion_mask.sum())
        yield {"step": step, "num_tokens": state.num_tokens, **sampled.metrics(config), **judged, **update}


def compare(groups: Groups, reference: GPT | None, config: GRPOConfig) -> tuple[Tensor, dict[str, float]]:
    """Advantages ``(P, G)``, and metrics of how they came about.

    With the KL in the reward, a completion's reward loses ``beta`` times the sum of its tokens' estimates,
    and the baseline is the mean of these penalized rewards: what all members of a group pay alike cancels,
    and who strays farther than the group is pushed back. Prefer ``scale_rewards="none"`` then. Divided by
    the group's standard deviation, small differences in KL are blown up to size one where all answers are
    right, whatever ``beta`` is.
    """
    rollout, rewards, kl_metric = groups.rollout, groups.rewards, {}
    if config.overlong_buffer:
        fines = overlong_penalty(rollout.lengths, config.max_new_tokens, config.overlong_buffer)  # (B,)
        rewards = rewards + fines.to(rewards).view_as(rewards)  # (P, G)
    if reference is not None and not config.kl_in_loss:
        ref_logprobs = logprobs_under(reference, rollout, config.temperature)  # (B, T)
        sampled = (rollout.logprobs, ref_logprobs, rollout.completion_mask)
        kl_metric = {"kl": (kl_k3(*sampled).sum() / rollout.completion_mask.sum()).item()}
        if config.beta:
            fines = config.beta * KL_ESTIMATORS[config.estimator](*sampled).sum(1)  # (B,)
            rewards = rewards - fines.to(rewards).view_as(rewards)  # (P, G)
    advantages = baseline_advantages(rewards, config.advantage, config.scale_rewards).to(rollout.logprobs)
    return advantages, {"advantage_abs_mean": advantages.abs().mean().item(), **kl_metric}


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
    KL penalty or an entropy bonus, a group without signal (all advantages 0) has gradient 0 and is not
    computed; it still counts in the denominators, so the result is exactly that of the whole batch. The
    gradient is summed over microbatches, which fit into a processor's cache and keep the peak of memory low.
    """
    denominators = Denominators.of(rollout.completion_mask, config.max_new_tokens)
    computed = rollout.lengths.view_as(advantages).ne(0).any(1)  # (P,), groups that are not all left out
    if not (config.kl_in_loss or config.entropy_coef):
        computed = computed & advantages.ne(0).any(1)
    sums = {"loss": 0.0, "clip_ratio/region_mean": 0.0} | ({"kl": 0.0} if config.kl_in_loss else {})
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
    if config.kl_in_loss:
        with torch.no_grad():
            ref_logits = completion_logits(reference, *batch)
            ref_logprobs = logprobs_of(ref_logits, part.completion_ids, config.temperature)
    loss, metrics = grpo_loss(
        logprobs,
        part.logprobs,
        ref_logprobs,
        advantages.flatten(),
        part.completion_mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        beta=config.beta if config.kl_in_loss else 0.0,
        kl_estimator=config.estimator,
        aggregation=config.aggregation,
        denominators=denominators,
    )
    if config.entropy_coef:
        bonus = config.entropy_coef * entropy(logits / config.temperature, part.completion_mask)  # (B, T)
        loss = loss - aggregate(bonus, part.completion_mask, config.aggregation, denominators)
    return loss, metrics
