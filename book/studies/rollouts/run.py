"""Run GRPO on addition and keep what it sampled, token by token; the protocol is in README.md."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nanogrpo import grpo
from nanogrpo.experience import Groups, collect, logprobs_under, minibatches
from nanogrpo.losses import clipped_surrogate, importance_ratio
from nanogrpo.rollout import Rollout
from nanogrpo.show.studies import environment
from nanogrpo.state import TrainState
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


def steps(model, config: grpo.GRPOConfig) -> Iterator[tuple[dict[str, float], Groups, Tensor]]:
    """What :func:`nanogrpo.grpo.train` does with these options, but what was sampled comes along.

    Yields metrics, groups and advantages (P, G) of each step, when the model has made the step.
    """
    problems = TASK.split()[0]
    state = TrainState.start(model.parameters(), config.learning_rate, config.seed)
    for step in range(1, config.max_steps + 1):
        groups, _ = collect(model, TASK.tokenizer, problems, exact_match, config, state.generator)
        advantages, _ = grpo.compare(groups, None, config)  # (P, G)
        updates = [
            grpo.improve(
                model,
                None,
                state.optimizer,
                groups.rollout.pick(prompts),
                advantages[prompts],
                config,
                f"GRPO step {step}",
            )
            for prompts in minibatches(
                len(advantages), config.num_iterations, config.num_mini_batches, config.seed, step
            )
        ]
        means = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        yield {"step": step, **groups.metrics(config), **means}, groups, advantages


def clipped(rollout: Rollout, logprobs: Tensor, advantages: Tensor, config: grpo.GRPOConfig) -> Tensor:
    """(B, T), true where one more update on these samples would find no gradient, because of the clip."""
    mask = rollout.completion_mask
    ratio = importance_ratio(logprobs, rollout.logprobs, mask).requires_grad_()  # (B, T)
    objective = clipped_surrogate(ratio, advantages.flatten(), mask, config.clip_low, config.clip_high)
    (gradient,) = torch.autograd.grad(objective.sum(), ratio)
    return mask & gradient.eq(0) & advantages.flatten().ne(0).unsqueeze(1)  # (B, T)


def record(model, metrics: dict[str, float], groups: Groups, advantages: Tensor, config) -> dict:
    """The first prompts of a step with their completions, as they are written to the log."""
    first = torch.arange(KEPT)
    kept, advantages = groups.pick(first), advantages[first]
    logprobs = logprobs_under(model, kept.rollout, config.temperature)  # (B, T), after the updates
    no_gradient = clipped(kept.rollout, logprobs, advantages, config)
    rows = [
        {
            "tokens": words(TASK.tokenizer, kept.rollout.completion_ids[i, :length].tolist()),
            "reward": kept.rewards.flatten()[i].item(),
            "advantage": round(advantages.flatten()[i].item(), 4) + 0.0,
            "logprobs": rounded(kept.rollout.logprobs[i, :length]),
            "log_ratios": rounded((logprobs - kept.rollout.logprobs)[i, :length]),
            "clipped": no_gradient[i, :length].int().tolist(),
        }
        for i, length in enumerate(kept.rollout.lengths.tolist())
    ]
    G = kept.rollout.group_size
    prompts = TASK.tokenizer.decode_batch(kept.rollout.prompt_ids)
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
    for metrics, groups, advantages in steps(model, CONFIG):
        if metrics["step"] % EVERY == 0 or metrics["step"] == 1:
            log["steps"].append(record(model, metrics, groups, advantages, CONFIG))
            print(f"step {metrics['step']:3d}  reward {metrics['reward']:.3f}", flush=True)
    # A record a line, for readable diffs.
    lines = ",\n".join(json.dumps(step, separators=(",", ":")) for step in log.pop("steps"))
    head = json.dumps(log, indent=1).removesuffix("\n}")
    args.output.write_text(f'{head},\n "steps": [\n{lines}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
