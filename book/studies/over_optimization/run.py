"""Over-optimize learned reward models, by training and by best of n; the protocol is in README.md.

``run.py all``, or one phase by name. A run that has ended is not repeated.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from proxies import HERE, LINES, RUNS, SEEDS, World, names_of, pool, proxy_of, reward_models, second_of, write

from nanogrpo import grpo, ppo, weights
from nanogrpo.kl import entropy, kl_exact
from nanogrpo.metrics import CSVLog, logged, read_csv
from nanogrpo.model import GPT
from nanogrpo.packed import completion_logits
from nanogrpo.plays import MAX_NEW_TOKENS, words
from nanogrpo.show.studies import environment
from nanogrpo.tasks import RewardFunction
from nanogrpo.tokenizer import CharTokenizer

STEPS = 60
EVALUATE = (0, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60)
SHOWN = (0, 10, 20, 30, 40, 60)  # steps whose samples are kept
LOGGED = (
    "step",
    "reward",
    "rewards/Judge/mean",
    "reward_std",
    "entropy",
    "completions/mean_length",
    "grad_norm",
)

BUDGET = {"max_new_tokens": MAX_NEW_TOKENS, "group_size": 8, "prompts_per_step": 8, "max_steps": STEPS}
GRPO = grpo.GRPOConfig(**BUDGET, learning_rate=3e-4)
PPO = ppo.PPOConfig(**BUDGET, learning_rate=3e-4, lam=1.0, cliprange_value=None)


# Training


def conditions() -> dict[str, grpo.GRPOConfig | ppo.PPOConfig]:
    """The runs by name, the most important ones first."""
    return {
        "grpo": GRPO,
        "ppo": PPO,
        "beta-0.2": replace(GRPO, beta=0.2),
        "pairs-1000": GRPO,
        "ensemble": GRPO,
        "pairs-3000": GRPO,
        "beta-0.05": replace(GRPO, beta=0.05),
    }


def runs(world: World) -> None:
    """Every condition on every seed."""
    for condition, config in conditions().items():
        for seed in SEEDS:
            start = time.perf_counter()
            if run(world, condition, replace(config, seed=seed)):
                print(condition, seed, f"{time.perf_counter() - start:.0f} s", flush=True)
        combine()


def run(world: World, condition: str, config: grpo.GRPOConfig | ppo.PPOConfig) -> bool:
    """One run: its metrics step by step, what is measured between, and samples; false if it was there."""
    path = RUNS / f"{condition}--{config.seed}.csv"
    measured = path.with_suffix(".measured")
    if measured.exists() and read_csv(measured)["step"][-1] == config.max_steps:
        return False
    (policy, tokenizer), (reference, _) = weights.load(LINES), weights.load(LINES)
    proxy, second = proxy_of(names_of(condition, config.seed)), proxy_of([second_of(config.seed)])
    problems = [{"prompt": heading} for heading in dict.fromkeys(world.training)]
    trainer = ppo if isinstance(config, ppo.PPOConfig) else grpo
    config = replace(config, reward_weights=(1.0, 0.0))
    anchor = reference if config.beta else None  # where it is not charged for, KL is measured below only
    measure = Measure(world, policy, reference, tokenizer, proxy, second)
    kept: dict[int, list[str]] = {}
    with CSVLog(measured) as log:
        log.write(measure(0, kept))
        for row in logged(
            trainer.train(policy, tokenizer, problems, [proxy, world.judge], config, anchor), path
        ):
            if row["step"] in EVALUATE:
                log.write(measure(int(row["step"]), kept))
    path.with_suffix(".json").write_text(json.dumps(kept))
    return True


@dataclass
class Measure:
    """What is measured of a policy on completions of held-out headings, which are not trained on."""

    world: World
    policy: GPT
    reference: GPT
    tokenizer: CharTokenizer
    proxy: RewardFunction
    second: RewardFunction | None

    @torch.no_grad()
    def __call__(self, step: int, kept: dict[int, list[str]]) -> dict[str, float]:
        """Means over two completions of each heading; ``kl`` in nats a completion."""
        rollout = grpo.sample(
            self.policy,
            self.tokenizer,
            self.world.held_out,
            replace(GRPO, group_size=2),
            torch.Generator().manual_seed(step),
        )
        batch, mask = (
            (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids),
            rollout.completion_mask,
        )
        logits, ref_logits = completion_logits(self.policy, *batch), completion_logits(self.reference, *batch)
        texts = self.tokenizer.decode_batch(rollout.completion_ids)
        prompts = [heading for heading in self.world.held_out for _ in range(2)]
        if step in SHOWN:
            kept[step] = texts[: 2 * 8 : 2]
        counted = [self.count(text) for text in texts]
        values = {
            "proxy": self.proxy(prompts, texts),
            "judge": self.world.judge(prompts, texts),
            **({"second": self.second(prompts, texts)} if self.second else {}),
        } | {name: [float(row[name]) for row in counted] for name in counted[0]}
        return (
            {"step": step}
            | {name: sum(v) / len(v) for name, v in values.items()}
            | {
                "kl": kl_exact(logits, ref_logits, mask).sum(1).mean().item(),
                "entropy": (entropy(logits, mask).sum() / mask.sum()).item(),
                "length": rollout.lengths.float().mean().item(),
                "truncated": rollout.truncated.float().mean().item(),
                "distinct": len(set(texts)) / len(texts),
            }
        )

    def count(self, text: str) -> dict[str, int]:
        """What the judge counts, and what it does not: long words, those said again, unknown words."""
        found = words(text)
        long = [word for word in found if len(word.replace("'", "")) >= 4]
        unknown = sum(word not in self.world.judge.known for word in found)
        return {"long": len(set(long)), "repeated": len(long) - len(set(long)), "unknown": unknown}


# Logs


def combine() -> None:
    """All runs that have ended in three files, which are committed."""
    steps, measured, samples = [], [], {}
    for path in sorted(RUNS.glob("*.json")):
        run, seed = path.stem.split("--")
        for rows, columns in (
            (steps, read_csv(path.with_suffix(".csv"))),
            (measured, read_csv(path.with_suffix(".measured"))),
        ):
            wanted = LOGGED if rows is steps else tuple(columns)
            for values in zip(*(columns[name] for name in wanted), strict=True):
                rows.append({"run": run, "seed": seed} | dict(zip(wanted, values, strict=True)))
        samples.setdefault(run, {})[seed] = json.loads(path.read_text())
    write(HERE / "steps.csv", steps)
    write(HERE / "measured.csv", measured)
    (HERE / "samples.json").write_text(json.dumps(samples, indent=1) + "\n")


PHASES: dict[str, Callable[[World], None]] = {phase.__name__: phase for phase in (reward_models, pool, runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=["all", *PHASES])
    args = parser.parse_args()
    torch.set_num_threads(1)  # a second thread costs such a small model more than it brings
    RUNS.mkdir(exist_ok=True)
    (HERE / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    world = World.load()
    for name in PHASES if args.phase == "all" else [args.phase]:
        PHASES[name](world)


if __name__ == "__main__":
    main()
