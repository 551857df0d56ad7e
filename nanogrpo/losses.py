r"""From advantages to one number to minimize: policy losses, their aggregation, and three other losses.

    prompt -> rollout -> reward -> advantage -> **loss** -> step

Legend: B rows (completions), T tokens, V vocabulary. ``mask`` is the completion mask: true for each
sampled token, the EOS included. A loss is minimized; the papers state objectives, which are maximized,
so every policy loss here is minus the paper's expression.

Losses come **per token**, (B, T), exactly zero where masked; :func:`aggregate` makes the number. A
log-ratio is masked *before* ``exp``: whatever padding holds, even NaN or infinity, reaches neither the
loss nor the gradient. Old and reference log-probs and advantages are constants and get no gradient.

A policy loss is put together from parts that do not know of each other: whose ratio
(:func:`importance_ratio`), what is made of it (:data:`SURROGATES`), how tokens are averaged
(:func:`aggregate`), and a KL penalty. A new variant is a new row of one of these.

Half precision is taken in float32: differences of log-probs would have lost their digits. A gradient that is
0 because a clip binds stays 0, however large the ratio is.

What is left out: an entropy bonus (add ``-c * entropy(logits)`` to the per-token loss). A weight of a token,
as for a sampler that is not the trainer (:mod:`nanogrpo.offpolicy`), is put on its advantage: every
surrogate is linear in the advantage's size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogrpo.errors import (
    DTypeError,
    MaskError,
    OptionError,
    check_choice,
    check_mask,
    check_range,
    check_shape,
)
from nanogrpo.kl import KL_ESTIMATORS
from nanogrpo.precision import widen
from nanogrpo.surrogates import (
    SHAPES,
    dppo_surrogate,
    gmpo_surrogate,
    per_token,
    sapo_surrogate,
    vespo_surrogate,
)

AGGREGATIONS = ("sequence_mean", "token_mean", "constant", "sequence_sum")


class Denominators(NamedTuple):
    """What a loss is divided by, counted once over the whole batch before it is cut into microbatches.

    Attributes:
        num_sequences: Rows of the whole batch.
        num_tokens: Unmasked tokens of the whole batch.
        max_length: The constant length of ``"constant"``, usually ``max_new_tokens``; None if unused.
    """

    num_sequences: int
    num_tokens: int
    max_length: int | None = None

    @classmethod
    def of(cls, mask: Tensor, max_length: int | None = None) -> Denominators:
        """Count rows and unmasked tokens of the whole batch's (B, T) mask."""
        return cls(mask.shape[0], int(mask.sum()), max_length)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    importance_sampling_level: str = "token",
    surrogate: str = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
    use_bias_correction_kl: bool = False,
    aggregation: str = "token_mean",
    denominators: Denominators | None = None,
    **shape: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The loss of GRPO: clipped ratios times group advantages, plus a KL penalty, averaged over tokens.

    .. math:: L = -\frac1{\sum_i |o_i|} \sum_i \sum_t \left\{
              \min\left(\rho_{it} \hat A_i,\ \mathrm{clip}(\rho_{it}, 1-\epsilon, 1+\epsilon) \hat A_i\right)
              - \beta\, k_{3,it} \right\}, \qquad
              \rho_{it} = \frac{\pi_\theta(o_{it})}{\pi_{\mathrm{old}}(o_{it})}

    Eq. 3 of DeepSeekMath (arXiv 2402.03300) with advantages from
    :func:`nanogrpo.advantages.group_advantages`, but for the mean over tokens: the paper's, first over each
    completion and then over completions, is ``aggregation="sequence_mean"``; the default is DAPO's and
    TRL's. The options make the variants:

    ========= =====================================================================================
    name      options
    ========= =====================================================================================
    GRPO      ``aggregation="sequence_mean"``
    DAPO      ``clip_high=0.28``
    Dr. GRPO  ``aggregation="constant"``, with advantages of ``scale_rewards="none"``
    GSPO      ``importance_sampling_level="sequence", aggregation="sequence_mean"``
    CISPO     ``surrogate="cispo", clip_low=1, clip_high=4``
    ========= =====================================================================================

    Args:
        logprobs: (B, T), the policy's log-probs of the sampled tokens, with gradient.
        old_logprobs: (B, T), those of the policy that sampled. On the first step they are equal in value.
        ref_logprobs: (B, T), those of the frozen reference; None if ``beta`` is 0 and no KL is wanted.
        advantages: (B,) or (B, T), flattened from (P, G): ``advantages.flatten()``.
        completion_mask: (B, T) bool.
        importance_sampling_level: ``"token"``, ``"sequence"`` or ``"sequence_token"``.
        surrogate: A name of :data:`SURROGATES`: ``"clip"`` is :func:`clipped_surrogate`, ``"cispo"`` is
            :func:`cispo_surrogate`, the others are in :mod:`nanogrpo.surrogates`.
        clip_low: How far below 1 the ratio may count (TRL: ``epsilon``).
        clip_high: How far above 1 (TRL: ``epsilon_high``).
        delta: Two-sided cap on the ratio, see :func:`clipped_surrogate`.
        beta: Price of one nat of KL, in units of the advantage.
        kl_estimator: A name of :data:`~nanogrpo.kl.KL_ESTIMATORS`; k1 in a loss restrains nothing, and
            is for study.
        use_bias_correction_kl: Multiply the estimate with the ratio, see :mod:`nanogrpo.kl`.
        aggregation: See :func:`aggregate`.
        denominators: Counts of the whole batch, if this is one microbatch of it.
        shape: Options that only this surrogate has, as ``sapo_temperature_pos``.

    Returns:
        ``(loss, metrics)``. The metrics carry TRL's names, are means over tokens without gradient, and
        like the loss *add up* over microbatches that share ``denominators``: ``clip_ratio/low_mean``,
        ``clip_ratio/high_mean``, ``clip_ratio/region_mean``, and ``kl`` if there is a reference.

    Raises:
        ShapeError, DTypeError, MaskError, OptionError: As in the functions called here; and OptionError
            if ``beta`` is not zero and there is no reference.

    When it is wrong: as a measure of progress. On the first step after sampling all ratios are 1, and
    under ``"sequence_mean"`` the policy's part of the loss is zero, since each group's advantages sum to
    zero, whatever the policy has learned. Its gradient is not zero. Plot the reward.

    >>> logprobs = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]], requires_grad=True)
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> A = torch.tensor([1.0, -1.0])
    >>> loss, _ = grpo_loss(logprobs, logprobs.detach(), None, A, mask, aggregation="sequence_mean")
    >>> loss.item(), torch.autograd.grad(loss, logprobs)[0]
    (0.0, tensor([[-0.2500, -0.2500],
            [ 0.5000,  0.0000]]))
    """
    if beta and ref_logprobs is None:
        raise OptionError(f"beta={beta} needs ref_logprobs; pass them, or beta=0")
    check_choice("kl_estimator", kl_estimator, KL_ESTIMATORS)
    if use_bias_correction_kl:
        check_bias_correction(kl_estimator)
    _check_given(beta, surrogate, shape)
    check_mask(completion_mask, logprobs=logprobs)
    n = denominators or Denominators.of(completion_mask)
    ratio = importance_ratio(logprobs, old_logprobs, completion_mask, importance_sampling_level)  # (B, T)
    per_token = SURROGATES[surrogate](
        ratio, logprobs, advantages, completion_mask, clip_low, clip_high, delta, **shape
    )  # (B, T)
    metrics = clip_fractions(ratio, advantages, completion_mask, clip_low, clip_high, n)
    if ref_logprobs is not None:
        kl = KL_ESTIMATORS[kl_estimator](logprobs, ref_logprobs, completion_mask)  # (B, T)
        metrics["kl"] = kl.detach().sum() / n.num_tokens
        if use_bias_correction_kl:
            kl = importance_ratio(logprobs, old_logprobs, completion_mask) * kl
        per_token = per_token + beta * kl
    return aggregate(per_token, completion_mask, aggregation, n), metrics


def check_bias_correction(kl_estimator: str) -> None:
    """Raise OptionError for k2, whose gradient the ratio spoils; it mends those of k1 and k3."""
    if kl_estimator == "k2":
        raise OptionError(
            "use_bias_correction_kl=True with kl_estimator='k2' has the gradient of no KL: "
            "k2 alone has the reverse KL's on fresh ones. Choose k1 or k3, or leave the correction out"
        )


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, level: str = "token") -> Tensor:
    r"""How much more probable the policy makes a token, or a completion, than the policy that sampled it.

    .. math:: \text{token: } \rho_{it} = \frac{\pi_\theta(o_{it})}{\pi_{\mathrm{old}}(o_{it})}, \qquad
              \text{sequence: } s_i = \exp\Big(\frac1{|o_i|} \sum_t \log \rho_{it}\Big)

    The sequence ratio is that of GSPO (arXiv 2507.18071): the geometric mean of the token ratios, one
    number a completion, here repeated over its tokens. ``"sequence_token"`` (GSPO-token) has the same
    value, but the gradient of each entry runs through its own token, so that advantages may differ from
    token to token.

    Args:
        logprobs: (B, T), with gradient.
        old_logprobs: (B, T), taken as constants.
        mask: (B, T) bool.
        level: ``"token"``, ``"sequence"`` or ``"sequence_token"`` (TRL: ``importance_sampling_level``).

    Returns:
        (B, T), positive; 1 at masked places with ``"token"``.

    Raises:
        ShapeError, DTypeError: Shapes differ, or ``mask`` is not bool.
        OptionError: Unknown ``level``.

    When it is wrong: if the two log-probs come from different temperatures, or from dropout. On the
    first step after sampling every ratio must be 1.

    >>> new, old = torch.tensor([[1.1, 0.9, 1.5]]).log(), torch.zeros(1, 3)
    >>> importance_ratio(new, old, torch.ones(1, 3, dtype=torch.bool))
    tensor([[1.1000, 0.9000, 1.5000]])
    >>> importance_ratio(new, old, torch.ones(1, 3, dtype=torch.bool), "sequence")
    tensor([[1.1409, 1.1409, 1.1409]])
    """
    check_choice("importance_sampling_level", level, ("token", "sequence", "sequence_token"))
    logprobs, old_logprobs = widen("logprobs", logprobs), widen("old_logprobs", old_logprobs)
    check_mask(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0.0)  # (B, T), masked BEFORE exp
    if level == "token":
        return _exp(log_ratio)
    mean = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
    if level == "sequence_token":
        return _exp(mean.detach() + log_ratio - log_ratio.detach())
    return _exp(mean).expand_as(log_ratio)


def clipped_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
) -> Tensor:
    r"""Raise the ratio where the advantage is positive, lower it where it is negative, up to a point.

    .. math:: \ell = -\min\left(\rho A,\
              \mathrm{clip}(\rho, 1-\epsilon_{\mathrm{low}}, 1+\epsilon_{\mathrm{high}}) A\right)

    PPO (arXiv 1707.06347); two separate bounds since DAPO (arXiv 2503.14476). The gradient is zero where
    A > 0 and the ratio is above 1 + clip_high, or A < 0 and it is below 1 - clip_low; otherwise it is
    that of -A * ratio. For A < 0 nothing bounds a *large* ratio. ``delta`` does: the first argument of
    the minimum becomes min(ratio, delta) * A (arXiv 2505.07291).

    Args:
        ratio: (B, T), see :func:`importance_ratio`.
        advantages: (B,), one a completion, or (B, T), one a token.
        mask: (B, T) bool.
        clip_low: At least 0; 1 or more means no lower bound.
        clip_high: At least 0.
        delta: None, or above 1 + clip_high.

    Returns:
        (B, T), a loss for each token, zero where masked.

    Raises:
        ShapeError, DTypeError: Shapes do not fit, or ``mask`` is not bool.
        OptionError: A bound is out of its range.

    When it is wrong: as a trust region. Clipping takes away the reason to go further, it does not pull
    back, and a step may overshoot the bounds.

    >>> ratio, mask = torch.tensor([[1.5, 0.5], [1.5, 0.5]]), torch.ones(2, 2, dtype=torch.bool)
    >>> clipped_surrogate(ratio, torch.tensor([1.0, -1.0]), mask)
    tensor([[-1.2000, -0.5000],
            [ 1.5000,  0.8000]])
    """
    _check_clip(clip_low, clip_high, delta)
    check_mask(mask, ratio=ratio)
    ratio, advantages = widen("ratio", ratio), _constant(advantages, mask)  # (B, T)
    capped = ratio if delta is None else ratio.clamp(max=delta)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.min(capped * advantages, clipped * advantages)  # (B, T)
    return torch.where(mask & (advantages != 0), loss, 0.0)  # an infinite ratio times 0 is 0, too


def aggregate(
    per_token: Tensor, mask: Tensor, how: str = "token_mean", denominators: Denominators | None = None
) -> Tensor:
    r"""Turn per-token losses (B, T) into the number to minimize. Here sits the length bias.

    .. math:: L = \sum_i w_i \sum_t \ell_{it}, \qquad
              w_i = \frac{1}{B\,|o_i|},\ \frac{1}{\sum_j |o_j|},\ \frac{1}{B L_{\max}},\ \frac1B

    The weights of GRPO (arXiv 2402.03300), DAPO (arXiv 2503.14476), Dr. GRPO (arXiv 2503.20783) and
    REINFORCE, in the order of this table:

    ================= ========================================== ======================= ==============
    ``how``           weight of a token of completion i          who                     TRL loss_type
    ================= ========================================== ======================= ==============
    ``sequence_mean`` 1 / (B * length of i)                      GRPO, arXiv 2402.03300  ``grpo``
    ``token_mean``    1 / (number of tokens in the batch)        DAPO, arXiv 2503.14476  ``dapo``
    ``constant``      1 / (B * max_length)                       Dr. GRPO, 2503.20783    ``dr_grpo``
    ``sequence_sum``  1 / B                                      REINFORCE               none, ``luspo``
    ================= ========================================== ======================= ==============

    (DAPO's paper counts the tokens of one group; here and in TRL they are those of the whole batch.
    TRL's ``cispo`` also uses ``token_mean``; its ``bnpo`` is ``token_mean`` with the denominator of one
    microbatch, which makes the result depend on how the batch was cut; its ``luspo`` is ``sequence_sum``
    of a sequence-level ratio.)

    To cut a batch into microbatches, count ``Denominators.of(mask)`` once over the whole batch and pass it
    to each: the *sum* of the results, and of their gradients, is then that of the whole batch. Do not
    divide by the number of microbatches. Cut between rows, not through them.

    Args:
        per_token: (B, T).
        mask: (B, T) bool. A row without any true adds nothing, and still counts as one of the B.
        how: One of the four names above.
        denominators: Counts of the whole batch; None if this is the whole batch.

    Returns:
        A scalar.

    Raises:
        ShapeError, DTypeError: Shapes differ, or ``mask`` is not bool.
        MaskError: The whole batch has no unmasked token.
        OptionError: Unknown ``how``; ``"constant"`` without ``max_length``; counts smaller than this batch.

    When it is wrong: ``sequence_mean`` and ``token_mean`` tie a token's weight to lengths that the policy
    itself chooses. Under ``sequence_mean`` a wrong answer is punished less the longer it is. Only
    ``sequence_sum`` and ``constant`` keep the policy gradient's direction.

    >>> mask = torch.arange(7) < torch.tensor([[4], [7]])  # completions of 4 and of 7 tokens
    >>> n = Denominators.of(mask, max_length=7)
    >>> for how in AGGREGATIONS:
    ...     weight = torch.ones(2, 7, requires_grad=True)
    ...     aggregate(weight, mask, how, n).backward()
    ...     print(how, [round(w, 4) for w in weight.grad[:, 0].tolist()])
    sequence_mean [0.125, 0.0714]
    token_mean [0.0909, 0.0909]
    constant [0.0714, 0.0714]
    sequence_sum [0.5, 0.5]
    """
    check_choice("aggregation", how, AGGREGATIONS)
    check_mask(mask, per_token=per_token)
    n = denominators or Denominators.of(mask)
    _check_counts(n, mask, how)
    per_token = torch.where(mask, widen("per_token", per_token), 0.0)  # (B, T)
    if how == "sequence_mean":
        per_token = per_token / mask.sum(1, keepdim=True).clamp(min=1)
    if how == "token_mean":
        return per_token.sum() / n.num_tokens
    if how == "constant" and n.max_length:
        return per_token.sum() / (n.num_sequences * n.max_length)
    return per_token.sum() / n.num_sequences


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    r"""The plain policy gradient: make each sampled token more probable, by its advantage.

    .. math:: \ell_{it} = -A_i \log \pi_\theta(o_{it})

    Williams 1992. With advantages (B,) and ``aggregate(..., "sequence_sum")`` its gradient is minus the
    score-function estimate of the gradient of the expected reward.

    Args:
        logprobs: (B, T), with gradient.
        advantages: (B,) or (B, T), taken as constants.
        mask: (B, T) bool.

    Returns:
        (B, T), zero where masked. Only the gradient has a meaning, the value has none.

    Raises:
        ShapeError, DTypeError: Shapes do not fit, or ``mask`` is not bool.

    When it is wrong: for a second step on the same samples; they no longer come from the policy.

    >>> reinforce_loss(torch.tensor([[-1.0, -2.0]]), torch.tensor([0.5]), torch.tensor([[True, True]]))
    tensor([[0.5000, 1.0000]])
    """
    check_mask(mask, logprobs=logprobs)
    return -_constant(advantages, mask) * torch.where(mask, widen("logprobs", logprobs), 0.0)  # (B, T)


def cispo_surrogate(
    ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> Tensor:
    r"""REINFORCE with a bounded importance weight: no token's gradient is ever cut to zero. CISPO.

    .. math:: \ell_{it} = -\mathrm{sg}\left[\mathrm{clip}(\rho_{it}, 1-\epsilon_{\mathrm{low}},
              1+\epsilon_{\mathrm{high}})\right] A_i \log \pi_\theta(o_{it})

    MiniMax-M1 (arXiv 2506.13585), which averages with ``token_mean``. ``sg`` stops the gradient. The
    bounds are distances from 1, as everywhere here; TRL's ``epsilon_high`` for ``cispo`` is the bound
    itself, so its 5.0 is 4.0 here. ``clip_low=1`` means no lower bound.

    Args:
        ratio: (B, T), see :func:`importance_ratio`; taken as a constant.
        logprobs: (B, T), with gradient.
        advantages: (B,) or (B, T), taken as constants.
        mask: (B, T) bool.
        clip_low: At least 0.
        clip_high: At least 0.

    Returns:
        (B, T), zero where masked. Only the gradient has a meaning, the value has none.

    Raises:
        ShapeError, DTypeError, OptionError: As for :func:`clipped_surrogate`.

    When it is wrong: if nothing else holds the policy back, over many steps on the same samples.

    >>> new, mask = torch.tensor([[8.0, 1.5]]).log().requires_grad_(), torch.tensor([[True, True]])
    >>> ratio = importance_ratio(new, torch.zeros(1, 2), mask)
    >>> loss = cispo_surrogate(ratio, new, torch.tensor([1.0]), mask)
    >>> torch.autograd.grad(loss.sum(), new)[0]
    tensor([[-5.0000, -1.5000]])
    """
    _check_clip(clip_low, clip_high, None)
    check_mask(mask, ratio=ratio)
    weight = widen("ratio", ratio).detach().clamp(1 - clip_low, 1 + clip_high)  # (B, T)
    return weight * reinforce_loss(logprobs, advantages, mask)  # (B, T)


# What is made of the ratio: a loss for each token from (ratio, logprobs, advantages, mask, low, high, delta),
# and from options that only one of them has, by name.
SURROGATES = {
    "clip": lambda ratio, logprobs, *rest: clipped_surrogate(ratio, *rest),
    "cispo": lambda ratio, logprobs, *rest: cispo_surrogate(ratio, logprobs, *rest[:-1]),
    "sapo": lambda ratio, logprobs, A, mask, *_, **shape: sapo_surrogate(ratio, A, mask, **shape),
    "dppo_tv": lambda *args: dppo_surrogate(*args, divergence="tv"),
    "dppo_kl": lambda *args: dppo_surrogate(*args, divergence="kl"),
    "gmpo": lambda ratio, logprobs, *rest: gmpo_surrogate(ratio, *rest[:-1]),
    "vespo": lambda ratio, logprobs, A, mask, *_, **shape: vespo_surrogate(ratio, logprobs, A, mask, **shape),
}


@torch.no_grad()
def clip_fractions(
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    denominators: Denominators | None = None,
) -> dict[str, Tensor]:
    r"""Count the share of tokens whose gradient the clip has cut to zero, below and above.

    .. math:: \tfrac1N \left|\{it : A_{it} < 0,\ \rho_{it} < 1 - \epsilon_{\mathrm{low}}\}\right|, \qquad
              \tfrac1N \left|\{it : A_{it} > 0,\ \rho_{it} > 1 + \epsilon_{\mathrm{high}}\}\right|

    TRL logs them under the same names. N is the number of tokens.

    Args:
        ratio: (B, T).
        advantages: (B,) or (B, T).
        mask: (B, T) bool.
        clip_low: As given to :func:`clipped_surrogate`.
        clip_high: As given to :func:`clipped_surrogate`.
        denominators: Counts of the whole batch; shares of microbatches then add up.

    Returns:
        ``clip_ratio/low_mean``, ``clip_ratio/high_mean``, ``clip_ratio/region_mean`` (their sum), as in TRL.

    Raises:
        ShapeError, DTypeError: As for :func:`clipped_surrogate`.

    When it is wrong: with ``delta``, whose own cut it does not count.

    >>> ratio, mask = torch.tensor([[1.5, 0.5], [1.5, 0.5]]), torch.ones(2, 2, dtype=torch.bool)
    >>> clip_fractions(ratio, torch.tensor([1.0, -1.0]), mask)["clip_ratio/high_mean"]
    tensor(0.2500)
    """
    check_mask(mask, ratio=ratio)
    ratio, advantages = widen("ratio", ratio), _constant(advantages, mask)  # (B, T)
    tokens = (denominators or Denominators.of(mask)).num_tokens
    low = (mask & (ratio < 1 - clip_low) & (advantages < 0)).sum().to(ratio.dtype) / tokens
    high = (mask & (ratio > 1 + clip_high) & (advantages > 0)).sum().to(ratio.dtype) / tokens
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low + high}


def value_loss(
    values: Tensor,
    returns: Tensor,
    mask: Tensor,
    old_values: Tensor | None = None,
    clip_range: float | None = None,
) -> Tensor:
    r"""The critic's error for each token; with clipping, a change beyond the range earns nothing.

    .. math:: \ell = \tfrac12 (V - R)^2, \qquad
              \ell_{\mathrm{clip}} = \tfrac12 \max\left((V-R)^2,\
              (V_{\mathrm{old}} + \mathrm{clip}(V - V_{\mathrm{old}}, -c, c) - R)^2\right)

    The clipped form comes from the code of PPO, not from its paper.

    Args:
        values: (B, T), with gradient, in the unit of the rewards.
        returns: (B, T), targets from :func:`nanogrpo.advantages.gae`, taken as constants.
        mask: (B, T) bool.
        old_values: (B, T), the critic when the rollout was made, taken as constants.
        clip_range: c, in the unit of the rewards. Needs ``old_values``, and is needed by it.

    Returns:
        (B, T), zero where masked, in squared units of the rewards.

    Raises:
        ShapeError, DTypeError: Shapes differ, or ``mask`` is not bool.
        OptionError: One of ``old_values`` and ``clip_range`` without the other.

    When it is wrong: clipping, when the scale of the rewards is far from 1; c is an absolute number.

    >>> v, r, old = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    >>> mask = torch.tensor([[True, True]])
    >>> value_loss(v, r, mask), value_loss(v, r, mask, old, clip_range=0.2)
    (tensor([[0.5000, 0.5000]]), tensor([[1.6200, 0.5000]]))
    """
    if (old_values is None) != (clip_range is None):
        raise OptionError(f"clip_range={clip_range} and old_values go together; pass both or neither")
    if clip_range is not None:
        check_range("clip_range", clip_range)
    values, returns = widen("values", values), widen("returns", returns)
    check_mask(mask, values=values, returns=returns)
    error = torch.where(mask, values - returns.detach(), 0.0) ** 2  # (B, T)
    if old_values is not None and clip_range is not None:
        check_mask(mask, old_values=old_values)
        old, target = widen("old_values", old_values).detach(), returns.detach()
        clipped = old + (values - old).clamp(-clip_range, clip_range)
        error = torch.max(error, torch.where(mask, clipped - target, 0.0) ** 2)
    return 0.5 * error


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Surprise at a preference, if the odds of winning are the exponential of the score difference.

    .. math:: \ell = -\log \sigma(r_{\mathrm{chosen}} - r_{\mathrm{rejected}})

    The loss of a reward model (InstructGPT, arXiv 2203.02155). It is log 2 for equal scores, and its
    gradient for the chosen score is minus the probability given to the wrong order.

    Args:
        chosen: (N,), scores of the preferred completions, with gradient.
        rejected: (N,), scores of the others.

    Returns:
        (N,), nats a pair; take the mean.

    Raises:
        ShapeError: Shapes differ.

    When it is wrong: if labels are not all preferences of one judge, or ties are common. It fixes scores
    only up to a constant for each prompt.

    >>> bradley_terry_loss(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0]))
    tensor([0.6931, 0.1269])
    """
    chosen, rejected = widen("chosen", chosen), widen("rejected", rejected)
    check_shape("rejected", rejected, tuple(chosen.shape), "the shape of chosen")
    return -F.logsigmoid(chosen - rejected)


