"""Commands and hostile hands: a third task, damaged folders, two processes, odd names, Ctrl-C, pipes."""

import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from nanogrpo import weights
from nanogrpo.__main__ import main
from nanogrpo.checkpoint import load_model, load_tensors, save_model, save_tensors
from nanogrpo.commands import COMMANDS
from nanogrpo.data import alphabet
from nanogrpo.errors import CheckpointError, NonFiniteError
from nanogrpo.metrics import read_csv
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.reward_model import RewardModel, load_reward_model, save_reward_model
from nanogrpo.tasks import TASKS, Task
from nanogrpo.tokenizer import CharTokenizer

TEXT = "\n\n".join(f"{who}:\n{line}" for who in ("ANN", "BOB") for line in ("Good day.", "Well met."))
TEXT = (TEXT + "\n\n") * 5
STEPS = ["--max-steps", "2", "--device", "cpu"]
RL = [*STEPS, "--prompts-per-step", "2", "--group-size", "2"]
GRPO = ["grpo", "--task", "reverse", "--model", "start", *RL, "--out", "run"]


class Reverse(Task):
    """A third task: write a word from its end to its beginning."""

    name, tokenizer, max_new_tokens = "reverse", CharTokenizer("ab="), 4

    def split(self):
        words = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab", repeat=n)]
        rows = [{"prompt": f"{word}=", "answer": word[::-1]} for word in words]
        return rows[::2], rows[1::2]


def tiny(tokenizer, seed=0, block_size=64):
    torch.manual_seed(seed)
    return GPT(GPTConfig(tokenizer.vocab_size, block_size, n_layer=1, n_head=1, n_embd=4))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a policy for each task and two reward models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "reverse", Reverse())
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: TEXT)
    monkeypatch.setattr("nanogrpo.job.new_policy", lambda task, seed, device: tiny(task.tokenizer, seed))
    save_model("start/model.safetensors", tiny(Reverse.tokenizer), Reverse.tokenizer)
    lines = alphabet(TEXT)
    save_model("lines/model.safetensors", tiny(lines), lines)
    for seed in (1, 2):
        save_reward_model(f"rm{seed}/model.safetensors", RewardModel(tiny(lines, seed), lines))
    return tmp_path


def refused(argv, message):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert isinstance(end.value.code, str) and re.search(message, end.value.code), end.value.code


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}


# A third task


def test_a_third_task_works_in_every_command(capsys):
    main(["sft", "--task", "reverse", *STEPS, "--batch-size", "2"])
    assert load_model("runs/sft-reverse/model.safetensors")[1].chars == "ab="
    for command in ("grpo", "ppo"):
        main([command, "--task", "reverse", *RL])
        settings = json.loads(Path(f"runs/{command}-reverse/config.json").read_text())
        assert settings["task"] == "reverse" and settings["reward"] == ["exact"]
        assert settings["model"] == "runs/sft-reverse" and settings["max_new_tokens"] == 4
        assert read_csv(f"runs/{command}-reverse/metrics.csv")["step"] == [1, 2]
    assert capsys.readouterr().out.count("of the answers to 4 held-out problems are right") == 3
    refused(
        ["rm", "--task", "reverse", "--model", "start"], "task reverse has a rule and needs no reward model"
    )
    refused(["grpo", "--task", "reverse", "--model", "lines", "--out", "x"], "the model reads the alphabet")
    own = ["grpo", "--task", "reverse", "--model", "start", "--out", "x", "--reward"]
    refused([*own, "rm1"], "the reward reads the alphabet")
    refused([*own, "judge"], "whose rules are exact")


def test_the_trained_task_is_the_one_that_was_named(monkeypatch):
    seen = []
    rule = Reverse().rules["exact"]
    spy = lambda **columns: seen.extend(columns["prompts"]) or rule(**columns)  # noqa: E731
    monkeypatch.setattr(Reverse, "rules", {"exact": spy})
    main(GRPO)
    assert set(seen) <= {row["prompt"] for part in Reverse().split() for row in part}


