"""What a call of a student's function leaves as it was: its arguments, the models, and all around it.

This is the one place where the promises are held that a lab states once for all its steps, "What every
answer keeps": each call of a check goes through :func:`watch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nanogrpo.teach.checks import world
from nanogrpo.teach.checks.registry import CheckFailed


@contextmanager
def watch(arguments: Iterable) -> Iterator[None]:
    """Look at the arguments of a call, and around, while it runs; raise CheckFailed if one has changed.

    A model that is not trained keeps its weights, its gradients, its mode, and what is trainable. One is
    trained where an optimizer, or a function that may be one's step, is among the arguments: the first
    model. It keeps its mode, and what is trainable.
    """
    given = list(arguments)
    parts = [(name, part, _seen(part)) for i, a in enumerate(given) for name, part in _parts(a, f"{i + 1}")]
    models = [a for a in given if isinstance(a, nn.Module)]
    learner = models[0] if models and any(_trains(a) for a in given) else None
    kept = [(model, _state(model, model is learner)) for model in models]
    optimizers = [(a, _options(a)) for a in given if isinstance(a, torch.optim.Optimizer)]
    settle = world.watch()
    try:
        yield
    finally:
        said = settle()
    if said:
        raise CheckFailed(said)
    for name, part, before in parts:
        _is_unchanged(name, part, before)
    for model, state in kept:
        _same(state, _state(model, model is learner), model is learner)
    for optimizer, options in optimizers:
        if _options(optimizer) != options:
            raise CheckFailed(
                "The optimizer has another setting afterwards, such as its learning rate, or other weights: "
                "the caller sets them."
            )


def _parts(argument: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Tensors and containers in an argument, each with its name."""
    if isinstance(argument, Tensor):
        yield name, argument
    elif isinstance(argument, list | tuple | dict) and depth < 3:
        yield name, argument
        inner = argument.items() if isinstance(argument, dict) else enumerate(argument)
        for key, part in inner:
            yield from _parts(part, f"{name}[{key!r}]", depth + 1)
    elif _is_frozen(argument) and depth < 3:
        for key, part in vars(argument).items():
            yield from _parts(part, f"{name}.{key}", depth + 1)
        yield f"{name}.", argument


def _is_frozen(argument: Any) -> bool:
    """A dataclass that says so, such as a rollout or a config; others may be there to be changed."""
    known = dataclasses.is_dataclass(argument) and not isinstance(argument, type)
    return known and argument.__dataclass_params__.frozen


def _seen(part: Any) -> tuple:
    if isinstance(part, Tensor):
        grad = None if not part.is_leaf or part.grad is None else part.grad.clone()
        return part.detach().clone(), part.requires_grad, grad, type(part), _watched(part)
    if _is_frozen(part):
        return (dict(vars(part)),)
    return (part.copy() if isinstance(part, dict | list) else part,)


def _watched(part: Tensor) -> tuple[int, int]:
    """How many hooks a tensor has."""
    return len(part._backward_hooks or ()), len(getattr(part, "_post_accumulate_grad_hooks", None) or ())


def _is_unchanged(name: str, part: Any, before: tuple) -> None:
    if not isinstance(part, Tensor):
        now, then = _seen(part)[0], before[0]
        if len(now) != len(then) or not all(a is b for a, b in zip(_flat(now), _flat(then), strict=True)):
            kind = "list" if isinstance(part, list) else type(part).__name__
            raise CheckFailed(
                f"Your function changes its argument {name.strip('.')}, a {kind}, in place: the caller still "
                "needs it. Make a copy first."
            )
        return
    value, trainable, grad, kind, hooks = before
    if type(part) is not kind or _watched(part) != hooks:
        raise CheckFailed(
            f"Your function changes what its argument {name} does, its class or its hooks: the caller still "
            "works with it. Leave it as it was."
        )
    now = part.detach()
    if now.shape != value.shape or now.dtype != value.dtype or not torch.equal(now.isnan(), value.isnan()):
        same = False
    else:
        same = torch.equal(now.nan_to_num(), value.nan_to_num())
    if not same:
        raise CheckFailed(
            f"Your function changes its argument {name} in place: the caller still needs it. Use "
            "operations without a trailing underscore, or clone first."
        )
    if part.requires_grad != trainable:
        raise CheckFailed(
            f"Your function switches requires_grad of its argument {name}: leave it as it was, and work with "
            "a detached copy."
        )
    if part.is_leaf and not _equal(grad, part.grad):
        raise CheckFailed(
            f"Your function leaves a gradient at its argument {name}, .grad: backward is the caller's. For a "
            "gradient of your own there is torch.autograd.grad."
        )


def _flat(container: Any) -> list:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _options(optimizer: torch.optim.Optimizer) -> list[dict]:
    return [
        {**group, "params": [id(p) for p in group["params"]]}  # by identity: tensors have no ==
        for group in optimizer.param_groups
    ]


def with_gradients(model: nn.Module) -> nn.Module:
    """The same model, as in the middle of an update: a gradient stands at each weight."""
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    return model


def freeze_some(model: nn.Module) -> nn.Module:
    """The same model, of which the second weight is not trained: what is frozen stays so, the rest not."""
    list(model.parameters())[1].requires_grad_(False)
    return model


def _trains(argument: object) -> bool:
    return isinstance(argument, torch.optim.Optimizer) or (
        callable(argument) and not isinstance(argument, nn.Module)
    )


def _state(model: nn.Module, trained: bool) -> tuple[list, list, list, list, list]:
    weights = list(model.parameters())
    return (
        [module.training for module in model.modules()],
        [p.requires_grad for p in weights],
        [] if trained else [None if p.grad is None else p.grad.clone() for p in weights],
        [] if trained else [tensor.detach().clone() for tensor in model.state_dict().values()],
        [(id(module), *map(len, _hooks(module))) for module in model.modules()] + [id(p) for p in weights],
    )


def _hooks(module: nn.Module) -> list[dict]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [getattr(module, name) for name in names]


def _same(before: tuple, now: tuple, trained: bool) -> None:
    """Raise CheckFailed, with what has changed, unless two states of a model are the same."""
    as_it_was = "leave the model as it was when your function was called."
    if before[0] != now[0]:
        raise CheckFailed(f"The model is in another mode afterwards, train() or eval(): {as_it_was}")
    if before[1] != now[1]:
        frozen = sum(now[1]) < sum(before[1])
        if trained and frozen:
            raise CheckFailed(
                "When your function returns, the policy's weights are frozen, requires_grad is False: the "
                "next batch would train nothing."
            )
        raise CheckFailed(
            f"The model's weights have another requires_grad afterwards, so it is frozen, or thawed: "
            f"{as_it_was} For a pass without gradients there is torch.no_grad()."
        )
    if before[4] != now[4]:
        raise CheckFailed(f"The model has other parts afterwards, or hooks: {as_it_was}")
    if not all(map(_equal, before[2], now[2])):
        raise CheckFailed(
            "The gradients that stand at the model's weights, p.grad, are others afterwards: they belong to "
            f"the caller's update; {as_it_was}"
        )
    if not all(map(_equal, before[3], now[3])):
        raise CheckFailed(f"The model's weights have changed: {as_it_was}")


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)
