"""Write the cheat sheet: formulas from docstrings, options from the configs, identities from the tests.

``python tests/cheat_sheet.py`` writes the tables into ``book/cheat-sheet.md``, between the comments that name
them. A test holds the page to what is written here; only which functions are shown, and in which order, is
chosen by hand.
"""

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

from variant_tables import DEFAULTS, DICTIONARY, defaults, names, parts, table

from nanogrpo.losses import aggregate

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "book" / "cheat-sheet.md"
IDENTITY = re.compile(r"test_(2[A-E]_\d\d)_")
# Function: the options that lead to it, or the name of a variant. TRL's names are looked up for both.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "advantages.group_advantages": ("scale_rewards",),
    "advantages.leave_one_out": ("rloo",),
    "advantages.global_advantages": ("reinforce_pp_baseline",),
    "advantages.gae": (),
    "advantages.token_rewards": (),
    "losses.reinforce_loss": (),
    "losses.importance_ratio": ("importance_sampling_level",),
    "losses.clipped_surrogate": ("clip_low", "clip_high", "delta"),
    "losses.grpo_loss": ("grpo",),
    "losses.cispo_surrogate": ("cispo",),
    "surrogates.sapo_surrogate": ("sapo",),
    "surrogates.gmpo_surrogate": ("gmpo",),
    "surrogates.vespo_surrogate": ("vespo",),
    "kl.kl_k1": (),
    "kl.kl_k2": (),
    "kl.kl_k3": ("beta",),
    "kl.kl_exact": (),
    "kl.entropy": ("entropy_coef",),
    "kl.entropy_sampled": (),
    "offpolicy.sampler_weights": ("sampler_correction", "sampler_clip_max"),
    "offpolicy.off_policy_mask": ("off_policy_mask_threshold",),
    "selection.top_entropy": ("top_entropy_quantile",),
    "losses.value_loss": (),
    "losses.bradley_terry_loss": (),
    "losses.sft_loss": (),
}


def formula(path: str) -> str:
    """The first formula of a docstring, as formulas within a line of a Markdown table."""
    module, name = path.split(".")
    text = inspect.getdoc(getattr(importlib.import_module(f"nanogrpo.{module}"), name))
    found = re.search(r"\.\. math::\s*(.*?)\n\n(?=\S)", text, re.DOTALL)[1]
    found = re.sub(r"\|o_i\|", r"\\lvert o_i\\rvert", " ".join(found.split())).replace(r"\|", r"\Vert ")
    return " ".join(f"${part.strip()}$" for part in re.split(r",\s*\\qquad", found)).replace("|", r"\vert ")


@cache
def identities() -> dict[str, list[str]]:
    """Of each function: the numbers of the identities whose tests call it."""
    found: dict[str, set[str]] = {}
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            number = isinstance(node, ast.FunctionDef) and IDENTITY.match(node.name)
            if number:
                called = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
                for name in called:
                    found.setdefault(name, set()).add(number[1])
    return {name: sorted(numbers) for name, numbers in found.items()}


def option(name: str) -> str:
    """An option of ours, or a variant, and what TRL calls it where that is something else."""
    trl = DICTIONARY[name][1] if name in DICTIONARY else {mine: f"`{trl}`" for mine, trl, _ in DEFAULTS}[name]
    return f"`{name}`" if trl == f"`{name}`" else f"`{name}`: {trl}"


def formulas() -> str:
    rows = []
    for path, own in FUNCTIONS.items():
        name = path.split(".")[1]
        badge = ", ".join(identities().get(name, []))
        said = ", ".join(option(name) for name in own)
        rows.append([formula(path), f"{{py:func}}`~nanogrpo.{path}`", said, badge])
    return table(["formula", "function", "option here: in TRL", "identities"], rows)


def averages() -> str:
    """The rows of the table in the docstring of ``aggregate``."""
    lines = inspect.getdoc(aggregate).splitlines()
    rule = [i for i, line in enumerate(lines) if line.startswith("====")]
    ends = [match.span() for match in re.finditer("=+", lines[rule[0]])]
    cells = [[line[a:].strip() if b == ends[-1][1] else line[a:b].strip() for a, b in ends]
             for line in lines[rule[1] + 1 : rule[2]]]  # fmt: skip
    rows = [[cell.replace("``", "`") for cell in row] for row in cells]
    return table(["`aggregation`", "weight of a token of completion i", "who", "TRL's `loss_type`"], rows)


def short_names() -> str:
    """The dictionary of variants, without papers and without the names of verl and of OpenRLHF."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in names().splitlines()]
    kept = "name", "options here", "TRL", "numbers"
    columns = [next(i for i, title in enumerate(head) if title.startswith(word)) for word in kept]
    return table(["variant", "options here", "TRL", "numbers"], [[r[i] for i in columns] for r in rows])


def short_defaults() -> str:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in defaults().splitlines()]
    return table(["here", "TRL"], [row[:2] for row in lines[2:] if row[1]])


TABLES = {"formulas": formulas, "averages": averages, "variants": short_names, "defaults": short_defaults}


def write(text: str) -> str:
    """The page with the tables of today."""
    for name, made in TABLES.items():
        before, rest = text.split(f"<!-- table: {name} -->")
        text = f"{before}<!-- table: {name} -->\n\n{made()}\n\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return text


__all__ = ["PAGE", "TABLES", "parts", "write"]

if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
