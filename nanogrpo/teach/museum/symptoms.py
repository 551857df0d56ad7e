"""How each piece shows in a real run: sentences made from the log of ``book/studies/museum``.

``Shows`` in ``pieces.txt`` holds these sentences, and a test holds both together. The rule, which the study's
protocol states: five broken runs are *visible* at a step if all of them lie on one side of the five healthy
ones, by more than a tenth of the healthy runs' range. After the study was run anew::

    python -m nanogrpo.teach.museum.symptoms
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

from nanogrpo.show.studies import study_log
from nanogrpo.teach.museum.pieces import PIECES

APART, TINY, STEPS = 0.1, 1e-6, 3
NO_METRIC = {"piece", "setting", "seed", "step", "error", "learning_rate", "num_tokens"}

Curves = dict[str, dict[int, list[float]]]  # metric, step: one value a seed


def read() -> tuple[dict[str, dict[str, Curves]], dict[str, str], dict[str, str]]:
    """Curves by piece ("" is the healthy run) and setting; each piece's setting; its error, if it stopped."""
    curves: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list))))
    where, errors = {}, {}
    with open(study_log("museum/results.csv"), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            piece, setting = row["piece"], row["setting"]
            where[piece] = setting
            if row.get("error"):
                errors[piece] = row["error"]
                continue
            for name, text in row.items():
                if name not in NO_METRIC and text:
                    curves[piece][setting][name][int(row["step"])].append(float(text))
    return curves, where, errors


def gap(broken: list[float], healthy: list[float]) -> float:
    """How far all broken values are from all healthy ones, in ranges of these; 0 if not far enough."""
    low, high = min(healthy), max(healthy)
    apart = max(min(broken) - high, low - max(broken))
    needed = max(APART * (high - low), TINY)
    return apart / max(high - low, TINY) if apart > needed else 0.0


def shown(broken: Curves, healthy: Curves) -> list[tuple[float, str, str]]:
    """Metrics in which a piece is visible, the clearest first, with the sentence for each."""
    found = []
    for name in healthy.keys() & broken.keys():
        steps = sorted(healthy[name].keys() & broken[name].keys())
        seen = [gap(broken[name][step], healthy[name][step]) > 0 for step in steps]
        last = next((k for k, at in enumerate(reversed(seen)) if not at), len(seen))  # at the end, in a row
        if last >= STEPS:
            step, since = steps[-1], f"from step {steps[-last]} on"
        elif all(seen[:STEPS]):
            step, since = steps[STEPS - 1], f"in the first {STEPS} steps"
        else:
            continue
        b, h = (sum(x[name][step]) / len(x[name][step]) for x in (broken, healthy))
        text = f"{name} is {number(b)}, healthy {number(h)} (step {step}), out of their range {since}"
        found.append((gap(broken[name][step], healthy[name][step]), name, text))
    return sorted(found, reverse=True)


def number(x: float) -> str:
    """Three digits, as one would write them."""
    return f"{x:.3g}" if abs(x) >= 0.001 or x == 0 else f"{x:.0e}"


def symptoms() -> dict[str, str]:
    """One sentence for each piece."""
    curves, where, errors = read()
    result = {}
    for piece, setting in where.items():
        if not piece:
            continue
        broken, healthy = curves[piece][setting], curves[""][setting]
        found = shown(broken, healthy)
        if piece in errors and not broken:
            said = f"The run stops: {errors[piece].split('.')[0]}"
        elif not healthy and "" in errors:
            said = f"The healthy run stops with a {errors[''].split(':')[0]}, and this one goes on"
        elif found:
            others = [name for _, name, _ in found[1:4]]
            said = found[0][2] + (f"; also {', '.join(others)}" if others else "")
        elif broken != healthy:
            said = "None by itself: the runs differ from the healthy ones, by no more than seeds do"
        else:
            said = "None: every metric is that of the healthy run"
        result[piece] = f"{said} [{setting}]."
    return result


def main() -> None:
    """Write the sentences into ``pieces.txt``."""
    path = Path(__file__).with_name("pieces.txt")
    text, sentences = path.read_text(encoding="utf-8"), symptoms()
    for piece in PIECES:
        said = sentences[piece.name].replace("\\", "\\\\")
        label = rf"(^Piece: {re.escape(piece.name)}\n(?:.+\n)*?Shows: ).*"
        text = re.sub(label, rf"\g<1>{said}", text, count=1, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
