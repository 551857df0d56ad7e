"""The fall of the judge on fifteen more seeds; the protocol is in README.md, "Fifteen more seeds".

A run that has ended is not repeated, nor one whose rows are in the committed log.
"""

import json
import time
from dataclasses import replace

import torch
from proxies import HERE, LINES, RUNS, World, proxy_of, write
from run import GRPO, Measure

from nanogrpo import grpo, weights
from nanogrpo.metrics import CSVLog, read_csv
from nanogrpo.show.studies import environment

MORE = range(5, 20)
MEASURED = (0, 20, 25, 30, 40, 60)  # steps
LOG = HERE / "twenty.csv"
KEYS = ("run", "seed")
KEPT = ("step", "proxy", "judge", "kl", "repeated", "unknown")


def run(world: World, seed: int) -> None:
    """One run of the condition ``grpo``, and what is measured along it."""
    path = RUNS / f"twenty--{seed}.measured"
    if path.exists() and read_csv(path)["step"][-1] == GRPO.max_steps:
        return
    (policy, tokenizer), (reference, _) = weights.load(LINES), weights.load(LINES)
    proxy = proxy_of(["shipped"])
    problems = [{"prompt": heading} for heading in dict.fromkeys(world.training)]
    config = replace(GRPO, reward_weights=(1.0, 0.0), seed=seed)
    measure = Measure(world, policy, reference, tokenizer, proxy, None)
    with CSVLog(path) as log:
        log.write(measure(0, {}))
        for row in grpo.train(policy, tokenizer, problems, [proxy, world.judge], config):
            if row["step"] in MEASURED:
                log.write(measure(int(row["step"]), {}))


def combine(seeds: range, before: str) -> None:
    """Adds the runs that have ended to the log, which is committed; what it held stays as it is."""
    rows = []
    for seed in seeds:
        path = RUNS / f"twenty--{seed}.measured"
        columns = read_csv(path) if path.exists() else {"step": [0]}
        if columns["step"][-1] != GRPO.max_steps:
            break
        for values in zip(*(columns[name] for name in KEPT), strict=True):
            rows.append(dict(zip((*KEYS, *KEPT), ("grpo", seed, *values), strict=True)))
    write(LOG, rows)
    if before:
        LOG.write_text(before + "".join(LOG.read_text().splitlines(keepends=True)[1:]))


def missing() -> range:
    """The seeds that the log does not have. They run in order, so these are the last ones."""
    last = LOG.read_text().splitlines()[-1].split(",") if LOG.exists() else []
    return range(int(last[KEYS.index("seed")]) + 1, MORE.stop) if last else MORE


def main() -> None:
    torch.set_num_threads(1)
    RUNS.mkdir(exist_ok=True)
    seeds, before = missing(), LOG.read_text() if LOG.exists() else ""
    if not seeds:
        return
    record = f"twenty-{seeds.start}.json" if before else "twenty.json"  # each part says what made it
    (HERE / record).write_text(json.dumps(environment(), indent=2) + "\n")
    world = World.load()
    for seed in seeds:
        start = time.perf_counter()
        run(world, seed)
        combine(seeds, before)
        print("grpo", seed, f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
