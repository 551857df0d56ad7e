"""What the chapter on supervised fine-tuning says of its seeds holds in the committed logs."""

import json

import pytest

from nanogrpo.show.seeds import curves, study_runs
from nanogrpo.show.stats import paired_difference
from nanogrpo.show.studies import STUDIES, environment

SEEDS = [0, 1, 2, 3, 4]
WAYS = ("completion only", "prompt too")


@pytest.mark.parametrize(("name", "last"), [("plays", 40), ("addition", 500)])
def test_every_run_is_in_the_log_to_its_last_step(name, last):
    frame = study_runs(f"sft/{name}")
    for run in WAYS:
        table = curves(frame, run, "loss" if name == "plays" else "accuracy")
        assert list(table.columns) == SEEDS and table.index[-1] == last and table.notna().all(axis=None)
    made = json.loads((STUDIES / "sft" / f"{name}.json").read_text())
    assert made.keys() == environment().keys() and "dirty" not in made["commit"] and made["processor"]


def test_on_the_plays_the_mask_changes_next_to_nothing():
    masked, unmasked = (curves(study_runs("sft/plays"), run, "loss") for run in WAYS)
    difference = paired_difference(unmasked.iloc[-1], masked.iloc[-1])
    learned = masked.iloc[0] - masked.iloc[-1]
    assert -0.01 < difference.low <= difference.high < 0.01 < 0.1 * learned.min()


def test_the_model_learns_to_stop_and_little_else():
    log = study_runs("sft/plays")
    end, characters = (curves(log, WAYS[0], metric) for metric in ("end_loss", "character_loss"))
    assert (end.loc[0] - end.loc[20] > 15).all()
    assert ((characters.iloc[-1] - characters.iloc[0]).abs() < 0.1).all()


def test_on_addition_the_jump_comes_earlier_with_the_mask_and_never_later():
    log = study_runs("sft/addition")
    masked, unmasked = (curves(log, run, "accuracy") for run in WAYS)
    early, late = ((table >= 0.3).idxmax() for table in (masked, unmasked))
    assert (masked.max() >= 0.3).all() and (unmasked.max() >= 0.3).all()
    assert (early <= late).all() and (early < late).sum() >= 3
    assert (masked.iloc[-1] - unmasked.iloc[-1]).abs().max() < 0.15, "close again in the end"


def test_most_problems_teach_when_half_of_the_answers_are_right():
    log = study_runs("sft/addition")
    accuracy, signal = (curves(log, WAYS[0], metric).mean(axis=1) for metric in ("accuracy", "with_signal"))
    top = signal.idxmax()
    assert 0.3 < accuracy[top] < 0.7 and signal[top] > 0.9
    assert signal.iloc[0] < 0.3 and signal.iloc[-1] < 0.6
    assert (accuracy >= 0.3).idxmax() <= top, "the book stops no later than at the top"
