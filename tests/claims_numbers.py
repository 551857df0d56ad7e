"""Numbers of the page on the first sketch that are computed: from the studies' logs, the code, a shell."""

import inspect
import io
import json
import re
import shlex
import tokenize
from functools import cache
from pathlib import Path

import pandas as pd

from nanogrpo.losses import grpo_loss
from nanogrpo.show import stats
from nanogrpo.show.seeds import curves, final, study_runs
from nanogrpo.show.studies import study_log
from nanogrpo.weights import load

ROOT = Path(__file__).parents[1]
COMPARISON = "ppo_vs_grpo/comparison"
# Which logs a number is made from, for its link.
LOGS = {
    "handicap": ["ppo_vs_grpo/ablation"],
    "failures": [COMPARISON, "ppo_vs_grpo/tuning"],
    "mean_loss": [COMPARISON],
    "quickstart_gain": ["quickstart"],
    "reward_model": ["reward_model"],
    "same_first": [COMPARISON],
    "runs": ["ppo_vs_grpo"],
    "start_kl": [COMPARISON],
    "columns": [COMPARISON],
}


def shown(value: stats.Interval) -> str:
    digits = 1 if abs(value.estimate) >= 0.2 else 3 if abs(value.estimate) >= 0.01 else 5
    return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*value, d=digits)


@cache
def frame(name: str) -> pd.DataFrame:
    return study_runs(name)


def measured(phase: str, run: str, metric: str) -> pd.Series:
    """A metric of a run, one number a seed: at the end, over the way, or over the last five steps."""
    if metric == "success":
        return 100 * final(frame(f"{phase}/success"), run)
    if metric == "area":
        return 100 * curves(frame(f"{phase}/success"), run, "success").iloc[1:].mean()
    if metric == "kl":
        return curves(frame(f"{phase}/success"), run, "kl").iloc[-1]
    return curves(frame(f"{phase}/metrics"), run, metric).iloc[-5:].mean()


def gap(*args: str) -> stats.Interval:
    """Paired difference of two runs, t-interval at 95 %: ``gap(phase, a, b, metric)``, or with two phases."""
    *phases, a, b, metric = args
    return stats.paired_difference(measured(phases[0], a, metric), measured(phases[-1], b, metric))


def paper(key: str) -> tuple[str, str]:
    """Year and arXiv number of an entry of the bibliography."""
    entry = re.search(
        rf"@\w+{{{key},(.*?)\n}}", (ROOT / "book" / "references.bib").read_text("utf-8"), re.DOTALL
    )[1]
    return tuple(re.search(rf"{field}\s*= {{([\d.]+)}}", entry)[1] for field in ("year", "eprint"))


def handicap() -> stats.Interval:
    """One advantage for the whole answer less GAE, widened for the eight comparisons of the ablation."""
    runs = (measured("ppo_vs_grpo/ablation", run, "success") for run in ("return-minus-value", "full"))
    others = frame("ppo_vs_grpo/ablation/success")["run"].nunique() - 1
    return stats.paired_difference(*runs, 1 - 0.05 / others)


def year(key: str) -> str:
    return paper(key)[0]


def size() -> tuple[str, str]:
    lines = re.search(r"(\d+) lines of plain PyTorch", (ROOT / "README.md").read_text("utf-8"))[1]
    return lines, f"{sum(p.numel() for p in load('addition')[0].parameters()):,}"


def memory() -> tuple[str, float]:
    """PPO with four networks: how many, and all it keeps against training one network alone."""
    from claims_page import html_table

    ppo, alone = (
        html_table("ppo-vs-grpo", "compare-05", row, column)
        for row, column in (("PPO, learned reward", 4), ("GRPO, verifiable reward, no KL", 5))
    )
    return ppo, 1 / float(alone)


def failures() -> tuple[str, str]:
    """Runs that ended below their start, at the tuned rates and at the largest."""

    def count(data: pd.DataFrame) -> str:
        ends = data[data["step"] == data["step"].max()]
        return f"{(ends['success'] < data['success'].iloc[0]).sum()} of {len(ends)}"

    tuning = frame("ppo_vs_grpo/tuning/success")
    return count(frame(f"{COMPARISON}/success")), count(tuning[tuning["run"].str.contains("lr0.0008")])


def loss_lines() -> int:
    """Lines of ``grpo_loss`` that hold code: no docstring, comment or empty line."""
    source = inspect.getsource(grpo_loss).replace(inspect.getdoc(grpo_loss) or "", "")
    source = re.sub(r'r?"""(?:.|\n)*?"""', "0", source)
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({t.start[0] for t in tokens if t.type not in layout and t.string.strip()})


def mean_loss() -> stats.Interval:
    return stats.mean(curves(frame(f"{COMPARISON}/metrics"), "grpo", "loss").mean())


def quickstart_gain() -> stats.Interval:
    """Accuracy after GRPO less after SFT, points, at the quickstart's own learning rate."""
    log = pd.read_csv(study_log("quickstart/results.csv"))
    log = log[log["learning_rate"] == log["learning_rate"].min()]
    return stats.paired_difference(100 * log["accuracy after GRPO"], 100 * log["accuracy after SFT"])


def reward_model() -> str:
    log = pd.read_csv(study_log("reward_model/results.csv"))
    value = stats.mean(log[log["pairs"] == 10000]["accuracy_judge"])
    return f"{value.estimate:.1%} [{value.low:.1%}, {value.high:.1%}]"


def same_first() -> tuple[int, int]:
    first = [curves(frame(f"{COMPARISON}/metrics"), run, "reward").iloc[0] for run in ("grpo", "ppo")]
    return int((first[0] == first[1]).sum()), len(first[0])


def runs() -> int:
    return sum(
        frame(f"ppo_vs_grpo/{path.parent.name}/success").groupby(["run", "seed"]).ngroups
        for path in (ROOT / "book" / "studies" / "ppo_vs_grpo").glob("*/success.csv")
    )


def start_kl() -> float:
    data = frame(f"{COMPARISON}/success")
    return data[data["step"] == 0]["kl"].abs().max()


def figures() -> int:
    """Stored figures of all chapters with a caption and an alternative text."""
    count = 0
    for path in (ROOT / "book").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            meta = cell["metadata"].get("mystnb", {})
            count += bool(meta.get("figure", {}).get("caption") and meta.get("image", {}).get("alt"))
    return count


def columns() -> tuple[int, int]:
    """Metrics that the explorer of the comparison names, and how many of them its log has."""
    text = (ROOT / "book" / "ppo-vs-grpo.ipynb").read_text(encoding="utf-8")
    (source,) = ("".join(c["source"]) for c in json.loads(text)["cells"] if c["id"] == "compare-18b")
    asked = re.findall(r'"(\w+)"', source.splitlines()[0])
    return len({*frame(f"{COMPARISON}/metrics").columns}.intersection(asked)), len(asked)


def torch_needed() -> str:
    return re.search(r'"(torch[^"]*)"', (ROOT / "pyproject.toml").read_text("utf-8"))[1]


def shell() -> str:
    """What pip is asked for by the unquoted command, when the shell has taken the redirection out of it."""
    words = list(shlex.shlex("pip install torch>=2.2 pandas matplotlib", posix=True, punctuation_chars=True))
    at = words.index(">")
    return f"`{' '.join(words[2:at] + words[at + 2 :])}`, and a file `{words[at + 1]}`"


def parity() -> int:
    golden = json.loads((ROOT / "tests" / "parity" / "golden.json").read_text("utf-8"))
    return len(golden["cases"])
