"""Intervals over seeds: against SciPy, against coverage, and at the edges."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from nanogrpo.errors import OptionError, ShapeError
from nanogrpo.show import stats

A = [0.71, 0.74, 0.69, 0.80, 0.77, 0.73]
B = [0.68, 0.75, 0.66, 0.75, 0.74, 0.70]


def test_the_mean_has_scipys_t_interval():
    estimate, low, high = stats.mean(A)
    test = scipy_stats.ttest_1samp(A, 0).confidence_interval(0.95)
    assert (estimate, low, high) == pytest.approx((np.mean(A), test.low, test.high), abs=1e-12)


def test_the_paired_difference_has_scipys_interval_and_is_shorter_than_two_separate_ones():
    paired = stats.paired_difference(A, B)
    test = scipy_stats.ttest_rel(A, B).confidence_interval(0.95)
    assert paired[1:] == pytest.approx((test.low, test.high), abs=1e-12)
    separate = scipy_stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    assert paired.high - paired.low < (separate.high - separate.low) / 2


@pytest.mark.slow
def test_the_t_interval_holds_the_truth_as_often_as_it_says():
    # 4,000 samples of 5: the count is binomial with p = 0.95, so 4 standard deviations are 0.014;
    # a correct interval fails this less than once in 10,000 seeds, and this seed is fixed.
    samples = np.random.default_rng(0).normal(size=(4000, 5))
    hits = [low <= 0 <= high for _, low, high in map(stats.mean, samples)]
    assert abs(np.mean(hits) - 0.95) < 0.014


def test_the_interquartile_mean_ignores_one_collapse_and_its_bootstrap_repeats():
    values = [0.7, 0.72, 0.71, 0.73, 0.74, 0.7, 0.72, 0.01]
    result = stats.interquartile_mean(values)
    assert result.estimate == pytest.approx(np.mean(sorted(values)[2:6]))
    assert result.low <= result.estimate <= result.high
    assert result == stats.interquartile_mean(values)


def test_the_probability_of_improvement_counts_pairs_and_halves_ties():
    result = stats.probability_of_improvement([1.0, 2.0, 2.0], [2.0, 0.0, 2.0])
    # 1>0 is one of nine; 2>0 twice; 2=2 four times as halves
    assert result.estimate == pytest.approx((1 + 2 + 4 / 2) / 9)
    u = scipy_stats.mannwhitneyu(A, B).statistic / (len(A) * len(B))
    assert stats.probability_of_improvement(A, B).estimate == pytest.approx(u)


def test_a_band_is_an_interval_at_each_step():
    curves = [[0.1, 0.5], [0.2, 0.4], [0.3, 0.6]]
    middle, low, high = stats.band(curves)
    for step in (0, 1):
        expected = stats.mean([curve[step] for curve in curves])
        assert (middle[step], low[step], high[step]) == pytest.approx(expected)


@pytest.mark.parametrize("call", [stats.mean, stats.interquartile_mean])
@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]]])
def test_too_few_values_are_refused(call, values):
    with pytest.raises(ShapeError, match="at least 2 values"):
        call(values)


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ShapeError, match="got 6 and 5"):
        stats.paired_difference(A, B[:5])


@pytest.mark.slow
def test_an_interval_ends_where_nothing_is_possible_and_holds_the_truth_as_often():
    assert stats.mean([0.9, 1.0, 1.0], within=stats.SHARE)[1:] == (stats.mean([0.9, 1.0, 1.0]).low, 1.0)
    assert stats.mean([0.1, 0.0, 0.0], within=stats.SHARE).low == 0.0
    assert stats.paired_difference([1, 1, 0.8], [0, 0.1, 0], within=(-1, 1)).high == 1.0
    _, low, high = stats.band([[0.0, 1.0], [0.1, 0.9]], within=stats.SHARE)
    assert low[0] == 0.0 and high[1] == 1.0
    samples = np.random.default_rng(0).beta(8, 1, (2000, 5))
    wide, cut = ([stats.mean(x, within=w) for x in samples] for w in (None, stats.SHARE))
    truth = 8 / 9
    assert [a.low <= truth <= a.high for a in wide] == [a.low <= truth <= a.high for a in cut]
    assert max(a.high for a in wide) > 1 >= max(a.high for a in cut)


@pytest.mark.parametrize("within", [(0.0, 0.5), (1.0, 0.0), (0.95, 1.0)])
def test_a_value_that_is_said_to_be_impossible_is_named(within):
    with pytest.raises(OptionError, match="is to hold every possible value; value [01] is"):
        stats.mean([0.9, 1.0], within=within)
