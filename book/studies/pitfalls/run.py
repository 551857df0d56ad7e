"""Run the pitfalls' effects on twenty seeds, with the chapters' own cells; the protocol is in README.md."""

import argparse
import ast
import copy
import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")

from nanogrpo.show.studies import environment

HERE = Path(__file__).parent
BOOK = HERE.parents[1]
SEEDS = range(20, 40)

Row = tuple[str, str, int, float, float]  # chapter, effect, seed, with the mistake (or remedy), without


def cells(chapter: str, *names: str, **given) -> dict:
    """What a chapter's cells of these names define, run in order, without their assertions."""
    found = json.loads((BOOK / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = {cell["id"].removeprefix(f"{chapter}-"): "".join(cell["source"]) for cell in found}
    space: dict = {}
    for name in names:
        source = re.sub(r"^(\s*)%.*$", r"\1pass", sources[name], flags=re.MULTILINE)
        tree = ast.parse(source)
        tree.body = [node for node in tree.body if not isinstance(node, ast.Assert)]
        exec(compile(tree, f"{chapter}.ipynb, {name}", "exec"), space)
        space |= given
    return space


def masks() -> list[Row]:
    """Rewards at the end, for each fault of the trainer."""
    ends = cells("masks", "setup", "world", "eosruns", SEEDS=SEEDS)
    scores = cells("scored", "setup", "world", "shift", "dropout", "dropoutruns", SEEDS=SEEDS)
    found = ends["RUNS"] | scores["RUNS"]
    right, last = found.pop("right"), ends["last"]
    return [
        ("masks", name, seed, last(broken), last(healthy))
        for name, logs in found.items()
        for seed, broken, healthy in zip(SEEDS, logs, right, strict=True)
    ]


def zero_variance() -> list[Row]:
    """Dynamic sampling at equal tokens; the naive z-score; a taste that the group's std enlarges."""
    space = cells("zero-variance", "01", "14", "19", "28", "43", "52", SEEDS=SEEDS)
    pairs = {
        "dynamic sampling": [[p for _, p in space[name]] for name in ("dynamic", "plain")],
        "naive z-score": [
            [space["exact_success"](model) for model, _ in space["bonus_runs"][name]]
            for name in ("naive, eps = 1e-8", "max == min")
        ],
        "taste, group std": [space["tastes"][how] for how in ("group", "none")],
    }
    return [
        ("zero-variance", name, *row)
        for name, (a, b) in pairs.items()
        for row in zip(SEEDS, a, b, strict=True)
    ]


def entropy() -> list[Row]:
    """A higher clip, and nearly none."""

    def ours(*n):
        """The cell's ten seeds become these."""
        return SEEDS if n == (10,) else range(*n)

    space = cells("entropy", "setup", "readings", "run", "clip", range=ours)
    clipped, at = space["clipped"], space["entropy_at"]
    reads = {
        "reward after 3 steps": lambda run: run["reward"][3],
        "entropy at reward 0.9": lambda run: at(run, 0.9),
    }
    return [
        ("entropy", f"clip_high {high}: {name}", seed, float(read(a)), float(read(b)))
        for high in (0.28, 4.0)
        for name, read in reads.items()
        for seed, a, b in zip(SEEDS, clipped[high], clipped[0.2], strict=True)
    ]


def kl() -> list[Row]:
    """k1 in the loss beside a reward: exact KL to the reference, and whether the run is lost."""
    space = cells("kl", "setup", "world", "train")
    policy, reference, measure = space["reference"], space["reference"], space["exact_kl"]

    def reward(prompts, completions, **columns):
        return [text.count("b") / 2 for text in completions]

    def end(seed: int, beta: float, passes: int) -> float:
        trained = copy.deepcopy(policy)
        options = {"kl_estimator": "k1", "beta": beta, "num_iterations": passes}
        space["train"](trained, reference, reward, seed, **options)
        return measure(trained, reference)

    rows: list[Row] = []
    for passes, betas in ((1, (0.3, 1.0, 3.0)), (4, (0.3, 1.0))):
        base = [end(seed, 0.0, passes) for seed in SEEDS]
        for beta in betas:
            name = f"k1 in the loss, beta {beta:g}, passes {passes}: KL"
            rows += [
                ("kl", name, seed, end(seed, beta, passes), at_0)
                for seed, at_0 in zip(SEEDS, base, strict=True)
            ]
    return rows


def around() -> list[Row]:
    """Mistakes around the mathematics, in a file of their own."""
    from plumbing import plumbing

    return plumbing(SEEDS)


def several_rewards() -> list[Row]:
    """Normalize the sum, or each; in a file of their own."""
    from rewards import one_seed

    return [("rewards", effect, seed, a, b) for seed in SEEDS for effect, a, b in one_seed(seed)]


def length_bias() -> list[Row]:
    """The chapter's two runs: a batch's baseline on settled prompts, and the task with the group's own."""
    space = cells("length-bias", "01", "16", "18", "21", SEEDS=SEEDS, shown=lambda *_: "")
    ends = {how: list(zip(*found, strict=True)) for how, found in space["kinds"].items()}
    pairs = {"batch baseline: wrong longer than right (tokens)": [space["gaps"][how] for how in BY_LENGTH]}
    for i, name in enumerate(("right answers (tokens)", "wrong answers (tokens)", "success")):
        pairs[f"group baseline: {name}"] = [ends[how][i] for how in BY_LENGTH]
    return [
        ("length-bias", name, *row) for name, (a, b) in pairs.items() for row in zip(SEEDS, a, b, strict=True)
    ]


BY_LENGTH = ("sequence_mean", "sequence_sum")


def wrong_sign() -> list[Row]:
    """Case D of the museum: mean KL of the last four steps, nats a token."""
    space = cells("bug-museum", "01", "13", "15")
    museum, start = space["museum"], space["imitate"]()[0]

    def last_kl(seed: int, beta: float) -> float:
        log = space["reinforce"](start, reference=copy.deepcopy(start), beta=beta, seed=seed)
        return sum(log["kl"][-4:]) / 4

    rows: list[Row] = []
    for seed in SEEDS:
        free, right = last_kl(seed, 0.0), last_kl(seed, 0.2)
        with museum.installed(space["CASES"]["D"]):
            broken = last_kl(seed, 0.2)
        rows += [
            ("bug-museum", "wrong sign, less no penalty: KL", seed, broken, free),
            ("bug-museum", "right penalty, less no penalty: KL", seed, right, free),
        ]
    return rows


def by_seed(part: str, one_seed: Callable[[int], Iterable[tuple[str, float, float]]]) -> list[Row]:
    """Seeds in order; one that has ended is kept in ``runs`` and not run again."""
    (HERE / "runs").mkdir(exist_ok=True)
    rows: list[Row] = []
    for seed in SEEDS:
        path = HERE / "runs" / f"{part}-{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(list(one_seed(seed))))
            print(part, seed, flush=True)
        rows += [(part, effect, seed, a, b) for effect, a, b in json.loads(path.read_text())]
    return rows


def penalized() -> list[Row]:
    """A penalty for each letter; in a file of its own."""
    from short import one_seed

    return by_seed("short", one_seed)


def coins() -> list[Row]:
    """The clip on rewards that are tossed coins; in a file of its own."""
    from coins import one_seed

    return by_seed("coins", one_seed)


PARTS = {
    "results": (zero_variance, masks, entropy),
    "kl": (kl,),
    "plumbing": (around,),
    "later": (several_rewards, length_bias, wrong_sign),
    "short": (penalized,),
    "coins": (coins,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    made = environment()  # before a chapter changes the number of threads, or a log the checkout
    rows = []
    for study in PARTS[part]:
        rows += study()
        torch.set_default_dtype(torch.float32)
    made["threads"] = torch.get_num_threads()
    (HERE / f"{'environment' if part == 'results' else part}.json").write_text(
        json.dumps(made, indent=2) + "\n"
    )
    with open(HERE / f"{part}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["chapter", "effect", "seed", "changed", "base"])
        writer.writerows([*row[:3], f"{row[3]:.7g}", f"{row[4]:.7g}"] for row in rows)


if __name__ == "__main__":
    main()
