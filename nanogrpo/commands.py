"""The trainers of ``python -m nanogrpo``, in one table; what they share is in :mod:`nanogrpo.job`."""

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from nanogrpo import grpo, ppo, reward_model, sft, tasks, weights
from nanogrpo.checkpoint import from_json
from nanogrpo.critic import new_critic
from nanogrpo.errors import CheckpointError, OptionError, RunError
from nanogrpo.job import Job, RunOptions, check_alphabet, find_weights, folder_of, printable
from nanogrpo.options import option
from nanogrpo.preferences import judge_pairs, sample_pairs
from nanogrpo.recipes import rule_of, sft_until
from nanogrpo.rewards import RewardFunction, check_rows, named
from nanogrpo.runs import MODEL, PAIRS, Folder, Run, as_json
from nanogrpo.state import TrainState
from nanogrpo.step import StepConfig
from nanogrpo.tasks import Task
from nanogrpo.variants import VARIANTS, variant


@dataclass(frozen=True, kw_only=True)
class SFTOptions(RunOptions):
    """What supervised fine-tuning starts from, and where it stops."""

    target: float | None = option(help="stop at this share of right answers; none: never.", low=0, high=1)


class SFT(Job):
    """Fine-tune until ``target`` of the answers are right, or for all steps where there is no target."""

    help = "fine-tune a policy on right answers"
    config_class, options_class = sft.SFTConfig, SFTOptions

    def defaults(self, task: Task) -> dict[str, Any]:
        target = None if task.learned_reward else 0.3
        return {"model": task.sft_model, "target": target, **task.sft_options}

    def build(self) -> tuple[dict[str, nn.Module], TrainState]:
        if self.options.target is not None and self.task.learned_reward:
            raise OptionError(
                f"target={self.options.target}: no answer to task {self.task.name} is right or wrong"
            )
        self.state = TrainState.start(self.policy.parameters(), self.config.learning_rate, self.config.seed)
        return {"policy": self.policy}, self.state

    def rows(self, run: Run) -> Iterator[dict[str, float]]:
        if self.options.target is None:
            return sft.train(self.policy, self.tokenizer, self.task.examples(), self.config, self.state)
        accuracy = run.last_row().get("accuracy", 0.0)
        how = {"config": self.config, "state": self.state, "accuracy": accuracy}
        return sft_until(self.policy, self.task, self.options.target, **how)


@dataclass(frozen=True, kw_only=True)
class PairOptions(RunOptions):
    """What a reward model learns from."""

    task: str = option(
        tasks.usual(learned_reward=True).name, help="what is learned; its rule must be a hidden judge."
    )
    pairs: int = option(2000, help="preferences to learn from.", low=1)
    temperature: float = option(0.5, help="noise of the judge, in its points.", above=0)


class RM(Job):
    """Train a reward model on preferences of the hidden judge between texts that a policy writes."""

    help = "train a reward model on preferences"
    config_class, options_class = reward_model.RewardModelConfig, PairOptions
    may_change = ("save_every",)  # the learning rate falls to 0 at max_steps

    def defaults(self, task: Task) -> dict[str, Any]:
        return {"model": folder_of("sft", task)}

    def build(self) -> tuple[dict[str, nn.Module], TrainState]:
        if not self.task.learned_reward:
            rule = next(iter(self.task.rules))
            raise OptionError(
                f"task {self.task.name} has a rule and needs no reward model: use --reward {rule}"
            )
        self.pairs = self.read_pairs() if self.folder.started else self.new_pairs()
        self.files = {PAIRS: as_json([[p.prompt, p.chosen, p.rejected] for p in self.pairs])}
        self.read(PAIRS, self.files[PAIRS])
        self.model = reward_model.RewardModel(self.policy, self.tokenizer)
        self.state = TrainState.start(self.model.parameters(), self.config.learning_rate, self.config.seed)
        return {"reward_model": self.model}, self.state

    def new_pairs(self) -> list[reward_model.Preference]:
        """Pairs that the policy writes, as the judge prefers them."""
        prompts, seed = [row["prompt"] for row in self.task.split()[0]], self.config.seed
        how = (prompts, self.options.pairs, seed, self.task.max_new_tokens)
        drawn = sample_pairs(self.policy, self.tokenizer, *how)
        return judge_pairs(rule_of(self.task), drawn, self.options.temperature, seed)[0]

    def read_pairs(self) -> list[reward_model.Preference]:
        """The pairs that a run was started with."""
        path = self.folder / PAIRS
        try:
            pairs = from_json(path.read_text(encoding="utf-8"))
            if not isinstance(pairs, list) or not all(isinstance(pair, list) for pair in pairs):
                raise ValueError("it holds no list of lists")  # a text would be read letter by letter
            return [reward_model.Preference(*pair) for pair in pairs]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{path} is missing or damaged: {error}; start anew with --overwrite") from error

    def rows(self, run: Run) -> Iterator[dict[str, float]]:
        return reward_model.train(self.model, self.pairs, self.config, self.state)

    def end(self, path: Path) -> str:
        reward_model.save_reward_model(path, self.model)
        return f"it learned from {len(self.pairs)} pairs"


@dataclass(frozen=True, kw_only=True)
class RewardOptions(RunOptions):
    """What a policy starts from, and what it is rewarded for."""

    reward: tuple[str, ...] = option(
        help="a rule of the task, a reward model's folder or file, or one that ships: "
        f"{', '.join(weights.names('reward model'))}; several are added up."
    )


@dataclass(frozen=True, kw_only=True)
class GRPOOptions(RewardOptions):
    """What GRPO starts from, and which form of it."""

    variant: str | None = option(
        None,
        help=f"take the options of a variant where they are not given: {', '.join(VARIANTS)}; none for none.",
    )


