"""Whatever happens to a run at any of its file operations, nothing good is lost and nothing false remains.

Each run is repeated in a child process once for each of its operations, and killed there. Then ``--resume``
must give the bytes of the run that was left alone, or refuse, and then the run is started over. Likewise with
a disk that is full from that operation on, and with a folder that is read-only from then on. Where the folder
is left with the same files as before, ``--resume`` is not asked again: it knows nothing but those files.
"""

import functools
import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch
from filecheck import in_child

from nanogrpo.__main__ import main
from nanogrpo.checkpoint import save_model
from nanogrpo.data import alphabet
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.reward_model import RewardModel, save_reward_model
from nanogrpo.tasks import TASKS, Task
from nanogrpo.tokenizer import CharTokenizer

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked here; this system cannot"
)

TEXT = "\n\n".join(f"{who}:\n{line}" for who in ("ANN", "BOB") for line in ("Good day.", "Well met."))
TEXT = (TEXT + "\n\n") * 5
STEPS = ["--device", "cpu", "--max-steps", "3", "--save-every", "2"]
RL = [*STEPS, "--task", "reverse", "--prompts-per-step", "2", "--group-size", "2", "--model", "start"]
COMMANDS = {
    "sft": ["sft", *STEPS, "--task", "reverse", "--batch-size", "2"],
    "rm": ["rm", *STEPS, "--batch-size", "2", "--pairs", "4", "--model", "lines"],
    "grpo": ["grpo", *RL, "--beta", "0.1"],
    "ppo": ["ppo", *RL],
    "demo": ["demo", "--task", "reverse", "--device", "cpu", "--steps", "2"],
}
KINDS = ("kill", "full", "read-only")


class Reverse(Task):
    name, tokenizer, max_new_tokens = "reverse", CharTokenizer("ab="), 4
    sft_options = {"max_steps": 3, "batch_size": 2}

    def split(self):
        words = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab", repeat=n)]
        rows = [{"prompt": f"{word}=", "answer": word[::-1]} for word in words]
        return rows[::2], rows[1::2]


def tiny(tokenizer, block_size=64):
    torch.manual_seed(0)
    return GPT(GPTConfig(tokenizer.vocab_size, block_size, n_layer=1, n_head=1, n_embd=4))


class Picture:
    def savefig(self, file, **_):
        file.write(b"picture")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Small models and a small text, so that a run takes a moment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "reverse", Reverse())
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: TEXT)
    monkeypatch.setattr("nanogrpo.job.new_policy", lambda task, seed, device: tiny(task.tokenizer))
    monkeypatch.setattr("nanogrpo.show.plotting.plot_runs", lambda *_: Picture())
    save_model("start/model.safetensors", tiny(Reverse.tokenizer), Reverse.tokenizer)
    lines = alphabet(TEXT)
    save_model("lines/model.safetensors", tiny(lines), lines)
    save_reward_model("reward/model.safetensors", RewardModel(tiny(lines), lines))


