"""Watch a training run from a notebook: a progress bar, and curves that are redrawn while it runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
from IPython.display import DisplayHandle, display
from tqdm import tqdm

from nanogrpo.errors import LogError, NanoGRPOError, check_whole, shown
from nanogrpo.show.plotting import Columns, check_metrics, plot_runs


def watch(
    rows: Iterator[dict[str, float]],
    total: int | None = None,
    metrics: Sequence[str] = ("reward", "entropy"),
    every: int = 20,
    window: int = 10,
    name: str = "this run",
) -> dict[str, list[float]]:
    """Drive a trainer to its end and return its metrics by name, as :func:`nanogrpo.metrics.read_csv` does.

    Interrupting the cell (Ctrl-C, or the stop button) ends the run cleanly: the model stays as the last
    finished step left it, and the metrics so far are returned.

    Args:
        rows: what a ``train`` function gave.
        total: steps of the run, for the progress bar; None if they are not known.
        metrics: what to draw, and the first of them beside the bar.
        every: steps between two drawings.
        window: steps of the running mean that is drawn.
        name: of the run.

    Raises:
        OptionError: ``metrics``, ``every`` or ``window`` is none that can be drawn; nothing has run.
        LogError: the rows have no such metric, or a row has others than the first one.
    """
    check_metrics(metrics)
    check_whole("every", every, 1)
    check_whole("window", window, 1)
    if total is not None:
        check_whole("total", total, 0)
    if not isinstance(rows, Iterable):
        raise LogError(f"the rows are {shown(rows):.80}; give what train(...) returns, which yields them")
    columns: dict[str, list[float]] = {}
    handle = None
    with tqdm(total=total, desc=name) as bar:
        try:
            for row in rows:
                add_row(columns, row, metrics)
                bar.update()
                bar.set_postfix({metrics[0]: f"{row[metrics[0]]:.2f}"})
                if row["step"] % every == 0:
                    handle = _redraw(handle, {name: columns}, metrics, window)
        except KeyboardInterrupt:
            print(f"Stopped after step {len(columns.get('step', []))}. The model is usable as it stands.")
        except NanoGRPOError:
            if columns:  # what there is, as a run that breaks is best understood by its curves
                _redraw(handle, {name: columns}, metrics, window)
            raise
    if columns:
        _redraw(handle, {name: columns}, metrics, window)
    return columns


def add_row(columns: dict[str, list[float]], row: Mapping[str, float], metrics: Sequence[str]) -> None:
    """Append a row of a trainer to its columns.

    Raises:
        LogError: a metric that is to be drawn, or the step, is not in the row or no number, or the row has
            other metrics than those before; the columns are as they were.
    """
    if not isinstance(row, Mapping):
        raise LogError(f"the run yields {shown(row):.80}, and no rows, which are dicts of metrics")
    for name in ("step", *metrics):
        if name not in row:
            raise LogError(f"the run has no metric {name!r}; it has {', '.join(map(str, row))}")
        if (
            isinstance(row[name], str)
            or getattr(row[name], "ndim", None)
            or not hasattr(row[name], "__float__")
        ):
            raise LogError(f"{name}={row[name]!r:.80} is no number, so it cannot be drawn")
    if columns and set(columns) != set(row):
        odd = sorted(map(str, set(columns) ^ set(row)))
        raise LogError(f"a row differs from the first one in {odd}; yield the same metrics at every step")
    for name, value in row.items():
        columns.setdefault(name, []).append(value)


def _redraw(
    handle: DisplayHandle | None, runs: dict[str, Columns], metrics: Sequence[str], window: int
) -> DisplayHandle | None:
    figure = plot_runs(runs, metrics, window=window)
    if handle is None:
        handle = display(figure, display_id=True)
    else:
        handle.update(figure)
    plt.close(figure)  # else the notebook would show it once more at the end of the cell
    return handle
