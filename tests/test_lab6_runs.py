"""The curves of lab 6: they are the script's, and each broken run shows what the lab says that it shows."""

import importlib
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch

LABS = Path(__file__).resolve().parents[1] / "book" / "labs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(LABS))
    try:
        return importlib.import_module("lab6_runs")
    finally:
        sys.path.remove(str(LABS))


@pytest.fixture(scope="module")
def logs():
    """What stands in the lab's cell."""
    cells = nbformat.read(LABS / "source" / "lab6" / "lab6.ipynb", as_version=4).cells
    found = [re.search(r'json\.loads\("""(.*?)"""\)', cell.source, re.DOTALL) for cell in cells]
    return json.loads(next(match for match in found if match).group(1))


def late(values):
    return sum(values[-5:]) / 5


def test_all_runs_are_there_and_whole(script, logs):
    assert set(logs) == {*script.SETTINGS, *script.PIECES}
    for metrics in logs.values():
        assert set(metrics) == set(script.METRICS)
        assert all(len(values) == script.CONFIG["max_steps"] for values in metrics.values())


def test_each_broken_run_shows_what_the_lab_says(script, logs):
    right = {run: logs[setting] for run, (_, setting) in script.PIECES.items()}
    assert late(right["A"]["reward"]) > 0.9 and late(logs["A"]["reward"]) < 0.1, "A unlearns"
    for run, least in {"B": 0.1, "C": 0.3, "F": 0.08}.items():
        assert logs[run]["clipped"][0] > least and right[run]["clipped"][0] == 0, f"{run}: clipped at once"
    for run in "BF":
        assert logs[run]["kl"][0] > 0.2 and right[run]["kl"][0] == 0, f"{run}: a KL before anything moved"
        assert late(logs[run]["reward"]) < late(right[run]["reward"]) - 0.02
    assert logs["B"]["length"][0] > right["B"]["length"][0] + 0.5
    assert late(logs["C"]["reward"]) < 0.1 < 0.8 < late(right["C"]["reward"])
    assert late(logs["D"]["kl"]) > 4 * late(right["D"]["kl"])
    assert max(logs["E"]["clipped"]) == 0 < right["E"]["clipped"][0]
    assert logs["E"]["reward"][5] < right["E"]["reward"][5] - 0.1


@pytest.mark.slow
def test_the_script_makes_them_again(script, logs):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first = script.start()
        for run in ("B", "D"):
            piece, setting = script.PIECES[run]
            again = script.run(first, setting, piece)
            for name, values in again.items():
                assert values[:3] == pytest.approx(logs[run][name][:3], abs=0.05), f"{run}, {name}"
    finally:
        torch.set_num_threads(threads)
