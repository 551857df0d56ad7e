"""Watch a training run from a notebook: a progress bar, and curves that are redrawn while it runs."""

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
from IPython.display import DisplayHandle, display
from tqdm import tqdm

from nanogrpo.show.plotting import Columns, plot_runs


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
    """
    columns: dict[str, list[float]] = {}
    handle = None
    with tqdm(total=total, desc=name) as bar:
        try:
            for row in rows:
                for key, value in row.items():
                    columns.setdefault(key, []).append(value)
                bar.update()
                bar.set_postfix({metrics[0]: f"{row[metrics[0]]:.2f}"})
                if row["step"] % every == 0:
                    handle = _redraw(handle, {name: columns}, metrics, window)
        except KeyboardInterrupt:
            print(f"Stopped after step {len(columns.get('step', []))}. The model is usable as it stands.")
    if columns:
        _redraw(handle, {name: columns}, metrics, window)
    return columns


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
