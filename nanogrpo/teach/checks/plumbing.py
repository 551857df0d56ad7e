"""Checks of what stands around the mathematics: tasks, rewards, weights. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nanogrpo import grpo
from nanogrpo.state import TrainState
from nanogrpo.teach.checks.compare import call, compare
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import CheckFailed, register


def _rows(draw: Draw, P: int) -> tuple[list[dict], torch.Tensor]:
    """Rows whose answers are numbers, no two alike, and these numbers."""
    numbers = torch.randperm(90, generator=draw.generator)[:P] + 10
    return [{"prompt": f"{i}?", "answer": str(int(n))} for i, n in enumerate(numbers)], numbers.float()


def _echo(prompts, completions, answer):
    return [float(text) for text in answer]


@register("rewards.call_reward")
def check_reward_columns(implementation: Callable, draw: Draw) -> None:
    """``f(reward_fn, rows, completions)``: each completion is judged by the row that it answers, ``(B,)``."""
    P, G = draw.integer(2, 4), draw.integer(2, 4)
    rows, numbers = _rows(draw, P)
    got = call(implementation, _echo, rows, ["x"] * (P * G))
    mistakes = [
        (
            numbers.repeat(G),
            "Each completion is judged by another prompt's answer: the rows stand one after the other, "
            "and the completions by groups. Completion i answers row i // G.",
        )
    ]
    compare("the reward of a completion", got, numbers.repeat_interleave(G), mistakes)


@register("rewards.call_reward")
def check_unreadable_reward(implementation: Callable, draw: Draw) -> None:
    """``f(reward_fn, rows, completions)``: a value that is no number stops the run; no number replaces it."""
    G = draw.integer(2, 5)
    rows, place = [{"prompt": "1+1="}], draw.integer(0, G - 1)

    values = draw.normal(G).tolist()
    right = call(implementation, lambda prompts, completions: list(values), rows, ["2"] * G)
    compare("the reward of a completion", right, torch.tensor(values))

    def judge(prompts, completions):
        return [None if i == place else value for i, value in enumerate(values)]

    try:
        got = implementation(judge, rows, ["2"] * G)
    except Exception:
        return
    raise CheckFailed(
        f"The reward function gave None for completion {place}, as a parser does that found no answer, and "
        f"it counts as {float(got[place]):g}. Stop there: whoever wrote the parser must say what it is worth."
    )


@register("step.rewards_of")
def check_reward_weights(implementation: Callable, draw: Draw) -> None:
    """``f(reward_fns, weights, rows, completions)``: the weighted sum ``(P, G)``, and the parts."""
    P, G = draw.integer(2, 4), draw.integer(2, 4)
    rows, numbers = _rows(draw, P)
    low, high = sorted(draw.uniform(0.2, 3.0, 2).tolist())

    def length(prompts, completions, answer):
        return [float(len(text)) for text in completions]

    texts = ["x" * draw.integer(1, 9) for _ in range(P * G)]
    total, parts = call(implementation, [_echo, length], (low, high), rows, texts)
    first = numbers[:, None].expand(P, G)
    second = torch.tensor([float(len(text)) for text in texts]).view(P, G)
    mistakes = [
        (first + second, "The weights are ignored: each reward is to be multiplied by its own."),
        (high * first + low * second, "The weights are in the wrong order."),
    ]
    compare("the reward", total, low * first + high * second, mistakes)
    compare("the part of a reward function", parts["length"], second)


@register("tasks.Addition")
def check_task(implementation: Callable, draw: Draw) -> None:
    """``f(digits, held_out)``: a task whose answers fit with their ends; its held-out problems are new."""
    digits, size = draw.integer(1, 2), draw.integer(10, 60)
    task = call(implementation, digits=digits, held_out=size)
    training, held_out = task.split()
    if len(held_out) != size:
        raise CheckFailed(f"{size} problems were to be held out, and {len(held_out)} are.")
    longest = max((row["answer"] for row in training + held_out), key=len)
    if len(longest) + 1 > task.max_new_tokens:
        raise CheckFailed(
            f"The answer {longest!r} and its end are {len(longest) + 1} tokens, and the limit is "
            f"{task.max_new_tokens}: it can never be right. Count the end of the sequence as well."
        )
    known = {row["prompt"] for row in training}
    both = [row["prompt"] for row in held_out if row["prompt"] in known]
    if both:
        raise CheckFailed(
            f"{len(both)} of {len(held_out)} held-out problems are trained on, {both[0]!r} among them: "
            "success on them says nothing of new ones."
        )


@register("sampler.sampling_model", rounds=2)
def check_sampling_model(implementation: Callable, draw: Draw) -> None:
    """``f(model, config, state)``: what samples in a step, the policy as it was ``sampler_lag`` steps ago."""
    lag, model = draw.integer(1, 3), draw.model(5)
    config = grpo.GRPOConfig(max_new_tokens=3, sampler_lag=lag)
    state, past = TrainState.start(model.parameters(), 1e-3, seed=0), []
    for _ in range(lag + 3):
        past.append(model.head.weight.detach().clone())
        sampler = call(implementation, model, config, state)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(draw.normal(*weight.shape))
    mistakes = [
        (
            past[0],
            f"The sampler still has the weights of the first step, {len(past) - 1} updates ago: the new ones "
            "never reach it.",
        ),
        (past[-1], "The sampler has the weights of today: it should be behind."),
        (past[-lag], "The sampler is one step younger than it should be."),
        (past[-lag - 2], "The sampler is one step older than it should be."),
    ]
    compare("a weight of the sampler", sampler.head.weight.detach(), past[-lag - 1], mistakes)
