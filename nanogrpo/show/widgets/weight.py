"""How hard a variant pushes one token, over its ratio and for either sign of the advantage; two of them."""

from __future__ import annotations

from typing import Any

import anywidget
import torch
import traitlets

from nanogrpo.errors import OptionError, check_choice
from nanogrpo.grpo import GRPOConfig
from nanogrpo.losses import grpo_loss
from nanogrpo.show.widgets import ON_ONE_LINE, script
from nanogrpo.variants import VARIANTS

OF_THE_WEIGHT = ("importance_sampling_level", "surrogate", "clip_low", "clip_high", "delta")
ELSEWHERE = (
    "top_entropy_quantile", "clip_cov_ratio", "kl_cov_ratio", "use_adaptive_entropy",
    "off_policy_mask_threshold", "beta",
)  # fmt: skip


def explored_weight(
    name: str, ratio: float, sign: int, old_probability: float = 0.3, tokens: int = 8, others: float = 1.0
) -> float:
    r"""How hard a variant pushes a token, in units of the push that the token gets at a ratio of 1.

    .. math:: w(\rho) = \frac{\partial L / \partial \log \pi_t \;(\rho_t = \rho)}
              {\partial L / \partial \log \pi_t \;(\text{all ratios } 1,\ A = 1)}

    by :func:`nanogrpo.losses.grpo_loss` for one completion of advantage ``sign``. Its other tokens have a
    ratio of their own, which counts where a ratio is that of the completion.

    Args:
        name: A row of :data:`nanogrpo.variants.VARIANTS` that :func:`explored_variants` lists.
        ratio: Of new to old probability of the token, above 0.
        sign: 1 or -1, the advantage.
        old_probability: Of the token when it was sampled; DPPO looks at probabilities.
        tokens: Of the completion, at least 1.
        others: Ratio of each of the other tokens, above 0.

    Returns:
        The weight; positive pushes the token up, negative down.

    Raises:
        OptionError: A number is out of its range, or the new probability would be above 1.

    When it is wrong: exactly on a bound, where the derivative jumps. And it says nothing of how tokens of
    different completions are averaged: that is divided out.

    >>> [round(explored_weight(name, 1.5, 1), 3) for name in ("grpo", "cispo", "sapo")]
    [0.0, 1.5, 1.41]
    """
    check_choice("variant", name, [member for row in explored_variants() for member in row["members"]])
    if not (0 < ratio < float("inf") and 0 < others < float("inf") and 0 < old_probability <= 1):
        raise OptionError(
            f"ratio={ratio}, others={others} and old_probability={old_probability} must be above 0 and finite"
        )
    if ratio * old_probability > 1:
        raise OptionError(f"a ratio of {ratio} would make the probability {ratio * old_probability:.3g}")
    if sign not in (1, -1) or tokens < 1:
        raise OptionError(f"sign={sign} must be 1 or -1, and tokens={tokens} at least 1")
    at_one = _slope(name, 1.0, 1, old_probability, tokens, 1.0)
    return _slope(name, ratio, sign, old_probability, tokens, others) / at_one + 0.0  # no -0.0


def _slope(name: str, ratio: float, sign: int, old_probability: float, tokens: int, others: float) -> float:
    """Derivative of minus the loss for the log-prob of the first token."""
    config = GRPOConfig(max_new_tokens=tokens, **VARIANTS[name])
    ratios = torch.tensor([[ratio] + [others] * (tokens - 1)], dtype=torch.float64)  # (1, T)
    old = torch.full_like(ratios, old_probability).log()
    new = (old + ratios.log()).requires_grad_()
    chosen = {option: getattr(config, option) for option in OF_THE_WEIGHT} | config.shape
    mask, advantage = (
        torch.ones(1, tokens, dtype=torch.bool),
        torch.tensor([float(sign)], dtype=torch.float64),
    )
    loss, _ = grpo_loss(new, old, None, advantage, mask, **chosen)
    (gradient,) = torch.autograd.grad(loss, new)
    return -gradient[0, 0].item()


def explored_variants() -> list[dict[str, Any]]:
    """The variants whose weight is a matter of ratios; those that share all of it are one row.

    Left out is what weighs a token by something else than ratios: entropy, covariance, a KL, distance.

    >>> [row["members"] for row in explored_variants()][1:3]
    [['dapo'], ['gspo']]
    """
    rows: list[dict[str, Any]] = []
    for name, options in VARIANTS.items():
        if any(option in options for option in ELSEWHERE):
            continue
        config = GRPOConfig(max_new_tokens=1, **options)
        row = {option: getattr(config, option) for option in OF_THE_WEIGHT} | {"shape": config.shape}
        same = [known for known in rows if all(known[key] == value for key, value in row.items())]
        if same:
            same[0]["members"].append(name)
        else:
            rows.append({"members": [name]} | row)
    return rows


class WeightExplorer(anywidget.AnyWidget):
    """Two variants side by side: the weight of a token over its ratio.

    Attributes:
        left: The first name of a row of :func:`explored_variants`.
        right: Another one, or the same.
        ratio: Of the token.
        old_probability: Of the token when it was sampled.
        tokens: Of its completion.
        others: Ratio of the other tokens.
        rows: What the script knows of the variants, from the package.
    """

    _esm = script("weight")
    left = traitlets.Unicode("grpo").tag(sync=True)
    right = traitlets.Unicode("cispo").tag(sync=True)
    ratio = traitlets.Float(1.5).tag(sync=True)
    old_probability = traitlets.Float(0.3).tag(sync=True)
    tokens = traitlets.Int(8).tag(sync=True)
    others = traitlets.Float(1.0).tag(sync=True)
    rows = traitlets.List(explored_variants()).tag(**ON_ONE_LINE)
