"""A run of the command line, from its settings to its end; the flow that all trainers share.

A run's settings come from three places: the defaults of its options, what was given on the command line, and,
where a run is resumed, the ``config.json`` in its folder.
"""

import argparse
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from tqdm import tqdm

from nanogrpo import tasks, weights
from nanogrpo.checkpoint import blank_model, load_model, load_tensors, save_model, write_whole
from nanogrpo.errors import CheckpointError, OptionError, RunError
from nanogrpo.model import GPT
from nanogrpo.options import Options, option
from nanogrpo.recipes import new_policy, summary
from nanogrpo.runs import CHECKPOINT, CONFIG, MODEL, Folder, Run, as_json, fingerprint
from nanogrpo.state import TrainState
from nanogrpo.tasks import TASKS, Task
from nanogrpo.tokenizer import CharTokenizer


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What a run starts from, beside the options of its trainer."""

    task: str = option(tasks.usual().name, help=f"what is learned: {', '.join(TASKS)}.")
    model: str = option(
        help=f"start from a run's folder, a file, or weights that ship: {', '.join(weights.names('policy'))}."
    )
    save_every: int = option(50, help="steps between two checkpoints.", low=1)


class Job(ABC):
    """One run of one trainer. Another trainer is a subclass more.

    Attributes:
        help: what it does, for the command line.
        config_class: the options of the trainer.
        options_class: what a run starts from.
        may_change: settings that no step depends on, so that a run that goes on may have others.
        files: further files that a run begins with, by name.
    """

    help: ClassVar[str]
    config_class: ClassVar[type[Options]]
    options_class: ClassVar[type[RunOptions]]
    may_change: ClassVar[tuple[str, ...]] = ("max_steps", "save_every")
    files: Mapping[str, bytes] = {}

    def __init__(self, args: argparse.Namespace, task: Task, folder: Folder):
        self.folder, self.device, self.command = folder, pick_device(args.device), args.command
        self.variant = getattr(args, "variant", None)
        kinds = (self.options_class, self.config_class)
        names = [f.name for kind in kinds for f in fields(kind)]
        given = {name: value for name, value in vars(args).items() if name in names}
        if args.resume:
            given["command"] = self.command
            settings, self.before = folder.settings([*names, "command"], given, self.may_change)
        else:
            settings, self.before = {**self.defaults(task), **given, "task": task.name}, {}
        parts = [{f.name: settings[f.name] for f in fields(kind) if f.name in settings} for kind in kinds]
        self.options, self.config = (kind.of(part) for kind, part in zip(kinds, parts, strict=True))
        self.task = tasks.find(self.options.task)
        self.inputs: dict[str, str] = {}
        self.policy, self.tokenizer = self.start_model()

    @abstractmethod
    def defaults(self, task: Task) -> dict[str, Any]:
        """The settings that the task decides."""

    @abstractmethod
    def build(self) -> tuple[dict[str, nn.Module], TrainState]:
        """All that has weights, by name, and the state before the first step."""

    @abstractmethod
    def rows(self, run: Run) -> Iterator[dict[str, float]]:
        """The trainer at work."""

    def after(self, step: int) -> dict[str, tuple[float, float]]:
        """Give the state the parts that it has after some steps; the bounds of its numbers by then."""
        return {"optimizer.steps": (step, step)}

    def end(self, path: Path) -> str:
        """Save what was trained, and say how good it is."""
        save_model(path, self.policy, self.tokenizer)
        return summary(self.policy, self.task)

    def read(self, name: str, content: str | bytes | os.PathLike) -> None:
        """Note the hash of something that the run reads.

        Raises:
            RunError: the run was started with another, or would replace it.
        """
        if isinstance(content, os.PathLike) and Path(content).resolve().parent == self.folder.path.resolve():
            raise RunError(f"{name} is in {self.folder}, and would be replaced; choose another --out")
        self.inputs[name] = now = fingerprint(content)
        if self.before and name not in self.before:
            print(f"{self.folder} has no hash of {name}, so it is not compared", file=sys.stderr)
        if (before := self.before.get(name, now)) != now:
            raise RunError(
                f"{name} is not what {self.folder} was started with: its sha256 was {before[:12]}... and is "
                f"{now[:12]}...; put it back, or start a new run in another --out"
            )

    def start_model(self) -> tuple[GPT, CharTokenizer]:
        """The model to start from, or, for a run that goes on, one in the shape of its checkpoint's."""
        name, task, path = self.options.model, self.task, self.folder / CHECKPOINT
        if self.folder.started:
            model, tokenizer = blank_model(path, *load_tensors(path))
            self.warn_if_changed(weights_file(name))
            model = model.to(self.device)
        elif name == "new":
            model, tokenizer = new_policy(task, self.config.seed, self.device), task.tokenizer
        else:
            file = find_weights(name, "policy", sft_command(task))
            model, tokenizer = load_model(file, self.device)
            self.read(f"model {name}", file)
        self.read(f"task {task.name}", task.fingerprint())
        check_alphabet(tokenizer, task, "model")
        return model, tokenizer

    def warn_if_changed(self, file: Path) -> None:
        """Say it where the model that a run started from has changed, which its checkpoint does not need."""
        before = self.before.get(name := f"model {self.options.model}")
        if before and os.path.isfile(file) and fingerprint(file) != before:
            print(f"{name} has changed since; {self.folder} goes on from its own checkpoint", file=sys.stderr)

    def run(self) -> None:
        """Train to the end; every finished step is logged, and the folder can be taken up again."""
        models, state = self.build()
        settings = {"command": self.command, **asdict(self.options), **asdict(self.config)}
        config = as_json({**settings, "inputs": {**self.before, **self.inputs}})
        run = Run(
            self.folder, self.policy, self.tokenizer, models, state, self.options.save_every,
            files={CONFIG: config, **self.files},
            settings={name: value for name, value in settings.items() if name not in self.may_change},
            after=self.after,
        )  # fmt: skip
        if self.folder.started:
            run.load()
            if state.step > self.config.max_steps:
                raise OptionError(
                    f"max_steps={self.config.max_steps} is below the {state.step} steps that are done"
                )
            write_whole(self.folder / CONFIG, config)
        try:
            run_with_bar(run, self.rows(run), self.command.upper(), self.config.max_steps)
            said = self.end(self.folder / MODEL)
        except KeyboardInterrupt:
            if not self.folder.started:
                raise
            again = f"python -m nanogrpo {self.command} --resume --out {self.folder}"
            raise KeyboardInterrupt(f"the log holds every finished step; go on by `{again}`") from None
        print(f"{state.step} steps; {said}. Log and weights are in {self.folder}/")


