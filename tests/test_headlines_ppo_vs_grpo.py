"""Every headline number of the chapter PPO versus GRPO, made again from the committed logs.

The arithmetic is this file's own: the csv module, sums, and Student's quantiles. Nothing of `nanogrpo.show`
is asked, so a mistake there shows as a number of the chapter that the log does not give.
"""

import csv
import json
import math
import re
import statistics
from pathlib import Path

import pytest
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "book" / "studies" / "ppo_vs_grpo"
CELLS = {
    cell["id"]: cell
    for cell in json.loads((ROOT / "book" / "ppo-vs-grpo.ipynb").read_text(encoding="utf-8"))["cells"]
}
NUMBER = re.compile(r"[-+]?\d+\.\d+|[-+]?\d+")


def logged(phase):
    """Success by run, seed and step."""
    found = {}
    with open(STUDY / phase / "success.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seeds = found.setdefault(row["run"], {})
            seeds.setdefault(int(row["seed"]), {})[int(row["step"])] = float(row["success"])
    return found


def ends(phase, run):
    """Per cent after the last step, in the order of the seeds."""
    seeds = logged(phase)[run]
    return [100 * seeds[seed][max(seeds[seed])] for seed in sorted(seeds)]


def areas(phase, run):
    """Per cent, the mean over all steps but the start."""
    seeds = logged(phase)[run]
    return [100 * statistics.mean([x for step, x in seeds[seed].items() if step]) for seed in sorted(seeds)]


def interval(values, level=0.95):
    half = student.ppf((1 + level) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), statistics.mean(values) - half, statistics.mean(values) + half


def gaps(a, b):
    """Pairs by seed; where one has fewer seeds, they are the first of the other."""
    return [x - y for x, y in zip(a, b, strict=False)]


def shown(numbers, signed=True):
    one = "{:+.1f}" if signed else "{:.1f}%"
    return "{0} [{0}, {0}]".replace("{0}", one).format(*numbers)


def table(cell):
    """The rows of a stored table by their names, each the list of its cells, as text."""
    (html,) = [
        "".join(o["data"]["text/html"]) for o in CELLS[cell]["outputs"] if "text/html" in o.get("data", {})
    ]
    rows = {}
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)[1:]:
        name, *values = (text.strip() for text in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL))
        rows[name] = values
    return rows


def printed(cell):
    return "".join(text for output in CELLS[cell]["outputs"] for text in output.get("text", []))


def prose(cell):
    return " ".join("".join(CELLS[cell]["source"]).split())


METHODS = ("grpo", "ppo", "ppo-256x1")


def test_the_table_of_the_comparison():
    rows = table("compare-13")
    for column, run in enumerate(METHODS):
        assert rows["final success"][column] == shown(interval(ends("comparison", run)), signed=False)
        assert rows["area under the curve"][column] == shown(interval(areas("comparison", run)), signed=False)
        middle = statistics.mean(sorted(ends("comparison", run))[2:-2])  # of ten, the middle half and a bit
        assert rows["interquartile mean"][column].startswith(f"{middle:.1f}% [")
        starts = [100 * seed[0] for seed in logged("comparison")[run].values()]
        failed = sum(end < start for end, start in zip(ends("comparison", run), starts, strict=True))
        assert rows["failed runs"][column] == f"{failed} of 10"


