"""TRL's GRPOTrainer and our own loop, from the same weights with the same options; see protocol.md.

.venv-parity/bin/python book/studies/trl/run.py      builds on `make parity`'s environment
"""

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from nanogrpo import grpo, hub, weights
from nanogrpo.evaluate import success_probability
from nanogrpo.metrics import CSVLog
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Addition, exact_match

HERE = Path(__file__).parent
TASK = Addition()
TRAINING, HELD_OUT = TASK.split()
HELD_OUT = HELD_OUT[:1000]
PROMPTS, GROUP, STEPS, EVERY, RATE = 16, 8, 60, 20, 3e-4
COLUMNS = {"reward": "reward", "entropy": "entropy", "length": "completions/mean_length"}


def success(model) -> float:
    """The probability of the right answer, over held-out problems, without sampling noise."""
    return success_probability(model, TASK.tokenizer, HELD_OUT)


def ours(seed: int):
    """Rows of curves, and the success after every ``EVERY`` steps."""
    policy, _ = weights.load("addition")
    config = grpo.GRPOConfig(
        TASK.max_new_tokens, group_size=GROUP, prompts_per_step=PROMPTS, learning_rate=RATE,
        max_steps=STEPS, correction=1, seed=seed,
    )  # fmt: skip
    curves, points = [], {0: success(policy)}
    for row in grpo.train(policy, TASK.tokenizer, TRAINING, exact_match, config):
        curves.append(row)
        if row["step"] % EVERY == 0:
            points[row["step"]] = success(policy)
    return curves, points


def theirs(seed: int):
    """The same of TRL's trainer. Loss, advantages, sampling and optimizer are its own."""
    points = {0: success(weights.load("addition")[0])}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model, processing_class, **rest):
            if state.global_step % EVERY == 0:
                points[state.global_step] = success(hub.from_transformers(model, processing_class)[0])

    with tempfile.TemporaryDirectory() as folder:
        hub.save_pretrained(folder, *weights.load("addition"))
        config = GRPOConfig(
            output_dir=folder, num_generations=GROUP, per_device_train_batch_size=PROMPTS * GROUP,
            max_completion_length=TASK.max_new_tokens, learning_rate=RATE, lr_scheduler_type="constant",
            max_steps=STEPS, logging_steps=1, seed=seed, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(folder), exact_match, args=config,
            train_dataset=datasets.Dataset.from_list(TRAINING),
            processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Watch()],
        )  # fmt: skip
        trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row], points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="seeds 1, 2, ... of each arm")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = {name: version(name) for name in ("trl", "transformers", "accelerate", "datasets")}
    args.out.mkdir(exist_ok=True)
    (args.out / "environment.json").write_text(json.dumps(environment() | versions, indent=2) + "\n")
    with CSVLog(args.out / "curves.csv") as curves, CSVLog(args.out / "success.csv") as successes:
        for seed in range(1, args.seeds + 1):
            for arm, run in (("nanogrpo", ours), ("TRL", theirs)):
                start = time.process_time()
                rows, points = run(seed)
                for row in rows:
                    found = {name: float(row[column]) for name, column in COLUMNS.items()}
                    curves.write({"run": arm, "seed": seed, "step": row["step"], **found})
                for step, value in points.items():
                    successes.write({"run": arm, "seed": seed, "step": step, "success": value})
                print(arm, seed, f"{points[STEPS]:.3f}", f"{time.process_time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