@pytest.mark.parametrize("name", ["Reverse", "", "tinyshakespeare", "plays", "addition ", "\udcff", "a\nb"])
def test_an_unknown_task_is_refused(name):
    for command in [*COMMANDS, "demo"]:
        refused([command, "--task", name], "choose one of addition, lines, reverse")
    assert not os.path.exists("runs")


def test_demo_of_a_third_task(monkeypatch, capsys):
    monkeypatch.setattr(Reverse, "sft_options", {"max_steps": 3, "batch_size": 2})
    argv = ["demo", "--task", "reverse", "--steps", "2", "--device", "cpu", "--out", "d"]
    main(argv)
    table = capsys.readouterr().out
    assert "after GRPO" in table and "pass@16" in table and Path("d/samples.txt").read_text().strip() in table
    assert Path("d/curves.png").read_bytes().startswith(b"\x89PNG")
    before = contents("d")
    refused(argv, "d holds a run already; go on with it by --resume, replace it by --overwrite")
    assert contents("d") == before
    main([*argv[:3], "--device", "cpu", "--out", "d", "--steps", "2", "--resume"])
    assert {n: b for n, b in contents("d").items() if n != "curves.png"} == {
        n: b for n, b in before.items() if n != "curves.png"
    }
    main([*argv, "--overwrite", "--seed", "1"])
    assert contents("d")["metrics.csv"] != before["metrics.csv"]


def test_a_demo_without_a_step_is_refused_before_any_work():
    """It would train for half a minute, and then have no curve to draw."""
    refused(["demo", "--task", "reverse", "--steps", "0", "--out", "d"], "steps=0 must be at least 1")
    assert not os.path.exists("d")


def test_demo_prints_its_table_without_a_plotting_library(monkeypatch, capsys):
    monkeypatch.setattr(Reverse, "sft_options", {"max_steps": 1, "batch_size": 2})
    monkeypatch.setitem(sys.modules, "nanogrpo.show.plotting", None)
    refused(["demo", "--task", "reverse", "--steps", "1", "--out", "d"], "drawing needs matplotlib")
    assert "after GRPO" in capsys.readouterr().out and os.path.exists("d/samples.txt")


def test_demo_of_lines():
    save_model("tinyshakespeare/model.safetensors", tiny(alphabet(TEXT)), alphabet(TEXT))
    TASKS["lines"].__class__.sft_options, before = (
        {"max_steps": 1, "batch_size": 2},
        TASKS["lines"].sft_options,
    )
    try:
        main(["demo", "--task", "lines", "--steps", "1", "--device", "cpu", "--out", "d"])
    finally:
        TASKS["lines"].__class__.sft_options = before
    assert re.search(r"judge +-?\d+\.\d\d +-?\d+\.\d\d", Path("d/samples.txt").read_text())


# Rewards


def test_several_reward_models_have_names_of_their_own():
    lines = ["grpo", "--task", "lines", "--model", "lines", *RL]
    main([*lines, "--reward", "rm1", "rm2", "judge", "--out", "three"])
    log = read_csv("three/metrics.csv")
    assert [n for n in log if n.startswith("rewards/")] == [
        f"rewards/{n}/mean" for n in ("rm1", "rm2", "judge")
    ]
    for rm in ("a/rm", "b/rm"):
        save_reward_model(f"{rm}/model.safetensors", load_reward_model("rm1/model.safetensors"))
    main([*lines, "--reward", "a/rm", "b/rm", "--out", "two"])
    assert "rewards/a/rm/mean" in read_csv("two/metrics.csv")
    main([*lines, "--reward", "rm1/model.safetensors", "rm2", "--out", "file"])
    assert "rewards/rm1/mean" in read_csv("file/metrics.csv")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (["rm1", "rm1"], "twice"),
        (["rm1", "./rm1/"], "twice"),
        (["judge", "judge"], "twice"),
        (["rm1", "--reward-weights", "1", "2"], "2 reward_weights for 1 reward"),
        (["rm1", "rm2", "--reward-weights", "1"], "1 reward_weights for 2 reward"),
        (["lines"], "holds no reward model"),
        (["exact"], "--reward exact does not go with --task lines"),
        (["tinyshakespeare"], "holds no reward model"),
        (["tinyshakespeare-reward"], "the reward reads the alphabet"),  # here the corpus is another
        (["rm1\0"], "no reward model"),
        ([""], "no reward model"),
    ],
)
def test_rewards_that_do_not_fit_are_refused_and_leave_nothing(reward, message):
    refused(
        ["grpo", "--task", "lines", "--model", "lines", *RL, "--reward", *reward, "--out", "run"], message
    )
    assert not os.path.exists("run")


