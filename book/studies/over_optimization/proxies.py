"""The learned rewards of the study: reward models of few pairs, what they say of a pool, and best of n."""

import csv
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nanogrpo import weights
from nanogrpo.data import load_corpus, split_corpus
from nanogrpo.evaluate import sample_texts
from nanogrpo.plays import MAX_NEW_TOKENS, TEMPERATURE, Judge, first_lines
from nanogrpo.preferences import judge_pairs, sample_pairs
from nanogrpo.reward_model import (
    RewardModel,
    RewardModelConfig,
    load_reward_model,
    pair_accuracy,
    save_reward_model,
    train,
)
from nanogrpo.tasks import RewardFunction

HERE = Path(__file__).parent
RUNS = HERE / "runs"  # one log a run, to go on after a stop, and the reward models; not committed
LINES, SHIPPED = "tinyshakespeare-lines", "tinyshakespeare-reward"
SEEDS, SIZES = range(5), (1000, 3000)
HEADINGS, POOL = 32, 512  # of the pool: held-out headings, and completions of each
BEST_OF = tuple(2**k for k in range(9))  # up to 256 of 512


@dataclass(frozen=True)
class World:
    """What every run shares: the judge, and headings to train on and to measure on."""

    judge: Judge
    training: list[str]
    held_out: list[str]

    @classmethod
    def load(cls) -> "World":
        text = load_corpus()
        parts = [[heading for heading, _ in first_lines(part)] for part in split_corpus(text)]
        return cls(Judge(text), parts[0], random.Random(0).sample(parts[1], 64))


def names_of(condition: str, seed: int) -> list[str]:
    """The reward models that a condition trains against."""
    own = {
        "pairs-1000": [f"1000-{seed}"],
        "pairs-3000": [f"3000-{seed}"],
        "ensemble": [f"1000-{(seed + k) % len(SEEDS)}" for k in range(3)],
    }
    return own.get(condition, ["shipped"])


def second_of(seed: int) -> str:
    """A reward model that no run of this seed trains against, of labels that none of its models saw."""
    return f"1000-{(seed + 3) % len(SEEDS)}"


def load_judged(name: str) -> RewardModel:
    """A reward model by its name: the shipped one, or one that this study trained."""
    return weights.load_reward_model(SHIPPED) if name == "shipped" else load_reward_model(RUNS / f"{name}.rm")


def points(models: Sequence[RewardModel], means: Sequence[float]) -> RewardFunction:
    """The reward: points above the reference's mean; of several models, the lowest opinion."""

    def proxy(prompts: list[str], completions: list[str], **columns) -> list[float]:
        scores = torch.tensor([model.score(prompts, completions) for model in models])  # (models, B)
        return (TEMPERATURE * (scores - torch.tensor(means).unsqueeze(1))).amin(0).tolist()

    return proxy


def proxy_of(names: list[str]) -> RewardFunction:
    """The reward of some reward models by name; their means over the pool are in a log."""
    with open(HERE / "reward_models.csv", newline="", encoding="utf-8") as file:
        means = {row["model"]: float(row["mean"]) for row in csv.DictReader(file)}
    return points([load_judged(name) for name in names], [means[name] for name in names])


