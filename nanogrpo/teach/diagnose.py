"""Diagnoses of lab 6: what an answer looks like, and when it is right.

>>> check_answer({"part": "kl_penalty", "metric": "kl", "step": 4}, "kl_penalty", {"kl": 3, "reward": 6})
>>> answer = {"part": "kl_penalty", "metric": "length", "step": 4}
>>> check_answer(answer, "kl_penalty", {"kl": 3, "reward": 6})  # doctest: +IGNORE_EXCEPTION_DETAIL
Traceback (most recent call last):
CheckFailed: The part is right. In 'length' this run does what right runs do.
"""

from __future__ import annotations

from collections.abc import Mapping

from nanogrpo.teach.check import CheckFailed

PARTS = (
    "clipped_surrogate",
    "completion_mask",
    "importance_ratio",
    "kl_penalty",
    "logprobs_of",
    "token_logprobs",
    "none",
)
METRICS = ("reward", "length", "clipped", "kl")


def check_form(answer: object, steps: int = 24) -> None:
    """A diagnosis is ``{"part": ..., "metric": ..., "step": ...}``; the last two are None for a sound run.

    Raises:
        CheckFailed: It is something else; the message says what may stand there.
    """
    if not isinstance(answer, Mapping) or set(answer) != {"part", "metric", "step"}:
        raise CheckFailed(f"A diagnosis has a part, a metric and a step, and this is {answer!r}.")
    part, metric, step = answer["part"], answer["metric"], answer["step"]
    if part is None:
        raise CheckFailed("Nothing is written here yet.")
    if type(part) is not str or part not in PARTS:
        raise CheckFailed(f"part={part!r} is none of {', '.join(map(repr, PARTS))}.")
    if part == "none":
        if metric is not None or step is not None:
            raise CheckFailed("If no part is broken, metric and step are None.")
        return
    if type(metric) is not str or metric not in METRICS:
        raise CheckFailed(f"metric={metric!r} is none of {', '.join(map(repr, METRICS))}.")
    if type(step) is not int or not 1 <= step <= steps:
        raise CheckFailed(f"step={step!r} is no whole number from 1 to {steps}.")


def check_answer(answer: Mapping, part: str, shows: Mapping[str, int]) -> None:
    """Is it this part, in a metric that shows it, from about the step that it can be seen from?

    Args:
        answer: The student's.
        part: The broken one, or ``"none"``.
        shows: The metrics in which the run leaves what right runs do, with the first step of leaving. An
        answer
            may be off by two steps, or by four tenths of the step.

    Raises:
        CheckFailed: No.
    """
    check_form(answer)
    if answer["part"] != part:
        raise CheckFailed("Another part is to blame, or none.")
    if part == "none":
        return
    if answer["metric"] not in shows:
        raise CheckFailed(f"The part is right. In {answer['metric']!r} this run does what right runs do.")
    first = shows[answer["metric"]]
    if abs(answer["step"] - first) > max(2, 0.4 * first):
        raise CheckFailed("Part and metric are right. It can be seen from another step on.")
