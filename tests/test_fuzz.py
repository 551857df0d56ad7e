"""Whatever is given, it works and the invariants hold, or it is an error of this package; nothing is mended.

Configs, training with configs, rows with reward functions, command lines, and the files of a run.
"""

import itertools
import json
import math
import os
import shutil
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from nanogrpo import grpo, ppo, pretrain, reward_model, sft
from nanogrpo.__main__ import main
from nanogrpo.checkpoint import load_tensors, save_model
from nanogrpo.commands import COMMANDS
from nanogrpo.data import alphabet
from nanogrpo.errors import NanoGRPOError
from nanogrpo.metrics import read_csv
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.options import BOUNDS, _kind
from nanogrpo.reward_model import Preference, RewardModel, save_reward_model
from nanogrpo.tasks import TASKS, Addition, Task
from nanogrpo.tokenizer import CharTokenizer

TEXT = "\n\n".join(f"{who}:\n{line}" for who in ("ANN", "BOB") for line in ("Good day.", "Well met."))
TEXT = (TEXT + "\n\n") * 5
OPTIONS = sorted(
    {kind for job in COMMANDS.values() for kind in (job.config_class, job.options_class)}
    | {pretrain.PretrainConfig, Addition},
    key=lambda kind: kind.__name__,
)
QUICK = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def many(count):
    """The number of examples in the slow tests."""
    return settings(max_examples=count, deadline=None, suppress_health_check=QUICK)


class Reverse(Task):
    name, tokenizer, max_new_tokens = "reverse", CharTokenizer("ab="), 4

    def split(self):
        words = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab", repeat=n)]
        rows = [{"prompt": f"{word}=", "answer": word[::-1]} for word in words]
        return rows[::2], rows[1::2]


def tiny(tokenizer, seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(tokenizer.vocab_size, 64, n_layer=1, n_head=1, n_embd=4))


# Configs

odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400),
    st.complex_numbers(),
    st.lists(st.floats() | st.integers() | st.text(max_size=2), max_size=3),
    st.sampled_from([np.float64("nan"), np.int64(3), np.float32(0.5), np.bool_(True), torch.tensor(1.0)]),
    st.sampled_from([{}, b"1"]),
)  # fmt: skip


def likely(kind, optional, many_values, declared):
    """Values of a field that are mostly right, with its bounds among them."""
    edges = list(declared.metadata["range"].values())
    if kind is bool:
        values = st.booleans()
    elif kind is int:
        values = st.integers(0, 9) | st.sampled_from([int(e) + d for e in edges for d in (-1, 0, 1)] or [1])
    elif kind is float:
        values = st.floats(0, 3) | st.sampled_from([e + d for e in edges for d in (-0.5, 0.0, 0.5)] or [1.0])
    elif kind is str:
        values = st.sampled_from(["addition", "lines", "judge", "exact", ""])
    else:
        values = st.sampled_from(kind.__args__)
    values = st.lists(values, max_size=3).map(tuple) if many_values else values
    return values | st.none() if optional else values


@st.composite
def options(draw: DrawFn, kind, strange=odd):
    """Values for some fields of a class of options."""
    hints, chosen = get_type_hints(kind), {}
    for field in fields(kind):
        if draw(st.integers(0, 3)) == 0 or field.name in ("max_new_tokens", "model", "target", "reward"):
            value = likely(*[_kind(hints[field.name])[i] for i in (0, 2, 1)], field)
            chosen[field.name] = draw(value | strange if draw(st.integers(0, 5)) == 0 else value)
    return chosen


def assert_in_range(made):
    hints = get_type_hints(type(made))
    for field in fields(made):
        kind, several, optional = _kind(hints[field.name])
        value = getattr(made, field.name)
        if value is None:
            assert optional
            continue
        for one in value if several else [value]:
            assert type(one) is kind if kind in (bool, int, float, str) else one in kind.__args__
            assert kind is not float or math.isfinite(one)
            for word, bound in field.metadata["range"].items():
                assert BOUNDS[word](one, bound), (field.name, one)


def check_options(data):
    kind = data.draw(st.sampled_from(OPTIONS))
    values = data.draw(options(kind))
    try:
        made = kind(**values)
    except NanoGRPOError:
        return
    assert_in_range(made)
    for name, value in values.items():
        stored = getattr(made, name)
        assert stored == (tuple(value) if isinstance(value, list) else value), "a value was mended in silence"
    assert kind.of(json.loads(json.dumps(asdict(made)))) == made


@given(st.data())
def test_options_are_taken_as_they_are_or_refused(data):
    check_options(data)


@pytest.mark.slow
@many(1500)
@given(st.data())
def test_options_are_taken_as_they_are_or_refused_often(data):
    check_options(data)


