"""Pictures, watched runs, statistics and logs of odd values: a named error, or a picture that is true."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from nanogrpo.errors import LogError, NanoGRPOError, OptionError, ShapeError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.metrics import CSVLog, read_csv
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.ppo import PPOConfig
from nanogrpo.show import live, plotting, seeds, stats, studies
from nanogrpo.show.dashboard import Dashboard
from nanogrpo.tasks import Addition

COLUMNS = {"step": [1, 2, 3], "reward": [0.1, 0.2, 0.3]}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("function", [plotting.smooth, plotting.running_mean])
@pytest.mark.parametrize("window", [0, -1, 1.5, "2", True])
def test_a_mean_needs_a_window(function, window):
    with pytest.raises(OptionError, match="window"):
        function([1.0, 2.0], window)


@pytest.mark.parametrize("function", [plotting.smooth, plotting.running_mean])
def test_a_mean_is_one_of_numbers(function):
    with pytest.raises(LogError, match="number"):
        function(["a", 1.0], 2)


@pytest.mark.parametrize("runs", [[COLUMNS], COLUMNS, None, "reward", {"run": None}, {"run": [1]}], ids=str)
def test_what_is_no_table_of_runs_is_not_drawn(runs):
    with pytest.raises(LogError, match="runs"):
        plotting.plot_runs(runs, ["reward"])


def test_runs_may_be_called_by_a_number():
    assert "1 and 2" in plotting.plot_runs({1: COLUMNS, 2: COLUMNS}, ["reward"])._suptitle.get_text()


@pytest.mark.parametrize("values", [[1e308, -1e308, 1e308], [0, 1e308, 0]])
def test_numbers_that_no_axis_can_hold_are_named(tmp_path, values):
    with pytest.raises(LogError, match="reward.*too large"):
        plotting.plot_runs({"run": COLUMNS | {"reward": values}}, ["reward"])


@pytest.mark.parametrize("rows", [None, GRPOConfig(3), len, 3, [1], ["step"], [None]], ids=str)
def test_what_yields_no_rows_is_not_watched(rows):
    with pytest.raises(LogError, match="rows"):
        live.watch(rows)


@pytest.mark.parametrize("total", ["5", 1.5, -1])
def test_a_total_is_a_count(total):
    with pytest.raises(OptionError, match="total"):
        live.watch(iter([]), total=total)


def dashboard(config=None):
    torch.manual_seed(0)
    task = Addition(digits=1, held_out=20)
    model = GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, n_layer=1, n_head=1, n_embd=8))
    config = config or GRPOConfig(3, group_size=2, prompts_per_step=2)
    return Dashboard(model, task.tokenizer, task.split()[0], lambda completions, **_: [1.0] * 4, config)


@pytest.mark.parametrize("value", ["abc", None, [1]])
@pytest.mark.parametrize("name", ["learning_rate", "beta"])
def test_a_slider_takes_numbers_only(name, value):
    with pytest.raises(OptionError, match="slider"):
        getattr(dashboard(), name).value = value


def test_a_dashboard_without_a_step_says_so():
    assert "0 steps" in dashboard().description()


def test_a_dashboard_takes_the_options_of_its_trainer():
    with pytest.raises(OptionError, match="GRPOConfig"):
        dashboard(PPOConfig(3))


@pytest.mark.parametrize("seed", [-1, "a", 1.5])
def test_a_bootstrap_has_a_seed(seed):
    with pytest.raises(OptionError, match="seed"):
        stats.interquartile_mean([1.0, 2.0, 3.0], seed=seed)


@pytest.mark.parametrize("curves", [[], [1.0, 2.0], [[]]], ids=str)
def test_a_band_needs_curves(curves):
    with pytest.raises(ShapeError):
        stats.band(curves)


def test_masked_values_are_not_unmasked():
    with pytest.raises(NanoGRPOError, match="masked"):
        stats.mean(np.ma.array([1.0, 2.0, 100.0], mask=[0, 0, 1]))


def test_texts_are_no_numbers():
    with pytest.raises(ShapeError):
        stats.mean(["1", "2"])


def test_the_last_value_of_a_seed_that_broke_is_not_an_earlier_one():
    log = {"run": "a", "seed": [0, 0, 1, 1, 1], "step": [1, 2, 1, 2, 3], "m": [1, math.nan, 2, 3, 4]}
    frame = pd.DataFrame(log)
    last = seeds.final(frame, "a", "m")
    assert math.isnan(last[0]) and last[1] == 4


@pytest.mark.parametrize("frame", [None, {}, [1]], ids=str)
def test_what_is_no_table_has_no_curves(frame):
    with pytest.raises(LogError, match="table"):
        seeds.curves(frame, "a", "m")


@pytest.mark.parametrize("name", ["x" * 5000 + ".csv", "\ud800.csv"])
def test_a_name_that_no_file_has_is_no_study_log(name):
    with pytest.raises(LogError, match="no study log"):
        studies.study_log(name)


class Mute:
    def __repr__(self):
        raise ValueError("mute")


@pytest.mark.parametrize("value", [np.ma.masked, Mute()], ids=["masked", "mute"])
def test_what_is_no_number_is_not_logged(tmp_path, value):
    with CSVLog(tmp_path / "log.csv") as log, pytest.raises(LogError, match="no number"):
        log.write({"step": 1, "reward": value})


def test_half_a_character_is_no_name_of_a_log():
    with pytest.raises(LogError, match="no name"):
        read_csv("log\ud800.csv")
