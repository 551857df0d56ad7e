"""Whether a training loop that is made of given pieces is GRPO's, and learns."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from nanogrpo.teach.capstone.draws import check_draws
from nanogrpo.teach.capstone.words import WordTask, race, reversing, weak_policy
from nanogrpo.teach.check import CheckFailed
from nanogrpo.teach.checks.compare import call, listed

REACHED = 0.8  # held-out success that a loop must reach
UPDATES, BETA = 3, 0.5  # of each of the two steps that are looked at


def check_learn(learn: Callable, pieces: tuple[Callable, ...], seed: int | None = None) -> None:
    """A loop of GRPO that is made of given pieces, as lab 5 asks for it.

    The pieces and the gradients are looked at while the loop runs for two steps. Then it trains a weak
    policy to reverse words; the probability of the right answer to held-out words, exact, must reach 0.8.
    Over 40 draws the
    solution began at 0.08 to 0.21 and reached 0.96 at least.

    Args:
        learn: ``learn(policy, reference, optimizer, tokenizer, problems, config, generator, advantages_of,
            loss_of, kl_of)``, which returns the mean reward of each step.
        pieces: The student's ``group_advantages``, ``policy_loss`` and ``kl_k3``.
        seed: Of the words, the policy and the samples; new each time if there is none.

    Raises:
        CheckFailed: The message says what is wrong.
    """
    seed = random.SystemRandom().randrange(1 << 20) if seed is None else seed
    task, learn = reversing(seed), partial(call, learn)  # what every answer keeps is looked at, too
    try:
        _look(learn, pieces, task, seed)
        check_draws(learn, task, weak_policy(task, seed), seed)
        found = race(learn, task, seed, pieces)
    except NotImplementedError as error:
        raise CheckFailed("Nothing is written here yet, or in a step that this one uses.") from error
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(f"It stopped with {type(error).__name__}: {error}") from error
    if not found["after"] >= REACHED:  # NaN is not
        raise CheckFailed(
            f"With your functions the probability of a right answer went from {found['before']:.2f} to "
            f"{found['after']:.2f} in 30 steps; {REACHED} is asked for. If each step passes alone, it is in "
            "the loop: the prompts, the order of the rewards, or a step that is left out."
        )


@dataclass
class Witness:
    """The pieces and the optimizer of a loop, which write down what they are called with."""

    pieces: tuple[Callable, ...]
    rewards: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # and the advantages of them
    losses: list[tuple] = field(default_factory=list)
    kls: list[tuple] = field(default_factory=list)
    steps: list[list[Tensor]] = field(default_factory=list)  # gradients at each step of the optimizer
    wanted: list[list[Tensor]] = field(default_factory=list)  # those of the loss that the text asks for
    mistakes: list[dict[str, list[Tensor]]] = field(default_factory=list)  # those of the usual mistakes in it

    def advantages_of(self, rewards):
        """Of a batch."""
        self.rewards.append((rewards, self.pieces[0](rewards)))
        return self.rewards[-1][1]

    def loss_of(self, *arguments):
        """Of each token."""
        self.losses.append((*arguments, self.pieces[1](*arguments)))
        self._note_gradient()
        return self.losses[-1][-1]

    def kl_of(self, *arguments):
        """Of each token."""
        self.kls.append((*arguments, self.pieces[2](*arguments)))
        self._note_gradient()
        return self.kls[-1][-1]

    def watch(self, optimizer, policy) -> Witness:
        """Stand for an optimizer."""
        self.optimizer, self.weights = optimizer, list(policy.parameters())
        return self

    def __getattr__(self, name: str):
        return getattr(self.__dict__["optimizer"], name)

    def step(self, *arguments, **options):
        """Of the optimizer."""
        self.steps.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.weights])
        return self.optimizer.step(*arguments, **options)

    def _note_gradient(self) -> None:
        """Once an update has both its parts, the gradient of the loss that is asked for."""
        if len(self.losses) != len(self.kls) or len(self.losses[-1]) != 7:
            return
        (*_, mask, _, _, per_token), kl = self.losses[-1], self.kls[-1][-1]
        if not per_token.requires_grad or per_token.shape != mask.shape or kl.shape != mask.shape:
            return
        loss = _mean(per_token + BETA * torch.where(mask, kl, 0.0), mask)
        self.wanted.append(self._gradient(loss))
        few = _wrong_losses(per_token, kl, mask) if len(self.wanted) <= UPDATES else {}
        self.mistakes.append({sentence: self._gradient(wrong) for sentence, wrong in few.items()})

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.weights, retain_graph=True))


def _mean(per_token: Tensor, mask: Tensor) -> Tensor:
    return (torch.where(mask, per_token, 0.0).sum(1) / mask.sum(1)).mean()


def _wrong_losses(per_token: Tensor, kl: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What the usual mistakes make of the loss."""
    inside = torch.where(mask, kl, 0.0)
    total = torch.where(mask, per_token, 0.0) + BETA * inside
    both = "take the mean of each completion, then the mean of those."
    return {
        "The loss is negated: the policy learns the opposite.": -_mean(total, mask),
        f"Your mean runs over all tokens of the batch: {both}": total.sum() / mask.sum(),
        f"Your mean runs over padding, too: {both}": total.mean(),
        f"You add up the tokens of a completion: {both}": total.sum(1).mean(),
        f"You add up the completions: {both}": _mean(total, mask) * len(mask),
        f"You add up all tokens: {both}": total.sum(),
        "The KL is missing: config.beta times kl_of.": _mean(per_token, mask),
        "The KL is not multiplied by config.beta.": _mean(per_token + inside, mask),
        "The KL is subtracted: distance costs, and does not pay.": _mean(per_token - BETA * inside, mask),
        "The KL of padding counts: mask it, torch.where.": (
            (per_token + BETA * kl).sum(1) / mask.sum(1)
        ).mean(),
    }


