"""The curves of a run: the metrics that are read, a value for each step.

log -> **curves** -> looks -> findings -> report
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nanogrpo.errors import LogError

# What the findings read, as TRL names it. Besides these, each reward function has a rewards/NAME/mean.
METRICS = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/clipped_ratio",
    "entropy",
    "advantage_abs_mean",
    "kl",
    "loss",
    "clip_ratio/region_mean",
    "grad_norm",
    "learning_rate",
)


class Point(NamedTuple):
    """A value of a metric, and its step."""

    step: int
    value: float


@dataclass(frozen=True)
class Curves:
    """What a run's log says, and what its settings are, as far as they are known.

    Attributes:
        columns: the values of each metric, one a row; None where a row has none.
        steps: of the rows, rising.
        settings: as in ``config.json``; empty where there is none.
    """

    columns: Mapping[str, list[float | None]]
    steps: list[int]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if any(b <= a for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise LogError("the steps of a log must rise; give the log of one run")
        if odd := [name for name, values in self.columns.items() if len(values) != len(self.steps)]:
            raise LogError(f"{odd[0]} has {len(self.columns[odd[0]])} values for {len(self.steps)} steps")

    def points(self, name: str) -> list[Point]:
        """The finite values of a metric, with their steps; empty where it was not logged."""
        values = self.columns.get(name, [])
        pairs = zip(self.steps, values, strict=True) if values else ()
        return [Point(step, v) for step, v in pairs if v is not None and math.isfinite(v)]

    def parts(self) -> list[str]:
        """The columns of single reward functions."""
        return [name for name in self.columns if re.fullmatch(r"rewards/.+/mean", name)]
