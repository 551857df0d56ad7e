"""What the chapter on plumbing claims, from its own exact cells; its runs are held by test_study_pitfalls."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from nanogrpo.show.stats import mean

CHAPTER = Path(__file__).resolve().parents[1] / "book" / "plumbing.ipynb"
NAMES = ("setup", "world", "micro", "limits", "parsers", "groups", "partial", "short")
pytestmark = pytest.mark.slow  # five starts, and sums over all completions


@pytest.fixture(scope="module")
def cells():
    """What the exact cells define."""
    notebook = json.loads(CHAPTER.read_text(encoding="utf-8"))
    found = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
    space, threads = {}, torch.get_num_threads()
    try:
        for name in NAMES:
            exec(re.sub(r"%pip.*", "pass", found[f"plumbing-{name}"]), space)
        yield space
    finally:
        torch.set_num_threads(threads)


def test_only_the_mean_over_tokens_is_turned_by_a_cut(cells):
    for (how, order), found in cells["ANGLES"].items():
        rows = torch.tensor(found)  # (models, parts)
        if how == "token_mean":
            assert rows[:, 0].max() < 0.1 and rows[:, 1:].min() > 0.1, order
        else:
            assert rows.max() < 0.1, (how, order)
    by_order = {order: torch.tensor(cells["ANGLES"]["token_mean", order])[:, 3] for order in cells["ORDERS"]}
    assert (by_order["sorted by length"] > by_order["shuffled"]).all()


def test_a_short_limit_raises_nothing_and_the_reward_hardly_sees_a_missing_end(cells):
    cut, reward = ({case: mean([row[i] for row in rows]).estimate for case, rows in cells["FIRST"].items()}
                   for i in (0, 1))  # fmt: skip
    assert cut["limit 4"] < cut["limit 3"] < cut["limit 2"] < cut["limit 1"]
    assert reward["limit 3"] >= reward["limit 4"] > reward["limit 2"] > reward["limit 1"]
    assert (
        reward["limit 4, another end token"] < reward["limit 4"] and cut["limit 4, another end token"] > 0.9
    )


def test_each_wrong_parser_pays_more_than_the_right_one(cells):
    for said in cells["SAID"]:
        assert all(value > said["right"] for name, value in said.items() if name != "right")


def test_a_mean_over_the_wrong_rows_turns_nothing_and_a_wrong_answer_is_another_goal(cells):
    right, across, tiled = (cells["pushes"][way] for way in cells["WAYS"])
    assert torch.allclose(across * (3 / 4) / (1 / 2), right), "the direction, up to (G - 1)/G and (P - 1)/P"
    assert (
        torch.cosine_similarity(tiled.flatten(), right.flatten(), dim=0) < 0.95
        and tiled[0, 1] > 0 > right[0, 1]
    )
    noise = [cells["noises"][way] / cells["pushes"][way].norm() for way in cells["WAYS"]]
    assert abs(noise[1] / noise[0] - 1) < 0.1 and noise[2] > 1.5 * noise[0]


def test_what_is_lost_at_random_costs_samples_and_what_is_lost_by_its_outcome_costs_the_signal(cells):
    push = cells["push"]
    for p in (0.3, 0.7):
        assert push(p, 0, 0) == pytest.approx(1)
        assert push(p, 0, 1) == pytest.approx(0, abs=1e-9), "a group of right answers alone says nothing"
    assert 0 < push(0.7, 0, 0.5) < push(0.3, 0, 0.5) < 1


def test_an_empty_answer_is_praised_until_enough_others_are_right(cells):
    praise, prices = cells["praise"], cells["PRICES"]
    border = {}
    for name, how in prices.items():
        up = [p for p in cells["RIGHT"] if praise(p, **how) > 0]
        border[name] = max(up, default=0.0)
    assert border["0.1 a letter"] == pytest.approx(1 / 3, abs=0.03)
    assert border["0.01 a letter"] == pytest.approx(1 / 5, abs=0.03)
    assert border["0.01 a letter, not scaled"] < 0.05 < border["0.1 a letter, not scaled"]
    assert border["0.1, right answers only"] == 0


def test_the_sum_over_groups_is_the_sum_over_all_orders(cells):
    """Four answers, each listed by itself, with plain arithmetic."""
    p, empty, price = 0.2, 0.05, 0.1
    chances, worth = (p, empty, 1 - p - empty), (1 - 3 * price, 0.0, -3 * price)
    total = 0.0
    for others in itertools.product(range(3), repeat=3):
        rewards = [0.0, *(worth[k] for k in others)]
        middle = sum(rewards) / 4
        spread = (sum((r - middle) ** 2 for r in rewards) / 4) ** 0.5
        chance = chances[others[0]] * chances[others[1]] * chances[others[2]]
        total += chance * (0.0 - middle) / (spread + 1e-4)
    assert cells["praise"](p, price, size=4) == pytest.approx(total, abs=1e-5)
