"""Tasks: what a policy is to learn. Two are here, and a third is one class more.

How rows look and how a reward function is called is in :mod:`nanogrpo.rewards`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nanogrpo.data import alphabet, load_corpus, split_corpus
from nanogrpo.errors import OptionError
from nanogrpo.options import Options, option
from nanogrpo.plays import MAX_NEW_TOKENS, Judge, first_lines
from nanogrpo.rewards import Problem, RewardFunction, exact_match
from nanogrpo.rewards import call_reward as call_reward  # found here, too
from nanogrpo.tokenizer import CharTokenizer


class Task(ABC):
    """What a policy is to learn: problems, their alphabet, and rules that reward.

    A new task is one subclass with the first three attributes and :meth:`split`, and an instance of it in
    :data:`TASKS`. Every command, the quickstart's code and the labs' take it from there. The rest has
    defaults, for rows with an ``answer`` that a completion must match to the letter.

    Attributes:
        name: as ``--task`` and the names of run folders have it.
        tokenizer: the alphabet of prompts and completions.
        max_new_tokens: tokens of the longest good completion, the end of the sequence included.
        learned_reward: whether the rule is a hidden judge, so that a reward is learned from its preferences.
        sft_model: what supervised fine-tuning starts from: ``"new"``, or weights that ship.
        sft_options: options of supervised fine-tuning with other defaults than the trainer's.
    """

    name: str
    tokenizer: CharTokenizer
    max_new_tokens: int
    learned_reward: bool = False
    sft_model: str = "new"
    sft_options: Mapping[str, Any] = {}

    @abstractmethod
    def split(self) -> tuple[list[Problem], list[Problem]]:
        """All problems, the same every time: (training, held out)."""

    @property
    def block_size(self) -> int:
        """Tokens of the longest prompt with its completion."""
        return max(len(row["prompt"]) for part in self.split() for row in part) + self.max_new_tokens

    @property
    def rules(self) -> dict[str, RewardFunction]:
        """Reward functions by name. The first says how good a policy is; 1 is full reward."""
        return {"exact": exact_match}

    def examples(self) -> list[tuple[str, str]]:
        """Pairs (prompt, completion) for supervised fine-tuning."""
        return [(row["prompt"], row["answer"]) for row in self.split()[0]]

    def fingerprint(self) -> str:
        """A hash of the data, by which a run that goes on knows that it is still the same."""
        return hashlib.sha256(repr(self.split()).encode()).hexdigest()


@dataclass(frozen=True)
class Addition(Options, Task):
    """Addition written in characters: ``12+07=`` is answered by ``19`` and the end of the sequence.

    The summands are padded with zeros to ``digits`` digits, the sum is not, so that answers differ in length.
    All ``10 ** (2 * digits)`` problems exist; the split into training and held-out problems is a fixed
    shuffle.

    >>> Addition(digits=2).problem(12, 7)
    {'prompt': '12+07=', 'answer': '19'}
    """

    name = "addition"
    digits: int = option(2, help="digits of each summand; four make more problems than fit.", low=1, high=3)
    held_out: int = option(2000, help="how many problems are never trained on.", low=1)

    def check(self) -> None:
        """Some problems must be left on both sides of the split."""
        if self.held_out >= self.count:
            raise OptionError(
                f"held_out={self.held_out} must leave some of the {self.count} problems on both sides"
            )

    @property
    def count(self) -> int:
        """How many problems there are."""
        return 10 ** (2 * self.digits)

    @property
    def tokenizer(self) -> CharTokenizer:  # type: ignore[override]
        """Digits, plus and equals."""
        return CharTokenizer("0123456789+=")

    @property
    def max_new_tokens(self) -> int:  # type: ignore[override]
        """Tokens of the longest right answer, the end of the sequence included."""
        return self.digits + 2

    @property
    def block_size(self) -> int:
        """Tokens of the longest problem with its answer."""
        return 2 * self.digits + 2 + self.max_new_tokens

    def problem(self, a: int, b: int) -> Problem:
        """The problem ``a + b``."""
        return {"prompt": f"{a:0{self.digits}d}+{b:0{self.digits}d}=", "answer": str(a + b)}

    def split(self) -> tuple[list[Problem], list[Problem]]:
        """All problems, shuffled once and for all: (training, held out)."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(0)).tolist()
        problems = [self.problem(*divmod(i, 10**self.digits)) for i in order]
        return problems[self.held_out :], problems[: self.held_out]


class Lines(Task):
    """Lines of tiny Shakespeare: a speaker's heading is answered by the first line of a speech.

    What makes a line good is known to a hidden judge alone, so a reward is learned from its preferences.
    """

    name = "lines"
    max_new_tokens = MAX_NEW_TOKENS
    learned_reward = True
    sft_model = "tinyshakespeare"
    sft_options = {"learning_rate": 5e-4, "batch_size": 64, "max_steps": 50, "seed": 0}

    @property
    def tokenizer(self) -> CharTokenizer:  # type: ignore[override]
        """The characters of the corpus."""
        return alphabet(load_corpus())

    @property
    def rules(self) -> dict[str, RewardFunction]:
        """The hidden judge."""
        return {"judge": Judge(load_corpus())}

    def split(self) -> tuple[list[Problem], list[Problem]]:
        """Headings and lines of the first part of the corpus, and of the second."""
        training, held_out = (first_lines(part) for part in split_corpus(load_corpus()))
        return [_row(*pair) for pair in training], [_row(*pair) for pair in held_out]

    def fingerprint(self) -> str:
        """A hash of the whole corpus: the judge knows all its words."""
        return hashlib.sha256(load_corpus().encode()).hexdigest()


def _row(heading: str, line: str) -> Problem:
    return {"prompt": heading, "answer": line}


# The first of its kind is what a command takes where no task is named.
TASKS: dict[str, Task] = {task.name: task for task in (Addition(), Lines())}


def find(name: str) -> Task:
    """The task of that name in :data:`TASKS`.

    Raises:
        OptionError: there is none; the message lists those that there are.
    """
    if name not in TASKS:
        raise OptionError(f"task={name!r} is unknown; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def usual(learned_reward: bool = False) -> Task:
    """The task where none is named: the first in :data:`TASKS` with, or without, a learned reward."""
    return next(task for task in TASKS.values() if task.learned_reward == learned_reward)
