"""Checks of steps that a course asks for in another variant than the book.

Each turns the student's function into the one that the book's check knows, by an identity, and lets that
check judge it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import nanogrpo.teach.check  # noqa: F401, it finds all checks
from nanogrpo.advantages import whiten
from nanogrpo.teach.checks.registry import CHECKS, CheckFailed


def _with_note(note: str, name: str, adapted: Callable, seed: int | None) -> None:
    try:
        CHECKS[name].run(adapted, seed=seed)
    except CheckFailed as failed:
        raise CheckFailed(f"{failed} ({note})") from failed.__cause__


def check_bessel_advantages(implementation: Callable, seed: int | None = None) -> None:
    """``f(rewards)``: group advantages over Bessel's standard deviation, which divides by G - 1.

    Times ``sqrt(G / (G - 1))`` they are the book's.
    """

    def as_in_the_book(rewards):
        G = rewards.shape[1]
        return _scaled(implementation(rewards), (G / (G - 1)) ** 0.5)

    note = "This course divides by G - 1; the numbers shown are yours times sqrt(G / (G - 1))."
    _with_note(note, "check_group_advantages", as_in_the_book, seed)


def check_sample_whiten(implementation: Callable, seed: int | None = None) -> None:
    """``f(advantages, mask, eps)``: whitened with the sample's deviation, which divides by n - 1.

    A batch of one token has no such deviation, so nothing is asked of it.
    """

    def as_in_the_book(advantages, mask, eps):
        n = int(mask.sum())
        if n == 1:
            return whiten(advantages, mask, eps)
        factor = (n / (n - 1)) ** 0.5
        return _scaled(implementation(advantages, mask, eps * factor), factor)

    note = "This course divides by n - 1; the numbers shown are yours times sqrt(n / (n - 1))."
    _with_note(note, "check_whiten", as_in_the_book, seed)


def _scaled(found, factor: float):
    return found * factor if isinstance(found, torch.Tensor) else found


def check_token_mean_loss(implementation: Callable, seed: int | None = None) -> None:
    """``f(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta=0.0)``: the mean over tokens.

    Row by row it is the book's loss; and rows weigh as many tokens as they have.
    """

    def row_by_row(*batch, **options):
        rows = [
            implementation(*(part[i : i + 1] for part in batch[:5]), *batch[5:], **options)
            for i in range(len(batch[0]))
        ]
        return torch.stack(rows).mean() if all(isinstance(row, torch.Tensor) for row in rows) else rows[0]

    note = "The check called your function row by row: there the mean over tokens is the book's."
    _with_note(note, "check_grpo_loss", row_by_row, seed)
    _with_note(note, "check_kl_penalty", row_by_row, seed)
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    logprobs, old, ref = (-torch.rand(3, 4, generator=generator) for _ in range(3))
    mask, advantages = (
        torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool(),
        torch.tensor([1.0, -2.0, 0.5]),
    )
    batch = (logprobs, old, ref, advantages, mask)
    whole = implementation(*batch, beta=0.3)
    rows = torch.stack([implementation(*(part[i : i + 1] for part in batch), beta=0.3) for i in range(3)])
    if not torch.allclose(whole, (rows * mask.sum(1)).sum() / mask.sum(), atol=1e-5):
        shown = ", ".join(f"{row.item():.3f}" for row in rows)
        raise CheckFailed(
            f"Three completions of 4, 1 and 2 tokens have losses {shown}, and together {whole.item():.3f}. "
            "In this course each token weighs the same: divide the sum by mask.sum()."
        )
