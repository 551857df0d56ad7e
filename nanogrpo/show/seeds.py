"""Figures of many seeds: each run a thin line, their mean a thick one, its 95 % interval a band.

The logs are those of ``book/studies``: one row a step, with the columns ``run``, ``seed`` and ``step``.
"""

import pandas as pd
from matplotlib.axes import Axes

from nanogrpo.errors import LogError
from nanogrpo.show.plotting import LABELS, style
from nanogrpo.show.stats import band
from nanogrpo.show.studies import study_log


def study_runs(name: str) -> pd.DataFrame:
    """A committed log by its name below ``book/studies``, such as ``"ppo_vs_grpo/comparison/success"``."""
    return pd.read_csv(study_log(f"{name}.csv"), dtype={"run": str})


def curves(frame: pd.DataFrame, run: str, metric: str, x: str = "step") -> pd.DataFrame:
    """One metric of all seeds of a run: an index of steps, one column a seed.

    Raises:
        LogError: no such run or metric; the message names those that there are.
    """
    if metric not in frame or x not in frame:
        missing = metric if x in frame else x
        raise LogError(f"the log has no column {missing!r}; it has {', '.join(frame)}")
    rows = frame[frame["run"] == run]
    if rows.empty:
        raise LogError(f"the log has no run {run!r}; it has {', '.join(sorted(frame['run'].unique()))}")
    return rows.pivot(index=x, columns="seed", values=metric)


def final(frame: pd.DataFrame, run: str, metric: str = "success") -> pd.Series:
    """The last value of a metric, by seed."""
    return curves(frame, run, metric).iloc[-1]


def draw_seeds(
    ax: Axes,
    frame: pd.DataFrame,
    run: str,
    metric: str,
    color: str,
    label: str | None = None,
    window: int = 1,
) -> Axes:
    """Draw all seeds of a run, their mean and its interval at each step.

    Args:
        window: each seed's curve is first averaged over so many steps back.
    """
    table = curves(frame, run, metric).rolling(window, min_periods=1).mean()
    ax.plot(table.index, table, color=color, linewidth=0.5, alpha=0.35)
    if table.shape[1] > 1:
        middle, low, high = band(table.to_numpy().T)
        ax.fill_between(table.index, low, high, color=color, alpha=0.2, linewidth=0)
        ax.plot(table.index, middle, color=color, linewidth=2, label=label or run)
    return style(ax, LABELS["step"], LABELS.get(metric, metric))
