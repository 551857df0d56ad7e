"""Plants mistakes in copies of the package and shows which cell of a chapter turns red through nbval.

    python tests/planted.py             all of them
    python tests/planted.py k3 clip     those whose name holds one of these words

Comparisons that allow for other machines' rounding must not allow for mistakes. Most of the mistakes are the
museum's. The last ones are not in it, and were written before it was seen what the comparison catches: the
small ones above all, which change a run by less than its seeds do. The environment is passed on, so in
the foreign mode (``make test-foreign``) the copies run in it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

from nanogrpo.teach.museum.pieces import PIECES, Piece, planted

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from corpus import missing, reads_corpus  # noqa: E402


def own(name, file, right, wrong):
    return Piece(name, file, ((right, wrong),), "", "", "", "")


OWN = (
    own("advantages divided by G - 1", "advantages.py",
        "advantages = rewards - rewards.mean(1, keepdim=True)  # (P, G)",
        "advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.shape[1] - 1)"),
    own("group mean over G - 1", "advantages.py",
        "advantages = rewards - rewards.mean(1, keepdim=True)  # (P, G)",
        "advantages = rewards - rewards.sum(1, keepdim=True) / (rewards.shape[1] - 1)"),
    own("leave-one-out divides by G", "advantages.py",
        "- rewards) / (rewards.shape[1] - 1)  # (P, G)", "- rewards) / rewards.shape[1]  # (P, G)"),
    own("k2 without its half", "kl.py", "return 0.5 * _delta(", "return _delta("),
    own("mask one token short", "tokenizer.py", "        return ids, mask\n",
        "        mask = mask & mask.roll(-1, 1)\n        return ids, mask\n"),
    own("clip in [0.8, 1.3]", "losses.py",
        "    clip_high: float = 0.2,\n    delta: float | None = None,\n    beta",
        "    clip_high: float = 0.3,\n    delta: float | None = None,\n    beta"),
    own("means over completions, not tokens", "losses.py",
        "return per_token.sum() / n.num_tokens\n", "return per_token.sum() / n.num_sequences\n"),
    own("GAE discounts twice", "advantages.py",
        "delta + gamma * lam * next_advantage", "delta + lam * lam * next_advantage"),
    own("whitening keeps the mean", "advantages.py",
        "(advantages - kept.mean()) / (kept.std(correction=0) + eps)",
        "advantages / (kept.std(correction=0) + eps)"),
    own("Adam without the first correction", "optim.py", "self.lr / (1 - beta1**self.steps)", "self.lr"),
    own("Adam's second average too short", "optim.py", "betas: tuple[float, float] = (0.9, 0.999)",
        "betas: tuple[float, float] = (0.9, 0.9)"),
    own("attention without its scale", "model.py",
        "            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)"),
    own("attention sees the next token", "model.py",
        "            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "            y = F.scaled_dot_product_attention(\n"
        "                q, k, v, attn_mask=torch.ones(T, T, dtype=torch.bool).tril(1)\n            )"),
    own("samples one token too high", "rollout.py",
        "tokens = torch.searchsorted(cdf, uniforms.to(cdf.dtype).unsqueeze(-1) * cdf[..., -1:])",
        "tokens = torch.searchsorted(cdf, uniforms.to(cdf.dtype).unsqueeze(-1) * cdf[..., -1:])\n"
        "    tokens = (tokens + 1) % logits.shape[-1]"),
    own("pass@k as if drawn with replacement", "evaluate.py",
        "return 1 - comb(n - c, k) / comb(n, k)", "return 1 - (1 - c / n) ** k"),
)  # fmt: skip

# The chapter that is to notice it, and how many of its code cells are enough (None: all of them).
NOTICED_BY = {
    "k3 reversed": ("grpo", 5),
    "penalty with the wrong sign": ("grpo", 5),
    "k1 as the loss": ("grpo", 5),
    "Bessel's std where population is meant": ("grpo", 5),
    "group mean over the wrong axis": ("grpo", 5),
    "std of the batch where the group's is meant": ("grpo", 5),
    "the clip's min turned into max": ("grpo", 5),
    "clip without the min": ("grpo", 5),
    "ratio against itself": ("grpo", 5),
    "sequence mean over padding": ("grpo", 5),
    "advantages divided by G - 1": ("grpo", 5),
    "group mean over G - 1": ("grpo", 5),
    "clip in [0.8, 1.3]": ("grpo", 5),
    "own reward in the leave-one-out baseline": ("policy-gradients", 12),
    "leave-one-out divides by G": ("policy-gradients", 12),
    "sign of the loss": ("grpo", 5),
    "k1 reversed": ("kl", 2),
    "k2 without its half": ("kl", 2),
    "exact KL in the wrong order": ("kl", 2),
    "reference not detached": ("kl", None),
    "Adam without the first correction": ("kl", 9),
    "Adam's second average too short": ("kl", 9),
    "entropy averaged over the vocabulary": ("entropy", 6),
    "proxy in place of the entropy": ("entropy", 6),
    "GAE without (1 - done)": ("ppo", 20),
    "GAE discounts twice": ("ppo", 10),
    "whitening keeps the mean": ("ppo", 26),
    "score one token after the end": ("ppo", 26),
    "value after the token": ("ppo-vs-grpo", 3),
    "Bradley-Terry reversed": ("reward-model", 10),
    "score read at the padding": ("reward-model", 14),
    "target shift off by one": ("tiny-gpt", 36),
    "attention without its scale": ("tiny-gpt", 9),
    "attention sees the next token": ("tiny-gpt", 14),
    "samples one token too high": ("tiny-gpt", 28),
    "mask one token short": ("sft", 9),
    "pad equal to eos": ("masks", 3),
    "fast path: EOS left out of the mask": ("length-bias", 9),
    "mask is every token but EOS": ("masks", 3),
    "means over completions, not tokens": ("length-bias", 5),
    "constant length is the padded length": ("length-bias", 5),
    "pass@k as if drawn with replacement": ("quickstart", 6),
    "new log-probs at temperature 1": ("scored", None),
}
BY_NAME = {fault.name: fault for fault in (*PIECES, *OWN)}
HARMLESS = own("harmless", "kl.py", "return torch.expm1(delta) - delta", "return -delta + torch.expm1(delta)")


# The first line of a copy's first cell; a kernel finds packages in its own folder first.
COPY = 'assert __import__("nanogrpo").__file__.startswith(__import__("os").getcwd()), "not the copy"\n'


def red(fault, chapter, cells=None):
    """What nbval says of a chapter's first code cells on a package with a fault; '' if all is green."""
    return reds([(fault, chapter, cells)])[0]


