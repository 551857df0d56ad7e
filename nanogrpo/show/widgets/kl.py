"""Two distributions over four tokens: what k1, k2 and k3 estimate, and what each does as a loss."""

from __future__ import annotations

import math

import anywidget
import torch
import traitlets
from torch import Tensor

from nanogrpo.errors import OptionError
from nanogrpo.kl import kl_exact, kl_k1, kl_k2, kl_k3
from nanogrpo.show.widgets import script

ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def explored_kl(policy: list[float], reference: list[float]) -> dict:
    r"""Every number of the figure, by the functions of :mod:`nanogrpo.kl` and automatic differentiation.

    The expected gradient of an estimate k used as a loss, for the logits z of the policy, on its own samples:

    .. math:: g = \sum_x \pi(x)\, \nabla_z k(x)

    Args:
        policy: Probabilities of the tokens, summing to 1.
        reference: As many, summing to 1.

    Returns:
        ``estimates``, ``means`` and ``gradients``, each by the names of ``ESTIMATORS``, and the exact
        ``reverse`` = KL(policy || reference) and ``forward`` = KL(reference || policy). All in nats; a list
        has an entry a token. An estimate is NaN where the policy never samples the token, a gradient is NaN
        where the mean that it belongs to is infinite.

    Raises:
        OptionError: The two differ in length, or one is not a distribution.

    When it is wrong: for samples of an older policy. There k1 as a loss has a gradient, and a harmful one.

    >>> result = explored_kl([0.5, 0.5], [0.25, 0.75])
    >>> [round(abs(x), 4) for x in result["gradients"]["k1"]], round(result["means"]["k1"], 4)
    ([0.0, 0.0], 0.1438)
    """
    p, q = (torch.tensor(values, dtype=torch.float64) for values in (policy, reference))  # (V,)
    _check(p, q)
    sampled = p > 0  # (V,)
    estimates, means, gradients = {}, {}, {}
    for name, estimate in ESTIMATORS.items():
        logits = p[sampled].log().requires_grad_()
        values = estimate(torch.log_softmax(logits, -1), q[sampled].log())  # one for each token that occurs
        mean = (p[sampled] * values).sum()
        estimates[name] = _spread(values.detach(), sampled, math.nan)
        means[name] = mean.item()
        (slope,) = torch.autograd.grad(mean, logits)  # the weights p are constants: the mean of the gradients
        gradients[name] = _spread(slope, sampled, 0.0) if slope.isfinite().all() else [math.nan] * len(policy)
    exact = {"reverse": _exact(p, q), "forward": _exact(q, p)}
    return {"estimates": estimates, "means": means, "gradients": gradients, **exact}


class KLExplorer(anywidget.AnyWidget):
    """Drag two distributions: estimates, their means, both exact KLs, and the gradients.

    Attributes:
        policy: Four probabilities that sum to 1.
        reference: Likewise.
    """

    _esm = script("kl")
    policy = traitlets.List(traitlets.Float(), default_value=[0.7, 0.15, 0.1, 0.05], minlen=4, maxlen=4).tag(
        sync=True
    )
    reference = traitlets.List(traitlets.Float(), default_value=[0.25] * 4, minlen=4, maxlen=4).tag(sync=True)


def _check(p: Tensor, q: Tensor) -> None:
    if p.shape != q.shape:
        raise OptionError(f"the policy has {len(p)} probabilities and the reference {len(q)}")
    for name, values in {"policy": p, "reference": q}.items():
        if not ((values >= 0) & (values <= 1)).all() or not abs(values.sum().item() - 1) < 1e-6:
            raise OptionError(f"{name}={values.tolist()} is no distribution: from 0 to 1, with sum 1")


def _exact(p: Tensor, q: Tensor) -> float:
    """KL(p || q). Where q is 0 and p is not it is infinite; kl_exact takes finite logits only."""
    if ((p > 0) & (q == 0)).any():
        return math.inf
    return kl_exact(p.log().clamp(min=-1e9), q.log().clamp(min=-1e9)).item()


def _spread(values: Tensor, places: Tensor, rest: float) -> list[float]:
    """Values at the true places, ``rest`` elsewhere."""
    return torch.full(places.shape, rest, dtype=values.dtype).masked_scatter(places, values).tolist()
