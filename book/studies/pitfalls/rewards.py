"""Two rewards in one group: z-score of their sum, or sum of their z-scores. The protocol is in README.md."""

from collections.abc import Callable, Iterator

import torch

from nanogrpo.advantages import group_advantages
from nanogrpo.rewards import exact_match, named
from nanogrpo.teach.copying import imitate, reinforce, success

Parts = tuple[tuple[float, Callable], ...]  # weights and reward functions

GROUP = 8


def format_of(prompts, completions, answer):
    """1 for one to three letters and nothing else."""
    return [float(1 <= len(text) <= 3 and set(text) <= set("abc")) for text in completions]


def count_of_a(prompts, completions, answer):
    """A taste: the letters a, whatever was asked for."""
    return [float(text.count("a")) for text in completions]


KINDS: dict[str, Parts] = {
    "accuracy and format": ((1.0, exact_match), (1.0, format_of)),
    "accuracy and ten times format": ((1.0, exact_match), (10.0, format_of)),
    "accuracy and a taste of 0.01": ((1.0, exact_match), (0.01, count_of_a)),
}


def summed(parts: Parts) -> Callable:
    """The weighted sum, for the trainer to normalize."""

    def reward(prompts, completions, answer):
        each = [[w * x for x in f(prompts, completions, answer)] for w, f in parts]
        return [sum(row) for row in zip(*each, strict=True)]

    return named("summed", reward)


def apart(parts: Parts) -> Callable:
    """The sum of the z-scores, each within its group; completions come group by group."""

    def reward(prompts, completions, answer):
        total = torch.zeros(len(completions) // GROUP, GROUP)
        for weight, f in parts:
            values = torch.tensor(f(prompts, completions, answer)).view(-1, GROUP)
            total += group_advantages(weight * values)
        return total.flatten().tolist()

    return named("apart", reward)


def one_seed(seed: int, steps: int = 24) -> Iterator[tuple[str, float, float]]:
    """For each pair of rewards: exact success with each normalized by itself, and with the sum normalized."""
    start = imitate(seed, 10)[0]

    def end(reward: Callable, scale: str) -> float:
        options = {"group_size": GROUP, "scale_rewards": scale, "steps": steps}
        return success(reinforce(start, seed, reward=reward, **options)[0])

    for kind, parts in KINDS.items():
        yield f"{kind}: each normalized", end(apart(parts), "none"), end(summed(parts), "group")
    taste = KINDS["accuracy and a taste of 0.01"]
    yield (
        "accuracy and a taste of 0.01: sum, not scaled",
        end(summed(taste), "none"),
        end(summed(taste), "group"),
    )