def test_what_ships_is_offered_where_it_fits(capsys):
    with pytest.raises(SystemExit):
        main(["grpo", "--help"])
    words = "".join(capsys.readouterr().out.split())  # argparse breaks lines within names
    assert "weightsthatship:addition,tinyshakespeare,tinyshakespeare-lines." in words
    assert "oronethatships:tinyshakespeare-reward;" in words
    assert weights.names("reward model") == ["tinyshakespeare-reward"]
    refused(["grpo", "--model", "none"], "come: addition, tinyshakespeare, tinyshakespeare-lines\\)")
    refused(["grpo", "--model", "tinyshakespeare-reward"], "holds a reward model, not a policy")
    refused(
        ["grpo", "--model", "start", "--task", "reverse", "--reward", "x"], "come: tinyshakespeare-reward\\)"
    )


# What a run was started with


def test_an_input_that_was_replaced_is_named_on_resume(capsys):
    argv = ["grpo", "--task", "lines", "--model", "lines", *RL, "--reward", "rm1", "--out", "run"]
    main(argv)
    inputs = json.loads(Path("run/config.json").read_text())["inputs"]
    assert set(inputs) == {"model lines", "task lines", "reward rm1"} and all(
        len(h) == 64 for h in inputs.values()
    )
    again = ["grpo", "--resume", "--out", "run", "--device", "cpu", "--max-steps", "3"]
    before, good = contents("run"), Path("rm1/model.safetensors").read_bytes()
    save_reward_model("rm1/model.safetensors", load_reward_model("rm2/model.safetensors"))
    refused(again, "reward rm1 is not what run was started with: its sha256 was")
    Path("rm1/model.safetensors").unlink()
    refused(again, "there is no reward model rm1")
    assert contents("run") == before
    Path("rm1/model.safetensors").write_bytes(good)
    save_model("lines/model.safetensors", tiny(alphabet(TEXT), seed=9), alphabet(TEXT))
    main(again)
    assert "model lines has changed since; run goes on from its own checkpoint" in capsys.readouterr().err


def test_another_corpus_or_task_is_named_on_resume(monkeypatch):
    argv = ["grpo", "--task", "lines", "--model", "lines", *RL, "--reward", "rm1"]
    main([*argv, "--out", "run"])
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: TEXT.replace("Good day", "Good dad"))
    refused(["grpo", "--resume", "--out", "run"], "task lines is not what run was started with")
    main([*GRPO, "--out", "other"])
    split = Reverse().split()
    monkeypatch.setattr(Reverse, "split", lambda self: (split[0][1:], split[1]))
    refused(["grpo", "--resume", "--out", "other"], "task reverse is not what other was started with")


@pytest.mark.parametrize(
    "damage", ["[", "[]", '[["a"]]', '[["a", "b", "b"]]', '[["A:", "b", "c"]]', "missing", "{}"]
)
def test_pairs_that_changed_are_named_on_resume(damage):
    main(["rm", *STEPS, "--batch-size", "2", "--pairs", "3", "--model", "lines", "--out", "run"])
    path = Path("run/pairs.json")
    path.unlink() if damage == "missing" else path.write_text(damage)
    refused(["rm", "--resume", "--out", "run"], "pairs.json")


# A config.json that is damaged or was edited

