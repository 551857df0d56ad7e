"""Make the two models that ship for the chapters on a learned reward; the protocol is in README.md."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from run import SIZES, data, measure, new_model, options, rewards

from nanogrpo import weights
from nanogrpo.checkpoint import save_model
from nanogrpo.data import CORPORA, load_corpus, split_corpus
from nanogrpo.losses import aggregate, sft_loss
from nanogrpo.metrics import CSVLog, logged
from nanogrpo.plays import LINES_CONFIG, TEMPERATURE, Judge, first_lines, sft_on_lines
from nanogrpo.reward_model import save_reward_model, train
from nanogrpo.rollout import completion_logits
from nanogrpo.show.studies import environment

BASE, LINES, REWARD = "tinyshakespeare", "tinyshakespeare-lines", "tinyshakespeare-reward"
REWARD_SEED = 1000  # none of the study's
EVALUATE_EVERY = 25


@torch.no_grad()
def held_out_loss(model, tokenizer, examples: list[tuple[str, str]]) -> float:
    """Mean cross-entropy in nats a token of the completions."""
    prompt_ids, prompt_lens = tokenizer.encode_prompts([prompt for prompt, _ in examples])
    ids, mask = tokenizer.encode_completions([line for _, line in examples])
    loss = sft_loss(completion_logits(model, prompt_ids, prompt_lens, ids), ids, mask)
    return aggregate(loss, mask, "token_mean").item()


def recipe(config, **more) -> dict:
    """What made the weights; the environment before the run, so that the commit is the one that trains."""
    corpus = {"corpus": BASE, "sha256": CORPORA[BASE][2]}
    return {**corpus, **more, "config": asdict(config), "environment": environment()}


def write(path: Path, made: dict) -> None:
    path.write_text(json.dumps(made, indent=2) + "\n")


def make_lines(out: Path) -> None:
    """The policy: the Shakespeare model, fine-tuned on first lines."""
    made = recipe(LINES_CONFIG, start=BASE)
    model, tokenizer = weights.load(BASE)
    training, held_out = split_corpus(load_corpus())
    with CSVLog(out / f"{LINES}-held-out.csv") as log:
        for row in logged(sft_on_lines(model, tokenizer, training), out / f"{LINES}.csv"):
            if row["step"] % EVALUATE_EVERY == 0:
                made["held_out_loss"] = held_out_loss(model, tokenizer, first_lines(held_out))
                log.write({"step": row["step"], "loss": made["held_out_loss"]})
                print(row, made["held_out_loss"], flush=True)
    save_model(out / f"{LINES}.safetensors", model, tokenizer, recipe=json.dumps(made))
    write(out / f"{LINES}.json", made)


def make_reward(out: Path) -> None:
    """The reward model: as the study's largest, on pairs of its own."""
    pairs = SIZES[-1]
    config = options(pairs, REWARD_SEED)
    made = recipe(config, start=LINES, pairs=pairs, temperature=TEMPERATURE)
    labeled, test = data(Judge(load_corpus()), pairs, REWARD_SEED)
    model = new_model()
    for row in logged(train(model, labeled[0], config), out / f"{REWARD}.csv"):
        if row["step"] % EVALUATE_EVERY == 0:
            print(row, flush=True)
    made |= measure(rewards(model, test[0]), test[1])
    save_reward_model(out / f"{REWARD}.safetensors", model, recipe=json.dumps(made))
    write(out / f"{REWARD}.json", made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["lines", "reward"])
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, recipes and logs")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the order of a sum depends on the threads, and the log is to be reproduced
    {"lines": make_lines, "reward": make_reward}[args.what](args.out)


if __name__ == "__main__":
    main()
