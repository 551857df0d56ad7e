"""PPO: prompt -> rollout -> reward -> value -> advantage -> loss -> step, once a step, in this order here.

What differs from :mod:`nanogrpo.grpo`: a critic says what was to be expected before each token, so each token
gets an advantage of its own and a prompt needs no group. Sampling, prompts and the policy's loss are GRPO's.

What it leaves out, and why: a schedule of the learning rate, several devices, a separate sampling engine (as
in ``grpo.py``), an adaptive price of KL and early stopping by KL (one more loop to tune in a run of seconds),
and a reward for ending in time (the reward function can say so itself).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nanogrpo.advantages import gae, group_advantages, token_rewards, whiten
from nanogrpo.critic import explained_variance, new_critic, values_before, values_of
from nanogrpo.errors import GroupSizeError, OptionError, check_choice
from nanogrpo.experience import Groups, collect, logprobs_under, microbatches, minibatches
from nanogrpo.kl import entropy, kl_k1, kl_k3
from nanogrpo.losses import AGGREGATIONS, Denominators, aggregate, grpo_loss, value_loss
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW, clip_grad_norm
from nanogrpo.packed import completion_hidden
from nanogrpo.rollout import Rollout, logprobs_of
from nanogrpo.state import TrainState
from nanogrpo.tasks import Problem, RewardFunction
from nanogrpo.tokenizer import CharTokenizer


@dataclass(frozen=True)
class PPOConfig:
    """Options of :func:`train`; names as in TRL where it has them, and as in ``GRPOConfig``.

    Attributes:
        max_new_tokens: the longest completion; what has not ended by then is truncated.
        group_size: G, completions a prompt; 1 is enough with a critic.
        prompts_per_step: P, prompts a step.
        learning_rate: of the policy's AdamW.
        critic_learning_rate: of the critic's AdamW.
        max_steps: how many steps the generator yields at most.
        temperature: of sampling, and of the log-probs that are trained.
        advantage: ``"gae"``; ``"return_minus_value"``, the return of the whole completion less the value of
            its prompt, one number for all its tokens; or ``"group"``, GRPO's, without a critic.
        gamma: discount a token.
        lam: GAE's lambda: 0 trusts the critic, 1 the sampled rewards.
        whiten_advantages: see :func:`~nanogrpo.advantages.whiten`; over the batch, before it is cut.
        reward_weights: of several reward functions, one each; None for all 1.
        scale_rewards: of ``advantage="group"``, see :func:`~nanogrpo.advantages.group_advantages`.
        aggregation: of the policy's loss, see :func:`~nanogrpo.losses.aggregate`.
        beta: price of a nat of KL to the reference, taken off the reward of each token (TRL: ``kl_coef``).
        clip_low: how far below 1 a ratio may count (TRL: ``cliprange``).
        clip_high: how far above 1.
        entropy_coef: reward for a nat of entropy, from the full logits, in the loss.
        critic: ``"separate"`` or ``"head"``, see :func:`~nanogrpo.critic.new_critic`.
        vf_coef: weight of the value loss. For a separate critic Adam divides it out again, but for the
            clipping of its gradient.
        cliprange_value: how far a value may move from what it was when the batch was sampled; None: freely.
        value_warmup_steps: first steps in which only the critic learns (only its own layer, with ``"head"``).
        num_ppo_epochs: times that each batch of samples is gone through.
        num_mini_batches: updates each time. A minibatch holds whole groups.
        max_grad_norm: the gradient is scaled down to this length, policy and critic each for itself.
        seed: of the prompts, the sampling and the minibatches.
    """

    max_new_tokens: int
    group_size: int = 16
    prompts_per_step: int = 32
    learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    max_steps: int = 200
    temperature: float = 1.0
    advantage: str = "gae"
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    reward_weights: tuple[float, ...] | None = None
    scale_rewards: str = "group"
    aggregation: str = "token_mean"
    beta: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    entropy_coef: float = 0.0
    critic: str = "separate"
    vf_coef: float = 0.1
    cliprange_value: float | None = 0.2
    value_warmup_steps: int = 0
    num_ppo_epochs: int = 1
    num_mini_batches: int = 1
    max_grad_norm: float = 1.0
    seed: int = 0
    max_resamples: ClassVar[int] = 0  # no prompt is drawn anew: a critic finds a signal in equal rewards, too

    def __post_init__(self):
        check_choice("advantage", self.advantage, ("gae", "return_minus_value", "group"))
        check_choice("scale_rewards", self.scale_rewards, ("group", "batch", "none"))
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        check_choice("critic", self.critic, ("separate", "head"))
        counts = ("max_new_tokens", "group_size", "prompts_per_step", "num_ppo_epochs", "num_mini_batches")
        for name in counts:
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if not self.temperature > 0:
            raise OptionError(f"temperature={self.temperature} must be above 0, or nothing is tried out")
        if self.cliprange_value is not None and not self.cliprange_value > 0:
            raise OptionError(f"cliprange_value={self.cliprange_value} must be above 0, or None for no clip")
        if self.num_mini_batches > self.prompts_per_step:
            raise OptionError(
                f"num_mini_batches={self.num_mini_batches} for prompts_per_step={self.prompts_per_step}: "
                "a minibatch needs at least one prompt"
            )
        if self.advantage == "group" and self.group_size < 2:
            raise GroupSizeError(
                f"group_size={self.group_size}: with advantage='group' completions are compared, so 2 or more"
            )
        if self.value_warmup_steps and self.advantage == "group":
            raise OptionError(
                f"value_warmup_steps={self.value_warmup_steps}: advantage='group' has no critic to warm up"
            )


def start(policy: GPT, critic: nn.Module | None, config: PPOConfig) -> TrainState:
    """The state before the first step; keep it, and the critic, if the run is to be saved."""
    state = TrainState.start(policy.parameters(), config.learning_rate, config.seed)
    if critic is not None:
        state.critic_optimizer = AdamW(critic.parameters(), config.critic_learning_rate)
    return state


def train(
    policy: GPT,
    tokenizer: CharTokenizer,
    problems: Sequence[Problem],
    reward_fn: RewardFunction | Sequence[RewardFunction],
    config: PPOConfig,
    reference: GPT | None = None,
    critic: nn.Module | None = None,
    state: TrainState | None = None,
) -> Iterator[dict[str, float]]:
    """Train ``policy`` (and ``critic``) in place; yield one dict of metrics a step, named as GRPO's.

    Proximal policy optimization (arXiv:1707.06347) with generalized advantages (arXiv:1506.02438), in the
    form that language models take it (arXiv:2203.02155): an action is a token, the score comes with the last
    one, and KL to the reference is charged on the way. One seed gives the prompts and the random numbers of
    :func:`nanogrpo.grpo.train`, so the first batch of samples of both is the same.

    Beside GRPO's metrics: ``value_loss``, ``explained_variance`` (of the sampled rewards to come, before the
    critic has seen them), ``advantage_abs_mean`` (before whitening, in the unit of the rewards). ``kl`` is
    the k3 estimate, nats a token; what is charged is k1. ``loss`` is the policy's part. It, ``grad_norm`` and
    the share that was clipped are means over the updates of a step, and 0 while only the critic learns.

    Args:
        policy: usually after :mod:`nanogrpo.sft`.
        tokenizer: its alphabet.
        problems: rows with a ``prompt`` and the columns that ``reward_fn`` asks for.
        reward_fn: a rule or a trained reward model, see :mod:`nanogrpo.tasks`; or several, see
            :func:`~nanogrpo.experience.rewards_of`.
        config: the options.
        reference: the frozen policy of the KL penalty; a copy of ``policy`` if there is none and ``beta`` is
            not 0. With ``beta=0`` a reference that is handed in is for measuring ``kl`` only.
        critic: from :func:`~nanogrpo.critic.new_critic`, which is called if there is none.
        state: from :func:`start`, to go on with a run that was saved; then hand in its ``critic``, and its
            ``reference``, as well.

    Raises:
        OptionError: ``critic``, ``state`` and ``config`` do not belong together.
        RewardError: the reward function returned the wrong number of values or one that is not finite.
        BlockSizeError: a prompt leaves no room for ``max_new_tokens``.
        NonFiniteError: a gradient is NaN or infinite; all weights are as they were before that update.
    """
    check_parts(config, critic, state)
    if config.beta and reference is None:
        reference = copy.deepcopy(policy).requires_grad_(False)
    if critic is None and config.advantage != "group":
        critic = new_critic(policy, config.critic)
    state = state or start(policy, critic, config)
    for step in range(state.step + 1, config.max_steps + 1):
        groups, _ = collect(policy, tokenizer, problems, reward_fn, config, state.generator)
        batch, judged = judge(policy, critic, reference, groups, config)
        updates = [
            improve(policy, critic, state, batch.pick(prompts), config, step)
            for prompts in minibatches(
                len(groups.rewards), config.num_ppo_epochs, config.num_mini_batches, config.seed, step
            )
        ]
        update = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        state.step = step
        state.num_tokens += int(groups.rollout.completion_mask.sum())
        sampled = groups.metrics(config)
        if config.group_size == 1:
            del sampled["frac_reward_zero_std"]  # there are no groups to be without signal
        yield {"step": step, "num_tokens": state.num_tokens, **sampled, **judged, **update}


def check_parts(config: PPOConfig, critic: nn.Module | None, state: TrainState | None) -> None:
    """Raise OptionError where the parts of a run do not belong together."""
    if critic is not None and config.advantage == "group":
        raise OptionError("advantage='group' has no use for a critic; hand in none, or choose 'gae'")
    if critic is not None and isinstance(critic, GPT) != (config.critic == "separate"):
        raise OptionError(
            f"critic={config.critic!r}, but the critic handed in is a {type(critic).__name__}; "
            "make it with new_critic(policy, config.critic)"
        )
    if state is not None and config.advantage != "group" and (critic is None or not state.critic_optimizer):
        raise OptionError(
            "a state needs its critic, and one with a critic_optimizer: make both with new_critic and "
            "ppo.start, and hand both in"
        )


@dataclass(frozen=True)
class Judged:
    """A rollout, and what it was worth.

    Attributes:
        rollout: what was sampled.
        advantages: ``(B, T)``, of each token, as the policy's loss takes them.
        values: ``(B, T)``, of the critic when the batch was sampled; 0 without a critic.
        returns: ``(B, T)``, the critic's targets.
    """

    rollout: Rollout
    advantages: Tensor
    values: Tensor
    returns: Tensor

    def pick(self, prompts: Tensor) -> "Judged":
        """What was judged of some prompts, by their indices, as :meth:`~nanogrpo.rollout.Rollout.pick`."""
        rollout = self.rollout.pick(prompts)
        G, T = rollout.group_size, rollout.completion_ids.shape[1]
        tensors = (self.advantages, self.values, self.returns)
        return Judged(rollout, *(t.unflatten(0, (-1, G))[prompts, :, :T].flatten(0, 1) for t in tensors))


@torch.no_grad()
def judge(
    policy: GPT, critic: nn.Module | None, reference: GPT | None, groups: Groups, config: PPOConfig
) -> tuple[Judged, dict[str, float]]:
    """What a rollout was worth, token by token, and the metrics of that."""
    rollout, mask, metrics, kl = groups.rollout, groups.rollout.completion_mask, {}, None
    if reference is not None:
        ref_logprobs = logprobs_under(reference, rollout, config.temperature)  # (B, T)
        kl = kl_k1(rollout.logprobs, ref_logprobs, mask)  # (B, T), the estimate that is right in a reward
        metrics["kl"] = (kl_k3(rollout.logprobs, ref_logprobs, mask).sum() / mask.sum()).item()
    scores = groups.rewards.flatten().to(rollout.logprobs)  # (B,)
    earned = token_rewards(scores, mask, kl, config.beta)  # (B, T)
    values = torch.zeros_like(earned)
    if critic is not None:
        values = values_before(critic, policy, rollout)
    advantages, returns = advantages_of(earned, values, mask, rollout.group_size, config)
    metrics["advantage_abs_mean"] = (advantages.abs().sum() / mask.sum()).item()
    if critic is not None:
        sampled = gae(earned, values, mask, config.gamma, lam=1.0)[1]  # (B, T), without the critic's opinion
        metrics["explained_variance"] = explained_variance(values, sampled, mask)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Judged(rollout, advantages, values, returns), metrics


def advantages_of(
    rewards: Tensor, values: Tensor, mask: Tensor, group_size: int, config: PPOConfig
) -> tuple[Tensor, Tensor]:
    """Advantages and the critic's targets, both ``(B, T)``, from rewards and values of each token."""
    advantages, returns = gae(
        rewards, values, mask, config.gamma, config.lam if config.advantage == "gae" else 1.0
    )
    if config.advantage == "return_minus_value":
        advantages = torch.where(mask, advantages[:, :1], 0.0)  # the first token's, for the whole completion
    if config.advantage == "group":
        totals = rewards.sum(1).view(-1, group_size)  # (P, G)
        groups = group_advantages(totals, config.scale_rewards).flatten()  # (B,)
        advantages = torch.where(mask, groups.unsqueeze(1), 0.0)
    return advantages, returns


