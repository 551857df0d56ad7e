"""A group's rewards, dragged, and what each way of comparing them makes of them."""

from __future__ import annotations

import anywidget
import torch
import traitlets

from nanogrpo.advantages import batch_advantages, group_advantages, leave_one_out
from nanogrpo.errors import OptionError, check_choice
from nanogrpo.show.widgets import script

SCALINGS = ("group", "group_bessel", "none", "leave_one_out", "batch", "whole_batch", "raw")


def explored_advantages(
    rewards: list[float], other_right: int = 1, scaling: str = "group", eps: float = 1e-4
) -> list[float]:
    r"""The advantages of one group, by the functions of :mod:`nanogrpo.advantages`, in double precision.

    ``"group"``, ``"none"`` and ``"batch"`` are the values of ``scale_rewards``, ``"group_bessel"`` is
    ``"group"`` with G-1 under the root, ``"whole_batch"`` also takes the mean over the batch, and
    ``"raw"`` is no comparison at all: :math:`A_i = r_i`.

    Args:
        rewards: Of the G completions of one prompt.
        other_right: The batch has a second prompt, also with G completions; so many of them are right
            (reward 1), the others wrong (reward 0). All of them if there are not so many.
        scaling: One of ``SCALINGS``.
        eps: Added to a standard deviation.

    Returns:
        G advantages.

    Raises:
        OptionError: Unknown ``scaling``, or ``other_right`` is negative.
        GroupSizeError, NonFiniteError: As for :func:`nanogrpo.advantages.group_advantages`.

    When it is wrong: for training. It is the figure's arithmetic; call the package's functions.

    >>> [round(a, 3) for a in explored_advantages([1, 0, 0, 0], 3, "whole_batch", eps=0.0)]
    [1.0, -1.0, -1.0, -1.0]
    """
    check_choice("scaling", scaling, SCALINGS)
    if other_right < 0:
        raise OptionError(f"other_right is {other_right}; it counts right answers, so it is at least 0")
    own = torch.tensor(rewards, dtype=torch.float64)  # (G,)
    second = (torch.arange(len(rewards)) < other_right).double()  # (G,)
    batch = torch.stack([own, second])  # (2, G)
    computed = {
        "group": lambda: group_advantages(batch, "group", eps),
        "group_bessel": lambda: group_advantages(batch, "group", eps, correction=1),
        "none": lambda: group_advantages(batch, "none"),
        "leave_one_out": lambda: leave_one_out(batch),
        "batch": lambda: group_advantages(batch, "batch", eps),
        "whole_batch": lambda: batch_advantages(batch, eps),
        "raw": lambda: batch,
    }[scaling]()  # (2, G)
    return computed[0].tolist()


class AdvantageExplorer(anywidget.AnyWidget):
    """Drag the rewards of a group, choose what they are compared with: the advantages follow.

    Attributes:
        rewards: Of 2 to 16 completions.
        other_right: Right answers to the second prompt of the batch, for ``"batch"`` and ``"whole_batch"``.
        scaling: One of ``SCALINGS``.
        eps: Added to a standard deviation: 1e-8, 1e-6 or 1e-4.
    """

    _esm = script("advantage")
    rewards = traitlets.List(traitlets.Float(), default_value=[1.0] + [0.0] * 7, minlen=2, maxlen=16).tag(
        sync=True
    )
    other_right = traitlets.Int(6, min=0, max=16).tag(sync=True)
    scaling = traitlets.Enum(SCALINGS, default_value="group").tag(sync=True)
    eps = traitlets.Enum((1e-8, 1e-6, 1e-4), default_value=1e-4).tag(sync=True)
