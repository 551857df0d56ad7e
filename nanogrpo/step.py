"""One step of training, as far as GRPO and PPO share it: what a step learns from, and how it updates weights.

    **prompt -> rollout -> reward** -> advantage -> loss -> **step**

A trainer adds what differs: its advantages and its loss. Nothing but :func:`update` has a gradient.

Legend: P prompts, G completions a prompt, B = P*G rows, T tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogrpo.errors import EmptyPromptError, NonFiniteError, OptionError, RewardError
from nanogrpo.kl import KLEstimator, kl_k3
from nanogrpo.losses import Denominators, check_bias_correction
from nanogrpo.microbatches import logprobs_under, microbatches, minibatches
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW, clip_grad_norm
from nanogrpo.options import Options, option
from nanogrpo.packed import generate
from nanogrpo.rewards import Problem, RewardFunction, call_reward, check_rows, reward_name
from nanogrpo.rollout import Rollout, draw_uniforms
from nanogrpo.tokenizer import CharTokenizer

Loss = Callable[["Batch", Denominators], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class StepConfig(Options):
    """Options that GRPO and PPO share; names as in TRL where it has them."""

    max_new_tokens: int = option(
        help="the longest completion; what has not ended by then is truncated.", low=1, high=10_000_000
    )
    group_size: int = option(
        16, help="G, completions a prompt (TRL: ``num_generations``).", low=1, high=1_000_000
    )
    prompts_per_step: int = option(32, help="P, prompts a step.", low=1, high=1_000_000)
    learning_rate: float = option(3e-4, help="of the policy's AdamW.", low=0)
    max_steps: int = option(200, help="how many steps the generator yields at most.", low=0)
    temperature: float = option(
        1.0, help="of sampling, and of the log-probs that are trained; greedy groups are all alike.", above=0
    )
    reward_weights: tuple[float, ...] | None = option(
        None, help="of several reward functions, one each; None for all 1."
    )
    importance_sampling_level: Literal["token", "sequence", "sequence_token"] = option(
        "token", help="whose ratio it is, see :func:`~nanogrpo.losses.importance_ratio`."
    )
    surrogate: Literal["clip", "cispo", "sapo", "dppo_tv", "dppo_kl", "gmpo", "vespo"] = option(
        "clip", help="what is made of the ratio, see :data:`~nanogrpo.losses.SURROGATES`."
    )
    clip_low: float = option(0.2, help="how far below 1 a ratio may count (TRL: ``epsilon``).", low=0)
    clip_high: float = option(0.2, help="how far above 1 (TRL: ``epsilon_high``).", low=0)
    delta: float | None = option(
        None,
        help="cap on the ratio where the advantage is negative (with ``dppo_tv`` and ``dppo_kl`` on that of "
        "every token); None: no cap.",
        above=1,
    )
    aggregation: Literal["sequence_mean", "token_mean", "constant", "sequence_sum"] = option(
        "token_mean", help="of tokens to a loss, see :func:`~nanogrpo.losses.aggregate` (TRL: ``loss_type``)."
    )
    beta: float = option(
        0.0, help="price of a nat of KL to the reference; 0 needs no reference and loads none.", low=0
    )
    kl_in: Literal["loss", "reward"] = option(
        "loss", help="where it is charged: in the loss, token by token.", needs="beta"
    )
    kl_estimator: KLEstimator | None = option(
        None,
        help="None for k3 in the loss, and k1 in the reward, where only k1 has the right gradient.",
        needs="beta",
    )
    use_bias_correction_kl: bool = option(
        False, help="multiply the estimate in the loss with the ratio, see :mod:`nanogrpo.kl`.", needs="beta"
    )
    entropy_coef: float = option(0.0, help="reward for a nat of entropy, from the full logits, in the loss.")
    std_eps: float = option(
        1e-4, help="added to the standard deviation that advantages are divided by.", low=0
    )
    num_mini_batches: int = option(
        1, help="updates for each time that a batch is gone through. A minibatch holds whole groups.", low=1
    )
    max_grad_norm: float | None = option(
        1.0, help="the gradient is scaled down to this length; 0 or None: never.", low=0
    )
    seed: int = option(0, help="of the prompts, the sampling and the minibatches.", low=0, high=2**63 - 1)
    max_resamples: ClassVar[int] = 0  # of a trainer that has no such option

    def check(self) -> None:
        """What options must say of each other."""
        if self.num_mini_batches > self.prompts_per_step:
            raise OptionError(
                f"num_mini_batches={self.num_mini_batches} is above prompts_per_step="
                f"{self.prompts_per_step}: a minibatch needs at least one prompt"
            )
        if self.delta is not None and self.surrogate not in ("clip", "dppo_tv", "dppo_kl"):
            raise OptionError(f"delta={self.delta} caps the ratio of surrogate='clip' only; choose that")
        if self.delta is not None and self.surrogate == "clip" and self.delta <= 1 + self.clip_high:
            raise OptionError(
                f"delta={self.delta} must be above 1 + clip_high={1 + self.clip_high}, or the clip has no say"
            )
        if self.use_bias_correction_kl and self.kl_in == "reward":
            raise OptionError("use_bias_correction_kl=True mends a KL in the loss; a reward has no gradient")
        if self.use_bias_correction_kl:
            check_bias_correction(self.estimator)

    @property
    def estimator(self) -> str:
        """The KL estimator that is used."""
        return self.kl_estimator or ("k1" if self.kl_in == "reward" else "k3")

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss needs the reference."""
        return bool(self.beta) and self.kl_in == "loss"


