"""What two results may differ by and still be the same: the one place for it, in tests and chapters.

Another processor adds in another order, so its sums differ in the last bits. What follows from that depends
on what is compared. There are three kinds.

**Mathematics**: formulas, exact expectations, one forward pass. Rounding stays as small as it was. Compared
tightly: to 1e-12 in fp64, 1e-5 in fp32 (:func:`tests.mathcheck.close`), and as printed in a chapter: to one
unit in the last digit (:func:`unit`), with whole numbers and words exactly.

**A run**: training, or samples of a model. One bit can turn one sampled token, and from there on it is
another run, as with another seed. Compared within a margin that comes from runs that differ in nothing but
rounding (:func:`run_margin`, measured by ``tests/spread.py``; :data:`LOGGED_LOSS`), from a log's seeds
(:func:`seed_margin`), or, where right answers are counted, from the binomial error (:func:`binomial_margin`).
Text that a model sampled cannot be compared: its cell asserts what matters about it.

**Bits**: only between two runs in one process, or on one machine within one test. There nothing may
differ: determinism, resuming, reading back what was written.
"""

import math
import re
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?%?")
# Nats, for the first 100 steps of supervised training made again. The foreign mode moves a loss by 1e-5.
LOGGED_LOSS = 1e-3
CHANCE = 1e-3  # how often a margin of runs may be too narrow by bad luck, for each group of numbers


def value(text: str) -> float:
    """The number that a piece of text shows.

    >>> value("1,234.5"), value("-31.2%"), value("3e+09")
    (1234.5, -31.2, 3000000000.0)
    """
    return float(text.replace(",", "").removesuffix("%"))


def unit(text: str) -> float:
    """One unit in the last digit of a printed number: the margin of mathematics. 0 for a whole number.

    >>> [unit(x) for x in ("0.125", "31.2%", "50%", "17", "1.2e-07")]
    [0.001, 0.1, 1.0, 0.0, 1e-08]
    """
    digits, _, power = text.lower().removesuffix("%").partition("e")
    decimals = len(digits.partition(".")[2])
    if not (decimals or power or text.endswith("%")):
        return 0.0
    return float(f"1e{int(power or 0) - decimals}")


def run_margin(groups: Sequence[Sequence[float]], own: Sequence[float] = (), chance: float = CHANCE) -> float:
    r"""How far two runs may be apart that differ in nothing but rounding.

    .. math:: t_{\nu,\, 1 - p/2} \cdot s \sqrt{2}

    with the standard deviation :math:`s` pooled over groups of like numbers, each measured in several runs,
    and :math:`\nu` its degrees of freedom. Student's quantile is wide for few runs, as it must be. A number
    whose ``own`` deviation is larger than the pooled one gets that.

    >>> round(run_margin([[0.80, 0.82, 0.81, 0.79, 0.83]]), 2)
    0.19
    >>> round(run_margin([[0.80, 0.82, 0.81, 0.79, 0.83]] * 10), 2)
    0.08
    >>> run_margin([[0.5, 0.5, 0.5]])
    0.0
    """
    if not groups:
        return 0.0
    free = sum(len(group) - 1 for group in groups)
    pooled = sum((len(group) - 1) * statistics.variance(group) for group in groups) / free
    square = max(pooled, statistics.variance(own) if own else 0.0)
    return float(student.ppf(1 - chance / 2, free)) * math.sqrt(2 * square)


def seed_margin(ends: Sequence[float], chance: float = CHANCE) -> float:
    """How far one more run may be from the mean of a log's seeds: a prediction interval's half width.

    >>> round(seed_margin([0.80, 0.82, 0.81, 0.79, 0.83]), 2)
    0.15
    """
    n = len(ends)
    return float(student.ppf(1 - chance / 2, n - 1)) * statistics.stdev(ends) * math.sqrt(1 + 1 / n)


def binomial_margin(p: float, n: int, chance: float = CHANCE) -> float:
    """How far two counts of right answers may be apart, as shares of ``n``, if each is right with ``p``.

    >>> round(binomial_margin(0.3, 1000), 2)
    0.07
    """
    return statistics.NormalDist().inv_cdf(1 - chance / 2) * math.sqrt(2 * p * (1 - p) / n)