DAMAGES = {
    "empty": "", "no JSON": "{", "a list": "[]", "null": "null", "a number": "3", "a text": '"x"',
    "NaN": '{"seed": NaN}', "infinity": '{"seed": -Infinity}', "deep": "[" * 100_000, "a BOM": "\ufeff{}",
    "nothing": "{}",
}  # fmt: skip
EDITS = [
    {"seed": "0"}, {"seed": None}, {"seed": []}, {"seed": {}}, {"seed": -1}, {"seed": 1.5}, {"seed": True},
    {"seed": 10**400}, {"learning_rate": "fast"}, {"learning_rate": [1]}, {"learning_rate": -1},
    {"group_size": 0}, {"group_size": 2.5}, {"reward": []}, {"reward": "exact"}, {"reward": [1]},
    {"reward": None}, {"reward": {"exact": 1}}, {"reward": ["none"]}, {"reward_weights": [1, 2]},
    {"reward_weights": "1"}, {"task": "none"}, {"task": 1}, {"task": None}, {"task": ["reverse"]},
    {"model": None}, {"model": 1}, {"save_every": 0}, {"save_every": "50"}, {"command": None},
    {"command": "ppo"}, {"command": []}, {"inputs": []}, {"inputs": {"task reverse": 3}}, {"inputs": "x"},
    {"inputs": {"task reverse": "0" * 64}}, {"inputs": 3}, {"max_steps": 1}, {"max_steps": -1},
    {"max_steps": "9"}, {"baseline": "mean"}, {"baseline": None}, {"unknown": 1},
]  # fmt: skip


@pytest.fixture
def finished():
    main(GRPO)
    return json.loads(Path("run/config.json").read_text())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_is_a_typed_error(finished, damage):
    Path("run/config.json").write_text(DAMAGES[damage], encoding="utf-8")
    before = contents("run")
    refused(["grpo", "--resume", "--out", "run"], "error: cannot resume run: .*config.json")
    assert contents("run") == before


@pytest.mark.parametrize("content", [b"\xff\xfe{\0}\0", b"\x80", b"\0" * 10])
def test_a_config_that_is_no_text_is_a_typed_error(finished, content):
    Path("run/config.json").write_bytes(content)
    refused(["grpo", "--resume", "--out", "run"], "error: cannot resume run: no readable config.json")


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edited_config_is_a_typed_error(finished, edit):
    Path("run/config.json").write_text(json.dumps(finished | edit))
    before = contents("run")
    refused(["grpo", "--resume", "--out", "run", "--device", "cpu"], "^error: ")
    assert contents("run") == before


@pytest.mark.parametrize(
    "edit",
    [
        {"learning_rate": 0.5}, {"seed": 7}, {"temperature": 2.0}, {"group_size": 8}, {"model": "elsewhere"},
        {"reward_weights": [2.0]}, {"std_eps": 0.0}, {"clip_high": 0.3},
    ],
    ids=str,
)  # fmt: skip
def test_an_edit_that_would_be_a_fine_start_does_not_change_a_run_under_way(finished, edit):
    [(name, value)] = edit.items()
    Path("run/config.json").write_text(json.dumps(finished | edit))
    before = contents("run")
    refused(["grpo", "--resume", "--out", "run", "--device", "cpu", "--max-steps", "3"], f"{name}=")
    assert contents("run") == before


def test_the_checkpoint_of_another_run_is_not_taken_up(finished):
    main([*GRPO, "--out", "other", "--seed", "5"])
    Path("run/checkpoint.safetensors").write_bytes(Path("other/checkpoint.safetensors").read_bytes())
    refused(["grpo", "--resume", "--out", "run", "--device", "cpu", "--max-steps", "3"], "seed=0")


