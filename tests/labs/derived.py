"""Wrong answers made of the right ones, mechanically: one thing is changed in what goes in or comes out.

Each change is a function from a solution to a wrong one. :func:`derived` leaves out the few that change
nothing, each for a reason that it names.
"""

import functools
import os
import random
import subprocess
import tempfile
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

# What the texts say of the arguments, by their places: through which the gradient is trained, and which are
# constants that may come with a gradient of their own.
TRAINED = {
    "bradley_terry": (0, 1),
    "reward_pooling": (0,),
    "reinforce_loss": (0,),
    "clipped_surrogate": (0,),
    "value_loss": (0,),
    "policy_loss": (0,),
    "kl_k3": (0,),
    "grpo_loss": (0,),
    "kl_penalty": (0,),
    "importance_ratio": (0,),
}
CONSTANT = {
    "reinforce_loss": (1,),
    "clipped_surrogate": (1,),
    "value_loss": (1, 3),
    "policy_loss": (1, 2),
    "kl_k3": (1,),
    "kl_penalty": (2,),
    "importance_ratio": (1,),
}
# Zero at padding, says the text, where the mask (the argument of this place) is false.
ZERO_AT_PADDING = {
    "token_rewards": 1,
    "gae": 2,
    "whiten": 1,
    "clipped_surrogate": 2,
    "value_loss": 2,
    "policy_loss": 3,
}
SLOW = {"train"}

# What changes nothing, and why.
SAME = {
    **{(step, "argument 0: rows rolled"): "a mean over rows" for step in ("noise_ceiling", "mean_and_error")},
    ("noise_ceiling", "argument 0: rows reversed"): "a mean over rows",
    ("mean_and_error", "argument 0: rows reversed"): "a mean over rows",
    **{
        ("reinforce_loss", f"result: {name}"): "only its gradient counts"
        for name in ("noisy", "three digits")
    },
    ("exact_gradient", "arguments 1 and 0 swapped"): "they are multiplied",
    ("complete", "promise: gradients off"): "its decorator, torch.no_grad, puts the mode back",
    ("update", "promise: model, gradients cleared"): "those of the trained model are the update's own",
}


def _over(result, change: Callable):
    """The result, or each tensor of a tuple, changed."""
    return tuple(map(change, result)) if isinstance(result, tuple) else change(result)


def _after(change: Callable) -> Callable:
    return lambda f: lambda *a, **o: _over(f(*a, **o), change)


def _instead(result) -> Callable:
    return lambda f: lambda *a, **o: result


def _before(place: int, change: Callable) -> Callable:
    def make(f):
        def wrong(*arguments, **options):
            changed = [*arguments, *options.values()]  # beta comes by its name
            changed[place] = change(changed[place])
            named = dict(zip(options, changed[len(arguments) :], strict=True))
            return f(*changed[: len(arguments)], **named)

        return wrong

    return make


def _number(x) -> Tensor:
    return torch.as_tensor(x, dtype=torch.get_default_dtype()) if not isinstance(x, Tensor) else x


def _off_at(place: Callable) -> Callable:
    def change(x):
        x = _number(x)
        if not x.numel():
            return x
        here = (torch.arange(x.numel()) == place(x.numel())).view(x.shape)
        if x.dtype.is_floating_point:
            return x + 0.01 * here * (1 + x.abs())
        return x ^ here if x.dtype == torch.bool else x + here

    return change


def _noisy(x):
    x = _number(x)
    return (
        x + 0.02 * torch.randn_like(x)
        if x.dtype.is_floating_point
        else torch.randint_like(x.long(), 0, 2).to(x.dtype)
    )


def _rounded(x):
    x = _number(x)
    return x.bfloat16().to(x.dtype) if x.dtype.is_floating_point else x + 1 if x.dtype != torch.bool else ~x


