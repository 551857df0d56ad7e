"""The runs of lab 6, drawn anew for each course: six with a piece of the bug museum, one without.

    python book/labs/lab6_runs.py                  make them for the course "public", which the book shows
    python book/labs/lab6_runs.py --course NAME    make them for a course of your own, from its name

They go into the lab's source: the curves into its cell of data, the answers into the hidden tests. Which
letter has which mistake, in which setting, from which policy and with which samples: all follow from the
name. Of each answer the accepted metrics and steps are computed: where the run leaves what right runs of its
setting do.

The task is small, so that all of it takes a minute or two: `cab=` wants `cab` and then the end. The policy
starts from a few steps of imitation.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import random
import re
import textwrap
from contextlib import ExitStack
from pathlib import Path

import nbformat
import torch

from nanogrpo import grpo, sft
from nanogrpo.evaluate import success_probability
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.tasks import exact_match
from nanogrpo.teach import museum
from nanogrpo.tokenizer import CharTokenizer

SOURCE = Path(__file__).resolve().parent / "source" / "lab6" / "lab6.ipynb"
PUBLIC = "public"
TOKENIZER = CharTokenizer("abc=")
WORDS = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("abc", repeat=n)]
PROBLEMS = [{"prompt": word + "=", "answer": word} for word in WORDS]
CONFIG = {
    "max_new_tokens": 6,
    "group_size": 8,
    "prompts_per_step": 16,
    "learning_rate": 2e-3,
    "max_steps": 24,
}
SETTINGS = {
    "one update": {},
    "strong penalty": {"beta": 1.0},
    "hot": {"temperature": 1.5},
    "four updates": {"num_iterations": 4},
}
PARTS = {  # the function that is broken: the piece of the museum, and the settings in which it shows
    "clipped_surrogate": ("sign of the loss", tuple(SETTINGS)),
    "completion_mask": ("mask is every token but EOS", tuple(SETTINGS)),
    "logprobs_of": ("new log-probs at temperature 1", ("hot",)),
    "kl_penalty": ("penalty with the wrong sign", ("strong penalty",)),
    "importance_ratio": ("ratio against itself", ("four updates",)),
    "token_logprobs": ("fast path: target shift off by one", tuple(SETTINGS)),
    "none": (None, tuple(SETTINGS)),
}
METRICS = {
    "reward": "reward",
    "length": "completions/mean_length",
    "clipped": "clip_ratio/region_mean",
    "kl": "kl",
}
RIGHT_SEEDS = 6  # right runs of a setting that say how far chance goes


def number_of(course: str) -> int:
    """A number that follows from a course's name."""
    return int.from_bytes(hashlib.sha256(course.encode()).digest()[:4], "big")


def assignment(course: str) -> dict[str, tuple[str, str]]:
    """Letter of a run: (the part that is broken in it, the setting of its trainer)."""
    chance = random.Random(number_of(course))
    parts = chance.sample(list(PARTS), len(PARTS))
    return {
        letter: (part, chance.choice(PARTS[part][1])) for letter, part in zip("ABCDEFG", parts, strict=True)
    }


def start(course: str = PUBLIC) -> GPT:
    """A policy that is right in four to seven of ten cases."""
    for seed in itertools.count(number_of(course) % 10_000):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(TOKENIZER.vocab_size, 10, n_layer=1, n_head=2, n_embd=32))
        options = sft.SFTConfig(max_steps=10, batch_size=32, learning_rate=3e-3, seed=seed)
        for _ in sft.train(model, TOKENIZER, [(row["prompt"], row["answer"]) for row in PROBLEMS], options):
            pass
        if 0.4 < success_probability(model, TOKENIZER, PROBLEMS) < 0.7:
            return model


def run(first: GPT, setting: str, piece: str | None = None, seed: int = 0) -> dict[str, list[float]]:
    """The logged metrics of one run, rounded; with a piece of the museum in the package, or without."""
    config = grpo.GRPOConfig(**CONFIG, **SETTINGS[setting], seed=seed)
    policy, reference = copy.deepcopy(first), copy.deepcopy(first).requires_grad_(False)
    with ExitStack() as stack:
        if piece:
            stack.enter_context(museum.installed(piece))
        rows = list(grpo.train(policy, TOKENIZER, PROBLEMS, exact_match, config, reference))
    return {name: [round(row[key], 4) for row in rows] for name, key in METRICS.items()}


