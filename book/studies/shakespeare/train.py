"""Train the Shakespeare model that ships with the package; the protocol is in README.md."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from nanogrpo import pretrain
from nanogrpo.checkpoint import save_model
from nanogrpo.data import CORPORA, alphabet, load_corpus, split_corpus
from nanogrpo.metrics import CSVLog
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.show.studies import environment

NAME = "tinyshakespeare"
CONFIG = pretrain.PretrainConfig(learning_rate=4e-3, batch_size=32, max_steps=6000, warmup_steps=200, seed=0)
SHAPE = {"block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 128}
LOG_EVERY, EVALUATE_EVERY = 10, 250


def start() -> tuple[GPT, Iterator[dict[str, float]], torch.Tensor]:
    """The untrained model, the run that trains it, and the held-out text as ids."""
    text = load_corpus(NAME)
    tokenizer = alphabet(text)
    training, held_out = (torch.tensor(tokenizer.encode(part)) for part in split_corpus(text))
    torch.manual_seed(CONFIG.seed)
    model = GPT(GPTConfig(tokenizer.vocab_size, **SHAPE))
    return model, pretrain.train(model, training, CONFIG), held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, recipe and logs")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the order of a sum depends on the threads, and the log is to be reproduced
    recipe = {"corpus": NAME, "sha256": CORPORA[NAME][2], "config": asdict(CONFIG), "shape": SHAPE}
    recipe["environment"] = environment()  # before the run: the commit that trains
    model, rows, held_out = start()
    with CSVLog(out / f"{NAME}.csv") as log, CSVLog(out / f"{NAME}-held-out.csv") as held_out_log:
        for row in rows:
            if row["step"] % LOG_EVERY == 0:
                log.write(row)
            if row["step"] % EVALUATE_EVERY == 0:
                recipe["held_out_loss"] = pretrain.evaluate(model, held_out)
                held_out_log.write({"step": row["step"], "loss": recipe["held_out_loss"]})
                print(row["step"], recipe["held_out_loss"], flush=True)
    save_model(out / f"{NAME}.safetensors", model, alphabet(load_corpus(NAME)), recipe=json.dumps(recipe))
    (out / f"{NAME}.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
