"""Run folders: a run that is killed at any moment goes on as if nothing had happened."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import nanogrpo.demo  # noqa: F401 (it takes measure by name, so it is loaded before a test puts another there)
from nanogrpo.__main__ import main
from nanogrpo.checkpoint import load_tensors, save_model
from nanogrpo.data import alphabet
from nanogrpo.errors import CheckpointError, LogError, RunError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.runs import Folder, Run
from nanogrpo.state import TrainState
from nanogrpo.tokenizer import CharTokenizer

TEXT = (
    "\n\n".join(f"{who}:\n{line}" for who in ("ANN", "BOB") for line in ("Good day.", "Well met, sir."))
    + "\n\n"
)
TEXT *= 10
SMALL = ["--max-steps", "7", "--save-every", "3", "--device", "cpu"]
RL = [*SMALL, "--prompts-per-step", "4", "--group-size", "4", "--model", "addition"]
COMMANDS = {
    "grpo": ["grpo", *RL],
    "grpo with KL": ["grpo", *RL, "--beta", "0.1", "--num-mini-batches", "2", "--max-resamples", "1"],
    "sft": ["sft", *SMALL, "--batch-size", "4"],
    "sft on lines": ["sft", *SMALL, "--batch-size", "4", "--task", "lines", "--model", "lines"],
    "ppo": ["ppo", *RL, "--beta", "0.1", "--num-mini-batches", "2"],
    "ppo with a head": ["ppo", *RL, "--critic", "head"],
    "rm": ["rm", *SMALL, "--batch-size", "4", "--pairs", "10", "--model", "lines"],
}
# Where a process kills itself, with nothing cleaned up behind it.
KILLS = {
    "between two checkpoints": """
        real = CSVLog.write
        def write(self, row):
            real(self, row)
            if row["step"] == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        CSVLog.write = write
    """,
    "in the middle of a line of the log": """
        real = CSVLog._line
        def line(self, values):
            if values[0] == 5:
                self._file.write(b"5,0.0")
                self._file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            real(self, values)
        CSVLog._line = line
    """,
    "in the middle of saving": """
        real, times = checkpoint.stage, []
        def stage(path, content):
            if path.name != "checkpoint.safetensors" or times.append(path) or len(times) < 2:
                return real(path, content)
            real(path, content[:len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.stage = stage
    """,
    "between saving and moving into place": """
        real = os.replace
        def replace(a, b):
            if str(b).endswith("checkpoint.safetensors") and Path(b).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)
        os.replace = replace
    """,
    "before the first step": """
        CSVLog.__init__ = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    """,
}
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from nanogrpo import checkpoint, job, runs, tasks
from nanogrpo.metrics import CSVLog
from nanogrpo.__main__ import main
tasks.load_corpus, job.summary = lambda: {text!r}, lambda *_: "done"
{kill}
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def models_to_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: TEXT)
    monkeypatch.setattr("nanogrpo.job.summary", lambda *_: "done")
    monkeypatch.setattr("nanogrpo.recipes.measure", lambda *_: {"accuracy": 0.0})
    torch.manual_seed(0)
    tokenizer = alphabet(TEXT)
    lines = GPT(GPTConfig(tokenizer.vocab_size, block_size=64, n_layer=1, n_head=1, n_embd=8))
    save_model("lines/model.safetensors", lines, tokenizer)


def killed(command, kill):
    script = SCRIPT.format(text=TEXT, kill=textwrap.dedent(KILLS[kill]))
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def assert_same_run(one, other):
    assert Path(one, "metrics.csv").read_bytes() == Path(other, "metrics.csv").read_bytes()
    for name in ("model.safetensors", "checkpoint.safetensors"):
        a, b = load_tensors(Path(one, name))[0], load_tensors(Path(other, name))[0]
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{key} in {name}"


EACH = [("grpo", kill) for kill in KILLS] + [
    (name, "in the middle of a line of the log") for name in COMMANDS if name != "grpo"
]
FAST = ("grpo", "in the middle of a line of the log")


@pytest.mark.parametrize(
    ("name", "kill"), [pytest.param(*case, marks=[pytest.mark.slow] if case != FAST else []) for case in EACH]
)
def test_a_killed_run_that_is_resumed_is_the_run_that_was_not_killed(name, kill, capsys):
    main([*COMMANDS[name], "--out", "whole"])
    killed([*COMMANDS[name], "--out", "parts"], kill)
    assert not Path("parts/model.safetensors").exists()
    capsys.readouterr()
    main([COMMANDS[name][0], "--resume", "--out", "parts", "--device", "cpu"])
    said = capsys.readouterr().err
    assert_same_run("whole", "parts")
    assert {path.name for path in Path("parts").iterdir()} == {path.name for path in Path("whole").iterdir()}
    expected = {
        "between two checkpoints": "2 row(s) after step 3",
        "in the middle of a line of the log": "1 row(s) after step 3 and a torn last line",
        "in the middle of saving": "which a killed run left unfinished",
        "between saving and moving into place": "3 row(s) after step 0",
        "before the first step": "",
    }
    assert expected[kill] in said


@pytest.mark.slow
def test_n_steps_and_m_more_are_n_plus_m_steps():
    main([*COMMANDS["grpo with KL"], "--out", "whole"])
    main([*COMMANDS["grpo with KL"], "--out", "parts", "--max-steps", "4"])
    main(["grpo", "--resume", "--out", "parts", "--max-steps", "7", "--device", "cpu"])
    assert_same_run("whole", "parts")
    assert json.loads(Path("parts/config.json").read_text())["max_steps"] == 7


def test_resuming_a_finished_run_changes_nothing():
    main([*COMMANDS["grpo"], "--out", "run"])
    before = {path.name: path.read_bytes() for path in Path("run").iterdir() if path.suffix != ".safetensors"}
    main(["grpo", "--resume", "--out", "run", "--device", "cpu"])
    for name, content in before.items():
        assert Path("run", name).read_bytes() == content


def test_a_run_is_not_overwritten_nor_resumed_as_another(capsys):
    main([*COMMANDS["grpo"], "--out", "run", "--max-steps", "1"])
    for argv, message in [
        ([*COMMANDS["grpo"], "--out", "run"], "run holds a run already; go on with it by --resume"),
        (
            ["grpo", "--resume", "--out", "run", "--group-size", "8"],
            "started with group_size=4 and cannot go on",
        ),
        (["ppo", "--resume", "--out", "run"], "started with command='grpo' and cannot go on with 'ppo'"),
        (["grpo", "--resume", "--out", "lines"], "cannot resume lines: no readable config.json"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main(argv)
    log = Path("run/metrics.csv").read_bytes()
    main([*COMMANDS["grpo"], "--out", "run", "--max-steps", "2", "--overwrite"])
    assert Path("run/metrics.csv").read_bytes().startswith(log), "the same seed must give the same first step"
    Path("run/checkpoint.safetensors").unlink()
    with pytest.raises(SystemExit, match="cannot resume run: no checkpoint.safetensors"):
        main(["grpo", "--resume", "--out", "run"])


def test_what_a_checkpoint_and_a_log_cannot_be(tmp_path):
    def run(width, folder="here"):
        torch.manual_seed(0)
        model = GPT(GPTConfig(5, 6, n_layer=1, n_head=1, n_embd=width))
        state = TrainState.start(model.parameters(), 1e-3, 0)
        return Run(Folder(folder), model, CharTokenizer("abc"), {"policy": model}, state)

    Path("here").mkdir()
    run(4).save()
    with pytest.raises(CheckpointError, match=r"of another run: .* has another shape"):
        run(8).load()
    late = run(4)
    late.state.step = 2
    late.save()
    with pytest.raises(LogError, match="the checkpoint is of step 2, but the log"):
        run(4).load()
    Path("here/checkpoint.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        run(4).load()
    with pytest.raises(RunError, match="no readable config.json"):
        Folder("nowhere").settings([], {}, [])
    Path("file").write_text("")
    with pytest.raises(RunError, match="cannot write to file/run"):
        Folder("file/run").start({})
