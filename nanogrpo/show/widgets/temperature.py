"""What a temperature makes of a model's logits, and which token a uniform number then chooses."""

from __future__ import annotations

from collections.abc import Sequence

import anywidget
import torch
import traitlets

from nanogrpo.errors import OptionError
from nanogrpo.kl import entropy
from nanogrpo.rollout import sample_token
from nanogrpo.show.widgets import script


def explored_choice(logits: Sequence[float], temperature: float, uniform: float) -> dict:
    r"""Probabilities at a temperature, their entropy, and what :func:`nanogrpo.rollout.sample_token` takes.

    .. math:: p_i = \frac{e^{z_i / \tau}}{\sum_j e^{z_j / \tau}}, \qquad
              H = -\sum_i p_i \log p_i

    Args:
        logits: z, one a token.
        temperature: tau, 0 or above. 0 stands for the most probable token, the first one of a tie.
        uniform: in (0, 1]; the chosen token is the first whose cumulative probability reaches it.

    Returns:
        ``probabilities``, ``entropy`` in nats, and ``chosen``, an index.

    Raises:
        OptionError: the temperature is not a finite number of at least 0, or ``uniform`` is not in (0, 1].

    When it is wrong: for top-k and top-p sampling, which cut tokens off.

    >>> found = explored_choice([2.0, 1.0, 0.0], temperature=1.0, uniform=0.7)
    >>> [round(p, 3) for p in found["probabilities"]], found["chosen"]
    ([0.665, 0.245, 0.09], 1)
    """
    if not 0 <= temperature < float("inf"):
        raise OptionError(f"temperature is {temperature}; it must be a finite number, 0 (greedy) or above")
    if not 0 < uniform <= 1:
        raise OptionError(f"uniform is {uniform}; it must be above 0 and at most 1")
    z = torch.tensor(logits, dtype=torch.float64)  # (V,)
    chosen, _ = sample_token(z, torch.tensor(uniform, dtype=torch.float64), temperature)
    if temperature == 0:
        p = torch.zeros_like(z)
        p[chosen] = 1.0
    else:
        p = torch.softmax(z / temperature, -1)
    return {
        "probabilities": p.tolist(),
        # A token that never occurs adds nothing; the sum of one certain token would be -0.0.
        "entropy": max(0.0, entropy(p[p > 0].log()).item()),
        "chosen": int(chosen),
    }


class TemperatureExplorer(anywidget.AnyWidget):
    """Turn the temperature, draw uniform numbers: the next token's distribution, its entropy, the choice.

    Attributes:
        labels: One a token, in the order of the ids, in which the cumulative sum is taken.
        contexts: The logits after each of some texts.
        context: The text that is shown.
        temperature: tau.
        uniform: The number that chooses the token.
    """

    _esm = script("temperature")
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    contexts = traitlets.Dict(value_trait=traitlets.List(traitlets.Float())).tag(sync=True)
    context = traitlets.Unicode().tag(sync=True)
    temperature = traitlets.Float(1.0).tag(sync=True)
    uniform = traitlets.Float(0.5).tag(sync=True)
