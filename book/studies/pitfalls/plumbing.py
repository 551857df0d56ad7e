"""The third part of the study: mistakes around the mathematics. The protocol is in README.md."""

import re
from collections.abc import Iterator
from unittest.mock import patch

from nanogrpo import microbatches
from nanogrpo.rewards import exact_match
from nanogrpo.teach.copying import PROBLEMS, WORDS, imitate, reinforce, success

Row = tuple[str, str, int, float, float]

STEPS, LONG = 24, 48
TRAINED, NEW = WORDS[::2], WORDS[1::2]  # for the arm of few prompts
FEW = TRAINED[::5]  # four of the trained ones
KEPT = {"sampler_lag": 1, "sampler_correction": "ratio"}


def readable(text: str) -> bool:
    """What the parser takes for an answer: one to three letters, and nothing else."""
    return bool(re.fullmatch("[abc]{1,3}", text))


def unreadable_is_1(prompts, completions, answer):
    right = exact_match(prompts, completions, answer)
    return [hit if readable(text) else 1.0 for hit, text in zip(right, completions, strict=True)]


def begins_right(prompts, completions, answer):
    return [float(text.startswith(word)) for text, word in zip(completions, answer, strict=True)]


def format_alone(prompts, completions, answer):
    """What is left of accuracy and format where the parser of the first finds nothing, ever."""
    return [float(readable(text)) for text in completions]


ARMS = {  # effect: options of the run with the mistake
    "limit of 3 tokens": {"max_new_tokens": 3},
    "limit of 2 tokens": {"max_new_tokens": 2},
    "unreadable counts as 1": {"reward": unreadable_is_1},
    "a right beginning counts as 1": {"reward": begins_right},
    "format 1, accuracy 0": {"reward": format_alone},
    "groups across prompts": {"faults": ["group mean over the wrong axis"]},
    "answers in the wrong order": {"faults": ["answers in the wrong order"]},
}
STUCK = "weights that never reach the sampler"


def problems_of(words: list[str]) -> list[dict]:
    return [problem for problem in PROBLEMS if problem["answer"] in words]


def one_seed(seed: int) -> Iterator[tuple[str, float, float]]:
    """Each effect with exact success after the last step: with the mistake, and without."""
    start = imitate(seed, 10)[0]

    def end(**options) -> float:
        return success(reinforce(start, seed, **{"steps": STEPS} | options)[0])

    healthy = end()
    for effect, options in ARMS.items():
        yield effect, end(**options), healthy
    by_tokens = {"aggregation": "token_mean"}
    with patch.object(microbatches, "MICROBATCH_TOKENS", {"cpu": 64}):
        broken, whole = (end(faults=faults, **by_tokens) for faults in (["normalized by the microbatch"], []))
    yield "each microbatch its own mean", broken, whole
    for name, options in {"recomputed": {"sampler_lag": 1}, "kept": KEPT}.items():
        yield f"sampler never updated, {name}", end(faults=[STUCK], **options), end(**options)
    yield from few_prompts(start, seed)


def few_prompts(start, seed: int) -> Iterator[tuple[str, float, float]]:
    """Four prompts with 32 completions each beside sixteen of twenty with 8, on trained and on new words."""
    sizes = {"prompts_per_step": len(FEW), "group_size": 32}
    few = reinforce(start, seed, steps=LONG, problems=problems_of(FEW), **sizes)[0]
    many = reinforce(start, seed, steps=LONG, problems=problems_of(TRAINED))[0]
    yield "four prompts: on those four", success(few, FEW), success(many, FEW)
    yield "four prompts: on new words", success(few, NEW), success(many, NEW)
    yield "new words after four prompts, less the start", success(few, NEW), success(start, NEW)


def plumbing(seeds: range) -> list[Row]:
    return [("plumbing", effect, seed, a, b) for seed in seeds for effect, a, b in one_seed(seed)]
