"""What the chapter on samplers says of its runs holds in the committed log, by code of its own."""

import csv
import json
import math
from statistics import mean, stdev

import nbformat
import pytest

from nanogrpo.show.studies import STUDIES, environment

FOLDER = STUDIES / "sampler"
WIDE = 4.42187  # Student's t with 9 degrees of freedom at 1 - 0.05 / 30, two-sided
START = json.loads((FOLDER / "environment.json").read_text())["checkpoint"]
OLD = "16 steps, {}".format
RATES = {"5e-05", "0.0001", "0.0002", "0.0004"}


def rows(name):
    with open(FOLDER / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RESULTS = rows("results")


def ends(part, arm):
    found = [(int(r["seed"]), float(r["success"])) for r in RESULTS if (r["part"], r["arm"]) == (part, arm)]
    assert [seed for seed, _ in sorted(found)] == list(range(10)), (part, arm)
    return [success for _, success in sorted(found)]


def gap(a, b):
    """The mean paired difference, and half of its interval, widened for 30 comparisons."""
    values = [x - y for x, y in zip(ends(*a), ends(*b), strict=True)]
    return mean(values), WIDE * stdev(values) / math.sqrt(10)


def collapsed(part, arm):
    return sum(success < START for success in ends(part, arm))


def test_the_logs_are_whole_and_say_what_made_them():
    arms = {row["arm"] for row in RESULTS if row["part"] == "same"}
    assert len(arms) == 14 and START == pytest.approx(0.3288, abs=1e-3)
    made = json.loads((FOLDER / "environment.json").read_text())
    assert made.keys() == environment().keys() | {"checkpoint"} and "dirty" not in made["commit"]
    runs = [row for row in RESULTS if row["part"] != "tuning"]
    assert len(rows("curves")) == 10 * len(runs) == 10 * (14 + 4) * 10


def test_each_learning_rate_is_the_best_of_its_tuning():
    for arm in ("on-policy", *map(OLD, ("recomputed", "kept", "TIS", "MIS", "OPSM"))):
        trials = {}
        for row in RESULTS:
            if (row["part"], row["arm"]) == ("tuning", arm):
                trials.setdefault(row["rate"], []).append(float(row["success"]))
        assert trials.keys() == RATES and all(len(found) == 2 for found in trials.values())
        best = max(trials, key=lambda rate: mean(trials[rate]))
        used = {row["rate"] for row in RESULTS if (row["part"], row["arm"]) == ("tuned", arm)} or {"0.0002"}
        assert used == {best}, arm
        assert (best == min(RATES, key=float)) == (arm == OLD("recomputed")), "the chapter names the edge"
    assert {row["rate"] for row in RESULTS if row["part"] == "same"} == {"0.0002"}


LOWER = ["1 step, recomputed", "4 steps, recomputed", "temperature 0.7, recomputed", "temperature 0.7, TIS"]
LOWER += map(OLD, ("recomputed", "kept", "TIS", "MIS"))


@pytest.mark.parametrize("arm", LOWER)
def test_arms_that_are_shown_to_end_below_on_policy(arm):
    middle, half = gap(("same", arm), ("same", "on-policy"))
    assert middle + half < 0


@pytest.mark.parametrize(
    "arm", ["4 steps, kept", "4 steps, TIS", "4 steps, MIS", OLD("OPSM"), "8 bits, recomputed"]
)
def test_arms_that_cannot_be_told_from_on_policy(arm):
    middle, half = gap(("same", arm), ("same", "on-policy"))
    assert abs(middle) < half


def test_what_is_not_shown_to_be_better_than_recomputed():
    for sampler, name in (("4 steps", "MIS"), ("temperature 0.7", "TIS")):
        middle, half = gap(("same", f"{sampler}, {name}"), ("same", f"{sampler}, recomputed"))
        assert middle - half < 0


def test_stale_samples_taken_for_one_s_own_collapse_and_corrections_save_them():
    assert collapsed("same", OLD("recomputed")) == 10 and collapsed("same", "4 steps, recomputed") == 5
    assert collapsed("same", "1 step, recomputed") == collapsed("same", "on-policy") == 0
    for name in ("kept", "TIS", "MIS", "OPSM"):
        middle, half = gap(("same", OLD(name)), ("same", OLD("recomputed")))
        assert middle - half > 0.1 and collapsed("same", OLD(name)) <= (2 if name == "MIS" else 0)
    order = ("OPSM", "kept", "TIS", "MIS", "recomputed")
    means = [mean(ends("same", OLD(name))) for name in order]
    assert means == sorted(means, reverse=True)


def test_a_rate_of_its_own_brings_each_back_and_recomputed_not_all_the_way():
    for name, shown in {"recomputed": True, "kept": True, "TIS": False, "MIS": True}.items():
        assert collapsed("tuned", OLD(name)) == 0
        middle, half = gap(("tuned", OLD(name)), ("same", "on-policy"))
        assert (middle + half < 0) == shown and middle < 0, name
    for part, name in (("tuned", "kept"), ("tuned", "TIS"), ("tuned", "MIS"), ("same", "OPSM")):
        middle, half = gap((part, OLD(name)), ("tuned", OLD("recomputed")))
        assert middle - half > 0, name
    corrected = [mean(ends("tuned", OLD(name))) for name in ("kept", "TIS", "MIS")]
    assert max(*corrected, mean(ends("same", OLD("OPSM")))) - min(corrected) < 0.03


def test_the_table_that_is_stored_is_what_plain_python_makes_of_the_log():
    cells = nbformat.read(STUDIES.parent / "sampler.ipynb", as_version=4).cells
    shown = next(cell for cell in cells if cell.get("id") == "sampler-study").outputs[0]["text"]
    for arm in {row["arm"] for row in RESULTS if row["part"] == "same"}:
        line = next(line for line in shown.splitlines() if line.strip().startswith(arm))
        assert f"{mean(ends('same', arm)):.3f}" in line and f"{collapsed('same', arm)} of 10" in line
        if arm != "on-policy":
            middle, half = gap(("same", arm), ("same", "on-policy"))
            assert f"{middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}]" in line
