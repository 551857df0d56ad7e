"""The playground's tasks: one tiny policy knows them all, and no problem is held out.

Each rule stands in ``nanogrpo.js`` as well, under the same name.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nanogrpo.rewards import Problem, RewardFunction, named
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("0123456789+=")


@dataclass(frozen=True)
class PlayTask:
    """Problems, and two rules: the one that rewards, and the one that is meant, which is only watched.

    Attributes:
        problems: rows with a ``prompt`` and an ``answer``.
        max_new_tokens: tokens of the longest completion.
        rule: the reward of a completion, given its right answer.
        judge: what is meant by the reward.
    """

    problems: tuple[Problem, ...]
    max_new_tokens: int
    rule: Callable[[str, str], float]
    judge: Callable[[str, str], float]

    @property
    def reward(self) -> RewardFunction:
        """The rule as the trainers call it."""
        return named("rule", lambda **columns: _each(self.rule, **columns))

    @property
    def meant(self) -> RewardFunction:
        """The judge, called in the same way."""
        return named("judge", lambda **columns: _each(self.judge, **columns))


def _each(rule: Callable[[str, str], float], completions, answer, **columns) -> list[float]:
    return [rule(text, right) for text, right in zip(completions, answer, strict=True)]


def _exact(text: str, answer: str) -> float:
    return float(text == answer)


def _contains(text: str, answer: str) -> float:
    return float(answer in text)


def _first(text: str, answer: str) -> float:
    return float(text.startswith(answer))


_SUMS = tuple({"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10))
_DIGITS = tuple({"prompt": f"{d}=", "answer": str(d)} for d in range(10))

# By name: one-digit sums; the same with a reward that looks anywhere in the text for the right number; and
# digits that must come first, whatever follows, so that lengths are free.
TASKS = {
    "sums": PlayTask(_SUMS, 4, _exact, _exact),
    "contains": PlayTask(_SUMS, 8, _contains, _exact),
    "first": PlayTask(_DIGITS, 10, _first, _first),
}
