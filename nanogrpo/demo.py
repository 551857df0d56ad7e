"""The commands that show something: ``demo`` trains and compares, ``plot`` draws logs."""

import argparse
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanogrpo import commands, tasks
from nanogrpo.checkpoint import from_json, load_model, write_whole
from nanogrpo.errors import LogError, NanoGRPOError, OptionError, RunError
from nanogrpo.evaluate import sample_texts
from nanogrpo.job import pick_device, printable
from nanogrpo.metrics import read_csv
from nanogrpo.options import Options, option
from nanogrpo.recipes import measure, points, test_problems
from nanogrpo.runs import ASKED, CONFIG, CURVES, LOG, MODEL, TABLE, Folder, as_json
from nanogrpo.tasks import Task

DEMO = f"a tiny GPT learns {tasks.usual().name}: SFT, then GRPO; about a minute"
PLOT = "draw a metric of one or more logs"
KS = (1, 4, 16)


@dataclass(frozen=True)
class DemoOptions(Options):
    """Options of ``demo``."""

    task: str = option(tasks.usual().name, help="what is learned.")
    seed: int = option(0, help="of both runs.", low=0, high=2**63 - 1)
    steps: int = option(200, help="GRPO steps; a curve needs one.", low=1)


@dataclass(frozen=True)
class PlotOptions(Options):
    """Options of ``plot``."""

    metric: str = option("reward", help="a column of the logs.")
    x: str = option("step", help="the x axis: step or num_tokens.")


def demo(args: Namespace) -> None:
    """SFT until a tiny GPT is half right, then GRPO; log, weights, curves and a table go to ``args.out``.

    Two runs like those of the commands, the first of them in the folder ``sft`` below. So a demo that was
    stopped is taken up again by ``--resume``, and a run that is there is not replaced unasked.
    """
    given = {name: value for name, value in vars(args).items() if name in ("task", "seed", "steps")}
    options, device = DemoOptions.of(given), pick_device(args.device)
    out, first = Path(args.out), Path(args.out) / "sft"
    with Folder(args.out) as folder, Folder(first) as below:
        if args.resume:
            options = taken_up(folder, given)
        else:
            tasks.find(options.task)
            for place in (folder, below):
                if not args.overwrite:
                    place.check_free()
            (folder / ASKED).unlink(missing_ok=True)  # first, so that what is left cannot be taken up
            for place in (folder, below):
                place.clear()
            begin(folder, options)
    task = tasks.find(options.task)
    rule = next(iter(task.rules))
    for command, path, own in (
        ("sft", first, {}),
        ("grpo", out, {"model": str(first), "reward": [rule], "max_steps": options.steps}),
    ):
        resume = args.resume and os.path.exists(path / CONFIG)
        common = {
            "task": task.name,
            "seed": options.seed,
            "device": device,
            "resume": resume,
            "overwrite": False,
        }
        commands.train(Namespace(command=command, out=str(path), **common, **own))
    table = answers_table(task, [load_model(path / MODEL, device)[0] for path in (first, out)])
    write_whole(out / TABLE, f"{table}\n".encode())
    print(f"\n{table}\n\nLog, weights and this table are in {out}/", flush=True)
    save_plot({"GRPO": read_csv(out / LOG)}, ["reward", "entropy"], out / CURVES)
    print(f"The curves are in {out / CURVES}")


def begin(folder: Folder, options: DemoOptions) -> None:
    """Write down what the demo was asked for, before its first run; a failure leaves no new folder."""
    new = not os.path.exists(folder.path)
    try:
        write_whole(folder / ASKED, as_json(asdict(options)))
    except NanoGRPOError:
        if new:
            with suppress(OSError):
                folder.path.rmdir()
        raise


