"""Figures of many seeds: each run a thin line, their mean a thick one, its 95 % interval a band.

The logs are those of ``book/studies``: one row a step, with the columns ``run``, ``seed`` and ``step``.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from nanogrpo.errors import LogError
from nanogrpo.show.plotting import COLORS, LABELS, style
from nanogrpo.show.stats import SHARE, Range, band, mean
from nanogrpo.show.studies import study_log

# What a metric can be: no band is drawn beyond. A reward may be anything.
POSSIBLE: dict[str, Range] = dict.fromkeys(
    ("success", "accuracy", "frac_reward_zero_std", "completions/clipped_ratio"), SHARE
)


def study_runs(name: str) -> pd.DataFrame:
    """A committed log by its name below ``book/studies``, such as ``"ppo_vs_grpo/comparison/success"``.

    Raises:
        LogError: there is no such log, it cannot be had here, or it is no table.
    """
    path = study_log(f"{name}.csv")
    try:
        return pd.read_csv(path, dtype={"run": str})
    except (OSError, ValueError) as error:
        raise LogError(f"cannot read the log {path}: {error}") from error


def curves(frame: pd.DataFrame, run: str, metric: str, x: str = "step") -> pd.DataFrame:
    """One metric of all seeds of a run: an index of steps, one column a seed.

    Raises:
        LogError: no such run or metric (the message names those that there are), or a seed has a step twice.
    """
    if not isinstance(frame, pd.DataFrame):
        raise LogError(f"the log is of type {type(frame).__name__}; give a table, as study_runs reads it")
    for column in ("run", "seed", x, metric):
        if column not in frame:
            raise LogError(f"the log has no column {column!r}; it has {', '.join(map(str, frame))}")
    rows = frame[frame["run"] == run]
    if rows.empty:
        runs = ", ".join(sorted(frame["run"].astype(str).unique()))
        raise LogError(f"the log has no run {run!r}; it has {runs}")
    twice = rows[rows.duplicated([x, "seed"])]
    if len(twice):
        raise LogError(f"seed {twice['seed'].iloc[0]} of run {run!r} has {x} {twice[x].iloc[0]} twice")
    if not pd.api.types.is_numeric_dtype(rows[metric]):
        raise LogError(f"the column {metric!r} holds something else than numbers")
    return rows.pivot(index=x, columns="seed", values=metric)


def final(frame: pd.DataFrame, run: str, metric: str = "success") -> pd.Series:
    """The last value of a metric, by seed, at the step where that seed ended; NaN where it broke there.

    Raises:
        LogError: as for :func:`curves`.
    """
    curves(frame, run, metric)  # which checks
    rows = frame[frame["run"] == run].sort_values("step", kind="stable")
    return rows.drop_duplicates("seed", keep="last").set_index("seed")[metric].sort_index()


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
    several = table.shape[1] > 1
    alone: dict[str, Any] = {} if several else {"label": label or run}
    ax.plot(table.index, table, color=color, linewidth=0.5, alpha=0.35, **alone)
    if several:
        middle, low, high = band(table.to_numpy().T, within=POSSIBLE.get(metric))
        ax.fill_between(table.index, low, high, color=color, alpha=0.2, linewidth=0)
        ax.plot(table.index, middle, color=color, linewidth=2, label=label or run)
    return style(ax, LABELS["step"], LABELS.get(metric, metric))


def effects(name: str, chapter: str) -> pd.DataFrame:
    """Paired differences of a log that has ``chapter, effect, seed, changed, base``: one column an effect.

    Raises:
        LogError: as for :func:`study_runs`, and where the log has no such chapter.
    """
    frame = study_runs(name)
    rows = frame[frame["chapter"] == chapter]
    if rows.empty:
        raise LogError(
            f"the log {name} has no chapter {chapter!r}; it has {', '.join(frame['chapter'].unique())}"
        )
    gaps = rows.assign(difference=rows["changed"] - rows["base"])
    table = gaps.pivot(index="seed", columns="effect", values="difference")
    return table[list(rows["effect"].unique())]


def effect_table(differences: pd.DataFrame, among: int) -> pd.DataFrame:
    """Mean of each column with its t-interval, at 95 % and widened for ``among`` comparisons (Bonferroni)."""
    rows = {}
    for effect, values in differences.items():
        alone, wide = mean(values), mean(values, 1 - 0.05 / among)
        rows[effect] = {
            "difference": f"{alone.estimate:+.3f}",
            "95 % interval": f"[{alone.low:+.3f}, {alone.high:+.3f}]",
            f"among all {among}": f"[{wide.low:+.3f}, {wide.high:+.3f}]",
            "seeds below 0": f"{(values < 0).sum()} of {len(values)}",
        }
    return pd.DataFrame(rows).T


def draw_effects(ax: Axes, differences: pd.DataFrame, label: str) -> Axes:
    """Each seed's paired difference a dot, their mean a diamond, its 95 % interval a bar."""
    for y, values in enumerate(differences.to_numpy().T):
        middle = mean(values)
        ax.plot(values, [y] * len(values), "o", color=COLORS[5], alpha=0.5, markersize=4)
        ax.plot([middle.low, middle.high], [y, y], color=COLORS[0], linewidth=2)
        ax.plot(middle.estimate, y, "D", color=COLORS[0])
    ax.axvline(0, color="#777777", linewidth=0.8, linestyle=":")
    rows = differences.shape[1]
    ax.set_yticks(range(rows), differences.columns)
    ax.set_ylim(rows - 0.5, -0.5)  # the first on top, and none on the axis
    return style(ax, label, "")
