"""The capstone of lab 5: the solution learns on every draw, and a loop with a mistake in it is refused."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from nanogrpo.evaluate import success_probability
from nanogrpo.teach import capstone
from nanogrpo.teach.check import CheckFailed

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "labs"))

from grading import is_answer, run  # noqa: E402

CELLS = nbformat.read(ROOT / "book/labs/source/lab5/lab5.ipynb", as_version=4).cells
LEARN = next(cell.source for cell in CELLS if cell.id == "lab5-learn")
# What is wrong -> an edit of the solution, and a word of the message.
WRONG = {
    "sign": ("mean().backward()", "mean().neg().backward()", "The loss is negated"),
    "no learning": ("optimizer.step()", "pass", "optimizer.step was called 0"),
    "a step behind": ("optimizer.zero_grad()\n", "optimizer.step()\n", "It stopped with RuntimeError"),
    "gradients add up": ("optimizer.zero_grad()\n", "pass\n", "zero_grad"),
    "a tensor": ("return means", "return torch.tensor(means)", "return a list of them"),
    "mean over tokens": (
        "(per_token.sum(1) / mask.sum(1)).mean()",
        "(per_token.sum() / mask.sum())",
        "over all tokens of the batch",
    ),
    "mean over positions": (
        "(per_token.sum(1) / mask.sum(1)).mean()",
        "per_token.mean()",
        "over padding",
    ),
    "a reward, not a price": ("config.beta * torch", "-config.beta * torch", "The KL is subtracted"),
    "KL without beta": ("config.beta * torch", "torch", "not multiplied by config.beta"),
    "a loss scaled": ("mean().backward()", "mean().mul(0.1).backward()", "another gradient"),
    "a sum over completions": ("(1)).mean().backward()", "(1)).sum().backward()", "add up the completions"),
    "one update": ("range(config.num_iterations)", "range(1)", "was called 2 times"),
    "one step": ("range(config.max_steps)", "range(1)", "was called"),
    "old log-probs made anew": ("rollout.logprobs, A", "logprobs.detach(), A", "those of sampling"),
    "old log-probs with a gradient": ("rollout.logprobs, A", "logprobs, A", "those of sampling"),
    "advantages by columns": (
        "advantages_of(rewards).flatten()",
        "advantages_of(rewards).T.flatten()",
        "flat",
    ),
    "rewards by columns": (".view(P, G)", ".view(G, P).T", "it is in the loop"),
    "rewards for advantages": (
        "advantages_of(rewards).flatten()",
        "rewards.flatten()",
        "advantages_of was called 0",
    ),
    "another clip": ("mask, 0.2, 0.2)", "mask, 0.2, 0.5)", "0.2"),
    "no mask": (" mask, 0.2", " torch.ones_like(mask), 0.2", "the mask (B, T)"),
    "KL at padding": (
        "torch.where(mask, kl_of(logprobs, ref_logprobs), 0.0)",
        "kl_of(logprobs, ref_logprobs)",
        "KL of padding counts",
    ),
    "the reference is the policy": (
        "token_logprobs(reference, *batch)",
        "token_logprobs(policy, *batch)",
        "the reference",
    ),
    "arguments of the KL turned round": (
        "kl_of(logprobs, ref_logprobs)",
        "kl_of(ref_logprobs, logprobs)",
        "kl_of",
    ),
    "no KL": (
        "config.beta * torch.where(mask, kl_of(logprobs, ref_logprobs), 0.0)",
        "0.0",
        "kl_of was called 0",
    ),
    "nothing returned": ("return means", "return None", "is its return missing"),
    "the last reward": ("return means", "return means[-1]", "Return a list"),
    "the sum of rewards": ("rewards.mean().item()", "rewards.sum().item()", "Return a list"),
    "a prompt only": ("order[:P]", "order[:1] * P", "draws a prompt twice"),
    "with replacement": (
        "torch.randperm(len(problems), generator=generator)",
        "torch.randint(len(problems), (P,), generator=generator)",
        "draws a prompt twice",
    ),
    "prompts by a chance of their own": (
        "torch.randperm(len(problems), generator=generator)",
        "torch.randperm(len(problems))",
        "draws from torch's own random numbers",
    ),
    "samples by a chance of their own": (
        "config, generator)",
        "config, torch.Generator())",
        "Two generators sampled the same completions",
    ),
    "the first prompts always": (
        "torch.randperm(len(problems), generator=generator)",
        "torch.arange(P)",
        "drew the same prompts",
    ),
    "the policy in another mode": ("return means", "policy.eval(); return means", "in another mode"),
    "the policy frozen": ("return means", "policy.requires_grad_(False); return means", "frozen"),
    "the reference in another mode": (
        "return means",
        "reference.train(False); return means",
        "in another mode",
    ),
    "a seed for all": ("return means", "torch.manual_seed(0); return means", "torch's own random numbers"),
    "no update where all groups are tied": (
        "for _ in range(config.num_iterations):",
        "for _ in range(config.num_iterations if A.any() else 0):",
        "Where all groups are tied the optimizer takes 0 steps",
    ),
    "no pull in tied groups": (
        "config.beta * torch",
        "config.beta * A.any() * torch",
        "Where all groups are tied the optimizer is given another gradient",
    ),
    "another clip from the third step on": (
        "mask, 0.2, 0.2)",
        "mask, 0.2, 0.2 if len(means) < 2 else 0.28)",
        "in step 3: no step is another than the first",
    ),
    "no KL from the third step on": (
        "config.beta * torch",
        "(config.beta if len(means) < 2 else 0.0) * torch",
        "no step is another than the first): The KL is missing",
    ),
    "it stops when it is good": (
        "means.append(rewards.mean().item())",
        "means.append(rewards.mean().item())\n        if means[-1] > 0.9:\n            break",
        "however good the policy has become",
    ),
    "the KL of log-probs without a gradient": (
        "kl_of(logprobs, ref_logprobs)",
        "kl_of(logprobs.detach(), ref_logprobs)",
        "the KL has no gradient",
    ),
    "the KL detached": (
        "kl_of(logprobs, ref_logprobs)",
        "kl_of(logprobs, ref_logprobs).detach()",
        "The KL is missing, or cut off from the policy",
    ),
    "an optimizer of its own": (
        "P, G, means =",
        "optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)\n    P, G, means =",
        "The optimizer that is handed over takes the steps",
    ),
    "words are used up": (
        "order = torch.randperm(len(problems), generator=generator).tolist()",
        "left = left[P:] if means and len(left) >= 2 * P else torch.randperm(len(problems), "
        "generator=generator).tolist(); order = left",
        "Problems are used up",
    ),
    "the reference frozen for good": (
        "return means",
        "reference.requires_grad_(False); return means",
        "another requires_grad",
    ),
    "unwritten": (
        "    ### BEGIN SOLUTION\n",
        "    raise NotImplementedError\n",
        "Nothing is written here yet",
    ),
}


ROWS = """            means_of_rows = []
            for i in range(len(A)):
                at, m = slice(i, i + 1), mask[i]
                row = loss_of(logprobs[at], rollout.logprobs[at], A[at], mask[at], 0.2, 0.2).sum()
                row = row + config.beta * KL
                means_of_rows.append(row / m.sum())
            optimizer.zero_grad()
            torch.stack(means_of_rows).mean().backward()
