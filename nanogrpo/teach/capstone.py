"""The capstone of lab 5: a student's own functions, composed, teach a small model to reverse words.

    >>> task = reversing(seed=0)
    >>> task.training[0]["prompt"][:-1][::-1] == task.training[0]["answer"]
    True

:func:`task_of` makes a task of any rule from a word to a word, :func:`weak_policy` a model that is right now and
then, and :func:`check_learn` looks at a training loop that is made of given pieces.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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
from nanogrpo.teach.check import CheckFailed
from nanogrpo.tokenizer import CharTokenizer

LETTERS, LENGTH = "abcde", 4
REACHED = 0.8  # held-out success that a loop must reach; see check_learn
IMITATION = 9  # steps, so that the policy is weak


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


def weak_policy(task: WordTask, seed: int = 0, steps: int = IMITATION) -> GPT:
    """A GPT of 100 thousand weights after a few steps of imitation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(task.tokenizer.vocab_size, LENGTH + 1 + LENGTH + 2, n_layer=2, n_head=2, n_embd=64))
    pairs = [(row["prompt"], row["answer"]) for row in task.training]
    options = sft.SFTConfig(max_steps=steps, batch_size=64, learning_rate=3e-3, seed=seed)
    for _ in sft.train(model, task.tokenizer, pairs, options):
        pass
    return model


def config_of(task: WordTask, **options) -> GRPOConfig:
    """The capstone's settings: 30 steps of 16 groups of 16, two updates each."""
    chosen: dict[str, Any] = {"group_size": 16, "prompts_per_step": 16, "learning_rate": 1e-3, "max_steps": 30,
              "num_iterations": 2, "beta": 0.02, "aggregation": "sequence_mean"}  # fmt: skip
    return GRPOConfig(max_new_tokens=task.max_new_tokens, **chosen | options)


