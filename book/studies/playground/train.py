"""Train the policy that the playground starts from; the protocol is in README.md."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from nanogrpo import sft
from nanogrpo.checkpoint import save_model
from nanogrpo.metrics import logged
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.show.playground.tasks import TASKS, TOKENIZER
from nanogrpo.show.studies import environment

NAME, SEED = "policy", 0
MODEL = GPTConfig(TOKENIZER.vocab_size, block_size=14, n_layer=2, n_head=2, n_embd=32)
OPTIONS = sft.SFTConfig(learning_rate=3e-3, batch_size=64, max_steps=260, seed=SEED)


def examples(count: int = 4000) -> list[tuple[str, str]]:
    """Right sums, sums with idle digits behind them, and digits, half of them wrong, with idle signs."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    pairs = []
    for _ in range(count):
        row = TASKS["sums"].problems[draw(100)]
        more = 1 + draw(4) if draw(3) == 0 else 0
        pairs.append((row["prompt"], row["answer"] + "".join(str(draw(10)) for _ in range(more))))
        digit = draw(10)
        pairs.append((f"{digit}=", f"{(digit + draw(2)) % 10}{'+' * draw(9)}"))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, recipe and log")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the order of a sum depends on the threads, and the log is to be reproduced
    torch.manual_seed(SEED)
    model = GPT(MODEL)
    recipe = {"seed": SEED, "sft": asdict(OPTIONS), "config": asdict(MODEL)}
    recipe["environment"] = environment()  # before the run: the commit that trains
    for row in logged(sft.train(model, TOKENIZER, examples(), OPTIONS), out / f"{NAME}.csv"):
        recipe["loss"] = row["loss"]
    with torch.no_grad():  # the page carries half of the bytes
        for p in model.parameters():
            p.copy_(p.half().float())
    save_model(out / f"{NAME}.safetensors", model, TOKENIZER, recipe=json.dumps(recipe))
    (out / f"{NAME}.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
