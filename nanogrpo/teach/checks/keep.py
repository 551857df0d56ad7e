"""What a call of a student's function leaves as it was: its arguments, the models, torch's random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from nanogrpo.teach.checks.registry import CheckFailed


def watch(arguments: Iterable) -> Callable[[], None]:
    """Look at the arguments of a call; the function that is returned raises CheckFailed if one has changed.

    A model that is not trained keeps its weights, its gradients, its mode, and what is trainable. One is
    trained where an optimizer, or a function that may be one's step, is among the arguments; then only the
    first model is looked at, and only whether it can still be trained.
    """
    given = list(arguments)
    tensors = [(i, a, a.detach().clone()) for i, a in enumerate(given) if isinstance(a, Tensor)]
    models = [a for a in given if isinstance(a, nn.Module)]
    trained = any(_trains(a) for a in given)
    kept = [] if trained else [(model, _state(model)) for model in models]
    learns = [p for p in models[0].parameters() if p.requires_grad] if trained and models else []
    chance = torch.get_rng_state()

    def unchanged() -> None:
        if not torch.equal(torch.get_rng_state(), chance):
            raise CheckFailed(
                "Your function draws from torch's own random numbers, or seeds them: all chance comes from "
                "its arguments, and the numbers of others stay as they are."
            )
        for i, now, before in tensors:
            if not torch.equal(now.detach().nan_to_num(), before.nan_to_num()):
                raise CheckFailed(
                    f"Your function changes its argument {i + 1} in place: the caller still needs it. Use "
                    "operations without a trailing underscore, or clone first."
                )
        for model, state in kept:
            _same(state, _state(model))
        if not all(p.requires_grad for p in learns):
            raise CheckFailed(
                "When your function returns, the policy's weights are frozen, requires_grad is False: the "
                "next batch would train nothing."
            )

    return unchanged


def with_gradients(model: nn.Module) -> nn.Module:
    """The same model, as in the middle of an update: a gradient stands at each weight."""
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    return model


def _trains(argument: object) -> bool:
    return isinstance(argument, torch.optim.Optimizer) or (
        callable(argument) and not isinstance(argument, nn.Module)
    )


def _state(model: nn.Module) -> tuple[list, list, list, list]:
    weights = list(model.parameters())
    return (
        [module.training for module in model.modules()],
        [p.requires_grad for p in weights],
        [None if p.grad is None else p.grad.clone() for p in weights],
        [tensor.detach().clone() for tensor in model.state_dict().values()],
    )


def _same(before: tuple, now: tuple) -> None:
    """Raise CheckFailed, with what has changed, unless two states of a model are the same."""
    as_it_was = "leave the model as it was when your function was called."
    if before[0] != now[0]:
        raise CheckFailed(f"The model is in another mode afterwards, train() or eval(): {as_it_was}")
    if before[1] != now[1]:
        raise CheckFailed(
            f"The model's weights have another requires_grad afterwards, so it is frozen, or thawed: "
            f"{as_it_was} For a pass without gradients there is torch.no_grad()."
        )
    if not all(map(_equal, before[2], now[2])):
        raise CheckFailed(
            "The gradients that stand at the model's weights, p.grad, are others afterwards: they belong to "
            f"the caller's update; {as_it_was}"
        )
    if not all(map(_equal, before[3], now[3])):
        raise CheckFailed(f"The model's weights have changed: {as_it_was}")


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)
