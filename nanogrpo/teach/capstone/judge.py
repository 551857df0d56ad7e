"""Whether a training loop that is made of given pieces is GRPO's, and learns."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from nanogrpo.optim import AdamW
from nanogrpo.teach.capstone.draws import check_draws
from nanogrpo.teach.capstone.parts import LEFT, has_some_rows, has_some_tokens, joined, spread
from nanogrpo.teach.capstone.words import WordTask, config_of, race, reversing, weak_policy
from nanogrpo.teach.check import CheckFailed
from nanogrpo.teach.checks.compare import call, listed

REACHED = 0.8  # held-out success that a loop must reach
UPDATES, BETA = 3, 0.5  # of each of the first two steps, in which each gradient is looked at
LATER = 8  # gradients that are looked at in the 30 steps that follow


def check_learn(learn: Callable, pieces: tuple[Callable, ...], seed: int | None = None) -> None:
    """A loop of GRPO that is made of given pieces, as lab 5 asks for it.

    The pieces and the gradients are looked at while the loop runs for two steps, and for two in which all
    groups are tied. Then it trains a weak policy to reverse words for 30 steps; what the pieces are called
    with is looked at in each, the gradient in some. The probability of the right answer to held-out words,
    exact, must reach 0.8. Over 40 draws the solution began at 0.08 to 0.21 and reached 0.96 at least.

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
        policy = weak_policy(task, seed)
        check_draws(learn, task, policy, seed)
        _look_at_ties(learn, pieces, task, policy, seed)
        found = _look_later(learn, pieces, task, seed)
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
    beta: float
    noted: Container[int]  # updates whose gradients are kept, counted from 0
    named: int  # and of how many of them those of the usual mistakes as well
    rewards: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # and the advantages of them
    losses: list[tuple] = field(default_factory=list)
    kls: list[tuple] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)  # calls of loss_of for some rows of the next batch
    tokens: list[tuple] = field(default_factory=list)  # and of kl_of
    taken: int = 0  # steps of the optimizer
    steps: dict[int, list[Tensor]] = field(default_factory=dict)  # gradients at each of them
    wanted: dict[int, list[Tensor]] = field(default_factory=dict)  # those of the loss that the text asks for
    mistakes: dict[int, dict[str, list[Tensor]]] = field(default_factory=dict)  # of the usual mistakes in it

    def advantages_of(self, rewards):
        """Of a batch."""
        self.rewards.append((rewards, self.pieces[0](rewards)))
        return self.rewards[-1][1]

    def loss_of(self, logprobs, old_logprobs, advantages, mask, clip_low, clip_high):
        """Of each token, of all rows or of some."""
        arguments = (logprobs, old_logprobs, advantages, mask, clip_low, clip_high)
        found = self.pieces[1](*arguments)
        if has_some_rows(logprobs, self._batch()):
            self.rows.append(arguments)
        else:
            self.losses.append((*arguments, found))
        self._put_together()
        return found

    def kl_of(self, logprobs, ref_logprobs):
        """Of each token, of all or of some."""
        found = self.pieces[2](logprobs, ref_logprobs)
        if has_some_tokens(logprobs, self._batch()):
            self.tokens.append((logprobs, ref_logprobs))
        else:
            self.kls.append((logprobs, ref_logprobs, found))
        self._put_together()
        return found

    def _batch(self) -> int:
        return self.rewards[-1][0].numel() if self.rewards else 0

    @torch.enable_grad()
    def _put_together(self) -> None:
        """Parts that are all of a batch are one call; what a piece returned for them is not looked at."""
        if self.rows and (all_rows := joined(self.rows, self._batch())):
            self.losses.append((*all_rows, None))
            self.rows = []
        if self.tokens and len(self.losses) > len(self.kls):
            logprobs, _, _, mask, *_ = self.losses[len(self.kls)]
            if all_tokens := spread(self.tokens, logprobs, mask):
                self.kls.append((*all_tokens, None))
                self.tokens = []
        self._note_gradient()

    @property
    def given(self) -> tuple[Callable, ...]:
        """The pieces as the loop gets them."""
        return self.advantages_of, self.loss_of, self.kl_of

    def watch(self, optimizer, policy) -> Witness:
        """Stand for an optimizer."""
        self.optimizer, self.weights = optimizer, list(policy.parameters())
        return self

    def __getattr__(self, name: str):
        return getattr(self.__dict__["optimizer"], name)

    def step(self, *arguments, **options):
        """Of the optimizer."""
        if self.rows or self.tokens:
            raise CheckFailed(LEFT)
        if self.taken in self.noted:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.weights]
            self.steps[self.taken] = grads
        self.taken += 1
        return self.optimizer.step(*arguments, **options)

    @torch.enable_grad()
    def _note_gradient(self) -> None:
        """Once an update has both its parts, the gradient of the loss that is asked for.

        Both parts are made anew: what the loop was given may have been cut off from the policy.
        """
        number = len(self.losses) - 1
        if number not in self.noted or number in self.wanted or len(self.losses) != len(self.kls):
            return
        if not self.losses[-1][0].requires_grad:
            return
        (logprobs, *_, mask, _, _, _), reference = self.losses[-1], self.kls[-1][1]
        per_token = self.pieces[1](*self.losses[-1][:-1])
        kl = self.pieces[2](logprobs, reference.detach())
        if not per_token.requires_grad or per_token.shape != mask.shape or kl.shape != mask.shape:
            return
        self.wanted[number] = self._gradient(_mean(per_token + self.beta * _inside(kl, mask), mask))
        named = len(self.mistakes) < self.named
        few = _wrong_losses(per_token, kl, mask, self.beta) if named else {}
        self.mistakes[number] = {sentence: self._gradient(wrong) for sentence, wrong in few.items()}

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.weights, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.weights, found, strict=True)]


