"""The checks that exercises, labs and the bug museum share: one function for each thing to get right.

    >>> from nanogrpo.teach import check
    >>> check.check_leave_one_out(lambda rewards: rewards - rewards.mean(1, keepdim=True), seed=0)
    Traceback (most recent call last):
    nanogrpo.teach.checks.registry.CheckFailed: Your baseline is the mean of all ... rewards of the group, ...

``check_xxx(implementation, seed=None)`` calls an implementation on random inputs and compares what it
returns, and its gradient, with the package's own. It returns nothing if they agree, however the function is
written; otherwise it raises :class:`CheckFailed` with a sentence to act on. The docstring of a check says how
the implementation is called: with positional arguments, in the order of the package's function of that name.
Without a ``seed`` the inputs are new at each call, so frozen answers do not pass. A message names its seed,
and :func:`inputs` gives what was drawn.

All checks of the folder ``checks`` are found by themselves.
"""

from __future__ import annotations

import importlib
import pkgutil

from nanogrpo.teach import checks
from nanogrpo.teach.checks.registry import CHECKS, CheckFailed, inputs

for _module in pkgutil.iter_modules(checks.__path__, f"{checks.__name__}."):
    importlib.import_module(_module.name)

globals().update((name, check.run) for name, check in CHECKS.items())
__all__ = ["CheckFailed", "inputs", *CHECKS]
