"""What all checks share: the call of a student's function, the comparison, and the sentence that fails.

A check compares what a function returns, and its gradient, with the right answer. Where the two differ, it
computes the usual wrong answers as well, and names the one that matches. See
:mod:`nanogrpo.teach.checks.explain` for those that
all checks have in common.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from nanogrpo.teach.checks import explain, keep
from nanogrpo.teach.checks.again import CALLS
from nanogrpo.teach.checks.registry import CheckFailed

MANY = 50  # times that the rows of a case are repeated
Mistakes = Iterable[tuple[Tensor, str]]  # a wrong answer, and what makes it


def call(function: Callable, *arguments, **options):
    """Call an implementation; what it raises, and what it changes, are failures of the check."""
    try:
        with keep.watch([*arguments, *options.values()]):
            result = function(*arguments, **options)
    except CheckFailed:
        raise
    except NotImplementedError as error:
        raise CheckFailed("Nothing is written here yet.") from error
    except (Exception, SystemExit) as error:
        raise CheckFailed(
            f"It stopped with {type(error).__name__}: {_told(error)}. It was called with "
            f"{', '.join(map(_describe, [*arguments, *options.values()]))}."
        ) from error
    if result is None:
        raise CheckFailed("Your function returns None: is its return missing?")
    CALLS.note(function, arguments, options, result)
    return result


def agree(
    what: str,
    implementation: Callable,
    reference: Callable,
    arguments: tuple,
    mistakes: Mistakes = (),
    mask: Tensor | None = None,
    zero_at_padding: bool = False,
    trained: Iterable[int] = (),
    constants: Mapping[int, str] | None = None,
    alone: bool = False,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> Tensor:
    """Call an implementation, and raise CheckFailed unless it agrees with the reference; what it returned.

    Args:
        what: Its name in messages.
        implementation: Of a student.
        reference: Gives the right answer for the same arguments.
        arguments: Of both.
        mistakes: As for :func:`compare`.
        mask: Where to look; elsewhere anything may stand.
        zero_at_padding: Or zero, there.
        trained: Places of the arguments whose gradients are compared.
        constants: Places of arguments that must not get a gradient, and what to say of each.
        alone: Look also at the first row alone, where an axis of length 1 is easily lost, at the rows in
            reverse, so that the first is not the longest, and at many rows.
        rtol: Of the numbers.
        atol: Of the numbers.
    """
    returned, right = call(implementation, *arguments), reference(*arguments)
    got = number(what, returned)
    more = partial(_guesses, implementation, reference, arguments, None)
    compare(what, got, right, mistakes, mask, rtol, atol, more)
    if right.ndim and not isinstance(returned, Tensor):
        raise CheckFailed(
            f"{_capital(what)} is right, and it is a {type(returned).__name__}: return a tensor."
        )
    if mask is not None and zero_at_padding:
        padding_is_zero(what, got, mask)
    weights = torch.linspace(0.5, 1.5, max(right.numel(), 1)).to(right).view(right.shape)
    if mask is not None and not zero_at_padding:
        weights = weights * mask
        got, right = torch.where(mask, got, 0.0), torch.where(mask, right, 0.0)
    names = list(inspect.signature(reference).parameters)
    for i in trained:
        found, wanted = (gradient(what, x, arguments[i], weights) for x in (got, right))
        more = partial(explain.of_gradient, found, wanted)
        compare(f"the gradient of {what} by `{names[i]}`", found, wanted, rtol=rtol, atol=atol, more=more)
    for i, why in (constants or {}).items():
        no_gradient(what, got, arguments[i], why)
    if alone:
        _first_row_agrees((what,), implementation, reference, arguments, rtol, atol)
        _others_agree((what,), implementation, reference, arguments, mask, rtol, atol)
    return got


def default_agrees(
    names: str | tuple[str, ...], implementation: Callable, reference: Callable, arguments: tuple
) -> None:
    """Raise CheckFailed if an argument may be left out, and what is taken for it is not the reference's."""
    try:
        left_out = list(inspect.signature(implementation).parameters.values())[len(arguments) :]
    except (TypeError, ValueError):
        return
    if not left_out or any(p.default is p.empty or p.kind is p.VAR_KEYWORD for p in left_out):
        return
    without = ", ".join(p.name for p in left_out)
    sentence = f"Without {without} your function takes another value for it than the text's signature."
    got, right = call(implementation, *arguments), reference(*arguments)
    pairs = in_pairs(names, got, right)
    for name, x, y in pairs:
        same = torch.zeros_like(y) if x.shape != y.shape else x
        compare(f"without {without} {name}", x, y, [(same, sentence)], rtol=1e-3, atol=1e-4)