@pytest.mark.parametrize("how", ["of another run", "edited"])
def test_a_log_that_did_not_lead_to_the_checkpoint_is_not_taken_up(finished, how):
    main([*GRPO, "--out", "other", "--seed", "5"])
    log = Path("run/metrics.csv")
    rows = log.read_text().splitlines(keepends=True)
    edited = "".join([*rows[:-1], rows[-1].replace(",", ",0.0", 1)])
    log.write_text(edited if how == "edited" else Path("other/metrics.csv").read_text())
    before = contents("run")
    refused(
        ["grpo", "--resume", "--out", "run", "--device", "cpu", "--max-steps", "3"], "led to its checkpoint"
    )
    assert contents("run") == before


def test_a_run_does_not_replace_the_model_that_it_starts_from(finished):
    before = contents("run")
    refused([*GRPO, "--overwrite", "--model", "run"], "run.*choose another --out")
    refused([*GRPO, "--overwrite", "--model", "run/model.safetensors"], "run.*choose another --out")
    assert contents("run") == before


def test_each_missing_setting_is_named(finished):
    for name in finished.keys() - {"inputs"}:
        Path("run/config.json").write_text(json.dumps({k: v for k, v in finished.items() if k != name}))
        refused(["grpo", "--resume", "--out", "run"], f"cannot resume run: its config.json lacks {name};")


def test_a_folder_of_an_older_version_says_so_and_its_weights_start_a_run(finished):
    older = {k: v for k, v in finished.items() if k != "kl_estimator"} | {"kl": "k3"}
    Path("run/config.json").write_text(json.dumps(older))
    said = (
        "lacks kl_estimator and has kl; it is damaged, or of another version of nanogrpo. Weights of finished"
    )
    refused(["grpo", "--resume", "--out", "run"], said)
    main([*GRPO[:-1], "next", "--model", "run"])
    assert read_csv("next/metrics.csv")["step"] == [1, 2]


@pytest.mark.parametrize("left", [{}, {"inputs": {}}], ids=["none", "empty"])
def test_a_run_without_hashes_goes_on_and_says_so(finished, left, capsys):
    settings = {k: v for k, v in finished.items() if k != "inputs"} | left
    Path("run/config.json").write_text(json.dumps(settings))
    main(["grpo", "--resume", "--out", "run", "--device", "cpu", "--max-steps", "3"])
    assert "has no hashes of what it was started with" in capsys.readouterr().err
    assert read_csv("run/metrics.csv")["step"] == [1, 2, 3]