def run_with_bar(run: Run, rows: Iterator[dict[str, float]], name: str, total: int) -> None:
    """Run a trainer to its end, with a progress bar."""
    rows, done = run.rows(rows), run.state.step
    first = list(islice(rows, 1))  # what is wrong from the start is said without a bar
    shown_total = total if total < 10**12 else None  # the bar computes with floats
    with tqdm(chain(first, rows), desc=name, total=shown_total, initial=done) as bar:
        for row in bar:
            shown = [key for key in ("reward", "accuracy", "loss", "entropy") if key in row][:2]
            bar.set_postfix({key: f"{row[key]:.2f}" for key in shown})


def folder_of(command: str, task: Task) -> str:
    """Where a command's run goes unless told otherwise; its usual task need not be named."""
    usual = tasks.usual(learned_reward=command == "rm")
    return f"runs/{command}" if task.name == usual.name else f"runs/{command}-{task.name}"


def sft_command(task: Task) -> str:
    """The command that makes a policy for a task."""
    return "python -m nanogrpo sft" + ("" if task.name == tasks.usual().name else f" --task {task.name}")


def weights_file(name: str) -> Path:
    """The weights in a run's folder, the file itself, or weights that ship."""
    path = Path(name) if name.endswith(".safetensors") and not os.path.isdir(name) else Path(name) / MODEL
    return weights.path(name) if not os.path.exists(path) and name in weights.names() else path


def find_weights(name: str, kind: str, remedy: str) -> Path:
    """The file of a model by its name; raises CheckpointError, with those that ship, where there is none."""
    path = weights_file(name)
    if not os.path.exists(path):
        what = "model" if kind == "policy" else kind
        raise CheckpointError(
            f"there is no {what} {path}; make one by `{remedy} --out {name}`, or choose another "
            f"(with the package come: {', '.join(weights.names(kind)) or 'none'})"
        )
    return path


def check_alphabet(tokenizer: CharTokenizer, task: Task, what: str) -> None:
    """Raise OptionError where a model was made for another task."""
    if tokenizer.chars != task.tokenizer.chars:
        raise OptionError(
            f"the {what} reads the alphabet {tokenizer.chars!r}, the task is written in "
            f"{task.tokenizer.chars!r}; choose another --{what} or --task"
        )


def pick_device(name: str) -> str:
    """``auto`` is a CUDA GPU where there is one, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name.split(":")[0] not in ("cpu", "cuda"):
            raise RuntimeError
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch's own, where it knows no such device
        message = f"--device {name} is not to be had here; choose cpu, or auto for the best there is"
        raise OptionError(message) from error
    return name


def printable(text: str) -> str:
    """A text without characters that no terminal, log or figure can show; they are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
