"""Measures what rounding alone makes of the numbers that a chapter's runs print, and writes ``spread.json``.

    python tests/spread.py book/quickstart.ipynb book/grpo.ipynb    these chapters, five times each
    python tests/spread.py --all                                   every chapter with a cell tagged `run`

Each chapter runs with every weight moved by a relative 1e-4 at most, by another seed each time (see
``foreign/sitecustomize.py``). That is a hundred times what another machine's rounding moves them: then each
sampled token that rounding could turn somewhere is turned in some of the runs. Copies that are there already,
in ``_build/spread``, are used again, unless the chapter is newer.

For each output of a cell tagged ``run``, and each line that differed, the values of its numbers are kept,
those of the stored output first; or null where the words differed. A number that moved in a cell without the
tag is reported.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "book" / "_ext")]

from outputs import SPREAD, disagreement, fields, numbers, skeleton, value  # noqa: E402

FOREIGN = ROOT / "tests" / "foreign"
RELATIVE = "1e-4"


def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def copies(chapter, runs):
    """The chapter, run so many times with other weights; each copy's code cells."""
    for seed in range(1, runs + 1):
        copy = ROOT / "_build" / "spread" / f"{chapter.stem}-{seed}.ipynb"
        if not copy.exists() or copy.stat().st_mtime < chapter.stat().st_mtime:
            print(f"{chapter.stem}: run {seed} of {runs}", flush=True)
            notebook = nbformat.read(chapter, as_version=4)
            notebook.metadata.pop("widgets", None)
            where = {"metadata": {"path": str(chapter.parent)}}
            client = NotebookClient(notebook, timeout=1800, startup_timeout=300, resources=where)
            moved = {"FOREIGN_SEED": str(seed), "FOREIGN_RELATIVE": RELATIVE, "PYTHONPATH": str(FOREIGN)}
            client.execute(env=os.environ | moved)
            copy.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, copy)
        yield code(copy)


def without_address(text):
    """Nor the name that pandas draws for a styled table, which would change the words of its lines."""
    return re.sub(r"0x[0-9a-f…]+|\bT_[0-9a-f]+(?=[_\" ]|$)", "", text)


def moved(lines):
    """For one line as it was printed in several runs: the values of its numbers by number, or None."""
    if len({skeleton(line) for line in lines}) > 1:
        return None
    rows = [[value(number) for number in numbers(line)] for line in lines]
    return [list(values) for values in zip(*rows, strict=True)]


def spread(stored, others):
    """By output and line what differed between a cell's stored outputs and those of other runs."""
    found = {}
    runs = [fields(outputs, without_address) for outputs in (stored, *others)]
    for kind in sorted(runs[0].keys() - {"stderr"}):  # progress bars
        for n in range(len(runs[0][kind])):
            versions = [run[kind][n] for run in runs]
            if len({len(version) for version in versions}) > 1:
                raise SystemExit(f"{kind} {n}: runs print different numbers of lines; tag the cell `sampled`")
            rows = enumerate(zip(*versions, strict=True))
            lines = {str(i): moved(each) for i, each in rows if len(set(each)) > 1}
            if lines:
                found[f"{kind} {n}"] = lines
    return found


def measure(chapter, runs):
    """The spread of each cell tagged ``run``; names the others that moved by more than their kind allows."""
    stored, others = code(chapter), list(copies(chapter, runs))
    found = {}
    for cell, *again in zip(stored, *others, strict=True):
        tags, outputs = cell.metadata.get("tags", []), [other.outputs for other in again]
        if "run" in tags:
            found[cell.id] = spread(cell.outputs, outputs)
        elif "nbval-ignore-output" not in tags:
            found_by = (disagreement(cell.outputs, each, tags, sanitize=without_address) for each in outputs)
            why = next(filter(None, found_by), None)
            if why and "stderr" not in why:
                print(f"{chapter.stem}, cell {cell.id}, is not tagged `run`, but: {why}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    from execute import chapters

    known = json.loads(SPREAD.read_text(encoding="utf-8")) if SPREAD.exists() else {}
    for chapter in chapters(ROOT) if options.all else options.chapters:
        if options.all and not any("run" in cell.metadata.get("tags", []) for cell in code(chapter)):
            known.pop(chapter.stem, None)
            continue
        known[chapter.stem] = measure(chapter.resolve(), options.runs)
        SPREAD.write_text(pretty(known), encoding="utf-8")
    return 0


def pretty(known):
    """The values of a number on one line, so that a diff shows which number moved."""
    text = json.dumps(dict(sorted(known.items())), indent=1)
    return re.sub(r"\[\s+([-\d.,e+\s]+?)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