def _inside(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0)


def _mean(per_token: Tensor, mask: Tensor) -> Tensor:
    return (_inside(per_token, mask).sum(1) / mask.sum(1)).mean()


def _wrong_losses(per_token: Tensor, kl: Tensor, mask: Tensor, beta: float) -> dict[str, Tensor]:
    """What the usual mistakes make of the loss."""
    inside = _inside(kl, mask)
    total = _inside(per_token, mask) + beta * inside
    both = "take the mean of each completion, then the mean of those."
    return {
        "The loss is negated: the policy learns the opposite.": -_mean(total, mask),
        f"Your mean runs over all tokens of the batch: {both}": total.sum() / mask.sum(),
        f"Your mean runs over padding, too: {both}": total.mean(),
        f"You add up the tokens of a completion: {both}": total.sum(1).mean(),
        f"You add up the completions: {both}": _mean(total, mask) * len(mask),
        f"You add up all tokens: {both}": total.sum(),
        "The KL is missing, or cut off from the policy: config.beta times kl_of, with its gradient.": (
            _mean(per_token, mask)
        ),
        "The KL is not multiplied by config.beta.": _mean(per_token + inside, mask),
        "The KL is subtracted: distance costs, and does not pay.": _mean(per_token - beta * inside, mask),
        "The KL of padding counts: mask it, torch.where.": (
            (per_token + beta * kl).sum(1) / mask.sum(1)
        ).mean(),
    }


def _look(learn: Callable, pieces: tuple[Callable, ...], task: WordTask, seed: int) -> None:
    """Run two steps, and see what the pieces are called with, and what the optimizer is given."""
    seen = Witness(pieces, BETA, range(2 * UPDATES), UPDATES)
    found = race(learn, task, seed, seen.given, seen.watch, max_steps=2, num_iterations=UPDATES, beta=BETA)
    _look_at_all(seen, found["rewards"], 2, UPDATES)


