"""The plays: who speaks and the first line of the speech, and a hidden judge of such lines.

The rule of the judge is known, so that what a reward model learned can be compared with what it should have
learned.
"""

import re
from collections.abc import Sequence

MAX_CHARS = 48  # of a line; seven first lines in eight are no longer
MAX_NEW_TOKENS = MAX_CHARS + 1  # the end is a token, too
TEMPERATURE = 0.5  # of the judge's labels, in its points


def first_lines(text: str, max_chars: int = MAX_CHARS) -> list[tuple[str, str]]:
    r"""The speaker's heading, with its line end, and the first line of the speech, for every speech.

    Take the training pairs from the first part of :func:`nanogrpo.data.split_corpus`, those to test on from
    the second: a pair is never in both, though many a speaker is.

    Args:
        text: speeches as in tiny Shakespeare, with an empty line between two of them.
        max_chars: longer lines are left out.

    >>> first_lines("ROMEO:\nIs the day so young?\n\nBENVOLIO:\nBut new struck nine.\nWhy then?\n")
    [('ROMEO:\n', 'Is the day so young?'), ('BENVOLIO:\n', 'But new struck nine.')]
    """
    # Each part ends with a look at the line end after it, so that a line cut in two by the split is left out.
    speeches = re.findall(r"(?:\A|\n\n)([^\n]+:\n)([^\n]+)(?=\n)", text)
    return [(heading, line) for heading, line in speeches if len(line) <= max_chars]


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation; an apostrophe inside a word stays.

    >>> words("'Tis NOT the king's well-known face!")
    ['tis', 'not', 'the', "king's", 'well', 'known', 'face']
    """
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


class Judge:
    r"""The hidden judge: different long words count for a line, words that the plays do not know against it.

    .. math:: J(y) = |\{w \in y : w \text{ has four letters or more}\}| - \#\{w \in y : w \text{ unknown}\}

    A set on the left: a word that is said twice counts once, so repetition earns nothing. A count on the
    right: every word that is not in the plays costs a point, each time, so gibberish never earns anything,
    and mostly falls below zero.

    Args:
        text: the plays; their words are the known ones.

    When it is the wrong thing: as a measure of good verse. It is a rule that a reader can check by eye, and
    knows nothing of grammar or sense.

    >>> judge = Judge("Good morrow, cousin. Is the day so young? But new struck nine.")
    >>> judge.score("Good morrow, cousin!")
    3
    >>> judge.score("Good, good, good.")
    1
    >>> judge.score("Is the day so new?")
    0
    >>> judge.score("Good morrow, cozzin!")
    2
    >>> judge.score("Gzz mrrw mrrw!")
    -2
    """

    def __init__(self, text: str):
        self.known = frozenset(words(text))

    def score(self, text: str) -> int:
        """The judge's score of one text."""
        found = words(text)
        long = {word for word in found if len(word.replace("'", "")) >= 4}
        unknown = [word for word in found if word not in self.known]
        return len(long) - len(unknown)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float]:
        """The scores of completions, as a reward function; prompts do not matter to this judge."""
        return [float(self.score(completion)) for completion in completions]