def sft_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    r"""Surprise at each completion token of a demonstration; prompt and padding do not count.

    .. math:: \ell_{t} = -\log \pi_\theta(y_t \mid y_{<t})

    Maximum likelihood, as in pretraining.

    Args:
        logits: (B, T, V); ``logits[:, t]`` predicts ``targets[:, t]``, so the shift is already made.
        targets: (B, T), token ids; anything may stand where the mask is false.
        mask: (B, T) bool, true for completion tokens, EOS included.

    Returns:
        (B, T), nats, zero where masked. ``aggregate(..., "token_mean")`` gives the usual loss.

    Raises:
        ShapeError, DTypeError: Shapes do not fit, or ``mask`` is not bool.

    When it is wrong: with the EOS left out of the mask; the model then never learns to stop.

    >>> sft_loss(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]), torch.tensor([[True, False]]))
    tensor([[1.3863, 0.0000]])
    """
    logits = widen("logits", logits)
    check_mask(mask, targets=targets)
    if targets.dtype != torch.int64:
        raise DTypeError(f"targets are {targets.dtype}, need token ids; use targets.long()")
    check_shape("logits", logits, (*mask.shape, *logits.shape[-1:]), "the shape of mask, then V")
    kept = F.cross_entropy(logits[mask], targets[mask], reduction="none")  # (N,), unmasked tokens only
    return kept.new_zeros(mask.shape).masked_scatter(mask, kept)  # (B, T)


