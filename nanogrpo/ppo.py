"""PPO: prompt -> rollout -> reward -> value -> advantage -> loss -> step, once a step, in this order here.

What differs from :mod:`nanogrpo.grpo`: a critic says what was to be expected before each token, so each token
gets an advantage of its own and a prompt needs no group. Sampling, prompts and the policy's loss are GRPO's.

What it leaves out, and why: a schedule of the learning rate, several devices, a separate sampling engine (as
in ``grpo.py``), an adaptive price of KL and early stopping by KL (one more loop to tune in a run of seconds),
and a reward for ending in time (the reward function can say so itself).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from nanogrpo import grpo
from nanogrpo.advantages import gae, token_rewards, whiten
from nanogrpo.critic import explained_variance, new_critic, values_before, values_of
from nanogrpo.errors import OptionError
from nanogrpo.losses import KL_ESTIMATORS, Denominators, aggregate, value_loss
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW
from nanogrpo.options import option
from nanogrpo.packed import completion_hidden
from nanogrpo.rewards import Problem, RewardFunction, check_rows
from nanogrpo.sampler import adapt_entropy, believe, sampling_config, sampling_model, weigh
from nanogrpo.state import TrainState
from nanogrpo.step import Batch, add_reference, collect, describe, update_all
from nanogrpo.together import check_config, check_reference, check_state, check_vocabulary
from nanogrpo.tokenizer import CharTokenizer
from nanogrpo.variants import VariantConfig


@dataclass(frozen=True)
class PPOConfig(VariantConfig):
    """Options of :func:`train`; names as in TRL where it has them, and as in ``GRPOConfig``."""

    group_size: int = option(
        16, help="G, completions a prompt; 1 is enough with a critic.", low=1, high=1_000_000
    )
    critic_learning_rate: float = option(1e-3, help="of the critic's AdamW.", low=0)
    advantage_estimator: Literal["gae", "return_minus_value"] = option(
        "gae",
        help="``return_minus_value`` is the return of the whole completion less the value of its prompt, one "
        "number for all its tokens.",
    )
    gamma: float = option(1.0, help="discount a token.", low=0, high=1)
    lam: float = option(
        0.95,
        help="GAE's lambda: 0 trusts the critic, 1 the sampled rewards.",
        low=0,
        high=1,
        needs="advantage_estimator=gae",
    )
    whiten_advantages: bool = option(
        True, help="see :func:`~nanogrpo.advantages.whiten`; over the batch, before it is cut."
    )
    kl_in: Literal["loss", "reward"] = option(
        "reward",
        help="where KL is charged: off the ``reward`` of each token, or in the ``loss``, as GRPO does.",
        needs="beta",
    )
    critic: Literal["separate", "head"] = option(
        "separate", help="its kind, see :func:`~nanogrpo.critic.new_critic`."
    )
    vf_coef: float = option(
        0.1,
        help="weight of the value loss. For a separate critic Adam divides it out again, but for the "
        "clipping of its gradient.",
        low=0,
    )
    cliprange_value: float | None = option(
        0.2,
        help="how far a value may move from what it was when the batch was sampled; None: freely.",
        above=0,
    )
    value_warmup_steps: int = option(
        0, help="first steps in which only the critic learns (only its own layer, with ``head``).", low=0
    )
    num_ppo_epochs: int = option(1, help="times that each batch of samples is gone through.", low=1)


def start(policy: GPT, critic: nn.Module, config: PPOConfig) -> TrainState:
    """The state before the first step; keep it, and the critic, if the run is to be saved."""
    state = TrainState.start(policy.parameters(), config.learning_rate, config.seed)
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
    the k3 estimate, nats a token, whichever is charged. ``loss`` is the policy's part. It, ``grad_norm`` and
    the share that was clipped are means over the updates of a step, and 0 while only the critic learns.

    Args:
        policy: usually after :mod:`nanogrpo.sft`.
        tokenizer: its alphabet.
        problems: rows with a ``prompt`` and the columns that ``reward_fn`` asks for.
        reward_fn: a rule or a trained reward model, see :mod:`nanogrpo.tasks`; or several, see
            :func:`~nanogrpo.step.rewards_of`.
        config: the options.
        reference: the frozen policy of the KL penalty; a copy of ``policy`` if there is none and ``beta`` is
            not 0. With ``beta=0`` a reference that is handed in is for measuring ``kl`` only.
        critic: from :func:`~nanogrpo.critic.new_critic`, which is called if there is none.
        state: from :func:`~nanogrpo.ppo.start`, to go on with a run that was saved; then hand in its
            ``critic``, and its ``reference``, as well.

    Raises:
        OptionError: the arguments do not belong together, see :mod:`nanogrpo.together`.
        RowError, EmptyPromptError: the problems are no rows, see :func:`~nanogrpo.rewards.check_rows`.
        RewardError: the reward function returned the wrong number of values or one that is not finite.
        BlockSizeError: a prompt leaves no room for ``max_new_tokens``.
        NonFiniteError: a gradient, a weight or a logit is NaN or infinite; the message says whether the
            weights are as they were before that step.
    """
    check_config(config, PPOConfig)
    check_vocabulary(policy, tokenizer)
    if state is not None and (critic is None or not state.critic_optimizer):
        raise OptionError(
            "a state needs its critic, and one with a critic_optimizer: make both with new_critic and "
            "ppo.start, and hand both in"
        )
    if config.beta and reference is None:
        reference = copy.deepcopy(policy).requires_grad_(False)
    critic = new_critic(policy, config.critic) if critic is None else critic
    if isinstance(critic, GPT) != (config.critic == "separate"):
        raise OptionError(
            f"critic={config.critic!r}, but the critic handed in is a {type(critic).__name__}; "
            "make it with new_critic(policy, config.critic)"
        )
    check_rows(problems)
    state = state or start(policy, critic, config)
    check_state(state, policy, critic)
    while state.step < config.max_steps:
        metrics, _ = step(policy, tokenizer, problems, reward_fn, config, state, critic, reference)
        yield metrics


