"""Run GRPO on addition and keep what it sampled, token by token; the protocol is in README.md."""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from nanogrpo import grpo
from nanogrpo.losses import clipped_surrogate, importance_ratio
from nanogrpo.microbatches import logprobs_under
from nanogrpo.show.studies import environment
from nanogrpo.state import TrainState
from nanogrpo.step import Batch
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.tokenizer import CharTokenizer
from nanogrpo.weights import load

LOG = Path(__file__).with_name("rollouts.json")
TASK = Addition()
EVERY, KEPT = 5, 3  # steps between two records; prompts that a record keeps
CONFIG = grpo.GRPOConfig(
    TASK.max_new_tokens, group_size=8, prompts_per_step=64, num_iterations=2, max_steps=60, seed=0
)
END = "<eos>"


def clipped(batch: Batch, logprobs: Tensor, config: grpo.GRPOConfig) -> Tensor:
    """(B, T), true where one more update on these samples would find no gradient, because of the clip."""
    mask = batch.rollout.completion_mask
    ratio = importance_ratio(logprobs, batch.rollout.logprobs, mask).requires_grad_()  # (B, T)
    objective = clipped_surrogate(ratio, batch.advantages, mask, config.clip_low, config.clip_high)
    (gradient,) = torch.autograd.grad(objective.sum(), ratio)
    return mask & gradient.eq(0) & batch.advantages.ne(0).unsqueeze(1)  # (B, T)


def record(
    model, metrics: dict[str, float], batch: Batch, config: grpo.GRPOConfig,
    tokenizer: CharTokenizer = TASK.tokenizer,
) -> dict:  # fmt: skip
    """The first prompts of a step with their completions, as they are written to the log."""
    kept = batch.pick(torch.arange(min(KEPT, len(batch.rewards))))
    logprobs = logprobs_under(model, kept.rollout, config.temperature)  # (B, T), after the updates
    no_gradient = clipped(kept, logprobs, config)
    rows = [
        {
            "tokens": words(tokenizer, kept.rollout.completion_ids[i, :length].tolist()),
            "reward": kept.rewards.flatten()[i].item(),
            "advantage": round(kept.advantages[i].item(), 4) + 0.0,
            "logprobs": rounded(kept.rollout.logprobs[i, :length]),
            "log_ratios": rounded((logprobs - kept.rollout.logprobs)[i, :length]),
            "clipped": no_gradient[i, :length].int().tolist(),
        }
        for i, length in enumerate(kept.rollout.lengths.tolist())
    ]
    G = kept.rollout.group_size
    prompts = tokenizer.decode_batch(kept.rollout.prompt_ids)
    return {
        **{name: round(metrics[name], 4) for name in ("step", "reward", "clip_ratio/region_mean")},
        "groups": [{"prompt": p, "completions": rows[i * G : i * G + G]} for i, p in enumerate(prompts)],
    }


def words(tokenizer: CharTokenizer, ids: list[int]) -> list[str]:
    """Each token as text."""
    return [END if i == tokenizer.eos_id else tokenizer.decode([i]) for i in ids]


def rounded(values: Tensor) -> list[float]:
    """Three decimals, and no minus before a zero."""
    return [round(value, 3) + 0.0 for value in values.tolist()]


def write(path: Path, log: dict) -> None:
    """A log for the viewer, a record a line, for readable diffs."""
    lines = ",\n".join(json.dumps(step, separators=(",", ":")) for step in log["steps"])
    head = json.dumps({k: v for k, v in log.items() if k != "steps"}, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "steps": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=LOG)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load("addition")
    names = ("group_size", "prompts_per_step", "learning_rate", "num_iterations", "clip_low", "clip_high")
    log = {
        "environment": environment(),
        "seed": CONFIG.seed,
        "config": {name: getattr(CONFIG, name) for name in names},
        "steps": [],
    }
    state = TrainState.start(model.parameters(), CONFIG.learning_rate, CONFIG.seed)
    for _ in range(CONFIG.max_steps):
        metrics, batch = grpo.step(model, TASK.tokenizer, TASK.split()[0], exact_match, CONFIG, state)
        if metrics["step"] % EVERY == 0 or metrics["step"] == 1:
            log["steps"].append(record(model, metrics, batch, CONFIG))
            print(f"step {metrics['step']:3d}  reward {metrics['reward']:.3f}", flush=True)
    write(args.output, log)


if __name__ == "__main__":
    main()
