"""The half-right addition policy that ships is what its script gives, and as good as its recipe says."""

import pytest
import torch
from tolerance import LOGGED_LOSS

from nanogrpo import weights
from nanogrpo.evaluate import success_probability
from nanogrpo.metrics import read_csv
from nanogrpo.recipes import new_policy, sft_until, test_problems
from nanogrpo.tasks import Addition

test_problems.__test__ = False  # a recipe, not a test
TASK = Addition()


def test_its_success_is_the_recipes_and_near_its_target():
    model, tokenizer = weights.load("addition")
    recipe = weights.recipe("addition")
    assert tokenizer.chars == TASK.tokenizer.chars and "dirty" not in recipe["environment"]["commit"]
    success = success_probability(model, tokenizer, test_problems(TASK)[:300])
    # 300 of the 1,500 problems: a standard error of at most 0.03
    assert abs(success - recipe["success"]) < 0.09
    assert recipe["target"] - 0.05 < recipe["success"] < recipe["target"] + 0.1


@pytest.mark.slow
def test_the_first_steps_of_its_script_give_the_logged_losses():
    recipe, log = weights.recipe("addition"), read_csv(weights.log("addition"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum depends on the threads; the recipe's run had one
    try:
        rows = sft_until(new_policy(TASK, recipe["seed"]), TASK, recipe["target"], recipe["seed"])
        losses = [next(rows)["loss"] for _ in range(60)]
    finally:
        torch.set_num_threads(threads)
    assert losses == pytest.approx(log["loss"][:60], abs=LOGGED_LOSS)


@pytest.mark.slow
def test_its_success_on_all_test_problems_is_the_recipes():
    model, tokenizer = weights.load("addition")
    success = success_probability(model, tokenizer, test_problems(TASK))
    assert success == pytest.approx(weights.recipe("addition")["success"], abs=1e-4)
