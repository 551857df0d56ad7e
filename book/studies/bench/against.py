"""Is a step slower than it was? The package of today against an older copy of it, in the same rounds.

    git worktree add ../before 5524a48^
    make bench AGAINST=../before        about a minute

Both are asked in turn, as in ``bench.py``, and who is first changes from round to round. A ratio is taken
within a round; what is printed is the median over the rounds and its 95 % interval by the bootstrap.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from bench import Contestant

ROUNDS = {"A": 40, "S": 200}  # a step takes about a second at A, a fifth of one at S
STEPS = ("nanogrpo", "nanogrpo KL")


def seconds(step: str, shape: str, older: Path, core: int) -> np.ndarray:
    """(rounds, 2): of a step of today's package, and of the older one's."""
    pair = [Contestant("step", step, shape, core), Contestant("step", step, shape, core, older)]
    for contestant in pair:
        for _ in range(3):
            contestant.turn(record=False)
    for i in range(ROUNDS[shape]):
        for contestant in pair if i % 2 else reversed(pair):
            contestant.turn()
    for contestant in pair:
        contestant.close()
    return np.array([[reply["seconds"] for reply in contestant.rounds] for contestant in pair]).T


def interval(ratios: np.ndarray, resamples: int = 10_000) -> tuple[float, float, float]:
    """The median of ratios and its 95 % interval by the bootstrap over rounds."""
    draws = np.random.default_rng(0).choice(ratios, (resamples, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("older", type=Path, help="a folder that holds the older nanogrpo")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core to pin to")
    options = parser.parse_args()
    if not (options.older / "nanogrpo" / "grpo.py").exists():
        parser.error(f"{options.older} holds no nanogrpo/grpo.py; give a checkout of the repository")
    print("seconds of a step, today / older, within a round: median and 95 % interval")
    for shape in ROUNDS:
        for step in STEPS:
            took = seconds(step, shape, options.older, options.core)
            middle, low, high = interval(took[:, 0] / took[:, 1])
            ratio = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
            print(f"  {shape}  {step:<12} {ratio}  ({len(took)} rounds)", flush=True)


if __name__ == "__main__":
    main()
