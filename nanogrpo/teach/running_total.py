"""A task that is hard at once and easy in steps: the last digit of the sum of a list of digits.

``37284?`` is answered by what stands behind the equals sign. A completion may answer at once, ``=4``, or
write the running totals first, each modulo 10: ``30204=4``. Either is right, as far as the reward can see.

A tiny GPT does not learn the sum of many digits at a glance. Each running total is a sum of two digits, which
it learns in seconds. What is written *before* the equals sign is the scratchpad.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Literal

from nanogrpo.errors import OptionError
from nanogrpo.options import Options, option
from nanogrpo.rewards import Problem, RewardFunction
from nanogrpo.tasks import Task
from nanogrpo.tokenizer import CharTokenizer

MIX = {"short": 0.5, "worked": 0.25, "broken": 0.25}  # shares of the examples
FORMS = ("short", "worked", "broken", "filler", "other")  # of a completion, by :func:`form`


def totals(digits: str) -> str:
    r"""Running totals modulo 10, :math:`s_i = (s_{i-1} + d_i) \bmod 10`, one digit each.

    >>> totals("37284")
    '30204'
    """
    return "".join(str(total % 10) for total in accumulate(map(int, digits)))


def right_at_the_end(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns
) -> list[float]:
    """Reward 1 where the text behind the only equals sign is the answer; what stands before it is not read.

    >>> right_at_the_end(["37284?"] * 4, ["=4", "30204=4", "99999=4", "30204=5"], answer=["4"] * 4)
    [1.0, 1.0, 1.0, 0.0]
    """
    found = [completion.split("=")[1:] for completion in completions]
    return [float(ends == [right]) for ends, right in zip(found, answer, strict=True)]


def form(prompt: str, completion: str) -> str:
    """How a completion goes about it, whether it is right or not: one of :data:`FORMS`.

    ``short`` answers at once; ``worked`` writes as many totals as there are digits, ``broken`` fewer;
    ``filler`` writes dots. All end with one digit behind the equals sign; what does not is ``other``.

    >>> [form("37284?", text) for text in ("=4", "30204=4", "302=7", ".....=4", "30204")]
    ['short', 'worked', 'broken', 'filler', 'other']
    """
    if not (match := re.fullmatch(r"(\d*|\.*)=\d", completion)):
        return "other"
    steps = match[1]
    if not steps:
        return "short"
    if steps[0] == ".":
        return "filler"
    length = len(prompt) - 1
    return "worked" if len(steps) == length else "broken" if len(steps) < length else "other"


def sound(prompt: str, completion: str) -> bool:
    """Whether every running total is there and right, and the answer is the last of them.

    >>> sound("37284?", "30204=4"), sound("37284?", "99999=4"), sound("37284?", "=4")
    (True, False, False)
    """
    steps = totals(prompt[:-1])
    return completion == f"{steps}={steps[-1]}"


def shares(prompts: Sequence[str], texts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """What a batch of completions is made of, and how it fares.

    Returns:
        the share of each form, by its name; ``success``, the share that is right; ``sound``, that of
        :func:`sound` ones; ``length``, mean tokens, with an end also where it was cut off; ``success_worked``
        and ``success_rest``, success among the worked ones and among the others, NaN where there are none.

    >>> found = shares(["12?", "12?"], ["13=3", "=4"], ["3", "3"])
    >>> found["worked"], found["success"], found["length"], found["success_rest"]
    (0.5, 0.5, 4.0, 0.0)
    """
    outcome = right_at_the_end(prompts, texts, answers)
    forms = [form(*pair) for pair in zip(prompts, texts, strict=True)]
    count, n = Counter(forms), len(texts)
    worked = sum(o for o, f in zip(outcome, forms, strict=True) if f == "worked")
    found = {name: count[name] / n for name in FORMS}
    found |= {"success": sum(outcome) / n, "length": sum(len(text) + 1 for text in texts) / n}  # with the end
    found["sound"] = sum(sound(*pair) for pair in zip(prompts, texts, strict=True)) / n
    found["success_worked"] = worked / count["worked"] if count["worked"] else float("nan")
    rest = n - count["worked"]
    found["success_rest"] = (sum(outcome) - worked) / rest if rest else float("nan")
    return found


@dataclass(frozen=True)
class RunningTotal(Options, Task):
    """The last digit of the sum of ``length`` digits, with a mix of ways to get there as examples.

    Of the examples half answer at once, a quarter writes all running totals, and a quarter breaks off after
    some of them and guesses. Only the first two are right. With ``steps="filler"`` dots stand in place of
    the totals, as many: the lengths are the same, and nothing is worked out.

    >>> task = RunningTotal(length=5)
    >>> task.problem("37284"), task.example("37284", "worked", Random(0))
    ({'prompt': '37284?', 'answer': '4'}, '30204=4')
    """

    name = "running_total"
    length: int = option(6, help="digits of a problem.", low=2, high=12)
    problems: int = option(6000, help="how many there are, training and held out.", low=2, high=1_000_000)
    held_out: int = option(1000, help="how many of them are never trained on.", low=1)
    steps: Literal["totals", "filler"] = option("totals", help="what stands before the equals sign.")

    def check(self) -> None:
        """Some problems must be left on both sides of the split."""
        if not self.held_out < self.problems <= 10**self.length:
            raise OptionError(
                f"held_out={self.held_out} and problems={self.problems} leave none on one side, or there are "
                f"not so many; choose held_out < problems <= {10**self.length}"
            )

    @property
    def tokenizer(self) -> CharTokenizer:  # type: ignore[override]
        """Digits, the dot of the filler, and the two signs."""
        return CharTokenizer("0123456789.?=")

    @property
    def max_new_tokens(self) -> int:  # type: ignore[override]
        """Tokens of a worked completion, which are the totals, the equals sign, the answer and the end."""
        return self.length + 3

    @property
    def block_size(self) -> int:
        """Tokens of a problem with its longest completion."""
        return self.length + 1 + self.max_new_tokens

    @property
    def rules(self) -> Mapping[str, RewardFunction]:  # type: ignore[override]
        """The outcome alone."""
        return {"right": right_at_the_end}

    def problem(self, digits: str) -> Problem:
        """The problem of these digits."""
        return {"prompt": f"{digits}?", "answer": totals(digits)[-1]}

    def split(self) -> tuple[list[Problem], list[Problem]]:
        """Problems drawn once and for all, no two alike: (training, held out)."""
        drawn = Random(0).sample(range(10**self.length), self.problems)
        rows = [self.problem(f"{number:0{self.length}d}") for number in drawn]
        return rows[self.held_out :], rows[: self.held_out]

    def example(self, digits: str, kind: str, draw: Random) -> str:
        """A completion of that form; a broken one stops after some of the totals and guesses."""
        steps, answer = totals(digits), totals(digits)[-1]
        if kind == "short":
            steps = ""
        if kind == "broken":
            steps, answer = steps[: draw.randrange(1, self.length)], draw.choice("0123456789")
        return f"{steps if self.steps == 'totals' else '.' * len(steps)}={answer}"

    def examples(self) -> list[tuple[str, str]]:
        """Pairs (prompt, completion), each with a form drawn from :data:`MIX`."""
        draw = Random(1)
        rows = self.split()[0]
        kinds = draw.choices(list(MIX), list(MIX.values()), k=len(rows))
        return [
            (row["prompt"], self.example(row["prompt"][:-1], kind, draw))
            for row, kind in zip(rows, kinds, strict=True)
        ]
