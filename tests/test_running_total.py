"""The task of the chapter on thinking: right answers, forms of a completion, and examples that mix them."""

from collections import Counter
from random import Random

import pytest

from nanogrpo.errors import OptionError
from nanogrpo.rewards import call_reward
from nanogrpo.teach.running_total import (
    FORMS,
    MIX,
    RunningTotal,
    form,
    right_at_the_end,
    shares,
    sound,
    totals,
)

TASK = RunningTotal()


def test_totals_are_sums_of_the_digits_so_far():
    for row in TASK.split()[1][:200]:
        digits = row["prompt"].rstrip("?")
        expected = [str(sum(map(int, digits[: i + 1])) % 10) for i in range(len(digits))]
        assert totals(digits) == "".join(expected) and row["answer"] == expected[-1]


def test_no_problem_comes_twice_and_the_split_never_changes():
    training, held_out = TASK.split()
    assert (len(training), len(held_out)) == (5000, 1000)
    assert len({row["prompt"] for row in training + held_out}) == 6000
    assert held_out[0] == RunningTotal().split()[1][0] == {"prompt": "885440?", "answer": "9"}


@pytest.mark.parametrize("kind", MIX)
def test_an_example_has_its_form_fits_and_is_right_unless_it_guesses(kind):
    draw, right = Random(0), []
    for row in TASK.split()[0][:500]:
        text = TASK.example(row["prompt"][:-1], kind, draw)
        assert form(row["prompt"], text) == kind and sound(row["prompt"], text) == (kind == "worked")
        assert len(TASK.tokenizer.encode(row["prompt"] + text)) + 1 <= TASK.block_size
        assert len(text) + 1 <= TASK.max_new_tokens
        right += right_at_the_end([row["prompt"]], [text], [row["answer"]])
    assert 0.05 < sum(right) / 500 < 0.15 if kind == "broken" else all(right)


def test_filler_has_the_lengths_of_the_totals_and_nothing_to_read():
    plain, dots = TASK.examples(), RunningTotal(steps="filler").examples()
    for (prompt, a), (same, b) in zip(plain, dots, strict=True):
        assert prompt == same and len(a) == len(b) and a[-2:] == b[-2:] and set(b[:-2]) <= {"."}


def test_the_examples_are_mixed_as_the_shares_say():
    pairs = TASK.examples()
    found = Counter(form(*pair) for pair in pairs)
    assert found.keys() == MIX.keys()
    assert all(abs(found[kind] / len(pairs) - share) < 0.03 for kind, share in MIX.items())


@pytest.mark.parametrize(
    ("text", "kind", "reward"),
    [("=4", "short", 1), ("30204=4", "worked", 1), ("99999=4", "worked", 1), ("30204=5", "worked", 0)]
    + [("302=4", "broken", 1), ("..=4", "filler", 1), ("30204", "other", 0), ("=4=4", "other", 0)]
    + [
        ("302040=4", "other", 1),
        ("3.=4", "other", 1),
        ("=44", "other", 0),
        ("", "other", 0),
        ("=", "other", 0),
    ],
)
def test_a_completion_s_form_and_reward(text, kind, reward):
    assert form("37284?", text) == kind in FORMS
    rows = [{"prompt": "37284?", "answer": "4"}]
    assert call_reward(right_at_the_end, rows, [text]).tolist() == [reward]


def test_shares_are_counts():
    prompts = ["12?"] * 5
    found = shares(prompts, ["13=3", "99=3", "=3", "=4", "1=5"], ["3"] * 5)
    assert found["worked"] == found["short"] == 0.4 and found["broken"] == found["sound"] == 0.2
    assert found["success"] == 0.6 and found["success_worked"] == 1 and found["success_rest"] == 1 / 3
    assert found["length"] == (5 + 5 + 3 + 3 + 4) / 5 and found["filler"] == found["other"] == 0
    assert (
        shares(["12?"], ["=3"], ["3"])["success_worked"] != shares(["12?"], ["=3"], ["3"])["success_worked"]
    )


@pytest.mark.parametrize(
    "options", [{"length": 1}, {"length": 13}, {"held_out": 6000}, {"length": 3}, {"steps": "prose"}]
)
def test_absurd_options_are_refused(options):
    with pytest.raises(OptionError, match="held_out < problems|must|unknown"):
        RunningTotal(**options)
