"""Reversing words, the second task of the study: ``abcd=`` is answered by ``dcba``."""

import random

from nanogrpo.model import GPT, GPTConfig
from nanogrpo.rewards import Problem
from nanogrpo.tasks import Task
from nanogrpo.tokenizer import CharTokenizer


class Reverse(Task):
    """Words of three to six letters, drawn once and for all; each length is as frequent as the others.

    >>> Reverse().split()[1][0]["prompt"][:-1][::-1] == Reverse().split()[1][0]["answer"]
    True
    """

    name = "reverse"
    letters, shortest, longest = "abcdefgh", 3, 6
    count, held_out = 4000, 1500
    tokenizer = CharTokenizer("abcdefgh=")
    max_new_tokens = 7

    def split(self) -> tuple[list[Problem], list[Problem]]:
        """All problems, the same every time: (training, held out). No word is in both."""
        draw, words = random.Random(0), dict[str, None]()
        while len(words) < self.count:
            length = draw.randint(self.shortest, self.longest)
            words["".join(draw.choices(self.letters, k=length))] = None
        problems = [{"prompt": f"{word}=", "answer": word[::-1]} for word in words]
        return problems[self.held_out :], problems[: self.held_out]


def small_policy(task: Task) -> GPT:
    """An untrained GPT of half the width of the book's: 0.1 million parameters."""
    return GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, n_layer=2, n_head=4, n_embd=64))
