"""Tasks: the two that are here, and a third, which is one class."""

import itertools

import pytest

from nanogrpo import grpo
from nanogrpo.errors import OptionError, RowError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.plays import MAX_NEW_TOKENS
from nanogrpo.recipes import measure, new_policy, sft_until, summary, test_problems
from nanogrpo.rewards import call_reward, exact_match
from nanogrpo.sft import SFTConfig
from nanogrpo.tasks import TASKS, Addition, Task, find
from nanogrpo.tokenizer import CharTokenizer

test_problems.__test__ = False  # a recipe, not a test


@pytest.mark.parametrize("digits", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_problem_is_right_fits_and_is_rewarded(digits):
    task = Addition(digits=digits, held_out=20)
    train, held_out = task.split()
    known, new = ({row["prompt"] for row in part} for part in (train, held_out))
    assert not known & new, "a held-out problem is trained on"
    assert len(known | new) == len(train) + len(held_out) == task.count and len(held_out) == 20
    for row in train[:200] + held_out:
        a, b = row["prompt"].rstrip("=").split("+")
        assert int(a) + int(b) == int(row["answer"])
        assert len(row["answer"]) + 1 <= task.max_new_tokens, f"no room for the end of {row['answer']}"
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


@pytest.mark.parametrize(
    "options",
    [{"digits": 0}, {"digits": 4}, {"digits": "2"}, {"digits": 2.0}, {"held_out": 0}, {"held_out": None}]
    + [{"digits": 1, "held_out": 100}],
)
def test_absurd_options_are_refused(options):
    with pytest.raises(OptionError, match="must"):
        Addition(**options)


class Reverse(Task):
    """A third task: write a word from its end to its beginning."""

    name = "reverse"
    tokenizer = CharTokenizer("abc=")
    max_new_tokens = 4

    def split(self):
        words = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("abc", repeat=n)]
        rows = [{"prompt": f"{word}=", "answer": word[::-1]} for word in words]
        return rows[::2], rows[1::2]


def test_a_third_task_is_one_class(monkeypatch):
    monkeypatch.setitem(TASKS, "reverse", Reverse())
    task = find("reverse")
    training, held_out = task.split()
    assert task.block_size == 4 + 4 and task.examples()[5] == ("cb=", "bc")
    model = new_policy(task, 0)
    rows = list(sft_until(model, task, config=SFTConfig(max_steps=10, batch_size=4)))
    assert rows[-1]["step"] == 10 and "accuracy" in rows[-1]
    assert test_problems(task) == held_out[len(held_out) // 2 :], "half is watched where there are few"
    assert measure(model, task, test_problems(task), ks=(1, 2)).keys() == {
        "accuracy",
        "greedy",
        "pass@1",
        "pass@2",
    }
    assert summary(model, task).endswith(
        f"of the answers to {len(test_problems(task))} held-out problems are right"
    )
    config = GRPOConfig(task.max_new_tokens, group_size=2, prompts_per_step=2, max_steps=1)
    assert next(grpo.train(model, task.tokenizer, training, exact_match, config))["step"] == 1


def test_what_is_no_task_is_refused(monkeypatch):
    for name in ("Addition", "", "plays", "tinyshakespeare"):
        with pytest.raises(OptionError, match=f"unknown; choose one of {', '.join(TASKS)}$"):
            find(name)
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Task,), {"name": "half"})()


def test_lines_are_headings_and_what_is_said_first(monkeypatch):
    text = "ANN:\nGood day.\n\nBOB:\nWell met, sir.\n\n" * 10
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: text)
    task = TASKS["lines"]
    training, held_out = task.split()
    assert training[0] == {"prompt": "ANN:\n", "answer": "Good day."} and len(training + held_out) == 20
    assert task.examples()[1] == ("BOB:\n", "Well met, sir.")
    assert set(task.tokenizer.chars) == set(text) and task.block_size == 5 + MAX_NEW_TOKENS
    assert call_reward(task.rules["judge"], training[:1], ["Good day, sir.", "Gzz"]).tolist() == [1.0, -1.0]
    before = task.fingerprint()
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: text + "More")
    assert before != task.fingerprint()


def test_the_fingerprint_is_the_datas():
    assert Addition().fingerprint() == Addition(2).fingerprint() != Addition(held_out=1999).fingerprint()


@pytest.mark.parametrize("rows", [[], [{"prompt": "a=", "answer": "a"}]])
def test_too_few_held_out_problems_are_no_test(rows):
    task = type("Short", (Reverse,), {"split": lambda self: ([{"prompt": "b=", "answer": "b"}], rows)})()
    with pytest.raises(RowError, match="at least two"):
        test_problems(task)