# Training

SMALL = {"max_steps": 2, "batch_size": 2, "group_size": 2, "prompts_per_step": 2, "max_new_tokens": 3}
ROWS = [{"prompt": "a"}, {"prompt": "b"}]
LEARN = {
    "sft": (sft.SFTConfig, lambda m, t, c: sft.train(m, t, [("a", "bb"), ("ab", "")], c)),
    "grpo": (grpo.GRPOConfig, lambda m, t, c: grpo.train(m, t, ROWS, count, c)),
    "ppo": (ppo.PPOConfig, lambda m, t, c: ppo.train(m, t, ROWS, count, c)),
    "pretrain": (pretrain.PretrainConfig, lambda m, t, c: pretrain.train(m, torch.arange(99) % 5, c)),
    "rm": (
        reward_model.RewardModelConfig,
        lambda m, t, c: reward_model.train(RewardModel(m, t), [Preference("a", "b", "ab")], c),
    ),
}  # fmt: skip


def count(prompts, completions, **columns):
    return [text.count("a") for text in completions]


def check_training(data):
    config_class, train = LEARN[data.draw(st.sampled_from(list(LEARN)))]
    names = {field.name for field in fields(config_class)}
    values = data.draw(options(config_class, st.sampled_from([1e-30, 1e8, 1e20])))
    values |= {name: value for name, value in SMALL.items() if name in names}
    if data.draw(st.booleans()) and "learning_rate" in names:
        values["learning_rate"] = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 1e6, 1e15, 1e30]))
    tokenizer = CharTokenizer("ab=")
    model = tiny(tokenizer)
    try:
        rows = list(train(model, tokenizer, config_class(**values)))
    except NanoGRPOError:
        return
    assert [row["step"] for row in rows] == [1, 2]
    assert all(p.isfinite().all() for p in model.parameters())
    for row in rows:
        assert all(math.isfinite(v) or name == "explained_variance" for name, v in row.items()), row


@given(st.data())
@settings(max_examples=15)
def test_training_gives_finite_numbers_or_an_error(data):
    check_training(data)


@pytest.mark.slow
@many(300)
@given(st.data())
def test_training_gives_finite_numbers_or_an_error_often(data):
    check_training(data)


# Command lines


@pytest.fixture
def place(monkeypatch):
    """A place to work in, with models; each example has a copy."""
    monkeypatch.setitem(TASKS, "reverse", Reverse())
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: TEXT)
    monkeypatch.setattr("nanogrpo.job.new_policy", lambda task, seed, device: tiny(task.tokenizer, 1))
    monkeypatch.setattr("nanogrpo.demo.save_plot", lambda *_, **__: None)
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            lines = alphabet(TEXT)
            save_model("start/model.safetensors", tiny(Reverse.tokenizer), Reverse.tokenizer)
            save_model("lines/model.safetensors", tiny(lines), lines)
            save_reward_model("rm/model.safetensors", RewardModel(tiny(lines), lines))
            Path("file").write_text("mine")
            yield Path(folder)
        finally:
            os.chdir(before)


NUMBERS = ["0", "1", "2", "3", "-1", "0.5", "1e-3", "nan", "inf", "none", "x", "", "1e400", "9" * 30]
WORDS = [
    "start",
    "lines",
    "rm",
    "file",
    "none",
    "addition",
    "reverse",
    "judge",
    "exact",
    "run",
    ".",
    "",
    "new",
    "a\0b",
]
BASE = {
    "sft": ["--task", "reverse", "--batch-size", "2"],
    "rm": ["--model", "lines", "--pairs", "3", "--batch-size", "2"],
    "grpo": ["--task", "reverse", "--model", "start", "--prompts-per-step", "2", "--group-size", "2"],
    "ppo": ["--task", "reverse", "--model", "start", "--prompts-per-step", "2", "--group-size", "2"],
    "demo": ["--task", "reverse", "--steps", "1"], "plot": ["run"],
}  # fmt: skip


def flags(command):
    kinds = [COMMANDS[command].config_class, COMMANDS[command].options_class] if command in COMMANDS else []
    names = [
        f.name for kind in kinds for f in fields(kind) if f.name not in ("max_steps", "batch_size", "pairs")
    ]
    return [f"--{name.replace('_', '-')}" for name in names] or ["--task", "--seed", "--x", "--metric"]