def _constant(advantages: Tensor, mask: Tensor) -> Tensor:
    """Give advantages (B,) or (B, T) the shape (B, T), without gradient, zero where masked."""
    advantages = per_token(advantages, mask)
    return torch.where(mask, advantages.detach(), 0.0)


class _Exp(torch.autograd.Function):
    """``exp``, whose gradient is 0 where none comes back: not 0 times infinity, where the ratio overflows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(y := x.exp())
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return (grad * y).masked_fill(grad == 0, 0.0)


def _exp(log_ratio: Tensor) -> Tensor:
    return _Exp.apply(log_ratio)


def _check_clip(clip_low: float, clip_high: float, delta: float | None) -> None:
    if not (clip_low >= 0 and clip_high >= 0):
        raise OptionError(f"clip_low={clip_low} and clip_high={clip_high} are distances from 1, at least 0")
    if delta is not None and not delta > 1 + clip_high:
        raise OptionError(
            f"delta={delta} bounds the ratio itself; it must be above 1 + clip_high={1 + clip_high}"
        )


def _check_given(beta: float, surrogate: str, shape: dict[str, float]) -> None:
    check_choice("surrogate", surrogate, SURROGATES)
    check_range("beta", beta)
    if odd := sorted(shape.keys() - set(SHAPES.get(surrogate, ()))):
        raise OptionError(f"surrogate={surrogate!r} has no option {', '.join(odd)}")


def _check_counts(n: Denominators, mask: Tensor, how: str) -> None:
    if n.num_tokens == 0:
        raise MaskError("the whole batch has no unmasked token; check completion_mask")
    if n.num_sequences < mask.shape[0]:
        raise OptionError(f"denominators count {n.num_sequences} sequences, this part has {mask.shape[0]}")
    if n.num_tokens < int(mask.sum()):
        raise OptionError(f"denominators count {n.num_tokens} tokens, this part has {int(mask.sum())}")
    if how == "constant" and not (n.max_length and n.max_length > 0):
        raise OptionError("aggregation='constant' needs Denominators.of(mask, max_length=max_new_tokens)")
