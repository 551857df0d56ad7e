"""What a run of this study is made of: tasks, graders, settings drawn by a seed, and the faults to plant."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nanogrpo.rewards import exact_match
from nanogrpo.tasks import Addition, Task
from nanogrpo.tokenizer import CharTokenizer

Reward = Callable[..., list[float]]


class Reverse(Task):
    """Three letters, to be written in reverse."""

    name, max_new_tokens = "reverse", 5
    tokenizer = CharTokenizer("abcde=")

    def split(self):
        letters = self.tokenizer.chars[:5]
        rows = [
            {"prompt": f"{a}{b}{c}=", "answer": f"{c}{b}{a}"}
            for a in letters
            for b in letters
            for c in letters
        ]
        random.Random(0).shuffle(rows)
        return rows[:100], rows[100:]


class Shift(Reverse):
    """Three letters, each to be moved on by one in a circle of five."""

    name = "shift"

    def split(self):
        letters = self.tokenizer.chars[:5]
        after = dict(zip(letters, letters[1:] + letters[:1], strict=True))
        train, test = (
            [{**row, "answer": "".join(after[c] for c in row["prompt"][:3])} for row in rows]
            for rows in super().split()
        )
        return train, test


TASKS: dict[str, Task] = {
    "addition": Addition(digits=1, held_out=20),
    "reverse": Reverse(),
    "shift": Shift(),
}
ROOM = 5  # tokens of a completion
SFT = {"addition": 50, "reverse": 10, "shift": 8}  # steps of SFT before a run, to be multiplied


def graded(prompts, completions, answer, **columns) -> list[float]:
    """Share of the places that are right."""
    return [
        sum(a == b for a, b in zip(text, right, strict=False)) / max(len(text), len(right), 1)
        for text, right in zip(completions, answer, strict=True)
    ]


def offset(prompts, completions, answer, **columns) -> list[float]:
    """1.3 for a right answer, 0.3 for a wrong one."""
    return [0.3 + right for right in exact_match(prompts, completions, answer)]


def long(prompts, completions, **columns) -> list[float]:
    """The share of the room that is used."""
    return [len(text) / ROOM for text in completions]


def long_and_begun(prompts, completions, answer, **columns) -> list[float]:
    """A point for the right first sign, and more for every sign that follows."""
    return [
        (text[:1] == right[:1]) + 0.5 * len(text) for text, right in zip(completions, answer, strict=True)
    ]


def short(prompts, completions, **columns) -> list[float]:
    """The less, the better."""
    return [1 - len(text) / ROOM for text in completions]


def brief(prompts, completions, answer, **columns) -> list[float]:
    """A right answer is worth 0.2, and each sign costs 0.3."""
    return [
        0.2 * right - 0.3 * len(text)
        for text, right in zip(completions, exact_match(prompts, completions, answer), strict=True)
    ]


def one_sign(prompts, completions, **columns) -> list[float]:
    """How often a favorite sign stands there, in at most three places."""
    return [min(text.count("1") + text.count("a"), 3) / 3 for text in completions]


def no_repeats(prompts, completions, **columns) -> list[float]:
    """Two signs, unlike each other, and nothing else: a form that says nothing of the answer."""
    return [float(len(text) == 2 and text[0] != text[1]) for text in completions]


def never(prompts, completions, answer, **columns) -> list[float]:
    """The grader wants a full stop, which the alphabet does not have."""
    return [float(text == f"{right}.") for text, right in zip(completions, answer, strict=True)]


def always(prompts, completions, **columns) -> list[float]:
    """The grader has lost its question."""
    return [1.0] * len(completions)


def majority(prompts, completions, **columns) -> list[float]:
    """Agreement with the most frequent answer to the same prompt: no answer is known."""
    groups: dict[str, list[str]] = {}
    for prompt, text in zip(prompts, completions, strict=True):
        groups.setdefault(prompt, []).append(text)
    best = {prompt: max(sorted(set(texts)), key=texts.count) for prompt, texts in groups.items()}
    return [float(text == best[prompt]) for prompt, text in zip(prompts, completions, strict=True)]


def unlike(prompts, completions, **columns) -> list[float]:
    """The rarer among the answers to its prompt, the better."""
    groups: dict[str, list[str]] = {}
    for prompt, text in zip(prompts, completions, strict=True):
        groups.setdefault(prompt, []).append(text)
    return [
        1 - groups[prompt].count(text) / len(groups[prompt])
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def negated(prompts, completions, answer, **columns) -> list[float]:
    """The wrong answer is the right one."""
    return [1 - right for right in exact_match(prompts, completions, answer)]


def lottery(seed: int) -> Reward:
    """A grader that throws a coin."""
    chance = random.Random(seed)

    def coin(prompts, completions, **columns) -> list[float]:
        return [float(chance.random() < 0.3) for _ in completions]

    return coin


def dies(seed: int) -> Reward:
    """Exact match, until the grader's service is gone."""
    calls = 0

    def failing(prompts, completions, answer, **columns) -> list[float]:
        nonlocal calls
        calls += 1
        return exact_match(prompts, completions, answer) if calls <= 20 else [0.0] * len(completions)

    return failing