@dataclass(frozen=True)
class Batch:
    """Groups of completions, what they earned, and what a loss makes of it.

    Attributes:
        rollout: P prompts with G completions each.
        rewards: ``(P, G)``, the weighted sum of what the reward functions gave.
        parts: ``(P, G)`` of each reward function by its name; empty where there is only one.
        advantages: ``(B,)``, one a completion, or ``(B, T)``, one a token, as the loss takes them.
        ref_logprobs: ``(B, T)``, of the reference, where there is one; 0 where masked.
        values: ``(B, T)``, of PPO's critic when the batch was sampled.
        returns: ``(B, T)``, that critic's targets.
        sampler_logprobs: ``(B, T)``, of the policy that sampled, where it is not the trainer's.
        careful: ``(B, T)`` bool, the tokens that pay for moving, see :func:`~nanogrpo.selection.kl_cov`.
    """

    rollout: Rollout
    rewards: Tensor
    parts: dict[str, Tensor]
    advantages: Tensor = None  # type: ignore[assignment]  # a trainer fills it in, and the next three
    ref_logprobs: Tensor = None  # type: ignore[assignment]
    values: Tensor = None  # type: ignore[assignment]
    returns: Tensor = None  # type: ignore[assignment]
    sampler_logprobs: Tensor = None  # type: ignore[assignment]  # and where such an option is on, these two
    careful: Tensor = None  # type: ignore[assignment]

    @property
    def tied(self) -> Tensor:
        """(P,), true for a group whose rewards are all equal; found by ``max == min``, not by a small eps."""
        return self.rewards.amax(1) == self.rewards.amin(1)

    def pick(self, prompts: Tensor) -> "Batch":
        """The batch of some prompts, by their indices, as :meth:`~nanogrpo.rollout.Rollout.pick`."""
        rollout, P = self.rollout.pick(prompts), len(self.rewards)
        T = rollout.completion_ids.shape[1]
        rows = {}
        names = ("advantages", "ref_logprobs", "values", "returns", "sampler_logprobs", "careful")
        for name in names:
            if (tensor := getattr(self, name)) is not None:
                picked = tensor.unflatten(0, (P, -1))[prompts].flatten(0, 1)
                rows[name] = picked[:, :T] if picked.ndim == 2 else picked
        parts = {name: part[prompts] for name, part in self.parts.items()}
        return Batch(rollout, self.rewards[prompts], parts, **rows)


