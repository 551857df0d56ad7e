"""Where the checks are kept, by name: a function with ``@register()`` above it is a check.

The smallest one::

    @register("kl.kl_k1")
    def check_kl_k1(implementation, draw):
        \"\"\"k1 = log p - log q. Called as ``f(logprobs, ref_logprobs)``.\"\"\"
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import ModuleType

import torch

from nanogrpo.errors import NanoGRPOError, OptionError
from nanogrpo.teach.checks.again import CALLS
from nanogrpo.teach.checks.draw import Draw


class CheckFailed(NanoGRPOError, AssertionError):
    """An implementation gives another answer than it should; the message says what may be wrong."""


@dataclass(frozen=True)
class Check:
    """A check as it is registered.

    Attributes:
        run: What a reader calls, ``run(implementation, seed=None)``.
        once: One round of it, ``once(implementation, draw)``.
        takes: What it is given when the package itself is checked: from a file of the package, the function.
            The first file is the one to use by default. A step that only the labs have has none.
    """

    run: Callable
    once: Callable
    takes: Mapping[str, Callable[[ModuleType], Callable]]


CHECKS: dict[str, Check] = {}


def register(*takes: str | tuple[str, Callable[[ModuleType], Callable]], rounds: int = 4) -> Callable:
    """Keep a check that takes a :class:`Draw`, and make the public one, ``check(implementation, seed=None)``.

    Without a ``seed`` the inputs are new at each call. A failure names the seed that draws its case again.

    Args:
        takes: What it is given when the package itself is checked: ``"kl.kl_k1"``, or a file's name and a
            function that makes an implementation of its module.
        rounds: How many times it draws. More than one are followed by the twin of the first, the same shapes
            with other numbers, and by some calls that are made again: nothing may be kept from call to call.

    Raises:
        OptionError: Another check has the name already; it would no longer be run.
    """

    def decorate(once: Callable) -> Callable:
        if there := CHECKS.get(once.__name__):
            places = " and in ".join(check.__module__ for check in (there.once, once))
            raise OptionError(f"two checks are called {once.__name__}, in {places}; rename one of them")

        @functools.wraps(once)
        def run(implementation: Callable, seed: int | None = None) -> None:
            first = random.SystemRandom().randrange(1 << 30) if seed is None else seed
            CALLS.kept = []
            for number, twin in [
                *((first + i, False) for i in range(rounds)),
                *[(first, True)] * (rounds > 1),
            ]:
                try:
                    with torch.enable_grad():
                        once(implementation, Draw(number, twin))
                        if kept := "" if not twin else CALLS.judge():
                            raise CheckFailed(kept)
                except CheckFailed as failed:
                    CALLS.kept = None
                    again = f"[{once.__name__}(..., seed={number}) draws this case again]"
                    raise CheckFailed(f"{failed} {again}") from failed.__cause__

        del run.__wrapped__  # the signature to show is the one above
        CHECKS[once.__name__] = Check(run, once, dict(map(_taken, takes)))
        return run

    return decorate


def inputs(name: str, seed: int) -> tuple:
    """What the check of that name calls an implementation with first, for a seed that a message names.

    >>> from nanogrpo.teach import check
    >>> rewards, = check.inputs("check_leave_one_out", seed=3)
    >>> tuple(rewards.shape)
    (5, 8)
    """
    if name not in CHECKS:
        raise OptionError(f"no check is called {name!r}; there are {', '.join(CHECKS)}")

    def implementation(*arguments, **options):
        raise _Called((*arguments, *options.values()))

    try:
        with torch.enable_grad():
            CHECKS[name].once(implementation, Draw(seed))
    except _Called as called:
        return called.args[0]
    raise AssertionError(f"{name} does not call an implementation")


class _Called(BaseException):
    """Carries the arguments of a call past whoever reports errors."""


def _taken(what: str | tuple[str, Callable[[ModuleType], Callable]]) -> tuple[str, Callable]:
    file, take = what.split(".") if isinstance(what, str) else what
    return f"{file}.py", attrgetter(take) if isinstance(take, str) else take
