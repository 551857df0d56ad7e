"""Figures of runs, and the watching of a run from a notebook."""

import importlib
import math
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import nanogrpo  # noqa: E402
from nanogrpo.errors import LogError, NanoGRPOError, NonFiniteError, OptionError  # noqa: E402
from nanogrpo.show.live import watch  # noqa: E402
from nanogrpo.show.plotting import COLORS, LABELS, describe_runs, plot_runs, running_mean, smooth  # noqa: E402
from nanogrpo.show.source import source_link  # noqa: E402

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


# --- pictures that would be empty, or leave something out


NAN = float("nan")


def column(*values):
    return {"step": list(range(1, len(values) + 1)), "reward": list(values)}


def shown(ax):
    """The points that a picture shows: those on a line between two, and those with a marker."""
    points = set()
    for line in ax.lines:
        x, y = (np.asarray(part, dtype=float) for part in line.get_data())
        finite = np.isfinite(y)
        marked = line.get_markevery()
        for i in range(len(x)):
            joined = (i and finite[i - 1]) or (i + 1 < len(x) and finite[i + 1])
            dotted = line.get_marker() not in ("None", "", None) and (marked is None or i in marked)
            if finite[i] and ((joined and line.get_linestyle() != "None") or dotted):
                points.add((x[i], line.get_marker() == "x"))
    return points


@pytest.mark.parametrize("window", [1, 2, 10])
@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [0.5, NAN],
        [NAN, 0.5, NAN],
        [0.5, NAN, 0.6],
        [0.1, 0.2, NAN, 0.4],
        [NAN],
        [NAN, math.inf],
        [1e300],
    ],
)
def test_every_step_is_seen_as_a_value_or_as_a_cross(values, window):
    figure = plot_runs({"one": column(*values)}, ["reward"], window=window)
    points = shown(figure.axes[0])
    for step, value in enumerate(values, start=1):
        assert (step, not math.isfinite(value)) in points, f"step {step} cannot be seen"
    legend = figure.axes[0].get_legend()
    assert bool(legend) == any(not math.isfinite(v) for v in values)
    assert not legend or "NaN or infinite" in [text.get_text() for text in legend.get_texts()]
    plt.close(figure)


def test_one_nan_hides_no_other_step():
    values = [float(i) for i in range(30)]
    values[7] = NAN
    means = running_mean(values, 10)
    assert all(math.isfinite(mean) for mean in means)
    assert means[20] == smooth(values[11:21], 10)[-1] and means[7] == smooth(values[:7], 10)[-1]
    whole = [0.1, 0.7, 0.3, 0.9]
    assert running_mean(whole, 3) == smooth(whole, 3)


@pytest.mark.parametrize(
    "runs", [{}, {"one": {"step": [], "reward": []}}, {"one": RUN, "two": {"step": [], "reward": []}}]
)
def test_no_rows_give_no_picture(runs):
    before = plt.get_fignums()
    with pytest.raises(LogError, match="no run|no rows"):
        plot_runs(runs, ["reward"])
    assert plt.get_fignums() == before, "an empty picture is left for the notebook to show"


@pytest.mark.parametrize(
    "columns",
    [
        {"step": [1, 2], "reward": [0.5]},
        {"step": [1], "reward": ["a"]},
        {"step": [1], "reward": [None]},
        {"step": [1], "reward": [[1, 2]]},
        {"step": [1], "reward": [1j]},
        {"step": [1], "reward": 3},
    ],
)
def test_columns_that_are_none_are_named(columns):
    with pytest.raises(LogError, match="one has"):
        plot_runs({"one": columns}, ["reward"])


def test_numbers_of_every_type_are_drawn():
    values = [np.float32(0.5), torch.tensor(0.5), True, Decimal("0.5"), 1]
    figure = plot_runs({"one": column(*values)}, ["reward"])
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.5, 0.5, 1, 0.5, 1]
    plt.close(figure)


