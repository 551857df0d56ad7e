"""Figures of training runs that explain themselves: a title, both axes with their units, a legend.

The colors are those of Okabe and Ito (2008), which stay apart for color-blind readers, on a white ground
that reads the same in a light and in a dark page.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanogrpo.errors import LogError

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# What each metric of the logs is, with its unit. Any other column is drawn under its own name.
LABELS = {
    "step": "training step",
    "num_tokens": "sampled tokens",
    "accuracy": "share of right answers",
    "reward": "mean reward",
    "reward_std": "standard deviation of the reward",
    "frac_reward_zero_std": "share of groups with equal rewards",
    "entropy": "entropy (nats per token)",
    "kl": "KL to the reference (nats per token)",
    "loss": "loss",
    "grad_norm": "length of the gradient",
    "clip_ratio/region_mean": "share of clipped tokens",
    "completions/mean_length": "mean length (tokens)",
    "completions/clipped_ratio": "share of truncated completions",
    "advantage_abs_mean": "mean size of the advantage",
    "groups_sampled": "groups sampled in a step",
    "value_loss": "value loss (squared units of the reward)",
    "explained_variance": "share of variance explained",
    "margin": "reward of chosen less rejected (nats)",
    "learning_rate": "learning rate",
}

Columns = Mapping[str, Sequence[float]]


def style(ax: Axes, x: str, y: str, title: str = "") -> Axes:
    """Label the axes, and leave away what is not data."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if title:
        ax.set_title(title, loc="left", fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    return ax


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and the ``window - 1`` values before it, fewer at the start.

    >>> smooth([1.0, 3.0, 5.0], window=2)
    [1.0, 2.0, 4.0]
    """
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]


def draw_metric(
    ax: Axes, runs: Mapping[str, Columns], metric: str, x: str = "step", window: int = 10
) -> Axes:
    """Draw one metric of several runs: every value thin, its mean over the last ``window`` steps thick.

    Raises:
        LogError: a run has no such metric; the message names those that it has.
    """
    for (name, columns), color in zip(runs.items(), COLORS * 8, strict=False):
        if metric not in columns or x not in columns:
            raise LogError(
                f"{name} has no metric {metric if x in columns else x!r}; it has {', '.join(columns)}"
            )
        if window > 1:
            ax.plot(columns[x], columns[metric], color=color, alpha=0.25, linewidth=0.8)
        ax.plot(columns[x], smooth(columns[metric], window), color=color, linewidth=2, label=name)
    if len(runs) > 1:
        ax.legend(frameon=False)
    return style(ax, LABELS.get(x, x), LABELS.get(metric, metric))


def plot_runs(
    runs: Mapping[str, Columns], metrics: Sequence[str], x: str = "step", window: int = 10
) -> Figure:
    """One panel a metric, side by side; see :func:`draw_metric`."""
    figure, axes = plt.subplots(1, len(metrics), figsize=(4.6 * len(metrics), 3.2), squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        draw_metric(ax, runs, metric, x, window)
    how = f": every step thin, mean of {window} steps thick" if window > 1 else ""
    figure.suptitle(" and ".join(runs) + how, fontsize=9, color="#555555")
    figure.tight_layout()
    return figure


def describe_runs(
    figure: Figure, runs: Mapping[str, Columns], metric: str, x: str = "step", window: int = 10
) -> Figure:
    """Give a figure of :func:`plot_runs` a title and a caption, so that it explains itself anywhere."""
    what, along = LABELS.get(metric, metric), LABELS.get(x, x)
    figure.suptitle(f"{what[0].upper()}{what[1:]}, by {along}", fontsize=11, x=0.02, ha="left")
    lengths = [f"{name}: {len(columns[metric])} steps" for name, columns in runs.items()]
    lines = f"Thin: every step. Thick: mean of the last {window} steps. One run each; {', '.join(lengths)}."
    figure.text(0.02, 0.0, textwrap.fill(lines, 78), fontsize=8, color="#555555", ha="left", va="top")
    return figure
