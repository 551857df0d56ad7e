"""The curves of lab 6: one right run of each setting, and six with a piece of the bug museum in the trainer.

    python book/labs/lab6_runs.py      prints them as JSON; they stand in a cell of the lab

The task is small, so that all of it takes seconds: `cab=` wants `cab` and then the end. The policy starts
from a few steps of imitation.
"""

from __future__ import annotations

import copy
import itertools
import json
from contextlib import ExitStack

import torch

from nanogrpo import grpo, sft
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.tasks import exact_match
from nanogrpo.teach import museum
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("abc=")
WORDS = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("abc", repeat=n)]
PROBLEMS = [{"prompt": word + "=", "answer": word} for word in WORDS]
CONFIG = {
    "max_new_tokens": 6,
    "group_size": 8,
    "prompts_per_step": 16,
    "learning_rate": 2e-3,
    "max_steps": 24,
}
SETTINGS = {
    "one update": {},
    "strong penalty": {"beta": 1.0},
    "hot": {"temperature": 1.5},
    "four updates": {"num_iterations": 4},
}
PIECES = {  # run: what is broken, and how the trainer is set
    "A": ("sign of the loss", "one update"),
    "B": ("mask is every token but EOS", "one update"),
    "C": ("new log-probs at temperature 1", "hot"),
    "D": ("penalty with the wrong sign", "strong penalty"),
    "E": ("ratio against itself", "four updates"),
    "F": ("fast path: target shift off by one", "one update"),
}
METRICS = {
    "reward": "reward",
    "length": "completions/mean_length",
    "clipped": "clip_ratio/region_mean",
    "kl": "kl",
    "entropy": "entropy",
}


def start() -> GPT:
    """A policy that is right now and then."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, 10, n_layer=1, n_head=2, n_embd=32))
    options = sft.SFTConfig(max_steps=10, batch_size=32, learning_rate=3e-3, seed=0)
    for _ in sft.train(model, TOKENIZER, [(row["prompt"], row["answer"]) for row in PROBLEMS], options):
        pass
    return model


def run(first: GPT, setting: str, piece: str | None = None) -> dict[str, list[float]]:
    """The logged metrics of one run, rounded; with a piece of the museum in the package, or without."""
    config = grpo.GRPOConfig(**CONFIG, **SETTINGS[setting])
    policy, reference = copy.deepcopy(first), copy.deepcopy(first).requires_grad_(False)
    with ExitStack() as stack:
        if piece:
            stack.enter_context(museum.installed(piece))
        rows = list(grpo.train(policy, TOKENIZER, PROBLEMS, exact_match, config, reference))
    return {name: [round(row[key], 4) for row in rows] for name, key in METRICS.items()}


def runs() -> dict[str, dict[str, list[float]]]:
    """All of them, by name: the settings for the right ones, letters for the broken ones."""
    first = start()
    right = {setting: run(first, setting) for setting in SETTINGS}
    return right | {name: run(first, setting, piece) for name, (piece, setting) in PIECES.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(runs()))
