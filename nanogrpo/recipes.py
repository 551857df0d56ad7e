"""The book's running example in few lines, for any task: a policy that is half right, and its test.

The quickstart, the command line, the studies and every chapter on verifiable reward start from here.
"""

from collections.abc import Iterator

import torch

from nanogrpo import sft
from nanogrpo.errors import RowError
from nanogrpo.evaluate import pass_at_k, sample_texts, success_counts
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.rewards import Problem, RewardFunction, call_reward
from nanogrpo.state import TrainState
from nanogrpo.tasks import Task

WATCHED = 500  # held-out problems, at most, by which supervised fine-tuning is stopped


def new_policy(task: Task, seed: int, device: str | torch.device = "cpu") -> GPT:
    """An untrained GPT of 0.4 million parameters that just holds a problem and its answer."""
    torch.manual_seed(seed)  # the weights are drawn on the CPU, so a seed means the same model everywhere
    return GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, n_layer=2, n_head=4, n_embd=128)).to(
        device
    )


def sft_until(
    model: GPT,
    task: Task,
    target: float = 0.3,
    seed: int = 0,
    every: int = 10,
    *,
    config: sft.SFTConfig | None = None,
    state: TrainState | None = None,
    accuracy: float = 0.0,
) -> Iterator[dict[str, float]]:
    """Fine-tune on right answers until ``target`` of the sampled answers are right; yield metrics.

    Small models learn addition at a jump, at a step that differs from seed to seed, so the run is stopped by
    watching the accuracy (on 500 held-out problems, every ``every`` steps) and not by counting steps.

    Args:
        model: is trained in place.
        task: whose training problems are the examples.
        target: share of right answers.
        seed: of the batches, where there is no ``config``.
        every: steps between two measurements.
        config: the options of :mod:`nanogrpo.sft`.
        state: to go on with a run that was saved.
        accuracy: the last one that this run has logged.
    """
    if accuracy >= target:
        return
    watched, _ = held_out(task)
    for row in sft.train(model, task.tokenizer, task.examples(), config or sft.SFTConfig(seed=seed), state):
        if row["step"] % every == 0:
            accuracy = measure(model, task, watched)["accuracy"]
        yield row | {"accuracy": accuracy}
        if accuracy >= target:
            return


def held_out(task: Task) -> tuple[list[Problem], list[Problem]]:
    """Held-out problems that :func:`sft_until` watches, 500 or half of them, and those to test on.

    Raises:
        RowError: there are fewer than two.
    """
    problems = task.split()[1]
    if len(problems) < 2:
        raise RowError(f"task {task.name} holds {len(problems)} problem(s) out; it takes at least two")
    watched = min(WATCHED, len(problems) // 2)
    return problems[:watched], problems[watched:]


def test_problems(task: Task) -> list[Problem]:
    """Held-out problems that no decision was based on: all but those that :func:`sft_until` watches."""
    return held_out(task)[1]


def rule_of(task: Task) -> RewardFunction:
    """The rule that says how good a policy is."""
    return next(iter(task.rules.values()))


def measure(model: GPT, task: Task, problems: list[Problem], ks: tuple[int, ...] = ()) -> dict[str, float]:
    """Shares of problems solved: sampled (``accuracy``), greedy, by at least one of k samples (``pass@k``).

    With ``ks`` each problem is sampled ``max(ks)`` times, else once. ``greedy`` comes with ``ks``.
    """
    rule, options = rule_of(task), {"max_new_tokens": task.max_new_tokens}
    n = max(ks, default=1)
    counts = success_counts(model, task.tokenizer, problems, rule, group_size=n, **options)
    result = {"accuracy": sum(counts) / (n * len(counts))}
    if ks:
        greedy = success_counts(model, task.tokenizer, problems, rule, temperature=0, **options)
        result["greedy"] = sum(greedy) / len(greedy)
    return result | {f"pass@{k}": sum(pass_at_k(n, c, k) for c in counts) / len(counts) for k in ks}


def points(model: GPT, task: Task, problems: list[Problem]) -> dict[str, float]:
    """The mean reward that the task's first rule gives to one completion of each problem, by its name."""
    texts = sample_texts(
        model, task.tokenizer, [row["prompt"] for row in problems], max_new_tokens=task.max_new_tokens
    )
    return {next(iter(task.rules)): call_reward(rule_of(task), problems, texts).mean().item()}


def summary(model: GPT, task: Task) -> str:
    """How good a policy is in the end, in a sentence; on problems that no decision was based on."""
    problems = test_problems(task)
    if task.learned_reward:
        [(name, mean)] = points(model, task, problems).items()
        return f"the {name} gives {mean:.2f} points, the mean over {len(problems)} held-out prompts"
    accuracy = measure(model, task, problems)["accuracy"]
    return f"{accuracy:.1%} of the answers to {len(problems)} held-out problems are right"