def improve(
    policy: GPT, critic: nn.Module | None, state: TrainState, batch: Judged, config: PPOConfig, step: int
) -> dict[str, float]:  # fmt: skip
    """One update of policy and critic on one minibatch; its metrics. In a warm-up step the policy rests."""
    warmup, rollout = step <= config.value_warmup_steps, batch.rollout
    denominators = Denominators.of(rollout.completion_mask, config.max_new_tokens)
    needed = batch.advantages.unflatten(0, (-1, rollout.group_size)).ne(0).flatten(1).any(1)  # (P,)
    if critic is not None or config.entropy_coef:
        needed = torch.ones_like(needed)  # else a group without signal has gradient 0, as in GRPO
    sums = {"loss": 0.0, "clip_ratio/region_mean": 0.0} | ({} if critic is None else {"value_loss": 0.0})
    optimizers = [state.optimizer] if critic is None else [state.optimizer, state.critic_optimizer]
    for optimizer in optimizers:
        optimizer.zero_grad()
    for prompts in microbatches(rollout, needed.nonzero().squeeze(1)):
        total, metrics = loss_of(policy, critic, batch.pick(prompts), config, denominators, warmup)
        total.backward()
        for name in metrics:
            sums[name] += metrics[name].item()
    moving = optimizers[warmup:]  # in a warm-up step, not the policy's
    norms = [clip_grad_norm(o.params, config.max_grad_norm, f"PPO step {step}") for o in moving]
    for optimizer in moving:  # after all norms were found finite
        optimizer.step()
    return {**sums, "grad_norm": 0.0 if warmup else norms[0]}


