"""The commands that show something: ``demo`` trains and compares, ``plot`` draws logs."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from nanogrpo import grpo, runs
from nanogrpo.checkpoint import save_model
from nanogrpo.commands import pick_device
from nanogrpo.evaluate import sample_texts
from nanogrpo.metrics import logged, read_csv
from nanogrpo.recipes import measure, new_policy, sft_until, test_problems
from nanogrpo.runs import LOG, MODEL
from nanogrpo.tasks import Addition, exact_match

KS = (1, 4, 16)


def demo(args: argparse.Namespace) -> None:
    """SFT until a tiny GPT is half right at addition, then GRPO; results go to the folder ``args.out``."""
    task, out = Addition(), Path(args.out)
    model = new_policy(task, args.seed, pick_device(args.device))
    problems = test_problems(task)
    config = grpo.GRPOConfig(task.max_new_tokens, max_steps=args.steps, seed=args.seed)
    rows = logged(grpo.train(model, task.tokenizer, task.split()[0], exact_match, config), out / LOG)
    runs.write_settings(out, asdict(config))

    with tqdm(desc="SFT until 30 % of the samples are right") as bar:
        for row in logged(sft_until(model, task, seed=args.seed), out / "sft.csv"):
            bar.update()
            bar.set_postfix(accuracy=f"{row['accuracy']:.2f}")
    prompts = [row["prompt"] for row in problems[:8]]
    before = (
        measure(model, task, problems, KS),
        sample_texts(model, task.tokenizer, prompts, max_new_tokens=4),
    )
    with tqdm(rows, desc="GRPO", total=config.max_steps) as bar:
        for row in bar:
            bar.set_postfix(reward=f"{row['reward']:.2f}", entropy=f"{row['entropy']:.2f}")
    after = measure(model, task, problems, KS), sample_texts(model, task.tokenizer, prompts, max_new_tokens=4)

    table = compare(problems, before, after)
    (out / "samples.txt").write_text(table + "\n")
    save_model(out / MODEL, model, task.tokenizer, seed=str(args.seed))
    save_plot({"GRPO": read_csv(out / LOG)}, ["reward", "entropy"], out / "curves.png")
    print(f"\n{table}\n\nLog, curves, weights and this table are in {out}/")


def compare(problems: list[dict], before: tuple[dict, list[str]], after: tuple[dict, list[str]]) -> str:
    """A table of sampled answers and of accuracies, before and after GRPO."""
    lines = [f"{'problem':<12}{'after SFT':>12}{'after GRPO':>12}"]
    for row, old, new in zip(problems, before[1], after[1], strict=False):
        marks = [text + (" right" if text == row["answer"] else " wrong") for text in (old, new)]
        lines.append(f"{row['prompt']:<12}{marks[0]:>12}{marks[1]:>12}")
    lines += [f"{name:<12}{value:>12.1%}{after[0][name]:>12.1%}" for name, value in before[0].items()]
    return "\n".join([*lines, f"(accuracy, greedy and pass@k on {len(problems)} problems never trained on)"])


def plot(args: argparse.Namespace) -> None:
    """Draw one metric of several logs into a PNG."""
    paths = [Path(name) / LOG if Path(name).is_dir() else Path(name) for name in args.logs]
    short = [path.parent.name if path.name == LOG else path.stem for path in paths]
    names = [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    columns = dict(zip(names, map(read_csv, paths), strict=True))
    save_plot(columns, [args.metric], Path(args.out), args.x, caption=True)
    print(f"{args.metric} of {len(columns)} log(s) is drawn in {args.out}")


def save_plot(columns: dict, metrics: list[str], path: Path, x: str = "step", caption: bool = False) -> None:
    """Draw and save; the plotting library is loaded here, since nothing else needs it."""
    try:
        from nanogrpo.show.plotting import describe_runs, plot_runs
    except ImportError:
        sys.exit("drawing needs matplotlib: pip install 'nanogrpo[plot]'. The logs are written all the same.")
    figure = plot_runs(columns, metrics, x)
    if caption:
        describe_runs(figure, columns, metrics[0], x)
    figure.savefig(path, dpi=150, bbox_inches="tight")
