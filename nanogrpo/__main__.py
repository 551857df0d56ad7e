"""The command line: ``python -m nanogrpo demo`` and ``python -m nanogrpo plot``."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from nanogrpo import grpo
from nanogrpo.checkpoint import save_model
from nanogrpo.errors import NanoGRPOError
from nanogrpo.evaluate import sample_texts
from nanogrpo.metrics import logged, read_csv
from nanogrpo.recipes import measure, new_policy, sft_until, test_problems
from nanogrpo.tasks import Addition, exact_match

KS = (1, 4, 16)


def demo(args: argparse.Namespace) -> None:
    """SFT until a tiny GPT is half right at addition, then GRPO; results go to the folder ``args.out``."""
    task, out = Addition(), Path(args.out)
    model = new_policy(task, args.seed, pick_device(args.device))
    problems = test_problems(task)
    config = grpo.GRPOConfig(task.max_new_tokens, max_steps=args.steps, seed=args.seed)
    rows = logged(
        grpo.train(model, task.tokenizer, task.split()[0], exact_match, config), out / "metrics.csv"
    )
    (out / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")

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
    save_model(out / "model.safetensors", model, task.tokenizer, seed=str(args.seed))
    save_plot({"GRPO": read_csv(out / "metrics.csv")}, ["reward", "entropy"], out / "curves.png")
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
    save_plot({Path(path).stem: read_csv(path) for path in args.logs}, [args.metric], Path(args.out), args.x)
    print(f"{args.metric} of {len(args.logs)} log(s) is drawn in {args.out}")


def save_plot(runs: dict, metrics: list[str], path: Path, x: str = "step") -> None:
    """Draw and save; the plotting library is loaded here, since nothing else needs it."""
    try:
        from nanogrpo.show.plotting import plot_runs
    except ImportError:
        sys.exit("drawing needs matplotlib: pip install 'nanogrpo[plot]'. The logs are written all the same.")
    plot_runs(runs, metrics, x).savefig(path, dpi=150)


def pick_device(name: str) -> str:
    """``auto`` is a CUDA GPU where there is one, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and run the command; a known error is one line, not a traceback."""
    parser = argparse.ArgumentParser(prog="python -m nanogrpo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("demo", help="a tiny GPT learns addition: SFT, then GRPO; about a minute")
    command.add_argument("--out", default="runs/demo", help="folder of the run (default: runs/demo)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, default=200, help="GRPO steps (default: 200)")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    command.set_defaults(run=demo)
    command = commands.add_parser("plot", help="draw a metric of one or more logs")
    command.add_argument("logs", nargs="+", metavar="log.csv")
    command.add_argument("--metric", default="reward", help="a column of the logs (default: reward)")
    command.add_argument(
        "--x", default="step", help="a column for the x axis: step or num_tokens (default: step)"
    )
    command.add_argument("--out", default="plot.png", help="the PNG to write (default: plot.png)")
    command.set_defaults(run=plot)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the models are so small that a second thread costs more than it brings
    try:
        args.run(args)
    except NanoGRPOError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the logs hold every finished step")


if __name__ == "__main__":
    main()
