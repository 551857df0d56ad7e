"""Train the half-right addition policy that ships with the package; the protocol is in README.md."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from nanogrpo.checkpoint import save_model
from nanogrpo.evaluate import success_probability
from nanogrpo.metrics import logged
from nanogrpo.recipes import new_policy, sft_until, test_problems
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Addition

NAME, SEED, TARGET = "addition", 1000, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, recipe and log")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the order of a sum depends on the threads, and the log is to be reproduced
    task = Addition()
    model = new_policy(task, SEED)
    recipe = {"task": asdict(task), "seed": SEED, "target": TARGET, "config": asdict(model.config)}
    recipe["environment"] = environment()  # before the run: the commit that trains
    for row in logged(sft_until(model, task, TARGET, SEED), out / f"{NAME}.csv"):
        recipe["steps"] = row["step"]
    recipe["success"] = success_probability(model, task.tokenizer, test_problems(task))
    save_model(out / f"{NAME}.safetensors", model, task.tokenizer, recipe=json.dumps(recipe))
    (out / f"{NAME}.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
