"""Options: what a value may be stands beside its default, and is checked before anything is made.

A config is a frozen dataclass of :class:`Options` whose fields are made by :func:`option`. Its docstring, the
command line, ``config.json`` and the checks all read these declarations, so each option stands in one place.
"""

import argparse
import dataclasses
import inspect
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nanogrpo.errors import OptionError, underflows

LARGEST = 3.4028234e38  # that a weight, a number of type float32, can hold
BOUNDS = {"at least": operator.ge, "at most": operator.le, "above": operator.gt, "below": operator.lt}
NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number, at most 3.4e38 in size, that a float can hold",
    str: "a text",
}


def option(
    default: Any = MISSING,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    needs: str = "",
    error: type[OptionError] | type[ValueError] = OptionError,
) -> Any:
    """Declare a field of a config: its default, its meaning and its range.

    Args:
        default: none, if the task decides.
        help: what it does, in one sentence or two, as reStructuredText.
        low: the smallest value.
        high: the largest value.
        above: an open bound; the value itself is not allowed.
        below: likewise.
        needs: another option, without which this one does nothing: its name, or ``name=value|value``.
        error: what is raised outside the range.

    Every number must be finite, whatever its range. Of a tuple, the range is that of each entry.
    """
    given = zip(BOUNDS, (low, high, above, below), strict=True)
    stated = {word: bound for word, bound in given if bound is not None}
    return field(default=default, metadata={"help": help, "range": stated, "needs": needs, "error": error})


@dataclasses.dataclass(frozen=True)
class Options:
    """Base class of every config: checks each field when it is made, then what :meth:`check` says of pairs.

    Raises:
        OptionError: a value is of the wrong type, outside its range, or does not go with another.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        known = getattr(cls, "__dataclass_fields__", {}) | own  # those of a base class come first
        options = {name: value for name, value in known.items() if "help" in value.metadata}
        if own and cls.__doc__:  # python -OO has none
            lines = [
                f"    {name}: {value.metadata['help']}{_range(value)}" for name, value in options.items()
            ]
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Attributes:", *lines])

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = _checked(f, hints[f.name], getattr(self, f.name))
            object.__setattr__(self, f.name, value)
        self.check()

    def check(self) -> None:
        """What fields must say of each other; overridden where there is something to check."""

    def idle(self) -> list[str]:
        """A sentence for each option that is not at its default and does nothing, since another is off."""
        said = []
        for f in fields(self):
            name, _, values = f.metadata.get("needs", "").partition("=")
            value = getattr(self, f.name)
            if not name or value == f.default:
                continue
            other = getattr(self, name)
            if other not in values.split("|") if values else not other:
                said.append(f"{f.name}={value!r} does nothing, since {name} is {other!r}")
        return said

    @classmethod
    def of(cls, values: Mapping[str, Any]):
        """The config with these values; JSON's lists become tuples.

        Raises:
            OptionError: as for the class, and where a name is unknown or missing.
        """
        if not isinstance(values, Mapping):
            raise OptionError(f"the options are {_shown(values):.80}; {cls.__name__} needs names and values")
        known = {f.name: f for f in fields(cls)}
        needed = {name for name, f in known.items() if f.default is MISSING}
        if odd := sorted(map(str, values.keys() - known)):
            raise OptionError(f"{cls.__name__} has no option {', '.join(odd)}; it has {', '.join(known)}")
        if lacks := sorted(needed - values.keys()):
            raise OptionError(f"{cls.__name__} needs a value of {', '.join(lacks)}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def add_options(parser: argparse._ActionsContainer, config_class: type[Options]) -> None:
    """One option of the command line for each field of a config; one that is not given leaves no trace."""
    hints = get_type_hints(config_class)
    for f in fields(config_class):
        kind, many, optional = _kind(hints[f.name])
        default = "what the task needs" if f.default is MISSING else f.default
        how: dict[str, Any] = {"help": f"{_plain(f)}{_range(f)} (default: {default})".replace("%", "%%")}
        if kind is bool:
            how["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            choices = [*get_args(kind), *(["none"] if optional else [])]
            how |= {"type": _reader(str, optional), "metavar": "{" + ",".join(choices) + "}"}
        else:
            how |= {"type": _reader(kind, optional), "metavar": kind.__name__}
        if many:
            how["nargs"] = "+"
        parser.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, **how)


def _reader(kind: type, optional: bool):
    """A reader of a value, or of ``none``; named as its type is, for argparse's messages."""

    def read(text: str):
        if kind in (int, float) and not (text.isascii() and "_" not in text):
            raise ValueError  # as in a log; Python takes 1_0 for ten, and digits of every script
        if optional and text.lower() == "none":
            return None
        value = kind(text)
        if kind is float and underflows(text, value):
            raise ValueError
        return value

    read.__name__ = kind.__name__
    return read


def _plain(f: Field) -> str:
    """The help of a field, without its markup."""
    return re.sub(r":\w+:`~?([\w.]+)`|``", lambda found: found[1] or "", f.metadata["help"])


def _kind(hint: Any) -> tuple[Any, bool, bool]:
    """The type of one value, whether there are several, and whether None is one of them."""
    optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
    if optional:
        hint = next(part for part in get_args(hint) if part is not NoneType)
    many = get_origin(hint) is tuple
    return (get_args(hint)[0] if many else hint), many, optional


def _range(f: Field) -> str:
    """The range of a field, to be read after its help."""
    stated = " and ".join(f"{word} {bound:g}" for word, bound in f.metadata["range"].items())
    return f" Must be {stated}." if stated else ""


def _checked(f: Field, hint: Any, value: Any) -> Any:
    """The value as plain Python has it; raises the field's error where it is none of those declared."""
    kind, many, optional = _kind(hint)
    if value is None and optional:
        return None
    if not many:
        return _one(f, kind, value, f"{f.name}={_shown(value)}")
    if not isinstance(value, (tuple, list)) or not value:
        raise OptionError(f"{f.name}={_shown(value)} must be a tuple of {kind.__name__}, one or more")
    return tuple(_one(f, kind, v, f"{f.name}[{i}]={_shown(v)}") for i, v in enumerate(value))


def _shown(value: Any) -> str:
    """A value for a message; Python does not write out whole numbers of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return f"(too long to be shown, of type {type(value).__name__})"


def _finite(value: Any) -> bool:
    """Whether a real number is finite, and a weight can hold it."""
    try:
        return math.isfinite(value) and abs(value) <= LARGEST
    except OverflowError:
        return False


def _one(f: Field, kind: Any, value: Any, what: str) -> Any:
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            raise OptionError(f"{what} is unknown; choose one of {', '.join(map(repr, get_args(kind)))}")
        return value
    wanted: Any = {bool: bool, int: Integral, float: Real, str: str}[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise OptionError(f"{what} is of type {type(value).__name__}; it must be {NAMES[kind]}")
    if kind is float and not (_finite(value) and _finite(kind(value)) and bool(kind(value)) == bool(value)):
        raise f.metadata["error"](f"{what} must be {NAMES[float]}")  # nor so small that it becomes 0
    kept = kind(value)
    for word, bound in f.metadata["range"].items():
        if not BOUNDS[word](kept, bound):
            raise f.metadata["error"](f"{what} must be {word} {bound:g}: {_plain(f)}")
    return kept
