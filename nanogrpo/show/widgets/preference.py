"""One pair of texts under the Bradley-Terry model: its labels, their loss, and the best that they allow."""

from __future__ import annotations

import math

import anywidget
import torch
import traitlets

from nanogrpo.errors import OptionError
from nanogrpo.losses import bradley_terry_loss
from nanogrpo.reward_model import noise_ceiling, preference_probs
from nanogrpo.show.widgets import script


def explored_pair(points: float, temperature: float, margin: float) -> dict[str, float]:
    r"""What noisy labels of one pair say, and what a reward model pays for its margin on them.

    .. math:: p = \sigma(J / \tau), \qquad
              \ell(m) = -p \log \sigma(m) - (1 - p) \log \sigma(-m), \qquad
              \frac{d\ell}{dm} = \sigma(m) - p

    The loss is that of InstructGPT's reward model (arXiv 2203.02155), in expectation over the labels. It is
    least at :math:`m = J / \tau`, the log-odds of the labels.

    Args:
        points: J, the judge's score of text a less that of text b.
        temperature: tau, in the judge's points, above 0.
        margin: m, the reward model's score of text a less that of text b, in nats.

    Returns:
        ``chosen``, the probability p that a label prefers a; ``ceiling``, the share of labels that nobody
        can get more than right; ``believed``, the model's own probability of a; ``loss_a`` and ``loss_b``,
        of a label that prefers a or b, in nats; ``loss``, in expectation; ``slope`` of that in the margin;
        ``best``, the margin where the slope is 0.

    Raises:
        OptionError: the points or the margin are not finite, or the temperature is not finite and above 0.

    When it is wrong: for a judge who errs for other reasons than that two texts are nearly equally good.

    >>> found = explored_pair(points=2.0, temperature=1.0, margin=0.0)
    >>> [round(found[name], 3) for name in ("chosen", "ceiling", "loss", "slope", "best")]
    [0.881, 0.881, 0.693, -0.381, 2.0]
    """
    for name, value in {"points": points, "margin": margin}.items():
        if not math.isfinite(value):
            raise OptionError(f"{name}={value} must be a finite number")
    a, b = torch.tensor([[points], [0.0]], dtype=torch.float64)
    m = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(m)
    p = preference_probs(a, b, temperature)
    loss_a, loss_b = bradley_terry_loss(m, zero), bradley_terry_loss(zero, m)
    loss = p * loss_a + (1 - p) * loss_b
    (slope,) = torch.autograd.grad(loss.sum(), m)
    return {
        "chosen": p.item(),
        "ceiling": noise_ceiling(a, b, temperature),
        "believed": torch.sigmoid(m).item(),
        "loss_a": loss_a.item(),
        "loss_b": loss_b.item(),
        "loss": loss.item(),
        "slope": slope.item(),
        "best": (a / temperature).item(),
    }


class PreferenceExplorer(anywidget.AnyWidget):
    """Turn the judge's points and noise and the model's margin: labels, loss, slope and the noise ceiling.

    Attributes:
        points: J, the judge's score of text a less that of text b.
        temperature: tau, in the judge's points.
        margin: m, the reward model's score of a less that of b.
    """

    _esm = script("preference")
    points = traitlets.Float(2.0).tag(sync=True)
    temperature = traitlets.Float(1.0).tag(sync=True)
    margin = traitlets.Float(0.0).tag(sync=True)
