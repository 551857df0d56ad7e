"""Checks of KL estimators and entropies, and of their gradients. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanogrpo import kl
from nanogrpo.teach.checks.compare import agree, call, compare, gradient, no_gradient
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import CheckFailed, register

DELTA = "delta = ref_logprobs - logprobs, in this order"


def _pair(draw: Draw) -> tuple[Tensor, Tensor]:
    """Log-probs of sampled tokens under the policy, with gradient, and under the reference: any shape."""
    logprobs = draw.logprobs(*(3, 4, 2)[: draw.integer(1, 3)])
    ref = logprobs + 0.7 * draw.normal(*logprobs.shape)
    logprobs.view(-1)[0], ref.view(-1)[0] = -12.0, -12.0 + draw.uniform(3, 4, 1).item()  # far apart
    logprobs.view(-1)[1], ref.view(-1)[1] = -0.2, -0.2 - draw.uniform(6, 8, 1).item()
    if logprobs.numel() > 2:  # the reference holds it for impossible, as far as float32 goes
        logprobs.view(-1)[2], ref.view(-1)[2] = -0.3, -120.0
    return logprobs.requires_grad_(), ref


def _check(implementation: Callable, draw: Draw, name: str) -> None:
    """Value and gradient of an estimator; each is also tried as what it is often confused with."""
    logprobs, ref = _pair(draw)
    delta = ref - logprobs.detach()
    values = {"k1": -delta, "k2": 0.5 * delta**2, "k3": torch.expm1(delta) - delta}
    slopes = {"k1": torch.ones_like(delta), "k2": -delta, "k3": 1 - torch.exp(delta)}
    mistakes = {
        "k1": [(delta, f"The sign is reversed: k1 = -delta with {DELTA}. Yours pays for drifting away.")],
        "k2": [(delta**2, "The half is missing: k2 is 0.5 * delta ** 2.")],
        "k3": [
            (
                torch.expm1(-delta) + delta,
                f"The sign is reversed: k3 = exp(delta) - 1 - delta with {DELTA}. Yours estimates chi-square "
                "minus KL; it is positive too, but has spikes where the policy is far from the reference.",
            ),
            (torch.expm1(delta), "The last term is missing: k3 = exp(delta) - 1 - delta."),
            (torch.exp(delta) - delta, "The 1 is missing: k3 = exp(delta) - 1 - delta is zero at delta = 0."),
            (delta.abs(), "This is the size of delta: k3 = exp(delta) - 1 - delta."),
            (delta**2 / 2 + delta**3 / 6, "This is a series that is cut off: use expm1(delta) - delta."),
            *[
                (
                    torch.expm1(delta.clamp(-most, most)) - delta.clamp(-most, most),
                    f"You cut delta off at {most}: far off, the price no longer grows, and has no gradient.",
                )
                for most in (1, 2, 3, 5)
            ],
            (
                -logprobs.detach().exp() * delta,
                "You weigh with the probability: the tokens were sampled with it.",
            ),
            (torch.expm1(delta) + delta, "The last term has the wrong sign: k3 = exp(delta) - 1 - delta."),
        ],
    }[name]
    mistakes += [(value, f"This is {other}, not {name}.") for other, value in values.items() if other != name]
    mistakes += [(-values[name], f"The sign is reversed: this is minus {name}.")]
    estimate = getattr(kl, f"kl_{name}")
    got = agree(f"{name} of a token", implementation, estimate, (logprobs, ref), mistakes, alone=True)
    mistakes = [(slope, f"The gradient is that of {k}.") for k, slope in slopes.items() if k != name]
    compare(f"the gradient of {name}", gradient(name, got, logprobs), slopes[name], mistakes)
    far = (torch.tensor([-15.0, -1.0]), torch.tensor([-0.5, -13.0]))  # nothing bounds it
    compare(f"far off {name}", call(implementation, *far), estimate(*far), rtol=1e-3)


@register("kl.kl_k1")
def check_kl_k1(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, ref_logprobs)``: k1 of each token, and its gradient."""
    _check(implementation, draw, "k1")


@register("kl.kl_k2")
def check_kl_k2(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, ref_logprobs)``: k2 of each token, and its gradient."""
    _check(implementation, draw, "k2")


@register("kl.kl_k3")
def check_kl_k3(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, ref_logprobs)``: k3 of each token, and its gradient."""
    _check(implementation, draw, "k3")