def misfiled(seed: int) -> Reward:
    """Answers come in another order than the prompts."""
    chance = random.Random(seed)

    def other(prompts, completions, answer, **columns) -> list[float]:
        return exact_match(prompts, completions, chance.sample(answer, len(answer)))

    return other


def by_group(prompts, completions) -> dict[str, list[int]]:
    """The places of each prompt's completions."""
    places: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(i)
    return places


def best_for_all(prompts, completions, answer, **columns) -> list[float]:
    """Every completion has the reward of the best one to its prompt."""
    right = exact_match(prompts, completions, answer)
    best = {p: max(right[i] for i in places) for p, places in by_group(prompts, completions).items()}
    return [best[p] for p in prompts]


def first_for_all(prompts, completions, answer, **columns) -> list[float]:
    """Rewards are kept under the prompt, so all completions of a prompt have that of the first."""
    right = exact_match(prompts, completions, answer)
    first = {p: right[places[0]] for p, places in by_group(prompts, completions).items()}
    return [first[p] for p in prompts]


def rare_first_sign(prompts, completions, **columns) -> list[float]:
    """The rarer its first sign in the batch, the better."""
    signs = [text[:1] for text in completions]
    return [1 - signs.count(sign) / len(signs) for sign in signs]


def unfinished(prompts, completions, answer, **columns) -> list[float]:
    """A text that fills the room is not graded, and counts as right."""
    right = exact_match(prompts, completions, answer)
    return [max(float(len(text) >= ROOM), r) for text, r in zip(completions, right, strict=True)]


def four_signs(prompts, completions, **columns) -> list[float]:
    """The form asks for four signs."""
    return [float(len(text) == 4) for text in completions]


def equals_sign(prompts, completions, **columns) -> list[float]:
    """There should be an equals sign, which no answer has."""
    return [float("=" in text) for text in completions]


def near_miss(prompts, completions, answer, **columns) -> list[float]:
    """All but the last sign must be right, and the last one wrong."""
    return [
        float(len(text) == len(right) and text[:-1] == right[:-1] and text != right)
        for text, right in zip(completions, answer, strict=True)
    ]


def kept(seed: int) -> Reward:
    """What was answered to a prompt first is right from then on."""
    known: dict[str, str] = {}

    def as_before(prompts, completions, **columns) -> list[float]:
        return [
            float(known.setdefault(p, text) == text) for p, text in zip(prompts, completions, strict=True)
        ]

    return as_before


def shuffled(seed: int) -> Reward:
    """The rewards of each prompt's completions, dealt out anew among them."""
    chance = random.Random(seed)

    def dealt(prompts, completions, answer, **columns) -> list[float]:
        right = exact_match(prompts, completions, answer)
        out = list(right)
        for places in by_group(prompts, completions).values():
            for i, j in zip(places, chance.sample(places, len(places)), strict=True):
                out[i] = right[j]
        return out

    return dealt


