"""What the quickstart's text says of its seeds holds in the committed logs."""

import json

import pytest

from nanogrpo.metrics import read_csv
from nanogrpo.show import studies
from nanogrpo.show.studies import STUDIES, environment, study_log

FOLDER = STUDIES / "quickstart"
DEFAULT, LARGE = 3e-4, 1e-3


def runs(rate):
    results = read_csv(study_log("quickstart/results.csv"))
    rows = [dict(zip(results, values, strict=True)) for values in zip(*results.values(), strict=True)]
    return [row for row in rows if row["learning_rate"] == rate]


def test_five_seeds_start_half_right_and_gain_thirty_points():
    assert [row["seed"] for row in runs(DEFAULT)] == [0, 1, 2, 3, 4]
    for row in runs(DEFAULT):
        assert 0.2 <= row["accuracy after SFT"] <= 0.6
        assert row["accuracy after GRPO"] >= row["accuracy after SFT"] + 0.3


def test_at_the_large_learning_rate_every_run_falls_and_none_catches_up():
    assert len(runs(LARGE)) == 5
    for row in runs(LARGE):
        first = read_csv(FOLDER / f"seed{row['seed']:.0f}-lr{LARGE:g}.csv")["reward"][:50]
        assert min(sum(first[i : i + 10]) / 10 for i in range(41)) < row["accuracy after SFT"] / 1.5
        assert row["accuracy after GRPO"] < min(good["accuracy after GRPO"] for good in runs(DEFAULT))


@pytest.mark.parametrize("rate", [DEFAULT, LARGE])
def test_every_run_left_a_whole_log_that_agrees_with_its_row(rate):
    for row in runs(rate):
        log = read_csv(FOLDER / f"seed{row['seed']:.0f}-lr{rate:g}.csv")
        assert log["step"] == list(range(1, 201)) and row["grpo_steps"] == 200
        assert log["num_tokens"][-1] == row["num_tokens"]


def test_the_log_says_what_made_it():
    made = json.loads((FOLDER / "environment.json").read_text())
    assert made.keys() == environment().keys()
    assert "dirty" not in made["commit"] and made["processor"] and made["torch"]


def test_the_environment_does_not_depend_on_the_shell(monkeypatch, tmp_path):
    here = environment()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    for name in ("HOME", "USER", "LANG", "LC_ALL", "TERM", "SHELL"):
        monkeypatch.delenv(name, raising=False)
    assert environment() == here


def test_without_git_or_a_checkout_the_commit_is_unknown(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert environment()["commit"] == "unknown"
    monkeypatch.setattr(studies, "STUDIES", tmp_path / "book" / "studies")
    assert environment()["commit"] == "unknown", "of a wheel, whatever repository it lies in"