def reward_models(world: World) -> None:
    """Train the reward models of each seed; the pairs of the smaller are the first ones of the larger."""
    policy, tokenizer = weights.load(LINES)
    for seed in SEEDS:
        paths = {size: RUNS / f"{size}-{seed}.rm" for size in SIZES}
        if all(path.exists() for path in paths.values()):
            continue
        start = time.perf_counter()
        sampled = sample_pairs(policy, tokenizer, world.training, max(SIZES), seed=1000 + seed)
        pairs, _ = judge_pairs(world.judge, sampled, TEMPERATURE, seed=1000 + seed)
        for size, path in paths.items():
            model = RewardModel(policy, tokenizer)
            steps = max(30, size // 32)
            config = RewardModelConfig(learning_rate=5e-4, batch_size=32, max_steps=steps, seed=seed)
            for _ in train(model, pairs[:size], config):
                pass
            save_reward_model(path, model)
        print("reward models", seed, f"{time.perf_counter() - start:.0f} s", flush=True)


def pool(world: World) -> None:
    """Sample the reference, score by all models; log how the models rank, and the best of n."""
    tables = [HERE / f"{name}.csv" for name in ("reward_models", "best_of_n")]
    if all(table.exists() for table in tables):
        return
    policy, tokenizer = weights.load(LINES)
    headings, texts = world.held_out[:HEADINGS], []
    for k, heading in enumerate(headings):
        options = {"group_size": POOL, "max_new_tokens": MAX_NEW_TOKENS, "seed": 2000 + k}
        texts += sample_texts(policy, tokenizer, [heading], **options)
    prompts = [heading for heading in headings for _ in range(POOL)]
    judged = torch.tensor(world.judge(prompts, texts), dtype=torch.float64)
    names = ["shipped", *(f"{size}-{seed}" for size in (1000, 3000) for seed in SEEDS)]
    scores = {
        name: torch.tensor(load_judged(name).score(prompts, texts), dtype=torch.float64) for name in names
    }
    rows = [describe_model(name, scores[name], judged) for name in names]
    centered = {name: TEMPERATURE * (scores[name] - scores[name].mean()) for name in names}
    found = []
    for condition in ("grpo", "pairs-1000", "pairs-3000", "ensemble"):
        for seed in SEEDS if condition != "grpo" else range(1):
            proxy = torch.stack([centered[name] for name in names_of(condition, seed)]).amin(0)
            second = centered[second_of(seed)]
            found += best_of_n(condition, seed, proxy, judged - judged.mean(), second)
    for table, content in zip(tables, (rows, found), strict=True):
        write(table, content)


def describe_model(name: str, scores: torch.Tensor, judged: torch.Tensor) -> dict:
    """Mean of a model's scores and of the judge's over the pool, and how well it orders pairs of the pool."""
    (s0, s1), (j0, j1) = scores.view(-1, 2).unbind(1), judged.view(-1, 2).unbind(1)
    apart = j0 != j1
    better, worse = torch.where(j0 > j1, s0, s1)[apart], torch.where(j0 > j1, s1, s0)[apart]
    accuracy = pair_accuracy(better, worse)
    return {
        "model": name,
        "mean": scores.mean().item(),
        "judge_mean": judged.mean().item(),
        "accuracy": accuracy,
    }


def best_of_weights(size: int, n: int) -> torch.Tensor:
    r"""Probability that the best of ``n`` draws is the one with rank ``i`` of ``size``, worst first.

    :math:`\binom{i-1}{n-1} / \binom{size}{n}` for draws without replacement: the unbiased estimate.
    """
    total = math.comb(size, n)
    return torch.tensor([math.comb(i, n - 1) / total for i in range(size)], dtype=torch.float64)


def best_of_n(condition: str, seed: int, proxy, judged, second) -> list[dict]:
    """What the completion that the proxy likes best of ``n`` earns, by each heading's pool; mean and sem."""
    rows, order = [], proxy.view(HEADINGS, POOL).argsort(1)  # worst first
    parts = {"proxy": proxy, "judge": judged, "second": second}
    sorted_parts = {name: part.view(HEADINGS, POOL).gather(1, order) for name, part in parts.items()}
    for n in BEST_OF:
        weight = best_of_weights(POOL, n)
        row = {"run": condition, "seed": seed, "n": n, "kl": math.log(n) - (n - 1) / n}
        for name, part in sorted_parts.items():
            each = part @ weight  # (HEADINGS,)
            row[name] = each.mean().item()
            row[f"{name}_sem"] = (each.std() / len(each) ** 0.5).item()
        rows.append(row)
    return rows


def write(path: Path, rows: list[dict]) -> None:
    """A table that is committed: seven digits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})