@pytest.mark.parametrize("metrics", ["reward", (), [], None, 5, [3], {"reward"}])
def test_metrics_that_are_none(metrics):
    for call in (lambda: plot_runs({"one": RUN}, metrics), lambda: watch(iter([]), metrics=metrics)):
        with pytest.raises(OptionError, match="metrics="):
            call()


@pytest.mark.parametrize("window", [0, -1, 1.5, None, "10", True])
def test_windows_that_are_none(window):
    for call in (
        lambda: plot_runs({"one": RUN}, ["reward"], window=window),
        lambda: watch([], window=window),
    ):
        with pytest.raises(OptionError, match="window="):
            call()


def test_many_runs_are_all_drawn_each_with_a_look_of_its_own():
    """Above 56 runs, the rest was left out without a word; above 7, two looked alike."""
    runs = {f"run {i}": column(i, i + 1) for i in range(60)}
    figure = plot_runs(runs, ["reward"], window=1)
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[:28]}
    assert len(figure.axes[0].lines) == 60 and len(looks) == 4 * len(COLORS)
    plt.close(figure)


@pytest.mark.parametrize("name", ["_hidden", "$x$", "a $ b", r"$\\frac$", "größe", "a_b", "^", "\\", "%", ""])
def test_any_name_is_shown_as_it_is(name):
    runs = {name: column(0.5, 0.6), "other": column(0.1, 0.2)}
    figure = describe_runs(plot_runs(runs, ["reward"]), runs, "reward")
    figure.canvas.draw()
    legend = [text.get_text().strip().replace(r"\$", "$") for text in figure.axes[0].get_legend().get_texts()]
    assert legend == [name, "other"]
    own = {"step": [1, 2], name or "x": [0.1, 0.2]}
    plot_runs({"one": own}, [name or "x"]).canvas.draw()
    plt.close("all")


# --- watching


def rows(*values, **more):
    return ({"step": i, "reward": value, **more} for i, value in enumerate(values, start=1))


@pytest.mark.parametrize("metrics", [("kl",), ("reward", "kl"), ("kl", "reward")])
def test_a_metric_that_the_run_lacks_is_named_at_its_first_row(metrics):
    source = rows(0.1, 0.2)
    with pytest.raises(LogError, match="no metric 'kl'; it has step, reward"):
        watch(source, metrics=metrics)
    assert next(source)["step"] == 2, "it should not have waited"


@pytest.mark.parametrize(
    "row",
    [
        {"reward": 0.5},
        {"step": 1, "reward": None},
        {"step": 1, "reward": "a"},
        {"step": 1, "reward": [1]},
        {"step": "1", "reward": 1.0},
    ],
)
def test_a_row_that_cannot_be_drawn_is_named(row):
    with pytest.raises(LogError):
        watch([row], metrics=["reward"])


def test_a_row_with_other_metrics_is_named():
    with pytest.raises(LogError, match="'kl'"):
        watch([{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.5, "kl": 1.0}], metrics=["reward"])


@pytest.mark.parametrize("every", [0, -1, 1.5, None])
def test_steps_between_drawings_that_are_none(every):
    with pytest.raises(OptionError, match="every="):
        watch(rows(0.1), metrics=["reward"], every=every)


def test_a_run_that_breaks_leaves_its_curves(monkeypatch):
    drawn = []
    monkeypatch.setattr("nanogrpo.show.live._redraw", lambda handle, runs, *_: drawn.append(runs))

    def breaking():
        yield from rows(0.1, 0.2)
        raise NonFiniteError("the gradient is nan")

    with pytest.raises(NonFiniteError):
        watch(breaking(), metrics=["reward"])
    assert drawn == [{"this run": {"step": [1, 2], "reward": [0.1, 0.2]}}]


def test_a_metric_that_is_nan_for_a_while_does_not_stop_the_run():
    assert watch(rows(NAN, NAN, 0.5), metrics=["reward"], every=1)["step"] == [1, 2, 3]


# --- where figures go, and what is gone under -O


