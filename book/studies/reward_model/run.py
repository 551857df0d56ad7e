"""Reward models from 100 to 10,000 preference pairs, five seeds each; the protocol is in README.md.

The largest model of the first seed is the one that ships.
"""

import argparse
import json
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from nanogrpo import weights
from nanogrpo.data import CORPORA, load_corpus, split_corpus
from nanogrpo.losses import bradley_terry_loss
from nanogrpo.metrics import CSVLog, logged
from nanogrpo.plays import (
    MAX_CHARS,
    TEMPERATURE,
    Judge,
    first_lines,
    words,
)
from nanogrpo.preferences import judge_pairs, sample_pairs
from nanogrpo.reward_model import (
    Preference,
    RewardModel,
    RewardModelConfig,
    noise_ceiling,
    pair_accuracy,
    preference_probs,
    save_reward_model,
    train,
)
from nanogrpo.show.studies import environment

HERE = Path(__file__).parent
BASE, LINES, REWARD = "tinyshakespeare", "tinyshakespeare-lines", "tinyshakespeare-reward"
SIZES, TEST_PAIRS, STRANGE_TEXTS = (100, 300, 1000, 3000, 10000), 1500, 200
Labeled = tuple[list[Preference], torch.Tensor]  # the pairs, and the judge's scores of (chosen, rejected)


