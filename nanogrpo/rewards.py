"""Rewards: the rows of a data set, the functions that score what was written, and the contract between them.

**Rows.** A data set is a list of dicts. Each has a ``prompt``, which is a text, and the same further columns,
for instance the ``answer``. All values of a column are of one type. :func:`check_rows` says where this fails.

**Calls.** A reward function is called as TRL calls it, ``reward(prompts=..., completions=..., **columns)``.
Each argument is a list with one entry a completion. The lists are the function's own: what it changes in them
changes nothing elsewhere.

**Values.** It returns a list, a tuple, or an array or tensor with one dimension, of finite real numbers, one
a completion. ``True`` counts as 1. Nothing else is taken: a set has lost the order, a text ``"101"`` would be
read digit by digit, and a reward that is dropped in silence would teach the model something else than the
author of the reward meant.
"""

import copy
import functools
import inspect
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanogrpo.errors import EmptyPromptError, NanoGRPOError, RewardError, RowError, shown

RewardFunction = Callable[..., Sequence[float]]
Problem = dict[str, Any]  # a "prompt", and whatever else the reward function wants to know of it

IMMUTABLE = (str, bytes, int, float, bool, type(None))


def exact_match(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns
) -> list[float]:
    """Reward 1 for a completion that is the answer to the letter, else 0.

    Raises:
        RewardError: an answer is no text. A number never equals a text, and would give 0 for ever.

    >>> exact_match(["1+2=", "1+2="], ["3", "33"], answer=["3", "3"])
    [1.0, 0.0]
    """
    if len(answer) != len(completions):
        raise RewardError(f"exact_match was given {len(answer)} answers for {len(completions)} completions")
    for right in answer:
        if not isinstance(right, str):
            raise RewardError(
                f"exact_match compares texts, and an answer is {right!r}, of type {type(right).__name__}; "
                f"write it as it should be answered, for instance {str(right)!r}"
            )
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def reward_name(function: RewardFunction) -> str:
    """What a reward function is called in logs and messages: by its own name, or that of what it wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def named(name: str, function: RewardFunction) -> RewardFunction:
    """The same reward function under another name, for the log."""

    def reward(**columns):
        return function(**columns)

    reward.__name__ = name
    return reward


def check_rows(rows: Sequence[Problem]) -> None:
    """Check the rows of a data set, once, before anything is made of them; equal rows are fine.

    Raises:
        RowError: this is no list of dicts, a row has other columns or types than the first one, a ``prompt``
            is no text, or a column is called as an argument of every reward function is.
        EmptyPromptError: there are no rows, or a prompt is empty.
    """
    if isinstance(rows, (str, bytes, Mapping)) or not (
        hasattr(rows, "__getitem__") and hasattr(rows, "__len__")
    ):
        raise RowError(f"the rows are of type {type(rows).__name__}; give a list of dicts")
    if not len(rows):
        raise EmptyPromptError("there are no rows; give at least one")
    first: dict[str, type] = {}
    for i in range(len(rows)):  # a PyTorch data set has no other end
        try:
            row = rows[i]
        except (LookupError, TypeError) as error:  # a table's columns are found by name, and not by number
            raise RowError(
                f"a {type(rows).__name__} gives no row {i} ({type(error).__name__}: {shown(error, str)}); "
                "give a list of dicts, of a DataFrame by to_dict('records')"
            ) from error
        if not isinstance(row, Mapping):
            raise RowError(f"row {i} is of type {type(row).__name__}; a row is a dict with a prompt")
        if i == 0:
            first = _columns(row)
        if odd := [f"lacks {key}" for key in first if key not in row]:
            raise RowError(f"row {i} {odd[0]}, which row 0 has; give all rows the same columns")
        if odd := [f"has a column {key}" for key in row if key not in first]:
            raise RowError(f"row {i} {odd[0]}, which row 0 lacks; give all rows the same columns")
        for key, kind in first.items():
            if type(row[key]) is not kind:
                raise RowError(
                    f"row {i} has {key}={shown(row[key])}, of type {type(row[key]).__name__}, and row 0 one "
                    f"of type {kind.__name__}; give a column values of one type"
                )
        if not row["prompt"]:
            raise EmptyPromptError(f"the prompt of row {i} is empty; give each at least one character")


def _columns(row: Problem) -> dict[str, type]:
    """The columns of the first row and their types."""
    for key in row:
        if not isinstance(key, str) or key in ("prompts", "completions"):
            raise RowError(
                f"a column is called {key!r}; name it by a text other than prompts and completions, which "
                "reward functions are given beside the columns"
            )
    if not isinstance(row.get("prompt"), str):
        raise RowError(f"row 0 has prompt={row.get('prompt')!r}; each row needs a prompt that is a text")
    return {key: type(value) for key, value in row.items()}


def call_reward(reward_fn: RewardFunction, rows: Sequence[Problem], completions: Sequence[str]) -> Tensor:
    """Call a reward function and check what it returns: one finite number a completion, ``(B,)``.

    Args:
        reward_fn: see the top of this file.
        rows: ``P`` rows of the data set.
        completions: ``B`` texts, ``B / P`` for each row in turn.

    Raises:
        RewardError: the function raised an exception, which is chained, or returned something else than a
            finite number for each completion. The message names the function, the completion and its prompt.
        RowError, EmptyPromptError: the rows or the completions are none, see :func:`check_rows`.
    """
    check_rows(rows)
    if isinstance(completions, (str, bytes)) or not isinstance(completions, Sequence):
        raise RowError(f"the completions are of type {type(completions).__name__}; give a list of texts")
    if len(completions) % len(rows) or not all(isinstance(text, str) for text in completions):
        raise RowError(
            f"{len(completions)} completions for {len(rows)} rows; give texts, as many for each row"
        )
    each = len(completions) // len(rows)
    columns = {key: [v for row in rows for v in _copies(key, row[key], each)] for key in rows[0]}
    prompts = columns.pop("prompt")
    name = reward_name(reward_fn)
    returned = _call(reward_fn, name, {"prompts": prompts, "completions": list(completions), **columns})
    values = _listed(returned, name)
    if len(values) != len(completions):
        raise RewardError(
            f"{name} returned {len(values)} values for {len(completions)} completions; return one for each"
        )
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # half precision would round
    rewards = torch.tensor([_number(value) for value in values], dtype=dtype)
    if not bool(rewards.isfinite().all()):
        i = int((~rewards.isfinite()).nonzero()[0])
        raise RewardError(
            f"{name} returned {shown(values[i])} for completion {completions[i]!r} of prompt "
            f"{rows[i // each]['prompt']!r}; return a real number for every completion, finite and at most "
            f"{torch.finfo(rewards.dtype).max:.2g}"
        )
    return rewards


def _copies(key: str, value: Any, count: int) -> list:
    """The value for each completion of a row; of one that a reward function could change, copies."""
    if isinstance(value, IMMUTABLE):
        return [value] * count
    try:
        return [copy.deepcopy(value) for _ in range(count)]
    except Exception as error:
        raise RowError(
            f"a value of column {key}, of type {type(value).__name__}, cannot be copied ({error}), so one "
            "completion's could be changed by another's; write numbers or texts instead"
        ) from error


def _call(function: RewardFunction, name: str, columns: dict[str, list]) -> Any:
    """What the function returns. What it raises is chained, with the place in its own code."""
    if not callable(function):
        raise RewardError(f"the reward {function!r} cannot be called; give a function, or a model's score")
    try:
        return function(**columns)
    except NanoGRPOError:
        raise
    except (Exception, GeneratorExit, CancelledError) as error:  # Ctrl-C and exit() are meant
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        place = f"{frames[0].filename}, line {frames[0].lineno}" if frames else "it was not entered"
        raise RewardError(
            f"the reward function {name} raised {type(error).__name__}: {shown(error, str)} ({place}); it "
            f"is called with {', '.join(columns)}"
        ) from error


def _listed(returned: Any, name: str) -> list:
    """The values as a list, if they are a sequence that a reward function may return."""
    if isinstance(returned, Tensor) and returned.is_nested:
        raise RewardError(f"{name} returned a tensor that cannot be read: it is nested; return a list")
    if isinstance(returned, (Tensor, np.ndarray)) and returned.ndim == 1:
        try:
            return returned.tolist()
        except (RuntimeError, NotImplementedError) as error:
            raise RewardError(f"{name} returned a tensor that cannot be read: {error}") from error
    if isinstance(returned, (list, tuple)):
        return list(returned)
    what = f"a value of type {type(returned).__name__}"
    if isinstance(returned, (Tensor, np.ndarray)):
        what = f"an array of shape {tuple(returned.shape)}"
    elif inspect.iscoroutine(returned) or inspect.isasyncgen(returned):
        what = "nothing yet, since it is async, and nobody waits for it"
        getattr(returned, "close", str)()  # a coroutine that nobody waits for would warn
    elif inspect.isgenerator(returned):
        what = "a generator, since it yields"
    raise RewardError(f"{name} returned {what}; return a list with one number for each completion")


def _number(value: Any) -> float:
    """A reward as a float; NaN, which is refused, where it is no real number that a float can hold."""
    if type(value) is float:
        return value
    try:
        if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
            value = value.item()
        return float(value) if isinstance(value, Real) else float("nan")
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return float("nan")