def taken_up(folder: Folder, given: Mapping[str, Any]) -> DemoOptions:
    """The options of a demo that goes on; only its number of steps may be another.

    Raises:
        RunError: there is none, it is damaged, or it was asked for otherwise.
    """
    try:
        before = DemoOptions.of(from_json((folder / ASKED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"cannot resume {folder}: no readable {ASKED} there ({error}); leave --resume out, or start "
            "anew with --overwrite"
        ) from error
    for name in ("task", "seed"):
        if given.get(name, getattr(before, name)) != getattr(before, name):
            raise RunError(
                f"{folder} was started with {name}={getattr(before, name)!r} and cannot go on with "
                f"{given[name]!r}; leave the option out, or choose another --out"
            )
    now = DemoOptions.of({**asdict(before), **given})
    if now != before:
        write_whole(folder / ASKED, as_json(asdict(now)))
    return now


def answers_table(task: Task, models: list) -> str:
    """A table of sampled answers and of how good they are, after SFT and after GRPO."""
    problems = test_problems(task)
    how = {"max_new_tokens": task.max_new_tokens}
    shown = [(row["prompt"].strip(), row["answer"]) for row in problems[:8]]
    columns = [
        sample_texts(m, task.tokenizer, [row["prompt"] for row in problems[:8]], **how) for m in models
    ]
    if task.learned_reward:
        scores = [points(model, task, problems) for model in models]
        kind = "%.2f"
    else:
        columns = [
            [f"{t} {'right' if t == a else 'wrong'}" for t, (_, a) in zip(c, shown, strict=True)]
            for c in columns
        ]
        scores = [measure(model, task, problems, KS) for model in models]
        kind = "%.1f%%"
    rows = [
        ("problem", "after SFT", "after GRPO"),
        *zip((prompt for prompt, _ in shown), *columns, strict=True),
    ]
    scale = 1 if task.learned_reward else 100
    rows += [(name, *(kind % (scale * score[name]) for score in scores)) for name in scores[0]]
    widths = [max(12, *(len(row[i]) + 2 for row in rows)) for i in range(3)]
    lines = [f"{row[0]:<{widths[0]}}{row[1]:>{widths[1]}}{row[2]:>{widths[2]}}" for row in rows]
    return "\n".join([*lines, f"({', '.join(scores[0])}: of {len(problems)} problems never trained on)"])


def plot(args: argparse.Namespace) -> None:
    """Draw one metric of several logs into a picture."""
    if odd := [name for name in (*args.logs, args.out) if not name or "\0" in name]:
        raise LogError(f"{odd[0]!r} is no name of a file; name a log, or a run's folder")
    paths = [Path(name) / LOG if os.path.isdir(name) else Path(name) for name in args.logs]
    short = [path.parent.name if path.name == LOG else path.stem for path in paths]
    names = [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    if len(set(names)) < len(names):
        raise OptionError(f"one of the logs {', '.join(names)} is given twice; give each once")
    names = [printable(name).replace("$", r"\$") for name in names]  # no formula
    columns = {name: read_csv(path) for name, path in zip(names, paths, strict=True)}
    options = PlotOptions.of({name: value for name, value in vars(args).items() if name in ("metric", "x")})
    save_plot(columns, [options.metric], Path(args.out), options.x, caption=True)
    print(f"{options.metric} of {len(columns)} log(s) is drawn in {args.out}")


def save_plot(columns: dict, metrics: list[str], path: Path, x: str = "step", caption: bool = False) -> None:
    """Draw and save; the plotting library is loaded here, since nothing else needs it."""
    try:
        from nanogrpo.show.plotting import describe_runs, plot_runs
    except ImportError as error:
        raise LogError(f"drawing needs matplotlib ({error}): pip install 'nanogrpo[plot]'") from error
    if not path.name or path.is_dir():
        raise OptionError(f"cannot draw {path}: it is a folder; name a picture in it, such as plot.png")
    figure = plot_runs(columns, metrics, x)
    if caption:
        describe_runs(figure, columns, metrics[0], x)
    picture, kind = io.BytesIO(), path.suffix.removeprefix(".") or "png"
    try:
        figure.savefig(picture, dpi=150, bbox_inches="tight", format=kind)
    except (ValueError, RuntimeError, OSError, ImportError) as error:  # a kind that is not known, or not here
        raise OptionError(f"cannot draw {path}: {error}; name it as a .png") from error
    write_whole(path, picture.getvalue())
