"""The phases that ask why no baseline is better: their loop, their arms, and what their logs say."""

import sys
from dataclasses import replace

import pytest
import torch

from nanogrpo import ppo
from nanogrpo.advantages import whiten
from nanogrpo.show.studies import STUDIES
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.weights import load

sys.path.insert(0, str(STUDIES / "ppo_vs_grpo"))
import chain  # noqa: E402
import why  # noqa: E402

sys.path.pop(0)
sys.modules.pop("run", None)  # other studies have a module of that name
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
REWARDS = torch.tensor([1.0, 0.0, 1.0])


def test_the_advantages_of_the_arms():
    plain = why.advantages("none", REWARDS, MASK, 1e-4)
    assert torch.equal(plain, MASK * REWARDS[:, None])
    whitened = why.advantages("batch", REWARDS, MASK, 1e-4)
    assert torch.equal(whitened, whiten(MASK * REWARDS[:, None], MASK, 1e-4))
    assert whitened[1].max() < 0 and whitened[0, 0] > 0
    clipped = why.advantages("clipped", REWARDS, MASK, 1e-4)
    assert torch.equal(clipped[1], torch.zeros(3)) and torch.equal(clipped[0], whitened[0])
    mirrored, mean = (
        why.advantages("mirrored", REWARDS, MASK, 1e-4),
        0.5,
    )  # three of six tokens are of a right answer
    assert torch.allclose(mirrored, MASK * (REWARDS[:, None] + mean))
    # With rewards of 0 and 1 what is left is the reward, times one number for the batch.
    assert torch.allclose(clipped, plain * whitened[0, 0])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_straight_step_has_one_length_and_goes_downhill(scale):
    weights = torch.nn.Parameter(torch.tensor([3.0, -1.0, 2.0]))
    before, optimizer = weights.detach().clone(), why.Straight([weights], lr=0.1)
    optimizer.zero_grad()
    (scale * weights.square().sum()).backward()
    optimizer.step()
    moved = weights.detach() - before
    assert moved.norm().item() == pytest.approx(0.1, rel=1e-5)
    assert torch.allclose(moved, -0.1 * before / before.norm())


@pytest.mark.parametrize(("arm", "whitened"), [("none", False), ("batch", True)])
def test_the_loop_of_its_own_makes_the_updates_of_the_second_part(arm, whitened):
    """PPO whose value stays at 0, as the second part ran it, and the loop of ``why.py``: the same weights."""
    wide = replace(why.study.tuned("ppo"), group_size=1, prompts_per_step=32, max_steps=2, seed=5)
    still = {"critic": "head", "critic_learning_rate": 0.0, "vf_coef": 0.0}
    task, models, rows = Addition(), [], []
    for train in (
        lambda policy: why.train(policy, arm, wide),
        lambda policy: ppo.train(
            policy, task.tokenizer, task.split()[0], exact_match,
            replace(wide, **still, whiten_advantages=whitened),
        ),
    ):  # fmt: skip
        policy, _ = load("addition")
        rows.append(list(train(policy)))
        models.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    moved = (models[0] - load_flat()).norm()
    assert moved > 0.01, "something was learned"
    # Rows without advantage are skipped in one and summed as zeros in the other; Adam makes more of that
    # rounding where a gradient is tiny.
    assert (models[0] - models[1]).norm() < 0.01 * moved
    for own, theirs in zip(*rows, strict=True):
        assert own["reward"] == theirs["reward"] and own["loss"] == pytest.approx(theirs["loss"], abs=1e-6)


def load_flat():
    return torch.cat([p.detach().flatten() for p in load("addition")[0].parameters()])


def test_a_chain_is_answered_by_its_sums_on_the_way():
    assert chain.Chain.problem(3592) == {"prompt": "3+5+9+2=", "answer": "08,17,19"}
    training, held_out = chain.TASK.split()
    assert len(training) == 8000 and len(held_out) == 2000
    prompts = {row["prompt"] for row in training + held_out}
    assert len(prompts) == 10_000, "no problem is on both sides"
    for row in held_out[:50]:
        digits, sums = (
            [int(x) for x in row[key].strip("=").replace("+", ",").split(",")] for key in ("prompt", "answer")
        )
        assert sums == [sum(digits[:k]) for k in (2, 3, 4)]
        assert len(row["answer"]) + 1 == chain.TASK.max_new_tokens


def test_the_arms_of_the_second_task_spend_the_same_number_of_completions():
    spent = {arm: c.prompts_per_step * c.group_size * c.max_steps for arm, c in chain.ARMS.items()}
    assert set(spent.values()) == {40 * 32}
    paper = chain.ARMS["grpo"]
    assert (paper.scale_rewards, paper.aggregation, paper.baseline) == ("group", "sequence_mean", "group")


@pytest.mark.parametrize(
    ("peak", "tried"), [(2, [1, 2, 4]), (16, [1, 2, 4, 8, 16, 32]), (0.5, [1, 2, 4, 0.5, 0.25])]
)
def test_a_rate_at_an_edge_is_not_taken(peak, tried):
    seen = []

    def ended(rate, seed):
        seen.append(rate)
        return -abs(rate - peak)

    assert why.best([1, 2, 4], ended) == peak
    assert list(dict.fromkeys(seen)) == tried
