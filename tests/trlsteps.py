"""Steps of our loop, and TRL's on the completions that ours has drawn: the same metrics, step by step."""

import pytest

from nanogrpo import grpo
from nanogrpo.state import TrainState

EPS = 1e-3  # so that a gradient that is zero but for rounding moves no weight; see test_hub_trl.py
SAME = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/clipped_ratio",
)


def trl_steps(trl, model, tokenizer, batches, steps, problems, reward, folder, **changes):
    """What TRL's trainer logs of each step on the completions of our batches, one after the other."""
    datasets = pytest.importorskip("datasets")
    P, G = batches[0].rewards.shape
    by_step = [[], *batches]  # TRL asks once a step, in order

    def rollout_func(prompts, trainer):
        taken = by_step[trainer.state.global_step + 1].rollout
        rows = {}
        for i, (ids, mask) in enumerate(zip(taken.completion_ids, taken.completion_mask, strict=True)):
            prompt = tuple(taken.prompt_ids[i // G, : taken.prompt_lens[i // G]].tolist())
            rows.setdefault(prompt, []).append(ids[mask].tolist())
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        left = {prompt: iter(texts) for prompt, texts in rows.items()}
        return {"prompt_ids": ids, "completion_ids": [next(left[tuple(p)]) for p in ids], "logprobs": None}

    options = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "per_device_train_batch_size": P * G, "num_generations": G, "lr_scheduler_type": "constant",
        "max_steps": steps, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "adam_epsilon": EPS,
    } | changes  # fmt: skip
    run = trl.GRPOTrainer(
        model, reward, args=trl.GRPOConfig(**options), train_dataset=datasets.Dataset.from_list(problems),
        processing_class=tokenizer.theirs, rollout_func=rollout_func,
    )  # fmt: skip
    run.train()
    return [row for row in run.state.log_history if "reward" in row]


def our_steps(model, tokenizer, steps, problems, reward, tokens, group_size, rate):
    """Metrics and batches of our steps, each on all problems, with an Adam that has a large epsilon."""
    config = grpo.GRPOConfig(
        tokens, group_size=group_size, prompts_per_step=len(problems), learning_rate=rate, correction=1
    )
    state = TrainState.start([p for p in model.parameters() if p.requires_grad], rate, seed=0)
    state.optimizer.eps = EPS
    return zip(
        *(grpo.step(model, tokenizer, problems, reward, config, state) for _ in range(steps)), strict=True
    )


def compare(ours, theirs, tolerance):
    """The same metrics step by step: what was sampled to float32, what is learned within a tolerance."""
    for mine, other in zip(ours, theirs, strict=True):
        for name in SAME:
            assert float(other[name]) == pytest.approx(mine[name], rel=1e-5, abs=1e-6), name
        for name in ("loss", "grad_norm"):
            print(mine["step"], name, mine[name], other[name])
            off = abs(float(other[name]) - mine[name])
            assert off <= tolerance * mine["grad_norm"], (name, mine["step"])