@pytest.mark.parametrize("name", ["config.json", "checkpoint.safetensors", "metrics.csv"])
@pytest.mark.parametrize("what", ["folder", "empty", "garbage", "half"])
def test_any_file_of_a_run_may_be_damaged(finished, name, what):
    path = Path("run") / name
    whole = path.read_bytes()
    path.unlink()
    if what == "folder":
        path.mkdir()
    else:
        path.write_bytes(
            {"empty": b"", "garbage": b"\x80\x04\xff" * 99, "half": whole[: len(whole) // 2]}[what]
        )
    refused(["grpo", "--resume", "--out", "run", "--device", "cpu"], "^error: ")


# Weights


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(bad, monkeypatch):
    path, model = Path("start/model.safetensors"), tiny(Reverse.tokenizer)
    good = path.read_bytes()
    with torch.no_grad():
        model.head.weight[0, 0] = bad
    with pytest.raises(
        NonFiniteError, match="head.weight holds a number that is not finite, and is not saved"
    ):
        save_model(path, model, Reverse.tokenizer)
    assert path.read_bytes() == good and os.listdir("start") == ["model.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr("nanogrpo.checkpoint.not_finite", lambda tensors: "")
        save_model(path, model, Reverse.tokenizer)
    with pytest.raises(CheckpointError, match="head.weight holds a number that is not finite"):
        load_model(path)


@pytest.mark.parametrize(
    "config",
    [
        "[]",
        "null",
        "{}",
        "x",
        '{"n_embd": "4"}',
        '{"n_layer": 1000000000}',
        '{"n_embd": 1000000}',
        '{"n_embd": -4}',
    ]
    + ['{"vocab_size": 9}', '{"block_size": 100000000}', '{"n_head": 3}', '{"n_layer": 1.5}', '{"depth": 3}'],
)
def test_a_header_that_says_something_else_is_a_checkpoint_error(config):
    tensors, header = load_tensors("start/model.safetensors")
    if config.startswith('{"'):
        config = json.dumps(json.loads(header["config"]) | json.loads(config))
    save_tensors("odd/model.safetensors", tensors, header | {"config": config})
    refused(["grpo", "--task", "reverse", "--model", "odd", *RL], "odd/model.safetensors")
    save_tensors("odd/model.safetensors", tensors, header | {"alphabet": "abcdefg"})
    refused(["grpo", "--task", "reverse", "--model", "odd", *RL], "odd/model.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="this system has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_allows(mask, mode):
    before = os.umask(mask)
    try:
        main(GRPO)
    finally:
        os.umask(before)
    assert {p.name: oct(stat.S_IMODE(p.stat().st_mode)) for p in Path("run").iterdir()} == dict.fromkeys(
        ["config.json", "metrics.csv", "checkpoint.safetensors", "model.safetensors"], oct(mode)
    )


# Options


@pytest.mark.parametrize(
    "given",
    ["--learning-rate nan", "--learning-rate inf", "--learning-rate -1", "--max-grad-norm -1", "--seed -1"]
    + ["--max-steps -1", "--group-size 1", "--save-every 0", "--save-every -5", "--beta nan", "--temperature 0"]
    + ["--num-mini-batches 9", "--max-new-tokens 0", "--max-new-tokens 1000", "--kl-in both", "--seed 9223372036854775808"]
    + ["--clip-low -1", "--model none", "--device tpu", "--device cuda:99", "--device cpu:x", "--reward-weights nan"],
)  # fmt: skip
def test_a_bad_option_leaves_no_folder_and_an_old_run_as_it_was(given):
    argv = ["grpo", "--task", "reverse", "--model", "start", *RL]
    refused([*argv, "--out", "a/b/run", *given.split()], "^error: ")
    assert not os.path.exists("a")
    main([*argv, "--out", "old"])
    before = contents("old")
    refused([*argv, "--out", "old", "--overwrite", *given.split()], "^error: ")
    assert contents("old") == before
    refused(["grpo", "--resume", "--out", "old", *given.split()], "^error: ")
    assert contents("old") == before


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "inf"])
def test_a_target_is_a_share(value):
    refused(["sft", "--task", "reverse", "--target", value], "target=.* must be")
    refused(["sft", "--task", "lines", "--model", "lines", "--target", "0.5"], "no answer to task lines")
    assert not os.path.exists("runs")


def test_without_a_target_all_steps_are_made():
    main(["sft", "--task", "reverse", *STEPS, "--target", "none", "--batch-size", "2", "--out", "run"])
    assert json.loads(Path("run/config.json").read_text())["target"] is None


@pytest.mark.parametrize(
    "argv",
    [
        ["grpo", "--ste", "3"],
        ["grpo", "--max-step", "3"],
        ["grpo", "--max-steps", "1.5"],
        ["grpo", "--max-steps"],
    ]
    + [
        ["fly"],
        ["grpo", "extra"],
        ["grpo", "--beta", "x"],
        ["plot"],
        ["grpo", "--seed", "9" * 5000],
        ["--steps"],
    ],
)
def test_what_argparse_refuses_has_its_message_and_status_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2 and "error: " in capsys.readouterr().err


def test_resume_and_overwrite_exclude_each_other():
    refused([*GRPO, "--resume", "--overwrite"], "give one of them")


# Places


@pytest.mark.parametrize(
    "out", ["", "\0", "a\0b", "file", "file/run", "/dev/null", "/dev/null/x", "x" * 300, "loop/x"]
)
def test_an_out_that_cannot_be_is_a_typed_error(out):
    Path("file").write_text("mine")
    os.symlink("loop", "loop")
    for command in (
        GRPO[:-2],
        ["sft", "--task", "reverse", *STEPS],
        ["demo", "--task", "reverse", "--steps", "1"],
    ):
        refused([*command, "--out", out], "^error: ")
        refused([command[0], "--out", out, "--resume"], "^error: ")
    assert Path("file").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    "out", ["ein Verzeichnis", "größer", "日本", "a\nb", "-x", "run.safetensors", os.fsdecode(b"\xff\xfe")]
)
def test_an_out_with_an_odd_name_works(out, capsys):
    main([*GRPO[:-2], f"--out={out}"])
    main(["grpo", "--resume", f"--out={out}", "--device", "cpu"])
    main(["plot", f"{'./' if out == '-x' else ''}{out}", "--out", "p.png"])
    assert read_csv(Path(out) / "metrics.csv")["step"] == [1, 2] and Path("p.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["größer", "a,b", 'a"b', "a\nb", os.fsdecode(b"\xff"), "-x", "a$b_c"])
def test_a_reward_model_with_an_odd_name_works(name):
    save_reward_model(Path(name) / "model.safetensors", load_reward_model("rm1/model.safetensors"))
    argv = [
        "grpo",
        "--task",
        "lines",
        "--model",
        "lines",
        *RL,
        "--out",
        "run",
        "--reward",
        "rm2",
        f"./{name}",
    ]
    main(argv)
    main(["grpo", "--resume", "--out", "run", "--max-steps", "3", "--device", "cpu"])
    assert len([n for n in read_csv("run/metrics.csv") if n.startswith("rewards/")]) == 2


@pytest.mark.parametrize(
    "model", ["", ".", "start", "file", "file.safetensors", "dir.safetensors", "pipe.safetensors"]
)
def test_a_model_that_is_none_is_a_typed_error(model):
    Path("file").write_text("x")
    Path("file.safetensors").write_text("no weights")
    Path("dir.safetensors").mkdir()
    os.mkfifo("pipe.safetensors")
    Path("start/model.safetensors").unlink()
    Path("start/model.safetensors").mkdir()
    refused(["grpo", "--task", "reverse", "--model", model, *RL, "--out", "run"], "^error: ")
    assert not os.path.exists("run")


@pytest.mark.parametrize("argv", [["plot", "log.csv", "--out", out] for out in ("none/p.png", "p.xyz", "dir", "/dev/null/p.png")]
                         + [["plot", "dir"], ["plot", "log.csv", "log.csv"], ["plot", "log.csv", "--metric", ""],
                            ["plot", "log.csv", "--x", "kl"], ["plot", ""], ["plot", "\0"]])  # fmt: skip
def test_plots_that_cannot_be_are_a_line(argv):
    Path("dir").mkdir()
    Path("log.csv").write_text("step,reward\n1,0.5\n2,0.5\n")
    if argv[-1] == "none/p.png":
        main(argv)  # the folder is made
        assert os.path.exists("none/p.png")
    else:
        refused(argv, "^error: ")


# Processes


def start(*argv, **how):
    code = f"""
        import itertools, sys
        import torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_commands as t
        t.TASKS["reverse"] = t.Reverse()
        from nanogrpo import job
        from nanogrpo.__main__ import main
        job.new_policy = lambda task, seed, device: t.tiny(task.tokenizer, seed)
        main(sys.argv[1:])
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *argv], preexec_fn=hear, **pipes)


def hear():
    """A shell in the background has its children ignore Ctrl-C; these listen."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(path, process):
    for _ in range(600):
        if os.path.exists(path):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} has not come")


LONG = [*GRPO[:-2], "--out", "long", "--max-steps", "1000000"]


@pytest.mark.slow
def test_a_second_process_is_refused_whatever_it_wants():
    process = start(*LONG)
    try:
        wait_for("long/metrics.csv", process)
        held = f"the run in long is held by process {process.pid}"
        refused(["grpo", "--resume", "--out", "long"], held)
        refused([*LONG, "--overwrite"], held)
        refused(LONG, held)
        refused(["demo", "--out", "long", "--overwrite"], held)
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "go on by `python -m nanogrpo grpo --resume --out long`" in said and "Traceback" not in said
    steps = read_csv("long/metrics.csv")["step"]
    assert steps == list(range(1, len(steps) + 1)), "one writer, so one row a step"
    main(["grpo", "--resume", "--out", "long", "--max-steps", str(len(steps) + 1), "--device", "cpu"])


@pytest.mark.slow
def test_the_lock_of_a_killed_run_is_taken_over(capsys):
    process = start(*LONG)
    wait_for("long/metrics.csv", process)
    process.kill()
    process.communicate()
    done = int(load_tensors("long/checkpoint.safetensors")[0]["state.step"])
    main(["grpo", "--resume", "--out", "long", "--max-steps", str(done + 1), "--device", "cpu"])
    assert f"process {process.pid}, which held the run in long, is gone" in capsys.readouterr().err
    assert sorted(os.listdir("long")) == [
        "checkpoint.safetensors",
        "config.json",
        "metrics.csv",
        "model.safetensors",
    ]


def test_ctrl_c_before_the_first_step_leaves_nothing_and_advises_nothing(monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("nanogrpo.commands.sample_pairs", stop)
    with pytest.raises(SystemExit) as end:
        main(["rm", "--model", "lines", *STEPS, "--out", "run"])
    assert end.value.code == 130 and capsys.readouterr().err == "\nstopped\n" and not os.path.exists("run")
    monkeypatch.setattr("nanogrpo.grpo.step", stop)
    with pytest.raises(SystemExit):
        main(GRPO)
    assert capsys.readouterr().err == "\nstopped\n" and not os.path.exists("run")


@pytest.mark.parametrize("where", ["nanogrpo.job.summary", "nanogrpo.job.save_model"])
def test_ctrl_c_at_the_end_can_be_resumed(where, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, stop)
        with pytest.raises(SystemExit):
            main(GRPO)
    assert "go on by `python -m nanogrpo grpo --resume --out run`" in capsys.readouterr().err
    main(["grpo", "--resume", "--out", "run", "--device", "cpu"])
    assert load_model("run/model.safetensors")


COMMAND = f"{sys.executable} -m nanogrpo"


@pytest.mark.skipif(os.name == "nt", reason="these are lines for a Unix shell")
@pytest.mark.slow  # a process each
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"{COMMAND} --help | head -1; exit ${{PIPESTATUS[0]}}", (0, 1)),
        (f"{COMMAND} grpo --help | true; exit ${{PIPESTATUS[0]}}", (0, 1)),
        (f"{COMMAND} --help > /dev/full", (0, 1)),  # argparse itself does not mind
        (f"{COMMAND} --help >&-", (0,)),
        (f"{COMMAND} plot none.csv 2>&-", (1,)),
        (f"{COMMAND} plot none.csv >&- 2>&-", (1,)),
        (f"{sys.executable} -OO -m nanogrpo", (0,)),
        (f"{sys.executable} -OO -m nanogrpo grpo --help", (0,)),
        (f"LC_ALL=C PYTHONIOENCODING=ascii {COMMAND} plot größer.csv", (1,)),
        (f"{COMMAND}", (0,)),
    ],
)
def test_in_a_shell(line, status, unbuffered):
    """What fails when it is written fails at once, or at the end of the process, where no handler is left."""
    variables = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=variables)
    assert done.returncode in status and "Traceback" not in done.stderr and "Exception" not in done.stderr, (
        done
    )
    if line == COMMAND:
        assert done.stdout.startswith("usage: python -m nanogrpo") and "grpo" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are others there")
@pytest.mark.parametrize("module", ["numpy", "torch.nn", "nanogrpo.options", "nanogrpo.commands"])
def test_ctrl_c_while_the_libraries_are_loaded(module):
    command = [sys.executable, "-X", "importtime", "-m", "nanogrpo", "grpo", "--model", "addition"]
    process = subprocess.Popen(
        [*command, "--max-steps", "100000", "--out", "r"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear,
    )  # fmt: skip
    for line in process.stderr:  # one for each module, when it has been loaded
        if line.split("|")[-1].strip() == module:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in said, said
