"""What the chapter on thinking says of its runs holds in the committed log, by code of its own."""

import csv
import importlib.util
import json
import math
import subprocess
import sys
from statistics import mean, stdev

import nbformat
import pytest
import torch

from nanogrpo.show.studies import STUDIES, environment

FOLDER = STUDIES / "thinking"
WIDE = 4.548513545469716  # Student's t with 9 degrees of freedom at 1 - 0.05 / 36, two-sided
SEEDS = list(range(10, 20))
AGGREGATIONS = ("sequence_mean", "constant", "sequence_sum")
ARMS = ["token_mean", *AGGREGATIONS, "shuffled", "penalty 0.5", "penalty 2"]
FILLER = ["filler, token_mean", "filler, sequence_mean"]
ADDED = "no examples of steps"


def rows(name):
    with open(FOLDER / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RESULTS, CURVES = rows("results"), rows("curves")


def ends(arm, name):
    found = [(int(r["seed"]), float(r[name])) for r in RESULTS if (r["part"], r["arm"]) == ("runs", arm)]
    assert [seed for seed, _ in sorted(found)] == SEEDS, arm
    return [value for _, value in sorted(found)]


def start(arm):
    return "start, filler" if arm in FILLER else "start, short" if arm == ADDED else "start"


def interval(values):
    half = WIDE * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def gap(a, b):
    return interval([x - y for x, y in zip(a, b, strict=True)])


def change(arm, name):
    return gap(ends(arm, name), ends(start(arm), name))


def of(table, arm, seed, **where):
    """The one row of a log."""
    keys = {"arm": arm, "seed": str(seed), **{name: str(value) for name, value in where.items()}}
    (row,) = [row for row in table if all(row[name] == value for name, value in keys.items())]
    return row


def script():
    """The study's script, as a module."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("thinking_run", FOLDER / "run.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


def test_the_logs_are_whole_and_say_what_made_them():
    arms = [*ARMS, *FILLER, ADDED]
    assert {r["arm"] for r in RESULTS if r["part"] == "runs"} == {*arms, *map(start, arms)}
    assert len(CURVES) == len(arms) * 10 * 30
    for arm in arms:
        assert len(ends(arm, "success")) == 10
    made = json.loads((FOLDER / "environment.json").read_text())
    assert made.keys() == environment().keys() and "dirty" not in made["commit"]


def test_the_protocol_was_there_before_the_first_log():
    commit = json.loads((FOLDER / "environment.json").read_text())["commit"]

    def holds(name):
        command = ["git", "cat-file", "-e", f"{commit}:book/studies/thinking/{name}"]
        return subprocess.run(command, cwd=FOLDER, capture_output=True).returncode == 0

    if subprocess.run(["git", "cat-file", "-e", commit], cwd=FOLDER, capture_output=True).returncode:
        pytest.skip("the history is not here")
    assert holds("README.md") and holds("run.py") and not holds("results.csv")


def test_the_learning_rate_is_the_best_of_its_tuning_and_no_edge():
    trials = {}
    for row in RESULTS:
        if (row["part"], row["arm"]) == ("tuning", "token_mean"):
            assert row["seed"] in ("100", "101")
            trials.setdefault(float(row["rate"]), []).append(float(row["success"]))
    assert len(trials) == 4 and all(len(found) == 2 for found in trials.values())
    best = max(trials, key=lambda rate: mean(trials[rate]))
    assert min(trials) < best < max(trials)
    assert {float(r["rate"]) for r in RESULTS if r["part"] == "runs" and "start" not in r["arm"]} == {best}


def test_a_row_of_shares_adds_up():
    for row in RESULTS:
        forms = [float(row[form]) for form in ("short", "worked", "broken", "filler", "other")]
        assert sum(forms) == pytest.approx(1, abs=1e-4)
        assert float(row["sound"]) <= min(float(row["worked"]), float(row["success"])) + 1e-9


@pytest.mark.slow
def test_a_small_run_gives_the_same_numbers_twice(monkeypatch, tmp_path):
    run = script()
    monkeypatch.setattr(run, "SFT_STEPS", dict.fromkeys(run.SFT_STEPS, 3))
    monkeypatch.setattr(run, "STEPS", 2)
    found = []
    for folder in ("a", "b"):
        monkeypatch.setattr(run, "HERE", tmp_path / folder)
        (tmp_path / folder).mkdir()
        found.append([run.trained(arm, 1e-3, 7) for arm in ("token_mean", "shuffled", "penalty 2", ADDED)])
    for (one, seen), (other, again) in zip(*found, strict=True):
        assert str(seen) == str(again) and len(seen) == 2
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    weights = [next(policy.parameters()) for policy, _ in found[0]]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_shuffled_reward_is_the_same_rewards_and_a_penalty_counts_tokens():
    run = script()
    texts, answers = ["=4", "30204=4", "302=7", "=9"], ["4"] * 4
    given = {kind: run.Watched(kind, run.TASKS["totals"], 0) for kind in ("right", "shuffled", "0.5")}
    found = {kind: reward(["37284?"] * 4, texts, answers) for kind, reward in given.items()}
    assert found["right"] == [1, 1, 0, 0] and sorted(found["shuffled"]) == [0, 0, 1, 1]
    lengths = (3, 8, 6, 3)
    assert found["0.5"] == pytest.approx([r - n / 18 for r, n in zip(found["right"], lengths, strict=True)])


def test_the_closer_look_by_hand():
    """Budgets, pass@k and the wrong total, of a policy that always works rightly and of one that is mute."""
    run = script()
    measures, task = run.measures, run.TASKS["totals"]

    class Policy:
        def __init__(self, write):
            self.write = write

    def write(model, tokenizer, prompts, group_size=1, max_new_tokens=9, temperature=1.0, seed=0):
        return [model.write(prompt)[:max_new_tokens] for prompt in prompts for _ in range(group_size)]

    def work(prompt):
        """Goes on from whatever totals stand there; a sign that was put there is followed by the last one."""
        digits, _, done = prompt.partition("?")
        if done.endswith("="):
            return (done[:-1] or "0")[-1]
        steps = done
        for digit in digits[len(done) :]:
            steps += str((int(steps[-1:] or "0") + int(digit)) % 10)
        return f"{steps[len(done) :]}={steps[-1]}"

    patch = pytest.MonkeyPatch()
    patch.setattr(measures, "sample_texts", write)
    try:
        worker, mute = Policy(work), Policy(lambda prompt: "")
        assert measures.chain(worker, task) == (1.0, 0.0) and measures.chain(mute, task) == (0.0, 0.0)
        assert measures.pass_at(worker, task) == [(k, 1.0, 1.0) for k in measures.KS]
        table = measures.budgets(worker, task)
        assert [cut for _, cut, _ in table] == [0, 0, 0, 0, 0, 0, 1] and table[-1][2] == 1.0
        # made to answer after b totals, it gives the last one: right where the other digits add up to 0
        rest = [sum(map(int, row["prompt"][5:6])) % 10 == 0 for row in task.split()[1]]
        assert table[5][2] == pytest.approx(mean(rest))
    finally:
        patch.undo()


def shown(name):
    """What a cell of the chapter printed."""
    cells = nbformat.read(STUDIES.parent / "thinking.ipynb", as_version=4).cells
    cell = next(cell for cell in cells if cell.get("id") == f"thinking-{name}")
    return "".join(output.get("text", "") for output in cell.outputs)


def written(low, high):
    return f"{(low + high) / 2:+.3f} [{low:+.3f}, {high:+.3f}]"


def test_the_tables_that_are_stored_are_what_plain_python_makes_of_the_log():
    for name in ("worked", "length", "success", "success_worked"):
        line = next(line for line in shown("study").splitlines() if line.startswith(f"{name}  "))
        assert f"{mean(ends('start', name)):.3f}" in line and f"{mean(ends('token_mean', name)):.3f}" in line
        assert written(*change("token_mean", name)) in line
    for arm in (*ARMS, *FILLER):
        line = next(line for line in shown("arms").splitlines() if line.startswith(f"{arm} "))
        assert f"{mean(ends(arm, 'success')):.3f}" in line and f"{mean(ends(arm, 'length')):.2f}" in line
        assert written(*change(arm, "success")) in line and written(*change(arm, "length")) in line
    for arm in (*AGGREGATIONS, "penalty 0.5", "penalty 2"):
        line = next(line for line in shown("less").splitlines() if line.startswith(f"{arm} "))
        assert written(*gap(ends(arm, "success"), ends("token_mean", "success"))) in line
        assert written(*interval(early(arm))) in line


def early(arm):
    """By seed, the mean over the steps of the share of worked completions, less that of the main arm."""
    found = []
    for seed in SEEDS:
        a, b = (
            mean(float(r["worked"]) for r in CURVES if (r["arm"], r["seed"]) == (name, str(seed)))
            for name in (arm, "token_mean")
        )
        found.append(a - b)
    return found


def test_steps_length_and_success_rise_and_worked_answers_get_better_by_little():
    for name in ("worked", "length", "success"):
        assert change("token_mean", name)[0] > 0
    low, high = change("token_mean", "success_worked")
    assert 0 < low < 0.02 < high
    worked, was, rest = (
        ends("token_mean", "worked"),
        ends("start", "success_worked"),
        ends("start", "success_rest"),
    )
    alone = [w * a + (1 - w) * b for w, a, b in zip(worked, was, rest, strict=True)]
    begun, ended = mean(ends("start", "success")), mean(ends("token_mean", "success"))
    part = (mean(alone) - begun) / (ended - begun)
    assert 0.7 < part < 0.9
    line = f"of a gain of {ended - begun:.3f} the shares alone would give {mean(alone) - begun:.3f}"
    assert line in shown("study")


def test_one_seed_writes_the_steps_and_is_not_right():
    able, done, begun = (
        ends("start", "success_worked"),
        ends("token_mean", "success"),
        ends("start", "success"),
    )
    odd = SEEDS.index(15)
    assert able[odd] == min(able) < 0.3 and done[odd] < begun[odd] + 0.03
    assert ends("token_mean", "worked")[odd] > 0.8 and ends("token_mean", "length")[odd] > 8.5
    assert all(done[i] > able[i] > 0.6 for i in range(10) if i != odd)


@pytest.mark.parametrize("arm", FILLER)
def test_dots_bring_no_success_and_their_length_wanders_both_ways(arm):
    low, high = change(arm, "success")
    assert low < 0 < high and high < 0.02
    low, high = change(arm, "length")
    assert low < 0 < high
    moved = [a - b for a, b in zip(ends(arm, "length"), ends(start(arm), "length"), strict=True)]
    assert max(moved) > 3.5
    assert min(moved) < (-3 if arm == FILLER[0] else -1.5)
    if arm == FILLER[1]:
        assert sum(x < 0 for x in moved) == 9


def test_the_gain_in_success_is_larger_than_with_dots_and_that_in_length_is_not_shown_to_be():
    def moved(arm, name):
        return [a - b for a, b in zip(ends(arm, name), ends(start(arm), name), strict=True)]

    main, dots = "token_mean", FILLER[0]
    assert gap(moved(main, "success"), moved(dots, "success"))[0] > 0
    low, high = gap(moved(main, "length"), moved(dots, "length"))
    assert low < 0 < high


def test_a_shuffled_reward_raises_nothing_and_lowers_success():
    for name in ("worked", "length"):
        low, high = change("shuffled", name)
        assert low < 0 < high
    assert change("shuffled", "success")[1] < 0


@pytest.mark.parametrize("arm", AGGREGATIONS)
def test_between_the_aggregations_nothing_is_shown(arm):
    pairs = [gap(ends(arm, name), ends("token_mean", name)) for name in ("success", "worked")]
    assert all(low < 0 < high for low, high in [*pairs, interval(early(arm))])


def test_a_small_price_changes_nothing_shown_but_one_seed_and_a_large_one_ends_the_steps():
    for name in ("success", "worked", "length"):
        low, high = gap(ends("penalty 0.5", name), ends("token_mean", name))
        assert low < 0 < high
        assert gap(ends("penalty 2", name), ends("token_mean", name))[1] < 0
    gave_up = [seed for seed, x in zip(SEEDS, ends("penalty 0.5", "short"), strict=True) if x > 0.5]
    assert gave_up == [15] and min(ends("penalty 2", "short")) > 0.99
    price = (mean(ends("start", "success_worked")) - mean(ends("start", "success_rest"))) * 9 / 6
    assert 0.5 < price < 2 and f"at {price:.2f}" in shown("price")


def test_the_answer_follows_the_totals_and_a_short_budget_is_worth_nothing():
    table = rows("chain")
    after, before = ([of(table, arm, seed) for seed in SEEDS] for arm in ("token_mean", "start"))
    follows = [[float(row["follows"]) for row in each] for each in (after, before)]
    assert gap(*follows)[0] > 0 and mean(follows[0]) > 0.85
    assert all(mean(float(row["right"]) for row in each) < 0.1 for each in (after, before))
    table = rows("budgets")
    for budget in range(6):
        found = [of(table, "token_mean", seed, budget=budget) for seed in SEEDS]
        assert mean(float(row["forced"]) for row in found) < 0.12
        assert mean(float(row["cut"]) for row in found) < 0.01
    assert mean(float(of(table, "token_mean", seed, budget=6)["forced"]) for seed in SEEDS) > 0.8


def test_the_reward_sharpened_and_taught_nothing_that_pass_at_k_shows():
    table = rows("pass_at_k")

    def at(arm, k, how):
        return [float(of(table, arm, seed, k=k)[how]) for seed in SEEDS]

    assert gap(at("token_mean", 1, "right"), at("start", 1, "right"))[0] > 0
    for how in ("right", "sound"):
        low, high = gap(at("token_mean", 64, how), at("start", 64, how))
        assert low < 0 < high
        assert written(low, high) in shown("pass")
    for k in (16, 32, 64):
        assert mean(at("start", k, "right")) > mean(at("token_mean", k, "right"))
    assert mean(at("start", 8, "right")) < mean(at("token_mean", 8, "right"))
    assert mean(at("start", 32, "sound")) > 0.9


def test_without_examples_of_steps_none_is_invented():
    for arm in (ADDED, start(ADDED)):
        assert not any(ends(arm, "worked")) and not any(ends(arm, "broken"))
        assert max(ends(arm, "success")) < 0.15


def test_dots_do_not_help_after_longer_fine_tuning_either():
    found = [r for r in RESULTS if r["arm"] == "start, filler, longer"]
    assert len(found) == 2 and all(float(r["success"]) < 0.12 for r in found)