def package_loss(logprobs: Tensor, old_logprobs: Tensor, A: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """The package's clipped loss of each token, called as the lab's ``policy_loss``: (B, T)."""
    return clipped_surrogate(importance_ratio(logprobs, old_logprobs, mask), A, mask, low, high)


PACKAGE = (group_advantages, package_loss, kl_k3)


def race(learn: Callable, task: WordTask, seed: int, pieces: tuple[Callable, ...] = PACKAGE, **options) -> dict:
    """Train a weak policy with a loop: held-out success before and after, and the rewards of its steps."""
    first = weak_policy(task, seed)
    policy, config = copy.deepcopy(first), config_of(task, **options)
    optimizer = AdamW(policy.parameters(), lr=config.learning_rate)
    before = success_probability(policy, task.tokenizer, task.held_out)
    generator = torch.Generator().manual_seed(seed)
    rewards = learn(
        policy, first.requires_grad_(False), optimizer, task.tokenizer, task.training, config, generator, *pieces
    )
    after = success_probability(policy, task.tokenizer, task.held_out)
    return {"before": before, "after": after, "rewards": rewards}


def check_learn(learn: Callable, pieces: tuple[Callable, ...], seed: int | None = None) -> None:
    """A loop of GRPO that is made of given pieces, as lab 5 asks for it.

    The pieces are looked at while the loop runs for two steps. Then it trains a weak policy to reverse words; the
    probability of the right answer to held-out words, exact, must reach 0.8. Over 40 seeds the solution started
    at 0.004 to 0.45 and reached 0.95 at least.

    Args:
        learn: ``learn(policy, reference, optimizer, tokenizer, problems, config, generator, advantages_of,
            loss_of, kl_of)``, which returns the mean reward of each step.
        pieces: The student's ``group_advantages``, ``policy_loss`` and ``kl_k3``.
        seed: Of the words, the policy and the samples; new each time if there is none.

    Raises:
        CheckFailed: The message says what is wrong.
    """
    seed = random.SystemRandom().randrange(1 << 20) if seed is None else seed
    task = reversing(seed)
    _look(learn, pieces, task, seed)
    try:
        found = race(learn, task, seed, pieces)
    except NotImplementedError as error:
        raise CheckFailed("Nothing is written here yet, or in a step that this one uses.") from error
    if not found["after"] >= REACHED:  # NaN is not
        raise CheckFailed(
            f"With your functions the probability of a right answer went from {found['before']:.2f} to "
            f"{found['after']:.2f} in 30 steps; {REACHED} is asked for. If each step passes alone, it is in the loop: "
            "the sign, the mask, the order of the advantages, or which log-probs are the old ones."
        )


def _look(learn: Callable, pieces: tuple[Callable, ...], task: WordTask, seed: int) -> None:
    """Run two steps, and see what the pieces are called with."""
    calls: list[list[tuple]] = [[], [], []]

    def seen(number: int) -> Callable:
        def piece(*arguments):
            result = pieces[number](*arguments)
            calls[number].append((*arguments, result))
            return result

        return piece

    try:
        found = race(learn, task, seed, tuple(map(seen, range(3))), max_steps=2, num_iterations=3)
    except NotImplementedError as error:
        raise CheckFailed("Nothing is written here yet, or in a step that this one uses.") from error
    for name, made, wanted in zip(("advantages_of", "loss_of", "kl_of"), map(len, calls), (2, 6, 6), strict=True):
        if made != wanted:
            raise CheckFailed(f"{name} was called {made} times in two steps of three updates each, expected {wanted}.")
    rewards = [call[0] for call in calls[0]]
    if [tuple(r.shape) for r in rewards] != [(16, 16)] * 2:
        raise CheckFailed(f"advantages_of wants rewards (P, G) = (16, 16), and got {tuple(rewards[0].shape)}.")
    told = torch.as_tensor(found["rewards"], dtype=torch.float64).flatten()
    if told.shape != (2,) or not torch.allclose(told, torch.stack([r.double().mean() for r in rewards]), atol=1e-4):
        raise CheckFailed("Return a list with the mean reward of each step, one number a step.")
    _look_at_losses(calls)


def _look_at_losses(calls: list[list[tuple]]) -> None:
    for number, (logprobs, old, A, mask, low, high, _) in enumerate(calls[1]):
        first, given = calls[1][number - number % 3], calls[0][number // 3][-1]
        if A.shape != (256,) or not torch.equal(A.detach(), given.detach().flatten()):
            raise CheckFailed("loss_of wants what advantages_of returned, flat: (B,), row i answers prompt i // G.")
        if (low, high) != (0.2, 0.2) or mask.dtype != torch.bool or mask.shape != logprobs.shape:
            raise CheckFailed("loss_of is called (logprobs, old_logprobs, advantages, mask, 0.2, 0.2), the mask (B, T).")
        if not torch.equal(old, first[1]) or not logprobs.requires_grad or old.requires_grad:
            raise CheckFailed("The old log-probs are those of sampling, rollout.logprobs: constant in all updates.")
        if not torch.allclose(first[0][mask], old[mask], atol=1e-3):
            raise CheckFailed("At the first update of a batch new and old log-probs are equal, and yours are not.")
        if number % 3 and torch.equal(logprobs, calls[1][number - 1][0]):
            raise CheckFailed("The policy has not moved between two updates: backward, then optimizer.step().")
        ours, reference = calls[2][number][:2]
        if not torch.equal(ours, logprobs) or reference.requires_grad:
            raise CheckFailed("kl_of is called with the policy's log-probs, then with the reference's, a constant.")
        if not torch.equal(reference, calls[2][number - number % 3][1]) or number > 2 and torch.equal(reference, old):
            raise CheckFailed("The reference's log-probs are those of the reference, not of the policy.")


def package_learn(policy, reference, optimizer, tokenizer, problems, config, generator, *pieces) -> list[float]:
    """The package's own trainer, called as a student's ``learn`` is; it makes its own optimizer and samples."""
    seeded = replace(config, seed=generator.initial_seed())
    return [row["reward"] for row in grpo.train(policy, tokenizer, problems, exact_match, seeded, reference)]
