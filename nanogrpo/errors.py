"""Every error that the package raises on purpose.

One base class, so that a caller can catch them all, and a built-in parent for each, so that
``except ValueError`` still works. A message names the value, the place and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any


class NanoGRPOError(Exception):
    """Base class of every error that this package raises on purpose."""


class ShapeError(NanoGRPOError, ValueError):
    """A tensor does not have the shape that a function needs."""


class DTypeError(NanoGRPOError, TypeError):
    """A tensor does not have the number type that a function needs."""


class MaskError(NanoGRPOError, ValueError):
    """A completion mask is empty, or is not a run of true values followed by a run of false ones."""


class NonFiniteError(NanoGRPOError, ValueError):
    """A number that must be finite is NaN or infinite."""


class GroupSizeError(NanoGRPOError, ValueError):
    """A group is too small to be compared with itself."""


class OptionError(NanoGRPOError, ValueError):
    """An option has a value that the function does not know, or needs a second option."""


class UnknownCharacterError(NanoGRPOError, ValueError):
    """A character is outside the tokenizer's alphabet."""


class TextError(NanoGRPOError, TypeError):
    """Something stands where a text, or a list of texts, must be."""


class TokenError(NanoGRPOError, IndexError):
    """A token id is outside the vocabulary."""


class DeviceError(NanoGRPOError, RuntimeError):
    """Two tensors that work together are on different devices, or a device is not to be had."""


class EmptyPromptError(NanoGRPOError, ValueError):
    """There is no prompt, or one without tokens: nothing to predict the first token from."""


class BlockSizeError(NanoGRPOError, ValueError):
    """Prompt and completion together are longer than the model can read."""


class RowError(NanoGRPOError, ValueError):
    """A row of a data set is not like the others, or lacks what a row must have."""


class RewardError(NanoGRPOError, ValueError):
    """A reward function failed, or did not return one finite number for each completion."""


class PairError(NanoGRPOError, ValueError):
    """A preference is none: its two texts are equal, or there is no pair at all."""


class CorpusError(NanoGRPOError, OSError):
    """A corpus is not at hand, or is not the text that it should be."""


class CheckpointError(NanoGRPOError, ValueError):
    """A checkpoint cannot be read, or belongs to another configuration."""


class LogError(NanoGRPOError, OSError):
    """A log, or a picture of one, cannot be written or read."""


class SourceError(NanoGRPOError, AttributeError):
    """The package has no function or class of a name."""


class PackageError(NanoGRPOError, ImportError):
    """A package that only this function needs is not installed, or cannot be loaded."""


class LoopError(NanoGRPOError, RuntimeError):
    """No event loop runs here, in which something could go on in the background."""


class RunError(NanoGRPOError, ValueError):
    """A run's folder holds another run than the one asked for, or none."""


class MuseumError(NanoGRPOError, RuntimeError):
    """A piece of the museum cannot be planted, since the text it replaces has changed, or not be examined."""


@contextmanager
def os_errors(error: type[NanoGRPOError], what: str, remedy: str) -> Iterator[None]:
    """Turn an error of the operating system into one of this package, with its reason and a remedy."""
    try:
        yield
    except NanoGRPOError:
        raise
    except OSError as cause:
        raise error(f"cannot {what}: {cause.strerror or cause}; {remedy}") from cause


def shown(value: Any, say: Callable[[Any], str] = repr) -> str:
    """A value for a message, cut where it is long; not every object can say what it is."""
    try:
        text = say(value)
    except Exception:
        return f"(a {type(value).__name__} that cannot be shown)"
    return text if len(text) <= 300 else f"{text[:300]}..."


def check_shape(what: str, got, expected: tuple[int, ...], why: str = "") -> None:
    """Raise ShapeError, naming both shapes, unless tensor ``got`` has shape ``expected``."""
    if not (hasattr(got, "shape") and hasattr(got, "requires_grad")):  # an array of NumPy has no gradient
        raise DTypeError(f"{what} is of type {type(got).__name__}, need a tensor; use torch.tensor(...)")
    if got.shape != expected and tuple(got.shape) != tuple(expected):
        reason = f" ({why})" if why else ""
        raise ShapeError(f"{what} has shape {tuple(got.shape)}, expected {tuple(expected)}{reason}")


def check_choice(what: str, got, choices) -> None:
    """Raise OptionError, listing the choices, unless ``got`` is one of ``choices``."""
    if not any(isinstance(got, type(choice)) and got == choice for choice in choices):
        raise OptionError(f"{what}={got!r} is unknown; choose one of {', '.join(map(repr, choices))}")


def check_whole(what: str, got: Any, low: int | None = None, high: int | None = None) -> None:
    """Raise OptionError unless ``got`` is a whole number, no bool, from ``low`` to ``high``."""
    if isinstance(got, bool) or not isinstance(got, (int, Integral)):
        raise OptionError(f"{what}={got!r} is of type {type(got).__name__}; it must be a whole number")
    if (low is not None and int(got) < low) or (high is not None and int(got) > high):
        stated = f"at least {low}" if high is None else f"from {low} to {high}"
        raise OptionError(f"{what}={got} must be {stated}")


def underflows(text: str, number: float) -> bool:
    """Whether a number that is written out was so small that it was read as 0.

    >>> underflows("1e-400", float("1e-400")), underflows("0.0", 0.0)
    (True, False)
    """
    return number == 0 and any(c in "123456789" for c in text.lower().partition("e")[0])


def check_range(what: str, got: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Raise OptionError unless ``got`` is a number from ``low`` to ``high``, and finite; NaN is none."""
    real = isinstance(got, Real) and not isinstance(got, bool)
    if not real or not (low <= float(got) <= high and math.isfinite(got)):
        stated = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise OptionError(f"{what}={got!r} must be a finite number, {stated}")


def check_like(what: str, got: Mapping[str, Any], expected: Mapping[str, Any], remedy: str) -> None:
    """Raise CheckpointError unless named tensors have the names, shapes and number types of others."""
    lacks, odd = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if lacks or odd:
        said = [f"lacks {lacks[:3]}"] * bool(lacks) + [f"holds {odd[:3]}, which is none of it"] * bool(odd)
        raise CheckpointError(f"{what} {' and '.join(said)}; {remedy}")
    for name, own in expected.items():
        has, needs = ((tuple(t.shape), t.dtype) for t in (got[name], own))
        if has != needs:
            raise CheckpointError(
                f"{what} is of another run: {name} has another shape or number type, "
                f"{has[0]} of {has[1]} for {needs[0]} of {needs[1]}; {remedy}"
            )


def check_outputs(outputs, where: str) -> None:
    """Raise NonFiniteError where a model's outputs after an update are not finite; ``where`` is named."""
    if not outputs.isfinite().all():
        raise NonFiniteError(
            f"after {where} the model's outputs are not finite: its weights have grown too large, most "
            "likely because the learning rate is too high. Lower it, and go on from the last checkpoint, "
            "which is untouched; the weights in memory are broken"
        )


def check_mask(mask, **tensors) -> None:
    """Raise DTypeError unless ``mask`` is bool, ShapeError unless each named tensor has its shape."""
    if str(getattr(mask, "dtype", None)) != "torch.bool":
        what = getattr(mask, "dtype", f"of type {type(mask).__name__}")
        raise DTypeError(f"mask is {what}, need torch.bool (true for a sampled token); use mask.bool()")
    for name, tensor in tensors.items():
        check_shape(name, tensor, tuple(mask.shape), "the shape of mask")
