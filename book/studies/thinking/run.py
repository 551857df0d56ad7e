"""Does reward teach it to think? The protocol is in README.md. What is logged is not run again."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from statistics import mean

import measures
import torch
from tqdm import tqdm

from nanogrpo import grpo, sft
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.show.studies import environment
from nanogrpo.teach.running_total import RunningTotal, right_at_the_end, shares

HERE = Path(__file__).parent
TASKS = {"totals": RunningTotal(), "filler": RunningTotal(steps="filler"), "short": RunningTotal()}
SFT_STEPS = {"totals": 800, "filler": 300, "short": 300}
STEPS, PROMPTS, GROUP = 30, 16, 8
RATES, TUNING_SEEDS, SEEDS = (3e-4, 1e-3, 3e-3, 1e-2), (100, 101), range(10, 20)

# In the order in which they are run: model, what its reward is, options.
ARMS: dict[str, tuple[str, str, dict]] = {
    "token_mean": ("totals", "right", {}),
    "filler, token_mean": ("filler", "right", {}),
    "shuffled": ("totals", "shuffled", {}),
    "sequence_mean": ("totals", "right", {"aggregation": "sequence_mean"}),
    "penalty 0.5": ("totals", "0.5", {}),
    "penalty 2": ("totals", "2", {}),
    "constant": ("totals", "right", {"aggregation": "constant"}),
    "sequence_sum": ("totals", "right", {"aggregation": "sequence_sum"}),
    "filler, sequence_mean": ("filler", "right", {"aggregation": "sequence_mean"}),
    "no examples of steps": ("short", "right", {}),
}
ADDED = "no examples of steps"  # after the first runs, see README.md
CURVES = ("success", "short", "worked", "broken", "filler", "sound", "length")


class Watched:
    """A reward, and what was sampled at each step."""

    def __init__(self, kind: str, task: RunningTotal, seed: int):
        self.kind, self.most, self.draw = kind, task.max_new_tokens, Random(seed)
        self.rows: list[dict[str, float]] = []

    def __call__(self, prompts, completions, answer, **columns) -> list[float]:
        self.rows.append(shares(prompts, completions, answer))
        rewards = right_at_the_end(prompts, completions, answer)
        if self.kind == "shuffled":  # the same rewards, each for somebody else's completion
            self.draw.shuffle(rewards)
        elif self.kind != "right":
            price = float(self.kind)
            rewards = [
                r - price * (len(text) + 1) / self.most for r, text in zip(rewards, completions, strict=True)
            ]
        return rewards


def fine_tuned(model: str, seed: int, steps: int | None = None) -> GPT:
    """The policy that all arms of a seed start from; kept in ``runs``, which is not committed."""
    task, steps = TASKS[model], steps or SFT_STEPS[model]
    torch.manual_seed(seed)
    policy = GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, n_layer=1, n_head=4, n_embd=48))
    path = HERE / "runs" / f"{model}-{seed}-{steps}.pt"
    if path.exists():
        policy.load_state_dict(torch.load(path, weights_only=True))
        return policy
    config = sft.SFTConfig(learning_rate=5e-3, batch_size=32, max_steps=steps, seed=seed)
    examples = task.examples()
    if model == "short":
        examples = [(row["prompt"], f"={row['answer']}") for row in task.split()[0]]
    for _ in sft.train(policy, task.tokenizer, examples, config):
        pass
    path.parent.mkdir(exist_ok=True)
    torch.save(policy.state_dict(), path)
    return policy


def trained(arm: str, rate: float, seed: int) -> tuple[GPT, list[dict[str, float]]]:
    """One run of GRPO: the policy at its end, and what was sampled at each step."""
    model, reward, options = ARMS[arm]
    task, policy = TASKS[model], fine_tuned(model, seed)
    config = grpo.GRPOConfig(
        max_new_tokens=task.max_new_tokens, group_size=GROUP, prompts_per_step=PROMPTS,
        max_steps=STEPS, learning_rate=rate, seed=seed, **options,
    )  # fmt: skip
    watched = Watched(reward, task, seed)
    for _ in grpo.train(policy, task.tokenizer, task.split()[0], watched, config):
        pass
    return policy, watched.rows


def logged(name: str) -> list[dict[str, str]]:
    path = HERE / name
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(name: str, header: Iterable[str], rows: list[list]) -> None:
    """Rows at the end of a log, which gets its header with the first."""
    new = not (HERE / name).exists()
    with open(HERE / name, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(([list(header)] if new else []) + [[short(x) for x in row] for row in rows])


def short(x) -> str:
    """A number as it is logged."""
    return f"{x:.5g}" if isinstance(x, float) else str(x)


def log(part: str, arm: str, rate: float, seed: int, policy: GPT, task: RunningTotal) -> None:
    """What a policy does, in one row; written last, since it says that a run is done."""
    found = measures.measured(policy, task)
    head = ("part", "arm", "rate", "seed", *measures.NAMES)
    write("results.csv", head, [[part, arm, rate, seed, *(found[name] for name in measures.NAMES)]])


def look_closer(arm: str, seed: int, policy: GPT, task: RunningTotal) -> None:
    """Budgets of tokens, pass@k and the wrong total, of the arms that the protocol names."""
    rows = [[arm, seed, *row] for row in measures.budgets(policy, task)]
    write("budgets.csv", ("arm", "seed", "budget", "cut", "forced"), rows)
    if task.steps == "totals":
        rows = [[arm, seed, *row] for row in measures.pass_at(policy, task)]
        write("pass_at_k.csv", ("arm", "seed", "k", "right", "sound"), rows)
        write("chain.csv", ("arm", "seed", "follows", "right"), [[arm, seed, *measures.chain(policy, task)]])


def do(jobs: list[tuple[str, str, float, int]]) -> None:
    """Run what is not logged yet, and log it: (part, arm, learning rate, seed)."""
    done = {(r["part"], r["arm"], float(r["rate"]), int(r["seed"])) for r in logged("results.csv")}
    for part, arm, rate, seed in tqdm([job for job in jobs if job not in done], mininterval=10):
        if arm.startswith("start"):
            model = next((name for name in ("filler", "short") if name in arm), "totals")
            steps = SFT_STEPS["totals"] if "longer" in arm else None
            policy, task = fine_tuned(model, seed, steps), TASKS[model]
        else:
            policy, rows = trained(arm, rate, seed)
            task = TASKS[ARMS[arm][0]]
            if part == "runs":
                table = [[arm, seed, i, *(row[name] for name in CURVES)] for i, row in enumerate(rows, 1)]
                write("curves.csv", ("arm", "seed", "step", *CURVES), table)
        if part == "runs" and arm in ("start", "token_mean", "filler, token_mean"):
            look_closer(arm, seed, policy, task)
        log(part, arm, rate, seed, policy, task)


def best() -> float:
    """The learning rate of the best mean success over the tuning seeds."""
    rows = [r for r in logged("results.csv") if r["part"] == "tuning" and r["arm"] == "token_mean"]
    return max(RATES, key=lambda rate: mean(float(r["success"]) for r in rows if float(r["rate"]) == rate))


def main() -> None:
    torch.set_num_threads(1)
    if not (HERE / "environment.json").exists():
        (HERE / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    do([("tuning", "token_mean", rate, seed) for rate in RATES for seed in TUNING_SEEDS])
    rate = best()
    do([("runs", "start", 0.0, seed) for seed in SEEDS])
    do([("runs", "token_mean", rate, seed) for seed in SEEDS])
    do([("runs", "start, filler", 0.0, seed) for seed in SEEDS])
    do([("runs", arm, rate, seed) for arm in ARMS if arm != ADDED for seed in SEEDS])
    do([("tuning", "start, filler, longer", 0.0, seed) for seed in TUNING_SEEDS])
    do([("runs", arm, at, seed) for arm, at in (("start, short", 0.0), (ADDED, rate)) for seed in SEEDS])


if __name__ == "__main__":
    main()
