r"""A sampler that is not the trainer: what samples in its place, and what is made of the difference.

    prompt -> **rollout** -> reward -> advantage -> **weight** -> loss -> step

In large systems one engine samples and another one trains. The first holds the weights in fewer bits, runs
other kernels, or is some steps behind. Its samples come from :math:`\mu`, and the trainer believes that they
come from its own policy. Here the difference can be switched on, measured and corrected.

What it leaves out, and why: a second process. What counts is which weights have sampled, not where they lay.
"""

import copy
from dataclasses import replace
from typing import TypeVar

import torch

from nanogrpo.kl import entropy, kl_k3
from nanogrpo.microbatches import in_parts, logprobs_under
from nanogrpo.model import GPT
from nanogrpo.offpolicy import sampler_weights
from nanogrpo.packed import completion_logits
from nanogrpo.rollout import Rollout
from nanogrpo.selection import clip_cov, covariance, kl_cov, next_entropy_coef, top_entropy
from nanogrpo.state import TrainState
from nanogrpo.step import Batch
from nanogrpo.variants import VariantConfig

Config = TypeVar("Config", bound=VariantConfig)
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.no_grad()
def sampling_model(model: GPT, config: VariantConfig, state: TrainState) -> GPT:
    """What samples in this step: the policy itself, or a copy made of older or of other weights.

    ``bfloat16`` and ``float16`` convert the copy, which then also multiplies in that precision. ``int8``
    keeps the precision, and rounds each row of a matrix to 255 steps of its largest number. ``noise`` adds
    normal numbers; they are drawn anew in each step, and not from the run's generator.

    A sampler that is ``sampler_lag`` steps old has the weights of that step; at the beginning, those of the
    first one.
    """
    if not config.own_sampler:
        return model
    sampler = copy.deepcopy(model).requires_grad_(False)
    if config.sampler_lag:
        state.past.append({name: p.clone() for name, p in sampler.named_parameters()})
        del state.past[: -config.sampler_lag - 1]
        sampler.load_state_dict(state.past[0], strict=False)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
    for p in sampler.parameters():
        if config.sampler == "int8":
            p.copy_(rounded(p))
        if config.sampler == "noise":
            p.add_(config.sampler_noise * torch.randn(p.shape, generator=generator).to(p))
    return sampler.to(PRECISIONS[config.sampler]) if config.sampler in PRECISIONS else sampler


def sampling_config(config: Config) -> Config:
    """The options that a sampler goes by: the trainer's, at a temperature of its own where it has one."""
    own = config.sampler_temperature
    # What samples corrects nothing, and would be told so.
    return config if own is None else replace(config, temperature=own, sampler_correction="none")


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """The weights as 8-bit whole numbers would keep them, each row with a scale of its own.

    >>> rounded(torch.tensor([[1.27, 0.004, -0.5]]))
    tensor([[ 1.2700,  0.0000, -0.5000]])
    """
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round() * scale


def believe(batch: Batch, model: GPT, config: VariantConfig) -> tuple[Batch, dict[str, float]]:
    """The batch with the trainer's log-probs of what another policy has sampled, and how far it is from that.

    ``sampling/kl`` is KL(sampler || policy) in nats a token, by k3 on the sampler's own tokens. Where a loss
    is to take the sampler's log-probs for the old ones (``sampler_correction="ratio"``), they stay.
    """
    if not config.own_sampler:
        return batch, {}
    mask, theirs = batch.rollout.completion_mask, batch.rollout.logprobs.to(model.head.weight)
    rollout = replace(batch.rollout, logprobs=theirs)
    ours = logprobs_under(model, rollout, config.temperature)  # (B, T)
    metrics = {
        "sampling/kl": (kl_k3(theirs, ours, mask).sum() / mask.sum()).item(),
        "sampling/logp_difference_max": (ours - theirs).where(mask, 0.0).abs().max().item(),
    }
    if config.sampler_correction != "ratio":
        rollout = replace(rollout, logprobs=ours)
    return replace(batch, rollout=rollout, sampler_logprobs=theirs), metrics


def weigh(
    batch: Batch, model: GPT, config: VariantConfig, state: TrainState
) -> tuple[Batch, dict[str, float]]:
    """The batch with the weight of each token on its advantage, and what the weights are.

    Weights of the sampler come first, then what is left out: both multiply. A batch without any of these
    options goes through as it is. Entropies are those of the policy before its first update on the batch.
    """
    rollout, mask, metrics = batch.rollout, batch.rollout.completion_mask, {}
    weight = torch.ones_like(rollout.logprobs)  # (B, T)
    if config.sampler_correction not in ("none", "ratio"):
        level, rule = config.sampler_correction.split("_")
        bounds = (config.sampler_clip_max, config.sampler_clip_min)
        weight = sampler_weights(rollout.logprobs, batch.sampler_logprobs, mask, level, rule, *bounds)
        metrics["sampling/importance_sampling_ratio/mean"] = (weight.sum() / mask.sum()).item()
        metrics["sampling/importance_sampling_ratio/max"] = weight.max().item()
    if config.top_entropy_quantile < 1:
        weight = weight * top_entropy(entropies(model, rollout, config), mask, config.top_entropy_quantile)
    if config.clip_cov_ratio or config.kl_cov_ratio:
        cov = covariance(rollout.logprobs, batch.advantages, mask)  # (B, T)
    if config.clip_cov_ratio:
        share, low, high = config.clip_cov_ratio, config.clip_cov_lb, config.clip_cov_ub
        weight = weight * clip_cov(cov, mask, state.generator, share, low, high)
    if config.kl_cov_ratio:
        batch = replace(batch, careful=kl_cov(cov, mask, config.kl_cov_ratio))
    if (weight == 1).where(mask, True).all():
        return batch, metrics
    advantages = batch.advantages if batch.advantages.ndim == 2 else batch.advantages.unsqueeze(1)
    return replace(batch, advantages=(advantages * weight).where(mask, 0.0)), metrics


def entropies(model: GPT, rollout: Rollout, config: VariantConfig) -> torch.Tensor:
    """The policy's entropy before each sampled token, ``(B, T)``, nats; 0 where masked."""

    def of_part(part: Rollout) -> torch.Tensor:
        logits = completion_logits(model, part.prompt_ids, part.prompt_lens, part.completion_ids)  # (b, t, V)
        return entropy(logits / config.temperature, part.completion_mask)

    return in_parts(rollout, of_part)


def adapt_entropy(batch: Batch, config: VariantConfig, state: TrainState) -> dict[str, float]:
    """What this step pays for entropy, as the option of that name, where it adapts itself; else nothing.

    The price is kept in ``state``. The entropy is the estimate from the sampled tokens. TRL takes that of the
    step before, so its price comes one step later.
    """
    if not config.use_adaptive_entropy:
        return {}
    sampled = (-batch.rollout.logprobs.sum() / batch.rollout.completion_mask.sum()).item()
    before = config.entropy_coef if state.entropy_coef is None else state.entropy_coef
    bounds = (config.entropy_coef_delta, config.entropy_coef_min, config.entropy_coef_max)
    state.entropy_coef = next_entropy_coef(before, sampled, config.entropy_target, *bounds)
    return {"entropy_coef": state.entropy_coef if sampled <= config.entropy_target else 0.0}
