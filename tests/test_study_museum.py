"""The museum's symptoms are those of the committed runs, and the runs can be made again."""

import importlib
import json
import sys

import pytest

from nanogrpo.show.studies import STUDIES, environment
from nanogrpo.teach.museum import symptoms
from nanogrpo.teach.museum.pieces import PIECES

FOLDER = STUDIES / "museum"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("run")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("run", None)


def test_the_column_is_made_from_the_log():
    said = symptoms.symptoms()
    assert said.keys() == {piece.name for piece in PIECES}
    for piece in PIECES:
        assert piece.symptom == said[piece.name], "python -m nanogrpo.teach.museum.symptoms"


def test_the_log_is_whole_and_says_what_made_it():
    curves, where, errors = symptoms.read()
    made = json.loads((FOLDER / "environment.json").read_text())
    assert made.keys() == environment().keys() and "dirty" not in made["commit"]
    for piece in PIECES:
        for steps in curves[piece.name][where[piece.name]].values():
            if piece.name not in errors:
                assert {len(values) for values in steps.values()} == {5}, piece.name


HEALTHY = {"kl": {s: [1.0, 1.1, 1.2, 1.3, 1.4] for s in range(1, 6)}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({s: [2.0] * 5 for s in range(1, 6)}, "from step 1 on"),
        ({s: [2.0 if s > 2 else 1.2] * 5 for s in range(1, 6)}, "from step 3 on"),
        ({s: [2.0 if s < 4 else 1.2] * 5 for s in range(1, 6)}, "in the first 3 steps"),
        ({s: [2.0 if s > 3 else 1.2] * 5 for s in range(1, 6)}, None),  # two steps are too few
        ({s: [2.0, 2.0, 2.0, 2.0, 1.39] for s in range(1, 6)}, None),  # one seed is among the healthy ones
        ({s: [1.41] * 5 for s in range(1, 6)}, None),  # too near
        ({s: [2.0, 2.0, 2.0, 0.5, 0.5] for s in range(1, 6)}, None),  # not all on one side
        ({s: [0.2] * 5 for s in range(1, 6)}, "from step 1 on"),
        ({s: [1.2] * 5 for s in range(1, 6)}, None),
    ],
)
def test_a_curve_shows_a_piece_if_all_seeds_are_outside_and_stay_there(values, expected):
    found = symptoms.shown({"kl": values}, HEALTHY)
    assert bool(found) == bool(expected)
    if expected:
        assert found[0][2].endswith(expected)


def replanted(study, name):
    """The curves of a piece on this machine, and of the healthy runs."""
    found = []
    for piece in (name, ""):
        curves: dict = {}
        for seed in study.SEEDS:
            for row in study.run(piece, study.AT.get(name, "grpo"), seed):
                for key, value in row.items():
                    if key not in symptoms.NO_METRIC:
                        curves.setdefault(key, {}).setdefault(row["step"], []).append(value)
        found.append(curves)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("ratio detached on both sides", "grad_norm"),
        ("fast path: EOS left out of the mask", "completions/mean_length"),
        ("sign of the loss", "kl"),
        ("Bradley-Terry reversed", "accuracy"),
        ("score one token after the end", "advantage_abs_mean"),
        ("pad equal to eos", "samples truncated"),
    ],
)
def test_a_piece_shows_again_in_runs_made_here(study, name, metric):
    assert metric in [each for _, each, _ in symptoms.shown(*replanted(study, name))]


@pytest.mark.slow
@pytest.mark.parametrize("name", [piece.name for piece in PIECES if piece.symptom.startswith("None:")])
def test_a_piece_that_changes_no_metric_changes_none_here(study, name):
    broken, healthy = replanted(study, name)
    for metric, steps in healthy.items():
        for step, values in steps.items():
            assert broken[metric][step] == pytest.approx(values, rel=1e-4, abs=1e-6), (metric, step)
