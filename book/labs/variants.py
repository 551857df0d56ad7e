"""Variants of some steps: a course with a name of its own asks for others than the book does.

Each step has options; the first is the book's. An option is a list of edits: a cell's id, the text that
stands in it exactly once, the text to put there. In a graded cell, the name of a check.
"""

from __future__ import annotations

import hashlib
import random
import re

from nbformat import NotebookNode

K3 = "It is never negative, and right on\naverage:"
PRECISION = (
    "Where the two models agree, $\\delta$ is tiny, and $e^\\delta - 1$ loses its digits in float32. "
    "There is a function that does not.\n\n"
)
VARIANTS: dict[str, dict[str, dict[str, list[tuple[str, str, str]]]]] = {
    "lab4": {
        "whitening": {
            "population": [],
            "sample": [
                (
                    "lab4-10",
                    "with the population's deviation (the mean of the squared deviations, not divided by "
                    "$n - 1$).",
                    "with the sample's deviation (Bessel: divided by $n - 1$).",
                ),
                ("lab4-whiten", "kept.std(correction=0)", "kept.std()"),
                ("lab4-whiten-tests", "check_whiten", "check_sample_whiten"),
            ],
        },
    },
    "lab5": {
        "deviation": {
            "population": [],
            "Bessel": [
                (
                    "lab5-04",
                    "with the population's standard deviation (divide by $G$)",
                    "with the sample's standard deviation (Bessel: divide by $G - 1$)",
                ),
                ("lab5-group_advantages", "correction=0", "correction=1"),
                ("lab5-group_advantages-tests", "check_group_advantages", "check_bessel_advantages"),
            ],
        },
        "kl": {
            "k3": [],
            "k2": [
                ("lab5-10", K3, "It is never negative, and\nnearly right where the two agree:"),
                ("lab5-10", "k_3 = e^{\\delta} - 1 - \\delta", "k_2 = \\tfrac12 \\delta^2"),
                ("lab5-10", PRECISION, ""),
                ("lab5-kl_k3", "k3 estimate", "k2 estimate"),
                ("lab5-kl_k3", "return torch.expm1(delta) - delta", "return delta**2 / 2"),
                ("lab5-kl_k3-tests", "check_kl_k3", "check_kl_k2"),
                (
                    "lab5-kl_k3-tests",
                    "Passed: zero where the two agree, and never below.",
                    "Passed: zero where the two agree, and never below it.",
                ),
            ],
            "k1": [
                ("lab5-10", K3, "It is right on\naverage, though negative for many a token:"),
                ("lab5-10", "k_3 = e^{\\delta} - 1 - \\delta", "k_1 = -\\delta"),
                ("lab5-10", PRECISION, ""),
                ("lab5-kl_k3", "k3 estimate", "k1 estimate"),
                ("lab5-kl_k3", "return torch.expm1(delta) - delta", "return -delta"),
                ("lab5-kl_k3-tests", "check_kl_k3", "check_kl_k1"),
                (
                    "lab5-kl_k3-tests",
                    "zero where the two agree, and never below.",
                    "right on average, and of either sign.",
                ),
            ],
        },
        "mean": {
            "sequence": [],
            "token": [
                (
                    "lab5-13",
                    "take the mean over the tokens of each completion, then the\nmean over completions:",
                    "take the mean over all\nsampled tokens of the batch, all with the same weight:",
                ),
                (
                    "lab5-13",
                    "\\frac1B \\sum_i \\frac1{|o_i|} \\sum_t",
                    "\\frac1{\\sum_i |o_i|} \\sum_i \\sum_t",
                ),
                ("lab5-grpo_loss", "with the paper's mean", "with the mean over tokens"),
                (
                    "lab5-grpo_loss",
                    "return (per_token.sum(1) / mask.sum(1)).mean()",
                    "return per_token.sum() / mask.sum()",
                ),
                ("lab5-grpo_loss-tests", "check_grpo_loss", "check_token_mean_loss"),
                (
                    "lab5-grpo_loss-tests",
                    "Passed: this is the loss of the paper.",
                    "Passed: this is the loss with the mean over tokens.",
                ),
            ],
        },
    },
}
OWN = (
    "check_sample_whiten",
    "check_bessel_advantages",
    "check_token_mean_loss",
)  # of nanogrpo.teach.variants
# A variant's graded cell calls no other check of the step: they belong to the book's variant.
DROPPED = {
    "check_kl_k1": ("check_kl_k3_precision",),
    "check_kl_k2": ("check_kl_k3_precision",),
    "check_token_mean_loss": ("check_kl_penalty",),
    "check_bessel_advantages": ("check_small_spread",),
}


class VariantError(ValueError):
    """A text that a variant replaces does not stand there exactly once: the lab has changed."""


def chosen(course: str) -> dict[str, dict[str, str]]:
    """The options of a course, by lab and step: two at least in three are not the book's."""
    chance = random.Random(hashlib.sha256(f"variants of {course}".encode()).digest())
    steps = [(lab, step) for lab, table in VARIANTS.items() for step in table]
    while True:
        drawn = {(lab, step): chance.choice(list(VARIANTS[lab][step])) for lab, step in steps}
        other = [key for key, option in drawn.items() if option != next(iter(VARIANTS[key[0]][key[1]]))]
        if 3 * len(other) >= 2 * len(steps):
            return {lab: {step: drawn[lab, step] for step in VARIANTS[lab]} for lab in VARIANTS}


def apply(notebook: NotebookNode, lab: str, options: dict[str, str]) -> None:
    """Change a lab's source, in place, into the variants of a course.

    Raises:
        VariantError: See there.
    """
    cells = {cell.id: cell for cell in notebook.cells}
    for step, option in options.items():
        for cell, old, new in VARIANTS[lab][step][option]:
            if new.startswith("check_"):
                cells[cell].source = _graded(cells[cell].source, old, new)
            elif cells[cell].source.count(old) != 1:
                raise VariantError(f"{old!r} stands {cells[cell].source.count(old)} times in cell {cell}")
            else:
                cells[cell].source = cells[cell].source.replace(old, new)


def _graded(source: str, old: str, new: str) -> str:
    """A graded cell with another check."""
    source = re.sub(r"^from nanogrpo\.teach\.check import (\([^)]*\)|.*)\n\n", "", source)
    call = rf"\b{old}\("
    if not re.search(call, source):
        raise VariantError(f"{old} is not called in {source!r}")
    for name in DROPPED.get(new, ()):
        source = re.sub(rf"^ *{name}\(.*\)\n", "", source, flags=re.MULTILINE)
    source = re.sub(call, f"{new}(", source)
    used = sorted(set(re.findall(r"\bcheck_\w+(?=\()", source)))
    places = {"variants": [n for n in used if n in OWN], "check": [n for n in used if n not in OWN]}
    kept = [(at, ", ".join(names)) for at, names in places.items() if names]
    imports = [f"from nanogrpo.teach.{at} import {names}\n" for at, names in kept]
    return "".join(sorted(imports)) + "\n" + source