def loss_of(
    policy: GPT, critic: nn.Module | None, part: Judged, config: PPOConfig, denominators: Denominators,
    warmup: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """What is minimized on some groups, and its metrics; both add up over the parts of a minibatch."""
    rollout, mask, hidden, metrics = part.rollout, part.rollout.completion_mask, None, {}
    total = part.advantages.new_zeros(())
    if not warmup:
        hidden = completion_hidden(policy, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
        logits = policy.head(hidden)  # (B, T, V)
        total, clipped = grpo_loss(
            logprobs_of(logits, rollout.completion_ids, config.temperature),
            rollout.logprobs,
            None,
            part.advantages,
            mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            aggregation=config.aggregation,
            denominators=denominators,
        )
        if config.entropy_coef:
            bonus = entropy(logits / config.temperature, mask)  # (B, T)
            total = total - config.entropy_coef * aggregate(bonus, mask, config.aggregation, denominators)
        metrics = {"loss": total.detach(), "clip_ratio/region_mean": clipped["clip_ratio/region_mean"]}
    if critic is not None:
        values = values_of(critic, policy, rollout, hidden)  # (B, T)
        old_values = None if config.cliprange_value is None else part.values
        errors = value_loss(values, part.returns, mask, old_values, config.cliprange_value)  # (B, T)
        metrics["value_loss"] = aggregate(errors, mask, "token_mean", denominators)
        total = total + config.vf_coef * metrics["value_loss"]
    return total, metrics
