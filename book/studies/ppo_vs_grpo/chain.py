"""The main arms on a task whose answer is reached in steps; the protocol is in README.md, "Chain"."""

import argparse
import copy
import json
from dataclasses import replace
from functools import cache, partial

import run as study
import torch
import why

from nanogrpo import grpo, ppo
from nanogrpo.evaluate import success_probability
from nanogrpo.metrics import CSVLog, logged, read_csv
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.recipes import sft_until, test_problems
from nanogrpo.rewards import Problem, exact_match
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Task
from nanogrpo.tokenizer import CharTokenizer

STEPS, EVERY, START_SEED = 40, 20, 2000
RATES = (1e-4, 2e-4, 4e-4)


class Chain(Task):
    """Four digits are added one after the other: ``3+5+9+2=`` is answered by ``08,17,19``.

    The sums on the way are tokens of the answer, and a wrong one makes all that follow wrong. The reward, 1
    for an answer that is right to the letter, does not say where the mistake was.
    """

    name = "chain"
    tokenizer = CharTokenizer("0123456789+=,")
    max_new_tokens = 9  # three sums of two digits, two commas, the end

    @staticmethod
    def problem(number: int) -> Problem:
        digits = [int(d) for d in f"{number:04d}"]
        sums = [sum(digits[: k + 1]) for k in range(1, 4)]
        return {"prompt": "+".join(map(str, digits)) + "=", "answer": ",".join(f"{s:02d}" for s in sums)}

    def split(self) -> tuple[list[Problem], list[Problem]]:
        order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).tolist()
        problems = [self.problem(i) for i in order]
        return problems[2000:], problems[:2000]


TASK = Chain()
BUDGET = {"max_new_tokens": TASK.max_new_tokens, "max_steps": STEPS, "num_mini_batches": 2}
WIDE = ppo.PPOConfig(**BUDGET, group_size=1, prompts_per_step=32, critic_learning_rate=1e-3, lam=1.0)
GROUPS = grpo.GRPOConfig(
    **BUDGET, group_size=8, prompts_per_step=4, scale_rewards="group", aggregation="sequence_mean"
)
ARMS = {
    "none": WIDE,
    "batch": WIDE,
    "grpo": GROUPS,
    "ppo": WIDE,
}


@cache
def start() -> GPT:
    """A GPT of 0.1 million weights after SFT, stopped at 30 % right answers; one seed, no choice of runs."""
    torch.manual_seed(START_SEED)
    model = GPT(GPTConfig(TASK.tokenizer.vocab_size, TASK.block_size, n_layer=2, n_head=4, n_embd=64))
    for _ in sft_until(model, TASK, 0.3, START_SEED):
        pass
    return model


def steps_of(arm: str, policy: GPT, config):
    """The generator of a run: the package's trainers, or the loop of ``why.py`` where there is no critic."""
    rows = (policy, TASK.tokenizer, TASK.split()[0], exact_match, config)
    if arm == "grpo":
        return grpo.train(*rows)
    return ppo.train(*rows) if arm == "ppo" else why.train(policy, arm, config, TASK)


def run(phase: str, arm: str, rate: float, seed: int) -> float:
    """The success after the last step of one run, from its log if there is one."""
    log = study.RUNS / phase / f"{arm}-lr{rate:g}--{seed}.csv"
    success = log.with_suffix(".success")
    if not success.exists() or read_csv(success)["step"][-1] != STEPS:
        policy, problems = copy.deepcopy(start()), test_problems(TASK)
        config = replace(ARMS[arm], learning_rate=rate, seed=seed)
        with CSVLog(success) as rows:
            for row in logged(steps_of(arm, policy, config), log):
                if row["step"] == 1 or row["step"] % EVERY == 0:
                    model = start() if row["step"] == 1 else policy  # the first row is the start
                    value = success_probability(model, TASK.tokenizer, problems)
                    rows.write({"step": 0 if row["step"] == 1 else row["step"], "success": value})
    value = read_csv(success)["success"][-1]
    print(phase, arm, rate, seed, f"{value:.4f}", flush=True)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    torch.set_num_threads(1)
    for phase in ("chain_tuning", "chain"):
        folder = study.HERE / phase
        folder.mkdir(exist_ok=True)
        if not (folder / "environment.json").exists():
            (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    for arm in parser.parse_args().arms:
        rate = why.best(RATES, partial(run, "chain_tuning", arm))
        for seed in study.SEEDS:
            run("chain", arm, rate, seed)
        for phase in ("chain_tuning", "chain"):
            study.combine(phase)


if __name__ == "__main__":
    main()