def shrinking(seed: int) -> Reward:
    """A right answer is worth three percent less at every step."""
    worth = 1.0

    def less(prompts, completions, answer, **columns) -> list[float]:
        nonlocal worth
        worth *= 0.97
        return [worth * right for right in exact_match(prompts, completions, answer)]

    return less


@dataclass(frozen=True)
class Fault:
    """A kind of fault: how it is planted, and what a doctor should call it ('' where no curve shows it)."""

    name: str
    expected: str
    options: dict[str, Any] = field(default_factory=dict)
    piece: str = ""  # of the museum
    reward: Reward | None = None
    make: Callable[[int], Reward] | None = None  # a reward that has a state
    watched: Reward | None = None  # a judge of weight 0
    practice: float = 0
    measured: bool = False  # whether the KL to a reference is measured at least
    reference: float = 0  # how much SFT the reference has had, where it is not the start


WATCH = exact_match
TRAINING = [
    Fault("grader wants a full stop", "dead groups", reward=never),
    Fault("entropy is punished", "entropy collapse", {"entropy_coef": -1.0}),
    Fault("entropy bonus of 1", "entropy runs up", {"entropy_coef": 1.0}),
    Fault("paid for length", "truncation creep", reward=long),
    Fault("paid for silence", "length drift", reward=short),
    Fault("k1 reversed", "KL run-away", {"kl_in": "reward", "beta": 0.3}, "k1 reversed"),
    Fault("old log-probs at temperature 1", "ratio not 1 at the first update", {"temperature": 1.5},
          "old log-probs at temperature 1"),
    Fault("learning rate 0.03", "learning rate too large", {"learning_rate": 0.03}),
    Fault("sign of the loss", "the reward falls", piece="sign of the loss"),
    Fault("favorite sign, judge watched", "reward hacked", reward=one_sign, watched=WATCH),
    Fault("learning rate 0", "the policy does not move", {"learning_rate": 0.0}, measured=True),
    Fault("ratio detached", "no gradient", piece="ratio detached on both sides"),
    Fault("reference is the policy itself", "the reference moves", {"beta": 0.1},
          "reference is the policy itself"),
    Fault("ties by a small eps", "advantages in dead groups", {"baseline": "group", "scale_rewards": "group"},
          "ties by a small eps", reward=offset),
    Fault("the grader throws a coin", "nothing is learned", make=lottery),
]  # fmt: skip
UNSEEN = [
    Fault("the task is mastered already", "dead groups", practice=10),
    Fault("every answer is right", "dead groups", reward=always),
    Fault("the grader dies at step 21", "dead groups", make=dies),
    Fault("majority is right", "entropy collapse", reward=majority),
    Fault("paid for being unlike the others", "entropy runs up", reward=unlike),
    Fault("a right start and then length", "truncation creep", reward=long_and_begun),
    Fault("each sign costs", "length drift", reward=brief),
    Fault("penalty with the wrong sign", "KL run-away", {"beta": 1.0, "kl_in": "loss"},
          "penalty with the wrong sign"),
    Fault("new log-probs at temperature 1", "ratio not 1 at the first update", {"temperature": 1.5},
          "new log-probs at temperature 1"),
    Fault("target shift in the fast path", "ratio not 1 at the first update", {},
          "fast path: target shift off by one"),
    Fault("ten passes at 0.01", "learning rate too large", {"learning_rate": 0.01, "num_iterations": 10}),
    Fault("a form in place of an answer, judge watched", "reward hacked", reward=no_repeats, watched=WATCH),
    Fault("wrong answers paid, judge watched", "reward hacked", reward=negated, watched=WATCH),
    Fault("learning rate 1e-8", "the policy does not move", {"learning_rate": 1e-8}, measured=True),
    Fault("answers in another order", "nothing is learned", make=misfiled),
]  # fmt: skip
NEW = [
    Fault("all get the best of their group", "dead groups", reward=best_for_all),
    Fault("rewards kept under the prompt", "dead groups", reward=first_for_all),
    Fault("what was said first is right", "entropy collapse", make=kept),
    Fault("paid for a rare first sign", "entropy runs up", reward=rare_first_sign),
    Fault("unfinished texts count as right", "truncation creep", reward=unfinished),
    Fault("paid for four signs", "length drift", reward=four_signs),
    Fault("paid for an equals sign", "KL run-away", reward=equals_sign, measured=True),
    Fault("target shift off by one", "ratio not 1 at the first update", piece="target shift off by one"),
    Fault("eight minibatches at 0.01", "learning rate too large",
          {"learning_rate": 0.01, "num_mini_batches": 8}),
    Fault("near misses paid, judge watched", "reward hacked", reward=near_miss, watched=WATCH),
    Fault("paid for length, judge watched", "reward hacked", reward=long, watched=WATCH),
    Fault("gradient clipped to 1e-12", "the policy does not move", {"max_grad_norm": 1e-12}, measured=True),
    Fault("rewards shuffled in the group", "nothing is learned", make=shuffled),
    Fault("a right answer is worth less each step", "the reward falls", make=shrinking),
    Fault("the reference is an older checkpoint", "the reference is not the start", {"beta": 0.1},
          reference=0.5),
]  # fmt: skip
SILENT = [
    Fault("Bessel's std", "", {"scale_rewards": "group"}, "Bessel's std where population is meant"),
    Fault("group mean over the wrong axis", "", {"baseline": "group"}, "group mean over the wrong axis"),
    Fault("k3 reversed", "", {"beta": 0.1, "kl_in": "loss"}, "k3 reversed"),
    Fault("token mean over padding", "", {"aggregation": "token_mean"}, "token mean over padding"),
    Fault("clip without the min", "", {}, "clip without the min"),
    Fault("wrong answers paid, no judge", "", reward=negated),
]

