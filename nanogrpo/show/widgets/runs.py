"""The logs of a study: metrics over steps, means over seeds with intervals, every value readable."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import anywidget
import traitlets

from nanogrpo.errors import LogError
from nanogrpo.show.plotting import LABELS, smooth
from nanogrpo.show.stats import mean
from nanogrpo.show.widgets import ON_ONE_LINE, script

# run -> seed -> column -> values; a value that is not finite is None, since JSON has no NaN.
Logs = dict[str, dict[str, dict[str, list[float | None]]]]


def read_study(path: str | os.PathLike) -> dict[str, dict[str, dict[str, list[float]]]]:
    """A log that holds many runs, with the columns ``run`` and ``seed``: run -> seed -> columns.

    A value that a run does not have is NaN.

    Raises:
        LogError: no such file, no such columns, or a value that is no number.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise LogError(f"cannot read the log {path}: {error.strerror}") from error
    runs: dict[str, dict[str, dict[str, list[float]]]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            columns = runs.setdefault(row.pop("run"), {}).setdefault(row.pop("seed"), {})
            for name, value in row.items():
                columns.setdefault(name, []).append(float(value or "nan"))
        except (KeyError, ValueError, TypeError) as error:
            raise LogError(
                f"{path}, line {number}: {error!r}; needed are the columns run, seed, step and metrics"
            ) from None
    return runs


def thin(values: Sequence[float], size: int, digits: int = 4) -> list[float | None]:
    """Means of ``size`` values in a row, the last one of what is left; None if one of them is not finite.

    >>> thin([1.0, 2.0, 4.0, math.nan, 5.0], 2)
    [1.5, None, 5.0]
    """
    blocks = [values[i : i + size] for i in range(0, len(values), size)]
    means = [sum(block) / len(block) for block in blocks]
    return [float(f"{m:.{digits}g}") if math.isfinite(m) else None for m in means]


def for_page(
    runs: Mapping[str, Mapping[object, Mapping[str, Sequence[float]]]],
    metrics: Sequence[str],
    points: int = 100,
) -> tuple[Logs, int]:
    """What a page carries of the logs, and how many steps each of its points is the mean of.

    Raises:
        LogError: a run lacks ``step`` or a metric; the message names those that it has.
    """
    longest = max((len(log["step"]) for seeds in runs.values() for log in seeds.values()), default=0)
    size = max(1, math.ceil(longest / points))
    kept: Logs = {}
    for run, seeds in runs.items():
        for seed, log in seeds.items():
            missing = {"step", *metrics} - log.keys()
            if missing:
                raise LogError(f"{run}, seed {seed}: no metric {sorted(missing)}; it has {', '.join(log)}")
            last = [
                log["step"][min(i + size, len(log["step"])) - 1] for i in range(0, len(log["step"]), size)
            ]
            columns: dict[str, list[float | None]] = {"step": [float(step) for step in last]}
            columns |= {name: thin(log[name], size) for name in metrics}
            kept.setdefault(run, {})[str(seed)] = columns
    return kept, size


def explored_curve(
    logs: Logs, run: str, metric: str, window: int = 1, level: float = 0.95
) -> list[tuple[float, int, float, float, float]]:
    """The mean over the seeds of a run, each smoothed by itself, with Student's t-interval.

    By :func:`nanogrpo.show.plotting.smooth` and :func:`nanogrpo.show.stats.mean`.

    Returns:
        ``(step, seeds, mean, low, high)`` for each step that a seed has a value at. ``seeds`` is their
        number; the ends of the interval are NaN if it is 1.

    Raises:
        KeyError: no such run or metric.

    When it is wrong: for the whole curve at once. The interval holds at each step by itself.

    >>> logs = {"a": {"0": {"step": [1], "reward": [1.0]}, "1": {"step": [1], "reward": [3.0]}}}
    >>> [round(x, 3) for x in explored_curve(logs, "a", "reward")[0]]
    [1, 2, 2.0, -10.706, 14.706]
    """
    found: dict[float, list[float]] = {}
    for columns in logs[run].values():
        values = smooth([math.nan if v is None else v for v in columns[metric]], window)
        for step, value in zip(columns["step"], values, strict=True):
            if step is not None and math.isfinite(value):
                found.setdefault(step, []).append(value)
    curve = []
    for step, values in sorted(found.items()):
        several = len(values) > 1
        curve.append(
            (step, len(values), *(mean(values, level) if several else (values[0], math.nan, math.nan)))
        )
    return curve


class RunExplorer(anywidget.AnyWidget):
    """Choose a metric, runs and smoothing; read a value off; download what is drawn.

    Attributes:
        logs: see :func:`for_page`.
        block: steps that a point of ``logs`` is the mean of.
        labels: what each metric is, with its unit.
        folder: where the repository has the whole logs.
        metric: which column is drawn.
        chosen: the runs that are drawn.
        window: points of the running mean.
        level: of the interval; 0 for none.
        each: whether every seed is drawn, thin.
        at: the step that is read out.
    """

    _esm = script("runs")
    logs = traitlets.Dict().tag(**ON_ONE_LINE)
    block = traitlets.Int(1).tag(sync=True)
    labels = traitlets.Dict().tag(sync=True)
    folder = traitlets.Unicode("").tag(sync=True)
    metric = traitlets.Unicode().tag(sync=True)
    chosen = traitlets.List(traitlets.Unicode()).tag(sync=True)
    window = traitlets.Int(1).tag(sync=True)
    level = traitlets.Float(0.95).tag(sync=True)
    each = traitlets.Bool(False).tag(sync=True)
    at = traitlets.Float(0.0).tag(sync=True)

    @classmethod
    def of(
        cls,
        runs: Mapping[str, Mapping[object, Mapping[str, Sequence[float]]]],
        metrics: Sequence[str],
        points: int = 100,
        **values,
    ) -> RunExplorer:
        """An explorer of runs as :func:`read_study` gives them, thinned to ``points`` points a run.

        Raises:
            LogError: a run lacks a metric.
        """
        logs, block = for_page(runs, metrics, points)
        last = max((log["step"][-1] or 0.0 for seeds in logs.values() for log in seeds.values()), default=0.0)
        values = {"metric": metrics[0], "chosen": list(logs), "at": last} | values
        return cls(
            logs=logs, block=block, labels={name: LABELS.get(name, name) for name in metrics}, **values
        )


def repository_folder(name: str) -> str:
    """The address of a folder of ``book/studies`` in the repository."""
    from nanogrpo.show.source import REPOSITORY

    return f"{REPOSITORY}/tree/main/book/studies/{Path(name).as_posix()}"