@st.composite
def command_lines(draw: DrawFn):
    command = draw(st.sampled_from(list(BASE)))
    argv = [
        command,
        *BASE[command],
        "--out",
        draw(st.sampled_from(["run", "run", "run", "other", "file", "a/b"])),
    ]
    if command in COMMANDS:
        argv += ["--max-steps", draw(st.sampled_from(["0", "1", "2"]))]
    if command != "plot":
        argv += ["--device", draw(st.sampled_from(["cpu", "cpu", "cpu", "cpu", "auto", "tpu", "cuda:7"]))]
        argv += draw(st.sampled_from([[], [], ["--resume"], ["--overwrite"], ["--resume", "--overwrite"]]))
    for _ in range(draw(st.integers(0, 2))):
        flag = draw(st.sampled_from(flags(command)))
        argv += [flag, *draw(st.lists(st.sampled_from(NUMBERS + WORDS), max_size=2))]
    return argv


def outcome(argv):
    """The exit status of a command and what it said; any exception but SystemExit is a failure."""
    try:
        main(list(argv))
    except SystemExit as end:
        if isinstance(end.code, str):
            assert end.code.startswith("error: "), end.code
            return 1
        assert end.code in (0, 2), end.code
        return end.code
    return 0


def assert_whole(folder):
    """A folder with a checkpoint belongs together; nothing is left unfinished."""
    names = sorted(os.listdir(folder))
    assert not [name for name in names if name.endswith(".part") or name == ".lock"], names
    if "checkpoint.safetensors" in names:
        step = int(load_tensors(folder / "checkpoint.safetensors")[0]["state.step"])
        settings_ = json.loads((folder / "config.json").read_text())
        assert step <= settings_["max_steps"] and set(settings_["inputs"])
        if step:
            assert read_csv(folder / "metrics.csv")["step"] == list(range(1, step + 1))


def check_command_line(place, lines):
    for name in ("run", "other", "a"):
        shutil.rmtree(place / name, ignore_errors=True)
    for argv in lines:
        status = outcome(argv)
        for folder in (place / "run", place / "other", place / "a" / "b", place / "run" / "sft"):
            if folder.is_dir():
                assert_whole(folder)
        if status == 0 and argv[0] in COMMANDS and "--out" in argv:
            out = Path([value for flag, value in zip(argv, argv[1:], strict=False) if flag == "--out"][-1])
            assert (out / "model.safetensors").exists(), argv
    assert Path("file").read_text() == "mine" and os.listdir("start") == ["model.safetensors"]


@given(st.lists(command_lines(), min_size=1, max_size=3))
@settings(suppress_health_check=QUICK, max_examples=15)
def test_a_command_line_works_or_is_refused(place, lines):
    check_command_line(place, lines)


@pytest.mark.slow
@many(600)
@given(st.lists(command_lines(), min_size=1, max_size=3))
def test_a_command_line_works_or_is_refused_often(place, lines):
    check_command_line(place, lines)


# The files of a run


@st.composite
def damages(draw: DrawFn):
    """A file of a run, and what becomes of its bytes."""
    name = draw(
        st.sampled_from(["config.json", "metrics.csv", "checkpoint.safetensors", "pairs.json", ".lock"])
    )
    how = draw(st.sampled_from(["cut", "byte", "insert", "append", "swap", "all"]))
    return name, how, draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=4))


def damaged(content, how, where, data):
    # In a checkpoint only the index is hit: weights are numbers, and another number is a number, too.
    at = int(where * min(len(content), 2000))
    return {
        "cut": content[:at], "byte": content[:at] + data[:1] + content[at + 1 :], "all": data,
        "insert": content[:at] + data + content[at:], "append": content + data,
        "swap": content[at:] + content[:at],
    }[how]  # fmt: skip


def check_damage(place, command, hits):
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree(f"good-{command}", "run")
    for name, *how in hits:
        path = Path("run") / name
        path.write_bytes(damaged(path.read_bytes() if path.exists() else b"", *how))
    status = outcome([command, "--resume", "--out", "run", "--device", "cpu"])
    if status == 0:
        assert_whole(Path("run"))
    else:
        assert status == 1 and not [n for n in os.listdir("run") if n.endswith(".part")]


def good(command):
    if not os.path.exists(f"good-{command}"):
        main([command, *BASE[command], "--max-steps", "2", "--device", "cpu", "--out", f"good-{command}"])


@given(st.sampled_from(["grpo", "rm"]), st.lists(damages(), min_size=1, max_size=2))
@settings(suppress_health_check=QUICK, max_examples=25)
def test_a_damaged_run_goes_on_or_is_refused(place, command, hits):
    good(command)
    check_damage(place, command, hits)


@pytest.mark.slow
@many(600)
@given(st.sampled_from(["grpo", "rm"]), st.lists(damages(), min_size=1, max_size=2))
def test_a_damaged_run_goes_on_or_is_refused_often(place, command, hits):
    good(command)
    check_damage(place, command, hits)
