"""Logs of every shape that the doctor reads, and what it says of those that it cannot read."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrpo.errors import LogError, NanoGRPOError, RunError
from nanogrpo.teach.doctor import METRICS, Point, read_curves

ROW = {"reward": 0.25, "entropy": 1.5, "completions/clipped_ratio": 0.0, "step": 1}


def state(*rows):
    return json.dumps({"global_step": 2, "log_history": list(rows), "stateful_callbacks": {}})


@pytest.fixture
def log(tmp_path):
    def write(text, name="metrics.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_our_own_folder_brings_its_settings(log, tmp_path):
    log("step,reward,kl\n1,0.5,0\n2,0.25,0.125\n")
    log('{"num_iterations": 2}', "config.json")
    curves = read_curves(tmp_path)
    assert curves.steps == [1, 2] and curves.settings == {"num_iterations": 2}
    assert curves.points("kl") == [Point(1, 0.0), Point(2, 0.125)] and curves.points("entropy") == []


def test_a_log_of_another_name_has_no_settings(log):
    log('{"num_iterations": 2}', "config.json")
    assert read_curves(log("step,reward\n1,0.5\n", "other.csv")).settings == {}


def test_trl_s_state_without_its_evaluations_and_its_summary(log):
    path = log(
        state(
            {**ROW, "loss": 0.0, "grad_norm": 0.5, "epoch": 0.1},
            {"eval_reward": 0.5, "eval_loss": 0.1, "step": 1},
            {**ROW, "step": 2, "kl": 0.125, "rewards/exact/mean": 0.5},
            {"train_runtime": 3.0, "train_loss": 0.0, "step": 2},
        ),
        "trainer_state.json",
    )
    curves = read_curves(path)
    assert curves.steps == [1, 2] and curves.points("kl") == [Point(2, 0.125)]
    assert curves.parts() == ["rewards/exact/mean"] and "eval_reward" not in curves.columns


def test_of_trl_s_checkpoints_the_latest_is_read(log, tmp_path):
    for number, reward in ((9, 0.25), (100, 0.75), (20, 0.5)):
        log(state({**ROW, "reward": reward}), f"out/checkpoint-{number}/trainer_state.json")
    (tmp_path / "out/checkpoint-best").mkdir()
    assert read_curves(tmp_path / "out").points("reward") == [Point(1, 0.75)]


def test_a_csv_with_gaps_and_with_other_columns(log):
    text = ",step,reward,kl,run\n0,5,0.5,,a b\n1,10,,0.25,a b\n2,15,,,a b\n"
    curves = read_curves(log(text, "t.csv"))
    assert curves.steps == [5, 10] and curves.columns["reward"] == [0.5, None]
    assert curves.points("kl") == [Point(10, 0.25)]


@pytest.mark.parametrize("prefix", ["train/", "a run - train/"])
def test_names_with_the_prefix_of_a_tracker(log, prefix):
    curves = read_curves(log(f"Step,{prefix}reward,{prefix}reward__MIN\n1,0.5,0.25\n", "w.csv"))
    assert curves.columns == {"reward": [0.5]} and curves.steps == [1]


def test_older_names_of_trl_are_known_and_newer_ones_come_first(log):
    assert read_curves(log("step,completion_length\n1,3\n")).points("completions/mean_length") == [(1, 3.0)]
    both = "step,completion_length,completions/mean_length\n1,3,4\n"
    assert read_curves(log(both)).points("completions/mean_length") == [(1, 4.0)]


def test_rows_are_counted_where_no_step_is_logged(log):
    assert read_curves(log("reward\n0.5\n0.25\n")).steps == [1, 2]


def test_what_is_not_finite_stays_in_the_column_and_leaves_the_points(log):
    curves = read_curves(log("step,loss\n1,nan\n2,inf\n3,0.5\n"))
    assert math.isnan(curves.columns["loss"][0]) and curves.points("loss") == [Point(3, 0.5)]
    for text in ("NaN", "Infinity", '"nan"'):
        made = f'{{"log_history": [{{"step": 1, "reward": 0.5, "loss": {text}}}]}}'
        assert read_curves(log(made, "trainer_state.json")).points("loss") == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "is empty"),
        (
            "a.csv",
            "step,foo\n1,2\n",
            "has none of the metrics that are read here; it has step, foo; known are",
        ),
        ("a.csv", "step,learning_rate\n1,2\n", "has none of the metrics"),
        ("a.csv", "step,reward\n", "holds no step"),
        ("a.csv", "step,reward\n1,\n", "holds no step"),
        ("a.csv", "step,reward\n1,0.5\n1,0.5\n", "step 1 follows step 1; give the log of one run"),
        ("a.csv", "step,reward\n1.5,0.5\n", "step=1.5 is no whole number"),
        ("a.csv", "step,reward\nnan,0.5\n", "step=nan is no whole number"),
        ("a.csv", "step,reward\n,0.5\n2,0.5\n", "step=None is no whole number"),
        ("a.csv", "step,reward\n1,high\n", "line 2: reward='high' is no number"),
        ("a.csv", "step,reward\n1,1_0\n", "line 2: reward='1_0' is no number"),
        ("a.csv", "step,reward\n1,1e999\n", "line 2: reward='1e999' is no number"),
        ("a.json", '[{"reward": "1_0"}]', "row 0: reward='1_0' is no number"),
        ("a.csv", "step,reward\n1\n", "line 2: 1 values for 2 columns"),
        ("a.csv", "step,reward,reward\n1,2,3\n", "more than once"),
        (
            "a.csv",
            "step,train/reward,a - train/reward\n1,2,3\n",
            "two columns are reward; give a table of one run",
        ),
        ("a.json", "{", "is no JSON"),
        ("a.json", "[" * 100_000, "is no JSON"),
        ("a.json", "{}", "has no log_history"),
        ("a.json", '{"log_history": 3}', "has no log_history"),
        ("a.json", "[1]", "has no log_history"),
        ("a.json", "[]", "has none of the metrics that are read here; it has no columns"),
        ("a.json", '[{"reward": true}]', "row 0: reward=True is no number"),
        ("a.json", '[{"reward": [1]}]', r"row 0: reward=\[1\] is no number"),
        ("a.json", f'[{{"reward": {"9" * 400}}}]', "row 0: reward=9+.* is no number"),
        ("a.json", '[{"eval_reward": 1, "loss": 2}]', "holds no step"),
    ],
)
def test_what_cannot_be_read_is_named(log, name, text, message):
    with pytest.raises(LogError, match=message):
        read_curves(log(text, name))


@pytest.mark.parametrize(("text", "message"), [("{", "is damaged"), ("[]", "holds a list, no settings")])
def test_damaged_settings_are_refused_and_not_left_out(log, text, message):
    log(text, "config.json")
    with pytest.raises(RunError, match=message):
        read_curves(log("step,reward\n1,0.5\n"))


@pytest.mark.parametrize("name", ["", "\0", "none", "empty"])
def test_a_place_without_a_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError, match="is no name of a file|cannot read the log none|empty holds no run"):
        read_curves(name)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
)
NAMES = st.sampled_from([*METRICS, "step", "epoch", "rewards/a/mean", "train/reward", "clip_ratio", ""])


@pytest.mark.slow
@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=6), max_size=5))
def test_any_history_is_read_or_refused_with_a_typed_error(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "trainer_state.json"
    path.write_text(json.dumps({"log_history": rows}))
    try:
        curves = read_curves(path)
    except NanoGRPOError as error:
        assert str(error)
    else:
        assert curves.steps and curves.columns


@pytest.mark.slow
@given(st.binary(max_size=80) | st.text('step,reward\n"0123.-e ', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_with_a_typed_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "log.csv"
    path.write_bytes(content)
    try:
        curves = read_curves(path)
    except NanoGRPOError as error:
        assert str(error)
    else:
        assert curves.steps and curves.columns
