r"""The microscope: every completion of a tiny vocabulary, so that nothing is left to chance.

With three tokens and at most three of them in a completion there are 15 completions. So the expected
reward, its gradient, the KL divergence and the entropy of a *real* GPT are finite sums, and so is the
expectation of any estimator: run it on every group that can be drawn, weigh each result with the
probability of that group. What runs is the estimator itself, with its own autograd; nothing is derived
a second time. In float64 the sums are exact to about 1e-15.

Two facts keep it fast. The gradient of a group's loss is :math:`W J`: the estimator gives W, its
derivative by the log-probs that it was shown, and the model gives J, the derivative of all log-probs by
the parameters, once. And groups that hold the same completions in another order are one group, counted
as often as it can be ordered.

Legend: P prompts, N completions in all, G in a group, T tokens, D parameters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import torch
from torch import Tensor

from nanogrpo.errors import OptionError, check_shape
from nanogrpo.model import GPT
from nanogrpo.rollout import Rollout, draw_uniforms, generate, token_logprobs


class Sample(NamedTuple):
    """What an estimator is shown: one batch, as a training step would see it. B = P*G rows.

    Attributes:
        logprobs: (B, T), the policy's, with gradient, zero where masked.
        old_logprobs: (B, T), those of the policy that sampled.
        ref_logprobs: (B, T) of the reference, or None.
        mask: (B, T) bool, EOS included.
        rewards: (P, G).
        completion_ids: (B, T).
    """

    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    mask: Tensor
    rewards: Tensor
    completion_ids: Tensor


Estimator = Callable[[Sample], Tensor]
"""From one :class:`Sample` to the scalar loss whose gradient is the estimate (of minus the ascent)."""


class Moments(NamedTuple):
    """Mean and spread of an estimator.

    Attributes:
        loss: Scalar, the mean of the loss.
        gradient: (D,), the mean of its gradient.
        variance: Scalar, summed over the D parameters; of one batch.
        standard_error: (D,) of ``gradient``; exactly zero if every group was summed.
    """

    loss: Tensor
    gradient: Tensor
    variance: Tensor
    standard_error: Tensor


def enumerate_completions(
    vocab_size: int, max_new_tokens: int, eos_id: int = 1, pad_id: int = 0
) -> tuple[Tensor, Tensor]:
    """List every completion: ended by its first EOS, or cut off at ``max_new_tokens``.

    Args:
        vocab_size: V; every token but EOS is an ordinary one, the pad token too, since a model can sample it.
        max_new_tokens: T.
        eos_id: Ends a completion and belongs to it.
        pad_id: Fills the rest of the row, where the mask is false.

    Returns:
        Ids (N, T) and mask (N, T).

    Raises:
        OptionError: More than a million completions.

    >>> ids, mask = enumerate_completions(vocab_size=3, max_new_tokens=2)
    >>> ids.tolist(), mask.sum(1).tolist()
    ([[1, 0], [0, 1], [2, 1], [0, 0], [0, 2], [2, 0], [2, 2]], [1, 2, 2, 2, 2, 2, 2])
    """
    if vocab_size**max_new_tokens > 10**6:
        raise OptionError(
            f"{vocab_size}**{max_new_tokens} completions are too many to enumerate; use monte_carlo"
        )
    others = [token for token in range(vocab_size) if token != eos_id]
    ended = [[*head, eos_id] for n in range(max_new_tokens) for head in product(others, repeat=n)]
    rows = ended + [list(full) for full in product(others, repeat=max_new_tokens)]
    ids = torch.tensor([row + [pad_id] * (max_new_tokens - len(row)) for row in rows])  # (N, T)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(max_new_tokens) < lengths[:, None]


class Microscope:
    """All completions of one or more prompts under a policy, and exact sums over them.

    Args:
        model: The policy, in float64 if the sums shall be exact to 1e-12.
        prompts: Token ids, one list a prompt.
        max_new_tokens: T.
        eos_id: Ends a completion.
        pad_id: Fills the rows.
        temperature: Divides the logits.
        old: The policy that samples; the model itself if None.
        reference: The frozen reference of a KL penalty, or None.

    Attributes:
        ids, mask: (N, T), every completion.
        logprobs: (P, N, T), with gradient, zero where masked.
    """

    def __init__(
        self,
        model: GPT,
        prompts: list[list[int]],
        max_new_tokens: int,
        *,
        eos_id: int = 1,
        pad_id: int = 0,
        temperature: float = 1.0,
        old: GPT | None = None,
        reference: GPT | None = None,
    ):
        self.ids, self.mask = enumerate_completions(model.config.vocab_size, max_new_tokens, eos_id, pad_id)
        self.parameters = list(model.parameters())
        self.prompts, self.temperature = prompts, temperature
        self.logprobs = self._table(model)  # (P, N, T)
        with torch.no_grad():
            self.old_logprobs = self.logprobs.detach() if old is None else self._table(old)
            self.ref_logprobs = None if reference is None else self._table(reference)

    def _table(self, model: GPT) -> Tensor:
        prompt_ids, prompt_lens = pad(self.prompts)
        P, (N, T) = len(self.prompts), self.ids.shape
        logprobs = token_logprobs(model, prompt_ids, prompt_lens, self.ids.repeat(P, 1), self.temperature)
        return torch.where(self.mask, logprobs.view(P, N, T), 0.0)

    @property
    def probabilities(self) -> Tensor:
        """Probability of each completion, (P, N), with gradient; each row sums to one."""
        return self.logprobs.sum(2).exp()

    def objective(self, rewards: Tensor) -> Tensor:
        """Expected reward, the mean over prompts; ``rewards`` (P, N) or (N,), one for each completion."""
        return (self.probabilities * rewards).sum(1).mean()

    def expected_length(self) -> Tensor:
        """Expected number of sampled tokens, the mean over prompts."""
        return self.objective(self.mask.sum(1).to(self.logprobs.dtype))

    def entropy(self) -> Tensor:
        """Entropy of the distribution over whole completions in nats, the mean over prompts."""
        return -(self.probabilities * self.logprobs.sum(2)).sum(1).mean()

    def kl(self) -> Tensor:
        """KL(policy || reference) of whole completions in nats, the mean over prompts."""
        if self.ref_logprobs is None:
            raise OptionError("there is no reference; pass Microscope(..., reference=model)")
        return (self.probabilities * (self.logprobs - self.ref_logprobs).sum(2)).sum(1).mean()

    def gradient(self, scalar: Tensor) -> Tensor:
        """Derivative of a scalar by all parameters of the policy, one vector (D,)."""
        grads = torch.autograd.grad(scalar, self.parameters, retain_graph=True, allow_unused=True)
        pairs = zip(grads, self.parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def jacobian(self) -> Tensor:
        """Derivative of every log-prob by every parameter, (P*N*T, D)."""
        rows = self.logprobs.flatten()
        kept = self.mask.expand(self.logprobs.shape).flatten()
        J = torch.zeros(len(rows), sum(p.numel() for p in self.parameters), dtype=rows.dtype)
        for i in kept.nonzero().flatten().tolist():
            J[i] = self.gradient(rows[i])
        return J

    def groups(self, group_size: int) -> Iterator[tuple[float, Tensor]]:
        """Every batch that one step can draw: its probability, and the completions drawn, (P, G) indices.

        Groups that differ in order only come once, with the probability of all orders together. So an
        estimator must not depend on the order within a group; those of this package do not.
        """
        per_prompt = []
        for row in self.old_logprobs.sum(2).exp().tolist():  # N probabilities
            found = []
            for members in combinations_with_replacement(range(len(row)), group_size):
                orders = math.factorial(group_size)
                for count in Counter(members).values():
                    orders //= math.factorial(count)
                found.append((orders * math.prod(row[m] for m in members), members))
            per_prompt.append(found)
        for batch in product(*per_prompt):
            yield math.prod(p for p, _ in batch), torch.tensor([members for _, members in batch])

    def show(self, index: Tensor, rewards: Tensor, logprobs: Tensor) -> Sample:
        """The :class:`Sample` of one batch: completions ``index`` (P, G), their log-probs from a table."""
        prompt = torch.arange(len(index))[:, None]  # (P, 1)
        ref = None if self.ref_logprobs is None else self.ref_logprobs[prompt, index].flatten(0, 1)
        return Sample(
            logprobs[prompt, index].flatten(0, 1),  # (B, T)
            self.old_logprobs[prompt, index].flatten(0, 1),
            ref,
            self.mask[index].flatten(0, 1),
            rewards[prompt, index],  # (P, G)
            self.ids[index].flatten(0, 1),
        )

    def expect(self, estimator: Estimator, rewards: Tensor, group_size: int) -> Moments:
        """Mean and variance of an estimator, over every batch that the sampling policy can draw.

        Args:
            estimator: From a :class:`Sample` to a scalar loss.
            rewards: (N,) or (P, N), one for each completion.
            group_size: G. The number of batches grows as N to the power of P*G.

        Returns:
            Exact moments; the standard error is zero.

        Raises:
            ShapeError: ``rewards`` does not fit.
            OptionError: More than 100,000 batches; use :func:`monte_carlo`.
        """
        P, N, _ = self.logprobs.shape
        shape = (N,) if rewards.ndim == 1 else (P, N)
        check_shape("rewards", rewards, shape, "one for each completion of each prompt")
        rewards = rewards.expand(P, N)
        batches = math.comb(N + group_size - 1, group_size) ** P
        if batches > 10**5:
            raise OptionError(f"{batches} batches are too many to sum; use monte_carlo, or a smaller group")
        table = self.logprobs.detach().requires_grad_()
        weights, losses, W = [], [], []
        for probability, index in self.groups(group_size):
            loss = estimator(self.show(index, rewards, table))
            slope = torch.autograd.grad(loss, table)[0] if loss.requires_grad else torch.zeros_like(table)
            weights.append(probability)
            losses.append(loss.detach())
            W.append(slope.flatten())
        q = torch.tensor(weights, dtype=table.dtype)  # (M,), sums to one
        gradients = torch.stack(W) @ self.jacobian()  # (M, D)
        mean = q @ gradients
        variance = q @ (gradients - mean).square().sum(1)
        return Moments(q @ torch.stack(losses), mean, variance, torch.zeros_like(mean))


def monte_carlo(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    estimator: Estimator,
    reward: Callable[[Rollout], Tensor],
    group_size: int,
    batches: int,
    *,
    generator: torch.Generator,
    eos_id: int = 1,
    pad_id: int = 0,
    temperature: float = 1.0,
    reference: GPT | None = None,
) -> Moments:
    """Estimate the same moments by sampling, for models whose completions cannot be enumerated.

    Args:
        model: The policy.
        prompts: Token ids, one list a prompt.
        max_new_tokens: T.
        estimator: From a :class:`Sample` to a scalar loss.
        reward: From a rollout to (B,) rewards.
        group_size: G.
        batches: How many batches to draw; at least 2.
        generator: Of the random numbers.
        eos_id, pad_id, temperature, reference: As for :class:`Microscope`.

    Returns:
        Means over the batches. ``standard_error`` is that of ``gradient``: the truth lies within two of
        them for about 19 parameters in 20.
    """
    if batches < 2:
        raise OptionError(f"batches={batches}; a standard error needs at least 2")
    prompt_ids, prompt_lens = pad(prompts)
    parameters, losses, gradients = list(model.parameters()), [], []
    for _ in range(batches):
        B = len(prompts) * group_size
        rollout = generate(
            model,
            prompt_ids,
            prompt_lens,
            group_size=group_size,
            max_new_tokens=max_new_tokens,
            eos_id=eos_id,
            pad_id=pad_id,
            uniforms=draw_uniforms(B, max_new_tokens, generator, model.head.weight),
            temperature=temperature,
        )
        arguments = (prompt_ids, prompt_lens, rollout.completion_ids, temperature)
        rewards = reward(rollout).to(model.head.weight.dtype).view(len(prompts), group_size)
        with torch.no_grad():
            ref = None if reference is None else token_logprobs(reference, *arguments)
        logprobs, mask = token_logprobs(model, *arguments), rollout.completion_mask
        loss = estimator(Sample(logprobs, rollout.logprobs, ref, mask, rewards, rollout.completion_ids))
        grads = torch.autograd.grad(loss, parameters)
        losses.append(loss.detach())
        gradients.append(torch.cat([g.flatten() for g in grads]))
    drawn = torch.stack(gradients)  # (M, D)
    error = drawn.std(0) / batches**0.5
    return Moments(torch.stack(losses).mean(), drawn.mean(0), drawn.var(0).sum(), error)


def pad(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of different lengths as one table, (P, Tp), padded on the right, and their lengths (P,)."""
    lens = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lens.max()), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
    return ids, lens
