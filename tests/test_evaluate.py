"""Accuracy and pass@k."""

import itertools

import pytest
import torch

from nanogrpo import sft
from nanogrpo.evaluate import pass_at_k, sample_texts, success_counts, success_probability
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.recipes import measure, new_policy, sft_until, test_problems
from nanogrpo.tasks import Addition, exact_match

test_problems.__test__ = False  # a recipe, not a test


@pytest.mark.parametrize(
    ("n", "c", "k"), [(n, c, k) for n in (1, 4, 6) for c in range(n + 1) for k in range(1, n + 1)]
)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c, k):
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_success_is_counted_for_each_problem():
    task = Addition(digits=1, held_out=20)
    model, problems = new_policy(task, seed=0), task.split()[1]
    counts = success_counts(
        model,
        task.tokenizer,
        problems,
        lambda answer, **_: [a == "9" for a in answer],
        group_size=3,
        max_new_tokens=3,
    )
    assert counts == [3 * (row["answer"] == "9") for row in problems]


def test_sampling_for_show_is_seeded_and_greedy_needs_no_seed():
    task = Addition()
    model = new_policy(task, seed=0)
    one, same, other = (
        sample_texts(model, task.tokenizer, ["12+34="] * 9, max_new_tokens=4, seed=s) for s in (0, 0, 1)
    )
    assert one == same != other
    greedy = {
        tuple(sample_texts(model, task.tokenizer, ["12+34="], max_new_tokens=4, temperature=0, seed=s))
        for s in (0, 1)
    }
    assert len(greedy) == 1


@pytest.mark.slow
def test_sft_stops_when_enough_samples_are_right_and_measure_agrees():
    task = Addition()
    model = new_policy(task, seed=0)
    rows = list(sft_until(model, task, target=0.04))
    assert rows[-1]["accuracy"] >= 0.04 > rows[-2]["accuracy"], (
        "the run goes on after its target, or stops short of it"
    )
    result = measure(model, task, test_problems(task)[:300], ks=(1, 4))
    assert result["pass@1"] == pytest.approx(result["accuracy"])
    assert result["pass@4"] > result["pass@1"]


def test_the_test_problems_are_neither_trained_on_nor_watched():
    task = Addition()
    training, held_out = task.split()
    used = {row["prompt"] for row in training + held_out[:500]}
    assert len(test_problems(task)) == 1500 and used.isdisjoint(row["prompt"] for row in test_problems(task))
    assert torch.equal(new_policy(task, 3).head.weight, new_policy(task, 3).head.weight)
    assert exact_match([""], ["4"], answer=["4"]) == [1.0]


def test_the_success_probability_is_what_sampling_estimates():
    task = Addition(digits=1, held_out=20)
    torch.manual_seed(0)
    model = GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, n_layer=1, n_head=2, n_embd=16))
    training, problems = task.split()
    examples = [(row["prompt"], row["answer"]) for row in training]
    for _ in sft.train(model, task.tokenizer, examples, sft.SFTConfig(max_steps=60, learning_rate=1e-2)):
        pass
    exact = success_probability(model, task.tokenizer, problems)
    assert exact == pytest.approx(
        success_probability(model, task.tokenizer, problems, batch_size=7), rel=1e-5
    )
    n = 500
    counts = success_counts(
        model, task.tokenizer, problems, exact_match, group_size=n, max_new_tokens=task.max_new_tokens
    )
    # 10,000 independent draws: a standard error of at most 0.005; four of them, once in 16,000 runs
    assert 0.05 < exact < 0.95 and abs(sum(counts) / (n * len(problems)) - exact) < 0.02
