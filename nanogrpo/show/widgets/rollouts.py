"""A logged run of GRPO, token by token: what was sampled, what it earned, and what the step did to it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import anywidget
import torch
import traitlets

from nanogrpo.advantages import group_advantages
from nanogrpo.errors import LogError
from nanogrpo.losses import clipped_surrogate, importance_ratio
from nanogrpo.show.source import source_link
from nanogrpo.show.widgets import ON_ONE_LINE, script

# What is shown, and the lines of the package that compute it, in the order of the flow.
SOURCES = {
    "tokens": "nanogrpo.packed.generate",
    "log-probs": "nanogrpo.rollout.sample_token",
    "reward": "nanogrpo.tasks.exact_match",
    "advantage": "nanogrpo.advantages.group_advantages",
    "ratio": "nanogrpo.losses.importance_ratio",
    "clip": "nanogrpo.losses.clipped_surrogate",
    "update": "nanogrpo.step.update",
}


def explored_group(rewards: list[float]) -> dict[str, float | list[float]]:
    """Mean, standard deviation and advantages of a group, by :func:`nanogrpo.advantages.group_advantages`.

    Raises:
        GroupSizeError, NonFiniteError: as for that function.

    When it is wrong: for a run with other options than the defaults, whose log has its own advantages.

    >>> explored_group([1.0, 0.0])["mean"], explored_group([0.3, 0.3, 0.3])["advantages"]
    (0.5, [0.0, 0.0, 0.0])
    """
    group = torch.tensor([rewards], dtype=torch.float64)  # (1, G)
    return {
        "mean": group.mean().item(),
        "std": group.std(correction=0).item(),
        "advantages": group_advantages(group)[0].tolist(),
    }


def explored_token(
    logprob: float, log_ratio: float, advantage: float, clip_low: float = 0.2, clip_high: float = 0.2
) -> dict[str, float | bool]:
    r"""What one token's numbers say, by :mod:`nanogrpo.losses`.

    .. math:: \rho = e^{\ell}, \qquad
              \text{clipped} \iff A \ne 0 \text{ and }
              \frac{\partial}{\partial \rho} \min(\rho A, \mathrm{clip}(\rho) A) = 0

    Args:
        logprob: when it was sampled, in nats.
        log_ratio: :math:`\ell`, its log-prob now less that one.
        advantage: of its completion.
        clip_low: how far below 1 the ratio may count.
        clip_high: how far above 1.

    Returns:
        ``before`` and ``after``, its probabilities; ``ratio``; ``objective``, what the token adds to the
        objective before averaging; ``clipped``, whether it has no gradient because of the clip.

    Raises:
        OptionError: a bound is negative.

    When it is wrong: on the very edge of the clip, where the derivative jumps.

    >>> [explored_token(0.0, math.log(1.5), advantage)["clipped"] for advantage in (1.0, -1.0)]
    [True, False]
    """
    mask = torch.ones(1, 1, dtype=torch.bool)  # (1, 1): one token
    old = torch.tensor([[logprob]], dtype=torch.float64)
    ratio = importance_ratio(old + log_ratio, old, mask).requires_grad_()
    amount = torch.tensor([advantage], dtype=torch.float64)
    objective = -clipped_surrogate(ratio, amount, mask, clip_low, clip_high).sum()
    (slope,) = torch.autograd.grad(objective, ratio)
    return {
        "before": math.exp(logprob),
        "after": math.exp(logprob + log_ratio),
        "ratio": ratio.item(),
        "objective": objective.item(),
        "clipped": advantage != 0 and slope.item() == 0,
    }


class RolloutViewer(anywidget.AnyWidget):
    """Go through the steps of a logged run; choose a token to read all that is known of it.

    Attributes:
        steps: what ``book/studies/rollouts/run.py`` writes, one entry for each step that was kept.
        config: the options of the run that the read-out names.
        sources: for each quantity, where the package computes it.
        at: which step is shown, as an index.
        group: which prompt.
        row: which completion is read out.
        token: which of its tokens.
        view: the number that is shown and colored: ``"log_ratios"``, ``"logprobs"`` or ``"advantage"``.
    """

    _esm = script("rollouts")
    steps: traitlets.List = traitlets.List().tag(**ON_ONE_LINE)
    config = traitlets.Dict().tag(sync=True)
    sources = traitlets.Dict().tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)
    group = traitlets.Int(0).tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(0).tag(sync=True)
    view = traitlets.Enum(["log_ratios", "logprobs", "advantage"], "log_ratios").tag(sync=True)

    @classmethod
    def of(cls, path: str | os.PathLike, **values) -> RolloutViewer:
        """A viewer of a log.

        Raises:
            LogError: the file is no such log.
        """
        try:
            log = json.loads(Path(path).read_text(encoding="utf-8"))
            steps, config = log["steps"], log["config"]
        except (OSError, ValueError, KeyError) as error:
            raise LogError(f"{path} is no log of book/studies/rollouts/run.py: {error!r}") from error
        sources = {what: {"name": name, "url": source_link(name)} for what, name in SOURCES.items()}
        return cls(steps=steps, config=config, sources=sources, **values)
