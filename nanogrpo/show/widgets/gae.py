"""Advantages along one completion: a critic's, token by token, and GRPO's, one for all tokens."""

from __future__ import annotations

import math

import anywidget
import torch
import traitlets

from nanogrpo.advantages import gae
from nanogrpo.errors import OptionError
from nanogrpo.show.widgets import script


def explored_gae(
    rewards: list[float], values: list[float], gamma: float = 1.0, lam: float = 0.95
) -> tuple[list[float], list[float]]:
    """Advantages and returns of one completion, by :func:`nanogrpo.advantages.gae`, in double precision.

    Args:
        rewards: Of each of the T tokens; a reward for the whole answer is on the last.
        values: The critic's, before each token.
        gamma: From 0 to 1.
        lam: From 0 to 1.

    Returns:
        ``(advantages, returns)``, T of each.

    Raises:
        OptionError: ``gamma`` or ``lam`` is not from 0 to 1.
        ShapeError: There are not as many rewards as values, or none.

    When it is wrong: as for the function that it calls.

    >>> explored_gae([0, 0, 1], [0.5, 0.5, 0.5], lam=0.5)
    ([0.125, 0.25, 0.5], [0.625, 0.75, 1.0])
    """
    for name, number in {"gamma": gamma, "lam": lam}.items():
        if not 0 <= number <= 1:
            raise OptionError(f"{name} is {number}; it must be from 0 to 1")
    r, v = (torch.tensor([numbers], dtype=torch.float64) for numbers in (rewards, values))  # (1, T)
    advantages, returns = gae(r, v, torch.ones(v.shape, dtype=torch.bool), gamma, lam)
    return advantages[0].tolist(), returns[0].tolist()


def advantage_in_group(reward: float, mean: float, std: float, eps: float = 1e-4) -> float:
    r"""GRPO's advantage of one completion, from the mean and the standard deviation of its group.

    .. math:: \hat A = \frac{r - \mathrm{mean}}{\mathrm{std} + \epsilon}

    Args:
        reward: Of the whole completion.
        mean: Of the rewards of its group.
        std: Of the same rewards, at least 0.
        eps: Added to ``std``, as in :func:`nanogrpo.advantages.group_advantages`.

    Returns:
        The advantage of every token of the completion; exactly 0 for a tied group.

    Raises:
        OptionError: A number is not finite, ``std`` is negative, or it is 0 while the reward is not the mean.

    When it is wrong: for training, which has the rewards themselves. A tied group is found by comparing
    them, not by a standard deviation.

    >>> round(advantage_in_group(1.0, 0.5, 0.5), 4)
    0.9998
    """
    if not all(map(math.isfinite, (reward, mean, std))) or std < 0:
        raise OptionError(f"reward {reward}, mean {mean}, std {std}: need finite numbers and std >= 0")
    if std == 0:
        if abs(reward - mean) >= 1e-9:
            raise OptionError(f"std is 0, so all rewards are equal, yet {reward} is not their mean {mean}")
        return 0.0
    return (reward - mean) / (std + eps)


class GAEExplorer(anywidget.AnyWidget):
    """Drag rewards and values along a completion: the critic's advantages beside the group's.

    Attributes:
        rewards: Of 1 to 8 tokens.
        values: Of as many.
        gamma: Discount a token, from 0 to 1.
        lam: From 0 to 1.
        group_mean: Mean reward of the completion's group, for GRPO.
        group_std: Their standard deviation.
    """

    _esm = script("gae")
    rewards = traitlets.List(traitlets.Float(), default_value=[0.0] * 6, minlen=1, maxlen=8).tag(sync=True)
    values = traitlets.List(traitlets.Float(), default_value=[0.6] * 3 + [0.1] * 3, minlen=1, maxlen=8).tag(
        sync=True
    )
    gamma = traitlets.Float(1.0).tag(sync=True)
    lam = traitlets.Float(0.95).tag(sync=True)
    group_mean = traitlets.Float(0.5).tag(sync=True)
    group_std = traitlets.Float(0.5).tag(sync=True)
