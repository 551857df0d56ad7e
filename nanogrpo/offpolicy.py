r"""Weights for samples that do not come from the policy that is trained.

    prompt -> rollout -> reward -> advantage -> **weight** -> loss -> step

Legend: B rows (completions), T tokens. Three policies may differ. :math:`\mu` has sampled: an engine of its
own, half precision, an older copy. :math:`\pi_{\mathrm{old}}` is the trainer's policy when the batch was
made, :math:`\pi_\theta` the one that is being updated. The ratio of a loss is
:math:`\pi_\theta / \pi_{\mathrm{old}}`; what is left, :math:`\pi_{\mathrm{old}} / \mu`, is the weight here.

A weight multiplies the advantage. It is a constant, so it changes what is averaged and not what is ascended.

========================  ==========  ==========  ======================  ==========================
name                      ``level``   ``rule``    TRL                     verl
========================  ==========  ==========  ======================  ==========================
TIS, token                token       truncate    ``token_truncate``      ``rollout_is="token"``
TIS, sequence             sequence    truncate    ``sequence_truncate``   ``rollout_is="sequence"``
MIS, token; IcePop        token       mask        ``token_mask``          token, ``"0.5_5.0"``
MIS, sequence             sequence    mask        ``sequence_mask``       sequence, ``"0.5_5.0"``
========================  ==========  ==========  ======================  ==========================

(In TRL the option is ``vllm_importance_sampling_mode``, in verl the third column is
``rollout_is_threshold``.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanogrpo.errors import OptionError, check_choice, check_mask, check_range
from nanogrpo.precision import widen
from nanogrpo.surrogates import per_token

LEVELS = ("token", "sequence")
RULES = ("truncate", "mask")


@torch.no_grad()
def sampler_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    level: str = "token",
    rule: str = "truncate",
    sampler_clip_max: float | None = 2.0,
    sampler_clip_min: float | None = None,
) -> Tensor:
    r"""How much more probable the trainer's policy makes what another one has sampled, held within bounds.

    .. math:: \text{token: } w_{it} = \frac{\pi_{\mathrm{old}}(o_{it})}{\mu(o_{it})}, \qquad
              \text{sequence: } w_i = \prod_t w_{it}

    ``"truncate"`` moves a weight to the nearest bound: truncated importance sampling (Yao et al. 2025).
    ``"mask"`` makes it 0 outside of the bounds: masked importance sampling, which for tokens, with a lower
    bound, is IcePop.
    TRL's default is ``"mask"`` of the sequence with 3 and no lower bound, verl's threshold is 2.

    The sequence weight is the product, as the mean over samples needs it, and not the geometric mean of GSPO.

    Args:
        old_logprobs: (B, T), the trainer's, when the batch was made.
        sampler_logprobs: (B, T), those of the policy that sampled.
        mask: (B, T) bool.
        level: ``"token"`` or ``"sequence"``.
        rule: ``"truncate"`` or ``"mask"``.
        sampler_clip_max: Largest weight, above 0; None for none.
        sampler_clip_min: Smallest weight, at least 0 and below the largest; None for none.

    Returns:
        (B, T), constants, at least 0, zero where masked.

    Raises:
        ShapeError, DTypeError: Shapes differ, or ``mask`` is not bool.
        OptionError: Unknown ``level`` or ``rule``; bounds that cross.

    When it is wrong: a token's weight corrects the token and not the prefix before it, so it is biased
    however loose its bounds are; that of a sequence is unbiased without bounds, and its variance grows with
    the length as a power does. Bounds buy less variance with bias. And if both log-probs come from one
    policy, a weight other than 1 is a mistake elsewhere: temperature, or a mask.

    >>> old, mu = torch.tensor([[0.6, 0.5]]).log(), torch.tensor([[0.2, 0.4]]).log()
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> sampler_weights(old, mu, mask)
    tensor([[2.0000, 1.2500]])
    >>> sampler_weights(old, mu, mask, "sequence", "mask", sampler_clip_max=4.0)  # 3 * 1.25
    tensor([[3.7500, 3.7500]])
    >>> sampler_weights(old, mu, mask, rule="mask")
    tensor([[0.0000, 1.2500]])
    """
    check_choice("level", level, LEVELS)
    check_choice("rule", rule, RULES)
    check_bounds(sampler_clip_min, sampler_clip_max)
    old, mu = widen("old_logprobs", old_logprobs), widen("sampler_logprobs", sampler_logprobs)
    check_mask(mask, old_logprobs=old, sampler_logprobs=mu)
    log_weight = torch.where(mask, old - mu, 0.0)  # (B, T), masked BEFORE exp
    if level == "sequence":
        log_weight = log_weight.sum(1, keepdim=True).expand_as(log_weight)
    weight = log_weight.exp()
    if rule == "truncate":
        if (sampler_clip_min, sampler_clip_max) != (None, None):
            weight = weight.clamp(sampler_clip_min, sampler_clip_max)
    else:
        low, high = sampler_clip_min or 0.0, sampler_clip_max or torch.inf
        weight = torch.where((weight >= low) & (weight <= high), weight, 0.0)
    return torch.where(mask, weight, 0.0)


def check_bounds(low: float | None, high: float | None) -> None:
    """Raise OptionError unless ``0 <= low < high`` and ``high > 0``, where they are given."""
    if not 0 <= (low or 0.0) < (torch.inf if high is None else high):
        raise OptionError(
            f"sampler_clip_min={low} and sampler_clip_max={high} bound a quotient of probabilities: the "
            "first is at least 0, and the second is above it"
        )


@torch.no_grad()
def off_policy_mask(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    off_policy_mask_threshold: float,
) -> Tensor:
    r"""Leave out a bad completion that the policy has moved away from, whole. OPSM.

    .. math:: M_i = 0 \text{ if } A_i < 0 \text{ and }
              \frac{1}{|o_i|} \sum_t \log \frac{\mu(o_{it})}{\pi_\theta(o_{it})} > \delta
              \text{, else } 1

    Off-policy sequence masking of DeepSeek-V3.2 (arXiv 2512.02556, Eq. 9); its mean is k1, an estimate of
    :math:`\mathrm{KL}(\mu \| \pi_\theta)` a token. TRL: ``off_policy_mask_threshold``. verl: rejection by
    ``rollout_rs="seq_mean_k1"`` is close, and looks at good completions, too.

    Args:
        logprobs: (B, T), those of the policy that is being updated.
        sampler_logprobs: (B, T), those of the policy that sampled.
        advantages: (B,) or (B, T).
        mask: (B, T) bool.
        off_policy_mask_threshold: :math:`\delta`, nats a token.

    Returns:
        (B, T) bool, true where a token counts; false where masked.

    Raises:
        ShapeError, DTypeError: Shapes do not fit, or ``mask`` is not bool.

    When it is wrong: as a correction. What is left out is not random: bad completions that have become rare
    no longer count, and those that have become frequent do.

    >>> new, mu = torch.tensor([[-3.0], [-3.0], [-1.0]]), torch.full((3, 1), -1.0)
    >>> mask, A = torch.ones(3, 1, dtype=torch.bool), torch.tensor([1.0, -1.0, -1.0])
    >>> off_policy_mask(new, mu, A, mask, 0.5).flatten()
    tensor([ True, False,  True])
    """
    check_range("off_policy_mask_threshold", off_policy_mask_threshold, -math.inf)
    new, mu = widen("logprobs", logprobs), widen("sampler_logprobs", sampler_logprobs)
    check_mask(mask, logprobs=new, sampler_logprobs=mu)
    gap = torch.where(mask, mu - new, 0.0).sum(1, keepdim=True)  # (B, 1)
    near = gap / mask.sum(1, keepdim=True).clamp(min=1) <= off_policy_mask_threshold
    return mask & ((per_token(advantages, mask) >= 0) | near)
