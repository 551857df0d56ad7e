"""Runs of the variants on two tasks; the protocol is in README.md. What is logged is not run again."""

import copy
import csv
import functools
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import torch
from tqdm import tqdm
from words import Reverse, small_policy

from nanogrpo import grpo
from nanogrpo.errors import NonFiniteError
from nanogrpo.evaluate import success_probability
from nanogrpo.model import GPT
from nanogrpo.recipes import sft_until, test_problems
from nanogrpo.rewards import exact_match
from nanogrpo.show.studies import environment
from nanogrpo.step import Batch
from nanogrpo.tasks import Addition, Task
from nanogrpo.variants import variant
from nanogrpo.weights import load

HERE = Path(__file__).parent
TASKS: dict[str, Task] = {"reverse": Reverse(), "addition": Addition()}
FIRST_RATES = {"reverse": (2e-4, 4e-4, 8e-4), "addition": (5e-5, 1e-4, 2e-4)}
TUNING_SEEDS, SEEDS = (100, 101), range(10)
SFT_SEED, TARGET, TESTED = 1000, 0.3, 500

ARMS: dict[str, dict] = {
    "reinforce": {"baseline": "none", "scale_rewards": "none"},
    "reinforce_batch": {"baseline": "batch", "scale_rewards": "none"},
    **{name: variant(name) for name in ("grpo", "dr_grpo", "gspo", "cispo", "sapo", "maxrl")},
}
WHY = {"grpo_positive": variant("grpo")}  # its negative advantages are set to 0
BUDGET = {"group_size": 8, "max_steps": 12, "num_iterations": 3}
PROMPTS = {"reverse": 16, "addition": 8}
HEADER = ("task", "part", "arm", "rate", "seed", "success", "tokens", "clipped")

ADVANTAGES = grpo.compute_advantages

Job = tuple[str, str, str, float, int]  # task, part, arm, learning rate, seed


@functools.cache
def start(name: str) -> GPT:
    """The policy that all runs on a task start from; not to be changed."""
    if name == "addition":
        return load("addition")[0]
    task = TASKS[name]
    torch.manual_seed(SFT_SEED)
    model = small_policy(task)
    for _ in sft_until(model, task, TARGET, SFT_SEED):
        pass
    return model


@functools.cache
def problems(name: str) -> tuple[list, list]:
    """What is trained on, and what is tested on."""
    return TASKS[name].split()[0], test_problems(TASKS[name])[:TESTED]


def success(name: str, model: GPT) -> float:
    """The declared metric: the exact probability of the right answer on held-out problems."""
    return success_probability(model, TASKS[name].tokenizer, problems(name)[1])


def positive_advantages(batch: Batch, config: grpo.GRPOConfig) -> tuple[Batch, dict[str, float]]:
    """As the trainer has them, but 0 where they are negative: wrong answers are not pushed down."""
    batch, metrics = ADVANTAGES(batch, config)
    return replace(batch, advantages=batch.advantages.clamp(min=0)), metrics


def run(job: Job) -> list[str]:
    """One run: success at the end, tokens that were sampled, share of token updates outside the bounds."""
    name, _, arm, rate, seed = job
    task, model = TASKS[name], copy.deepcopy(start(name))
    config = grpo.GRPOConfig(
        max_new_tokens=task.max_new_tokens,
        learning_rate=rate,
        seed=seed,
        prompts_per_step=PROMPTS[name],
        **BUDGET,
        **(ARMS | WHY)[arm],
    )
    changed = positive_advantages if arm in WHY else ADVANTAGES
    try:
        with patch.object(grpo, "compute_advantages", changed):
            rows = list(grpo.train(model, task.tokenizer, problems(name)[0], exact_match, config))
    except NonFiniteError:
        return ["0", "", ""]
    clipped = mean(row["clip_ratio/region_mean"] for row in rows)
    return [f"{success(name, model):.7g}", f"{rows[-1]['num_tokens']:.0f}", f"{clipped:.4g}"]


def logged() -> list[dict[str, str]]:
    path = HERE / "results.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def do(jobs: list[Job]) -> None:
    """Run what is not logged yet, and log it."""
    done = {(r["task"], r["part"], r["arm"], float(r["rate"]), int(r["seed"])) for r in logged()}
    for job in tqdm([job for job in jobs if job not in done], mininterval=10):
        row = [*job, *run(job)]
        new = not (HERE / "results.csv").exists()
        with open(HERE / "results.csv", "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(([HEADER] if new else []) + [row])


def tried(task: str, arm: str) -> dict[float, float]:
    """Mean success over the tuning seeds for each learning rate that was tried."""
    found: dict[float, list[float]] = {}
    for row in logged():
        if (row["task"], row["part"], row["arm"]) == (task, "tuning", arm):
            found.setdefault(float(row["rate"]), []).append(float(row["success"]))
    return {rate: mean(values) for rate, values in found.items()}


def tune(task: str, arm: str) -> float:
    """The best learning rate; while it is at an edge, the next one beyond is tried."""
    rates = list(FIRST_RATES[task])
    while True:
        do([(task, "tuning", arm, rate, seed) for rate in rates for seed in TUNING_SEEDS])
        found = tried(task, arm)
        best = max(sorted(found), key=lambda rate: found[rate])
        if min(found) < best < max(found):
            return best
        rates = [best * 2 if best == max(found) else best / 2]


def main() -> None:
    torch.set_num_threads(1)
    if not (HERE / "environment.json").exists():
        made = environment() | {f"checkpoint_{name}": success(name, start(name)) for name in TASKS}
        (HERE / "environment.json").write_text(json.dumps(made, indent=2) + "\n")
    for task in TASKS:
        rates = {arm: tune(task, arm) for arm in ARMS}
        do([(task, "compared", arm, rates[arm], seed) for seed in SEEDS for arm in ARMS])
    for arm in WHY:
        rate = tune("reverse", arm)
        do([("reverse", "why", arm, rate, seed) for seed in SEEDS])


if __name__ == "__main__":
    main()
