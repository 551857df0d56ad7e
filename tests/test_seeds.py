"""Figures of many seeds show what the log says."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from nanogrpo.errors import LogError
from nanogrpo.show import stats
from nanogrpo.show.seeds import curves, draw_seeds, final

FRAME = pd.DataFrame(
    {
        "run": ["a"] * 6 + ["b"] * 2,
        "seed": [0, 0, 1, 1, 2, 2, 0, 0],
        "step": [0, 10] * 4,
        "success": [0.3, 0.6, 0.3, 0.8, 0.3, 0.7, 0.3, 0.1],
    }
)


def test_curves_are_steps_by_seeds_and_end_where_the_log_ends():
    table = curves(FRAME, "a", "success")
    assert table.index.tolist() == [0, 10] and table.columns.tolist() == [0, 1, 2]
    assert final(FRAME, "a").tolist() == [0.6, 0.8, 0.7]


def test_a_figure_has_each_seed_their_mean_and_its_interval():
    figure, ax = plt.subplots()
    draw_seeds(ax, FRAME, "a", "success", "#000000", "all of a")
    thin, mean = ax.lines[:-1], ax.lines[-1]
    assert [line.get_ydata().tolist() for line in thin] == [[0.3, 0.6], [0.3, 0.8], [0.3, 0.7]]
    assert mean.get_ydata().tolist() == pytest.approx([0.3, 0.7]) and mean.get_label() == "all of a"
    ends = ax.collections[0].get_paths()[0].vertices[:, 1]
    expected = stats.mean([0.6, 0.8, 0.7])
    assert ends.min() == pytest.approx(0.3 if expected.low > 0.3 else expected.low)
    assert ends.max() == pytest.approx(expected.high)
    assert ax.get_xlabel() == "training step" and ax.get_ylabel()
    plt.close(figure)


def test_one_seed_is_a_line_without_an_interval():
    figure, ax = plt.subplots()
    draw_seeds(ax, FRAME, "b", "success", "#000000")
    assert len(ax.lines) == 1 and not ax.collections
    plt.close(figure)


@pytest.mark.parametrize(
    ("run", "metric", "named"), [("c", "success", "a, b"), ("a", "kl", "run, seed, step")]
)
def test_what_is_not_in_the_log_is_named(run, metric, named):
    with pytest.raises(LogError, match=named):
        curves(FRAME, run, metric)
