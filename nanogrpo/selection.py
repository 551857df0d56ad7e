r"""Which tokens a loss learns from, or is careful with, and how large an entropy bonus is.

    prompt -> rollout -> reward -> advantage -> **weight** -> loss -> step

All of it is about one thing: a policy gradient makes a policy more certain, at a speed that is set by the
covariance of a token's log-probability and its advantage (arXiv 2505.22617). A few tokens do most of it.

Each function gives (B, T) of truth values; a token that is left out has its advantage set to 0. Counts are
over the whole batch: call these before it is cut into parts.

Legend: B rows (completions), T tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanogrpo.errors import MaskError, NonFiniteError, OptionError, check_mask, check_range
from nanogrpo.precision import widen
from nanogrpo.surrogates import per_token


@torch.no_grad()
def top_entropy(entropies: Tensor, mask: Tensor, top_entropy_quantile: float = 0.2) -> Tensor:
    r"""The tokens at which the policy was least certain: the forks of a text.

    .. math:: M_{it} = 1 \text{ if } H_{it} \ge Q_{1-\rho}(H), \text{ else } 0

    Beyond the 80/20 rule (arXiv 2506.01939), which keeps a fifth. TRL: ``top_entropy_quantile``, whose
    quantile is that of one microbatch. verl has none.

    Args:
        entropies: (B, T), of each next-token distribution, see :func:`nanogrpo.kl.entropy`.
        mask: (B, T) bool.
        top_entropy_quantile: :math:`\rho`, the share that is kept, above 0; 1 keeps all.

    Returns:
        (B, T) bool, true where a token counts; false where masked. Ties at the quantile are all kept.

    Raises:
        ShapeError, DTypeError, MaskError: Shapes differ, ``mask`` is not bool or has no true.
        OptionError: The share is not in (0, 1].

    When it is wrong: where tokens are few or alike. With five digits an answer, the forks *are* the answer,
    and what is left out is only the EOS. The gradient that is left is no longer that of the mean reward.

    >>> H, mask = torch.tensor([[0.1, 2.0, 0.3, 9.0]]), torch.tensor([[True, True, True, False]])
    >>> top_entropy(H, mask, 0.4)
    tensor([[False,  True, False, False]])
    """
    _check_share("top_entropy_quantile", top_entropy_quantile)
    check_mask(mask, entropies=entropies)
    kept = _kept(widen("entropies", entropies), mask)
    return mask & (entropies >= torch.quantile(kept, 1 - top_entropy_quantile))


@torch.no_grad()
def covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    r"""Each token's share in the covariance of log-probability and advantage, which is what costs entropy.

    .. math:: c_{it} = \big(A_{it} - \bar A\big)\big(\log \pi(o_{it}) - \overline{\log \pi}\big)

    arXiv 2505.22617; means are over the unmasked tokens. It is large where a token that was likely anyway
    is rewarded, or one that was unlikely is punished.

    Args:
        logprobs: (B, T).
        advantages: (B,) or (B, T).
        mask: (B, T) bool.

    Returns:
        (B, T), zero where masked.

    Raises:
        ShapeError, DTypeError, MaskError: Shapes do not fit, ``mask`` is not bool or has no true.

    When it is wrong: across prompts. With advantages that are not standardized, a hard prompt has the scale.

    >>> mask = torch.ones(2, 1, dtype=torch.bool)
    >>> covariance(torch.tensor([[-1.0], [-3.0]]), torch.tensor([1.0, -1.0]), mask)
    tensor([[1.],
            [1.]])
    """
    check_mask(mask, logprobs=logprobs)
    logprobs, A = widen("logprobs", logprobs), per_token(advantages, mask)
    return torch.where(mask, (A - _kept(A, mask).mean()) * (logprobs - _kept(logprobs, mask).mean()), 0.0)


@torch.no_grad()
def clip_cov(
    cov: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    clip_cov_ratio: float = 0.0002,
    clip_cov_lb: float = 1.0,
    clip_cov_ub: float = 5.0,
) -> Tensor:
    r"""Leave out a few tokens, drawn at random among those of large covariance. Clip-Cov.

    arXiv 2505.22617, section 4. Of N tokens, ``max(1, int(clip_cov_ratio * N))`` are left out, or as many as
    have a covariance between the bounds. verl: ``loss_mode="clip_cov"``, whose options have the same names.
    TRL has none.

    Args:
        cov: (B, T), see :func:`covariance`.
        mask: (B, T) bool.
        generator: Of the random numbers.
        clip_cov_ratio: Share of the tokens, above 0.
        clip_cov_lb: Lower bound.
        clip_cov_ub: Upper bound.

    Returns:
        (B, T) bool, true where a token counts; false where masked.

    Raises:
        ShapeError, DTypeError, MaskError: Shapes differ, ``mask`` is not bool or has no true.
        OptionError: The share is not from 0 to 1, or the lower bound is not below the upper one.

    When it is wrong: with a batch of a few thousand tokens. The share is so small that one token in five
    thousand is left out: it was tuned for batches of millions.

    >>> mask = torch.ones(1, 4, dtype=torch.bool)
    >>> clip_cov(torch.tensor([[0.1, 2.0, 9.0, 0.2]]), mask, torch.Generator().manual_seed(0))
    tensor([[ True, False,  True,  True]])
    """
    cov = widen("cov", cov)
    check_mask(mask, cov=cov)
    _check_share("clip_cov_ratio", clip_cov_ratio)
    check_covariances(clip_cov_lb, clip_cov_ub)
    number = max(int(clip_cov_ratio * len(_kept(cov, mask))), 1)
    places = (mask & (cov > clip_cov_lb) & (cov < clip_cov_ub)).nonzero()  # (N, 2)
    out = places[torch.randperm(len(places), generator=generator).to(places.device)[:number]]
    kept = mask.clone()
    kept[out[:, 0], out[:, 1]] = False
    return kept


def check_covariances(low: float, high: float) -> None:
    """Raise OptionError unless there is something between the bounds; NaN is none."""
    if not low < high:
        raise OptionError(f"clip_cov_lb={low} must be below clip_cov_ub={high}, or no token is between them")


@torch.no_grad()
def kl_cov(cov: Tensor, mask: Tensor, kl_cov_ratio: float = 0.0002) -> Tensor:
    r"""The tokens of the largest covariance, which pay for moving. KL-Cov.

    arXiv 2505.22617, section 4. To the loss of each, ``kl_cov_coef`` times
    :math:`|\log \pi_\theta - \log \pi_{\mathrm{old}}|` is added. verl: ``loss_mode="kl_cov"`` with
    ``ppo_kl_coef``, which has no clip. TRL has none.

    Args:
        cov: (B, T), see :func:`covariance`.
        mask: (B, T) bool.
        kl_cov_ratio: Share of the tokens, above 0; at least one is taken.

    Returns:
        (B, T) bool, true where a token pays; false where masked.

    Raises:
        ShapeError, DTypeError, MaskError: Shapes differ, ``mask`` is not bool or has no true.

    When it is wrong: with one update a batch. There the ratio is 1, the penalty is at its minimum and its
    gradient is 0: it does nothing at all.

    >>> kl_cov(torch.tensor([[0.1, 2.0, 9.0, 0.2]]), torch.tensor([[True, True, False, True]]))
    tensor([[False,  True, False, False]])
    """
    cov = widen("cov", cov)
    check_mask(mask, cov=cov)
    _check_share("kl_cov_ratio", kl_cov_ratio)
    number = max(int(kl_cov_ratio * len(_kept(cov, mask))), 1)
    best = cov.masked_fill(~mask, -torch.inf).flatten().topk(number).indices
    return torch.zeros_like(mask).flatten().index_fill(0, best, True).view_as(mask)


def next_entropy_coef(
    coef: float,
    entropy: float,
    entropy_target: float = 0.2,
    entropy_coef_delta: float = 0.005,
    entropy_coef_min: float = 0.0,
    entropy_coef_max: float = 1.0,
) -> float:
    r"""The price of entropy for the next step: up while there is too little of it, else down.

    Skywork-OR1 (arXiv 2505.22312). TRL: ``use_adaptive_entropy``. verl has none. The bonus itself is paid
    only while the entropy is at most the target.

    Args:
        coef: The price now, nats to reward.
        entropy: Of the policy now, nats a token.
        entropy_target: Nats a token.
        entropy_coef_delta: How far one step goes.
        entropy_coef_min: The least price.
        entropy_coef_max: The greatest price.

    Returns:
        The next price.

    When it is wrong: with a target above the entropy that the task allows: the price then climbs to its
    maximum, and the bonus outweighs the reward.

    >>> next_entropy_coef(0.01, 0.1), next_entropy_coef(0.01, 0.3)
    (0.015, 0.005)
    """
    check_range("entropy_coef_delta", entropy_coef_delta)
    if not math.isfinite(entropy):
        raise NonFiniteError(f"the entropy is {entropy}: the model's logits are NaN or infinite")
    if entropy <= entropy_target:
        return min(coef + entropy_coef_delta, entropy_coef_max)
    return max(coef - entropy_coef_delta, entropy_coef_min)


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    kept = values[mask]  # (N,), unmasked tokens only
    if not len(kept):
        raise MaskError("the batch has no unmasked token; check completion_mask")
    if not kept.isfinite().all():
        raise NonFiniteError(
            "a number of an unmasked token is NaN or infinite: the model or a reward is broken"
        )
    return kept


def _check_share(what: str, share: float) -> None:
    if not 0 < share <= 1:
        raise OptionError(f"{what}={share} is a share: above 0, at most 1")