def _look_later(learn: Callable, pieces: tuple[Callable, ...], task: WordTask, seed: int) -> dict:
    """Run all steps with the capstone's own settings: a loop that changes on the way is seen."""
    usual = config_of(task)
    every = range(2 * usual.num_iterations, usual.max_steps * usual.num_iterations)
    seen = Witness(pieces, usual.beta, set(random.Random(seed).sample(every, LATER)), 1)
    found = race(learn, task, seed, seen.given, seen.watch)
    _look_at_all(seen, found["rewards"], usual.max_steps, usual.num_iterations)
    return found


def _look_at_ties(
    learn: Callable, pieces: tuple[Callable, ...], task: WordTask, policy: torch.nn.Module, seed: int
) -> None:
    """Two steps in which no answer is right, so that all groups are tied, at some distance to a reference.

    The weak policy's answers all had the same length in one draw of 95, and then a mask of ones is right.
    The policy here is weaker: over four draws at most 85 % of its answers had the usual length, so that all
    256 of a step do once in 10^18.
    """
    student, reference = copy.deepcopy(policy), copy.deepcopy(policy)  # which could be trained, and is not
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(0.8)
    rows = [{**row, "answer": "none"} for row in task.training]
    seen = Witness(pieces, BETA, range(4), 0)
    optimizer = seen.watch(AdamW(student.parameters(), lr=1e-3), student)
    config = config_of(task, max_steps=2, num_iterations=2, beta=BETA)
    generator = torch.Generator().manual_seed(seed)
    learn(student, reference, optimizer, task.tokenizer, rows, config, generator, *seen.given)
    if seen.taken != 4:
        raise CheckFailed(
            f"Where all groups are tied the optimizer takes {seen.taken} steps in two steps of 2 updates "
            "each, expected 4: without advantages the pull to the reference still counts."
        )
    if any(loss[3].all() for loss in seen.losses):
        raise CheckFailed(EVERYWHERE)
    for number in range(4):
        if number in seen.wanted and not _is_given(seen, number):
            raise CheckFailed(
                "Where all groups are tied the optimizer is given another gradient than that of the KL: "
                "without advantages the pull to the reference still counts, in each row."
            )


def _look_at_all(seen: Witness, rewards_told: object, steps: int, updates: int) -> None:
    made = {
        "advantages_of": (len(seen.rewards), steps),
        "loss_of": (len(seen.losses), steps * updates),
        "kl_of": (len(seen.kls), steps * updates),
        "optimizer.step": (seen.taken, steps * updates),
    }
    for name, (times, wanted) in made.items():
        if times != wanted:
            hint = HINTS.get(name, "") if times < wanted else ""
            raise CheckFailed(
                f"{name} was called {times} times in {'two' if steps == 2 else steps} steps of {updates} "
                f"updates each, expected {wanted}.{hint}"
            )
    _look_at_rewards(seen, rewards_told, steps)
    for number in range(steps * updates):
        _look_at_update(seen, number, updates)


HINTS = {
    "advantages_of": " Go on for config.max_steps steps, however good the policy has become.",
    "optimizer.step": " The optimizer that is handed over takes the steps, and not one of your own.",
}
MASK = "loss_of takes (logprobs, old_logprobs, advantages, mask, 0.2, 0.2), the mask (B, T)."
EVERYWHERE = f"{MASK} Yours is true everywhere, at padding as well."