def collect(
    model: GPT,
    tokenizer: CharTokenizer,
    problems: Sequence[Problem],
    reward_fn: RewardFunction | Sequence[RewardFunction],
    config: StepConfig,
    generator: torch.Generator,
) -> tuple[Batch, Batch]:
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
        EmptyPromptError: there are no problems.
        RewardError, BlockSizeError, OptionError, NonFiniteError: as in the functions called here.
    """
    if not len(problems):
        raise EmptyPromptError("there are no problems to draw prompts from; give at least one row")
    waiting = torch.randperm(len(problems), generator=generator).tolist()
    rounds: list[Batch] = []
    missing = config.prompts_per_step
    while missing and waiting and len(rounds) <= config.max_resamples:
        rows, waiting = [problems[i] for i in waiting[:missing]], waiting[missing:]
        check_rows(rows)  # again, since somebody may have changed them meanwhile
        rollout = sample(model, tokenizer, [row["prompt"] for row in rows], config, generator)
        completions = tokenizer.decode_batch(rollout.completion_ids)
        rounds.append(Batch(rollout, *rewards_of(reward_fn, config.reward_weights, rows, completions)))
        missing -= int((~rounds[-1].tied).sum())
    everything = join(rounds, tokenizer.pad_id)
    if len(rounds) == 1:
        return everything, everything
    best = everything.tied.long().argsort(stable=True)  # (P,), those with a signal first, as they were drawn
    return everything.pick(best[: config.prompts_per_step]), everything


def sample(
    model: GPT, tokenizer: CharTokenizer, prompts: list[str], config: StepConfig, generator: torch.Generator
) -> Rollout:
    """``group_size`` completions for each prompt.

    Raises:
        NonFiniteError: a log-prob of a sampled token is not finite: the policy's weights are broken.
    """
    weights = model.head.weight
    prompt_ids, prompt_lens = tokenizer.encode_prompts(prompts)
    rollout = generate(
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
    if not rollout.logprobs.isfinite().all():
        raise NonFiniteError(
            "a log-prob of the sampled tokens is not finite, so the policy's weights are broken; go back to "
            "the last good checkpoint and lower the learning rate"
        )
    return rollout


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
        RewardError: see :func:`~nanogrpo.rewards.call_reward`; or the sum is not finite.
    """
    if not callable(reward_fn) and not isinstance(reward_fn, (list, tuple)):
        raise RewardError(f"the reward is {reward_fn!r}; give a function, or a list of functions")
    functions = [reward_fn] if callable(reward_fn) else list(reward_fn)
    names = [reward_name(function) for function in functions]
    weights = [1.0] * len(functions) if weights is None else weights
    if not functions or len(weights) != len(functions):
        raise OptionError(
            f"{len(weights)} reward_weights for {len(functions)} reward functions; give each one"
        )
    if len(set(names)) < len(names):
        raise OptionError(f"the reward functions are called {names}; give each a name of its own for the log")
    parts = [call_reward(function, rows, completions).view(len(rows), -1) for function in functions]  # (P, G)
    total = sum((weight * part for weight, part in zip(weights, parts, strict=True)), torch.zeros(()))
    if not total.isfinite().all():
        raise RewardError(f"the weighted sum of {', '.join(names)} is not finite; make the weights smaller")
    return total, dict(zip(names, parts, strict=True)) if len(parts) > 1 else {}


def join(rounds: Sequence[Batch], pad_id: int) -> Batch:
    """The groups of several rounds as one batch, padded to the longest."""
    if len(rounds) == 1:
        return rounds[0]
    rollouts = [part.rollout for part in rounds]
    filler = {"prompt_ids": pad_id, "completion_ids": pad_id, "completion_mask": False, "logprobs": 0.0}
    tensors: dict[str, Any] = {}
    for name in (field.name for field in fields(Rollout) if field.name != "group_size"):
        parts = [getattr(rollout, name) for rollout in rollouts]
        if name in filler:
            width = max(part.shape[1] for part in parts)
            parts = [F.pad(part, (0, width - part.shape[1]), value=filler[name]) for part in parts]
        tensors[name] = torch.cat(parts)
    scores = {name: torch.cat([part.parts[name] for part in rounds]) for name in rounds[0].parts}
    rewards = torch.cat([part.rewards for part in rounds])
    return Batch(replace(rollouts[0], **tensors), rewards, scores)


def describe(batch: Batch, config: StepConfig) -> dict[str, float]:
    """Metrics of what was sampled.

    ``entropy`` is the mean of ``-log p`` over the sampled tokens: an unbiased estimate, in nats a token, of
    the entropy of the policy, at no cost.
    """
    rollout, rewards = batch.rollout, batch.rewards
    metrics = {"reward": rewards.mean().item()}
    if rewards.numel() > 1:  # a single one has no deviation
        metrics["reward_std"] = rewards.std().item()
    if config.group_size > 1:  # else there are no groups to be without signal
        metrics["frac_reward_zero_std"] = batch.tied.float().mean().item()
    metrics |= {
        "completions/mean_length": rollout.lengths.float().mean().item(),
        "completions/clipped_ratio": rollout.truncated.float().mean().item(),
        "entropy": (-rollout.logprobs.sum() / rollout.completion_mask.sum()).item(),
    }
    metrics |= {f"rewards/{name}/mean": part.mean().item() for name, part in batch.parts.items()}
    return metrics | ({"groups_sampled": len(rewards)} if config.max_resamples else {})


def add_reference(batch: Batch, reference: GPT | None, config: StepConfig) -> tuple[Batch, dict[str, float]]:
    """The batch with the reference's log-probs, and the KL at the time of sampling, in nats a token (k3).

    Where the loss charges for the KL, what the loss measures takes this number's place in the log.

    Raises:
        OptionError: there is a price for KL and no reference.
        NonFiniteError: the reference is broken.
    """
    if reference is None:
        if config.beta:
            raise OptionError(
                f"beta={config.beta} needs a reference: a frozen copy of the policy at the start"
            )
        return batch, {}
    rollout, mask = batch.rollout, batch.rollout.completion_mask
    ref_logprobs = logprobs_under(reference, rollout, config.temperature)  # (B, T)
    if not ref_logprobs.isfinite().all():
        raise NonFiniteError(
            "a log-prob of the reference is NaN or infinite, so its weights are broken; load it anew"
        )
    batch = replace(batch, ref_logprobs=ref_logprobs)
    return batch, {"kl": (kl_k3(rollout.logprobs, ref_logprobs, mask).sum() / mask.sum()).item()}


