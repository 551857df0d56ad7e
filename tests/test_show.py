"""Figures of runs, and the watching of a run from a notebook."""

import matplotlib
import pytest

matplotlib.use("Agg")

from nanogrpo.errors import LogError  # noqa: E402
from nanogrpo.show.live import watch  # noqa: E402
from nanogrpo.show.plotting import LABELS, plot_runs, smooth  # noqa: E402

RUN = {"step": [1, 2, 3], "reward": [0.0, 1.0, 0.5], "entropy": [2.0, 1.0, 0.5]}


def test_each_panel_is_labeled_with_units_and_carries_the_numbers():
    figure = plot_runs({"one": RUN, "two": RUN}, ["reward", "entropy"])
    for ax, metric in zip(figure.axes, ("reward", "entropy"), strict=True):
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("training step", LABELS[metric])
        assert ax.lines[0].get_ydata().tolist() == RUN[metric]
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
        assert ax.lines[1].get_color() != ax.lines[3].get_color()


def test_smoothing_is_a_running_mean():
    assert smooth([3.0, 5.0, 10.0, 0.0], window=3) == [3.0, 4.0, 6.0, 5.0]


def test_a_metric_that_is_not_in_the_log_is_named():
    with pytest.raises(LogError, match="'kl'; it has step, reward, entropy"):
        plot_runs({"one": RUN}, ["kl"])


def test_an_interrupted_run_keeps_what_it_has(capsys):
    def rows():
        yield {"step": 1, "reward": 0.5, "entropy": 1.0}
        raise KeyboardInterrupt

    assert watch(rows(), total=5) == {"step": [1], "reward": [0.5], "entropy": [1.0]}
    assert "Stopped after step 1" in capsys.readouterr().out
