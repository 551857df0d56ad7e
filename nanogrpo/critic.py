"""The critic: what reward is still to come, guessed before each token is sampled.

It reads what the policy reads. So a critic is the same network with one output in place of a logit for each
token of the alphabet, and the shift between inputs and targets is the one of the log-probs: the value of
token ``t`` is that of the text *before* token ``t``.

What it leaves out, and why: a scale for rewards that are far from 1 (look at ``value_loss`` and rescale the
reward), several critics (a habit of control tasks, where values are bootstrapped over many steps).
"""

import copy

import torch
from torch import Tensor, nn

from nanogrpo.errors import MaskError, NonFiniteError, check_choice, check_mask
from nanogrpo.microbatches import in_parts
from nanogrpo.model import GPT
from nanogrpo.packed import completion_hidden
from nanogrpo.rollout import Rollout


def new_critic(policy: GPT, kind: str = "separate") -> nn.Module:
    """A critic that says 0 of everything, so that the first advantages are the sampled rewards themselves.

    Args:
        policy: whose weights it starts from. They read the task already, which random ones would first
            have to learn.
        kind: ``"separate"``: a network of its own, a copy of the policy with one output: twice the memory,
            and neither disturbs the other. ``"head"``: one linear layer on the policy's last hidden state,
            ``C + 1`` numbers: nearly free, but its errors pull at the policy's own weights.

    Raises:
        OptionError: unknown ``kind``.
    """
    check_choice("critic", kind, ("separate", "head"))
    weight = policy.head.weight
    head = nn.utils.skip_init(nn.Linear, weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
    nn.init.zeros_(head.weight)  # skip_init above: a default start would draw from the global random numbers
    nn.init.zeros_(head.bias)
    if kind == "head":
        return head
    critic = copy.deepcopy(policy).requires_grad_(True)
    critic.head = head
    return critic


def values_of(critic: nn.Module, policy: GPT, rollout: Rollout, hidden: Tensor | None = None) -> Tensor:
    r"""What the critic expects before each completion token, :math:`V_t = V(\text{prompt}, o_{<t})`.

    Args:
        critic: from :func:`new_critic`; a :class:`~nanogrpo.model.GPT` reads for itself, a linear layer reads
            the policy's hidden state.
        policy: the network whose hidden state a linear critic reads.
        rollout: what was sampled.
        hidden: ``(B, T, C)``, the policy's :func:`~nanogrpo.packed.completion_hidden` of this rollout, if it
            is at hand; a critic that reads for itself does not need it.

    Returns:
        ``(B, T)``, in the unit of the rewards, with gradient; padding is not masked.
    """
    reader, head = (critic, critic.head) if isinstance(critic, GPT) else (policy, critic)
    if hidden is None or reader is critic:
        hidden = completion_hidden(reader, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    return head(hidden).squeeze(-1)  # (B, T)


def values_before(critic: nn.Module, policy: GPT, rollout: Rollout) -> Tensor:
    """The critic's values before it has learned from a rollout, ``(B, T)``; 0 where masked, no gradient."""
    return in_parts(rollout, lambda part: values_of(critic, policy, part))


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    r"""How much of the returns' variance the critic knew beforehand.

    .. math:: 1 - \frac{\mathrm{Var}(R - V)}{\mathrm{Var}(R)}

    1 is a perfect critic, 0 one that says the same of everything, below 0 a harmful one. A constant error
    does not show here; it does in the value loss.

    Args:
        values: ``(B, T)``, made before the returns were known.
        returns: ``(B, T)``. Take sampled ones (``lam=1``): returns of a smaller lambda contain the critic's
            own values, and a critic that agrees with itself explains nothing.
        mask: ``(B, T)`` bool.

    Returns:
        the share, or NaN where all returns are equal and there is nothing to explain.

    Raises:
        ShapeError, DTypeError: shapes differ, or ``mask`` is not bool.
        MaskError: no token is unmasked.
        NonFiniteError: an unmasked value or return is NaN or infinite.

    >>> mask = torch.tensor([[True, True, True, False]])
    >>> explained_variance(torch.tensor([[0.0, 1.0, 1.0, 7.0]]), torch.tensor([[0.0, 1.0, 2.0, 0.0]]), mask)
    0.6666...
    """
    check_mask(mask, values=values, returns=returns)
    if not mask.any():
        raise MaskError("no token is unmasked, so there is nothing to explain; check completion_mask")
    # float64, on the processor: a GPU may have none, and large returns that differ little need it.
    returns, errors = returns[mask].cpu().double(), (returns - values)[mask].cpu().double()
    if not errors.isfinite().all():
        raise NonFiniteError("a value or a return is NaN or infinite; lower the critic's learning rate")
    if returns.max() == returns.min():
        return float("nan")
    return 1 - (errors.var(correction=0) / returns.var(correction=0)).item()