def reds(jobs):
    """The same of many (fault, chapter, cells), by one run of pytest; each has a package and a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        unwanted = shutil.ignore_patterns("__pycache__", "vendor")
        for part in ("tests", "book/_ext"):
            shutil.copytree(ROOT / part, copy / part, ignore=unwanted)
        for part in ("book/conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / part, copy / part)
        paths = []
        for number, (fault, chapter, cells) in enumerate(jobs):
            home = copy / "book" / f"fault{number}"
            shutil.copytree(ROOT / "nanogrpo", home / "nanogrpo", ignore=unwanted)
            os.symlink(ROOT / "book" / "studies", home / "studies")
            victim = home / "nanogrpo" / fault.file
            victim.write_text(planted(victim.read_text(encoding="utf-8"), fault), encoding="utf-8")
            notebook = start_of(chapter, cells)
            for cell in filter(shows_source, notebook.cells):  # results must give it away, not the text
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "nbval-ignore-output"]
            first = next(cell for cell in notebook.cells if cell.cell_type == "code")
            first.source = COPY + first.source
            nbformat.write(notebook, home / f"{chapter}.ipynb")
            paths.append(f"book/fault{number}/{chapter}.ipynb")
        return said(copy, paths)


def start_of(chapter, cells=None):
    """A chapter's notebook up to so many cells of code."""
    notebook = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    if cells is not None and cells < len(code):
        notebook.cells = notebook.cells[: code[cells]]
    return notebook


def shows_source(cell):
    return any("text/markdown" in output.get("data", ()) for output in cell.get("outputs", ()))


def said(copy, paths):
    """The failure of each chapter in short: the first red cell and the reason."""
    flags = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "3000", "-q", "--color=no"]
    flags += ["--nbval-kernel-startup-timeout", "900"]
    flags += ["-p", "no:cacheprovider", "-p", "no:xdist", "--nbval-sanitize-with", "tests/nbval_sanitize.cfg"]
    flags += [f"--junitxml={copy / 'report.xml'}", *["-x"] * (len(paths) == 1)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *flags, *paths],
        cwd=copy, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if run.returncode not in (0, 1):
        raise RuntimeError(f"nbval could not run {paths}\n{run.stdout[-3000:]}{run.stderr[-2000:]}")
    found = {path: "" for path in paths}
    cases = list(ElementTree.parse(copy / "report.xml").iter("testcase"))
    for path in paths:
        name = path.replace("/", ".")
        mine = [case for case in cases if case.get("classname") == name]
        assert mine, f"no cell of {path} was run: {run.stdout[-3000:]}"
        failures = [part.text for case in mine for part in (*case.findall("failure"), *case.findall("error"))]
        found[path] = in_short(path, failures[0]) if failures else ""
    return list(found.values())


def in_short(path, failure):
    """The cell and the reason, from what nbval says of it."""
    output = re.sub(r"\x1b\[[\d;]*m|#x1B\[[\d;]*m", "", failure)
    red_cell = r"^Cell (\d+): (Cell outputs differ|Cell execution caused an exception)"
    cell = re.search(red_cell, output, re.MULTILINE)
    # Red for another reason than the one that is looked for: the museum plants, too, and finds its text gone.
    if not cell or "FaultError" in output or "not the copy" in output.split("Traceback:")[-1]:
        raise RuntimeError(f"nbval could not run {path}\n{output[-3000:]}")
    lines = [line.strip() for line in output.split("Traceback:")[-1].splitlines() if line.strip()]
    wrong = [line for line in lines if re.match(r"\w*(Error|Failed)\b|text/|stdout", line)]
    return f"cell {cell[1]}: {(wrong or lines)[-1]}"


def plantable(names):
    """The names whose chapter can run here; of the others, in one line, how many and why."""
    without = [name for name in names if reads_corpus(start_of(*NOTICED_BY[name]).cells) and missing()]
    if without:
        print(f"Not planted: {len(without)}, whose chapters need what is not here. {missing()}")
    return [name for name in names if name not in without]


def main(words):
    named = [name for name in NOTICED_BY if not words or any(word.lower() in name.lower() for word in words)]
    chosen = plantable(named)
    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("OMP_NUM_THREADS", "1")))
    with ThreadPoolExecutor(min(2, workers)) as pool:
        jobs = {name: pool.submit(red, BY_NAME[name], *NOTICED_BY[name]) for name in chosen}
        missed = []
        for name, job in jobs.items():
            found = job.result()
            missed += [name] * (not found)
            print(f"{name:44} {NOTICED_BY[name][0]:17} {found[:110] or 'NOT NOTICED'}", flush=True)
    print(f"\n{len(chosen) - len(missed)} of {len(chosen)} turned a chapter red.")
    if missed:
        print("Not noticed:", ", ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
