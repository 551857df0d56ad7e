"""The effects that the chapter on zero-variance rewards shows, by the chapter's own functions."""

import copy

import pytest
import torch
from chaptercode import chapter

from nanogrpo.show.stats import mean, paired_difference

SEEDS = range(5)
NAMES = (
    "policy", "tokenizer", "task", "training", "held_out", "problems", "small_tokenizer", "next_letters",
)  # fmt: skip


@pytest.fixture(scope="module")
def text():
    return chapter("zero-variance", NAMES)


@pytest.mark.slow
def test_dead_groups_follow_the_formula_at_each_p_and_not_at_the_mean_p(text):
    p = text.success_of_each(text.policy, text.problems)
    shares = text.dead_shares(text.policy, text.problems, (4, 8))
    for G in (4, 8):
        run = mean(shares[G].tolist())
        error = (run.high - run.low) / 4  # about one standard error
        at_each = sum(text.dead_group_probability(x, G) for x in p.tolist()) / len(p)
        assert abs(run.estimate - at_each) < 4 * error
        assert run.estimate - text.dead_group_probability(p.mean().item(), G) > 0.1


@pytest.mark.slow
def test_dynamic_sampling_draws_as_many_groups_as_the_live_share_says(text):
    p = text.success_of_each(text.policy, text.problems).tolist()
    live = 1 - sum(text.dead_group_probability(x, 4) for x in p) / len(p)
    sampled, tokens, trained = text.drawn(8)
    assert trained == 16
    assert abs(sampled - 16 / live) < 2  # the mean of 20 steps
    _, few, alive = text.drawn(0)
    assert abs(tokens / trained / (few / alive) - 1) < 0.15, "a live group costs what it cost"


def test_leaving_dead_groups_out_turns_and_stretches_the_mean_update(text):
    pair = text.world(0.05, 0.6)
    exact = pair.gradient(pair.objective(text.RIGHT))
    counted, left_out = (
        text.against(exact, -pair.expect(text.estimator(recipe), text.RIGHT, 3).gradient)
        for recipe in (text.leave_one_out, text.live_only)
    )
    assert counted["angle"] < 1e-6 and abs(counted["length"] - 1) < 1e-9
    assert left_out["angle"] > 0.1 and left_out["length"] > 1.5


def test_a_small_eps_blows_up_rounding_and_nan_to_num_makes_it_worse(text):
    values = torch.arange(201) / 100
    naive = text.blown_up(values, 8)
    assert naive.abs().max() > 5 and (naive != 0).sum() > 20
    tied = values[:, None].repeat(1, 8)
    assert text.group_advantages(tied, eps=1e-8).eq(0).all()
    assert text.blown_up(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]), 8).eq(0).all()
    assert text.naive_z_score(tied, eps=0.0).nan_to_num().abs().max() > 1e38


def test_the_naive_update_lowers_p_where_it_is_high(text):
    values = torch.arange(100, 201) / 100
    worst = values[text.blown_up(values, 8).argmin()].item()
    scope = text.world(0.9)
    exact = scope.gradient(scope.objective(text.RIGHT))
    along = {
        recipe: -scope.expect(text.estimator(recipe), worst - 1 + text.RIGHT, 8).gradient @ exact
        for recipe in (text.naive_in_float32, text.group_advantages)
    }
    assert along[text.naive_in_float32] < -exact.square().sum()
    assert along[text.group_advantages] > exact.square().sum()


def test_a_dead_group_moves_nothing_but_toward_the_reference(text):
    start = text.small_gpt(0)
    torch.manual_seed(1)
    text.move(start, 0.3 * torch.randn(start.num_parameters))
    before = copy.deepcopy(start.state_dict())
    same, _ = text.small_run(0, text.everything_is_fine, 5, start=start, beta=0.0)
    assert all(torch.equal(same.state_dict()[name], value) for name, value in before.items())
    _, log = text.small_run(0, text.everything_is_fine, 30, start=start, beta=0.001)
    assert log["frac_reward_zero_std"].eq(1).all()
    assert log["kl"].iloc[-5:].mean() < 0.5 * log["kl"].iloc[:5].mean()


def test_the_group_std_turns_the_update_toward_a_tiny_preference(text):
    assert text.turn(0.9, 0.001, "group") > 45
    assert text.turn(0.9, 0.001, "none") < 2
    assert text.turn(0.5, 0.001, "group") < 5, "where few groups are tied, little happens"


@pytest.mark.slow
def test_runs_with_the_naive_z_score_fall_behind(text):
    sound = [text.exact_success(text.small_run(seed, text.with_bonus, 60)[0]) for seed in SEEDS]
    naive = [text.exact_success(text.planted(seed)[0]) for seed in SEEDS]
    assert paired_difference(sound, naive).low > 0.1


@pytest.mark.slow
def test_runs_with_the_group_std_take_up_the_letter_worth_a_hundredth(text):
    taste = {
        how: [
            text.exact_taste(text.small_run(seed, text.likes_a, 80, scale_rewards=how)[0]) for seed in SEEDS
        ]
        for how in ("group", "none")
    }
    assert min(taste["group"]) > 0.9
    assert paired_difference(taste["group"], taste["none"]).low > 0.1
