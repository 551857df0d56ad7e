"""The capstone of lab 5: a student's own functions, composed, teach a small model to reverse words.

    >>> task = reversing(seed=0)
    >>> task.training[0]["prompt"][:-1][::-1] == task.training[0]["answer"]
    True

:func:`task_of` makes a task of any rule from a word to a word, :func:`weak_policy` a model that is right now
and then, :func:`race` trains it, and :func:`check_learn` looks at a training loop that is made of given
pieces.
"""

from nanogrpo.teach.capstone.judge import REACHED, check_learn
from nanogrpo.teach.capstone.words import (
    PACKAGE,
    WordTask,
    config_of,
    package_learn,
    package_loss,
    race,
    reversing,
    task_of,
    weak_policy,
)

__all__ = [
    "PACKAGE",
    "REACHED",
    "WordTask",
    "check_learn",
    "config_of",
    "package_learn",
    "package_loss",
    "race",
    "reversing",
    "task_of",
    "weak_policy",
]
