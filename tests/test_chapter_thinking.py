"""What the chapter on thinking claims beyond its study: the live run, the viewer, the push on one token."""

import json
from itertools import product
from math import comb

import pytest
import torch
from chaptercode import chapter

from nanogrpo.advantages import group_advantages
from nanogrpo.show.studies import study_log
from nanogrpo.teach.running_total import RunningTotal, form, right_at_the_end

LOG = json.loads(study_log("thinking/rollouts.json").read_text(encoding="utf-8"))
END = "<eos>"


def texts(step, row):
    """What one row of the first prompt says in the record of a step."""
    (record,) = [each for each in LOG["steps"] if each["step"] == step]
    return "".join(record["groups"][0]["completions"][row]["tokens"]).removesuffix(END)


def test_the_viewer_s_log_is_whole_and_its_prompts_are_held_out():
    held_out = RunningTotal().split()[1][:2]
    assert [each["step"] for each in LOG["steps"]] == [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30]
    assert "dirty" not in LOG["environment"]["commit"] and LOG["seed"] == 10
    answers = {row["prompt"]: row["answer"] for row in held_out}
    for record in LOG["steps"]:
        assert {group["prompt"] for group in record["groups"]} == answers.keys()
        for group in record["groups"]:
            prompt, rewards = group["prompt"], []
            for row in group["completions"]:
                text = "".join(row["tokens"]).removesuffix(END)
                rewards += right_at_the_end([prompt], [text], [answers[prompt]])
                assert row["reward"] == rewards[-1] and not any(row["clipped"]) or any(row["log_ratios"])
            found = group_advantages(torch.tensor([rewards]))[0].tolist()
            assert [row["advantage"] for row in group["completions"]] == pytest.approx(found, abs=1e-3)


def test_the_rows_that_the_text_tells_of():
    prompt = LOG["steps"][0]["groups"][0]["prompt"]
    steps = [len(texts(step, 0).split("=")[0]) for step in (1, 2, 3)]
    assert steps == [1, 3, 6], "the first row answers after one total, three and six"
    fourth = [form(prompt, texts(step, 3)) for step in (1, 2, 3, 4, 5, 6)]
    assert fourth == ["short"] * 5 + ["worked"]
    assert form(prompt, texts(20, 5)) == "worked" and texts(20, 5)[-1] != texts(30, 5)[-1]
    assert len(texts(10, 7).split("=")[0]) == 7 and form(prompt, texts(10, 7)) == "other"


def mean_push(p_long, p_short, q, by_length, G=8):
    """The mean push on the logit of "long": the sum over the numbers of long, right long, right short."""
    total = 0.0
    for n in range(G + 1):
        for a, b in product(range(n + 1), range(G - n + 1)):
            chance = comb(G, n) * q**n * (1 - q) ** (G - n)
            chance *= comb(n, a) * p_long**a * (1 - p_long) ** (n - a)
            chance *= comb(G - n, b) * p_short**b * (1 - p_short) ** (G - n - b)
            rewards = [1.0] * a + [0.0] * (n - a) + [1.0] * b + [0.0] * (G - n - b)
            values = group_advantages(torch.tensor([rewards], dtype=torch.float64))[0].tolist()
            pushes = [
                value / (9 if by_length else 1) * (1 - q) if i < n else -value / (3 if by_length else 1) * q
                for i, value in enumerate(values)
            ]
            total += chance * sum(pushes) / G
    return total


@pytest.mark.parametrize("by_length", [True, False])
def test_the_first_token_is_pushed_only_where_the_forms_differ_in_success(by_length):
    assert mean_push(0.1, 0.1, 0.25, by_length) == pytest.approx(0, abs=1e-12)
    expected = 0.0491 if by_length else 0.2945  # as the exercise samples it
    assert mean_push(0.9, 0.1, 0.25, by_length) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_live_run_learns_to_work_and_the_one_with_dots_learns_nothing():
    text = chapter("thinking", ("task",))
    task = text.task
    start = text.fine_tuned(task, task.examples(), 800)
    before = text.look(start, task, task.split()[1])
    assert before.loc["short", "success"] < 0.2 < 0.5 < before.loc["worked", "success"]
    assert before.loc["worked", "share"] < 0.6
    policy, seen = text.trained(start, task)
    after = text.look(policy, task, task.split()[1])
    assert after.loc["worked", "share"] > 0.9 and after.loc["all", "success"] > 0.7
    assert seen["length"].iloc[-5:].mean() > seen["length"].iloc[0] + 1.5
    dots = RunningTotal(steps="filler")
    _, wandered = text.trained(text.fine_tuned(dots, dots.examples(), 300), dots)
    assert wandered["success"].iloc[-5:].mean() < 0.2
