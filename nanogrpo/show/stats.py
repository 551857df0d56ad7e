"""Numbers over seeds, with intervals. SciPy does the arithmetic; what to ask it is decided here.

Few seeds make a percentile bootstrap too narrow: of nominal 95 % intervals of a mean of n normal values, 73 %
hold the truth at n = 3 and 90 % at n = 10, where Student's t keeps its word. So means get a t-interval, and
only what t cannot do is bootstrapped. Runs that share a seed are compared in pairs.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
from scipy import stats

from nanogrpo.errors import NonFiniteError, OptionError, ShapeError, check_whole

Values = Sequence[float]
Range = tuple[float, float]
SHARE: Range = (0.0, 1.0)
"""The range of a share or a probability, for ``within``."""


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, in the unit of the values."""

    estimate: float
    low: float
    high: float


def mean(values: Values, level: float = 0.95, within: Range | None = None) -> Interval:
    r"""Mean over seeds with Student's t-interval, :math:`\bar x \pm t_{n-1}\, s / \sqrt n`.

    A t-interval does not know what is possible: that of three shares near 1 reaches above 1. ``within`` names
    the least and the largest value there can be, and the interval ends there. It holds the truth as often as
    before, since the truth is never beyond.

    The wrong thing for values that are far from normal, such as runs of which a few collapse: report how many
    failed, and :func:`interquartile_mean`, beside it.

    Raises:
        ShapeError: fewer than 2 values.
        NonFiniteError: a value is NaN or infinite: a run that broke is reported, not averaged.
        OptionError: ``level`` is not between 0 and 1, or a value is not ``within`` the possible ones.

    >>> [round(x, 4) for x in mean([1.0, 2.0, 3.0])]
    [2.0, -0.4841, 4.4841]
    >>> [round(x, 4) for x in mean([0.9, 1.0, 1.0], within=SHARE)]
    [0.9667, 0.8232, 1.0]
    """
    x = _checked(values, level)
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x))
    return _possible(x, Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half), within)


def interquartile_mean(values: Values, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of the middle half of the values, with a percentile bootstrap over seeds (arXiv:2108.13264).

    A quarter of the runs at either end does not count, so it hides collapses: count these as well.

    >>> interquartile_mean([0.0, 5.0, 5.0, 9.0]).estimate
    5.0
    """
    return _bootstrap(
        (_checked(values, level),), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), level, seed
    )


def paired_difference(a: Values, b: Values, level: float = 0.95, within: Range | None = None) -> Interval:
    """Mean of ``a - b`` over seeds that both ran, with a t-interval of the differences.

    Whatever a seed does to both runs cancels, which makes the interval shorter than two separate ones.
    ``within`` is the range of the *difference*: for shares (-1, 1).

    Raises:
        ShapeError: unequal numbers of values, or fewer than 2.
    """
    x, y = _pairs(a, b, level)
    return mean(x - y, level, within)


def probability_of_improvement(a: Values, b: Values, level: float = 0.95, seed: int = 0) -> Interval:
    """Probability that a run of ``a`` ends above one of ``b`` (a tie counts half), with a bootstrap interval.

    >>> probability_of_improvement([1, 2, 3], [0, 0, 0]).estimate
    1.0
    """

    def share(x, y, axis):
        higher = np.expand_dims(x, -1) - np.expand_dims(y, -2)
        return ((higher > 0) + 0.5 * (higher == 0)).mean((-2, -1))

    return _bootstrap((_checked(a, level), _checked(b, level)), share, level, seed)


def band(
    curves: Sequence[Values], level: float = 0.95, within: Range | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean curve and its t-interval at each step, three arrays; ``curves`` has one row a seed.

    ``within`` is the possible range, as for :func:`mean`.
    The interval holds at each step by itself, not for the whole curve at once. At a step where a seed has NaN
    or infinity, or none at all, all three are NaN: the others alone would be a mean of another kind.
    """
    broken = Interval(np.nan, np.nan, np.nan)
    table = _array(curves)
    if table.ndim != 2 or not table.size:
        raise ShapeError(f"curves have shape {table.shape}; need one row a seed, with a value at each step")
    columns = [mean(column, level, within) if np.isfinite(column).all() else broken for column in table.T]
    middle, low, high = (np.array(values) for values in zip(*columns, strict=True))
    return middle, low, high


def _bootstrap(samples: tuple[np.ndarray, ...], statistic: Callable, level: float, seed: int) -> Interval:
    check_whole("seed", seed, 0)
    result = stats.bootstrap(
        samples,
        statistic,
        n_resamples=9999,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    ends = result.confidence_interval
    return Interval(float(statistic(*samples, axis=-1)), float(ends.low), float(ends.high))


def _possible(x: np.ndarray, interval: Interval, within: Range | None) -> Interval:
    """The part of an interval that is possible at all."""
    if within is None:
        return interval
    least, most = within
    outside = (x < least - 1e-9) | (x > most + 1e-9)  # a running mean of ones may be above 1 by rounding
    if not least < most or outside.any():
        i = int(np.argmax(outside))
        raise OptionError(f"within={within!r} is to hold every possible value; value {i} is {x[i]}")
    return Interval(interval.estimate, max(interval.low, least), min(interval.high, most))


def _array(values) -> np.ndarray:
    if np.ma.is_masked(values):
        raise NonFiniteError("a value is masked, which stands for none; leave it out, and say so")
    try:
        if np.asarray(values).dtype.kind not in "biuf":
            raise ValueError("these are none")
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"need numbers in rows of one length; {error}") from None


def _checked(values: Values, level: float) -> np.ndarray:
    x = _array(values)
    if x.ndim != 1 or len(x) < 2:
        raise ShapeError(f"an interval needs at least 2 values in one row; got shape {x.shape}")
    if not np.isfinite(x).all():
        i = int(np.argmin(np.isfinite(x)))
        raise NonFiniteError(f"value {i} is {x[i]}; leave a run that broke out, and say so")
    if not isinstance(level, Real) or not 0 < level < 1:
        raise OptionError(f"level={level!r} must be a number between 0 and 1, such as 0.95")
    return x


def _pairs(a: Values, b: Values, level: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = _checked(a, level), _checked(b, level)
    if len(x) != len(y):
        raise ShapeError(
            f"pairs need equal numbers of values; got {len(x)} and {len(y)}: run both on every seed"
        )
    return x, y