@register("kl.kl_k3")
def check_kl_k3_precision(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, ref_logprobs)``: k3 keeps its digits in float32 where policy and reference are close."""
    for low, high in ((2e-4, 5e-4), (3e-5, 6e-5)):
        _check_digits(implementation, draw, low, high)


def _check_digits(implementation: Callable, draw: Draw, low: float, high: float) -> None:
    """Value and gradient of k3 at differences from low to high, of either sign."""
    logprobs = draw.logprobs(6).float()
    ref = logprobs + draw.uniform(low, high, 6).float() * draw.normal(6).sign().float()
    delta = ref.double() - logprobs.double()
    exact = torch.expm1(delta) - delta
    found = call(implementation, logprobs.requires_grad_(), ref)
    error = (found.detach().double() - exact).abs()
    if error.max() > 1e-5:
        return  # that is no rounding: check_kl_k3 says what it is
    if (error > 0.05 * exact).any():
        i = int((error / exact).argmax())
        raise CheckFailed(
            f"In float32, at delta = {delta[i]:.2e}, your k3 is off by {error[i]:.1e}, and it should be "
            f"{exact[i]:.1e}: exp(delta) - 1 has lost its digits. Use expm1(delta) - delta."
        )
    slope, wanted = gradient("k3", found, logprobs).double(), -torch.expm1(delta)
    if ((slope - wanted).abs() > 0.05 * wanted.abs()).any():
        i = int((slope - wanted).abs().argmax())
        raise CheckFailed(
            f"At delta = {delta[i]:.2e} the gradient of your k3 is {slope[i]:.1e}, expected {wanted[i]:.1e}: "
            "where policy and reference are close, it is small but not 0."
        )


@register("kl.kl_k3")
def check_reference_gets_no_gradient(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs, ref_logprobs)``: the reference is a constant of the KL."""
    logprobs, ref = _pair(draw)
    ref = ref.requires_grad_()
    why = (
        "ref_logprobs: the reference is not detached. Should it share weights with the policy, the two "
        "gradients cancel. Use ref_logprobs.detach(), or compute them under no_grad."
    )
    no_gradient("the KL", call(implementation, logprobs, ref), ref, why)


@register("kl.kl_exact")
def check_kl_exact(implementation: Callable, draw: Draw) -> None:
    """``f(logits, ref_logits)``: KL(policy || reference) of each distribution, and its gradient."""
    shape = (draw.integer(2, 3), draw.integer(2, 4), draw.integer(4, 7))
    logits, ref = draw.normal(*shape).requires_grad_(), draw.normal(*shape)
    right = kl.kl_exact(logits, ref)
    p, q = torch.log_softmax(logits.detach(), -1), torch.log_softmax(ref, -1)
    mistakes = [
        (
            (q.exp() * (q - p)).sum(-1),
            "This is KL(reference || policy), the other order: weigh with the policy's probabilities. (In "
            "F.kl_div the first argument is the second distribution.)",
        ),
        ((p.exp() * (p - q)).mean(-1), "You average over the vocabulary: sum over it."),
        (-right, "The sign is reversed: log policy - log reference."),
        ((p.exp() * (logits.detach() - ref)).sum(-1), "You compare raw logits: take log_softmax of both."),
    ]
    got = call(implementation, logits, ref)
    compare("the KL", got, right, mistakes)
    compare("the gradient of the KL", gradient("the KL", got, logits), gradient("", right, logits))


@register("kl.entropy")
def check_entropy(implementation: Callable, draw: Draw) -> None:
    """``f(logits)``: entropy in nats of each next-token distribution, and its gradient."""
    shape = (draw.integer(2, 3), draw.integer(2, 4), draw.integer(4, 7))
    logits = draw.normal(*shape).requires_grad_()
    right = kl.entropy(logits)
    p, logp = torch.softmax(logits.detach(), -1), torch.log_softmax(logits.detach(), -1)
    mistakes = [
        (
            right / shape[-1],
            f"You average over the vocabulary: the entropy is the sum over its {shape[-1]} tokens, and yours "
            "is too small by that factor.",
        ),
        (-right, "The sign is reversed: an entropy is -sum p log p, and never negative."),
        (right / torch.tensor(2.0).log(), "These are bits: take the natural logarithm, for nats."),
        (-(p * logits.detach()).sum(-1), "You weigh raw logits: take log_softmax."),
        (-(p * logp).amax(-1), "You take the largest term of the sum: add them all."),
        (-logp.mean(-1), "The probabilities are missing: weigh each -log p with its p."),
    ]
    got = call(implementation, logits)
    compare("the entropy", got, right, mistakes)
    compare("the gradient of the entropy", gradient("the entropy", got, logits), gradient("", right, logits))


@register("kl.entropy_sampled")
def check_entropy_sampled(implementation: Callable, draw: Draw) -> None:
    """``f(logprobs)``: the entropy's unbiased estimate from the sampled tokens alone."""
    logprobs = draw.logprobs(draw.integer(2, 4), draw.integer(3, 5))
    mistakes = [
        (
            -logprobs.exp() * logprobs,
            "This is -p log p, the proxy: the tokens were sampled with probability p, so that each surprise "
            "is weighed with p already. It is never above 1/e = 0.37. Use -log p.",
        ),
        (logprobs, "The sign is reversed: a surprise is -log p."),
        (-logprobs.exp(), "These are probabilities: take -log p."),
    ]
    compare("the estimate of a token", call(implementation, logprobs), kl.entropy_sampled(logprobs), mistakes)
