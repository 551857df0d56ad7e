"""The task of the capstone, the weak policy that it starts from, and a race between training loops."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanogrpo import grpo, sft
from nanogrpo.advantages import group_advantages
from nanogrpo.evaluate import success_probability
from nanogrpo.grpo import GRPOConfig
from nanogrpo.kl import kl_k3
from nanogrpo.losses import clipped_surrogate, importance_ratio
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.optim import AdamW
from nanogrpo.tasks import Problem, exact_match
from nanogrpo.tokenizer import CharTokenizer

LETTERS, LENGTH = "abcde", 4
WEAK = 0.1  # success of the policy that the loop begins with


@dataclass(frozen=True)
class WordTask:
    """Words of four letters, each with the word that is wanted for it.

    Attributes:
        training: Problems, ``{"prompt": "abcd=", "answer": "dcba"}``.
        held_out: Problems that are never trained on.
    """

    training: list[Problem]
    held_out: list[Problem]
    tokenizer = CharTokenizer(LETTERS + "=")
    max_new_tokens = LENGTH + 2


def task_of(rule: Callable[[str], str], seed: int = 0) -> WordTask:
    """All 625 words over five letters with ``rule(word)`` as answer, a fifth of them held out.

    >>> task_of(lambda word: "".join(sorted(word))).training[0]["answer"] in {"".join(w) for w in
    ...     itertools.combinations_with_replacement("abcde", 4)}
    True
    """
    words = ["".join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH)]
    random.Random(seed).shuffle(words)
    rows = [{"prompt": f"{word}=", "answer": rule(word)} for word in words]
    return WordTask(rows[len(rows) // 5 :], rows[: len(rows) // 5])


def reversing(seed: int = 0) -> WordTask:
    """Words to be written from the end."""
    return task_of(lambda word: word[::-1], seed)


def weak_policy(task: WordTask, seed: int = 0) -> GPT:
    """A GPT of 100 thousand weights that imitates until one of its answers in ten is right."""
    size = GPTConfig(task.tokenizer.vocab_size, LENGTH + 1 + LENGTH + 2, n_layer=2, n_head=2, n_embd=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(size)
    pairs = [(row["prompt"], row["answer"]) for row in task.training]
    options = sft.SFTConfig(max_steps=200, batch_size=64, learning_rate=2e-3, seed=seed)
    for _ in sft.train(model, task.tokenizer, pairs, options):
        if success_probability(model, task.tokenizer, task.training[:100]) >= WEAK:
            break
    return model


def config_of(task: WordTask, **options) -> GRPOConfig:
    """The capstone's settings: 30 steps of 16 groups of 16, two updates each."""
    usual = GRPOConfig(
        max_new_tokens=task.max_new_tokens, group_size=16, prompts_per_step=16, learning_rate=1e-3,
        max_steps=30, num_iterations=2, beta=0.02, aggregation="sequence_mean",
    )  # fmt: skip
    return replace(usual, **options)


def package_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """The package's clipped loss of each token, called as the lab's ``policy_loss``: (B, T)."""
    ratio = importance_ratio(logprobs, old_logprobs, mask)
    return clipped_surrogate(ratio, advantages, mask, clip_low, clip_high)


PACKAGE = (group_advantages, package_loss, kl_k3)


def race(
    learn: Callable,
    task: WordTask,
    seed: int,
    pieces: tuple[Callable, ...] = PACKAGE,
    watch: Callable = lambda optimizer, policy: optimizer,
    **options,
) -> dict:
    """Train a weak policy with a loop: held-out success before and after, and the rewards of its steps.

    Args:
        learn: See :func:`~nanogrpo.teach.capstone.check_learn`.
        task: The words.
        seed: Of the policy and of the samples.
        pieces: What ``learn`` is given last.
        watch: Makes the optimizer that ``learn`` gets of the one that there is.
        options: Fields of the config that are others than the capstone's.
    """
    first = weak_policy(task, seed)
    policy, config = copy.deepcopy(first), config_of(task, **options)
    optimizer = watch(AdamW(policy.parameters(), lr=config.learning_rate), policy)
    before = success_probability(policy, task.tokenizer, task.held_out)
    generator = torch.Generator().manual_seed(seed)
    rewards = learn(
        policy,
        first.requires_grad_(False),
        optimizer,
        task.tokenizer,
        task.training,
        config,
        generator,
        *pieces,
    )
    after = success_probability(policy, task.tokenizer, task.held_out)
    return {"before": before, "after": after, "rewards": rewards}


def package_learn(
    policy, reference, optimizer, tokenizer, problems, config, generator, *pieces
) -> list[float]:
    """The package's trainer, called as a student's ``learn`` is; its optimizer and samples are its own."""
    seeded = replace(config, seed=generator.initial_seed())
    return [row["reward"] for row in grpo.train(policy, tokenizer, problems, exact_match, seeded, reference)]