def update(
    batch: Batch,
    compute_loss: Loss,
    optimizers: Sequence[AdamW],
    config: StepConfig,
    where: str,
    names: Sequence[str] = (),
) -> dict[str, float]:
    """One update on one batch: the gradient of its loss, clipped, and a step of each optimizer.

    The gradient is summed over microbatches, which fit into a processor's cache and keep the peak of memory
    low. A group without signal (all advantages 0) has gradient 0 and is not computed, unless a KL penalty, an
    entropy bonus or a critic has something to say of it. It still counts in the denominators, so the result
    is exactly that of the whole batch.

    Args:
        batch: with its advantages.
        compute_loss: of a part of it, and the denominators of the whole: a loss and metrics, which add up.
        optimizers: whose parameters move. ``grad_norm`` is that of the first.
        config: the options.
        where: the step, for messages.
        names: of the metrics that are 0 where nothing has to be computed.

    Raises:
        NonFiniteError: a gradient or an update is not finite; the weights are as they were.
    """
    rollout, sums = batch.rollout, dict.fromkeys(names, 0.0)
    denominators = Denominators.of(rollout.completion_mask, config.max_new_tokens)
    needed = rollout.lengths.view_as(batch.rewards).ne(0).any(1)  # (P,), groups that are not all left out
    if not (
        config.kl_in_loss or config.entropy_coef or batch.returns is not None or batch.careful is not None
    ):
        needed = needed & batch.advantages.unflatten(0, batch.rewards.shape).ne(0).flatten(1).any(1)
    for optimizer in optimizers:
        optimizer.zero_grad()
    for prompts in microbatches(rollout, needed.nonzero().squeeze(1)):
        loss, metrics = compute_loss(batch.pick(prompts), denominators)
        loss.backward()
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    norms = [clip_grad_norm(optimizer.params, config.max_grad_norm, where) for optimizer in optimizers]
    for optimizer, norm in zip(
        optimizers, norms, strict=True
    ):  # where no group has a signal, too: Adam moves on
        optimizer.step(where, norm)
    return {**sums, "grad_norm": norms[0]}


def update_all(
    model: GPT, batch: Batch, compute_loss: Loss, optimizers: Sequence[AdamW], config: StepConfig,
    epochs: int, step: int, names: Sequence[str] = (),
) -> dict[str, float]:  # fmt: skip
    """All updates of a step: ``epochs`` times through its batch, in minibatches; the means of their metrics.

    Raises:
        NonFiniteError: as in :func:`update`; or the weights have grown so that ``model`` no longer predicts.
    """
    parts = minibatches(len(batch.rewards), epochs, config.num_mini_batches, config.seed, step)
    rows = [
        update(batch.pick(prompts), compute_loss, optimizers, config, f"step {step}", names)
        for prompts in parts
    ]
    check_logits(model, batch.rollout, f"step {step}", optimizers)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


# Below this length of all weights together, no sum on the way to the logits nears the largest float32. What
# a LayerNorm gives is at most SAFE * (sqrt(C) + 1) long; each matrix makes that at most SAFE times longer.
SAFE = 300.0


@torch.no_grad()
def check_logits(model: GPT, rollout: Rollout, where: str, optimizers: Sequence[AdamW] = ()) -> None:
    """Raise NonFiniteError where the model's logits, for the first text of a rollout, are not finite.

    They are computed only where the weights are so long that this could be: most steps are spared the pass.
    Optimizers that have just moved all of the model's weights know how long these are at most.
    """
    moved = {id(p) for optimizer in optimizers for p in optimizer.params}
    if moved.issuperset(map(id, model.parameters())):
        length = math.hypot(*(optimizer.norm for optimizer in optimizers))
    else:
        length = float(torch.stack(torch._foreach_norm(list(model.parameters()))).norm())
    if length < SAFE:  # not so where it is NaN
        return
    prompt = rollout.prompt_ids[0, : int(rollout.prompt_lens[0])]
    logits = model(torch.cat([prompt, rollout.completion_ids[0, :-1]])[None])  # (1, Tp + T - 1, V)
    if not logits.isfinite().all():
        raise NonFiniteError(
            f"after {where} the model's logits are not finite: its weights have grown too large, most likely "
            "because the learning rate is too high. Lower it, and go on from the last checkpoint, which is "
            "untouched; the weights in memory are broken"
        )
