"""The fifth part of the study: a penalty for each letter. The protocol is in README.md."""

from collections.abc import Callable, Iterator

from nanogrpo.rewards import exact_match
from nanogrpo.teach.copying import imitate, last, reinforce, success

LENGTH = "completions/mean_length"


def accuracy(penalty: float, form: float = 0.0, right_only: bool = False) -> Callable:
    """1 for the right answer, ``form`` for one to three letters, less the penalty for each letter."""

    def reward(prompts, completions, answer):
        hits = exact_match(prompts, completions, answer)
        return [
            hit + form * _readable(text) - penalty * len(text) * (hit if right_only else 1.0)
            for hit, text in zip(hits, completions, strict=True)
        ]

    return reward


def _readable(text: str) -> bool:
    return 1 <= len(text) <= 3 and set(text) <= set("abc")


def one_seed(seed: int, steps: int = 24) -> Iterator[tuple[str, float, float]]:
    """Each effect with exact success (or length) after the last step: with the penalty, and without."""
    start, late = imitate(seed, 10)[0], imitate(seed, 30)[0]

    def run(reward: Callable, start=start, **options) -> tuple[float, float]:
        policy, log = reinforce(start, seed, reward=reward, steps=steps, **options)
        return success(policy), last(log, LENGTH)

    free, free_length = run(accuracy(0.0))
    all_, length = run(accuracy(0.1))
    gated = run(accuracy(0.1, right_only=True))[0]
    unscaled = run(accuracy(0.1), scale_rewards="none")[0]
    yield "penalty 0.1", all_, free
    yield "penalty 0.01", run(accuracy(0.01))[0], free
    yield "penalty 0.1, right answers only", gated, free
    yield "penalty 0.1, not scaled", unscaled, free
    yield "penalty 0.1 beside a format", run(accuracy(0.1, form=1.0))[0], run(accuracy(0.0, form=1.0))[0]
    yield "penalty 0.1: length (tokens)", length, free_length
    yield "penalty 0.1, start of 30 steps", run(accuracy(0.1), late)[0], run(accuracy(0.0), late)[0]
    yield "right answers only, less penalty 0.1", gated, all_
    yield "not scaled, less penalty 0.1", unscaled, all_
    yield "penalty 0.1, less the start", all_, success(start)