def options(pairs: int, seed: int) -> RewardModelConfig:
    """One pass over the pairs; more of them over few, for 30 steps at least."""
    batch_size = 32
    steps = max(30, pairs // batch_size)
    return RewardModelConfig(learning_rate=5e-4, batch_size=batch_size, max_steps=steps, seed=seed)


def new_model() -> RewardModel:
    """What every run starts from: the layers of the policy, and a head of zeros."""
    return RewardModel(*weights.load(LINES))


def data(judge: Judge, pairs: int, seed: int) -> tuple[Labeled, Labeled]:
    """Pairs to train on and pairs to test on, from headings of the training and of the held-out text."""
    policy, tokenizer = weights.load(LINES)
    parts = []
    for k, (part, count) in enumerate(zip(split_corpus(load_corpus()), (pairs, TEST_PAIRS), strict=True)):
        headings = [heading for heading, _ in first_lines(part)]
        sampled = sample_pairs(policy, tokenizer, headings, count, seed=2 * seed + k)
        parts.append(judge_pairs(judge, sampled, TEMPERATURE, seed=2 * seed + k))
    return parts[0], parts[1]


def rewards(model: RewardModel, pairs: list[Preference]) -> torch.Tensor:
    """Rewards of (chosen, rejected), ``(N, 2)``."""
    prompts = [pair.prompt for pair in pairs]
    columns = ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    return torch.tensor([model.score(prompts, texts) for texts in columns], dtype=torch.float64).T


def measure(found: torch.Tensor, scores: torch.Tensor) -> dict[str, float]:
    """How well rewards order pairs, beside what the judge itself would reach."""
    (chosen, rejected), (a, b) = found.unbind(1), scores.unbind(1)
    better = torch.where((a > b).unsqueeze(1), found, found.flip(1))[a != b]  # the judge's winner comes first
    p = preference_probs(a, b, TEMPERATURE)
    return {
        "accuracy_labels": pair_accuracy(chosen, rejected),
        "ceiling": noise_ceiling(a, b, TEMPERATURE),
        "accuracy_judge": pair_accuracy(*better.unbind(1)),
        "loss": bradley_terry_loss(chosen, rejected).mean().item(),
        "judge_loss": -(p * p.log() + (1 - p) * (1 - p).log()).mean().item(),
    }


def calibration(found: torch.Tensor) -> Iterator[dict[str, float]]:
    """How often labels agree with the model, by how sure the model is of its order."""
    margin = found[:, 0] - found[:, 1]
    sure = torch.sigmoid(margin.abs())
    bins = ((sure - 0.5) * 20).long().clamp(max=9)
    for k in bins.unique().tolist():
        own = bins == k
        agree = (margin[own] > 0).double().mean().item()
        yield {"bin": k, "count": int(own.sum()), "sure": sure[own].mean().item(), "agree": agree}


def regions(found: torch.Tensor, scores: torch.Tensor) -> Iterator[dict[str, float]]:
    """How often the model orders a pair as the judge does, by level and difference of the judge's scores."""
    counts: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for (r_a, r_b), (a, b) in zip(found.tolist(), scores.int().tolist(), strict=True):
        if a != b:
            cell = counts[(a + b) // 2, abs(a - b)]
            cell[0] += 1
            cell[1] += (r_a > r_b) == (a > b)
    for (level, difference), (count, right) in sorted(counts.items()):
        yield {"level": level, "difference": difference, "count": count, "right": right}


def by_score(points: torch.Tensor, scores: torch.Tensor) -> Iterator[dict[str, float]]:
    """Mean and spread of the reward, in points, at each score of the judge."""
    for score in scores.unique().tolist():
        own = points[scores == score]
        spread = own.std(correction=0).item()
        yield {"judge": score, "count": len(own), "mean": own.mean().item(), "std": spread}


def strange_texts(judge: Judge, lines: list[str], seed: int) -> dict[str, list[str]]:
    """Texts of kinds that a reward model has never been shown a preference about."""
    rng = random.Random(seed)
    pool = [word for line in lines for word in words(line) if judge.score(word) == 1]

    def shuffled(items) -> list:
        return rng.sample(list(items), len(items))

    def to_length(draw) -> str:
        text = draw()
        while len(text) <= MAX_CHARS:
            last, text = text, f"{text} {draw()}"
        return last

    def listed() -> str:
        order = iter(dict.fromkeys(shuffled(pool)))
        return to_length(lambda: next(order))

    def repeated(word: str) -> str:
        return to_length(lambda: word)

    return {
        "lines of the plays": lines,
        "words shuffled": [" ".join(shuffled(line.split())) for line in lines],
        "letters shuffled": ["".join(shuffled(line)) for line in lines],
        "spaces left out": [line.replace(" ", "") for line in lines],
        "in capitals": [line.upper() for line in lines],
        "two lines": [f"{line} {rng.choice(lines)}" for line in lines],
        "one word, repeated": [repeated(rng.choice(pool)) for _ in lines],
        "a list of long words": [listed() for _ in lines],
    }


def off_distribution(model: RewardModel, judge: Judge, shift: float, seed: int) -> Iterator[dict]:
    """Mean judge score and mean reward, in points of the judge, of each kind of strange text."""
    held_out = first_lines(split_corpus(load_corpus())[1])
    headings, lines = zip(*random.Random(seed).sample(held_out, STRANGE_TEXTS), strict=True)
    for kind, texts in strange_texts(judge, list(lines), seed).items():
        points = TEMPERATURE * torch.tensor(model.score(headings, texts), dtype=torch.float64) + shift
        judged = judge(headings, texts)
        yield {"kind": kind, "judge": sum(judged) / len(judged), "reward": points.mean().item()}


def recipe(config, **more) -> dict:
    """What makes weights: to be asked for before the run, so that the commit is the one that trains."""
    corpus = {"corpus": BASE, "sha256": CORPORA[BASE][2]}
    return {**corpus, **more, "config": asdict(config), "environment": environment()}


def tables(
    model: RewardModel, judge: Judge, test: Labeled, seed: int, largest: bool
) -> Iterator[tuple[str, list]]:
    """What is logged of one trained model: the name of each log, and its rows."""
    pairs, scores = test
    found = rewards(model, pairs)
    yield "results", [measure(found, scores)]
    yield "calibration", list(calibration(found))
    yield "regions", list(regions(found, scores))
    if largest:  # rewards are known up to a constant: on samples of the policy their mean is the judge's
        shift = (scores.mean() - TEMPERATURE * found.mean()).item()
        yield "scores", list(by_score(TEMPERATURE * found + shift, scores))
        own = {"kind": "samples of the policy", "judge": scores.mean().item(), "reward": scores.mean().item()}
        yield "off_distribution", [own, *off_distribution(model, judge, shift, seed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the logs")
    parser.add_argument("--weights", type=Path, help="folder for the reward model that ships; default: none")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a second thread costs such a small model more than it brings
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    judge = Judge(load_corpus())
    names = ("results", "calibration", "regions", "scores", "off_distribution")
    logs = {name: CSVLog(args.out / f"{name}.csv") for name in names}
    for seed in args.seeds:
        (labeled, _), test = data(judge, max(args.sizes), seed)
        for pairs in sorted(args.sizes, reverse=True):
            start, model, largest = time.perf_counter(), new_model(), pairs == max(args.sizes)
            config = options(pairs, seed)
            made = recipe(config, start=LINES, pairs=pairs, temperature=TEMPERATURE, pool=model.pool)
            for _ in logged(train(model, labeled[:pairs], config), args.out / f"seed{seed}-pairs{pairs}.csv"):
                pass
            if args.weights and largest and seed == args.seeds[0]:
                save_reward_model(args.weights / f"{REWARD}.safetensors", model, recipe=json.dumps(made))
                (args.weights / f"{REWARD}.json").write_text(json.dumps(made, indent=2) + "\n")
                shutil.copy(args.out / f"seed{seed}-pairs{pairs}.csv", args.weights / f"{REWARD}.csv")
            for name, rows in tables(model, judge, test, seed, largest):
                for row in rows:
                    logs[name].write({"seed": seed, "pairs": pairs, **row})
            print(seed, pairs, f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