def step(
    policy: GPT,
    tokenizer: CharTokenizer,
    problems: Sequence[Problem],
    reward_fn: RewardFunction | Sequence[RewardFunction],
    config: PPOConfig,
    state: TrainState,
    critic: nn.Module,
    reference: GPT | None = None,
) -> tuple[dict[str, float], Batch]:
    """One step: its metrics, and the batch that it learned from. Arguments, errors: as for :func:`train`."""
    check_reference(reference, policy)
    warmup = state.step < config.value_warmup_steps
    sampler = sampling_model(policy, config, state)
    batch, sampled = collect(
        sampler, tokenizer, problems, reward_fn, sampling_config(config), state.generator
    )
    batch, mismatch = believe(batch, policy, config)
    batch, kl = add_reference(batch, reference, config)
    batch, advantages = compute_advantages(batch, policy, critic, config)
    batch, weights = weigh(batch, policy, config, state)
    price = adapt_entropy(batch, config, state)
    if price:
        config = replace(config, **price)  # type: ignore[arg-type]  # of one float
    both = [optimizer for optimizer in (state.optimizer, state.critic_optimizer) if optimizer]
    optimizers = both[1:] if warmup else both
    names = ("loss", "clip_ratio/region_mean", *(["kl"] if config.kl_in_loss else []), "value_loss")
    loss = partial(compute_loss, policy, critic, config, warmup)
    updates = update_all(
        policy, batch, loss, optimizers, config, config.num_ppo_epochs, state.step + 1, names
    )
    if warmup:
        updates["grad_norm"] = 0.0  # the policy's; it rests
    now = state.count(sampled.rollout.completion_mask)
    return now | describe(sampled, config) | mismatch | kl | advantages | weights | price | updates, batch


@torch.no_grad()
def compute_advantages(
    batch: Batch, policy: GPT, critic: nn.Module, config: PPOConfig
) -> tuple[Batch, dict[str, float]]:
    """The batch with advantages, values and the critic's targets, all ``(B, T)``, and the metrics of that."""
    rollout, mask = batch.rollout, batch.rollout.completion_mask
    scores, kl = batch.rewards.flatten().to(rollout.logprobs), None  # (B,)
    if config.beta and config.kl_in == "reward":
        kl = KL_ESTIMATORS[config.estimator](rollout.logprobs, batch.ref_logprobs, mask)  # (B, T)
    rewards = token_rewards(scores, mask, kl, config.beta)  # (B, T)
    values = values_before(critic, policy, rollout)  # (B, T)
    whole, sampled = gae(rewards, values, mask, config.gamma, lam=1.0)  # without the critic's opinion
    if config.advantage_estimator == "gae":
        advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    else:
        advantages, returns = torch.where(mask, whole[:, :1], 0.0), sampled  # the first token's, for all
    metrics = {
        "advantage_abs_mean": (advantages.abs().sum() / mask.sum()).item(),
        "explained_variance": explained_variance(values, sampled, mask),
    }
    if config.whiten_advantages:
        advantages = whiten(advantages, mask, config.std_eps)
    return replace(batch, advantages=advantages, values=values, returns=returns), metrics


def compute_loss(
    policy: GPT, critic: nn.Module, config: PPOConfig, warmup: bool, batch: Batch, denominators: Denominators
) -> tuple[Tensor, dict[str, Tensor]]:
    """GRPO's loss of some groups, and the critic's; in a warm-up step the critic's alone."""
    rollout, mask, hidden = batch.rollout, batch.rollout.completion_mask, None
    metrics: dict[str, Tensor] = {}
    loss = batch.advantages.new_zeros(())
    if not warmup:
        hidden = completion_hidden(policy, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
        loss, metrics = grpo.compute_loss(policy, config, batch, denominators, hidden)
    values = values_of(critic, policy, rollout, hidden)  # (B, T)
    old_values = None if config.cliprange_value is None else batch.values
    errors = value_loss(values, batch.returns, mask, old_values, config.cliprange_value)  # (B, T)
    metrics["value_loss"] = aggregate(errors, mask, "token_mean", denominators)
    loss = loss + config.vf_coef * metrics["value_loss"]
    return loss, {name: value.detach() for name, value in metrics.items()}
