"""The README's figure and the numbers of its findings, from the logs of the studies.

python book/_ext/hero.py      draws book/_static/hero.svg again, and prints the numbers
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[2]
STUDIES, FIGURE = ROOT / "book" / "studies", ROOT / "book" / "_static" / "hero.svg"
RATE = 0.0003  # the learning rate of the quickstart
TURN = 25  # the measured step at which the judge's mean over the seeds is highest


def quickstart() -> tuple[float, float]:
    """The mean share of right answers before and after GRPO, over the seeds."""
    table = pd.read_csv(STUDIES / "quickstart" / "results.csv")
    rows = table[table["learning_rate"] == RATE]
    return rows["accuracy after SFT"].mean(), rows["accuracy after GRPO"].mean()


def over_optimization() -> pd.DataFrame:
    """Mean reward (`proxy`) and judge of the run without a penalty, by step."""
    table = pd.read_csv(STUDIES / "over_optimization" / "measured.csv")
    return table[table["run"] == "grpo"].groupby("step")[["proxy", "judge"]].mean()


def success(study: str, run: str) -> tuple[float, int]:
    """The mean probability of a right answer at the end of a run, and the number of its seeds."""
    table = pd.read_csv(STUDIES / "ppo_vs_grpo" / study / "success.csv")
    ends = table[(table["run"] == run) & (table["step"] == table["step"].max())]["success"]
    return ends.mean(), len(ends)


def tied() -> tuple[float, float]:
    """By what a mean of rewards of 1.3 misses them, if by one rounding of float32; and that over 1e-8."""
    reward = torch.tensor(1.3)
    miss = (reward - torch.nextafter(reward, torch.tensor(2.0))).item()
    return miss, miss / 1e-8


def draw():
    """Left a run that learns, right one that learns the wrong thing."""
    from matplotlib.figure import Figure

    from nanogrpo.show.plotting import COLORS, style

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for seed in range(5):
        log = pd.read_csv(STUDIES / "quickstart" / f"seed{seed}-lr{RATE}.csv")
        left.plot(log["step"], log["reward"].rolling(10, min_periods=1).mean(), color=COLORS[0], alpha=0.6)
    style(left, "step of GRPO", "mean reward", "A rule as reward: right sums, five seeds")
    left.set_ylim(0, 1)
    means = over_optimization()
    for name, color, words in (("proxy", COLORS[0], "reward model"), ("judge", COLORS[1], "hidden judge")):
        right.plot(means.index, means[name], color=color, label=words, marker="o", markersize=3)
    style(right, "step of GRPO", "points", "A learned reward: mean of five seeds")
    right.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "hero", "svg.fonttype": "path"}):
        draw().savefig(FIGURE, metadata={"Date": None}, facecolor="white")
    print(quickstart(), over_optimization().loc[[0, TURN, 60]], tied(), sep="\n")
    for run in (("comparison", "ppo"), ("comparison", "ppo-256x1"), ("second", "reinforce-256x1")):
        print(run, success(*run))


if __name__ == "__main__":
    main()