def _look_at_rewards(seen: Witness, rewards_told: object, steps: int) -> None:
    rewards = [rewards for rewards, _ in seen.rewards]
    others = [tuple(r.shape) for r in rewards if tuple(r.shape) != (16, 16)]
    if others:
        raise CheckFailed(f"advantages_of wants rewards (P, G) = (16, 16), and got {others[0]}.")
    means = torch.stack([r.double().mean() for r in rewards])
    try:
        told = torch.as_tensor(rewards_told, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        told = torch.zeros(0)
    if told.shape != (steps,) or not torch.allclose(told, means, atol=1e-4):
        raise CheckFailed("Return a list with the mean reward of each step, one number a step.")
    listed("mean rewards", rewards_told)


def _look_at_update(seen: Witness, number: int, updates: int) -> None:
    start = number - number % updates  # the first update of this batch
    logprobs, old, A, mask, low, high = seen.losses[number][:6]
    kl_logprobs, reference = seen.kls[number][:2]
    sampled, given = seen.losses[start][1], seen.rewards[number // updates][1]
    if A.shape != (256,) or not torch.equal(A.detach(), given.detach().flatten()):
        raise CheckFailed(
            "loss_of wants what advantages_of returned, flat: (B,), row i answers prompt i // G."
        )
    masked = mask.dtype == torch.bool and mask.shape == logprobs.shape
    if (low, high) != (0.2, 0.2) or not masked:
        raise CheckFailed(MASK + _from(number, updates))
    if not torch.equal(old, sampled) or not logprobs.requires_grad or old.requires_grad:
        raise CheckFailed(
            "The old log-probs are those of sampling, rollout.logprobs: constant in all updates."
        )
    if number == start and not torch.allclose(logprobs[mask], old[mask], atol=1e-3):
        first = "At the first update of a batch new and old log-probs are equal, and yours are not."
        raise CheckFailed(EVERYWHERE if mask.all() else first)
    if number > start and torch.equal(logprobs, seen.losses[number - 1][0]):
        raise CheckFailed("The policy has not moved between two updates: backward, then optimizer.step().")
    same = kl_logprobs.shape == mask.shape and torch.equal(kl_logprobs[mask], logprobs[mask])
    if same and not kl_logprobs.requires_grad:
        raise CheckFailed(
            "kl_of is given log-probs that are cut off from the policy, so the KL has no gradient and holds "
            "nothing back: hand it those that loss_of gets, not detached."
        )
    if not same or reference.shape != mask.shape or reference.requires_grad:
        raise CheckFailed(
            "kl_of is called with the policy's log-probs, then with the reference's, a constant."
        )
    moved = start > 0 and torch.allclose(reference[mask], old[mask], atol=1e-3)
    if not torch.equal(reference[mask], seen.kls[start][1][mask]) or moved:
        raise CheckFailed("The reference's log-probs are those of the reference, not of the policy.")
    if number in seen.noted:
        _look_at_gradient(seen, number, updates)


def _look_at_gradient(seen: Witness, number: int, updates: int) -> None:
    if number not in seen.wanted:
        raise CheckFailed("loss_of and kl_of each return (B, T), the first with a gradient: yours do not.")
    if _is_given(seen, number):
        return
    where = f"In update {number % updates + 1} of a batch{_from(number, updates)}"
    got, wanted = _flat(seen.steps[number]), _flat(seen.wanted[number])
    for sentence, wrong in seen.mistakes[number].items():
        if _close(got, _flat(wrong)) and not _close(wanted, _flat(wrong)):
            raise CheckFailed(f"{where}: {sentence}")
    raise CheckFailed(
        f"{where} the optimizer is given another gradient than that of the loss: loss_of plus beta times "
        "kl_of at sampled tokens, the mean of each completion, the mean of those. Or that of an earlier "
        "update is still in it: optimizer.zero_grad()."
    )


def _from(number: int, updates: int) -> str:
    """Names a step that is not one of the first two."""
    step = number // updates + 1
    return f" (in step {step}: no step is another than the first)" if step > 2 else ""


def _is_given(seen: Witness, number: int) -> bool:
    return _close(_flat(seen.steps[number]), _flat(seen.wanted[number]))


def _flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient])


def _close(a: Tensor, b: Tensor) -> bool:
    """In direction and in length."""
    return bool(torch.cosine_similarity(a, b, 0) > 0.999 and (a.norm() / b.norm() - 1).abs() < 0.01)