"""
UPDATE = LEARN[LEARN.index("            per_token = loss_of") : LEARN.index("            optimizer.step()")]
SELECTED = "torch.zeros_like(logprobs).masked_scatter(mask, kl_of(logprobs[mask], ref_logprobs[mask]))"
WHOLE_KL = "torch.where(mask, kl_of(logprobs, ref_logprobs), 0.0)"
ROW_KL = "torch.where(mask[at], kl_of(logprobs[at], ref_logprobs[at]), 0.0).sum()"
TOKENS_KL = "kl_of(logprobs[i][m], ref_logprobs[i][m]).sum()"
# Right loops that hand their batch on in other parts -> an edit of the solution.
RIGHT = {
    "the KL of sampled tokens": (WHOLE_KL, SELECTED),
    "row by row": (UPDATE, ROWS.replace("KL", ROW_KL)),
    "row by row, sampled tokens": (UPDATE, ROWS.replace("KL", TOKENS_KL)),
    "by name": (
        "loss_of(logprobs, rollout.logprobs, A, mask, 0.2, 0.2)",
        "loss_of(logprobs, rollout.logprobs, advantages=A, mask=mask, clip_low=0.2, clip_high=0.2)",
    ),
}
# Wrong ones, with a word of the message.
WRONG |= {
    "chance in the first step alone": (
        "order[:P]]",
        "(range(P) if means else order[:P])]",
        "drew the same prompts",
    ),
    "KL of half of the sampled tokens": (
        WHOLE_KL,
        "kl_of(logprobs[mask][::2], ref_logprobs[mask][::2]).mean()",
        "a part of the batch only",
    ),
    "KL of sampled tokens, summed": (
        WHOLE_KL,
        "kl_of(logprobs[mask], ref_logprobs[mask]).sum() / mask.sum()",
        "another gradient",
    ),
    "KL of sampled tokens, cut off": (
        WHOLE_KL,
        SELECTED.replace("logprobs[mask], ref", "logprobs.detach()[mask], ref"),
        "the KL has no gradient",
    ),
    "row by row, the longer the heavier": (
        UPDATE,
        ROWS.replace("KL", ROW_KL).replace("row / m.sum()", "row / mask.sum() * len(A)"),
        "over all tokens of the batch",
    ),
    "row by row, the last left out": (
        UPDATE,
        ROWS.replace("KL", ROW_KL).replace("range(len(A))", "range(len(A) - 1)"),
        "a part of the batch only",
    ),
    "row by row, KL of all rows' first": (
        UPDATE,
        ROWS.replace("KL", ROW_KL.replace("kl_of(logprobs[at], ref_logprobs[at])", "kl_of(logprobs[:1], "
                                          "ref_logprobs[:1])")),
        "kl_of is called with the policy's log-probs",
    ),
}  # fmt: skip


def learn_of(source):
    """The function `learn` of a text, with the names that the lab gives it."""
    namespace = {"__name__": "__main__"}
    setup = next(cell for cell in CELLS if "%pip" in cell.source)
    assert run(setup, namespace) is None
    exec(source, namespace)
    return namespace["learn"]


@pytest.fixture(scope="module")
def own():
    """The lab's functions, as its solution has them."""
    namespace = {"__name__": "__main__"}
    for cell in CELLS:
        if "%pip" in cell.source or is_answer(cell):
            assert run(cell, namespace) is None
    return namespace


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pieces_of(namespace):
    return tuple(namespace[name] for name in ("group_advantages", "policy_loss", "kl_k3"))