def _look(learn: Callable, pieces: tuple[Callable, ...], task: WordTask, seed: int) -> None:
    """Run two steps, and see what the pieces are called with, and what the optimizer is given."""
    seen = Witness(pieces)
    given = (seen.advantages_of, seen.loss_of, seen.kl_of)
    found = race(learn, task, seed, given, seen.watch, max_steps=2, num_iterations=UPDATES, beta=BETA)
    made = {
        "advantages_of": (len(seen.rewards), 2),
        "loss_of": (len(seen.losses), 2 * UPDATES),
        "kl_of": (len(seen.kls), 2 * UPDATES),
        "optimizer.step": (len(seen.steps), 2 * UPDATES),
    }
    for name, (times, wanted) in made.items():
        if times != wanted:
            raise CheckFailed(
                f"{name} was called {times} times in two steps of {UPDATES} updates each, expected {wanted}."
            )
    _look_at_rewards(seen, found["rewards"])
    for number in range(2 * UPDATES):
        _look_at_update(seen, number)


def _look_at_rewards(seen: Witness, rewards_told: object) -> None:
    rewards = [rewards for rewards, _ in seen.rewards]
    if [tuple(r.shape) for r in rewards] != [(16, 16)] * 2:
        raise CheckFailed(
            f"advantages_of wants rewards (P, G) = (16, 16), and got {tuple(rewards[0].shape)}."
        )
    means = torch.stack([r.double().mean() for r in rewards])
    try:
        told = torch.as_tensor(rewards_told, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        told = torch.zeros(0)
    if told.shape != (2,) or not torch.allclose(told, means, atol=1e-4):
        raise CheckFailed("Return a list with the mean reward of each step, one number a step.")
    listed("mean rewards", rewards_told)


def _look_at_update(seen: Witness, number: int) -> None:
    start = number - number % UPDATES  # the first update of this batch
    logprobs, old, A, mask, low, high = seen.losses[number][:6]
    kl_logprobs, reference = seen.kls[number][:2]
    sampled, given = seen.losses[start][1], seen.rewards[number // UPDATES][1]
    if A.shape != (256,) or not torch.equal(A.detach(), given.detach().flatten()):
        raise CheckFailed(
            "loss_of wants what advantages_of returned, flat: (B,), row i answers prompt i // G."
        )
    if (low, high) != (0.2, 0.2) or mask.dtype != torch.bool or mask.shape != logprobs.shape or mask.all():
        raise CheckFailed(
            "loss_of takes (logprobs, old_logprobs, advantages, mask, 0.2, 0.2), the mask (B, T)."
        )
    if not torch.equal(old, sampled) or not logprobs.requires_grad or old.requires_grad:
        raise CheckFailed(
            "The old log-probs are those of sampling, rollout.logprobs: constant in all updates."
        )
    if number == start and not torch.allclose(logprobs[mask], old[mask], atol=1e-3):
        raise CheckFailed(
            "At the first update of a batch new and old log-probs are equal, and yours are not."
        )
    if number > start and torch.equal(logprobs, seen.losses[number - 1][0]):
        raise CheckFailed("The policy has not moved between two updates: backward, then optimizer.step().")
    if not torch.equal(kl_logprobs, logprobs) or reference.requires_grad:
        raise CheckFailed(
            "kl_of is called with the policy's log-probs, then with the reference's, a constant."
        )
    moved = start > 0 and torch.allclose(reference[mask], old[mask], atol=1e-3)
    if not torch.equal(reference, seen.kls[start][1]) or moved:
        raise CheckFailed("The reference's log-probs are those of the reference, not of the policy.")
    got, wanted = (_flat(all[number]) for all in (seen.steps, seen.wanted))
    if not _close(got, wanted):
        for sentence, wrong in seen.mistakes[number].items():
            if _close(got, _flat(wrong)) and not _close(wanted, _flat(wrong)):
                raise CheckFailed(f"In update {number % UPDATES + 1} of a batch: {sentence}")
        raise CheckFailed(
            f"In update {number % UPDATES + 1} of a batch the optimizer is given another gradient than that "
            "of the loss: loss_of plus beta times kl_of at sampled tokens, the mean of each completion, the "
            "mean of those. Or that of an earlier update is still in it: optimizer.zero_grad()."
        )


def _flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient])


def _close(a: Tensor, b: Tensor) -> bool:
    """In direction and in length."""
    return bool(torch.cosine_similarity(a, b, 0) > 0.999 and (a.norm() / b.norm() - 1).abs() < 0.01)
