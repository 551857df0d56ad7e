"""Fine-tune (sft), learn a reward (rm), improve (grpo, ppo), draw (plot), or all at once (demo).

First sft, then grpo or ppo; with --task lines: sft, rm, then grpo or ppo.
"""

import argparse
import inspect
import re
import sys
from dataclasses import MISSING, fields
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import torch

from nanogrpo import commands, demo
from nanogrpo.errors import NanoGRPOError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.options import Options, add_options
from nanogrpo.ppo import PPOConfig
from nanogrpo.reward_model import RewardModelConfig
from nanogrpo.sft import SFTConfig


def parser() -> argparse.ArgumentParser:
    """All commands and their options. An option that is not given leaves no trace; the command knows more."""
    top = argparse.ArgumentParser(
        prog="python -m nanogrpo", description=__doc__.splitlines()[0], epilog=__doc__.splitlines()[2]
    )
    add = top.add_subparsers(required=True, metavar="command", dest="command").add_parser
    trainers = (
        ("sft", "fine-tune a policy: addition, or lines of Shakespeare", SFTConfig, commands.run_sft),
        ("rm", "train a reward model on preferences between lines", RewardModelConfig, commands.run_rm),
        ("grpo", "improve a policy by GRPO", GRPOConfig, commands.run_rl),
        ("ppo", "improve a policy by PPO", PPOConfig, commands.run_rl),
    )
    for name, text, config_class, function in trainers:
        command = add(name, help=text, description=text, argument_default=argparse.SUPPRESS)
        command.set_defaults(run=function)
        add_run_options(command, name)
        if issubclass(config_class, Options):
            add_options(command.add_argument_group(config_class.__name__), config_class)
        else:
            add_config_options(command, config_class)
    command = add("plot", help="draw a metric of one or more logs")
    command.add_argument("logs", nargs="+", metavar="log", help="a CSV log, or a run's folder")
    command.add_argument("--metric", default="reward", help="a column of the logs (default: reward)")
    command.add_argument("--x", default="step", help="the x axis: step or num_tokens (default: step)")
    command.add_argument("--out", default="plot.png", help="the PNG to write (default: plot.png)")
    command.set_defaults(run=demo.plot)
    command = add("demo", help="a tiny GPT learns addition: SFT, then GRPO; about a minute")
    command.add_argument("--out", default="runs/demo", help="folder of the run (default: runs/demo)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, default=200, help="GRPO steps (default: 200)")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    command.set_defaults(run=demo.demo)
    return top


def add_run_options(command: argparse.ArgumentParser, name: str) -> None:
    """Where a run starts from and where it goes."""
    group = command.add_argument_group("the run")
    group.add_argument("--out", default=None, help=f"its folder (default: runs/{name}, runs/{name}-lines)")
    group.add_argument("--resume", action="store_true", default=False, help="go on with the run in --out")
    group.add_argument("--overwrite", action="store_true", default=False, help="replace the run in --out")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    group.add_argument("--save-every", type=int, help="steps between two checkpoints (default: 50)")
    group.add_argument(
        "--model", help="start from a run's folder, a file, or weights that ship (default: the run before)"
    )
    if name == "rm":
        group.add_argument("--pairs", type=int, help="preferences to learn from (default: 2000)")
        group.add_argument("--temperature", type=float, help="noise of the judge, in its points (default: 1)")
        return
    group.add_argument("--task", choices=commands.TASKS, help="(default: addition)")
    if name == "sft":
        group.add_argument("--target", type=float, help="stop at this share of right answers (default: 0.3)")
    else:
        what = "exact, judge, or a reward model's folder or file; several are added up"
        group.add_argument("--reward", nargs="+", help=f"{what} (default: exact; with lines, runs/rm)")


def add_config_options(command: argparse.ArgumentParser, config_class: type) -> None:
    """One option for each field of a trainer's config, explained by its docstring."""
    group = command.add_argument_group(f"{config_class.__name__}")
    texts, hints = explain(config_class), get_type_hints(config_class)
    for field in fields(config_class):
        flag, hint, how = "--" + field.name.replace("_", "-"), hints[field.name], {}
        default = "what the task needs" if field.default is MISSING else field.default
        text = f"{texts.get(field.name, '')} (default: {default})".strip()
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            continue
        if get_origin(hint) in (Union, UnionType):  # X | None
            hint = next(part for part in get_args(hint) if part is not type(None))
            how["type"] = or_none(hint)
        if get_origin(hint) is tuple:
            hint, how = get_args(hint)[0], {"nargs": "+"}
        group.add_argument(flag, help=text, **{"type": hint, "metavar": hint.__name__} | how)


def or_none(kind: type):
    """A reader of ``none`` or a value."""

    def read(text: str):
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__
    return read


def explain(config_class: type) -> dict[str, str]:
    """The ``Attributes`` of a docstring, without its markup."""
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", inspect.getdoc(config_class) or "", re.M)
    plain = {name: re.sub(r":\w+:`~?([\w.]+)`", r"\1", " ".join(text.split())) for name, text in found}
    return {name: text.replace("``", "").replace("%", "%%") for name, text in plain.items()}


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and run the command; a known error is one line, not a traceback."""
    args = parser().parse_args(argv)
    torch.set_num_threads(1)  # the models are so small that a second thread costs more than it brings
    try:
        args.run(args)
    except NanoGRPOError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        again = "; go on with --resume" if hasattr(args, "resume") else ""
        sys.exit(f"\nstopped; the logs hold every finished step{again}")


if __name__ == "__main__":
    main()
