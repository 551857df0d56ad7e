"""Draw the numbers of TRL, verl and OpenRLHF, unmodified, and compare ours with them: ``make parity``.

Without an option it compares, and fails on any difference that ``cases.py`` does not explain, and on a
default of theirs that has changed since the numbers were stored. ``--store`` writes them into
``golden.json``, which the default tests read, so that these check against the frameworks where no framework
is installed.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from cases import CASES, SEEDS, batches_of, draw_batch, ours

GOLDEN = Path(__file__).parent / "golden.json"
SIDES = ("trl", "verl", "openrlhf")  # the last has a wheel for Python 3.11 only


def installed() -> list[str]:
    return [side for side in SIDES if importlib.util.find_spec(side) is not None]


def listed(numbers: dict) -> dict:
    return {name: value.tolist() for name, value in numbers.items()}


def drawn(sides: list[str]) -> dict:
    """Versions, defaults, batches, and what each side gives for each case and batch."""
    modules = {side: importlib.import_module(f"theirs_{side}") for side in sides}
    batches = [draw_batch(seed) for seed in SEEDS]
    cases = {
        f"{case.side}: {case.name}": [
            listed(modules[case.side].theirs(case, {k: v.clone() for k, v in batch.items()}))
            for batch in batches_of(case, batches)
        ]
        for case in CASES
        if case.side in sides
    }
    return {
        "versions": {side: version(side) for side in sides} | {"torch": version("torch")},
        "defaults": {side: {k: plain(v) for k, v in modules[side].defaults().items()} for side in sides},
        "batches": [listed(batch) for batch in batches],
        "cases": cases,
    }


def plain(value):
    numbers = isinstance(value, list) and value and all(isinstance(number, (int, float)) for number in value)
    plain = numbers or isinstance(value, (bool, int, float, str, type(None)))
    return value if plain else f"({type(value).__name__})"


def differences(golden: dict) -> tuple[int, list[str]]:
    """How many numbers were compared, and what is wrong."""
    compared, wrong = 0, []
    batches = [{k: torch.tensor(v, dtype=torch.float64) for k, v in b.items()} for b in golden["batches"]]
    for case in CASES:
        rows = golden["cases"].get(f"{case.side}: {case.name}", [])
        gaps = []
        for batch, row in zip(batches, rows, strict=False):
            found = ours(case, batch)
            for name, value in row.items():
                if name in found:
                    expected = torch.tensor(value, dtype=torch.float64)
                    gaps.append((found[name].double() - expected).abs().max().item())
        compared += len(gaps)
        if not gaps:
            wrong.append(f"{case.side}: {case.name}: nothing was compared")
        elif case.differs and max(gaps) <= 1e-6:
            wrong.append(f"{case.side}: {case.name}: equal now, and was explained as different: {case.why}")
        elif not case.differs and not max(gaps) <= case.tolerance:
            wrong.append(f"{case.side}: {case.name}: off by {max(gaps):.2e}, allowed {case.tolerance:.0e}")
    return compared, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="store_true", help="write golden.json anew")
    args = parser.parse_args()
    now = drawn(sides := installed())
    if missing := [side for side in SIDES if side not in sides]:
        print(f"Not installed here, so not run, and compared by stored numbers only: {', '.join(missing)}")
        if args.store:
            sys.exit("nothing is stored without all of them")
    compared, wrong = differences(now)
    stored = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else None
    if stored and not args.store:
        for side, values in now["defaults"].items():
            for name, value in values.items():
                if (before := stored["defaults"].get(side, {}).get(name)) != value:
                    wrong.append(f"{side}: the default of {name} was {before!r} and is {value!r}")
    named = [f"{case.side}: {case.name}: {case.why}" for case in CASES if case.differs]
    print(f"{compared} comparisons with", ", ".join(f"{k} {v}" for k, v in now["versions"].items()))
    print(
        f"{len(named)} differ by design:", *sorted({case.why for case in CASES if case.differs}), sep="\n  "
    )
    if wrong:
        sys.exit("\n".join(["not equal:", *wrong]))
    if args.store:
        GOLDEN.write_text(json.dumps(now, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"stored in {GOLDEN}")


if __name__ == "__main__":
    main()