NOTEBOOK = """import matplotlib
matplotlib.use({chosen!r}) if {chosen!r} else None
import matplotlib.pyplot as plt
from nanogrpo.show.plotting import plot_runs
plot_runs({{"one": {{"step": [1, 2], "reward": [0.1, 0.2]}}}}, ["reward"])
plt.show()"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "chosen", "seen"),
    [("agg", "", True), ("Agg", "", True), ("svg", "", True), ("agg", "pdf", False), ("", "", True)],
)
def test_a_notebook_shows_its_figures_whatever_the_environment_says(monkeypatch, backend, chosen, seen):
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    if backend:
        monkeypatch.setenv("MPLBACKEND", backend)
    else:
        monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK.format(chosen=chosen))])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert any("image/png" in output.get("data", {}) for output in outputs) == seen
    said = "".join(output.get("text", "") for output in outputs)
    assert ("would hide this notebook's figures" in said) == (seen and bool(backend))


def test_a_script_is_left_alone(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    assert not importlib.import_module("nanogrpo.show").show_in_notebook()


WITHOUT = """import pkgutil, importlib, sys
import nanogrpo
for m in pkgutil.walk_packages(nanogrpo.__path__, "nanogrpo."):
    if not m.name.endswith("__main__"):
        importlib.import_module(m.name)
import torch
from nanogrpo import grpo, sft, evaluate, metrics
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.tasks import Addition
from nanogrpo.rewards import exact_match
from nanogrpo.errors import NanoGRPOError
task = Addition(digits=1, held_out=10)
model = GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, 1, 1, 8))
config = grpo.GRPOConfig(3, group_size=2, prompts_per_step=2, max_steps=1)
rows = list(grpo.train(model, task.tokenizer, task.split()[0], exact_match, config))
for wrong in (lambda: GPTConfig(0, 1), lambda: evaluate.pass_at_k(1, 2, 3), lambda: model(torch.zeros(1))):
    try:
        wrong()
    except NanoGRPOError:
        continue
    sys.exit("accepted")
print("all is well")"""


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_nothing_leans_on_docstrings_or_asserts(flag):
    done = subprocess.run([sys.executable, flag, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0 and "all is well" in done.stdout, done.stderr[-2000:]


def test_the_package_asserts_nothing_but_types():
    """`python -O` takes asserts away, so none may stand between a user and a mistake."""
    for path in Path(nanogrpo.__file__).parent.rglob("*.py"):
        if "teach" in path.parts:  # whose own tools check the package, not what a user hands in
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("    ") and line.lstrip().startswith("assert "):
                assert re.search(r"is not None|isinstance\(", line), f"{path}: {line}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "os.path.join",
        "nanogrpo",
        "nanogrpo.none.x",
        "nanogrpo.losses.AGGREGATIONS",
        "nanogrpo.losses.F",
        "..",
        None,
        3,
        "nanogrpo.losses.torch",
    ],
)
def test_links_to_nothing_are_refused(name):
    with pytest.raises(NanoGRPOError):
        source_link(name)


# --- fuzz


numbers = st.one_of(st.floats(), st.integers(-(2**40), 2**40), st.none(), st.text(max_size=2), st.booleans())
columns_of_numbers = st.dictionaries(
    st.sampled_from(["step", "reward", "kl"]), st.lists(numbers, max_size=5), max_size=3
)


@pytest.mark.slow
@settings(max_examples=150)
@given(runs=st.dictionaries(st.text(max_size=4), columns_of_numbers, max_size=3), window=st.integers(-1, 4))
def test_fuzz_pictures(runs, window):
    try:
        figure = plot_runs(runs, ["reward"], window=window)
        figure.canvas.draw()
    except NanoGRPOError as error:
        assert len(str(error)) > 10
    else:
        points = shown(figure.axes[0])
        for own in runs.values():
            for x, y in zip(own["step"], own["reward"], strict=True):
                if math.isfinite(float(x)):
                    assert (float(x), not math.isfinite(float(y))) in points
    finally:
        plt.close("all")
