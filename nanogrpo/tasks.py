"""Tasks whose reward a program can verify.

A data set is a list of rows, each a dict with a ``prompt`` and further columns, here the ``answer``. A reward
function is called as TRL calls it, ``reward(prompts=..., completions=..., **columns)``, and returns one
float a completion; each column arrives as a list with one entry a completion.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogrpo.errors import RewardError
from nanogrpo.tokenizer import CharTokenizer

RewardFunction = Callable[..., Sequence[float]]


Problem = dict[str, str]  # a "prompt", and whatever else the reward function wants to know of it


@dataclass(frozen=True)
class Addition:
    """Addition written in characters: ``12+07=`` is answered by ``19`` and the end of the sequence.

    The summands are padded with zeros to ``digits`` digits, the sum is not, so that answers differ in length.
    All ``10 ** (2 * digits)`` problems exist; the split into training and held-out problems is a fixed
    shuffle.

    Args:
        digits: digits of each summand.
        held_out: how many problems are never trained on.

    >>> Addition(digits=2).problem(12, 7)
    {'prompt': '12+07=', 'answer': '19'}
    """

    digits: int = 2
    held_out: int = 2000

    def __post_init__(self):
        if self.digits < 1:
            raise ValueError(f"digits={self.digits} must be at least 1")
        if not 0 < self.held_out < self.count:
            raise ValueError(
                f"held_out={self.held_out} must leave some of the {self.count} problems on both sides"
            )

    @property
    def count(self) -> int:
        """How many problems there are."""
        return 10 ** (2 * self.digits)

    @property
    def tokenizer(self) -> CharTokenizer:
        """Digits, plus and equals."""
        return CharTokenizer("0123456789+=")

    @property
    def max_new_tokens(self) -> int:
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


def exact_match(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns
) -> list[float]:
    """Reward 1 for a completion that is the answer to the letter, else 0.

    >>> exact_match(["1+2=", "1+2="], ["3", "33"], answer=["3", "3"])
    [1.0, 0.0]
    """
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def call_reward(reward_fn: RewardFunction, rows: Sequence[Problem], completions: Sequence[str]) -> Tensor:
    """Call a reward function and check what it returns: one finite number a completion, ``(B,)``.

    Args:
        reward_fn: see the top of this file.
        rows: ``P`` rows of the data set.
        completions: ``B`` texts, ``B / P`` for each row in turn.

    Raises:
        RewardError: the number of values is not the number of completions, or a value is no finite number;
            the message names the completion and its prompt. A reward that is dropped in silence would teach
            the model something else than the author of the reward meant.
    """
    group_size = len(completions) // len(rows)
    columns = {key: [row[key] for row in rows for _ in range(group_size)] for key in rows[0]}
    prompts = columns.pop("prompt")
    name = getattr(reward_fn, "__name__", repr(reward_fn))
    rewards = [float(r) for r in reward_fn(prompts=prompts, completions=completions, **columns)]
    if len(rewards) != len(completions):
        raise RewardError(
            f"{name} returned {len(rewards)} values for {len(completions)} completions; return one for each"
        )
    for prompt, completion, reward in zip(prompts, completions, rewards, strict=True):
        if not math.isfinite(reward):
            raise RewardError(
                f"{name} returned {reward} for completion {completion!r} of prompt {prompt!r}; "
                "return a finite number for every completion"
            )
    return torch.tensor(rewards)
