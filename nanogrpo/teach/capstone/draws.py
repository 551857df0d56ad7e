"""Whether a loop draws as it should: no prompt twice in a step, and all chance from its generator."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from nanogrpo.optim import AdamW
from nanogrpo.teach.capstone.words import PACKAGE, WordTask, config_of
from nanogrpo.teach.check import CheckFailed
from nanogrpo.tokenizer import CharTokenizer


class Reader:
    """A tokenizer that remembers the prompts that it was asked for, and the texts that it gave back."""

    def __init__(self, tokenizer: CharTokenizer):
        self.tokenizer = tokenizer
        self.prompts: list[list[str]] = []
        self.texts: list[list[str]] = []

    def __getattr__(self, name: str):
        return getattr(self.__dict__["tokenizer"], name)

    def encode_prompts(self, prompts: list[str]) -> tuple:
        """Of a step."""
        self.prompts.append(list(prompts))
        return self.tokenizer.encode_prompts(prompts)

    def decode_batch(self, ids) -> list[str]:
        """Of a step's completions."""
        self.texts.append(self.tokenizer.decode_batch(ids))
        return self.texts[-1]


def check_draws(learn: Callable, task: WordTask, policy, seed: int) -> None:
    """Raise CheckFailed unless a loop draws its prompts and its samples by chance, all from its generator."""

    def drawn(seed: int, P: int = 16, words: int | None = None) -> Reader:
        student, reader = copy.deepcopy(policy), Reader(task.tokenizer)
        optimizer = AdamW(student.parameters(), lr=1e-3)
        config = config_of(task, max_steps=2, num_iterations=1, prompts_per_step=P, group_size=16)
        generator, problems = torch.Generator().manual_seed(seed), task.training[:words]
        reference = copy.deepcopy(policy).requires_grad_(False)
        learn(student, reference, optimizer, reader, problems, config, generator, *PACKAGE)
        return reader

    first, again, other = drawn(seed), drawn(seed), drawn(seed + 1)
    for prompts in [*first.prompts, *drawn(seed, words=20).prompts]:  # of 20 words 16 are hardly ever all new
        if len(set(prompts)) < len(prompts):
            raise CheckFailed("A step draws a prompt twice: draw none twice in a step, torch.randperm.")
    same = "Two runs from the same generator {}: give generator to torch.randperm and to sample."
    if first.prompts[:1] != again.prompts[:1]:
        raise CheckFailed(same.format("drew other prompts"))
    if first.texts[:1] != again.texts[:1]:
        raise CheckFailed(same.format("sampled other completions"))
    alike = any(set(one) == set(two) for one, two in zip(first.prompts, other.prompts, strict=False))
    if alike or len(set(map(frozenset, first.prompts))) == 1:
        raise CheckFailed("Two steps, or two generators, drew the same prompts: draw anew, from generator.")
    some = drawn(seed, words=32).prompts
    if len(some) == 2 and not set(some[0]) & set(some[1]):  # by chance once in 10^8 checks
        raise CheckFailed(
            "Problems are used up: no word of the first step comes up in the second, which draws half of all "
            "words. Draw from all problems in each step."
        )
    one, two = (drawn(seed + shift, P=1, words=1).texts for shift in (0, 1))
    if one and one == two:
        raise CheckFailed("Two generators sampled the same completions: hand generator to sample.")
