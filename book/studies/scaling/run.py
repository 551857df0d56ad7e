"""TRL's GRPOTrainer on our model, by one script for one process and for several; see protocol.md.

P=.venv-parity/bin S=book/studies/scaling          in the environment that `make parity` makes
$P/python $S/run.py --out _build/scaling/one
$P/accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no \
    $S/run.py --out _build/scaling/two
$P/python $S/compare.py _build/scaling/one _build/scaling/two

`--multi_gpu` starts the processes, with or without a GPU. `--cpu --num_processes 2` would start a single one,
without a word.
"""

import argparse
import json
import os
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from nanogrpo import hub, packed, weights
from nanogrpo.evaluate import success_probability
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Addition, exact_match

TASK = Addition()
TRAINING, HELD_OUT = TASK.split()
HELD_OUT = HELD_OUT[:1000]
RATE, SEEDS = 3e-4, range(1, 11)


@dataclass(frozen=True)
class Arm:
    """A run: whose samples, which loss, how many completions a step over all ranks, and in how many parts."""

    name: str
    samples: str = "numbered"  # or "own", TRL's; or "reseeded", TRL's after one more seed
    loss: str = "dapo"
    rows: int = 128
    group: int = 8
    parts: int = 1
    steps: int = 20
    seed: int = 1
    adam_eps: float = 1e-3


PAIRED = [Arm(loss, loss=loss) for loss in ("dapo", "grpo", "dr_grpo", "bnpo")]
PARTS = [replace(arm, name=f"{arm.loss} in parts", parts=2) for arm in (PAIRED[0], PAIRED[3])]
SPLIT = [Arm(f"split, {samples}", samples, rows=8) for samples in ("own", "reseeded")]
OWN = [Arm(f"own {seed}", "own", steps=60, seed=seed, adam_eps=1e-8) for seed in SEEDS]


def numbered_samples(group: int):
    """Samples that do not depend on who draws them: each completion has random numbers of its own.

    Their seed is the step, the problem, and which completion of its group it is. Ranks hold their rows as
    blocks, one after the other, so the last of these follows from the rank.
    """
    index = {row["prompt"]: i for i, row in enumerate(TRAINING)}

    def draw(prompts, trainer):
        policy, _ = hub.from_transformers(trainer.model, trainer.processing_class)
        first, numbers = trainer.accelerator.process_index * len(prompts), []
        for i, prompt in enumerate(prompts, first):
            name = (trainer.state.global_step * len(TRAINING) + index[prompt]) * group + i % group
            generator = torch.Generator().manual_seed(name)
            numbers.append(1 - torch.rand(TASK.max_new_tokens, generator=generator))
        ids, lens = TASK.tokenizer.encode_prompts(prompts)
        rollout = packed.generate(
            policy, ids, lens, group_size=1, max_new_tokens=TASK.max_new_tokens, eos_id=TASK.tokenizer.eos_id,
            pad_id=TASK.tokenizer.pad_id, uniforms=torch.stack(numbers),
        )  # fmt: skip
        rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
        return {
            "prompt_ids": [TASK.tokenizer.encode(prompt) for prompt in prompts],
            "completion_ids": [row[mask].tolist() for row, mask in rows],
            "logprobs": None,
        }

    return draw


class Watch(TrainerCallback):
    """Keeps a copy of the weights after the first step."""

    first: dict[str, torch.Tensor]

    def on_step_end(self, args, state, control, model, **rest):
        if state.global_step == 1:
            self.first = {name: p.detach().clone() for name, p in model.state_dict().items()}


def build(arm: Arm, folder: str, texts: list, watch: Watch) -> GRPOTrainer:
    """The trainer of an arm; what its reward function is given is added to ``texts``."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    per_device, rest = divmod(arm.rows, world * arm.parts)
    if rest:
        raise SystemExit(f"{arm.rows} rows do not go into {world} ranks of {arm.parts} parts")

    def reward(prompts, completions, **columns):
        texts.append(list(zip(prompts, completions, strict=True)))
        return exact_match(prompts, completions, **columns)

    # Handed over as they are: among several ranks, transformers lets only the first one write a folder.
    model, tokenizer = hub.to_transformers(*weights.load("addition"))
    config = GRPOConfig(
        output_dir=folder, num_generations=arm.group, per_device_train_batch_size=per_device,
        gradient_accumulation_steps=arm.parts, max_completion_length=TASK.max_new_tokens, loss_type=arm.loss,
        learning_rate=RATE, lr_scheduler_type="constant", adam_epsilon=arm.adam_eps, max_steps=arm.steps,
        logging_steps=1, seed=arm.seed, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, reward, args=config, train_dataset=datasets.Dataset.from_list(TRAINING), callbacks=[watch],
        processing_class=tokenizer,
        rollout_func=numbered_samples(arm.group) if arm.samples == "numbered" else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(arm: Arm, out: Path) -> None:
    """Train, and write what is to be compared: each rank its texts, the first one logs and weights."""
    texts, watch = [], Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(arm, folder, texts, watch)
        if arm.samples == "reseeded":
            torch.manual_seed(arm.seed)  # as a careful script does, on all ranks alike
        trainer.train()
    rank, folder = trainer.accelerator.process_index, out / arm.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"texts-{rank}.json").write_text(json.dumps(texts))
    if rank == 0:
        policy, tokenizer = hub.from_transformers(trainer.model, trainer.processing_class)
        rows = [row for row in trainer.state.log_history if "reward" in row]
        found = {"world": trainer.accelerator.num_processes, "rows": rows}
        if arm.name.startswith("own"):
            found["success"] = success_probability(policy, tokenizer, HELD_OUT)
        (folder / "log.json").write_text(json.dumps(found))
        torch.save({"first": watch.first, "last": trainer.model.state_dict()}, folder / "weights.pt")
        print(arm.name, f"{rows[-1]['reward']:.3f}", found.get("success", ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[""], help="arms whose name begins so")
    parser.add_argument("--steps", type=int, help="of the arms with numbered samples")
    args = parser.parse_args()
    torch.set_num_threads(1)
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    versions = {name: version(name) for name in ("trl", "transformers", "accelerate", "datasets")}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "environment.json").write_text(json.dumps(environment() | versions, indent=2) + "\n")
    for arm in PAIRED + (PARTS if alone else SPLIT) + OWN:
        if args.steps and arm.samples == "numbered":
            arm = replace(arm, steps=args.steps)
        if arm.name.startswith(tuple(args.only)):
            run(arm, args.out)


if __name__ == "__main__":
    main()
