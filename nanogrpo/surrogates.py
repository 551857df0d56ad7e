r"""What else can be made of the ratio of a token: gates, trust regions and weights in place of the clip.

    prompt -> rollout -> reward -> advantage -> **loss** -> step

Each function gives a loss for each token, (B, T), zero where masked, as
:func:`nanogrpo.losses.clipped_surrogate` does, and is a row of :data:`nanogrpo.losses.SURROGATES`. All are
linear in the size of the advantage, so a weight of a token may be put on its advantage, and all have the
slope of REINFORCE where the ratio is 1.

``ratio`` is that of single tokens, of ``importance_sampling_level="token"``, where nothing else is said.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanogrpo.errors import NonFiniteError, OptionError, ShapeError, check_choice, check_mask, check_shape
from nanogrpo.precision import widen

MAX_LOG_WEIGHT = 20.0  # e**20 and 1e-8 bound the weight of a completion, as in TRL
MIN_WEIGHT = 1e-8
SHAPES = {  # options that only one surrogate has
    "sapo": ("sapo_temperature_pos", "sapo_temperature_neg"),
    "vespo": ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
}


def sapo_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
) -> Tensor:
    r"""A soft gate in place of the clip: the gradient fades with the ratio's distance from 1. SAPO.

    .. math:: \ell = -\frac4\tau\,\sigma\big(\tau (\rho - 1)\big)\, A, \qquad
              \frac{\partial \ell}{\partial \log \pi} = -4\,\sigma(1 - \sigma)\,\rho A

    Soft Adaptive Policy Optimization (arXiv 2511.20347). :math:`\tau` is ``sapo_temperature_pos`` where
    A > 0 and ``sapo_temperature_neg`` elsewhere. TRL: ``loss_type="sapo"``; verl: ``loss_mode="sapo"`` with
    ``tau_pos`` and ``tau_neg``. Both average with ``"sequence_mean"``.

    Args:
        ratio: (B, T), of any level.
        advantages: (B,) or (B, T), taken as constants.
        mask: (B, T) bool.
        sapo_temperature_pos: Above 0; the larger, the narrower the gate.
        sapo_temperature_neg: Above 0.

    Returns:
        (B, T), a loss for each token, zero where masked.

    Raises:
        ShapeError, DTypeError: Shapes do not fit, or ``mask`` is not bool.
        OptionError: A temperature is not above 0.

    When it is wrong: as a trust region. The factor before the ratio falls, but its product with the ratio
    is largest near 2, not at 1: with temperature 1 a token at ratio 3 is still pushed harder than one at 1.

    >>> ratio, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> sapo_surrogate(ratio, torch.tensor([1.0]), mask)
    tensor([[-2.0000, -3.5232]])
    """
    if not (sapo_temperature_pos > 0 and sapo_temperature_neg > 0):
        raise OptionError(
            f"sapo_temperature_pos={sapo_temperature_pos} and sapo_temperature_neg={sapo_temperature_neg} "
            "must be above 0"
        )
    check_mask(mask, ratio=ratio)
    ratio, advantages = widen("ratio", ratio), per_token(advantages, mask).detach()  # (B, T)
    tau = torch.where(advantages > 0, sapo_temperature_pos, sapo_temperature_neg).to(ratio)  # (B, T)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return torch.where(mask, -gate * advantages, 0.0)


def dppo_surrogate(
    ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
    *,
    divergence: str = "tv",
) -> Tensor:
    r"""Drop a token where the *probability* has moved too far, whatever the ratio says. DPPO.

    .. math:: \ell = -\mathrm{sg}\left[\min(\rho, \delta)\right] M A \log \pi_\theta, \qquad
              M = 0 \text{ if } A > 0, \pi > \pi_{\mathrm{old}}, D > \epsilon_{\mathrm{high}}
              \text{ or } A \le 0, \pi < \pi_{\mathrm{old}}, D > \epsilon_{\mathrm{low}}

    Divergence PPO (arXiv 2602.04879) in its binary form: D is the divergence of two coins that show this
    token or another one. ``"tv"``: :math:`|\pi - \pi_{\mathrm{old}}|`. ``"kl"``:
    :math:`\mathrm{KL}(\pi_{\mathrm{old}} \| \pi)` of the coins. verl: ``loss_mode="dppo_tv"`` or
    ``"dppo_kl"``, whose ``clip_ratio_low`` and ``clip_ratio_high`` are the bounds on D, and whose
    ``clip_ratio_c`` is ``delta``. TRL has taken it out.

    A ratio of 3 moves nearly no probability where it stood at 0.001, and very much where it stood at 0.3. The
    clip stops both; this stops the second.

    Args:
        ratio: (B, T), of single tokens; taken as a constant.
        logprobs: (B, T), with gradient.
        advantages: (B,) or (B, T), taken as constants.
        mask: (B, T) bool.
        clip_low: Bound on D where A is not positive, at least 0.
        clip_high: Bound on D where A > 0, at least 0.
        delta: Cap on the weight, above 1; None for none.
        divergence: ``"tv"`` or ``"kl"``, in nats.

    Returns:
        (B, T), zero where masked. Only the gradient has a meaning, the value has none.

    Raises:
        ShapeError, DTypeError, OptionError: As for :func:`nanogrpo.losses.clipped_surrogate`.

    When it is wrong: with a ratio of completions; or with bounds that were tuned for a clip, since 0.2 of a
    probability is much more than a fifth of a rare token.

    >>> new, old = torch.tensor([[0.003, 0.9]]).log(), torch.tensor([[0.001, 0.3]]).log()
    >>> mask, A = torch.ones(1, 2, dtype=torch.bool), torch.tensor([1.0])
    >>> leaf = new.clone().requires_grad_()
    >>> loss = dppo_surrogate((new - old).exp(), leaf, A, mask).sum()
    >>> torch.autograd.grad(loss, leaf)[0]
    tensor([[-3., -0.]])
    """
    if not (clip_low >= 0 and clip_high >= 0):
        raise OptionError(f"clip_low={clip_low} and clip_high={clip_high} bound a divergence: at least 0")
    if delta is not None and not delta > 1:
        raise OptionError(f"delta={delta} caps the weight of a token; it must be above 1")
    check_choice("divergence", divergence, ("tv", "kl"))
    check_mask(mask, ratio=ratio, logprobs=logprobs)
    ratio, logprobs = widen("ratio", ratio).detach(), torch.where(mask, widen("logprobs", logprobs), 0.0)
    advantages = per_token(advantages, mask).detach()  # (B, T)
    new = logprobs.detach().exp()
    old = (logprobs.detach() - _log(ratio)).exp()
    far = (new - old).abs() if divergence == "tv" else binary_kl(old, new)
    up, down = (advantages > 0) & (new > old), (advantages <= 0) & (new < old)
    dropped = up & (far > clip_high) | down & (far > clip_low)
    weight = torch.where(dropped, 0.0, ratio if delta is None else ratio.clamp(max=delta))
    return torch.where(mask & (advantages != 0), -weight * advantages * logprobs, 0.0)


def binary_kl(p: Tensor, q: Tensor) -> Tensor:
    r"""KL divergence of two coins, :math:`p \log \frac pq + (1-p) \log \frac{1-p}{1-q}`, in nats.

    verl adds 1e-8 to the two counter-probabilities. Here a q of 1 is at an infinite distance, as it is.

    >>> binary_kl(torch.tensor([0.5, 0.2]), torch.tensor([0.25, 0.2]))
    tensor([0.1438, 0.0000])
    """
    p, q = widen("p", p), widen("q", q)
    check_shape("q", q, tuple(p.shape), "the shape of p")
    return torch.special.xlogy(p, p / q) + torch.special.xlogy(1 - p, (1 - p) / (1 - q))


def gmpo_surrogate(
    ratio: Tensor, advantages: Tensor, mask: Tensor, clip_low: float = 0.4, clip_high: float = 0.4
) -> Tensor:
    r"""Clip each token's log-ratio, then take the geometric mean over the completion. GMPO.

    .. math:: \ell_i = -A_i \exp\Big(\frac{s_i}{|o_i|} \sum_t \min\big(s_i \log\rho_{it},\
              s_i\, \mathrm{clip}(\log\rho_{it}, -\epsilon_{\mathrm{low}},
              \epsilon_{\mathrm{high}})\big)\Big), \qquad s_i = \mathrm{sign}(A_i)

    Geometric-Mean Policy Optimization (arXiv 2507.20673), with the bounds of the paper. The bounds are on the
    *logarithm* of the ratio: 0.4 lets it go from 0.67 to 1.49. The value is that of the whole completion,
    repeated over its tokens, so that ``aggregation="sequence_mean"`` gives the paper's loss. TRL:
    ``trl.experimental.gmpo``; verl: ``loss_mode="geo_mean"``.

    Args:
        ratio: (B, T), of single tokens.
        advantages: (B,) or (B, T), taken as constants; of one sign in each completion.
        mask: (B, T) bool.
        clip_low: At least 0, in nats.
        clip_high: At least 0, in nats.

    Returns:
        (B, T), a loss for each token, zero where masked.

    Raises:
        ShapeError, DTypeError, OptionError: As for :func:`nanogrpo.losses.clipped_surrogate`.

    When it is wrong: with advantages that differ in sign within a completion, as a critic gives them; and
    like every mean over a completion, it gives a token of a long completion less weight.

    >>> ratio, mask = torch.tensor([[1.1, 3.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> gmpo_surrogate(ratio, torch.tensor([1.0]), mask)  # sqrt(1.1 * exp(0.4))
    tensor([[-1.2810, -1.2810]])
    """
    if not (clip_low >= 0 and clip_high >= 0):
        raise OptionError(f"clip_low={clip_low} and clip_high={clip_high} are distances from 0 nats")
    check_mask(mask, ratio=ratio)
    ratio, advantages = widen("ratio", ratio), per_token(advantages, mask).detach()  # (B, T)
    log_ratio, sign = torch.where(mask, _log(ratio), 0.0), advantages.sign()
    clipped = log_ratio.clamp(-clip_low, clip_high)
    smaller = sign * torch.min(sign * log_ratio, sign * clipped)  # (B, T)
    mean = smaller.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
    return torch.where(mask, -advantages * mean.exp(), 0.0)


def vespo_surrogate(
    ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
) -> Tensor:
    r"""REINFORCE with a smooth weight of the whole completion, which dies out far from a ratio of 1. VESPO.

    .. math:: \ell_{it} = -\mathrm{sg}\left[\varphi(w_i)\right] A_i \log \pi_\theta(o_{it}), \qquad
              \varphi(w) = w^k e^{\lambda (1 - w)}, \qquad w_i = \prod_t \rho_{it}

    Variational Sequence-Level Soft Policy Optimization (arXiv 2602.10693). k and :math:`\lambda` are those of
    ``pos`` where A is at least 0, those of ``neg`` elsewhere. :math:`\varphi(1) = 1`, and the peak is at
    :math:`w = k / \lambda`. Unlike GSPO's ratio, w is the product, not its geometric mean. TRL:
    ``loss_type="vespo"``, which averages with ``"token_mean"``; verl has none.

    Args:
        ratio: (B, T), of single tokens; taken as a constant.
        logprobs: (B, T), with gradient.
        advantages: (B,) or (B, T), taken as constants.
        mask: (B, T) bool.
        vespo_k_pos: Power of w where A >= 0, at least 0; 0 for a weight that only falls.
        vespo_lambda_pos: Above 0; how fast a large weight dies out.
        vespo_k_neg: The same where A < 0.
        vespo_lambda_neg: The same where A < 0.

    Returns:
        (B, T), zero where masked. Only the gradient has a meaning, the value has none.

    Raises:
        ShapeError, DTypeError: Shapes do not fit, or ``mask`` is not bool.
        OptionError: A k below 0, or a lambda that is not above 0.

    When it is wrong: for long completions, whose product is far from 1 though each of its ratios is close.
    Of a thousand ratios of 1.002 it is 7.4, and the weight of a right answer is below one millionth.

    >>> new, mask = torch.tensor([[1.5, 1.0]]).log().requires_grad_(), torch.tensor([[True, True]])
    >>> loss = vespo_surrogate(new.detach().exp(), new, torch.tensor([1.0]), mask).sum()
    >>> torch.autograd.grad(loss, new)[0]  # 1.5**2 * exp(-1.5)
    tensor([[-0.5020, -0.5020]])
    """
    powers, falls = (vespo_k_pos, vespo_k_neg), (vespo_lambda_pos, vespo_lambda_neg)
    if not (all(k >= 0 for k in powers) and all(fall > 0 for fall in falls)):  # of NaN, neither is true
        raise OptionError(f"vespo: k of {powers} must be at least 0, and lambda of {falls} above 0")
    check_mask(mask, ratio=ratio, logprobs=logprobs)
    ratio, logprobs = widen("ratio", ratio).detach(), torch.where(mask, widen("logprobs", logprobs), 0.0)
    advantages = per_token(advantages, mask).detach()  # (B, T)
    token = torch.where(mask, _log(ratio), 0.0).clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT)
    log_w = token.sum(1, keepdim=True).clamp(math.log(MIN_WEIGHT), MAX_LOG_WEIGHT)  # (B, 1)
    good = advantages >= 0  # (B, T)
    k = torch.where(good, vespo_k_pos, vespo_k_neg).to(ratio)
    fall = torch.where(good, vespo_lambda_pos, vespo_lambda_neg).to(ratio)
    weight = (fall + k * log_w - fall * log_w.exp()).exp()  # (B, T)
    return torch.where(mask, -weight * advantages * logprobs, 0.0)


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages (B,), one a completion, or (B, T) as (B, T); zero where masked, and elsewhere finite."""
    check_mask(mask)
    if mask.ndim != 2:
        raise ShapeError(f"mask has shape {tuple(mask.shape)}, expected (B, T): one row a completion")
    advantages = widen("advantages", advantages)
    if advantages.ndim == 1:
        check_shape("advantages", advantages, mask.shape[:1], "one a completion; flatten (P, G) first")
        advantages = advantages[:, None].expand(mask.shape)  # (B, T)
    check_shape("advantages", advantages, mask.shape, "(B,) or the shape of mask; flatten (P, G) first")
    advantages = torch.where(mask, advantages, 0.0)
    if not advantages.isfinite().all():
        raise NonFiniteError(
            "an advantage of a sampled token is NaN or infinite; look at the rewards, and what divides them"
        )
    return advantages


def _log(ratio: Tensor) -> Tensor:
    """The logarithm of a ratio that may have under- or overflowed; there without gradient."""
    limits = torch.finfo(ratio.dtype)
    return ratio.clamp(limits.tiny, limits.max).log()
