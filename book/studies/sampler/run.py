"""Runs whose sampler is not the trainer; the protocol is in README.md. What is logged is not run again."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from nanogrpo import grpo
from nanogrpo.evaluate import success_probability
from nanogrpo.recipes import test_problems
from nanogrpo.rewards import exact_match
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Addition
from nanogrpo.weights import load

HERE = Path(__file__).parent
TASK = Addition()
STEPS, WINDOW = 50, 5
RATES, TUNING_SEEDS, SEEDS = (5e-5, 1e-4, 2e-4, 4e-4), (100, 101), range(10)

CORRECTIONS: dict[str, dict] = {
    "recomputed": {},
    "kept": {"sampler_correction": "ratio"},
    "TIS": {"sampler_correction": "token_truncate"},
    "MIS": {"sampler_correction": "sequence_mask", "sampler_clip_max": 3.0},
}
ARMS: dict[str, dict] = {
    "on-policy": {},
    "1 step, recomputed": {"sampler_lag": 1},
    **{f"4 steps, {name}": {"sampler_lag": 4, **how} for name, how in CORRECTIONS.items()},
    **{f"16 steps, {name}": {"sampler_lag": 16, **how} for name, how in CORRECTIONS.items()},
    "16 steps, OPSM": {"sampler_lag": 16, "off_policy_mask_threshold": 0.1},
    "temperature 0.7, recomputed": {"sampler_temperature": 0.7},
    "temperature 0.7, TIS": {"sampler_temperature": 0.7, "sampler_correction": "token_truncate"},
    "8 bits, recomputed": {"sampler": "int8"},
}
LAST = ("1 step, recomputed", "4 steps, MIS", "temperature 0.7, TIS", "8 bits, recomputed")
OLDEST = [arm for arm in ARMS if arm.startswith("16 steps")]
CURVES = (
    "reward",
    "sampling/kl",
    "clip_ratio/region_mean",
    "sampling/importance_sampling_ratio/max",
)

Job = tuple[str, str, float, int]  # part, arm, learning rate, seed


def run(job: Job) -> tuple[float, list[list[float]]]:
    """One run: its success at the end, and its curves, averaged over each five steps."""
    _, arm, rate, seed = job
    model, _ = load("addition")
    config = grpo.GRPOConfig(
        max_new_tokens=TASK.max_new_tokens,
        group_size=8,
        prompts_per_step=16,
        max_steps=STEPS,
        learning_rate=rate,
        seed=seed,
        **ARMS[arm],
    )
    rows = list(grpo.train(model, TASK.tokenizer, TASK.split()[0], exact_match, config))
    curves = [
        [mean(row.get(name, 0.0) for row in rows[at : at + WINDOW]) for name in CURVES]
        for at in range(0, STEPS, WINDOW)
    ]
    return success_probability(model, TASK.tokenizer, test_problems(TASK)), curves


def logged(name: str) -> list[dict[str, str]]:
    path = HERE / name
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(name: str, header: Iterable[str], rows: list[list]) -> None:
    """Rows at the end of a log, which gets its header with the first."""
    new = not (HERE / name).exists()
    with open(HERE / name, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(([list(header)] if new else []) + rows)


def do(jobs: list[Job]) -> None:
    """Run what is not logged yet, and log it."""
    done = {(row["part"], row["arm"], float(row["rate"]), int(row["seed"])) for row in logged("results.csv")}
    for job in tqdm([job for job in jobs if job not in done], mininterval=10):
        success, curves = run(job)
        if job[0] != "tuning":
            rows = [[*job, (i + 1) * WINDOW, *(f"{x:.5g}" for x in curve)] for i, curve in enumerate(curves)]
            write("curves.csv", ("part", "arm", "rate", "seed", "step", *CURVES), rows)
        write("results.csv", ("part", "arm", "rate", "seed", "success"), [[*job, f"{success:.7g}"]])


def best(arm: str) -> float:
    """The learning rate of the best mean success over the tuning seeds."""
    rows = [row for row in logged("results.csv") if row["part"] == "tuning" and row["arm"] == arm]

    def score(rate: float) -> float:
        return mean(float(row["success"]) for row in rows if float(row["rate"]) == rate)

    return max(RATES, key=score)


def main() -> None:
    torch.set_num_threads(1)
    if not (HERE / "environment.json").exists():
        start = success_probability(load("addition")[0], TASK.tokenizer, test_problems(TASK))
        made = environment() | {"checkpoint": start}
        (HERE / "environment.json").write_text(json.dumps(made, indent=2) + "\n")
    do([("tuning", arm, rate, s) for arm in ("on-policy", *OLDEST) for rate in RATES for s in TUNING_SEEDS])
    common = best("on-policy")
    own = {arm: best(arm) for arm in OLDEST}
    do([("same", arm, common, seed) for arm in ARMS if arm not in LAST for seed in SEEDS])
    do([("tuned", arm, rate, seed) for arm, rate in own.items() if rate != common for seed in SEEDS])
    do([("same", arm, common, seed) for arm in LAST for seed in SEEDS])


if __name__ == "__main__":
    main()
