"""What the chapter on TRL says of the study holds in its logs."""

import json

from scipy.stats import ttest_ind

from nanogrpo.show.seeds import curves, final, study_runs
from nanogrpo.show.studies import study_log

MARGIN = 0.03  # of the protocol
ARMS = ("nanogrpo", "TRL")


def test_ten_whole_runs_of_each_arm_from_one_start():
    success, metrics = study_runs("trl/success"), study_runs("trl/curves")
    for arm in ARMS:
        table = curves(success, arm, "success")
        assert list(table.index) == [0, 20, 40, 60] and list(table.columns) == list(range(1, 11))
        assert list(curves(metrics, arm, "reward").index) == list(range(1, 61))
    assert success[success["step"] == 0]["success"].nunique() == 1


def test_both_arms_gain_and_end_alike():
    success = study_runs("trl/success")
    ours, theirs = (final(success, arm) for arm in ARMS)
    start = success["success"].iloc[0]
    assert min(ours.mean(), theirs.mean()) > start + MARGIN
    low, high = ttest_ind(theirs, ours, equal_var=False).confidence_interval(0.95)
    assert -MARGIN < low < high < MARGIN


def test_the_log_says_what_made_it():
    made = json.loads(study_log("trl/environment.json").read_text())
    assert "dirty" not in made["commit"] and made["trl"] == "1.16.0" and made["processor"]
