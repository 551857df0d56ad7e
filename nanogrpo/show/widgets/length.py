"""How much one token counts in the loss, by the length of its completion and by the aggregation."""

from __future__ import annotations

import anywidget
import torch
import traitlets

from nanogrpo.losses import Denominators, aggregate
from nanogrpo.show.widgets import script


def token_weights(
    lengths: list[int], how: str = "sequence_mean", max_length: int | None = None
) -> list[float]:
    r"""The weight of one token of each completion: the derivative of :func:`nanogrpo.losses.aggregate`.

    .. math:: w_i = \frac{\partial L}{\partial \ell_{it}}

    Args:
        lengths: Tokens of each completion of the batch.
        how: One of ``nanogrpo.losses.AGGREGATIONS``.
        max_length: The constant length of ``"constant"``.

    Returns:
        A weight for each completion; 0 if it has no token.

    Raises:
        MaskError, OptionError: As for :func:`nanogrpo.losses.aggregate`.

    When it is wrong: as the influence of a token on the policy, which is this times its advantage and its
    ratio.

    >>> [round(w, 4) for w in token_weights([4, 7])]
    [0.125, 0.0714]
    """
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, T)
    per_token = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    aggregate(per_token, mask, how, Denominators.of(mask, max_length)).backward()
    assert per_token.grad is not None  # it was just made
    return per_token.grad.sum(1).div(mask.sum(1).clamp(min=1)).tolist()  # all tokens of a row weigh the same


class LengthExplorer(anywidget.AnyWidget):
    """Change the lengths of two to four completions: what a token of each weighs, in all aggregations.

    Attributes:
        lengths: Tokens of each completion, from 0 to 12.
        max_length: The constant length of ``"constant"``, a whole number.
    """

    _esm = script("length")
    lengths = traitlets.List(traitlets.Int(), default_value=[4, 7], minlen=2, maxlen=4).tag(sync=True)
    max_length = traitlets.Float(12.0).tag(sync=True)
