"""The playground's run in Python: the package's own functions, fed with the page's random numbers.

What is here is what a page has and a trainer has not: random numbers that JavaScript draws alike, and two
bugs that a reader can switch on. Everything else is :mod:`nanogrpo.grpo` and :mod:`nanogrpo.step`.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nanogrpo.errors import OptionError
from nanogrpo.grpo import GRPOConfig, compute_advantages, compute_loss
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW
from nanogrpo.packed import generate
from nanogrpo.show.playground.tasks import TASKS, TOKENIZER, PlayTask
from nanogrpo.step import Batch, add_reference, describe, join, rewards_of, update

BUGS = ("none", "eos_left_out", "other_temperature")


class Chance:
    """Random numbers of one step of a run with a seed, the same in Python and in JavaScript."""

    def __init__(self, seed: int, step: int):
        self.state = (seed * 1_000_003 + step) % 2**32
        for _ in range(2):  # neighboring seeds and steps go apart
            self.state = self.bits()

    def bits(self) -> int:
        """32 random bits: a counter, mixed."""
        self.state = (self.state + 0x9E3779B9) % 2**32
        z = self.state
        z = (z ^ z >> 16) * 0x21F0AAAD % 2**32
        z = (z ^ z >> 15) * 0x735A2D97 % 2**32
        return z ^ z >> 15

    def permutation(self, n: int) -> list[int]:
        """The numbers below ``n``, shuffled."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.bits() % (i + 1)
            order[i], order[j] = order[j], order[i]
        return order

    def uniforms(self, rows: int, tokens: int, like: Tensor) -> Tensor:
        """Uniform numbers in (0, 1], ``(rows, tokens)``, row by row."""
        numbers = [(self.bits() + 1) / 2**32 for _ in range(rows * tokens)]
        return torch.tensor(numbers, dtype=like.dtype).view(rows, tokens)


def collect(model: GPT, task: PlayTask, config: GRPOConfig, chance: Chance) -> tuple[Batch, Batch]:
    """As :func:`nanogrpo.step.collect`, with the page's random numbers."""
    waiting = chance.permutation(len(task.problems))
    rounds: list[Batch] = []
    missing = config.prompts_per_step
    while missing and waiting and len(rounds) <= config.max_resamples:
        rows, waiting = [task.problems[i] for i in waiting[:missing]], waiting[missing:]
        ids, lens = TOKENIZER.encode_prompts([row["prompt"] for row in rows])
        rollout = generate(
            model, ids, lens, group_size=config.group_size, max_new_tokens=config.max_new_tokens,
            eos_id=TOKENIZER.eos_id, pad_id=TOKENIZER.pad_id, temperature=config.temperature,
            uniforms=chance.uniforms(len(rows) * config.group_size, config.max_new_tokens, model.head.weight),
        )  # fmt: skip
        texts = TOKENIZER.decode_batch(rollout.completion_ids)
        rewards, parts = rewards_of([task.reward, task.meant], (1.0, 0.0), rows, texts)
        rounds.append(Batch(rollout, rewards, {"judge": parts["judge"]}))
        missing -= int((~rounds[-1].tied).sum())
    everything = join(rounds, TOKENIZER.pad_id)
    if len(rounds) == 1:
        return everything, everything
    best = everything.tied.long().argsort(stable=True)  # (P,)
    return everything.pick(best[: config.prompts_per_step]), everything


def options_of(setting: Mapping[str, Any]) -> tuple[str, str, GRPOConfig]:
    """Task, bug and options of a setting, as the page's link and its "Copy" button give it.

    Raises:
        OptionError: a name or a value is unknown, or outside its range.
    """
    options = dict(setting)
    task, bug = options.pop("task", "sums"), options.pop("bug", "none")
    if task not in TASKS:
        raise OptionError(f"task={task!r} is unknown; choose one of {', '.join(TASKS)}")
    if bug not in BUGS:
        raise OptionError(f"bug={bug!r} is unknown; choose one of {', '.join(BUGS)}")
    defaults = {"group_size": 8, "prompts_per_step": 8, "learning_rate": 1e-3}
    limit = {"max_new_tokens": TASKS[task].max_new_tokens}
    return task, bug, GRPOConfig.of(limit | defaults | options)


def run(model: GPT, setting: Mapping[str, Any], task: PlayTask | None = None) -> Iterator[dict[str, float]]:
    """Train ``model`` in place as the page would; yield the page's metrics, one row a step, without end.

    Args:
        model: the policy at the start.
        setting: the page's options; those that are not named have the page's defaults.
        task: in place of the one that the setting names.

    Raises:
        OptionError: as in :func:`options_of`.
    """
    name, bug, config = options_of(setting)
    task, reference = task or TASKS[name], copy.deepcopy(model).requires_grad_(False)
    optimizer, count, tokens = AdamW(model.parameters(), config.learning_rate), 0, 0
    while True:
        count += 1
        metrics, sampled = _step(model, reference, task, bug, config, optimizer, count)
        tokens += int(sampled.rollout.completion_mask.sum())
        yield {"step": count, "num_tokens": tokens} | metrics


def _step(
    model: GPT, reference: GPT, task: PlayTask, bug: str, config: GRPOConfig, optimizer: AdamW, count: int
) -> tuple[dict[str, float], Batch]:
    chance = Chance(config.seed, count)
    drawn, sampled = collect(model, task, config, chance)
    batch, kl = add_reference(drawn, reference, config)
    batch, advantages = compute_advantages(batch, config)
    batch = with_bug(batch, bug)
    scored = replace(config, temperature=1.0) if bug == "other_temperature" else config
    loss = partial(compute_loss, model, scored)
    names = ("loss", "clip_ratio/region_mean", *(["kl"] if config.kl_in_loss else []))
    updates = [
        update(batch.pick(prompts), loss, [optimizer], config, f"step {count}", names)
        for prompts in minibatches(config, len(batch.rewards), chance)
    ]
    means = {name: sum(row[name] for row in updates) / len(updates) for name in updates[0]}
    wrong = sampled.rollout.lengths[sampled.rewards.flatten() == 0]
    own = {
        "rewards/judge/mean": sampled.parts["judge"].mean().item(),
        "completions/mean_length_wrong": wrong.float().mean().item(),  # NaN where none is wrong
    }
    return describe(sampled, config) | own | advantages | kl | means, sampled


def with_bug(batch: Batch, bug: str) -> Batch:
    """The batch; with ``eos_left_out``, the loss does not see the end of any completion."""
    if bug != "eos_left_out":
        return batch
    rollout = batch.rollout
    mask = rollout.completion_mask & (rollout.completion_ids != TOKENIZER.eos_id)
    return replace(batch, rollout=replace(rollout, completion_mask=mask))


def minibatches(config: GRPOConfig, prompts: int, chance: Chance) -> list[Tensor]:
    """As :func:`nanogrpo.microbatches.minibatches`, with the page's random numbers."""
    parts = min(config.num_mini_batches, prompts)
    orders = [
        torch.arange(prompts) if parts == 1 else torch.tensor(chance.permutation(prompts))
        for _ in range(config.num_iterations)
    ]
    return [part for order in orders for part in order.tensor_split(parts)]