class GRPO(Job):
    """Improve a policy by GRPO, on a rule or on a trained reward model."""

    help = "improve a policy by GRPO"
    config_class: ClassVar[type[StepConfig]] = grpo.GRPOConfig
    options_class: ClassVar[type[RewardOptions]] = GRPOOptions
    train: Callable = staticmethod(grpo.train)
    epochs: ClassVar[str] = "num_iterations"  # the option that says how often a batch is gone through

    def defaults(self, task: Task) -> dict[str, Any]:
        reward = folder_of("rm", task) if task.learned_reward else next(iter(task.rules))
        own = {"model": folder_of("sft", task), "reward": (reward,), "max_new_tokens": task.max_new_tokens}
        return own if self.variant is None else own | variant(self.variant)

    def build(self) -> tuple[dict[str, nn.Module], TrainState]:
        check_rows(self.task.split()[0])
        self.rewards = rewards_of(self)
        self.own: dict[str, nn.Module] = {}
        if self.config.beta:
            self.own["reference"] = copy.deepcopy(self.policy).requires_grad_(False)
        self.state = self.start()
        return {"policy": self.policy, **self.own}, self.state

    def start(self) -> TrainState:
        """The state before the first step; further models are put into ``own``."""
        return TrainState.start(self.policy.parameters(), self.config.learning_rate, self.config.seed)

    def updates(self, steps: int) -> int:
        """How many updates so many steps make; no minibatch is without a prompt."""
        prompts = min(self.config.prompts_per_step, len(self.task.split()[0]))
        return steps * getattr(self.config, self.epochs) * min(self.config.num_mini_batches, prompts)

    def after(self, step: int) -> dict[str, tuple[float, float]]:
        config, moved = self.config, self.updates(step)
        bounds: dict[str, tuple[float, float]] = {"optimizer.steps": (moved, moved)}
        if config.sampler_lag:
            old: dict[str, Tensor] = dict(self.policy.named_parameters())
            self.state.past = [old] * min(step, config.sampler_lag + 1)
        if config.use_adaptive_entropy and step:
            self.state.entropy_coef = start = config.entropy_coef
            bounds["entropy_coef"] = min(start, config.entropy_coef_min), max(start, config.entropy_coef_max)
        return bounds

    def rows(self, run: Run) -> Iterator[dict[str, float]]:
        problems, reward = self.task.split()[0], self.rewards if len(self.rewards) > 1 else self.rewards[0]
        models = (self.policy, self.tokenizer, problems, reward, self.config)
        return self.train(*models, state=self.state, **self.own)


class PPO(GRPO):
    """Improve a policy by PPO, which has a critic besides."""

    help = "improve a policy by PPO"
    config_class, options_class = ppo.PPOConfig, RewardOptions
    train = staticmethod(ppo.train)
    epochs = "num_ppo_epochs"

    def start(self) -> TrainState:
        self.own["critic"] = new_critic(self.policy, self.config.critic)
        return ppo.start(self.policy, self.own["critic"], self.config)

    def after(self, step: int) -> dict[str, tuple[float, float]]:
        bounds, rest = super().after(step), min(step, self.config.value_warmup_steps)
        moved = self.updates(step - rest)  # while the critic warms up, the policy rests
        critics = bounds["optimizer.steps"]
        return {**bounds, "optimizer.steps": (moved, moved), "critic_optimizer.steps": critics}


def rewards_of(job: GRPO) -> list[RewardFunction]:
    """The reward functions that a run names, each called by a name of its own.

    Raises:
        OptionError: one is named twice, does not go with the task, or the weights are of another number.
    """
    names, given = job.options.reward, job.config.reward_weights
    if len(set(map(os.path.normpath, names))) < len(names):
        raise OptionError(
            f"--reward {' '.join(names)} names one of them twice; give each once, with a weight"
        )
    if given is not None and len(given) != len(names):
        raise OptionError(f"{len(given)} reward_weights for {len(names)} rewards; give each one")
    short = [os.path.basename(os.path.normpath(name.removesuffix(f"/{MODEL}"))) for name in names]
    return [
        named(printable(short[i] if short.count(short[i]) == 1 else name), reward_of(job, name))
        for i, name in enumerate(names)
    ]


def reward_of(job: Job, name: str) -> RewardFunction:
    """A rule of the task, or the score of a reward model."""
    if name in job.task.rules:
        return job.task.rules[name]
    try:
        path = find_weights(name, "reward model", "python -m nanogrpo rm")
    except CheckpointError as error:
        rules = ", ".join(job.task.rules)
        message = (
            f"--reward {name} does not go with --task {job.task.name}, whose rules are {rules}; and {error}"
        )
        raise OptionError(message) from error
    model = reward_model.load_reward_model(path, job.device)
    job.read(f"reward {name}", path)
    check_alphabet(model.tokenizer, job.task, "reward")
    return model.score


COMMANDS: dict[str, type[Job]] = {"sft": SFT, "rm": RM, "grpo": GRPO, "ppo": PPO}
LEARNED = " or ".join(task.name for task in tasks.TASKS.values() if task.learned_reward)
ORDER = f"First sft, then grpo or ppo; with --task {LEARNED}: sft, rm, then grpo or ppo."


def train(args: argparse.Namespace) -> None:
    """Run a command from its settings to its end."""
    job_class = COMMANDS[args.command]
    usual = next(str(f.default) for f in fields(job_class.options_class) if f.name == "task")
    task = tasks.find(vars(args).get("task", usual))
    with Folder(folder_of(args.command, task) if args.out is None else args.out) as folder:
        if not (args.resume or args.overwrite):
            folder.check_free()
        job_class(args, task, folder).run()
