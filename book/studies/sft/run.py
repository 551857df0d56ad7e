"""SFT with and without a mask over the prompt, and how far it should go; the protocol is in README.md."""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nanogrpo import sft, weights
from nanogrpo.data import load_corpus, split_corpus
from nanogrpo.evaluate import success_counts
from nanogrpo.losses import sft_loss
from nanogrpo.metrics import CSVLog
from nanogrpo.model import GPT
from nanogrpo.plays import first_lines
from nanogrpo.recipes import new_policy
from nanogrpo.rollout import completion_logits
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.tokenizer import CharTokenizer

HERE = Path(__file__).parent
SEEDS = (0, 1, 2, 3, 4)
PLAYS_EVERY, ADDITION_EVERY = 10, 20
HELD_OUT = 200
PLAYS = {"learning_rate": 3e-4, "batch_size": 16, "max_steps": 40}
ADDITION_STEPS, PROBLEMS, SAMPLES = 500, 300, 16

Pair = tuple[str, str]


def run_name(masked: bool) -> str:
    """What is learned, in the log's column ``run``."""
    return "completion only" if masked else "prompt too"


def with_prompt(pairs: list[Pair]) -> list[Pair]:
    """The same examples, but all characters after the first one are to be learned."""
    return [(prompt[0], prompt[1:] + completion) for prompt, completion in pairs]


@torch.no_grad()
def held_out_loss(model: GPT, tokenizer: CharTokenizer, pairs: list[Pair]) -> dict[str, float]:
    """Mean loss in nats: of the completions' tokens, and of these the characters and the end tokens apart."""
    losses: list[Tensor] = []
    ends: list[Tensor] = []
    for i in range(0, len(pairs), 100):
        prompts, completions = zip(*pairs[i : i + 100], strict=True)
        ids, mask = tokenizer.encode_completions(list(completions))
        logits = completion_logits(model, *tokenizer.encode_prompts(list(prompts)), ids)  # (B, T, V)
        losses.append(sft_loss(logits, ids, mask)[mask])
        ends.append((ids == tokenizer.eos_id)[mask])
    loss, end = torch.cat(losses), torch.cat(ends)
    return {
        "loss": loss.mean().item(),
        "character_loss": loss[~end].mean().item(),
        "end_loss": loss[end].mean().item(),
    }


def plays(seed: int, masked: bool) -> Iterator[dict[str, float]]:
    """One fine-tuning of the shipped model; a row every 10 steps."""
    model, tokenizer = weights.load("tinyshakespeare")
    training, test = (first_lines(part) for part in split_corpus(load_corpus()))
    head = {"run": run_name(masked), "seed": seed}
    yield head | {"step": 0} | held_out_loss(model, tokenizer, test[:HELD_OUT])
    examples = training if masked else with_prompt(training)
    for row in sft.train(model, tokenizer, examples, sft.SFTConfig(**PLAYS, seed=seed)):
        if row["step"] % PLAYS_EVERY == 0:
            yield head | {"step": row["step"]} | held_out_loss(model, tokenizer, test[:HELD_OUT])


def signal(model: GPT, task: Addition) -> dict[str, float]:
    """Shares of held-out problems: answers right, solved at least once, sometimes but not always solved."""
    problems = task.split()[1][:PROBLEMS]
    options = {"group_size": SAMPLES, "max_new_tokens": task.max_new_tokens}
    counts = torch.tensor(success_counts(model, task.tokenizer, problems, exact_match, **options))
    return {
        "accuracy": counts.double().mean().item() / SAMPLES,
        "solved_once": (counts > 0).double().mean().item(),
        "with_signal": ((counts > 0) & (counts < SAMPLES)).double().mean().item(),
    }


def addition(seed: int, masked: bool) -> Iterator[dict[str, float]]:
    """Addition from new weights; a row every 20 steps."""
    task = Addition()
    model = new_policy(task, seed)
    examples = [(row["prompt"], row["answer"]) for row in task.split()[0]]
    examples = examples if masked else with_prompt(examples)
    config = sft.SFTConfig(max_steps=ADDITION_STEPS, seed=seed)
    for row in sft.train(model, task.tokenizer, examples, config):
        if row["step"] % ADDITION_EVERY == 0:
            yield {"run": run_name(masked), "seed": seed, "step": row["step"]} | signal(model, task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=["plays", "addition"], default=["plays", "addition"])
    parts = parser.parse_args().parts
    torch.set_num_threads(1)  # a second thread costs such small models more than it brings
    for name in parts:
        (HERE / f"{name}.json").write_text(json.dumps(environment(), indent=2) + "\n")
        with CSVLog(HERE / f"{name}.csv") as log:
            for seed in SEEDS:
                for masked in (True, False):
                    start = time.perf_counter()
                    for row in {"plays": plays, "addition": addition}[name](seed, masked):
                        log.write(row)
                    print(f"{name} {row}  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