PAIRS = {
    "PPO - GRPO": ("ppo", "grpo"),
    "PPO 256 x 1 - GRPO": ("ppo-256x1", "grpo"),
    "PPO 256 x 1 - PPO 32 x 8": ("ppo-256x1", "ppo"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_differences_of_the_comparison(name):
    a, b = PAIRS[name]
    final, area, above = table("compare-14")[name]
    assert final == shown(interval(gaps(ends("comparison", a), ends("comparison", b))))
    assert area == shown(interval(gaps(areas("comparison", a), areas("comparison", b))))
    pairs = [(x > y) + 0.5 * (x == y) for x in ends("comparison", a) for y in ends("comparison", b)]
    assert above.startswith(f"{100 * statistics.mean(pairs):.1f}% [")


def test_the_control_that_was_missing():
    names = {"reinforce-256x1": "no critic, no baseline", "batch-256x1": "no critic, batch baseline"}
    ppo = ends("comparison", "ppo-256x1")
    for run, name in names.items():
        own = ends("second", run)
        less = gaps(own, ppo)
        row = [shown(interval(own), signed=False), shown(interval(less)), shown(interval(less, 1 - 0.05 / 3))]
        row.append(shown(interval(gaps(own, ends("again", "ppo-256x1")), 1 - 0.05 / 3)))
        assert table("compare-17a")[name] == [*row, f"{sum(x > 0 for x in less)} of {len(own)}"]


def test_what_the_chapter_says_of_it_in_words():
    reinforce = gaps(ends("second", "reinforce-256x1"), ends("comparison", "ppo-256x1"))
    assert "about eleven points *above* PPO, on every one of the ten seeds" in prose("compare-17b")
    assert min(reinforce) > 0 and round(statistics.mean(reinforce)) == 11
    assert interval(reinforce, 1 - 0.05 / 3)[1] > 0
    assert len(reinforce) == 10
    batch = interval(gaps(ends("second", "batch-256x1"), ends("comparison", "ppo-256x1")), 1 - 0.05 / 3)
    assert "ends about two points below PPO, also in the interval that is widened" in prose("compare-17b")
    assert batch[2] < 0 and round(batch[0]) == -2
    assert "about twenty points" in prose("compare-15")
    spread = gaps(ends("comparison", "ppo-256x1"), ends("comparison", "ppo"))
    assert 18 < statistics.mean(spread) < 23


def at_rate(phase, arm):
    """Per cent after the last step, by seed, at the one rate that an arm has on the fresh seeds."""
    second = {"none": "reinforce-256x1", "batch": "batch-256x1"}
    if phase == "why" and arm in second:  # in the second part, at the step where this phase ends
        seeds = logged("second")[second[arm]]
        return [100 * seeds[seed][30] for seed in sorted(seeds)]
    (run,) = (run for run in logged(phase) if run.split("-lr")[0] == arm)
    return ends(phase, run)


def test_why_no_baseline_is_better():
    pairs = [("none", "batch"), ("clipped", "batch"), ("clipped", "none"), ("mirrored", "batch")]
    pairs += [("straight-none", "straight-batch")]
    lines, found = printed("compare-17d").splitlines(), {}
    for (a, b), line in zip(pairs, lines, strict=True):
        less = gaps(at_rate("why", a), at_rate("why", b))
        assert len(less) == 10
        found[a, b] = interval(less, 1 - 0.05 / 5)
        assert " ".join(line.split()).startswith(f"{a} less {b} {shown(found[a, b])} points")
    assert found["clipped", "batch"][1] > 0 > found["mirrored", "batch"][2]
    _, low, high = found["clipped", "none"]
    assert low < 0 < high
    without_adam, low, _ = found["straight-none", "straight-batch"]
    assert low > 0 and round(without_adam) == 5
    assert {round(found[pair][0]) for pair in pairs[:2]} == {7, 8}, "seven to eight under Adam"


def test_the_noise_of_the_first_step():
    """All arms see the same samples; the batch's advantages are divided by the deviation of the rewards."""
    found = []
    for phase, run in (
        ("second", "reinforce-256x1"),
        ("second", "batch-256x1"),
        ("why", "mirrored-lr0.0002"),
    ):
        with open(STUDY / phase / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["run"] == run and row["step"] == "1"]
        rows.sort(key=lambda row: int(row["seed"]))
        scale = [float(row["reward_std"]) if run.startswith("batch") else 1 for row in rows]
        found.append([float(row["grad_norm"]) * by for row, by in zip(rows, scale, strict=True)])
    none, batch, mirrored = found
    assert len(none) == len(batch) == len(mirrored) == 10
    lines = printed("compare-17g").splitlines()
    for line, name, values in zip(lines, ("none", "batch", "mirrored"), found, strict=False):
        assert line.split() == [name, f"{statistics.mean(values):.2f}"]
    longer = [sum(x > y for x, y in zip(*pair, strict=True)) for pair in ((batch, none), (mirrored, batch))]
    assert [int(n) for n in NUMBER.findall(lines[3])] == [10, *longer] and longer[0] == 10


def test_the_second_task():
    lines = {line.split()[0]: " ".join(line.split()) for line in printed("compare-17f").splitlines()}
    begin = {100 * seed[0] for run in logged("chain").values() for seed in run.values()}
    assert len(begin) == 1 and lines["before:"] == f"before: {begin.pop():.1f} % right"
    for arm in ("batch", "grpo", "ppo"):
        less = interval(gaps(at_rate("chain", "none"), at_rate("chain", arm)), 1 - 0.05 / 3)
        own = shown(interval(at_rate("chain", arm)), signed=False)
        assert lines[arm] == f"{arm} {own} none less this, among all three: {shown(less)}"
        assert 0 < less[1] and round(less[0]) in (1, 2), "one or two points"


@pytest.mark.parametrize(
    ("phase", "arms"), [("why", ("none", "batch", "clipped", "mirrored", "straight-batch", "straight-none")),
                        ("chain", ("none", "batch", "grpo", "ppo"))],
)  # fmt: skip
def test_every_arm_of_the_later_parts_runs_at_its_best_rate_and_none_at_an_edge(phase, arms):
    for arm in arms:
        means, used = (
            {float(run.split("-lr")[1]): statistics.mean(ends(name, run))
             for run in logged(name) if run.split("-lr")[0] == arm}
            for name in (f"{phase}_tuning", phase)
        )  # fmt: skip
        best = max(means, key=means.get)
        assert min(means) < best < max(means), (arm, means)
        assert list(used) == [best] or (not used and best == 4e-4), "else it is in the second part, at 4e-4"


def test_the_sign_of_the_area_turns_with_the_learning_rate():
    own = interval(gaps(areas("comparison", "ppo"), areas("comparison", "grpo")))
    less = gaps(areas("second", "ppo-32x8-rate"), areas("comparison", "grpo"))
    first, other, again = printed("compare-17c").splitlines()
    assert first == f"area of PPO less GRPO, points, each at its own rate: {shown(own)}"
    widened = shown(interval(less, 1 - 0.05 / 3))
    assert other == f"both at GRPO's rate: {shown(interval(less))}, among all three {widened}"
    same = interval(gaps(areas("second", "ppo-32x8-rate"), areas("again", "grpo")), 1 - 0.05 / 3)
    assert again == f"the same on one processor, among all three: {shown(same)}" and same[1] > 0
    assert own[2] < 0 < interval(less, 1 - 0.05 / 3)[1]
    assert "by about a point" in prose("compare-17h") and round(statistics.mean(less)) == 1
    assert "by about two" in prose("compare-17h") and round(own[0]) == -2


def test_how_many_prompts_are_drawn():
    settings = json.loads((STUDY / "comparison" / "settings.json").read_text())["ppo"]
    steps, prompts, group = (settings[name] for name in ("max_steps", "prompts_per_step", "group_size"))
    assert f"{steps * prompts:,} draws" in prose("compare-17") and f"{steps * prompts * group:,}" in prose(
        "compare-17"
    )


def test_smaller_groups_gain_little_and_the_batch_as_baseline_gives_a_good_part():
    grpo = ends("comparison", "grpo")
    gained = {run: statistics.mean(gaps(ends("prompts", run), grpo)) for run in logged("prompts")}
    whole = statistics.mean(gaps(ends("comparison", "ppo-256x1"), grpo))
    assert max(gained["grpo-64x4"], gained["grpo-128x2"]) < whole / 3
    assert whole / 3 < gained["grpo-128x2-batch"] < gained["grpo-128x2-batch-rate"] < whole
    assert gained["grpo-128x2-batch-rate"] > whole / 2, "most of it"


def test_the_learning_rates_that_were_tuned():
    means = {run: statistics.mean(ends("tuning", run)) for run in logged("tuning")}
    settings = json.loads((STUDY / "comparison" / "settings.json").read_text())
    for method in ("grpo", "ppo"):
        best = max((run for run in means if run.startswith(method)), key=means.get)
        assert f"lr{settings[method]['learning_rate']:g}-" in best
        assert 1e-4 < settings[method]["learning_rate"] < 8e-4
    start = 100 * next(iter(logged("tuning")["grpo-lr0.0001-none"].values()))[0]
    assert all(end < start for run in means if "lr0.0008" in run for end in ends("tuning", run))


def test_the_controls():
    again = [x - y for x, y in zip(ends("controls", "grpo-again"), ends("comparison", "grpo"), strict=True)]
    seeds = logged("controls")["grpo-shuffled"]
    moved = [100 * (seeds[seed][80] - seeds[seed][0]) for seed in sorted(seeds)]
    first, second = printed("compare-20").splitlines()
    assert first == f"A/A, final success, points: {shown(interval(again))}"
    assert second == f"shuffled rewards, start to end, points: {shown(interval(moved))}"
    assert max(moved) < 0, "success falls, in every run"


RUNGS = {
    "leave-one-out": "group-mean",
    "std": "group-mean",
    "length": "std",
    "kl": "inner-epochs",
    "critic": "group-mean",
}


def test_the_ladder():
    pairs = [
        ("group-mean", "reinforce"),
        ("leave-one-out", "group-mean"),
        ("std", "group-mean"),
        ("length", "std"),
    ]
    pairs += [("inner-epochs", "length"), ("kl", "inner-epochs"), ("critic", "group-mean")]
    rows = table("compare-24")
    assert len(rows) == len(pairs) == 7
    for (a, b), (value,) in zip(pairs, rows.values(), strict=True):
        assert value == shown(interval(gaps(ends("ladder", a), ends("ladder", b))))
    for a, b in RUNGS.items():
        _, low, high = interval(gaps(ends("ladder", a), ends("ladder", b)))
        assert low < 0 < high, "every interval holds zero"
    updates = gaps(ends("ladder", "inner-epochs"), ends("ladder", "length"))
    assert interval(updates)[1] > 0, "one rung stands out by its own interval"
    _, low, high = interval(updates, 1 - 0.05 / 7)
    assert -0.1 < low < 0 < high, "among all seven its interval just reaches zero"


def test_the_time_of_a_step():
    with open(STUDY / "timing" / "seconds.csv", newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    ratio, head = (statistics.median(row[name] / row["grpo"] for row in rows) for name in ("ppo", "ppo-head"))
    assert len(rows) == 30
    assert NUMBER.findall(printed("compare-29")) == [f"{ratio:.2f}", f"{head:.2f}"]


def test_the_verdicts_and_the_exercise_on_seeds():
    rows = table("compare-31")
    difference = interval(gaps(ends("comparison", "ppo"), ends("comparison", "grpo")))
    area = interval(gaps(areas("comparison", "ppo"), areas("comparison", "grpo")))
    assert rows["final success"][1:] == [f"PPO - GRPO: {shown(difference)}", "cannot be told apart"]
    same = interval(gaps(areas("second", "ppo-32x8-rate"), areas("comparison", "grpo")))
    assert rows["sample efficiency"][1:] == [
        f"area, PPO - GRPO: {shown(area)}",
        "turns with the learning rate",
    ]
    assert rows["at one learning rate"][1] == f"area, PPO - GRPO: {shown(same)}"
    assert difference[1] < 0 < difference[2] and area[2] < 0
    s = statistics.stdev(gaps(ends("comparison", "ppo"), ends("comparison", "grpo")))
    assert printed("compare-35").strip() == f"s = {s:.2f} points, so about {math.ceil((2 * s) ** 2)} seeds"
