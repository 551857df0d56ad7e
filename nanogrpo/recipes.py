"""The book's running example, addition, as few lines as it takes: a policy that is half right, and its test.

The quickstart, the command line, the studies and every chapter on verifiable reward start from here.
"""

from collections.abc import Iterator

import torch

from nanogrpo import sft
from nanogrpo.evaluate import pass_at_k, success_counts
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.state import TrainState
from nanogrpo.tasks import Addition, Problem, exact_match


def new_policy(task: Addition, seed: int, device: str | torch.device = "cpu") -> GPT:
    """An untrained GPT of 0.4 million parameters that just holds a problem and its answer."""
    torch.manual_seed(seed)  # the weights are drawn on the CPU, so a seed means the same model everywhere
    return GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, n_layer=2, n_head=4, n_embd=128)).to(
        device
    )


def sft_until(
    model: GPT,
    task: Addition,
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
    training, held_out = task.split()
    examples = [(row["prompt"], row["answer"]) for row in training]
    for row in sft.train(model, task.tokenizer, examples, config or sft.SFTConfig(seed=seed), state):
        if row["step"] % every == 0:
            accuracy = measure(model, task, held_out[:500])["accuracy"]
        yield row | {"accuracy": accuracy}
        if accuracy >= target:
            return


def test_problems(task: Addition) -> list[Problem]:
    """Held-out problems that no decision was based on: all but the 500 that :func:`sft_until` watches."""
    return task.split()[1][500:]


def measure(
    model: GPT, task: Addition, problems: list[Problem], ks: tuple[int, ...] = ()
) -> dict[str, float]:
    """Shares of problems solved: sampled (``accuracy``), greedy, by at least one of k samples (``pass@k``).

    With ``ks`` each problem is sampled ``max(ks)`` times, else once. ``greedy`` comes with ``ks``.
    """
    options = {"max_new_tokens": task.max_new_tokens}
    n = max(ks, default=1)
    counts = success_counts(model, task.tokenizer, problems, exact_match, group_size=n, **options)
    result = {"accuracy": sum(counts) / (n * len(counts))}
    if ks:
        greedy = success_counts(model, task.tokenizer, problems, exact_match, temperature=0, **options)
        result["greedy"] = sum(greedy) / len(greedy)
    return result | {f"pass@{k}": sum(pass_at_k(n, c, k) for c in counts) / len(counts) for k in ks}
