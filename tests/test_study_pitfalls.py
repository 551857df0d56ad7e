"""What the pitfall chapters say of twenty seeds holds in the committed log, by code of its own."""

import csv
import json
import math
from statistics import mean, median, stdev

import matplotlib
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from nanogrpo.errors import LogError
from nanogrpo.show.seeds import draw_effects, effect_table, effects
from nanogrpo.show.studies import STUDIES, environment

FOLDER = STUDIES / "pitfalls"
T = {
    0.95: 2.0930,
    1 - 0.05 / 13: 3.2915,
    1 - 0.05 / 10: 3.1737,
    1 - 0.05 / 18: 3.4347,
}  # Student's t, 19 degrees, two-sided
AMONG = {"results": 13, "plumbing": 13, "later": 10, "short": 10, "coins": 18}


def rows(name):
    with open(FOLDER / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gaps(effect, name="results"):
    found = [row for row in rows(name) if row["effect"] == effect]
    assert [int(row["seed"]) for row in found] == list(range(20, 40)), effect
    return [float(row["changed"]) - float(row["base"]) for row in found]


def interval(effect, level=0.95, name="results"):
    values = gaps(effect, name)
    half = T[level] * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def test_the_logs_are_whole_and_say_what_made_them():
    assert len(rows("results")) == len(rows("plumbing")) == 13 * 20 and len(rows("kl")) == 5 * 20
    assert len(rows("later")) == len(rows("short")) == 10 * 20 and len(rows("coins")) == 18 * 20
    for name in ("environment", "kl", "plumbing", "later", "short", "coins"):
        made = json.loads((FOLDER / f"{name}.json").read_text())
        assert made.keys() == environment().keys() and "dirty" not in made["commit"]


ALL, ALONE, NOT = "among all", "by its own interval", "not shown"
SAID = {  # effect: the sign of its difference, and what the chapter says of it
    "EOS left out": (-1, ALONE),
    "every token but EOS": (-1, ALL),
    "shift, kept": (-1, ALL),
    "shift, recomputed": (-1, ALL),
    "dropout, kept": (-1, ALL),
    "dropout, recomputed": (-1, ALONE),
    "dynamic sampling": (-1, ALL),
    "naive z-score": (-1, ALL),
    "taste, group std": (1, ALL),
    "clip_high 0.28: reward after 3 steps": (1, ALONE),
    "clip_high 0.28: entropy at reward 0.9": (-1, NOT),
    "clip_high 4.0: reward after 3 steps": (1, ALL),
    "clip_high 4.0: entropy at reward 0.9": (-1, ALONE),
}


AROUND = {  # the same for the chapter on plumbing
    "limit of 3 tokens": (-1, ALL),
    "limit of 2 tokens": (-1, ALL),
    "unreadable counts as 1": (-1, ALL),
    "a right beginning counts as 1": (-1, ALL),
    "format 1, accuracy 0": (-1, ALL),
    "groups across prompts": (-1, NOT),
    "answers in the wrong order": (-1, ALL),
    "each microbatch its own mean": (-1, NOT),
    "sampler never updated, recomputed": (-1, ALL),
    "sampler never updated, kept": (-1, ALL),
    "four prompts: on those four": (1, ALONE),
    "four prompts: on new words": (-1, ALL),
    "new words after four prompts, less the start": (-1, NOT),
}


LATER = {  # and for three chapters at once
    "accuracy and format: each normalized": (-1, NOT),
    "accuracy and ten times format: each normalized": (1, ALL),
    "accuracy and a taste of 0.01: each normalized": (-1, ALL),
    "accuracy and a taste of 0.01: sum, not scaled": (1, ALL),
    "batch baseline: wrong longer than right (tokens)": (1, ALL),
    "group baseline: right answers (tokens)": (-1, NOT),
    "group baseline: wrong answers (tokens)": (1, NOT),
    "group baseline: success": (-1, NOT),
    "wrong sign, less no penalty: KL": (1, ALL),
    "right penalty, less no penalty: KL": (-1, ALL),
}
PEAKED, LEVEL = "one token at 0.6: ", "all alike: "
COINS = {  # the chapter on entropy: the clip alone
    f"{PEAKED}clip-low only": (1, ALL),
    f"{PEAKED}clip-high only": (-1, ALL),
    f"{PEAKED}both": (-1, ALL),
    f"{PEAKED}clip-low, any token": (1, ALL),
    f"{PEAKED}clip-high, any token": (-1, ALL),
    f"{PEAKED}clip-low less its control": (1, ALL),
    f"{PEAKED}clip-high less its control": (-1, ALL),
    f"{PEAKED}no clip less the start": (1, ALL),
    f"{PEAKED}both less the start": (1, ALONE),
    f"{LEVEL}clip-low only": (1, ALL),
    f"{LEVEL}clip-high only": (1, ALL),
    f"{LEVEL}both": (1, ALL),
    f"{LEVEL}clip-low, any token": (1, ALL),
    f"{LEVEL}clip-high, any token": (1, ALL),
    f"{LEVEL}clip-low less its control": (1, NOT),
    f"{LEVEL}clip-high less its control": (1, ALL),
    f"{LEVEL}no clip less the start": (-1, ALL),
    f"{LEVEL}both less the start": (-1, ALL),
}
SHORT = {  # the chapter on plumbing: a price for every letter
    "penalty 0.1": (-1, ALL),
    "penalty 0.01": (-1, ALL),
    "penalty 0.1, right answers only": (-1, NOT),
    "penalty 0.1, not scaled": (-1, ALONE),
    "penalty 0.1 beside a format": (-1, ALL),
    "penalty 0.1: length (tokens)": (-1, ALL),
    "penalty 0.1, start of 30 steps": (-1, NOT),
    "right answers only, less penalty 0.1": (1, ALL),
    "not scaled, less penalty 0.1": (1, ALL),
    "penalty 0.1, less the start": (-1, NOT),
}
LOGS = {"results": SAID, "plumbing": AROUND, "later": LATER, "coins": COINS, "short": SHORT}


@pytest.mark.parametrize("effect, log", [(effect, log) for log, each in LOGS.items() for effect in each])
def test_what_a_chapter_says_is_shown_is_shown(effect, log):
    sign, said = LOGS[log][effect]
    assert mean(gaps(effect, log)) * sign > 0
    levels = (0.95, 1 - 0.05 / AMONG[log])
    alone, wide = (min(sign * end for end in interval(effect, level, log)) > 0 for level in levels)
    assert (alone, wide) == {ALL: (True, True), ALONE: (True, False), NOT: (False, False)}[said]


def test_no_effect_is_left_out_of_the_chapters():
    assert {row["effect"] for row in rows("results")} == set(SAID)
    assert {row["effect"] for row in rows("plumbing")} == set(AROUND)
    assert {row["effect"] for row in rows("later")} == set(LATER)
    assert {row["effect"] for row in rows("coins")} == set(COINS)
    assert {row["effect"] for row in rows("short")} == set(SHORT)


def test_a_price_for_every_letter_empties_the_runs_that_begin_with_few_right_answers():
    found = {}
    for row in rows("short"):
        found.setdefault(row["effect"], []).append((float(row["changed"]), float(row["base"])))
    started = [base for _, base in found["penalty 0.1, less the start"]]
    ends = [end for end, _ in found["penalty 0.1"]]
    lost = [start for start, end in zip(started, ends, strict=True) if end < 0.12]
    kept = [start for start, end in zip(started, ends, strict=True) if end > 0.7]
    assert (len(lost), len(kept)) == (17, 3) and 0.135 < min(started) and max(started) < 0.39
    assert 0.265 < max(lost) < 0.275 and 0.305 < min(kept) < 0.315
    lengths = [length for length, _ in found["penalty 0.1: length (tokens)"]]
    assert all(length < 1.6 for length, end in zip(lengths, ends, strict=True) if end < 0.12)
    assert sum(end < 0.6 for end, _ in found["penalty 0.01"]) > 10
    assert max(abs(a - b) for a, b in found["penalty 0.1, right answers only"]) < 0.01
    unscaled = [end for end, _ in found["penalty 0.1, not scaled"]]
    lowest = sorted(zip(started, unscaled, strict=True))[:4]
    assert all(end < 0.2 for _, end in lowest), "the lowest starts are lost"


def test_what_the_clip_does_on_coins_has_the_size_that_is_said():
    def middle(name):
        return mean(gaps(name, "coins"))

    assert min(gaps(f"{PEAKED}clip-low only", "coins")) > 0 > max(gaps(f"{PEAKED}clip-high only", "coins"))
    assert 0.15 < middle(f"{PEAKED}clip-high, any token") / middle(f"{PEAKED}clip-high only") < 0.25
    assert middle(f"{LEVEL}clip-high, any token") / middle(f"{LEVEL}clip-high only") > 0.75
    assert 0.6 < middle(f"{PEAKED}no clip less the start") < 1


def test_what_the_chapters_say_of_single_seeds():
    ends = {}
    for row in rows("later"):
        ends.setdefault(row["effect"], []).append(float(row["changed"]))
    assert max(ends["accuracy and a taste of 0.01: each normalized"]) < 0.001, "next to none, on every seed"
    summed = [float(row["base"]) for row in rows("later") if row["effect"].endswith("0.01: each normalized")]
    assert sum(x < 0.03 for x in summed) == 13 and sum(x > 0.6 for x in summed) == 7
    assert sum(x > 0 for x in gaps("batch baseline: wrong longer than right (tokens)", "later")) == 19
    assert sum(x > 0 for x in gaps("wrong sign, less no penalty: KL", "later")) == 19


def test_a_sampler_with_its_first_weights_is_worse_with_kept_log_probs_and_the_generous_parser_is_the_worst():
    ends = {}
    for row in rows("plumbing"):
        ends.setdefault(row["effect"], []).append(float(row["changed"]))
    middle = {effect: mean(values) for effect, values in ends.items()}
    assert middle["sampler never updated, kept"] < middle["sampler never updated, recomputed"] - 0.1
    parsers = [middle[e] for e in ("a right beginning counts as 1", "format 1, accuracy 0")]
    assert middle["unreadable counts as 1"] < min(*parsers, 0.02)


@pytest.mark.parametrize("chapter", ["masks", "zero-variance", "entropy"])
def test_the_table_is_what_plain_python_makes_of_the_log(chapter):
    table = effect_table(effects("pitfalls/results", chapter), among=13)
    for effect, row in table.iterrows():
        low, high = interval(effect)
        assert row["95 % interval"] == f"[{low:+.3f}, {high:+.3f}]"
        low, high = interval(effect, 1 - 0.05 / 13)
        assert row["among all 13"] == f"[{low:+.3f}, {high:+.3f}]"
        assert row["difference"] == f"{mean(gaps(effect)):+.3f}"


def test_a_figure_has_each_seed_and_the_interval_of_their_mean():
    figure, ax = plt.subplots()
    differences = effects("pitfalls/results", "masks")
    draw_effects(ax, differences, "x")
    dots = ax.lines[0].get_xdata()
    assert list(dots) == list(differences.iloc[:, 0]) and len(ax.lines) == 3 * differences.shape[1] + 1
    assert ax.get_ylim() == (differences.shape[1] - 0.5, -0.5), "the last row stands off the axis as well"
    low, high = interval(differences.columns[0])
    assert list(ax.lines[1].get_xdata()) == pytest.approx([low, high], abs=1e-4)
    plt.close(figure)


def test_a_chapter_that_the_log_lacks_is_named():
    with pytest.raises(LogError, match="no chapter 'nonsense'; it has .*masks"):
        effects("pitfalls/results", "nonsense")


def test_k1_in_the_loss_beside_a_reward_lowers_little_and_then_runs_away():
    found = {}
    for row in rows("kl"):
        found.setdefault(row["effect"], []).append((float(row["changed"]), float(row["base"])))
    lower = {name: sum(a < b for a, b in pairs) for name, pairs in found.items()}
    lost = {name: sum(a > 1 for a, _ in pairs) for name, pairs in found.items()}
    beta = "k1 in the loss, beta {}, passes {}: KL".format
    assert min(lower[beta("0.3", 1)], lower[beta("1", 1)], lower[beta("3", 1)]) >= 16
    assert lost[beta("0.3", 1)] == lost[beta("1", 1)] == lost[beta("0.3", 4)] == 0
    assert lost[beta("3", 1)] >= 1 and lost[beta("1", 4)] >= 3
    for name in (beta("0.3", 1), beta("1", 1), beta("0.3", 4)):
        assert abs(median(a for a, _ in found[name]) - median(b for _, b in found[name])) < 0.03
    assert max(b for pairs in found.values() for _, b in pairs) < 0.5, "without a penalty none runs away"
