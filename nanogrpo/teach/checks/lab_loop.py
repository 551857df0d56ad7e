"""Checks of a step that only the labs have: the whole loop of GRPO. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nanogrpo import weights
from nanogrpo.advantages import batch_advantages, group_advantages
from nanogrpo.evaluate import success_probability
from nanogrpo.grpo import GRPOConfig, compute_loss
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW
from nanogrpo.rollout import Rollout, token_logprobs
from nanogrpo.step import Batch
from nanogrpo.step import update as update_weights
from nanogrpo.tasks import Addition, Problem, exact_match
from nanogrpo.teach.checks.compare import call, compare, listed
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import CheckFailed, register

LEAST_RISE = 0.2


@register(rounds=1)
def check_train(implementation: Callable, draw: Draw) -> None:
    """``f(policy, tokenizer, problems, reward_fn, update, config, generator)``: mean reward of each step.

    First every step is looked at: what was drawn, sampled, rewarded and handed to ``update``. Then ten steps
    are run on 64 problems of :class:`~nanogrpo.tasks.Addition`, starting from the weights ``addition``; the
    probability of the right answer, exact, must rise by 0.2. Over 100 draws a right loop raised it by 0.33
    on average, standard deviation 0.03, and by 0.25 at least. Over 20 draws each, one that goes on with its
    first samples raised it by 0.15 at most, and one that shuffles its advantages or mixes its groups lowered
    it. Without a baseline it rises as well: that is what the first part is for.
    """
    _check_steps(implementation, draw)
    _check_chance(implementation, draw)
    _check_learning(implementation, draw)


class Witness:
    """A reward function and an update that write down what they are called with."""

    def __init__(self, policy: GPT, problems: list[Problem], config: GRPOConfig, draw: Draw):
        self.policy, self.config, self.draw = policy, config, draw
        self.tokenizer = Addition(1, 10).tokenizer
        self.level = {row["prompt"]: float(10 * draw.normal(1)) for row in problems}
        self.answers = {row["prompt"]: row["answer"] for row in problems}
        self.rewarded: list[tuple[list[str], list[str], Tensor]] = []
        self.drawn: list[list[str]] = []
        self.last: Rollout | None = None

    def reward(self, prompts, completions, answer, **columns) -> list[float]:
        """Rewards that differ in level from prompt to prompt, so that a wrong baseline is seen."""
        P, G = self.config.prompts_per_step, self.config.group_size
        if len(prompts) != P * G:
            raise CheckFailed(
                f"The reward function is called on {len(prompts)} completions, expected {P * G}: in each "
                f"step draw config.prompts_per_step = {P} prompts, and reward all of their completions, {G} "
                "each, at once."
            )
        if [self.answers[prompt] for prompt in prompts] != list(answer):
            raise CheckFailed(
                "The reward function is given answers that do not belong to the prompts: hand the drawn rows "
                "to call_reward."
            )
        rewards = torch.tensor([self.level[prompt] for prompt in prompts]) + self.draw.normal(len(prompts))
        self.rewarded.append((list(prompts), list(completions), rewards))
        return rewards.tolist()

    def update(self, rollout: Rollout, advantages: Tensor) -> None:
        """Judge one step, then move the policy: the next samples must be those of another one."""
        P, G, step = self.config.prompts_per_step, self.config.group_size, len(self.drawn) + 1
        ids = zip(rollout.prompt_ids.tolist(), rollout.prompt_lens.tolist(), strict=True)
        self.drawn.append([self.tokenizer.decode(row[:n]) for row, n in ids])
        if len(self.drawn[-1]) != P or rollout.group_size != G:
            raise CheckFailed(
                f"Step {step} trains on {len(self.drawn[-1])} prompts with {rollout.group_size} completions "
                f"each: draw config.prompts_per_step = {P} prompts, and sample as config says, {G} each."
            )
        if len(set(self.drawn[-1])) < P:
            raise CheckFailed(
                f"Step {step} draws a prompt twice, {self.drawn[-1]}: draw none twice in a step, "
                "torch.randperm."
            )
        self._is_fresh(rollout, step)
        self.last = rollout
        if len(self.rewarded) != step:
            raise CheckFailed(
                f"Before update {step} the reward function was called {len(self.rewarded)} times: each step "
                "calls it once, and then update."
            )
        self._is_rewarded(rollout)
        _compare_advantages(advantages, self.rewarded[-1][2].view(P, G))
        with torch.no_grad():
            for p in self.policy.parameters():
                p.add_(0.3 * self.draw.normal(*p.shape))

    def _is_fresh(self, rollout: Rollout, step: int) -> None:
        batch = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
        with torch.no_grad():
            gap = (
                (token_logprobs(self.policy, *batch) - rollout.logprobs)[rollout.completion_mask].abs().max()
            )
        if gap > 1e-2:
            old = " They are the last step's: is update called twice?" if rollout is self.last else ""
            raise CheckFailed(
                f"The samples of step {step} are not those of the policy as it is now (their log-probs "
                f"differ by up to {gap:.2g}): sample anew in each step, from the policy that is trained, not "
                f"from a copy.{old}"
            )

    def _is_rewarded(self, rollout: Rollout) -> None:
        prompts, completions, _ = self.rewarded[-1]
        expected = [text for text in self.drawn[-1] for _ in range(rollout.group_size)]
        if completions != self.tokenizer.decode_batch(rollout.completion_ids):
            raise CheckFailed(
                f"The rewarded completions, {completions[:2]} ..., are not those of the rollout: decode "
                "rollout.completion_ids, all of it, in its order."
            )
        if prompts != expected:
            raise CheckFailed(
                f"Completion i is rewarded as an answer to another prompt, {prompts[:5]} ..., expected "
                f"{expected[:5]} ...: hand call_reward the rows that were sampled from."
            )


def _compare_advantages(got: Tensor, rewards: Tensor) -> None:
    (P, G), right = rewards.shape, group_advantages(rewards)
    mixed = rewards.view(G, P)
    sentence = (
        f"The groups are mixed up: the {G} completions of a prompt stand side by side, so the rewards are "
        f"(P, G) = ({P}, {G}) after view(P, G)."
    )
    unjudged = "The rewards themselves are handed to update: compare each with its group first."
    mistakes = [
        (right, "The advantages are (P, G): flatten them, one a row of the rollout."),
        (rewards.flatten(), unjudged),
        (rewards, unjudged),
        (-right.flatten(), "The sign of the advantages is reversed."),
        (batch_advantages(rewards).flatten(), "Each reward is compared with the whole batch, not with its "
                                              "group: view(P, G) before group_advantages."),
        (group_advantages(mixed).flatten(), sentence),
        (group_advantages(mixed.T).flatten(), sentence),
        (group_advantages(mixed.T).T.flatten(), sentence),
        (group_advantages(rewards.T).T.flatten(), "Each reward is compared with those of other prompts: the "
                                                  "group is axis 1."),
        (group_advantages(rewards.T).flatten(), "Rows and groups are swapped: the rewards are (P, G)."),
        (right.T.flatten(), "The advantages are in another order than the rows of the rollout: row i answers "
                            "prompt i // G, so flatten (P, G) as it is."),
    ]  # fmt: skip
    compare("the advantage of a completion", got, right.flatten(), mistakes, rtol=5e-3, atol=5e-3)


def _check_steps(implementation: Callable, draw: Draw) -> None:
    task = Addition(1, held_out=10)
    problems = [task.split()[0][int(i)] for i in torch.randperm(90, generator=draw.generator)[:9]]
    config = GRPOConfig(
        max_new_tokens=task.max_new_tokens, group_size=draw.integer(3, 4),
        prompts_per_step=draw.integer(5, 6), max_steps=draw.integer(4, 5),
    )  # fmt: skip
    seed, runs, before = draw.integer(0, 10**6), [], list(problems)
    start = draw.model(task.tokenizer.vocab_size, task.block_size).state_dict()
    for shift in (0, 0, 1):  # twice from the same generator, then from another one
        policy = draw.model(task.tokenizer.vocab_size, task.block_size)
        policy.load_state_dict({name: 0.3 * tensor for name, tensor in start.items()})
        seen = Witness(policy, problems, config, draw)
        generator = torch.Generator().manual_seed(seed + shift)
        given = (policy, seen.tokenizer, problems, seen.reward, seen.update, config, generator)
        got = call(implementation, *given)
        runs.append((seen.drawn, [completions for _, completions, _ in seen.rewarded]))
        if problems != before:
            raise CheckFailed("Your loop changes the list of problems: its caller still needs it.")
        if len(seen.drawn) != config.max_steps:
            raise CheckFailed(
                f"update was called {len(seen.drawn)} times in config.max_steps = {config.max_steps} steps: "
                "once at the end of each."
            )
        if len({frozenset(step) for step in seen.drawn}) == 1:
            raise CheckFailed(
                f"All steps train on the same prompts, {seen.drawn[0]}: draw anew in each step."
            )
        means = torch.stack([rewards.mean() for _, _, rewards in seen.rewarded])
        best = torch.stack([rewards.max() for _, _, rewards in seen.rewarded])
        compare("the mean reward of a step", got, means, [
            (means[-1], "Return the mean rewards of all steps, not of the last one."),
            (means * config.group_size * config.prompts_per_step, "These are sums: return mean rewards."),
            (best, "These are the best rewards: return mean rewards."),
        ])  # fmt: skip
        listed("mean rewards", got)
    if runs[0][0] == runs[2][0]:
        raise CheckFailed(
            "Two runs from two generators drew the same prompts: draw them by chance, torch.randperm."
        )
    ever = {prompt for run in runs for step in run[0] for prompt in step}
    if len(ever) < len(problems) - 1:  # by chance once in 50,000 checks
        raise CheckFailed(
            f"Of {len(problems)} problems only {len(ever)} are ever drawn: draw from all of them."
        )
    places = [sorted(map([row["prompt"] for row in before].index, step)) for run in runs for step in run[0]]
    if all(_in_a_row(step, len(before)) for step in places):  # by chance once in 10^10 checks
        raise CheckFailed(
            "Each step draws problems that stand side by side in the list: draw each by chance, "
            "torch.randperm."
        )
    first, second = (tuple(seen[0] for seen in run) for run in runs[:2])  # what the first step saw
    if first != second:
        what = "drew other prompts" if first[0] != second[0] else "sampled other completions"
        raise CheckFailed(
            f"Two runs from the same generator {what}: give generator to torch.randperm and to sample, or no "
            "run can be repeated."
        )


def _in_a_row(places: list[int], n: int) -> bool:
    """Whether places of a list of n are neighbors; the last and the first are, too."""
    gaps = [(b - a) % n for a, b in zip(places, [*places[1:], places[0]], strict=True)]
    return sum(gap != 1 for gap in gaps) <= 1


def _check_chance(implementation: Callable, draw: Draw) -> None:
    """One problem, so that chance makes the samples only, and rewards that are all equal."""
    task, updates, seen = Addition(1, held_out=10), [], []
    problem = task.split()[0][draw.integer(0, 89)]
    config = GRPOConfig(max_new_tokens=task.max_new_tokens, group_size=16, prompts_per_step=1, max_steps=2)
    policy = draw.model(task.tokenizer.vocab_size, task.block_size)
    with torch.no_grad():
        policy.head.weight.mul_(0.1)  # varied samples

    def equal(prompts, completions, **columns) -> list[float]:
        seen.append(list(completions))
        return [1.0] * len(completions)

    def update(rollout: Rollout, advantages: Tensor) -> None:
        updates.append(advantages)

    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        call(implementation, policy, task.tokenizer, [problem], equal, update, config, generator)
    if len(updates) != 4:
        raise CheckFailed(
            f"Where all groups are tied, update was called {len(updates)} times in two runs of two steps: "
            "call it in each step. Without advantages the pull to the reference still counts."
        )
    _all_are_drawn(implementation, policy, draw)
    _none_is_used_up(implementation, policy, draw)
    if seen[:2] == seen[2:]:
        raise CheckFailed(
            "Two runs from two generators sampled the same completions: hand generator to sample. All chance "
            "comes from there."
        )


def idle(rollout, advantages) -> None:
    """Stands for an update, under the names that the text has for its arguments."""


def _all_are_drawn(implementation: Callable, policy: GPT, draw: Draw) -> None:
    """Of 90 problems each part is drawn from: none stands too far back."""
    task, drawn = Addition(1, held_out=10), set()
    problems = task.split()[0]
    config = GRPOConfig(max_new_tokens=task.max_new_tokens, group_size=2, prompts_per_step=45, max_steps=3)

    def reward(prompts, completions, **columns) -> list[float]:
        drawn.update(prompts)
        return [float(i % 2) for i in range(len(prompts))]

    call(implementation, policy, task.tokenizer, problems, reward, idle, config, draw.generator)
    places = [i for i, row in enumerate(problems) if row["prompt"] in drawn]
    if max(places) < len(problems) - 18 or min(places) > 17 or len(places) < 60:  # by chance never
        raise CheckFailed(
            f"Of {len(problems)} problems those from {min(places)} to {max(places)} are drawn, "
            f"{len(places)} in all, in three steps of half of them: draw from all, by torch.randperm."
        )


def _none_is_used_up(implementation: Callable, policy: GPT, draw: Draw) -> None:
    """Of 90 problems 15 a step, for 30 steps: what was drawn may be drawn again, solved or not."""
    task, steps = Addition(1, held_out=10), []
    problems = task.split()[0]
    names = [row["prompt"] for row in problems]
    config = GRPOConfig(max_new_tokens=task.max_new_tokens, group_size=2, prompts_per_step=15, max_steps=30)

    def reward(prompts, completions, **columns) -> list[float]:
        steps.append(set(map(names.index, prompts)))
        return [float(names.index(prompt) % 2 or i % 2) for i, prompt in enumerate(prompts)]  # half are tied

    call(implementation, policy, task.tokenizer, problems, reward, idle, config, draw.generator)
    again = "Draw from all problems in each step, whatever was drawn before."
    early, late = set().union(*steps[:6]), set().union(*steps[15:])
    if len(early) == 6 * 15:  # by chance once in 10^34 checks, and what follows once in 10^18
        raise CheckFailed(f"Problems are used up: in six steps of 15 none comes up again. {again}")
    for part, which in ((1, "whose completions were all right"), (0, "whose completions differed")):
        known = {i for i in early if i % 2 == part}
        if known and not known & late:
            raise CheckFailed(f"Problems {which} never come up again in later steps. {again}")
    first, last = (set(range(90)[at]) & late for at in (slice(15), slice(-15, None)))
    if not (first and last):
        raise CheckFailed(f"Problems at an end of the list are no longer drawn in later steps. {again}")


def _check_learning(implementation: Callable, draw: Draw) -> None:
    before, after = learning(implementation, draw)
    if after - before < LEAST_RISE:
        raise CheckFailed(
            "Each step looks right, but ten of them moved the probability of the right answer from "
            f"{before:.2f} to {after:.2f}, expected above {before + LEAST_RISE:.2f}: does all training "
            "happen in update?"
        )


def learning(implementation: Callable, draw: Draw) -> tuple[float, float]:
    """The probability of the right answer before and after ten steps of a loop on 64 problems."""
    task = Addition(digits=2)
    policy, tokenizer = weights.load("addition")
    problems = [task.split()[0][int(i)] for i in torch.randperm(8000, generator=draw.generator)[:64]]
    config = GRPOConfig(
        max_new_tokens=task.max_new_tokens, group_size=8, prompts_per_step=32, learning_rate=3e-4,
        max_steps=10, aggregation="sequence_mean",
    )  # fmt: skip
    optimizer = AdamW(policy.parameters(), config.learning_rate)

    def update(rollout: Rollout, advantages: Tensor) -> None:
        rewards = torch.zeros(advantages.numel() // config.group_size, config.group_size)  # not needed here
        batch, loss = Batch(rollout, rewards, {}, advantages.flatten()), partial(compute_loss, policy, config)
        for _ in range(2):
            update_weights(batch, loss, [optimizer], config, "the check")

    before = success_probability(policy, tokenizer, problems)
    call(implementation, policy, tokenizer, problems, exact_match, update, config, draw.generator)
    return before, success_probability(policy, tokenizer, problems)
