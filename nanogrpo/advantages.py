"""From rewards to advantages: how much better was this completion than what we expected?

    prompt -> rollout -> reward -> **advantage** -> loss -> step

Legend: P prompts, G completions a prompt (the group), B = P*G rows, T tokens.

Everything here is a pure function of tensors. Nothing here has a gradient: an advantage is a
constant of the loss, so :func:`gae`, the one function that is fed the output of a network, cuts it.

What is left out: reward clipping and running reward statistics. They hide a badly scaled reward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanogrpo.errors import (
    DTypeError,
    GroupSizeError,
    MaskError,
    NonFiniteError,
    OptionError,
    ShapeError,
    check_choice,
    check_mask,
    check_range,
    check_shape,
)
from nanogrpo.precision import widen


def group_advantages(
    rewards: Tensor, scale_rewards: str = "group", eps: float = 1e-4, correction: int = 0
) -> Tensor:
    r"""Compare each reward with the mean of its own group, in units of a standard deviation: GRPO.

    .. math:: \hat A_i = \frac{r_i - \mathrm{mean}(r_1..r_G)}{\mathrm{std}(r_1..r_G) + \epsilon}

    Outcome supervision in DeepSeekMath (arXiv 2402.03300, section 4.1). ``scale_rewards="none"`` keeps
    the numerator alone, as Dr. GRPO does (arXiv 2503.20783); ``"batch"`` divides by the standard
    deviation of all P*G rewards.

    A group whose rewards are all equal gets exactly zero. Such a group is found by ``max == min``, not
    by a small ``eps``: in float32 the mean of equal numbers can miss them by one rounding, and dividing
    that miss by ``eps=1e-8`` makes an advantage of order one out of nothing.

    Args:
        rewards: (P, G), floating, in any unit.
        scale_rewards: ``"group"``, ``"batch"`` or ``"none"`` (the name and the values are TRL's).
        eps: Added to the standard deviation, in the unit of the rewards. Zero is allowed.
        correction: 0 divides by G (population), 1 by G-1 (Bessel). TRL, verl and OpenRLHF use 1.

    Returns:
        (P, G) advantages. Each group sums to zero. With ``"group"`` they carry no unit, and without
        ``eps`` none is beyond sqrt(G-1).

    Raises:
        ShapeError, DTypeError: ``rewards`` is not a floating (P, G).
        GroupSizeError: G < 2. One completion has nothing to be compared with.
        NonFiniteError: A reward is NaN or infinite.
        OptionError: Unknown ``scale_rewards``.

    When it is wrong: with ``"group"`` and G > 3 the gradient is no longer that of the mean reward.
    For right-or-wrong rewards a prompt solved with probability p is weighted by up to 1/sqrt(p(1-p)).
    And a group of *nearly* equal rewards has its noise blown up to order one: prefer ``"none"`` when
    the reward comes from a noisy model.

    >>> one_of_eight = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    >>> group_advantages(one_of_eight, eps=0.0)[0, :2]
    tensor([ 2.6458, -0.3780])
    >>> group_advantages(one_of_eight, eps=0.0, correction=1)[0, :2]
    tensor([ 2.4749, -0.3536])
    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.3, 0.3, 0.3, 0.3]]), "none")
    tensor([[ 0.2500, -0.7500, -0.7500,  1.2500],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    rewards = _check_rewards(rewards)
    tied = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # (P, 1)
    advantages = rewards - rewards.mean(1, keepdim=True)  # (P, G)
    advantages = advantages.masked_fill(tied, 0.0)  # equal rewards teach nothing, exactly
    return _scaled(advantages, rewards, scale_rewards, eps, correction)


def leave_one_out(rewards: Tensor) -> Tensor:
    r"""Compare each reward with the mean of the *other* rewards of its group: RLOO.

    .. math:: A_i = r_i - \frac{1}{G-1}\sum_{j \ne i} r_j = \frac{G}{G-1}(r_i - \bar r)

    Kool et al. 2019; for language models arXiv 2402.14740. The baseline does not contain r_i, so the
    gradient estimate is unbiased. It differs from ``group_advantages(rewards, "none")`` by G/(G-1) only.

    Args:
        rewards: (P, G), floating.

    Returns:
        (P, G), in the unit of the rewards. Each group sums to zero; tied groups are exactly zero.

    Raises:
        ShapeError, DTypeError, GroupSizeError, NonFiniteError: As for :func:`group_advantages`.

    When it is wrong: together with a per-sequence mean over tokens. With 1/length in the loss no
    baseline is free, see :func:`nanogrpo.losses.aggregate`.

    >>> leave_one_out(torch.tensor([[1.0, 0.0, 0.0, 2.0]]))
    tensor([[ 0.3333, -1.0000, -1.0000,  1.6667]])
    """
    rewards = _check_rewards(rewards)
    tied = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # (P, 1)
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)  # (P, G)
    return (rewards - others).masked_fill(tied, 0.0)


def batch_advantages(rewards: Tensor, eps: float = 1e-4, correction: int = 0) -> Tensor:
    r"""Compare each reward with the mean of the whole batch, whichever prompt it answers.

    .. math:: A_i = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r) + \epsilon}

    This is what one gets by taking "GRPO" to be a z-score over the batch, without groups.

    Args:
        rewards: Any shape with at least two entries, floating.
        eps: Added to the standard deviation, in the unit of the rewards.
        correction: 0 divides by the number of rewards, 1 by that number less one.

    Returns:
        The shape of ``rewards``. Exactly zero if all rewards of the batch are equal.

    Raises:
        DTypeError, NonFiniteError: ``rewards`` is not floating, or not finite.
        GroupSizeError: Fewer than two rewards.

    When it is wrong: when prompts differ much in difficulty. The baseline is then nobody's: a prompt
    whose completions are all right, or all wrong, still pushes them up, or down. Over many batches these
    pushes cancel. Whether they make one batch noisier is to be measured: the batch mean also averages
    over more rewards, and where prompts are not extremely different it is the *quieter* baseline.

    >>> batch_advantages(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), eps=0.0)
    tensor([[ 1.,  1.,  1.,  1.],
            [-1., -1., -1., -1.]])
    """
    rewards = _check_values(rewards)
    if rewards.numel() < 2:
        raise GroupSizeError(f"the batch holds {rewards.numel()} reward(s), need at least 2 to compare")
    return _scaled(_less_batch_mean(rewards), rewards, "batch", eps, correction)


def global_advantages(rewards: Tensor, lengths: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    r"""Subtract the group mean, then normalize over the whole batch: REINFORCE++ with baseline.

    .. math:: A'_i = r_i - \bar r_{\mathrm{group}(i)}, \qquad
              A_i = \frac{A'_i - \mathrm{mean}_{\mathrm{batch}}(A')}
                         {\mathrm{std}_{\mathrm{batch}}(A') + \epsilon}

    REINFORCE++ (arXiv 2501.03262) normalizes over all *tokens* of the batch: the advantage of a
    completion counts once for each of its tokens. Give ``lengths`` for that reading. Without
    ``lengths`` each completion counts once, and the batch mean is zero already.

    Args:
        rewards: (P, G), floating.
        lengths: (P, G), tokens in each completion, or None.
        eps: Added to the standard deviation, in the unit of the rewards.

    Returns:
        (P, G). Exactly zero if no group has two different rewards. Otherwise a tied group may get a
        small common shift when ``lengths`` are given, since the token mean need not be zero.

    Raises:
        ShapeError, DTypeError, GroupSizeError, NonFiniteError: As for :func:`group_advantages`.

    When it is wrong: without groups (G = 1); use :func:`batch_advantages`, the paper's variant without
    baseline. With ``lengths``, when tied groups must teach nothing.

    >>> global_advantages(torch.tensor([[1.0, 0.0], [4.0, 0.0]]), eps=0.0)
    tensor([[ 0.3430, -0.3430],
            [ 1.3720, -1.3720]])
    """
    return baseline_advantages(rewards, "group", "global", eps, lengths=lengths)


def baseline_advantages(
    rewards: Tensor,
    baseline: str = "group",
    scale_rewards: str = "group",
    eps: float = 1e-4,
    correction: int = 0,
    lengths: Tensor | None = None,
) -> Tensor:
    r"""Reward minus a baseline, in units of a standard deviation: the ladder from REINFORCE to GRPO.

    .. math:: A_i = \frac{r_i - b_i}{\sigma_i + \epsilon}

    Baselines and deviations of REINFORCE (Williams 1992), RLOO, GRPO and others, by the names of the tables:

    ================= =============================== ============================================
    ``baseline``      :math:`b_i`, its value          who
    ================= =============================== ============================================
    ``none``          0                               REINFORCE, Williams 1992
    ``batch``         mean of all P*G rewards         REINFORCE with a common baseline
    ``leave_one_out`` mean of the group's others      RLOO, arXiv 2402.14740
    ``group``         mean of the group               GRPO, arXiv 2402.03300
    ``length``        mean of the group's *tokens*    OPO, arXiv 2505.23585
    ================= =============================== ============================================

    ================= ============================================== =============================
    ``scale_rewards`` :math:`\sigma_i`                               who
    ================= ============================================== =============================
    ``none``          1                                              Dr. GRPO, arXiv 2503.20783
    ``group``         standard deviation of the group's rewards      GRPO
    ``batch``         of all P*G rewards                             TRL's ``"batch"``
    ``global``        of all :math:`r - b`, from their common mean   REINFORCE++, arXiv 2501.03262
    ``mean``          no deviation: the *mean* of the group          MaxRL, arXiv 2602.02710
    ================= ============================================== =============================

    ``length`` weighs each reward with the tokens of its completion: the baseline of least variance, if the
    squared gradient of a completion grows as its length does. ``mean`` is for rewards of at least 0: the
    gradient of the logarithm of the chance of success, cut off after as many terms as the group can show.

    Every function of this file that starts from (P, G) rewards is one pair of these.

    Args:
        rewards: (P, G), floating.
        baseline: As above.
        scale_rewards: As above.
        eps: Added to the standard deviation, in the unit of the rewards.
        correction: 0 divides by the number of rewards, 1 by that number less one (Bessel).
        lengths: (P, G), tokens of each completion, for ``"global"`` and ``"length"``: each then counts as
            often as it has tokens; None for once.

    Returns:
        (P, G). With a baseline from the group, a tied group gets exactly zero; with ``"batch"``, a batch
        whose rewards are all equal does.

    Raises:
        OptionError: As in :func:`check_baseline`.
        ShapeError, DTypeError, GroupSizeError, NonFiniteError: As for :func:`group_advantages`.

    When it is wrong: ``"none"``, unless the point is to see what a baseline brings.

    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    >>> baseline_advantages(rewards, "leave_one_out", "none")[0]
    tensor([ 0.3333, -1.0000, -1.0000,  1.6667])
    >>> baseline_advantages(rewards, "batch", "none")
    tensor([[ 0.1250, -0.8750, -0.8750,  1.1250],
            [ 0.1250,  0.1250,  0.1250,  0.1250]])
    """
    check_baseline(baseline, scale_rewards)
    rewards = _check_rewards(rewards)
    _weights(lengths, rewards)
    advantages = BASELINES[baseline](rewards, lengths)
    return _scaled(advantages, rewards, scale_rewards, eps, correction, lengths)


def check_baseline(baseline: str, scale_rewards: str) -> None:
    """Raise OptionError unless both names are known and go together.

    The standard deviation of a group goes with a baseline from the group only: with another, a group of equal
    rewards would be divided by ``eps`` alone.
    """
    check_choice("baseline", baseline, BASELINES)
    check_choice("scale_rewards", scale_rewards, SCALES)
    if scale_rewards in ("group", "mean") and baseline not in ("group", "leave_one_out", "length"):
        raise OptionError(
            f"scale_rewards={scale_rewards!r} with baseline={baseline!r} divides groups of equal rewards by "
            "eps alone; choose scale_rewards='batch' or 'none'"
        )


def _less_batch_mean(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()).masked_fill(rewards.max() == rewards.min(), 0.0)


def _less_token_mean(rewards: Tensor, lengths: Tensor | None) -> Tensor:
    weights = _weights(lengths, rewards)
    tied = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # (P, 1)
    mean = (weights * rewards).sum(1, keepdim=True) / weights.sum(1, keepdim=True)  # (P, 1)
    return (rewards - mean).masked_fill(tied, 0.0)


# The reward less what it is compared with, (P, G) of (P, G) and of lengths. Equal rewards give exactly 0.
BASELINES = {
    "group": lambda rewards, lengths: group_advantages(rewards, "none"),
    "leave_one_out": lambda rewards, lengths: leave_one_out(rewards),
    "batch": lambda rewards, lengths: _less_batch_mean(rewards),
    "none": lambda rewards, lengths: rewards,
    "length": lambda rewards, lengths: _less_token_mean(rewards, lengths),
}
SCALES = ("group", "batch", "global", "none", "mean")


def _scaled(
    advantages: Tensor, rewards: Tensor, scale_rewards: str, eps: float, correction: int,
    lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Advantages in units of a standard deviation, see :func:`baseline_advantages`; what is 0 stays 0."""
    check_choice("scale_rewards", scale_rewards, SCALES)
    check_range("eps", eps)
    check_choice("correction", correction, (0, 1))
    _check_overflow(advantages)
    if scale_rewards == "none":
        return advantages
    if scale_rewards == "global":
        return _standardized(advantages, lengths, eps, correction)
    if scale_rewards == "mean":
        scale = _positive(rewards).mean(1, keepdim=True)  # (P, 1)
    elif scale_rewards == "group":
        scale = rewards.std(1, keepdim=True, correction=correction)  # (P, 1)
    else:
        scale = rewards.std(correction=correction)
    _check_overflow(scale)
    return (advantages / (scale + eps)).masked_fill(advantages == 0, 0.0)


def _positive(rewards: Tensor) -> Tensor:
    if rewards.min() < 0:
        raise OptionError(
            f"scale_rewards='mean' divides by the mean of a group, and a reward is {rewards.min().item():g}; "
            "give rewards of at least 0, or another scale_rewards"
        )
    return rewards


def _standardized(advantages: Tensor, lengths: Tensor | None, eps: float, correction: int = 0) -> Tensor:
    """Mean 0 and standard deviation 1 over the batch, each completion as often as it has tokens."""
    weights = _weights(lengths, advantages)
    if (advantages == advantages[0, 0]).all():
        return torch.zeros_like(advantages)
    number = weights.sum()  # of tokens, or of completions
    weights = weights / number
    mean = (weights * advantages).sum()
    variance = (weights * (advantages - mean) ** 2).sum() * (number / (number - correction))
    _check_overflow(variance)
    return (advantages - mean) / (variance.sqrt() + eps)


def _check_overflow(computed: Tensor) -> None:
    """Raise NonFiniteError where finite rewards gave no finite number: divided by that, all would be 0."""
    if not computed.isfinite().all():
        raise NonFiniteError(
            f"the rewards are so large that their spread is beyond {computed.dtype}; divide them by their "
            "size in the reward function, or give them as float64"
        )


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    r"""A soft fine for long completions, to be added to the reward: from 0 down to -1 over the last tokens.

    .. math:: p(l) = \begin{cases} 0 & l \le L - c \\ ((L - c) - l) / c & L - c < l \le L \\
              -1 & l > L \end{cases}

    Overlong reward shaping of DAPO (arXiv 2503.14476, Eq. 13), with L = ``max_length``, c = ``buffer``.

    Args:
        lengths: Any shape, tokens of each completion, the EOS included.
        max_length: L, in tokens.
        buffer: c, in tokens, at least 1.

    Returns:
        The shape of ``lengths``, float32, in the unit of the rewards.

    Raises:
        OptionError: Not ``1 <= buffer <= max_length``.

    When it is wrong: where long completions are right more often. The fine is an absolute number: next to
    rewards of another size than 1 it is nothing or everything.

    >>> overlong_penalty(torch.tensor([80, 90, 100, 101]), max_length=100, buffer=20)
    tensor([ 0.0000, -0.5000, -1.0000, -1.0000])
    """
    if not 1 <= buffer <= max_length:
        raise OptionError(f"the buffer of {buffer} tokens must be at least 1 and at most {max_length}")
    return ((max_length - buffer - _real("lengths", lengths).float()) / buffer).clamp(-1.0, 0.0)


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    r"""Generalized advantage estimation: a critic's estimate for every token, and the critic's targets.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad
              A_t = \sum_{l \ge 0} (\gamma\lambda)^l \delta_{t+l} = \delta_t + \gamma\lambda A_{t+1}, \qquad
              R_t = A_t + V_t

    arXiv 1506.02438. V and A are zero after the last token of a completion, which is where the
    "1 - done" of other codes is. A completion cut off at the length limit ends there, too: the reward
    function has judged it as it stands, and nothing comes after it.

    Args:
        rewards: (B, T), reward of each token; see :func:`token_rewards`.
        values: (B, T), the critic's V before each token was sampled, in the unit of the rewards.
        mask: (B, T) bool, true for sampled tokens (EOS included), then false.
        gamma: Discount a token. 1 is usual for completions.
        lam: 0 trusts the critic (A is the one-step error), 1 trusts the sampled rewards.

    Returns:
        ``(advantages, returns)``, both (B, T), zero where masked, without gradient.

    Raises:
        ShapeError, DTypeError: Shapes differ, or ``mask`` is not bool.
        MaskError: A row of ``mask`` has a hole.
        OptionError: ``gamma`` or ``lam`` is not between 0 and 1.

    When it is wrong: when an episode goes on after T and was only cut for memory; then V after the
    last token is not zero and must be given. Advantages are not whitened here.

    >>> r, v = torch.tensor([[0.0, 0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.5, 0.5, 9.0]])
    >>> gae(r, v, torch.tensor([[True, True, True, False]]), gamma=1.0, lam=0.5)
    (tensor([[0.1250, 0.2500, 0.5000, 0.0000]]), tensor([[0.6250, 0.7500, 1.0000, 0.0000]]))
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise OptionError(f"gamma={gamma} and lam={lam} are discounts, each from 0 to 1")
    rewards, values = widen("rewards", rewards), widen("values", values)
    _check_rows(mask, rewards=rewards, values=values)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], 0.0)  # the "1 - done": nothing follows the end
        advantages[:, t] = next_advantage
    return advantages, torch.where(mask, advantages + values, 0.0)


@torch.no_grad()
def token_rewards(scores: Tensor, mask: Tensor, kl: Tensor | None = None, beta: float = 0.0) -> Tensor:
    r"""Put a completion's score on its last token, and charge a KL estimate to every token.

    .. math:: r_t = -\beta\,\mathrm{kl}_t + \mathbb{1}[t = \text{last}]\; r

    The reward of PPO for language models (InstructGPT, arXiv 2203.02155; Eq. 2 of DeepSeekMath,
    arXiv 2402.03300). The sum over a row is the penalized score, which is what a group-relative method
    that wants its KL in the reward takes: ``token_rewards(...).sum(1)``.

    Args:
        scores: (B,), one score a completion.
        mask: (B, T) bool, true for sampled tokens (EOS included), then false.
        kl: (B, T), an estimate from :mod:`nanogrpo.kl`; k1 is the one whose gradient is right here.
        beta: Price of one nat, in the unit of the scores.

    Returns:
        (B, T), zero where masked, without gradient.

    Raises:
        ShapeError, DTypeError: Shapes differ, or ``mask`` is not bool.
        MaskError: A row has a hole or no token at all, so its score has no place.

    When it is wrong: with k3 as the estimate. Its expectation is the KL, but as a reward its gradient
    is not the gradient of the KL.

    >>> mask = torch.tensor([[True, True, False]])
    >>> token_rewards(torch.tensor([1.0]), mask, kl=torch.tensor([[0.5, 0.25, 7.0]]), beta=0.1)
    tensor([[-0.0500,  0.9750,  0.0000]])
    """
    scores = widen("scores", scores)
    check_mask(mask)
    kl = scores.new_zeros(mask.shape) if kl is None else widen("kl", kl)
    _check_rows(mask, kl=kl)
    check_shape("scores", scores, mask.shape[:1], "one score a completion")
    if not mask[:, 0].all():
        row = int((~mask[:, 0]).nonzero()[0])
        raise MaskError(f"completion {row} has no token, so its score has no place; drop the row")
    last = mask.sum(1, keepdim=True) - 1  # (B, 1)
    penalty = torch.where(mask, -beta * kl, 0.0)  # (B, T)
    return penalty.scatter_add(1, last, scores[:, None].to(penalty.dtype))


@torch.no_grad()
def whiten(advantages: Tensor, mask: Tensor, eps: float = 1e-4) -> Tensor:
    r"""Shift and scale the advantages of all tokens to mean 0 and standard deviation 1.

    .. math:: A'_t = \frac{A_t - \mathrm{mean}(A)}{\mathrm{std}(A) + \epsilon}

    A habit of PPO's code, not of its paper (arXiv 1707.06347). Mean and standard deviation (population) run
    over the unmasked tokens of the whole batch: call it before the batch is cut into minibatches.

    Args:
        advantages: (B, T).
        mask: (B, T) bool.
        eps: Added to the standard deviation, in the unit of the advantages.

    Returns:
        (B, T), zero where masked; exactly zero everywhere if all unmasked advantages are equal.

    Raises:
        ShapeError, DTypeError: Shapes differ, or ``mask`` is not bool.
        MaskError: No token is unmasked.

    When it is wrong: when the critic is nearly perfect; noise is then blown up to size one. And the mean that
    is taken off is one over tokens: long completions weigh more in it.

    >>> whiten(torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([[True, True, False]]), eps=0.0)
    tensor([[ 1., -1.,  0.]])
    """
    check_range("eps", eps)
    advantages = widen("advantages", advantages)
    check_mask(mask, advantages=advantages)
    kept = advantages[mask]  # (N,), unmasked tokens only
    if not len(kept):
        raise MaskError("the batch has no unmasked token to whiten; check completion_mask")
    if kept.max() == kept.min():
        return torch.zeros_like(advantages)
    return torch.where(mask, (advantages - kept.mean()) / (kept.std(correction=0) + eps), 0.0)


def _weights(lengths: Tensor | None, like: Tensor) -> Tensor:
    """How often each completion counts: once, or once for each of its tokens."""
    if lengths is None:
        return torch.ones_like(like)
    check_shape("lengths", lengths, tuple(like.shape), "one length for each reward")
    if not (_real("lengths", lengths) >= 0).all():
        raise OptionError(f"a length is {lengths.min().item():g}; lengths are counts of tokens, at least 0")
    return lengths.to(like.dtype)


def _real(what: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.is_complex():
        kind = tensor.dtype if isinstance(tensor, Tensor) else f"of type {type(tensor).__name__}"
        raise DTypeError(f"{what} is {kind}, need a tensor of real numbers; use torch.tensor(...)")
    return tensor


def _check_values(rewards: Tensor) -> Tensor:
    rewards = widen("rewards", rewards)
    if not rewards.isfinite().all():
        place = tuple(int(i) for i in (~rewards.isfinite()).nonzero()[0])
        value = rewards[place].item()
        raise NonFiniteError(f"reward at {place} is {value}; mend the reward function, nothing is replaced")
    return rewards


def _check_rewards(rewards: Tensor) -> Tensor:
    rewards = widen("rewards", rewards)
    if rewards.ndim != 2 or not len(rewards):
        raise ShapeError(f"rewards have shape {tuple(rewards.shape)}, expected (P, G): one row a prompt")
    if rewards.shape[1] < 2:
        raise GroupSizeError(
            f"group size is {rewards.shape[1]}; a group needs at least 2 completions of the same prompt"
        )
    return _check_values(rewards)


def _check_rows(mask: Tensor, **tensors: Tensor) -> None:
    check_mask(mask, **tensors)
    if mask.ndim != 2 or mask.shape[1] == 0:
        raise ShapeError(f"mask has shape {tuple(mask.shape)}, expected (B, T) with T >= 1")
    holes = mask[:, 1:] & ~mask[:, :-1]
    if holes.any():
        row, column = (int(i) for i in holes.nonzero()[0])
        raise MaskError(f"mask has a hole before row {row}, column {column + 1}; true may not follow false")