def test_a_task_has_all_words_and_holds_some_out():
    task = capstone.reversing(seed=3)
    rows = task.training + task.held_out
    assert len(rows) == len({row["prompt"] for row in rows}) == 625 and len(task.held_out) == 125
    assert all(row["prompt"] == row["answer"][::-1] + "=" for row in rows)
    assert capstone.reversing(3) == task != capstone.reversing(4)


@pytest.mark.slow
def test_a_policy_is_weak_whatever_the_seed():
    for seed in range(5):
        task = capstone.reversing(seed)
        policy = capstone.weak_policy(task, seed)
        assert 0.02 < success_probability(policy, task.tokenizer, task.held_out) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 2037])  # of the last all first completions have the same length
def test_the_student_s_functions_learn(own, seed):
    capstone.check_learn(own["learn"], pieces_of(own), seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RIGHT)
def test_a_loop_may_hand_its_batch_on_in_parts(own, kind):
    right, other = RIGHT[kind]
    assert LEARN.count(right) == 1
    capstone.check_learn(learn_of(LEARN.replace(right, other)), pieces_of(own), seed=7)


@pytest.mark.slow
def test_the_package_s_functions_and_its_trainer_learn_as_well(own):
    task = capstone.reversing(0)
    assert capstone.race(own["learn"], task, 0)["after"] > capstone.REACHED
    assert capstone.race(capstone.package_learn, task, 0)["after"] > capstone.REACHED


@pytest.mark.slow
def test_a_second_task_can_be_learned(own):
    task = capstone.task_of(lambda word: "".join(sorted(word)), seed=1)
    found = capstone.race(own["learn"], task, 1, pieces_of(own))
    assert found["after"] > found["before"] + 0.2 and len(found["rewards"]) == 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_a_loop_with_a_mistake_is_refused(own, kind):
    right, wrong, says = WRONG[kind]
    assert LEARN.count(right) == 1
    with pytest.raises(CheckFailed, match=re.escape(says)):
        capstone.check_learn(learn_of(LEARN.replace(right, wrong)), pieces_of(own), seed=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, piece",
    [
        (0, lambda rewards: torch.zeros_like(rewards)),
        (0, lambda rewards: -(rewards - rewards.mean(1, keepdim=True))),
        (1, lambda logprobs, old, A, mask, low, high: torch.where(mask, logprobs * A[:, None], 0.0)),
    ],
)
def test_a_wrong_piece_teaches_nothing(own, number, piece):
    pieces = list(pieces_of(own))
    pieces[number] = piece
    with pytest.raises(CheckFailed):
        capstone.check_learn(own["learn"], tuple(pieces), seed=6)
