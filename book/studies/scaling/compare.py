"""What two sets of runs of run.py have in common, written to the logs that the chapter reads."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from run import HELD_OUT, OWN, PAIRED, PARTS, SEEDS, SPLIT

from nanogrpo import hub, weights
from nanogrpo.evaluate import success_probability
from nanogrpo.metrics import CSVLog

HERE = Path(__file__).parent
ONE, TWO = "one process", "two processes"


def log(folder: Path) -> dict:
    return json.loads((folder / "log.json").read_text())


def texts(folder: Path) -> list[list]:
    """Of each call of the reward function, by rank: pairs of prompt and completion."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("texts-*.json"))]


def whole(folder: Path) -> list[list]:
    """Of each step, all pairs of prompt and completion: those of rank 0, then those of rank 1."""
    return [sum(parts, []) for parts in zip(*texts(folder), strict=True)]


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def compared(base: Path, other: Path) -> dict[str, float]:
    """Steps with equal texts; how far weights are apart and have moved, after the first and the last step."""
    start = hub.to_transformers(*weights.load("addition"))[0].state_dict()
    a, b = (torch.load(folder / "weights.pt") for folder in (base, other))
    pairs = list(zip(whole(base), whole(other), strict=True))
    row: dict[str, float] = {"steps": len(pairs), "steps_with_equal_texts": sum(x == y for x, y in pairs)}
    for when in ("first", "last"):
        row |= {f"apart_{when}": furthest(a[when], b[when]), f"moved_{when}": furthest(a[when], start)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("two", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    folders = {ONE: args.one, TWO: args.two}
    shutil.copy(args.two / "environment.json", args.out)
    with CSVLog(args.out / "pairs.csv") as file, CSVLog(args.out / "steps.csv") as steps:
        others = [(arm.name, arm.loss, TWO, args.two / arm.name) for arm in PAIRED]
        others += [(arm.name, arm.loss, "two parts", args.one / arm.name) for arm in PARTS]
        for _, loss, how, folder in others:
            base = args.one / loss
            file.write({"run": loss, "compared": how} | compared(base, folder))
            for label, at in ((ONE, base), (how, folder)):
                if label == ONE and how != TWO:
                    continue  # is written already
                for row in log(at)["rows"]:
                    numbers = {name: row[name] for name in ("reward", "grad_norm", "loss")}
                    steps.write({"run": loss, "how": label, "step": row["step"], **numbers})
    start = success_probability(*weights.load("addition"), HELD_OUT)
    with CSVLog(args.out / "success.csv") as file:
        for label, folder in folders.items():
            for seed, arm in zip(SEEDS, OWN, strict=True):
                found = log(folder / arm.name)
                assert found["world"] == list(folders).index(label) + 1, f"{label}: {found['world']} ranks"
                file.write({"run": label, "seed": seed, "step": 0, "success": start})
                file.write({"run": label, "seed": seed, "step": arm.steps, "success": found["success"]})
    with CSVLog(args.out / "split.csv") as file:
        for arm in SPLIT:
            for step, (a, b) in enumerate(zip(*texts(args.two / arm.name), strict=True), 1):
                assert {prompt for prompt, _ in a + b} == {a[0][0]}, "a group of one prompt, over two ranks"
                equal = sum(x == y for x, y in zip(a, b, strict=True))
                different = len({completion for _, completion in a + b})
                file.write(
                    {
                        "run": arm.samples,
                        "step": step,
                        "equal_pairs": equal,
                        "pairs": len(a),
                        "different": different,
                    }
                )


if __name__ == "__main__":
    main()
