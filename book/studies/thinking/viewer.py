"""One run of the main arm, for the rollout viewer: the same two prompts answered after each few steps."""

import sys
from pathlib import Path

import run
import torch

from nanogrpo import grpo
from nanogrpo.show.studies import environment
from nanogrpo.state import TrainState
from nanogrpo.step import collect
from nanogrpo.teach.running_total import right_at_the_end

sys.path.append(str(Path(__file__).parents[1]))
from rollouts import run as rollouts  # noqa: E402, of the study that the viewer was made for

SEED = 10  # the first of the study, whatever it shows
LOOKED_AT = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
LOG = run.HERE / "rollouts.json"


def main() -> None:
    torch.set_num_threads(1)
    task, policy = run.TASKS["totals"], run.fine_tuned("totals", SEED)
    config = grpo.GRPOConfig(
        max_new_tokens=task.max_new_tokens, group_size=run.GROUP, prompts_per_step=run.PROMPTS,
        max_steps=run.STEPS, learning_rate=run.best(), seed=SEED,
    )  # fmt: skip
    names = ("group_size", "prompts_per_step", "learning_rate", "num_iterations", "clip_low", "clip_high")
    log = {"environment": environment(), "seed": SEED, "config": {n: getattr(config, n) for n in names}}
    log["steps"] = []
    state = TrainState.start(policy.parameters(), config.learning_rate, SEED)
    training, watched = task.split()[0], task.split()[1][:2]
    for step in range(1, run.STEPS + 1):
        # A fresh generator each time: the same prompts and uniform numbers, and only the weights differ.
        seen, _ = collect(
            policy, task.tokenizer, watched, right_at_the_end, config, torch.Generator().manual_seed(SEED)
        )
        seen, _ = grpo.compute_advantages(seen, config)
        metrics, _ = grpo.step(policy, task.tokenizer, training, right_at_the_end, config, state)
        if step in LOOKED_AT:
            log["steps"].append(rollouts.record(policy, metrics, seen, config, task.tokenizer))
    rollouts.write(LOG, log)


if __name__ == "__main__":
    main()
