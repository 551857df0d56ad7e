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


def ends(task, arm, name="compared"):
    found = sorted((int(row["seed"]), float(row["success"])) for row in part(name, task, arm))
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
    assert len(set(keys)) == len(keys)
    assert {row["arm"] for row in RESULTS if row["part"] == "compared"} == set(ARMS)
    assert {row["arm"] for row in RESULTS if row["part"] == "why"} == {"grpo_positive"}
    for task in TASKS:
        assert MADE[f"checkpoint_{task}"] == pytest.approx(1 / 3, abs=0.02)


def test_all_arms_of_a_task_sampled_alike_many_tokens():
    for task, rows, longest in (("reverse", 12 * 128, 7), ("addition", 12 * 64, 4)):
        tokens = [int(row["tokens"]) for arm in ARMS for row in part("compared", task, arm)]
        assert rows < min(tokens) and max(tokens) <= rows * longest
        assert max(tokens) / min(tokens) < 1.1


@pytest.mark.parametrize(
    ("task", "arm", "run"),
    [(task, arm, "compared") for task in TASKS for arm in ARMS] + [("reverse", "grpo_positive", "why")],
)
def test_each_rate_is_the_best_of_its_tuning_and_at_no_edge(task, arm, run):
    trials = {}
    for row in part("tuning", task, arm):
        trials.setdefault(float(row["rate"]), {})[row["seed"]] = float(row["success"])
    assert all(found.keys() == {"100", "101"} for found in trials.values())
    best = max(trials, key=lambda rate: mean(trials[rate].values()))
    assert min(trials) < best < max(trials)
    assert {float(row["rate"]) for row in part(run, task, arm)} == {best}


def test_the_simplest_arm_is_told_apart_from_all_others_on_words():
    for arm in ARMS[1:]:
        middle, half = gap("reverse", "reinforce", arm)
        assert middle - half > 0 and 0.11 < middle < 0.175, arm


BELOW = {("grpo", "gspo"), ("maxrl", "gspo"), ("reinforce_batch", "gspo"), ("grpo", "cispo")}
BELOW |= {("reinforce_batch", "cispo")}


def test_among_the_seven_others_five_pairs_are_told_apart_on_words():
    found = set()
    for a, b in combinations(ARMS[1:], 2):
        if apart("reverse", a, b):
            found.add((a, b) if gap("reverse", a, b)[0] > 0 else (b, a))
    assert found == BELOW
    assert all(0.015 < gap("reverse", *pair)[0] < 0.055 for pair in BELOW)


def test_on_numbers_only_gspo_is_told_apart_and_from_four():
    found = {pair for pair in combinations(ARMS, 2) if apart("addition", *pair)}
    assert len(found) == 4 and all("gspo" in pair for pair in found)
    others = [arm for arm in ARMS if arm != "gspo"]
    means = [mean(ends("addition", arm)) for arm in others]
    assert max(means) - min(means) < 0.006
    assert max(abs(m) + half for m, half in (gap("addition", *p) for p in combinations(others, 2))) < 0.02
    assert all(0.005 < gap("addition", arm, "gspo")[0] < 0.02 for arm in others)
    assert not apart("addition", "reinforce", "grpo"), "what the protocol expected is not shown there"


def test_no_run_collapsed_and_large_rates_fall_below_the_checkpoint_on_numbers():
    for task in TASKS:
        assert min(success for arm in ARMS for success in ends(task, arm)) > MADE[f"checkpoint_{task}"]
    for arm in ARMS:
        fast = [float(r["success"]) for r in part("tuning", "addition", arm) if float(r["rate"]) == 2e-4]
        assert mean(fast) < MADE["checkpoint_addition"]


def test_without_negative_advantages_grpo_gains_most_of_what_it_lacked():
    narrow = 2.6850108  # Student's t with 9 degrees of freedom at 1 - 0.05 / 2 / 2
    found = {}
    for arm in ("grpo", "reinforce"):
        pairs = zip(ends("reverse", "grpo_positive", "why"), ends("reverse", arm), strict=True)
        values = [x - y for x, y in pairs]
        found[arm] = mean(values), narrow * stdev(values) / math.sqrt(10)
    assert found["grpo"][0] - found["grpo"][1] > 0.05 and 0.08 < found["grpo"][0] < 0.12
    assert abs(found["reinforce"][0]) < found["reinforce"][1]


def test_nearly_half_of_gspo_s_updates_were_out_of_its_bounds():
    for task in TASKS:
        assert 0.4 < mean(float(row["clipped"]) for row in part("compared", task, "gspo")) < 0.5


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
                low, high = middle - half, middle + half
                assert f"{middle:+z.3f} [{low:+z.3f}, {high:+z.3f}]" in line
        told = sum(apart(task, *pair) for pair in combinations(ARMS, 2))
        assert f"{task} {told}" in shown.splitlines()[1]
