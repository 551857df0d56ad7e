"""Run the comparison of PPO and GRPO; the protocol is in README.md. ``run.py all``, or one phase by name."""

import argparse
import csv
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from nanogrpo import grpo, ppo
from nanogrpo.evaluate import success_probability
from nanogrpo.kl import kl_exact
from nanogrpo.metrics import CSVLog, logged, read_csv
from nanogrpo.model import GPT
from nanogrpo.packed import completion_logits
from nanogrpo.recipes import test_problems
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.weights import load

HERE = Path(__file__).parent
RUNS = HERE / "runs"  # one log a run, to go on after a stop; not committed
TASK = Addition()
STEPS, SHORT, EVALUATE_EVERY = 80, 40, 10
RATES = (1e-4, 2e-4, 4e-4, 8e-4)
TUNING_SEEDS, SEEDS, CONTROL_SEEDS, FEW = range(100, 102), range(10), range(10, 20), range(5)

BUDGET = {"max_new_tokens": TASK.max_new_tokens, "group_size": 8, "prompts_per_step": 32, "max_steps": STEPS}
GRPO = grpo.GRPOConfig(**BUDGET, num_mini_batches=2)
PPO = ppo.PPOConfig(**BUDGET, num_mini_batches=2, lam=1.0)


def run(phase: str, name: str, seed: int, config, reward_fn: Callable = exact_match) -> None:
    """One run: its metrics step by step, and its success every few steps, each to a log of its own."""
    log = RUNS / phase / f"{name}--{seed}.csv"
    success = log.with_suffix(".success")
    if success.exists() and read_csv(success)["step"][-1] == config.max_steps:
        return
    config = replace(config, seed=seed)
    (model, _), (reference, _), problems = load("addition"), load("addition"), test_problems(TASK)
    trainer = ppo if isinstance(config, ppo.PPOConfig) else grpo
    rows = trainer.train(model, TASK.tokenizer, TASK.split()[0], reward_fn, config)
    with CSVLog(success) as evaluations:
        evaluations.write(evaluate(0, model, reference, problems))
        for row in tqdm(
            logged(rows, log), total=config.max_steps, desc=f"{phase} {name} {seed}", mininterval=10
        ):
            if row["step"] % EVALUATE_EVERY == 0:
                evaluations.write(evaluate(row["step"], model, reference, problems))


@torch.no_grad()
def evaluate(step: int, model: GPT, reference: GPT, problems: list) -> dict[str, float]:
    """Exact success on held-out problems; KL to the checkpoint, nats a completion, one sample a problem."""
    prompts = [row["prompt"] for row in problems]
    sampling = replace(GRPO, group_size=2, seed=0)
    rollout = grpo.sample(model, TASK.tokenizer, prompts[:256], sampling, torch.Generator().manual_seed(step))
    batch = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    kl = kl_exact(
        completion_logits(model, *batch), completion_logits(reference, *batch), rollout.completion_mask
    )
    return {
        "step": step,
        "success": success_probability(model, TASK.tokenizer, problems),
        "kl": kl.sum(1).mean().item(),
    }


def final(phase: str, name: str, seeds: range) -> list[float]:
    """The declared metric of some runs."""
    return [read_csv(RUNS / phase / f"{name}--{seed}.success")["success"][-1] for seed in seeds]


