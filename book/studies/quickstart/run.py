"""Run the quickstart on several seeds and write its logs; the protocol is in README.md."""

import argparse
import json
import time
from pathlib import Path

import torch

from nanogrpo import grpo
from nanogrpo.metrics import CSVLog, logged
from nanogrpo.recipes import measure, new_policy, sft_until, test_problems
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Addition, exact_match

HERE = Path(__file__).parent
KS = (1, 4, 16)


def run(seed: int, learning_rate: float) -> dict[str, float]:
    """One seed, from new weights to the test; its row for results.csv."""
    task = Addition()
    model, problems = new_policy(task, seed), test_problems(task)
    sft_steps = sum(1 for _ in sft_until(model, task, seed=seed))
    before = measure(model, task, problems, KS)
    config = grpo.GRPOConfig(task.max_new_tokens, learning_rate=learning_rate, seed=seed)
    rows = grpo.train(model, task.tokenizer, task.split()[0], exact_match, config)
    for row in logged(rows, HERE / f"seed{seed}-lr{learning_rate:g}.csv"):
        last = row
    after = measure(model, task, problems, KS)
    return {
        "seed": seed,
        "learning_rate": learning_rate,
        "sft_steps": sft_steps,
        "grpo_steps": last["step"],
        "num_tokens": last["num_tokens"],
        **{f"{name} after SFT": value for name, value in before.items()},
        **{f"{name} after GRPO": value for name, value in after.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-4, 1e-3])
    args = parser.parse_args()
    torch.set_num_threads(1)  # a second thread costs such a small model more than it brings
    (HERE / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    with CSVLog(HERE / "results.csv") as log:
        for learning_rate in args.learning_rates:
            for seed in args.seeds:
                start = time.perf_counter()
                row = run(seed, learning_rate)
                log.write(row)
                print(f"{row}  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
