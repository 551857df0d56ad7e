"""What the guide to variants says of its runs holds in the committed log, by code of its own."""

import csv
import json
import math
import subprocess
from itertools import combinations
from statistics import mean, stdev

import nbformat
import pytest

from nanogrpo.show.studies import STUDIES, environment

FOLDER = STUDIES / "variants"
ARMS = ["reinforce", "reinforce_batch", "grpo", "dr_grpo", "gspo", "cispo", "sapo", "maxrl"]
WIDE = 4.8624026  # Student's t with 9 degrees of freedom at 1 - 0.05 / 2 / 56
MADE = json.loads((FOLDER / "environment.json").read_text())
TASKS = ("reverse", "addition")


def read():
    with open(FOLDER / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RESULTS = read()


def part(name, task, arm):
    return [row for row in RESULTS if (row["part"], row["task"], row["arm"]) == (name, task, arm)]


def ends(task, arm):
    found = sorted((int(row["seed"]), float(row["success"])) for row in part("compared", task, arm))
    assert [seed for seed, _ in found] == list(range(10)), (task, arm)
    return [success for _, success in found]


def gap(task, a, b):
    """The mean paired difference, and half of its interval, widened for 56 comparisons."""
    values = [x - y for x, y in zip(ends(task, a), ends(task, b), strict=True)]
    return mean(values), WIDE * stdev(values) / math.sqrt(10)


def apart(task, a, b):
    middle, half = gap(task, a, b)
    return abs(middle) > half


def git(*command):
    done = subprocess.run(["git", *command], cwd=FOLDER, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.split()


def test_the_protocol_was_committed_before_the_log_and_before_the_runs():
    if git("rev-parse", "--is-shallow-repository") == ["true"]:
        pytest.skip("a shallow clone does not know the order")
    protocol, log = (
        git("log", "--diff-filter=A", "--format=%H", "--", n) for n in ("README.md", "results.csv")
    )
    if not log:
        pytest.skip("the log is not committed yet")
    assert protocol[-1] != log[-1]
    ancestor = ("git", "merge-base", "--is-ancestor", protocol[-1])
    assert subprocess.run([*ancestor, log[-1]], cwd=FOLDER).returncode == 0
    if subprocess.run(["git", "cat-file", "-e", MADE["commit"]], cwd=FOLDER, capture_output=True).returncode:
        pytest.skip("the commit that made the runs is not in this clone")
    assert subprocess.run([*ancestor, MADE["commit"]], cwd=FOLDER).returncode == 0


def test_the_log_is_whole_and_says_what_made_it():
    assert MADE.keys() == environment().keys() | {f"checkpoint_{task}" for task in TASKS}
    assert "dirty" not in MADE["commit"]
    keys = [tuple(row[k] for k in ("task", "part", "arm", "rate", "seed")) for row in RESULTS]
    assert len(set(keys)) == len(keys) and {row["arm"] for row in RESULTS} == set(ARMS)
    for task in TASKS:
        assert MADE[f"checkpoint_{task}"] == pytest.approx(1 / 3, abs=0.02)


def test_all_arms_of_a_task_sampled_alike_many_tokens():
    for task, rows, longest in (("reverse", 12 * 128, 7), ("addition", 12 * 64, 4)):
        tokens = [int(row["tokens"]) for arm in ARMS for row in part("compared", task, arm)]
        assert rows < min(tokens) and max(tokens) <= rows * longest
        assert max(tokens) / min(tokens) < 1.1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("arm", ARMS)
def test_each_rate_is_the_best_of_its_tuning_and_at_no_edge(task, arm):
    trials = {}
    for row in part("tuning", task, arm):
        trials.setdefault(float(row["rate"]), {})[row["seed"]] = float(row["success"])
    assert all(found.keys() == {"100", "101"} for found in trials.values())
    best = max(trials, key=lambda rate: mean(trials[rate].values()))
    assert min(trials) < best < max(trials)
    assert {float(row["rate"]) for row in part("compared", task, arm)} == {best}


def test_the_table_that_is_stored_is_what_plain_python_makes_of_the_log():
    cells = nbformat.read(STUDIES.parent / "variants-guide.ipynb", as_version=4).cells
    shown = next(cell for cell in cells if cell.get("id") == "variants-study").outputs[0]["text"]
    for task in TASKS:
        for arm in ARMS:
            line = next(line for line in shown.splitlines() if line.strip().startswith(f"{task}, {arm} "))
            assert f" {mean(ends(task, arm)):.3f} " in line
            fallen = sum(success < MADE[f"checkpoint_{task}"] for success in ends(task, arm))
            assert f"{fallen} of 10" in line
            if arm != "grpo":
                middle, half = gap(task, arm, "grpo")
                assert f"{middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}]" in line
        told = sum(apart(task, *pair) for pair in combinations(ARMS, 2))
        assert f"{task} {told}" in shown.splitlines()[1]
