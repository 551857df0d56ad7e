"""Fine-tune the Shakespeare model on first lines: the policy that ships; the protocol is in README.md."""

import argparse
import json
from pathlib import Path

import torch
from run import BASE, LINES, recipe

from nanogrpo import weights
from nanogrpo.checkpoint import save_model
from nanogrpo.data import load_corpus, split_corpus
from nanogrpo.losses import aggregate, sft_loss
from nanogrpo.metrics import CSVLog, logged
from nanogrpo.plays import first_lines
from nanogrpo.rollout import completion_logits
from nanogrpo.sft import SFTConfig, train
from nanogrpo.tasks import Lines

EVALUATE_EVERY = 25


@torch.no_grad()
def held_out_loss(model, tokenizer, examples: list[tuple[str, str]]) -> float:
    """Mean cross-entropy in nats a token of the completions."""
    prompt_ids, prompt_lens = tokenizer.encode_prompts([prompt for prompt, _ in examples])
    ids, mask = tokenizer.encode_completions([line for _, line in examples])
    loss = sft_loss(completion_logits(model, prompt_ids, prompt_lens, ids), ids, mask)
    return aggregate(loss, mask, "token_mean").item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, recipe and logs")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the order of a sum depends on the threads, and the log is to be reproduced
    task = Lines()
    config = SFTConfig(**task.sft_options)
    made = recipe(config, start=BASE)
    model, tokenizer = weights.load(BASE)
    held_out = first_lines(split_corpus(load_corpus())[1])
    with CSVLog(out / f"{LINES}-held-out.csv") as log:
        for row in logged(train(model, tokenizer, task.examples(), config), out / f"{LINES}.csv"):
            if row["step"] % EVALUATE_EVERY == 0:
                made["held_out_loss"] = held_out_loss(model, tokenizer, held_out)
                log.write({"step": row["step"], "loss": made["held_out_loss"]})
                print(row, made["held_out_loss"], flush=True)
    save_model(out / f"{LINES}.safetensors", model, tokenizer, recipe=json.dumps(made))
    (out / f"{LINES}.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