def files(folder):
    """All files below a folder and their bytes, but for the lock."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def state():
    """All that the next command can know: folders, files and their bytes. A lock counts as such."""
    paths = sorted(Path("out").rglob("*"))
    return tuple((str(p), p.read_bytes() if p.is_file() and p.name != ".lock" else None) for p in paths)


@functools.cache
def imported(command):
    """Have this process import what a command imports as it runs, lest each child does."""
    main([*COMMANDS[command], "--out", f"imported/{command}"])


def run(argv, kind="", at=0):
    """The command in a child with ``--out out/run``; never a traceback."""
    imported(argv[0])
    Path("out").mkdir(exist_ok=True)
    outcome = in_child(lambda: main([*argv, "--out", "out/run"]), Path("out"), kind, at)
    assert "Traceback" not in outcome.said and outcome.status in (0, 1, 77), outcome.said
    return outcome


def whole(argv):
    """The folder of the run that is left alone, and its operations."""
    shutil.rmtree("out", ignore_errors=True)
    outcome = run(argv)
    assert outcome.status == 0, outcome.said
    return files("out/run"), outcome.operations


def afterwards(command, argv, expected, *others):
    """Resume, or start over if that is refused; the bytes must be the expected ones. Which of the two."""
    resumed = run(
        [argv[0], "--resume", *(["--task", "reverse"] if command == "demo" else []), "--device", "cpu"]
    )
    if resumed.status == 0:
        found = files("out/run")
        differ = [sorted(n for n in found | e if found.get(n) != e.get(n)) for e in (expected, *others)]
        assert [] in differ, f"what was resumed is another run, in {differ}"
        return "starts over" if "starts over" in resumed.said else "goes on"
    assert "error: cannot resume" in resumed.said, resumed.said
    again = run([*argv, *([] if "--overwrite" in argv else ["--overwrite"])])
    assert again.status == 0 and files("out/run") == expected, again.said
    return "refused"


def torment(command, argv, kind, every=1, before=None, old=None, right=None):
    """Trouble at every operation of a command; returns how often it went on, started over, or was refused.

    ``before`` is a folder that the command finds; ``old`` are the files of a run that it replaces; ``right``
    are those that it must give, where they are known.
    """

    def fresh():
        shutil.rmtree("out", ignore_errors=True)
        if before:
            shutil.copytree(before, "out")

    fresh()
    outcome = run(argv)
    assert outcome.status == 0, outcome.said
    expected, count = files("out/run"), len(outcome.operations)
    assert right in (None, expected)
    results, known = {}, {}
    for at in range(1, count + 1, every):
        fresh()
        found = run(argv, kind, at)
        what = f"{kind} at operation {at}, {outcome.operations[at - 1]}: {found.said}"
        if kind == "kill":
            assert found.status == 77, what
        elif found.status == 0:
            assert files("out/run") == expected, what
        else:
            assert "error: " in found.said, what
        if found.status == 1 and not before and kind == "full":
            assert not os.path.exists("out/run") or files("out/run"), f"an empty folder is left; {what}"
        left = state()
        if left not in known:
            known[left] = afterwards(command, argv, expected, *([old] if old else []))
        result = known[left]
        results[result] = results.get(result, 0) + 1
    return count, results


def report(capsys, name, kind, count, results):
    with capsys.disabled():
        said = ", ".join(f"{n} {what}" for what, n in sorted(results.items()))
        print(f"\n{name}: {kind} at each of {count} file operations; afterwards --resume {said}", end="")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["grpo"])
def test_trouble_at_some_operations(command, capsys):
    for kind in KINDS:
        count, results = torment(command, COMMANDS[command], kind, every=13)
        assert count > 30 and sum(results.values()) >= 4


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_trouble_at_every_operation(command, kind, capsys):
    count, results = torment(command, COMMANDS[command], kind)
    assert count > 30 and results.get("goes on", 0) > count / 3
    report(capsys, command, kind, count, results)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_trouble_while_an_older_run_is_replaced(kind, capsys):
    old, _ = whole([*COMMANDS["grpo"], "--seed", "5"])
    shutil.copytree("out", "before")
    argv = [*COMMANDS["grpo"], "--overwrite"]
    count, results = torment("grpo", argv, kind, before="before", old=old)
    report(capsys, "grpo --overwrite", kind, count, results)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["rm", "ppo"])
def test_trouble_while_a_killed_run_goes_on(command, kind, capsys):
    expected, operations = whole(COMMANDS[command])
    shutil.rmtree("out")
    middle = [i for i, (name, file) in enumerate(operations, 1) if (name, file) == ("write", "metrics.csv")][
        2
    ]
    assert run(COMMANDS[command], "kill", middle).status == 77
    shutil.copytree("out", "before")
    argv = [command, "--resume", "--device", "cpu"]
    count, results = torment(command, argv, kind, before="before", right=expected)
    assert set(results) == {"goes on"}
    report(capsys, f"{command} --resume", kind, count, results)
