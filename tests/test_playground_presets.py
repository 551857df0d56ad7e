"""What each preset of the playground promises, over five seeds, in node and in Python."""

import json
import re
from pathlib import Path

import pytest
import torch
from playgroundcheck import in_node, needs_node

from nanogrpo.show import playground
from nanogrpo.show.playground import twin

SEEDS = range(5)
BOOK = [page for page in (Path(__file__).parents[1] / "book").iterdir() if page.suffix in {".ipynb", ".md"}]
PRESETS = {preset["name"]: preset for preset in playground.presets()}
CURVES = [name for name in PRESETS if name != "length"]
RUN = """(m, { config, weights, setting, steps }) => {
  const trainer = new m.Trainer(new m.GPT(config, Float64Array.from(weights)), setting);
  return Array.from({ length: steps }, () => trainer.step()[0]);
}"""
# What a token of the longest answer of a batch weighs, in units of one of the shortest with that advantage.
WEIGHTS = """(m, { config, weights, setting }) => {
  const trainer = new m.Trainer(new m.GPT(config, Float64Array.from(weights)), setting);
  const lengths = trainer.step()[1].rollout.mask.map((row) => row.length);
  const num_tokens = lengths.reduce((a, b) => a + b, 0);
  const counts = { num_sequences: lengths.length, num_tokens, max_length: 10 };
  const [short, long] = [Math.min(...lengths), Math.max(...lengths)];
  const weigh = (length) => m.tokenWeight(length, trainer.config.aggregation, counts);
  return [short, long, weigh(long) / weigh(short)];
}"""
PAGES = {"quickstart", "length-bias", "over-optimization", "zero-variance", "entropy", "kl", "scored"}


def test_a_preset_has_what_the_page_needs():
    for preset in PRESETS.values():
        assert {"name", "title", "settings", "chapter", "notice", "effects"} == set(preset)
        assert 1 <= len(preset["settings"]) <= 2 and preset["effects"]
        for setting in preset["settings"]:
            twin.options_of(setting)
    assert {preset["chapter"].removesuffix(".html") for preset in PRESETS.values()} == PAGES


def test_pages_link_to_presets_that_are_there():
    pages = [(page, page.read_text(encoding="utf-8")) for page in BOOK]
    linked = {page.stem: set(re.findall(r"playground\.html#preset=([\w-]+)", text)) for page, text in pages}
    assert linked.keys() >= {p["chapter"].removesuffix(".html") for p in PRESETS.values()}
    for preset in PRESETS.values():
        assert preset["name"] in linked[preset["chapter"].removesuffix(".html")]
    assert set().union(*linked.values()) <= PRESETS.keys()
    assert linked["sampler"] and linked["bug-museum"]


def cases(preset: dict, steps: int, seeds=SEEDS) -> list[dict]:
    model = playground.load()
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).tolist()
    config = vars(model.config)
    return [
        {"config": config, "weights": weights, "steps": steps, "setting": setting | {"seed": seed}}
        for seed in seeds
        for setting in preset["settings"]
    ]


def late(rows: list[dict], metric: str) -> float:
    """The mean of the last ten steps."""
    values = [row[metric] for row in rows[-10:]]
    return sum(values) / len(values)


@needs_node()
@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
def test_the_effect_of_a_preset_shows_on_every_seed(tmp_path, name):
    preset = PRESETS[name]
    steps = {effect["steps"] for effect in preset["effects"]}
    runs = in_node(tmp_path, RUN, cases(preset, max(steps)))
    for effect in preset["effects"]:
        pairs = compared(runs, effect)
        sign = {"above": 1, "below": -1}[effect.get("later") or effect["A"]]
        assert len(pairs) == len(SEEDS)
        assert all(sign * (a - b) > effect["by"] for a, b in pairs), (effect, pairs)


def compared(runs: list[list[dict]], effect: dict) -> list[tuple[float, float]]:
    """For each seed the end of run A and of run B; of a preset with one run, its end and its beginning."""
    runs, metric = [run[: effect["steps"]] for run in runs], effect["metric"]
    if "later" in effect:
        return [(late(run, metric), late(run[:10], metric)) for run in runs]
    return [(late(a, metric), late(b, metric)) for a, b in zip(runs[::2], runs[1::2], strict=True)]


@pytest.mark.slow
@needs_node()
def test_the_mean_over_each_answer_makes_tokens_of_long_answers_light(tmp_path):
    results = in_node(tmp_path, WEIGHTS, cases(PRESETS["length"], 1))
    assert len(results) == 2 * len(SEEDS)
    for (short, long, share), (_, _, constant) in zip(results[::2], results[1::2], strict=True):
        assert share == pytest.approx(short / long) and share < 0.8
        assert constant == pytest.approx(1)


@needs_node()
@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_python_makes_the_same_run(tmp_path, name):
    """The first steps to the digit; a float64 run of the package from the shipped weights."""
    steps = 8
    batch = cases(PRESETS[name], steps, seeds=[3])
    torch.set_default_dtype(torch.float64)
    try:
        for case, ours in zip(batch, in_node(tmp_path, RUN, batch), strict=True):
            theirs = twin.run(playground.load().double(), case["setting"])
            for mine, row in zip(ours, theirs, strict=False):
                for metric in ("reward", "entropy", "kl", "rewards/judge/mean", "completions/mean_length"):
                    assert mine[metric] == pytest.approx(row[metric], rel=1e-5, abs=1e-6), (
                        metric,
                        row["step"],
                    )
    finally:
        torch.set_default_dtype(torch.float32)


@needs_node()
def test_a_run_of_the_page_is_a_run_of_python(tmp_path):
    batch = cases({"settings": [{"beta": 0.1, "num_iterations": 2}]}, 2, seeds=[1])
    [ours] = in_node(tmp_path, RUN, batch)
    torch.set_default_dtype(torch.float64)
    try:
        theirs = twin.run(playground.load().double(), batch[0]["setting"])
        rows = [next(theirs) for _ in range(2)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert json.dumps([row["reward"] for row in ours]) == json.dumps([row["reward"] for row in rows])
    assert [row["kl"] for row in ours] == pytest.approx([row["kl"] for row in rows], rel=1e-6, abs=1e-9)
