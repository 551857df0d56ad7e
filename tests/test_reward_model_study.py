"""What the chapter on reward models says of its study holds in the logs, and the logs can be made again."""

import importlib.util
import json

import pandas as pd
import pytest
import torch
from tolerance import LOGGED_LOSS

from nanogrpo import plays, sft, weights
from nanogrpo.data import split_corpus
from nanogrpo.metrics import read_csv
from nanogrpo.reward_model import train
from nanogrpo.sft import SFTConfig
from nanogrpo.show import stats
from nanogrpo.show.studies import STUDIES, environment, study_log
from nanogrpo.tasks import Lines

FOLDER = STUDIES / "reward_model"
SIZES = [100, 300, 1000, 3000, 10000]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reward_model_study", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread():
    """The order of a sum depends on the threads; the study ran with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def results():
    return pd.DataFrame(read_csv(study_log("reward_model/results.csv")))


def over_seeds(results, column):
    return [stats.mean(rows[column]) for _, rows in results.groupby("pairs")]


def test_five_seeds_at_five_sizes_and_none_left_out(results, script):
    runs = sorted(zip(results["seed"], results["pairs"], strict=True))
    assert runs == [(seed, size) for seed in range(5) for size in SIZES]
    assert list(script.SIZES) == SIZES
    for row in results.itertuples():
        log = read_csv(FOLDER / f"seed{row.seed:.0f}-pairs{row.pairs:.0f}.csv")
        config = script.options(int(row.pairs), int(row.seed))
        assert log["step"] == list(range(1, config.max_steps + 1))
        assert log["accuracy"][0] == 0.5, "the head starts at zero"
        assert log["loss"][0] == pytest.approx(0.693147, abs=1e-5)


def test_at_ten_thousand_pairs_every_seed_reaches_nine_tenths_of_the_ceiling(results):
    largest = results[results["pairs"] == SIZES[-1]]
    share = largest["accuracy_labels"] / largest["ceiling"]
    assert (share >= 0.9).all() and stats.mean(share).low >= 0.9
    assert largest["ceiling"].between(0.8, 0.9).all(), "neither trivial nor hopeless"


@pytest.mark.parametrize("column", ["accuracy_labels", "accuracy_judge"])
def test_accuracy_rises_with_the_pairs(results, column):
    found = over_seeds(results, column)
    means = [m.estimate for m in found]
    assert means == sorted(means)
    first, last = (results[results["pairs"] == n].set_index("seed")[column] for n in (SIZES[0], SIZES[-1]))
    assert stats.paired_difference(last, first).low > 0.05


def test_a_hundred_times_the_pairs_more_than_halve_the_distance_to_the_ceiling(results):
    gap = (results["ceiling"] - results["accuracy_labels"]).groupby(results["pairs"]).mean()
    assert 0.25 * gap[100] < gap[10000] < 0.5 * gap[100]


def test_labels_are_harder_to_agree_with_than_the_judge(results):
    largest = results[results["pairs"] == SIZES[-1]]
    assert (largest["accuracy_judge"] > largest["accuracy_labels"]).all()
    assert (results["loss"] > results["judge_loss"]).all(), "no model is surer of the labels than their maker"


def test_few_pairs_make_a_model_surer_than_right_and_many_do_not():
    bins = pd.DataFrame(read_csv(study_log("reward_model/calibration.csv")))
    bins["gap"] = (bins["sure"] - bins["agree"]) * bins["count"]
    gap = bins.groupby("pairs")["gap"].sum() / bins.groupby("pairs")["count"].sum()
    assert gap[100] > 0.1 and abs(gap[10000]) < 0.04


def test_far_apart_lines_are_ordered_better_than_close_ones():
    cells = pd.DataFrame(read_csv(study_log("reward_model/regions.csv")))
    cells = cells[cells["pairs"] == SIZES[-1]]
    sums = cells.groupby("difference")[["count", "right"]].sum()
    agree = (sums["right"] / sums["count"]).loc[[1, 2, 3]].tolist()
    assert agree == sorted(agree) and agree[0] > 0.6


def test_off_its_distribution_the_model_likes_repetition_and_gibberish():
    strange = pd.read_csv(study_log("reward_model/off_distribution.csv"))
    gaps = (strange["reward"] - strange["judge"]).groupby([strange["kind"], strange["seed"]]).mean()
    assert set(strange["seed"]) == set(range(5)) and len(set(strange["kind"])) == 9
    assert abs(gaps["samples of the policy"]).max() < 1e-9, "there the two agree on average, by construction"
    for kind in ("one word, repeated", "letters shuffled"):
        assert gaps[kind].min() > 1, f"{kind}: at least a point too much on every seed"


def test_strange_texts_are_what_they_are_called(script, corpus):
    judge = plays.Judge(corpus)
    lines = [line for _, line in plays.first_lines(split_corpus(corpus)[1])][:50]
    kinds = script.strange_texts(judge, lines, seed=0)
    scores = {kind: judge([], texts) for kind, texts in kinds.items()}
    assert all(len(texts) == 50 for texts in kinds.values())
    assert scores["in capitals"] == scores["words shuffled"] == scores["lines of the plays"]
    assert set(scores["one word, repeated"]) == {1.0} and min(scores["a list of long words"]) >= 4
    assert max(len(t) for t in kinds["one word, repeated"] + kinds["a list of long words"]) <= plays.MAX_CHARS
    assert sum(scores["letters shuffled"]) < 0


def test_the_logs_and_the_weights_say_what_made_them(script):
    made = json.loads((FOLDER / "environment.json").read_text())
    assert made.keys() == environment().keys() and "dirty" not in made["commit"]
    lines, reward = weights.recipe(script.LINES), weights.recipe(script.REWARD)
    assert SFTConfig(**Lines.sft_options) == SFTConfig(**lines["config"])
    assert script.options(SIZES[-1], 0) == script.RewardModelConfig(**reward["config"])
    assert reward["pairs"] == SIZES[-1] and reward["temperature"] == plays.TEMPERATURE
    assert all("dirty" not in recipe["environment"]["commit"] for recipe in (lines, reward))
    for name in (script.LINES, script.REWARD):
        assert (weights.FOLDER / f"{name}.safetensors").stat().st_size < 5e6


@pytest.mark.slow
def test_the_reward_model_that_ships_is_the_one_of_the_log(script, corpus, one_thread, results):
    judge = plays.Judge(corpus)
    _, (pairs, scores) = script.data(judge, 1, seed=0)
    found = script.measure(script.rewards(weights.load_reward_model(script.REWARD), pairs), scores)
    row = results[(results["seed"] == 0) & (results["pairs"] == SIZES[-1])].iloc[0]
    # The pairs are sampled anew, and where rounding turns a token, one is another: within a standard error.
    error = 0.5 / script.TEST_PAIRS**0.5
    for name, value in found.items():
        assert value == pytest.approx(row[name], abs=error), name


@pytest.mark.slow
def test_the_study_run_again_gives_its_logged_losses(script, corpus, one_thread, monkeypatch):
    """The first 10 steps on 100 pairs."""
    monkeypatch.setattr(script, "TEST_PAIRS", 1)
    (labeled, _), _ = script.data(plays.Judge(corpus), SIZES[0], seed=0)
    rows = train(script.new_model(), labeled, script.options(SIZES[0], 0))
    found = [row["loss"] for _, row in zip(range(10), rows, strict=False)]
    logged = read_csv(FOLDER / f"seed0-pairs{SIZES[0]}.csv")["loss"][:10]
    assert found == pytest.approx(logged, abs=LOGGED_LOSS)


@pytest.mark.slow
def test_the_policy_made_again_has_its_logged_losses(corpus, one_thread):
    model, tokenizer = weights.load("tinyshakespeare")
    rows = sft.train(model, tokenizer, Lines().examples(), SFTConfig(**Lines.sft_options))
    found = [row["loss"] for _, row in zip(range(5), rows, strict=False)]
    logged = read_csv(weights.log("tinyshakespeare-lines"))["loss"][:5]
    assert found == pytest.approx(logged, abs=LOGGED_LOSS)
