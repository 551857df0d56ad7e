"""The command line, run as a reader runs it."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from nanogrpo import plays, weights
from nanogrpo.__main__ import main, parser
from nanogrpo.checkpoint import load_model, save_model
from nanogrpo.data import alphabet
from nanogrpo.grpo import GRPOConfig
from nanogrpo.metrics import read_csv
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.ppo import PPOConfig
from nanogrpo.recipes import new_policy
from nanogrpo.reward_model import load_reward_model
from nanogrpo.tasks import Addition

TEXT = "\n\n".join(f"{who}:\n{line}" for who in ("ANN", "BOB") for line in ("Good day.", "Well met, sir."))
TEXT = (TEXT + "\n\n") * 10
TINY = ["--max-steps", "2", "--device", "cpu"]
TINY_RL = [*TINY, "--prompts-per-step", "4", "--group-size", "4"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, a policy for addition, one for lines, and a small text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: TEXT)
    save_model("add/model.safetensors", new_policy(Addition(), 0), Addition().tokenizer)
    tokenizer = alphabet(TEXT)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, block_size=64, n_layer=1, n_head=1, n_embd=8))
    save_model("lines/model.safetensors", model, tokenizer)
    return tmp_path


@pytest.mark.slow
def test_demo_writes_log_plot_weights_and_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nanogrpo.commands.sft_until", lambda *_, **__: iter([{"step": 1, "accuracy": 0.0}]))
    main(["demo", "--out", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"])
    assert read_csv(tmp_path / "run" / "metrics.csv")["step"] == [1, 2]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_steps"] == 2
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert load_model(tmp_path / "run" / "model.safetensors")[0].num_parameters > 4e5
    printed = capsys.readouterr().out
    assert "after SFT" in printed and "pass@16" in printed and "60+44=" not in printed
    assert (tmp_path / "run" / "samples.txt").read_text().strip() in printed


def test_alone_it_prints_its_help_and_every_command(capsys):
    assert not main([])
    said = capsys.readouterr()
    commands = ("sft", "rm", "grpo", "ppo", "demo", "plot", "doctor")
    assert said.out.startswith("usage: python -m nanogrpo") and not said.err
    assert all(f"\n    {name} " in said.out for name in commands), said.out


def test_plot_draws_any_metric_of_several_logs(tmp_path):
    for name in ("grpo", "ppo"):
        (tmp_path / f"{name}.csv").write_text("step,kl\n1,0.5\n2,0.25\n")
    main(
        [
            "plot",
            "--metric",
            "kl",
            str(tmp_path / "grpo.csv"),
            str(tmp_path / "ppo.csv"),
            "--out",
            str(tmp_path / "p.png"),
        ]
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plot", "none.csv"], "error: cannot read the log none.csv"),
        (["demo", "--out", "/dev/null/run"], "error: cannot write to /dev/null/run: /dev/null is no folder"),
    ],
)
def test_a_known_error_is_one_line_and_a_failing_exit(argv, message, tmp_path):
    command = [sys.executable, "-m", "nanogrpo", *argv]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.startswith(message), result.stderr
    assert result.stderr.count("\n") == 1, "an error is one line"
    assert not list(tmp_path.iterdir()), "a command that fails at once must leave nothing behind"


def test_a_metric_that_is_not_there_is_named_with_those_that_are(tmp_path):
    (tmp_path / "a.csv").write_text("step,kl\n1,0.5\n")
    with pytest.raises(SystemExit, match="a has no metric 'reward'; it has step, kl"):
        main(["plot", str(tmp_path / "a.csv")])


def test_plot_takes_folders_and_names_each_run(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("nanogrpo.demo.save_plot", lambda runs, *_, **__: seen.update(runs))
    paths = [tmp_path / name / "metrics.csv" for name in ("grpo", "a/ppo", "b/ppo")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("step,reward\n1,0.5\n")
    main(["plot", str(paths[0].parent), str(paths[1]), str(paths[2].parent)])
    assert list(seen) == ["grpo", str(paths[1]), str(paths[2])], "two runs of one name must stay apart"


def test_a_plot_explains_itself(tmp_path):
    from nanogrpo.show.plotting import describe_runs, plot_runs

    runs = {"grpo": {"step": [1, 2], "kl": [0.0, 0.5]}, "ppo": {"step": [1], "kl": [0.25]}}
    figure = describe_runs(plot_runs(runs, ["kl"]), runs, "kl")
    words = [figure.get_suptitle(), *(text.get_text() for text in figure.texts)]
    words = " ".join(" ".join(words).split())
    assert "KL to the reference (nats per token), by training step" in words
    assert "mean of the last 10 steps" in words and "grpo: 2 steps, ppo: 1 steps" in words


# Trainers


@pytest.mark.parametrize(("name", "config_class"), [("grpo", GRPOConfig), ("ppo", PPOConfig)])
def test_each_option_of_a_config_is_an_option_of_the_command_and_explained(name, config_class, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for field in fields(config_class):
        assert f"--{field.name.replace('_', '-')}" in printed
        assert field.metadata["help"].split(":")[0].split("`")[0] in printed, field.name
    assert ":func:" not in printed and "``" not in printed, "markup in the help"
    values = vars(parser().parse_args([name]))
    assert not {field.name for field in fields(config_class)} & values.keys(), "only what is given is set"


def test_options_have_the_types_of_their_fields():
    args = parser().parse_args(
        "grpo --beta 0.5 --reward-weights 1 0.5 --kl-estimator none --mask-truncated-completions".split()
    )
    assert (args.beta, args.reward_weights) == (0.5, [1.0, 0.5])
    assert args.mask_truncated_completions is True and args.kl_estimator is None
    assert parser().parse_args(["ppo", "--cliprange-value", "none"]).cliprange_value is None
    assert parser().parse_args(["ppo", "--cliprange-value", "0.3"]).cliprange_value == 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_trainer_leaves_config_log_and_weights(here, name, capsys):
    main([name, "--model", "addition", "--out", "run", "--seed", "3", "--beta", "0.1", *TINY_RL])
    settings = json.loads((here / "run" / "config.json").read_text())
    assert settings["command"] == name and settings["seed"] == 3 and settings["max_new_tokens"] == 4
    assert settings["model"] == "addition" and settings["reward"] == ["exact"] and settings["group_size"] == 4
    log = read_csv(here / "run" / "metrics.csv")
    assert log["step"] == [1, 2] and "kl" in log and "advantage_abs_mean" in log
    start, trained = weights.load("addition")[0], load_model(here / "run" / "model.safetensors")[0]
    assert not all(torch.equal(a, b) for a, b in zip(start.parameters(), trained.parameters(), strict=True))
    assert "of the answers to 1500 held-out problems are right" in capsys.readouterr().out


def test_sft_stops_at_its_target(here, monkeypatch):
    monkeypatch.setattr("nanogrpo.recipes.measure", lambda *_: {"accuracy": 0.5})
    main(["sft", "--target", "0.4", "--batch-size", "2", "--device", "cpu"])
    assert read_csv(here / "runs/sft/metrics.csv")["step"][-1] == 10, (
        "measured every ten steps, right at the first"
    )
    main(["sft", "--resume", "--device", "cpu"])
    assert read_csv(here / "runs/sft/metrics.csv")["step"][-1] == 10, "a run at its target must not go on"


def test_from_lines_to_a_reward_model_to_a_policy(here):
    main(["sft", "--task", "lines", "--model", "lines", "--batch-size", "4", *TINY])
    main(["rm", "--pairs", "12", "--batch-size", "4", *TINY])
    assert load_reward_model("runs/rm/model.safetensors").score(["ANN:\n"], ["Good day."])
    assert len(json.loads(Path("runs/rm/pairs.json").read_text())) == 12
    main(["grpo", "--task", "lines", "--reward", "runs/rm", "judge", "--reward-weights", "1", "0", *TINY_RL])
    log = read_csv("runs/grpo-lines/metrics.csv")
    assert log["reward"] == log["rewards/rm/mean"] and len(log["rewards/judge/mean"]) == 2
    assert (
        json.loads(Path("runs/grpo-lines/config.json").read_text())["max_new_tokens"] == plays.MAX_NEW_TOKENS
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["grpo"],
            "no model runs/sft/model.safetensors; make one by `python -m nanogrpo sft --out runs/sft`",
        ),
        (["ppo", "--group-size", "0"], "group_size=0 must be at least 1"),
        (["grpo", "--model", "lines"], "the model reads the alphabet .*choose another --model or --task"),
        (["grpo", "--model", "add", "--reward", "judge"], "--reward judge does not go with --task addition"),
        (
            ["grpo", "--task", "lines", "--model", "lines"],
            "no reward model runs/rm/model.safetensors; make one by",
        ),
        (["grpo", "--task", "lines"], "`python -m nanogrpo sft --task lines --out runs/sft-lines`"),
        (["grpo", "--model", "add", "--reward", "add"], "holds no reward model"),
        (["grpo", "--model", "add", "--device", "tpu"], "--device tpu is not to be had here"),
        (["grpo", "--model", "add", "--save-every", "0"], "save_every=0 must be at least 1"),
        (["grpo", "--model", "add", "--kl-in", "both"], "kl_in='both' is unknown"),
    ],
)
def test_what_does_not_go_together_is_said_before_a_folder_is_made(here, argv, message):
    with pytest.raises(SystemExit, match=message):
        main(argv)
    assert sorted(os.listdir(here)) == ["add", "lines"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "demo"])
def test_two_dashes_are_no_value(command):
    done = subprocess.run(
        [sys.executable, "-m", "nanogrpo", command, "--out=--"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode and "Traceback" not in done.stderr and "--out" in done.stderr