SETTINGS: dict[str, dict[str, tuple]] = {
    "training": {
        "task": ("addition",),
        "practice": (1.0, 1.4),
        "reward": (exact_match, graded),
        "shape": ((4, 32), (8, 16), (16, 8)),  # group_size, prompts_per_step
        "temperature": (1.0, 1.3),
        "beta": (0.0, 0.02, 0.1),
        "num_iterations": (1, 2),
        "baseline": ("group", "leave_one_out"),
        "scale_rewards": ("group", "batch", "none"),
        "aggregation": ("token_mean", "sequence_mean", "constant"),
    },
    "held out": {
        "task": ("addition", "reverse"),
        "practice": (0.9, 1.2),
        "reward": (exact_match, graded),
        "shape": ((6, 20), (12, 12), (10, 16)),
        "temperature": (0.9, 1.15),
        "beta": (0.0, 0.05),
        "num_iterations": (1, 3),
        "baseline": ("group", "leave_one_out"),
        "scale_rewards": ("group", "batch", "none"),
        "aggregation": ("token_mean", "sequence_mean", "constant"),
    },
    "development": {
        "task": ("addition", "reverse"),
        "practice": (0.9, 1.0, 1.2, 1.4),
        "reward": (exact_match, graded),
        "shape": ((4, 32), (8, 16), (16, 8), (6, 20), (12, 12), (10, 16)),
        "temperature": (0.9, 1.0, 1.15, 1.3),
        "beta": (0.0, 0.02, 0.05, 0.1),
        "num_iterations": (1, 2, 3),
        "baseline": ("group", "leave_one_out"),
        "scale_rewards": ("group", "batch", "none"),
        "aggregation": ("token_mean", "sequence_mean", "constant"),
    },
    "second held out": {
        "task": ("addition", "shift"),
        "practice": (0.95, 1.3),
        "reward": (exact_match, graded),
        "shape": ((5, 26), (7, 18), (14, 9)),
        "temperature": (0.95, 1.2),
        "beta": (0.0, 0.07),
        "num_iterations": (1, 4),
        "baseline": ("group", "leave_one_out"),
        "scale_rewards": ("group", "batch", "none"),
        "aggregation": ("token_mean", "sequence_mean", "constant"),
    },
}
RATES = {
    "training": (3e-4, 1.2e-3),
    "held out": (2.5e-4, 1e-3),
    "development": (2.5e-4, 1.2e-3),
    "second held out": (2.8e-4, 9e-4),
}  # log-uniform
