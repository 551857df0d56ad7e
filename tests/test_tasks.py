"""Tasks and the calling of reward functions."""

import math

import pytest

from nanogrpo.errors import RewardError
from nanogrpo.tasks import Addition, call_reward, exact_match

ROWS = [{"prompt": "1+2=", "answer": "3"}, {"prompt": "4+5=", "answer": "9"}]


@pytest.mark.parametrize("digits", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_problem_is_right_fits_and_is_rewarded(digits):
    task = Addition(digits=digits, held_out=20)
    train, held_out = task.split()
    assert len(train) + len(held_out) == task.count and len(held_out) == 20
    assert len({row["prompt"] for row in train + held_out}) == task.count, "a held-out problem is trained on"
    for row in train[:200] + held_out:
        a, b = row["prompt"].rstrip("=").split("+")
        assert int(a) + int(b) == int(row["answer"])
        assert len(row["answer"]) + 1 <= task.max_new_tokens
        assert len(row["prompt"]) + task.max_new_tokens == task.block_size
        task.tokenizer.encode(row["prompt"] + row["answer"])
    rewards = call_reward(exact_match, held_out, [row["answer"] for row in held_out])
    assert rewards.eq(1).all(), "the reference solution must earn the full reward"


def test_the_split_never_changes():
    assert Addition().split()[1][0] == Addition().split()[1][0]
    assert Addition().split()[1][:2] == [
        {"prompt": "60+44=", "answer": "104"},
        {"prompt": "28+90=", "answer": "118"},
    ]


@pytest.mark.parametrize("options", [{"digits": 0}, {"held_out": 0}, {"digits": 1, "held_out": 100}])
def test_absurd_options_are_refused(options):
    with pytest.raises(ValueError, match="must"):
        Addition(**options)


def test_columns_reach_the_reward_function_once_for_each_completion():
    seen = {}

    def reward(prompts, completions, answer):
        seen.update(prompts=prompts, answer=answer)
        return [0.0, 1.0, 2.0, 3.0]

    assert call_reward(reward, ROWS, ["a", "b", "c", "d"]).tolist() == [0, 1, 2, 3]
    assert seen == {"prompts": ["1+2=", "1+2=", "4+5=", "4+5="], "answer": ["3", "3", "9", "9"]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_names_prompt_and_completion(bad):
    def judge(prompts, completions, **columns):
        return [0.0, 1.0, bad, 0.0]

    with pytest.raises(RewardError, match=r"judge returned .* for completion 'c' of prompt '4\+5='"):
        call_reward(judge, ROWS, ["a", "b", "c", "d"])


@pytest.mark.parametrize("count", [0, 3, 5])
def test_the_wrong_number_of_rewards_is_refused(count):
    with pytest.raises(RewardError, match=f"returned {count} values for 4 completions"):
        call_reward(lambda **_: [0.0] * count, ROWS, ["a", "b", "c", "d"])
