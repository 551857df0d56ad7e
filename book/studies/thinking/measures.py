"""What is asked of a policy of the running total: forms, lengths, budgets, pass@k, whose totals it uses."""

from random import Random

from nanogrpo.evaluate import pass_at_k, sample_texts
from nanogrpo.model import GPT
from nanogrpo.rewards import Problem
from nanogrpo.teach.running_total import FORMS, RunningTotal, right_at_the_end, shares, sound, totals

NAMES = ("success", *FORMS, "sound", "length", "success_worked", "success_rest")
KS = (1, 2, 4, 8, 16, 32, 64)


def right(rows: list[Problem], texts: list[str]) -> list[float]:
    """The outcome of one completion for each row."""
    return right_at_the_end([row["prompt"] for row in rows], texts, [row["answer"] for row in rows])


def sampled(model: GPT, task: RunningTotal, rows: list[Problem], each: int = 1, seed: int = 0) -> list[str]:
    """``each`` completions of every row, in order, at temperature 1."""
    return sample_texts(
        model, task.tokenizer, [row["prompt"] for row in rows],
        group_size=each, max_new_tokens=task.max_new_tokens, seed=seed,
    )  # fmt: skip


def measured(model: GPT, task: RunningTotal) -> dict[str, float]:
    """:func:`shares` of two completions of each held-out problem."""
    rows = [row for row in task.split()[1] for _ in range(2)]
    texts = sampled(model, task, task.split()[1], each=2)
    return shares([row["prompt"] for row in rows], texts, [row["answer"] for row in rows])


def budgets(model: GPT, task: RunningTotal) -> list[tuple[int, float, float]]:
    """Success where only so many tokens may stand before the equals sign: (budget, cut off, made to answer).

    Cut off: a completion that has not reached its equals sign by then is wrong. Made to answer: the sign is
    put there for it, and the next token is its answer.
    """
    rows = task.split()[1]
    texts = sampled(model, task, rows, seed=1)
    found = []
    for budget in range(task.length + 1):
        early = [text.find("=") in range(budget + 1) for text in texts]
        put = [
            f"{row['prompt']}{text[:budget].split('=')[0]}=" for row, text in zip(rows, texts, strict=True)
        ]
        tails = sample_texts(model, task.tokenizer, put, max_new_tokens=1, seed=2)
        forced = [text if done else f"={tail}" for text, done, tail in zip(texts, early, tails, strict=True)]
        cut = [text if done else "" for text, done in zip(texts, early, strict=True)]
        found.append((budget, *(sum(right(rows, made)) / len(rows) for made in (cut, forced))))
    return found


def pass_at(model: GPT, task: RunningTotal, problems: int = 100) -> list[tuple[int, float, float]]:
    """Of held-out problems: (k, at least one of k is right, at least one of k is sound)."""
    rows, n = task.split()[1][:problems], max(KS)
    each = [row for row in rows for _ in range(n)]
    texts = sampled(model, task, rows, each=n, seed=3)
    outcome = [int(o) for o in right(each, texts)]
    steps = [sound(row["prompt"], text) for row, text in zip(each, texts, strict=True)]
    return [
        (k, *(
            sum(pass_at_k(n, sum(marks[i : i + n]), k) for i in range(0, len(marks), n)) / problems
            for marks in (outcome, steps)
        ))
        for k in KS
    ]  # fmt: skip


def chain(model: GPT, task: RunningTotal, seed: int = 4) -> tuple[float, float]:
    """A wrong total is put in, and the policy goes on: share of answers that follow it, share that is right.

    To follow is to answer with the sum that the wrong total leads to.
    """
    draw, rows, place = Random(seed), task.split()[1], task.length // 2
    put, follow = [], []
    for row in rows:
        digits = row["prompt"][:-1]
        steps = totals(digits)
        wrong = (int(steps[place]) + draw.randrange(1, 10)) % 10
        put.append(f"{row['prompt']}{steps[:place]}{wrong}")
        follow.append(totals(f"{wrong}{digits[place + 1 :]}")[-1])
    room = task.length - place + 2  # what is left of a worked completion
    texts = sample_texts(model, task.tokenizer, put, max_new_tokens=room, seed=seed)
    after = right_at_the_end(put, texts, follow)
    return sum(after) / len(rows), sum(right(rows, texts)) / len(rows)
