"""Healthy and broken runs for the run doctor; the protocol is in protocol.md.

python book/studies/doctor/run.py training
python book/studies/doctor/run.py "held out"
python book/studies/doctor/run.py development
python book/studies/doctor/run.py "second held out"
"""

import argparse
import copy
import csv
import json
import math
import random
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from worlds import NEW, RATES, ROOM, SETTINGS, SFT, SILENT, TASKS, TRAINING, UNSEEN, Fault, graded

from nanogrpo import grpo, sft
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.rewards import exact_match
from nanogrpo.show.studies import environment
from nanogrpo.teach import museum

HERE = Path(__file__).parent
STEPS = 60
HEALTHY = Fault("", "")
PLAN = {  # kinds of run, seeds of each
    "training": [([HEALTHY], range(200, 240)), (TRAINING, range(100, 104))],
    "amended": [([f for f in TRAINING if f.name == "entropy is punished"], range(100, 104))],
    "held out": [([HEALTHY], range(2000, 2120)), ([*TRAINING, *UNSEEN, *SILENT], range(1000, 1004))],
    "development": [(UNSEEN, range(300, 302)), ([HEALTHY], range(400, 420))],
    "second held out": [
        (NEW, range(5000, 5004)),
        ([*TRAINING, *UNSEEN], range(5000, 5002)),
        (SILENT, range(5000, 5001)),
        ([HEALTHY], range(6000, 6100)),
    ],
}


@cache
def started(task: str, steps: int) -> GPT:
    """The model that runs start from: a small GPT after so many steps of SFT."""
    torch.manual_seed(0)
    world = TASKS[task]
    size = GPTConfig(world.tokenizer.vocab_size, block_size=4 + ROOM, n_layer=1, n_head=2, n_embd=48)
    model = GPT(size)
    options = sft.SFTConfig(max_steps=steps, batch_size=32, learning_rate=3e-3)
    list(sft.train(model, world.tokenizer, world.examples(), options))
    return model


def drawn(part: str, seed: int) -> dict[str, Any]:
    """Settings of a run, from its seed alone."""
    part = "training" if part == "amended" else part
    chance = random.Random(seed)
    how = {name: chance.choice(values) for name, values in SETTINGS[part].items()}
    low, high = map(math.log, RATES[part])
    how["learning_rate"] = float(f"{math.exp(chance.uniform(low, high)):.2g}")
    how["group_size"], how["prompts_per_step"] = how.pop("shape")
    how["measured"], how["watched"] = chance.random() < 0.5, chance.random() < 0.25
    if how["scale_rewards"] != "group":
        how["learning_rate"] *= 1.5  # advantages are smaller then
    return how


def run(part: str, fault: Fault, seed: int) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The settings of a run and its rows; one that stops with an error has fewer."""
    how = drawn(part, seed)
    task = TASKS[how.pop("task")]
    practice = fault.practice or how["practice"]
    model = copy.deepcopy(started(task.name, round(SFT[task.name] * practice)))
    del how["practice"]
    measured, watched = how.pop("measured") or fault.measured, how.pop("watched")
    reward = fault.reward or how["reward"]
    reward = fault.make(seed) if fault.make else reward
    judge = fault.watched or ((graded if reward is exact_match else exact_match) if watched else None)
    if fault.name and not fault.watched:
        judge = None
    how |= {"max_new_tokens": ROOM, "max_steps": STEPS, "seed": seed} | fault.options
    del how["reward"]
    rewards = [reward, judge] if judge else reward
    config = grpo.GRPOConfig(**how, reward_weights=(1.0, 0.0) if judge else None)
    other = started(task.name, round(SFT[task.name] * fault.reference)) if fault.reference else model
    reference = copy.deepcopy(other).requires_grad_(False) if measured or config.beta else None
    problems, rows = task.split()[0], []
    with museum.installed(fault.piece) if fault.piece else nullcontext():
        try:
            rows.extend(grpo.train(model, task.tokenizer, problems, rewards, config, reference))
        except (ArithmeticError, RuntimeError, ValueError) as stopped:
            print(f"{fault.name}, seed {seed}: {type(stopped).__name__} after {len(rows)} steps", flush=True)
    return how | {"task": task.name}, rows


def number(value: float) -> str:
    return f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PLAN, "faults"])
    part = parser.parse_args().part
    if part == "faults":
        groups = {"training": TRAINING, "unseen": UNSEEN, "silent": SILENT, "new": NEW}
        kinds = {f.name: {"expected": f.expected, "group": g} for g, fs in groups.items() for f in fs}
        (HERE / "faults.json").write_text(json.dumps(kinds, indent=0) + "\n", encoding="utf-8")
        return
    torch.set_num_threads(1)
    made, table, settings = environment(), [], {}
    for fault, seed in [(f, s) for faults, seeds in PLAN[part] for f in faults for s in seeds]:
        settings[f"{fault.name}/{seed}"], rows = run(part, fault, seed)
        for row in rows:
            del row["num_tokens"]  # no rule reads it
        table += [{"fault": fault.name, "seed": seed} | row for row in rows]
        print(fault.name or "healthy", seed, flush=True)
    name = part.replace(" ", "_")
    names = list(dict.fromkeys(key for row in table for key in row))
    with open(HERE / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {n: number(v) if isinstance(v, float) else v for n, v in row.items()} for row in table
        )
    kept = {"environment": made, "settings": settings}
    (HERE / f"{name}.json").write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
