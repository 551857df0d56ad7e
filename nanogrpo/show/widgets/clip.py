"""The clipped objective of one token over the ratio, and the gradient that is left of it."""

from __future__ import annotations

import anywidget
import torch
import traitlets

from nanogrpo.errors import OptionError
from nanogrpo.losses import clipped_surrogate
from nanogrpo.show.widgets import script


def explored_surrogate(
    ratio: float, advantage: float, clip_low: float = 0.2, clip_high: float = 0.2, delta: float = 0.0
) -> tuple[float, float]:
    r"""The objective of one token and its gradient, by :func:`nanogrpo.losses.clipped_surrogate`.

    .. math:: J = \min\left(\rho A,\ \mathrm{clip}(\rho, 1-\epsilon_{\mathrm{low}},
              1+\epsilon_{\mathrm{high}}) A\right), \qquad
              \frac{\partial J}{\partial \log \pi_\theta} = \rho\,\frac{\partial J}{\partial \rho}

    The objective is minus the loss: it is to be raised.

    Args:
        ratio: How much more probable the token is now than when it was sampled, at least 0.
        advantage: Of the token.
        clip_low: At least 0.
        clip_high: At least 0.
        delta: Bound on the ratio itself, above 1 + clip_high; 0 for none.

    Returns:
        ``(objective, gradient)``, the gradient for the token's log-probability.

    Raises:
        OptionError: The ratio is negative or not finite, or a bound is out of its range.

    When it is wrong: exactly on an edge, where the derivative jumps. Taken is what automatic
    differentiation gives there, the derivative of the side that is not clipped.

    >>> [round(x, 3) for x in explored_surrogate(1.5, 1.0)], explored_surrogate(1.5, -1.0)
    ([1.2, 0.0], (-1.5, -1.5))
    """
    if not 0 <= ratio < float("inf"):
        raise OptionError(f"the ratio is {ratio}; it is a quotient of two probabilities, at least 0")
    rho = torch.tensor([[ratio]], dtype=torch.float64, requires_grad=True)  # (1, 1): one token
    mask = torch.ones(1, 1, dtype=torch.bool)
    amount = torch.tensor([advantage], dtype=torch.float64)
    objective = -clipped_surrogate(rho, amount, mask, clip_low, clip_high, delta or None).sum()
    (slope,) = torch.autograd.grad(objective, rho)
    return objective.item(), ratio * slope.item()


class ClipExplorer(anywidget.AnyWidget):
    """Turn the bounds and the ratio: where the clip cuts the gradient, and where it does not.

    Attributes:
        ratio: Of the probabilities of one token, new to old.
        advantage_size: A is drawn with this size and either sign.
        clip_low: How far below 1 the ratio may count.
        clip_high: How far above 1.
        delta: Bound on the ratio itself, 0 for none.
    """

    _esm = script("clip")
    ratio = traitlets.Float(1.5).tag(sync=True)
    advantage_size = traitlets.Float(1.0).tag(sync=True)
    clip_low = traitlets.Float(0.2).tag(sync=True)
    clip_high = traitlets.Float(0.2).tag(sync=True)
    delta = traitlets.Float(0.0).tag(sync=True)
