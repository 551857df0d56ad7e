r"""How far the policy is from the reference, and how undecided it is: KL divergence and entropy.

Two families. From the *full* distribution over the vocabulary the exact value of each token position
follows: :func:`kl_exact`, :func:`entropy`. From the log-probs of the *sampled* tokens alone one gets
estimates: k1, k2, k3 and -log p. The estimates are of KL(policy || reference), so they need samples
from the policy, and the gap is always

.. math:: \delta_t = \log \pi_{\mathrm{ref}}(y_t) - \log \pi_\theta(y_t)

in this order. Turn it around and k1 rewards drift, while k3 estimates chi-square minus KL: still
positive, still about delta squared half near zero, and wrong.

Which estimate goes where, on samples of the policy itself (each claim is a test):

==========================  =================================
use                         its expected gradient, per token
==========================  =================================
k1 in the loss              zero
k2 in the loss              of KL(policy || reference)
k3 in the loss              of KL(reference || policy)
k1 in the reward            of KL(policy || reference)
k3 in the reward            of neither
ratio * k3 in the loss      of KL(policy || reference)
==========================  =================================

All values are in nats, and in float32 at least: half precision is widened before anything is computed.
``mask`` is true for sampled tokens; where it is false the result is exactly zero and no gradient flows, even
from NaN or infinity. The reference never receives a gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nanogrpo.errors import check_mask, check_shape
from nanogrpo.precision import widen

KLEstimator = Literal["k1", "k2", "k3"]  # the keys of KL_ESTIMATORS, for options and the command line


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""The plain estimate of KL(policy || reference), unbiased and noisy; single values may be negative.

    .. math:: k_1 = -\delta = \log \pi_\theta(y) - \log \pi_{\mathrm{ref}}(y)

    Schulman, "Approximating KL divergence" (2020).

    Args:
        logprobs: Any shape, usually (B, T), log-probs of the sampled tokens under the policy.
        ref_logprobs: Same shape, under the reference.
        mask: Same shape, bool, or None.

    Returns:
        Same shape, nats.

    Raises:
        ShapeError: Shapes differ.

    When it is wrong: as a term of the loss. Its gradient is that of log pi, whose mean is zero, so it
    restrains nothing; with old samples it even pushes away. Put it into the reward.

    >>> p, q = torch.tensor([0.5, 0.1]), torch.tensor([0.25, 0.2])
    >>> kl_k1(p.log(), q.log())
    tensor([ 0.6931, -0.6931])
    """
    return -_delta(logprobs, ref_logprobs, mask)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Half the squared gap: a biased value, and the right gradient when used in the loss.

    .. math:: k_2 = \tfrac12 \delta^2

    Schulman, "Approximating KL divergence" (2020). Arguments, result and errors as for :func:`kl_k1`.

    When it is wrong: as the number to report. Its mean is not the KL unless the two are close.

    >>> p, q = torch.tensor([0.5, 0.1]), torch.tensor([0.25, 0.2])
    >>> kl_k2(p.log(), q.log())
    tensor([0.2402, 0.2402])
    """
    return 0.5 * _delta(logprobs, ref_logprobs, mask) ** 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""The estimate that GRPO puts into its loss: unbiased in value and never negative.

    .. math:: k_3 = e^{\delta} - 1 - \delta

    Schulman, "Approximating KL divergence" (2020); Eq. 4 of DeepSeekMath (arXiv 2402.03300).
    ``expm1`` keeps the difference when delta is small: in float32, ``exp(delta) - 1 - delta`` has lost
    every digit at delta = 1e-4. Arguments, result and errors as for :func:`kl_k1`.

    When it is wrong: if you want the gradient of KL(policy || reference). In the loss k3 follows the
    *other* KL, KL(reference || policy), unless it is multiplied with the ratio (arXiv 2512.02556,
    section 3.1). Where the policy has all but dropped a token of the reference it is huge.

    >>> kl_k3(torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]))  # e - 2 and 1/e
    tensor([0.7183, 0.3679])
    """
    delta = _delta(logprobs, ref_logprobs, mask)
    return torch.expm1(delta) - delta


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def kl_exact(logits: Tensor, ref_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""KL(policy || reference) of each next-token distribution, summed over the whole vocabulary.

    .. math:: \mathrm{KL}_t = \sum_v \pi_\theta(v) (\log \pi_\theta(v) - \log \pi_{\mathrm{ref}}(v))

    The definition (Kullback and Leibler 1951).

    Args:
        logits: (..., V), finite where the mask is true.
        ref_logits: Same shape.
        mask: (...), bool, or None.

    Returns:
        (...), nats.

    Raises:
        ShapeError: Shapes differ.

    When it is wrong: as the KL of whole completions. Summed over a sampled completion it has the right
    mean, but its gradient leaves out that the policy also chooses which prefixes are visited.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> kl_exact(p.log(), q.log())
    tensor(0.1438)
    """
    check_shape("ref_logits", ref_logits, tuple(widen("logits", logits).shape), "the shape of logits")
    logprobs = torch.log_softmax(_masked_logits(logits, mask), -1)  # (..., V)
    ref_logprobs = torch.log_softmax(_masked_logits(ref_logits.detach(), mask), -1)
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum(-1)


def entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Entropy of each next-token distribution, exact.

    .. math:: H_t = -\sum_v \pi_\theta(v) \log \pi_\theta(v), \qquad 0 \le H_t \le \log V

    The definition (Shannon 1948).

    Args:
        logits: (..., V), finite where the mask is true, already divided by the temperature.
        mask: (...), bool, or None.

    Returns:
        (...), nats, zero where masked.

    Raises:
        ShapeError: ``mask`` does not fit ``logits``.

    When it is wrong: never as a measurement. It costs the full (..., V) log-softmax.

    >>> entropy(torch.zeros(65)), torch.tensor(65.0).log()
    (tensor(4.1744), tensor(4.1744))
    """
    logprobs = torch.log_softmax(_masked_logits(logits, mask), -1)  # (..., V)
    values = -(logprobs.exp() * logprobs).sum(-1)  # (...)
    return values if mask is None else torch.where(mask, values, 0.0)


def entropy_sampled(logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Entropy estimated from the sampled tokens alone: unbiased, and free.

    .. math:: \hat H_t = -\log \pi_\theta(y_t), \qquad \mathbb{E}_{y_t \sim \pi_\theta}[\hat H_t] = H_t

    The surprise at a token, whose mean the entropy is by definition.

    Args:
        logprobs: Any shape, log-probs of tokens that were sampled from this very distribution.
        mask: Same shape, bool, or None.

    Returns:
        Same shape, nats, zero where masked.

    Raises:
        ShapeError: Shapes differ.

    When it is wrong: as a bonus in the loss. The mean of its gradient is zero, like k1's.

    >>> entropy_sampled(torch.tensor([0.5, 0.25]).log())
    tensor([0.6931, 1.3863])
    """
    return -_masked(logprobs, mask)


def entropy_proxy(logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Probability times surprise of the sampled token: a "proxy" that is not an entropy.

    .. math:: -\pi_\theta(y_t) \log \pi_\theta(y_t), \qquad
              \mathbb{E}_{y_t \sim \pi_\theta}[\cdot] = -\sum_v \pi_\theta(v)^2 \log \pi_\theta(v) \le H_t

    The first sketch of this book plotted it. Arguments, result and errors as for :func:`entropy_sampled`.

    When it is wrong: as an alarm for collapse. It is at most 1/e, is nearly zero for a uniform
    distribution over many tokens, and *rises* while the policy begins to collapse.

    >>> uniform = torch.full((65,), 1 / 65)
    >>> (uniform * entropy_proxy(uniform.log())).sum(), entropy(uniform.log())
    (tensor(0.0642), tensor(4.1744))
    """
    surprise = entropy_sampled(logprobs, mask)
    return torch.exp(-surprise) * surprise


def _delta(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None) -> Tensor:
    """log ref - log policy, set to zero where masked, before anything is exponentiated."""
    logprobs, ref_logprobs = widen("logprobs", logprobs), widen("ref_logprobs", ref_logprobs)
    check_shape("ref_logprobs", ref_logprobs, tuple(logprobs.shape), "the shape of logprobs")
    return _masked(ref_logprobs.detach() - logprobs, mask)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    values = widen("logprobs", values)
    if mask is None:
        return values
    check_mask(mask, values=values)
    return torch.where(mask, values, 0.0)


def _masked_logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Zero logits at masked positions, so that whatever stands there reaches neither value nor gradient."""
    logits = widen("logits", logits)
    if mask is None:
        return logits
    check_mask(mask)
    check_shape("mask", mask, tuple(logits.shape[:-1]), "the shape of logits without the vocabulary")
    return torch.where(mask.unsqueeze(-1), logits, 0.0)  # (..., V)
