"""Why does REINFORCE without a baseline do so well? The protocol is in README.md, "Why"."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import run as study
import torch
from torch import Tensor, nn

from nanogrpo import grpo
from nanogrpo.advantages import whiten
from nanogrpo.evaluate import success_probability
from nanogrpo.metrics import CSVLog, logged, read_csv
from nanogrpo.model import GPT
from nanogrpo.optim import clip_grad_norm
from nanogrpo.ppo import PPOConfig
from nanogrpo.recipes import test_problems
from nanogrpo.rewards import exact_match
from nanogrpo.show.studies import environment
from nanogrpo.state import TrainState
from nanogrpo.step import collect, describe, update_all
from nanogrpo.tasks import Task
from nanogrpo.weights import load

STEPS = 30
RATES, LENGTHS = (2e-4, 4e-4, 8e-4), (0.05, 0.1, 0.2)
ARMS = (
    "clipped",
    "batch",
    "none",
    "mirrored",
    "straight-batch",
    "straight-none",
)  # in the order in which they run
LOGGED = {"none": 4e-4, "batch": 4e-4}  # what the second part has on ten seeds, at this rate


class Straight:
    """Gradient descent with steps of one length, and no memory: theta <- theta - lr g / ||g||."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float):
        self.params, self.lr = list(params), lr

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self, where: str = "this step") -> None:
        norm = clip_grad_norm(self.params, None, where)
        if norm:
            torch._foreach_add_(self.params, [p.grad for p in self.params], alpha=-self.lr / norm)


def advantages(kind: str, rewards: Tensor, mask: Tensor, eps: float) -> Tensor:
    """(B, T): the reward as it is, whitened, of that the part above 0, or with the batch's mean added."""
    spread = rewards.unsqueeze(1).expand_as(mask).masked_fill(~mask, 0.0)
    if kind == "none":
        return spread
    if kind == "mirrored":
        return (spread + spread[mask].mean()).masked_fill(~mask, 0.0)
    whitened = whiten(spread, mask, eps)
    return whitened.clamp(min=0) if kind == "clipped" else whitened


def train(policy: GPT, arm: str, config: PPOConfig, task: Task = study.TASK) -> Iterator[dict[str, float]]:
    """One run of an arm, step by step; what it samples and its loss are those of the main arms."""
    optimizer, kind = ("straight", arm.split("-")[1]) if arm.startswith("straight") else ("adam", arm)
    state = TrainState.start(policy.parameters(), config.learning_rate, config.seed)
    if optimizer == "straight":
        state.optimizer = Straight(policy.parameters(), config.learning_rate)
    problems, loss = task.split()[0], partial(grpo.compute_loss, policy, config)
    while state.step < config.max_steps:
        batch, sampled = collect(policy, task.tokenizer, problems, exact_match, config, state.generator)
        rollout = batch.rollout
        rewards = batch.rewards.flatten().to(rollout.logprobs)
        weights = advantages(kind, rewards, rollout.completion_mask, config.std_eps)
        before = [p.detach().clone() for p in policy.parameters()]
        updates = update_all(
            policy, replace(batch, advantages=weights), loss, [state.optimizer], config, 1, state.step + 1,
            ("loss", "clip_ratio/region_mean"),
        )  # fmt: skip
        moved = torch.stack([(p - q).norm() for p, q in zip(policy.parameters(), before, strict=True)]).norm()
        now = state.count(rollout.completion_mask)
        yield now | describe(sampled, config) | updates | {"update_norm": moved.item()}


def run(phase: str, arm: str, rate: float, seed: int) -> float:
    """The success after the last step of one run, from its log if there is one."""
    log = study.RUNS / phase / f"{arm}-lr{rate:g}--{seed}.csv"
    success = log.with_suffix(".success")
    if not success.exists():
        policy = load("addition")[0]
        wide = replace(study.tuned("ppo"), group_size=1, prompts_per_step=256)
        config = replace(wide, max_steps=STEPS, learning_rate=rate, seed=seed)
        for _ in logged(train(policy, arm, config), log):
            pass
        with CSVLog(success) as row:
            value = success_probability(policy, study.TASK.tokenizer, test_problems(study.TASK))
            row.write({"step": STEPS, "success": value})
    value = read_csv(success)["success"][-1]
    print(phase, arm, rate, seed, f"{value:.4f}", flush=True)
    return value


def best(grid: Iterable[float], tuned: Callable[[float, int], float]) -> float:
    """The rate with the highest mean on the tuning seeds; while it lies at an edge, one more is tried.

    ``tuned`` gives what a run of a rate and a seed ends at; runs that are logged are not made again.
    """
    grid = list(grid)
    while True:
        means = {rate: sum(tuned(rate, seed) for seed in study.TUNING_SEEDS) for rate in grid}
        chosen = max(means, key=means.__getitem__)
        if min(grid) < chosen < max(grid):
            return chosen
        grid.append(chosen / 2 if chosen == min(grid) else chosen * 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    torch.set_num_threads(1)
    for phase in ("why_tuning", "why"):
        folder = Path(study.HERE, phase)
        folder.mkdir(exist_ok=True)
        if not (folder / "environment.json").exists():
            (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    for arm in parser.parse_args().arms:
        grid = LENGTHS if arm.startswith("straight") else RATES
        rate = best(grid, partial(run, "why_tuning", arm))
        if LOGGED.get(arm) != rate:
            for seed in study.SEEDS:
                run("why", arm, rate, seed)
        for phase in ("why_tuning", "why"):
            study.combine(phase)


if __name__ == "__main__":
    main()
