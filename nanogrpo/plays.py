"""The plays as a task: who speaks is the prompt, the first line of the speech is the completion.

The chapters on a learned reward start from here: lines to fine-tune on, and a judge of lines whose rule is
known, so that what a reward model learned can be compared with what it should have learned.
"""

import re
from collections.abc import Iterator, Sequence

import torch

from nanogrpo import sft
from nanogrpo.errors import PairError
from nanogrpo.evaluate import sample_texts
from nanogrpo.model import GPT
from nanogrpo.reward_model import Preference, prefer
from nanogrpo.tokenizer import CharTokenizer

MAX_CHARS = 48  # of a line; seven first lines in eight are no longer
MAX_NEW_TOKENS = MAX_CHARS + 1  # the end is a token, too
TEMPERATURE = 0.5  # of the judge's labels, in its points
LINES_CONFIG = sft.SFTConfig(learning_rate=5e-4, batch_size=64, max_steps=50, seed=0)
PROMPTS, GROUP_SIZE = 64, 8  # of one pass of `sample_pairs`; a group gives four pairs


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


def sft_on_lines(
    model: GPT, tokenizer: CharTokenizer, text: str, config: sft.SFTConfig = LINES_CONFIG
) -> Iterator[dict[str, float]]:
    """Fine-tune a model of the plays in place, until it answers a heading with one line; yield metrics.

    Args:
        text: the part of the plays to train on.
    """
    return sft.train(model, tokenizer, first_lines(text), config)


def sample_pairs(
    model: GPT, tokenizer: CharTokenizer, prompts: Sequence[str], count: int, seed: int
) -> list[tuple[str, str, str]]:
    """Pairs to be judged: ``count`` times a prompt, drawn at random, and two completions of it.

    A prompt that is drawn serves four pairs, which shares its reading; all completions are independent. Where
    both completions of a pair are the same text there is nothing to prefer, and the pair is left out.

    Raises:
        PairError: the model writes the same text each time.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs: list[tuple[str, str, str]] = []
    while len(pairs) < count:
        drawn = [prompts[i] for i in torch.randint(len(prompts), (PROMPTS,), generator=generator).tolist()]
        own = int(torch.randint(2**31, (), generator=generator))
        options = {"group_size": GROUP_SIZE, "max_new_tokens": MAX_NEW_TOKENS, "seed": own}
        texts = sample_texts(model, tokenizer, drawn, **options)
        owners = [prompt for prompt in drawn for _ in range(GROUP_SIZE // 2)]
        new = [pair for pair in zip(owners, texts[::2], texts[1::2], strict=True) if pair[1] != pair[2]]
        if not new:
            raise PairError(f"all of {len(owners)} pairs have two equal texts; sample with more entropy")
        pairs += new
    return pairs[:count]


def judge_pairs(
    judge: Judge, pairs: Sequence[tuple[str, str, str]], temperature: float, seed: int
) -> tuple[list[Preference], torch.Tensor]:
    """Noisy labels of pairs: the preferences, and the judge's scores of their texts, ``(N, 2)``.

    The scores are of ``(chosen, rejected)``; where the second is higher, noise has turned the label around.
    """
    scores = torch.tensor([[judge.score(a), judge.score(b)] for _, a, b in pairs], dtype=torch.float64)
    wins = prefer(*scores.unbind(1), temperature, torch.Generator().manual_seed(seed))
    preferences = [
        Preference(prompt, a, b) if win else Preference(prompt, b, a)
        for (prompt, a, b), win in zip(pairs, wins.tolist(), strict=True)
    ]
    return preferences, torch.where(wins.unsqueeze(1), scores, scores.flip(1))
