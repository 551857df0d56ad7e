"""Figures of training runs that explain themselves: a title, both axes with their units, a legend.

The colors are those of Okabe and Ito (2008), which stay apart for color-blind readers, on a white ground
that reads the same in a light and in a dark page.
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanogrpo.errors import LogError, NanoGRPOError, OptionError, check_whole, shown

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TOO_LARGE = 1e307  # for Matplotlib, which takes differences
LINES = ("-", "--", ":", "-.")  # for the first seven runs, the next seven, and so on

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

# One of several rewards, by the name of its function.
ONE_REWARD = re.compile(r"rewards/(.+)/(mean|std)")

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
    """Mean of each value and the ``window - 1`` values before it, fewer at the start; a NaN spoils them all.

    >>> smooth([1.0, 3.0, 5.0], window=2)
    [1.0, 2.0, 4.0]
    """
    values = _numbers(values, window)
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """As :func:`smooth`, over the finite values alone, so that one NaN hides no other step; NaN without any.

    >>> running_mean([1.0, float("nan"), 3.0, 5.0], window=2)
    [1.0, 1.0, 3.0, 4.0]
    """
    values, means = _numbers(values, window), []
    for i in range(len(values)):
        finite = [v for v in values[max(0, i + 1 - window) : i + 1] if math.isfinite(v)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return means


def _numbers(values: Sequence[float], window: int) -> list[float]:
    """Values to be averaged as floats; raises OptionError or LogError where window or values are none."""
    check_whole("window", window, 1)
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise LogError(f"a running mean is one of numbers; {error}") from None


def draw_metric(
    ax: Axes, runs: Mapping[str, Columns], metric: str, x: str = "step", window: int = 10
) -> Axes:
    """Draw one metric of several runs: every value thin, its mean over the last ``window`` steps thick.

    A value that is NaN or infinite is a cross at the foot, and left out of the means. A value that has no
    neighbor to be joined with is a dot.

    Raises:
        LogError: there is no run, or a run has no such metric (the message names those that it has), no row,
            something else than numbers, or steps that do not go up.
        OptionError: ``window`` is no whole number above 0.
    """
    check_whole("window", window, 1)
    if not isinstance(runs, Mapping) or not all(isinstance(columns, Mapping) for columns in runs.values()):
        raise LogError(f"runs={shown(runs):.80} must be the columns of each run by its name")
    if not runs:
        raise LogError("there is no run to draw; give at least one log")
    crosses = 0
    for i, (name, columns) in enumerate(runs.items()):
        at, values = (_column(name, columns, column) for column in (x, metric))
        if len(at) != len(values):
            raise LogError(f"{name} has {len(at)} values of {x}, but {len(values)} of {metric}")
        _check_places(name, x, at)
        look: dict[str, Any] = {
            "color": COLORS[i % len(COLORS)],
            "linestyle": LINES[i // len(COLORS) % len(LINES)],
        }
        if window > 1:
            ax.plot(at, values, alpha=0.25, linewidth=0.8, **look)
        means = running_mean(values, window)
        dots: dict[str, Any] = {"marker": "o", "markersize": 4, "markevery": _alone(means)}
        ax.plot(at, means, linewidth=2, label=plain(name), **look, **dots)
        broken = [a for a, value in zip(at, values, strict=True) if not math.isfinite(value)]
        if broken:
            foot: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "linestyle": "none", "marker": "x"}
            label = None if crosses else "NaN or infinite"
            ax.plot(broken, [0.02] * len(broken), color=look["color"], label=label, **foot)
            crosses += len(broken)
    if len(runs) > 1 or crosses:
        ax.legend(frameon=False)
    return style(ax, in_words(x), in_words(metric))


def _column(name: str, columns: Columns, metric: str) -> list[float]:
    """The numbers of one column, or an error that says what is not right with it."""
    if metric not in columns:
        raise LogError(f"{name} has no metric {metric!r}; it has {', '.join(map(str, columns))}")
    try:
        values = [float(value) for value in columns[metric]]
    except (TypeError, ValueError, OverflowError):
        raise LogError(f"{name} has something else than numbers in its column {metric!r}") from None
    if any(TOO_LARGE < abs(value) < math.inf for value in values):
        raise LogError(f"{name} has a {metric!r} that is too large to be drawn, above {TOO_LARGE:g}")
    if not values:
        raise LogError(f"{name} has no rows, so there is nothing to draw; the run wrote no step")
    return values


def _check_places(name: str, x: str, at: Sequence[float]) -> None:
    """Raise LogError where a value has no place along x, or where steps do not go up: there are two runs."""
    if odd := [i for i, value in enumerate(at) if not math.isfinite(value)]:
        raise LogError(f"{name}, row {odd[0] + 1}: {x}={at[odd[0]]}, so its values cannot be drawn")
    back = [i for i in range(1, len(at)) if at[i] <= at[i - 1]] if x == "step" else []
    if back:
        first, then = at[back[0] - 1], at[back[0]]
        raise LogError(
            f"{name}, row {back[0] + 1}: step {then:g} follows step {first:g}; give the log of one run"
        )


def _alone(values: Sequence[float]) -> list[int]:
    """Where a finite value has no finite neighbor, so that no line goes through it."""
    finite = [False, *map(math.isfinite, values), False]
    return [i for i in range(len(values)) if finite[i + 1] and not (finite[i] or finite[i + 2])]


def in_words(metric: str) -> str:
    """What a metric is, in words; a column that no log of the package has is drawn under its own name.

    >>> in_words("kl"), in_words("rewards/judge/mean"), in_words("my column")
    ('KL to the reference (nats per token)', 'mean reward of judge', 'my column')
    """
    if metric not in LABELS and (found := ONE_REWARD.fullmatch(metric)):
        return f"{'mean' if found[2] == 'mean' else 'standard deviation of the'} reward of {plain(found[1])}"
    return LABELS.get(metric, plain(metric))


def plain(text: str) -> str:
    """A name as Matplotlib shows it unchanged: a dollar begins no formula, an underscore hides no label."""
    text = re.sub(r"(?<!\\)\$", r"\$", str(text))
    return f" {text}" if text.startswith("_") or not text else text


def plot_runs(
    runs: Mapping[str, Columns], metrics: Sequence[str], x: str = "step", window: int = 10
) -> Figure:
    """One panel a metric, side by side; see :func:`draw_metric`.

    Raises:
        OptionError: ``metrics`` is no list of names.
        LogError: as for :func:`draw_metric`.
    """
    check_metrics(metrics)
    figure, axes = plt.subplots(1, len(metrics), figsize=(4.6 * len(metrics), 3.2), squeeze=False)
    try:
        for ax, metric in zip(axes[0], metrics, strict=True):
            draw_metric(ax, runs, metric, x, window)
    except NanoGRPOError:
        plt.close(figure)  # else a notebook would show what there is of it
        raise
    how = f": every step thin, mean of {window} steps thick" if window > 1 else ""
    figure.suptitle(plain(" and ".join(map(str, runs)) + how), fontsize=9, color="#555555")
    figure.tight_layout()
    return figure


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise OptionError unless these are names of metrics, at least one; a text would be read by letters."""
    if isinstance(metrics, str) or not isinstance(metrics, Sequence) or not metrics:
        raise OptionError(f"metrics={metrics!r} must be a list of names, at least one")
    if odd := [metric for metric in metrics if not isinstance(metric, str)]:
        raise OptionError(f"metrics={metrics!r} must be names; {odd[0]!r} is none")


def describe_runs(
    figure: Figure, runs: Mapping[str, Columns], metric: str, x: str = "step", window: int = 10
) -> Figure:
    """Give a figure of :func:`plot_runs` a title and a caption, so that it explains itself anywhere."""
    what, along = in_words(metric), in_words(x)
    figure.suptitle(f"{what[0].upper()}{what[1:]}, by {along}", fontsize=11, x=0.02, ha="left")
    lengths = [
        f"{plain(name)}: {len(_column(name, columns, metric))} steps" for name, columns in runs.items()
    ]
    lines = f"Thin: every step. Thick: mean of the last {window} steps. One run each; {', '.join(lengths)}."
    figure.text(0.02, 0.0, textwrap.fill(lines, 78), fontsize=8, color="#555555", ha="left", va="top")
    return figure
