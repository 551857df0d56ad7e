"""What may be wrong with an answer, if no mistake that the check knows has made it.

Two kinds of guesses are computed. What is done to the right answer: a sign, a factor, rows in another order.
And what is done to an argument before the right answer is computed: a mask that is ignored, a number that is
fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Guess = tuple[Tensor, str]


def shapes(got: Tensor, right: Tensor) -> str:
    """What makes one shape of the other."""
    a, b = tuple(got.shape), tuple(right.shape)
    if a == b[::-1] and len(a) == 2:
        return "The axes are swapped."
    if [n for n in a if n != 1] == [n for n in b if n != 1]:
        many = "many" if len(a) > len(b) else "few"
        return f"There is an axis of length 1 too {many}: see keepdim, squeeze and unsqueeze."
    if got.numel() == right.numel():
        return "The numbers stand in other axes: no view, flatten or reshape is needed."
    if not a:
        return "This is one number for the whole batch: what runs over which axis?"
    for axis in range(len(b)):
        if a == b[:axis] + b[axis + 1 :]:
            return f"Axis {axis} is missing: was it summed, averaged or indexed?"
    if not b:
        return "One number is asked for: take the mean or the sum."
    for axis in range(len(a)):
        if b == a[:axis] + a[axis + 1 :]:
            return f"Axis {axis} is left: it is to be summed, averaged or indexed."
    if len(a) == len(b):
        axis = next(k for k in range(len(a)) if a[k] != b[k])
        return f"Along axis {axis} there are {a[axis]} of {b[axis]}: none is to be left out, and none added."
    return f"It has {len(a)} axes, {got.numel()} numbers in all, and {len(b)} axes are asked for."


def numbers(
    got: Tensor, right: Tensor, close: Callable[[Tensor], Tensor], mask: Tensor | None, more: Iterable[Guess]
) -> str:
    """What makes one answer of the other, both of one shape; empty if nothing usual does.

    Args:
        got: The answer, in double precision; where nobody looks it is the right one.
        right: The right answer, too.
        close: Where another answer is ``got``, within the tolerance.
        mask: Where to look, and of which rows there are.
        more: Guesses of :func:`of_arguments`.
    """
    if not got.isfinite().all() and right.isfinite().all():
        kind = "NaN" if got.isnan().any() else "infinite"
        where = f"at {_places(~got.isfinite())}" if got.isfinite().any() else "everywhere"
        return f"It is {kind} {where}: a log of 0, an exp that overflows, 0 / 0, or an infinity times 0."
    first = got.flatten()[0] if got.numel() else right.sum()
    if bool((got == first).all()) and (got.numel() > 1 or not first):
        return f"It is {first:.4g} everywhere: nothing that differs has an influence."
    for guesses in (((-right, "The sign is reversed."),), more, _of_result(right)):
        for wrong, sentence in guesses:
            if wrong.shape == got.shape and bool(close(wrong).all()):
                return sentence
    looked_at = torch.ones_like(got).bool() if mask is None or mask.shape != got.shape else mask
    return _relation(got, right, close, looked_at) or _where(~close(right), right, looked_at)


def _of_result(right: Tensor) -> Iterator[Guess]:
    """Usual changes of a right answer."""
    yield right.abs(), "A sign is lost: this is the size alone."
    yield 1 - right, "This is 1 minus the right answer."
    yield 1 / right, "This is upside down, 1 over the right answer."
    yield right.exp(), "This is exp of the right answer: one exp too many, or a log that is missing."
    yield (-right).exp(), "This is exp of minus the right answer: a log is missing, and a sign."
    yield right.abs().log(), "This is the log of the right answer: an exp is missing."
    yield right.square(), "This is the square of the right answer."
    yield right.abs().sqrt(), "This is the root of the right answer."
    for axis in range(right.ndim):
        yield right.flip(axis), f"The numbers stand in the reverse order along axis {axis}."
        yield right.roll(1, axis), f"The numbers stand one place too late along axis {axis}."
        yield right.roll(-1, axis), f"The numbers stand one place too early along axis {axis}."
        mean = right.mean(axis, keepdim=True).expand_as(right)
        yield mean, f"All numbers along axis {axis} are their mean."
        first = right.narrow(axis, 0, 1).expand_as(right)
        yield first, f"All numbers along axis {axis} are the first one."
        yield right.cumsum(axis), f"The numbers are added up along axis {axis}."


def _relation(got: Tensor, right: Tensor, close: Callable[[Tensor], Tensor], mask: Tensor) -> str:
    """A factor, an offset, bounds, another order of the rows, lost digits."""
    factor = float((got * right)[mask].sum() / right[mask].square().sum())
    usual = _usual(factor, right)
    if (usual or got.numel() > 1) and abs(factor) > 1e-6 and close(factor * right).all():
        return f"It is {factor:.4g} times what it should be{usual or '.'}"
    if got.numel() > 1:
        offset = (got - right)[mask].mean()
        if close(right + offset).all():
            return f"It is off by {offset:.4g} everywhere."
        inside = (right > got.min()) & (right < got.max()) & mask
        if inside.any() and close(right.clamp(got.min(), got.max())).all():
            return f"It is cut off, at {got.min():.4g} and at {got.max():.4g}."
        a, b = (x.reshape(len(x), -1) for x in (got, right))
        order = torch.cdist(a, b).argmin(1)  # of rows that all differ
        if len(order.unique()) == len(order) and close(right[order]).all():
            return "The rows are right, and in another order."
    off = ((got - right).abs() / right.abs().clamp(min=1e-2)).max()
    if off < 0.01:
        return f"It is off by {off:.1%} at most: digits are lost on the way, or a small number is added."
    return ""


def _usual(factor: float, right: Tensor) -> str:
    """Where a factor may come from."""
    known: dict[float, str] = {
        n: f": is a sum taken for a mean, or a mean for a sum, over {n} places?" for n in right.shape
    }
    known |= {2: ": a half is missing, or it is there twice?", 100: ": a percentage?"}
    known |= {1.4427: ": are these bits? Nats are asked for, the natural logarithm.", 1.01: ""}
    for n, sentence in known.items():
        if any(abs(abs(factor) / x - 1) < 1e-3 for x in (n, 1 / n)):
            return sentence or ": a factor that belongs elsewhere?"
    return ""


def _where(wrong: Tensor, right: Tensor, mask: Tensor) -> str:
    """In which places alone an answer is wrong; empty if everywhere."""
    if not right.ndim or wrong[mask].all():
        return ""
    nowhere, at = torch.zeros_like(wrong), torch.arange(wrong.shape[-1])
    row = torch.arange(len(wrong)).view(-1, *[1] * (wrong.ndim - 1))
    kinds = [(row == 0, "in the first row"), (row == len(wrong) - 1, "in the last row"),
             (right == 0, "where it should be 0"), (right < 0, "where it should be negative"),
             (right > 0, "where it should be positive"), (at == 0, "in the first column"),
             (at == wrong.shape[-1] - 1, "in the last column")]  # fmt: skip
    if wrong.ndim == 2 and not mask.all():
        length = mask.sum(1, keepdim=True)
        kinds = [(length == 1, "in rows of one token"), (at == length - 1, "at the last token of a row"),
                 (length == len(at), "in rows without padding"), (length < len(at), "in rows with padding"),
                 *kinds]  # fmt: skip
    for place, name in kinds:
        place = nowhere | place
        if not (wrong & ~place).any() and not place[mask].all():
            return f"It is wrong only {name}, at {_places(wrong)}."
    right_at = int((~wrong)[mask].sum())
    return f"It is right at {right_at} of {int(mask.sum())} places, and wrong at {_places(wrong)}."


def _places(wrong: Tensor) -> str:
    places = wrong.nonzero().tolist()
    return ", ".join(map(str, places[:3])) + (", ..." if len(places) > 3 else "")


def of_gradient(found: Tensor, wanted: Tensor) -> Iterator[Guess]:
    """Where a gradient flows that should not, and where none does that should."""
    more = torch.where(wanted == 0, found, wanted)
    yield more, "A gradient flows where there should be none: what is cut off gets none, nor does padding."
    less = torch.where(found == 0, found, wanted)
    yield less, "In some places no gradient flows, and one should: something there is detached or cut off."


def others(x: Tensor) -> list[Tensor]:
    """Other tensors of the same kind: rows in another order, and other numbers."""
    if x.is_floating_point():
        return [x.flip(0), 1 - 2 * x, x.square() + x.flip(0)]
    return [x.flip(0), *[x.roll(1, axis) for axis in range(x.ndim)], x.flip(-1)]


def of_arguments(arguments: tuple, names: list[str]) -> Iterator[tuple[tuple, str]]:
    """Arguments with one of them changed in a usual way, and what that means."""
    for i, (argument, name) in enumerate(zip(arguments, names, strict=False)):
        for change, sentence in _changes(argument, name):
            yield (*arguments[:i], change, *arguments[i + 1 :]), sentence
        for j in range(i):
            if _alike(argument, arguments[j]):
                both = list(arguments)
                both[i], both[j] = both[j], both[i]
                first, second = names[j], name
                yield tuple(both), f"`{first}` and `{second}` are swapped."
                one, other = both.copy(), both.copy()
                one[j], other[i] = arguments[j], argument
                yield tuple(one), f"`{first}` is used for `{second}`."
                yield tuple(other), f"`{second}` is used for `{first}`."


def _alike(a, b) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype
    return type(a) is type(b) and isinstance(a, float)


def _changes(x, name: str) -> Iterator[tuple[object, str]]:
    if isinstance(x, bool) or not isinstance(x, Tensor | float | int):
        return
    if not isinstance(x, Tensor):
        near = (x - 1, x + 1) if isinstance(x, int) else (x / 2, x * x, abs(x) ** 0.5, 1 / x if x else 0)
        for value in (0, 1, 0.2, 2, 2 * x, *near):
            yield type(x)(value), f"The answer is that of `{name}` = {type(x)(value):.4g}, and not {x:.4g}."
        return
    if x.dtype == torch.bool:
        length = x.sum(1, keepdim=True)
        yield torch.ones_like(x), f"Padding counts, too: `{name}` has no influence."
        yield x & (x.cumsum(1) < length), "The last sampled token of each row is left out."
        yield x & (x.cumsum(1) > 1), "The first token of each row is left out."
        yield x | (torch.arange(x.shape[1]) == length), "One token behind each completion counts, too."
        yield ~x, f"`{name}` is turned round: it is true for a sampled token."
    if x.ndim:
        yield x[:1].expand_as(x), f"All rows get the `{name}` of the first one."
        yield x.roll(1, 0), f"Each row gets the `{name}` of the row before."
        yield x.flip(0), f"`{name}` is read from the last row to the first."
    if x.ndim > 1:
        yield x.roll(1, 1), f"`{name}` is read one place too early along axis 1."
        yield x.roll(-1, 1), f"`{name}` is read one place too late along axis 1."
    if x.dtype != torch.bool:
        yield torch.ones_like(x), f"`{name}` has no influence: it could be 1 everywhere."
    if x.is_floating_point():
        yield torch.zeros_like(x), f"`{name}` is missing: it could be 0 everywhere."
        yield -x, f"The sign of `{name}` is reversed."
        yield x.abs(), f"The sign of `{name}` is lost."
        yield x.clamp(min=0), f"`{name}` counts only where it is positive."
        yield 1 - x, f"1 - `{name}` is taken for `{name}`."
        yield x.exp(), f"exp(`{name}`) is taken for `{name}`."
        yield x.square(), f"The square of `{name}` is taken for `{name}`."
        yield x - x.mean(), f"`{name}` is shifted to the mean 0 first."
        yield x / x.std(), f"`{name}` is divided by its standard deviation first."
        if x.numel() > 1:
            whitened = f"`{name}` is shifted and scaled to mean 0 and deviation 1 first."
            for correction in (0, 1):
                yield (x - x.mean()) / x.std(correction=correction), whitened