def _first_row_agrees(
    names: tuple[str, ...],
    implementation: Callable,
    reference: Callable,
    arguments: tuple,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Raise CheckFailed unless the answer for the first row alone is right. It has no padding."""
    given = _of_rows(arguments, lambda rows: rows[:1])
    got, right = call(implementation, *given), reference(*given)
    several = len(names) > 1
    got, right = (parts(got, names), right) if several else ((number(names[0], got),), (right,))
    for name, x, y in zip(names, got, right, strict=True):
        compare(f"for one row alone {name}", x, y, rtol=rtol, atol=atol)


def _others_agree(
    names: tuple[str, ...],
    implementation: Callable,
    reference: Callable,
    arguments: tuple,
    mask: Tensor | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Raise CheckFailed unless the rows in reverse, a shorter one first, and many rows get their own."""
    changes = {
        "with the rows in reverse": (
            lambda rows: rows.flip(0),
            "An answer depends on which row comes first: each row has its own.",
        ),
        "with many rows": (
            lambda rows: torch.cat([rows] * MANY),
            "The function is right for few rows, and not for many: it takes their number from the arguments.",
        ),
    }
    several = len(names) > 1
    for when, (change, sentence) in changes.items():
        given = _of_rows(arguments, change)
        got, right = call(implementation, *given), reference(*given)
        got, right = (parts(got, names), right) if several else ((number(names[0], got),), (right,))
        for name, x, y in zip(names, got, right, strict=True):
            where = None if mask is None else change(mask)
            same = torch.zeros_like(y) if x.shape != y.shape else x
            compare(f"{when} {name}", x, y, [(same, sentence)], where, rtol, atol)


def _of_rows(arguments: tuple, change: Callable[[Tensor], Tensor]) -> tuple:
    """Arguments of which all tensors with as many rows as the first are changed."""
    rows = next(len(a) for a in arguments if isinstance(a, Tensor) and a.ndim)
    return tuple(
        change(a.detach()) if isinstance(a, Tensor) and a.ndim and len(a) == rows else a for a in arguments
    )


def agree_in_parts(
    what: tuple[str, ...],
    implementation: Callable,
    reference: Callable,
    arguments: tuple,
    mistakes: tuple[Mistakes, ...],
    mask: Tensor | None = None,
    alone: bool = False,
    atol: float = 1e-5,
) -> None:
    """The same for a function that returns a tuple: ``what`` and ``mistakes`` have an entry for each tensor.

    With a mask each of them is to be zero at padding.
    """
    got, right = parts(call(implementation, *arguments), what), reference(*arguments)
    for i, (name, known) in enumerate(zip(what, mistakes, strict=True)):
        more = partial(_guesses, implementation, reference, arguments, i)
        compare(name, got[i], right[i], known, mask, atol=atol, more=more)
        if mask is not None:
            padding_is_zero(name, got[i], mask)
    if alone:
        _first_row_agrees(what, implementation, reference, arguments, atol=atol)
        _others_agree(what, implementation, reference, arguments, mask, atol=atol)


def _guesses(
    implementation: Callable, reference: Callable, arguments: tuple, part: int | None
) -> Iterator[tuple[Tensor, str]]:
    """What the right function gives for arguments of which one is changed."""
    plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    place = next(i for i, a in enumerate(plain) if isinstance(a, Tensor) and a.ndim)
    first, second = (_quietly(implementation, plain, part) for _ in range(2))
    if first is not None and not _same(first, second):
        raise CheckFailed(
            "Two calls with the same arguments give different answers: your function draws numbers of its "
            "own, or keeps something from one call to the next."
        )
    names = list(inspect.signature(reference).parameters)
    others = [(*plain[:place], x, *plain[place + 1 :]) for x in explain.others(plain[place])]
    given = [_quietly(implementation, arguments, part) for arguments in others]
    wanted = [_quietly(reference, arguments, part) for arguments in others]
    right = _quietly(reference, plain, part)
    if all(_same(first, x) for x in given) and not any(_same(right, x) for x in wanted):
        raise CheckFailed(
            f"Your function returns the same for another `{names[place]}`: it has no influence."
        )
    for changed, sentence in explain.of_arguments(plain, names):
        wrong = _quietly(reference, changed, part)  # not every change makes sense
        if wrong is not None:
            yield wrong, sentence


def _quietly(function: Callable, arguments: tuple, part: int | None) -> Tensor | None:
    try:
        result = function(*arguments)
        return number("", result if part is None else result[part]).detach().clone()
    except Exception:  # noqa: BLE001 - a guess that cannot be computed is none
        return None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a.nan_to_num(), b.nan_to_num())


