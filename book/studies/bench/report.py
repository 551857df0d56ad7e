"""The benchmark's log as a table and as a figure; no result is typed by hand.

Run as a script it rewrites results.md and results.svg from results.json.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from contestants import HEADS, LAYERS, SHAPES, V

HERE = Path(__file__).parent
# What is divided by what, and the ratio that the project wants to reach.
RATIOS = [
    ("rollout", "HF generate", "packed", {"A": 2.3, "S": 2.8, "W": None}),
    ("rollout", "HF generate", "simple", {"A": None, "S": None, "W": None}),
    ("rollout", "no cache", "packed", {"A": None, "S": None}),
    ("step", "TRL", "nanogrpo", {"A": 2.0, "S": 2.5, "W": 1.7}),
    ("step", "TRL defaults", "nanogrpo", {"A": None, "S": None}),
    ("step", "TRL KL", "nanogrpo KL", {"A": 1.6, "S": 2.0}),
]


def floor(shape: str, gflops: float, gbs: float) -> dict[str, float]:
    """Seconds that the arithmetic and the reads of a rollout and a step take, at the machine's own rates.

    Counted: every matrix product once (prompts once a group), three times in training; in decoding also the
    read of the weights and of all keys and values, each step. Not counted: softmax, GELU, norms, sampling,
    Python.
    """
    P, G, Tp, T, C = SHAPES[shape]
    B = P * G
    weights = 12 * C * C * LAYERS + C * V
    attention = 4 * C * LAYERS  # FLOP for each pair of query and key
    prompt = 2 * P * Tp * weights + attention * P * Tp * Tp / 2
    completions = 2 * B * (T - 1) * weights + attention * B * (T - 1) * (Tp + T / 2)
    keys = 2 * 4 * C * LAYERS * sum(P * Tp + B * (t + 1) for t in range(T - 1))  # bytes
    rollout = (prompt + completions) / gflops / 1e9 + (keys + 4 * weights * (T - 1)) / gbs / 1e9
    return {"rollout": rollout, "step": rollout + 3 * (prompt + completions) / gflops / 1e9}


def compared(log: dict) -> Iterator[tuple]:
    """Every comparison that the log holds: kind, shape, slow, fast, ratios of the rounds, goal."""
    for kind, slow, fast, wanted in RATIOS:
        for shape, goal in wanted.items():
            rows = log["shapes"].get(shape, {})
            if f"{kind}: {slow}" in rows and f"{kind}: {fast}" in rows:
                a, b = (rows[f"{kind}: {name}"]["seconds"] for name in (slow, fast))
                yield kind, shape, slow, fast, [x / y for x, y in zip(a, b, strict=False)], goal


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def spread(values: list[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def verdict(ratios: list[float], goal: float | None) -> str:
    """Whether the median reached the goal, and if not, by what share of the goal it is short."""
    if goal is None:
        return ""
    short = 1 - statistics.median(ratios) / goal
    return "reached" if short <= 0 else f"{short:.0%} short"


def table(log: dict) -> str:
    """The log as Markdown; nothing in it is typed by hand."""
    out = ["# Benchmark", "", describe(log), "", "Median over the rounds, quartiles in brackets.", ""]
    out += ["| work | shape | rounds | ratio, seconds by seconds | goal | |", "|---|---|---|---|---|---|"]
    for kind, shape, slow, fast, r, goal in compared(log):
        ratio = f"{slow} / {fast} = {spread(r)} | {goal or ''} | {verdict(r, goal)}"
        out.append(f"| {kind} | {shape} | {len(r)} | {ratio} |")
    jobs = log["process"]
    pairs = list(zip(jobs["TRL defaults"], jobs["nanogrpo"], strict=True))
    for what, goal in (("seconds", 2.5), ("peak_mib", 1.67)):
        r = [a[what] / b[what] for a, b in pairs]
        name = "time" if what == "seconds" else "peak memory"
        what = f"whole job, {name} | {jobs['shape']} | {len(pairs)}"
        out.append(f"| {what} | TRL defaults / nanogrpo = {spread(r)} | {goal} | {verdict(r, goal)} |")
    out += ["", "| work | shape | contestant | seconds | tokens a second | peak MiB |"]
    out += ["|---|---|---|---|---|---|"]
    for shape, rows in log["shapes"].items():
        P, G, _, T, _ = SHAPES[shape]
        for name, row in rows.items():
            if "machine" not in name and "parts" not in name:
                kind, who = name.split(": ")
                s = statistics.median(row["seconds"])
                out.append(
                    f"| {kind} | {shape} | {who} | {s:.4f} | {P * G * T / s:,.0f} | {row['peak_mib']} |"
                )
    out += ["", *parts_table(log), "", *floor_table(log)]
    return "\n".join(out) + "\n"


def parts_table(log: dict) -> list[str]:
    out = ["| share of a step | shape | rollout | forward | backward | optimizer | rest |"]
    out += ["|---|---|---|---|---|---|---|"]
    for shape, rows in log["shapes"].items():
        for name, row in rows.items():
            if row["parts"]:
                total = statistics.median(row["seconds"])
                names = ("rollout", "forward", "backward", "optimizer")
                share = [statistics.median(p.get(n, 0.0) for p in row["parts"]) / total for n in names]
                cells = " | ".join(f"{round(100 * s)}%" for s in [*share, 1 - sum(share)])
                out.append(f"| {name.removeprefix('step: ').removesuffix(' parts')} | {shape} | {cells} |")
    return out


def floor_table(log: dict) -> list[str]:
    out = ["| machine | shape | GFLOP/s | GB/s in cache | GB/s memory | floor of a step, s | step / floor |"]
    out += ["|---|---|---|---|---|---|---|"]
    for shape, rows in log["shapes"].items():
        rates = rows["machine: machine"]["extra"]
        names = ("gflops", "cache_gbs", "memory_gbs")
        gflops, cache, memory = (statistics.median(r[name] for r in rates) for name in names)
        least = floor(shape, gflops, cache)["step"]
        above = spread([s / least for s in rows["step: nanogrpo"]["seconds"]])
        out.append(
            f"| one core | {shape} | {gflops:.0f} | {cache:.0f} | {memory:.0f} | {least:.3f} | {above} |"
        )
    return out


def describe(log: dict) -> str:
    h = log["hardware"]
    versions = ", ".join(f"{k} {v}" for k, v in h["versions"].items())
    shapes = "; ".join(
        f"{n}: {P} prompts x {G}, {Tp} + {T} tokens, width {C}" for n, (P, G, Tp, T, C) in SHAPES.items()
    )
    return (
        f"One pinned core of {h['cores']} ({h['cpu']}, cache {h['cache']}), one thread, fp32, "
        f"{LAYERS} layers, {HEADS} heads, {V} tokens. Python {h['python']}, {versions}. "
        f"Commit {h['commit']}. {log['date']}. Shapes: {shapes}."
    )


def draw(log: dict):
    """Every ratio as a dot with its quartiles, and its goal as a mark: a matplotlib figure."""
    import matplotlib.pyplot as plt

    from nanogrpo.show.plotting import COLORS, style

    rows = [
        (f"{kind} {shape}: {slow} / {fast}", ratios, goal)
        for kind, shape, slow, fast, ratios, goal in compared(log)
        if slow != "no cache"
    ]
    figure, ax = plt.subplots(figsize=(7, 0.35 * len(rows) + 1), layout="constrained")
    for y, (_, values, goal) in enumerate(reversed(rows)):
        low, middle, high = quartiles(values)
        ax.plot([low, high], [y, y], color=COLORS[0], linewidth=3, alpha=0.5)
        ax.plot(middle, y, "o", color=COLORS[0], label="measured, with quartiles" if y == 0 else None)
        if goal:
            ax.plot(goal, y, "|", color=COLORS[1], markersize=14, markeredgewidth=2)
    ax.plot([], [], "|", color=COLORS[1], markersize=14, markeredgewidth=2, label="goal")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    ax.set_xlim(left=0)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    style(ax, "how many times faster (ratio of seconds)", "")
    return figure


def save(log: dict, folder: Path) -> None:
    """The table and the figure, as files that are the same whenever the log is."""
    import matplotlib

    (folder / "results.md").write_text(table(log))
    with matplotlib.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none"}):
        draw(log).savefig(folder / "results.svg", metadata={"Date": None})


if __name__ == "__main__":
    log = json.loads((HERE / "results.json").read_text())
    save(log, HERE)
    print(table(log))
