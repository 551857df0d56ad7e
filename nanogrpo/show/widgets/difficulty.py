"""How much a prompt counts, by its difficulty: the weight that each scaling gives to the gradient.

Legend: p is the probability that a completion of the prompt is right (reward 1, else 0), G the group size.
"""

from __future__ import annotations

import math

import anywidget
import traitlets

from nanogrpo.errors import GroupSizeError, OptionError, check_choice
from nanogrpo.show.widgets import script

SCALINGS = ("leave_one_out", "none", "group", "group_bessel", "batch")


def difficulty_weight(p: float, group_size: int, scaling: str = "group", batch_p: float = 0.5) -> float:
    r"""What the mean of an estimator's gradient is, in units of the gradient of p.

    .. math:: \mathbb{E}[g] = w\,\nabla p, \qquad
              w_{\mathrm{group}} = \frac{\mathbb{E}\sqrt{m(1-m)}}{p(1-p)}, \quad
              m = k/G, \quad k \sim \mathrm{Bin}(G, p)

    The other weights do not depend on p: 1 for leave-one-out, (G-1)/G for the group mean alone, and that
    over the standard deviation of the batch's rewards for ``"batch"``. For large G the group's weight goes to
    1/sqrt(p(1-p)), the derivative of 2 arcsin sqrt(p) (arXiv 2510.13651).

    Args:
        p: From 0 to 1. At the ends the weight is the limit, though no group there has a signal.
        group_size: G, at least 2.
        scaling: ``"leave_one_out"``, ``"none"``, ``"group"``, ``"group_bessel"`` (the standard deviation with
            G-1, as in TRL) or ``"batch"``, with the names of
            :func:`nanogrpo.advantages.group_advantages`.
        batch_p: Share of right answers in the whole batch, which is taken to be large. For ``"batch"`` only.

    Returns:
        w, without a unit. 0 for ``"batch"`` if all rewards of the batch are equal.

    Raises:
        OptionError: A probability is not from 0 to 1, or ``scaling`` is unknown.
        GroupSizeError: G < 2.

    When it is wrong: for rewards other than right or wrong, where no single number does it, and for an
    ``eps`` that is not small against the standard deviation.

    >>> [round(difficulty_weight(0.1, G), 3) for G in (2, 4, 8)]
    [1.0, 1.69, 2.328]
    """
    _check(p, group_size)
    _check(batch_p, group_size)
    check_choice("scaling", scaling, SCALINGS)
    G = group_size
    if scaling == "leave_one_out":
        return 1.0
    if scaling == "none":
        return (G - 1) / G
    if scaling == "batch":
        spread = math.sqrt(batch_p * (1 - batch_p))
        return (G - 1) / G / spread if spread else 0.0
    # One p and one (1 - p) of the binomial cancel against the denominator, so the ends need no limit.
    terms = (
        math.comb(G, k) * p ** (k - 1) * (1 - p) ** (G - k - 1) * math.sqrt(k * (G - k)) / G
        for k in range(1, G)
    )
    return sum(terms) * (math.sqrt((G - 1) / G) if scaling == "group_bessel" else 1.0)


def dead_group_probability(p: float, group_size: int) -> float:
    r"""How likely all G rewards are equal, so that the group teaches nothing: :math:`p^G + (1-p)^G`.

    Args:
        p: From 0 to 1.
        group_size: G, at least 2.

    Returns:
        A probability.

    Raises:
        OptionError, GroupSizeError: As for :func:`difficulty_weight`.

    When it is wrong: for a mean over prompts. Put in each prompt's own p; the mean p gives too few.

    >>> round(dead_group_probability(0.05, 8), 4)
    0.6634
    """
    _check(p, group_size)
    return p**group_size + (1 - p) ** group_size


class DifficultyExplorer(anywidget.AnyWidget):
    """Turn p and G, choose a scaling: the weight w beside the probability of a dead group.

    Attributes:
        p: Probability that a completion is right.
        group_size: G, from 2 to 64.
        scaling: One of ``SCALINGS``.
        batch_p: Share of right answers in the whole batch, for ``"batch"``.
    """

    _esm = script("difficulty")
    p = traitlets.Float(0.1).tag(sync=True)
    group_size = traitlets.Int(8, min=2, max=64).tag(sync=True)
    scaling = traitlets.Enum(SCALINGS, default_value="group").tag(sync=True)
    batch_p = traitlets.Float(0.5).tag(sync=True)


def _check(p: float, group_size: int) -> None:
    if not 0 <= p <= 1:
        raise OptionError(f"a probability is {p}; it must be from 0 to 1")
    if group_size < 2:
        raise GroupSizeError(f"group size is {group_size}; a group needs at least 2 completions")
