"""What a trend is, and what counts as one: the arithmetic that the looks of the run doctor share.

A trend compares the first fifth of a curve with its last. Its noise is read from the differences of
neighboring values, which a slow trend hardly touches. Thresholds were set on the training
and the development part of ``book/studies/doctor``; what they are worth on other runs, its second held-out
part says.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nanogrpo.teach.doctor.curves import Curves, Point

CLEAR = 5.0  # standard errors that a change must have to be one
LEARNED = 3.0  # and that the reward must have risen by, to explain another change
MANY = 0.85  # a share of dead groups
LEAP = 1.0  # a KL, in nats a token


class Seen(NamedTuple):
    """The evidence: where it is seen, from which step on, and the numbers."""

    metric: str
    step: int
    evidence: str


class Change(NamedTuple):
    """Means of the first and of the last fifth of a curve, and the standard error of their difference."""

    before: float
    after: float
    error: float

    @property
    def size(self) -> float:
        """How many standard errors the curve has risen."""
        return (self.after - self.before) / max(self.error, 1e-6)

    def __str__(self) -> str:
        return f"{self.before:.3g} in the first fifth of the run, {self.after:.3g} in the last"


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(v / len(values) for v in values)  # divided first, since a sum may overflow


def noise(values: Sequence[float]) -> float:
    """Standard deviation about a slow trend, from the differences of neighboring values."""
    steps = [abs(b - a) for a, b in zip(values, values[1:], strict=False)]
    return math.hypot(*steps) / math.sqrt(2 * max(len(steps), 1))


def change(points: Sequence[Point]) -> Change:
    """From the first fifth of a curve to its last."""
    values = [point.value for point in points]
    k = max(2, len(values) // 5)
    return Change(mean(values[:k]), mean(values[-k:]), noise(values) * math.sqrt(2 / k))


def slope(points: Sequence[Point]) -> float:
    """The slope of the least-squares line through a curve, in its standard errors."""
    values, middle = [point.value for point in points], (len(points) - 1) / 2
    places = [i - middle for i in range(len(values))]
    length = math.hypot(*places)
    return math.fsum(x / length * y for x, y in zip(places, values, strict=True)) / max(noise(values), 1e-6)


def since(points: Sequence[Point], odd: Callable[[float], bool]) -> int:
    """The first step from which on all values are odd; the last step if none is."""
    step = points[-1].step
    for point in reversed(points):
        if not odd(point.value):
            break
        step = point.step
    return step


def updates(curves: Curves) -> int | None:
    """Updates for each batch of samples; None where the settings do not say."""
    passes = curves.settings.get("num_iterations", curves.settings.get("num_ppo_epochs"))
    both = (passes, curves.settings.get("num_mini_batches", 1))
    return math.prod(both) if all(type(n) is int and n > 0 for n in both) else None


def moved(curves: Curves, *names: str) -> list[str]:
    """Those of the metrics that have changed clearly."""
    found = [(name, curves.points(name)) for name in names]
    return [name for name, points in found if len(points) >= 10 and abs(change(points).size) > CLEAR]
