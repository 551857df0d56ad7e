"""What the chapters say of PPO and GRPO holds in the committed logs, and figures are redrawn from them."""

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from nanogrpo.grpo import GRPOConfig
from nanogrpo.ppo import PPOConfig
from nanogrpo.show import stats
from nanogrpo.show.seeds import curves, draw_seeds, final, study_runs
from nanogrpo.show.studies import STUDIES, environment

FOLDER = STUDIES / "ppo_vs_grpo"
ALL_THREE = 1 - 0.05 / 3  # the level of one interval, so that all three planned ones hold at 95 %
PHASES = {
    "tuning": (32, 80),
    "comparison": (30, 80),
    "prompts": (25, 80),
    "second": (30, 80),
    "again": (20, 80),
    "why_tuning": (42, 30),
    "why": (40, 30),
    "chain_tuning": (54, 40),
    "chain": (40, 40),
    "controls": (15, 80),
    "ladder": (40, 40),
    "ablation": (45, 40),
}


def success(phase):
    return study_runs(f"ppo_vs_grpo/{phase}/success")


def points(phase, a, b):
    frame = success(phase)
    return stats.paired_difference(100 * final(frame, a), 100 * final(frame, b))


def area(frame, run):
    return 100 * curves(frame, run, "success").iloc[1:].mean()


@pytest.mark.parametrize("phase", PHASES)
def test_every_run_of_a_phase_left_whole_logs_and_says_what_made_them(phase):
    runs, steps = PHASES[phase]
    frame, metrics = success(phase), study_runs(f"ppo_vs_grpo/{phase}/metrics")
    assert frame.groupby(["run", "seed"]).ngroups == metrics.groupby(["run", "seed"]).ngroups == runs
    assert set(frame.groupby(["run", "seed"])["step"].max()) == {steps}
    assert set(metrics.groupby(["run", "seed"])["step"].count()) == {steps}
    made = json.loads((FOLDER / phase / "environment.json").read_text())
    # Of the chain's runs, see the README: a docstring's line break had not been committed.
    assert made.keys() == environment().keys() and ("dirty" in made["commit"]) == phase.startswith("chain")


def test_tuning_chose_the_best_mean_of_eight_trials_and_none_at_an_edge():
    frame = success("tuning")
    settings = json.loads((FOLDER / "comparison" / "settings.json").read_text())
    means = frame[frame["step"] == 80].groupby("run")["success"].mean()
    best = {method: means[means.index.str.startswith(f"{method}-")].idxmax() for method in ("grpo", "ppo")}
    grpo, ppo = GRPOConfig(**settings["grpo"]), PPOConfig(**settings["ppo"])
    assert best["grpo"] == f"grpo-lr{grpo.learning_rate:g}-{grpo.scale_rewards}"
    assert best["ppo"] == f"ppo-lr{ppo.learning_rate:g}-critic{ppo.critic_learning_rate:g}"
    assert sum(means.index.str.startswith("grpo-")) == sum(means.index.str.startswith("ppo-")) == 8
    for config in (grpo, ppo):
        assert 1e-4 < config.learning_rate < 8e-4
    start = frame["success"].iloc[0]
    assert (means[means.index.str.contains("lr0.0008")] < start).all()


def test_a_pair_sees_the_same_first_samples():
    metrics = study_runs("ppo_vs_grpo/comparison/metrics")
    for metric in ("reward", "num_tokens", "entropy"):
        first = [curves(metrics, run, metric).iloc[0] for run in ("grpo", "ppo")]
        assert first[0].tolist() == first[1].tolist()


def test_at_the_same_prompts_final_success_cannot_be_told_apart_and_grpo_is_ahead_on_the_way():
    frame = success("comparison")
    difference = points("comparison", "ppo", "grpo")
    assert difference.low < 0 < difference.high and abs(difference.estimate) < 2
    on_the_way = stats.paired_difference(area(frame, "ppo"), area(frame, "grpo"))
    assert on_the_way.high < 0 and on_the_way.estimate > -4


def test_one_completion_for_each_of_256_prompts_is_worth_far_more_than_the_method():
    assert points("comparison", "ppo-256x1", "ppo").low > 15


def test_without_critic_and_baseline_256_prompts_end_higher_and_with_the_batch_mean_a_little_lower():
    ends = {run: final(success("second"), run) for run in ("reinforce-256x1", "batch-256x1")}
    ppo = final(success("comparison"), "ppo-256x1")
    for values in ends.values():
        assert list(values.index) == list(range(10))
    plain = stats.paired_difference(100 * ends["reinforce-256x1"], 100 * ppo, ALL_THREE)
    assert plain.low > 5 and (ends["reinforce-256x1"] > ppo).all()
    for other in (ppo, final(success("again"), "ppo-256x1")):
        batch = stats.paired_difference(100 * ends["batch-256x1"], 100 * other, ALL_THREE)
        assert -6 < batch.low and batch.high < 0
    assert (ends["batch-256x1"].to_numpy() > final(success("comparison"), "ppo").to_numpy().max()).all()


def test_whose_area_is_larger_turns_with_the_learning_rate():
    own = stats.paired_difference(*(area(success("comparison"), run) for run in ("ppo", "grpo")))
    pair = area(success("second"), "ppo-32x8-rate"), area(success("comparison"), "grpo")
    assert own.high < 0 < stats.paired_difference(*pair, ALL_THREE).low


def test_no_run_of_the_comparison_failed():
    frame = success("comparison")
    for run in frame["run"].unique():
        assert (final(frame, run) > curves(frame, run, "success").iloc[0]).all()


def test_the_controls_show_nothing():
    again, first = final(success("controls"), "grpo-again"), final(success("comparison"), "grpo")
    difference = stats.paired_difference(100 * again.to_numpy(), 100 * first.to_numpy())
    assert difference.low < 0 < difference.high
    shuffled = curves(success("controls"), "grpo-shuffled", "success")
    assert stats.mean(100 * (shuffled.iloc[-1] - shuffled.iloc[0])).low < 1


def test_of_the_ladder_only_more_updates_on_a_batch_lift_success():
    assert points("ladder", "inner-epochs", "length").low > 1
    for a, b in (("leave-one-out", "group-mean"), ("std", "group-mean"), ("length", "std")):
        difference = points("ladder", a, b)
        assert difference.low < 0 < difference.high
    for a, b in (("kl", "inner-epochs"), ("critic", "group-mean")):
        difference = points("ladder", a, b)
        assert difference.low < 0 < difference.high
    assert points("ladder", "group-mean", "reinforce").high < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_figure_is_redrawn_from_the_log(phase):
    frame = success(phase)
    figure, ax = plt.subplots()
    for run in frame["run"].unique():
        draw_seeds(ax, frame, run, "success", "#000000", run)
    ends = {line.get_ydata()[-1] for line in ax.lines}
    last = frame[frame["step"] == frame["step"].max()]
    assert set(last["success"]) <= ends
    plt.close(figure)