def departures(broken: dict, right: list[dict]) -> dict[str, int]:
    """Metrics in which a run leaves what right runs do, each with the first step (from 1) of leaving it.

    It has left where it is outside their range, widened by half of it on either side and a little more, at
    three of four steps in a row; or where it never moves and they all do.
    """
    found = {}
    for name, least in {"reward": 0.05, "length": 0.1, "clipped": 0.02, "kl": 0.05}.items():
        outside = []
        for t, value in enumerate(broken[name]):
            low, high = min(r[name][t] for r in right), max(r[name][t] for r in right)
            room = (high - low) / 2 + least
            outside.append(not low - room <= value <= high + room)
        stays = [outside[t] and sum(outside[t : t + 4]) >= 3 for t in range(len(outside) - 3)]
        if any(stays):
            found[name] = stays.index(True) + 1
        elif len(set(broken[name])) == 1 and all(len(set(r[name])) > 1 for r in right):
            others = [all(r[name][t] != broken[name][0] for r in right) for t in range(len(broken[name]))]
            found[name] = others.index(True) + 1
    return found


def make(course: str) -> tuple[dict, dict]:
    """The curves, by name: settings for right runs, letters for the others; and the answer to each letter.

    An answer has the ``setting``, the broken ``part``, and the steps ``from`` which metrics show it. If a
    mistake shows in no curve, or the sound run in one, all is drawn again.
    """
    for attempt in itertools.count():
        name = f"{course}, attempt {attempt}" if attempt else course
        logs, answers = _draw(name)
        if all(bool(answer["from"]) == (answer["part"] != "none") for answer in answers.values()):
            return logs, answers


def _draw(course: str) -> tuple[dict, dict]:
    first, chance, answers = start(course), number_of(course) % 10_000, {}
    right = {name: [run(first, name, seed=chance + n) for n in range(RIGHT_SEEDS)] for name in SETTINGS}
    logs = {name: runs[0] for name, runs in right.items()}
    for number, (letter, (part, setting)) in enumerate(assignment(course).items()):
        logs[letter] = run(first, setting, PARTS[part][0], seed=chance + RIGHT_SEEDS + number)
        answers[letter] = {"setting": setting, "part": part, "from": departures(logs[letter], right[setting])}
    return logs, answers


def write(notebook: nbformat.NotebookNode, logs: dict, answers: dict) -> None:
    """Put the curves and the answers where they stand in the lab's source."""
    wrap = textwrap.TextWrapper(99, break_on_hyphens=False, break_long_words=False)
    rows = (f"{json.dumps(name)}: {json.dumps(values)}" for name, values in logs.items())
    data = "{\n" + ",\n".join("\n".join(wrap.wrap(row)) for row in rows) + "\n}"
    settings = "".join(f'    "{letter}": "{answer["setting"]}",\n' for letter, answer in answers.items())
    solution = "\n".join(f'diagnosis["{letter}"] = {model(answer)}' for letter, answer in answers.items())
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        if "RUNS = json.loads(" in cell.source:
            cell.source = _between(cell.source, 'json.loads("""', '""")', data)
            cell.source = _between(cell.source, "SETTINGS = {", "}", f"\n{settings}")
        elif name == "diagnosis":
            new = solution.replace("'", '"')
            cell.source = _between(cell.source, "### BEGIN SOLUTION\n", "\n### END SOLUTION", new)
        elif letter := re.fullmatch(r"run-([a-g])-tests", name):
            answer = answers[letter[1].upper()]
            new = f"diagnosis['{letter[1].upper()}'], {answer['part']!r}, {answer['from']}".replace("'", '"')
            cell.source = _between(cell.source, "diagnose.check_answer(", ")\n### END", new)


def model(answer: dict) -> dict:
    """The model answer: the metric that shows it first."""
    metric = min(answer["from"], key=answer["from"].get, default=None)
    return {"part": answer["part"], "metric": metric, "step": answer["from"].get(metric)}


def _between(text: str, before: str, after: str, new: str) -> str:
    start = text.index(before) + len(before)
    return text[:start] + new + text[text.index(after, start) :]


def main() -> None:
    """Make the runs of a course, and write them into a source of the lab."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--course", default=PUBLIC, help="a name; everything follows from it")
    parser.add_argument("--notebook", type=Path, default=SOURCE, help="the source to write to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    notebook = nbformat.read(given.notebook, as_version=4)
    write(notebook, *make(given.course))
    nbformat.write(notebook, given.notebook)


if __name__ == "__main__":
    main()
