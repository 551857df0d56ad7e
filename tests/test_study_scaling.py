"""What the chapter on scaling out says of its study holds in the logs."""

import json

from scipy.stats import ttest_ind

from nanogrpo.show.seeds import curves, final, study_runs
from nanogrpo.show.studies import study_log

ALIKE, MARGIN = 1e-3, 0.03  # of the protocol
ARMS = ("one process", "two processes")


def test_three_losses_are_alike_on_two_ranks_and_one_is_not():
    pairs = study_runs("scaling/pairs").set_index(["compared", "run"])
    share = pairs["apart_last"] / pairs["moved_last"]
    same = pairs["steps_with_equal_texts"] == pairs["steps"]
    assert set(pairs["steps"]) == {20} and len(pairs) == 6
    for which in [("two processes", loss) for loss in ("dapo", "grpo", "dr_grpo")] + [("two parts", "dapo")]:
        assert same[which] and share[which] <= ALIKE
    for how in ("two processes", "two parts"):
        assert share[how, "bnpo"] > 10 * ALIKE


def test_the_log_of_steps_is_whole_and_agrees():
    steps = study_runs("scaling/steps")
    table = steps.pivot(index=["run", "step"], columns="how", values="reward")
    assert len(table) == 4 * 20
    for loss in ("dapo", "grpo", "dr_grpo"):
        assert (table.loc[loss, "one process"] == table.loc[loss, "two processes"]).all()


def test_ten_runs_of_each_gain_and_end_alike():
    success = study_runs("scaling/success")
    for arm in ARMS:
        table = curves(success, arm, "success")
        assert list(table.index) == [0, 60] and list(table.columns) == list(range(1, 11))
    one, two = (final(success, arm) for arm in ARMS)
    assert not set(one) & set(two), "other samples, so other ends"
    assert min(one.mean(), two.mean()) > success["success"].iloc[0] + MARGIN
    low, high = ttest_ind(two, one, equal_var=False).confidence_interval(0.95)
    assert -MARGIN < low < high < MARGIN


def test_one_seed_on_both_ranks_repeats_every_completion():
    split = study_runs("scaling/split").groupby("run")[["equal_pairs", "pairs"]].sum()
    assert (split["pairs"] == 80).all()
    assert split["equal_pairs"]["reseeded"] == 80 > split["equal_pairs"]["own"]


def test_the_log_says_what_made_it():
    made = json.loads(study_log("scaling/environment.json").read_text())
    assert "dirty" not in made["commit"] and made["trl"] == "1.16.0" and made["accelerate"]