RESULT = {
    "negated": lambda x: -_number(x) if _number(x).dtype != torch.bool else ~x,
    "doubled": lambda x: 2 * _number(x),
    "1 % too large": lambda x: 1.01 * _number(x),
    "0": lambda x: torch.zeros_like(_number(x)),
    "1": lambda x: torch.ones_like(_number(x)),
    "NaN": lambda x: torch.full_like(_number(x).double(), float("nan")),
    "infinite": lambda x: torch.full_like(_number(x).double(), float("inf")),
    "noisy": _noisy,
    "three digits": _rounded,
    "first number wrong": _off_at(lambda n: 0),
    "last number wrong": _off_at(lambda n: n - 1),
    "a number wrong": _off_at(lambda n: n // 2),
    "an axis more": lambda x: _number(x)[None],
    "an axis more at the end": lambda x: _number(x)[..., None],
    "complex": lambda x: _number(x) * 1j,
    "whole numbers": lambda x: _number(x).round().long() + (_number(x).dtype == torch.bool),
    "half precision": lambda x: (
        _number(x).half() if _number(x).dtype.is_floating_point else _number(x).half()
    ),
}
OF_ROWS = {
    "rows rolled": lambda x: x.roll(1, 0),
    "rows reversed": lambda x: x.flip(0),
    "first row for all": lambda x: x[:1].expand_as(x),
    "first half alone": lambda x: x[: len(x) // 2],
    "mean for all": lambda x: x.double().mean(0, keepdim=True).expand_as(x),
    "flat": lambda x: x.reshape(-1) if x.ndim > 1 else x.reshape(1, -1),
    "summed": lambda x: x.sum(),
}
NONSENSE = {
    "None": None,
    "text": "text",
    "an object": object(),
    "a dict": {"a": 1},
    "an empty tuple": (),
    "three things": (1, 2, 3),
    "texts": ["a", "b"],
    "a function": len,
    "nothing in it": torch.zeros(0),
    "a complex number": 1j,
    "Ellipsis": ...,
    "an exception": ValueError("no"),
}
ARGUMENT = {
    "ones": torch.ones_like,
    "rows rolled": lambda x: x.roll(1, 0),
    "rows reversed": lambda x: x.flip(0),
    "first row for all": lambda x: x[:1].expand_as(x),
}
SCALARS = {"0": 0, "1": 1, "0.2": 0.2, "half": lambda x: x / 2, "doubled": lambda x: 2 * x}


def _mutating(place: int, how: Callable) -> Callable:
    def make(f):
        def wrong(*arguments, **options):
            result = f(*arguments, **options)
            with torch.no_grad():
                how(arguments[place].detach())
            return result

        return wrong

    return make


def _with_gradient(place: int) -> Callable:
    def make(f):
        def wrong(*arguments, **options):
            leaf = arguments[place]
            return f(*arguments, **options) + 0.3 * (leaf - leaf.detach()).nan_to_num().sum()

        return wrong

    return make


def _scaled_gradient(factor: float) -> Callable:
    return _after(lambda x: x.detach() + factor * (x - x.detach()))


def _at_padding(place: int, which: int | None) -> Callable:
    def make(f):
        def wrong(*arguments, **options):
            mask, result = arguments[place], f(*arguments, **options)
            if which is None:
                return torch.where(mask, result, 0.25)
            return tuple(torch.where(mask, x, 0.25) if i == which else x for i, x in enumerate(result))

        return wrong

    return make


def _frozen(f: Callable) -> Callable:
    kept = []

    def wrong(*arguments, **options):
        kept.append(f(*arguments, **options))
        return kept[0]

    return wrong


def _under_no_grad(f: Callable) -> Callable:
    return torch.no_grad()(f)


def _swapped(first: int, second: int) -> Callable:
    def make(f):
        def wrong(*arguments, **options):
            changed = list(arguments)
            changed[first], changed[second] = changed[second], changed[first]
            return f(*changed, **options)

        return wrong

    return make


class Once:
    """A value that changes only once: what the first call had."""

    def __init__(self):
        self.value = None

    def __call__(self, x):
        self.value = x if self.value is None else self.value
        return self.value


def _beside(act: Callable) -> Callable:
    """Something is done beside the answer, before it."""

    def make(f):
        def wrong(*arguments, **options):
            act(*arguments, *options.values())
            return f(*arguments, **options)

        return wrong

    return make


def _then(act: Callable) -> Callable:
    """Something is done after the answer, which would not run under it."""

    def make(f):
        def wrong(*arguments, **options):
            found = f(*arguments, **options)
            act(*arguments, *options.values())
            return found

        return wrong

    return make


def _one_buffer(f: Callable) -> Callable:
    """All answers of one shape are written to one tensor."""
    kept: dict = {}

    def wrong(*arguments, **options):
        result = f(*arguments, **options)
        first = result[0] if isinstance(result, tuple) else _number(result)
        buffer = kept.setdefault(first.shape, torch.empty_like(first.detach()))
        buffer.copy_(first.detach())
        return (buffer, *result[1:]) if isinstance(result, tuple) else buffer

    return wrong


def _by_shape(f: Callable) -> Callable:
    """The first answer to arguments of some shapes is that to all others of these shapes."""
    kept: dict = {}

    def wrong(*arguments, **options):
        shapes = tuple(a.shape if isinstance(a, Tensor) else type(a) for a in arguments)
        if shapes not in kept:
            kept[shapes] = f(*arguments, **options)
        return kept[shapes]

    return wrong


def _drifting(f: Callable) -> Callable:
    """Right until the tenth call."""
    calls: list = []

    def wrong(*arguments, **options):
        calls.append(1)
        result = f(*arguments, **options)
        return _over(result, lambda x: _number(x) + 1) if len(calls) > 9 else result

    return wrong


def _write(*arguments):
    with open(os.path.join(tempfile.gettempdir(), "answer.txt"), "w", encoding="utf-8") as file:
        file.write("an answer")


def _of_models(act: Callable) -> Callable:
    def on_all(*arguments):
        for model in [a for a in arguments if isinstance(a, torch.nn.Module)]:
            act(model)

    return on_all


def _freeze(model):
    model.requires_grad_(False)


# What every answer keeps, says each lab's text, broken one promise at a time.
PROMISES = {
    "torch is seeded": _beside(lambda *a: torch.manual_seed(0)),
    "a number is drawn from torch": _beside(lambda *a: torch.rand(1)),
    "Python's random is seeded": _beside(lambda *a: random.seed(0)),
    "numpy is seeded": _beside(lambda *a: numpy.random.seed(0)),
    "default type": _then(lambda *a: torch.set_default_dtype(torch.float64)),
    "gradients off": _then(lambda *a: torch.set_grad_enabled(False)),
    "threads": _beside(lambda *a: torch.set_num_threads(torch.get_num_threads() + 1)),
    "anomaly mode": _beside(lambda *a: torch.autograd.set_detect_anomaly(True)),
    "print options": _beside(lambda *a: torch.set_printoptions(precision=2)),
    "environment": _beside(lambda *a: os.environ.update(ANSWER="1")),
    "a file": _beside(_write),
    "a process": _beside(lambda *a: subprocess.run(["true"])),
    "weights to a file": _beside(lambda *a: torch.save([], os.path.join(tempfile.gettempdir(), "answer.pt"))),
}
OF_RESULTS = {
    "one buffer for all": _one_buffer,
    "by shape": _by_shape,
    "right until the tenth call": _drifting,
}
OF_MODELS = {
    "eval()": lambda model: model.eval(),
    "frozen": _freeze,
    "a hook": lambda model: model.register_forward_hook(lambda *a: None),
    "gradients cleared": lambda model: model.zero_grad(),
    "another mode": lambda model: model.train(not model.training),
    "another trainable": lambda model: next(model.parameters()).requires_grad_(
        not next(model.parameters()).requires_grad
    ),
}


def promises(example: tuple) -> dict[str, Callable]:
    """Right answers that break a promise of all steps."""
    made = {f"promise: {name}": make for name, make in PROMISES.items()}
    if any(isinstance(a, torch.nn.Module) for a in example):
        made |= {f"promise: model, {name}": _then(_of_models(act)) for name, act in OF_MODELS.items()}
    for place, argument in enumerate(example):
        if isinstance(argument, Tensor) and argument.dtype.is_floating_point:
            made[f"promise: argument {place}, requires_grad"] = _beside(
                lambda *a, place=place: (
                    a[place].is_leaf and a[place].requires_grad_(not a[place].requires_grad)
                )
            )
    return made


def derived(step: str, f: Callable, example: tuple, result) -> dict[str, Callable]:
    """Wrong answers by what is changed; ``example`` are arguments of one call, ``result`` what it gives."""
    first = result[0] if isinstance(result, tuple) else result
    changes = {f"result: {name}": _after(change) for name, change in RESULT.items()}
    if isinstance(first, Tensor) and first.ndim:
        changes["result: a list"] = _after(lambda x: x.tolist())
        changes["result: of numpy"] = _after(lambda x: x.detach().numpy())
        changes |= {f"result: {name}": _after(change) for name, change in OF_ROWS.items()}
    changes |= {f"result: {name}": _instead(value) for name, value in NONSENSE.items()}
    changes["result: that of the first call"] = _frozen
    if isinstance(result, tuple):
        changes["result: the first alone"] = lambda f: lambda *a, **o: f(*a, **o)[0]
        changes["result: in the other order"] = lambda f: lambda *a, **o: f(*a, **o)[::-1]
    if step in ZERO_AT_PADDING:
        for which in range(len(result)) if isinstance(result, tuple) else [None]:
            changes[f"result: not 0 at padding ({which})"] = _at_padding(ZERO_AT_PADDING[step], which)
    for place, argument in enumerate(example):
        if isinstance(argument, Tensor):
            changes |= {
                f"argument {place}: {name}": _before(place, how)
                for name, how in ARGUMENT.items()
                if argument.ndim and len(argument) > 1
            }
            changes[f"argument {place}: changed in place"] = _mutating(
                place, lambda x: x.copy_(x.flip(-1).clone() + 1)
            )
            if argument.dtype == torch.bool:
                last = lambda m: m & (m.cumsum(1) < m.sum(1, keepdim=True))  # noqa: E731
                changes[f"argument {place}: without the last"] = _before(place, last)
                changes[f"argument {place}: one more"] = _before(
                    place, lambda m: m | m.roll(1, 1) | ~m.any(1, True)
                )
        elif isinstance(argument, float):
            changes |= {
                f"argument {place}: {name}": _before(place, how if callable(how) else lambda x, how=how: how)
                for name, how in SCALARS.items()
            }
    shapes = [
        a.shape
        if isinstance(a, Tensor) and a.dtype != torch.bool
        else type(a)
        if isinstance(a, float)
        else None
        for a in example
    ]
    changes |= {
        f"arguments {i} and {j} swapped": _swapped(i, j)
        for i in range(len(shapes))
        for j in range(i)
        if shapes[i] is not None and shapes[i] == shapes[j]
    }
    if step in TRAINED:
        changes["gradient: none"] = _after(lambda x: x.detach())
        changes["gradient: under no_grad"] = _under_no_grad
        changes["gradient: doubled"] = _scaled_gradient(2.0)
        changes["gradient: reversed"] = _scaled_gradient(-1.0)
        changes |= {f"gradient: none into {i}": _before(i, lambda x: x.detach()) for i in TRAINED[step]}
    changes |= {f"gradient: into {i}": _with_gradient(i) for i in CONSTANT.get(step, ())}
    for place, argument in enumerate(example):
        if isinstance(argument, Tensor | float | int) and step not in ("update", "train"):
            changes[f"argument {place}: that of the first call"] = lambda f, place=place: _before(
                place, Once()
            )(f)
    changes |= promises(example)
    if step not in ("update", "train"):
        changes |= {f"promise: {name}": make for name, make in OF_RESULTS.items()}
    return {name: functools.wraps(f)(make(f)) for name, make in changes.items() if (step, name) not in SAME}
