"""Entropy of a distribution while one token takes over, and what two estimates make of it."""

from __future__ import annotations

import anywidget
import torch
import traitlets

from nanogrpo.errors import OptionError
from nanogrpo.kl import entropy, entropy_proxy, entropy_sampled
from nanogrpo.show.widgets import script


def explored_entropy(size: int, top: float) -> dict[str, float]:
    r"""Entropy and the means of two estimates, by the functions of :mod:`nanogrpo.kl`.

    .. math:: \pi = \left(t, \tfrac{1-t}{V-1}, \dots, \tfrac{1-t}{V-1}\right)

    Args:
        size: V, at least 2.
        top: t, from 0 to 1. It is the top token from 1/V on.

    Returns:
        ``entropy``, exact; ``sampled``, the mean of -log p under the distribution, and ``scatter``, the
        standard deviation of one such sample; ``proxy``, the mean of p (-log p). In nats.

    Raises:
        OptionError: V < 2, or ``top`` is not from 0 to 1.

    When it is wrong: for the entropy of whole completions, which also depends on the prefixes visited.

    >>> [round(explored_entropy(65, top)["entropy"], 2) for top in (1 / 65, 0.6)]
    [4.17, 2.34]
    >>> [round(explored_entropy(65, top)["proxy"], 3) for top in (1 / 65, 0.6)]
    [0.064, 0.197]
    """
    if size < 2:
        raise OptionError(f"size is {size}; a distribution needs at least 2 tokens")
    if not 0 <= top <= 1:
        raise OptionError(f"top is {top}; a probability must be from 0 to 1")
    p = torch.tensor([top] + [(1 - top) / (size - 1)] * (size - 1), dtype=torch.float64)  # (V,)
    p = p[p > 0]  # a token that never occurs adds nothing, and has no logit
    surprise = entropy_sampled(p.log())
    mean = (p * surprise).sum()
    return {
        "entropy": entropy(p.log()).item(),
        "sampled": mean.item(),
        "scatter": (p * (surprise - mean) ** 2).sum().sqrt().item(),
        "proxy": (p * entropy_proxy(p.log())).sum().item(),
    }


class EntropyExplorer(anywidget.AnyWidget):
    """Let one token take over, by hand or played through: exact entropy, -log p, and the proxy.

    Attributes:
        size: V, from 2 to 65.
        top: Probability of the one token; the others share the rest.
    """

    _esm = script("entropy")
    size = traitlets.Int(65, min=2, max=65).tag(sync=True)
    top = traitlets.Float(1 / 65).tag(sync=True)