def parts(got, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The tensors of a tuple that an implementation returned."""
    several = isinstance(got, tuple | list) and len(got) == len(names)
    if not several or not all(isinstance(part, Tensor) for part in got):
        count = {2: "two", 3: "three"}[len(names)]
        seen = f"{len(got)} things" if isinstance(got, tuple | list) else f"a {type(got).__name__}"
        seen = ", ".join(f"a {type(part).__name__}" for part in got) if several else seen
        raise CheckFailed(f"Return {count} tensors: {' and '.join(names)}. It returned {seen}.")
    return tuple(map(number, names, got))


def in_pairs(names: str | tuple[str, ...], got, right) -> list[tuple[str, Tensor, Tensor]]:
    """Each part of an answer with its name and with the right one; an answer of one part is a tensor."""
    if isinstance(names, str):
        return [(names, number(names, got), right)]
    return list(zip(names, parts(got, names), right, strict=True))


def number(what: str, got) -> Tensor:
    """What an implementation returned, as a tensor; a number or a list will do."""
    try:
        got = got if isinstance(got, Tensor) else torch.as_tensor(got)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(got).__name__
        article = "an" if kind[0] in "aeiouE" else "a"
        raise CheckFailed(f"{_capital(what)} is {article} {kind}, expected a tensor.") from error
    if got.is_complex():
        raise CheckFailed(f"{_capital(what)} is complex, {got.dtype}: real numbers are asked for.")
    if got.is_floating_point() and torch.finfo(got.dtype).bits < 32:
        raise CheckFailed(f"{_capital(what)} is of {got.dtype}, which has three digits: leave it in float32.")
    if got.is_nested or got.is_quantized or got.layout != torch.strided:
        raise CheckFailed(f"{_capital(what)} is no plain tensor: no sparse, quantized or nested one.")
    if got.device.type != "cpu":
        raise CheckFailed(
            f"{_capital(what)} is on the device {got.device}, and the arguments are on cpu: make it where "
            "they are, device=argument.device."
        )
    return got if type(got) in (Tensor, torch.nn.Parameter) else got.as_subclass(Tensor)


def listed(what: str, got) -> None:
    """Raise CheckFailed unless right numbers come as a list of numbers, without a graph behind them."""
    if not isinstance(got, list | tuple):
        article = "an" if type(got).__name__[0] in "aeiou" else "a"
        raise CheckFailed(
            f"The {what} are right, and they are {article} {type(got).__name__}: return a list of them."
        )
    if any(isinstance(x, Tensor) and x.requires_grad for x in got):
        raise CheckFailed(
            f"The {what} are tensors with the whole graph behind them, which stays in memory: use .item()."
        )
    if any(getattr(x, "ndim", 0) or isinstance(x, list | tuple) for x in got):
        raise CheckFailed(f"Each of the {what} is itself a list: return plain numbers, .item().")


def compare(
    what: str,
    got: Tensor,
    expected: Tensor,
    mistakes: Mistakes = (),
    where: Tensor | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    more: Callable[[], Mistakes] = tuple,
) -> None:
    """Raise CheckFailed unless two tensors agree (at the places ``where`` is true).

    Args:
        what: Its name in the message, such as ``"the loss"``.
        got: What the implementation returned; a number or a list will do.
        expected: The right answer.
        mistakes: Wrong answers and what makes them; the first one that fits ``got`` is named.
        where: Bool, of the shape of ``expected``.
        rtol: Of the numbers.
        atol: Of the numbers.
        more: Further mistakes, computed only if none of the first fits.
    """
    got, expected = number(what, got).detach(), torch.as_tensor(expected).detach()

    def close(answer: Tensor) -> Tensor:
        answer = torch.as_tensor(answer).detach().double()
        near = torch.isclose(got.double(), answer, rtol, atol, equal_nan=True)
        return near if where is None or where.shape != near.shape else near | ~where

    def agrees(answer: Tensor) -> bool:
        return got.shape == torch.as_tensor(answer).shape and bool(close(answer).all())

    if agrees(expected):
        return
    seen = _difference(what, got, expected, where)
    for wrong, sentence in mistakes:
        if agrees(wrong):
            raise CheckFailed(f"{sentence} ({seen})")
    if got.shape != expected.shape:
        hint = explain.shapes(got, expected)
        raise CheckFailed(f"{_capital(seen)}. {hint}")
    kept = got if where is None or where.shape != got.shape else torch.where(where, got, expected)
    hint = explain.numbers(kept.double(), expected.double(), close, where, more())
    raise CheckFailed(f"{hint} ({seen})" if hint else f"{_capital(seen)}.")


def padding_is_zero(what: str, got: Tensor, mask: Tensor) -> None:
    """Raise CheckFailed unless all is zero where a ``(B, T)`` mask is false."""
    if bool(got.detach()[~mask].ne(0).any()):
        row, column = (int(i) for i in ((got.detach() != 0) & ~mask).nonzero()[0])
        raise CheckFailed(
            f"{_capital(what)} is right at the sampled tokens, but not zero at padding: "
            f"{got[row, column].item():.4g} at [{row}, {column}], where the mask is false. Mask it "
            "(torch.where(mask, ..., 0.0))."
        )


def gradient(what: str, output: Tensor, leaf: Tensor, weights: Tensor | None = None) -> Tensor:
    """Gradient of an implementation's output (its weighted sum) with respect to one of its inputs."""
    if not isinstance(output, Tensor) or not output.requires_grad:
        raise CheckFailed(
            f"{_capital(what)} has no gradient, so nothing could be trained with it. Something on the way "
            "was detached, computed under no_grad, or made a Python number with .item()."
        )
    total = output.sum() if weights is None else (output * weights).sum()
    try:
        found = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0]
    except RuntimeError as error:
        raise CheckFailed(f"The gradient of {what} cannot be computed: {error}") from error
    return torch.zeros_like(leaf) if found is None else found


def no_gradient(what: str, output: Tensor, leaf: Tensor, why: str) -> None:
    """Raise CheckFailed if an output sends a gradient to an input that is to be a constant."""
    if bool(gradient(what, output, leaf).ne(0).any()):
        raise CheckFailed(f"A gradient flows into {why}")


def _told(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a class of the student's own
        return "(its message cannot be read)"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _difference(what: str, got: Tensor, expected: Tensor, where: Tensor | None) -> str:
    if got.shape != expected.shape:
        return f"{what} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.ndim == 0:
        return f"{what} is {got.item():.4g}, expected {expected.item():.4g}"
    gap = (got.double() - expected.double()).abs().nan_to_num(nan=torch.inf)
    gap = gap if where is None else gap.masked_fill(~where, 0)
    place = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    return (
        f"{what}, shape {tuple(got.shape)}, is {got[place].item():.4g} at {list(place)}, expected "
        f"{expected[place].item():.4g}"
    )


def _describe(argument) -> str:
    if isinstance(argument, Tensor):
        return f"a tensor {tuple(argument.shape)} of {str(argument.dtype).removeprefix('torch.')}"
    return f"a {type(argument).__name__}" if isinstance(argument, torch.nn.Module) else repr(argument)[:60]