def combine(phase: str) -> None:
    """All runs of a phase in two files, which are committed: what each run measured, and how it ended."""
    for ending, name in ((".csv", "metrics.csv"), (".success", "success.csv")):
        rows = []
        for path in sorted((RUNS / phase).glob(f"*{ending}")):
            run, seed = path.stem.split("--")
            columns = read_csv(path)
            for values in zip(*columns.values(), strict=True):
                rows.append({"run": run, "seed": seed} | dict(zip(columns, values, strict=True)))
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(HERE / phase / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(
                [f"{row[n]:.7g}" if isinstance(row.get(n), float) else row.get(n, "") for n in names]
                for row in rows
            )


def shuffled(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    """The right rewards at the wrong completions: nothing can be learned from them."""
    rewards = exact_match(prompts, completions, answer)
    return random.Random("".join(completions)).sample(rewards, len(rewards))


def trials(method: str, rates: tuple[float, ...] = RATES) -> dict[str, object]:
    """The eight settings that a method is tuned over."""
    if method == "grpo":
        return {
            f"grpo-lr{rate:g}-{scale}": replace(GRPO, learning_rate=rate, scale_rewards=scale)
            for rate in rates
            for scale in ("group", "none")
        }
    return {
        f"ppo-lr{rate:g}-critic{critic:g}": replace(PPO, learning_rate=rate, critic_learning_rate=critic)
        for rate in rates
        for critic in (3e-4, 1e-3)
    }


def tuning() -> None:
    """Every trial on the tuning seeds; where a method is best at an edge, one more learning rate for both."""
    for method in ("grpo", "ppo"):
        for name, config in trials(method).items():
            for seed in TUNING_SEEDS:
                run("tuning", name, seed, config)
    for rate in extension():
        for method in ("grpo", "ppo"):
            for name, config in trials(method, (rate,)).items():
                for seed in TUNING_SEEDS:
                    run("tuning", name, seed, config)


def extension() -> list[float]:
    """The learning rates beyond an edge of the grid at which a method is best, if any."""
    edges = {RATES[0]: RATES[0] / 2, RATES[-1]: RATES[-1] * 2}
    best = {best_of(trials(method)).learning_rate for method in ("grpo", "ppo")}
    return [beyond for edge, beyond in edges.items() if edge in best]


def best_of(settings: dict[str, object]):
    """The setting with the highest mean of the declared metric over the tuning seeds."""
    return settings[max(settings, key=lambda name: sum(final("tuning", name, TUNING_SEEDS)))]


def tuned(method: str):
    """What tuning chose for a method; from the committed settings where the trials' own logs are not here."""
    if not (RUNS / "tuning").exists():
        chosen = json.loads((HERE / "comparison" / "settings.json").read_text())[method]
        return {"grpo": grpo.GRPOConfig, "ppo": ppo.PPOConfig}[method].of(chosen)
    return best_of(trials(method, (*RATES, *extension())))


def comparison() -> None:
    """The declared comparison: fresh seeds, tuned settings."""
    settings = {method: asdict(tuned(method)) for method in ("grpo", "ppo")}
    (HERE / "comparison" / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    for seed in SEEDS:
        run("comparison", "grpo", seed, tuned("grpo"))
        run("comparison", "ppo", seed, tuned("ppo"))
        run("comparison", "ppo-256x1", seed, replace(tuned("ppo"), group_size=1, prompts_per_step=256))


def prompts() -> None:
    """Added after the comparison was seen: does 256 x 1 profit from prompts, baseline or learning rate?"""
    wide = replace(tuned("grpo"), group_size=2, prompts_per_step=128)
    batch, rate = (
        {"baseline": "batch", "scale_rewards": "batch"},
        {"learning_rate": tuned("ppo").learning_rate},
    )
    settings = {
        "grpo-64x4": replace(tuned("grpo"), group_size=4, prompts_per_step=64),
        "grpo-128x2": wide,
        "grpo-128x2-rate": replace(wide, **rate),
        "grpo-128x2-batch": replace(wide, **batch),
        "grpo-128x2-batch-rate": replace(wide, **batch, **rate),
    }
    for seed in FEW:
        for name, config in settings.items():
            run("prompts", name, seed, config)


def controls() -> None:
    """Nothing against nothing: the same method twice, and rewards that say nothing."""
    for seed in CONTROL_SEEDS:
        run("controls", "grpo-again", seed, tuned("grpo"))
    for seed in FEW:
        run("controls", "grpo-shuffled", seed, tuned("grpo"), shuffled)


def second() -> None:
    """What the comparison lacked: 256 x 1 without a critic, and PPO at GRPO's learning rate."""
    without = replace(
        tuned("ppo"), group_size=1, prompts_per_step=256, critic="head", critic_learning_rate=0.0, vf_coef=0.0
    )  # the head stays at zero, so V = 0
    for seed in SEEDS:
        run("second", "reinforce-256x1", seed, replace(without, whiten_advantages=False))
        run("second", "batch-256x1", seed, without)
    same_rate = replace(tuned("ppo"), learning_rate=tuned("grpo").learning_rate, critic_learning_rate=1e-3)
    for seed in SEEDS:
        run("second", "ppo-32x8-rate", seed, same_rate)


def again() -> None:
    """What the second part is compared with, on its own processor."""
    for seed in SEEDS:
        run("again", "ppo-256x1", seed, replace(tuned("ppo"), group_size=1, prompts_per_step=256))
        run("again", "grpo", seed, tuned("grpo"))


def rungs() -> dict[str, object]:
    """From REINFORCE to GRPO, one change at a time."""
    one = replace(
        tuned("grpo"), max_steps=SHORT, num_mini_batches=1, aggregation="token_mean", scale_rewards="none"
    )
    std = replace(one, scale_rewards="group")
    length = replace(std, aggregation="sequence_mean")
    inner = replace(length, num_iterations=2, num_mini_batches=2)
    return {
        "reinforce": replace(one, baseline="none"),
        "group-mean": one,
        "leave-one-out": replace(one, baseline="leave_one_out"),
        "std": std,
        "length": length,
        "inner-epochs": inner,
        "kl": replace(inner, beta=0.04),
        "critic": replace(
            PPO,
            max_steps=SHORT,
            learning_rate=one.learning_rate,
            critic_learning_rate=tuned("ppo").critic_learning_rate,
            num_mini_batches=1,
        ),
    }


def ladder() -> None:
    """Every rung on a few seeds."""
    for seed in FEW:
        for name, config in rungs().items():
            run("ladder", name, seed, config)


def parts() -> dict[str, object]:
    """PPO as tuned, and with one part removed or replaced."""
    full = replace(tuned("ppo"), max_steps=SHORT)
    return {
        "full": full,
        "lambda-0": replace(full, lam=0.0),
        "lambda-0.95": replace(full, lam=0.95),
        "no-whitening": replace(full, whiten_advantages=False),
        "value-warmup": replace(full, value_warmup_steps=10),
        "head": replace(full, critic="head"),
        "return-minus-value": replace(full, advantage_estimator="return_minus_value"),
        "no-clip": replace(full, clip_low=1.0, clip_high=1e6),
        "two-epochs": replace(full, num_ppo_epochs=2),
    }


def ablation() -> None:
    """Every part on a few seeds."""
    for seed in FEW:
        for name, config in parts().items():
            run("ablation", name, seed, config)


def timing(rounds: int = 30) -> None:
    """Seconds of one step of each method in turn, so that whatever else the machine does meets all alike."""
    methods = {"grpo": GRPO, "ppo": PPO, "ppo-head": replace(PPO, critic="head")}
    steps = {}
    for name, config in methods.items():
        trainer = ppo if isinstance(config, ppo.PPOConfig) else grpo
        (model, _), config = load("addition"), replace(config, max_steps=rounds + 1)
        steps[name] = trainer.train(model, TASK.tokenizer, TASK.split()[0], exact_match, config)
        next(steps[name])  # the first step pays for what later ones find ready
    with CSVLog(HERE / "timing" / "seconds.csv") as log:
        for count in range(1, rounds + 1):
            row = {"round": count}
            for name, run in steps.items():
                start = time.perf_counter()
                next(run)
                row[name] = time.perf_counter() - start
            log.write(row)


PHASES: dict[str, Callable[[], None]] = {
    phase.__name__: phase
    for phase in (tuning, comparison, prompts, second, again, controls, ladder, ablation, timing)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=["all", *PHASES])
    args = parser.parse_args()
    torch.set_num_threads(1)  # a second thread costs such a small model more than it brings
    for name in PHASES if args.phase == "all" else [args.phase]:
        (HERE / name).mkdir(exist_ok=True)
        (HERE / name / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
        PHASES[name]()
        if (RUNS / name).exists():
            combine(name)


if __name__ == "__main__":
    main()
