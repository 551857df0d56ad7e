"""The three arms that decide what the comparison says, run again here on three seeds that no log has.

REINFORCE without a baseline at 256 x 1, PPO at 256 x 1, and GRPO at 32 x 8: the first above the second says
that the critic is not needed, the second above the third that prompts are worth more than the method. The
log's own 80 steps, since fewer are another claim. Two to three minutes of one core.
"""

import csv
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import t as student

from nanogrpo import grpo, ppo
from nanogrpo.evaluate import success_probability
from nanogrpo.recipes import test_problems as problems_of
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.weights import load
from tests.tolerance import CHANCE

STUDY = Path(__file__).resolve().parents[1] / "book" / "studies" / "ppo_vs_grpo"
SEEDS = (300, 301, 302)
SETTINGS = json.loads((STUDY / "comparison" / "settings.json").read_text(encoding="utf-8"))
WIDE = replace(ppo.PPOConfig(**SETTINGS["ppo"]), group_size=1, prompts_per_step=256)
ARMS = {
    "reinforce-256x1": (
        "second",
        replace(WIDE, critic="head", critic_learning_rate=0.0, vf_coef=0.0, whiten_advantages=False),
    ),
    "ppo-256x1": ("comparison", WIDE),
    "grpo": ("comparison", grpo.GRPOConfig(**SETTINGS["grpo"])),
}


def logged(phase, run):
    """Per cent after the last step, of each seed of the log."""
    with open(STUDY / phase / "success.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["run"] == run]
    return [100 * float(row["success"]) for row in rows if int(row["step"]) == 80]


def end(config, seed):
    """Per cent of right answers to held-out problems, exact, after a run."""
    task, (policy, tokenizer) = Addition(), load("addition")
    trainer = ppo if isinstance(config, ppo.PPOConfig) else grpo
    run = trainer.train(policy, tokenizer, task.split()[0], exact_match, replace(config, seed=seed))
    assert sum(1 for _ in run) == 80
    return 100 * success_probability(policy, tokenizer, problems_of(task))


def margin(values, again):
    """Half of the interval in which the mean of ``again`` new seeds lies, but once in a thousand times."""
    spread = statistics.stdev(values) * math.sqrt(1 / again + 1 / len(values))
    return student.ppf(1 - CHANCE / 2, len(values) - 1) * spread


def test_the_margin_is_that_of_a_prediction_and_narrower_for_more_seeds():
    values = [57.0, 58.0, 59.0, 58.5]
    assert margin(values, 3) == pytest.approx(
        12.924 * statistics.stdev(values) * math.sqrt(1 / 3 + 1 / 4), rel=1e-3
    )
    assert margin(values, 3) < margin(values, 1)


@pytest.mark.thorough
def test_the_critical_arms_end_where_the_log_says_and_in_its_order_on_every_seed():
    """Each arm's mean of three new seeds within the prediction interval of its logged seeds.

    That interval is the mean of the log's seeds (10, and 4 of REINFORCE) plus and minus Student's quantile at
    one in a thousand, times their standard deviation, times the root of 1/3 + 1/n.
    """
    found = {name: [end(config, seed) for seed in SEEDS] for name, (_, config) in ARMS.items()}
    for name, (phase, _) in ARMS.items():
        values = logged(phase, name)
        off = abs(statistics.mean(found[name]) - statistics.mean(values))
        assert off < margin(values, len(SEEDS)), (name, found[name])
    for plain, critic, groups in zip(*found.values(), strict=True):
        assert plain > critic > groups
