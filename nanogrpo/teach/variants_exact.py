r"""What each variant does, exactly: its mean update and its noise on the microscope, on and off policy.

A row of :data:`nanogrpo.variants.VARIANTS` becomes an estimator of :mod:`nanogrpo.teach.exact`, put together
as the trainer puts it together: advantages, weights on them, and :func:`nanogrpo.losses.grpo_loss`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanogrpo.advantages import baseline_advantages
from nanogrpo.grpo import GRPOConfig
from nanogrpo.kl import entropy
from nanogrpo.losses import Denominators, aggregate, grpo_loss
from nanogrpo.model import GPT
from nanogrpo.offpolicy import off_policy_mask, sampler_weights
from nanogrpo.rollout import completion_logits
from nanogrpo.selection import clip_cov, covariance, kl_cov, top_entropy
from nanogrpo.surrogates import per_token
from nanogrpo.teach.exact import Estimator, Microscope, Sample, pad

OF_THE_LOSS = (
    "importance_sampling_level", "surrogate", "clip_low", "clip_high", "delta", "beta",
    "use_bias_correction_kl", "aggregation",
)  # fmt: skip


class Effect(NamedTuple):
    """What a mean update does, all without a unit.

    Attributes:
        cosine: Of the mean update and the gradient of the expected reward; 1 is the same direction.
        length: Of the mean update, in lengths of that gradient.
        noise: Standard deviation of one batch's update, in lengths of the *mean* update.
        entropy: Slope of the entropy of completions along a mean update of length 1, nats.
        tokens: Slope of the expected length along it, tokens.
    """

    cosine: float
    length: float
    noise: float
    entropy: float
    tokens: float


def estimator(options: dict[str, Any], scope: Microscope, policy: GPT, group_size: int) -> Estimator:
    """The loss of a variant on one batch of the microscope, for the policy that is trained.

    ``old_logprobs`` of a sample are those of the policy that sampled. Without a ``sampler_correction`` they
    stand in the ratio of the loss; with one, they stand in its weights.
    """
    config = GRPOConfig(max_new_tokens=scope.ids.shape[1], group_size=group_size, std_eps=0.0, **options)
    logits = torch.cat([completion_logits(policy, *pad([p]), scope.ids) for p in scope.prompts])
    tables = dict(zip(map(str, scope.ids.tolist()), entropy(logits.detach()), strict=False))

    def loss(s: Sample) -> Tensor:
        n = Denominators.of(s.mask, config.max_new_tokens)
        new, corrected = s.logprobs.detach(), config.sampler_correction not in ("none", "ratio")
        old = new if corrected else s.old_logprobs
        advantages = baseline_advantages(
            s.rewards, config.baseline, config.scale_rewards, config.std_eps, config.correction,
            s.mask.sum(1).view_as(s.rewards),
        )  # fmt: skip
        A = per_token(advantages.flatten(), s.mask)  # (B, T)
        A = A * _weights(config, s, old, A, tables)
        chosen = {name: getattr(config, name) for name in OF_THE_LOSS} | config.shape
        found = grpo_loss(s.logprobs, old, s.ref_logprobs, A, s.mask, denominators=n, **chosen)[0]
        if config.kl_cov_ratio:
            paid = (s.logprobs - old).abs() * kl_cov(covariance(old, A, s.mask), s.mask, config.kl_cov_ratio)
            found = found + aggregate(config.kl_cov_coef * paid, s.mask, config.aggregation, n)
        return found

    return loss


def _weights(config: GRPOConfig, s: Sample, old: Tensor, A: Tensor, tables: dict[str, Tensor]) -> Tensor:
    weight = torch.ones_like(A)
    if config.sampler_correction not in ("none", "ratio"):
        level, rule = config.sampler_correction.split("_")
        bounds = (config.sampler_clip_max, config.sampler_clip_min)
        weight = sampler_weights(old, s.old_logprobs, s.mask, level, rule, *bounds)
    if config.off_policy_mask_threshold is not None:
        near = off_policy_mask(s.logprobs, s.old_logprobs, A, s.mask, config.off_policy_mask_threshold)
        weight = weight * near
    if config.top_entropy_quantile < 1:
        entropies = torch.stack([tables[str(row)] for row in s.completion_ids.tolist()])
        weight = weight * top_entropy(entropies, s.mask, config.top_entropy_quantile)
    if config.clip_cov_ratio:
        how = (config.clip_cov_ratio, config.clip_cov_lb, config.clip_cov_ub)
        cov, always = covariance(old, A, s.mask), torch.Generator().manual_seed(0)
        weight = weight * clip_cov(cov, s.mask, always, *how)
    return weight


def effect(
    options: dict[str, Any], policy: GPT, rewards: Tensor, group_size: int, *, sampler: GPT | None = None,
    prompt: tuple[int, ...] = (2,), max_new_tokens: int = 3, reference: GPT | None = None,
) -> Effect:  # fmt: skip
    """The exact effect of one variant; ``sampler`` is the policy that samples, else the policy itself."""
    scope = Microscope(policy, [list(prompt)], max_new_tokens, old=sampler, reference=reference)
    if sampler is not None:
        options = {"sampler": "noise", "sampler_noise": 1.0, **options}
    moments = scope.expect(estimator(options, scope, policy, group_size), rewards, group_size)
    ascent, exact = -moments.gradient, scope.gradient(scope.objective(rewards))
    along = ascent / ascent.norm()
    return Effect(
        (along @ exact / exact.norm()).item(),
        (ascent.norm() / exact.norm()).item(),
        (moments.variance.sqrt() / ascent.norm()).item(),
        (along @ scope.gradient(scope.entropy())).item(),
        (along @ scope.gradient(scope.expected_length())).item(),
    )
