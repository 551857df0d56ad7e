"""The benchmark's report: its table and figure come from the log, and its floor from the arithmetic."""

import ast
import copy
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCH = Path(__file__).parents[1] / "book" / "studies" / "bench"
RESULTS = BENCH / "results.json"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("report", "contestants"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import report

    return report


def made_up_log(report) -> dict:
    def row(seconds, **more):
        return {"seconds": seconds, "peak_mib": 100, "parts": [], "extra": [], **more}

    rates = {"gflops": 100.0, "cache_gbs": 50.0, "memory_gbs": 10.0}
    rows = {
        "machine: machine": row([1.0], extra=[rates]),
        "rollout: HF generate": row([4.0, 8.0, 2.0]),
        "rollout: packed": row([2.0, 2.0, 2.0]),
        "step: TRL": row([6.0, 6.0, 6.0]),
        "step: nanogrpo": row([3.0, 2.0, 6.0]),
        "step: nanogrpo parts": row([4.0], parts=[{"rollout": 1.0, "forward": 1.0, "backward": 1.6}]),
    }
    hardware = dict.fromkeys(("cpu", "cache", "cores", "memory", "python", "commit"), "?")
    slow, fast = {"seconds": 10.0, "peak_mib": 500}, {"seconds": 4.0, "peak_mib": 250}
    return {
        "date": "2026-01-01",
        "hardware": {**hardware, "versions": {"torch": "2"}},
        "quick": True,
        "shapes": {"S": rows},
        "process": {"shape": "S", "steps": 50, "TRL defaults": [slow], "nanogrpo": [fast]},
    }


def test_the_table_takes_ratios_within_a_round(report):
    table = report.table(made_up_log(report))
    assert "| rollout | S | 3 | HF generate / packed = 2.00 (1.50 to 3.00) | 2.8 | 29% short |" in table
    assert "| step | S | 3 | TRL / nanogrpo = 2.00 (1.50 to 2.50) | 2.5 | 20% short |" in table
    assert "TRL defaults / nanogrpo = 2.50 (2.50 to 2.50) | 2.5 | reached |" in table
    assert "| nanogrpo | S | 25% | 25% | 40% | 0% | 10% |" in table


def test_the_floor_counts_what_the_model_computes(report):
    """At one GFLOP/s and endless bandwidth the floor is the FLOPs; PyTorch counts those of a real pass."""
    import contestants
    from torch.utils.flop_counter import FlopCounterMode

    P, G, Tp, T, C = contestants.SHAPES["S"]
    model, B = contestants.our_model("S"), P * G
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(B, T - 1, dtype=torch.long))
    flops = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    weights = 12 * C * C * contestants.LAYERS + C * contestants.V
    assert flops == 2 * B * (T - 1) * weights, "the matrices of the model are not those that the floor counts"
    least = report.floor("S", 1.0, 1e30)
    assert least["step"] == pytest.approx(4 * least["rollout"])
    attention = 4 * C * contestants.LAYERS * (P * Tp * Tp / 2 + B * (T - 1) * (Tp + T / 2))
    assert least["rollout"] * 1e9 == pytest.approx(flops + 2 * P * Tp * weights + attention)


def test_the_figure_is_drawn_from_the_log(report):
    import matplotlib.pyplot as plt

    log = made_up_log(report)
    figure = report.draw(log)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["step S: TRL / nanogrpo", "rollout S: HF generate / packed"]
    dots = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == [2.0, 2.0]
    faster = copy.deepcopy(log)
    faster["shapes"]["S"]["rollout: packed"]["seconds"] = [1.0, 1.0, 1.0]
    dots = [line.get_xdata()[0] for line in report.draw(faster).axes[0].lines if line.get_marker() == "o"]
    assert dots == [2.0, 4.0], "the figure does not follow the log"
    plt.close("all")


@pytest.mark.skipif(not RESULTS.exists(), reason="no results yet: run `make bench`")
def test_the_committed_table_and_figure_are_those_of_the_committed_log(report, tmp_path):
    report.save(json.loads(RESULTS.read_text()), tmp_path)
    for name in ("results.md", "results.svg"):
        assert (BENCH / name).read_bytes() == (tmp_path / name).read_bytes(), (
            "run book/studies/bench/report.py"
        )
    assert "-0%" not in (BENCH / "results.md").read_text()


def test_the_environment_of_the_benchmark_has_all_that_the_benchmark_imports():
    """The two scripts that run there import themselves, the standard library, and what is installed there."""
    imported = set()
    for script in ("bench.py", "contestants.py"):
        for node in ast.walk(ast.parse((BENCH / script).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    lines = (BENCH / "requirements.txt").read_text().splitlines()
    installed = {re.match(r"[\w-]*", line).group() for line in lines if line[0] not in "#-"}
    installed |= {"torch", "nanogrpo", "tokenizers", "contestants"}  # tokenizers is a part of transformers
    assert {"torch", "trl", "transformers"} <= imported, "the imports were not found"
    assert imported - installed <= sys.stdlib_module_names, "report.py draws in the book's environment"


def test_what_was_measured_is_saved_before_anything_is_drawn():
    recipe = (BENCH.parents[2] / "Makefile").read_text(encoding="utf-8").split("\nbench:")[1].split("\n\n")[0]
    measure, draw = recipe.split("\nelse\n")[1].splitlines()[:2]
    assert ".venv-bench/bin/python" in measure and "bench.py" in measure
    assert "$(BIN)/python" in draw and "report.py" in draw


def test_an_interval_of_ratios_is_about_their_median_and_narrows(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    against = importlib.import_module("against")
    ratios = np.random.default_rng(1).normal(1.05, 0.02, 400)
    few, many = against.interval(ratios[:20]), against.interval(ratios)
    for middle, low, high in (few, many):
        assert low <= middle <= high and 1.03 < low and high < 1.07
    assert many[2] - many[1] < 0.5 * (few[2] - few[1])


def test_a_folder_without_the_package_is_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCH))
    against = importlib.import_module("against")
    monkeypatch.setattr("sys.argv", ["against.py", str(BENCH)])
    with pytest.raises(SystemExit):
        against.main()
    assert "holds no nanogrpo/grpo.py" in capsys.readouterr().err
