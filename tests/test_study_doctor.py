"""The run doctor's study: whole logs, the score that the chapter speaks of, runs that can be made again."""

import importlib
import json
import sys

import pytest

from nanogrpo.errors import ShapeError
from nanogrpo.show.studies import STUDIES, environment
from nanogrpo.show.triage import patients, share, share_by_kind
from nanogrpo.teach.doctor import RULES, Curves, diagnose

FOLDER = STUDIES / "doctor"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("run")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("run", "worlds"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def held_out():
    return patients("held_out")


def group(runs, *names):
    return [run for run in runs if run.group in names]


def test_every_planned_run_is_there_and_says_what_made_it(study, held_out):
    faults, seeds, healthy = study.PLAN["held out"]
    planned = {(f.name, seed) for f in faults for seed in seeds} | {("", seed) for seed in healthy}
    assert {(run.fault, run.seed) for run in held_out} == planned
    assert [run.fault for run in held_out if len(run.curves.steps) != study.STEPS] == ["ratio detached"]
    for part in ("training", "amended", "held_out"):
        made = json.loads((FOLDER / f"{part}.json").read_text())["environment"]
        assert made.keys() == environment().keys()


def test_what_counts_as_right_is_what_the_worlds_say_and_a_rule_s_name(study):
    written = json.loads((FOLDER / "faults.json").read_text())
    groups = {"training": study.TRAINING, "unseen": study.UNSEEN, "silent": study.SILENT}
    assert written == {f.name: {"expected": f.expected, "group": g} for g, fs in groups.items() for f in fs}
    rules = {rule.name for rule in RULES}
    assert all(kind["expected"] in rules or kind["group"] == "silent" for kind in written.values())


def test_held_out_settings_are_others_than_those_of_training(study):
    for name, values in study.SETTINGS["held out"].items():
        numbers = [v for v in values if isinstance(v, (int, float, tuple)) and v not in (0.0, 1)]
        assert not set(numbers) & set(study.SETTINGS["training"][name]), name


def test_the_score_is_the_one_that_the_chapter_speaks_of(held_out):
    broken, healthy = group(held_out, "training", "unseen"), group(held_out, "healthy")
    assert (len(broken), len(healthy), len(group(held_out, "silent"))) == (120, 120, 24)
    known, new = (share_by_kind(group(held_out, name)) for name in ("training", "unseen"))
    assert new.estimate < share_by_kind(broken).estimate < known.estimate < 0.8
    assert share([not run.right for run in healthy]).estimate <= 0.05
    alone = patients("held_out", settings=False)
    assert 0 < sum(r.right for r in broken) - sum(r.right for r in group(alone, "training", "unseen")) < 12


def test_what_no_curve_shows_stays_silent_but_for_the_two_kinds_that_the_chapter_names(held_out):
    said = {run.fault for run in group(held_out, "silent") if run.diagnosis.first}
    assert said == {"group mean over the wrong axis", "wrong answers paid, no judge"}


def test_rules_still_know_the_runs_that_they_were_made_on():
    training = patients("training")
    assert not [run.seed for run in group(training, "healthy") if run.diagnosis.first]
    assert all(run.right for run in patients("amended"))
    harmless = {"entropy is punished", "ties by a small eps"}
    wrong = [run for run in group(training, "training") if not run.right and run.fault not in harmless]
    assert len(wrong) <= 1


def test_shares_by_hand():
    assert share([True, False]).estimate == 0.5
    for empty in (share, share_by_kind):
        with pytest.raises(ShapeError, match="at least one run"):
            empty([])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["grader wants a full stop", "paid for length", "ratio detached"])
def test_a_broken_run_made_here_is_named_again(study, fault):
    kind = next(f for f in study.TRAINING if f.name == fault)
    how, rows = study.run("training", kind, 100)
    names = [name for name in rows[0] if name not in ("step", "num_tokens")]
    curves = Curves({n: [row[n] for row in rows] for n in names}, [int(row["step"]) for row in rows], how)
    assert diagnose(curves).first == kind.expected
